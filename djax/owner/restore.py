"""The way back: originals from a disguised data set, for the owner of its key.

View 0 of every original comes back, with the label ids and class names of the source.
"""

import contextlib
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from djax import datasets, manifest, quantise
from djax.datasets import Disguised, Split
from djax.errors import ConfigError, DjaxError, KeyMismatchError, UnsafeError
from djax.keys import Master
from djax.manifest import Manifest
from djax.owner import disguiser, sealed
from djax.owner.disguiser import Disguiser

__all__ = ["appearing", "authenticated", "check_new", "originals", "to_folder", "to_npz", "values"]

_CHUNK_BYTES = 4 << 20
_SPARE_BYTES = 4 << 20
_FILE_BYTES = 4096  # of disk that a small file takes
_LONGEST_NAME = 60

Progress = Callable[[int, int], None]


def authenticated(folder: Path, master: Master) -> Manifest:
  """Reads a manifest that the owner of a key wrote and nobody changed since.

  Args:
    folder: a disguised data set, or a run directory with copies of both files.
    master: the owner's key.

  Raises:
    KeyMismatchError: if it was made with another key.
    ManifestError: if it is missing, damaged or tampered with.
  """
  facts = manifest.read(folder)
  if facts.key_fingerprint != master.fingerprint:
    raise KeyMismatchError(
      f"{folder} was disguised with the key {facts.key_fingerprint}, got {master.fingerprint}. "
      "Give the key it was disguised with."
    )
  manifest.authenticate(folder, mac_key=master.subkey(manifest.MAC_LABEL))
  return facts


def values(images: np.ndarray, facts: Manifest) -> np.ndarray:
  """Turns stored images into disguised ones, as far as storing them allows.

  Args:
    images: ``[B, H', W', C]`` as stored.
    facts: the manifest.

  Returns:
    The same shape: uint8 where the disguise itself is, else float32.
  """
  if facts.quantiser is not None:
    return quantise.dequantise(images, facts.quantiser, block_size=facts.block_size)
  return images if images.dtype == np.uint8 else images.astype(np.float32)


def originals(
  data: Disguised, master: Master, split: str, *, chunk: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Restores the originals of a split, in order. The files are not hashed: ``datasets.verify`` does that.

  Args:
    data: the disguised data set.
    master: its key.
    split: the split's name.
    chunk: originals restored at once.

  Returns:
    Pairs of images ``[n, H, W, C]``, neither rounded nor cut to 0..255, float32 for rmt, else the dtype of the
    source, and labels int32 ``[n]`` as in the source.

  Raises:
    KeyMismatchError: if the data set was made with another key.
    ManifestError: if the manifest is damaged or tampered with.
    NotInvertibleError: if the disguise has no way back.
    DataError: while restoring, if a record is damaged.
  """
  facts = authenticated(data.path, master)
  tool = Disguiser(facts.spec, master)
  probe = np.zeros((1, *facts.disguised_shape), facts.dtype)
  tool.restored(values(probe, facts))  # refused before the first record is read
  return _originals(data.splits[split], facts, tool, _classes(facts, master), chunk)


def _originals(
  split: Split, facts: Manifest, tool: Disguiser, classes: np.ndarray, chunk: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  views = facts.splits[split.name].views
  for start in range(0, len(split), chunk * views):
    images, labels = split.read(np.arange(start, min(start + chunk * views, len(split)), views))
    yield tool.restored(values(images, facts)), classes[labels]


def _classes(facts: Manifest, master: Master) -> np.ndarray:
  """Returns int32 ``[K]``: the class of the source for each label id."""
  if facts.labels == "plain":
    return np.arange(facts.classes, dtype=np.int32)
  return np.argsort(disguiser.label_permutation(master, facts.classes)).astype(np.int32)


def to_npz(
  data: Disguised,
  master: Master,
  out: str | os.PathLike,
  *,
  progress: Progress = lambda done, total: None,
) -> Manifest:
  """Restores a whole data set to an uncompressed ``.npz`` that ``djax.sources`` reads.

  It holds ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` and ``class_names``. Images are uint8
  where the source was, else float32; cut to 0..255, as originals are.

  Args:
    data: the disguised data set; every byte is verified first.
    master: its key.
    out: the file; must not exist.
    progress: told how many originals are done, and of how many.

  Returns:
    The manifest.

  Raises:
    KeyMismatchError: if the data set was made with another key.
    ManifestError: if anything is damaged or tampered with.
    NotInvertibleError: if the disguise has no way back.
    UnsafeError: if ``out`` exists, or lies in the data set.
    DjaxError: if the disk has too little room.
  """
  target = check_new(out, data.path)
  facts, names = _verified(data, master)
  _check_room(target, _pixels(facts) * _count(facts))
  with appearing(target) as temporary, temporary.open("xb") as file:
    with zipfile.ZipFile(file, "w") as archive:
      chunks = _Chunks(data, master, facts, progress)
      for split, records in facts.splits.items():
        labels: list[np.ndarray] = []
        shape = (records.records // records.views, *facts.spec["image_shape"])
        dtype = np.dtype(facts.source["dtype"])
        with _member(archive, f"{split}_images", shape, dtype) as member:
          for images, classes in chunks.of(split):
            member.write(np.ascontiguousarray(images))
            labels.append(classes)
        _add(archive, f"{split}_labels", np.concatenate(labels))
      _add(archive, "class_names", np.array(names))
    file.flush()
    os.fsync(file.fileno())
  return facts


def to_folder(
  data: Disguised,
  master: Master,
  out: str | os.PathLike,
  *,
  progress: Progress = lambda done, total: None,
) -> Manifest:
  """Restores a whole data set to PNG files ``train|test/<class name>/<index>.png``, which ``djax.sources`` reads.

  What a file name cannot hold is replaced in class names by ``_``.

  Args:
    data: the disguised data set; every byte is verified first.
    master: its key.
    out: the folder; must not exist.
    progress: told how many originals are done, and of how many.

  Returns:
    The manifest.

  Raises:
    ConfigError: if the originals do not fit a PNG: floats, or neither 1 nor 3 channels.
    KeyMismatchError: if the data set was made with another key.
    ManifestError: if anything is damaged or tampered with.
    NotInvertibleError: if the disguise has no way back.
    UnsafeError: if ``out`` exists, or lies in the data set.
    DjaxError: if the disk has too little room.
  """
  from PIL import Image

  target = check_new(out, data.path)
  channels, dtype = data.manifest.spec["image_shape"][2], data.manifest.source["dtype"]
  if dtype != "uint8" or channels not in (1, 3):
    raise ConfigError(
      f"PNG files hold 8 bits in 1 or 3 channels, the originals are {dtype} with {channels}. "
      "Give an --out that ends in .npz."
    )
  facts, names = _verified(data, master)
  _check_room(target, (_pixels(facts) + _FILE_BYTES) * _count(facts))
  folders = _file_names(names)
  with appearing(target) as temporary:
    chunks = _Chunks(data, master, facts, progress)
    for split, records in facts.splits.items():
      for name in folders:
        (temporary / split / name).mkdir(parents=True)
      digits, index = len(str(records.records // records.views - 1)), 0
      for images, classes in chunks.of(split):
        for image, label in zip(images, classes, strict=True):
          path = temporary / split / folders[label] / f"{index:0{digits}d}.png"
          Image.fromarray(image[..., 0] if channels == 1 else image).save(path)
          index += 1
  return facts


def _verified(data: Disguised, master: Master) -> tuple[Manifest, list[str]]:
  """Checks key and every byte; returns the manifest and the class names of the source."""
  authenticated(data.path, master)
  facts = datasets.verify(data.path, mac_key=master.subkey(manifest.MAC_LABEL))
  originals(data, master, next(iter(data.splits)), chunk=1)
  return facts, sealed.unseal(facts.sealed, master)["class_names"]


class _Chunks:
  """The originals of a data set as they are written to files, in pieces of a few MB."""

  def __init__(self, data: Disguised, master: Master, facts: Manifest, progress: Progress):
    self._data, self._master, self._facts = data, master, facts
    self._progress, self._done = progress, 0

  def of(self, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields images, cut to 0..255 and of the dtype of the source, and labels."""
    chunk = max(1, _CHUNK_BYTES // (4 * math.prod(self._facts.disguised_shape)))
    for images, labels in originals(self._data, self._master, split, chunk=chunk):
      if self._facts.source["dtype"] == "uint8":
        yield np.clip(np.rint(images), 0, 255).astype(np.uint8), labels
      else:
        yield np.clip(images, 0, 255).astype(np.float32), labels
      self._done += len(labels)
      self._progress(self._done, _count(self._facts))


def _count(facts: Manifest) -> int:
  return sum(split.records // split.views for split in facts.splits.values())


def _pixels(facts: Manifest) -> int:
  """Returns the bytes of one original."""
  return math.prod(facts.spec["image_shape"]) * np.dtype(facts.source["dtype"]).itemsize


@contextlib.contextmanager
def _member(
  archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype
) -> Iterator[IO[bytes]]:
  """Opens an array of an archive, its header written."""
  with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, facts)
    yield member


def _add(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
  with _member(archive, name, array.shape, array.dtype) as member:
    member.write(array)


def check_new(out: str | os.PathLike, data: Path | None = None) -> Path:
  """Refuses a target that exists, or that lies in a directory that leaves the owner's machine.

  Args:
    out: the file or folder to be written.
    data: that directory, or None.

  Returns:
    The target.

  Raises:
    UnsafeError: if so.
  """
  target = Path(out).expanduser()
  if os.path.lexists(target):
    raise UnsafeError(f"{target} exists and is not overwritten. Give another name.")
  if data is not None and data.resolve() in target.resolve().parents:
    raise UnsafeError(
      f"{target} lies in {data}, which leaves your machine. Give a place elsewhere."
    )
  return target


@contextlib.contextmanager
def appearing(target: Path) -> Iterator[Path]:
  """Yields a name beside a target; what is written there gets the target's name if all goes well, else it is removed.

  Args:
    target: as ``check_new`` returns it.
  """
  temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
  try:
    yield temporary
    if os.path.lexists(target):
      raise UnsafeError(f"{target} appeared meanwhile and is not overwritten. Give another name.")
    os.rename(temporary, target)
  finally:
    if temporary.is_dir():
      shutil.rmtree(temporary, ignore_errors=True)
    else:
      temporary.unlink(missing_ok=True)


def _check_room(target: Path, needed: int) -> None:
  needed += _SPARE_BYTES
  free = shutil.disk_usage(target.parent).free
  if free < needed:
    raise DjaxError(
      f"{target} needs {needed / 1e6:.1f} MB free, got {free / 1e6:.1f} MB. "
      "Make room and give the same command again."
    )


def _file_names(names: Sequence[Any]) -> list[str]:
  """Makes class names safe as names of folders, each its own even where case does not count."""
  found: list[str] = []
  for label, name in enumerate(names):
    safe = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", str(name)).strip(" .")[:_LONGEST_NAME]
    while not safe or safe.lower() in {other.lower() for other in found}:
      safe = f"{safe}_{label}"
    found.append(safe)
  return found
