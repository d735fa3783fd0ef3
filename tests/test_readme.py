"""The README says what works: its Python runs, its commands exist, its links lead somewhere."""

import re
import tomllib
from importlib.util import find_spec

import numpy as np
import pytest
from helpers import documents
from helpers.fresh import ROOT
from PIL import Image

from djax import sources
from djax.cli import main as owner_cli
from train import config as config_lib

README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs_and_keeps_its_word():
  (snippet,) = documents.blocks(README, "python")
  names = {}
  exec(compile(snippet, "README.md", "exec"), names)
  error = np.abs(np.asarray(names["restored"]) - names["images"])
  assert error.max() <= 12.5 + 0.01
  assert np.abs(np.asarray(names["disguised"])).max() > 1


def missing(text):
  """Returns what the commands of a text run or install that does not exist."""
  known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  modules = set(re.findall(r"python -m ([\w.]+)", text))
  extras = set(re.findall(r"pip install -e '\.\[(\w+)\]'", text))
  assert modules and extras
  return {name for name in modules if find_spec(name) is None} | (extras - set(known))


def test_what_its_commands_run_and_install_exists():
  assert missing(README) == set()
  gone = README.replace("python -m train.table", "python -m train.gone").replace(
    "[test]", "[tests]"
  )
  assert missing(gone) == {"train.gone", "tests"}


def test_verbs_and_configs_named_exist():
  verbs = set(re.findall(r"python -m djax (\w+)", README))
  assert verbs and verbs <= set(owner_cli._VERBS)
  configs = set(re.findall(r"--config=(\w+)", README)) - {"NAME"}
  configs |= set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
  assert configs and configs <= set(config_lib.shipped())


def test_files_named_exist():
  for name in re.findall(r"`((?:docs|configs|tests)/[\w./-]+)`", README):
    assert (ROOT / name).exists(), name


def outsourcing():
  """Returns the commands of the section on outsourcing, in order, and those in its text."""
  section = README.partition("## Outsource a data set")[2].partition("\n## ")[0]
  prose = re.findall(r"`((?:query|python -m train\.answer) [^`]*)`", section.replace("\n", " "))
  return documents.commands(section), prose


@pytest.mark.slow
def test_outsourcing_works_as_the_readme_shows_it(tmp_path, monkeypatch, capsys):
  """On the digits, with a smaller network: check, disguise, train, query, request, answer, inspect, verify, restore."""
  digits = sources.load("digits", "test[:6]")
  (tmp_path / "photos").mkdir()
  for i, image in enumerate(digits.images):
    Image.fromarray(image[..., 0]).save(tmp_path / "photos" / f"{i}.png")
  commands, prose = outsourcing()
  assert len(commands) == 8 and len(prose) == 3
  commands = [command.replace("mnist", "digits") for command in commands]
  commands[1] += " --no-passphrase"
  commands[2] = commands[2].replace("--block-size 7", "--block-size 2")
  commands[2] = commands[2].replace("--noise-level 100", "--noise-level 25")
  commands[3] += " --config.train.epochs=15 --config.train.batch_size=64 --config.model.width=128"
  prose = [f"python -m djax {x}" if x.startswith("query") else x for x in prose]
  monkeypatch.chdir(tmp_path)
  said = []
  for command in [*commands[:5], *prose, *commands[5:]]:
    assert command.startswith("python -m ")
    capsys.readouterr()
    documents.call(command)
    said.append(capsys.readouterr().out)
  assert said[0].startswith("images: train 1438") and (tmp_path / "sheet.png").exists()
  seen = [line.split()[1] for line in said[4].splitlines()]
  assert sum(s == str(label) for s, label in zip(seen, digits.labels, strict=True)) >= 5
  assert said[7] == said[4]
  assert "authenticated" in said[9] and (tmp_path / "grid.png").exists()
  back = np.load(tmp_path / "originals.npz")["train_images"]
  error = np.abs(back.astype(int) - sources.load("digits", "train").images)
  assert 6 <= error.max() <= 13
