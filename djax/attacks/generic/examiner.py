"""Looking at the disguised images as they are: what they show without any attack."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from djax import schemes
from djax.attacks.base import Attack, Estimate, Known
from djax.schemes import Trait

__all__ = ["ATTACK", "look"]

_PERCENTILES = (1, 99)


def look(known: Known, *, seed: int, progress: Callable[[float, str], None]) -> Estimate:
  """Takes the disguised images for the originals, their values brought back to 0..255 by one linear map.

  Args:
    known: what the attacker has; used: ``targets``.
    seed: not used, nothing is drawn.
    progress: called with the fraction done and the current step.

  Returns:
    Estimates; as diagnostics ``low`` and ``high``, the 1st and 99th percentile of all values, which become 0 and 255.
  """
  del seed, progress
  height, width, _ = known.spec["image_shape"]
  values = known.targets.astype(np.float32)
  low, high = (float(value) for value in np.percentile(values, _PERCENTILES))
  images = np.clip((values - low) / max(high - low, 1e-6) * 255, 0, 255)
  return Estimate(images[:, :height, :width].astype(np.float32), {"low": low, "high": high})


def _refuses(spec: Mapping[str, Any]) -> str | None:
  """Takes what is still an image."""
  return "tokens are no image" if Trait.TOKENS in schemes.traits(spec) else None


ATTACK = Attack("examiner", 1, (), "the disguised images as they are", _refuses, look)
