"""Sources read in parts: the same records as ``load``, in flat memory."""

import hashlib
import inspect
import pathlib
import shutil
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from helpers.descriptors import opened
from helpers.source_files import arrays, draw, kinds, write_tfds
from PIL import Image

from djax import sources
from djax.errors import ConfigError, DataError

SAVERS = {"stored": np.savez, "compressed": np.savez_compressed}


def make_digits(root):
  return "digits"


def make_npz(save, order="C", dtype=np.uint8):
  def make(root):
    saved = arrays(count=53)
    saved = {**saved, "train_images": saved["train_images"].astype(dtype, order=order)}
    save(root / "secret.npz", **saved)
    return str(root / "secret.npz")

  return make


def make_folder(root):
  for i in range(60):
    draw(root / "secret" / ("cat" if i % 3 else "dog") / f"{i:02}.png", seed=i, size=(7, 4))
  return f"{root}/secret"


def make_tfds(root, name="tiny"):
  write_tfds(root, name=name, image=kinds().Image(shape=(4, 5, 3), dtype=np.uint8))
  return name


MAKERS = {
  "digits": make_digits,
  "stored": make_npz(np.savez),
  "compressed": make_npz(np.savez_compressed),
  "floats": make_npz(np.savez_compressed, dtype=">f8"),
  "stored-fortran": make_npz(np.savez, "F"),
  "compressed-fortran": make_npz(np.savez_compressed, "F", np.float32),
  "folder": make_folder,
  "tfds": make_tfds,
}
NAMES = {"digits": "digits", "folder": "folder", "tfds": "tiny:1.0.0"}  # the others: npz


@pytest.fixture(params=MAKERS)
def made(request, tmp_path):
  """A source of every kind: its kind, itself, its data_dir."""
  return request.param, MAKERS[request.param](tmp_path), str(tmp_path)


def same(got, wanted):
  np.testing.assert_array_equal(got.images, wanted.images, strict=True)
  np.testing.assert_array_equal(got.labels, wanted.labels, strict=True)
  assert got.class_names == wanted.class_names


def in_parts(records, sizes):
  """Reads all records in parts whose sizes go round."""
  parts, start = [], 0
  while start < len(records):
    stop = min(start + sizes[len(parts) % len(sizes)], len(records))
    parts.append(records.read(start, stop))
    assert len(parts[-1].images) == len(parts[-1].labels) == stop - start
    start = stop
  return sources.Images(
    np.concatenate([part.images for part in parts]),
    np.concatenate([part.labels for part in parts]),
    parts[0].class_names,
  )


# ------------------------------------------------------------------------------------- every kind


@pytest.mark.parametrize("split", ["train", "train[2:5]", "train[1:]"])
def test_parts_make_up_what_load_returns(made, split):
  _, source, data_dir = made
  wanted = sources.load(source, split, data_dir=data_dir)
  with sources.open(source, split, data_dir=data_dir) as records:
    assert len(records) == len(wanted.labels)
    assert records.image_shape == wanted.images.shape[1:]
    assert records.dtype == wanted.images.dtype and isinstance(records.dtype, np.dtype)
    assert records.class_names == wanted.class_names
    same(in_parts(records, (3, 1, 7)), wanted)
    same(in_parts(records, (len(records),)), wanted)


def test_a_slice_holds_those_records_of_the_split(made):
  _, source, data_dir = made
  whole = sources.load(source, "train", data_dir=data_dir)
  with sources.open(source, "train[2:6]", data_dir=data_dir) as records:
    part = records.read(1, 3)
  np.testing.assert_array_equal(part.images, whole.images[3:5])
  np.testing.assert_array_equal(part.labels, whole.labels[3:5])
  assert not np.array_equal(part.images, whole.images[1:3])


@pytest.mark.parametrize("split", ["train", "train[:7]"])
def test_parts_in_any_order(made, split):
  _, source, data_dir = made
  whole = sources.load(source, "train", data_dir=data_dir)
  with sources.open(source, split, data_dir=data_dir) as records:
    for start, stop in ((4, 6), (0, 2), (5, 7), (1, 2), (1, 2), (0, len(records))):
      part = records.read(start, stop)
      np.testing.assert_array_equal(part.images, whole.images[start:stop])
      np.testing.assert_array_equal(part.labels, whole.labels[start:stop])
    records.close()
    np.testing.assert_array_equal(records.read(2, 4).images, whole.images[2:4])


def test_records_that_do_not_exist(made):
  _, source, data_dir = made
  with sources.open(source, "train", data_dir=data_dir) as records:
    count = len(records)
    for start, stop in ((0, count + 1), (-1, 2), (-count, -1), (count, count + 1), (9**9, 2)):
      with pytest.raises(IndexError, match=rf"read: needs 0 <= .* <= {count}, got start={start}, "):
        records.read(start, stop)
    for start, stop in ((3, 3), (4, 2)):
      with pytest.raises(ValueError, match=rf"read: needs 0 <= .* <= {count}, got start={start}, "):
        records.read(start, stop)
    for rows in ([0, count], [-1], [-1, 0], [count + 5]):
      words = rf"take: needs rows in 0\.\.{count - 1}, got {min(rows)}\.\.{max(rows)}; none counts"
      with pytest.raises(IndexError, match=words):
        records.take(np.array(rows))
    with pytest.raises(IndexError, match="integer rows, got float64"):
      records.take(np.array([0.5]))
    for rows in ([], [1, 0], [1, 1]):
      with pytest.raises(ValueError, match=r"take: needs (one row or more|rising rows)"):
        records.take(np.array(rows, np.int64))


def test_names_and_repr_hold_no_path(made, tmp_path):
  kind, source, data_dir = made
  with sources.open(source, "test", data_dir=data_dir) as records:
    assert records.name == NAMES.get(kind, "npz")
    shown = repr(records) + repr(str(records)) + records.name
    assert shown.startswith(f"Records('{records.name}', ") and "classes)" in shown
    assert "secret" not in shown and tmp_path.name not in shown and "/" not in shown
    assert tmp_path.name not in " ".join(name for name, _ in records.files)


def test_files_change_where_the_source_does(made):
  kind, source, data_dir = made
  with sources.open(source, "train", data_dir=data_dir) as records:
    files = records.files

  def digest():
    hashed = [(name, hashlib.sha256(path.read_bytes()).digest()) for name, path in files]
    return hashlib.sha256(repr(hashed).encode()).digest()

  assert list(files) == sorted(files) and (len(files) > 0) == (kind != "digits")
  before = digest()
  assert before == digest()
  for _, path in files:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert digest() != before
    path.write_bytes(whole)
  assert before == digest()


@pytest.mark.skipif(not pathlib.Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_files_are_closed(made):
  _, source, data_dir = made

  with warnings.catch_warnings():
    warnings.simplefilter("error", ResourceWarning)
    with sources.open(source, "train", data_dir=data_dir) as records:
      assert not opened(data_dir)  # a fork before the first read shares no position in a file
      records.read(0, 2)
      records.read(3, 5)
      assert opened(data_dir).total() <= 1
    assert not opened(data_dir)
    sources.load(source, "train[:3]", data_dir=data_dir)
    assert not opened(data_dir)


def test_open_refuses_what_load_refuses(tmp_path):
  for source, split, error in (
    ("digits", "train[5:5]", ConfigError),
    ("digit", "train", DataError),
    ("MNIST", "train", ConfigError),
    (f"{tmp_path}/none", "train", DataError),
    (f"{tmp_path}/none.npz", "train", DataError),
  ):
    messages = []
    for function in (sources.load, sources.open):
      with pytest.raises(error) as caught:
        function(source, split, data_dir=str(tmp_path))
      messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_open_takes_the_arguments_of_load():
  parameters = [inspect.signature(f).parameters for f in (sources.load, sources.open)]
  assert parameters[0] == parameters[1]


# ------------------------------------------------------------------------------------------ memory


def peak_of(records, size, stop):
  """Returns the most memory held, in bytes, while all records are read in parts, and their sum."""
  tracemalloc.start()
  try:
    total = 0
    for start in range(0, stop, size):
      total += int(records.read(start, start + size).images.sum(dtype=np.int64))
    return tracemalloc.get_traced_memory()[1], total
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_npz_memory_is_that_of_a_part(tmp_path, save, dtype):
  peaks = []
  for count in (512, 4096):
    values = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8) // 32 * 32
    images = values.astype(dtype)
    save(tmp_path / "set.npz", **arrays(count, (16, 16, 3), train_images=images))
    with sources.open(f"{tmp_path}/set.npz", "train") as records:
      peak_of(records, 128, 512)  # imports and caches
      peak, total = peak_of(records, 128, count)
    assert total == values.sum(dtype=np.int64)
    peaks.append(peak)
  assert images[:128].nbytes < peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_npz_memory_in_fortran_order(tmp_path, save):
  images = np.random.default_rng(0).integers(0, 256, (16384, 16, 16, 1), np.uint8)
  images = np.asfortranarray(images)
  save(tmp_path / "set.npz", **arrays(16384, (16, 16, 1), train_images=images))
  with sources.open(f"{tmp_path}/set.npz", "train") as records:
    peak, total = peak_of(records, 512, 1024)
  assert total == images[:1024].sum(dtype=np.int64)
  assert images[:512].nbytes < peak < images.nbytes / 3


def test_memory_of_a_reader_that_holds_everything_would_show(tmp_path):
  class Loads:
    def read(self, start, stop):
      images = sources.load(source, "train").images[start:stop]
      return sources.Images(images, np.zeros(stop - start), ())

  peaks = []
  for count in (512, 4096):
    source = str(tmp_path / f"{count}.npz")
    images = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)
    np.savez(source, **arrays(count=count, sides=(16, 16, 3), train_images=images))
    peaks.append(peak_of(Loads(), 128, 512)[0])
  assert peaks[1] > 3 * peaks[0]


def test_npz_parts_are_read_forwards_only(tmp_path, monkeypatch):
  opened = []
  member = zipfile.ZipFile.open

  def spy(self, name, *args, **kwargs):
    opened.append(str(name))
    return member(self, name, *args, **kwargs)

  for kind in SAVERS:
    with sources.open(make_npz(SAVERS[kind])(tmp_path), "train") as records:
      monkeypatch.setattr(zipfile.ZipFile, "open", spy)
      for start in (0, 5, 20, 40):
        records.read(start, start + 5)
      assert opened == ["train_images.npy"]
      records.read(0, 5)
      assert opened == ["train_images.npy"] * 2
    monkeypatch.undo()
    opened.clear()


def test_folder_decodes_only_what_is_asked_for(tmp_path, monkeypatch):
  decode, seen = sources.folder.image_files.decode, []
  monkeypatch.setattr(
    sources.folder.image_files, "decode", lambda *args: seen.append(args[0]) or decode(*args)
  )
  with sources.open(make_folder(tmp_path), "train[2:]") as records:
    assert seen == []
    records.read(3, 8)
    assert sorted(seen) == sorted(path for _, path in records.files if path in seen)
    assert len(seen) == 5


def test_tfds_reads_only_what_is_asked_for(tmp_path, monkeypatch):
  with sources.open(make_tfds(tmp_path), "train", data_dir=str(tmp_path)) as records:
    taken = records._records.data_source.__getitems__
    asked = []

    def spy(keys):
      asked.extend(keys)
      return taken(keys)

    monkeypatch.setattr(records._records.data_source, "__getitems__", spy)
    records.read(2, 6)
    assert asked == [2, 3, 4, 5]


# ------------------------------------------------------------------------------------------ damage


def refused(match, function, *args, error=DataError, **kwargs):
  with pytest.raises(error, match=match) as caught:
    function(*args, **kwargs)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_folder_opens_by_headers_and_refuses_damaged_pixels_when_read(tmp_path):
  source = make_folder(tmp_path)
  with sources.open(source, "train") as records:
    whole = records.read(0, len(records))
    name, path = records.files[0]
    damaged = path.read_bytes()
    path.write_bytes(damaged[: len(damaged) - 30])
    at = next(i for i, (x, _) in enumerate(records._records) if x == path)
  message = refused("damaged image", sources.load, source, "train")
  with sources.open(source, "train") as records:
    assert records.files[0] == (name, path)
    assert refused("damaged image", records.read, at, at + 1) == message
    same_part = records.read(at + 1, at + 4)
  np.testing.assert_array_equal(same_part.images, whole.images[at + 1 : at + 4])


def test_folder_image_that_changed_its_size_since(tmp_path):
  with sources.open(make_folder(tmp_path), "train") as records:
    path = records._records[5][0]
    draw(path, size=(9, 9))
    refused(f"{path}: is .* upright, but .* by the head", records.read, 4, 8)
    records._records[5][0].unlink()
    refused(f"{path}: cannot be read .*No such file", records.read, 4, 8)
    assert len(records.read(0, 5).labels) == 5


@pytest.mark.parametrize("kind", [x for x in MAKERS if "stored" in x or "compressed" in x])
def test_npz_flipped_byte_is_found_by_whoever_reads_all(tmp_path, kind):
  images = np.random.default_rng(0).integers(0, 256, (53, 16, 16, 3), np.uint8)
  images = np.asarray(images, order="F" if "fortran" in kind else "C")
  path = tmp_path / "secret.npz"
  saved = arrays(count=53, sides=(16, 16, 3), train_images=images)
  SAVERS[kind.partition("-")[0]](path, **saved)
  source, whole = str(path), path.read_bytes()
  with zipfile.ZipFile(path) as archive:
    info = archive.getinfo("train_images.npy")
  at = info.header_offset + info.compress_size // 2
  path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
  for split in ("train", "train[:5]", "train[7:9]"):
    message = refused("not a whole NumPy .npz archive", sources.load, source, split)
    with sources.open(source, split) as records:
      assert message == refused("secret.npz: not a whole", in_parts, records, (len(records),))
      refused("secret.npz: not a whole", in_parts, records, (2, 1))


@pytest.mark.parametrize("kind", ["stored", "compressed", "stored-fortran"])
def test_npz_cut_or_replaced_while_open(tmp_path, kind):
  source = MAKERS[kind](tmp_path)
  path = pathlib.Path(source)
  whole = path.read_bytes()
  with sources.open(source, "train") as records:
    path.write_bytes(whole[: len(whole) // 2])
    refused("secret.npz: not a whole", records.read, 0, 2)
    path.unlink()
    refused(r"secret.npz: cannot be read \(No such file", records.read, 0, 2)
    SAVERS["stored"](path, **arrays(count=60))
    refused("secret.npz: not a whole .*changed while it was read", records.read, 0, 2)
    path.write_bytes(whole)
    refused("secret.npz: was changed while the source was read", records.read, 0, 2)


def test_npz_member_shorter_than_its_header_says(tmp_path):
  path = pathlib.Path(MAKERS["stored"](tmp_path))
  short = tmp_path / "short.npz"
  with zipfile.ZipFile(path) as old, zipfile.ZipFile(short, "w") as new:
    for name in old.namelist():
      data = old.read(name)
      new.writestr(name, data[:-100] if name == "train_images.npy" else data)
  with sources.open(str(short), "train") as records:
    assert len(records.read(0, 51).labels) == 51
    refused("short.npz: not a whole .*train_images.npy ends too soon", records.read, 51, 53)
    refused("short.npz: not a whole .*ends too soon", records.read, 0, 53)


def test_tfds_damage_is_told_by_its_place_in_the_split(tmp_path, monkeypatch):
  monkeypatch.setattr(sources.tfds, "_CHUNK", 2)
  source = make_tfds(tmp_path)
  with sources.open(source, "train", data_dir=str(tmp_path)) as records:
    monkeypatch.setattr(Image, "open", lambda *args: 1 / 0)
    refused("'train' is damaged in or after record 3 .*Prepare it again", records.read, 3, 5)
    monkeypatch.undo()
    assert len(records.read(3, 5).labels) == 2
    (dict(records.files)["tiny-train.array_record-00000-of-00001"]).write_bytes(b"junk")
    records.close()
    refused("'train' is damaged in or after record 5 ", records.read, 5, 7)


@pytest.mark.parametrize(
  ("label", "fault"), [(-1, "negative"), (3, "3 or more, the number of classes")]
)
def test_tfds_labels_out_of_range(tmp_path, monkeypatch, label, fault):
  encode = kinds().ClassLabel.encode_example
  monkeypatch.setattr(  # TFDS refuses to write such a label
    kinds().ClassLabel, "encode_example", lambda self, x: x if x == 3 else encode(self, x)
  )
  write_tfds(tmp_path, labels=[0, 1, 2, 0, label, label, 1, 0, 0, 0])
  with sources.open("tiny", "train", data_dir=str(tmp_path)) as records:
    assert len(records.read(0, 4).labels) == 4
    refused(f"'train': 2 labels are {fault}, the first at index 4$", records.read, 3, 7)
  refused(f"2 labels are {fault}", lambda: sources.load("tiny", "train", data_dir=str(tmp_path)))


# ------------------------------------------------------------------------------------------ floats


@pytest.fixture(params=SAVERS)
def floats(request, tmp_path):
  """Saves 12 float images, each a value or a list of 60, and returns the path."""

  def save(values, order="C"):
    images = np.zeros((12, 60), np.float32)
    for index, value in enumerate(values):
      images[index] = value
    images = np.asarray(images.reshape(12, 4, 5, 3), order=order)
    SAVERS[request.param](tmp_path / "set.npz", **arrays(count=12, train_images=images))
    return str(tmp_path / "set.npz")

  return save


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("chunk", [16, 1 << 18])
def test_floats_nearly_all_up_to_one_are_refused(floats, monkeypatch, chunk, order):
  monkeypatch.setattr(sources.npz, "_CHUNK", chunk)

  def check(source, split="train"):
    with sources.open(source, split) as records:
      records.check()
      return in_parts(records, (1, 4))

  scale = r"train_images: {} above 1, but the scale is 0\.\.255\. Say what white is: --scale 1 or"
  for values in ([0.5] * 12, [0] * 11 + [1]):
    refused(scale.format("no value is"), check, floats(values, order))
  few = [0.5] * 11 + [[0.5] * 59 + [1.0000002]]
  refused(scale.format("no value is"), check, floats(few, order))
  source = floats([0.5] * 11 + [[0.0] * 59 + [1.5]], order)
  refused(scale.format("only 1 of 661 values above 0 are"), check, source)
  source = floats([0.5] * 11 + [[1.5] * 60], order)
  parts = check(source)
  same(parts, sources.load(source, "train"))
  assert parts.images.max() == 1.5
  refused(scale.format("no value is"), check, source, "train[:11]")
  refused(scale.format("no value is"), sources.load, source, "train[:11]")
  assert len(sources.load(source, "train[11:]").labels) == 1
  assert not check(floats([0] * 12, order)).images.any()


@pytest.mark.parametrize(
  ("dtype", "values", "result"),
  [(np.float32, [0, 0.5, 1.0000002], [0, 127.5, 255]), (np.uint8, [0, 1, 1], [0, 255, 255])],
)
def test_whoever_says_what_white_is_gets_it_as_255(tmp_path, dtype, values, result):
  images = np.tile(np.array(values, dtype), (6, 20))[..., None].reshape(6, 4, 5, 3)
  path = tmp_path / "set.npz"
  np.savez(path, **arrays(train_images=images, test_images=images[:4]))
  wanted = np.tile(np.array(result, dtype), (6, 20)).reshape(6, 4, 5, 3)
  np.testing.assert_array_equal(sources.load(str(path), "train", scale=1).images, wanted)
  np.testing.assert_array_equal(sources.load(str(path), "train", scale=255).images, images)
  refused("Say what white is", sources.load, str(path), "train")
  np.savez(path, **arrays(train_images=images * 3))
  refused(
    r"values are outside 0\.\.1, the first in image 0", sources.load, str(path), "train", scale=1
  )
  refused("scale must be 1 or 255", sources.load, str(path), "train", scale=2, error=ConfigError)


def test_floats_faults_are_found_in_the_part_read_with_the_index_of_the_split(floats):
  broken = [7.0] * 6 + [np.nan, 7.0, -1.0, 7.0, 256.0, np.inf]
  with sources.open(floats(broken), "train[1:]") as records:
    assert records.read(0, 5).images.max() == 7
    refused("60 values are NaN or infinite, the first in image 6$", records.read, 3, 8)
    refused("60 values are outside 0..255, the first in image 8$", records.read, 6, 9)
    refused("120 values are outside 0..255, the first in image 8$", records.read, 6, 10)
    refused("60 values are NaN or infinite, the first in image 11$", records.read, 8, 11)
    message = refused("120 values are NaN .* image 6$", records.read, 0, len(records))
  assert message == refused("120 values are NaN", sources.load, floats(broken), "train[1:]")


def test_floats_small_and_negative_or_nan_have_the_message_of_load(floats):
  for fault, message in ((-0.5, "60 values are outside"), (np.nan, "60 values are NaN")):
    for index in (0, 11):
      values = [0.5] * 12
      values[index] = fault
      refused(f"{message}.*in image {index}$", sources.load, floats(values), "train")


# ------------------------------------------------------------------------------- files, real data


def test_files_of_each_kind(tmp_path):
  assert sources.open("digits", "test").files == ()
  source = make_npz(np.savez)(tmp_path)
  assert sources.open(source, "test").files == ((".", pathlib.Path(source)),)
  source = make_folder(tmp_path)
  with sources.open(source, "train[3:6]") as records:
    cats = [f"cat/{i:02}.png" for i in range(60) if i % 3]  # every fifth of each class is test
    dogs = [f"dog/{i:02}.png" for i in range(60) if not i % 3]
    assert [name for name, _ in records.files] == [cats[2], dogs[1], dogs[2]]
    part = records.read(0, 3)
    assert part.labels.tolist() == [1, 0, 1] and part.class_names == ("cat", "dog")
    pixels = draw(tmp_path / "x.png", seed=int(cats[2][4:6]), size=(7, 4))
    np.testing.assert_array_equal(part.images[1], pixels)
    assert all(path == pathlib.Path(source, name) for name, path in records.files)
  shutil.copytree(source, tmp_path / "both" / "train")
  shutil.copytree(source, tmp_path / "both" / "test")
  test = sources.open(f"{tmp_path}/both", "test")
  assert len(test.files) == 60 and test.files[0][0] == "test/cat/01.png"
  folder, _ = write_tfds(tmp_path)
  train = sources.open("tiny", "train[1:3]+train[5:]", data_dir=str(tmp_path))
  names = ("dataset_info.json", "features.json", "tiny-train.array_record-00000-of-00001")
  assert train.files == tuple((name, folder / name) for name in names)
  write_tfds(tmp_path / "many", "2.0.0", name="big-1.0")
  info = tmp_path / "many" / "big-1.0" / "2.0.0" / "dataset_info.json"
  info.write_text(info.read_text().replace('"name": "big-1.0"', '"name": "many"', 1))
  assert sources.open("many/big-1.0", "test", data_dir=str(tmp_path)).name == "many/big-1.0:2.0.0"


@pytest.mark.parametrize(
  ("name", "public", "shards"), [("mnist", "mnist:3.0.1", 1), ("cifar10", "cifar10:3.0.2", 4)]
)
def test_real_data_in_parts(tfds_dir, name, public, shards):
  if not (tfds_dir / name).is_dir():
    pytest.skip(f"needs {name} prepared in TFDS_DATA_DIR")
  wanted = sources.load(name, "test", data_dir=str(tfds_dir))
  with sources.open(name, "test", data_dir=str(tfds_dir)) as records:
    assert records.name == public and len(records.files) == 2 + shards
    assert all(path.is_file() and path.name == name for name, path in records.files)
    assert all(
      x.startswith((f"{name}-test.array_record-", "data", "feat")) for x, _ in records.files
    )
    same(in_parts(records, (777, 1, 2048)), wanted)
  with sources.open(name, "train[10:50]", data_dir=str(tfds_dir)) as records:
    assert len(records.files) == 3  # the first shard alone
    same(records.read(0, 40), sources.load(name, "train[10:50]", data_dir=str(tfds_dir)))
    first = in_parts(records, (7,))
  np.testing.assert_array_equal(
    first.images, sources.load(name, "train[:50]", data_dir=str(tfds_dir)).images[10:]
  )
