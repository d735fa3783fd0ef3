import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.fresh import ROOT

from djax.disguised import records
from djax.disguised.manifest import Shard, SplitFacts
from djax.errors import DjaxError

SHAPE = (4, 6, 3)
WRITE = """
import hashlib, pathlib, sys
import numpy as np
from djax.disguised import records
path = pathlib.Path(sys.argv[1], ".unfinished", "x")
path.parent.mkdir(parents=True, exist_ok=True)
images = np.random.default_rng(0).random((20, 4, 6, 3), np.float32)
features = records.features((4, 6, 3), "float32", 10)
with records.writer(path, features) as write:
  write(images[:7], np.arange(7))
  write(images[7:], np.arange(13) % 10)
features.save_config(sys.argv[1])
for written in (path, pathlib.Path(sys.argv[1], "features.json")):
  print(hashlib.sha256(written.read_bytes()).hexdigest())
"""
FULL = """
import pathlib, resource, sys
import numpy as np
from djax.disguised import records
from djax.errors import DjaxError
path = pathlib.Path(sys.argv[1], ".unfinished", "x")
path.parent.mkdir(parents=True)
features = records.features((32, 32, 3), "float32", 10)
images = np.zeros((20, 32, 32, 3), np.float32)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
  with records.writer(path, features) as write:
    for _ in range(int(sys.argv[3])):
      write(images, np.arange(20) % 10)
except DjaxError as error:
  print(f"DjaxError: {error}")
print(sorted(entry.name for entry in path.parent.iterdir()))
"""


def start(script, *arguments):
  return subprocess.Popen(
    [sys.executable, "-c", script, *map(str, arguments)],
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  )


def output(process):
  out, _ = process.communicate(timeout=120)
  assert process.returncode == 0
  return out


@pytest.fixture
def path(tmp_path):
  (tmp_path / ".unfinished").mkdir()
  return tmp_path / ".unfinished" / "x"


def arrays(dtype, count=9):
  values = np.random.default_rng(0).integers(0, 256, (count, *SHAPE))
  return values.astype(np.dtype(dtype).newbyteorder("<")), np.arange(count) % 5


def write_all(path, images, labels, dtype):
  with records.writer(path, records.features(SHAPE, dtype, 5)) as write:
    write(images, labels)


def varint(data, at):
  value = shift = 0
  while True:
    value |= (data[at] & 127) << shift
    shift, at = shift + 7, at + 1
    if data[at - 1] < 128:
      return value, at


def fields(data):
  """The fields of a protobuf message: a slow reader of the wire format, lengths and varints only."""
  at, found = 0, []
  while at < len(data):
    tag, at = varint(data, at)
    value, at = varint(data, at)
    if tag & 7 == 2:
      value, at = data[at : at + value], at + value
    else:
      assert tag & 7 == 0
    found.append((tag >> 3, value))
  return found


def twin_example(data):
  """Reads a serialised tf.train.Example: the order of its features, and both."""
  ((_, features),) = fields(data)
  found = {}
  for number, entry in fields(features):
    assert number == 1
    (_, name), (_, feature) = fields(entry)
    ((kind, content),) = fields(feature)
    ((_, value),) = fields(content)
    found[name.decode()] = kind, value
  return found


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_records_are_examples_as_the_document_has_them(path, dtype):
  from array_record.python.array_record_module import ArrayRecordReader

  images, labels = arrays(dtype)
  write_all(path, images, labels, dtype)
  reader = ArrayRecordReader(str(path))
  assert reader.num_records() == len(images)
  assert "group_size:1" in reader.writer_options_string()
  assert "uncompressed" in reader.writer_options_string()
  for data, image, label in zip(reader.read_all(), images, labels, strict=True):
    found = twin_example(data)
    assert list(found) == ["image", "label"]
    assert found["image"] == (1, image.tobytes())
    kind, value = found["label"]
    assert kind == 3
    assert (value if isinstance(value, int) else varint(value, 0)[0]) == label
  reader.close()


# What stands around an image, and reading by it; their slow twins are TFDS's own serialiser and parser.

LABELS = (0, 1, 127, 128, 129, 16_383, 16_384, 65_535, 2**31, 2**63 - 1, -1)


def slow_record(features, image, label):
  import tensorflow_datasets as tfds

  serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
  example = serializer.get_tf_example({"image": image.tobytes(), "label": label})
  return example.SerializeToString(deterministic=True)


# Outer lengths pass 127 and 16 383 with the longer labels: 95, 96 and 97, 16 343 to 16 346 bytes of image.
SHAPES = [(1, 1, 1), (4, 6, 3), (5, 19, 1), (12, 8, 1), (1, 97, 1), (28, 28, 1), (32, 32, 3)]
SHAPES += [(1, 59 * 277, 1), (1, 16_344, 1), (1, 16_345, 1), (1, 16_346, 1)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_frames_are_what_the_serialiser_writes(dtype):
  rng = np.random.default_rng(0)
  for shape in SHAPES:
    features = records.features(shape, dtype, 70_000)
    frames = records.Frames(features)
    for label in (*LABELS, *LABELS):  # at first made, then remembered
      image = rng.integers(0, 256, shape).astype(dtype)
      before, after = frames.around(image.nbytes, label)
      assert before + image.tobytes() + after == slow_record(features, image, label)


def test_the_writer_writes_what_the_serialiser_would(path):
  from array_record.python.array_record_module import ArrayRecordReader

  images, _ = arrays("float16", len(LABELS))
  features = records.features(SHAPE, "float16", 70_000)
  with records.writer(path, features) as write:
    write(images, np.array(LABELS))
  reader = ArrayRecordReader(str(path))
  expected = [slow_record(features, *x) for x in zip(images, LABELS, strict=True)]
  assert reader.read_all() == expected
  reader.close()


@pytest.fixture
def parsed(monkeypatch):
  """Counts the records whose layout had to be looked at."""
  found, real = [], records._layout
  monkeypatch.setattr(records, "_layout", lambda data: found.append(1) or real(data))
  return found


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 6, 3), (12, 8, 1), (1, 16_345, 1)])
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_the_parser_finds_what_tfds_finds_and_looks_once_a_label(parsed, dtype, shape, kind):
  features = records.features(shape, dtype, 70_000)
  parse = records.Parser(shape, np.dtype(dtype), 70_000)
  rng = np.random.default_rng(0)
  for label in (*LABELS, *LABELS):
    data = slow_record(features, rng.integers(0, 256, shape).astype(dtype), label)
    assert len(data) <= parse.longest
    expected = features.deserialize_example_np(data)
    image = np.empty(shape, dtype)
    assert parse(kind(data), image) == label == expected["label"]
    np.testing.assert_array_equal(image, expected["image"])
  # Labels that are none of a class are not remembered: there are 2^64 of them.
  alien = sum(not 0 <= label < 70_000 for label in LABELS)
  assert len(parsed) == len(LABELS) + alien


def message(*content):
  """A protobuf message of fields with a length: number, then bytes."""
  pairs = zip(content[::2], content[1::2], strict=True)
  return b"".join(bytes([n << 3 | 2]) + number(len(x)) + x for n, x in pairs)


def number(value):
  found = b""
  while value > 127:
    found, value = found + bytes([value & 127 | 128]), value >> 7
  return found + bytes([value])


def example(image, label, *, names=(b"image", b"label"), packed=True, turned=False, more=b""):
  """Serialises an Example by the document alone."""
  label = label if isinstance(label, bytes) else number(label)
  value = message(1, label) if packed else b"\x08" + label
  entries = [
    message(1, names[0], 2, message(1, message(1, image))),
    message(1, names[1], 2, message(3, value)),
  ]
  return message(1, b"".join(message(1, e) for e in entries[:: -1 if turned else 1]) + more)


def test_the_two_features_may_stand_in_either_order(parsed):
  """An early writer left it to chance. Each has its own place in what is remembered, or none."""
  images, image = arrays("uint8")[0], np.empty(SHAPE, np.uint8)
  parse = records.Parser(SHAPE, np.dtype("uint8"), 10)
  usual, other = (example(images[i].tobytes(), 3, turned=bool(i)) for i in (0, 1))
  assert len(usual) == len(other)
  for _ in range(3):
    for data, expected in ((usual, images[0]), (other, images[1])):
      image[:] = 0
      assert parse(data, image) == 3
      np.testing.assert_array_equal(image, expected)
  assert len(parsed) == 1 + 3
  # What stands around the other one, cut where the usual one begins, is no record.
  size, first = images[0].nbytes, usual.index(images[0].tobytes())
  around = other.replace(images[1].tobytes(), b"")
  forged = around[:first] + bytes(size) + around[first:]
  assert len(forged) == len(usual)
  with pytest.raises(ValueError, match=r"."):
    parse(forged, image)


@pytest.mark.parametrize(
  "change",
  [
    {"names": (b"image", b"image")},
    {"names": (b"label", b"image")},
    {"names": (b"image", b"labels")},
    {"names": (b"", b"label")},
    {"packed": False},
    {"label": 1 << 64},
    {"label": b""},
    {"label": b"\x03\x03"},
    {"label": b"\x80" * 10 + b"\x01"},
    {"more": message(1, message(1, b"image", 2, message(1, message(1, bytes(4 * 6 * 3)))))},
    {"more": message(1, message(1, b"label", 2, message(3, message(1, b"\x03"))))},
    {"more": message(1, message(1, b"image", 2, message(1, message(1, b"x"))))},
    {"more": message(1, message(1, b"extra", 2, message(1, message(1, b"x"))))},
    {"more": message(2, b"")},
    {"more": b"\x0a"},
    {"more": b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"},
    {"more": b"\x0a" + b"\xff" * 20},
    {"image": b"short"},
    {"image": bytes(4 * 6 * 3 + 1)},
    {"image": b""},
  ],
)
def test_records_laid_out_otherwise_are_refused(change):
  parse, image = records.Parser(SHAPE, np.dtype("uint8"), 10), np.full(SHAPE, 7, np.uint8)
  given = {"image": bytes(4 * 6 * 3), "label": 3, **change}
  data = example(given.pop("image"), given.pop("label"), **given)
  for _ in range(2):
    with pytest.raises(ValueError, match=r"."):
      parse(data, image)
  assert (image == 7).all()
  whole = example(bytes(4 * 6 * 3), 3)
  for stop in range(len(whole)):
    with pytest.raises(ValueError, match=r"."):
      parse(whole[:stop], image)
    with pytest.raises(ValueError, match=r"."):
      parse(whole + whole[: stop + 1], image)
  assert parse(whole, image) == 3


def test_every_changed_byte_is_refused_or_read_as_tfds_reads_it():
  """The old way to read is the oracle: what is taken must be what it takes."""
  features = records.features(SHAPE, "uint8", 10)
  images, image = arrays("uint8")[0], np.empty(SHAPE, np.uint8)
  whole = slow_record(features, images[0], 3)
  taken = refused = 0
  for place in range(len(whole)):
    for flip in (1, 2, 8, 0x40, 0x80):
      damaged = bytearray(whole)
      damaged[place] ^= flip
      for parse in (records.Parser(SHAPE, np.dtype("uint8"), 10), known(whole)):
        try:
          label = parse(bytes(damaged), image)
        except ValueError:
          refused += 1
          continue
        taken += 1
        expected = features.deserialize_example_np(bytes(damaged))
        assert label == expected["label"]
        np.testing.assert_array_equal(image, expected["image"])
  assert taken > 2 * 5 * images[0].nbytes and refused > 100


def known(data):
  """A parser that has seen a record."""
  parse = records.Parser(SHAPE, np.dtype("uint8"), 10)
  parse(data, np.empty(SHAPE, np.uint8))
  return parse


@pytest.mark.slow
def test_the_same_records_are_the_same_bytes_in_every_process(tmp_path):
  """A protobuf map keeps no order of its own: unsorted, two processes agree half of the time."""
  processes = [start(WRITE, tmp_path / str(number)) for number in range(4)]
  found = {output(process) for process in processes}
  assert len(found) == 1
  assert len(found.pop().split()) == 2


def test_the_same_records_are_the_same_bytes_twice(path):
  images, labels = arrays("float32")
  digests = set()
  for step in (1, 4, 9):
    with records.writer(path, records.features(SHAPE, "float32", 5)) as write:
      for first in range(0, 9, step):
        write(images[first : first + step], labels[first : first + step])
    digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
  assert len(digests) == 1
  write_all(path, images + np.float32(1), labels, "float32")
  assert hashlib.sha256(path.read_bytes()).hexdigest() not in digests


@pytest.mark.parametrize("error", [ValueError("mine"), RuntimeError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("written", [0, 3])
def test_a_failing_body_leaves_no_file_and_keeps_its_error(path, error, written):
  images, labels = arrays("uint8")
  with (
    pytest.raises(type(error)) as raised,
    records.writer(path, records.features(SHAPE, "uint8", 5)) as write,
  ):
    write(images[:written], labels[:written])
    raise error
  assert raised.value is error
  assert list(path.parent.iterdir()) == []


def test_images_and_labels_must_be_as_many(path):
  images, labels = arrays("uint8")
  with pytest.raises(ValueError, match="shorter"):
    write_all(path, images, labels[:-1], "uint8")
  assert not path.exists()


@pytest.mark.parametrize("limit", [300_000, 65_536])
@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_no_file(tmp_path, limit):
  out = tmp_path / "out"
  line, left = output(start(FULL, out, limit, 20)).splitlines()
  assert line == (
    f"DjaxError: {out} must be writable and have room for the disguised images, got: write() failed: "
    "File too large. Make room and re-run the command: what is whole is kept."
  )
  assert left == "[]"


def test_the_full_disk_can_be_large_enough(tmp_path):
  assert output(start(FULL, tmp_path / "out", 1 << 30, 2)) == "['x']\n"


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
  with pytest.raises(DjaxError, match=r"must be writable .* open\(\) failed: No such file"):
    write_all(tmp_path / "nowhere" / "x", *arrays("uint8"), "uint8")


def test_tfds_info_counts_records_and_bytes():
  shards = (Shard("a", 4, 100, ""), Shard("b", 3, 80, ""))
  info = records.tfds_info({"train": SplitFacts(7, 1, shards)})
  assert (info["name"], info["version"], info["fileFormat"]) == (
    "disguised",
    "1.0.0",
    "array_record",
  )
  assert info["splits"] == [
    {
      "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      "name": "train",
      "numBytes": "180",
      "shardLengths": ["4", "3"],
    }
  ]
  json.dumps(info)


def test_features_are_as_the_document_has_them():
  import tensorflow_datasets as tfds

  found = records.features(SHAPE, "float16", 7)
  assert set(found) == {"image", "label"}
  assert (found["image"].shape, np.dtype(found["image"].np_dtype)) == (SHAPE, np.float16)
  assert found["image"]._encoding == tfds.features.Encoding.BYTES
  assert found["label"].num_classes == 7
  assert records.features(SHAPE, "uint8", 2, ("größer", "b"))["label"].names == ["größer", "b"]
