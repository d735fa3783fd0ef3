"""The scheme that only moves blocks."""

from collections.abc import Sequence

import numpy as np

from djax import blocks as blocks_lib
from djax import host
from djax import permutation as permutation_lib
from djax.schemes.contract import (
  Key,
  Scheme,
  SchemeSpec,
  check_export,
  draw_perm,
  geometry,
  to_blocks,
  to_images,
)

__all__ = ["permutation_scheme"]


def permutation_scheme(image_shape: Sequence[int], *, block_size: int) -> Scheme:
  """Moves the blocks of every image by one secret permutation; bits and dtype are kept.

  64-bit types are kept under ``jax_enable_x64`` only, as everywhere in JAX.

  Args:
    image_shape: ``(H, W, C)``; padded to whole blocks by repeating the edge.
    block_size: side ``b`` in pixels.

  Raises:
    ValueError: if the block does not fit.

  Security: every block stays readable; borders and statistics give the order away.
  """
  shape, disguised_shape, positions = geometry(image_shape, block_size)

  def make_key(read):
    return Key(perm=draw_perm(read, positions))

  def disguise(key, images, labels, *, rng):
    del rng
    cut = to_blocks(images, shape, block_size)
    return to_images(permutation_lib.permute(key.perm, cut), disguised_shape), labels

  def restore(key, images):
    cut = to_blocks(images, disguised_shape, block_size)
    whole = to_images(permutation_lib.invert(key.perm, cut), disguised_shape)
    return blocks_lib.crop(whole, height=shape[0], width=shape[1])

  def export(key, images, draw):
    del draw
    check_export(images, shape, key)
    padded = host.pad_to_blocks(images, block_size=block_size)
    return host.permute(np.asarray(key.perm), padded, block_size=block_size)

  spec = SchemeSpec("permutation", shape, disguised_shape, block_size, {})
  return Scheme(spec, make_key, disguise, restore, export)
