"""Files of records: what TFDS reads from them, how a record is laid out, and the writer. docs/format.md section 1.

All records of a data set are alike but for the bytes of the image and those of the label. So no protobuf is built or
parsed for each of them: TFDS's own serialiser says once a label what stands around the image.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from djax.errors import DjaxError
from djax.manifest import SplitFacts

__all__ = ["NAME", "Frames", "Parser", "features", "tfds_info", "writer"]

NAME = "disguised"

_OPTIONS = "group_size:1,uncompressed"


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
  import tensorflow_datasets as tfds

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


class Frames:
  """What stands around an image in its record, as the serialiser of TFDS writes it.

  Args:
    features: as ``features`` returns them.
  """

  def __init__(self, features: Any):
    import tensorflow_datasets as tfds

    info = features.get_serialized_info()
    self._serializer = tfds.core.example_serializer.ExampleSerializer(info)
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
  """Takes image and label out of a record. TFDS parses what is laid out otherwise than ``writer`` does.

  May be called from several threads.

  Args:
    shape: ``(H', W', C)`` of the manifest. What a directory itself says of its features is not looked at: TFDS would
      import any module that stands there.
    dtype: of the manifest.
    classes: of the manifest.
  """

  def __init__(self, shape: tuple[int, int, int], dtype: np.dtype, classes: int):
    self._shape, self._dtype = shape, dtype
    self._count = math.prod(shape)
    self._features = features(shape, dtype.name, classes)
    self._frames = Frames(self._features)
    # By the length of a record: where its image begins, and the label by what stands around it.
    self._known: dict[int, tuple[int, dict[bytes, int]]] = {}

  def __call__(self, data: bytes, image: np.ndarray) -> int:
    """Writes the image of a record into an array and returns the label id.

    Args:
      data: the record.
      image: ``[H', W', C]``, to be filled.

    Raises:
      ValueError: if the record holds another shape or dtype; TFDS raises errors of its own for what it cannot parse.
    """
    start, labels = self._known.get(len(data), (0, {}))
    label = labels.get(data[:start] + data[start + image.nbytes :])
    if label is None:
      return self._parsed(data, image)
    image[...] = np.frombuffer(data, self._dtype, self._count, start).reshape(self._shape)
    return label

  def _parsed(self, data: bytes, image: np.ndarray) -> int:
    """Has TFDS parse a record, and remembers what stands around its image if that is the rule."""
    record = self._features.deserialize_example_np(data)
    found, label = record["image"], int(record["label"])
    if (found.shape, found.dtype) != (self._shape, self._dtype):
      raise ValueError(
        f"{found.dtype}{list(found.shape)}, the manifest says {self._dtype}{list(self._shape)}"
      )
    image[...] = found
    before, after = self._frames.around(found.nbytes, label)
    if data == before + found.tobytes() + after:
      _, labels = self._known.setdefault(len(data), (len(before), {}))
      labels[before + after] = label
    return label


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
  from array_record.python.array_record_module import ArrayRecordWriter

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
