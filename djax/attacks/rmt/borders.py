"""Where blocks stand that were moved and turned, from their borders: for images too large for one covariance of all.

A matrix of RMT multiplies the rows of a block from the right, so rows stay rows. If block ``q`` stands below ``p``, the
last row of ``p`` and the first of ``q`` are nearly the same before the matrices, in every image; then one orthogonal
``R`` makes them nearly the same after. The best one leaves (orthogonal Procrustes; ``|.|_*`` is the nuclear norm)

``|Y_p - Y_q R|^2 = |Y_p|^2 + |Y_q|^2 - 2 |Y_q' Y_p|_*``

A matching of borders names the block below each block, which gives columns. What two columns have in common beyond all
others, by the inverse covariance of rows of pixels, is much for neighbours alone; so the heaviest path through all
columns is their order. No public image is needed, and no more memory than the rows, one tile of products and a number
for each two positions.

Left and right are exchangeable, as matrices may mirror rows. Public images, if any, choose between them.
"""

import itertools
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from djax.attacks.common import statistics
from djax.attacks.common.statistics import Layout
from djax.errors import ConfigError
from djax.host import blockwise

__all__ = ["Fit", "arrange"]

_IMAGES = 2000  # are enough
_VALUES = 1 << 28  # of them, at most: 1 GiB
_TILE = 1 << 24  # numbers of a tile of products
_POSITIONS = 1 << 14  # at most: a float64 for each two takes 2 GiB
_CANDIDATES = 32  # below each block that are looked at closely
_CHANCE = 1.0  # times the square of a singular value that noise alone makes
_SURE = 0.5  # of the median gap between a block and the best below it: poorer ones make no column
_SHARE = 0.03  # of the energy that is added to a gap: how small it is says little below that
_RIDGE = 0.01  # of the mean variance, added before the inverse


class Fit(NamedTuple):
  """How well the arrangement fits: near 0 for what has no order, 1 at best.

  Attributes:
    below: the share of energy that a block's border has in common with the one below it, median.
    beside: 1 less the median link of other columns over that of neighbours.
  """

  below: float
  beside: float


class _Rows(NamedTuple):
  """Centred rows of blocks.

  Attributes:
    values: float32 ``[P, b, G, m, n]``: G matrices at a position, m vectors of n values in each row.
    means: float32 ``[P]``, mean squares of what was taken off.
    variance: of the noise.
  """

  values: np.ndarray
  means: np.ndarray
  variance: float


def arrange(
  layout: Layout,
  images: np.ndarray,
  *,
  variance: float = 0.0,
  white: bool = False,
  public: np.ndarray | None = None,
) -> tuple[np.ndarray, Fit]:
  """Finds the order of the blocks, or that of the mirrored images.

  Args:
    layout: of the disguised images, whose groups are not whole blocks.
    images: ``[n, H', W', C]``, disguised.
    variance: of the noise in a value.
    white: whether rows are whitened first, for matrices that are not orthogonal.
    public: ``[m, H, W, C]``, originals of the same kind, or None.

  Returns:
    ``perm``, int ``[P]``: disguised position ``p`` holds original position ``perm[p]``; and how well that fits.

  Raises:
    ConfigError: for more positions than memory is for.
  """
  if layout.positions > _POSITIONS:
    raise ConfigError(
      f"attack placement orders at most {_POSITIONS} blocks, got {layout.positions}. Take larger blocks or smaller "
      "images."
    )
  rows = _rows(layout, images, 0.0 if white else variance, white)
  board = _columns(rows, layout.rows, layout.columns)
  links = _links(rows, board)
  path = _path(links)
  board, links = board[:, path], links[path][:, path]
  below = _steps(rows, board)
  if layout.groups == "pixels":  # no matrix: pixels meet at one side alone
    mirrored = _met(rows, board[:, ::-1]) > _met(rows, board)
  elif public is not None and below.size:
    whole = blockwise.pad_to_blocks(public, block_size=layout.block_size)
    seen = _rows(layout, whole, 0.0, white)
    maps = [(below, _steps(seen, np.arange(board.size).reshape(board.shape)))]
    if not white:
      maps += [
        (x[board], y.reshape(board.shape)) for x, y in zip(*map(_sizes, (rows, seen)), strict=True)
      ]
    mirrored = sum(_alike(x[:, ::-1], y) - _alike(x, y) for x, y in maps) > 0
  else:
    mirrored = False
  board = board[:, ::-1] if mirrored else board
  perm = np.argsort(board, axis=None)
  others, beside = links[np.triu_indices(len(links), 2)], np.diagonal(links, 1)
  return perm, Fit(
    below=float(np.median(1 - np.exp(below))) if below.size else 1.0,
    beside=float(1 - np.median(others) / np.median(beside)) if others.size else 1.0,
  )


def _rows(layout: Layout, images: np.ndarray, variance: float, white: bool) -> _Rows:
  """Cuts images into rows of blocks."""
  count = min(_IMAGES, max(1, _VALUES // images[0].size), len(images))
  b, channels = layout.block_size, layout.channels
  grid = images[:count].reshape(count, layout.rows, b, layout.columns, b, channels)
  split = grid.transpose(1, 3, 2, 5, 0, 4).astype(np.float32)  # [R, Q, b, C, n, b]
  groups = channels if layout.groups == "channel" else 1
  values = split.reshape(layout.positions, b, channels, count, b)
  means = values.mean(3, keepdims=True)
  values -= means
  values = values.reshape(layout.positions, b, groups, -1, b)
  if white:
    own = np.einsum("pigmx,pigmy->pgxy", values, values, optimize=True) / (b * values.shape[3])
    root = statistics.power(own.reshape(-1, b, b).astype(np.float64), -0.5).astype(np.float32)
    values = values @ root.reshape(-1, 1, groups, b, b)
  return _Rows(values, np.square(means).mean((1, 2, 3, 4)), variance)


def _columns(rows: _Rows, height: int, width: int) -> np.ndarray:
  """Returns the blocks of each column from the top, int ``[height, width]``; columns are in no order."""
  positions = height * width
  if height == 1:
    return np.arange(width)[None]
  # A block may have none below it, which costs nothing. Nor do poor fits, else last blocks would want first ones below
  # them, and these be sought elsewhere.
  costs, index = np.zeros((positions, positions)), np.arange(positions)
  candidates, gaps = _below(rows)
  gaps[gaps > _SURE * np.median(gaps.min(1))] = 0
  costs[index[:, None], candidates] = gaps
  np.fill_diagonal(costs, 0)
  lower = linear_sum_assignment(costs)[1]
  cost = costs[index, lower]
  # The surest first, as long as no column is too high. What would close a circle is a last block's link to the first.
  pieces = {p: [p] for p in range(positions)}
  of = index.copy()
  order = np.argsort(cost, kind="stable")
  for p in order[cost[order] < 0]:
    q = lower[p]
    joined = of[p] != of[q] and len(pieces[of[p]]) + len(pieces[of[q]]) <= height
    if joined and len(pieces) > width:
      tail = pieces.pop(of[q])
      pieces[of[p]] += tail
      of[tail] = of[p]
  whole = [piece for piece in pieces.values() if len(piece) == height]
  rest = [piece for piece in pieces.values() if len(piece) < height]
  board = np.array(whole, int).reshape(-1, height).T
  return np.concatenate([board, _completed(rows, board, rest)], 1) if rest else board


def _completed(rows: _Rows, board: np.ndarray, pieces: list[list[int]]) -> np.ndarray:
  """Returns further columns made of pieces: each at the height where its rows are like those of whole columns."""
  height, whole = board.shape
  left = np.concatenate(pieces)
  missing = len(left) // height
  score = np.zeros((len(left), height))
  if whole:
    each = rows.values[left]
    score = np.stack(
      [_gaps(rows, _merged(each), _merged(rows.values[row])).min(1) for row in board], 1
    )
  # The cost of a block in a row is the mean over its piece, were it to stand so.
  cost, start = np.full((len(left), height), np.inf), 0
  for piece in pieces:
    steps = np.arange(len(piece))
    for top in range(height - len(piece) + 1):
      cost[start + steps, top + steps] = score[start + steps, top + steps].mean()
    start += len(piece)
  cost[~np.isfinite(cost)] = 1.0  # above any gap
  slots = np.repeat(np.arange(height), missing)
  chosen = slots[linear_sum_assignment(cost[:, slots])[1]]
  result = np.stack([left[chosen == row] for row in range(height)])
  for row in range(1, height):
    above, below = rows.values[result[row - 1], -1], rows.values[result[row], 0]
    result[row] = result[row][linear_sum_assignment(_gaps(rows, above, below))[1]]
  return result


def _below(rows: _Rows) -> tuple[np.ndarray, np.ndarray]:
  """Returns the likeliest blocks below each block, int ``[P, k]``, and the gaps to them."""
  last, first = rows.values[:, -1], rows.values[:, 0]
  positions, groups, _, side = last.shape
  count = min(_CANDIDATES, positions - 1)
  energy = [np.square(x).sum((1, 2, 3)) for x in (last, first)]
  noise = last[0].size * rows.variance
  unit = np.maximum(energy[1] - noise, _SHARE * np.maximum(energy[1], 1e-6))
  candidates, gaps = [], []
  step = max(1, _TILE // (groups * positions * side**2))
  for start in range(0, positions, step):
    part = np.arange(start, min(start + step, positions))
    cross = _products(last[part], first)  # [t, P, G, n, n]
    norm = np.square(cross).sum((2, 3, 4)) / unit
    norm[np.arange(len(part)), part] = -1
    best = np.argpartition(-norm, count - 1, axis=1)[:, :count]
    cross = cross[np.arange(len(part))[:, None], best]
    candidates.append(best)
    gaps.append(_log_gaps(rows, energy[0][part, None], energy[1][best], cross))
  return np.concatenate(candidates), np.concatenate(gaps)


def _sizes(rows: _Rows) -> tuple[np.ndarray, np.ndarray]:
  """Returns the logs of the variances and of the squared means in each block, ``[P]`` each."""
  total = np.square(rows.values).sum((1, 2, 3, 4)) / rows.values[0].size
  variances = np.maximum(total - rows.variance, _SHARE * total)
  return np.log(variances + statistics.ROUNDING), np.log(rows.means + statistics.ROUNDING)


def _steps(rows: _Rows, board: np.ndarray) -> np.ndarray:
  """Returns the gaps between blocks and those below them, ``[height - 1, width]``."""
  gaps = [
    np.diagonal(_gaps(rows, rows.values[above, -1], rows.values[below, 0]))
    for above, below in itertools.pairwise(board)
  ]
  return np.array(gaps).reshape(len(board) - 1, -1)


def _met(rows: _Rows, board: np.ndarray) -> float:
  """Returns how much pixels have in common at the vertical borders of blocks that were moved and not turned."""
  pairs = zip(board[:, :-1].ravel(), board[:, 1:].ravel(), strict=True)
  return sum(float(np.vdot(rows.values[p, ..., -1], rows.values[q, ..., 0])) for p, q in pairs)


def _links(rows: _Rows, board: np.ndarray) -> np.ndarray:
  """Returns what columns have in common beyond all others, summed over rows of blocks: ``[width, width]``.

  ``K`` is the inverse covariance of a row of pixels; the squares of ``K_aa^-1/2 K_ab K_bb^-1/2`` sum to those of
  partial correlations, and no matrix changes the sum.
  """
  width = board.shape[1]
  total = np.zeros((width, width))
  for row in board:
    x = rows.values[row].transpose(0, 2, 4, 1, 3)  # [Q, G, n, b, m]
    x = x.reshape(-1, x.shape[3] * x.shape[4])
    covariance = (x @ x.T).astype(np.float64)
    mean = np.trace(covariance) / len(x)
    covariance[np.diag_indices(len(x))] += _RIDGE * max(mean, 1e-6)
    inverse = np.linalg.inv(covariance).reshape(width, -1, width, len(x) // width)
    inverse = inverse.transpose(0, 2, 1, 3)
    own = statistics.power(inverse[np.arange(width), np.arange(width)], -0.5)
    parts = own[:, None] @ inverse @ own
    total += np.square(parts).sum((2, 3))
  return total


def _merged(values: np.ndarray) -> np.ndarray:
  """Returns the rows of a block as rows of one border: ``[P, b, G, m, n]`` to ``[P, G, b * m, n]``."""
  swapped = values.swapaxes(1, 2)
  return swapped.reshape(*swapped.shape[:2], -1, swapped.shape[-1])


def _gaps(rows: _Rows, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Returns the gaps between all borders ``[t, G, m, n]`` and ``[u, G, m, n]``: ``[t, u]``."""
  energy = [np.square(borders).sum((1, 2, 3)) for borders in (x, y)]
  return _log_gaps(rows, energy[0][:, None], energy[1], _products(x, y))


def _products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Returns ``X'Y`` of all pairs of borders ``[t, G, m, n]`` and ``[u, G, m, n]``: ``[t, u, G, n, n]``."""
  side = x.shape[-1]
  flat = [borders.transpose(1, 0, 3, 2).reshape(x.shape[1], -1, x.shape[2]) for borders in (x, y)]
  cross = flat[0] @ flat[1].swapaxes(1, 2)
  return cross.reshape(-1, len(x), side, len(y), side).transpose(1, 3, 0, 2, 4)


def _log_gaps(rows: _Rows, first: np.ndarray, second: np.ndarray, cross: np.ndarray) -> np.ndarray:
  """Returns logs of the share that borders have not in common: about 0 for strangers, else negative.

  Args:
    rows: that the borders are of.
    first: energies of the borders, to be broadcast against ``second``.
    second: those of the others.
    cross: ``X'Y``, ``[t, u, G, n, n]``.
  """
  groups, side = cross.shape[2:4]
  count = rows.values.shape[3]  # products that each entry sums
  noise = count * groups * side * rows.variance
  # An entry's variance, v (|x|^2 + |y|^2) + m v^2 without noise in the energies |x|^2 and |y|^2 of a value.
  entry = rows.variance * np.maximum((first + second) / (groups * side) - count * rows.variance, 0)
  values = np.linalg.svd(cross, compute_uv=False)
  values = np.sqrt(np.maximum(values**2 - _CHANCE * side * entry[..., None, None], 0))
  own = np.maximum(first - noise, 1e-6 * count) + np.maximum(second - noise, 1e-6 * count)
  gap = np.maximum(own - 2 * values.sum((2, 3)), 0)
  return np.log((gap + _SHARE * own) / ((1 + _SHARE) * own))


def _path(links: np.ndarray) -> np.ndarray:
  """Returns the order of the heaviest path through all columns that exchanges of two steps find, from each column.

  Args:
    links: symmetric ``[Q, Q]``, weights.
  """
  count = len(links)
  closed = np.zeros((count + 1, count + 1))  # back to the start by one more stop, at no cost
  closed[:count, :count] = -links
  best, lowest = np.arange(count), np.inf
  for first in range(count):
    nearest, free = [count, first], np.ones(count, bool)
    free[first] = False
    while free.any():
      step = np.where(free, closed[nearest[-1], :count], np.inf)
      nearest.append(int(step.argmin()))
      free[nearest[-1]] = False
    tour = _untangled(np.array(nearest), closed)
    length = closed[tour, np.roll(tour, -1)].sum()
    if length < lowest - 1e-9:
      best, lowest = tour[1:], length
  return best


def _untangled(tour: np.ndarray, costs: np.ndarray) -> np.ndarray:
  """Reverses parts of a tour, the best first, as long as that makes it shorter (2-opt)."""
  while True:
    here, there = tour, np.roll(tour, -1)
    step = costs[here, there]
    # Instead of here[i] -> there[i] and here[j] -> there[j]: here[i] -> here[j] and there[i] -> there[j].
    change = costs[np.ix_(here, here)] + costs[np.ix_(there, there)] - step[:, None] - step
    i, j = np.unravel_index(np.argmin(np.triu(change, 1)), change.shape)
    if change[i, j] > -1e-9 or i >= j:
      return tour
    tour = np.concatenate([tour[: i + 1], tour[i + 1 : j + 1][::-1], tour[j + 1 :]])


def _alike(x: np.ndarray, y: np.ndarray) -> float:
  """Returns the correlation of two maps."""
  x, y = x - x.mean(), y - y.mean()
  return float(np.vdot(x, y) / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-9))
