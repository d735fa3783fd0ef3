"""Networks by name. Each is a Flax module called as ``module.apply(variables, images, train=...)``.

Images are float32 ``[B, H, W, C]``; logits are float32 ``[B, K]``. A new network is one file and one row: a subclass of
``network.Classifier``. Its fields that have the name of a config field, such as ``width``, are filled from it. It may
have

- ``standardised = False`` (a ClassVar), to get pixels as they are stored instead of standardised ones;
- a static method ``from_spec(spec) -> dict`` that takes further attributes from ``SchemeSpec.to_dict()``;
- a method ``estimate(batches) -> dict``: what it takes from disguised training images, ``[B, H, W, C]`` as stored or
  dequantised, before the first step. That replaces entries of its own collection ``batch_stats``, of the same shape and
  dtype. It may read as few of the batches as it likes.

A stem stands before any network: a module from images to images of the same shape, under the same contract. Nothing
here ever has a key.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from djax.errors import ConfigError, nearest
from djax.models.airbench import Airbench
from djax.models.cnn import Cnn
from djax.models.mixer import Mixer
from djax.models.mlp import Mlp
from djax.models.resnet import ResNet18
from djax.models.stems import Aligned, Magnitude, Position
from djax.models.units import UnitMlp
from djax.models.vgg import Vgg16
from djax.models.vit import Vit

__all__ = [
  "BOUNDS",
  "CHOICES",
  "MODELS",
  "STEMS",
  "TYPES",
  "Settings",
  "Stemmed",
  "check",
  "check_values",
  "create",
  "standardised",
]

MODELS: dict[str, Any] = {
  "cnn": Cnn,
  "resnet18": ResNet18,
  "airbench": Airbench,
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
# Of a field, the least and the greatest value: far above what has a use, they keep made-up configs from filling memory.
BOUNDS: dict[str, tuple[float, float]] = {
  "model.width": (1, 1 << 14),
  "model.depth": (1, 64),
  "model.patch": (0, 1 << 10),
  "model.stem_rank": (0, 1 << 12),
}
# How the types of config fields are called.
TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
CHOICES: dict[str, Collection[str]] = {
  "model.name": MODELS,
  "model.stem": STEMS,
  "model.dtype": ("float32", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """The ``model`` group of a config, whose fields ``configs/base.py`` describes."""

  name: str = "cnn"
  width: int = 16
  depth: int = 2
  patch: int = 0
  stem: str = "none"
  stem_rank: int = 0
  stem_mixing: bool = False
  stem_frozen: bool = False
  dropout: float = 0.0
  dtype: str = "float32"


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
    """Returns what the stem estimates."""
    stem: Any = self.stem
    return {"stem": stem.estimate(batches)} if hasattr(stem, "estimate") else {}


def check(given: Mapping[str, Any]) -> Settings:
  """Returns the settings of a network that were read from somewhere.

  Args:
    given: a value for every field of ``Settings``, and no other.

  Raises:
    ConfigError: with the first thing that is wrong.
  """
  fields = {name: type(value) for name, value in dataclasses.asdict(Settings()).items()}
  for name in fields.keys() ^ given.keys():
    raise ConfigError(
      f"config.model must have the fields {', '.join(fields)} alone, {name!r} is missing or too much."
    )
  for name, kind in fields.items():
    if type(given[name]) is not kind:
      raise ConfigError(
        f"config.model.{name} must be {TYPES[kind]}, got {type(given[name]).__name__}."
      )
  check_values(
    {f"model.{name}": value for name, value in given.items()}, BOUNDS, ["model.dropout"], CHOICES
  )
  return Settings(**given)


def check_values(
  given: Mapping[str, Any],
  bounds: Mapping[str, tuple[float, float]],
  shares: Collection[str],
  choices: Mapping[str, Collection[str]],
) -> None:
  """Refuses values of config fields that are out of range.

  Args:
    given: values of the right types, by the field's name, ``group.name``.
    bounds: of fields, the least and the greatest value.
    shares: fields that must lie in [0, 1).
    choices: of fields, what they may be.

  Raises:
    ConfigError: with the first thing that is wrong.
  """
  for name, (low, high) in bounds.items():
    if not given[name] >= low:
      raise ConfigError(f"config.{name} must be at least {low}, got {given[name]}.")
    if not given[name] <= high:
      raise ConfigError(f"config.{name} must be at most {high}, got {given[name]}.")
  for name in shares:
    if not 0 <= given[name] < 1:
      raise ConfigError(f"config.{name} must lie in [0, 1), got {given[name]}.")
  for name, known in choices.items():
    if given[name] not in known:
      raise ConfigError(
        f"config.{name} must be one of {', '.join(known)}, got {given[name]!r}.{nearest(given[name], known)}"
      )


def create(config: Any, *, classes: int, spec: Mapping[str, Any]) -> nn.Module:
  """Makes the network of ``config.model``; it takes the shape of the images when it is initialised.

  Args:
    config: ``Settings``, or the ``model`` group of a config.
    classes: number of labels ``K``.
    spec: of the disguise, ``SchemeSpec.to_dict()``.

  Raises:
    ConfigError: if the network or its stem needs facts that the disguise does not have.
    KeyError: for a name that is not in ``MODELS`` or ``STEMS``.
  """
  dtype = jnp.dtype(config.dtype)
  network = MODELS[config.name]
  options = _options(network, config) | _from_spec("name", config.name, network, spec)
  if "patch" in options:
    options["patch"] = options["patch"] or spec.get("block_size", 0)
    if not options["patch"]:
      raise ConfigError(
        f"config.model.patch must be given for {config.name} on {spec['scheme']} images, which have no blocks, got 0. "
        f"Networks without tokens need none: {', '.join(_without('patch'))}."
      )
  trunk = network(**options | {"classes": classes, "dtype": dtype})
  if config.stem == "none":
    return trunk
  if not standardised(trunk):
    raise ConfigError(
      f"config.model.stem must be none with {config.name}, which takes units as they are, got {config.stem!r}."
    )
  stem = STEMS[config.stem]
  options = _options(stem, config, prefix="stem_") | _from_spec("stem", config.stem, stem, spec)
  return Stemmed(stem(dtype=dtype, **options), trunk)


def standardised(model: nn.Module) -> bool:
  """Returns whether a network takes standardised images, as most do, or pixels as they are stored."""
  return getattr(model, "standardised", True)


def _options(part: Any, config: Any, prefix: str = "") -> dict[str, Any]:
  """Returns the fields of a network or stem that the config fills."""
  own = {field.name for field in dataclasses.fields(part)} - {
    "name",
    "parent",
  }  # Flax has these two
  return {name: getattr(config, prefix + name) for name in own if hasattr(config, prefix + name)}


def _from_spec(field: str, name: str, part: Any, spec: Mapping[str, Any]) -> dict[str, Any]:
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
