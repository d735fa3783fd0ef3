"""Networks by name. Each is a Flax module called as ``module.apply(variables, images, train=...)``.

Images are float32 ``[B, H, W, C]``; logits are float32 ``[B, K]``. A new network is one file and one row. Its class may
have fields ``depth`` and ``patch``, which the config fills, and

- ``standardised = False`` (a ClassVar), to get pixels as they are stored instead of standardised ones;
- a static method ``from_spec(spec) -> dict`` that takes further attributes from the public facts of the disguise;
- a method ``estimate(batches) -> dict``: what it takes from disguised training images, ``[B, H, W, C]`` as stored or
  dequantised, before the first step. That replaces entries of its own collection ``batch_stats``, of the same shape and
  dtype. It may read as few of the batches as it likes.

A stem stands before any network: a module from images to images of the same shape, under the same contract. Nothing
here ever has a key.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from djax.errors import ConfigError
from train.models.cnn import Cnn
from train.models.mixer import Mixer
from train.models.mlp import Mlp
from train.models.resnet import ResNet18
from train.models.stems import Aligned, Magnitude, Position
from train.models.units import UnitMlp
from train.models.vgg import Vgg16
from train.models.vit import Vit

__all__ = ["MODELS", "STEMS", "Stemmed", "create", "standardised"]

MODELS: dict[str, Any] = {
  "cnn": Cnn,
  "resnet18": ResNet18,
  "vgg16": Vgg16,
  "vit": Vit,
  "mixer": Mixer,
  "mlp": Mlp,
  "unit_mlp": UnitMlp,
}
STEMS: dict[str, Any] = {
  "none": None,
  "position": Position,
  "aligned": Aligned,
  "magnitude": Magnitude,
}


class Stemmed(nn.Module):
  """A network behind a stem.

  Attributes:
    stem: from images to images.
    trunk: from images to logits.
  """

  stem: nn.Module
  trunk: nn.Module

  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns float32 logits ``[B, K]`` of float images ``[B, H, W, C]``."""
    return self.trunk(self.stem(images, train=train), train=train)

  def estimate(self, batches: Iterator[np.ndarray]) -> dict[str, Any]:
    """Returns what the stem takes from training images.

    Args:
      batches: disguised images, float32 ``[B, H, W, C]``.
    """
    stem: Any = self.stem
    return {"stem": stem.estimate(batches)} if hasattr(stem, "estimate") else {}


def create(config: Any, *, classes: int, spec: Mapping[str, Any]) -> nn.Module:
  """Makes the network of ``config.model``; it takes the shape of the images when it is initialised.

  Args:
    config: the ``model`` group of a config.
    classes: number of labels ``K``.
    spec: of the disguise, ``SchemeSpec.to_dict()``.

  Raises:
    ConfigError: if the network or its stem needs facts that the disguise does not have.
    KeyError: for a name that is not in ``MODELS`` or ``STEMS``.
  """
  dtype = jnp.dtype(config.dtype)
  network = MODELS[config.name]
  facts = _facts("name", config.name, network, spec)
  fields = network.__dataclass_fields__
  if "depth" in fields:
    facts["depth"] = config.depth
  if "patch" in fields:
    facts["patch"] = config.patch or spec.get("block_size", 0)
    if not facts["patch"]:
      raise ConfigError(
        f"config.model.patch must be given for {config.name} on {spec['scheme']} images, which have no blocks, got 0. "
        f"Networks without tokens need none: {', '.join(_without('patch'))}."
      )
  trunk = network(classes=classes, width=config.width, dropout=config.dropout, dtype=dtype, **facts)
  if config.stem == "none":
    return trunk
  if not standardised(trunk):
    raise ConfigError(
      f"config.model.stem must be none with {config.name}, which takes units as they are, got {config.stem!r}."
    )
  stem = STEMS[config.stem]
  options = {
    field: config[f"stem_{field}"]
    for field in ("rank", "mixing", "frozen")
    if field in stem.__dataclass_fields__
  }
  return Stemmed(stem(dtype=dtype, **options, **_facts("stem", config.stem, stem, spec)), trunk)


def standardised(model: nn.Module) -> bool:
  """Returns whether a network takes standardised images, as most do, or pixels as they are stored.

  Args:
    model: from ``create``.
  """
  return getattr(model, "standardised", True)


def _facts(field: str, name: str, part: Any, spec: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what a network or stem takes from the public facts of the disguise."""
  if not hasattr(part, "from_spec"):
    return {}
  try:
    return part.from_spec(spec)
  except KeyError as error:
    able = [other for other, row in MODELS.items() if not hasattr(row, "from_spec")]
    advice = "Choose none." if field == "stem" else f"These take any disguise: {', '.join(able)}."
    raise ConfigError(
      f"config.model.{field}={name} needs {error.args[0]} of the disguise, which {spec['scheme']} has not. {advice}"
    ) from None


def _without(field: str) -> list[str]:
  return [
    name
    for name, row in MODELS.items()
    if field not in row.__dataclass_fields__ and not hasattr(row, "from_spec")
  ]
