"""Networks by name. Each is a Flax module called as ``module.apply(variables, images, train=...)``.

Images are float32 ``[B, H, W, C]``; logits are float32 ``[B, K]``. A new network is one file and one row. Its class may
say ``standardised = False`` (a ClassVar) to get pixels as they are stored instead of standardised ones, and may have a
static method ``from_spec(spec) -> dict`` that takes further attributes from the public facts of the disguise.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from djax.errors import ConfigError
from train.models.cnn import Cnn
from train.models.resnet import ResNet18
from train.models.units import UnitMlp

__all__ = ["MODELS", "Cnn", "ResNet18", "UnitMlp", "create", "standardised"]

MODELS: dict[str, Any] = {"cnn": Cnn, "resnet18": ResNet18, "unit_mlp": UnitMlp}


def create(config: Any, *, classes: int, spec: Mapping[str, Any]) -> nn.Module:
  """Makes the network of ``config.model``; it takes the shape of the images when it is initialised.

  Args:
    config: the ``model`` group of a config.
    classes: number of labels ``K``.
    spec: of the disguise, ``SchemeSpec.to_dict()``.

  Raises:
    ConfigError: if the network needs facts that the disguise does not have.
    KeyError: for a name that is not in ``MODELS``.
  """
  network = MODELS[config.name]
  facts = {}
  if hasattr(network, "from_spec"):
    try:
      facts = network.from_spec(spec)
    except KeyError as error:
      raise ConfigError(
        f"config.model.name={config.name} needs {error.args[0]} of the disguise, which {spec['scheme']} has not. "
        "Choose another network."
      ) from None
  return network(
    classes=classes,
    width=config.width,
    dropout=config.dropout,
    dtype=jnp.dtype(config.dtype),
    **facts,
  )


def standardised(model: nn.Module) -> bool:
  """Returns whether a network takes standardised images, as most do, or pixels as they are stored.

  Args:
    model: from ``create``.
  """
  return getattr(model, "standardised", True)
