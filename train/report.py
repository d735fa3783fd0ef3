"""Pictures of a run."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["preview"]

_CELL = 64
_MARGIN = 4
_CAPTION = 14


def preview(path: Path, rows: Mapping[str, np.ndarray], *, title: str) -> None:
  """Draws images in captioned rows.

  Disguised values leave 0..255; one linear map from their 1st to 99th percentile brings them back for the eye.

  Args:
    path: the PNG to write. With originals it must stay with the owner.
    rows: ``originals``, ``[N, H, W, C]`` on the 0..255 scale, or ``disguised``, ``[N, H', W', C]`` float; or both.
    title: one line above the pictures.
  """
  count = max(len(images) for images in rows.values())
  width = max(count * (_CELL + _MARGIN) + _MARGIN, 7 * len(title) + 2 * _MARGIN)
  row = _CELL + _MARGIN + _CAPTION
  sheet = Image.new("RGB", (width, _CAPTION + _MARGIN + len(rows) * row), "white")
  draw = ImageDraw.Draw(sheet)
  draw.text((_MARGIN, 2), title, fill="black")
  for r, (caption, images) in enumerate(rows.items()):
    top = _CAPTION + _MARGIN + r * row
    draw.text((_MARGIN, top), caption, fill="black")
    for i, image in enumerate(_visible(images) if caption == "disguised" else images):
      left = _MARGIN + i * (_CELL + _MARGIN)
      sheet.paste(_picture(image), (left, top + _CAPTION))
  sheet.save(path)


def _visible(images: np.ndarray) -> np.ndarray:
  """Stretches disguised values over 0..255."""
  low, high = np.percentile(images, [1, 99])
  return (images - low) / max(high - low, 1e-6) * 255


def _picture(image: np.ndarray) -> Image.Image:
  """Returns the first one or three channels as a picture of the cell's size."""
  pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
  channels = 3 if image.shape[-1] >= 3 else 1
  picture = Image.fromarray(
    pixels[..., :channels].squeeze(-1) if channels == 1 else pixels[..., :3]
  )
  enlarge = Image.Resampling.NEAREST if max(image.shape[:2]) <= _CELL else Image.Resampling.BOX
  return picture.convert("RGB").resize((_CELL, _CELL), enlarge)
