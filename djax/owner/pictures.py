"""Reads the images that a network is asked about, as files of the owner's machine hold them."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from djax import sources
from djax.disguised.manifest import Manifest
from djax.errors import ConfigError, DataError
from djax.sources import checks, folder, image_files

__all__ = ["Query", "read", "read_as"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Query:
  """Images to be classified; ``repr`` shows their number only.

  Attributes:
    images: ``[N, H, W, C]``, of the data set's shape and dtype, 0..255.
    names: of the files, one an image.
  """

  images: np.ndarray
  names: tuple[str, ...]

  def __repr__(self) -> str:
    return f"Query({len(self.names)} images)"


def read(
  paths: Sequence[str | os.PathLike],
  manifest: Manifest,
  **reading: Any,
) -> Query:
  """Reads images that fit a disguised data set; the options are those of ``read_as``."""
  return read_as(paths, tuple(manifest.spec["image_shape"]), manifest.source["dtype"], **reading)


def read_as(
  paths: Sequence[str | os.PathLike],
  shape: tuple[int, ...],
  dtype: str,
  *,
  image_size: int = 0,
  scale: int = 0,
  background: str = "",
) -> Query:
  """Reads images that fit a data set.

  Args:
    paths: PNG and JPEG files, folders of them, ``.npy`` files of ``[N, H, W]`` or ``[N, H, W, C]``, and ``.npz`` files
      with such an array, named ``images`` or the only one. Grey files are taken where the data set has colours.
    shape: ``(H, W, C)`` of the images of the data set.
    dtype: of its originals, uint8 or float32.
    image_size: side in pixels to which image files are resized; 0 leaves them as they are.
    scale: the value of white, 1 or 255; 0: 255, and images whose values are nearly all at most 1 are refused.
    background: the colour behind transparency in image files; empty: such files are refused.

  Raises:
    ConfigError: for an ``image_size`` other than the data set's.
    DataError: for images that are missing, damaged or do not fit, or none.
  """
  height, width, _ = shape
  if image_size and (image_size, image_size) != (height, width):
    raise ConfigError(
      f"image_size must give images of {height}x{width} pixels as in the data set, got {image_size}."
    )
  images: list[np.ndarray] = []
  names: list[str] = []
  for path in (Path(path).expanduser() for path in paths):
    if path.suffix.lower() in (".npy", ".npz"):
      array = _array(path, shape, dtype, scale)
      images.append(array)
      names += [f"{path}[{index}]" for index in range(len(array))]
      continue
    for file in _listed(path):
      images.append(_picture(file, shape, image_size, image_files.colour(background))[None])
      names.append(str(file))
  if not names:
    raise DataError(f"there must be at least one image, got none in {', '.join(map(str, paths))}.")
  return Query(np.concatenate(images).astype(dtype), tuple(names))


def _listed(path: Path) -> list[Path]:
  """Returns the image files that a path means."""
  if path.is_dir():
    pictures, _ = folder.pictures(path)
    return pictures
  if not path.is_file():
    raise DataError(f"{path}: no such file or folder of images.")
  return [path]


def _picture(
  path: Path, shape: tuple[int, ...], image_size: int, background: image_files.Colour | None
) -> np.ndarray:
  """Reads an image file, ``[H, W, C]``."""
  height, width, wanted = shape
  if wanted not in (1, 3):
    raise DataError(f"{path}: the data set has {wanted} channels. Give its images as .npy.")
  channels, size, *_ = image_files.read_header(path, background)
  if channels > wanted:
    raise DataError(f"{path}: is in colour, but the data set is grey. Save it as grey.")
  if size != (width, height) and not image_size:
    raise DataError(
      f"{path}: is {size[1]}x{size[0]} pixels, but the data set {height}x{width}. "
      + (f"Resize it: --image-size {height}" if height == width else "Resize it.")
    )
  return image_files.decode(path, (height, width, wanted), image_size > 0, background)


def _array(path: Path, shape: tuple[int, ...], dtype: str, scale: int) -> np.ndarray:
  """Reads the images of a NumPy file, ``[N, H, W, C]``."""
  if not path.is_file():
    raise DataError(f"{path}: no such file.")
  try:
    with path.open("rb") as file:
      images = np.load(file, allow_pickle=False)
      if isinstance(images, np.lib.npyio.NpzFile):
        held = list(images)
        name = "images" if "images" in held else held[0] if len(held) == 1 else None
        images = images[name] if name else None
  except Exception as error:  # zipfile, zlib and numpy each have their own
    raise DataError(f"{path}: not a whole NumPy file ({sources.base.brief(error)}).") from None
  if images is None:
    raise DataError(f"{path}: must hold one array, or one named images; has {', '.join(held)}.")
  checks.check_dtype(str(path), images.dtype)
  if images.ndim == 3 and shape[2] == 1:
    images = images[..., None]
  if images.shape[1:] != shape:
    raise DataError(
      f"{path}: images must be [N, {', '.join(map(str, shape))}] as in the data set, got {images.shape}."
    )
  floats = dtype == "float32" and images.dtype.kind == "f"
  if images.dtype != np.uint8 and not floats:
    raise DataError(f"{path}: images must be {dtype} as in the data set, got {images.dtype}.")
  if not scale:
    checks.check_scale(str(path), [images])
  return checks.to_255(str(path), images, scale, 0)
