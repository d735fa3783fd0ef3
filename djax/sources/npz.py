"""NumPy ``.npz`` archives of train and test arrays."""

import contextlib
import math
import pathlib
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from djax.errors import DataError, DjaxError, nearest
from djax.sources import checks
from djax.sources.base import Images, Records, Source, parse_split, refusal

__all__ = ["NpzRecords"]

_SPLITS = ("train", "val", "test")
_NAMES = ("train_images", "train_labels", "test_images", "test_labels")
_UNUSED = "val_images is the split val, which is used only where val is asked for"
_CHUNK = 1 << 18  # bytes; a multiple of every float's size


class NpzRecords(Records):
  """One split of an archive: labels in memory, images read from the file as they are asked for."""

  def __init__(self, path: pathlib.Path, split: str):
    if not path.is_file():
      raise DataError(f"{path}: no such file")
    with _whole(path), path.open("rb") as file, np.lib.npyio.NpzFile(file) as npz:
      shape, labels, class_names = _describe(path, npz)
    name, part = parse_split(split, {key: len(x) for key, x in labels.items()})
    with _whole(path):
      self._array = _Array(path, f"{name}_images.npy", part)
    self._path, self._start = path, part.start
    self._labels = labels[name][part].astype(np.int32)
    is_bytes = self._array.dtype == np.uint8
    super().__init__(
      len(self._labels),
      name="npz",
      image_shape=shape,
      dtype=np.uint8 if is_bytes else np.float32,
      class_names=class_names,
      files={".": path},
      what=f"{path}: {name}_images",
      notes=[_UNUSED] if "val" in labels and name != "val" else [],
      first=part.start,
    )

  def check_scale(self, images: np.ndarray | None = None) -> None:
    """Looks through the values as they are stored, as far as needed."""
    if not self.scale:
      with _whole(self._path), contextlib.closing(self._array):
        checks.check_scale(self.what, self._array.values())

  def _read(self, start: int, stop: int) -> Images:
    with _whole(self._path):
      images = self._array.read(self._start + start, self._start + stop)
    return Images(images.reshape(-1, *self.image_shape), self._labels[start:stop], self.class_names)

  def labels(self) -> np.ndarray:
    return self._labels

  def check(self) -> None:
    """Reads the images to their end, where zipfile compares the checksum; it does not where records are skipped."""
    self.check_scale()
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

  def values(self) -> Iterator[np.ndarray]:
    """Yields all values of the part in the order of the file."""
    for chunk in self._chunks(self._part.start, self._part.stop):
      yield np.frombuffer(chunk, self.dtype)

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
    raise refusal(f"{path}", "not a whole NumPy .npz archive", error) from None


def _describe(
  path: pathlib.Path, npz: Any
) -> tuple[tuple[int, int, int], dict[str, np.ndarray], tuple[str, ...]]:
  """Returns the shape of an image, labels by split, and class names, all checked."""
  for wanted in _NAMES:
    if wanted not in npz:
      hint = nearest(wanted, set(npz).difference(_NAMES))
      raise DataError(f"{path}: no array {wanted!r}, only {', '.join(npz) or 'nothing'}.{hint}")
  sides, labels = {}, {}
  for name in _SPLITS:
    if f"{name}_images" not in npz:
      continue
    what = f"{path}: {name}_images"
    shape, dtype = _header(npz, f"{name}_images")
    checks.check_dtype(what, dtype)
    if len(shape) not in (3, 4):
      raise DataError(f"{what}: must be [N, H, W] or [N, H, W, C], got {shape}")
    sides[name] = (shape[1], shape[2], (*shape, 1)[3])
    checks.check_shape(what, sides[name])
    what = f"{path}: {name}_labels"
    if f"{name}_labels" not in npz:
      raise DataError(f"{path}: has {name}_images, but no array '{name}_labels'.")
    form, dtype = _header(npz, f"{name}_labels")
    if dtype.kind not in "iu" or form not in (shape[:1], (shape[0], 1)):
      raise DataError(f"{what}: must be integers [N], N={shape[0]} as images, got {dtype} {form}")
    labels[name] = npz[f"{name}_labels"].reshape(-1)
    checks.check_labels(what, labels[name])
  for name, shape in sides.items():
    if shape != sides["train"]:
      raise DataError(f"{path}: train images are {sides['train']}, but {name} images {shape}")
  classes = max(int(numbers.max()) + 1 for numbers in labels.values())
  checks.check_classes(str(path), classes)
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


SOURCE = Source(
  "npz",
  lambda source: source.lower().endswith(".npz"),
  lambda source, split, reading: NpzRecords(pathlib.Path(source).expanduser(), split),
)
