"""Known pairs against random projections: least squares (the paper's) and the orthogonality-aware estimate.

Of position ``p`` the pairs give the rows ``X_p`` and, wherever the block now stands, ``Y_q = (X_p + D) R_p``. Where the
blocks were moved, every original position is tried on every disguised one, and the assignment that fits best in sum is
taken. Host NumPy in float64, batched over positions.
Source: the regression attack of DisguisedNets, doi:10.1145/3609506; the orthogonal Procrustes problem, Schönemann 1966,
doi:10.1007/BF02289451.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import optimize

from djax import schemes
from djax.attacks.base import Attack, Estimate, Known
from djax.host import blockwise
from djax.ops import blocks
from djax.schemes import Trait

__all__ = ["PROCRUSTES", "REGRESSION", "procrustes", "regression"]

_RIDGE = 1e-2  # the energy of this share of a mean row
_CUTOFF = 0.1  # of a matrix' largest singular value; what lies below is taken as not learnt
_TINY = 1e-9  # of the greatest energy: no signal but rounding
_MOMENT_IMAGES = 2000  # whose rows are enough for second moments
_MOMENT_ROWS = 30  # rows of a pair that all disguised rows together weigh as much as
_SHRINK = 1e-3  # of the moments towards their mean
_STEPS = 10
_NUMBERS = 1 << 24  # of float64 worked on at a time


class _Layout(NamedTuple):
  """What the public spec says about the vectors that a matrix multiplies."""

  image_shape: tuple[int, int, int]
  block_size: int
  whole_blocks: bool
  per_channel: bool
  permuted: bool
  orthogonal: bool
  noise_before: float
  noise_after: float


def regression(known: Known, *, seed: int, progress: Callable[[float, str], None]) -> Estimate:
  """Least squares at each position, as in the paper: ``R = argmin |X R - Y|``, then ``X = Y R^-1``.

  A small ridge and a pseudo-inverse keep what the pairs do not determine from blowing up. Nothing is known about the
  noise but, where blocks have to be placed, its mean.

  Args:
    known: what the attacker has; ``pairs`` are used, ``public`` and ``disguised`` are not.
    seed: nothing is drawn.
    progress: told how far it is.

  Returns:
    The estimates. Diagnostics: ``pairs``; ``positions``, the original position found for each disguised one, or None
    where blocks stay in place; ``learnt``, the share of the directions of all matrices that was inverted.
  """
  del seed
  layout = _layout(known.spec)
  x, y, places, warnings = _prepare(known, layout, progress)
  if not x.size:
    return _nothing(known)
  gram = _gram(x)
  n = gram.shape[-1]
  ridge = max(_RIDGE * (x**2).mean(), np.finfo(float).tiny)
  matrices = np.linalg.solve(gram + ridge * np.eye(n), _gram(x, y))
  inverses = np.linalg.pinv(matrices, rcond=_CUTOFF)
  rank = np.linalg.matrix_rank(inverses)
  images = _apply(known, layout, places, lambda rows: rows @ inverses, progress)
  return Estimate(images, _diagnostics(known, n, places, rank, warnings))


def procrustes(known: Known, *, seed: int, progress: Callable[[float, str], None]) -> Estimate:
  """Orthogonal matrices from few pairs: the polar factor of ``X'Y``, the noise's mean taken off.

  What a pair leaves open (flat blocks show one direction only) is filled by second moments: all disguised rows of a
  position must look, once turned back, like rows of an image. The noise beyond its mean is damped by a Wiener filter
  on the disguised rows of each position.

  Args:
    known: what the attacker has; ``pairs`` and ``disguised`` are used, and of ``public`` the moments where given.
    seed: nothing is drawn.
    progress: told how far it is.

  Returns:
    The estimates. Diagnostics as for ``regression``; ``learnt`` counts the directions in which the pairs stand out
    from the noise.
  """
  del seed
  layout = _layout(known.spec)
  x, y, places, warnings = _prepare(known, layout, progress)
  if not x.size:
    return _nothing(known)
  x, y = x + layout.noise_before, y - layout.noise_after
  n = x.shape[-1]
  variance = (
    layout.noise_before + layout.noise_after
  ) ** 2 / 3  # N^2 / 12, with N/2 in one of them
  z = _rows(known.disguised[:_MOMENT_IMAGES], layout) - layout.noise_after
  z = z if places is None else z[np.argsort(places)]
  rows = x
  if known.public is not None:
    padded = blockwise.pad_to_blocks(known.public[:_MOMENT_IMAGES], block_size=layout.block_size)
    rows = _rows(padded, layout) + layout.noise_before
  expected = (_gram(rows) / rows.shape[-2]).mean(0) + variance * np.eye(n)
  progress(0.3, "turning matrices")
  turns = _turns(_gram(x, y) / (variance + 1), z, expected)
  mean, smooth = _wiener(z, variance)
  inverses = turns.swapaxes(-1, -2)

  def invert(rows):
    rows = rows - layout.noise_after - mean
    return (rows @ smooth + mean) @ inverses - layout.noise_before

  images = _apply(known, layout, places, invert, progress)
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


def _layout(spec: Mapping[str, Any]) -> _Layout:
  """Reads the spec of ``rmt``, or of ``permutation``, whose matrices are all the identity."""
  before = spec.get("noise_place", "before") == "before"
  mean = spec.get("noise_level", 0.0) / 2
  height, width, channels = spec["image_shape"]
  return _Layout(
    image_shape=(height, width, channels),
    block_size=spec["block_size"],
    whole_blocks=spec.get("mix", "rows") == "block",
    per_channel=spec.get("per_channel", False),
    permuted=Trait.MOVED in schemes.traits(spec),
    orthogonal=spec.get("matrix", "orthogonal") == "orthogonal",
    noise_before=mean if before else 0.0,
    noise_after=0.0 if before else mean,
  )


def _rows(images: np.ndarray, layout: _Layout) -> np.ndarray:
  """Cuts images of whole blocks into the rows that matrices multiply, ``[P, G, rows, n]``, G groups with one matrix."""
  cut = np.asarray(
    blocks.blockify(jnp.asarray(images, jnp.float32), block_size=layout.block_size)
  )  # [k, P, b, b, C]
  count, positions, b, _, channels = cut.shape
  if layout.whole_blocks:
    rows = cut.swapaxes(0, 1).reshape(positions, 1, count, b * b * channels)
  else:
    groups = channels if layout.per_channel else 1
    rows = cut.transpose(1, 4, 0, 2, 3).reshape(positions, groups, -1, b)
  return rows.astype(np.float64)


def _images(rows: np.ndarray, layout: _Layout, count: int) -> np.ndarray:
  """Puts rows back into float32 images of the original size."""
  height, width, channels = layout.image_shape
  b, positions = layout.block_size, len(rows)
  if layout.whole_blocks:
    cut = rows.reshape(positions, count, b, b, channels).swapaxes(0, 1)
  else:
    cut = rows.reshape(positions, channels, count, b, b).transpose(2, 0, 3, 4, 1)
  whole = blocks.unblockify(
    jnp.asarray(cut, jnp.float32), height=height + -height % b, width=width + -width % b
  )
  return np.asarray(whole)[:, :height, :width]


def _prepare(
  known: Known, layout: _Layout, progress: Callable[[float, str], None]
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
  if not layout.permuted or not x.size:
    return x, y, None, warnings
  if not layout.orthogonal and rows <= n:
    warnings.append("too few pairs to place the blocks by the fit: placed as if no length changed")
  progress(0.1, "placing blocks")
  places = _match(x + layout.noise_before, y - layout.noise_after, layout.orthogonal)
  return x, y[np.argsort(places)], places, warnings


def _match(x: np.ndarray, y: np.ndarray, orthogonal: bool) -> np.ndarray:
  """Returns for each disguised position the original one, by the greatest total of fits.

  The least squared residual of an orthogonal fit is ``|X|^2 + |Y|^2 - 2 |X'Y|_*``, of a free one ``|Y|^2 - |Q'Y|^2``
  with Q a basis of X's columns. The squares sum to the same for every assignment, so the last terms decide.
  """
  rows, n = x.shape[-2:]
  if orthogonal or rows <= n:
    fit = _nuclear
    if rows < n:  # only inner products of rows matter: shorter rows that have them
      x, y = (np.linalg.qr(a.swapaxes(-1, -2))[1].swapaxes(-1, -2) for a in (x, y))
  else:
    fit = _energy
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    x = u * (s**2 > _TINY * (s**2).max())[..., None, :]
  positions, groups, _, side = x.shape
  y_flat = y.transpose(1, 2, 0, 3).reshape(groups, -1, positions * side)
  score = np.empty((positions, positions))
  for part in _parts(positions, groups * positions * side * side):
    x_flat = x[part].transpose(1, 0, 3, 2).reshape(groups, -1, x.shape[2])
    cross = (x_flat @ y_flat).reshape(groups, -1, side, positions, side)
    score[part] = fit(cross.swapaxes(2, 3)).sum(0)
  original, moved = optimize.linear_sum_assignment(score, maximize=True)
  return original[np.argsort(moved)]


def _nuclear(cross: np.ndarray) -> np.ndarray:
  """Sums the singular values of the last two axes."""
  return np.linalg.svd(cross, compute_uv=False).sum(-1)


def _energy(cross: np.ndarray) -> np.ndarray:
  """Sums the squares over the last two axes."""
  return (cross**2).sum((-2, -1))


def _gram(x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
  """Returns ``X'X`` or ``X'Y`` of the last two axes."""
  return x.swapaxes(-1, -2) @ (x if y is None else y)


def _polar(matrices: np.ndarray) -> np.ndarray:
  """Returns the nearest orthogonal matrices: those of the largest inner product with the given ones."""
  u, _, vt = np.linalg.svd(matrices)
  return u @ vt


def _turns(evidence: np.ndarray, z: np.ndarray, expected: np.ndarray) -> np.ndarray:
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
  pull = min(_MOMENT_ROWS, z.shape[-2]) * (top * np.eye(n) - precision)
  axes, turned = np.linalg.eigh(expected)[1], np.linalg.eigh(moments)[1]
  signs = np.where((axes * (evidence @ turned)).sum(-2, keepdims=True) < 0, -1, 1)
  ends, heights = [], []
  for turns in (_polar(evidence), (axes * signs) @ turned.swapaxes(-1, -2)):
    for _ in range(_STEPS):
      turns = _polar(evidence + pull @ turns @ moments)
    ends.append(turns)
    heights.append((turns * (2 * evidence + pull @ turns @ moments)).sum((-2, -1)))
  return np.where((heights[1] > heights[0])[..., None, None], ends[1], ends[0])


def _wiener(z: np.ndarray, variance: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns each position's mean row and the filter for what differs from it, by the share of the noise in it."""
  mean = z.mean(-2, keepdims=True)
  energy, axes = np.linalg.eigh(_gram(z - mean) / z.shape[-2])
  gain = np.clip(1 - variance / np.maximum(energy, np.finfo(float).tiny), 0, 1)
  return mean, (axes * gain[..., None, :]) @ axes.swapaxes(-1, -2)


def _apply(
  known: Known,
  layout: _Layout,
  places: np.ndarray | None,
  invert: Callable[[np.ndarray], np.ndarray],
  progress: Callable[[float, str], None],
) -> np.ndarray:
  """Runs the targets through the inverted matrices, a few at a time."""
  count = len(known.targets)
  images = np.empty((count, *layout.image_shape), np.float32)
  for part in _parts(count, int(np.prod(known.targets.shape[1:]))):
    progress(0.5 + 0.5 * part.start / count, "inverting matrices")
    targets = known.targets[part]
    rows = _rows(targets, layout)
    if places is not None:
      rows = rows[np.argsort(places)]
    images[part] = _images(invert(rows), layout, len(targets))
  return images


def _parts(count: int, numbers_each: int) -> Iterator[slice]:
  """Yields slices of ``range(count)`` that stay within memory."""
  step = max(1, _NUMBERS // max(1, numbers_each))
  for start in range(0, count, step):
    yield slice(start, start + step)


def _nothing(known: Known) -> Estimate:
  """Grey images, for want of a single pair."""
  shape = (len(known.targets), *known.spec["image_shape"])
  warnings = ["0 pairs: nothing to learn from, the estimates are grey"]
  return Estimate(
    np.full(shape, 127.5, np.float32),
    {"pairs": 0, "positions": None, "learnt": 0.0, "warnings": warnings},
  )


def _diagnostics(
  known: Known, n: int, places: np.ndarray | None, rank: np.ndarray, warnings: list[str]
) -> dict[str, Any]:
  """Returns what was found out on the way."""
  assert known.pairs is not None
  return {
    "pairs": len(known.pairs[0]),
    "positions": None if places is None else places.tolist(),
    "learnt": float(rank.mean() / n),
    "warnings": warnings,
  }
