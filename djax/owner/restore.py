"""The way back: originals from a disguised data set, for the owner of its key.

View 0 of every original comes back, with the label ids and class names of the source, in its order. The manifest is
read once and authenticated before anything of it is used; shards are hashed as they are copied to a private place, and
read there.
"""

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from djax.disguised import directory, quantise
from djax.disguised.directory import Disguised, Split
from djax.disguised.manifest import Manifest
from djax.errors import ConfigError, UnsafeError
from djax.io import files
from djax.keys import Master
from djax.owner import record_noise, sealed_metadata
from djax.owner.authentic import authenticate, authenticated, check_expected, mac_key
from djax.owner.disguiser import Disguiser
from djax.sources import folder

__all__ = [
  "Restored",
  "authenticate",
  "authenticated",
  "check_expected",
  "check_new",
  "mac_key",
  "originals",
  "to_files",
  "values",
]

_CHUNK_BYTES = 4 << 20
_FILE_BYTES = 4096  # of disk that a small file takes
_LONGEST_NAME = 60
_PRIVATE = 0o700

Progress = Callable[[int, int], None]


class Restored(NamedTuple):
  """Some originals.

  Attributes:
    indices: int64 ``[n]``, where they stand in the split of the source.
    images: ``[n, H, W, C]``, neither rounded nor cut to 0..255; float32 for rmt, else the dtype of the source.
    labels: int32 ``[n]``, as in the source.
  """

  indices: np.ndarray
  images: np.ndarray
  labels: np.ndarray


def values(images: np.ndarray, manifest: Manifest) -> np.ndarray:
  """Turns stored images into disguised ones, as far as storing them allows.

  Args:
    images: ``[B, H', W', C]`` as stored.
    manifest: of the data set.

  Returns:
    The same shape, uint8 where the disguise itself is, else float32.
  """
  if manifest.quantiser is not None:
    return quantise.dequantise(images, manifest.quantiser, block_size=manifest.block_size)
  return images if images.dtype == np.uint8 else images.astype(np.float32)


def originals(data: Disguised, master: Master, split: str, *, chunk: int) -> Iterator[Restored]:
  """Restores the originals of a split, in the order in which they are stored.

  Args:
    data: the disguised data set.
    master: its key.
    split: the split's name.
    chunk: originals restored at once.

  Raises:
    KeyMismatchError: if the data set was made with another key.
    ManifestError: if the manifest is damaged or tampered with.
    NotInvertibleError: if the disguise has no way back.
    DataError: while restoring, if a shard or a record is damaged.
  """
  manifest = data.manifest
  authenticate(manifest, data.path, master, role=manifest.role)
  drawn = record_noise.of(manifest, master)
  tool = Disguiser(manifest.spec, drawn)
  probe = np.zeros((1, *manifest.disguised_shape), manifest.dtype)
  tool.restored(values(probe, manifest))  # refused before the first record is read
  classes = np.arange(manifest.classes, dtype=np.int32)
  if manifest.labels == "permuted":
    classes = np.argsort(drawn.labels(manifest.classes)).astype(np.int32)
  return _originals(data.splits[split], manifest, drawn, tool, classes, chunk)


def _originals(
  split: Split,
  manifest: Manifest,
  drawn: record_noise.RecordStreams,
  tool: Disguiser,
  classes: np.ndarray,
  chunk: int,
) -> Iterator[Restored]:
  """Reads view 0 of each original, shard by shard."""
  views = manifest.splits[split.name].views
  order = drawn.order(split.name, len(split) // views, views)
  for shard in range(split.shards):
    with split.private_shard(shard) as (rows, read):
      firsts = rows.start + np.flatnonzero(order[rows.start : rows.stop] % views == 0)
      for start in range(0, len(firsts), chunk):
        some = firsts[start : start + chunk]
        images, labels = read(some)
        yield Restored(
          order[some] // views, tool.restored(values(images, manifest)), classes[labels]
        )


def to_files(
  data: Disguised,
  master: Master,
  out: str | os.PathLike,
  *,
  expect: str = "",
  progress: Progress = lambda done, total: None,
) -> Manifest:
  """Restores a whole data set to files that ``djax.sources`` reads; originals are cut to 0..255.

  A name in ``.npz`` gives an uncompressed archive of ``train_images``, ``train_labels``, ``test_images``,
  ``test_labels`` and ``class_names``; images are uint8 where the source was, else float32. Any other name gives a
  folder of PNG files ``train|test/<class name>/<index>.png``; what a file name cannot hold is replaced in class names
  by ``_``.

  Args:
    data: the disguised data set; every byte is verified first.
    master: its key.
    out: the file or folder; must not exist.
    expect: SHA-256 of the manifest, in hex; empty: any.
    progress: called with how many originals are done, and of how many.

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
  target, manifest = check_new(out, data.path), data.manifest
  authenticate(manifest, data.path, master, expect=expect)
  write = _write_archive if os.fspath(out).endswith(".npz") else _write_folder
  if write is _write_folder:
    _check_fits_png(manifest)
  directory.verify(data.path, manifest=manifest)
  originals(data, master, next(iter(data.splits)), chunk=1)  # refuses what has no way back
  names = sealed_metadata.box_of(manifest, master).unseal(manifest.sealed)["class_names"]
  write(target, manifest, names, _Chunks(data, master, progress))
  return manifest


def _check_fits_png(manifest: Manifest) -> None:
  """Refuses originals that no PNG file holds."""
  channels, dtype = manifest.spec["image_shape"][2], manifest.source["dtype"]
  if dtype != "uint8" or channels not in (1, 3):
    raise ConfigError(
      f"PNG files hold 8 bits in 1 or 3 channels, the originals are {dtype} with {channels}. "
      "Give an --out that ends in .npz."
    )


def _write_archive(target: Path, manifest: Manifest, names: list[str], chunks: "_Chunks") -> None:
  """Writes originals to an ``.npz`` archive."""
  largest = max(split.records // split.views for split in manifest.splits.values())
  files.check_room(target, _pixels(manifest) * (_count(manifest) + largest))
  with files.new_file(target) as file, zipfile.ZipFile(file, "w") as archive:
    for split, records in manifest.splits.items():
      count = records.records // records.views
      labels = np.empty(count, np.int32)
      shape, dtype = (count, *manifest.spec["image_shape"]), np.dtype(manifest.source["dtype"])
      # Records come in another order than the archive takes them; this file has no name for anyone to find.
      with tempfile.TemporaryFile(dir=target.parent) as scratch:
        for part in chunks.of(split):
          labels[part.indices] = part.labels
          # Not through a memory map: on a full disk that would end the process.
          for index, image in zip(part.indices.tolist(), part.images, strict=True):
            scratch.seek(index * image.nbytes)
            scratch.write(image.tobytes())
        scratch.seek(0)
        with _member(archive, f"{split}_images", shape, dtype) as member:
          shutil.copyfileobj(scratch, member, _CHUNK_BYTES)
      _add(archive, f"{split}_labels", labels)
    _add(archive, "class_names", np.array(names))


def _write_folder(target: Path, manifest: Manifest, names: list[str], chunks: "_Chunks") -> None:
  """Writes originals to PNG files, one folder a class."""
  files.check_room(target, (_pixels(manifest) + _FILE_BYTES) * _count(manifest))
  folders = _file_names(names)
  with files.new_folder(target) as temporary:
    with files.private(temporary / folder.ORDER_FILE) as file:
      file.write(json.dumps(folders).encode())
    for split, records in manifest.splits.items():
      for place in (temporary / split, *(temporary / split / name for name in folders)):
        place.mkdir(mode=_PRIVATE)
        place.chmod(_PRIVATE)  # the umask may have taken the owner's rights
      digits = len(str(records.records // records.views - 1))
      for part in chunks.of(split):
        for index, image, label in zip(*part, strict=True):
          path = temporary / split / folders[label] / f"{index:0{digits}d}.png"
          with files.private(path) as file:
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")


class _Chunks:
  """The originals of a data set as they are written to files, in pieces of a few MB."""

  def __init__(self, data: Disguised, master: Master, progress: Progress):
    self._data, self._master, self._manifest = data, master, data.manifest
    self._progress, self._done = progress, 0

  def of(self, split: str) -> Iterator[Restored]:
    """Yields originals, cut to 0..255 and of the dtype of the source."""
    chunk = max(1, _CHUNK_BYTES // (4 * math.prod(self._manifest.disguised_shape)))
    for part in originals(self._data, self._master, split, chunk=chunk):
      if self._manifest.source["dtype"] == "uint8":
        images = np.clip(np.rint(part.images), 0, 255).astype(np.uint8)
      else:
        images = np.clip(part.images, 0, 255).astype(np.float32)
      yield part._replace(images=images)
      self._done += len(images)
      self._progress(self._done, _count(self._manifest))


def _count(manifest: Manifest) -> int:
  return sum(split.records // split.views for split in manifest.splits.values())


def _pixels(manifest: Manifest) -> int:
  """Returns the bytes of one original."""
  return math.prod(manifest.spec["image_shape"]) * np.dtype(manifest.source["dtype"]).itemsize


@contextlib.contextmanager
def _member(
  archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype
) -> Iterator[IO[bytes]]:
  """Opens an array of an archive, its header written."""
  with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
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
  files.check_new(target)
  if data is not None and data.resolve() in target.resolve().parents:
    raise UnsafeError(
      f"{target} lies in {data}, which leaves your machine. Give a place elsewhere."
    )
  return target


def _file_names(names: Sequence[Any]) -> list[str]:
  """Makes class names safe as names of folders, each its own even where case does not count."""
  safe_names: list[str] = []
  for label, name in enumerate(names):
    safe = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", str(name)).strip(" .")[:_LONGEST_NAME]
    while not safe or safe.lower() in {other.lower() for other in safe_names}:
      safe = f"{safe}_{label}"
    safe_names.append(safe)
  return safe_names
