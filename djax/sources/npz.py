"""NumPy ``.npz`` archives of train and test arrays."""

import contextlib
import math
import pathlib
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from djax.errors import DataError, DjaxError, nearest
from djax.sources import base

__all__ = ["NpzRecords"]

_NAMES = ("train_images", "train_labels", "test_images", "test_labels")
_CHUNK = 1 << 18  # bytes; a multiple of every float's size


class NpzRecords(base.Records):
  """One split of an archive: labels in memory, images read from the file as they are asked for."""

  def __init__(self, path: pathlib.Path, split: str):
    if not path.is_file():
      raise DataError(f"{path}: no such file")
    with _whole(path), path.open("rb") as file, np.lib.npyio.NpzFile(file) as npz:
      shape, labels, class_names = _describe(path, npz)
    name, part = base.parse_split(split, {key: len(x) for key, x in labels.items()})
    with _whole(path):
      self._array = _Array(path, f"{name}_images.npy", part)
    self._path, self._what, self._start = path, f"{path}: {name}_images", part.start
    self._labels = labels[name][part].astype(np.int32)
    is_bytes = self._array.dtype == np.uint8
    super().__init__(
      len(self._labels),
      name="npz",
      image_shape=shape,
      dtype=np.uint8 if is_bytes else np.float32,
      class_names=class_names,
      files={".": path},
    )
    if not is_bytes:
      with _whole(path), contextlib.closing(self._array):
        if self._array.is_below_one():
          scale = "no value is above 1, but the scale is 0..255. Multiply by 255."
          raise DataError(f"{self._what}: {scale}")

  def _read(self, start: int, stop: int) -> base.Images:
    with _whole(self._path):
      images = self._array.read(self._start + start, self._start + stop)
    images = images.reshape(-1, *self.image_shape)
    if images.dtype != np.uint8:
      _check_float(self._what, images, self._start + start)
      images = images.astype(np.float32, copy=False)
    return base.Images(images, self._labels[start:stop], self.class_names)

  def check(self) -> None:
    """Reads the images to their end, where zipfile compares the checksum; it does not where records are skipped."""
    with _whole(self._path):
      self._array.check()

  def close(self) -> None:
    self._array.close()


class _Array:
  """A part of one array of an archive, read forwards in chunks; a step back starts anew."""

  def __init__(self, path: pathlib.Path, member: str, part: slice):
    self._path, self._member, self._part = path, member, part
    self._file: Any = None
    with zipfile.ZipFile(path) as archive:
      self._is_stored = archive.getinfo(member).compress_type == zipfile.ZIP_STORED
      with archive.open(member) as file:
        self._header = _read_header(file)
    self._shape, self._is_fortran, self.dtype = self._header

  def read(self, start: int, stop: int) -> np.ndarray:
    """Returns records ``start`` to ``stop - 1`` of the array."""
    shape = (stop - start, *self._shape[1:])
    values = np.empty(math.prod(shape), self.dtype)
    target, at = values.view(np.uint8), 0
    try:
      for chunk in self._chunks(start, stop):
        target[at : at + len(chunk)] = np.frombuffer(chunk, np.uint8)
        at += len(chunk)
      if stop == self._part.stop:
        while self._file.read(_CHUNK):  # at its end, zipfile compares the checksum
          pass
    except BaseException:
      self.close()
      raise
    return values.reshape(shape[::-1]).T if self._is_fortran else values.reshape(shape)

  def is_below_one(self) -> bool:
    """Whether the part holds values in 0..1 alone, and not just zeros."""
    is_black = True
    for chunk in self._chunks(self._part.start, self._part.stop):
      values = np.frombuffer(chunk, self.dtype)
      if not ((values >= 0) & (values <= 1)).all():
        return False
      is_black = is_black and not values.any()
    return not is_black

  def check(self) -> None:
    """Reads the whole member once, from its first byte to its last."""
    self._open()
    while self._file.read(_CHUNK):
      pass
    self.close()

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
      self._file = None

  def _chunks(self, start: int, stop: int) -> Iterator[bytes]:
    """Yields the bytes of some records, in the order of the file."""
    count, pixels = self._shape[0], math.prod(self._shape[1:])
    runs: Iterable[tuple[int, int]] = [(pixels * start, pixels * stop)]
    if self._is_fortran:  # for each pixel a run over all records
      runs = ((count * i + start, count * i + stop) for i in range(pixels))
    for first, last in runs:
      end = self._seek(first * self.dtype.itemsize) + (last - first) * self.dtype.itemsize
      while left := end - self._file.tell():
        yield self._take(left)

  def _seek(self, offset: int) -> int:
    """Goes to a byte of the data and returns its position in the member."""
    if self._file is None or self._data + offset < self._file.tell():
      self._open()
    target = self._data + offset
    begin = self._part.start * math.prod(self._shape[1:]) * self.dtype.itemsize
    if self._is_stored and not self._is_fortran and offset > begin and target != self._file.tell():
      self._file.seek(target)  # over such a jump zipfile may give up the checksum
    while left := target - self._file.tell():
      self._take(left)
    return target

  def _open(self) -> None:
    """Opens the member at the first byte of its data."""
    self.close()
    with zipfile.ZipFile(self._path) as archive:  # its file stays open as long as the member
      self._file = archive.open(self._member)
    if _read_header(self._file) != self._header:
      raise ValueError("it was changed while it was read")
    self._data = self._file.tell()

  def _take(self, count: int) -> bytes:
    """Reads at most ``count`` bytes, and some."""
    if not (data := self._file.read(min(_CHUNK, count))):
      raise ValueError(f"{self._member} ends too soon")
    return data


@contextlib.contextmanager
def _whole(path: pathlib.Path) -> Iterator[None]:
  """Turns errors into one that says that the archive is damaged."""
  try:
    yield
  except DjaxError:
    raise
  except Exception as error:  # zipfile, zlib and numpy each have their own
    raise DataError(f"{path}: not a whole NumPy .npz archive ({base.brief(error)})") from None


def _describe(
  path: pathlib.Path, npz: Any
) -> tuple[tuple[int, int, int], dict[str, np.ndarray], tuple[str, ...]]:
  """Returns the shape of an image, labels by split, and class names, all checked."""
  for wanted in _NAMES:
    if wanted not in npz:
      hint = nearest(wanted, set(npz).difference(_NAMES))
      raise DataError(f"{path}: no array {wanted!r}, only {', '.join(npz) or 'nothing'}.{hint}")
  sides, labels = {}, {}
  for half in ("train", "test"):
    shape, dtype = _header(npz, f"{half}_images")
    what = f"{path}: {half}_images"
    if dtype != np.uint8 and dtype.kind != "f":
      advice = "Scale it, e.g. full-range uint16 by (images // 257).astype('uint8')."
      raise DataError(f"{what}: must be uint8, or float from 0 to 255, got {dtype}. {advice}")
    if len(shape) not in (3, 4):
      raise DataError(f"{what}: must be [N, H, W] or [N, H, W, C], got {shape}")
    sides[half] = (shape[1], shape[2], (*shape, 1)[3])
    base.check_shape(what, sides[half])
    what = f"{path}: {half}_labels"
    form, dtype = _header(npz, f"{half}_labels")
    if dtype.kind not in "iu" or form not in (shape[:1], (shape[0], 1)):
      raise DataError(f"{what}: must be integers [N], N={shape[0]} as images, got {dtype} {form}")
    labels[half] = npz[f"{half}_labels"].reshape(-1)
    base.check_labels(what, labels[half])
  if sides["train"] != sides["test"]:
    raise DataError(f"{path}: train images are {sides['train']}, but test images {sides['test']}")
  classes = max(int(numbers.max()) + 1 for numbers in labels.values())
  base.check_classes(str(path), classes)
  class_names = tuple(str(number) for number in range(classes))
  if "class_names" in npz:
    shape, dtype = _header(npz, "class_names")
    if dtype.kind != "U" or len(shape) != 1 or shape[0] < classes:
      raise DataError(f"{path}: class_names must be {classes} or more strings, got {dtype} {shape}")
    class_names = tuple(npz["class_names"].tolist())
  return sides["train"], labels, class_names


def _header(npz: Any, name: str) -> tuple[tuple[int, ...], np.dtype]:
  """Returns shape and dtype of an array without reading it."""
  with npz.zip.open(f"{name}.npy") as file:
    return _read_header(file)[::2]


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
  """Returns shape, whether in Fortran order, and dtype; leaves the file at the data."""
  form = np.lib.format
  is_first = form.read_magic(file) == (1, 0)
  read = form.read_array_header_1_0 if is_first else form.read_array_header_2_0
  return read(file)


def _check_float(what: str, images: np.ndarray, start: int) -> None:
  """Refuses values outside 0..255; ``start`` is the index of the first image."""
  bad, fault = ~np.isfinite(images), "NaN or infinite"
  if not bad.any():
    bad, fault = (images < 0) | (images > 255), "outside 0..255"
  if bad.any():
    first = start + int(bad.reshape(len(images), -1).any(axis=1).argmax())
    raise DataError(f"{what}: {bad.sum()} values are {fault}, the first in image {first}")


SOURCE = base.Source(
  "npz",
  lambda source: source.endswith(".npz"),
  lambda source, split, *_: NpzRecords(pathlib.Path(source).expanduser(), split),
)
