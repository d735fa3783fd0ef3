"""Views of originals: shifted and mirrored before the disguise, on the owner's side.

After it they would break the block grid. View 0 is the original itself. Images are ``[B, H, W, C]``; docs/format.md
section 3.
"""

import numpy as np

from djax.host import blockwise

__all__ = ["DRAWS", "augment"]

DRAWS = 3


def augment(images: np.ndarray, uniforms: np.ndarray, *, crop: int, flip: bool) -> np.ndarray:
  """Shifts each image by up to ``crop`` pixels, mirrored beyond the edge, and mirrors half of them.

  Args:
    images: ``[B, H, W, C]``, any dtype.
    uniforms: float32 ``[B, 3]`` on ``[0, 1)``: rows, columns, mirror.
    crop: greatest shift in pixels, below the shorter side.
    flip: whether to mirror left to right.

  Returns:
    Images of the same shape and dtype.
  """
  images, uniforms = blockwise.arrays("augment", images=images, uniforms=uniforms)
  _, height, width, _ = images.shape
  shift = np.floor(uniforms[:, :2].astype(np.float64) * (2 * crop + 1)).astype(np.int64) - crop
  rows = _mirrored(shift[:, :1] + np.arange(height), height)
  columns = _mirrored(shift[:, 1:] + np.arange(width), width)
  if flip:
    columns = np.where(uniforms[:, 2:] < 0.5, columns[:, ::-1], columns)
  return images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _mirrored(places: np.ndarray, size: int) -> np.ndarray:
  """Folds places beyond the edge back, the edge itself not repeated."""
  places = np.abs(places)
  return np.where(places >= size, 2 * (size - 1) - places, places)
