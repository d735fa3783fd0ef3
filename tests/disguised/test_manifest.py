import copy
import dataclasses
import hashlib
import hmac
import json
import math
import os

import numpy as np
import pytest
from helpers.directories import paths

from djax.disguised import datacard, manifest, quantise
from djax.disguised.manifest import Manifest, Shard, SplitFacts
from djax.disguised.quantise import Bounds, Quantiser
from djax.errors import ManifestError

KEY = bytes(range(32))
HASH = hashlib.sha256(b"").hexdigest()

# What a writer that read only docs/format.md, section 2, would put down.
EXAMPLE = {
  "format": "djax-disguised",
  "version": 2,
  "djax": "0.1.0",
  "expansion": "djx2",
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
  "views": {"count": 2, "crop": 2, "flip": True, "together": False},
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
  "sealed": "AAAA" * 4,
  "id": "0123456789abcdef" * 2,
  "role": "dataset",
  "request": None,
}
# What a writer of version 1 put down.
OLD = {name: value for name, value in EXAMPLE.items() if name not in ("id", "role", "request")}
OLD |= {"version": 1, "expansion": "djx1", "views": {"count": 2, "crop": 2, "flip": True}}
QUERY = {"query": {**EXAMPLE["splits"]["test"]}}


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
    expansion="djx2",
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
    sealed="AAAA" * 4,
    id=EXAMPLE["id"],
  )


def written(folder, facts=None):
  (folder / ".unfinished").mkdir()
  manifest.write(folder, facts or example(), mac_key=KEY)
  return folder


def test_a_manifest_by_the_document_is_read(tmp_path):
  data = encoded(EXAMPLE, ensure_ascii=False)
  put(tmp_path, data)
  found = manifest.read(tmp_path)
  manifest.authenticate(found, mac_key=KEY, where=tmp_path)
  assert found.raw == data
  assert found.sha256 == hashlib.sha256(data).hexdigest()
  assert found.block_size == 4
  expected = example()
  for field in dataclasses.fields(Manifest):
    if field.name not in ("quantiser", "sha256", "raw", "mac"):
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
    {"warnings": (), "views": {**EXAMPLE["views"], "together": True}},
    {
      "splits": {"query": SplitFacts(1, 1, (Shard("a-b_c.0", 1, 500, HASH),))},
      "role": "request",
      "request": "f" * 32,
    },
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
  facts = manifest.read(tmp_path)
  assert facts.source["name"] == "cifar"
  line = refusal(tmp_path, lambda folder: manifest.authenticate(facts, mac_key=KEY, where=folder))
  assert f"{tmp_path / 'MANIFEST.json'} was not written with this key or was changed since" in line


def test_another_key_does_not_authenticate(tmp_path):
  put(tmp_path, encoded(EXAMPLE))
  facts = manifest.read(tmp_path)
  manifest.authenticate(facts, mac_key=KEY, where=tmp_path)
  for key in (bytes(32), KEY[:-1] + b"\x00", b""):
    line = refusal(
      tmp_path, lambda folder, key=key: manifest.authenticate(facts, mac_key=key, where=folder)
    )
    assert "was not written with this key" in line


def test_what_is_authenticated_is_what_was_parsed(tmp_path):
  """Whatever lies there by then: the bytes are read once."""
  put(tmp_path, encoded(EXAMPLE))
  facts = manifest.read(tmp_path)
  put(tmp_path, encoded({**EXAMPLE, "djax": "other"}), key=bytes(32))
  other = manifest.read(tmp_path)
  manifest.authenticate(facts, mac_key=KEY, where=tmp_path)
  manifest.authenticate(other, mac_key=bytes(32), where=tmp_path)
  for found, key in ((facts, bytes(32)), (other, KEY), (example(), KEY)):
    with pytest.raises(ManifestError, match="was not written with this key"):
      manifest.authenticate(found, mac_key=key, where=tmp_path)
  (tmp_path / "MANIFEST.mac").unlink()
  manifest.authenticate(facts, mac_key=KEY, where=tmp_path)


def test_a_mac_of_one_role_is_none_of_the_other():
  facts = example()
  request = dataclasses.replace(facts, role=manifest.REQUEST)
  old = dataclasses.replace(facts, version=1)
  labels = [manifest.mac_label(x) for x in (facts, request, old)]
  assert labels == ["manifest|dataset", "manifest|request", "manifest"]


# Version 1.


def test_a_manifest_of_version_1_is_read_and_written_as_it_was(tmp_path):
  data = encoded(OLD, indent=1) + b"\n"
  put(tmp_path, data)
  facts = manifest.read(tmp_path)
  manifest.authenticate(facts, mac_key=KEY, where=tmp_path)
  assert (facts.version, facts.id, facts.role, facts.request) == (1, "", "dataset", None)
  assert facts.views == {"count": 2, "crop": 2, "flip": True, "together": True}
  again = facts.to_dict()
  assert list(again) == list(OLD)
  expected = copy.deepcopy(OLD)
  expected["quantiser"] = {
    name: [float(np.float32(x)) for x in values] for name, values in OLD["quantiser"].items()
  }
  assert json.loads(json.dumps(again)) == expected


def test_the_role_of_version_1_follows_from_the_splits(tmp_path):
  put(tmp_path, encoded({**OLD, "splits": QUERY}))
  assert manifest.read(tmp_path).role == "request"
  put(tmp_path, encoded({**OLD, "splits": {**QUERY, **OLD["splits"]}}))
  assert "not as its format asks for" in refusal(tmp_path)


def test_neither_version_passes_for_the_other(tmp_path):
  for changes in ({**OLD, "version": 2}, {**EXAMPLE, "version": 1}):
    put(tmp_path, encoded(changes))
    assert "not as its format asks for" in refusal(tmp_path)


# What is no manifest.


def test_a_newer_version_says_so(tmp_path):
  put(tmp_path, encoded({"format": "djax-disguised", "version": 4, "all": "else"}))
  line = refusal(tmp_path)
  assert "format version 4, this djax reads up to 3. Install a newer djax." in line


def test_missing_files_and_directories(tmp_path):
  line = refusal(tmp_path / "nowhere")
  assert "nowhere/MANIFEST.json must exist" in line
  assert "Give a directory that `djax disguise` wrote." in line
  put(tmp_path, encoded(EXAMPLE))
  (tmp_path / "MANIFEST.mac").unlink()
  assert "MANIFEST.mac must exist" in refusal(tmp_path)
  (tmp_path / "MANIFEST.mac").mkdir()
  assert "MANIFEST.mac must be a regular file, is a folder" in refusal(tmp_path)
  (tmp_path / "file").write_text("")
  assert "must be reached through folders" in refusal(tmp_path / "file")


def test_an_unfinished_directory_says_so(tmp_path):
  (tmp_path / ".unfinished").mkdir()
  line = refusal(tmp_path)
  assert "It is unfinished: re-run the `djax disguise` command." in line


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


def changed(path, value, content=EXAMPLE):
  found = copy.deepcopy(content)
  of = found
  for name in path[:-1]:
    of = of[name]
  of[path[-1]] = value
  return found


def used(facts):
  """Does with a manifest what its readers do."""
  assert datacard.text(facts)
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
  for path in paths(EXAMPLE):
    at = EXAMPLE
    for name in path:
      at = at[name]
    for value in ("text", 3, 1.5, True, [7], {"a": 1}):
      whole = path == ("spec", "noise_level") and value == 3  # 25 is not 25.0
      if same_kind(at, value) and not whole:
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
    (("quantiser", "offset"), ["0", "0", "0", "0"]),
    (("error", "stored"), None),
    (("quantiser", "offset"), [0, 0, 0]),
    (("error", "noise"), 1e15),
    (("views", "flip"), 1),
    (("views", "together"), None),
    (("key_fingerprint",), "djx1-cjrs2kzflglpn4v\x1b"),
    (("id",), "0123456789ABCDEF" * 2),
    (("role",), "request"),
    (("role",), "model"),
    (("request",), "f" * 32),
    (("sealed",), "AAA"),
    (("sealed",), "AAAA" * 4 + "\n"),
    (("classes",), 5),
    (("classes",), 2**31),
    (("class_names",), ["a", "b", "c"]),
    (("warnings",), [""] * 257),
    (("splits", "train", "shards", 0, "bytes"), 4 * 192 - 1),
    (("splits", "train", "shards", 0, "bytes"), 2**48),
    (("splits", "test", "shards", 0, "file"), "disguised-train.array_record-00000-of-00002"),
    (("splits", "test", "shards", 0, "file"), "README.md"),
    (("splits", "test", "shards", 0, "file"), "MANIFEST.json"),
    (("files", "MANIFEST.mac"), HASH),
    (("dtype",), "float16"),  # beside a quantiser
    (("spec", "permute"), 1),
    (("spec", "noise_level"), 25),
    (("spec", "noise_level"), 1e300),
    (("spec", "matrix"), "o" * 10_000),
    (("spec", "scheme"), "plain"),
    (("spec", "scheme"), "instahide"),
    (("spec", "image_shape"), [5, 8]),
    (("spec", "image_shape"), [5, 8, 4]),
    (("disguised_shape",), [2**40] * 3),
    (("spec", "image_shape"), [2**16 + 1, 8, 3]),
  ],
)
def test_facts_that_cannot_be_are_refused(tmp_path, path, value):
  put(tmp_path, encoded(changed(path, value)))
  assert "not as its format asks for" in refusal(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
  "path", [("error", "noise"), ("quantiser", "offset", 0), ("spec", "noise_level"), ("classes",)]
)
def test_what_is_no_number_is_refused(tmp_path, path, value):
  put(tmp_path, encoded(changed(path, value)))
  assert "MANIFEST.json is no manifest of djax" in refusal(tmp_path)


def test_shards_of_petabytes_are_refused(tmp_path):
  """Each might be; their records together would be no number that NumPy counts to."""
  shard = {"records": 2**38, "bytes": 2**46, "sha256": HASH}
  shards = [{**shard, "file": f"s{number}"} for number in range(65)]
  for count in (64, 65):
    split = {"records": count * 2**38, "views": 1, "shards": shards[:count]}
    put(tmp_path, encoded({**EXAMPLE, "splits": {"train": split}}))
    if count == 64:
      assert manifest.read(tmp_path).splits["train"].records == 2**44
    else:
      assert f"splits has more than {2**52} bytes" in refusal(tmp_path)


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
  seen = set()
  for path in paths(EXAMPLE):
    if not isinstance(path[-1], str):
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
  assert {"version", "sealed", "restored", "sha256", "block_size", "scale", "mix", "id"} <= seen


def test_fields_it_does_not_know_are_ignored(tmp_path):
  put(tmp_path, encoded(EXAMPLE))
  expected = manifest.read(tmp_path).to_dict()
  places = [
    (),
    ("quantiser",),
    ("error",),
    ("source",),
    ("views",),
    ("splits", "train"),
    ("splits", "train", "shards", 0),
  ]
  for place in places:
    put(tmp_path, encoded(changed((*place, "later"), {"any": [1]})))
    assert manifest.read(tmp_path).to_dict() == expected
  put(tmp_path, encoded(changed(("spec", "later"), 5)))  # it would decide how images are disguised
  assert "has no parameter 'later'" in refusal(tmp_path)


# What is asked is checked before the work is done.


def planned(**changes):
  """Facts as they are before the shards are written."""
  facts = example()
  splits = {n: dataclasses.replace(x, shards=()) for n, x in facts.splits.items()}
  start = {"splits": splits, "files": {}, "quantiser": None}
  return dataclasses.replace(facts, **{**start, **changes})


def test_check_takes_what_read_takes(tmp_path):
  manifest.check(example())
  manifest.check(planned())
  put(tmp_path, encoded(OLD))
  manifest.check(manifest.read(tmp_path))


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"id": "short"}, "manifest.id is out of form"),
    ({"splits": {"test set": SplitFacts(1, 1, ())}}, "a name in manifest.splits"),
    ({"splits": {"query": SplitFacts(1, 1, ())}}, "role is not that of the splits"),
    ({"request": "f" * 32}, "request is not the id of a request"),
    ({"classes": 70_000}, "classes is more"),
    ({"key_fingerprint": "mine"}, "key_fingerprint"),
    ({"spec": {**EXAMPLE["spec"], "noise_level": 1e300}}, "larger options"),
    ({"spec": {**EXAMPLE["spec"], "noise_level": 25}}, "not as its scheme writes it"),
    ({"splits": {"train": SplitFacts(7, 2, ())}}, "views of a part only"),
  ],
)
def test_check_refuses_what_read_would(change, words):
  with pytest.raises(ValueError, match=words):
    manifest.check(planned(**change))


def test_what_nobody_could_read_is_refused_before_and_when_it_is_written(tmp_path):
  """The quantiser has two numbers a block position."""
  spec = {**EXAMPLE["spec"], "image_shape": [1024, 1024, 3], "block_size": 2}
  large = {"spec": spec, "disguised_shape": (1024, 1024, 3)}
  manifest.check(planned(**large, dtype="float16"))
  with pytest.raises(ValueError, match=r"MANIFEST\.json must have at most 8388608 bytes"):
    manifest.check(planned(**large))
  rng = np.random.default_rng(0)
  steps = [rng.uniform(0.1, 300, 1024 * 1024 // 4).astype(np.float32) for _ in range(2)]
  (tmp_path / ".unfinished").mkdir()
  with pytest.raises(ManifestError, match=r"cannot be written: MANIFEST\.json must have at most"):
    manifest.write(tmp_path, planned(**large, quantiser=Quantiser(*steps)), mac_key=KEY)
  assert [entry.name for entry in tmp_path.iterdir()] == [".unfinished"]


def test_the_room_of_the_quantiser_is_not_underestimated(tmp_path):
  rng = np.random.default_rng(1)
  bits = rng.integers(1, 0x7F000000, 4 * 4096, dtype=np.uint32).view(np.float32)
  largest = bits[np.isfinite(bits) & (bits > 0)][:4096]
  text = json.dumps([-float(x) for x in largest], indent=1)
  assert len(text) / len(largest) + 2 <= manifest._NUMBER_BYTES  # it stands two levels deeper
