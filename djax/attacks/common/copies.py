"""Small copies of large images, for networks that need not see every pixel: ``[n, H, W, C]``, the longer side 32."""

import jax
import numpy as np

__all__ = ["SIDE", "resized", "small"]

SIDE = 32
_CHUNK = 256


def small(images: np.ndarray) -> np.ndarray:
  """Returns copies whose longer side has 32 pixels, smoothed so that nothing folds; images that small as they are.

  Args:
    images: ``[n, H, W, C]``.

  Returns:
    float32 ``[n, H', W', C]``, or ``images``.
  """
  height, width = images.shape[1:3]
  longer = max(height, width)
  if longer <= SIDE:
    return images
  return resized(images, (max(1, height * SIDE // longer), max(1, width * SIDE // longer)))


def resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Returns images of a given height and width, by linear interpolation.

  Args:
    images: ``[n, H, W, C]``.
    size: height and width.

  Returns:
    float32 ``[n, *size, C]``.
  """
  parts = [np.zeros((0, *size, images.shape[-1]), np.float32)]
  for start in range(0, len(images), _CHUNK):
    part = images[start : start + _CHUNK].astype(np.float32)
    shape = (len(part), *size, part.shape[-1])
    parts.append(np.asarray(jax.image.resize(part, shape, "linear", antialias=True)))
  return np.concatenate(parts)
