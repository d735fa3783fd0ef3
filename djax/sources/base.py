"""What every kind of source gives out: images, records of a split, splits by name."""

import abc
import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from djax.errors import ConfigError, DataError
from djax.sources import checks

__all__ = ["AS_IS", "Images", "Reading", "Records", "Source", "brief", "parse_split", "refusal"]

_SAMPLE = 64  # images whose values tell the scale of the others


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
    what: names the records in messages.
    notes: what an owner should know of how the source was read, in words.
    scale: the value of white, 1 or 255; with 1, all values are multiplied by 255. 0: 255, and images that look as if
      it were 1 are refused.
  """

  scale = 0

  def __init__(
    self,
    count: int,
    *,
    name: str,
    image_shape: tuple[int, int, int],
    dtype: Any,
    class_names: tuple[str, ...],
    files: Mapping[str, pathlib.Path],
    what: str = "",
    notes: Sequence[str] = (),
    first: int = 0,
  ):
    checks.check_class_names(what or name, class_names)
    self.name = name
    self.what = what or name
    self.notes = tuple(notes)
    self.image_shape = image_shape
    self.dtype = np.dtype(dtype)
    self.class_names = class_names
    self.files = tuple(sorted(files.items()))
    self._count = count
    self._first = first  # of the split's part that was opened, for messages
    self._stamps = {path: _stamp(path) for _, path in self.files}

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
    return self._checked(np.arange(start, stop), self._read(start, stop))

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
    return self._checked(rows, self._take(rows))

  def labels(self) -> np.ndarray:
    """Reads all labels, int32 ``[N]``.

    Raises:
      DataError: as ``read``.
    """
    step = 1024
    starts = range(0, len(self), step)
    return np.concatenate([self.read(i, min(i + step, len(self))).labels for i in starts])

  def check(self) -> None:
    """Looks at what ``take`` does not notice: the scale of the values, and damage in what it skips.

    Raises:
      DataError: if something is wrong.
    """
    rows = np.unique(np.linspace(0, len(self) - 1, _SAMPLE).astype(int))
    self.check_scale(self.take(rows).images)
    self.close()

  def check_scale(self, images: np.ndarray) -> None:
    """Refuses images whose white looks as if it were 1, if nobody gave their scale.

    Args:
      images: some or all of the records.

    Raises:
      DataError: if so.
    """
    if not self.scale:
      checks.check_scale(self.what, [images])

  def snapshot(self) -> str:
    """Returns a digest of what ``open`` saw: shape, classes, and name, size and time of every file."""
    seen = [(name, self._stamps[path]) for name, path in self.files]
    facts = [self.image_shape, self.dtype.name, self.class_names, len(self), seen]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

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
    """Reads records that exist; their values may be on another scale and are not checked."""

  def _paths(self, rows: np.ndarray) -> Iterable[pathlib.Path]:
    """Returns the files that hold some records."""
    return self._stamps

  def _checked(self, rows: np.ndarray, given: Images) -> Images:
    """Brings values to the scale 0..255 and refuses those outside; refuses files that changed since ``open``."""
    for path in self._paths(rows):
      if _stamp(path) != self._stamps[path]:
        raise DataError(
          f"{path}: was changed while the source was read. Re-run the command when nothing writes there."
        )
    images = checks.to_255(self.what, given.images, self.scale, self._first + int(rows[0]))
    return dataclasses.replace(given, images=images)


def _stamp(path: pathlib.Path) -> tuple[int, int] | None:
  """Returns size and time of a file, or None if it is not there."""
  try:
    found = path.stat()
  except OSError:
    return None
  return found.st_size, found.st_mtime_ns


@dataclasses.dataclass(frozen=True)
class Reading:
  """How a source is read, besides its splits.

  Attributes:
    data_dir: of prepared TFDS sets; else ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
    image_size: side in pixels to which images of a folder are resized, bilinear with antialiasing, without keeping the
      ratio of the sides; 0 leaves them as they are.
    scale: the value of white, 1 or 255; 0: 255, and images whose values are nearly all at most 1 are refused.
    group_by: for folders, who is on an image, so that nobody is in two splits: a regular expression whose one group
      finds it in the file's path below the folder, or a file ``X.csv`` with the columns ``file`` and ``group``.
    split_seed: where djax divides a folder into train and test: 0 takes every fifth file, or group, in the order of its
      name for test; any other number draws a fifth.
    background: for folders, the colour behind images with transparency, ``white`` or ``#rrggbb``; empty: such images
      are refused.

  Raises:
    ConfigError: for values that cannot work.
  """

  data_dir: str = ""
  image_size: int = 0
  scale: int = 0
  group_by: str = ""
  split_seed: int = 0
  background: str = ""

  def __post_init__(self) -> None:
    if self.image_size < 0:
      raise ConfigError(f"image_size must be 0 (as is) or a side in pixels, got {self.image_size}")
    if self.scale not in (0, 1, 255):
      raise ConfigError(f"scale must be 1 or 255, the value of white, got {self.scale}")


AS_IS = Reading()


class Source(NamedTuple):
  """One kind of source.

  Attributes:
    name: of the kind.
    matches: ``(source) -> bool``: whether a text as ``sources.open`` takes it names a source of this kind.
    open: ``(source, split, reading) -> Records``.
    is_folder: whether it takes what ``Reading`` has for folders.
  """

  name: str
  matches: Callable[[str], bool]
  open: Callable[[str, str, Reading], Records]
  is_folder: bool = False


def parse_split(split: str, counts: Mapping[str, int]) -> tuple[str, slice]:
  """Returns which split is meant, and which of its records.

  Args:
    split: the name of a split or a part of one, ``train[:1000]``.
    counts: number of records of each split that there is.

  Raises:
    ConfigError: for another form, a split that is not there, or a part without records.
  """
  match = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", split)
  if not match or match[1] not in counts:
    forms = f"{', '.join(counts)} or e.g. train[:1000] (percentages with TFDS sources only)"
    raise ConfigError(f"split must be {forms}, got {split!r}")
  name, start, stop = match.groups()
  part = slice(int(start or 0), int(stop or counts[name]))
  if not part.start < part.stop <= counts[name]:
    raise ConfigError(f"split {split!r} must name records that exist: {name} has {counts[name]}")
  return name, part


def refusal(what: str, fault: str, error: Exception) -> DataError:
  """Returns what to raise for a file that could not be read: the system's word where it has one, else the fault.

  Args:
    what: the file.
    fault: what is wrong with it if it could be read at all.
    error: of the system or of a parser.
  """
  if isinstance(error, OSError) and error.errno:
    return DataError(f"{what}: cannot be read ({error.strerror})")
  return DataError(f"{what}: {fault} ({brief(error)})")


def brief(error: Exception) -> str:
  """Returns the first line of an error."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]
