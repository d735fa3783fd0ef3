import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from djax import card, datasets, manifest, records
from djax.errors import DataError, ManifestError
from djax.manifest import Manifest, SplitFacts
from djax.quantise import Bounds, Quantiser

ROOT = pathlib.Path(__file__).parent.parent
KEY = bytes(range(32))
SPEC = {"scheme": "permutation", "image_shape": [4, 6, 3], "block_size": 2}
SHAPE = (4, 6, 3)
CLASSES = 5


def images_of(split, dtype="float32", count=11):
  """Records that differ by split, index and pixel; exact in every dtype."""
  first = 1 if split == "train" else 2
  values = np.random.default_rng(first).integers(0, 256, (count, *SHAPE))
  return values.astype(dtype), (np.arange(count) * 3 + first) % CLASSES


def build(
  folder,
  *,
  dtype="float32",
  shards=(5, 2, 4),
  splits=("train", "test"),
  spec=SPEC,
  change=lambda images, labels: (images, labels),
  fingerprint="djx1-cjrs2kzflglpn4ve",
  **facts,
):
  """Writes a disguised data set as docs/format.md has it: each split with shards of so many records.

  ``change`` is done to what is written; ``facts`` are what the manifest says instead of the truth.
  """
  unfinished = folder / ".unfinished"
  unfinished.mkdir(parents=True)
  names = facts.get("class_names")
  features = records.features(SHAPE, facts.pop("written_dtype", dtype), CLASSES, names)
  found = {}
  for split in splits:
    images, labels = change(*images_of(split, dtype, sum(shards)))
    entries, start = [], 0
    for index, count in enumerate(shards):
      name = f"disguised-{split}.array_record-{index:05d}-of-{len(shards):05d}"
      part = slice(start, start + count)
      with records.writer(unfinished / name, features) as write:
        write(images[part].astype(images.dtype.newbyteorder("<")), labels[part])
      os.replace(unfinished / name, folder / name)
      data = (folder / name).read_bytes()
      entries.append(manifest.Shard(name, count, len(data), hashlib.sha256(data).hexdigest()))
      start += count
    found[split] = SplitFacts(start, 1, tuple(entries))
  known = {
    "djax": "0.1.0",
    "expansion": "djx1",
    "key_fingerprint": fingerprint,
    "spec": spec,
    "disguised_shape": SHAPE,
    "dtype": dtype,
    "quantiser": None,
    "error": Bounds(0.0, 0.0, 0.0),
    "source": {"name": "digits", "dtype": "uint8", "hmac": ""},
    "classes": CLASSES,
    "class_names": None,
    "labels": "permuted",
    "views": {"count": 1, "crop": 0, "flip": False},
    "splits": found,
    "files": {},
    "warnings": card.warnings(spec, fingerprint=fingerprint),
    "sealed": "",
  }
  whole = Manifest(**{**known, **facts})
  features.save_config(str(unfinished))
  texts = {
    "features.json": (unfinished / "features.json").read_bytes(),
    "dataset_info.json": json.dumps(records.tfds_info(found)).encode(),
    "README.md": card.text(whole).encode(),
  }
  hashes = {}
  for name, data in texts.items():
    (folder / name).write_bytes(data)
    hashes[name] = hashlib.sha256(data).hexdigest()
  manifest.write(folder, dataclasses.replace(whole, files=hashes), mac_key=KEY)
  shutil.rmtree(unfinished)
  return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  return build(tmp_path_factory.mktemp("whole") / "set")


@pytest.fixture
def copied(whole, tmp_path):
  """A copy that a test may damage."""
  return pathlib.Path(shutil.copytree(whole, tmp_path / "copied"))


def refusal(action, kind=ManifestError):
  with pytest.raises(kind) as error:
    action()
  assert "\n" not in str(error.value)
  return str(error.value)


# Reading.


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_records_come_back_as_written(tmp_path, dtype):
  data = datasets.open(build(tmp_path / "set", dtype=dtype))
  assert set(data.splits) == {"train", "test"}
  for name, split in data.splits.items():
    images, labels = images_of(name, dtype)
    assert (len(split), split.name, split.image_shape) == (11, name, SHAPE)
    assert split.nbytes == images.nbytes
    found, ids = split.read(np.arange(11))
    assert found.dtype == split.dtype == np.dtype(dtype)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(ids, labels)


def test_bytes_in_the_files_are_little_endian(tmp_path):
  """And pixels stand in C order: the array as it is must be found in the file."""
  folder = build(tmp_path / "set", dtype="float16", shards=(11,))
  images, _ = images_of("train", "float16")
  content = (folder / "disguised-train.array_record-00000-of-00001").read_bytes()
  assert images[3].astype("<f2").tobytes() in content
  assert images[3].astype(">f2").tobytes() not in content


def test_rows_are_read_in_the_order_asked_for_and_as_often(whole):
  split = datasets.open(whole).splits["train"]
  images, labels = images_of("train")
  for rows in (
    [10, 0, 5, 4, 7, 6],
    [3, 3, 9, 3],
    [8],
    np.array([1, 10], np.int32),
    range(10, -1, -1),
  ):
    found, ids = split.read(np.asarray(rows))
    np.testing.assert_array_equal(found, images[list(rows)])
    np.testing.assert_array_equal(ids, labels[list(rows)])
  found, ids = split.read(np.arange(0))
  assert found.shape == (0, *SHAPE)
  assert ids.shape == (0,)


@pytest.mark.parametrize("row", [-1, 11])
def test_rows_outside_the_split_are_refused(whole, row):
  split = datasets.open(whole).splits["train"]
  line = refusal(lambda: split.read(np.array([0, row])), DataError)
  assert "rows must lie in 0..10, got" in line


def test_only_the_first_record_of_a_label_is_parsed_by_tfds(whole, monkeypatch):
  split = datasets.open(whole).splits["train"]
  images, labels = split.read(np.arange(11))
  assert len(set(labels.tolist())) == CLASSES
  monkeypatch.setattr(records.Parser, "_parsed", lambda *_: pytest.fail("parsed"))
  again, ids = split.read(np.arange(11))
  np.testing.assert_array_equal(again, images)
  np.testing.assert_array_equal(ids, labels)
  with pytest.raises(pytest.fail.Exception, match="parsed"):
    datasets.open(whole).splits["train"].read(np.arange(1))


def test_threads_read_the_same(whole):
  split = datasets.open(whole).splits["train"]  # not read from before: threads open the files
  images, labels = images_of("train")
  rows = [np.random.default_rng(seed).integers(0, 11, 20) for seed in range(64)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for asked, (found, ids) in zip(rows, pool.map(split.read, rows), strict=True):
      np.testing.assert_array_equal(found, images[asked])
      np.testing.assert_array_equal(ids, labels[asked])


def test_what_is_read_belongs_to_the_reader(whole):
  split = datasets.open(whole).splits["train"]
  images, _ = split.read(np.arange(3))
  images[:] = 0
  np.testing.assert_array_equal(split.read(np.arange(3))[0], images_of("train")[0][:3])


def test_a_home_directory_and_a_string_are_taken(whole, monkeypatch):
  monkeypatch.setenv("HOME", str(whole.parent))
  assert len(datasets.open("~/set").splits["test"]) == 11
  assert datasets.verify("~/set").classes == CLASSES


def test_shards_are_all_in_order(whole):
  found = [shard.file for shard in datasets.shards(manifest.read(whole))]
  assert found == [
    f"disguised-{split}.array_record-{i:05d}-of-00003"
    for split in ("train", "test")
    for i in range(3)
  ]
  assert (
    datasets.file_sha256(whole / found[0]) == manifest.read(whole).splits["train"].shards[0].sha256
  )


# Records that are not as the manifest says.


@pytest.mark.parametrize("bad", [CLASSES, CLASSES + 1])
def test_a_label_outside_the_classes_is_refused(tmp_path, bad):
  def change(images, labels):
    labels[6] = bad
    return images, labels

  folder = build(tmp_path / "set", change=change)
  # The features that wrote it refuse nothing: only reading finds it.
  split = datasets.open(folder).splits["train"]
  split.read(np.array([5, 7]))
  line = refusal(lambda: split.read(np.array([5, 6])), DataError)
  assert f"train holds the label {bad}, but the manifest has 5 classes" in line
  assert f"python -m djax verify {folder}" in line


@pytest.mark.parametrize("bad", [-1, 2**32 + 1, -(2**32)])
def test_a_label_beyond_32_bits_or_below_0_is_refused(tmp_path, bad):
  def change(images, labels):
    labels[6] = bad
    return images, labels

  split = datasets.open(build(tmp_path / "set", change=change)).splits["train"]
  assert f"holds the label {bad}" in refusal(lambda: split.read(np.arange(11)), DataError)


@pytest.mark.parametrize(
  ("dtype", "written"), [("float32", "uint8"), ("uint8", "float32"), ("float16", "float32")]
)
def test_records_of_another_dtype_are_refused(tmp_path, dtype, written):
  """The manifest says one thing, features.json and the records another."""

  def change(images, labels):
    return images.astype(written), labels

  folder = build(tmp_path / "set", dtype=dtype, written_dtype=written, change=change)
  split = datasets.open(folder).splits["train"]
  line = refusal(lambda: split.read(np.arange(3)), DataError)
  assert f"{written}[4, 6, 3], the manifest says {dtype}[4, 6, 3]" in line


@pytest.mark.parametrize("shape", [(4, 4, 3), (8, 6, 3), (4, 6, 1), (6, 4, 3)])
def test_records_of_another_shape_are_refused(tmp_path, shape):
  folder = build(tmp_path / "set", disguised_shape=shape)
  split = datasets.open(folder).splits["train"]
  line = refusal(lambda: split.read(np.arange(3)), DataError)
  assert f"float32[4, 6, 3], the manifest says float32{list(shape)}" in line


def test_records_of_another_length_are_refused(tmp_path):
  """Features and manifest agree; the bytes do not fit."""

  def change(images, labels):
    return images[:, :3], labels

  split = datasets.open(build(tmp_path / "set", change=change)).splits["train"]
  line = refusal(lambda: split.read(np.arange(3)), DataError)
  assert "disguised-train.array_record-00000-of-00003 cannot be read" in line


@pytest.mark.parametrize("place", [5, 6])  # the first and the last of the second shard
def test_a_record_that_cannot_be_read_names_its_shard(copied, place):
  name = "disguised-train.array_record-00001-of-00003"
  images, _ = images_of("train")
  content = bytearray((copied / name).read_bytes())
  content[content.index(images[place].tobytes()) + 5] ^= 1
  (copied / name).write_bytes(content)
  split = datasets.open(copied).splits["train"]  # of the right length
  split.read(np.array([0, 4, 7, 10]))
  line = refusal(lambda: split.read(np.array([place])), DataError)
  assert f"a record of {name} cannot be read" in line
  assert f"See what is damaged: python -m djax verify {copied}" in line
  line = refusal(lambda: split.read(np.array([0, place, 10])), DataError)
  assert name in line


def test_a_shard_that_is_gone_when_it_is_read_is_named(copied):
  split = datasets.open(copied).splits["train"]
  (copied / "disguised-train.array_record-00002-of-00003").unlink()
  line = refusal(lambda: split.read(np.array([9])), DataError)
  assert "a record of disguised-train.array_record-00002-of-00003 cannot be read" in line


def test_damaged_facts_of_tfds_are_no_traceback(copied):
  for name in ("features.json", "dataset_info.json"):
    kept = (copied / name).read_bytes()
    (copied / name).write_bytes(b"{")
    split = datasets.open(copied).splits["train"]
    assert "cannot be read" in refusal(lambda split=split: split.read(np.arange(2)), DataError)
    (copied / name).write_bytes(kept)
  datasets.open(copied).splits["train"].read(np.arange(2))


# Opening and verifying.


def test_a_whole_directory_is_verified(whole):
  assert (
    datasets.verify(whole).sha256
    == hashlib.sha256((whole / "MANIFEST.json").read_bytes()).hexdigest()
  )
  assert datasets.verify(whole, mac_key=KEY).classes == CLASSES


def test_verify_with_another_key_refuses(whole):
  assert "was not written with this key" in refusal(
    lambda: datasets.verify(whole, mac_key=bytes(32))
  )


def test_verify_names_the_file_of_every_flipped_byte(copied):
  names = sorted(entry.name for entry in copied.iterdir())
  assert len(names) == 11
  for name in names:
    kept = (copied / name).read_bytes()
    for place in (0, 1, len(kept) // 3, len(kept) // 2, len(kept) - 2, len(kept) - 1):
      damaged = bytearray(kept)
      damaged[place] ^= 4
      (copied / name).write_bytes(damaged)
      line = refusal(lambda: datasets.verify(copied))
      if name.startswith("MANIFEST"):
        assert "MANIFEST" in line
      else:
        assert f"{copied}: {name} is damaged. Take the files from a good copy." == line
    (copied / name).write_bytes(kept)
  datasets.verify(copied, mac_key=KEY)


def test_verify_names_every_fault_at_once(copied):
  first, second, third = (f"disguised-train.array_record-{i:05d}-of-00003" for i in range(3))
  (copied / first).unlink()
  content = (copied / second).read_bytes()
  (copied / second).write_bytes(content[:-1])
  (copied / third).write_bytes(content[:-1] + b"?")
  (copied / "README.md").unlink()
  (copied / "notes.txt").write_text("mine")
  (copied / ".unfinished").mkdir()
  line = refusal(lambda: datasets.verify(copied))
  for fault in (
    f"{first} is missing",
    f"{second} must have {len(content)} bytes, has {len(content) - 1}",
    third,
    "README.md is missing",
    "notes.txt is not in the manifest",
    ".unfinished is left from a run that was stopped: give the same",
  ):
    assert fault in line
  assert "features.json" not in line


@pytest.mark.parametrize("cut", [1, 65536, 131072])
def test_open_refuses_a_truncated_shard(copied, cut):
  name = "disguised-test.array_record-00001-of-00003"
  content = (copied / name).read_bytes()
  (copied / name).write_bytes(content[: max(0, len(content) - cut)])
  line = refusal(lambda: datasets.open(copied))
  assert f"{name} must have {len(content)} bytes" in line
  assert name in refusal(lambda: datasets.verify(copied))


@pytest.mark.parametrize("name", ["README.md", "features.json", "dataset_info.json"])
def test_open_refuses_a_missing_file(copied, name):
  (copied / name).unlink()
  assert f"{name} is missing" in refusal(lambda: datasets.open(copied))


def test_open_refuses_a_missing_shard(copied):
  name = "disguised-train.array_record-00000-of-00003"
  (copied / name).unlink()
  assert f"{name} is missing" in refusal(lambda: datasets.open(copied))
  (copied / name).mkdir()
  assert name in refusal(lambda: datasets.open(copied))
  assert name in refusal(lambda: datasets.verify(copied))


def test_a_directory_that_is_none_is_refused(tmp_path):
  for action in (datasets.open, datasets.verify):
    assert "must exist" in refusal(lambda action=action: action(tmp_path))
    (tmp_path / ".unfinished").mkdir(exist_ok=True)
    assert "It is unfinished" in refusal(lambda action=action: action(tmp_path))
    (tmp_path / ".unfinished").rmdir()


def test_forged_shards_pass_without_the_key_and_fail_with_it(tmp_path):
  """Who mends every checksum needs the key to be believed."""
  folder = build(tmp_path / "set")
  forged = build(tmp_path / "forged", change=lambda images, labels: (images[::-1], labels[::-1]))
  first = (folder / "MANIFEST.mac").read_bytes().splitlines(keepends=True)[0]
  data = (forged / "MANIFEST.json").read_bytes()
  digest = hashlib.sha256(data + first).hexdigest().encode()
  (forged / "MANIFEST.mac").write_bytes(first + b"sha256 " + digest + b"\n")
  datasets.verify(forged)
  assert "was not written with this key" in refusal(lambda: datasets.verify(forged, mac_key=KEY))


# What else reads the directory, and what reading it loads.


def fresh(script, *arguments):
  done = subprocess.run(
    [sys.executable, "-c", script, *map(str, arguments)],
    capture_output=True,
    text=True,
    timeout=120,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_tfds_alone_reads_the_directory_without_tensorflow(whole):
  script = """
import sys
import numpy as np
import tensorflow_datasets as tfds
source = tfds.builder_from_directory(sys.argv[1]).as_data_source()["train"]
print(len(source), *(int(source[i]["label"]) for i in range(len(source))))
print(*np.stack([source[i]["image"] for i in range(len(source))]).ravel().astype(int))
print(sorted({"tensorflow", "djax"} & set(sys.modules)))
"""
  counts, pixels, loaded = fresh(script, whole).splitlines()
  images, labels = images_of("train")
  assert counts.split() == [str(x) for x in (11, *labels)]
  assert pixels.split() == [str(int(x)) for x in images.ravel()]
  assert loaded == "[]"


LOADED = """
import sys
import numpy as np
{}
print(sorted({{"djax.keys", "djax.keyfile", "djax.owner", "cryptography", "tensorflow"}} & set(sys.modules)))
"""


def test_reading_loads_no_key_code(whole):
  script = LOADED.format(
    "from djax import card, datasets, manifest, quantise, records\n"
    "datasets.verify(sys.argv[1], mac_key=bytes(range(32)))\n"
    "datasets.open(sys.argv[1]).splits['train'].read(np.arange(5))"
  )
  assert fresh(script, whole) == "[]\n"
  caught = fresh(LOADED.format("from djax import datasets\nfrom djax.owner import sealed"), whole)
  assert caught == "['cryptography', 'djax.keys', 'djax.owner']\n"


def test_importing_costs_no_tfds():
  script = "import sys; from djax import datasets, manifest, records, card\n"
  script += "print('tensorflow_datasets' in sys.modules, 'array_record' in sys.modules)"
  assert fresh(script) == "False False\n"


def test_the_directory_is_as_the_document_draws_it(whole):
  """docs/format.md, section 1: these files and no others."""
  drawn = re.search(r"```\nDIR/\n(.*?)```", (ROOT / "docs" / "format.md").read_text(), re.DOTALL)
  names = {line.split()[0] for line in drawn[1].splitlines()} - {"..."}
  plain = {name for name in names if "array_record" not in name} - {"label.labels.txt"}
  found = {entry.name for entry in whole.iterdir()}
  assert {name for name in found if "array_record" not in name} == plain
  shards = {re.sub(r"\d{5}", "0", name) for name in found - plain}
  assert shards == {re.sub(r"\d{5}", "0", name) for name in names if "array_record" in name}


def test_quantised_and_named_sets_open(tmp_path):
  quantiser = Quantiser(np.arange(6, dtype=np.float32), np.full(6, 0.5, np.float32))
  names = ("a", "b", "c", "größer", "e")
  folder = build(
    tmp_path / "set", dtype="uint8", quantiser=quantiser, class_names=names, labels="plain"
  )
  facts = datasets.open(folder).manifest
  np.testing.assert_array_equal(facts.quantiser.offset, quantiser.offset)
  assert facts.class_names == names
  datasets.verify(folder, mac_key=KEY)
