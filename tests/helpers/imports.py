"""The import graph of djax, train and configs, read from the source: for the rules, and for docs/architecture.md.

    python -m tests.helpers.imports

writes the drawing of the page anew.
"""

import ast
import pathlib
import re
from typing import NamedTuple

import djax

ROOT = pathlib.Path(__file__).parents[2]
SOURCE = pathlib.Path(djax.__file__).resolve().parents[1]  # elsewhere when a wheel is tested
PAGE = ROOT / "docs" / "architecture.md"
OURS = ("djax", "train", "configs")
# From the ground up: a package imports what stands before it, and never what stands in its own row or after it.
LAYERS = (
  ("djax.errors",),
  ("djax.io", "djax.ops", "djax.host", "djax.registry"),
  ("djax.keys", "djax.schemes"),
  ("djax.sources", "djax.disguised"),
  ("djax.attacks",),
  ("djax.models",),
  ("djax.owner",),
  ("djax.audit", "djax.bench"),
  ("djax.cli",),
  ("train", "configs"),
)
_BEGIN, _END = "<!-- import graph: python -m tests.helpers.imports -->", "<!-- end of the graph -->"


class Import(NamedTuple):
  """One module that another one imports.

  Attributes:
    importer: dotted name.
    imported: dotted name, of a module where it is one of ours.
    line: in the importer.
    inside: whether the statement stands in a function.
    reason: whether a comment says why it stands there, or the docstring of a function that does nothing else.
  """

  importer: str
  imported: str
  line: int
  inside: bool
  reason: bool


def sources(root=SOURCE):
  """Returns the text of every module by its dotted name; a package's own text is that of its __init__."""
  found = {}
  for top in OURS:
    for path in sorted((root / top).rglob("*.py")):
      name = ".".join(path.relative_to(root).with_suffix("").parts)
      found[name.removesuffix(".__init__")] = path.read_text()
  return found


def imports(texts):
  """Returns every ``Import`` of some modules, but those that only types need."""
  found = []
  for name, text in texts.items():
    lines = text.splitlines()
    stack = [(node, None) for node in ast.parse(text).body]
    while stack:
      node, function = stack.pop()
      if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        continue
      if isinstance(node, ast.Import | ast.ImportFrom):
        said = "#" in lines[node.lineno - 1] or "#" in lines[node.lineno - 2]
        if (
          function and len(function.body) <= 3
        ):  # it is there for this import alone: its docstring says why
          said = said or bool(ast.get_docstring(function))
        inside = function is not None
        for target in _targets(node, texts):
          found.append(Import(name, target, node.lineno, inside, said))
      inner = node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
      stack += [(child, inner) for child in ast.iter_child_nodes(node)]
  return found


def package(name):
  """Returns the package that a module of djax belongs to; of another one its first part."""
  parts = name.split(".")
  return ".".join(parts[:2]) if parts[0] == "djax" else parts[0]


def row(name):
  """Returns the number of a module's layer, or None: ``djax/__init__`` names the public operations, lazily."""
  for number, layer in enumerate(LAYERS):
    if package(name) in layer:
      return number
  return None


def circle(edges):
  """Returns modules that import each other in a circle, or an empty list.

  Args:
    edges: pairs of names.
  """
  after = {}
  for start, end in edges:
    after.setdefault(start, set()).add(end)
  done, path = set(), []

  def visit(name):
    if name in path:
      return path[path.index(name) :]
    if name in done:
      return []
    path.append(name)
    for other in sorted(after.get(name, ())):
      if found := visit(other):
        return found
    path.pop()
    done.add(name)
    return []

  for name in sorted(after):
    if found := visit(name):
      return found
  return []


def drawing():
  """Returns the packages and their imports as a Mermaid graph; what follows from other arrows is left out."""
  texts = sources()
  edges = set()
  for found in imports(texts):
    start, end = package(found.importer), package(found.imported)
    if start != end and row(found.importer) is not None and row(found.imported) is not None:
      edges.add((start, end))
  kept = [edge for edge in sorted(edges) if not _reached(edge, edges - {edge})]
  lines = [f"  {start} --> {end}" for start, end in kept]
  return "\n".join([_BEGIN, "", "```mermaid", "graph TD", *lines, "```", "", _END])


def _targets(node, texts):
  """Yields what an import statement names, as modules where they are ours."""
  if isinstance(node, ast.Import):
    yield from (alias.name for alias in node.names)
    return
  assert not node.level, "relative imports are not used here"
  for alias in node.names:
    whole = f"{node.module}.{alias.name}"
    yield whole if whole in texts else node.module


def _reached(edge, edges):
  """Whether a way leads from the start of an edge to its end."""
  start, end = edge
  seen, todo = set(), [start]
  while todo:
    name = todo.pop()
    seen.add(name)
    todo += [other for first, other in edges if first == name and other not in seen]
  return end in seen


def redrawn(text):
  """Returns the page with the drawing of now."""
  pattern = re.compile(re.escape(_BEGIN) + r".*?" + re.escape(_END), re.DOTALL)
  assert pattern.search(text), "the page has no place for the drawing"
  return pattern.sub(lambda _: drawing(), text)


if __name__ == "__main__":
  PAGE.write_text(redrawn(PAGE.read_text()))
