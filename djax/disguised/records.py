"""Files of records: what TFDS reads from them, how a record is laid out, and the writer. docs/format.md section 1.

All records of a data set are alike but for the bytes of the image and those of the label. So no protobuf is built for
each of them: TFDS's own serialiser says once a label what stands around the image. Nor is one parsed: records come from
untrusted machines, and need no more than a few lengths to be compared.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from djax.disguised.manifest import SplitFacts
from djax.errors import DjaxError

__all__ = ["NAME", "Frames", "Parser", "features", "tfds_info", "writer"]

NAME = "disguised"

_OPTIONS = "group_size:1,uncompressed"
_MOST_AROUND = 128  # bytes of a record that are not its image: names, lengths and the label


def features(
  shape: tuple[int, int, int],
  dtype: str,
  classes: int,
  class_names: tuple[str, ...] | None = None,
) -> Any:
  """Returns the TFDS features of a disguised data set.

  Args:
    shape: ``(H', W', C)`` of the disguised images.
    dtype: what is stored.
    classes: number of label ids.
    class_names: where labels are plain.
  """
  tfds = _tfds()
  label = {"names": class_names} if class_names else {"num_classes": classes}
  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Tensor(shape=shape, dtype=np.dtype(dtype), encoding="bytes"),
      "label": tfds.features.ClassLabel(**label),
    }
  )


def tfds_info(splits: Mapping[str, SplitFacts]) -> dict[str, Any]:
  """Returns what TFDS reads from dataset_info.json.

  Args:
    splits: of the manifest.
  """
  return {
    "description": "Images disguised by djax; see README.md and MANIFEST.json.",
    "fileFormat": "array_record",
    "moduleName": "djax",
    "name": NAME,
    "splits": [
      {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": name,
        "numBytes": str(sum(shard.bytes for shard in split.shards)),
        "shardLengths": [str(shard.records) for shard in split.shards],
      }
      for name, split in splits.items()
    ],
    "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
    "version": "1.0.0",
  }


def _tfds() -> Any:
  """Returns TFDS, which takes seconds to import and is needed to write alone."""
  import tensorflow_datasets

  return tensorflow_datasets


class Frames:
  """What stands around an image in its record, as the serialiser of TFDS writes it.

  Args:
    features: as ``features`` returns them.
  """

  def __init__(self, features: Any):
    info = features.get_serialized_info()
    self._serializer = _tfds().core.example_serializer.ExampleSerializer(info)
    self._known: dict[tuple[int, int], tuple[bytes, bytes]] = {}

  def around(self, size: int, label: int) -> tuple[bytes, bytes]:
    """Returns the bytes before and after an image of ``size`` bytes.

    Args:
      size: at least 1.
      label: the image's label id, any int64.
    """
    if (size, label) not in self._known:
      zeros, ones = (self._serialized(bytes([value]) * size, label) for value in (0, 255))
      differs = np.frombuffer(zeros, np.uint8) != np.frombuffer(ones, np.uint8)
      start = int(differs.argmax())
      self._known[size, label] = zeros[:start], zeros[start + size :]
    return self._known[size, label]

  def _serialized(self, image: bytes, label: int) -> bytes:
    example = self._serializer.get_tf_example({"image": image, "label": label})
    # Unsorted, the order of a protobuf map is another one in every process.
    return example.SerializeToString(deterministic=True)


class Parser:
  """Takes image and label out of a record, without TFDS or protobuf. May be called from several threads.

  Shape and dtype are those of the manifest. What a directory itself says of its features is not looked at: TFDS would
  import any module that stands there.

  Args:
    shape: ``(H', W', C)`` of the images.
    dtype: of their values.
    classes: number of label ids; what stands around an image is remembered for these alone.

  Attributes:
    longest: greatest length of a record in bytes.
  """

  def __init__(self, shape: tuple[int, int, int], dtype: np.dtype, classes: int):
    self._shape, self._classes = shape, classes
    self._dtype = np.dtype(dtype).newbyteorder("<")
    self._count = math.prod(shape)
    self._bytes = self._count * self._dtype.itemsize
    self.longest = self._bytes + _MOST_AROUND
    # By the length of a record: where its image begins, and the label by what stands around it.
    self._known: dict[int, tuple[int, dict[bytes, int]]] = {}

  def __call__(self, data: bytes | memoryview, image: np.ndarray) -> int:
    """Writes the image of a record into an array and returns the label id, which may lie outside the classes.

    Args:
      data: the record.
      image: ``[H', W', C]``, to be filled.

    Raises:
      ValueError: if the record is laid out otherwise than docs/format.md says, or its image has another length.
    """
    start, labels = self._known.get(len(data), (0, {}))
    label = labels.get(self._around(data, start))
    if label is None:
      start, label = self._parsed(data)
    image[...] = np.frombuffer(data, self._dtype, self._count, start).reshape(self._shape)
    return label

  def _parsed(self, data: bytes | memoryview) -> tuple[int, int]:
    """Finds image and label, and remembers what stands around the image."""
    start, stop, label = _layout(data)
    if stop - start != self._bytes:
      name, shape = self._dtype.name, list(self._shape)
      raise ValueError(f"an image of {stop - start} bytes, the manifest says {name}{shape}")
    if 0 <= label < self._classes:
      known, labels = self._known.setdefault(len(data), (start, {}))
      if known == start:
        labels[self._around(data, start)] = label
    return start, label

  def _around(self, data: bytes | memoryview, start: int) -> bytes:
    """Returns what stands before and behind an image."""
    return bytes(data[:start]) + bytes(data[start + self._bytes :])


def _layout(data: bytes | memoryview) -> tuple[int, int, int]:
  """Returns where the image of a serialised ``tf.train.Example`` starts and stops, and the label.

  Fields are those of TensorFlow's example.proto and feature.proto. There must be these two features and nothing else,
  in either order: an early writer left it to chance.
  """
  at, end = _only(data, 0, len(data), 1)  # Example.features
  image: tuple[int, int] | None = None
  label: int | None = None
  while at < end:
    key, at = _field(data, at, end, 1)  # Features.feature: a map, its entries of a key and a value
    key, value = _field(data, key, at, 1)
    name, content = bytes(data[key:value]), _only(data, value, at, 2)
    if name == b"image" and image is None:
      image = _only(data, *_only(data, *content, 1), 1)  # Feature.bytes_list, its only value
    elif name == b"label" and label is None:
      first, last = _only(data, *_only(data, *content, 3), 1)  # Feature.int64_list, packed
      label, stop = _varint(data, first, last)
      if stop != last:
        raise ValueError("it has several labels")
    else:
      raise ValueError("it must have an image and a label, and nothing else")
  if image is None or label is None:
    raise ValueError("it must have an image and a label")
  return *image, label - (label >> 63 << 64)


def _only(data: bytes | memoryview, start: int, stop: int, number: int) -> tuple[int, int]:
  """Returns where the content of a field lies that must fill a part of a message."""
  first, last = _field(data, start, stop, number)
  if last != stop:
    raise ValueError("it has more fields than it must")
  return first, last


def _field(data: bytes | memoryview, start: int, stop: int, number: int) -> tuple[int, int]:
  """Returns where the content of a field with a length starts and stops, in a part of a message that it begins."""
  if start >= stop or data[start] != number << 3 | 2:
    raise ValueError(f"field {number} is missing")
  length, first = _varint(data, start + 1, stop)
  if length > stop - first:
    raise ValueError(f"field {number} is longer than the record")
  return first, first + length


def _varint(data: bytes | memoryview, start: int, stop: int) -> tuple[int, int]:
  """Returns a number of up to 64 bits, in groups of 7 from the lowest, and where it ends."""
  value = 0
  for place in range(start, min(stop, start + 10)):
    value |= (data[place] & 127) << 7 * (place - start)
    if data[place] < 128:
      if value >> 64:
        break
      return value, place + 1
  raise ValueError("a number in it does not end")


@contextlib.contextmanager
def writer(path: Path, features: Any) -> Iterator[Callable[[np.ndarray, np.ndarray], None]]:
  """Yields a function that adds records to a new file; takes the file away again if anything fails.

  The function takes images ``[B, H', W', C]`` as stored and label ids ``[B]``.

  Args:
    path: the file, in ``.unfinished``.
    features: as ``features`` returns them.

  Raises:
    DjaxError: if the disk is full, or the file cannot be written.
  """
  from array_record.python.array_record_module import ArrayRecordWriter  # to write alone

  frames = Frames(features)
  try:
    with _one_line(path):
      file = ArrayRecordWriter(str(path), _OPTIONS)

    def write(images: np.ndarray, labels: np.ndarray) -> None:
      with _one_line(path):
        for image, label in zip(images, labels.tolist(), strict=True):
          before, after = frames.around(image.nbytes, label)
          file.write(before + image.tobytes() + after)

    try:
      yield write
    finally:
      with _one_line(path):
        file.close()
    with path.open("rb") as whole:
      os.fsync(whole.fileno())
  except BaseException:
    path.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
  """Says in one line what the writer of ArrayRecord raises for a full disk."""
  try:
    yield
  except RuntimeError as error:
    line = str(error).partition(";")[0]
    raise DjaxError(
      f"{path.parent.parent} must be writable and have room for the disguised images, got: {line}. "
      "Make room and re-run the command: what is whole is kept."
    ) from None
