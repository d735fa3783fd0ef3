"""ResNet-18 for small images: a 3x3 stem without pooling (He et al. 2016, doi:10.1109/CVPR.2016.90)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from djax.models.network import Classifier

__all__ = ["ResNet18"]


class ResNet18(Classifier):
  """Four stages of two basic blocks.

  Attributes:
    width: channels of the first stage; each further stage doubles them and halves the sides.
    dropout: rate before the last layer.
  """

  width: int = 64

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns float32 logits ``[B, K]`` of float images ``[B, H, W, C]``."""
    conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
    x = nn.relu(norm()(conv(self.width, (3, 3))(images.astype(self.dtype))))
    for stage in range(4):
      features = self.width * 2**stage
      for block in range(2):
        strides = (2, 2) if stage and not block else (1, 1)
        y = nn.relu(norm()(conv(features, (3, 3), strides=strides)(x)))
        # A zero scale starts every block as the identity.
        y = norm(scale_init=nn.initializers.zeros)(conv(features, (3, 3))(y))
        if x.shape != y.shape:
          x = norm()(conv(features, (1, 1), strides=strides)(x))
        x = nn.relu(x + y)
    x = nn.Dropout(self.dropout, deterministic=not train)(x.mean(axis=(1, 2)))
    return nn.Dense(self.classes, dtype=jnp.float32)(x.astype(jnp.float32))
