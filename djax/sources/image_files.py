"""One PNG or JPEG file: what its head says, and its pixels, upright and without transparency."""

import io
import pathlib
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageColor, ImageOps

from djax.errors import ConfigError, DataError
from djax.sources.base import refusal

__all__ = ["Colour", "Header", "colour", "decode", "read_header"]

Colour = tuple[int, int, int]  # red, green, blue in 0..255

_WITH_ORIENTATION = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
_GREY_MODES = ("1", "L", "LA")
_ALPHA_MODES = ("LA", "PA", "RGBA")


class Header(NamedTuple):
  """What the head of an image file says.

  Attributes:
    channels: 1 or 3, once transparency is gone.
    size: upright ``(width, height)``.
    is_turned: whether the pixels are stored turned or mirrored.
    is_transparent: whether it has an alpha channel or a transparent colour.
  """

  channels: int
  size: tuple[int, int]
  is_turned: bool
  is_transparent: bool


def colour(text: str) -> Colour | None:
  """Reads the colour of a background.

  Args:
    text: ``white``, another name that Pillow knows, or ``#rrggbb``; empty: none.

  Raises:
    ConfigError: for anything else.
  """
  if not text:
    return None
  try:
    values = ImageColor.getrgb(text)
    if len(values) == 3:
      return values
  except ValueError:
    pass
  raise ConfigError(f"background must be a colour such as white or #rrggbb, got {text!r}")


def read_header(path: pathlib.Path, background: Colour | None = None) -> Header:
  """Reads what the head of an image file says, or refuses the kind of image.

  Args:
    path: a PNG or JPEG file.
    background: the colour behind transparency; None: a file with transparency is refused.

  Raises:
    DataError: if it cannot be read, or is of a kind that djax does not take.
  """
  try:
    with Image.open(path, formats=("PNG", "JPEG")) as image:
      mode, size, info = image.mode, image.size, image.info
      is_deep = any(";16" in str(tile[3]) for tile in image.tile)
      # Elsewhere it is not looked for: of a PNG that would read the pixels.
      turn = image.getexif().get(0x0112) if _WITH_ORIENTATION & info.keys() else 1
  except Exception as error:  # PIL's parsers raise many types on damaged files
    raise refusal(f"{path}", "cannot be read as PNG or JPEG", error) from None
  is_transparent = mode in _ALPHA_MODES or "transparency" in info
  if is_transparent and background is None:
    raise DataError(
      f"{path}: has an alpha channel or transparency. Save it without, or give the colour behind it: "
      "--background white (python -m train: --config.data.background=white)"
    )
  if is_deep:
    raise DataError(f"{path}: more than 8 bits a channel. Scale it to 0..255, save it as 8 bits.")
  if mode not in ("1", "L", "P", "RGB", *_ALPHA_MODES):
    raise DataError(f"{path}: colour mode {mode} is not taken. Save it as RGB or grey.")
  is_grey = mode in _GREY_MODES and not (is_transparent and len(set(background or ())) > 1)
  upright = size[::-1] if turn in (5, 6, 7, 8) else size
  return Header(1 if is_grey else 3, upright, turn in range(2, 9), is_transparent)


def decode(
  path: pathlib.Path, shape: tuple[int, int, int], resize: bool, background: Colour | None = None
) -> np.ndarray:
  """Reads one image, upright.

  Args:
    path: a PNG or JPEG file.
    shape: ``(H, W, C)`` it must have; with one channel it becomes grey.
    resize: whether to resize it to that height and width.
    background: the colour behind transparency, if it has any.

  Returns:
    uint8 ``[H, W, C]``.

  Raises:
    DataError: if it is damaged or of another size.
  """
  try:
    data = path.read_bytes()
    _check_whole(data)
    with Image.open(io.BytesIO(data)) as file:
      image = ImageOps.exif_transpose(file)
    if background is not None and (image.mode in _ALPHA_MODES or "transparency" in image.info):
      image = image.convert("RGBA")
      image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
    image = image.convert("L" if shape[2] == 1 else "RGB")
    if resize:
      image = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
  except Exception as error:
    raise refusal(f"{path}", "damaged image", error) from None
  if image.size != (shape[1], shape[0]):
    raise DataError(
      f"{path}: is {image.size[0]}x{image.size[1]} upright, but {shape[1]}x{shape[0]} by the head of the file. "
      "Save it upright."
    )
  return np.asarray(image).reshape(shape)


def _check_whole(data: bytes) -> None:
  """Refuses a JPEG whose data end before its picture does: libjpeg makes the rest grey, and Pillow does not say so."""
  if not data.startswith(b"\xff\xd8"):
    return
  try:
    simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=1)
  except ValueError as error:
    # Other warnings are of what is harmless, such as bytes between two segments.
    if "premature end" in str(error).lower():
      raise
