"""The notebooks as they are committed: without outputs, tidy, alike where they should be."""

import json
import pathlib
import re

import nbformat
import pytest
from helpers.fresh import ROOT

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BOOKS = {path.stem: json.loads(path.read_text()) for path in PATHS}
every_book = pytest.mark.parametrize("book", BOOKS.values(), ids=BOOKS)


def text_of(cell):
  return "".join(cell["source"])


def code_of(book):
  return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def faults(book):
  """Returns what is wrong with the form of a notebook."""
  names = [cell["id"] for cell in book["cells"]]
  if len(set(names)) < len(names):
    return ["ids twice"]
  try:
    nbformat.validate(book)
  except nbformat.ValidationError as error:
    return [f"no valid notebook: {error}"]
  found = []
  if book["metadata"] != {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
  }:
    found.append(f"metadata: {book['metadata']}")
  found += [f"id {name}" for name in names if not re.fullmatch("[a-z][a-z0-9-]*", name)]
  for cell in book["cells"]:
    if cell["metadata"] or cell.get("outputs") or cell.get("execution_count"):
      found.append(f"cell {cell['id']}: outputs, count or metadata")
    if re.search(r"/(?:tmp|home|root|Users|work|content)/", text_of(cell)):
      found.append(f"cell {cell['id']}: a path of one machine")
  return found


def test_there_are_five():
  assert [path.name[0] for path in PATHS] == list("12345")


@every_book
def test_the_form_is_tidy(book):
  assert faults(book) == []


@every_book
def test_the_first_lines_say_the_side_of_the_trust_boundary(book):
  title, side = re.match(r"(# \d\. .+)\n\n(.+)", text_of(book["cells"][0])).groups()
  assert re.match(r"\*\*Sides? of the trust boundary: ", side), title


def test_the_first_cell_of_code_is_the_same_in_all():
  cells = {text_of(code_of(book)[0]) for book in BOOKS.values()}
  assert len(cells) == 1
  assert 'find_spec("djax") is None' in cells.pop()


def test_the_first_cell_installs_nothing_where_djax_is(monkeypatch):
  def refuse(*args, **options):
    raise AssertionError("something is run")

  monkeypatch.setattr("subprocess.run", refuse)
  exec(text_of(code_of(BOOKS["1_quickstart"])[0]), {})


def test_the_first_cell_holds_what_is_here_where_djax_is_missing(monkeypatch, tmp_path):
  commands = []
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
  monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
  exec(text_of(code_of(BOOKS["1_quickstart"])[0]), {})
  ((*_, flag, pins, what),) = commands
  assert (flag, what) == ("-c", "..")
  held = dict(line.split("==") for line in pathlib.Path(pins).read_text().splitlines())
  assert {"jax", "jaxlib", "flax", "numpy"} <= set(held)


@pytest.mark.parametrize(
  "change",
  [
    lambda book: book["metadata"].update(colab={}),
    lambda book: code_of(book)[1].update(execution_count=3),
    lambda book: code_of(book)[1]["outputs"].append(
      {"output_type": "stream", "name": "stdout", "text": "x"}
    ),
    lambda book: book["cells"][1].update(id="0a1B"),
    lambda book: book["cells"][1].update(id=book["cells"][2]["id"]),
    lambda book: book["cells"][1]["source"].append("\nopen('/tmp/x')"),
    lambda book: book["cells"][1].pop("source"),
  ],
)
def test_each_fault_of_form_is_found(change):
  book = json.loads(PATHS[0].read_text())
  change(book)
  assert faults(book)
