"""How close estimates are to originals. Images are ``[..., H, W, C]``, uint8 or float on the 0..255 scale.

All functions are pure, keep the leading axes and return float32. They are a few lines of JAX, less than a dependency.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from djax.ops import blocks

__all__ = ["block_mse", "mse", "psnr", "ssim", "window"]


def mse(originals: jax.Array, estimates: jax.Array) -> jax.Array:
  """Mean squared error of each image, in squared grey levels.

  Args:
    originals: ``[..., H, W, C]``.
    estimates: the same shape.

  Returns:
    float32 ``[...]``.

  Example:
    >>> mse(jnp.zeros((1, 2, 2, 1)), jnp.full((1, 2, 2, 1), 3.0))
    Array([9.], dtype=float32)
  """
  return jnp.mean(_squared_error(originals, estimates), axis=(-3, -2, -1))


def psnr(originals: jax.Array, estimates: jax.Array, *, max_value: float = 255.0) -> jax.Array:
  """Peak signal-to-noise ratio of each image, in dB; infinite for equal images.

  Args:
    originals: ``[..., H, W, C]``.
    estimates: the same shape.
    max_value: the largest grey level.

  Returns:
    float32 ``[...]``.

  Example:
    >>> psnr(jnp.zeros((1, 2, 2, 1)), jnp.full((1, 2, 2, 1), 25.5)).round(3)
    Array([20.], dtype=float32)
  """
  return 20 * np.float32(np.log10(max_value)) - 10 * jnp.log10(mse(originals, estimates))


def block_mse(originals: jax.Array, estimates: jax.Array, *, block_size: int) -> jax.Array:
  """Mean squared error of each block, in squared grey levels.

  Args:
    originals: ``[..., H, W, C]`` with sides that are multiples of ``block_size``.
    estimates: the same shape.
    block_size: side of a block in pixels; static.

  Returns:
    float32 ``[..., P]``.
  """
  error = _squared_error(originals, estimates)
  return jnp.mean(blocks.blockify(error, block_size=block_size), axis=(-3, -2, -1))


def ssim(
  originals: jax.Array, estimates: jax.Array, *, max_value: float = 255.0, filter_size: int = 11
) -> jax.Array:
  """Structural similarity of each image, averaged over pixels and channels; 1 for equal images.

  Gaussian window of sigma 1.5 without padding, ``k1 = 0.01``, ``k2 = 0.03``: Wang et al. 2004,
  doi:10.1109/TIP.2003.819861.

  Args:
    originals: ``[..., H, W, C]``.
    estimates: the same shape.
    max_value: the largest grey level.
    filter_size: side of the window in pixels; at most the shorter side of the image.

  Returns:
    float32 ``[...]``.

  Raises:
    ValueError: while tracing, if the window is larger than the image.

  Example:
    >>> image = jnp.arange(144.0).reshape(1, 12, 12, 1)
    >>> ssim(image, image).round(3)
    Array([1.], dtype=float32)
  """
  if filter_size > min(originals.shape[-3:-1]):
    raise ValueError(
      f"ssim: filter_size must be at most the shorter side of the image, got filter_size={filter_size} for "
      f"images.shape={originals.shape}. Give a smaller odd filter_size."
    )
  offsets = np.arange(filter_size) - (filter_size - 1) / 2
  window = np.exp(-0.5 * (offsets / 1.5) ** 2)
  window = window / window.sum()
  x, y = _as_float(originals, estimates)
  mean_x, mean_y = _blur(x, window), _blur(y, window)
  variance_x = _blur(x * x, window) - mean_x**2
  variance_y = _blur(y * y, window) - mean_y**2
  covariance = _blur(x * y, window) - mean_x * mean_y
  c1, c2 = (0.01 * max_value) ** 2, (0.03 * max_value) ** 2
  luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
  contrast = (2 * covariance + c2) / (variance_x + variance_y + c2)
  return jnp.mean(luminance * contrast, axis=(-3, -2, -1))


def _blur(images: jax.Array, window: np.ndarray) -> jax.Array:
  """Filters rows, then columns, keeping only whole windows: ``[..., H - n + 1, W - n + 1, C]``.

  By products with banded matrices: on a CPU, XLA takes 4 to 18 times as long for convolutions of one channel.
  """
  for axis in (-3, -2):
    size = images.shape[axis]
    place = np.arange(size)[:, None] - np.arange(size - len(window) + 1)
    inside = (place >= 0) & (place < len(window))
    band = np.where(inside, window[np.clip(place, 0, len(window) - 1)], 0).astype(np.float32)
    filtered = jnp.tensordot(
      images, band, axes=(images.ndim + axis, 0), precision=lax.Precision.HIGHEST
    )
    images = jnp.moveaxis(filtered, -1, axis)
  return images


def _as_float(originals: jax.Array, estimates: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Refuses images of different shapes, so that nothing broadcasts by accident."""
  if originals.shape != estimates.shape or originals.ndim < 3:
    raise ValueError(
      "metrics: originals and estimates must have one shape [..., H, W, C], "
      f"got {originals.shape} and {estimates.shape}."
    )
  return originals.astype(jnp.float32), estimates.astype(jnp.float32)


def _squared_error(originals: jax.Array, estimates: jax.Array) -> jax.Array:
  x, y = _as_float(originals, estimates)
  return (x - y) ** 2


def window(shape: Sequence[int]) -> int:
  """Returns the side of the window of SSIM: 11, or the largest odd number of pixels that small images have.

  Args:
    shape: ``[..., H, W, C]``.
  """
  side = min(11, *shape[-3:-1])
  return side - 1 + side % 2
