"""Dense layers over all pixels: a network that has no use for neighbours."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from djax.models.network import Classifier

__all__ = ["Mlp"]


class Mlp(Classifier):
  """Hidden dense layers on the flattened image.

  It suits disguises because it assumes nothing about neighbours. Its first layer takes in any secret matrix and any
  order of blocks: to every first kernel for plain images belongs one for disguised images, with the secret map undone
  in it, that gives the same logits. If the map is orthogonal, both have the same norm, and weight decay does not tell
  them apart. What remains of the disguise is its noise, and the gain from neighbours that is given up.

  Attributes:
    width: of every hidden layer.
    depth: number of hidden layers.
    dropout: rate after every hidden layer; of the pixels a third of it.
  """

  width: int = 1024
  depth: int = 2

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns float32 logits ``[B, K]`` of float images ``[B, H, W, C]``."""
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
    drop = partial(nn.Dropout, deterministic=not train)
    x = images.astype(self.dtype).reshape(images.shape[0], -1)
    x = drop(self.dropout / 3)(x)
    for _ in range(self.depth):
      x = nn.Dense(self.width, use_bias=False, dtype=self.dtype)(x)
      x = drop(self.dropout)(nn.relu(norm()(x)))
    return nn.Dense(self.classes, dtype=jnp.float32)(x.astype(jnp.float32))
