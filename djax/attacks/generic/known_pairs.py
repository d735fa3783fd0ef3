"""Known pairs against random projections: least squares (the paper's) and the orthogonality-aware estimate.

Of position ``p`` the pairs give the rows ``X_p`` and, wherever the block now stands, ``Y_q = (X_p + D) R_p``. Where the
blocks were moved, every original position is tried on every disguised one, and the assignment that fits best in sum is
taken. Host NumPy in float64, batched over positions.
Source: the regression attack of DisguisedNets, doi:10.1145/3609506; the orthogonal Procrustes problem, Schönemann 1966,
doi:10.1007/BF02289451.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from scipy import optimize

from djax import schemes
from djax.attacks.base import Attack, Estimate, Known, Progress, constant_estimate
from djax.attacks.common import linear, statistics
from djax.attacks.common.statistics import Layout
from djax.host import blockwise
from djax.schemes import Trait

__all__ = ["PROCRUSTES", "REGRESSION", "Settings", "procrustes", "regression"]

_TINY = 1e-9  # of the greatest energy: no signal but rounding
_SHRINK = 1e-3  # of the moments towards their mean


@dataclasses.dataclass(frozen=True)
class Settings:
  """Options, with the values it ships with."""

  ridge: float = 1e-2  # of regression: the energy of this share of a mean row
  # of regression, relative to a matrix' largest singular value; directions below are taken as not learnt
  cutoff: float = 0.1
  moment_images: int = 2000  # of procrustes, whose rows are enough for second moments
  # of procrustes: rows of a pair that all disguised rows together weigh as much as
  moment_rows: int = 30
  steps: int = 10  # of procrustes, from each of two starts
  numbers: int = 1 << 24  # float64 values worked on at a time


_SETTINGS = Settings()


def regression(
  known: Known, *, seed: int, progress: Progress, settings: Settings = _SETTINGS
) -> Estimate:
  """Least squares at each position, as in the paper: ``R = argmin |X R - Y|``, then ``X = Y R^-1``.

  A small ridge and a pseudo-inverse keep what the pairs do not determine from blowing up. Nothing is known about the
  noise but, where blocks have to be placed, its mean.

  Args:
    known: what the attacker has; used: ``pairs``.
    seed: not used, nothing is drawn.
    progress: called with the fraction done and the current step.
    settings: the attack's constants.

  Returns:
    Estimates; as diagnostics ``pairs``; ``positions``, the original position found for each disguised one, or None
    where blocks stay in place; ``learnt``, the share of the directions of all matrices that was inverted.
  """
  del seed
  assert known.pairs is not None
  if not len(known.pairs[0]):
    return constant_estimate(known, positions=None, learnt=0.0)
  layout = _layout(known.spec)
  x, y, places, warnings = _prepare(known, layout, progress, settings)
  gram = _gram(x)
  n = gram.shape[-1]
  ridge = max(settings.ridge * (x**2).mean(), np.finfo(float).tiny)
  # The normal equations (X'X + a I) R = X'Y, and R^-1 without what no pair determines.
  matrices = np.linalg.solve(gram + ridge * np.eye(n), _gram(x, y))
  inverses = np.linalg.pinv(matrices, rcond=settings.cutoff)
  rank = np.linalg.matrix_rank(inverses)
  images = _apply(known, layout, places, lambda rows: rows @ inverses, progress, settings)
  return Estimate(images, _diagnostics(known, n, places, rank, warnings))


def procrustes(
  known: Known, *, seed: int, progress: Progress, settings: Settings = _SETTINGS
) -> Estimate:
  """Orthogonal matrices from few pairs: the polar factor of ``X'Y``, the noise's mean taken off.

  What a pair leaves open (flat blocks show one direction only) is filled by second moments: all disguised rows of a
  position must look, once turned back, like rows of an image. The noise beyond its mean is damped by a Wiener filter
  on the disguised rows of each position.

  Args:
    known: what the attacker has; used: ``pairs`` and ``disguised``, and the moments of ``public`` where given.
    seed: not used, nothing is drawn.
    progress: called with the fraction done and the current step.
    settings: the attack's constants.

  Returns:
    The estimates. Diagnostics as for ``regression``; ``learnt`` counts the directions in which the pairs stand out
    from the noise.
  """
  del seed
  assert known.pairs is not None
  if not len(known.pairs[0]):
    return constant_estimate(known, positions=None, learnt=0.0)
  layout = _layout(known.spec)
  x, y, places, warnings = _prepare(known, layout, progress, settings)
  before, after = _noise_means(known.spec)
  x, y = x + before, y - after
  n = x.shape[-1]
  variance = (before + after) ** 2 / 3  # N^2 / 12, with N/2 in one of them
  z = _rows(known.disguised[: settings.moment_images], layout) - after
  z = z if places is None else z[np.argsort(places)]
  rows = x
  if known.public is not None:
    public = known.public[: settings.moment_images]
    rows = _rows(blockwise.pad_to_blocks(public, block_size=layout.block_size), layout) + before
  expected = (_gram(rows) / rows.shape[-2]).mean(0) + variance * np.eye(n)
  progress(0.3, "turning matrices")
  turns = _turns(_gram(x, y) / (variance + 1), z, expected, settings)
  mean, smooth = _wiener(z, variance)
  inverses = turns.swapaxes(-1, -2)

  def invert(rows):
    rows = rows - after - mean
    return (rows @ smooth + mean) @ inverses - before

  images = _apply(known, layout, places, invert, progress, settings)
  # X'X holds the noise n * variance in every direction.
  rank = (np.linalg.eigvalsh(_gram(x)) > n * variance + _TINY * (x**2).sum((-2, -1)).max()).sum(-1)
  return Estimate(images, _diagnostics(known, n, places, rank, warnings))


def _refuses_regression(spec: Mapping[str, Any]) -> str | None:
  """Takes what is linear within a block."""
  if Trait.LINEAR in schemes.traits(spec):
    return None
  return f"blocks of {spec['scheme']!r} are not a matrix times pixels; for 'aes' there is codebook"


def _refuses_procrustes(spec: Mapping[str, Any]) -> str | None:
  """Takes orthogonal matrices alone."""
  traits = schemes.traits(spec)
  if Trait.LINEAR in traits and Trait.ORTHOGONAL not in traits:
    return "its matrices are not orthogonal; use regression"
  return _refuses_regression(spec)


REGRESSION = Attack(
  "regression",
  2,
  ("pairs",),
  "least squares at each block position",
  _refuses_regression,
  regression,
)
PROCRUSTES = Attack(
  "procrustes",
  2,
  ("pairs",),
  "orthogonal matrices by Procrustes, noise mean known",
  _refuses_procrustes,
  procrustes,
)


def _layout(spec: Mapping[str, Any]) -> Layout:
  """Returns the layout of ``rmt``, or of ``permutation`` as if its rows were multiplied by the identity."""
  layout = statistics.layout_of(spec)
  return layout._replace(groups="rows") if layout.groups == "pixels" else layout


def _noise_means(spec: Mapping[str, Any]) -> tuple[float, float]:
  """Returns the means of the noise before and after the matrices, one of them 0."""
  mean = spec.get("noise_level", 0.0) / 2
  return (mean, 0.0) if spec.get("noise_place", "before") == "before" else (0.0, mean)


def _rows(images: np.ndarray, layout: Layout) -> np.ndarray:
  """Cuts images of whole blocks into the rows that matrices multiply, ``[P, G, rows, n]``, G groups with one matrix."""
  vectors = layout.vectors(np.asarray(images, np.float32))
  return vectors.reshape(layout.positions, -1, *vectors.shape[1:])


def _prepare(
  known: Known, layout: Layout, progress: Progress, settings: Settings
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, list[str]]:
  """Returns the pairs' rows, by original position, the original position of each disguised block, and warnings."""
  assert known.pairs is not None
  originals, disguised = known.pairs
  x = _rows(blockwise.pad_to_blocks(originals, block_size=layout.block_size), layout)
  y = _rows(disguised, layout)
  rows, n = x.shape[-2:]
  warnings = []
  if rows < n:
    warnings.append(
      f"{len(originals)} pairs give {rows} equations for {n} unknowns of a column of a matrix: what they leave open "
      "is not recovered"
    )
  if Trait.MOVED not in schemes.traits(known.spec):
    return x, y, None, warnings
  orthogonal = known.spec.get("matrix", "orthogonal") == "orthogonal"
  if not orthogonal and rows <= n:
    warnings.append("too few pairs to place the blocks by the fit: placed as if no length changed")
  progress(0.1, "placing blocks")
  before, after = _noise_means(known.spec)
  places = _match(x + before, y - after, orthogonal, settings.numbers)
  return x, y[np.argsort(places)], places, warnings


def _match(x: np.ndarray, y: np.ndarray, orthogonal: bool, numbers: int) -> np.ndarray:
  """Returns for each disguised position the original one, by the greatest total of fits.

  The least squared residual of an orthogonal fit is ``|X|^2 + |Y|^2 - 2 |X'Y|_*``, of a free one ``|Y|^2 - |Q'Y|^2``
  with Q a basis of X's columns. The squares sum to the same for every assignment, so the last terms decide.
  """
  rows, n = x.shape[-2:]
  if orthogonal or rows <= n:
    fit = lambda cross: np.linalg.svd(cross, compute_uv=False).sum(-1)  # noqa: E731
    if rows < n:  # only inner products of rows matter: shorter rows that have them
      x, y = (np.linalg.qr(a.swapaxes(-1, -2))[1].swapaxes(-1, -2) for a in (x, y))
  else:
    fit = lambda cross: (cross**2).sum((-2, -1))  # noqa: E731
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    x = u * (s**2 > _TINY * (s**2).max())[..., None, :]
  positions, groups, _, side = x.shape
  y_flat = y.transpose(1, 2, 0, 3).reshape(groups, -1, positions * side)
  score = np.empty((positions, positions))
  for part in _parts(positions, groups * positions * side * side, numbers):
    x_flat = x[part].transpose(1, 0, 3, 2).reshape(groups, -1, x.shape[2])
    cross = (x_flat @ y_flat).reshape(groups, -1, side, positions, side)
    score[part] = fit(cross.swapaxes(2, 3)).sum(0)  # X'Y of each pair of positions
  return np.argsort(optimize.linear_sum_assignment(score, maximize=True)[1])


def _gram(x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
  """Returns ``X'X`` or ``X'Y`` of the last two axes."""
  return x.swapaxes(-1, -2) @ (x if y is None else y)


def _turns(
  evidence: np.ndarray, z: np.ndarray, expected: np.ndarray, settings: Settings
) -> np.ndarray:
  """Returns the orthogonal R that agree best with the pairs and with all disguised rows.

  Maximises ``2 tr(R'E) - w tr(R' S^-1 R C)``: E the pairs' ``X'Y`` over the noise's variance, S the second moments
  that rows should have, C those of the disguised rows, which count as w. Since ``(k - S^-1)`` is positive for k its
  largest eigenvalue, every polar step climbs. Two starts, by the pairs and by eigenvectors with the pairs' signs: the
  higher end counts.
  """
  moments = _gram(z) / max(1, z.shape[-2])
  n = z.shape[-1]
  size = np.trace(expected, axis1=-2, axis2=-1)[..., None, None] / n
  precision = np.linalg.inv(expected + (1 + _SHRINK * size) * np.eye(n))  # a grey level at least
  top = np.linalg.eigvalsh(precision)[..., -1, None, None]
  pull = min(settings.moment_rows, z.shape[-2]) * (top * np.eye(n) - precision)
  axes, turned = np.linalg.eigh(expected)[1], np.linalg.eigh(moments)[1]
  signs = np.where((axes * (evidence @ turned)).sum(-2, keepdims=True) < 0, -1, 1)
  ends, heights = [], []
  for turns in (linear.polar(evidence), (axes * signs) @ turned.swapaxes(-1, -2)):
    for _ in range(settings.steps):
      turns = linear.polar(evidence + pull @ turns @ moments)
    ends.append(turns)
    heights.append((turns * (2 * evidence + pull @ turns @ moments)).sum((-2, -1)))
  return np.where((heights[1] > heights[0])[..., None, None], ends[1], ends[0])


def _wiener(z: np.ndarray, variance: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns each position's mean row and the filter for what differs from it, by the share of the noise in it."""
  mean = z.mean(-2, keepdims=True)
  energy, axes = np.linalg.eigh(_gram(z - mean) / z.shape[-2])
  # The Wiener gain of a direction: the share of the signal in its energy.
  gain = np.clip(1 - variance / np.maximum(energy, np.finfo(float).tiny), 0, 1)
  return mean, (axes * gain[..., None, :]) @ axes.swapaxes(-1, -2)


def _apply(
  known: Known,
  layout: Layout,
  places: np.ndarray | None,
  invert: Callable[[np.ndarray], np.ndarray],
  progress: Progress,
  settings: Settings,
) -> np.ndarray:
  """Runs the targets through the inverted matrices, a few at a time."""
  count, shape = len(known.targets), known.spec["image_shape"]
  images = np.empty((count, *shape), np.float32)
  for part in _parts(count, int(np.prod(known.targets.shape[1:])), settings.numbers):
    progress(0.5 + 0.5 * part.start / count, "inverting matrices")
    rows = _rows(known.targets[part], layout)
    if places is not None:
      rows = rows[np.argsort(places)]
    rows = invert(rows)
    whole = layout.from_vectors(rows.reshape(-1, *rows.shape[2:]))
    images[part] = whole[:, : shape[0], : shape[1]]
  return images


def _parts(count: int, numbers_each: int, numbers: int) -> Iterator[slice]:
  """Yields slices of ``range(count)`` that stay within memory."""
  step = max(1, numbers // max(1, numbers_each))
  for start in range(0, count, step):
    yield slice(start, start + step)


def _diagnostics(
  known: Known, n: int, places: np.ndarray | None, rank: np.ndarray, warnings: list[str]
) -> dict[str, Any]:
  """Returns the diagnostics of both attacks."""
  assert known.pairs is not None
  return {
    "pairs": len(known.pairs[0]),
    "positions": None if places is None else places.tolist(),
    "learnt": float(rank.mean() / n),
    "warnings": warnings,
  }
