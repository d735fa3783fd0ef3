"""Networks by name. Each is a Flax module called as ``module.apply(variables, images, train=...)``.

Images are float32 ``[B, H, W, C]``, standardised; logits are float32 ``[B, K]``. A new network is one file and one row.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from train.models.cnn import Cnn
from train.models.resnet import ResNet18

__all__ = ["MODELS", "Cnn", "ResNet18", "create"]

MODELS: dict[str, Callable[..., nn.Module]] = {"cnn": Cnn, "resnet18": ResNet18}


def create(config: Any, *, classes: int) -> nn.Module:
  """Makes the network of ``config.model``; it takes the shape of the images when it is initialised.

  Args:
    config: the ``model`` group of a config.
    classes: number of labels ``K``.

  Raises:
    KeyError: for a name that is not in ``MODELS``.
  """
  return MODELS[config.name](
    classes=classes, width=config.width, dropout=config.dropout, dtype=jnp.dtype(config.dtype)
  )
