"""A small convolutional network, of the kind the papers use on MNIST."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["Cnn"]


class Cnn(nn.Module):
  """Two convolutions with pooling, one hidden dense layer.

  Attributes:
    classes: number of labels ``K``.
    width: channels of the first convolution; the second has twice, the dense layer sixteen times as many.
    dropout: rate before both dense layers.
    dtype: of the layers' arithmetic; parameters stay float32.
  """

  classes: int
  width: int = 32
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns float32 logits ``[B, K]`` of float images ``[B, H, W, C]``."""
    x = images.astype(self.dtype)
    for features in (self.width, 2 * self.width):
      x = nn.Conv(features, (5, 5), use_bias=False, dtype=self.dtype)(x)
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)
      x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
    x = x.reshape(x.shape[0], -1)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    x = nn.relu(nn.Dense(16 * self.width, dtype=self.dtype)(x))
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return nn.Dense(self.classes, dtype=jnp.float32)(x.astype(jnp.float32))
