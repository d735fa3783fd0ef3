"""The how-to pages work as they stand: one folder of images, all commands in order, then the Python."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from helpers import documents
from helpers.fresh import ROOT
from PIL import Image

from djax import keys, sources
from djax.keys import keyfile

HOWTO = ROOT / "docs" / "howto"
IN_ORDER = (
  "disguise_a_folder",
  "keep_a_key",
  "disguise_in_parts",
  "train",
  "ask",
  "restore",
  "audit",
  "compare",
)
PASSPHRASE = "a test's own"


def page(name):
  return (HOWTO / f"{name}.md").read_text()


@pytest.fixture
def photos(tmp_path):
  """Digits as a person's folders: three classes to train on, and new images of known classes."""
  for folder, split, count in (("photos", "train", 40), ("new_images", "test", 4)):
    digits = sources.load("digits", split)
    for label in range(3):
      place = tmp_path / folder / (f"class {label}" if folder == "photos" else "")
      place.mkdir(parents=True, exist_ok=True)
      for i, image in enumerate(digits.images[digits.labels == label][:count]):
        Image.fromarray(image[..., 0]).convert("RGB").save(place / f"{label}_{i}.png")
  return tmp_path


@pytest.fixture
def home(photos, monkeypatch):
  """That folder as home and place of the commands, with a key, and its passphrase in a file and the environment."""
  monkeypatch.chdir(photos)
  monkeypatch.setenv("DJAX_PASSPHRASE", PASSPHRASE)
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("HOME", str(photos))
  keyfile.write("owner.djaxkey", keys.generate(), passphrase=PASSPHRASE)
  pathlib.Path("passphrase").touch(mode=0o600)
  pathlib.Path("passphrase").write_text(PASSPHRASE)
  return photos


def quick(command):
  """Shortens training alone: the network of an outsourced run is made for MNIST."""
  if "--config=outsourced" in command:
    command += " --config.train.epochs=6 --config.model.width=64 --config.train.batch_size=32"
  elif command.startswith("python -m train --config"):
    command += " --config.train.epochs=1 --config.model.width=4"
  return command


@pytest.mark.slow
def test_the_commands_run_in_order_and_do_what_the_pages_say(photos, monkeypatch, capsys):
  monkeypatch.chdir(photos)
  monkeypatch.setenv("DJAX_PASSPHRASE", PASSPHRASE)
  said = {}
  for name in IN_ORDER:
    lines = documents.commands(page(name))
    assert lines
    said[name] = []
    for line in lines:
      capsys.readouterr()
      if line.startswith("cp "):
        documents.run(line, photos)
      else:
        documents.call(quick(line))
      said[name].append(capsys.readouterr().out)
  assert (photos / "sheet.png").exists() and (photos / "grid.png").exists()
  assert "authenticated" in said["keep_a_key"][2]
  here, _, _, there = said["ask"]
  assert here == there and len(here.splitlines()) == 12
  guesses = [line.split() for line in here.splitlines()]
  assert sum(name.split("/")[-1][0] == label for name, _, label, _ in guesses) >= 10, here
  assert len(list((photos / "originals").rglob("*.png"))) == 120
  assert (photos / "audit" / "audit.html").exists()
  facts = json.loads((photos / "audit" / "audit.json").read_text())
  assert {row["name"] for row in facts["attacks"]} == {"placement", "procrustes"}
  (code,) = documents.blocks(page("compare"), "python")
  exec(compile(code, "compare.md", "exec"), {})
  assert "cost of the disguise" in capsys.readouterr().out


@pytest.mark.slow
def test_parts_are_written_by_xargs_and_by_the_script_for_slurm(home, monkeypatch):
  monkeypatch.setenv("PATH", f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
  (xargs,) = documents.blocks(page("disguise_in_parts"), "sh")
  subprocess.run(["bash", "-euc", xargs], check=True, capture_output=True)
  (slurm,) = documents.blocks(page("disguise_in_parts"), "shell")
  environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
  one = slurm.replace("/100", "/1")
  subprocess.run(["bash", "-euc", one], check=True, capture_output=True, env=environment)
  (finish,) = (line for line in documents.commands(page("disguise_in_parts")) if "--finish" in line)
  for out in ("with_xargs", "with_slurm"):
    documents.call(finish.replace("in_parts", out))
    assert not pathlib.Path(out, ".unfinished").exists()
    documents.call(f"python -m djax verify {out} --key owner.djaxkey")


@pytest.mark.slow
def test_a_cluster_writes_what_the_page_says(home, monkeypatch):
  folder = home / "bin"
  folder.mkdir()
  (folder / "srun").write_text('#!/bin/bash\nexec "$@"\n')
  (folder / "srun").chmod(0o755)
  python = pathlib.Path(sys.executable).parent
  monkeypatch.setenv("PATH", f"{folder}:{python}:{os.environ['PATH']}")
  here, certificate = documents.blocks(page("disguise_on_a_cluster"), "sh")
  install, slurm = documents.blocks(page("disguise_on_a_cluster"), "shell")
  assert install == "pip install 'djax[cluster]'\n"
  for script in (here, certificate, slurm):
    with socket.create_server(("127.0.0.1", 0)) as free:
      port = str(free.getsockname()[1])
    script = script.replace("8786", port)
    # A job of Slurm ends with all that it started; so does this one.
    done = subprocess.Popen(["bash", "-euc", script], start_new_session=True)
    try:
      assert done.wait(120) == 0, script
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(done.pid, signal.SIGKILL)
  for out in ("on_cluster", "with_dask"):
    assert not pathlib.Path(out, ".unfinished").exists()
    documents.call(f"python -m djax verify {out} --key owner.djaxkey")
  assert pathlib.Path("cluster.key").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_the_python_of_own_jax_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  keyfile.write("owner.djaxkey", keys.generate(), passphrase=PASSPHRASE)
  monkeypatch.setenv("DJAX_PASSPHRASE", PASSPHRASE)
  names = {}
  for code in documents.blocks(page("own_jax"), "python"):
    exec(compile(code, "own_jax.md", "exec"), names)
  assert names["batch"].shape == (8, 32, 32, 3)
  assert not np.array_equal(names["batch"][0], names["batch"][1])
