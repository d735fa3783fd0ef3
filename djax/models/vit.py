"""A vision transformer for small images (Dosovitskiy et al., arXiv:2010.11929), and the tokens it reads."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from djax.models.network import Classifier
from djax.ops import blocks

__all__ = ["Vit", "cut", "two_layers"]

HEAD = 32  # channels of an attention head


class Vit(Classifier):
  """Patches as tokens, learned positions, attention; the mean of all tokens is classified.

  Where ``patch`` is the block size of the disguise, a token is one block. Positions are learned, and no order of them
  is better than another, so a permutation of blocks costs nothing. The map of patches to tokens is shared by all
  positions, as published; secret matrices that differ by position need a stem that undoes them.

  Each block is pre-norm: attention, then two dense layers with ``4 * width`` between them, as published. One ratio for
  all widths, so that ``width`` and ``depth`` alone set the size.

  Attributes:
    width: channels of a token, in heads of 32: a multiple of 32, or anything below for a single head.
    depth: number of blocks.
    patch: side of a token in pixels; divides both sides of the image.
    dropout: rate on what each half of a block adds to the tokens.
    dtype: as in ``Classifier``, except for the softmax, which is float32.
  """

  width: int = 192
  depth: int = 6
  patch: int = 4

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns float32 logits ``[B, K]`` of float images ``[B, H, W, C]``.

    Raises:
      ValueError: while tracing, if patches do not fit the image, or heads the width.
    """
    heads = _heads(self.width)
    norm = partial(nn.LayerNorm, dtype=self.dtype)
    drop = partial(nn.Dropout, self.dropout, deterministic=not train)
    x = cut(images.astype(self.dtype), patch=self.patch)
    x = nn.Dense(self.width, dtype=self.dtype)(x)  # [B, P, width]
    x += self.param("positions", nn.initializers.normal(0.02), x.shape[1:]).astype(self.dtype)
    for _ in range(self.depth):
      attention = nn.MultiHeadDotProductAttention(
        heads, dtype=self.dtype, force_fp32_for_softmax=True
      )
      x += drop()(attention(norm()(x)))
      x += drop()(two_layers(norm()(x), 4 * self.width, dtype=self.dtype))
    x = norm()(x).astype(jnp.float32).mean(axis=1)
    return nn.Dense(self.classes, dtype=jnp.float32)(x)


def cut(images: jax.Array, *, patch: int) -> jax.Array:
  """Returns images ``[B, H, W, C]`` as tokens ``[B, P, patch * patch * C]``, row by row, dtype unchanged.

  Args:
    images: of any dtype.
    patch: side of a token in pixels; static.

  Raises:
    ValueError: while tracing, if ``H`` or ``W`` is not a multiple of ``patch``.
  """
  height, width = images.shape[1:3]
  if patch < 1 or height % patch or width % patch:
    raise ValueError(
      f"patch must divide both sides of the image, got patch={patch} for {height} x {width} pixels. "
      "Give a common divisor; the block size of the disguise is one."
    )
  tokens = blocks.blockify(images, block_size=patch)
  return tokens.reshape(*tokens.shape[:2], -1)


def two_layers(x: jax.Array, hidden: int, *, dtype: Any) -> jax.Array:
  """Applies two dense layers to the last axis, a GELU between them; call it inside a compact module.

  Args:
    x: ``[..., N]``.
    hidden: width between the layers.
    dtype: of the arithmetic.

  Returns:
    ``[..., N]`` of ``dtype``.
  """
  y = nn.gelu(nn.Dense(hidden, dtype=dtype)(x))
  return nn.Dense(x.shape[-1], dtype=dtype)(y)


def _heads(width: int) -> int:
  """Returns how many heads share the channels of a token."""
  if width > HEAD and width % HEAD:
    raise ValueError(
      f"Vit: width must be a multiple of {HEAD}, or below it, got width={width}. "
      f"Give {width // HEAD * HEAD} or {(width // HEAD + 1) * HEAD}."
    )
  return max(1, width // HEAD)
