import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import shutil
import tarfile
import threading

import numpy as np
import pytest
from helpers.descriptors import opened
from helpers.directories import CLASSES, KEY, SHAPE, SPEC, build, images_of
from helpers.fresh import ROOT, run_code, succeeded

from djax import keys
from djax.disguised import directory, manifest, records
from djax.disguised.manifest import SplitFacts
from djax.disguised.quantise import Quantiser
from djax.errors import DataError, ManifestError
from djax.owner import restore


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
  data = directory.open(build(tmp_path / "set", dtype=dtype))
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
  split = directory.open(whole).splits["train"]
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


@pytest.mark.parametrize("row", [-1, -11, -12, 11, 10**9, 0.5])
def test_rows_outside_the_split_are_no_damage(whole, row):
  """What is asked for is wrong, not the file: IndexError with the range, and nothing counts from the end."""
  with directory.open(whole) as data:
    split = data.splits["train"]
    words = "must be integers, got float64" if row == 0.5 else r"must lie in 0\.\.10, got "
    for rows in ([0, row], [row]):
      with pytest.raises(IndexError, match=f"^rows of train {words}"):
        split.read(np.array(rows))
    assert split._readers == {}  # no shard was opened for it


def test_rows_of_another_shard_are_no_damage(whole):
  with directory.open(whole) as data:
    split = data.splits["train"]
    assert split.shards > 1
    for shard in range(split.shards):
      with split.private_shard(shard) as (rows, read):
        read(np.asarray(rows))
        for row in (rows.start - 1, rows.stop, -1):
          words = rf"must lie in {rows.start}\.\.{rows.stop - 1}, got {row}\.\.{row}\."
          with pytest.raises(IndexError, match=f"^rows of train {words}"):
            read(np.array([row]))
      with pytest.raises(RuntimeError, match="must be open, it was closed"):
        read(np.asarray(rows))


def test_a_closed_data_set_reads_again(whole):
  with directory.open(whole) as data:
    split = data.splits["train"]
    images, labels = split.read(np.arange(11))
    readers = list(split._readers.values())
    assert len(readers) == split.shards
  assert split._readers == {} and all(
    reader.close.alive for reader in readers
  )  # ours refer to them
  with split:
    again, ids = split.read(np.arange(11))
  np.testing.assert_array_equal(again, images)
  np.testing.assert_array_equal(ids, labels)
  assert split._readers == {}


def held(folder, monkeypatch, most):
  """Opens a data set of which each split may hold so many shards open, and counts how often each is hashed."""
  data = directory.open(folder)
  split = directory.Split(folder, "train", data.manifest, most_open=most)
  hashed, sha256 = [], split._sha256
  monkeypatch.setattr(split, "_sha256", lambda file, n: hashed.append(n) or sha256(file, n))
  return split, hashed


def test_few_shards_are_open_and_none_is_hashed_twice(tmp_path, monkeypatch):
  folder = build(tmp_path / "set", shards=(3, 3, 3, 2))
  split, hashed = held(folder, monkeypatch, most=2)
  images, labels = images_of("train")
  for order in (np.arange(11), np.arange(11)[::-1], np.array([0, 10, 5, 0, 3, 10])):
    for row in order:
      found, ids = split.read(np.array([row]))
      np.testing.assert_array_equal(found[0], images[row])
      assert ids[0] == labels[row]
      assert len(split._readers) <= 2
  assert sorted(hashed) == [0, 1, 2, 3]
  # The one that was not read for the longest time made room.
  for row in (0, 3, 0, 6):
    split.read(np.array([row]))
  assert set(split._readers) == {0, 2}


@pytest.mark.parametrize("how", ["in place, time put back", "another file"])
def test_a_shard_that_changed_while_it_was_closed_is_hashed_again(tmp_path, monkeypatch, how):
  folder = build(tmp_path / "set", shards=(6, 5))
  split, hashed = held(folder, monkeypatch, most=1)
  split.read(np.arange(11))
  path = folder / "disguised-train.array_record-00000-of-00002"
  status, data = path.stat(), bytearray(path.read_bytes())
  if how == "another file":
    path.unlink()
    path.write_bytes(data)
    split.read(np.arange(11))  # the same bytes
    assert hashed == [0, 1, 0]
  data[len(data) // 2] ^= 1
  with path.open("r+b") as file:
    file.write(data)
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
  assert "is damaged" in refusal(lambda: split.read(np.arange(11)))


def test_many_threads_read_through_few_open_shards(tmp_path, monkeypatch):
  folder = build(tmp_path / "set", shards=(1,) * 11)
  split, hashed = held(folder, monkeypatch, most=1)
  images, _ = images_of("train")
  rows = np.random.default_rng(0).integers(0, 11, (40, 5))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for order, (found, _) in zip(rows, pool.map(split.read, rows), strict=True):
      np.testing.assert_array_equal(found, images[order])
  assert sorted(hashed) == list(range(11)) and len(split._readers) <= 1


LIMITED = """
import resource, sys
import numpy as np
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
from djax.disguised import directory
with directory.open(sys.argv[1]) as data:
  split = data.splits["train"]
  images, _ = split.read(np.random.default_rng(0).permutation(len(split)))
  assert images.sum(dtype=np.float64) == float(sys.argv[2])
  split.check()
print(directory.verify(sys.argv[1]).id)
"""


def test_more_shards_than_files_that_may_be_open(tmp_path):
  folder = build(tmp_path / "set", shards=(1,) * 90)
  total = images_of("train", count=90)[0].sum(dtype=np.float64)
  printed = succeeded(run_code(LIMITED, str(folder), str(total)))
  assert printed.strip() == directory.open(folder).manifest.id


def test_only_the_first_record_of_a_label_is_looked_at(whole, monkeypatch):
  split = directory.open(whole).splits["train"]
  images, labels = split.read(np.arange(11))
  assert len(set(labels.tolist())) == CLASSES
  monkeypatch.setattr(records.Parser, "_parsed", lambda *_: pytest.fail("parsed"))
  again, ids = split.read(np.arange(11))
  np.testing.assert_array_equal(again, images)
  np.testing.assert_array_equal(ids, labels)
  with pytest.raises(pytest.fail.Exception, match="parsed"):
    directory.open(whole).splits["train"].read(np.arange(1))


def test_threads_read_the_same(whole):
  split = directory.open(whole).splits["train"]  # not read from before: threads open the files
  images, labels = images_of("train")
  rows = [np.random.default_rng(seed).integers(0, 11, 20) for seed in range(64)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for asked, (found, ids) in zip(rows, pool.map(split.read, rows), strict=True):
      np.testing.assert_array_equal(found, images[asked])
      np.testing.assert_array_equal(ids, labels[asked])


def test_what_is_read_belongs_to_the_reader(whole):
  split = directory.open(whole).splits["train"]
  images, _ = split.read(np.arange(3))
  images[:] = 0
  np.testing.assert_array_equal(split.read(np.arange(3))[0], images_of("train")[0][:3])


def test_a_home_directory_and_a_string_are_taken(whole, monkeypatch):
  monkeypatch.setenv("HOME", str(whole.parent))
  assert len(directory.open("~/set").splits["test"]) == 11
  assert directory.verify("~/set").classes == CLASSES


def test_shards_are_all_in_order(whole):
  found = [shard.file for shard in directory.shards(manifest.read(whole))]
  assert found == [
    f"disguised-{split}.array_record-{i:05d}-of-00003"
    for split in ("train", "test")
    for i in range(3)
  ]
  assert (
    directory.file_sha256(whole / found[0]) == manifest.read(whole).splits["train"].shards[0].sha256
  )


# Records that are not as the manifest says.


@pytest.mark.parametrize("bad", [CLASSES, CLASSES + 1])
def test_a_label_outside_the_classes_is_refused(tmp_path, bad):
  def change(images, labels):
    labels[6] = bad
    return images, labels

  folder = build(tmp_path / "set", change=change)
  # The features that wrote it refuse nothing: only reading finds it.
  split = directory.open(folder).splits["train"]
  split.read(np.array([5, 7]))
  line = refusal(lambda: split.read(np.array([5, 6])), DataError)
  assert f"train holds the label {bad}, but the manifest has 5 classes" in line
  assert f"python -m djax verify {folder}" in line


@pytest.mark.parametrize("bad", [-1, 2**32 + 1, -(2**32)])
def test_a_label_beyond_32_bits_or_below_0_is_refused(tmp_path, bad):
  def change(images, labels):
    labels[6] = bad
    return images, labels

  split = directory.open(build(tmp_path / "set", change=change)).splits["train"]
  assert f"holds the label {bad}" in refusal(lambda: split.read(np.arange(11)), DataError)


@pytest.mark.parametrize(
  ("dtype", "written"), [("uint8", "float32"), ("float16", "float32"), ("uint8", "float16")]
)
def test_records_of_another_dtype_are_refused(tmp_path, dtype, written):
  """The manifest says one thing, features.json and the records another."""

  def change(images, labels):
    return images.astype(written), labels

  folder = build(tmp_path / "set", dtype=dtype, written_dtype=written, change=change)
  split = directory.open(folder).splits["train"]
  line = refusal(lambda: split.read(np.arange(3)), DataError)
  assert "disguised-train.array_record-00000-of-00003 cannot be read" in line


@pytest.mark.parametrize("shape", [(4, 4, 3), (4, 6, 1), (4, 6, 2)])
def test_records_of_another_shape_are_refused(tmp_path, shape):
  """What is longer than a record can be is not read, and what is shorter is another image."""
  spec = {**SPEC, "image_shape": list(shape)}
  folder = build(tmp_path / "set", disguised_shape=shape, spec=spec)
  split = directory.open(folder).splits["train"]
  line = refusal(lambda: split.read(np.arange(3)), DataError)
  assert "disguised-train.array_record-00000-of-00003 cannot be read" in line


@pytest.mark.parametrize("change", [slice(0, 3), slice(0, 1)])
def test_records_that_are_too_short_are_refused(tmp_path, change):
  """Features and manifest agree; the bytes do not fit."""
  folder = build(tmp_path / "set", change=lambda images, labels: (images[:, change], labels))
  split = directory.open(folder).splits["train"]
  line = refusal(lambda: split.read(np.arange(3)), DataError)
  held = 4 * 6 * 3 * change.stop
  assert f"an image of {held} bytes, the manifest says float32[4, 6, 3]" in line


@pytest.mark.parametrize("place", [5, 6])  # the first and the last of the second shard
def test_a_shard_with_a_flipped_bit_gives_no_record(copied, place):
  """Of the right length: found when its first record is asked for, whichever it is; the others are read."""
  name = "disguised-train.array_record-00001-of-00003"
  images, _ = images_of("train")
  content = bytearray((copied / name).read_bytes())
  content[content.index(images[place].tobytes()) + 5] ^= 1
  (copied / name).write_bytes(content)
  split = directory.open(copied).splits["train"]
  split.read(np.array([0, 4, 7, 10]))
  for rows in ([5], [6], [0, place, 10]):
    line = refusal(lambda rows=rows: split.read(np.array(rows)), ManifestError)
    assert f"{copied}: {name} is damaged. Take the files from a good copy." == line


@pytest.mark.parametrize(
  ("records_too_many", "words"), [(1, "must hold 3 records"), (-1, "must hold 1 records")]
)
def test_a_shard_with_other_records_than_the_manifest_says_is_refused(
  tmp_path, records_too_many, words
):
  folder = build(tmp_path / "set")
  facts = manifest.read(folder)
  first, second, third = facts.splits["train"].shards
  counts = second.records + records_too_many, third.records - records_too_many
  shards = (
    first,
    *(dataclasses.replace(s, records=n) for s, n in zip((second, third), counts, strict=True)),
  )
  splits = {**facts.splits, "train": SplitFacts(11, 1, shards)}
  (folder / ".unfinished").mkdir()
  manifest.write(folder, dataclasses.replace(facts, splits=splits), mac_key=KEY)
  split = directory.open(folder).splits["train"]
  split.read(np.arange(5))
  assert words in refusal(lambda: split.read(np.array([5])), DataError)


def test_a_shard_that_is_gone_when_it_is_read_is_named(copied):
  split = directory.open(copied).splits["train"]
  (copied / "disguised-train.array_record-00002-of-00003").unlink()
  line = refusal(lambda: split.read(np.array([9])), DataError)
  assert "disguised-train.array_record-00002-of-00003 must exist, it does not" in line


def test_a_shard_that_was_hashed_is_the_one_that_is_read(copied):
  """Whatever has its name by then, and whether anything has."""
  split = directory.open(copied).splits["train"]
  images, _ = images_of("train")
  split.check()
  names = [f"disguised-train.array_record-{i:05d}-of-00003" for i in range(3)]
  for name in names[:2]:
    (copied / name).unlink()
  (copied / names[1]).write_bytes(b"another")
  os.replace(copied / names[2].replace("train", "test"), copied / names[2])
  np.testing.assert_array_equal(split.read(np.arange(11))[0], images)
  split.close()
  for row, name in zip((0, 5, 7), names, strict=True):
    assert name in refusal(lambda row=row: split.read(np.array([row])), DataError)


def test_a_shard_that_is_cut_off_after_it_was_hashed_is_refused(copied):
  split = directory.open(copied).splits["train"]
  split.check()
  os.truncate(copied / "disguised-train.array_record-00000-of-00003", 100)
  line = refusal(lambda: split.read(np.array([0])), DataError)
  assert "array_record-00000-of-00003 cannot be read (it ends too early)" in line


def test_a_shard_that_grows_while_it_is_hashed_has_an_end(whole):
  class Growing:
    """A file that is longer than the manifest says by the time it is read."""

    read_so_far = 0

    def read(self, count):
      self.read_so_far += count
      assert count
      return bytes(count)

  file, facts = Growing(), manifest.read(whole).splits["train"].shards[1]
  digest = directory.open(whole).splits["train"]._sha256(file, 1)
  assert file.read_so_far == facts.bytes
  assert digest == hashlib.sha256(bytes(facts.bytes)).hexdigest()


def test_check_finds_a_damaged_shard_before_anything_is_read(copied):
  directory.open(copied).splits["train"].check()
  name = "disguised-train.array_record-00002-of-00003"
  content = bytearray((copied / name).read_bytes())
  content[100] ^= 1
  (copied / name).write_bytes(content)
  data = directory.open(copied)
  data.splits["test"].check()
  assert f"{name} is damaged" in refusal(data.splits["train"].check)


def test_close_gives_the_files_back_and_reading_opens_them_again(copied):
  split = directory.open(copied).splits["train"]
  for _ in range(2):
    split.check()
    assert opened(copied).total() == 3
    images, _ = split.read(np.arange(11))
    np.testing.assert_array_equal(images, images_of("train")[0])
    split.close()
    assert not opened(copied)
  split.check()
  del split
  assert not opened(copied)


def test_a_private_shard_is_a_copy_that_was_hashed(copied):
  split = directory.open(copied).splits["train"]
  assert split.shards == 3
  images, labels = images_of("train")
  name = "disguised-train.array_record-00001-of-00003"
  with split.private_shard(1) as (rows, read):
    assert rows == range(5, 7)
    content = bytearray((copied / name).read_bytes())
    content[:] = bytes(len(content))
    (copied / name).write_bytes(content)
    found, ids = read(np.array([6, 5]))
  np.testing.assert_array_equal(found, images[[6, 5]])
  np.testing.assert_array_equal(ids, labels[[6, 5]])
  line = refusal(lambda: split.private_shard(1).__enter__(), DataError)
  assert f"{name} is damaged" in line
  (copied / name).unlink()
  assert f"{name} must exist" in refusal(lambda: split.private_shard(1).__enter__(), DataError)


def test_one_thread_hashes_a_shard_while_others_wait_for_it_alone(whole, monkeypatch):
  split = directory.open(whole).splits["train"]
  hashed, slow, real = [], threading.Event(), directory.Split._sha256

  def counted(self, file, shard):
    hashed.append(shard)
    if shard == 0:
      assert slow.wait(30)
    return real(self, file, shard)

  monkeypatch.setattr(directory.Split, "_sha256", counted)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    waiting = [pool.submit(split.read, np.array([row])) for row in (0, 1, 2)]
    split.read(np.array([5, 10]))  # others are not held
    slow.set()
    for row, future in enumerate(waiting):
      np.testing.assert_array_equal(future.result()[0][0], images_of("train")[0][row])
  assert sorted(hashed) == [0, 1, 2]


def test_what_stands_in_features_json_changes_nothing(tmp_path):
  """Shape and dtype come from the manifest."""
  folder = build(tmp_path / "set", dtype="float16", written_dtype="float16")
  facts = manifest.read(folder)
  text = (folder / "features.json").read_text()
  for changed in (text.replace("float16", "uint8"), text.replace('"6"', '"7"'), "{}"):
    assert changed != text
    rewrite(folder, facts, changed)
    images, _ = directory.open(folder).splits["train"].read(np.arange(11))
    np.testing.assert_array_equal(images, images_of("train", "float16")[0])


def rewrite(folder, facts, text):
  """Puts other features there, and their hash into the manifest."""
  (folder / "features.json").write_text(text)
  hashes = {**facts.files, "features.json": hashlib.sha256(text.encode()).hexdigest()}
  (folder / ".unfinished").mkdir()
  manifest.write(folder, dataclasses.replace(facts, files=hashes), mac_key=KEY)
  (folder / ".unfinished").rmdir()


@pytest.mark.parametrize(
  "change",
  [
    ("tensorflow_datasets.core.features.tensor_feature.Tensor", "payload.sub.Tensor"),
    ("tensorflow_datasets.core.features.features_dict.FeaturesDict", "payload.F"),
    ("tensorflow_datasets.core.features.", "payload\\u002e"),
    ("tensorflow_datasets.core.features.", "tensorflow_datasets.core.featuresx."),
    ("pythonClassName", "python_class_name", "tensorflow_datasets.core.features.", "payload."),
    ('"dtype": "float32"', '"dtype": "float32", "dtype": "float32"'),
    ("}", ""),
  ],
)
def test_features_that_name_other_code_are_refused_though_the_hash_is_right(tmp_path, change):
  """TFDS would import it, if somebody reads the directory as README.md shows."""
  folder = build(tmp_path / "set")
  text = (folder / "features.json").read_text()
  changed = text
  for old, new in zip(change[::2], change[1::2], strict=True):
    assert old in changed
    changed = changed.replace(old, new)
  rewrite(folder, manifest.read(folder), changed)
  for action in (directory.open, directory.verify):
    line = refusal(lambda action=action: action(folder))
    assert f"{folder}: features.json names code that is not of TFDS" in line
  rewrite(folder, manifest.read(folder), text)
  directory.verify(folder)


def test_damaged_facts_of_tfds_are_refused(copied):
  for name in ("features.json", "dataset_info.json"):
    kept = (copied / name).read_bytes()
    (copied / name).write_bytes(b"{")
    assert f"{name} is damaged" in refusal(lambda: directory.open(copied))
    (copied / name).write_bytes(kept)
  directory.open(copied).splits["train"].read(np.arange(2))


# Version 1.

OLD = {
  "aes": ("train", "test"),
  "permutation-plain-labels": ("train", "test"),
  "request": ("query",),
  "rmt-float16-block": ("train", "test"),
  "rmt-float32-noise-views": ("train", "test"),
  "rmt-uint8-projection": ("train", "test"),
}
MASTER = keys.Master(bytes(range(32)))


@pytest.fixture(scope="module")
def old(tmp_path_factory):
  place = tmp_path_factory.mktemp("old")
  with tarfile.open(ROOT / "tests" / "vectors" / "disguised-v1.tar.xz") as archive:
    archive.extractall(place, filter="data")
  return place / "disguised-v1"


def test_the_archive_holds_all_that_is_tested(old):
  assert sorted(entry.name for entry in old.iterdir()) == sorted(OLD)


@pytest.mark.parametrize("name", OLD)
def test_directories_of_version_1_open_verify_authenticate_and_are_read(old, name):
  data = directory.open(old / name)
  facts = data.manifest
  assert (facts.version, facts.expansion, facts.id) == (1, "djx1", "")
  assert facts.role == ("request" if name == "request" else "dataset")
  assert tuple(data.splits) == OLD[name]
  assert directory.verify(old / name).sha256 == facts.sha256
  manifest.authenticate(facts, mac_key=MASTER.subkey("manifest"), where=old / name)
  restore.authenticate(facts, old / name, MASTER, role=facts.role)
  other = keys.Master(bytes(32))
  with pytest.raises(ManifestError, match="was not written with this key"):
    manifest.authenticate(facts, mac_key=other.subkey("manifest"), where=old / name)
  for split in data.splits.values():
    images, labels = split.read(np.arange(3))
    assert images.shape == (3, *facts.disguised_shape) and images.dtype == facts.dtype
    whole, ids = split.read(np.arange(len(split)))
    np.testing.assert_array_equal(images, whole[:3])
    assert len(np.unique(whole.reshape(len(whole), -1), axis=0)) > len(whole) // 2
    assert (labels == ids[:3]).all() and 0 <= ids.min() <= ids.max() < facts.classes


def test_old_records_are_read_as_the_library_reads_them(old):
  from array_record.python.array_record_module import ArrayRecordReader

  for name in OLD:
    data = directory.open(old / name)
    for split in data.splits.values():
      facts = data.manifest.splits[split.name].shards
      first, _ = split.read(np.arange(len(split)))
      found = []
      features = records.features(split.image_shape, split.dtype.name, data.manifest.classes)
      for shard in facts:
        with contextlib.closing(ArrayRecordReader(str(old / name / shard.file))) as reader:
          found += [features.deserialize_example_np(x)["image"] for x in reader.read_all()]
      np.testing.assert_array_equal(first, found)


# Opening and verifying.


def test_a_whole_directory_is_verified(whole):
  assert (
    directory.verify(whole).sha256
    == hashlib.sha256((whole / "MANIFEST.json").read_bytes()).hexdigest()
  )
  facts = manifest.read(whole)
  assert directory.verify(whole, manifest=facts) is facts


def test_verify_checks_against_the_manifest_that_it_is_given(tmp_path):
  """It may be authenticated; the one that lies there by now is not looked at."""
  folder = build(tmp_path / "set")
  facts = manifest.read(folder)
  forged = build(tmp_path / "forged", change=lambda images, labels: (images[::-1], labels))
  for entry in forged.iterdir():
    shutil.copyfile(entry, folder / entry.name)
  directory.verify(folder)
  line = refusal(lambda: directory.verify(folder, manifest=facts))
  assert "disguised-train.array_record-00000-of-00003 is damaged" in line


def test_verify_names_the_file_of_every_flipped_byte(copied):
  names = sorted(entry.name for entry in copied.iterdir())
  assert len(names) == 11
  for name in names:
    kept = (copied / name).read_bytes()
    for place in (0, 1, len(kept) // 3, len(kept) // 2, len(kept) - 2, len(kept) - 1):
      damaged = bytearray(kept)
      damaged[place] ^= 4
      (copied / name).write_bytes(damaged)
      line = refusal(lambda: directory.verify(copied))
      if name.startswith("MANIFEST"):
        assert "MANIFEST" in line
      else:
        assert f"{copied}: {name} is damaged. Take the files from a good copy." == line
    (copied / name).write_bytes(kept)
  directory.verify(copied)


def test_verify_names_every_fault_at_once(copied):
  first, second, third = (f"disguised-train.array_record-{i:05d}-of-00003" for i in range(3))
  (copied / first).unlink()
  content = (copied / second).read_bytes()
  (copied / second).write_bytes(content[:-1])
  (copied / third).write_bytes(content[:-1] + b"?")
  (copied / "README.md").unlink()
  (copied / "notes.txt").write_text("mine")
  (copied / ".unfinished").mkdir()
  line = refusal(lambda: directory.verify(copied))
  for fault in (
    f"{first} must exist, it does not",
    f"{second} must have {len(content)} bytes, has {len(content) - 1}",
    third,
    "README.md must exist, it does not",
    "notes.txt is not in the manifest",
    ".unfinished is left from a run that was stopped: re-run the `djax disguise` command",
  ):
    assert fault in line
  assert line.endswith("Take the files from a good copy.")
  assert "features.json" not in line


@pytest.mark.parametrize("name", [".DS_Store", "notes.txt"])
def test_who_left_a_file_there_is_told_to_move_it_away(copied, name):
  (copied / name).write_bytes(b"x")
  line = refusal(lambda: directory.verify(copied))
  assert line.endswith(f"{name} is not in the manifest. Move away what is not in it.")


@pytest.mark.parametrize("cut", [1, 65536, 131072])
def test_open_refuses_a_truncated_shard(copied, cut):
  name = "disguised-test.array_record-00001-of-00003"
  content = (copied / name).read_bytes()
  (copied / name).write_bytes(content[: max(0, len(content) - cut)])
  line = refusal(lambda: directory.open(copied))
  assert f"{name} must have {len(content)} bytes" in line
  assert name in refusal(lambda: directory.verify(copied))


@pytest.mark.parametrize("name", ["README.md", "features.json", "dataset_info.json"])
def test_open_refuses_a_missing_file(copied, name):
  (copied / name).unlink()
  assert f"{copied}: {name} must exist, it does not" in refusal(lambda: directory.open(copied))


def test_open_refuses_a_missing_shard(copied):
  name = "disguised-train.array_record-00000-of-00003"
  (copied / name).unlink()
  assert f"{copied}: {name} must exist, it does not" in refusal(lambda: directory.open(copied))
  (copied / name).mkdir()
  assert name in refusal(lambda: directory.open(copied))
  assert name in refusal(lambda: directory.verify(copied))


def test_a_directory_that_is_none_is_refused(tmp_path):
  for action in (directory.open, directory.verify):
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
  facts = directory.verify(forged)
  with pytest.raises(ManifestError, match="was not written with this key"):
    manifest.authenticate(facts, mac_key=KEY, where=forged)


# What else reads the directory, and what reading it loads.


def fresh(script, *arguments):
  return succeeded(run_code(script, *arguments))


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
names = {{"djax.keys", "djax.keys.keyfile", "djax.owner", "cryptography", "tensorflow"}}
names |= {{"tensorflow_datasets", "array_record", "google.protobuf"}}
print(sorted(names & set(sys.modules)))
"""


def test_reading_loads_no_key_code_and_nothing_that_believes_the_files(whole):
  script = LOADED.format(
    "from djax.disguised import datacard, directory, manifest, quantise, records\n"
    "facts = directory.verify(sys.argv[1])\n"
    "manifest.authenticate(facts, mac_key=bytes(range(32)), where=sys.argv[1])\n"
    "directory.open(sys.argv[1]).splits['train'].read(np.arange(5))"
  )
  assert fresh(script, whole) == "[]\n"
  caught = fresh(
    LOADED.format("from djax.disguised import directory\nfrom djax.owner import sealed_metadata"),
    whole,
  )
  assert caught == "['cryptography', 'djax.keys', 'djax.owner']\n"
  caught = fresh(
    LOADED.format("import tensorflow_datasets as tfds\ntfds.features.FeaturesDict"), whole
  )
  assert "google.protobuf" in caught and "tensorflow_datasets" in caught


def test_importing_costs_no_tfds():
  script = "import sys; from djax.disguised import directory, manifest, records, datacard\n"
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
  facts = directory.open(folder).manifest
  np.testing.assert_array_equal(facts.quantiser.offset, quantiser.offset)
  assert facts.class_names == names
  directory.verify(folder)
