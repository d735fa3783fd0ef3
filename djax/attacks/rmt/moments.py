"""Ciphertext-only attack on orthogonal RMT: the matrices from second moments of many disguised images.

``Y_p = X_p R_p`` turns the covariance ``S`` of a block position into ``R' S R``: the same eigenvalues, turned
eigenvectors. Public images of the same kind, or else a model of images, say what ``S`` was. Eigenvectors of both in
order of size give each matrix up to signs; covariances between positions and the means give the signs, and settle what
eigenvalues too close to each other leave open. No known pair is needed. Of large images, without public ones, whole
columns of blocks are solved (``attacks.rmt.columns``).
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.sparse.linalg import eigsh

from djax import schemes
from djax.attacks.base import Attack, Estimate, Known, Progress
from djax.attacks.common import denoise, linear, statistics
from djax.attacks.common.statistics import Layout, Moments
from djax.attacks.rmt import columns, several_views
from djax.host import blockwise
from djax.schemes import Trait

__all__ = [
  "ATTACK",
  "Settings",
  "align",
  "attack",
  "estimate",
  "estimate_matrices",
  "noisy_moments",
  "warnings_of",
]

_SETTLED = 1e-4
_TRUST = 3.0  # of the eigenvectors of a position against its covariances with all others
_RIDGE = 1e-3
_MOST = 4096  # values of an image that is modelled as a whole without public images
_POOR = 0.7  # share of covariances unexplained


@dataclasses.dataclass(frozen=True)
class Settings:
  """Options, with the values it ships with."""

  sweeps: int = 40  # over all matrices, at most
  smooth: bool = True  # whether estimates with noise are smoothed
  window: int = statistics.WINDOW  # values of a piece of the image that is solved at once, at most
  network: denoise.Settings = denoise.USUAL  # against noise


_SETTINGS = Settings()


def _refuses(spec: Mapping[str, Any]) -> str | None:
  """Returns why the attack cannot handle a scheme, or None if it can."""
  if Trait.MATRICES not in schemes.traits(spec):
    return f"it finds the matrices of rmt, and scheme {spec['scheme']!r} has none"
  if spec["matrix"] != "orthogonal":
    return "projection matrices change the eigenvalues it compares; use ica"
  if spec["permute"]:
    return "the blocks are moved; use placement, which puts them back first"
  return None


def attack(
  known: Known, *, seed: int, progress: Progress, settings: Settings = _SETTINGS
) -> Estimate:
  """Estimates the originals of the targets from disguised images, and public ones where there are any.

  Args:
    known: what the attacker has; used: ``disguised``, and ``public`` where given.
    seed: of the network.
    progress: called with the fraction done and the current step.
    settings: the attack's constants.

  Returns:
    The estimates. With noise they are also smoothed by the linear filter that the same statistics give
    (``diagnostics["smoothed"]``), and by a network that learns from public images under noise of their own
    (``diagnostics["denoised"]``).
  """
  layout = statistics.layout_of(known.spec)
  solve: Callable[..., tuple[np.ndarray, Moments | None, dict[str, Any]]] = _solve
  if known.public is None and layout.groups == "rows" and np.prod(layout.shape) > _MOST:
    progress(0.0, "matrices of columns")
    solve = _solve_columns(known, layout, settings)
  return estimate(known, solve=solve, seed=seed, progress=progress, settings=settings)


def estimate_matrices(known: Known) -> tuple[np.ndarray, dict[str, Any]]:
  """Estimates the secret matrices alone.

  Args:
    known: as for ``attack``; images small enough for one window, such as 32 x 32 x 3.

  Returns:
    float64 matrices of ``rmt.matrix_shape``, and the diagnostics of ``align``.
  """
  layout = statistics.layout_of(known.spec)
  inverse, _, diagnostics = _solve(known, layout, statistics.WHOLE, _SETTINGS)
  matrices = inverse.swapaxes(1, 2)
  split = (layout.positions, layout.channels) if layout.groups == "channel" else (len(matrices),)
  return matrices.reshape(*split, *matrices.shape[1:]), diagnostics


def estimate(
  known: Known,
  *,
  solve: Callable[..., tuple[np.ndarray, Moments | None, dict[str, Any]]],
  seed: int,
  progress: Progress,
  settings: Settings,
) -> Estimate:
  """Undoes every window of the image by the inverse matrices found for it; of several views, undoes and combines all.

  Args:
    known: what the attacker has.
    solve: ``(known, layout, window, settings) -> (inverse matrices [G, n, n], moments of originals, diagnostics)``; the
      moments may be None where nothing is smoothed.
    seed: of the network against noise.
    progress: called with the fraction done and the current step.
    settings: of the solution.
  """
  start = time.perf_counter()
  layout = statistics.layout_of(known.spec)
  height, width, _ = known.spec["image_shape"]
  level, before = known.spec["noise_level"], known.spec["noise_place"] == "before"
  smooth, warnings = bool(level) and settings.smooth, warnings_of(known)
  # Without noise one view shows all that the matrices found can show. Where noise is not white once undone, views would
  # be combined by wrong weights, and a network would learn from noise of another kind.
  public = known.public if smooth and several_views.has_white_noise(known.spec) else None
  seen = known.views if public is not None else None
  if seen is not None and seen.disguised[0, 0].size > several_views.MOST:
    warnings.append(
      f"views are combined in images of at most {several_views.MOST} values, these have {seen.disguised[0, 0].size}: "
      "the first alone is used"
    )
    seen = None
  targets = known.targets
  if seen is not None:
    targets = np.concatenate([targets[:, None], seen.disguised], 1)
    targets = targets.reshape(-1, *targets.shape[2:])
  noisy = np.zeros((0, height, width, targets.shape[-1]), np.float32)
  if public is not None and seen is None:
    noisy = denoise.rehearse(public, level, seed)
  padded = blockwise.pad_to_blocks(noisy, block_size=known.spec["block_size"])
  raw, result, filtered = (np.empty(a.shape, np.float32) for a in (targets, targets, padded))
  windows, solved = layout.windows(settings.window), []
  for index, (down, across, part) in enumerate(windows):
    progress(index / len(windows), f"window {index + 1} of {len(windows)}")
    inverse, originals, diagnostics = solve(known, part, (down, across), settings)
    solved.append(diagnostics)
    disguised = part.units(targets[:, down, across]).astype(np.float64)  # [t, G, V, n]
    x = disguised @ inverse - level / 2 if before else (disguised - level / 2) @ inverse
    raw[:, down, across] = part.images(x.astype(np.float32))
    if smooth:
      assert originals is not None
      x = _smooth(x, originals, np.eye(x.shape[-1]) if before else inverse, level**2 / 12)
      result[:, down, across] = part.images(x.astype(np.float32))
    if public is not None and len(noisy):
      # By the statistics of other images, as those of targets are.
      others = statistics.measure(part, public[len(noisy) :], (down, across))
      x = part.units(padded[:, down, across]).astype(np.float64)
      x = _smooth(x, others, np.eye(x.shape[-1]), level**2 / 12)
      filtered[:, down, across] = part.images(x.astype(np.float32))
  raw, result, filtered = (a[:, :height, :width] for a in (raw, result, filtered))
  if not smooth:
    result = raw
  denoised: dict[str, Any] = {}
  if public is not None:
    estimates, rehearsed = {"raw": raw, "linear": result}, {"raw": noisy, "linear": filtered}
    if seen is not None:
      progress(0.9, "combining views")
      shape = (len(known.targets), 1 + seen.disguised.shape[1], *raw.shape[1:])
      both = raw.reshape(shape), result.reshape(shape)
      combined, again = several_views.rehearsed(*both, public, seen, level, seed)
      estimates, rehearsed = {"linear": combined}, {"linear": again}
    result, denoised = denoise.improve(
      estimates, rehearsed, public, seed=seed, progress=progress, settings=settings.network
    )
  progress(1.0, "done")
  worst = max(window["residual"] for window in solved)
  if worst > _POOR:
    warnings.append(
      f"{worst:.0%} of the disguised covariances stay unexplained: public images are of another kind, or missing"
    )
  diagnostics = {
    "windows": solved,
    "smoothed": smooth,
    "denoised": denoised,
    "statistics": "image model" if known.public is None else "public images",
    "views": len(targets) // max(1, len(known.targets)),
    "warnings": warnings,
    "seconds": round(time.perf_counter() - start, 2),
  }
  return Estimate(result, diagnostics)


def warnings_of(known: Known) -> list[str]:
  """Returns warnings about statistics that rest on too few images, or on images that are all the same.

  Args:
    known: what the attacker has.
  """
  groups, _, side = statistics.layout_of(known.spec).shape
  free = side * (side - 1) // 2 if known.spec["matrix"] == "orthogonal" else side * side
  warnings = []
  for name, images in (("disguised", known.disguised), ("public", known.public)):
    if images is None:
      continue
    if len(images) < groups * free:
      warnings.append(
        f"{len(images)} {name} images are few for {groups * free} unknowns: the estimate is rough"
      )
    if not (images != images[:1]).any():
      warnings.append(f"the {name} images do not vary: only their mean says something")
  return warnings


def noisy_moments(
  known: Known, layout: Layout, window: tuple[slice, slice]
) -> tuple[Moments, Moments, Moments, dict[str, Any]]:
  """Measures, or guesses, the moments that differ by the secret matrices alone.

  Args:
    known: what the attacker has; without public images the matrices must be orthogonal.
    layout: of the window.
    window: rows and columns of pixels.

  Returns:
    The moments of originals with noise, of disguised images (less noise that came after the matrices), and of originals
    alone; and the diagnostics of the image model, if one was used.
  """
  level, before = known.spec["noise_level"], known.spec["noise_place"] == "before"
  variance, shift = level**2 / 12, level / 2
  diagnostics: dict[str, Any] = {}
  y = statistics.measure(layout, known.disguised, window)
  if not before:
    y = y._replace(mean=y.mean - shift)
  if known.public is None:
    originals, diagnostics = statistics.image_model(layout, y, variance)
    originals = originals._replace(mean=originals.mean - shift * before)
  else:
    originals = statistics.measure(layout, known.public, window)
  x = originals._replace(mean=originals.mean + shift * before)
  if before or known.spec["matrix"] == "orthogonal":
    # Noise after an orthogonal matrix looks like noise before it: R' (S + v I) R = R' S R + v I.
    return statistics.add_noise(x, variance), y, originals, diagnostics
  return x, statistics.add_noise(y, -variance), originals, diagnostics


def align(
  x: Moments, y: Moments, *, whitened: bool = False, sweeps: int = _SETTINGS.sweeps
) -> tuple[np.ndarray, dict[str, Any]]:
  """Finds the orthogonal matrices that turn one set of moments into the other.

  Args:
    x: of originals.
    y: of the same after every group was multiplied by its matrix.
    whitened: whether both are white within groups, so that eigenvalues there say nothing.
    sweeps: over all matrices, at most.

  Returns:
    float64 matrices ``[G, n, n]``, and ``sweeps``, ``change`` of the last one, and ``residual``: the share of ``y``
    that the result leaves unexplained.
  """
  groups, _, side = x.mean.shape
  same = np.broadcast_to(np.eye(side), (groups, side, side))
  own_x, own_y = statistics.within(x), statistics.within(y)
  guides = [statistics.between(m, m, same) for m in (x, y)] if whitened else [own_x, own_y]
  bases = [np.linalg.eigh(guide)[1] for guide in guides]
  signs = _signs(statistics.transform(x, bases[0]), statistics.transform(y, bases[1]), sweeps)
  # Y = R' X R, so with eigenvectors U of X and V of Y: R = U diag(signs) V'.
  result = (bases[0] * signs[:, None, :]) @ bases[1].swapaxes(1, 2)
  # Quartic roots of the covariances weigh strong and weak directions alike enough.
  flat_x, flat_y = x, y
  if not whitened:
    flat_x = statistics.transform(x, statistics.power(own_x, -0.25))
    flat_y = statistics.transform(y, statistics.power(own_y, -0.25))
  values, vectors = np.linalg.eigh(own_x)
  values = np.maximum(values, statistics.ROUNDING)
  gaps = values[:, :, None] - values[:, None]
  sizes = values[:, :, None] * values[:, None]
  apart = np.zeros_like(gaps) if whitened else _TRUST * gaps**2 / sizes
  change, sweep = 1.0, 0
  while change >= _SETTLED and sweep < sweeps:
    sweep += 1
    fitted = linear.polar(statistics.between(flat_x, flat_y, result))
    back = vectors.swapaxes(1, 2) @ result
    turn = vectors.swapaxes(1, 2) @ fitted @ back.swapaxes(1, 2)
    # First order: a pair of eigenvectors is turned by its covariance over the gap of its eigenvalues.
    own = np.clip(
      (back @ own_y @ back.swapaxes(1, 2)) * gaps / (gaps**2 + _RIDGE * sizes), -0.5, 0.5
    )
    # A pair of eigenvectors is turned by what its own eigenvalues say, the more the further they lie apart.
    new = vectors @ linear.polar((turn + apart * own) / (1 + apart)) @ back
    change, result = float(np.abs(new - result).max()), new
  rest = statistics.transform(x, result).covariance - y.covariance
  residual = float(np.linalg.norm(rest) / np.maximum(np.linalg.norm(y.covariance), 1e-9))
  return result, {"sweeps": sweep, "change": round(change, 6), "residual": round(residual, 4)}


def _solve(
  known: Known, layout: Layout, window: tuple[slice, slice], settings: Settings
) -> tuple[np.ndarray, Moments, dict[str, Any]]:
  """Returns the inverse matrices of a window, the moments of its originals, and diagnostics."""
  x, y, originals, of_model = noisy_moments(known, layout, window)
  x, y = (statistics.add_noise(m, statistics.ROUNDING) for m in (x, y))
  matrices, diagnostics = align(x, y, sweeps=settings.sweeps)
  return matrices.swapaxes(1, 2), originals, {**of_model, **diagnostics}


def _solve_columns(
  known: Known, layout: Layout, settings: Settings
) -> Callable[..., tuple[np.ndarray, Moments | None, dict[str, Any]]]:
  """Returns a solution for each window, of matrices that were found for the whole image."""
  level, before = known.spec["noise_level"], known.spec["noise_place"] == "before"
  matrices, diagnostics = columns.estimate_matrices(
    layout,
    known.disguised,
    shift=0.0 if before else level / 2,
    variance=level**2 / 12,
    align=functools.partial(align, sweeps=settings.sweeps),
  )
  b = layout.block_size
  inverse = matrices.swapaxes(1, 2).reshape(layout.rows, layout.columns, b, b)

  def solve(known, part, window, settings):
    down, across = (slice(place.start // b, place.stop // b) for place in window)
    originals = noisy_moments(known, part, window)[2] if level and settings.smooth else None
    return inverse[down, across].reshape(-1, b, b), originals, diagnostics

  return solve


def _signs(x: Moments, y: Moments, flips: int) -> np.ndarray:
  """Returns the signs, float64 ``[G, n]``, of the components of ``y`` that make it look like ``x``.

  Every pair of components votes with its log likelihood ratio for being of the same sign, and the mean is one more
  component whose sign is known. The leading eigenvector of the votes is the start; then single flips while they help,
  in at most so many rounds.
  """
  groups, views, side = x.mean.shape
  deviations = [
    np.sqrt(np.maximum(np.einsum("gii->gi", statistics.within(m)), statistics.ROUNDING)).ravel()
    for m in (x, y)
  ]
  scale = deviations[0] * deviations[1]
  # If both components keep their signs, their covariances in x and y agree, summed over all pairs of views.
  products = (x.covariance * y.covariance).reshape(groups, views, side, groups, views, side)
  votes = np.einsum("avibwj->aibj", products).reshape(groups * side, -1).astype(np.float64)
  of_mean = (x.mean * y.mean).sum(1).ravel() / scale
  votes = np.block(
    [[votes / np.outer(scale, scale), of_mean[:, None]], [of_mean[None], np.zeros((1, 1))]]
  )
  np.fill_diagonal(votes, 0)
  if not votes.any():
    return np.ones((groups, side))
  _, leading = eigsh(votes, k=1, which="LA", v0=np.ones(len(votes)))
  signs = np.where(leading[:, 0] < 0, -1.0, 1.0)
  for _ in range(flips):
    wrong = np.flatnonzero(signs * (votes @ signs) < 0)
    if not len(wrong):
      break
    for i in wrong:
      signs[i] = 1.0 if votes[i] @ signs >= 0 else -1.0
  return (signs * signs[-1])[:-1].reshape(groups, side)


def _smooth(
  x: np.ndarray, originals: Moments, directions: np.ndarray, variance: float
) -> np.ndarray:
  """Takes off the part of the noise that a linear filter can tell from the image: ``[t, G, V, n]``.

  Args:
    x: estimates with noise.
    originals: their moments without.
    directions: what the noise was multiplied by, ``[G, n, n]`` or ``[n, n]``.
    variance: of the noise before that.
  """
  groups, views, side = originals.mean.shape
  size = groups * views * side
  noisy = originals.covariance.reshape(groups, views, side, groups, views, side).copy()
  spread = variance * (np.swapaxes(directions, -1, -2) @ directions)
  spread = np.broadcast_to(spread, (groups, side, side))
  for v in range(views):
    noisy[np.arange(groups), v, :, np.arange(groups), v, :] += spread
  # The linear filter of least squared error: S (S + N)^-1 (x - mean) + mean.
  centred = (x - originals.mean).reshape(len(x), size).astype(np.float32)
  filtered = np.linalg.solve(noisy.reshape(size, size), centred.T).T @ originals.covariance
  return filtered.reshape(x.shape) + originals.mean


ATTACK = Attack(
  name="moments",
  level=1,
  needs=(),
  title="matrices of orthogonal rmt from second moments",
  refuses=_refuses,
  attack=attack,
)
