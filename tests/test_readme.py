"""The README says what works: its Python runs, its commands exist, its links lead somewhere."""

import pathlib
import re

import numpy as np
import pytest

from djax import __main__ as owner_cli
from train import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs_and_keeps_its_word():
  (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
  names = {}
  exec(compile(snippet, "README.md", "exec"), names)
  error = np.abs(np.asarray(names["restored"]) - names["images"])
  assert error.max() <= 12.5 + 0.01
  assert np.abs(np.asarray(names["disguised"])).max() > 1


@pytest.mark.parametrize(
  "command", ["pip install -e . && python -m train", "pip install -e '.[test]' && python -m pytest"]
)
def test_the_two_commands_stand_there_as_one_line(command):
  assert f"```\n{command}\n```" in README


def test_verbs_and_configs_named_exist():
  verbs = set(re.findall(r"python -m djax (\w+)", README))
  assert verbs and verbs <= set(owner_cli._VERBS)
  configs = set(re.findall(r"--config=(\w+)", README)) - {"NAME"}
  configs |= set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
  assert configs and configs <= set(config_lib.shipped())


def test_files_named_exist():
  for name in re.findall(r"`((?:docs|configs|tests)/[\w./-]+)`", README):
    assert (ROOT / name).exists(), name
