"""Pictures of a run."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["preview"]

_CELL = 64
_MARGIN = 4
_CAPTION = 14


def preview(path: Path, originals: np.ndarray, disguised: np.ndarray, *, title: str) -> None:
  """Draws originals above their disguises.

  Disguised values leave 0..255; one linear map from their 1st to 99th percentile brings them back for the eye.

  Args:
    path: the PNG to write. It shows originals: keep it with the owner.
    originals: ``[N, H, W, C]`` on the 0..255 scale.
    disguised: ``[N, H', W', C]`` float.
    title: one line above the pictures.
  """
  low, high = np.percentile(disguised, [1, 99])
  shown = (disguised - low) / max(high - low, 1e-6) * 255
  width = max(len(originals) * (_CELL + _MARGIN) + _MARGIN, 7 * len(title) + 2 * _MARGIN)
  row = _CELL + _MARGIN + _CAPTION
  sheet = Image.new("RGB", (width, _CAPTION + _MARGIN + 2 * row), "white")
  draw = ImageDraw.Draw(sheet)
  draw.text((_MARGIN, 2), title, fill="black")
  for r, (caption, images) in enumerate((("originals", originals), ("disguised", shown))):
    top = _CAPTION + _MARGIN + r * row
    draw.text((_MARGIN, top), caption, fill="black")
    for i, image in enumerate(images):
      left = _MARGIN + i * (_CELL + _MARGIN)
      sheet.paste(_picture(image), (left, top + _CAPTION))
  sheet.save(path)


def _picture(image: np.ndarray) -> Image.Image:
  """Returns the first one or three channels as a picture of the cell's size."""
  pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
  channels = 3 if image.shape[-1] >= 3 else 1
  picture = Image.fromarray(
    pixels[..., :channels].squeeze(-1) if channels == 1 else pixels[..., :3]
  )
  enlarge = Image.Resampling.NEAREST if max(image.shape[:2]) <= _CELL else Image.Resampling.BOX
  return picture.convert("RGB").resize((_CELL, _CELL), enlarge)
