"""The programs in a folder that holds somebody's own ``train.py`` and ``configs``: both forms find djax's own."""

import json
import os
import subprocess
import sys
import tomllib

import pytest
from helpers.fresh import ROOT, SOURCE

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
THEIRS = "raise SystemExit('theirs: ' + __file__)\n"
# What an installer writes for an entry point.
WRAPPER = """
import sys
from {module} import {function}
if __name__ == "__main__":
  sys.exit({function}())
"""


@pytest.fixture
def folder(tmp_path):
  """Somebody's own folder; the programs lie elsewhere."""
  theirs = tmp_path / "theirs"
  (theirs / "configs").mkdir(parents=True)
  (theirs / "configs" / "__init__.py").write_text(THEIRS)
  (theirs / "train.py").write_text(THEIRS)
  (tmp_path / "bin").mkdir()
  for name, entry in SCRIPTS.items():
    module, function = entry.split(":")
    (tmp_path / "bin" / name).write_text(WRAPPER.format(module=module, function=function))
  return theirs


def called(folder, *words, path=str(SOURCE)):
  """Runs ``djax ...``, ``djax-train ...`` or ``python -m ...`` in a folder."""
  program, *arguments = map(str, words)
  start = [] if program == "python" else [folder.parent / "bin" / program]
  return subprocess.run(
    [sys.executable, *start, *arguments],
    cwd=folder,
    env={**os.environ, "PYTHONPATH": path},
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=120,
  )


DJAX = pytest.mark.parametrize("program", [("djax",), ("python", "-m", "djax")], ids=" ".join)


@DJAX
@pytest.mark.slow
def test_a_config_is_read_by_djax_own_train(folder, program):
  done = called(folder, *program, "audit", "--config", "no_such", "--out", "audit")
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith("djax: error: config must be a shipped name (cifar10_aes, ")
  assert not (folder / "audit").exists()


@DJAX
def test_help_names_the_program_as_it_was_called(folder, program):
  for verb in ("show", "audit"):
    done = called(folder, *program, verb, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {' '.join(program)} {verb} ")
  assert called(folder, *program, "show", "no-such.key").returncode == 3


@pytest.mark.slow
def test_djax_train_lists_the_fields_of_djax_own_configs(folder):
  done = called(folder, "djax-train", "--help")
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("usage: djax-train [--config=")
  assert "--config.disguise.block_size=2\n" in done.stdout
  assert called(folder, "djax-train", "--config=no_such").returncode == 2


@pytest.mark.slow
def test_an_empty_entry_of_the_search_path_is_not_searched_first(folder):
  """``PYTHONPATH=$UNSET:DIR`` begins with one, and it means the current folder."""
  done = called(folder, "djax", "audit", "--config", "no_such", "--out", "audit", path=f":{SOURCE}")
  assert done.returncode == 2 and "theirs" not in done.stderr, done.stderr


@pytest.mark.parametrize("module", ["train", "train.answer", "train.table"])
@pytest.mark.slow
def test_python_m_train_finds_djax_own_configs(folder, module):
  (folder / "train.py").unlink()  # python itself would run it
  words = {"train.answer": ("no-run", "no-request", "--out=x"), "train.table": ("--list",)}
  done = called(folder, "python", "-m", module, *words.get(module, ("--help",)))
  assert "theirs" not in done.stderr
  if module == "train.answer":
    assert done.returncode == 4 and "no-request" in done.stderr
  else:
    assert done.returncode == 0, done.stderr
  if module == "train":
    assert done.stdout.startswith("usage: python -m train [--config=")
    assert "--config.disguise.block_size=2\n" in done.stdout


def test_a_config_file_still_imports_its_neighbours(folder):
  (folder / "train.py").unlink()
  (folder / "neighbour.py").write_text("EPOCHS = 77\n")
  mine = folder / "configs" / "mine.py"
  mine.write_text(
    "from configs import digits_rmt\nimport neighbour\n\n\ndef get_config():\n"
    "  config = digits_rmt.get_config()\n  config.train.epochs = neighbour.EPOCHS\n  return config\n"
  )
  done = called(folder, "python", "-m", "train", "--config=configs/mine.py", "--help")
  assert done.returncode == 0 and "--config.train.epochs=77\n" in done.stdout, done.stderr


def test_worker_processes_find_djax_own_train(folder):
  code = """
import json, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from djax.cli import program

program.own_modules_first()
with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
  print(pool.submit(eval, "__import__('train').__file__").result(), sys.path[-1], sep="\\n")
"""
  done = called(folder, "python", "-c", code)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == [str(SOURCE / "train" / "__init__.py"), str(folder)]


def test_in_djax_own_checkout_the_search_path_stays(folder):
  code = """
import json, sys
before = list(sys.path)
from djax.cli import program

program.own_modules_first()
print(json.dumps([before, sys.path]))
"""
  for place, kept in ((SOURCE, True), (folder, False)):
    done = called(place, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert (before == after) is kept
