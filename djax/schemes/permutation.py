"""The scheme that only moves blocks."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from djax.host import blockwise
from djax.ops import blocks as blocks_lib
from djax.ops import permutation as permutation_lib
from djax.schemes.base import (
  BLOCK_SIZE,
  Key,
  Kind,
  Scheme,
  SchemeSpec,
  Trait,
  check_export,
  draw_perm,
  geometry,
  to_blocks,
  to_images,
)

__all__ = ["KIND", "permutation_scheme"]


def permutation_scheme(
  image_shape: Sequence[int], *, block_size: Annotated[int, BLOCK_SIZE]
) -> Scheme:
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
    padded = blockwise.pad_to_blocks(images, block_size=block_size)
    return blockwise.permute(np.asarray(key.perm), padded, block_size=block_size)

  spec = SchemeSpec("permutation", shape, disguised_shape, block_size, {})
  return Scheme(spec, make_key, disguise, restore, export)


KIND = Kind(
  "permutation",
  permutation_scheme,
  traits=lambda spec: frozenset({Trait.BLOCKS, Trait.LINEAR, Trait.ORTHOGONAL, Trait.MOVED}),
  written=True,
  warnings=lambda spec: (
    "permutation: every block stays readable, and its order can be puzzled out.",
  ),
  words=lambda options: [
    f"{options['block_size']}x{options['block_size']} blocks, permuted, nothing else"
  ],
  audited=lambda: [{"scheme": "permutation", "block_size": size} for size in (2, 4, 8)],
  benched=lambda sizes: [({"scheme": "permutation", "block_size": sizes[1]}, True)],
  reference=lambda key: lambda position, block: block,
)
