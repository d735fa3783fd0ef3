"""Rules that tests keep themselves."""

import pathlib
import re

import pytest

TESTS = pathlib.Path(__file__).parent
# At the beginning of a line, so that code in strings, which other processes run, counts too.
IMPORT = re.compile(r"^[ \t]*(?:from|import)\b.*\btest_\w+", re.MULTILINE)


def imports_of_tests(folder):
  """Returns what imports a test module, as ``file: line of code``."""
  found = []
  for path in sorted(folder.rglob("*.py")):
    lines = IMPORT.findall(path.read_text())
    found += [f"{path.relative_to(folder)}: {line.strip()}" for line in lines]
  return found


def test_no_module_of_the_tests_imports_a_test_module():
  """What two of them need stands in ``tests/helpers``."""
  assert len(list(TESTS.rglob("test_*.py"))) > 50
  assert imports_of_tests(TESTS) == []


@pytest.mark.parametrize(
  "line",
  [
    "from {} import tiny",
    "import {}",
    "import os, {} as other",
    "from tests import {}",
    "from tests.{} import tiny",
    "  from {} import tiny",
    'CODE = """\nimport os\nfrom {} import tiny\n"""',
  ],
)
def test_one_that_does_is_found(tmp_path, line):
  (tmp_path / "helpers").mkdir()
  (tmp_path / "helpers" / "good.py").write_text("import numpy.testing\nfrom helpers import verbs\n")
  assert imports_of_tests(tmp_path) == []
  (tmp_path / "test_planted.py").write_text("import os\n" + line.format("test_" + "loop") + "\n")
  (found,) = imports_of_tests(tmp_path)
  assert found.startswith("test_planted.py: ") and found.count("test_" + "loop") == 1
