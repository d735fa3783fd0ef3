"""How the records of a data set lie in its directory: as shards of ArrayRecord, or as a folder of PNG files.

Either way the manifest names some files, its shards, with their hashes. A shard of ArrayRecord holds records; that of a
folder holds the names of PNG files and their hashes. Nothing here is trusted before its hash was compared.
"""

import abc
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Set
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from djax.disguised import array_records, png, records
from djax.disguised.manifest import UNFINISHED, Manifest, Shard
from djax.disguised.manifest_form import FOLDER, SHARDS, digits, line_bytes
from djax.io import escape, foreign
from djax.io.foreign import ForeignFileError

__all__ = ["Checked", "Container", "of"]

_BLOCK = 4096  # of disk that a small file fills
_MORE = 1024  # names beside those of records that are looked at
_HASH = re.compile(r"[0-9a-f]{64}")


def of(manifest: Manifest, folder: Path) -> "Container":
  """Returns the container of a data set.

  Args:
    manifest: of the data set, perhaps unfinished.
    folder: its directory.
  """
  return {SHARDS: _Shards, FOLDER: _Folder}[manifest.container](manifest, folder)


class Checked(NamedTuple):
  """What is wrong with the files that a shard names, and their names; None where the shard itself cannot be read."""

  faults: list[str]
  names: set[str] | None


class Container(abc.ABC):
  """How the records of one data set lie in its directory.

  Args:
    manifest: of the data set.
    folder: its directory.

  Attributes:
    record_bytes: about what a record takes on a disk.
    folders: names in the directory that hold records and are no shards.
  """

  record_bytes: int
  folders: tuple[str, ...] = ()

  def __init__(self, manifest: Manifest, folder: Path):
    self._manifest, self._folder = manifest, folder

  @staticmethod
  @abc.abstractmethod
  def file(split: str, index: int, count: int) -> str:
    """Returns the name of shard ``index`` of ``count`` of a split."""

  @abc.abstractmethod
  def write(
    self, path: Path, split: str, first: int, images: np.ndarray, labels: np.ndarray
  ) -> None:
    """Writes a shard.

    Args:
      path: the shard's file, in ``.unfinished``; what else it needs is written to its own place.
      split: the split.
      first: place of the shard's first record in the split.
      images: ``[N, H', W', C]`` as stored.
      labels: int32 ``[N]``.

    Raises:
      DjaxError, OSError: if it cannot be written.
    """

  @abc.abstractmethod
  def listed(self, file: IO[bytes], shard: Shard, split: str, first: int) -> Any:
    """Returns the records of an open shard, for ``read``; a context manager that has ``close``.

    Raises:
      ValueError: if the shard is laid out otherwise.
      OSError: if it cannot be read.
    """

  @abc.abstractmethod
  def read(self, listed: Any, row: int, image: np.ndarray) -> int:
    """Writes the image of a record into an array and returns the label id, which may lie outside the classes.

    Args:
      listed: as ``listed`` returned it.
      row: counted from the first of the shard.
      image: ``[H', W', C]``, to be filled.

    Raises:
      ValueError, OSError, ForeignFileError: if it cannot be read, or is another than the shard says.
    """

  def check(self, shard: Shard, split: str, first: int) -> Checked:
    """Reads every file that a whole shard names.

    Args:
      shard: the shard.
      split: its split.
      first: place of its first record in the split.
    """
    return Checked([], set())

  def strangers(self, names: Set[str]) -> Iterator[str]:
    """Yields what lies in ``folders`` and is not meant to.

    Args:
      names: of the files that all shards name.
    """
    yield from ()

  def texts(self) -> dict[str, bytes]:
    """Returns files for other readers by name; ``.unfinished`` exists."""
    return {}


class _Shards(Container):
  """Files of ArrayRecord, as TFDS reads them."""

  def __init__(self, manifest: Manifest, folder: Path):
    super().__init__(manifest, folder)
    dtype = np.dtype(manifest.dtype)
    self._parse = records.Parser(manifest.disguised_shape, dtype, manifest.classes)
    # Example, chunk and block headers.
    self.record_bytes = int(np.prod(manifest.disguised_shape)) * dtype.itemsize + 256

  @staticmethod
  def file(split: str, index: int, count: int) -> str:
    return f"{records.NAME}-{split}.array_record-{index:05d}-of-{count:05d}"

  def write(
    self, path: Path, split: str, first: int, images: np.ndarray, labels: np.ndarray
  ) -> None:
    features = records.features(
      self._manifest.disguised_shape, self._manifest.dtype, self._manifest.classes
    )
    with records.writer(path, features) as write:
      write(images, labels)

  def listed(self, file: IO[bytes], shard: Shard, split: str, first: int) -> array_records.Reader:
    return array_records.Reader(
      file, length=shard.bytes, records=shard.records, longest=self._parse.longest
    )

  def read(self, listed: array_records.Reader, row: int, image: np.ndarray) -> int:
    return self._parse(listed.record(row), image)

  def texts(self) -> dict[str, bytes]:
    manifest = self._manifest
    features = records.features(
      manifest.disguised_shape, manifest.dtype, manifest.classes, manifest.class_names
    )
    place = self._folder / UNFINISHED / "features"
    place.mkdir(exist_ok=True)
    features.save_config(str(place))
    texts = {path.name: path.read_bytes() for path in sorted(place.iterdir())}
    texts["dataset_info.json"] = json.dumps(records.tfds_info(manifest.splits), indent=1).encode()
    return texts


class _Listing(contextlib.AbstractContextManager["_Listing"]):
  """The lines of a shard of a folder: SHA-256, label and name of each PNG file."""

  def __init__(self, hashes: list[str], labels: list[int], names: list[str]):
    self.hashes, self.labels, self.names = hashes, labels, names

  def close(self) -> None:
    """Holds nothing open."""

  def __exit__(self, *error: object) -> None:
    self.close()


class _Folder(Container):
  """PNG files ``SPLIT/LABEL/PLACE.png``, and shards that list them, in the form of ``sha256sum``."""

  def __init__(self, manifest: Manifest, folder: Path):
    super().__init__(manifest, folder)
    self._bytes = png.size(manifest.disguised_shape)
    self.record_bytes = -(-self._bytes // _BLOCK) * _BLOCK + 128
    self.folders = tuple(manifest.splits)

  @staticmethod
  def file(split: str, index: int, count: int) -> str:
    return f"{records.NAME}-{split}.sha256-{index:05d}-of-{count:05d}"

  def write(
    self, path: Path, split: str, first: int, images: np.ndarray, labels: np.ndarray
  ) -> None:
    for label in range(self._manifest.classes):
      (self._folder / split / self._label(label)).mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}-png{path.suffix}")
    lines = []
    for place, (image, label) in enumerate(zip(images, labels.tolist(), strict=True), first):
      data, name = png.encode(image), self._name(split, label, place)
      temporary.write_bytes(data)
      os.replace(temporary, self._folder / name)
      lines.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
    path.write_text("".join(lines))
    os.sync()  # once a shard, not once a file

  def listed(self, file: IO[bytes], shard: Shard, split: str, first: int) -> _Listing:
    line = line_bytes(split, self._manifest.splits[split].records, self._manifest.classes)
    file.seek(0)
    data = file.read(shard.bytes)
    if len(data) != shard.records * line:
      raise ValueError(f"it must hold {shard.records} lines of {line} bytes")
    hashes, labels, names = [], [], []
    width = digits(self._manifest.classes)
    for place in range(shard.records):
      text = data[place * line : (place + 1) * line].decode("latin-1")
      digest, start = text[:64], 64 + len(f"  {split}/")
      label = text[start : start + width]
      number = int(label) if re.fullmatch("[0-9]+", label) else 0
      name = self._name(split, number, first + place)
      fits = _HASH.fullmatch(digest) and text[64:] == f"  {name}\n"
      if not fits or number >= self._manifest.classes:
        raise ValueError(f"line {place + 1} is no SHA-256 and name of record {first + place}")
      hashes.append(digest)
      labels.append(number)
      names.append(name)
    return _Listing(hashes, labels, names)

  def read(self, listed: _Listing, row: int, image: np.ndarray) -> int:
    if not 0 <= row < len(listed.names):
      raise IndexError(f"record: number must lie in 0..{len(listed.names) - 1}, got {row}.")
    data = foreign.read(self._folder, listed.names[row], limit=self._bytes)
    if hashlib.sha256(data).hexdigest() != listed.hashes[row]:
      raise ValueError(f"{listed.names[row]} is damaged")
    try:
      png.decode(data, image)
    except ValueError as error:
      raise ValueError(f"{listed.names[row]}: {error}") from None
    return listed.labels[row]

  def check(self, shard: Shard, split: str, first: int) -> Checked:
    try:
      with foreign.opened(self._folder, shard.file, limit=shard.bytes) as file:
        listed = self.listed(file, shard, split, first)
    except ValueError as error:
      return Checked([f"{shard.file}: {error}"], None)
    faults = []
    for label in map(self._label, range(self._manifest.classes if first == 0 else 0)):
      if not (self._folder / split / label).is_dir():
        # Else a reader that numbers folders gets other label ids.
        faults.append(f"{split}/{label} must be a folder, even an empty one")
    image = np.empty(self._manifest.disguised_shape, np.uint8)
    for row in range(shard.records):
      try:
        self.read(listed, row, image)
      except ForeignFileError as error:
        faults.append(str(error).removeprefix(f"{self._folder}{os.sep}").removesuffix("."))
      except ValueError as error:
        faults.append(str(error))
    return Checked(faults, set(listed.names))

  def strangers(self, names: Set[str]) -> Iterator[str]:
    labels = {self._label(label) for label in range(self._manifest.classes)}
    for split, facts in self._manifest.splits.items():
      for label in foreign.names(self._folder / split):
        inside = [f"{split}/{label}"]
        if label in labels:
          entries = foreign.names(self._folder / split / label, most=facts.records + _MORE)
          inside = [f"{split}/{label}/{entry}" for entry in entries]
        for name in inside:
          if name not in names:
            yield f"{escape.for_terminal(name)} is not in the manifest"

  def _label(self, label: int) -> str:
    """Returns the name of a label's folder; sorted as text they are sorted by number."""
    return f"{label:0{digits(self._manifest.classes)}d}"

  def _name(self, split: str, label: int, place: int) -> str:
    """Returns the name of a record's file: its place in the split, which is drawn from the key."""
    width = digits(self._manifest.splits[split].records)
    return f"{split}/{self._label(label)}/{place:0{width}d}.png"
