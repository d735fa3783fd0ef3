"""VGG-16 for small images: configuration D of Simonyan & Zisserman (arXiv:1409.1556), with batch normalisation."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from djax.models.network import Classifier

__all__ = ["Vgg16"]

STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))  # convolutions, and their channels in widths


class Vgg16(Classifier):
  """Thirteen 3x3 convolutions in five stages, each closed by a maximum over 2x2, and one dense layer.

  The two dense layers of 4096 that the publication has for images of 224 pixels are left out, as is usual at 32: all
  positions are averaged instead. Its maxima are kept, so that the network is the published one; they assume that
  neighbours mean the same, which holds in plain images only. An odd side is rounded up, so images of any size pass.

  Attributes:
    width: channels of the first stage, 64 in the publication; they double up to eight times as many.
    dropout: rate before the last layer.
  """

  width: int = 64

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns float32 logits ``[B, K]`` of float images ``[B, H, W, C]``."""
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
    x = images.astype(self.dtype)
    for convolutions, factor in STAGES:
      for _ in range(convolutions):
        x = nn.Conv(factor * self.width, (3, 3), use_bias=False, dtype=self.dtype)(x)
        x = nn.relu(norm()(x))
      x = nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
    x = nn.Dropout(self.dropout, deterministic=not train)(x.mean(axis=(1, 2)))
    return nn.Dense(self.classes, dtype=jnp.float32)(x.astype(jnp.float32))
