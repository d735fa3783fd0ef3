"""Every notebook runs from its first cell to its last, on the embedded data, as a person would run it."""

import nbformat
import pytest
from helpers.fresh import ROOT
from nbclient import NotebookClient

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Cells that must show a picture, those in which djax itself draws it among them.
PICTURES = {
  "1_quickstart": {"operations", "disguise", "restore", "train", "twin", "curve"},
  "2_your_own_images": {"sheet", "cloud-sees", "answers"},
  "3_break_it": {"owner", "level1", "level2", "control", "curves"},
  "4_your_own_jax": {"curves"},
  "5_read_an_audit": {"bars", "curves"},
}


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_output_can_be_read(path, tmp_path, monkeypatch):
  for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "TMPDIR"):
    folder = tmp_path / name.lower()
    folder.mkdir()
    monkeypatch.setenv(name, str(folder))
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.delenv("PYTHONWARNINGS", raising=False)
  book = nbformat.read(path, 4)
  NotebookClient(
    book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
  ).execute()
  shown = {
    cell.id
    for cell in book.cells
    for output in cell.get("outputs", ())
    if "image/png" in output.get("data", {})
  }
  assert shown == PICTURES[path.stem]
  said = {
    cell.id: "".join(o.get("text", "") for o in cell.get("outputs", ())) for cell in book.cells
  }
  for cell, text in said.items():
    assert not set(text) & set("\x1b\r\x08"), (cell, text)
    assert "Traceback" not in text and "Warning" not in text, (cell, text)
  if path.stem == "4_your_own_jax":  # conftest gives two devices
    assert said["mesh"].startswith("2 devices")
