"""Files of records: what TFDS reads from them, and the writer. docs/format.md section 1."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from djax import datasets
from djax.errors import DjaxError
from djax.manifest import SplitFacts

__all__ = ["features", "tfds_info", "writer"]

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
    "name": datasets.NAME,
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
  import tensorflow_datasets as tfds
  from array_record.python.array_record_module import ArrayRecordWriter

  serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
  try:
    with _one_line(path):
      file = ArrayRecordWriter(str(path), _OPTIONS)

    def write(images: np.ndarray, labels: np.ndarray) -> None:
      for image, label in zip(images, labels, strict=True):
        example = serializer.get_tf_example({"image": image.tobytes(), "label": int(label)})
        # Unsorted, the order of a protobuf map is another one in every process.
        data = example.SerializeToString(deterministic=True)
        with _one_line(path):
          file.write(data)

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
      "Make room and give the same command again: what is whole is kept."
    ) from None
