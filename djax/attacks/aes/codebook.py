"""Encrypted units: the dictionary of known pairs (level 2).

Where each position has a key, every position has a dictionary of its own. Host NumPy.
Source: the codebook attack of DisguisedNets, doi:10.1145/3609506.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import ndimage, optimize

from djax import schemes
from djax.attacks.aes.units import (
  changes,
  codes_of,
  commonest,
  image_of,
  names_of,
  slices,
  units_of,
)
from djax.attacks.base import Attack, Estimate, Known, Progress
from djax.schemes import Trait

__all__ = ["ATTACK", "Settings", "codebook"]

_SAMPLES = 1 << 25  # units compared in all to place the blocks
_ROUNDS = 10  # of placing blocks, and of choosing among candidates
_SIGMA = 0.8  # of the window over neighbours that fills a hole, in pixels
_PRIOR = 0.05  # weight of the mean image beside the neighbours'
_RIDGE = 10.0
_CANDIDATES = 8  # of one cipher, the most frequent ones
_USUAL = (
  0.99  # share of known units that are as near to their neighbours as one must be to be believed
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Options, with the values it ships with."""

  images: int = 2000  # learnt from at most, fewer where they are large
  numbers: int = 1 << 23  # values of such images at most
  pixels: int = 1 << 20  # of targets worked on at a time

  def first(self, images: np.ndarray) -> np.ndarray:
    """Returns those of some images that are learnt from."""
    return images[: min(self.images, max(1, self.numbers // max(1, images[:1].size)))]


_SETTINGS = Settings()


def codebook(
  known: Known, *, seed: int, progress: Progress, settings: Settings = _SETTINGS
) -> Estimate:
  """Looks the targets' units up in the dictionary that the known pairs fill.

  Units of one or two pixels are averages that collide: of the plain units seen with a cipher the one that goes best
  with its neighbours is taken, or none if all are far from them. What is missing gets the mean of its neighbours, with
  a little of the silhouette that the most frequent unit draws.

  Args:
    known: what the attacker has; used: ``pairs``, and ``public`` for the silhouette where given.
    seed: not used, nothing is drawn.
    progress: called with the fraction done and the current step.
    settings: the attack's constants.

  Returns:
    Estimates; as diagnostics ``pairs``; ``entries`` of the dictionary; ``found``, the share of the targets' units
    whose cipher is in it, by collision or not; ``positions``, the original position found for each disguised one, or
    None where blocks stay in place.
  """
  del seed
  spec = known.spec
  assert known.pairs is not None
  originals, disguised = known.pairs
  plain, cipher = units_of(originals, spec), units_of(disguised, spec)
  warnings, places = [], None
  if not len(originals):
    warnings.append("0 pairs: the dictionary is empty")
  elif Trait.MOVED in schemes.traits(spec):
    progress(0.1, "placing blocks")
    places = _place(codes_of(plain), codes_of(cipher), spec)
    cipher = cipher[:, np.argsort(places)]
  progress(0.5, "looking units up")
  book = _dictionary(names_of(cipher, spec), plain)
  silhouette, common = _learn(_originals(known, settings), spec)
  few = plain[: len(settings.first(originals))]
  far = _far(few, silhouette(codes_of(few) == common), spec) if len(few) else 0.0
  images = np.empty((len(known.targets), *spec["image_shape"]), np.float32)
  covered = 0.0
  step = max(1, settings.pixels // images[:1].size) if images.size else 1
  for start in range(0, len(images), step):
    part = slice(start, start + step)
    targets = units_of(known.targets[part], spec)
    targets = targets if places is None else targets[:, np.argsort(places)]
    units, exists, held = _look_up(names_of(targets, spec), book)
    mean = silhouette((codes_of(units[..., 0, :]) == common) & held)
    images[part] = _read(units, exists, held, mean, far, spec)
    covered += held.mean((1, 2, 3)).sum() / len(images)
  return Estimate(
    images,
    {
      "pairs": len(originals),
      "entries": len(book[0]),
      "found": float(covered),
      "positions": None if places is None else places.tolist(),
      "warnings": warnings,
    },
  )


def _refuses(spec: Mapping[str, Any]) -> str | None:
  """Takes encrypted units alone."""
  if Trait.UNITS in schemes.traits(spec):
    return None
  return f"{spec['scheme']!r} encrypts no units; this is for 'aes'"


ATTACK = Attack("codebook", 2, ("pairs",), "dictionary of encrypted units", _refuses, codebook)


def _dictionary(names: np.ndarray, plain: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns sorted distinct names ``[d]`` and the plain units seen with each, most frequent first.

  Units are uint8 ``[d, _CANDIDATES, u]`` with a mask ``[d, _CANDIDATES]`` of those that exist.
  """
  units = plain.reshape(-1, plain.shape[-1])
  names, codes = names.reshape(-1), codes_of(units)
  order = np.lexsort((codes, names))  # by name, then by plain unit
  names, codes = names[order], codes[order]
  starts = np.flatnonzero(changes(names) | changes(codes))
  counts = np.diff(starts, append=len(names))  # of each pair of name and plain unit
  ranked = starts[np.lexsort((-counts, names[starts]))]
  first = np.flatnonzero(changes(names[ranked]))
  at = first[:, None] + np.arange(_CANDIDATES)
  exists = at < np.append(first[1:], len(ranked))[:, None]
  at = np.where(exists, at, first[:, None])
  return names[ranked[first]], units[order[ranked[at]]], exists


def _look_up(
  names: np.ndarray, book: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the candidates of named units, ``[..., _CANDIDATES, u]``, which exist, and which names are in the book."""
  entries, units, exists = book
  if not len(entries):
    blank = np.zeros((*names.shape, 1, units.shape[-1]), np.uint8)
    return blank, np.zeros(blank.shape[:-1], bool), np.zeros(names.shape, bool)
  at = np.minimum(np.searchsorted(entries, names), len(entries) - 1)
  return units[at], exists[at], entries[at] == names


def _read(
  units: np.ndarray,
  exists: np.ndarray,
  held: np.ndarray,
  mean: np.ndarray,
  far: float,
  spec: Mapping[str, Any],
) -> np.ndarray:
  """Returns the images that candidates ``[t, P, C, s, _CANDIDATES, u]`` make up, where held, and ``mean`` elsewhere.

  The most frequent candidate comes first; then, where ciphers collide, a few times over the one nearest to what the
  neighbours say. One that is farther from it than units usually are is taken as a unit not in the dictionary.
  """
  chosen, trusted = units[..., 0, :], held
  for _ in range(_ROUNDS if spec["unit_pixels"] <= 2 else 0):
    near = slices(_neighbours(chosen, trusted, mean, spec), spec)
    apart = np.where(exists, ((units - near[..., None, :]) ** 2).mean(-1), np.inf)
    best = apart.argmin(-1)[..., None]
    chosen = np.take_along_axis(units, best[..., None], -2)[..., 0, :]
    trusted = held & (np.take_along_axis(apart, best, -1)[..., 0] <= far)
  here = image_of(np.broadcast_to(trusted[..., None], chosen.shape), spec)
  return np.where(here > 0, image_of(chosen, spec), _neighbours(chosen, trusted, mean, spec))


def _place(plain: np.ndarray, cipher: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
  """Returns for each disguised position the original one, from codes ``[k, P, C, s]``.

  First by mutual information between the units of an original and a disguised position; as the entropies sum to the
  same for every assignment, ``sum n log n`` over their joint counts decides. With one key, then by agreement with the
  dictionary of the blocks as placed, until nothing moves.
  """
  positions = plain.shape[1]
  plain, cipher = (np.moveaxis(a, 1, 0).reshape(positions, -1) for a in (plain, cipher))
  plain, cipher = (np.unique(a, return_inverse=True)[1].reshape(a.shape) for a in (plain, cipher))
  count = max(1, min(plain.shape[1], _SAMPLES // positions**2))
  few = slice(None, None, -(-plain.shape[1] // count))
  kinds = cipher.max() + 1
  score = np.empty((positions, positions))
  for p in range(positions):
    joint = np.sort(plain[p, few] * kinds + cipher[:, few], -1)
    score[p] = _n_log_n(joint)
  places = _assign(score)
  for _ in range(0 if spec["position_keys"] else _ROUNDS):
    moved = cipher[np.argsort(places)]
    joint, counts = np.unique(plain * kinds + moved, return_counts=True)
    best = np.lexsort((-counts, joint // kinds))
    best = joint[best[changes(joint[best] // kinds)]]
    expected = (best % kinds)[plain]  # every plain unit has an entry, and entries are in its order
    score = np.stack([(row == cipher).mean(-1) for row in expected])
    before, places = places, _assign(score)
    if (places == before).all():
      break
  return places


def _n_log_n(joint: np.ndarray) -> np.ndarray:
  """Sums ``n log n`` over the counts n of equal values in each sorted row."""
  rows, length = joint.shape
  starts = np.flatnonzero(
    np.concatenate([np.ones((rows, 1), bool), joint[:, 1:] != joint[:, :-1]], 1)
  )
  counts = np.diff(starts, append=rows * length)
  return np.bincount(starts // length, counts * np.log(counts), rows)


def _assign(score: np.ndarray) -> np.ndarray:
  """Returns for each column its row in the assignment of the greatest sum."""
  return np.argsort(optimize.linear_sum_assignment(score, maximize=True)[1])


def _originals(known: Known, settings: Settings) -> np.ndarray:
  """Returns all originals at hand, float32 ``[m, H, W, C]``, or a grey one."""
  grey = np.full((1, *known.spec["image_shape"]), 127.5, np.float32)
  mine = [known.public] if known.pairs is None else [known.pairs[0], known.public]
  images = [settings.first(a).astype(np.float32) for a in mine if a is not None and len(a)]
  return np.concatenate(images or [grey])


def _learn(
  originals: np.ndarray, spec: Mapping[str, Any]
) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
  """Learns by ridge regression what an image looks like of which these units are the commonest and those are not.

  Returns:
    A function from maps ``[t, P, C, s]`` to float32 images, and the code of the commonest unit, or of each position's.
  """
  codes = codes_of(units_of(originals, spec))
  common = commonest(codes, spec)
  maps = (codes == common).reshape(len(codes), -1)
  centre, mean = maps.mean(0), originals.mean(0)
  x = maps - centre
  y = (originals - mean).reshape(len(originals), -1)
  # In dual form, as images are fewer than values: X' (X X' + a I)^-1 Y.
  weights = np.linalg.solve(x @ x.T + _RIDGE * np.eye(len(x)), y)

  def silhouette(flat):
    estimates = ((flat.reshape(len(flat), -1) - centre) @ x.T) @ weights
    return (estimates.reshape(-1, *mean.shape) + mean).astype(np.float32)

  return silhouette, common


def _far(plain: np.ndarray, mean: np.ndarray, spec: Mapping[str, Any]) -> float:
  """Returns the squared distance from their neighbours that nearly all units of the known originals keep."""
  near = slices(_neighbours(plain, np.ones(plain.shape[:-1], bool), mean, spec), spec)
  return float(np.quantile(((plain - near) ** 2).mean(-1), _USUAL))


def _neighbours(
  units: np.ndarray, trusted: np.ndarray, mean: np.ndarray, spec: Mapping[str, Any]
) -> np.ndarray:
  """Returns for each pixel the weighted mean of the trusted ones around it and of the mean image."""
  mask = np.broadcast_to(trusted[..., None], units.shape)
  sigma = (0, _SIGMA, _SIGMA, 0)
  weight = ndimage.gaussian_filter(image_of(mask, spec), sigma)
  near = ndimage.gaussian_filter(image_of(units * mask, spec), sigma)
  return (near + _PRIOR * mean) / (weight + _PRIOR)
