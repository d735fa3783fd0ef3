"""Which position is which: quadratic assignment of layers of numbers between positions.

Given ``A`` and ``B``, both ``[L, P, P]``, the permutation is sought that maximises ``sum(A * Q B Q')`` over all layers.
SciPy's ``quadratic_assignment`` knows one layer only.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

__all__ = ["agreement", "best_match", "climb", "exchange"]

_STEPS = 60


def agreement(a: np.ndarray, b: np.ndarray, perm: np.ndarray) -> float:
  """Returns the sum of products of numbers that come to lie on each other.

  Args:
    a: ``[L, P, P]``.
    b: ``[L, P, P]``.
    perm: int ``[P]``: position ``p`` of ``a`` is position ``perm[p]`` of ``b``.
  """
  return float(np.vdot(a, b[:, perm][:, :, perm]))


def best_match(score: np.ndarray) -> np.ndarray:
  """Returns the permutation matrix, float32 ``[P, P]``, that picks the greatest sum of scores.

  Args:
    score: ``[P, P]``.
  """
  return np.eye(len(score), dtype=np.float32)[linear_sum_assignment(score, maximize=True)[1]]


def climb(
  a: np.ndarray, b: np.ndarray, start: np.ndarray, *, symmetric: bool = False
) -> np.ndarray:
  """Climbs from a doubly stochastic matrix to a permutation by Frank-Wolfe steps.

  The fast approximate quadratic assignment, FAQ (Vogelstein et al. 2015, doi:10.1371/journal.pone.0121002).

  Args:
    a: float32 ``[L, P, P]``.
    b: float32 ``[L, P, P]``.
    start: float32 ``[P, P]``.
    symmetric: whether all layers are symmetric matrices, which halves the work.

  Returns:
    int ``[P]``, as for ``agreement``.
  """
  at, transposed = start, b if symmetric else b.swapaxes(1, 2)
  for _ in range(_STEPS):
    # The gradient of sum(A * Q B Q') in Q is A Q B' + A' Q B.
    slope = (a @ at @ transposed).sum(0)
    slope += slope if symmetric else (a.swapaxes(1, 2) @ at @ b).sum(0)
    step = best_match(slope) - at
    gain = float((slope * step).sum())
    if gain <= 1e-6 * abs(float((slope * at).sum())):
      break
    # Along the step the score is quadratic, gain * t + bend * t^2, with its maximum in [0, 1].
    bend = float(((a @ step @ transposed).sum(0) * step).sum())
    at = at + (1.0 if bend >= 0 else min(1.0, -gain / (2 * bend))) * step
  return linear_sum_assignment(at, maximize=True)[1]


def exchange(a: np.ndarray, b: np.ndarray, perm: np.ndarray, least: float) -> np.ndarray:
  """Exchanges two positions, the best two first, until no exchange raises the score by more than ``least``.

  Let ``B`` be ``b`` as ``perm`` places it. An exchange of ``p`` and ``q`` makes it ``X B X`` with ``X = I - u u'``
  and ``u = e_p - e_q``, so the score ``sum(A * B)`` rises by ``(u' A u) (u' B u) - u' (A B' + A' B) u``.
  ``climb`` follows the slope, which is the second term alone, but between neighbours, where ``A`` and ``B``
  are large, the first decides.

  Args:
    a: ``[L, P, P]``.
    b: ``[L, P, P]``.
    perm: int ``[P]``, to begin with, as for ``agreement``.
    least: gain of an exchange.
  """
  spread = _spread(a)
  while True:
    placed = b[:, perm][:, :, perm]
    slope = a @ placed.swapaxes(1, 2) + a.swapaxes(1, 2) @ placed
    gain = (spread * _spread(placed)).sum(0) - _spread(slope.sum(0))
    p, q = np.unravel_index(np.argmax(gain), gain.shape)
    if not gain[p, q] > least:
      return perm
    perm = perm.copy()
    perm[[p, q]] = perm[[q, p]]


def _spread(m: np.ndarray) -> np.ndarray:
  """Returns ``u' M u`` with ``u = e_p - e_q`` for all ``p`` and ``q``, of matrices ``[..., P, P]``."""
  own = np.diagonal(m, axis1=-2, axis2=-1)
  return own[..., :, None] + own[..., None, :] - m - m.swapaxes(-1, -2)
