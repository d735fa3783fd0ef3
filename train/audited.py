"""What ``python -m djax audit`` attacks of a training config: its source and its disguise."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from djax.audit import scenario
from djax.audit.scenario import Scenario, Sizes
from djax.errors import ConfigError
from djax.schemes import Trait
from djax.sources import AS_IS, Reading
from train import config as config_lib

__all__ = ["of", "scenario_of"]

_VIEWS = ("crop", "flip", "rotate", "scale", "shear")


def of(config: ConfigDict) -> dict[str, Any]:
  """Returns what is attacked: ``source``, ``image_size``, ``scale`` unless 0, ``split`` and ``disguise``.

  Where the run shows several views of an image, also ``views``, the greater of those of a training and of a test image,
  and ``options``, those of ``djax.ops.augment.view`` that are not 0.

  The whole split is drawn from, however few images the run trains on: a disguise is as strong on some as on all.

  Args:
    config: of the run.
  """
  return {
    "source": config.data.source,
    "image_size": config.data.image_size,
    **({"scale": config.data.scale} if config.data.scale else {}),
    "split": config.data.train_split.partition("[")[0],
    "disguise": config_lib.disguise_of(config),
    **_views_of(config),
  }


def _views_of(config: ConfigDict) -> dict[str, Any]:
  """Returns the views that a run shows of an image; a scheme that mixes images has encodings instead."""
  count = max(config.augment.views, config.augment.test_views)
  traits = config_lib.traits_of(config)
  one_by_one = Trait.BLOCKS in traits and not traits & {Trait.MIXED_IMAGES, Trait.TOKENS}
  if count == 1 or not one_by_one:
    return {}
  return {"views": count, "options": {n: config.augment[n] for n in _VIEWS if config.augment[n]}}


def scenario_of(
  config: ConfigDict,
  *,
  seed: int,
  sizes: Sizes,
  reading: Reading = AS_IS,
  progress: Callable[[float, str], None],
) -> Scenario:
  """Returns the scenario to attack.

  Args:
    config: a checked config.
    seed: of everything drawn.
    sizes: how many images of each kind.
    reading: whose fields replace those of the config, where they are given.
    progress: called with the share that is done, 0..1, and a word on what is being done.

  Raises:
    ConfigError: for a config that trains on a disguised directory, or mixes in images of another source.
    DataError: if the source is missing or damaged.
  """
  if config.data.disguised_dir:
    raise ConfigError(
      f"audit: a config must disguise by itself, this one trains on {config.data.disguised_dir}. "
      "Give --data DIR --originals S instead."
    )
  mixes = Trait.MIXED_IMAGES in config_lib.traits_of(config) and config.disguise.public_k
  if mixes and config.disguise.public_source != config.data.source:
    raise ConfigError(
      "audit: mixes in images of the source itself, so config.disguise.public_source must be "
      f"{config.data.source!r}, got {config.disguise.public_source!r}. For others call "
      "djax.attacks.instahide.clusters.recover."
    )
  parts = of(config)
  return scenario.from_source(
    parts["source"],
    parts["disguise"],
    seed=seed,
    sizes=sizes,
    reading=dataclasses.replace(
      config_lib.reading_of(config),
      **{name: value for name, value in vars(reading).items() if value},
    ),
    split=parts["split"],
    views=parts.get("views", 1),
    options=parts.get("options"),
    progress=progress,
  )
