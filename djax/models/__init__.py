"""Networks by name. Each is a Flax module called as ``module.apply(variables, images, train=...)``.

Images are float32 ``[B, H, W, C]``; logits are float32 ``[B, K]``. A new network is one file and one row. Its class has
fields ``classes`` and ``dtype``; it may have ``width``, ``depth``, ``dropout`` and ``patch``, which the config
fills, and

- ``standardised = False`` (a ClassVar), to get pixels as they are stored instead of standardised ones;
- a static method ``from_spec(spec) -> dict`` that takes further attributes from the public facts of the disguise;
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

from djax.errors import ConfigError
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
  "Settings",
  "Stemmed",
  "check",
  "create",
  "standardised",
]

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
# Of a field, the least and the greatest value: far above what has a use, they keep made-up configs from filling memory.
BOUNDS: dict[str, tuple[float, float]] = {
  "width": (1, 1 << 14),
  "depth": (1, 64),
  "patch": (0, 1 << 10),
  "stem_rank": (0, 1 << 12),
}
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
CHOICES: dict[str, Collection[str]] = {
  "name": MODELS,
  "stem": STEMS,
  "dtype": ("float32", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """The ``model`` group of a config, whose comments say what the fields are: ``configs/base.py``."""

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
    """Returns what the stem takes from training images.

    Args:
      batches: disguised images, float32 ``[B, H, W, C]``.
    """
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
    value = given[name]
    if type(value) is not kind:
      raise ConfigError(f"config.model.{name} must be {_WORDS[kind]}, got {type(value).__name__}.")
    if name in CHOICES and value not in CHOICES[name]:
      raise ConfigError(
        f"config.model.{name} must be one of {', '.join(CHOICES[name])}, got {value!r}."
      )
    if name in BOUNDS:
      low, high = BOUNDS[name]
      if not value >= low:
        raise ConfigError(f"config.model.{name} must be at least {low}, got {value}.")
      if not value <= high:
        raise ConfigError(f"config.model.{name} must be at most {high}, got {value}.")
  if not 0 <= given["dropout"] < 1:
    raise ConfigError(f"config.model.dropout must lie in [0, 1), got {given['dropout']}.")
  return Settings(**given)


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
  facts = _facts("name", config.name, network, spec)
  fields = network.__dataclass_fields__
  facts |= {name: getattr(config, name) for name in ("width", "depth", "dropout") if name in fields}
  if "patch" in fields:
    facts["patch"] = config.patch or spec.get("block_size", 0)
    if not facts["patch"]:
      raise ConfigError(
        f"config.model.patch must be given for {config.name} on {spec['scheme']} images, which have no blocks, got 0. "
        f"Networks without tokens need none: {', '.join(_without('patch'))}."
      )
  trunk = network(classes=classes, dtype=dtype, **facts)
  if config.stem == "none":
    return trunk
  if not standardised(trunk):
    raise ConfigError(
      f"config.model.stem must be none with {config.name}, which takes units as they are, got {config.stem!r}."
    )
  stem = STEMS[config.stem]
  options = {
    field: getattr(config, f"stem_{field}")
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
