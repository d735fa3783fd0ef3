"""MLP-Mixer for small images (Tolstikhin et al., arXiv:2105.01601)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from djax.models.network import Classifier
from djax.models.vit import cut, two_layers

__all__ = ["Mixer"]


class Mixer(Classifier):
  """Dense layers across the tokens and dense layers across their channels, in turn.

  Mixing has a weight of its own for each position, so no order of the tokens is better than another, and a permutation
  of blocks costs nothing where ``patch`` is the block size. The map of patches to tokens is shared by all positions, as
  published; secret matrices that differ by position need a stem that undoes them.

  Attributes:
    width: channels of a token; half as many are between the layers across tokens, four times as many between those
      across channels, as published.
    depth: number of blocks.
    patch: side of a token in pixels; divides both sides of the image.
    dropout: rate on what each half of a block adds to the tokens.
  """

  width: int = 192
  depth: int = 6
  patch: int = 4

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns float32 logits ``[B, K]`` of float images ``[B, H, W, C]``.

    Raises:
      ValueError: while tracing, if patches do not fit the image.
    """
    norm = partial(nn.LayerNorm, dtype=self.dtype)
    drop = partial(nn.Dropout, self.dropout, deterministic=not train)
    mix = partial(two_layers, dtype=self.dtype)
    x = cut(images.astype(self.dtype), patch=self.patch)
    x = nn.Dense(self.width, dtype=self.dtype)(x)  # [B, P, width]
    for _ in range(self.depth):
      x += drop()(mix(norm()(x).swapaxes(1, 2), self.width // 2).swapaxes(1, 2))
      x += drop()(mix(norm()(x), 4 * self.width))
    x = norm()(x).astype(jnp.float32).mean(axis=1)
    return nn.Dense(self.classes, dtype=jnp.float32)(x)
