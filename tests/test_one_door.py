"""What came from outside is opened in ``djax.io.foreign`` alone. Other places that open a file are listed, with why."""

import ast

import pytest
from helpers.fresh import SOURCE

MODULES = (
  "djax/disguised/array_records.py",
  "djax/audit/exported.py",
  "djax/cli/inspect.py",
  "djax/cli/query.py",
  "djax/disguised/containers.py",
  "djax/disguised/directory.py",
  "djax/disguised/png.py",
  "djax/io/form.py",
  "djax/disguised/manifest.py",
  "djax/disguised/manifest_form.py",
  "djax/owner/authentic.py",
  "djax/owner/canaries.py",
  "djax/owner/export.py",
  "djax/owner/pictures.py",
  "djax/owner/query.py",
  "djax/owner/restore.py",
  "djax/owner/sealed_metadata.py",
  "djax/disguised/records.py",
  "train/answer.py",
  "djax/models/checksums.py",
  "train/data/outsourced.py",
  "djax/models/predict.py",
  "djax/models/weights.py",
)
# Names of functions that open files, or make others open them, whatever they are called on.
OPENING = {
  *(
    "open",
    "read_bytes",
    "read_text",
    "memmap",
    "fromfile",
    "loadtxt",
    "genfromtxt",
    "open_memmap",
  ),
  *(
    "copy",
    "copy2",
    "copyfile",
    "copytree",
    "copyfileobj",
    "move",
    "link",
    "link_to",
    "hardlink_to",
  ),
  *("ArrayRecordReader", "ArrayRecordDataSource", "builder_from_directory", "builder_from_files"),
  *(
    "as_data_source",
    "ZipFile",
    "mmap",
    "load",
    "load_file",
    "safe_open",
    "restore_from",
    "imread",
  ),
  *(
    "PyPointerArray",
    "FileIO",
    "GFile",
    "sendfile",
    "popen",
    "Popen",
    "import_module",
    "__import__",
  ),
}
# Modules of ours whose functions of these names open nothing by themselves, or go through the door.
OURS = {"directory", "foreign", "sources", "predict", "config_lib", "keyfile", "weights"}
ALLOWED = {
  (
    "djax/disguised/directory.py",
    "private_shard",
    "open",
  ): "the private copy, hashed as it was copied",
  (
    "djax/disguised/directory.py",
    "file_sha256",
    "open",
  ): "a file of this machine's own, when it is written",
  ("djax/disguised/containers.py", "texts", "read_bytes"): "what TFDS wrote a moment before",
  ("djax/owner/pictures.py", "_array", "load"): "the owner's own images",
  ("djax/owner/pictures.py", "_array", "open"): "the owner's own images",
  ("djax/owner/restore.py", "_member", "open"): "an archive that is written",
  ("djax/owner/restore.py", "_write_archive", "ZipFile"): "an archive that is written",
  ("djax/owner/restore.py", "_write_archive", "copyfileobj"): "a file without a name, made here",
  ("djax/disguised/records.py", "writer", "open"): "a file that was written, to sync it",
}


def openings(text):
  """Yields function and name of every call that opens a file."""

  def visit(node, function):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      # A function within another one counts as that one; a method as itself.
      function = function or node.name
    if isinstance(node, ast.Call):
      name, owner = None, None
      if isinstance(node.func, ast.Name):
        name = node.func.id
      elif isinstance(node.func, ast.Attribute):
        name = node.func.attr
        owner = node.func.value.id if isinstance(node.func.value, ast.Name) else None
      if name in OPENING and owner not in OURS:
        yield function, name
    # One that is handed on, or has another name, opens as well.
    if isinstance(node, ast.Attribute) and node.attr == "open":
      module = getattr(node.value, "id", "")
      if module in ("os", "io", "builtins"):
        yield function, f"{module}.open"
    if isinstance(node, ast.ImportFrom | ast.Import):
      for alias in node.names:
        if alias.name in OPENING or alias.name.split(".")[0] in {"mmap", "pickle", "shelve"}:
          yield function, f"import {alias.name}"
    for child in ast.iter_child_nodes(node):
      yield from visit(child, function)

  yield from visit(ast.parse(text), None)


@pytest.mark.parametrize("module", MODULES)
def test_files_are_opened_through_the_door_alone(module):
  found = {(module, *opening) for opening in openings((SOURCE / module).read_text())}
  assert found == {place for place in ALLOWED if place[0] == module}


@pytest.mark.parametrize(
  ("line", "name"),
  [
    ("open(folder / 'MANIFEST.json')", "open"),
    ("(folder / 'MANIFEST.json').open('rb')", "open"),
    ("(folder / 'MANIFEST.json').read_bytes()", "read_bytes"),
    ("Path(folder, 'features.json').read_text()", "read_text"),
    ("os.open(folder, os.O_RDONLY)", "open"),
    ("opener = os.open", "os.open"),
    ("np.load(folder / 'x.npy')", "load"),
    ("np.memmap(folder)", "memmap"),
    ("json.load(file)", "load"),
    ("shutil.copyfile(folder, other)", "copyfile"),
    ("ArrayRecordReader(str(folder))", "ArrayRecordReader"),
    ("array_record_module.ArrayRecordReader(name)", "ArrayRecordReader"),
    ("tfds.builder_from_directory(str(folder))", "builder_from_directory"),
    ("import pickle", "import pickle"),
    ("from io import open", "import open"),
    ("importlib.import_module(facts['pythonClassName'])", "import_module"),
    ("Image.open(folder)", "open"),
  ],
)
@pytest.mark.parametrize("module", ["djax/disguised/manifest.py", "train/answer.py"])
def test_a_planted_opening_is_found(module, line, name):
  text = (SOURCE / module).read_text()
  planted = f"{text}\n\ndef planted(folder):\n  def inner():\n    {line}\n  return inner\n"
  before, after = (sorted(openings(t), key=str) for t in (text, planted))
  assert ("planted", name) in after
  assert [x for x in after if x[0] != "planted"] == before


def test_what_goes_through_the_door_is_not_found():
  for line in (
    "foreign.read(folder, 'x', limit=5)",
    "foreign.opened(folder, 'x', limit=5)",
    "directory.open(folder)",
    "sources.open('digits', 'train')",
    "copy.close()",
  ):
    assert list(openings(line)) == []


def test_every_listed_place_is_there():
  assert {place[0] for place in ALLOWED} <= set(MODULES)
  assert all((SOURCE / module).is_file() for module in MODULES)
