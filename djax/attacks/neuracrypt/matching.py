"""Attacks on NeuraCrypt: which encoding belongs to which image, what public images alone show, and known pairs.

After Carlini, Garg, Jha, Mahloujifar, Mahmoody and Tramer (arXiv:2108.07256), with means of our own. Groups of tokens,
one of each image, are found without any original (``djax.attacks.neuracrypt.tokens``). Random networks, whatever
their weights, keep likeness: inner products among the tokens of a position are much like those that an encoder of the
attacker's own makes of the same patches. So groups are named and encodings paired by comparing inner products, as
quadratic assignments (``attacks.common.assignment``). Patches that recur bit by bit, such as a black background, give
tokens that recur as often; they help, but nothing depends on them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from djax import schemes
from djax.attacks.base import Attack, Estimate, Known, Progress, constant_estimate
from djax.attacks.common import assignment, linear
from djax.attacks.neuracrypt import tokens
from djax.schemes import Trait

__all__ = ["ATTACK", "ATTACK_PAIRS", "attack", "cloning", "match"]

_ROUNDS = 10
_RESTARTS = 20  # where the first starts lead nowhere
_LIKENESS = 0.55  # right matches lie above 0.6, chance below 0.5
_IMAGES = 2000
_PUBLIC = 1500
_FITTED = 700  # encodings and public images that are paired at a time
_FITS = 20
_AXES = 200
_TRIED = 20  # further orders of positions
_LOOKED_AT = 300  # encodings and public images that tell which order is best
_RIDGE = 1e-2
_RIDGES = 10.0 ** np.arange(-5, 1)
_FOLDS = 4
_PAIRS = 2000
_COMPARED = 256  # pairs that show which group is which position


def match(
  originals: np.ndarray,
  encodings: np.ndarray,
  *,
  patch: int,
  all_encodings: np.ndarray,
  seed: int,
  depth: int = 3,
) -> tuple[np.ndarray, dict[str, Any]]:
  """Finds which encoding belongs to which original: the matching challenge.

  Args:
    originals: ``[N, H, W, C]`` uint8 or float on the 0..255 scale, in any order; N at least 2.
    encodings: float ``[N, P, 1, hidden]``, one of each original, tokens in any order.
    patch: side of a patch in pixels.
    all_encodings: float ``[n, P, 1, hidden]``, whatever else was encoded with the same key; may be empty.
    seed: of the first guesses and of the attacker's own encoders.
    depth: dense layers before the positions, as the public spec says.

  Returns:
    int ``[N]``: encoding ``i`` is that of ``originals[permutation[i]]``. And a dictionary: ``likeness``, the mean
    correlation of inner products in that order; ``positions``, the position found for each group of tokens;
    ``recurring``, the share of tokens equal to the most frequent one of their group; ``warnings``.

  Raises:
    ValueError: if originals and encodings do not fit together.
  """
  _check(originals, encodings, patch)
  rng = np.random.default_rng(seed)
  count = len(encodings)
  groups = tokens.groups(np.concatenate([encodings, all_encodings[:_IMAGES]])[:, :, 0], rng)
  recurring = tokens.recurring(groups)
  groups, own = groups[:, :count], tokens.own(originals, patch, encodings.shape[-1], depth, rng)
  seen, expected = tokens.inner(groups), np.mean([tokens.inner(one) for one in own], 0)
  views = (
    (tokens.norms(groups), recurring[:count]),
    (tokens.mean_norms(own), tokens.recurring(tokens.cut(originals, patch).swapaxes(0, 1))),
  )
  whole = [products.sum(0, keepdims=True) for products in (seen, expected)]
  order = _order(whole[0], whole[1], np.ones(1))
  places = tokens.named(seen, expected[:, order][:, :, order])
  best = _alternate(seen, expected, places)
  grid = originals.shape[1] // patch, originals.shape[2] // patch
  # Where images are alike as their mirrors are, norms do not tell one from the other.
  for restarts, turns in ((0, 1), (_RESTARTS, None)):
    starts = sorted({tuple(start) for start, _ in tokens.places(*views, rng, restarts)})
    for turned in tokens.symmetries(*grid)[:turns]:
      if best[0] < _LIKENESS:
        ends = [_alternate(seen, expected, turned[np.array(start)]) for start in starts]
        best = max([best, *ends], key=lambda end: end[0])
  likeness, order, places = best
  warnings = []
  if likeness < _LIKENESS:
    warnings.append(
      f"inner products correlate by {likeness:.2f} only: these are hardly the right pairs"
    )
  return order, {
    "likeness": round(likeness, 4),
    "positions": places.tolist(),
    "recurring": round(float(recurring.mean()), 4),
    "warnings": warnings,
  }


def attack(known: Known, *, seed: int, progress: Progress) -> Estimate:
  """Estimates the targets' originals from public images alone.

  Groups of tokens are named by what recurs and by norms of covariances. How far tokens lie from the mean of their
  position gives a first estimate, learnt on encoders of the attacker's own. From then on estimates and public images
  are paired at least cost, and a linear map of the tokens is fitted to these pairs, in turns: other images, but of the
  same kind, so that the map comes right by and by where the images have much in common.

  Args:
    known: what the attacker has; used: ``disguised`` and ``public``.
    seed: of groups, encoders and samples.
    progress: called with the fraction done and the current step.

  Returns:
    Estimates; as diagnostics ``positions``, that found for each group of tokens; ``recurring``, the share of tokens
    equal to the most frequent one of their group; ``cost``, the mean squared error of pairs over the variance of public
    images, in the first and the last turn; ``warnings``.
  """
  assert known.public is not None
  rng = np.random.default_rng(seed)
  progress(0.0, "grouping tokens")
  patch, hidden = known.spec["patch"], known.spec["hidden"]
  encodings = np.concatenate([known.targets, known.disguised[:_IMAGES]])
  public = known.public[rng.permutation(len(known.public))[:_PUBLIC]].astype(np.float32)
  groups = tokens.groups(encodings[:, :, 0], rng)
  own = tokens.own(public, patch, hidden, known.spec["depth"], rng)
  recurring, flat = (
    tokens.recurring(groups),
    tokens.recurring(tokens.cut(public, patch).swapaxes(0, 1)),
  )
  progress(0.2, "naming positions")
  views = (tokens.norms(groups), recurring), (tokens.mean_norms(own), flat)
  starts = sorted(tokens.places(*views, rng, _TRIED), key=lambda one: -one[1])
  grid = public.shape[1] // patch, public.shape[2] // patch
  turned = [turn[starts[0][0]] for turn in tokens.symmetries(*grid)]
  pixels = public.reshape(len(public), -1)
  first = np.concatenate([np.concatenate([_ranks(one), flat], 1) for one in own])
  guess = linear.Ridge(first, np.tile(pixels, (len(own), 1)))
  seen = np.stack([_ranks(groups), recurring])  # [2, n, P]
  tried = []
  for candidate in sorted({tuple(at) for at in [*turned, *(start for start, _ in starts)]}):
    placed = seen[:, :, np.argsort(candidate)]
    shown = guess.predict(np.concatenate(list(placed), 1), _RIDGE)
    tried.append((_paired(shown[:_LOOKED_AT], pixels[:_LOOKED_AT])[1], candidate, shown))
  _, best, estimates = min(tried, key=lambda one: one[0])
  places = np.array(best)
  features = _axes(groups[np.argsort(places)])
  costs = []
  for turn in range(_FITS):
    progress(0.3 + 0.7 * turn / _FITS, "pairing with public images")
    count = min(_FITTED, len(features), len(public))
    some, others = (rng.choice(len(of), count, replace=False) for of in (features, public))
    paired, cost = _paired(estimates[some], pixels[others])
    costs.append(cost)
    # Half of the old estimate keeps wrong pairs from swinging to and fro.
    fresh = linear.Ridge(features[some], paired).predict(features, _RIDGE)
    estimates = fresh if turn < 2 else (estimates + fresh) / 2
  images = estimates[: len(known.targets)].reshape(-1, *known.spec["image_shape"])
  diagnostics = {
    "positions": places.tolist(),
    "recurring": round(float(recurring.mean()), 4),
    "cost": [round(costs[0], 4), round(costs[-1], 4)],
    "warnings": [
      "paired with public images that are other images: a likely picture, not that of the target in every detail"
    ],
  }
  return Estimate(np.asarray(images, np.float32), diagnostics)


def cloning(known: Known, *, seed: int, progress: Progress) -> Estimate:
  """Learns from known pairs to invert the encoder, by a linear map of each position.

  Args:
    known: what the attacker has; used: ``pairs``, and ``disguised`` to find the groups of tokens in.
    seed: of the groups, of the attacker's own encoders and of the parts for validation.
    progress: called with the fraction done and the current step.

  Returns:
    Estimates; as diagnostics ``pairs`` used; ``chosen``, ``position``, or ``mean`` where no map did better on
    held-out pairs than the mean of the others; ``validation``, both mean squared errors; ``positions``, that found for
    each group of tokens; ``warnings``.
  """
  assert known.pairs is not None
  rng = np.random.default_rng(seed)
  patch, shape = known.spec["patch"], known.spec["image_shape"]
  some = rng.permutation(len(known.pairs[0]))[:_PAIRS]
  originals, encodings = (images[some] for images in known.pairs)
  count = len(some)
  if count < 2:
    return constant_estimate(known, chosen="mean", validation={}, positions=None)
  progress(0.0, "grouping tokens")
  everything = np.concatenate([encodings, known.targets, known.disguised[:_IMAGES]])
  groups = tokens.groups(everything[:, :, 0], rng)
  few = slice(0, min(count, _COMPARED))
  own = tokens.own(originals[few], patch, known.spec["hidden"], known.spec["depth"], rng)
  expected = np.mean([tokens.inner(one) for one in own], 0)
  places = tokens.named(tokens.inner(groups[:, few]), expected)
  groups = groups[np.argsort(places)]
  seen, asked = groups[:, :count], groups[:, count : count + len(known.targets)]
  wanted = tokens.cut(originals.astype(np.float32), patch).swapaxes(0, 1)
  progress(0.5, "fitting each position")
  validation, ridge = _validate(seen, wanted, np.arange(count) % min(count, _FOLDS))
  chosen = min(validation, key=validation.__getitem__)
  if chosen == "mean":
    patches = np.repeat(wanted.mean(1, keepdims=True), len(known.targets), 1)
    warnings = ["nothing learnt: the estimates are the mean of known originals"]
  else:
    fitted = zip(seen, wanted, asked, strict=True)
    patches = np.stack([linear.Ridge(x, y).predict(new, ridge) for x, y, new in fitted])
    warnings = []
  diagnostics = {
    "pairs": count,
    "chosen": chosen,
    "validation": validation,
    "positions": places.tolist(),
    "warnings": warnings,
  }
  return Estimate(tokens.uncut(patches, shape, patch), diagnostics)


def _refuses(spec: Mapping[str, Any]) -> str | None:
  """Takes NeuraCrypt alone."""
  if Trait.TOKENS not in schemes.traits(spec):
    return f"it sorts tokens of 'neuracrypt', and {spec['scheme']!r} makes none"
  return None


ATTACK = Attack(
  "matching",
  1,
  ("public",),
  "tokens sorted by position, then aligned with public images",
  _refuses,
  attack,
)
ATTACK_PAIRS = Attack(
  "cloning",
  2,
  ("pairs",),
  "inverse of the encoder from pairs, position by position",
  _refuses,
  cloning,
)


def _alternate(
  seen: np.ndarray, expected: np.ndarray, places: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
  """Pairs images, names positions by the images paired, and so on while it helps; returns likeness and both."""
  best: tuple[float, np.ndarray, np.ndarray] = (-np.inf, np.arange(seen.shape[1]), places)
  weight = np.trace(seen, axis1=1, axis2=2)
  weight = weight / max(weight.sum(), 1e-9)
  for _ in range(_ROUNDS):
    order = _order(seen, expected[places], weight)
    turned = tokens.unit(expected[places][:, order][:, :, order])
    likeness = float(weight @ (tokens.unit(seen) * turned).sum((1, 2)))
    if likeness <= best[0] + 1e-6:
      break
    best = likeness, order, places
    places = tokens.named(seen, expected[:, order][:, :, order])
  return best


def _order(seen: np.ndarray, expected: np.ndarray, weight: np.ndarray) -> np.ndarray:
  """Returns which image of the one side each of the other is."""
  count = seen.shape[1]
  scaled = [
    k / np.maximum(np.trace(k, axis1=1, axis2=2), 1e-9)[:, None, None] for k in (seen, expected)
  ]
  far = [np.log(count * np.diagonal(k, axis1=1, axis2=2).T + 0.05) for k in scaled]
  guess = assignment.best_match(-tokens.distances(*far))
  layers = (scaled[0] * weight[:, None, None]).astype(np.float32), scaled[1].astype(np.float32)
  return assignment.climb(*layers, (guess + np.float32(1 / count)) / 2, symmetric=True)


def _ranks(groups: np.ndarray) -> np.ndarray:
  """Returns how far each token lies from the mean of its group, as a rank in -0.5..0.5: ``[n, P]``."""
  far = np.square(groups - groups.mean(1, keepdims=True)).sum(-1).T
  return far.argsort(0, kind="stable").argsort(0) / len(far) - 0.5


def _axes(groups: np.ndarray) -> np.ndarray:
  """Returns all tokens of each image on the axes of greatest variance: ``[n, r]``."""
  flat = groups.swapaxes(0, 1).reshape(groups.shape[1], -1)  # [n, P * hidden]
  flat = flat - flat.mean(0)
  turn = np.linalg.svd(flat[:_IMAGES], full_matrices=False)[2][:_AXES]
  return flat @ turn.T


def _paired(estimates: np.ndarray, public: np.ndarray) -> tuple[np.ndarray, float]:
  """Returns the public image paired with each estimate, stretched to their spread, and what that costs."""
  spread = public.var(0).sum()
  gain = np.sqrt(spread / max(estimates.var(0).sum(), 1e-9))
  stretched = (estimates - estimates.mean(0)) * gain + public.mean(0)
  distances = tokens.distances(stretched, public)
  rows, columns = linear_sum_assignment(distances)
  return public[columns], float(distances[rows, columns].mean() / max(spread, 1e-9))


def _validate(x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> tuple[dict[str, float], float]:
  """Returns mean squared errors on held-out folds, of means and of maps of each position, and the best ridge."""
  errors, mean = np.zeros(len(_RIDGES)), 0.0
  for fold in range(folds.max() + 1):
    out = folds == fold
    for seen, wanted in zip(x, y, strict=True):
      mean += np.square(wanted[~out].mean(0) - wanted[out]).sum()
      errors += linear.Ridge(seen[~out], wanted[~out]).errors(seen[out], wanted[out], _RIDGES)
  best = int(errors.argmin())
  validation = {"mean": float(mean / y.size), "position": float(errors[best] / y.size)}
  return validation, float(_RIDGES[best])


def _check(originals: np.ndarray, encodings: np.ndarray, patch: int) -> None:
  """Refuses originals and encodings that do not fit together."""
  height, width = originals.shape[1:3]
  positions = height // patch * (width // patch)
  fits = not (height % patch or width % patch) and encodings.shape[1:3] == (positions, 1)
  if len(originals) != len(encodings) or len(originals) < 2 or not fits:
    raise ValueError(
      "match: needs as many originals [N, H, W, C] as encodings [N, P, 1, hidden], two at least, and P patches an "
      f"image, got {list(originals.shape)} and {list(encodings.shape)} with patch={patch}. Give the patch of the spec."
    )
