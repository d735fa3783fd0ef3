"""Random multidimensional projection (RMT): each block position has its own secret matrix, ``Y_p = X_p R_p``.

Blocks are ``[..., P, b, b, C]``; uint8 or float values on the 0..255 scale become float32 (about half of them leave
that range). With ``mix="rows"`` each channel's ``b x b`` block is multiplied from the right, the papers' way; with
``mix="block"`` the flattened ``b*b*C`` vector is multiplied by one matrix of that side, a stronger mixing of ours.

Security: linear and, without noise, deterministic. A handful of known pairs per position reveals its matrix, and
second moments of enough disguised images do so without a single pair.
Source: DisguisedNets, doi:10.1145/3609506.
"""

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["MIXES", "matrix_shape", "project", "unproject"]

MIXES = ("rows", "block")
# Up to this side, sums of products, which fuse into one pass over memory; batches of tiny matrix products take three.
_UNROLLED = 16


def matrix_shape(
  positions: int, block_size: int, channels: int, *, mix: str, per_channel: bool
) -> tuple[int, ...]:
  """Returns the shape of the matrices for one key: ``[P, n, n]``, or ``[P, C, n, n]`` per channel.

  Args:
    positions: number of block positions ``P``.
    block_size: side ``b`` in pixels.
    channels: number of channels ``C``.
    mix: ``"rows"`` (``n = b``) or ``"block"`` (``n = b * b * C``).
    per_channel: with ``mix="rows"``, whether each channel has its own matrix.

  Raises:
    ValueError: for an unknown ``mix``, or ``per_channel`` with ``mix="block"``, which has one matrix for all channels.
  """
  _check_mix(mix)
  if mix == "block":
    if per_channel:
      raise ValueError(
        "rmt: per_channel must be False with mix='block', whose one matrix spans all channels. "
        "Use mix='rows' for one matrix per channel."
      )
    side = block_size * block_size * channels
    return (positions, side, side)
  return (positions, *((channels,) if per_channel else ()), block_size, block_size)


def project(matrices: jax.Array, blocks: jax.Array, *, mix: str = "rows") -> jax.Array:
  """Multiplies every block by the secret matrix of its position.

  Args:
    matrices: secret, float32 of ``matrix_shape``: ``[P, b, b]`` or ``[P, C, b, b]`` for rows, ``[P, n, n]`` with
      ``n = b * b * C`` for whole blocks.
    blocks: ``[..., P, b, b, C]``, uint8 or float.
    mix: ``"rows"`` or ``"block"``; static.

  Returns:
    float32 blocks of the same shape; ``unproject`` is the inverse.

  Raises:
    ValueError: while tracing, if the shapes do not fit together.

  Example:
    >>> turn = jnp.array([[[0.0, 1.0], [-1.0, 0.0]]])  # of the only block
    >>> project(turn, jnp.array([[1, 2], [3, 4]]).reshape(1, 2, 2, 1))[0, ..., 0]
    Array([[-2.,  1.],
           [-4.,  3.]], dtype=float32)
  """
  _check_mix(mix)
  _check_shapes(matrices, blocks, mix)
  x = blocks.astype(jnp.float32)
  if mix == "block":
    flat = x.reshape(*x.shape[:-3], -1)
    y = jnp.einsum("...pk,pkl->...pl", flat, matrices, precision=lax.Precision.HIGHEST)
    return y.reshape(x.shape)
  if matrices.shape[-1] > _UNROLLED:
    subscripts = "...prkc,pckl->...prlc" if matrices.ndim == 4 else "...prkc,pkl->...prlc"
    return jnp.einsum(subscripts, x, matrices, precision=lax.Precision.HIGHEST)
  weights = matrices.reshape(len(matrices), -1, *matrices.shape[-2:])  # [P, C or 1, k, l]
  weights = jnp.transpose(weights, (2, 0, 3, 1))[:, :, None]  # [k, P, 1, l, C or 1]
  weights = weights.reshape(-1, *(1,) * (x.ndim - 4), *weights.shape[1:])
  y = x[..., :1, :] * weights[0]
  for k in range(1, len(weights)):
    y += x[..., k : k + 1, :] * weights[k]
  return y


def unproject(
  matrices: jax.Array, blocks: jax.Array, *, mix: str = "rows", orthogonal: bool = True
) -> jax.Array:
  """Undoes ``project``.

  Args:
    matrices: the secret that ``project`` was given.
    blocks: float32 ``[..., P, b, b, C]``.
    mix: as given to ``project``; static.
    orthogonal: whether the matrices are orthogonal, so that the transpose is the inverse; static.

  Raises:
    ValueError: while tracing, if the shapes do not fit together.

  Example:
    >>> turn = jnp.array([[[0.0, 1.0], [-1.0, 0.0]]])
    >>> unproject(turn, project(turn, jnp.full((1, 2, 2, 1), 7)))[0, ..., 0]
    Array([[7., 7.],
           [7., 7.]], dtype=float32)
  """
  if orthogonal:
    return project(jnp.swapaxes(matrices, -1, -2), blocks, mix=mix)
  return project(jnp.linalg.inv(matrices), blocks, mix=mix)


def _check_mix(mix: str) -> None:
  """Refuses a mixing that does not exist."""
  if mix not in MIXES:
    raise ValueError(f"rmt: mix must be one of {MIXES}, got {mix!r}.")


def _check_shapes(matrices: jax.Array, blocks: jax.Array, mix: str) -> None:
  """Refuses matrices that were made for other blocks."""
  if blocks.ndim >= 4:
    positions, b, b2, channels = blocks.shape[-4:]
    expected = matrix_shape(positions, b, channels, mix=mix, per_channel=False)
    per_channel = (positions, channels, b, b) if mix == "rows" else None
    if b == b2 and matrices.shape in (expected, per_channel):
      return
  raise ValueError(
    f"rmt: matrices and blocks must fit together, got matrices.shape={matrices.shape} and "
    f"blocks.shape={blocks.shape} with mix={mix!r}. Use the key made for this image shape and block size."
  )
