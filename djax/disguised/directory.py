"""Reads a disguised data set: what the rented machine needs, and the owner too. Holds no key and loads no key code.

Such a directory is untrusted until its manifest is authenticated: every file goes through ``djax.io.foreign``,
what the manifest names is hashed before it is used, and what the images are is taken from the manifest, never from the
files that lie there for TFDS. The directory is specified in docs/format.md.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import math
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

try:
  import resource
except ImportError:  # not on Windows
  resource = None  # type: ignore[assignment]

import numpy as np

from djax.disguised import containers
from djax.disguised import manifest as manifest_lib
from djax.disguised.manifest import Manifest, Shard
from djax.errors import DataError, ManifestError
from djax.io import escape, foreign
from djax.io.foreign import Content, ForeignFileError

__all__ = ["Disguised", "Split", "file_sha256", "open", "shards", "verify"]

_OTHER_FILES = 512
_EXTRA = (manifest_lib.FILE, manifest_lib.MAC_FILE)
_MOST_BYTES = 1 << 20  # of a file for TFDS or people
_SHOWN = 20  # faults in one message
_PIECE = 1 << 20
_FEATURES = "features.json"
_TFDS = "tensorflow_datasets.core.features."
_MOST_NAMES = manifest_lib.MOST_BYTES  # of label.labels.txt, whose names stand in the manifest too

Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Split(contextlib.AbstractContextManager["Split"]):
  """The records of one split, in any order, from several threads.

  Rows are integers in ``[0, len)``; none counts from the end. What was read from stays open until ``close``, or until
  so many other shards were read that it must make room.

  Args:
    path: the directory.
    name: of the split.
    manifest: of the directory.
    most_open: how many shards may be open at a time; at least 1.
  """

  def __init__(self, path: Path, name: str, manifest: Manifest, *, most_open: int = sys.maxsize):
    self.path = path
    self.name = name
    self.image_shape = manifest.disguised_shape
    self.dtype = np.dtype(manifest.dtype)
    self._classes = manifest.classes
    self._split = manifest.splits[name]
    self._ends = np.cumsum([shard.records for shard in self._split.shards])
    # A shard is hashed by one thread while others wait for it alone.
    self._locks = [threading.Lock() for _ in self._split.shards]
    self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()
    self._most_open, self._making_room = most_open, threading.Lock()
    self._hashed: dict[int, tuple[int, ...]] = {}
    self._container = containers.of(manifest, path)

  def __len__(self) -> int:
    return self._split.records

  @property
  def nbytes(self) -> int:
    """Bytes of all images, as stored."""
    return len(self) * self.dtype.itemsize * math.prod(self.image_shape)

  def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads some records. A shard is hashed before its first record is read.

    Args:
      rows: integers ``[n]`` in ``[0, len)``.

    Returns:
      Images as stored, ``[n, H', W', C]``, and label ids, int32 ``[n]``.

    Raises:
      IndexError: for rows that do not exist.
      DataError: for a record that cannot be read, or a label outside the classes.
    """
    rows = self._checked(rows, range(len(self)))
    images = np.empty((len(rows), *self.image_shape), self.dtype)
    labels = np.empty(len(rows), np.int32)
    shard_of = np.searchsorted(self._ends, rows, side="right")
    for shard in np.unique(shard_of).tolist():
      places = np.flatnonzero(shard_of == shard)
      first = self._ends[shard] - self._split.shards[shard].records
      result = self._records(self._reader(shard), shard, rows[places] - first)
      images[places], labels[places] = result
    return images, labels

  def check(self) -> None:
    """Hashes every shard that was not hashed yet; PNG files of a folder are hashed as they are read.

    Raises:
      DataError: if one is missing, damaged or no regular file.
    """
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
      for _ in pool.map(self._opened, range(self.shards)):
        pass

  @contextlib.contextmanager
  def private_shard(self, shard: int) -> Iterator[tuple[range, Read]]:
    """Yields the rows of a shard, and a function that reads some of them from a private copy, hashed as it was copied.

    Nothing that happens to the directory in the meantime changes what is read. The function takes rows of the split,
    as ``read``, of this shard alone, until the ``with`` statement ends.

    Args:
      shard: its number in the split.

    Raises:
      DataError: if it is missing, damaged or no regular file.
    """
    entry = self._split.shards[shard]
    first = int(self._ends[shard]) - entry.records
    with tempfile.TemporaryDirectory(prefix="djax-") as folder:
      copy = Path(folder) / entry.file
      foreign.copy_file(self.path, entry.file, Content(entry.bytes, entry.sha256), copy)
      rows_of = range(first, first + entry.records)
      with copy.open("rb", buffering=0) as file:
        reader = self._listed(file, shard)
      with reader:
        yield (
          rows_of,
          lambda rows: self._records(reader, shard, self._checked(rows, rows_of) - first),
        )

  @property
  def shards(self) -> int:
    """Number of shards."""
    return len(self._split.shards)

  def close(self) -> None:
    """Closes the shards that ``read`` and ``check`` opened; another ``read`` opens them again.

    What another thread is reading stays open until it is done: it alone still refers to the reader then.
    """
    self._readers.clear()

  def __exit__(self, *error: object) -> None:
    self.close()

  def _checked(self, rows: np.ndarray, allowed: range) -> np.ndarray:
    """Refuses rows that do not exist: what is asked for is wrong then, not the file."""
    rows = np.asarray(rows)
    if not len(rows):
      return rows.astype(np.int64)
    if not np.issubdtype(rows.dtype, np.integer):
      raise IndexError(
        f"rows of {self.name} must be integers, got {rows.dtype}. Give numbers of records."
      )
    if not allowed.start <= rows.min() <= rows.max() < allowed.stop:
      raise IndexError(
        f"rows of {self.name} must lie in {allowed.start}..{allowed.stop - 1}, got {rows.min()}..{rows.max()}. "
        "None counts from the end."
      )
    return rows

  def _records(self, reader: Any, shard: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads records of one shard; rows count from its first."""
    images = np.empty((len(rows), *self.image_shape), self.dtype)
    labels = np.empty(len(rows), np.int64)
    try:
      for place, row in enumerate(rows.tolist()):
        labels[place] = self._container.read(reader, row, images[place])
    except (ValueError, OSError, ForeignFileError) as error:
      raise self._damaged(shard, error) from None
    if len(labels) and not 0 <= labels.min() <= labels.max() < self._classes:
      bad = labels[(labels < 0) | (labels >= self._classes)][0]
      raise DataError(
        f"{self.path}: {self.name} holds the label {bad}, but the manifest has {self._classes} classes. "
        f"See what is damaged: python -m djax verify {self.path}"
      )
    return images, labels.astype(np.int32)

  def _opened(self, shard: int) -> None:
    """Opens a shard and drops the reader: a list of all readers would keep every shard open."""
    self._reader(shard)

  def _reader(self, shard: int) -> Any:
    """Opens a shard, and hashes it unless it is the very file that was hashed before, whatever has its name."""
    with self._locks[shard]:
      reader = self._readers.get(shard)  # once: another thread may close them
      if reader is None:
        entry = self._split.shards[shard]
        with foreign.opened(self.path, entry.file, limit=entry.bytes) as file:
          before = _state(file)
          if self._hashed.get(shard) != before:
            if self._sha256(file, shard) != entry.sha256:
              raise ManifestError(
                f"{self.path}: {entry.file} is damaged. Take the files from a good copy."
              )
            self._hashed[shard] = before
          reader = self._listed(file, shard)
    with self._making_room:
      self._readers[shard] = reader
      self._readers.move_to_end(shard)
      while len(self._readers) > self._most_open:
        self._readers.popitem(last=False)  # another thread may read it still: see close
    return reader

  def _sha256(self, file: IO[bytes], shard: int) -> str:
    """Hashes as many bytes as a shard has; one that grows meanwhile has no end."""
    sha256, left = hashlib.sha256(), self._split.shards[shard].bytes
    try:
      while left and (piece := file.read(min(left, _PIECE))):
        sha256.update(piece)
        left -= len(piece)
    except OSError as error:
      raise self._damaged(shard, error) from None
    return sha256.hexdigest()

  def _listed(self, file: IO[bytes], shard: int) -> Any:
    """Lists the records of an open file."""
    entry = self._split.shards[shard]
    try:
      first = int(self._ends[shard]) - entry.records
      return self._container.listed(file, entry, self.name, first)
    except (ValueError, OSError) as error:
      raise self._damaged(shard, error) from None

  def _damaged(self, shard: int, error: Exception) -> DataError:
    line = escape.for_terminal(" ".join(str(error).split())[:200])
    return DataError(
      f"{self.path}: a record of {self._split.shards[shard].file} cannot be read ({line}). "
      f"See what is damaged: python -m djax verify {self.path}"
    )


@dataclasses.dataclass(frozen=True)
class Disguised(contextlib.AbstractContextManager["Disguised"]):
  """A disguised data set: where it lies, its manifest, its splits by name.

  Close it, or use it in a ``with`` statement: shards that were read from are open until then.
  """

  path: Path
  manifest: Manifest
  splits: Mapping[str, Split]

  def close(self) -> None:
    """Closes the shards of all splits; what is read later opens them again."""
    for split in self.splits.values():
      split.close()

  def __exit__(self, *error: object) -> None:
    self.close()


def open(path: str | os.PathLike) -> Disguised:
  """Opens a disguised data set: manifest checked, small files whole, shards there and of the right length.

  ``verify`` checks every byte. Records are hashed before they are read.

  Args:
    path: the directory.

  Raises:
    ManifestError: if anything is missing or damaged, or of a newer version.
  """
  folder = Path(path).expanduser()
  manifest = manifest_lib.read(folder)
  faults = [_small_fault(folder, *file) for file in manifest.files.items()]
  faults += [_size_fault(folder, shard) for shard in shards(manifest)]
  _refuse(folder, faults)
  count = len(shards(manifest))
  most = _allow_open(count)
  splits = {
    name: Split(folder, name, manifest, most_open=max(1, most * len(split.shards) // max(count, 1)))
    for name, split in manifest.splits.items()
  }
  return Disguised(folder, manifest, splits)


def _allow_open(count: int) -> int:
  """Lets this process hold so many shards open, as far as the system allows; returns how many it may.

  Else what it opens has room for 512 files, or three quarters of what the system allows if that is less.
  """
  if resource is None:
    return _OTHER_FILES
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = count + _OTHER_FILES
  if soft != resource.RLIM_INFINITY and soft < wanted:
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    soft = max(soft, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  if soft == resource.RLIM_INFINITY:
    return count
  return max(soft - _OTHER_FILES, soft // 4)


def _state(file: IO[bytes]) -> tuple[int, ...]:
  """Returns what changes where a file is written or another takes its name."""
  status = os.fstat(file.fileno())
  return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def verify(
  path: str | os.PathLike,
  *,
  manifest: Manifest | None = None,
  unfinished: bool = False,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
  """Checks every byte of a disguised data set against its manifest.

  Someone who changes files can mend every checksum; only ``manifest.authenticate`` detects that.

  Args:
    path: the directory.
    manifest: the one to check against, perhaps authenticated; else that of the directory.
    unfinished: whether what a stop at the very end leaves may be there.
    progress: called with how many bytes are read, and of how many.

  Returns:
    The manifest.

  Raises:
    ManifestError: naming every file that is missing, damaged or not in the manifest.
  """
  folder = Path(path).expanduser()
  manifest = manifest or manifest_lib.read(folder)
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
    container, listed = containers.of(manifest, folder), [*_placed(manifest)]
    named = [shard.records * container.record_bytes for shard, *_ in listed if container.folders]
    sizes = [*(shard.bytes for shard, *_ in listed), *named]
    total, sums = sum(sizes), itertools.accumulate(sizes)
    faults: list[str | None] = []
    for fault in pool.map(lambda at: _shard_fault(folder, at[0]), listed):
      faults.append(fault)
      progress(next(sums), total)
    checked = []
    for check in [] if any(faults) else pool.map(lambda at: container.check(*at), listed):
      checked.append(check)
      progress(next(sums, total), total)
  faults += itertools.chain.from_iterable(check.faults for check in checked)
  faults += [_small_fault(folder, *file) for file in manifest.files.items()]
  known = {*_EXTRA, *manifest.files, *(shard.file for shard in shards(manifest))}
  known |= {manifest_lib.UNFINISHED} if unfinished else set()
  strangers = [
    _stranger(name) for name in foreign.names(folder) if name not in known | {*container.folders}
  ]
  names = [check.names for check in checked if check.names is not None]
  if len(names) == len(listed):
    strangers += container.strangers(set().union(*names))
  _refuse(folder, faults, strangers)
  return manifest


def _placed(manifest: Manifest) -> Iterator[tuple[Shard, str, int]]:
  """Yields each shard with its split and the place of its first record there."""
  for name, split in manifest.splits.items():
    starts = itertools.accumulate((shard.records for shard in split.shards), initial=0)
    for shard, first in zip(split.shards, starts, strict=False):
      yield shard, name, first


def shards(manifest: Manifest) -> list[Shard]:
  """Returns the shards of all splits, in order.

  Args:
    manifest: of the directory.
  """
  return [shard for split in manifest.splits.values() for shard in split.shards]


def _refuse(folder: Path, faults: list[str | None], strangers: Sequence[str] = ()) -> None:
  """Names everything that is wrong with a directory, the first few by name."""
  damaged = [fault for fault in faults if fault]
  messages = [*damaged, *strangers]
  if messages:
    shown = "; ".join(messages[:_SHOWN])
    more = f"; and {len(messages) - _SHOWN} more" if len(messages) > _SHOWN else ""
    advice = "Take the files from a good copy." if damaged else "Move away what is not in it."
    raise ManifestError(f"{folder}: {shown}{more}. {advice}")


def _size_fault(folder: Path, shard: Shard) -> str | None:
  """Returns what is wrong with a shard's length or kind, or None."""
  try:
    size = foreign.size_of(folder, shard.file)
  except ForeignFileError as error:
    return _without_folder(folder, error)
  return None if shard.bytes == size else f"{shard.file} must have {shard.bytes} bytes, has {size}"


def _shard_fault(folder: Path, shard: Shard) -> str | None:
  """Returns what is wrong with a shard, or None."""
  if fault := _size_fault(folder, shard):
    return fault
  try:
    content = foreign.digest(folder, shard.file, limit=shard.bytes)
  except ForeignFileError as error:
    return _without_folder(folder, error)
  return None if content == (shard.bytes, shard.sha256) else f"{shard.file} is damaged"


def _small_fault(folder: Path, name: str, sha256: str) -> str | None:
  """Returns what is wrong with a file for TFDS or people, or None."""
  limit = _MOST_NAMES if name.endswith(".txt") else _MOST_BYTES
  try:
    data = foreign.read(folder, name, limit=limit)
  except ForeignFileError as error:
    return _without_folder(folder, error)
  if hashlib.sha256(data).hexdigest() != sha256:
    return f"{name} is damaged"
  return f"{name} names code that is not of TFDS" if name == _FEATURES and _is_code(data) else None


def _is_code(data: bytes) -> bool:
  """Whether TFDS would import a module of somebody else's if it read this file, as README.md shows to do."""
  try:
    left = [foreign.parse_json(data)]
  except ValueError:
    return True
  while left:
    value = left.pop()
    if isinstance(value, str) and "." in value and not value.startswith(_TFDS):
      return True
    left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
  return False


def _without_folder(folder: Path, error: ForeignFileError) -> str:
  """Returns a fault in the form of the others, which name the folder once."""
  return str(error).removeprefix(f"{folder}{os.sep}").removesuffix(".")


def _stranger(name: str) -> str:
  """Says of a name that it does not belong there, and of what a stop at the very end leaves, what to do."""
  if name == manifest_lib.UNFINISHED:
    return f"{name} is left from a run that was stopped: re-run the `djax disguise` command"
  return f"{escape.for_terminal(name)} is not in the manifest"


def file_sha256(path: Path) -> str:
  """Returns SHA-256 of a file of this machine's own, in hex, reading it in pieces.

  Args:
    path: the file.
  """
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
