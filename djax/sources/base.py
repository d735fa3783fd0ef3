"""What every kind of source gives out, and the checks they share."""

import abc
import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from djax.errors import ConfigError, DataError

__all__ = [
  "Images",
  "Records",
  "Source",
  "brief",
  "check_classes",
  "check_labels",
  "check_shape",
  "parse_split",
]

_MAX_CLASSES = 65536  # a label beyond this is a record number or a year, not a class


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Images:
  """Labelled original images in host memory; ``repr`` shows shapes only.

  Attributes:
    images: ``[N, H, W, C]``, uint8 or float32, 0..255.
    labels: ``[N]``, int32 in ``[0, len(class_names))``.
    class_names: one name a class.
  """

  images: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]

  def __repr__(self) -> str:
    shape = list(self.images.shape)
    return f"Images({self.images.dtype}{shape}, {len(self.class_names)} classes)"


class Records(contextlib.AbstractContextManager["Records"]):
  """The records of one split of a source, read in parts; ``len`` counts them.

  Parts read one after the other, from the first record to the last, cost least. No file is open
  before the first ``read``; after it, processes and threads need ``Records`` of their own. Records
  are numbered from 0; no number counts from the end.

  Attributes:
    name: of the source, to be published: ``digits``, the name of a TFDS set with its version, as
      ``mnist:3.0.1``, or just ``folder`` or ``npz``; never a path.
    image_shape: ``(H, W, C)``.
    dtype: of the images: uint8 or float32.
    class_names: one name a class.
    files: ``(name, path)`` of every file that the records are read from, sorted by name. Names are
      relative to the source, with ``/``; an ``.npz`` file itself is ``.``.
  """

  def __init__(
    self,
    count: int,
    *,
    name: str,
    image_shape: tuple[int, int, int],
    dtype: Any,
    class_names: tuple[str, ...],
    files: Mapping[str, pathlib.Path],
  ):
    self.name = name
    self.image_shape = image_shape
    self.dtype = np.dtype(dtype)
    self.class_names = class_names
    self.files = tuple(sorted(files.items()))
    self._count = count

  def __len__(self) -> int:
    return self._count

  def __repr__(self) -> str:
    shape = [len(self), *self.image_shape]
    return f"Records({self.name!r}, {self.dtype}{shape}, {len(self.class_names)} classes)"

  def __exit__(self, *error: object) -> None:
    self.close()

  def read(self, start: int, stop: int) -> Images:
    """Reads the records ``start`` to ``stop - 1`` of the split.

    Args:
      start: of the first record; 0 is the first of the split, or of the part of it that was opened.
      stop: of the first record that is not read.

    Returns:
      ``stop - start`` records.

    Raises:
      IndexError: records that do not exist.
      ValueError: no records.
      DataError: files that are missing or damaged, or images or labels that djax does not take.
    """
    if not 0 <= start < stop <= len(self):
      exist = 0 <= start <= len(self) and 0 <= stop <= len(self)
      raise (ValueError if exist else IndexError)(
        f"read: needs 0 <= start < stop <= {len(self)}, got {start=}, {stop=}"
      )
    return self._read(start, stop)

  def take(self, rows: np.ndarray) -> Images:
    """Reads some records of the split, wherever they stand.

    Args:
      rows: integers ``[n]``, each above the one before.

    Returns:
      ``n`` records.

    Raises:
      IndexError: records that do not exist.
      ValueError: records in another order, or none.
      DataError: as ``read``.
    """
    rows = np.asarray(rows)
    if not len(rows):
      raise ValueError("take: needs one row or more, got none")
    if not np.issubdtype(rows.dtype, np.integer):
      raise IndexError(f"take: needs integer rows, got {rows.dtype}")
    if rows.min() < 0 or rows.max() >= len(self):
      raise IndexError(
        f"take: needs rows in 0..{len(self) - 1}, got {rows.min()}..{rows.max()}; none counts from the end"
      )
    if (np.diff(rows) <= 0).any():
      raise ValueError(f"take: needs rising rows, got {len(rows)} in another order")
    return self._take(rows)

  def check(self) -> None:
    """Reads what ``take`` would not notice to be damaged, because it skips it.

    Raises:
      DataError: if it is damaged.
    """
    return

  def close(self) -> None:
    """Closes what ``read`` left open; another ``read`` opens it again."""
    return

  def _take(self, rows: np.ndarray) -> Images:
    """Reads records that exist, run by run."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    parts = [self._read(int(run[0]), int(run[-1]) + 1) for run in runs]
    images, labels = (
      np.concatenate(x) for x in zip(*((p.images, p.labels) for p in parts), strict=True)
    )
    return Images(images, labels, self.class_names)

  @abc.abstractmethod
  def _read(self, start: int, stop: int) -> Images:
    """Reads records that exist."""


class Source(NamedTuple):
  """One kind of source.

  Attributes:
    name: of the kind.
    matches: ``(source) -> bool``: whether a text as ``sources.open`` takes it names a source of this kind.
    open: ``(source, split, data_dir, image_size) -> Records``.
    resizes: whether ``image_size`` may be other than 0.
  """

  name: str
  matches: Callable[[str], bool]
  open: Callable[[str, str, str, int], Records]
  resizes: bool = False


def parse_split(split: str, counts: Mapping[str, int]) -> tuple[str, slice]:
  """Returns which of train and test a split means, and which of its records.

  Args:
    split: ``train``, ``test`` or a part, ``train[:1000]``.
    counts: number of records of each.

  Raises:
    ConfigError: for another form, or a part without records.
  """
  match = re.fullmatch(r"(train|test)(?:\[(\d*):(\d*)\])?", split)
  if not match:
    forms = "train, test or e.g. train[:1000] (percentages with TFDS sources only)"
    raise ConfigError(f"split must be {forms}, got {split!r}")
  name, start, stop = match.groups()
  part = slice(int(start or 0), int(stop or counts[name]))
  if not part.start < part.stop <= counts[name]:
    raise ConfigError(f"split {split!r} must name records that exist: {name} has {counts[name]}")
  return name, part


def check_shape(what: str, shape: tuple[int, ...]) -> None:
  """Refuses images without pixels or with an alpha channel.

  Args:
    what: the source, for the message.
    shape: ``(H, W, C)``.

  Raises:
    DataError: if so.
  """
  if 0 in shape:
    raise DataError(f"{what}: images have no pixels, shape {shape}")
  if shape[2] in (2, 4):
    raise DataError(f"{what}: {shape[2]} channels, one is alpha: drop it with images[..., :-1]")


def check_labels(what: str, labels: np.ndarray, start: int = 0, classes: int | None = None) -> None:
  """Refuses no labels and labels out of range.

  Args:
    what: the source, for the message.
    labels: integers ``[n]``.
    start: index of the first.
    classes: their number, where it is known.

  Raises:
    DataError: if so.
  """
  if not len(labels):
    raise DataError(f"{what}: no images")
  bad, fault = labels < 0, "negative"
  if classes is not None and not bad.any():
    bad, fault = labels >= classes, f"{classes} or more, the number of classes"
  if bad.any():
    first = start + bad.argmax()
    raise DataError(f"{what}: {bad.sum()} labels are {fault}, the first at index {first}")


def check_classes(what: str, classes: int) -> None:
  """Refuses numbers of classes that djax does not take.

  Args:
    what: the source, for the message.
    classes: their number.

  Raises:
    DataError: if so.
  """
  if not 2 <= classes <= _MAX_CLASSES:
    raise DataError(f"{what}: needs 2 to {_MAX_CLASSES} classes, labelled from 0; has {classes}")


def brief(error: Exception) -> str:
  """Returns the first line of an error."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]
