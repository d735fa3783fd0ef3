"""One secret permutation of the block positions, shared by all images of a data set.

Disguised position ``p`` holds original position ``perm[p]``. Blocks are ``[..., P, b, b, C]``, any dtype.
Source: DisguisedNets, doi:10.1145/3609506. For P positions there are P! permutations; that counts brute force only:
per-position statistics reveal the order (``placement`` in the threat model), however large P is.

A permutation with values is checked. One that is traced, under ``jit`` or mapped by ``vmap``, has none yet, and only
its shape and dtype are: an index outside ``0..P-1`` then counts as the nearest end, an index that occurs twice doubles
its block and another one is lost, and ``invert`` orders by ``argsort``, which undoes true permutations alone.
``make_key`` draws true ones; check any other once, by calling ``permute`` with it outside of ``jit``.
"""

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["invert", "permute"]


def permute(perm: jax.Array, blocks: jax.Array) -> jax.Array:
  """Moves block ``perm[p]`` to position ``p``.

  Args:
    perm: secret, ``[P]`` integers, a permutation of ``0..P-1``.
    blocks: ``[..., P, b, b, C]``, any dtype.

  Returns:
    Blocks of the same shape and dtype, bit for bit; ``invert`` is the exact inverse.

  Raises:
    ValueError: while tracing, if the lengths differ or ``perm`` does not hold integers; outside, also if it is no
      permutation.

  Example:
    >>> blocks = jnp.arange(3).reshape(3, 1, 1, 1)
    >>> permute(jnp.array([2, 0, 1]), blocks).ravel()
    Array([2, 0, 1], dtype=int32)
  """
  _check("permute", perm, blocks)
  # Not unique_indices=True: nobody vouches for it where perm is traced, and without it the gradient stays defined.
  return jnp.take(blocks, perm, axis=-4, mode="clip")


def invert(perm: jax.Array, blocks: jax.Array) -> jax.Array:
  """Moves block ``p`` back to position ``perm[p]``.

  Args:
    perm: the secret that ``permute`` was given, ``[P]`` integers.
    blocks: ``[..., P, b, b, C]``, any dtype.

  Raises:
    ValueError: as ``permute``.

  Example:
    >>> perm, blocks = jnp.array([2, 0, 1]), jnp.arange(3).reshape(3, 1, 1, 1)
    >>> invert(perm, permute(perm, blocks)).ravel()
    Array([0, 1, 2], dtype=int32)
  """
  _check("invert", perm, blocks)
  return permute(jnp.argsort(perm), blocks)


def _check(function: str, perm: jax.Array, blocks: jax.Array) -> None:
  """Refuses what is not one index a block position, and, where there are values, no permutation."""
  if blocks.ndim < 4 or perm.ndim != 1 or blocks.shape[-4] != perm.shape[0]:
    raise ValueError(
      f"{function}: perm must be [P] and blocks [..., P, b, b, C], got perm.shape={perm.shape} and "
      f"blocks.shape={blocks.shape}. Use the key made for this image shape and block size."
    )
  if not np.issubdtype(perm.dtype, np.integer):
    raise ValueError(
      f"{function}: perm must hold integers, got {perm.dtype}. Give indices of block positions."
    )
  if isinstance(perm, jax.core.Tracer):
    return
  values = np.sort(jax.device_get(perm))  # named, as loops disallow transfers that are not
  if (values != np.arange(len(values))).any():
    raise ValueError(
      f"{function}: perm must hold each of 0..{len(values) - 1} once, got {len(np.unique(values))} different indices "
      f"in {values[0]}..{values[-1]}. Use the key made for this image shape and block size."
    )
