"""Prepared TFDS sets, stored as ArrayRecord."""

import contextlib
import io
import json
import os
import pathlib
import re

import numpy as np
from PIL import Image

from djax.errors import ConfigError, DataError, nearest
from djax.sources import checks
from djax.sources.base import Images, Records, Source, brief, refusal

__all__ = ["TfdsRecords"]

_KNOWN = ("digits", "mnist", "fashion_mnist", "kmnist", "emnist", "cifar10", "cifar100", "stl10")
_FORM = re.compile(r"([a-z]\w*)(?:/([A-Za-z0-9][\w.\-]*))?(?::(\d+\.\d+\.\d+))?", re.ASCII)
_CHUNK = 1000


class TfdsRecords(Records):
  """One split of a prepared set; its files are read from when records are asked for."""

  def __init__(self, source: str, split: str, data_dir: str):
    path, what, name = _find_tfds(source, data_dir)
    import tensorflow_datasets as tfds  # takes seconds, after the cheap refusals

    try:
      builder = tfds.builder_from_directory(path)
      features, keys = builder.info.features, builder.info.supervised_keys
      image_key, label_key = keys if keys and len(keys) == 2 else ("image", "label")
      image, label = features[image_key], features[label_key]
      shape, dtype = image.shape, np.dtype(image.np_dtype)
    except Exception as error:
      raise DataError(f"{what}: no whole set of images and labels ({brief(error)})") from None
    if dtype != np.uint8 or len(shape) != 3 or None in shape:
      wanted = "images must be uint8 of one fixed shape [H, W, C]"
      raise DataError(f"{what}: {wanted}, got {dtype} {shape}. A folder of images can be resized.")
    checks.check_shape(what, shape)
    if not isinstance(label, tfds.features.ClassLabel) or label.num_classes is None:
      raise DataError(f"{what}: {label_key!r} must be a class label, got {type(label).__name__}")
    checks.check_classes(what, label.num_classes)

    # Image files are decoded here: faster than by TFDS, and the same with or without OpenCV.
    self._is_encoded = isinstance(image, tfds.features.Image)
    decoders = {image_key: tfds.decode.SkipDecoding()} if self._is_encoded else None
    try:
      self._records = builder.as_data_source(split=split, decoders=decoders)
      shards = [x.filename for x in builder.info.splits[split].file_instructions]
    except ValueError as error:
      raise ConfigError(f"split {split!r} of {what}: {brief(error)}") from None
    self._split, self._keys = split, (image_key, label_key)
    files = [pathlib.Path(path, x) for x in ("dataset_info.json", "features.json", *shards)]
    super().__init__(
      len(self._records),
      name=name,
      image_shape=shape,
      dtype=np.uint8,
      class_names=tuple(label.names),
      files={file.name: file for file in files},
      what=what,
    )

  def _read(self, start: int, stop: int) -> Images:
    return self._take(np.arange(start, stop))

  def _take(self, rows: np.ndarray) -> Images:
    images = np.empty((len(rows), *self.image_shape), np.uint8)
    labels = np.empty(len(rows), np.int32)
    image_key, label_key = self._keys
    mode = "L" if self.image_shape[2] == 1 else "RGB"
    try:
      for first in range(0, len(rows), _CHUNK):
        chunk = rows[first : first + _CHUNK].tolist()
        for place, record in enumerate(self._records.__getitems__(chunk), first):
          pixels = record[image_key]
          if self._is_encoded:
            with Image.open(io.BytesIO(pixels)) as file:
              pixels = np.asarray(file if file.mode == mode else file.convert(mode))
          images[place] = pixels.reshape(self.image_shape)
          labels[place] = record[label_key]
    except Exception as error:  # array_record, protobuf and PIL each have their own
      where = f"{self.what}: {self._split!r} is damaged in or after record {rows[first]}"
      raise DataError(f"{where} ({brief(error)}). Prepare it again.") from None
    self._check_labels(labels, int(rows[0]))
    return Images(images, labels, self.class_names)

  def labels(self) -> np.ndarray:
    rows = [[*range(i, min(i + _CHUNK, len(self)))] for i in range(0, len(self), _CHUNK)]
    try:
      parts = [[x[self._keys[1]] for x in self._records.__getitems__(chunk)] for chunk in rows]
    except Exception as error:
      raise DataError(f"{self.what}: {self._split!r} is damaged ({brief(error)}).") from None
    labels = np.concatenate(parts).astype(np.int32)
    self._check_labels(labels, 0)
    return labels

  def _check_labels(self, labels: np.ndarray, start: int) -> None:
    checks.check_labels(f"{self.what}, {self._split!r}", labels, start, len(self.class_names))

  def close(self) -> None:
    with contextlib.suppress(RuntimeError):  # of a damaged file, refused where it was read
      self._records.data_source.__exit__(None, None, None)


def _find_tfds(source: str, data_dir: str) -> tuple[str, str, str]:
  """Returns folder, name in messages and public name of a prepared set; looks at the disk only."""
  match = _FORM.fullmatch(source)
  if not match:
    forms = "digits, x.npz, ./folder, or TFDS name, name:1.2.3, name/config, name/config:1.2.3"
    raise ConfigError(f"source must be {forms}; got {source!r}.{nearest(source.lower(), _KNOWN)}")
  name, config, version = match.groups()
  data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  root = pathlib.Path(data_dir).expanduser()
  folder = root / name / (config or "")
  versions = [x.parent for x in folder.glob("*/dataset_info.json")]
  versions = [x for x in versions if re.fullmatch(r"\d+\.\d+\.\d+", x.name)]
  versions.sort(key=lambda path: [int(number) for number in path.name.split(".")])
  chosen = [x for x in versions if version in (None, x.name)]
  if not chosen:
    configs = {f"{name}/{x.parts[-3]}" for x in folder.glob("*/*/dataset_info.json")}
    hint = "" if name in _KNOWN else nearest(name, _KNOWN)
    if there := [x.name for x in versions] or sorted(configs):
      hint = f" There: {', '.join(there)}."
    elif os.path.isdir(source):
      hint = f" For the folder of images write ./{source}."
    where = f"{root} (TFDS_DATA_DIR, --config.data.data_dir or --data-dir says where)"
    if name in _KNOWN or there:
      advice = f"Prepare it with: python -m djax prepare {source} --data-dir {root}"
    else:
      advice = (
        f"A source is digits, a file x.npz, a folder of images such as ./{name}, or the name of a TFDS data set that "
        "python -m djax prepare made."
      )
    raise DataError(f"data set {source!r} is not prepared in {where}.{hint} {advice}")
  path = chosen[-1]
  what = f"data set {source!r} in {path}"
  try:
    stored_as = json.loads((path / "dataset_info.json").read_text("utf-8")).get("fileFormat")
  except (OSError, ValueError, AttributeError) as error:
    raise refusal(what, "dataset_info.json is damaged", error) from None
  if stored_as != "array_record":
    advice = f"array_record. Move it away, then: python -m djax prepare {source} --data-dir {root}"
    raise DataError(f"{what} is stored as {stored_as or 'tfrecord'}, not {advice}")
  return str(path), what, f"{path.parent.relative_to(root).as_posix()}:{path.name}"


SOURCE = Source(
  "tfds",
  lambda source: True,
  lambda source, split, reading: TfdsRecords(source, split, reading.data_dir),
)
