import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import zipfile

import numpy as np
import pytest
from helpers.directories import mend
from helpers.disks import tiny_disk
from helpers.fresh import run_code

from djax import keys, sources
from djax.disguised import directory, manifest
from djax.errors import (
  ConfigError,
  DataError,
  DjaxError,
  KeyMismatchError,
  ManifestError,
  NotInvertibleError,
  UnsafeError,
)
from djax.io import files, foreign
from djax.owner import export, query, record_noise, restore
from djax.owner.plan import Request

MASTER = keys.Master(bytes(range(90, 122)))
SPLITS = {"train": "train[:90]", "test": "test[:30]"}
RMT = {"scheme": "rmt", "block_size": 2}


def disguised(folder, disguise, source="digits", splits=SPLITS, **options):
  # An id for each name, the same in every run of a test.
  dataset_id = hashlib.sha256(folder.name.encode()).hexdigest()[:32]
  request = Request(str(source), disguise, splits=splits, dataset_id=dataset_id, **options)
  export.disguise(request, folder, MASTER, workers=1)
  return directory.open(folder)


def gathered(data, split, chunk=32):
  """Returns images and labels in the order of the source."""
  pieces = list(restore.originals(data, MASTER, split, chunk=chunk))
  indices, images, labels = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
  assert sorted(indices.tolist()) == list(range(len(indices)))
  back = np.argsort(indices)
  return images[back], labels[back]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
  """A disguised set with three shards of the training split."""
  folder = tmp_path_factory.mktemp("noisy") / "data"
  return disguised(folder, {**RMT, "noise_level": 25.0}, originals_per_shard=40)


@pytest.fixture
def copied(noisy, tmp_path):
  shutil.copytree(noisy.path, tmp_path / "copy")
  return directory.open(tmp_path / "copy")


def floats(folder):
  """Writes a source of float images of 6x5 pixels, black and white corners among them."""
  rng = np.random.default_rng(3)
  images = rng.uniform(0, 255, (40, 6, 5, 1)).astype(np.float32)
  images[:, 0, 0], images[:, 5, 4] = 0, 255
  labels = rng.integers(0, 3, 40)
  np.savez(
    folder / "floats.npz",
    train_images=images[:30],
    train_labels=labels[:30],
    test_images=images[30:],
    test_labels=labels[30:],
    class_names=["ant", "bee", "cat"],
  )
  return folder / "floats.npz"


# What comes back.


@pytest.mark.parametrize(
  "disguise",
  [
    {"scheme": "permutation", "block_size": 3},  # padded
    {"scheme": "aes", "block_size": 4},
    {"scheme": "aes", "block_size": 4, "position_keys": True, "permute": False},
    RMT,
  ],
)
def test_bytes_come_back_as_they_were_and_load_again(tmp_path, disguise):
  data = disguised(tmp_path / "data", disguise)
  restore.to_files(data, MASTER, tmp_path / "back.npz")
  for split, part in SPLITS.items():
    was = sources.load("digits", part)
    back = sources.load(str(tmp_path / "back.npz"), split)
    assert back.images.dtype == np.uint8
    np.testing.assert_array_equal(back.images, was.images)
    np.testing.assert_array_equal(back.labels, was.labels)
    assert back.class_names == was.class_names
    _, stored = data.splits[split].read(np.arange(len(was.labels)))
    (whole,) = restore.originals(data, MASTER, split, chunk=1000)
    assert (stored != was.labels[whole.indices]).any()  # they had been permuted
    assert (whole.indices != np.arange(len(was.labels))).mean() > 0.8  # so had the records
    np.testing.assert_array_equal(whole.labels, was.labels[whole.indices])


def test_plain_labels_come_back_too(tmp_path):
  data = disguised(tmp_path / "data", RMT, plain_labels=True)
  was = sources.load("digits", SPLITS["test"])
  (whole,) = restore.originals(data, MASTER, "test", chunk=1000)
  stored = data.splits["test"].read(np.arange(30))[1]
  np.testing.assert_array_equal(stored, was.labels[whole.indices])
  np.testing.assert_array_equal(gathered(data, "test")[1], was.labels)


@pytest.mark.parametrize("matrix", ["orthogonal", "projection"])
@pytest.mark.parametrize("mix", ["rows", "block"])
def test_rmt_without_noise_comes_back_within_a_hundredth_unrounded(tmp_path, matrix, mix):
  data = disguised(tmp_path / "data", {**RMT, "matrix": matrix, "mix": mix})
  images, _ = gathered(data, "train")
  error = np.abs(images - sources.load("digits", SPLITS["train"]).images).max()
  assert 0 < error <= min(0.01, data.manifest.error.restored)


@pytest.mark.parametrize("noise_level", [0.0, 25.0])
@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize(
  "options",
  [{}, {"block_size": 3, "mix": "block"}, {"matrix": "projection", "permute": False}],
)
@pytest.mark.slow
def test_the_bound_in_the_manifest_holds_and_means_something(tmp_path, options, dtype, noise_level):
  disguise = {**RMT, **options, "noise_level": noise_level}
  data = disguised(tmp_path / "data", disguise, dtype=dtype)
  facts = data.manifest
  worst = 0
  for split, part in SPLITS.items():
    was = sources.load("digits", part).images
    count = int(np.prod(facts.disguised_shape))
    of = record_noise.of(facts, MASTER)
    drawn = of.noise(was, was, split, range(len(was)), 0, count).astype(np.float64)
    noise = noise_level * (drawn.reshape(-1, *facts.disguised_shape)[:, :8, :8] - 0.5)
    assert abs(noise).max() <= facts.error.noise
    worst = max(worst, np.abs(gathered(data, split)[0] - was - noise).max())
  assert facts.error.restored / 50 <= worst <= facts.error.restored


def test_noise_after_the_projection_stays_within_its_bound(tmp_path):
  data = disguised(tmp_path / "data", {**RMT, "noise_level": 25.0, "noise_place": "after"})
  error = np.abs(gathered(data, "train")[0] - sources.load("digits", SPLITS["train"]).images).max()
  bound = data.manifest.error
  assert bound.noise / 2 <= error <= bound.restored + bound.noise


def test_noise_stays_in_the_files_within_its_bound(noisy, tmp_path):
  restore.to_files(noisy, MASTER, tmp_path / "back.npz")
  back = sources.load(str(tmp_path / "back.npz"), "train").images.astype(int)
  error = np.abs(back - sources.load("digits", SPLITS["train"]).images).max()
  assert 10 <= error <= 13  # N / 2, rounded


def test_only_view_0_comes_back(tmp_path):
  for name, disguise in (("a", RMT), ("b", {"scheme": "aes", "block_size": 4})):
    data = disguised(tmp_path / name, disguise, views=3, crop=2, flip=True)
    assert len(data.splits["train"]) == 270
    was = sources.load("digits", SPLITS["train"])
    images, labels = gathered(data, "train")
    np.testing.assert_array_equal(np.rint(images), was.images)
    np.testing.assert_array_equal(labels, was.labels)


@pytest.mark.parametrize("chunk", [1, 7, 90, 1000])
def test_the_size_of_chunks_changes_nothing(noisy, chunk):
  pieces = list(restore.originals(noisy, MASTER, "train", chunk=chunk))
  # A chunk lies in one shard: the split has three, of 40, 40 and 10 records.
  expected = [min(chunk, of - start) for of in (40, 40, 10) for start in range(0, of, chunk)]
  assert [len(piece.labels) for piece in pieces] == expected
  for mine, other in zip(gathered(noisy, "train", chunk), gathered(noisy, "train"), strict=True):
    np.testing.assert_allclose(mine, other, atol=1e-4)


def test_files_are_written_chunk_by_chunk(noisy, tmp_path, monkeypatch):
  restore.to_files(noisy, MASTER, tmp_path / "one.npz")
  monkeypatch.setattr(restore, "_CHUNK_BYTES", 8 * 4 * 64)
  seen = []
  restore.to_files(noisy, MASTER, tmp_path / "many.npz", progress=lambda *x: seen.append(x))
  assert seen[:3] == [(8, 120), (16, 120), (24, 120)] and seen[-1] == (120, 120)
  assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "many.npz").read_bytes()
  with zipfile.ZipFile(tmp_path / "many.npz") as archive:
    assert archive.testzip() is None
    assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
  with np.load(tmp_path / "many.npz") as npz:
    assert sorted(npz) == [
      "class_names",
      "test_images",
      "test_labels",
      "train_images",
      "train_labels",
    ]


def test_float_originals_come_back_as_floats_that_load_again(tmp_path):
  source = floats(tmp_path)
  splits = {"train": "train", "test": "test"}
  data = disguised(tmp_path / "data", RMT, source, splits)
  restore.to_files(data, MASTER, tmp_path / "back.npz")
  assert gathered(data, "train")[0].min() < 0  # what would be refused on the way back
  for split in splits:
    was, back = sources.load(str(source), split), sources.load(str(tmp_path / "back.npz"), split)
    assert back.images.dtype == np.float32
    assert 0 < np.abs(back.images - was.images).max() <= data.manifest.error.restored
    np.testing.assert_array_equal(back.labels, was.labels)
    assert back.class_names == ("ant", "bee", "cat")


def test_float_originals_under_a_permutation_are_exact(tmp_path):
  source = floats(tmp_path)
  splits = {"train": "train", "test": "test"}
  data = disguised(tmp_path / "data", {"scheme": "permutation", "block_size": 2}, source, splits)
  np.testing.assert_array_equal(
    gathered(data, "train")[0], sources.load(str(source), "train").images
  )


# Folders.


def test_a_folder_of_png_files_loads_again(tmp_path):
  splits = {"train": "train[:90]", "test": "test"}  # every class is in both
  data = disguised(tmp_path / "data", RMT, splits=splits)
  restore.to_files(data, MASTER, tmp_path / "back")
  for split, part in splits.items():
    was, back = sources.load("digits", part), sources.load(str(tmp_path / "back"), split)
    assert back.class_names == was.class_names
    for label in range(10):
      np.testing.assert_array_equal(
        back.images[back.labels == label], was.images[was.labels == label]
      )
  assert (tmp_path / "back" / "train" / "0" / "00.png").is_file()
  assert (tmp_path / "back" / "test" / "9" / "001.png").exists() == (was.labels[1] == 9)


def test_class_names_become_safe_file_names(tmp_path, monkeypatch):
  # Some of these are refused now; a data set of an older djax may hold them.
  monkeypatch.setattr(sources.base.checks, "check_class_names", lambda what, names: None)
  names = ["A/B", "a:b", "..", "a_b", "fine name", "", "a_b_1", "\x00\n", "x" * 200]
  labels = np.arange(len(names))
  images = (labels[:, None, None, None] * np.full((4, 4, 3), 20)).astype(np.uint8)
  arrays = {"train_images": images, "train_labels": labels}
  arrays |= {"test_images": images, "test_labels": labels}
  np.savez(tmp_path / "odd.npz", **arrays, class_names=names)
  splits = {"train": "train", "test": "test"}
  data = disguised(tmp_path / "data", RMT, tmp_path / "odd.npz", splits)
  restore.to_files(data, MASTER, tmp_path / "back")
  made = sorted(path.name for path in (tmp_path / "back" / "train").iterdir())
  assert len({name.lower() for name in made}) == len(names)
  assert {"A_B", "a_b_1", "a_b_1_6", "fine name", "x" * 60} <= set(made)
  assert all(not name.startswith(".") and len(name) <= 80 for name in made)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "data", "odd.npz"]
  back = sources.load(str(tmp_path / "back"), "train")
  assert [int(image[0, 0, 0]) // 20 for image in back.images] == back.labels.tolist()
  assert back.labels.tolist() == list(range(len(names)))


def test_originals_that_fit_no_png_are_refused_at_once(tmp_path):
  splits = {"train": "train", "test": "test"}
  data = disguised(tmp_path / "data", RMT, floats(tmp_path), splits)
  with pytest.raises(ConfigError, match=r"float32 with 1\. Give an --out that ends in \.npz"):
    restore.to_files(data, MASTER, tmp_path / "back")
  assert not (tmp_path / "back").exists()


# Refusals: nothing is written.

NAMES = pytest.mark.parametrize("name", ["back.npz", "back"])


def refused(data, master, out, error, match):
  folder = out.parent
  before = sorted(folder.iterdir())
  with pytest.raises(error, match=match):
    restore.to_files(data, master, out)
  assert sorted(folder.iterdir()) == before


@NAMES
def test_another_key_is_refused(noisy, tmp_path, name):
  other = keys.Master(bytes(32))
  refused(noisy, other, tmp_path / name, KeyMismatchError, f"got {other.fingerprint}")
  with pytest.raises(KeyMismatchError):
    restore.originals(noisy, other, "train", chunk=1)


def tamper(folder):
  """Changes a manifest, and leaves it damaged."""
  path = folder / manifest.FILE
  facts = json.loads(path.read_bytes())
  facts["warnings"] = []
  path.write_text(json.dumps(facts))


@NAMES
def test_a_manifest_that_was_tampered_with_is_refused(copied, tmp_path, name):
  tamper(copied.path)
  with pytest.raises(ManifestError, match="checksum does not hold"):
    directory.open(copied.path)
  mend(copied.path)
  directory.verify(copied.path)  # without the key it goes unseen
  forged = directory.open(copied.path)
  refused(forged, MASTER, tmp_path / name, ManifestError, "was not written with this key")
  with pytest.raises(ManifestError, match="was not written with this key"):
    restore.originals(forged, MASTER, "train", chunk=1)
  with pytest.raises(ManifestError, match="was not written with this key"):
    restore.authenticated(copied.path, MASTER)


@NAMES
def test_what_was_authenticated_is_used_and_not_what_lies_there_since(copied, tmp_path, name):
  """Nothing is read twice, so a manifest exchanged after it was read has no effect, forged or not."""
  restore.to_files(copied, MASTER, tmp_path / f"a{name}")
  other = disguised(tmp_path / "other", {"scheme": "permutation", "block_size": 4})
  for file in (manifest.FILE, manifest.MAC_FILE):
    shutil.copyfile(other.path / file, copied.path / file)
  assert directory.open(tmp_path / "other").manifest.sha256 == other.manifest.sha256
  restore.to_files(copied, MASTER, tmp_path / f"b{name}")
  assert files_of(tmp_path / f"b{name}") == files_of(tmp_path / f"a{name}")
  tamper(copied.path)
  restore.to_files(copied, MASTER, tmp_path / f"c{name}")
  assert files_of(tmp_path / f"c{name}") == files_of(tmp_path / f"a{name}")


@pytest.mark.parametrize("moment", [1, 2, 3])
@pytest.mark.parametrize("genuine_first", [True, False])
def test_a_manifest_exchanged_while_it_is_read_is_never_taken(
  noisy, tmp_path, monkeypatch, moment, genuine_first
):
  """The directory is swapped for a forged one, or back, before the first, second or a third read of a file."""
  forged = tmp_path / "forged"
  shutil.copytree(noisy.path, forged)
  tamper(forged)
  mend(forged)
  first, second = (noisy.path, forged) if genuine_first else (forged, noisy.path)
  link, real, reads = tmp_path / "link", foreign.read, []
  link.symlink_to(first)

  def read(*args, **options):
    reads.append(args)
    if len(reads) == moment:
      link.unlink()
      link.symlink_to(second)
    return real(*args, **options)

  monkeypatch.setattr(foreign, "read", read)
  if (genuine_first and moment == 3) or (not genuine_first and moment == 1):
    facts = restore.authenticated(link, MASTER)
    assert facts.sha256 == noisy.manifest.sha256
    assert facts.to_dict() == noisy.manifest.to_dict()
  else:
    with pytest.raises(
      ManifestError, match=r"checksum does not hold|was not written with this key"
    ):
      restore.authenticated(link, MASTER)
  assert len(reads) == 2  # MANIFEST.json and MANIFEST.mac, each once


@NAMES
def test_a_shard_exchanged_after_it_was_verified_is_not_used(copied, tmp_path, monkeypatch, name):
  """An authentic shard of another data set, of the same length: put there once every byte was verified."""
  other = disguised(tmp_path / "other", {**RMT, "noise_level": 25.0}, originals_per_shard=40)
  real = directory.verify

  def verify_then_swap(*args, **options):
    found = real(*args, **options)
    for mine, theirs in zip(
      directory.shards(copied.manifest), directory.shards(other.manifest), strict=True
    ):
      assert mine.bytes == theirs.bytes
      shutil.copyfile(other.path / theirs.file, copied.path / mine.file)
    return found

  monkeypatch.setattr(directory, "verify", verify_then_swap)
  refused(copied, MASTER, tmp_path / name, DataError, "its SHA-256 is not the recorded one")


@NAMES
def test_a_shard_exchanged_while_it_is_read_changes_nothing(copied, tmp_path, name):
  restore.to_files(copied, MASTER, tmp_path / f"a{name}")
  shards = [copied.path / shard.file for shard in directory.shards(copied.manifest)]
  seen = []

  def swap(done, total):
    # The shard that is being read: written over in place, and its name given to another file.
    seen.append(done)
    first = shards[0]
    if done <= 40 and first.exists():
      first.write_bytes(bytes(first.stat().st_size))
      first.unlink()

  with monkeypatched_chunks(7):
    restore.to_files(copied, MASTER, tmp_path / f"b{name}", progress=swap)
  assert len(seen) > 10
  assert files_of(tmp_path / f"b{name}") == files_of(tmp_path / f"a{name}")


@contextlib.contextmanager
def monkeypatched_chunks(originals):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(restore, "_CHUNK_BYTES", originals * 4 * 64)
    yield


def files_of(path):
  """Returns every file below a path, or the file itself, by relative name."""
  every = path.rglob("*") if path.is_dir() else [path]
  return {str(x.relative_to(path)): x.read_bytes() for x in every if x.is_file()}


@NAMES
def test_a_flipped_bit_is_refused(copied, tmp_path, name):
  shard = copied.path / copied.manifest.splits["train"].shards[1].file
  content = bytearray(shard.read_bytes())
  content[len(content) // 2] ^= 1
  shard.write_bytes(content)
  refused(copied, MASTER, tmp_path / name, ManifestError, f"{shard.name} is damaged")


@NAMES
def test_a_disguise_without_a_way_back_is_refused(tmp_path, name):
  data = disguised(tmp_path / "data", {"scheme": "aes", "block_size": 4, "unit_pixels": 8})
  refused(data, MASTER, tmp_path / name, NotInvertibleError, "only units of 16 pixels")
  with pytest.raises(NotInvertibleError):
    restore.originals(data, MASTER, "train", chunk=1)  # before the first chunk is asked for


@NAMES
def test_nothing_is_overwritten(noisy, tmp_path, name):
  (tmp_path / name).write_text("mine")
  refused(noisy, MASTER, tmp_path / name, UnsafeError, "exists and is not overwritten")
  assert (tmp_path / name).read_text() == "mine"
  (tmp_path / "link").symlink_to(tmp_path / "nowhere")
  refused(noisy, MASTER, tmp_path / "link", UnsafeError, "exists and is not overwritten")


@NAMES
def test_originals_do_not_go_where_the_disguise_lies(noisy, name):
  refused(noisy, MASTER, noisy.path / name, UnsafeError, "which leaves your machine")


@NAMES
def test_a_disk_too_small_is_refused(noisy, tmp_path, monkeypatch, name):
  free = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
  refused(noisy, MASTER, tmp_path / name, DjaxError, r"needs 4\.\d MB free, got 0\.0 MB")


@NAMES
def test_an_interrupted_restore_leaves_nothing(noisy, tmp_path, name):
  there = []

  def stop(done, total):
    there.extend(path.name for path in tmp_path.iterdir())
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    restore.to_files(noisy, MASTER, tmp_path / name, progress=stop)
  assert there == [files.temporary_of(tmp_path / name).name]
  assert not list(tmp_path.iterdir())


@NAMES
def test_what_appears_meanwhile_is_not_overwritten(noisy, tmp_path, name):
  def other(done, total):
    (tmp_path / name).write_text("mine")

  with pytest.raises(UnsafeError, match="exists and is not overwritten"):
    restore.to_files(noisy, MASTER, tmp_path / name, progress=other)
  assert [path.name for path in tmp_path.iterdir()] == [name]
  assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
@NAMES
def test_originals_are_for_the_owner_alone_whatever_the_umask(noisy, tmp_path, name, umask):
  seen = set()

  def look(done, total):
    for path in tmp_path.rglob("*"):
      seen.add((path.is_dir(), path.stat().st_mode & 0o777))

  before = os.umask(umask)
  try:
    with monkeypatched_chunks(30):
      restore.to_files(noisy, MASTER, tmp_path / name, progress=look)
  finally:
    os.umask(before)
  look(0, 0)
  assert seen == ({(False, 0o600)} if name.endswith("npz") else {(False, 0o600), (True, 0o700)})


KILLED = """
import os, signal, sys
from djax.disguised import directory
from djax import keys
from djax.owner import restore
restore._CHUNK_BYTES = 10 * 4 * 64
def progress(done, total):
  if done >= 60:
    os.kill(os.getpid(), signal.SIGKILL)
restore.to_files(directory.open(sys.argv[1]), keys.Master(bytes(range(90, 122))), sys.argv[2], progress=progress)
"""


@NAMES
@pytest.mark.slow
def test_what_a_killed_restore_leaves_is_private_and_the_next_call_clears_it(noisy, tmp_path, name):
  target = tmp_path / name
  done = run_code(KILLED, noisy.path, target)
  assert done.returncode == -signal.SIGKILL
  (left,) = tmp_path.iterdir()
  assert left == files.temporary_of(target)
  for path in (left, *left.rglob("*")):
    assert path.stat().st_mode & 0o077 == 0, path
  if left.is_dir():
    assert len(list(left.rglob("*.png"))) >= 50
  restore.to_files(noisy, MASTER, target)
  assert list(tmp_path.iterdir()) == [target]
  restore.to_files(noisy, MASTER, tmp_path / f"again{name}")
  assert files_of(target) == files_of(tmp_path / f"again{name}")


@NAMES
def test_a_disk_that_fills_up_leaves_nothing_and_ends_in_one_line(
  noisy, tmp_path, monkeypatch, name
):
  """Also in the file in which the records are put in order: written through a memory map, it would end the process."""
  monkeypatch.setattr(files, "check_room", lambda *_: None)
  with tiny_disk(tmp_path / "disk", 1):
    ballast = tmp_path / "disk" / "ballast"
    ballast.write_bytes(bytes((1 << 20) - 4096))
    for _ in range(2):
      with pytest.raises(OSError, match="No space left on device"):
        restore.to_files(noisy, MASTER, tmp_path / "disk" / name)
      assert list((tmp_path / "disk").iterdir()) == [ballast]
    ballast.unlink()
    restore.to_files(noisy, MASTER, tmp_path / "disk" / name)


@NAMES
def test_another_manifest_than_the_one_expected_is_refused(noisy, tmp_path, name):
  restore.to_files(noisy, MASTER, tmp_path / name, expect=noisy.manifest.sha256.upper())
  with pytest.raises(ManifestError, match=f"must have the manifest {'0' * 64}, has"):
    restore.to_files(noisy, MASTER, tmp_path / f"b{name}", expect="0" * 64)
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_role_is_authenticated_with_the_rest(noisy, tmp_path):
  images = sources.load("digits", "test[:3]").images
  asked = query.Query(images, ("a", "b", "c"))
  facts, _ = query.request(asked, noisy.manifest, MASTER, tmp_path / "request")
  assert (facts.role, facts.id) == ("request", noisy.manifest.id)
  assert restore.authenticated(tmp_path / "request", MASTER, role="request").sha256 == facts.sha256
  with pytest.raises(ManifestError, match="must be a dataset, is a request"):
    restore.authenticated(tmp_path / "request", MASTER)
  with pytest.raises(ManifestError, match="must be a request, is a dataset"):
    restore.authenticated(noisy.path, MASTER, role="request")
  for name in ("back.npz", "back"):
    with pytest.raises(ManifestError, match="must be a dataset, is a request"):
      restore.to_files(directory.open(tmp_path / "request"), MASTER, tmp_path / name)
  # Under the subkey of the one role, the other one's manifest is a forgery.
  swapped = manifest.read(noisy.path)
  key = MASTER.owner().subkey("manifest|request")
  with pytest.raises(ManifestError, match="was not written with this key"):
    manifest.authenticate(swapped, mac_key=key, where=noisy.path)
  assert restore.mac_key(swapped, MASTER) == MASTER.owner().subkey("manifest|dataset")


def test_authenticated_returns_the_manifest_of_a_run_directory(noisy, tmp_path):
  for name in (manifest.FILE, manifest.MAC_FILE):
    shutil.copyfile(noisy.path / name, tmp_path / name)
  facts = restore.authenticated(tmp_path, MASTER)
  assert facts.to_dict() == noisy.manifest.to_dict()
  assert dataclasses.asdict(facts.error) == dataclasses.asdict(noisy.manifest.error)


def test_nothing_is_taken_from_a_manifest_before_it_is_authenticated(tmp_path):
  """Shape and dtype of the originals say whether they fit a PNG; who forged them is told so first."""
  data = disguised(tmp_path / "data", RMT, floats(tmp_path), {"train": "train", "test": "test"})
  tamper(data.path)
  mend(data.path)
  with pytest.raises(ManifestError, match="was not written with this key"):
    restore.to_files(directory.open(data.path), MASTER, tmp_path / "back")
