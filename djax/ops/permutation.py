"""One secret permutation of the block positions, shared by all images of a data set.

Disguised position ``p`` holds original position ``perm[p]``. Blocks are ``[..., P, b, b, C]``, any dtype.
Source: DisguisedNets, doi:10.1145/3609506. For P positions there are P! permutations; that counts brute force only:
per-position statistics reveal the order (``placement`` in the threat model), however large P is.
"""

import jax
import jax.numpy as jnp

__all__ = ["invert", "permute"]


def permute(perm: jax.Array, blocks: jax.Array) -> jax.Array:
  """Moves block ``perm[p]`` to position ``p``.

  Args:
    perm: secret, ``[P]`` integers, a permutation of ``0..P-1``.
    blocks: ``[..., P, b, b, C]``, any dtype.

  Returns:
    Blocks of the same shape and dtype, bit for bit; ``invert`` is the exact inverse.

  Raises:
    ValueError: while tracing, if the lengths differ.
  """
  _check("permute", perm, blocks)
  return jnp.take(blocks, perm, axis=-4, mode="clip", unique_indices=True)


def invert(perm: jax.Array, blocks: jax.Array) -> jax.Array:
  """Moves block ``p`` back to position ``perm[p]``.

  Args:
    perm: the secret that ``permute`` was given, ``[P]`` integers.
    blocks: ``[..., P, b, b, C]``, any dtype.

  Raises:
    ValueError: while tracing, if the lengths differ.
  """
  _check("invert", perm, blocks)
  return permute(jnp.argsort(perm), blocks)


def _check(function: str, perm: jax.Array, blocks: jax.Array) -> None:
  """Refuses a permutation that is not one index a block position."""
  if blocks.ndim < 4 or perm.ndim != 1 or blocks.shape[-4] != perm.shape[0]:
    raise ValueError(
      f"{function}: perm must be [P] and blocks [..., P, b, b, C], got perm.shape={perm.shape} and "
      f"blocks.shape={blocks.shape}. Use the key made for this image shape and block size."
    )
