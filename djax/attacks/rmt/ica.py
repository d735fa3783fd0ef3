"""Ciphertext-only attack on projection RMT: whiten, then find the rotation that is left from moments between blocks.

Any invertible matrix becomes orthogonal once originals and disguised images are both whitened within each group:
``R = S_X^(-1/2) Q S_Y^(1/2)``. Independent component analysis would find ``Q`` from the shape of the distributions,
and then has to guess order, signs and scale. Covariances between blocks hold all three and are well measured, so this
attack uses those; its id names the step whose place they take.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from djax import schemes
from djax.attacks.base import Attack, Estimate, Known, Progress
from djax.attacks.common import statistics
from djax.attacks.common.statistics import Layout, Moments
from djax.attacks.rmt import moments
from djax.attacks.rmt.moments import Settings
from djax.schemes import Trait

__all__ = ["ATTACK", "Settings", "attack"]

_SETTINGS = Settings()


def _refuses(spec: Mapping[str, Any]) -> str | None:
  """Returns why the attack cannot handle a scheme, or None if it can."""
  if Trait.MATRICES not in schemes.traits(spec):
    return f"it finds the matrices of rmt, and scheme {spec['scheme']!r} has none"
  if spec["matrix"] == "orthogonal":
    return "orthogonal matrices keep eigenvalues, which moments uses; use that"
  if spec["permute"]:
    return "the blocks are moved; use placement, which puts them back first"
  return None


def attack(
  known: Known, *, seed: int, progress: Progress, settings: Settings = _SETTINGS
) -> Estimate:
  """Estimates the originals of the targets from disguised and public images.

  Args:
    known: what the attacker has; used: ``disguised`` and ``public``.
    seed: of the network against noise.
    progress: called with the fraction done and the current step.
    settings: the attack's constants.

  Returns:
    The estimates, smoothed and denoised where there is noise, as for ``moments``.
  """
  return moments.estimate(known, solve=_solve, seed=seed, progress=progress, settings=settings)


def _solve(
  known: Known, layout: Layout, window: tuple[slice, slice], settings: Settings
) -> tuple[np.ndarray, Moments, dict[str, Any]]:
  """Returns the inverse matrices of a window, the moments of its originals, and diagnostics."""
  x, y, originals, _ = moments.noisy_moments(known, layout, window)
  whiten_x, whiten_y = (statistics.power(statistics.within(m), -0.5) for m in (x, y))
  rotation, diagnostics = moments.align(
    statistics.transform(x, whiten_x),
    statistics.transform(y, whiten_y),
    whitened=True,
    sweeps=settings.sweeps,
  )
  # The inverse of R = S_X^(-1/2) Q S_Y^(1/2).
  return whiten_y @ rotation.swapaxes(1, 2) @ np.linalg.inv(whiten_x), originals, diagnostics


ATTACK = Attack(
  name="ica",
  level=1,
  needs=("public",),
  title="matrices of projection rmt by whitening and moments between blocks",
  refuses=_refuses,
  attack=attack,
)
