"""Ciphertext-only attack on the block permutation: which position is where, from covariances between positions.

A secret matrix turns the covariance of two blocks into ``R_p' S R_q``, and its norm stays. (For projection keys it does
after whitening.) So the norms between all positions, one for each pair of rows and channels, are those of public
images, but in another order: a quadratic assignment, solved by Frank-Wolfe steps (``attacks.common.assignment``),
exchanges of two positions and moves of parts of the grid. The blocks are put back, and ``moments`` or ``ica`` finds
the matrices.

Without public images, norms of the inverse covariance are compared instead with those of an isotropic field. Norms of
covariances depend on what the images show, those of the inverse on neighbours alone, in any kind of image.

Images too large for one covariance of all their values are put together by their borders instead
(``attacks.rmt.borders``), unless whole blocks are mixed, which leaves no borders.

Images are much like their mirrors, so the order may be that of the mirrored image, and then so are the estimates.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.spatial import distance

from djax import schemes
from djax.attacks.base import Attack, Estimate, Known, Progress
from djax.attacks.common import assignment, statistics
from djax.attacks.rmt import borders, ica, moments
from djax.errors import ConfigError
from djax.host import blockwise
from djax.schemes import Trait

__all__ = ["ATTACK", "Settings", "attack", "estimate_permutation"]

_LIKENESS = 0.5
_REACH = 8.0  # pixels over which the correlation of the image model falls to 1/e
_RIDGE = 0.1  # least variance of noise, beside that of the image, that the inverse covariance takes for granted
_SAME = 1e-5
_MOST = 4096  # values of an image whose covariance, as a whole, is compared
_MOST_WITHOUT = 8192  # the same where there are no borders: some arrays of 256 MiB


@dataclasses.dataclass(frozen=True)
class Settings:
  """Options, with the values it ships with."""

  layers: int = 24  # pairs of views that are compared, those with the largest norms
  starts: int = 24  # of the climb, at most
  agreeing: int = 3  # starts that end at the same score, the best yet, before no more are tried
  # of the flat start towards a random permutation, in units of the flat start's values
  tilt: float = 0.006
  moves: int = 8  # tried at a step, the likeliest first


_SETTINGS = Settings()


def _refuses(spec: Mapping[str, Any]) -> str | None:
  """Returns why the attack cannot handle a scheme, or None if it can."""
  traits = schemes.traits(spec)
  if Trait.LINEAR not in traits:
    return f"it compares covariances of blocks, which scheme {spec['scheme']!r} does not keep"
  if Trait.MOVED not in traits:
    return "no blocks are moved; use moments or ica"
  return None


def attack(
  known: Known, *, seed: int, progress: Progress, settings: Settings = _SETTINGS
) -> Estimate:
  """Puts the blocks back, then estimates the originals of the targets.

  Args:
    known: what the attacker has; used: ``disguised``, and ``public`` where given.
    seed: of the random starts.
    progress: called with the fraction done and the current step.
    settings: the attack's constants.

  Returns:
    Estimates; for ``permutation`` the blocks put back, for ``rmt`` those of ``moments`` or ``ica``; possibly all of
    them mirrored, as ``estimate_permutation`` says.
    Diagnostics: ``placement``, see ``estimate_permutation``, and those of the second attack.
  """
  progress(0.0, "looking for the permutation")
  perm, placement = estimate_permutation(known, seed, settings=settings)
  b = known.spec["block_size"]
  inverse = np.argsort(perm)
  disguised, targets = (
    blockwise.permute(inverse, images, block_size=b) for images in (known.disguised, known.targets)
  )
  if Trait.MATRICES not in schemes.traits(known.spec):
    height, width, _ = known.spec["image_shape"]
    images = targets[:, :height, :width].astype(np.float32)
    return Estimate(images, {"placement": placement, "warnings": placement["warnings"]})
  views = known.views
  if views is not None:
    flat = views.disguised.reshape(-1, *targets.shape[1:])
    flat = blockwise.permute(inverse, flat, block_size=b)
    views = views._replace(disguised=flat.reshape(views.disguised.shape))
  back = dataclasses.replace(
    known,
    spec={**known.spec, "permute": False},
    disguised=disguised,
    targets=targets,
    views=views,
  )
  then = moments.attack if known.spec["matrix"] == "orthogonal" else ica.attack
  images, diagnostics = then(
    back, seed=seed, progress=lambda done, step: progress(0.5 + done / 2, step)
  )
  warnings = placement["warnings"] + diagnostics["warnings"]
  return Estimate(images, {"placement": placement, **diagnostics, "warnings": warnings})


def estimate_permutation(
  known: Known, seed: int, *, settings: Settings = _SETTINGS
) -> tuple[np.ndarray, dict[str, Any]]:
  """Finds the secret permutation of block positions.

  Args:
    known: ``disguised`` and perhaps ``public``.
    seed: of the random starts.
    settings: of the search.

  Returns:
    ``perm``, ``[P]`` integers: disguised position ``p`` holds original position ``perm[p]``. Where matrices hide the
    pixels it may be that of the image mirrored left to right, and without public images, if blocks are mixed, of any of
    the eight symmetries of the square. And a dictionary: ``perm`` as a list; ``likeness``, the
    correlation of the two sets of norms between positions in that order; ``starts``, how many of those tried led to it
    or to another as good, such as its mirror image: 3 end the search, 1 is weak evidence; ``warnings``. Of images put
    together by borders instead ``likeness``, the lesser of ``below`` and ``beside``, see ``borders.Fit``; ``warnings``.

  Raises:
    ConfigError: for projection matrices without public images, and for images too large for memory.
  """
  layout = statistics.layout_of(known.spec)
  if known.public is None and known.spec.get("matrix") == "projection":
    raise ConfigError(
      "attack placement needs public images for projection matrices, got none. Give images of the same kind."
    )
  values = int(np.prod(layout.shape))
  if values > _MOST and layout.groups != "block" and layout.block_size > 1:
    return _by_borders(known, layout)
  if values > _MOST_WITHOUT:
    raise ConfigError(
      f"attack placement orders whole blocks that are mixed, or of one pixel, in images of at most {_MOST_WITHOUT} "
      f"values, got {values}. Make the images smaller."
    )
  pair = _inverse_norms(known, layout) if known.public is None else _norms(known, layout)
  # Layers of views that have nothing to do with each other say nothing.
  keep = np.argsort(-np.square(pair[1]).sum((1, 2)), kind="stable")[: settings.layers]
  disguised, expected = (layers[keep] for layers in pair)
  perm, reached = _climb(disguised, expected, layout, np.random.default_rng(seed), settings)
  likeness = _likeness(disguised, expected, perm)
  warnings = []
  if likeness < _LIKENESS:
    warnings.append(
      f"the positions found correlate by {likeness:.2f} only with those expected: do not rely on them"
    )
  return perm, {
    "perm": perm.tolist(),
    "likeness": round(likeness, 4),
    "starts": reached,
    "warnings": warnings,
  }


def _by_borders(known: Known, layout: statistics.Layout) -> tuple[np.ndarray, dict[str, Any]]:
  """Returns what ``estimate_permutation`` does, of large images."""
  perm, fit = borders.arrange(
    layout,
    known.disguised,
    variance=known.spec.get("noise_level", 0.0) ** 2 / 12,
    white=known.spec.get("matrix") == "projection",
    public=known.public,
  )
  likeness, warnings = min(fit), []
  if likeness < _LIKENESS:
    warnings.append(
      f"blocks have {fit.below:.2f} in common with those found below them, and stand out from others beside them by "
      f"{fit.beside:.2f}, where 1 is best: do not rely on their places"
    )
  facts = {
    name: round(value, 4) for name, value in (("likeness", likeness), *fit._asdict().items())
  }
  return perm, {"perm": perm.tolist(), **facts, "warnings": warnings}


def _norms(known: Known, layout: statistics.Layout) -> tuple[np.ndarray, np.ndarray]:
  """Returns the norms between positions, disguised and public, one layer a pair of views: float32 ``[L, P, P]``."""
  assert known.public is not None
  if Trait.MATRICES not in schemes.traits(known.spec):
    pair = [statistics.measure(layout, images) for images in (known.disguised, known.public)]
  else:
    x, y, _, _ = moments.noisy_moments(known, layout, statistics.WHOLE)
    pair = [y, x]
    if known.spec["matrix"] == "projection":
      pair = [statistics.transform(m, statistics.power(statistics.within(m), -0.5)) for m in pair]
  return _layers(pair[0], layout), _layers(pair[1], layout)


def _inverse_norms(known: Known, layout: statistics.Layout) -> tuple[np.ndarray, np.ndarray]:
  """Returns the norms of inverse covariances, disguised and of the image model: float32 ``[L, P, P]``."""
  y = statistics.measure(layout, known.disguised)
  side = y.mean.shape[-1]
  noise = known.spec.get("noise_level", 0.0) ** 2 / 12
  observed = statistics.add_noise(y, -noise).covariance
  variance = np.diag(observed).reshape(-1, side).mean(1)
  floor = max(0.05 * float(variance.mean()), statistics.ROUNDING)
  scale = np.repeat(np.maximum(variance, floor) ** -0.5, side).astype(np.float32)
  ridge = np.float32(max(_RIDGE, noise / max(float(variance.mean()), floor)))
  layers = []
  diagonal = np.diag_indices(len(observed))
  for covariance in (observed * scale * scale[:, None], _field(layout)):
    covariance[diagonal] += ridge
    layers.append(_layers(y._replace(covariance=np.linalg.inv(covariance)), layout))
    layers[-1][:, np.eye(layout.positions, dtype=bool)] = 0
  return layers[0], layers[1]


def _field(layout: statistics.Layout) -> np.ndarray:
  """Returns the correlations between the values of an isotropic field: float32 ``[D, D]``."""
  rows, columns, apart = (
    np.subtract.outer(x, x).astype(np.float32) for x in statistics.coordinates(layout)
  )
  alike = np.float32(statistics.CHANNELS_ALIKE) ** np.abs(apart)
  return np.exp(-np.hypot(rows, columns) / _REACH) * alike


def _layers(m: statistics.Moments, layout: statistics.Layout) -> np.ndarray:
  """Returns norms between positions, one layer a pair of views: float32 ``[L, P, P]``."""
  views = len(m.mean) // layout.positions * m.mean.shape[1]
  norms = statistics.norms(m).reshape(layout.positions, views, layout.positions, views)
  return np.ascontiguousarray(norms.transpose(1, 3, 0, 2)).reshape(views * views, *norms.shape[::2])


def _climb(
  disguised: np.ndarray,
  model: np.ndarray,
  layout: statistics.Layout,
  rng: np.random.Generator,
  settings: Settings = _SETTINGS,
) -> tuple[np.ndarray, int]:
  """Climbs from many starts until some agree; returns the best permutation and how many led to its score."""
  positions = layout.positions
  identity = np.eye(positions, dtype=np.float32)
  flat = np.full((positions, positions), 1 / positions, np.float32)
  best, top, reached = np.arange(positions), -np.inf, 0
  # No score exceeds the product of norms, and rounding, which differs between processors, is a tiny part of that.
  least = _SAME * float(np.linalg.norm(disguised) * np.linalg.norm(model))

  def climb(at: np.ndarray) -> np.ndarray:
    return assignment.exchange(disguised, model, assignment.climb(disguised, model, at), least)

  def score_of(perm: np.ndarray) -> float:
    return assignment.agreement(disguised, model, perm)

  for start in range(settings.starts):
    # The model is its own mirror image, so at ``flat`` a position and its mirror have equal slopes, and rounding would
    # choose between them: not the same way all over the grid, nor on every processor. A slight tilt chooses instead,
    # another one at each start. A large one leads far from ``flat``, where climbs end lower.
    guess = identity[rng.permutation(positions)] if start else _by_neighbours(disguised, model)
    tilt = settings.tilt / positions if start else 0.5
    perm = climb(flat + tilt * (guess - flat))
    score, better = score_of(perm), True
    # Images are much like their mirrors, so a climb may end with part of the grid mirrored, or moved, against the rest.
    while better:
      moved = sorted((move[perm] for move in _moves(layout)), key=score_of, reverse=True)
      ends = [climb(identity[other]) for other in moved[: settings.moves]]
      scores = [score_of(other) for other in ends]
      better = max(scores) > score + least
      if better:
        perm, score = ends[int(np.argmax(scores))], max(scores)
    if score > top + least:
      best, top, reached = perm, score, 0
    reached += score >= top - least
    if reached == settings.agreeing:
      break
  return best, reached


def _moves(layout: statistics.Layout) -> list[np.ndarray]:
  """Returns permutations of the grid: its first rows or columns mirrored either way, and all of it rolled."""
  grid = np.arange(layout.positions).reshape(layout.rows, layout.columns)
  moves = []
  for axis in (0, 1):
    for count in range(1, grid.shape[axis] + 1):
      first, rest = np.split(grid, [count], axis)
      moves += [np.concatenate([np.flip(first, flip), rest], axis) for flip in (0, 1)]
      moves.append(np.roll(grid, count, axis))
  return [move.ravel() for move in moves]


def _by_neighbours(disguised: np.ndarray, public: np.ndarray) -> np.ndarray:
  """Returns a first guess as a permutation matrix: positions whose norms to all others, sorted, are alike."""
  rows = [
    np.sort(layers, -1).transpose(1, 0, 2).reshape(layers.shape[1], -1)
    for layers in (disguised, public)
  ]
  return assignment.best_match(-distance.cdist(*rows, "sqeuclidean"))


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
  needs=(),
  title="block permutation from covariances between positions, then the matrices",
  refuses=_refuses,
  attack=attack,
)
