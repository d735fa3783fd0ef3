"""The network of Jordan's airbench for 32x32 images (arXiv:2404.00498): little arithmetic for its accuracy.

Two things differ. The first filters are not those that whiten the training images, which nobody has behind a disguise,
but fixed: products of cosines over a 2x2 window and over the channels, which nearly whiten photographs, each normalised
to unit variance. They have no bias, so that without a stem no gradient reaches so many pixels. And pooling takes the
greatest of four pixels by slices, whose gradient XLA computes faster on a CPU than that of its own pooling.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft

from djax.models.convolution import Convolution
from djax.models.network import Classifier

__all__ = ["Airbench"]


class Airbench(Classifier):
  """Fixed 2x2 filters and their negatives, three groups of two 3x3 convolutions, the greatest value of each channel.

  Attributes:
    width: channels of the first group; the others have four times as many.
    dropout: rate before the last layer.
  """

  width: int = 64

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns float32 logits ``[B, K]`` of float images ``[B, H, W, C]``.

    Raises:
      ValueError: if a side is below 9 pixels, of which pooling would leave none.
    """
    if min(images.shape[1:3]) < 9:
      sides = "x".join(map(str, images.shape[1:3]))
      raise ValueError(
        f"airbench needs images of at least 9x9 pixels, got {sides}. Choose model.name=cnn, which takes any."
      )
    # Few steps: statistics must follow the weights fast.
    norm = partial(
      nn.BatchNorm, use_running_average=not train, momentum=0.6, use_scale=False, dtype=self.dtype
    )
    x = jax.lax.conv_general_dilated(
      images.astype(self.dtype),
      jnp.asarray(_filters(images.shape[-1]), self.dtype),
      (1, 1),
      "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = norm(use_bias=False)(x)
    x = nn.gelu(jnp.concatenate([x, -x], axis=-1))
    for features in (self.width, 4 * self.width, 4 * self.width):
      x = _pooled(Convolution(features, dtype=self.dtype)(x))
      x = nn.gelu(norm()(x))
      x = nn.gelu(norm()(Convolution(features, dtype=self.dtype)(x)))
    x = nn.Dropout(self.dropout, deterministic=not train)(x.max(axis=(1, 2)))
    return nn.Dense(self.classes, use_bias=False, dtype=jnp.float32)(x.astype(jnp.float32)) / 9


def _filters(channels: int) -> np.ndarray:
  """Returns orthonormal filters, float32 ``[2, 2, C, 4 C]``."""
  window, across = (scipy.fft.dct(np.eye(n), norm="ortho") for n in (2, channels))
  products = np.einsum("ia,jb,cd->ijcabd", window, window, across)
  return products.reshape(2, 2, channels, -1).astype(np.float32)


def _pooled(x: jax.Array) -> jax.Array:
  """Returns the greatest of every 2x2 pixels; an odd last row or column is dropped."""
  height, width = (side // 2 * 2 for side in x.shape[1:3])
  x = x[:, :height, :width]
  rows = jnp.maximum(x[:, ::2], x[:, 1::2])
  return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])
