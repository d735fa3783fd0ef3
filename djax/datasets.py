"""Reads a disguised data set: what the rented machine needs, and the owner too. Holds no key and loads no key code.

The directory is specified in docs/format.md.
"""

import concurrent.futures
import dataclasses
import hashlib
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from djax import manifest as manifest_lib
from djax import records
from djax.errors import DataError, ManifestError
from djax.manifest import Manifest, Shard

__all__ = ["NAME", "Disguised", "Split", "file_sha256", "open", "shards", "verify"]

NAME = records.NAME
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access
_EXTRA = (manifest_lib.FILE, manifest_lib.MAC_FILE)


class Split:
  """The records of one split, in any order, from several threads.

  Args:
    path: the directory.
    name: of the split.
    manifest: of the directory.
  """

  def __init__(self, path: Path, name: str, manifest: Manifest):
    self.path = path
    self.name = name
    self.image_shape = manifest.disguised_shape
    self.dtype = np.dtype(manifest.dtype)
    self._classes = manifest.classes
    self._facts = manifest.splits[name]
    self._ends = np.cumsum([shard.records for shard in self._facts.shards])
    self._lock = threading.Lock()
    self._readers: dict[int, Any] = {}
    self._parse: records.Parser | None = None

  def __len__(self) -> int:
    return self._facts.records

  @property
  def nbytes(self) -> int:
    """Bytes of all images, as stored."""
    return len(self) * self.dtype.itemsize * math.prod(self.image_shape)

  def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads some records.

    Args:
      rows: integers ``[n]`` in ``[0, len)``.

    Returns:
      Images as stored, ``[n, H', W', C]``, and label ids, int32 ``[n]``.

    Raises:
      DataError: for a record that cannot be read, or a label outside the classes.
    """
    rows = np.asarray(rows)
    images = np.empty((len(rows), *self.image_shape), self.dtype)
    labels = np.empty(len(rows), np.int64)
    try:
      if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
        raise ValueError(f"rows must lie in 0..{len(self) - 1}, got {rows.min()}..{rows.max()}")
      parse = self._parser()
      shard_of = np.searchsorted(self._ends, rows, side="right")
      for shard in np.unique(shard_of).tolist():
        places = np.flatnonzero(shard_of == shard)
        first = self._ends[shard] - self._facts.shards[shard].records
        found = self._reader(shard).read((rows[places] - first).tolist())
        for place, data in zip(places.tolist(), found, strict=True):
          labels[place] = parse(data, images[place])
    except Exception as error:  # array_record and protobuf each have their own
      line = " ".join(str(error).split())[:200]
      raise DataError(
        f"{self.path}: a record of {self._shard_of(rows)} cannot be read ({line}). "
        f"See what is damaged: python -m djax verify {self.path}"
      ) from None
    if len(labels) and not 0 <= labels.min() <= labels.max() < self._classes:
      bad = labels[(labels < 0) | (labels >= self._classes)][0]
      raise DataError(
        f"{self.path}: {self.name} holds the label {bad}, but the manifest has {self._classes} classes. "
        f"See what is damaged: python -m djax verify {self.path}"
      )
    return images, labels.astype(np.int32)

  def _parser(self) -> records.Parser:
    """Has TFDS read the features of the directory, once."""
    with self._lock:
      if self._parse is None:
        import tensorflow_datasets as tfds

        found = tfds.builder_from_directory(str(self.path)).info.features
        self._parse = records.Parser(found, self.image_shape, self.dtype, self._classes)
      return self._parse

  def _reader(self, shard: int) -> Any:
    """Opens a shard, once; its reader serves several threads."""
    from array_record.python.array_record_module import ArrayRecordReader

    with self._lock:
      if shard not in self._readers:
        path = self.path / self._facts.shards[shard].file
        self._readers[shard] = ArrayRecordReader(str(path), _READER_OPTIONS)
      return self._readers[shard]

  def _shard_of(self, rows: np.ndarray) -> str:
    """Names the shards that hold some rows."""
    hit = sorted(set(np.searchsorted(self._ends, rows, side="right").tolist()))
    return ", ".join(self._facts.shards[i].file for i in hit if i < len(self._ends))


@dataclasses.dataclass(frozen=True)
class Disguised:
  """A disguised data set: where it lies, its manifest, its splits by name."""

  path: Path
  manifest: Manifest
  splits: Mapping[str, Split]


def open(path: str | os.PathLike) -> Disguised:
  """Opens a disguised data set: manifest checked, files there and of the right length.

  ``verify`` checks every byte.

  Args:
    path: the directory.

  Raises:
    ManifestError: if anything is missing or damaged, or of a newer version.
  """
  folder = Path(path).expanduser()
  manifest = manifest_lib.read(folder)
  for name, size, _ in _files(manifest):
    _check_there(folder, name, size)
  return Disguised(
    folder, manifest, {name: Split(folder, name, manifest) for name in manifest.splits}
  )


def verify(path: str | os.PathLike, *, mac_key: bytes | None = None) -> Manifest:
  """Checks every byte of a disguised data set.

  Args:
    path: the directory.
    mac_key: the subkey ``manifest.MAC_LABEL``; without it tampering by someone who mends the checksums goes unseen.

  Returns:
    The manifest.

  Raises:
    ManifestError: naming every file that is missing, damaged or not in the manifest.
  """
  folder = Path(path).expanduser()
  manifest = manifest_lib.read(folder)
  if mac_key is not None:
    manifest_lib.authenticate(folder, mac_key=mac_key)
  expected = _files(manifest)
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
    faults = [fault for fault in pool.map(lambda file: _fault(folder, *file), expected) if fault]
  known = {*_EXTRA, *(name for name, _, _ in expected)}
  faults += [_stranger(entry.name) for entry in sorted(folder.iterdir()) if entry.name not in known]
  if faults:
    raise ManifestError(f"{folder}: {'; '.join(faults)}. Take the files from a good copy.")
  return manifest


def shards(manifest: Manifest) -> list[Shard]:
  """Returns the shards of all splits, in order.

  Args:
    manifest: of the directory.
  """
  return [shard for split in manifest.splits.values() for shard in split.shards]


def _files(manifest: Manifest) -> list[tuple[str, int | None, str]]:
  """Returns name, length where known, and SHA-256 of every file that the manifest vouches for."""
  files: list[tuple[str, int | None, str]] = [
    (shard.file, shard.bytes, shard.sha256) for shard in shards(manifest)
  ]
  return [*files, *((name, None, sha256) for name, sha256 in manifest.files.items())]


def _check_there(folder: Path, name: str, size: int | None) -> None:
  """Refuses a file that is missing or of another length."""
  fault = _size_fault(folder, name, size)
  if fault:
    raise ManifestError(f"{folder}: {fault}. Take the files from a good copy.")


def _size_fault(folder: Path, name: str, size: int | None) -> str | None:
  """Returns what is wrong with a file's length, or None."""
  try:
    found = (folder / name).stat().st_size
  except OSError as error:
    return (
      f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror}"
    )
  return None if size in (None, found) else f"{name} must have {size} bytes, has {found}"


def _fault(folder: Path, name: str, size: int | None, sha256: str) -> str | None:
  """Returns what is wrong with a file, or None."""
  if fault := _size_fault(folder, name, size):
    return fault
  try:
    return None if file_sha256(folder / name) == sha256 else f"{name} is damaged"
  except OSError as error:
    return f"{name}: {error.strerror}"


def _stranger(name: str) -> str:
  """Says of a name that it does not belong there, and of what a stop at the very end leaves, what to do."""
  if name == manifest_lib.UNFINISHED:
    return (
      f"{name} is left from a run that was stopped: give the same `djax disguise` command again"
    )
  return f"{name} is not in the manifest"


def file_sha256(path: Path) -> str:
  """Returns SHA-256 of a file, in hex, reading it in pieces.

  Args:
    path: the file.
  """
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
