"""Data sets as folders of PNG files: what other readers see, the same bytes after a stop, and what is refused."""

import dataclasses
import hashlib
import io
import json
import os
import shutil

import numpy as np
import pytest
from helpers.digits import MASTER, RMT, SPLITS, write
from helpers.directories import mend
from helpers.verbs import caller, refused
from PIL import Image

from djax import sources
from djax.disguised import directory, manifest, png
from djax.errors import ConfigError, DataError, ManifestError
from djax.owner import export, query, restore
from djax.owner.plan import Request

ID = "00112233445566778899aabbccddeeff"
AES = {"scheme": "aes", "block_size": 4}
PERMUTATION = {"scheme": "permutation", "block_size": 2}


def folder(path, disguise=RMT, **options):
  write(path, disguise=disguise, format="folder", dataset_id=ID, **options)
  return path


def files_of(path):
  return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def pixels(path):
  """Returns what Pillow sees in a PNG file, ``[H, W, C]``."""
  image = np.asarray(Image.open(path))
  return image.reshape(*image.shape[:2], -1)


@pytest.fixture(scope="module")
def rmt(tmp_path_factory):
  return folder(tmp_path_factory.mktemp("folder") / "rmt")


@pytest.fixture
def copied(tmp_path, rmt):
  for name, data in files_of(rmt).items():
    (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "data" / name).write_bytes(data)
  for label in range(10):
    for split in SPLITS:
      (tmp_path / "data" / split / str(label)).mkdir(exist_ok=True)
  return tmp_path / "data"


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 8, 1), (3, 5, 3), (300, 220, 1), (160, 140, 3)])
def test_a_png_file_holds_its_image_and_is_as_long_as_said(shape):
  image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  data = png.encode(image)
  assert len(data) == png.size(shape)
  Image.open(io.BytesIO(data)).verify()
  np.testing.assert_array_equal(pixels(io.BytesIO(data)), image)
  back = np.zeros_like(image)
  png.decode(data, back)
  np.testing.assert_array_equal(back, image)


@pytest.mark.parametrize("at", [0, 20, 24, 30, 40, 42, 44, 52, 80, -14, -2])
def test_a_png_file_with_another_byte_is_refused(at):
  data = bytearray(png.encode(np.zeros((8, 8, 1), np.uint8)))
  data[at] ^= 1
  with pytest.raises(ValueError, match="no uncompressed PNG file of 8x8x1"):
    png.decode(bytes(data), np.empty((8, 8, 1), np.uint8))


def test_a_compressed_png_file_is_refused():
  file = io.BytesIO()
  Image.fromarray(np.zeros((300, 300), np.uint8)).save(file, "PNG")
  with pytest.raises(ValueError, match="no uncompressed PNG"):
    png.decode(file.getvalue(), np.empty((300, 300, 1), np.uint8))


def test_a_reader_of_class_folders_sees_the_records_and_their_labels(rmt):
  """One folder for each class, in the order of the label ids, as torchvision and Keras read it."""
  with directory.open(rmt) as data:
    for split, count in (("train", 128), ("test", 50)):
      classes = sorted(entry.name for entry in (rmt / split).iterdir())
      assert classes == [str(label) for label in range(10)]
      images, labels = data.splits[split].read(np.arange(count))
      places = {}
      for label, name in enumerate(classes):
        for path in (rmt / split / name).iterdir():
          places[int(path.stem)] = (label, pixels(path))
      assert sorted(places) == list(range(count))
      np.testing.assert_array_equal([places[p][0] for p in range(count)], labels)
      np.testing.assert_array_equal([places[p][1] for p in range(count)], images)


def test_label_folders_sort_by_number_where_there_are_more_than_ten(tmp_path):
  path = tmp_path / "many.npz"
  images = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 3), np.uint8)
  parts = {"train_images": images, "train_labels": np.arange(24) % 12}
  np.savez(path, **parts, test_images=images, test_labels=parts["train_labels"])
  splits = {"train": "train", "test": "test"}
  asked = Request(str(path), PERMUTATION, splits, format="folder", plain_labels=True)
  export.disguise(asked, tmp_path / "out", MASTER)
  names = sorted(entry.name for entry in (tmp_path / "out" / "train").iterdir())
  assert [int(name) for name in names] == list(range(12))
  restore.to_files(directory.open(tmp_path / "out"), MASTER, tmp_path / "back.npz")
  np.testing.assert_array_equal(np.load(tmp_path / "back.npz")["train_images"], images)


def test_it_holds_what_shards_of_the_same_data_set_hold(tmp_path, rmt):
  write(tmp_path / "shards", dtype="uint8", dataset_id=ID)
  with directory.open(tmp_path / "shards") as shards, directory.open(rmt) as data:
    for split in SPLITS:
      rows = np.arange(len(data.splits[split]))[::-1]
      for one, other in zip(
        shards.splits[split].read(rows), data.splits[split].read(rows), strict=True
      ):
        np.testing.assert_array_equal(one, other)
    known, other = shards.manifest.to_dict(), data.manifest.to_dict()
    assert (known["version"], other["version"], other["container"]) == (2, 3, "folder")
    assert known["quantiser"] == other["quantiser"] and known["error"] == other["error"]
    assert "container" not in known


def test_names_follow_the_order_that_the_key_draws(tmp_path):
  """A class of the source lies together there and anywhere here."""
  folder(tmp_path / "data", disguise=PERMUTATION, plain_labels=True)
  order = sources.load("digits", SPLITS["train"]).labels
  stored = {int(p.stem): int(p.parent.name) for p in (tmp_path / "data/train").rglob("*.png")}
  labels = [stored[place] for place in range(128)]
  assert sorted(labels) == sorted(order.tolist()) and labels != order.tolist()


@pytest.mark.parametrize("disguise", [AES, PERMUTATION])
def test_bytes_come_back_exactly(tmp_path, disguise):
  folder(tmp_path / "data", disguise=disguise)
  restore.to_files(directory.open(tmp_path / "data"), MASTER, tmp_path / "back.npz")
  back = np.load(tmp_path / "back.npz")
  for split, part in SPLITS.items():
    true = sources.load("digits", part)
    np.testing.assert_array_equal(back[f"{split}_images"], true.images)
    np.testing.assert_array_equal(back[f"{split}_labels"], true.labels)


def test_rmt_comes_back_within_its_bound(tmp_path, rmt):
  facts = restore.to_files(directory.open(rmt), MASTER, tmp_path / "back.npz")
  error = np.abs(
    np.load(tmp_path / "back.npz")["train_images"].astype(int)
    - sources.load("digits", SPLITS["train"]).images
  )
  assert 0 < error.max() <= facts.error.restored + facts.error.noise + 0.5


class Stop(Exception):
  pass


@pytest.mark.parametrize("steps", [1, 60, 140, 175])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(tmp_path, monkeypatch, rmt, steps):
  real, left = png.encode, [steps]

  def encode(image):
    left[0] -= 1
    if left[0] < 0:
      raise Stop
    return real(image)

  monkeypatch.setattr(png, "encode", encode)
  with pytest.raises(Stop):
    folder(tmp_path / "data")
  assert not (tmp_path / "data" / manifest.FILE).exists()
  monkeypatch.undo()
  # What a power cut leaves of a file that was thought to be written.
  written = sorted((tmp_path / "data").rglob("*.png"))
  if written:
    written[0].write_bytes(b"")
  assert files_of(folder(tmp_path / "data")) == files_of(rmt)


def test_given_again_when_whole_it_changes_nothing(copied, rmt):
  folder(copied)
  assert files_of(copied) == files_of(rmt)


def test_verify_names_every_fault(copied):
  directory.verify(copied)
  first, second, third = sorted(copied.glob("train/*/*.png"))[:3]
  first.write_bytes(first.read_bytes()[:-1] + b"x")
  second.unlink()
  third.unlink()
  third.symlink_to(copied / "README.md")
  (copied / "test" / "3" / "more.png").write_bytes(b"")
  (copied / "test" / "more").mkdir()
  shutil.rmtree(copied / "train" / "9")
  with pytest.raises(ManifestError) as caught:
    directory.verify(copied)
  told = str(caught.value)
  for path, words in (
    (first, "is damaged"),
    (second, "must exist"),
    (third, "must be a regular file, is a symbolic link"),
  ):
    assert f"{path.relative_to(copied)} {words}" in told
  assert "train/9 must be a folder, even an empty one" in told
  for name in ("test/3/more.png", "test/more"):
    assert f"{name} is not in the manifest" in told


def test_a_damaged_or_missing_file_is_not_read(copied):
  with directory.open(copied) as data:
    path = next(copied.glob("train/*/007.png"))
    path.write_bytes(png.encode(np.zeros((8, 8, 1), np.uint8)))
    with pytest.raises(DataError, match=rf"{path.relative_to(copied)} is damaged"):
      data.splits["train"].read(np.array([7]))
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.relative_to(copied)} must exist"):
      data.splits["train"].read(np.array([7]))


def forged(copied, change):
  """Changes the first shard and mends all that needs no key."""
  content = json.loads((copied / manifest.FILE).read_text())
  shard = content["splits"]["train"]["shards"][0]
  data = change((copied / shard["file"]).read_bytes())
  (copied / shard["file"]).write_bytes(data)
  shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
  (copied / manifest.FILE).write_text(json.dumps(content))
  mend(copied)


@pytest.mark.parametrize(
  "change",
  [
    lambda data: data.replace(b"  train/", b"  ../../", 1),
    lambda data: data.replace(b"/000.png", b"/001.png", 1),
    lambda data: b"G" + data[1:],
    lambda data: data.replace(b"  train/", b"  trai/x", 1),
    lambda data: data[:72] + b"\xb2" + data[73:],
    lambda data: data.replace(b"\n", b" ", 1),
  ],
)
def test_a_shard_that_names_anything_else_is_refused(copied, change):
  forged(copied, change)
  with directory.open(copied) as data, pytest.raises(DataError, match="line 1 is no SHA-256"):
    data.splits["train"].read(np.array([0]))
  with pytest.raises(ManifestError, match=r"disguised-train.*: line 1 is no SHA-256"):
    directory.verify(copied)


def test_a_shard_of_another_length_is_refused(copied):
  forged(copied, lambda data: data[:-1])
  with pytest.raises(ManifestError, match="shards that are not a line of 82 bytes a record"):
    directory.open(copied)


def test_a_forged_label_needs_the_key(copied):
  """Without the key it passes, as in shards; the manifest's MAC is what finds it."""
  line = next(copied.glob("disguised-train*00000-of*")).read_bytes()[:82].decode()
  name = line.split()[1]
  other = f"train/{(int(name[6]) + 1) % 10}/000.png"
  os.rename(copied / name, copied / other)
  forged(copied, lambda data: data.replace(name.encode(), other.encode()))
  directory.verify(copied)
  facts = manifest.read(copied)
  with pytest.raises(ManifestError, match="was not written with this key"):
    restore.authenticate(facts, copied, MASTER)


def test_a_manifest_of_version_3_needs_bytes_in_one_or_three_channels(rmt):
  facts = manifest.read(rmt)
  with pytest.raises(ValueError, match="folder of PNG files holds uint8 in 1 or 3 channels"):
    manifest.check(dataclasses.replace(facts, dtype="float32", quantiser=None))


def test_a_request_is_a_folder_too_and_answers_come_back(tmp_path, rmt):
  images = sources.load("digits", "test[:12]").images
  asked = query.Query(images, tuple(f"{i}.png" for i in range(12)))
  facts, _ = query.request(asked, manifest.read(rmt), MASTER, tmp_path / "ask")
  assert facts.container == "folder" and len(list((tmp_path / "ask/query/0").iterdir())) == 12
  directory.verify(tmp_path / "ask")
  with directory.open(tmp_path / "ask") as data:
    stored, _ = data.splits["query"].read(np.arange(12))
  rows = np.eye(10)[stored.reshape(12, -1).sum(1) % 10]
  answer = {"format": "djax-answers", "version": 1, "run": {}, "request": facts.sha256}
  (tmp_path / "a.json").write_text(json.dumps({**answer, "probabilities": rows.tolist()}))
  assert len(query.answers(tmp_path / "ask", tmp_path / "a.json", MASTER).rows) == 12


def test_what_png_files_cannot_hold_is_refused(tmp_path):
  with pytest.raises(ConfigError, match="PNG files hold uint8, got dtype 'float16'"):
    folder(tmp_path / "out", dtype="float16")
  path = tmp_path / "five.npz"
  images, labels = np.zeros((4, 8, 8, 5), np.uint8), np.arange(4) % 2
  images[:2] = 200
  np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
  asked = Request(str(path), PERMUTATION, format="folder")
  with pytest.raises(ConfigError, match="must have 1 or 3 channels, the disguised images have 5"):
    export.disguise(asked, tmp_path / "out", MASTER)
  assert not (tmp_path / "out").exists()


def test_the_verb_writes_it_and_every_other_verb_takes_it(tmp_path, capsys):
  call = caller(capsys)
  key, out = tmp_path / "k", tmp_path / "data"
  assert call("keygen", key, "--no-passphrase")[0] == 0
  flags = ["--source", "digits", "--train-split", "train[:40]", "--test-split", "test[:20]"]
  flags += ["--scheme", "aes", "--block-size", 4, "--key", key, "--out", out]
  refused(call("disguise", *flags, "--format", "folder", "--dtype", "float32"), 2, "PNG files hold")
  assert call("disguise", *flags, "--format", "folder")[0] == 0
  code, told, _ = call("verify", out, "--key", key)
  assert code == 0 and "63 files: lengths and SHA-256" in told
  code, told, _ = call("inspect", out, "--grid", tmp_path / "g.png")
  assert code == 0 and "stored       uint8 in PNG files, exact" in told
  assert "train        40 records in as many PNG files" in told
  assert call("restore", out, "--key", key, "--out", tmp_path / "back")[0] == 0
  refused(call("disguise", *flags), 5, r"made otherwise \(version, container\)")
