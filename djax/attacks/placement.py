"""Ciphertext-only attack on the block permutation: which position is where, from covariances between positions.

A secret matrix turns the covariance of two blocks into ``R_p' S R_q``, and its norm stays. (For projection keys it does
after whitening.) So the norms between all positions, one for each pair of rows and channels, are those of public
images, but in another order: a quadratic assignment, solved by Frank-Wolfe steps (FAQ, Vogelstein et al. 2015,
doi:10.1371/journal.pone.0121002). The blocks are put back, and ``moments`` or ``ica`` finds the matrices.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from djax import host
from djax.attacks import ica, moments, statistics
from djax.attacks.contract import Attack, Estimate, Known

__all__ = ["ATTACK", "attack", "estimate_permutation", "refuses"]

_STEPS = 40
_RANDOM_STARTS = 2
_WHOLE = (slice(None), slice(None))
_LIKENESS = 0.5


def refuses(spec: Mapping[str, Any]) -> str | None:
  """Returns why the attack cannot handle a scheme, or None if it can.

  Args:
    spec: ``SchemeSpec.to_dict()``.
  """
  if spec["scheme"] not in ("rmt", "permutation"):
    return f"it compares covariances of blocks, which scheme {spec['scheme']!r} does not keep"
  if not spec.get("permute", True):
    return "no blocks are moved; use moments or ica"
  return None


def attack(known: Known, *, seed: int, progress: Callable[[float, str], None]) -> Estimate:
  """Puts the blocks back, then estimates the originals of the targets.

  Args:
    known: ``disguised``, ``targets`` and ``public``. ``pairs`` are not looked at.
    seed: of the random starts.
    progress: told how far it is.

  Returns:
    The estimates: for ``permutation`` the blocks put back, for ``rmt`` those of ``moments`` or ``ica``.
    Diagnostics: ``placement``, see ``estimate_permutation``, and those of the second attack.
  """
  progress(0.0, "looking for the permutation")
  perm, found = estimate_permutation(known, seed)
  b = known.spec["block_size"]
  inverse = np.argsort(perm)
  disguised, targets = (
    host.permute(inverse, images, block_size=b) for images in (known.disguised, known.targets)
  )
  if known.spec["scheme"] == "permutation":
    height, width, _ = known.spec["image_shape"]
    images = targets[:, :height, :width].astype(np.float32)
    return Estimate(images, {"placement": found, "warnings": found["warnings"]})
  back = dataclasses.replace(
    known, spec={**known.spec, "permute": False}, disguised=disguised, targets=targets
  )
  then = moments.attack if known.spec["matrix"] == "orthogonal" else ica.attack
  images, diagnostics = then(
    back, seed=seed, progress=lambda done, word: progress(0.5 + done / 2, word)
  )
  warnings = found["warnings"] + diagnostics["warnings"]
  return Estimate(images, {"placement": found, **diagnostics, "warnings": warnings})


def estimate_permutation(known: Known, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
  """Finds the secret permutation of block positions.

  Args:
    known: ``disguised`` and ``public``.
    seed: of the random starts.

  Returns:
    ``perm``, ``[P]`` integers: disguised position ``p`` holds original position ``perm[p]``. And a dictionary: ``perm``
    as a list; ``likeness``, the correlation of the two sets of norms between positions in that order; ``starts``, how
    many of those tried led to it; ``warnings``.
  """
  layout = statistics.layout_of(known.spec)
  disguised, public = _norms(known, layout)
  positions = layout.positions
  rng = np.random.default_rng(seed)
  flat = np.full((positions, positions), 1 / positions, np.float32)
  starts: list[np.ndarray] = [_by_neighbours(disguised, public) / 2 + flat / 2, flat]
  for _ in range(_RANDOM_STARTS):
    starts.append(np.eye(positions, dtype=np.float32)[rng.permutation(positions)] / 2 + flat / 2)
  found = [_assign(disguised, public, start) for start in starts]
  scores = [_score(disguised, public, perm) for perm in found]
  best = int(np.argmax(scores))
  reached = sum(np.array_equal(perm, found[best]) for perm in found)
  perm = found[best]
  grid = np.arange(positions).reshape(layout.rows, layout.columns)
  for mirrored in (grid[:, ::-1], grid[::-1], grid[::-1, ::-1]):
    turned = np.eye(positions, dtype=np.float32)[mirrored.ravel()[found[best]]]
    other = _assign(disguised, public, turned)
    if _score(disguised, public, other) > _score(disguised, public, perm):
      perm, reached = other, 0
  likeness = _likeness(disguised, public, perm)
  warnings = []
  if likeness < _LIKENESS:
    warnings.append(
      f"the positions found correlate by {likeness:.2f} only with public ones: do not rely on them"
    )
  return perm, {
    "perm": perm.tolist(),
    "likeness": round(likeness, 4),
    "starts": reached,
    "warnings": warnings,
  }


def _norms(known: Known, layout: statistics.Layout) -> tuple[np.ndarray, np.ndarray]:
  """Returns the norms between positions, disguised and public, one layer a pair of views: float32 ``[L, P, P]``."""
  assert known.public is not None
  if known.spec["scheme"] == "permutation":
    pair = [statistics.measure(layout, images) for images in (known.disguised, known.public)]
  else:
    x, y, _, _ = moments.noisy_moments(known, layout, _WHOLE)
    pair = [y, x]
    if known.spec["matrix"] == "projection":
      pair = [statistics.transform(m, statistics.power(statistics.within(m), -0.5)) for m in pair]
  layers = []
  for m in pair:
    views = len(m.mean) // layout.positions * m.mean.shape[1]
    norms = statistics.norms(m).reshape(layout.positions, views, layout.positions, views)
    layers.append(
      np.ascontiguousarray(norms.transpose(1, 3, 0, 2)).reshape(views * views, *norms.shape[::2])
    )
  return layers[0], layers[1]


def _by_neighbours(disguised: np.ndarray, public: np.ndarray) -> np.ndarray:
  """Returns a first guess as a permutation matrix: positions whose norms to all others, sorted, are alike."""
  rows = [
    np.sort(layers, -1).transpose(1, 0, 2).reshape(layers.shape[1], -1)
    for layers in (disguised, public)
  ]
  squares = [np.square(side).sum(1) for side in rows]
  distance = squares[0][:, None] + squares[1] - 2 * rows[0] @ rows[1].T
  return np.eye(len(distance), dtype=np.float32)[linear_sum_assignment(distance)[1]]


def _assign(disguised: np.ndarray, public: np.ndarray, start: np.ndarray) -> np.ndarray:
  """Climbs from a doubly stochastic matrix to a permutation."""
  transposed = public.swapaxes(1, 2)
  at = start
  identity = np.eye(len(start), dtype=np.float32)
  for _ in range(_STEPS):
    forward = disguised @ at
    slope = (forward @ transposed).sum(0) + (disguised.swapaxes(1, 2) @ at @ public).sum(0)
    vertex = identity[linear_sum_assignment(slope, maximize=True)[1]]
    step = vertex - at
    gain = float((slope * step).sum())
    if gain <= 1e-6 * abs(float((slope * at).sum())):
      break
    bend = float(((disguised @ step @ transposed).sum(0) * step).sum())
    at = at + (1.0 if bend >= 0 else min(1.0, -gain / (2 * bend))) * step
  return linear_sum_assignment(at, maximize=True)[1]


def _score(disguised: np.ndarray, public: np.ndarray, perm: np.ndarray) -> float:
  """Returns the sum of products of norms that come to lie on each other."""
  return float(np.vdot(disguised, public[:, perm][:, :, perm]))


def _likeness(disguised: np.ndarray, public: np.ndarray, perm: np.ndarray) -> float:
  """Returns the correlation between different positions, over all layers."""
  if len(perm) == 1:
    return 1.0
  off = ~np.eye(len(perm), dtype=bool)
  a, b = disguised[:, off], public[:, perm][:, :, perm][:, off]
  a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
  return float(np.vdot(a, b) / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9))


ATTACK = Attack(
  name="placement",
  level=1,
  needs=("public",),
  title="block permutation from covariances between positions, then the matrices",
  refuses=refuses,
  attack=attack,
)
