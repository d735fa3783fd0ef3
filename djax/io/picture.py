"""Pictures of images: captioned rows on one sheet."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["sheet", "visible"]

_CELL = 64
_MARGIN = 4
_LINE = 14  # pixels a line of text takes
_LETTER = 7


def sheet(rows: Mapping[str, np.ndarray], *, title: str, columns: int = 8) -> Image.Image:
  """Draws images under their captions.

  Values outside 0..255, as disguises have them, are brought back for the eye: one linear map a caption, from the 1st to
  the 99th percentile.

  Args:
    rows: by caption, images ``[N, H, W, C]`` on the 0..255 scale, ``N`` at least 1. The first three channels are
      shown as colours, where there are fewer the first one in grey.
    title: one line above.
    columns: images side by side.

  Returns:
    The sheet; with originals on it, it must stay with their owner.
  """
  step = _CELL + _MARGIN
  lines = {caption: -(-len(images) // columns) for caption, images in rows.items()}
  wide = min(columns, max(len(images) for images in rows.values()))
  width = max(wide * step + _MARGIN, _LETTER * len(title) + 2 * _MARGIN)
  height = _LINE + _MARGIN + sum(_LINE + count * step for count in lines.values())
  drawn = Image.new("RGB", (width, height), "white")
  pen = ImageDraw.Draw(drawn)
  pen.text((_MARGIN, 2), title, fill="black")
  top = _LINE + _MARGIN
  for caption, images in rows.items():
    pen.text((_MARGIN, top), caption, fill="black")
    top += _LINE
    for index, image in enumerate(visible(images)):
      line, column = divmod(index, columns)
      drawn.paste(_cell(image), (_MARGIN + column * step, top + line * step))
    top += lines[caption] * step
  return drawn


def visible(images: np.ndarray) -> np.ndarray:
  """Turns values into bytes for the eye: one linear map from the 1st to the 99th percentile, if they leave 0..255.

  Args:
    images: on the 0..255 scale, or leaving it.
  """
  values = images.astype(np.float32)
  if values.min() < 0 or values.max() > 255:
    low, high = np.percentile(values, [1, 99])
    values = (values - low) / max(high - low, 1e-6) * 255
  return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _cell(image: np.ndarray) -> Image.Image:
  """Returns an image at the size of a cell, the ratio of its sides kept."""
  height, width, channels = image.shape
  picture = Image.fromarray(image[..., :3] if channels >= 3 else image[..., 0])
  size = tuple(max(1, round(side * _CELL / max(height, width))) for side in (width, height))
  method = Image.Resampling.NEAREST if max(height, width) <= _CELL else Image.Resampling.BOX
  return picture.convert("RGB").resize(size, method)
