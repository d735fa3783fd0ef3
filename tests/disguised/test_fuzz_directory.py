"""Fuzz of disguised directories: manifests and shards that an attacker makes, every checksum mended.

Whatever they say: a refusal in one printable line, or a manifest that all its readers can work with; at once, with
little memory. The failures that were found are kept in tests/corpus/directory as recipes.
"""

import contextlib
import copy
import hashlib
import io
import json
import pathlib
import resource
import shutil
import tarfile
import time
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import hostile
from helpers.alarm import alarm
from helpers.directories import paths
from helpers.fresh import ROOT

from djax import keys, sources
from djax.cli import inspect
from djax.cli.main import main
from djax.disguised import datacard, directory, manifest, quantise
from djax.errors import DataError
from djax.io import escape
from djax.keys import keyfile
from djax.owner import export, query
from djax.owner.plan import Request

CORPUS = ROOT / "tests" / "corpus" / "directory"
MASTER = keys.Master(bytes(range(32)))
SECONDS, BYTES = 2, 1 << 29  # of an input
ROWS = 64


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """Directories of both versions and roles, by name."""
  folder = tmp_path_factory.mktemp("bases")
  with tarfile.open(ROOT / "tests" / "vectors" / "disguised-v1.tar.xz") as archive:
    archive.extractall(folder, filter="data")
  splits = {"train": "train[:24]", "test": "test[:6]"}
  rmt = {"scheme": "rmt", "block_size": 2, "noise_level": 25.0}
  asked = Request("digits", rmt, splits, dtype="uint8", originals_per_shard=12, plain_labels=True)
  export.disguise(asked, folder / "data", MASTER, workers=1)
  images = query.Query(sources.load("digits", "test[:5]").images, tuple("abcde"))
  query.request(images, manifest.read(folder / "data"), MASTER, folder / "request")
  found = {"data": folder / "data", "request": folder / "request"}
  old = folder / "disguised-v1"
  return found | {name: old / name for name in ("aes", "rmt-uint8-projection")}


@pytest.fixture(scope="module")
def live(bases, tmp_path_factory):
  """Copies of them that an input may change."""
  folder = tmp_path_factory.mktemp("live")
  return {name: pathlib.Path(shutil.copytree(bases[name], folder / name)) for name in bases}


@contextlib.contextmanager
def bounded():
  """Fails what takes long, and what asks for much memory, which then fails with MemoryError."""
  size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
  before = resource.getrlimit(resource.RLIMIT_AS)
  resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, before[1]))
  start = time.process_time()
  try:
    with alarm(60):
      yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, before)
  assert time.process_time() - start < SECONDS


class Outcome(NamedTuple):
  """What came of an input: whether it was taken, and the lines that a person is told."""

  taken: bool
  lines: list[str]


def use(folder):
  """Does with a directory what its readers do; returns the ``Outcome``."""
  try:
    with bounded():
      data = directory.open(folder)
      facts = data.manifest
      for split in data.splits.values():
        images, labels = split.read(np.arange(min(ROWS, len(split))))
        assert images.shape[1:] == facts.disguised_shape and labels.max() < facts.classes
        if facts.quantiser is not None:
          values = quantise.dequantise(images, facts.quantiser, block_size=facts.block_size)
          assert np.isfinite(values).all()
        split.close()
      directory.verify(folder)
  except DataError as error:
    return Outcome(False, [str(error)])
  lines = [*inspect.summary(folder, facts), datacard.text(facts)]
  json.dumps(inspect.to_json(folder, facts))
  return Outcome(True, [escape.for_terminal(line) for line in lines])


def check_line(line):
  """One line that says little and shows everything."""
  assert line.isprintable(), ascii(line)
  assert len(line) < 2000, line[:200]


def bearable(outcome):
  """Whether every character of what a person is told is shown, and a refusal is one line that says little."""
  if outcome.taken:
    return all(line.isprintable() for line in outcome.lines)
  (line,) = outcome.lines
  return line.isprintable() and len(line) < 2000


# Manifests.


def nested(depth, kind=list):
  found = kind()
  for _ in range(depth):
    found = [found] if kind is list else {"a": found}
  return found


ESCAPES = "\x1b[2K\rauthenticated\x1b]0;owned\x07\x9b1m\u202e\u2028\u200b\x00"
NUMBERS = [0, 1, -1, 2, 3, 255, 256, 2**16, 2**16 + 1, 2**31 - 1, 2**31, 2**32, 2**40, 2**48 - 1]
NUMBERS += [2**48, 2**53, 2**63 - 1, 2**63, 2**64, 10**38, -(2**31), -(2**63), -(10**38), 10**400]
FLOATS = [0.0, -0.0, 0.5, 1e-320, 1e-45, 1e14, 1e15, 3e38, 1e39, 1e300, -1e300, float("nan")]
FLOATS += [float("inf"), float("-inf"), 25.0, 255.0]
STRINGS = ["", "train", "query", "test", "../x", "/dev/zero", ".unfinished", "MANIFEST.json", "\n"]
STRINGS += [ESCAPES, "\ud800", "\x00", "a" * 300, "ä", "rmt", "aes", "plain", "uint8", "float32"]
STRINGS += ["0" * 64, "0" * 32, "djx1-aaaaaaaaaaaaaaaa", "projection", "block", "after", "permuted"]
SHAPES = [[1, 1, 1], [8, 8], [8, 8, 1, 1], [0, 8, 1], [2**40] * 3, [2**16, 2**16, 1], [1] * 1000]
SHAPES += [[8, 8, 2**16], [16, 8, 1], [7, 7, 1]]
OTHERS = [None, True, False, [], {}, [[]], [None], ["a", 1], {"": 0}, {"a": {"b": []}}]
OTHERS += [nested(20), nested(200), nested(200, dict), [""] * 5000]  # deeper ones are texts below
JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
  lambda inner: (
    st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
  ),
  max_leaves=8,
)
VALUES = st.one_of(
  *(st.sampled_from(x) for x in (NUMBERS, FLOATS, STRINGS, SHAPES, OTHERS)),
  st.integers(-(2**70), 2**70),
  st.floats(),
  st.text(max_size=30),
  JSON,
)
OPERATIONS = ("set", "set", "set", "delete", "wrap", "double", "rename", "move", "add")
MUTATIONS = st.lists(
  st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 10**6), st.integers(0, 10**6), VALUES),
  min_size=1,
  max_size=3,
)


def mutated(content, mutations):
  """Changes values of a manifest: others, fewer, more, deeper, elsewhere, under another name."""
  content = copy.deepcopy(content)
  for operation, where, other, value in mutations:
    all_paths = list(paths(content))
    if not all_paths:
      break
    path, second = all_paths[where % len(all_paths)], all_paths[other % len(all_paths)]
    parent, name = at(content, path[:-1]), path[-1]
    if operation == "set":
      parent[name] = copy.deepcopy(value)
    elif operation == "delete":
      del parent[name]
    elif operation == "wrap":
      parent[name] = [parent[name]]
    elif operation == "double" and isinstance(parent[name], list):
      parent[name] = parent[name] * (1 + other % 1000)
    elif operation == "rename" and isinstance(parent, dict):
      parent[value if isinstance(value, str) else str(value)[:50]] = parent.pop(name)
    elif operation == "move":
      parent[name] = copy.deepcopy(at(content, second))
    elif operation == "add" and isinstance(parent, dict):
      parent["later"] = copy.deepcopy(value)
  return content


def at(content, path):
  for name in path:
    content = content[name]
  return content


def forged(bases, live, name, content):
  """Writes a manifest into a copy of a directory."""
  hostile.put(live[name], json.dumps(content).encode())
  shutil.copyfile(bases[name] / "MANIFEST.mac", live[name] / "MANIFEST.mac")
  hostile.put(live[name], json.dumps(content).encode())
  return live[name]


NAMES = st.sampled_from(["data", "data", "request", "aes", "rmt-uint8-projection"])
SLOW = hypothesis.settings(max_examples=800)
QUICK = hypothesis.settings(max_examples=200)


def manifests(bases, live, name, mutations):
  content = mutated(hostile.facts_of(bases[name]), mutations)
  outcome = use(forged(bases, live, name, content))
  hypothesis.target(float(outcome.taken))
  return outcome


@QUICK
@hypothesis.given(name=NAMES, mutations=MUTATIONS)
def test_mutated_manifests(bases, live, name, mutations):
  assert bearable(manifests(bases, live, name, mutations))


@pytest.mark.slow
@SLOW
@hypothesis.given(name=NAMES, mutations=MUTATIONS)
def test_many_mutated_manifests(bases, live, name, mutations):
  assert bearable(manifests(bases, live, name, mutations))


def texts(bases, live, name, edits):
  """Changes the text itself: bytes, cuts, repetitions, a field twice."""
  data = bytearray((bases[name] / "MANIFEST.json").read_bytes())
  for kind, where, value in edits:
    place = where % (len(data) + 1)
    if kind == "byte" and place < len(data):
      data[place] = value % 256
    elif kind == "insert":
      data[place:place] = [b"\x00", b'"', b"{", b"[", b"\\u001b", b"1e999", b"\xff"][value % 7]
    elif kind == "cut":
      del data[place : place + value % 200]
    elif kind == "repeat":
      data[place:place] = data[place : place + value % 300]
    elif kind == "deep":
      bracket = (b"[", b'{"a":')[value % 2]
      data[place:place] = bracket * (value % 3000)
    elif kind == "closed":
      data[place:place] = b"[" * (value % 1200) + b"]" * (value % 1200) + b","
    elif kind == "twice":
      data = bytearray(
        data.replace(b"{", b'{"bytes": 5, "format": "djax-disguised", ', 1 + value % 3)
      )
  hostile.put(live[name], bytes(data))
  return use(live[name])


EDITS = st.lists(
  st.tuples(
    st.sampled_from(["byte", "byte", "insert", "cut", "repeat", "twice", "deep", "closed"]),
    st.integers(0, 10**5),
    st.integers(0, 10**5),
  ),
  min_size=1,
  max_size=3,
)


@QUICK
@hypothesis.given(name=NAMES, edits=EDITS)
def test_mutated_texts(bases, live, name, edits):
  assert bearable(texts(bases, live, name, edits))


@pytest.mark.slow
@SLOW
@hypothesis.given(name=NAMES, edits=EDITS)
def test_many_mutated_texts(bases, live, name, edits):
  assert bearable(texts(bases, live, name, edits))


def test_the_fuzz_takes_what_is_whole_and_finds_what_is_not(bases, live, monkeypatch):
  """A harness that refuses everything, or lets everything pass, finds nothing."""
  for name in bases:
    content = hostile.facts_of(bases[name])
    assert use(forged(bases, live, name, content)).taken
    assert not use(forged(bases, live, name, {**content, "classes": 2**31})).taken
    monkeypatch.setattr(manifest, "_check_files", lambda *args: {}["planted"])
    with pytest.raises(KeyError, match="planted"):
      use(forged(bases, live, name, content))
    monkeypatch.setattr(manifest, "_check_files", lambda *args: bytearray(BYTES * 2))
    with pytest.raises(MemoryError):
      use(forged(bases, live, name, content))
    monkeypatch.undo()
    for taken in (False, True):
      assert not bearable(Outcome(taken, [f"a line {ESCAPES}"]))
    assert not bearable(Outcome(False, ["a" * 2000]))


# Bounds, one by one.


def large(**changes):
  return lambda facts: {**facts, **changes}


def inside(*path, value):
  def change(facts):
    found = copy.deepcopy(facts)
    at(found, path[:-1])[path[-1]] = value
    return found

  return change


def same_file(facts):
  """One file under a thousand names."""
  found = copy.deepcopy(facts)
  shards = found["splits"]["train"]["shards"]
  found["splits"]["train"].update(shards=shards[:1] * 1000, records=1000 * shards[0]["records"])
  return found


def huge(facts):
  """An image of 2^27 values; all else fits it."""
  found = spec(image_shape=[2**13, 2**14, 1], block_size=2**12)(facts)
  found |= {"disguised_shape": [2**13, 2**14, 1], "quantiser": None}
  for split in found["splits"].values():
    for shard in split["shards"]:
      shard["bytes"] = shard["records"] << 27
  return found


def spec(drop=(), **changes):
  def change(facts):
    kept = {name: value for name, value in facts["spec"].items() if name not in drop}
    return {**facts, "spec": {**kept, **changes}}

  return change


SHARD = ("splits", "train", "shards", 0)
BOUNDS = {
  "classes": large(classes=2**31),
  "more classes than names": large(classes=5000, class_names=None),
  "disguised shape": large(disguised_shape=[2**40] * 3),
  "a huge image": huge,
  "a large image": spec(image_shape=[2**14, 2**14, 1]),
  "two sides": spec(image_shape=[8, 8]),
  "four sides": spec(image_shape=[8, 8, 1, 1]),
  "no sides": spec(image_shape=[]),
  "sides of 0": spec(image_shape=[0, 8, 1]),
  "sides below 0": spec(image_shape=[-8, -8, 1]),
  "sides that are no numbers": spec(image_shape=["8", "8", "1"]),
  "sides that are true": spec(image_shape=[True, True, True]),
  "long sides": spec(image_shape=[1] * 10**6),
  **{f"spec without {name}": spec(drop=[name]) for name in ("scheme", "image_shape", "block_size")},
  **{f"spec without {name}": spec(drop=[name]) for name in ("permute", "matrix", "mix")},
  **{f"spec without {name}": spec(drop=[name]) for name in ("noise_level", "noise_place")},
  "spec with more": spec(later=1),
  "spec with much more": spec(**{f"a{i}": i for i in range(10**5)}),
  "spec of another scheme": spec(scheme="aes"),
  "spec of none": spec(scheme="plain"),
  "spec of an unknown one": spec(scheme="x" * 10**6),
  "spec that is a list": large(spec=[]),
  "a block of 0": spec(block_size=0),
  "a large block": spec(block_size=2**47),
  "a block that is a float": spec(block_size=2.0),
  "a block that is true": spec(block_size=True),
  "noise below 0": spec(noise_level=-1.0),
  "noise NaN": spec(noise_level=float("nan")),
  "noise without bound": spec(noise_level=float("inf")),
  "much noise": spec(noise_level=1e300),
  "noise of 400 digits": spec(noise_level=10**400),
  "noise that is whole": spec(noise_level=25),
  "noise in words": spec(noise_level=ESCAPES),
  "noise in a list": spec(noise_level=nested(900)),
  "a place in a million letters": spec(noise_place="x" * 10**6),
  "a place that is an object": spec(noise_place={"a": 1}),
  "a matrix with escapes": spec(matrix=ESCAPES),
  "truth that is 1": spec(permute=1),
  "truth that is a list": spec(permute=[[]]),
  "an error NaN": inside("error", "stored", value=float("nan")),
  "a huge error": inside("error", "restored", value=1e300),
  "records beyond the bytes": inside(*SHARD, "records", value=10**9),
  "records of the split": inside("splits", "train", "records", value=2**47),
  "records below 0": inside(*SHARD, "records", value=-1),
  "bytes beyond the records": inside(*SHARD, "bytes", value=10 << 30),
  "bytes beyond all": inside(*SHARD, "bytes", value=2**63),
  "views that do not divide": inside("splits", "train", "views", value=7),
  "views of 0": inside("splits", "train", "views", value=0),
  "one file a thousand times": same_file,
  "a shard that is the manifest": inside(*SHARD, "file", value="MANIFEST.json"),
  "a shard that is the card": inside(*SHARD, "file", value="README.md"),
  "a shard elsewhere": inside(*SHARD, "file", value="../data/README.md"),
  "a quantiser that is short": inside("quantiser", "offset", value=[0.0]),
  "a quantiser that is long": inside("quantiser", "scale", value=[1.0] * 10**5),
  "a quantiser of zeros": inside("quantiser", "scale", value=[0.0] * 16),
  "a quantiser that vanishes": inside("quantiser", "scale", value=[1e-300] * 16),
  "a quantiser that is huge": inside("quantiser", "offset", value=[1e300] * 16),
  "a quantiser of lists": inside("quantiser", "offset", value=[[0.0]] * 16),
  "a quantiser of floats": large(dtype="float32"),
  "no splits": large(splits={}),
  "splits in a list": large(splits=[]),
  **{
    f"a split named {ascii(name)[:20]}": inside("splits", name, value=None)
    for name in ("", "a b", "../x", "x" * 10**6, ESCAPES, "\ud800", "ä", "0")
  },
  "a data set that is a request": large(role="request", request="0" * 32),
  "a data set with a request": large(request="0" * 32),
  "names in a row": large(class_names=["a"] * 10**6),
  "too many warnings": large(warnings=[""] * 10**6),
  "sealed in words": large(sealed="not base64"),
  "sealed nothing": large(sealed=""),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_numbers_and_shapes_beyond_their_bounds_are_refused(bases, live, name):
  facts = hostile.facts_of(bases["data"])
  folder = forged(bases, live, "data", BOUNDS[name](facts))
  start = time.process_time()
  with bounded(), pytest.raises(DataError) as error:
    manifest.read(folder)
  assert time.process_time() - start < 1
  check_line(str(error.value))
  assert "MANIFEST.json" in str(error.value)


def strings(content):
  return [path for path in paths(content) if isinstance(at(content, path), str)]


def test_control_characters_in_any_string_or_name_are_refused_or_shown_escaped(bases, live):
  facts, taken = hostile.facts_of(bases["data"]), set()
  for path in paths(facts):
    parent = path[:-1]
    changes = (
      [mutated_at(facts, path, f"{at(facts, path)}{ESCAPES}")] if path in strings(facts) else []
    )
    if isinstance(path[-1], str):
      renamed = copy.deepcopy(facts)
      at(renamed, parent)[path[-1] + ESCAPES] = at(renamed, parent).pop(path[-1])
      changes.append(renamed)
    for content in changes:
      outcome = use(forged(bases, live, "data", content))
      assert bearable(outcome)
      if outcome.taken:
        taken.add(path[0])
  assert taken == {"djax", "source", "class_names", "warnings"}


def mutated_at(facts, path, value):
  return inside(*path, value=value)(facts)


# Shards.


def shard_of(live, name):
  facts = hostile.facts_of(live[name])
  return next(iter(facts["splits"].values()))["shards"][0]["file"]


def fresh(bases, live, name):
  for entry in bases[name].iterdir():
    shutil.copyfile(entry, live[name] / entry.name)


def shards(bases, live, name, edits, mend):
  """Changes bytes of a shard, most in its headers, and mends the hashes of the manifest, perhaps its own too."""
  fresh(bases, live, name)
  file = shard_of(live, name)
  data = bytearray((bases[name] / file).read_bytes())
  parts = hostile.chunks_of(bytes(data))
  starts = np.cumsum([0, *(40 + len(part[3]) for part in parts)]).tolist()[:-1]
  for kind, which, where, value in edits:
    if kind == "header":
      place = starts[which % len(starts)] + 8 + where % 50
      place = place // hostile.USABLE * hostile.BLOCK + 24 + place % hostile.USABLE
    else:
      place = where % len(data)
    size = (1, 2, 4, 8)[value % 4]
    number = NUMBERS[value % len(NUMBERS)] % (1 << 8 * size)
    data[place : place + size] = number.to_bytes(size, "little")[: len(data) - place]
  if mend:
    chunks = [
      hostile.chunk(kind, part, records=count, decoded=size)
      for kind, count, size, part in hostile.chunks_of(bytes(data))
    ]
    if sum(map(len, chunks)) % hostile.USABLE == 0 and chunks:
      data = hostile.blocks(chunks)
  hostile.replace(live[name], file, bytes(data))
  return use(live[name])


SHARD_EDITS = st.lists(
  st.tuples(
    st.sampled_from(["header", "header", "header", "anywhere"]),
    st.integers(0, 200),
    st.integers(0, 10**6),
    st.integers(0, 10**4),
  ),
  min_size=1,
  max_size=3,
)


@hypothesis.settings(max_examples=150)
@hypothesis.given(name=NAMES, edits=SHARD_EDITS)
def test_mutated_shards(bases, live, name, edits):
  assert bearable(shards(bases, live, name, edits, mend=False))


@pytest.mark.slow
@hypothesis.settings(max_examples=150)
@hypothesis.given(name=NAMES, edits=SHARD_EDITS, mend=st.booleans())
def test_many_mutated_shards(bases, live, name, edits, mend):
  assert bearable(shards(bases, live, name, edits, mend))


TOLD = st.fixed_dictionaries(
  {},
  optional={
    "count": st.sampled_from(NUMBERS),
    "num_chunks": st.sampled_from(NUMBERS),
    "group": st.sampled_from(NUMBERS),
    "footer_at": st.sampled_from([*NUMBERS, 65_536, 131_072]),
    "offsets": st.lists(st.sampled_from([0, 40, 64, 200, 5000, 65_536, *NUMBERS]), max_size=8),
    "magic": st.sampled_from(NUMBERS),
  },
)
RECORD = st.one_of(
  st.binary(max_size=150),
  st.builds(
    lambda image, label, more: hostile.field(
      1,
      hostile.field(1, hostile.field(1, b"image") + hostile.field(2, nest(1, image)))
      + hostile.field(1, hostile.field(1, b"label") + hostile.field(2, nest(3, label)))
      + more,
    ),
    st.sampled_from([bytes(64), bytes(63), b"", bytes(65)]),
    st.sampled_from([hostile.varint(n) for n in (0, 3, 9, 10, 2**31, 2**63, 2**64 - 1)])
    | st.binary(max_size=12),
    st.sampled_from([b"", b"", b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\x12\x00"]),
  ),
)


def nest(kind, content):
  return hostile.field(kind, hostile.field(1, content))


def told(bases, live, records, numbers):
  """Writes a file whose every hash holds, and which says of itself what it is told to."""
  numbers = {name: value % 2**64 for name, value in numbers.items() if name != "offsets"} | {
    name: [x % 2**64 for x in value] for name, value in numbers.items() if name == "offsets"
  }
  fresh(bases, live, "aes")
  facts = hostile.facts_of(live["aes"])
  shard = facts["splits"]["train"]["shards"][0]
  data = hostile.array_record(records, **numbers)
  (live["aes"] / shard["file"]).write_bytes(data)
  shard.update(records=len(records), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
  facts["splits"]["train"]["records"] = len(records)
  hostile.put(live["aes"], json.dumps(facts).encode())
  return use(live["aes"])


@hypothesis.settings(max_examples=40)
@hypothesis.given(records=st.lists(RECORD, min_size=1, max_size=6), numbers=TOLD)
def test_files_that_lie_about_themselves(bases, live, records, numbers):
  assert bearable(told(bases, live, records, numbers))


@pytest.mark.slow
@hypothesis.settings(max_examples=200)
@hypothesis.given(records=st.lists(RECORD, min_size=1, max_size=6), numbers=TOLD)
def test_many_files_that_lie_about_themselves(bases, live, records, numbers):
  assert bearable(told(bases, live, records, numbers))


# A folder of PNG files, as anyone on the rented machine may leave it.


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """Such a folder, beside its key, that an input may change."""
  place = tmp_path_factory.mktemp("pictures")
  keyfile.write(place / "key", MASTER, passphrase=None)
  aes = {"scheme": "aes", "block_size": 4}
  splits = {"train": "train[:12]", "test": "test[:5]"}
  export.disguise(
    Request("digits", aes, splits, format="folder"), place / "data", MASTER, workers=1
  )
  whole = {str(p.relative_to(place / "data")): p for p in sorted((place / "data").rglob("*"))}
  assert sum(name.endswith(".png") for name in whole) == 17
  return Pictures(place, {n: None if p.is_dir() else p.read_bytes() for n, p in whole.items()})


class Pictures:
  """A place, and what its folder held at first: the bytes of a file, None for a folder. Its ``repr`` is short."""

  def __init__(self, place, whole):
    self.place, self.whole = place, whole


def laid(place, content):
  """Writes a folder anew; only what differs from what is there, for speed."""
  data = place / "data"
  there = {str(p.relative_to(data)): p for p in data.rglob("*")}
  for name in sorted(there.keys() - content.keys(), reverse=True):
    there[name].rmdir() if there[name].is_dir() else there[name].unlink()
  for name, wanted in sorted(content.items()):
    path = data / name
    if wanted is None:
      path.mkdir(exist_ok=True)
    elif name not in there or path.read_bytes() != wanted:
      path.write_bytes(wanted)


def handled(whole, changes):
  """Returns the content of a folder after some changes: bytes, lengths, files that go, come, move or trade places."""
  content = dict(whole)
  for kind, which, where, value in changes:
    files = sorted(name for name, data in content.items() if data is not None)
    folders = sorted(content.keys() - set(files))
    name, other = files[which % len(files)], files[where % len(files)]
    folder = ["", *(f"{x}/" for x in folders)][value % (len(folders) + 1)]
    data = content[name]
    if kind == "byte" and data:
      at = where % len(data)
      content[name] = data[:at] + bytes([data[at] ^ (1 + value % 255)]) + data[at + 1 :]
    elif kind == "cut":
      content[name] = data[: where % max(len(data), 1)]
    elif kind == "longer":
      content[name] = data + bytes([value % 256])
    elif kind == "missing":
      del content[name]
    elif kind == "added":
      content.setdefault(f"{folder}{where % 1000:03d}.png", data)
    elif kind == "renamed":
      content.setdefault(f"{folder}{where % 20:03d}.png", content.pop(name))
    elif kind == "traded":
      content[name], content[other] = content[other], data
    elif kind == "folder":
      content.setdefault(f"{folder}{where % 30}", None)
    if not any(data is not None for data in content.values()):
      break
  return content


CHANGES = st.lists(
  st.tuples(
    st.sampled_from(
      ["byte", "byte", "cut", "longer", "missing", "added", "renamed", "traded", "folder"]
    ),
    st.integers(0, 10**4),
    st.integers(0, 10**5),
    st.integers(0, 10**4),
  ),
  min_size=1,
  max_size=3,
)


def verified(place):
  """Runs ``verify`` with the key; returns its exit code and the lines of stderr, which are short and printable."""
  said = io.StringIO()
  with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), alarm(60):
    code = main(["verify", str(place / "data"), "--key", str(place / "key")])
  lines = said.getvalue().splitlines()
  for line in lines:
    check_line(line)
  return code, lines


@hypothesis.settings(max_examples=150)
@hypothesis.given(changes=CHANGES)
def test_a_folder_of_png_files_with_anything_changed_is_never_verified(pictures, changes):
  place, whole = pictures.place, pictures.whole
  content = handled(whole, changes)
  laid(place, content)
  code, lines = verified(place)
  if content == whole:
    assert code == 0
  else:
    assert code == 4 and lines[-1].startswith("djax: error: ")


def test_each_file_of_a_folder_of_png_files_is_missed_and_one_byte_of_it_too(pictures):
  place, whole = pictures.place, pictures.whole
  for name, data in whole.items():
    if data is None:
      continue
    for content in ({**whole, name: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]}, dict(whole)):
      if content == whole:
        del content[name]
      laid(place, content)
      code, lines = verified(place)
      assert code == 4 and len(lines) == 1 and lines[0].startswith("djax: error: "), name
  laid(place, whole)
  assert verified(place)[0] == 0


# What was found, kept.


def built(value, facts):
  """Builds a value of a recipe: long ones are told by their length."""
  if isinstance(value, dict) and "repeat" in value:
    return value["repeat"] * value["times"]
  if isinstance(value, dict) and "names" in value:
    split = copy.deepcopy(facts["splits"]["test"])
    names = (f"split{number}" for number in range(value["names"]))
    return {name: {**split, "shards": [{**split["shards"][0], "file": name}]} for name in names}
  return value


@pytest.mark.parametrize("recipe", sorted(CORPUS.glob("*.json")), ids=lambda path: path.stem)
def test_what_was_found_before_is_bearable_now(bases, live, recipe):
  content = json.loads(recipe.read_text())
  assert content["why"]
  if "manifest" in content:
    facts = hostile.facts_of(bases[content["base"]])
    for change in content["manifest"]:
      facts = inside(*change["path"], value=built(change["value"], facts))(facts)
    outcome = use(forged(bases, live, content["base"], facts))
  else:
    image = bytes(range(64))
    record = hostile.field(
      1,
      hostile.field(1, hostile.field(1, b"image") + hostile.field(2, nest(1, image)))
      + hostile.field(1, hostile.field(1, b"label") + hostile.field(2, nest(3, b"\x03"))),
    )
    outcome = told(bases, live, [record] * content["records"], content["array_record"])
  assert bearable(outcome) and outcome.taken == content["taken"]


def test_the_corpus_is_not_empty():
  assert len(list(CORPUS.glob("*.json"))) >= 16
