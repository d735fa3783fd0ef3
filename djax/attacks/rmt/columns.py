"""Matrices of orthogonal RMT from large disguised images alone: one matrix for each column of blocks, then its signs.

The last row of a block and the first of the one below are nearly the same before the matrices, so ``Y_p' Y_q`` is about
``R_p' C R_q`` with a symmetric ``C``, and its polar factor ``R_p' R_q``. Products of these bring all blocks of a column
into the frame of the first. Then every row of pixels of every image is a sample of one covariance, of the side of the
image, in which each column has one unknown matrix: few unknowns and many samples. ``moments.align`` finds them twice:
against an AR(1) row first, then against what the rows found correlate by at each distance, pooled over all places.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import linalg
from scipy.optimize import minimize_scalar

from djax.attacks.common import statistics
from djax.attacks.common.linear import polar
from djax.attacks.common.statistics import Layout, Moments

__all__ = ["estimate_matrices"]

_ROUNDS = 2  # of correlations pooled over places; the second changes little

Align = Callable[[Moments, Moments], tuple[np.ndarray, dict[str, Any]]]


def estimate_matrices(
  layout: Layout, images: np.ndarray, *, shift: float, variance: float, align: Align
) -> tuple[np.ndarray, dict[str, Any]]:
  """Estimates the matrix of each position.

  Args:
    layout: of the disguised images; one matrix for all rows of a block.
    images: ``[n, H', W', C]``, disguised.
    shift: mean of noise that came after the matrices.
    variance: of the noise.
    align: ``(originals, disguised) -> (matrices, diagnostics)``, as ``moments.align``.

  Returns:
    float64 ``[P, n, n]``, and the diagnostics of ``align``, with the ``rho`` that it began with.
  """
  turns, pooled = _pooled(layout, images, shift)
  observed = statistics.add_noise(pooled, -variance)
  width, side = layout.columns, layout.block_size
  spread = np.maximum(
    np.diag(observed.covariance).reshape(width, side).mean(1), statistics.ROUNDING
  )
  rho = _rho(
    statistics.norms(observed)[:, 0, :, 0] / np.sqrt(np.outer(spread, spread)) / side, side
  )
  # A matrix keeps the variance of a block and the length of its mean; both change slowly along a row.
  places = np.arange(width) * side + (side - 1) / 2
  smooth = lambda values: np.interp(np.arange(width * side), places, values)  # noqa: E731
  scale = np.sqrt(smooth(spread))
  mean = smooth(np.sqrt(np.square(pooled.mean).mean((1, 2)))).reshape(pooled.mean.shape)
  y = statistics.add_noise(pooled, statistics.ROUNDING)

  def solved(correlation: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    covariance = (correlation * scale * scale[:, None]).astype(np.float32)
    return align(statistics.add_noise(Moments(mean, covariance), variance + statistics.ROUNDING), y)

  matrices, diagnostics = solved(linalg.toeplitz(rho ** np.arange(width * side)))
  for _ in range(_ROUNDS):
    found = statistics.transform(observed, matrices.swapaxes(1, 2)).covariance
    matrices, diagnostics = solved(_by_distance(found))
  every = matrices @ turns  # [rows, columns, n, n]
  return every.reshape(-1, side, side), {"rho": round(rho, 4), **diagnostics}


def _pooled(layout: Layout, images: np.ndarray, shift: float) -> tuple[np.ndarray, Moments]:
  """Returns what turns the first block's matrix into each one's, ``[rows, columns, n, n]``, and moments of all rows."""
  b, width = layout.block_size, layout.columns
  turns = np.broadcast_to(np.eye(b), (layout.rows, width, b, b)).copy()
  total, products = np.zeros(width * b), np.zeros((width * b, width * b))
  above, count = None, 0
  for row in range(layout.rows):
    strip = images[:, row * b : (row + 1) * b].reshape(len(images), b, width, b, layout.channels)
    cut = strip.transpose(2, 1, 0, 4, 3).astype(np.float32).reshape(width, b, -1, b) - np.float32(
      shift
    )
    if above is not None:
      turns[row] = polar(turns[row - 1] @ (above.swapaxes(1, 2) @ cut[:, 0]))
    above = cut[:, -1]
    back = cut.reshape(width, -1, b) @ turns[row].swapaxes(1, 2).astype(np.float32)
    samples = back.transpose(0, 2, 1).reshape(width * b, -1)
    total += samples.sum(1, dtype=np.float64)
    products += samples @ samples.T
    count += samples.shape[1]
  mean = total / count
  covariance = products / count - np.outer(mean, mean)
  return turns, Moments(mean.reshape(width, 1, b), covariance.astype(np.float32))


def _rho(norms: np.ndarray, side: int) -> float:
  """Returns the correlation of neighbouring pixels for which an AR(1) row has norms between blocks nearest to these."""
  width = len(norms)

  def misfit(rho: float) -> float:
    model = Moments(
      np.zeros((width, 1, side)), linalg.toeplitz(rho ** np.arange(width * side)).astype(np.float32)
    )
    return float(np.square(statistics.norms(model)[:, 0, :, 0] / side - norms).mean())

  return float(minimize_scalar(misfit, bounds=(0.7, 0.998), method="bounded").x)


def _by_distance(covariance: np.ndarray) -> np.ndarray:
  """Returns the correlations of a stationary row: at each distance their mean over all places."""
  scale = np.sqrt(np.maximum(np.diag(covariance), statistics.ROUNDING))
  correlation = covariance / scale / scale[:, None]
  means = [np.diagonal(correlation, step).mean() for step in range(len(correlation))]
  values, vectors = np.linalg.eigh(linalg.toeplitz(means))
  return (vectors * np.maximum(values, 1e-6)) @ vectors.T
