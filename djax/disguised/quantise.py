"""What is stored of a disguised image and how far it is from the exact value: float32, float16, quantised uint8.

Bounds are worst cases, proved from the public spec and the quantiser alone; no pixel enters them. Disguised values of
RMT are bounded by Cauchy-Schwarz: a row of ``n`` values of at most ``A = 255 + N`` has a norm of at most ``A sqrt(n)``.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax import schemes
from djax.errors import ConfigError
from djax.host import blockwise

__all__ = ["DTYPES", "Bounds", "Quantiser", "bounds", "dequantise", "quantise", "quantiser_for"]

DTYPES = ("float32", "float16", "uint8")
_ROUNDING = 2.0**-24
_LARGEST_FLOAT16 = 65504.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Quantiser:
  """An affine map a block position of the disguised image; public.

  Attributes:
    offset: float32 ``[P]``, the value of 0.
    scale: float32 ``[P]``, the value of a step; above 0.
  """

  offset: np.ndarray | jax.Array
  scale: np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class Bounds:
  """Greatest errors, on the 0..255 scale.

  Attributes:
    stored: of a stored value.
    restored: of a restored pixel, noise apart; None where there is no way back.
    noise: what the noise adds to ``restored`` at most.
  """

  stored: float
  restored: float | None
  noise: float


def bounds(spec: Mapping[str, Any], dtype: str, quantiser: Quantiser | None) -> Bounds:
  """Returns the greatest errors of storing and restoring a disguise.

  Args:
    spec: ``SchemeSpec.to_dict()``, complete.
    dtype: one of ``DTYPES``.
    quantiser: for ``uint8`` of float values, else None.

  Raises:
    ConfigError: if float16 cannot hold the values.
  """
  reach = schemes.kind_of(spec).reach(spec)
  n, norm, level = max(reach.terms, 1), reach.norm, reach.level
  largest = (255.0 + level) * math.sqrt(n) * norm
  # n products and n - 1 sums, the matrix itself rounded once; twice, for the way back.
  exact = 2 * (n + 2) * _ROUNDING * largest * norm if reach.terms else 0.0
  stored = exact
  if dtype == "float16":
    if largest + level > _LARGEST_FLOAT16:
      raise ConfigError(
        f"dtype float16 must hold values up to {largest + level:.0f}, its largest is {_LARGEST_FLOAT16:.0f}. "
        "Choose float32, or less noise."
      )
    stored += 2.0 ** (math.floor(math.log2(largest + level)) - 11)
  if quantiser is not None:
    ends = np.abs(quantiser.offset) + 255 * quantiser.scale
    stored += float(np.max(np.asarray(quantiser.scale, np.float64) / 2 + 4 * _ROUNDING * ends))
  restored = exact + stored * math.sqrt(n) * norm if reach.restorable else None
  return Bounds(stored, restored, reach.noise)


def quantiser_for(low: np.ndarray, high: np.ndarray) -> Quantiser:
  """Makes the quantiser of values between ``low`` and ``high``.

  Steps are rounded up to 16 significant bits: times 0..255 they are exact in float32, so compilers that fuse product
  and sum dequantise to the same bits as those that do not, and 255 steps reach ``high``.

  Args:
    low: float32 ``[P]``, the smallest value at each block position.
    high: float32 ``[P]``, the largest.
  """
  mantissa, exponent = np.frexp((high.astype(np.float64) - low) / 255)
  scale = np.ldexp(np.ceil(mantissa * 2.0**16), exponent - 16).astype(np.float32)
  return Quantiser(low.astype(np.float32), np.where(scale > 0, scale, np.float32(1)))


def quantise(images: np.ndarray, quantiser: Quantiser, *, block_size: int) -> np.ndarray:
  """Rounds values to the steps of their position; what lies outside its range is cut.

  Args:
    images: float32 ``[..., H', W', C]``, disguised.
    quantiser: of the data set.
    block_size: side ``b`` in pixels.

  Returns:
    uint8 of the same shape.
  """
  (images,) = blockwise.arrays("quantise", images=images)
  offset, scale = _maps(np, quantiser, images.shape, block_size)
  steps = (images.astype(np.float64) - offset) / scale
  return np.clip(np.rint(steps), 0, 255).astype(np.uint8)


def dequantise(images: Any, quantiser: Quantiser, *, block_size: int) -> Any:
  """Undoes ``quantise`` up to half a step; NumPy arrays on the host, JAX arrays under jit.

  Args:
    images: uint8 ``[..., H', W', C]``.
    quantiser: of the data set.
    block_size: side ``b`` in pixels; static.

  Returns:
    float32 of the same shape.
  """
  xp = jnp if isinstance(images, jax.Array) else np
  offset, scale = _maps(xp, quantiser, images.shape, block_size)
  return offset + scale * images.astype(np.float32)


def _maps(xp: Any, quantiser: Quantiser, shape: tuple[int, ...], block_size: int) -> list[Any]:
  """Spreads offset and scale over the pixels, ``[H', W', 1]`` each."""
  grid = (shape[-3] // block_size, shape[-2] // block_size)
  return [
    xp.repeat(xp.repeat(values.reshape(grid), block_size, 0), block_size, 1)[..., None]
    for values in (quantiser.offset, quantiser.scale)
  ]
