"""Which directories a run is begun in."""

import errno
import json
import os
import pathlib
import sys
import types

import pytest
from helpers.training import tiny
from PIL import Image

import train
from djax.errors import UnsafeError
from train import loop, run_dir, state, terminal


def tree(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
    for path in folder.rglob("*")
  }


@pytest.mark.parametrize(
  "name",
  [
    "thesis.txt",
    "checkpoints/mine",
    "checkpoints/22/mine",
    "events/mine",
    "metrics.jsonl",
    "result.json",
    ".hidden",
    "checkpoints",
  ],
)
def test_files_of_others_are_left_as_they_are(tmp_path, name):
  path = tmp_path / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("mine")
  before = tree(tmp_path)
  first = pathlib.PurePath(name).parts[0]
  with pytest.raises(UnsafeError, match=rf"must be new or hold a run, .* holds {first}\. Give ano"):
    train.run(tiny(), tmp_path)
  assert tree(tmp_path) == before


def test_a_link_to_a_folder_of_others_is_not_followed(tmp_path):
  (tmp_path / "others").mkdir()
  (tmp_path / "run").mkdir()
  os.symlink(tmp_path / "others", tmp_path / "run" / "checkpoints")
  with pytest.raises(UnsafeError, match="holds checkpoints"):
    train.run(tiny(), tmp_path / "run")
  assert not any((tmp_path / "others").iterdir())


def test_what_a_run_left_that_ended_at_once_is_gone_on_with(tmp_path):
  for name in (".lock", "MANIFEST.json", "MANIFEST.mac", ".disguise.json.tmp", "disguise.json"):
    (tmp_path / name).write_text("")
  for name in ("checkpoints", "checksums", "events"):
    (tmp_path / name).mkdir()
  with run_dir.locked(tmp_path):
    assert (tmp_path / ".lock").exists()
  (tmp_path / ".config.json.tmp").write_text("{")
  with run_dir.locked(tmp_path):
    pass


@pytest.mark.slow
def test_a_run_keeps_the_name_of_the_network_that_was_chosen(tmp_path, capsys):
  config = tiny("model.name=auto", "train.epochs=1")
  first = train.run(config, tmp_path)
  assert "network: mlp, width 1024, as the disguise asks for" in capsys.readouterr().err
  assert json.loads((tmp_path / "config.json").read_text())["model"]["name"] == "mlp"
  assert train.run(config, tmp_path)["test_loss"] == first["test_loss"]
  named = tiny("model.name=mlp", "model.width=1024", "model.depth=2", "train.epochs=1")
  assert train.run(named, tmp_path)["test_loss"] == first["test_loss"]


def test_what_cannot_be_removed_from_an_old_checkpoint_is_named_in_full(tmp_path, monkeypatch):
  (tmp_path / "checkpoints" / "2" / "meta").mkdir(parents=True)

  def rmdir(name, *, dir_fd=None):  # as rmtree calls it: inside an open folder
    raise PermissionError(errno.EACCES, "Permission denied", name)

  monkeypatch.setattr(os, "rmdir", rmdir)
  with pytest.raises(PermissionError) as raised:
    state.remove_unfinished(tmp_path)
  assert raised.value.filename == str(tmp_path / "checkpoints" / "2")


def test_without_a_workdir_each_run_gets_a_new_folder_and_names_it(tmp_path, monkeypatch):
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
  monkeypatch.setattr(loop, "fit", lambda config, workdir, inputs: {"test_accuracy": 1.0})
  first, second = (pathlib.Path(train.run(tiny())["workdir"]) for _ in range(2))
  assert first != second and first.parent == tmp_path and first.is_dir()
  assert first.stat().st_mode & 0o077 == 0  # its preview shows originals


def test_a_picture_is_shown_in_a_notebook_and_nowhere_else(monkeypatch):
  sheet, shown = Image.new("L", (2, 2)), []
  display = types.SimpleNamespace(display=shown.append)
  for shell in (None, types.SimpleNamespace(), types.SimpleNamespace(kernel=1)):
    fake = types.SimpleNamespace(display=display, get_ipython=lambda shell=shell: shell)
    monkeypatch.setitem(sys.modules, "IPython", fake)
    terminal.show(sheet)
    assert shown == [sheet] * hasattr(shell, "kernel")
  monkeypatch.delitem(sys.modules, "IPython")
  terminal.show(sheet)
  assert shown == [sheet] and "IPython" not in sys.modules
