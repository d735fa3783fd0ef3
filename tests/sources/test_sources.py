import json
import os
import shutil
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from helpers.fresh import ROOT
from helpers.source_files import arrays, draw, kinds, write_tfds
from PIL import Image

from djax import sources
from djax.errors import ConfigError, DataError


def refused(match, source, split="train", error=DataError, **kwargs):
  """Checks type, exit code and text of a refusal, and that it is one line."""
  with pytest.raises(error, match=match) as caught:
    sources.load(str(source), split, **kwargs)
  assert caught.value.exit_code == {DataError: 4, ConfigError: 2}[error]
  assert "\n" not in str(caught.value)
  return str(caught.value)


def python(code, **env):
  """Runs code in a fresh interpreter and returns its standard output."""
  command = [sys.executable, "-W", "ignore", "-c", code]
  env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
  done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  return done.stdout


# ---------------------------------------------------------------------------------------- digits


def test_digits_are_all_there_once_and_every_fifth_is_test():
  from sklearn import datasets

  digits = datasets.load_digits()
  train, test = sources.load("digits", "train"), sources.load("digits", "test")
  assert train.images.shape == (1438, 8, 8, 1) and test.images.shape == (359, 8, 8, 1)
  assert train.images.dtype == np.uint8 and train.labels.dtype == np.int32
  assert train.class_names == tuple("0123456789")
  np.testing.assert_array_equal(test.labels, digits.target[4::5])
  np.testing.assert_array_equal(train.labels[3:5], digits.target[[3, 5]])
  assert (test.images.min(), test.images.max()) == (0, 255)
  wanted = np.round(digits.images[4] * 255 / 16)
  np.testing.assert_array_equal(test.images[0, :, :, 0], wanted)
  assert wanted.max() > 200


def test_a_slice_of_a_split():
  whole = sources.load("digits", "train")
  part = sources.load("digits", "train[10:30]")
  np.testing.assert_array_equal(part.images, whole.images[10:30])
  np.testing.assert_array_equal(part.labels, whole.labels[10:30])
  assert len(sources.load("digits", "train[:7]").labels) == 7
  assert len(sources.load("digits", "test[350:]").labels) == 9


@pytest.mark.parametrize(
  ("split", "match"),
  [
    ("validation", r"train, test or e\.g\. train\[:1000\] .*, got 'validation'"),
    ("train[:10%]", r"percentages with TFDS sources only\), got 'train\[:10%\]'"),
    ("train[-5:]", "train, test or e.g."),
    ("train+test", "train, test or e.g."),
    ("train ", "train, test or e.g."),
    ("train[5:5]", "must name records that exist: train has 1438"),
    ("train[:0]", "must name records that exist"),
    ("test[:360]", "must name records that exist: test has 359"),
    ("test[400:]", "must name records that exist: test has 359"),
  ],
)
def test_splits_that_cannot_be(split, match):
  refused(match, "digits", split, ConfigError)


def test_repr_shows_shapes_only():
  digits = sources.load("digits", "test")
  assert repr(digits) == str(digits) == "Images(uint8[359, 8, 8, 1], 10 classes)"


@pytest.mark.parametrize("source", ["digits", "x.npz", "mnist"])
def test_image_size_is_for_folders_only(source):
  refused(f"image_size=8 is for folders of images only.*{source}", source, "train", ConfigError,
          image_size=8)  # fmt: skip


def test_image_size_must_not_be_negative():
  refused("image_size must be 0 .* got -1", "./x", "train", ConfigError, image_size=-1)


# ------------------------------------------------------------------------------------------- npz


@pytest.fixture
def npz(tmp_path):
  def save(**changes):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **arrays(**changes))
    return path

  return save


def test_npz_returns_what_was_saved(npz):
  path, saved = npz(), arrays()
  for part in ("train", "test"):
    got = sources.load(str(path), part)
    np.testing.assert_array_equal(got.images, saved[f"{part}_images"])
    np.testing.assert_array_equal(got.labels, saved[f"{part}_labels"][:, 0])
    assert got.labels.dtype == np.int32 and got.class_names == ("0", "1", "2")
  part = sources.load(str(path), "train[2:5]")
  np.testing.assert_array_equal(part.images, saved["train_images"][2:5])
  np.testing.assert_array_equal(part.labels, [2, 0, 1])


def test_npz_grey_images_flat_labels_and_class_names(npz):
  path = npz(sides=(4, 5), train_labels=np.arange(6) % 2, class_names=np.array(["a", "b", "c"]))
  got = sources.load(str(path), "train")
  assert got.images.shape == (6, 4, 5, 1) and got.class_names == ("a", "b", "c")
  assert all(type(name) is str for name in got.class_names)


def test_npz_class_count_covers_both_splits(npz):
  path = npz(train_labels=np.zeros(6, np.int64), test_labels=np.array([0, 1, 4, 1]))
  assert len(sources.load(str(path), "train").class_names) == 5


def test_npz_other_channel_counts_pass(npz):
  assert sources.load(str(npz(sides=(4, 4, 7))), "test").images.shape == (4, 4, 4, 7)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_npz_float_images_become_float32(npz, dtype):
  values = np.linspace(0, 255, 6 * 60).reshape(6, 4, 5, 3).astype(dtype)
  got = sources.load(str(npz(train_images=values)), "train")
  assert got.images.dtype == np.float32 and got.images.dtype.isnative
  np.testing.assert_array_equal(got.images, values.astype(np.float32))


def test_npz_below_home(npz, monkeypatch):
  monkeypatch.setenv("HOME", str(npz().parent))
  assert len(sources.load("~/set.npz", "test").labels) == 4


def floats(index, value, count=6):
  images = np.full((count, 4, 5, 3), 7.0, np.float32)
  images[index] = value
  return images


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    (dict(train_images=np.zeros((6, 4, 5, 3), np.uint16)), r"must be uint8.*uint16.*// 257"),
    (dict(train_images=np.zeros((6, 4, 5, 3), np.int64)), "must be uint8.*int64"),
    (dict(test_images=np.zeros((4, 4, 5, 3), bool)), "test_images: must be uint8.*bool"),
    (dict(train_images=np.array([None] * 6)), "must be uint8.*object"),
    (dict(train_images=floats((3, 0, 0), np.nan)), "3 values are NaN or infinite.* image 3"),
    (dict(train_images=floats((slice(4, 6), 1, 1, 1), np.inf)), "2 values are NaN.* image 4"),
    (dict(train_images=floats((2, 0, 0, 0), -0.5)), "1 values are outside 0..255.* image 2"),
    (dict(train_images=floats((5, 0, 0, 0), 255.5)), "1 values are outside 0..255.* image 5"),
    (
      dict(train_images=floats(slice(None), 0.9)),
      "no value is above 1, .*--scale 1 or --scale 255",
    ),
    (dict(train_images=np.zeros((6, 4), np.uint8)), r"must be \[N, H, W\].*\(6, 4\)"),
    (dict(train_images=np.zeros((6, 0, 5, 3), np.uint8)), "no pixels"),
    (dict(sides=(4, 5, 4)), r"4 channels are not taken, .* may be alpha.*\[\.\.\., :-1\]"),
    (dict(sides=(4, 5, 2)), "2 channels are not taken"),
    (dict(test_images=np.zeros((4, 5, 5, 3), np.uint8)), r"train images are \(4, 5, 3\), but test"),
    (
      dict(train_labels=np.arange(5)),
      r"train_labels: must be integers \[N\], N=6 .* int64 \(5,\)",
    ),
    (dict(train_labels=np.eye(6, dtype=int)), r"must be integers .*, got int64 \(6, 6\)"),
    (dict(train_labels=np.arange(6.0)), "train_labels: must be integers.*float64"),
    (dict(train_labels=np.array([0, 1, -1, 1, -2, 0])), "2 labels are negative.* index 2"),
    (dict(train_labels=np.zeros(6, int), test_labels=np.zeros(4, int)), "2 to 65536.*has 1$"),
    (dict(train_labels=np.arange(6) * 10**9), "2 to 65536 classes.*has 5000000001"),
    (dict(count=0), "train_labels: no images"),
    (dict(test_labels=None), "no array 'test_labels', only train_images, train_labels, test_im"),
    (
      dict(train_images=None, train_image=np.zeros(3)),
      "no array 'train_images', only.*train_image.*Did you mean 'train_image'",
    ),
    (dict(class_names=np.array(["a", "b"])), "class_names must be 3 or more strings.*<U1"),
    (dict(class_names=np.array(["a", "b", "c"], object)), "class_names must be.*object"),
    (dict(class_names=np.arange(3)), "class_names must be 3 or more strings"),
  ],
)
def test_npz_that_do_not_fit(npz, changes, match):
  message = refused(match, npz(**changes))
  assert "set.npz" in message


def test_npz_values_are_checked_in_the_part_asked_for(npz):
  path = npz(train_images=floats((3, 0, 0), np.nan))
  assert len(sources.load(str(path), "train[:3]").labels) == 3
  refused("3 values are NaN.* image 3$", path, "train[2:5]")


def test_npz_damaged_or_missing(npz, tmp_path):
  refused(r"none\.npz: no such file", tmp_path / "none.npz")
  refused(r"tests\.npz: no such file", "./tests.npz")
  whole = npz().read_bytes()
  middle = len(whole) // 8
  flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
  for damaged in (b"", b"junk" * 99, whole[: len(whole) // 2], flipped):
    path = tmp_path / "bad.npz"
    path.write_bytes(damaged)
    assert "pickle" not in refused(r"bad\.npz: not a whole NumPy \.npz archive", path)
  np.save(tmp_path / "one.npy", np.arange(3))
  shutil.move(tmp_path / "one.npy", tmp_path / "one.npz")
  refused("not a whole NumPy .npz archive", tmp_path / "one.npz")
  with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
    archive.writestr("readme.txt", "hello")
  refused("no array 'train_images', only readme.txt", tmp_path / "text.npz")


# ---------------------------------------------------------------------------------------- folder


@pytest.fixture
def folder(tmp_path):
  """Two classes of grey images: 11 cats, 6 dogs."""
  root = tmp_path / "pets"
  for name, count in (("dog", 6), ("cat", 11)):
    for i in range(count):
      draw(root / name / f"{i:02}.png", seed=100 * (name == "dog") + i, mode="L")
  return root


def grey(seed, size=(6, 4)):
  return np.random.default_rng(seed).integers(0, 256, size[::-1], np.uint8)


def test_folder_every_fifth_of_each_class_is_test(folder):
  train, test = sources.load(str(folder), "train"), sources.load(str(folder), "test")
  assert train.class_names == ("cat", "dog")
  assert train.images.shape == (14, 4, 6, 1) and train.images.dtype == np.uint8
  np.testing.assert_array_equal(test.labels, [0, 1, 0])
  for image, seed in zip(test.images, [4, 104, 9], strict=True):
    np.testing.assert_array_equal(image[..., 0], grey(seed))
  np.testing.assert_array_equal(train.labels, [0, 1] * 5 + [0] * 4)
  np.testing.assert_array_equal(train.images[9, ..., 0], grey(105))
  np.testing.assert_array_equal(train.images[13, ..., 0], grey(10))
  part = sources.load(str(folder), "train[2:6]")
  np.testing.assert_array_equal(part.images, train.images[2:6])
  np.testing.assert_array_equal(part.labels, train.labels[2:6])


def test_folder_with_train_and_test(folder, tmp_path):
  root = tmp_path / "split"
  shutil.copytree(folder, root / "train")
  draw(root / "test" / "dog" / "a.PNG", seed=1, mode="L")
  draw(root / "test" / "cat" / "b.png", seed=2, mode="L")
  draw(root / "val" / "cat" / "b.png", seed=2, mode="RGB", size=(9, 9))
  assert len(sources.load(str(root), "train").labels) == 17
  test = sources.load(str(root), "test")
  np.testing.assert_array_equal(test.labels, [0, 1])
  np.testing.assert_array_equal(test.images[1, ..., 0], grey(1))
  draw(root / "test" / "owl" / "b.png", seed=2, mode="L")
  refused("same classes, not so 'owl'", root)


def test_folder_forms_of_the_path(folder, monkeypatch):
  monkeypatch.chdir(folder.parent.parent)
  monkeypatch.setenv("HOME", str(folder.parent))
  inside = f"{folder.parent.name}/pets"
  for source in (inside, f"./{inside}", "~/pets", str(folder)):
    assert len(sources.load(source, "test").labels) == 3
  monkeypatch.chdir(folder.parent)
  refused(r"not prepared.*For the folder of images write \./pets", "pets", data_dir="none")


def test_folder_hidden_entries_and_files_beside_the_classes_are_left_out(folder):
  (folder / "cat" / ".DS_Store").write_bytes(b"x")
  (folder / ".thumbs").mkdir()
  (folder / "README.txt").write_text("hello")
  assert len(sources.load(str(folder), "train").labels) == 14


def test_folder_grey_and_colour_become_colour_in_both_splits(folder):
  colour = draw(folder / "cat" / "zz.png", seed=5, mode="RGB")
  train, test = sources.load(str(folder), "train"), sources.load(str(folder), "test")
  assert train.images.shape[1:] == test.images.shape[1:] == (4, 6, 3)
  np.testing.assert_array_equal(train.images[-1], colour)
  np.testing.assert_array_equal(test.images[0], np.repeat(grey(4)[..., None], 3, -1))


def test_folder_palette_becomes_colour_and_one_bit_becomes_grey(tmp_path):
  for i, name in enumerate(("a", "b")):
    draw(tmp_path / "bits" / name / "x.png", i, mode="1")
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    (tmp_path / "palette" / name).mkdir(parents=True)
    image.save(tmp_path / "palette" / name / "x.png")
  bits = sources.load(f"{tmp_path}/bits", "train").images
  assert bits.shape == (2, 4, 6, 1) and set(np.unique(bits)) == {0, 255}
  palette = sources.load(f"{tmp_path}/palette", "train").images
  np.testing.assert_array_equal(palette[0, 0], [[10, 20, 30], [40, 50, 60]])


def test_folder_jpeg_and_its_orientation(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to view
  gradient = np.repeat(np.arange(0, 240, 15, dtype=np.uint8)[None], 8, 0)  # dark left, bright right
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    Image.fromarray(gradient).save(tmp_path / name / "x.jpg", quality=95, exif=exif)
    Image.fromarray(gradient.T).save(tmp_path / name / "y.JPEG", quality=95)
  got = sources.load(str(tmp_path), "train").images[..., 0].astype(int)
  assert got.shape == (4, 16, 8)
  for image in got:  # dark above, bright below
    np.testing.assert_allclose(image, gradient.T, atol=6)


def test_folder_orientation_behind_the_pixels_is_refused_where_it_changes_the_size(folder):
  exif = Image.Exif()
  exif[0x0112] = 6
  path = folder / "dog" / "late.png"
  Image.fromarray(grey(0)).save(path, exif=exif)
  whole = path.read_bytes()
  start = whole.index(b"eXIf") - 4
  stop = start + 12 + int.from_bytes(whole[start : start + 4])
  end = whole.index(b"IEND") - 4
  assert stop < whole.index(b"IDAT")
  path.write_bytes(whole[:start] + whole[stop:end] + whole[start:stop] + whole[end:])
  refused(r"late\.png: is 4x6 upright, but 6x4 by the head of the file", folder)
  assert sources.load(str(folder), "train", image_size=4).images.shape == (15, 4, 4, 1)


def test_folder_resized(folder):
  draw(folder / "cat" / "zz.png", seed=5, mode="L", size=(40, 20))
  message = refused(r"must have one size.*--config\.data\.image_size=N", folder)
  assert "17 are 6x4, 1 of another size" in message and "zz.png with 40x20" in message
  got = sources.load(str(folder), "train", image_size=5)
  assert got.images.shape == (15, 5, 5, 1)
  image = Image.fromarray(grey(5, (40, 20))).resize((5, 5), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(got.images[-1, ..., 0], np.asarray(image))
  assert got.images[-1].std() < 40  # 73 without antialiasing


def test_folder_size_is_that_of_both_splits(folder):
  draw(folder / "cat" / "04.png", mode="L", size=(9, 9))  # a test image
  refused("must have one size", folder, "train")


@pytest.mark.parametrize(
  ("mode", "options", "match"),
  [
    ("RGBA", {}, "has an alpha channel or transparency"),
    ("LA", {}, "has an alpha channel or transparency"),
    ("P", {"transparency": 0}, "has an alpha channel or transparency"),
    ("L", {"transparency": 0}, "has an alpha channel or transparency"),
    ("I;16", {}, "more than 8 bits a channel"),
    ("CMYK", {}, "colour mode CMYK is not taken. Save it as RGB"),
  ],
)
def test_folder_kinds_of_images_that_are_refused(folder, mode, options, match):
  image = Image.new("L", (6, 4), 9)
  image = Image.new(mode, (6, 4)) if mode.startswith("I") else image.convert(mode)
  path = folder / "dog" / ("odd.jpg" if mode == "CMYK" else "odd.png")
  image.save(path, **options)
  assert str(path) in refused(match, folder)


def test_folder_16_bit_colour_is_refused(folder):
  import struct
  import zlib

  def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

  rows = b"".join(b"\0" + bytes(6 * 6) for _ in range(4))
  header = struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0)
  png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
  (folder / "dog" / "deep.png").write_bytes(png + chunk(b"IEND", b""))
  refused(r"deep\.png: more than 8 bits a channel", folder)


def test_folder_damaged_files_are_named(folder):
  path = folder / "dog" / "bad.png"
  noise = draw(path, seed=3, mode="L", size=(6, 4)).tobytes()
  whole = path.read_bytes()
  for damaged in (b"", b"hello", noise, whole[:20]):
    path.write_bytes(damaged)
    refused(r"bad\.png: cannot be read as PNG or JPEG", folder)
  path.write_bytes(whole[: len(whole) - 30])
  refused(r"bad\.png: damaged image", folder)
  Image.new("L", (6, 4)).save(path, format="GIF")
  refused(r"bad\.png: cannot be read as PNG or JPEG", folder)
  path.unlink()
  Image.fromarray(grey(0, (64, 48))).save(folder / "dog" / "half.jpg")
  half = (folder / "dog" / "half.jpg").read_bytes()
  (folder / "dog" / "half.jpg").write_bytes(half[: len(half) // 2])
  refused(r"half\.jpg: damaged image", folder, image_size=4)


def test_folder_one_damaged_image_stops_the_others(folder, monkeypatch):
  assert len(sources.load(str(folder), "train").labels) == 14
  path = folder / "cat" / "00.png"
  path.write_bytes(path.read_bytes()[:-30])
  decode, seen = sources.folder.image_files.decode, []

  def slow(path, *options):
    seen.append(path)
    image = decode(path, *options)
    time.sleep(0.1)
    return image

  monkeypatch.setattr(sources.folder.image_files, "decode", slow)
  monkeypatch.setattr(os, "cpu_count", lambda: 1)
  refused("00.png: damaged image", folder)
  assert 1 <= len(seen) <= 4


@pytest.mark.parametrize("factor", [1.5, 3])
def test_folder_gigantic_images_are_refused_unread(folder, monkeypatch, factor):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
  draw(folder / "dog" / "huge.png", mode="L", size=(int(100 * factor), 1))
  refused(r"huge\.png: cannot be read.*exceeds limit", folder, image_size=4)


def test_folders_that_do_not_fit(folder, tmp_path):
  refused("none: no such folder of images", tmp_path / "none")
  (tmp_path / "empty").mkdir()
  refused("empty: must hold a subfolder for each.*found none", tmp_path / "empty")
  (tmp_path / "one" / "cat").mkdir(parents=True)
  refused("one: must hold a subfolder for each of two.*found cat", tmp_path / "one")
  shutil.copytree(folder, tmp_path / "half" / "train")
  refused(r"half: must hold .*below train and test\); found train", tmp_path / "half")
  shutil.copytree(folder, tmp_path / "half" / "Val")
  assert len(sources.load(str(tmp_path / "half"), "train").labels) == 17
  refused("split must be train or .*, got 'test'", tmp_path / "half", "test", ConfigError)
  (folder / "emu").mkdir()
  refused("emu: no images in this class", folder)
  (folder / "emu").rmdir()
  loose = draw(folder / "loose.png")
  assert loose.size
  refused(r"loose\.png: an image must lie in the subfolder of its class", folder)
  (folder / "loose.png").unlink()
  (folder / "cat" / "list.doc").write_text("x")
  refused(r"list\.doc: not a \.png, \.jpg or \.jpeg file", folder)
  (folder / "cat" / "list.doc").unlink()
  (folder / "cat" / "more.png").mkdir()
  refused(r"more\.png: is a folder among image files\. Move it out of cat", folder)
  (folder / "cat" / "more.png").rmdir()
  assert len(sources.load(str(folder), "train").labels) == 14


def test_folder_split_without_files(tmp_path):
  for name in ("a", "b"):
    draw(tmp_path / name / "x.png")
    draw(tmp_path / name / "y.png")
  told = "without a test folder every fifth .* must have 5; the largest has 2. Add images, or make"
  refused(told, tmp_path, "test")
  assert len(sources.load(str(tmp_path), "train").labels) == 4


# ------------------------------------------------------------------------------------------ TFDS


def change_info(folder, **changes):
  path = folder / "dataset_info.json"
  info = {**json.loads(path.read_text()), **changes}
  path.write_text(json.dumps({key: x for key, x in info.items() if x is not None}))


def test_tfds_returns_what_was_written(tmp_path, monkeypatch):
  monkeypatch.setattr(sources.tfds, "_CHUNK", 3)  # several reads, the last one short
  _, images = write_tfds(tmp_path)
  train = sources.load("tiny", "train", data_dir=str(tmp_path))
  np.testing.assert_array_equal(train.images, images[:7])
  np.testing.assert_array_equal(train.labels, np.arange(7) % 3)
  assert train.images.dtype == np.uint8 and train.labels.dtype == np.int32
  assert train.class_names == ("ant", "bee", "cow")
  for split, wanted in (
    ("test", [7, 8, 9]),
    ("train[2:5]", [2, 3, 4]),
    ("train[-2:]+test[:1]", [5, 6, 7]),
    ("train[:50%]", [0, 1, 2, 3]),
  ):
    got = sources.load("tiny", split, data_dir=str(tmp_path))
    np.testing.assert_array_equal(got.images, images[wanted])


@pytest.mark.parametrize("channels", [1, 3])
def test_tfds_image_files_and_other_features(tmp_path, channels):
  image = kinds().Image(shape=(6, 5, channels), dtype=np.uint8)
  _, images = write_tfds(tmp_path, image=image, file=kinds().Text())
  got = sources.load("tiny", "test", data_dir=str(tmp_path))
  np.testing.assert_array_equal(got.images, images[7:])
  np.testing.assert_array_equal(got.labels, [1, 2, 0])


def test_tfds_palette_files_are_decoded_to_colour(tmp_path, monkeypatch):
  fromarray = Image.fromarray
  monkeypatch.setattr(Image, "fromarray", lambda x: fromarray(x).quantize(8))
  _, images = write_tfds(tmp_path, image=kinds().Image(shape=(4, 5, 3), dtype=np.uint8))
  got = sources.load("tiny", "train", data_dir=str(tmp_path))
  wanted = [np.asarray(fromarray(image).quantize(8).convert("RGB")) for image in images[:7]]
  np.testing.assert_array_equal(got.images, wanted)


def test_tfds_without_supervised_keys_goes_by_the_usual_names(tmp_path):
  folder, images = write_tfds(tmp_path)
  change_info(folder, supervisedKeys=None)
  got = sources.load("tiny", "test", data_dir=str(tmp_path))
  np.testing.assert_array_equal(got.images, images[7:])


def test_tfds_versions_and_configs(tmp_path, monkeypatch):
  for version in ("9.0.0", "10.0.0", "10.0.0.incompleteXYZ"):
    folder, _ = write_tfds(tmp_path, version)
    change_info(folder, version=version[:6].rstrip("."))
  write_tfds(tmp_path, "2.0.0", name="many")
  (tmp_path / "many").rename(tmp_path / "big-1.0")
  (tmp_path / "many").mkdir()
  (tmp_path / "big-1.0").rename(tmp_path / "many" / "big-1.0")
  for source, wanted in (
    ("tiny", "tiny/10.0.0"),
    ("tiny:9.0.0", "tiny/9.0.0"),
    ("many/big-1.0", "many/big-1.0/2.0.0"),
    ("many/big-1.0:2.0.0", "many/big-1.0/2.0.0"),
  ):
    assert sources.tfds._find_tfds(source, str(tmp_path))[0] == str(tmp_path / wanted)
  refused(r"not prepared.*There: 9\.0\.0, 10\.0\.0\.", "tiny:1.0.0", data_dir=str(tmp_path))
  refused(r"not prepared.*There: many/big-1\.0\.", "many", data_dir=str(tmp_path))
  refused("'many/small' is not prepared", "many/small", data_dir=str(tmp_path))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  assert len(sources.load("tiny:9.0.0", "test").labels) == 3
  monkeypatch.delenv("TFDS_DATA_DIR")
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "tensorflow_datasets").symlink_to(tmp_path)
  assert len(sources.load("tiny", "test").labels) == 3
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
  refused("not prepared in .*none ", "tiny")
  assert len(sources.load("tiny", "test", data_dir="~").labels) == 3


@pytest.mark.parametrize(
  ("source", "hint"),
  [
    ("", ""),
    ("MNIST", r" Did you mean 'mnist'\?"),
    ("mnist:3", r" Did you mean 'mnist'\?"),
    ("mnist:3.0.1/x", r" Did you mean 'mnist'\?"),
    ("cifar-10", r" Did you mean 'cifar10'\?"),
    ("hf:user/pets", ""),
    ("mnist ", r" Did you mean 'mnist'\?"),
    ("a/b/c", ""),
    ("name/../../etc", ""),
  ],
)
def test_names_that_are_no_source(source, hint):
  text = r"name, name:1\.2\.3, name/config, name/config:1\.2\.3; got "
  refused(f"{text}'{source}'.{hint}$", source, "train", ConfigError)


def test_tfds_not_prepared_says_how_to(tmp_path):
  message = refused("data set 'mnist' is not prepared in ", "mnist", data_dir=str(tmp_path))
  assert f"python -m djax prepare mnist --data-dir {tmp_path}" in message
  assert "TFDS_DATA_DIR, --config.data.data_dir or --data-dir" in message
  refused("Did you mean 'digits'", "digit", data_dir=str(tmp_path))


def test_tfds_not_prepared_is_told_at_once_and_without_importing_tfds(tmp_path):
  out = python(f"""
import sys, time
from djax import sources
start = time.monotonic()
try:
  sources.load("mnist", "train", data_dir={str(tmp_path)!r})
except Exception as error:
  print(type(error).__name__, time.monotonic() - start, *sys.modules)
""")
  name, seconds, *modules = out.split()
  assert name == "DataError" and float(seconds) < 1
  assert "djax.sources" in modules
  assert not {"tensorflow_datasets", "tensorflow", "jax", "flax"} & set(modules)


LOADED = """
import socket, sys
def no_network(*args, **kwargs):
  raise AssertionError("a look at the network")
socket.getaddrinfo = socket.socket.connect = no_network
{more}
from djax import sources
got = sources.load({source!r}, "test", data_dir={data_dir!r})
print(len(got.labels), *sys.modules)
"""


@pytest.mark.parametrize("more", ["", "import jax"])
def test_tfds_is_read_without_tensorflow_jax_or_network(tmp_path, more):
  write_tfds(tmp_path, image=kinds().Image(shape=(4, 5, 3), dtype=np.uint8))
  out = python(LOADED.format(source="tiny", data_dir=str(tmp_path), more=more))
  count, *modules = out.split()
  assert count == "3" and "tensorflow_datasets" in modules
  assert not {"tensorflow", "flax"} & set(modules)
  assert ("jax" in modules) == bool(more)  # so that the check above can fail


def test_other_sources_import_little(tmp_path):
  count, *modules = python(LOADED.format(source="digits", data_dir="", more="")).split()
  assert count == "359" and "sklearn" in modules
  assert not {"tensorflow_datasets", "tensorflow", "jax"} & set(modules)


@pytest.mark.parametrize(
  ("split", "match"),
  [
    ("val", r"split 'val' of data set 'tiny' .*Should be one of \['train', 'test'\]"),
    ("train[:8]", "split .* incompatible with 7 examples"),
    ("train[3:3]", "split .*"),
    ("train[", "split .*Error parsing split"),
  ],
)
def test_tfds_splits_that_cannot_be(tmp_path, split, match):
  write_tfds(tmp_path)
  refused(match, "tiny", split, ConfigError, data_dir=str(tmp_path))


@pytest.mark.parametrize(
  ("features", "match"),
  [
    (lambda k: dict(image=k.Tensor(shape=(4, 5, 3), dtype=np.float32)), "uint8.*got float32"),
    (lambda k: dict(image=k.Image(shape=(None, None, 3), dtype=np.uint8)), r"\(None, None, 3\)"),
    (
      lambda k: dict(image=k.Tensor(shape=(4, 5), dtype=np.uint8)),
      r"fixed shape.*got uint8 \(4, 5",
    ),
    (lambda k: dict(image=k.Image(shape=(4, 5, 4), dtype=np.uint8)), "4 channels are not taken"),
    (lambda k: dict(label=k.Scalar(np.int64)), "'label' must be a class label, got Scalar"),
    (lambda k: dict(label=k.ClassLabel(num_classes=1), labels=[0] * 10), "2 to 65536.*has 1$"),
    (lambda k: dict(labels=[0, 1, -1, 2, 0, 1, -1, 0, 0, 0]), "2 labels are negative.* index 2"),
  ],
)
def test_tfds_features_that_do_not_fit(tmp_path, features, match):
  write_tfds(tmp_path, **features(kinds()))
  refused(match, "tiny", data_dir=str(tmp_path))


def test_tfds_other_keys_are_named(tmp_path):
  folder, _ = write_tfds(tmp_path)
  text = (folder / "features.json").read_text()
  (folder / "features.json").write_text(text.replace('"label":', '"target":'))
  refused("no whole set of images and labels .*label", "tiny", data_dir=str(tmp_path))


def test_tfds_stored_otherwise(tmp_path):
  folder, _ = write_tfds(tmp_path)
  for stored_as in ("tfrecord", "riegeli", None):
    change_info(folder, fileFormat=stored_as)
    message = refused(
      f"is stored as {stored_as or 'tfrecord'}, not array_record", "tiny", data_dir=str(tmp_path)
    )
    assert f"python -m djax prepare tiny --data-dir {tmp_path}" in message


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fileFormat": "array_record", "splits": 3}'])
def test_tfds_damaged_info(tmp_path, text):
  folder, _ = write_tfds(tmp_path)
  (folder / "dataset_info.json").write_text(text)
  refused("'tiny' in .*(info.json is damaged|no whole set)", "tiny", data_dir=str(tmp_path))


@pytest.mark.parametrize("text", [None, "", "{}"])
def test_tfds_damaged_features(tmp_path, text):
  folder, _ = write_tfds(tmp_path)
  (folder / "features.json").unlink()
  if text is not None:
    (folder / "features.json").write_text(text)
  refused("no whole set of images and labels", "tiny", data_dir=str(tmp_path))


def test_tfds_damaged_records(tmp_path):
  folder, _ = write_tfds(tmp_path)
  path = folder / "tiny-train.array_record-00000-of-00001"
  whole = path.read_bytes()
  flipped = whole[:200] + bytes([whole[200] ^ 255]) + whole[201:]
  for damaged in (b"", b"junk" * 50, whole[: len(whole) // 2], flipped):
    path.write_bytes(damaged)
    refused("'train' is damaged in or after record 0 ", "tiny", data_dir=str(tmp_path))
  path.unlink()
  refused("'train' is damaged in or after record 0 .*No such file", "tiny", data_dir=str(tmp_path))
  assert len(sources.load("tiny", "test", data_dir=str(tmp_path)).labels) == 3


def test_tfds_fewer_records_than_promised(tmp_path, monkeypatch):
  monkeypatch.setattr(sources.tfds, "_CHUNK", 4)
  folder, _ = write_tfds(tmp_path)
  path = folder / "dataset_info.json"
  path.write_text(path.read_text().replace('"7"', '"12"'))
  refused("'train' is damaged in or after record 4 ", "tiny", data_dir=str(tmp_path))


def test_tfds_images_of_another_size_than_promised(tmp_path):
  folder, _ = write_tfds(tmp_path, image=kinds().Image(shape=(4, 5, 3), dtype=np.uint8))
  path = folder / "features.json"
  path.write_text(path.read_text().replace('"5"', '"6"'))
  refused("'train' is damaged in or after record 0 ", "tiny", data_dir=str(tmp_path))


@pytest.mark.parametrize(
  ("name", "sides", "first", "count"),
  [
    ("mnist", (28, 28, 1), [4, 1, 0, 7, 8], 10000),
    ("cifar10", (32, 32, 3), [7, 8, 4, 4, 6], 10000),
  ],
)
def test_real_data(tfds_dir, name, sides, first, count):
  if not (tfds_dir / name).is_dir():
    pytest.skip(f"needs {name} prepared in TFDS_DATA_DIR")
  train = sources.load(name, "train[:100]")
  assert train.images.shape == (100, *sides) and train.labels[:5].tolist() == first
  test = sources.load(name, "test", data_dir=str(tfds_dir))
  assert test.images.shape == (count, *sides) and len(test.class_names) == 10
  if name == "cifar10":
    assert test.class_names[7] == "horse"
    assert np.bincount(test.labels).tolist() == [1000] * 10
  else:
    assert np.bincount(test.labels)[:3].tolist() == [980, 1135, 1032]


def test_real_data_equals_what_tfds_decodes(tfds_dir):
  import tensorflow_datasets as tfds

  if not (tfds_dir / "cifar10").is_dir():
    pytest.skip("needs cifar10 prepared in TFDS_DATA_DIR")
  got = sources.load("cifar10", "test[5000:5050]", data_dir=str(tfds_dir))
  folder = next((tfds_dir / "cifar10").iterdir())
  oracle = tfds.builder_from_directory(folder).as_data_source(split="test[5000:5050]")
  assert len(oracle) == 50
  for image, label, record in zip(got.images, got.labels, oracle, strict=True):
    np.testing.assert_array_equal(image, record["image"])
    assert label == record["label"]
