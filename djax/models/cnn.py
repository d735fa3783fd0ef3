"""A small convolutional network, of the kind the papers use on MNIST."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from djax.models.network import Classifier

__all__ = ["Cnn"]


class Cnn(Classifier):
  """Two strided convolutions, one hidden dense layer.

  Strides rather than pooling: neighbours in a disguised block are coordinates, and their maximum means nothing.

  Attributes:
    width: channels of the first convolution; the second has twice, the dense layer 32 times as many.
    dropout: rate before both dense layers.
  """

  width: int = 16

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns float32 logits ``[B, K]`` of float images ``[B, H, W, C]``."""
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
    drop = partial(nn.Dropout, self.dropout, deterministic=not train)
    x = images.astype(self.dtype)
    for features in (self.width, 2 * self.width):
      x = nn.Conv(features, (5, 5), strides=(2, 2), use_bias=False, dtype=self.dtype)(x)
      x = nn.relu(norm()(x))
    x = drop()(x.reshape(x.shape[0], -1))
    x = nn.relu(norm()(nn.Dense(32 * self.width, use_bias=False, dtype=self.dtype)(x)))
    return nn.Dense(self.classes, dtype=jnp.float32)(drop()(x).astype(jnp.float32))
