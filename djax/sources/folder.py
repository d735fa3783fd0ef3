"""Folders of image files, one subfolder a class."""

import concurrent.futures
import os
import pathlib
import warnings

import numpy as np
from PIL import Image, ImageOps

from djax.errors import DataError
from djax.sources.base import Images, Records, Source, brief, parse_split

__all__ = ["FolderRecords", "decode", "read_header"]

_SUFFIXES = (".png", ".jpg", ".jpeg")
_SPLIT_NAMES = {"train", "test", "val", "valid", "validation", "dev"}


class FolderRecords(Records):
  """One split of a folder: every header is read when it is opened, pixels when asked for."""

  def __init__(self, root: pathlib.Path, split: str, image_size: int):
    files = _list_splits(root)
    name, part = parse_split(split, {x: sum(map(len, files[x].values())) for x in files})

    # The headers of both splits are read, so that train and test agree on channels and size.
    paths = [path for half in files.values() for listed in half.values() for path in listed]
    with warnings.catch_warnings():
      warnings.simplefilter("error", Image.DecompressionBombWarning)
      headers = [read_header(path) for path in paths]
    width, height = (image_size, image_size) if image_size else headers[0][1]
    sizes = {size: path for path, (_, size) in zip(paths, headers, strict=True)}
    if len(sizes) > 1 and not image_size:
      pair = ", but ".join(f"{path} is {x}x{y}" for (x, y), path in [*sizes.items()][:2])
      raise DataError(
        f"images must have one size: {pair}. Set --config.data.image_size=N (djax: --image-size N)"
      )

    self._resize = image_size > 0
    listed = enumerate(files[name].values())
    order = sorted((i, label, path) for label, paths in listed for i, path in enumerate(paths))
    self._records = [(path, label) for _, label, path in order[part]]
    super().__init__(
      len(self._records),
      name="folder",
      image_shape=(height, width, max(channels for channels, _ in headers)),
      dtype=np.uint8,
      class_names=tuple(files[name]),
      files={path.relative_to(root).as_posix(): path for path, _ in self._records},
    )

  def _read(self, start: int, stop: int) -> Images:
    return self._take(np.arange(start, stop))

  def _take(self, rows: np.ndarray) -> Images:
    records, shape = [self._records[row] for row in rows], self.image_shape
    images = np.empty((len(records), *shape), np.uint8)
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
      decoded = pool.map(lambda record: decode(record[0], shape, self._resize), records)
      for index, image in enumerate(decoded):
        images[index] = image
    return Images(images, np.array([label for _, label in records], np.int32), self.class_names)


def _list_splits(root: pathlib.Path) -> dict[str, dict[str, list[pathlib.Path]]]:
  """Returns split -> class name -> sorted image files."""
  if not root.is_dir():
    raise DataError(f"{root}: no such folder of images")
  if (root / "train").is_dir() and (root / "test").is_dir():
    files = {part: _list_classes(root / part) for part in ("train", "test")}
    if differ := sorted(set(files["train"]) ^ set(files["test"])):
      raise DataError(f"{root}: train and test must have the same classes, not so {differ[0]!r}")
    return files
  every = _list_classes(root)
  test = {key: paths[4::5] for key, paths in every.items()}
  train = {key: [x for i, x in enumerate(paths) if i % 5 != 4] for key, paths in every.items()}
  return {"train": train, "test": test}


def _list_classes(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """Returns class name -> sorted image files of a folder with one subfolder a class."""
  classes = {entry.name: _entries(entry) for entry in _entries(root) if entry.is_dir()}
  for entry in _entries(root):
    if entry.suffix.lower() in _SUFFIXES and entry.name not in classes:
      raise DataError(f"{entry}: an image must lie in the subfolder of its class below {root}")
  if len(classes) < 2 or _SPLIT_NAMES.issuperset(classes):
    wanted = "a subfolder for each of two or more classes (perhaps below train and test)"
    raise DataError(f"{root}: must hold {wanted}; found {', '.join(classes) or 'none'}")
  for name, paths in classes.items():
    if not paths:
      raise DataError(f"{root / name}: no images in this class")
    for path in paths:
      if path.suffix.lower() not in _SUFFIXES or not path.is_file():
        raise DataError(f"{path}: not a .png, .jpg or .jpeg file. Move it out of the class folder.")
  return classes


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
  try:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
  except OSError as error:
    raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def read_header(path: pathlib.Path) -> tuple[int, tuple[int, int]]:
  """Reads what the head of an image file says, or refuses the kind of image.

  Args:
    path: a PNG or JPEG file.

  Returns:
    Channel count and upright ``(width, height)``.

  Raises:
    DataError: if it cannot be read, or is of a kind that djax does not take.
  """
  try:
    with Image.open(path, formats=("PNG", "JPEG")) as image:
      mode, size, info = image.mode, image.size, image.info
      is_deep = any(";16" in str(tile[3]) for tile in image.tile)
      is_turned = "exif" in info and image.getexif().get(0x0112) in (5, 6, 7, 8)
  except Exception as error:  # PIL's parsers raise many types on damaged files
    raise DataError(f"{path}: cannot be read as PNG or JPEG ({brief(error)})") from None
  if mode in ("LA", "PA", "RGBA") or "transparency" in info:
    raise DataError(f"{path}: has an alpha channel or transparency. Save it without.")
  if is_deep:
    raise DataError(f"{path}: more than 8 bits a channel. Scale it to 0..255, save it as 8 bits.")
  if mode not in ("1", "L", "P", "RGB"):
    raise DataError(f"{path}: colour mode {mode} is not taken. Save it as RGB or grey.")
  return (1 if mode in ("1", "L") else 3), (size[::-1] if is_turned else size)


def decode(path: pathlib.Path, shape: tuple[int, int, int], resize: bool) -> np.ndarray:
  """Reads one image, upright.

  Args:
    path: a PNG or JPEG file.
    shape: ``(H, W, C)`` it must have; with one channel it becomes grey.
    resize: whether to resize it to that height and width.

  Returns:
    uint8 ``[H, W, C]``.

  Raises:
    DataError: if it is damaged or of another size.
  """
  try:
    with Image.open(path) as file:
      image = ImageOps.exif_transpose(file).convert("L" if shape[2] == 1 else "RGB")
    if resize:
      image = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    if image.size != (shape[1], shape[0]):
      raise ValueError(f"its header and pixels differ in size, {shape} and {image.size}")
    return np.asarray(image).reshape(shape)
  except Exception as error:
    raise DataError(f"{path}: damaged image ({brief(error)})") from None


SOURCE = Source(
  "folder",
  lambda source: source.startswith((".", "/", "~")) or ("/" in source and os.path.isdir(source)),
  lambda source, split, data_dir, image_size: FolderRecords(
    pathlib.Path(source).expanduser(), split, image_size
  ),
  resizes=True,
)
