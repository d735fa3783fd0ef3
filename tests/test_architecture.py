"""Arrows between packages point down, in no circle; imports inside functions are few, and each says why."""

import pytest
from helpers import imports as graph

TEXTS = graph.sources()
assert {"djax.keys.master", "train.loop", "configs.base"} <= set(TEXTS), "rules over nothing hold"
IMPORTS = graph.imports(TEXTS)
MOST_INSIDE = 21


def upwards(imports):
  """Imports of a package from its own row or from one above."""
  found = []
  for one in imports:
    start, end = graph.row(one.importer), graph.row(one.imported)
    if None in (start, end) or graph.package(one.importer) == graph.package(one.imported):
      continue
    if end >= start and {graph.package(one.importer), graph.package(one.imported)} != {
      "train",
      "configs",
    }:
      found.append(f"{one.importer}:{one.line} imports {one.imported}")
  return found


def ours(imports):
  """Edges between modules of ours; a package's __init__ may name what is in it."""
  return {
    (one.importer, one.imported)
    for one in imports
    if one.imported in TEXTS
    and one.importer != one.imported
    and not one.inside
    and not one.imported.startswith(f"{one.importer}.")
  }


def planted(name, line):
  """The imports of all modules, and of one more."""
  return graph.imports({**TEXTS, name: line})


def test_every_package_has_a_layer():
  packages = {graph.package(name) for name in TEXTS} - {"djax", "djax.__main__"}
  listed = [name for layer in graph.LAYERS for name in layer]
  assert packages == set(listed) and len(listed) == len(set(listed))


def test_arrows_point_down():
  assert upwards(IMPORTS) == []


def test_there_is_no_circle():
  assert graph.circle(ours(IMPORTS)) == []


def test_djax_imports_nothing_of_train_or_configs():
  assert [
    one
    for one in IMPORTS
    if one.importer.startswith("djax")
    and not one.imported.startswith("djax")
    and one.imported.split(".")[0] in ("train", "configs")
  ] == []


def test_ops_import_nothing_of_djax_but_ops_and_errors():
  found = {
    graph.package(one.imported)
    for one in IMPORTS
    if graph.package(one.importer) == "djax.ops" and one.imported.startswith("djax")
  }
  assert found <= {"djax.ops", "djax.errors"} and "djax.ops" in found


def test_imports_inside_functions_are_few_and_say_why():
  inside = [one for one in IMPORTS if one.inside]
  assert 0 < len({(one.importer, one.line) for one in inside}) <= MOST_INSIDE
  assert [f"{one.importer}:{one.line}" for one in inside if not one.reason] == []


def test_no_module_is_imported_by_a_name_that_this_test_cannot_see():
  """The lazy names of djax, a config by its name, and the entry point of training are all there are."""
  found = {
    name for name, text in TEXTS.items() if "import_module(" in text or "__import__(" in text
  }
  assert found == {"djax", "train.config"}
  assert {name for name, text in TEXTS.items() if "entry_points(" in text} == {
    "djax.cli.training",
    "djax.registry",
  }


@pytest.mark.parametrize(
  ("name", "line"),
  [
    ("djax.ops.planted", "from djax.keys import Master"),
    ("djax.keys.planted", "def f():\n  from djax import schemes"),
    ("djax.attacks.planted", "import train.loop"),
    ("djax.owner.planted", "from djax.audit import runner"),
  ],
)
def test_the_rule_of_arrows_can_fail(name, line):
  assert len(upwards(planted(name, line))) == 1


def test_the_rule_of_circles_can_fail():
  assert graph.circle({("a", "b"), ("b", "c"), ("c", "b")}) == ["b", "c"]
  assert graph.circle({("a", "b"), ("a", "c"), ("b", "c")}) == []


def test_the_rule_of_reasons_can_fail():
  (bare,) = graph.imports({"x": "def f():\n  y = 1\n  import numpy\n"})
  (why,) = graph.imports({"x": "def f():\n  y = 1\n  import numpy  # seconds\n"})
  assert bare.inside and not bare.reason and why.reason


def test_the_page_shows_the_graph_of_now():
  text = graph.PAGE.read_text()
  assert graph.redrawn(text) == text, "run: python -m tests.helpers.imports"
  assert "djax.cli --> djax.audit" in text
