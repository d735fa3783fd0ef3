import copy
import dataclasses
import hashlib
import hmac
import json
import math
import os

import numpy as np
import pytest

from djax import card, manifest, quantise
from djax.errors import ManifestError
from djax.manifest import Manifest, Shard, SplitFacts
from djax.quantise import Bounds, Quantiser

KEY = bytes(range(32))
HASH = hashlib.sha256(b"").hexdigest()

# What a writer that read only docs/format.md, section 2, would put down.
EXAMPLE = {
  "format": "djax-disguised",
  "version": 1,
  "djax": "0.1.0",
  "expansion": "djx1",
  "key_fingerprint": "djx1-cjrs2kzflglpn4ve",
  "spec": {
    "scheme": "rmt",
    "image_shape": [5, 8, 3],
    "block_size": 4,
    "permute": True,
    "matrix": "orthogonal",
    "mix": "rows",
    "per_channel": False,
    "noise_level": 25.0,
    "noise_place": "before",
  },
  "disguised_shape": [8, 8, 3],
  "dtype": "uint8",
  "quantiser": {"offset": [-310.5, -1, 0.1, -300], "scale": [2.5, 2, 1.75, 1e-3]},
  "error": {"stored": 1.25, "restored": 2.5, "noise": 12.5},
  "source": {"name": "mnist", "dtype": "uint8", "hmac": HASH},
  "classes": 2,
  "class_names": None,
  "labels": "permuted",
  "views": {"count": 2, "crop": 2, "flip": True},
  "splits": {
    "train": {
      "records": 6,
      "views": 2,
      "shards": [
        {
          "file": "disguised-train.array_record-00000-of-00002",
          "records": 4,
          "bytes": 131072,
          "sha256": HASH,
        },
        {
          "file": "disguised-train.array_record-00001-of-00002",
          "records": 2,
          "bytes": 65536,
          "sha256": HASH,
        },
      ],
    },
    "test": {
      "records": 1,
      "views": 1,
      "shards": [
        {
          "file": "disguised-test.array_record-00000-of-00001",
          "records": 1,
          "bytes": 65536,
          "sha256": HASH,
        }
      ],
    },
  },
  "files": {"README.md": HASH, "features.json": HASH, "dataset_info.json": HASH},
  "warnings": ["one", "zwei: größer"],
  "sealed": "AAAA",
}


def encoded(content, **options):
  return json.dumps(content, **options).encode()


def put(folder, data, key=KEY):
  """Writes both files as docs/format.md has them."""
  first = f"hmac-sha256 {hmac.digest(key, data, 'sha256').hex()}\n".encode()
  second = f"sha256 {hashlib.sha256(data + first).hexdigest()}\n".encode()
  (folder / "MANIFEST.json").write_bytes(data)
  (folder / "MANIFEST.mac").write_bytes(first + second)


def refusal(folder, action=manifest.read):
  with pytest.raises(ManifestError) as error:
    action(folder)
  assert error.value.exit_code == 4
  assert "\n" not in str(error.value)
  return str(error.value)


def example():
  """The example as a Manifest."""
  return Manifest(
    djax="0.1.0",
    expansion="djx1",
    key_fingerprint="djx1-cjrs2kzflglpn4ve",
    spec=EXAMPLE["spec"],
    disguised_shape=(8, 8, 3),
    dtype="uint8",
    quantiser=Quantiser(
      np.array([-310.5, -1, 0.1, -300], np.float32), np.array([2.5, 2, 1.75, 1e-3], np.float32)
    ),
    error=Bounds(1.25, 2.5, 12.5),
    source=EXAMPLE["source"],
    classes=2,
    class_names=None,
    labels="permuted",
    views=EXAMPLE["views"],
    splits={
      "train": SplitFacts(
        6,
        2,
        (
          Shard("disguised-train.array_record-00000-of-00002", 4, 131072, HASH),
          Shard("disguised-train.array_record-00001-of-00002", 2, 65536, HASH),
        ),
      ),
      "test": SplitFacts(
        1, 1, (Shard("disguised-test.array_record-00000-of-00001", 1, 65536, HASH),)
      ),
    },
    files=EXAMPLE["files"],
    warnings=("one", "zwei: größer"),
    sealed="AAAA",
  )


def written(folder, facts=None):
  (folder / ".unfinished").mkdir()
  manifest.write(folder, facts or example(), mac_key=KEY)
  return folder


def test_a_manifest_by_the_document_is_read(tmp_path):
  data = encoded(EXAMPLE, ensure_ascii=False)
  put(tmp_path, data)
  found = manifest.read(tmp_path)
  manifest.authenticate(tmp_path, mac_key=KEY)
  assert found.sha256 == hashlib.sha256(data).hexdigest()
  assert found.block_size == 4
  expected = example()
  for field in dataclasses.fields(Manifest):
    if field.name not in ("quantiser", "sha256"):
      assert getattr(found, field.name) == getattr(expected, field.name), field.name
  for name in ("offset", "scale"):
    values = getattr(found.quantiser, name)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, getattr(expected.quantiser, name))


def test_what_is_written_is_the_document_and_comes_back(tmp_path):
  data = (written(tmp_path) / "MANIFEST.json").read_bytes()
  # Floats of the quantiser are the float32 ones, exactly.
  expected = copy.deepcopy(EXAMPLE)
  expected["quantiser"] = {
    name: [float(np.float32(x)) for x in values] for name, values in EXAMPLE["quantiser"].items()
  }
  assert json.loads(data) == expected
  found = manifest.read(tmp_path)
  assert encoded(found.to_dict()) == encoded(example().to_dict())
  assert (tmp_path / "MANIFEST.mac").read_bytes() == (
    b"hmac-sha256 %s\nsha256 %s\n"
    % (
      hmac.digest(KEY, data, "sha256").hex().encode(),
      hashlib.sha256(data + b"hmac-sha256 %s\n" % hmac.digest(KEY, data, "sha256").hex().encode())
      .hexdigest()
      .encode(),
    )
  )
  assert list((tmp_path / ".unfinished").iterdir()) == []


@pytest.mark.parametrize(
  "change",
  [
    {"quantiser": None, "dtype": "float16", "error": Bounds(0.5, None, 0.0)},
    {"class_names": ("größer", "b"), "labels": "plain"},
    {"splits": {"query": SplitFacts(1, 1, (Shard("a-b_c.0", 1, 5, HASH),))}, "warnings": ()},
  ],
)
def test_other_manifests_come_back(tmp_path, change):
  facts = dataclasses.replace(example(), **change)
  found = manifest.read(written(tmp_path, facts))
  assert encoded(found.to_dict()) == encoded(facts.to_dict())
  for name in set(change) - {"quantiser"}:
    assert getattr(found, name) == change[name]


def test_the_same_facts_are_the_same_bytes(tmp_path):
  folders = [tmp_path / name for name in "ab"]
  for folder in folders:
    folder.mkdir()
    written(folder)
  for name in ("MANIFEST.json", "MANIFEST.mac"):
    assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


# Damage and tampering.


def test_read_finds_every_changed_byte_of_the_mac(tmp_path):
  put(tmp_path, encoded(EXAMPLE))
  file = tmp_path / "MANIFEST.mac"
  whole = file.read_bytes()
  assert len(whole) == 149
  for place in range(len(whole)):
    for flip in (1, 2, 4, 0x20, 0x80):
      damaged = bytearray(whole)
      damaged[place] ^= flip
      file.write_bytes(damaged)
      assert "MANIFEST" in refusal(tmp_path)
      with pytest.raises(ManifestError):
        manifest.authenticate(tmp_path, mac_key=KEY)
  for damaged in (b"", whole[:-1], whole[:77], whole + b"\n", whole + b" ", whole.upper()):
    file.write_bytes(damaged)
    assert "MANIFEST" in refusal(tmp_path)
  file.write_bytes(whole)
  manifest.read(tmp_path)


def test_read_finds_changed_bytes_of_the_manifest(tmp_path):
  whole = encoded(EXAMPLE, indent=1)
  put(tmp_path, whole)
  file = tmp_path / "MANIFEST.json"
  for place in range(0, len(whole), 5):
    for damaged in (
      whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
      whole[:place] + b" " + whole[place:],
      whole[:place] + whole[place + 1 :],
      whole[:place],
    ):
      file.write_bytes(damaged)
      assert "the checksum does not hold" in refusal(tmp_path)
  file.write_bytes(whole)
  manifest.read(tmp_path)


def test_a_forger_who_mends_the_checksum_passes_read_and_fails_authenticate(tmp_path):
  whole = encoded(EXAMPLE)
  put(tmp_path, whole)
  first = (tmp_path / "MANIFEST.mac").read_bytes()[:77]
  forged = whole.replace(b'"mnist"', b'"cifar"')
  (tmp_path / "MANIFEST.json").write_bytes(forged)
  mended = b"sha256 " + hashlib.sha256(forged + first).hexdigest().encode() + b"\n"
  (tmp_path / "MANIFEST.mac").write_bytes(first + mended)
  assert manifest.read(tmp_path).source["name"] == "cifar"
  line = refusal(tmp_path, lambda folder: manifest.authenticate(folder, mac_key=KEY))
  assert "was not written with this key or was changed since" in line


def test_another_key_does_not_authenticate(tmp_path):
  put(tmp_path, encoded(EXAMPLE))
  manifest.authenticate(tmp_path, mac_key=KEY)
  for key in (bytes(32), KEY[:-1] + b"\x00", b""):
    line = refusal(tmp_path, lambda folder, key=key: manifest.authenticate(folder, mac_key=key))
    assert "was not written with this key" in line


# What is no manifest.


def test_a_newer_version_says_so(tmp_path):
  put(tmp_path, encoded({"format": "djax-disguised", "version": 2, "all": "else"}))
  line = refusal(tmp_path)
  assert "format version 2, this djax reads up to 1. Install a newer djax." in line


def test_missing_files_and_directories(tmp_path):
  line = refusal(tmp_path / "nowhere")
  assert "nowhere/MANIFEST.json must exist" in line
  assert "Give a directory that `djax disguise` wrote." in line
  put(tmp_path, encoded(EXAMPLE))
  (tmp_path / "MANIFEST.mac").unlink()
  assert "MANIFEST.mac must exist" in refusal(tmp_path)
  (tmp_path / "MANIFEST.mac").mkdir()
  assert "MANIFEST.mac must be readable" in refusal(tmp_path)
  (tmp_path / "file").write_text("")
  assert "must be readable" in refusal(tmp_path / "file")


def test_an_unfinished_directory_says_so(tmp_path):
  (tmp_path / ".unfinished").mkdir()
  line = refusal(tmp_path)
  assert "It is unfinished: give the same `djax disguise` command again." in line
  assert "It is unfinished" in refusal(tmp_path, lambda f: manifest.authenticate(f, mac_key=KEY))


def test_the_manifest_appears_last(tmp_path, monkeypatch):
  """A run that is killed between the two files leaves a directory that is not finished."""
  order = []

  def stopping(source, target):
    order.append(target.name)
    if target.name == "MANIFEST.json":
      raise KeyboardInterrupt
    original(source, target)

  original = os.replace
  monkeypatch.setattr(os, "replace", stopping)
  with pytest.raises(KeyboardInterrupt):
    written(tmp_path)
  assert order == ["MANIFEST.mac", "MANIFEST.json"]
  assert not (tmp_path / "MANIFEST.json").exists()
  assert "It is unfinished" in refusal(tmp_path)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
  (tmp_path / ".unfinished").mkdir()
  (tmp_path / "kept").write_text("before")

  def full(descriptor):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="No space left"):
    manifest.replace(tmp_path / "kept", b"after")
  assert (tmp_path / "kept").read_text() == "before"
  assert list((tmp_path / ".unfinished").iterdir()) == []
  monkeypatch.undo()
  manifest.replace(tmp_path / "kept", b"after")
  assert (tmp_path / "kept").read_bytes() == b"after"
  manifest.replace(tmp_path / ".unfinished" / "plan", b"plan")
  assert [f.name for f in (tmp_path / ".unfinished").iterdir()] == ["plan"]


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b"{",
    b"null",
    b"[]",
    b"7",
    b'"djax-disguised"',
    b"{}",
    b'{"format": "djax-disguised"}',
    b'{"format": "djax-disguised", "version": "1"}',
    b'{"format": "djax-disguised", "version": true}',
    b'{"format": "djax-disguised", "version": 1.0}',
    b'{"format": "djax-disguised", "version": 0}',
    b'{"format": "djax-disguised", "version": -1}',
    b'{"format": ["djax-disguised"], "version": 1}',
    b'{"format": "other", "version": 1}',
    b'{"format": "djax-disguised", "version": 1}',
    b"[" * 100_000,
    b'{"format": "djax-disguised", "version": 1, "spec": ' + b'{"a":' * 100_000,
    b'{"version": ' + b"9" * 5000 + b"}",
  ],
)
def test_what_is_no_manifest_is_refused(tmp_path, data):
  put(tmp_path, data)
  assert "MANIFEST.json" in refusal(tmp_path)


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None, [1]])
def test_a_version_that_never_was_is_refused(tmp_path, version):
  put(tmp_path, encoded({**EXAMPLE, "version": version}))
  assert "must be a djax-disguised manifest" in refusal(tmp_path)
  put(tmp_path, encoded({**EXAMPLE, "format": "djax-answers"}))
  assert "must be a djax-disguised manifest" in refusal(tmp_path)


def paths(content, at=()):
  """Yields the path of every value in a JSON content."""
  items = content.items() if isinstance(content, dict) else enumerate(content)
  for name, value in items:
    yield (*at, name)
    if isinstance(value, (dict, list)):
      yield from paths(value, (*at, name))


def changed(path, value, content=EXAMPLE):
  found = copy.deepcopy(content)
  of = found
  for name in path[:-1]:
    of = of[name]
  of[path[-1]] = value
  return found


def used(facts):
  """Does with a manifest what its readers do."""
  assert card.text(facts)
  height, width, channels = facts.disguised_shape
  assert min(height, width, channels, facts.block_size, facts.classes) >= 1
  assert height % facts.block_size == width % facts.block_size == 0
  for split in facts.splits.values():
    assert split.records == sum(shard.records for shard in split.shards) >= 1
    assert split.records % split.views == 0
  for name in [s.file for split in facts.splits.values() for s in split.shards] + [*facts.files]:
    assert os.path.basename(name) == name
    assert name.isascii() and not name.startswith(".")
  np.dtype(facts.dtype).newbyteorder("<")
  if facts.quantiser is not None and height * width * channels < 10**6:
    values = quantise.dequantise(
      np.full((1, height, width, channels), 255, np.uint8),
      facts.quantiser,
      block_size=facts.block_size,
    )
    assert np.isfinite(values).all()
  assert all(math.isfinite(x) for x in (facts.error.stored, facts.error.noise))
  json.dumps(facts.to_dict())


WRONG = [
  None,
  True,
  -1,
  0,
  1,
  1.5,
  float("nan"),
  float("inf"),
  10**30,
  10**400,
  "",
  "train",
  "../x",
  "\ud800",
  [],
  [[]],
  [None],
  ["a", 1],
  {},
  {"": 0},
  {"a": {"b": []}},
]


def test_wrong_values_anywhere_are_refused_or_harmless(tmp_path):
  """Never another exception than ManifestError, and never a Manifest that its readers fail on."""
  refused = taken = 0
  for path in paths(EXAMPLE):
    if path in (("format",), ("version",)):
      continue
    for value in WRONG:
      put(tmp_path, encoded(changed(path, value)))
      try:
        facts = manifest.read(tmp_path)
      except ManifestError as error:
        refused += 1
        assert "\n" not in str(error)
        continue
      taken += 1
      used(facts)
  assert refused > 5 * taken > 100, (refused, taken)


def same_kind(value, other):
  number = (int, float)
  if isinstance(value, bool) or isinstance(other, bool):
    return type(value) is type(other)
  return type(value) is type(other) or (isinstance(value, number) and isinstance(other, number))


def test_a_value_of_another_type_is_refused_wherever_a_reader_relies_on_it(tmp_path):
  free = {"noise_level", "permute", "matrix", "mix", "per_channel", "noise_place"}
  for path in paths(EXAMPLE):
    if path[-1] in free:  # the scheme checks its own
      continue
    at = EXAMPLE
    for name in path:
      at = at[name]
    for value in ("text", 3, 1.5, True, [7], {"a": 1}):
      nullable = at is None and path == ("class_names",) and value == ["a"]
      if same_kind(at, value) or nullable:
        continue
      put(tmp_path, encoded(changed(path, value)))
      refusal(tmp_path)


@pytest.mark.parametrize(
  ("path", "value"),
  [
    (("splits",), {}),
    (("splits", "a/b"), EXAMPLE["splits"]["test"]),
    (("splits", "train", "records"), 7),
    (("splits", "train", "views"), 4),
    (("splits", "train", "views"), 0),
    (("splits", "train", "shards"), []),
    (("splits", "train", "shards", 0, "records"), -4),
    (("splits", "train", "shards", 0, "bytes"), -1),
    (("splits", "train", "shards", 0, "sha256"), HASH.upper()),
    (("splits", "train", "shards", 0, "sha256"), HASH[:-1]),
    (("disguised_shape",), [8, 8]),
    (("disguised_shape",), [8, 8, 3, 1]),
    (("disguised_shape",), [8, 9, 3]),
    (("disguised_shape",), [8, 8, 0]),
    (("spec", "block_size"), 0),
    (("spec", "block_size"), 3),
    (("dtype",), "float64"),
    (("dtype",), "object"),
    (("labels",), "secret"),
    (("classes",), 0),
    (("classes",), 10**30),
    (("class_names",), ["a"]),
    (("class_names",), ["a", 3]),
    (("quantiser", "scale"), [1, 1, 1]),
    (("quantiser", "scale"), [1, 1, 1, 0]),
    (("quantiser", "scale"), [1, 1, 1, -1]),
    (("quantiser", "scale"), [1, 1, 1, 1e-60]),
    (("quantiser", "offset"), [[0, 0], [0, 0]]),
    (("quantiser", "offset"), [0, 0, 0, 1e300]),
    (("quantiser", "offset"), [0, 0, 0, float("nan")]),
    (("quantiser", "offset"), ["0", "0", "0", "0"]),
    (("error", "stored"), None),
    (("error", "noise"), float("inf")),
    (("views", "flip"), 1),
  ],
)
def test_facts_that_cannot_be_are_refused(tmp_path, path, value):
  put(tmp_path, encoded(changed(path, value)))
  assert "not as its format asks for" in refusal(tmp_path)


@pytest.mark.parametrize(
  "name",
  ["../x", "/etc/passwd", ".hidden", "..", "", "a/b", "a\\b", "a b", "a\n", "x\x00", "ä", "-rf"],
)
def test_file_names_that_lead_elsewhere_are_refused(tmp_path, name):
  put(tmp_path, encoded(changed(("splits", "train", "shards", 1, "file"), name)))
  refusal(tmp_path)
  put(tmp_path, encoded(changed(("files", name), HASH)))
  refusal(tmp_path)


def test_every_field_is_needed(tmp_path):
  free = {"noise_level", "permute", "matrix", "mix", "per_channel", "noise_place"}
  seen = set()
  for path in paths(EXAMPLE):
    if not isinstance(path[-1], str) or path[-1] in free:
      continue
    content = copy.deepcopy(EXAMPLE)
    of = content
    for name in path[:-1]:
      of = of[name]
    del of[path[-1]]
    if path[:-1] in (("files",), ("splits",)):
      continue
    put(tmp_path, encoded(content))
    assert "MANIFEST.json" in refusal(tmp_path)
    seen.add(path[-1])
  assert {"version", "sealed", "restored", "sha256", "block_size", "scale"} <= seen


def test_fields_it_does_not_know_are_ignored(tmp_path):
  put(tmp_path, encoded(EXAMPLE))
  expected = manifest.read(tmp_path).to_dict()
  places = [
    (),
    ("quantiser",),
    ("error",),
    ("splits", "train"),
    ("splits", "train", "shards", 0),
  ]
  for place in places:
    put(tmp_path, encoded(changed((*place, "later"), {"any": [1]})))
    assert manifest.read(tmp_path).to_dict() == expected
  for place in ("spec", "source", "views"):  # kept as they are
    put(tmp_path, encoded(changed((place, "later"), 5)))
    assert manifest.read(tmp_path).to_dict()[place] == {**EXAMPLE[place], "later": 5}
