"""A puzzle over block borders, for blocks that were moved and not changed.

All images share one permutation, so what fits is judged by the sum over many disguised images: each block is continued
half a pixel beyond its border, and where two blocks are neighbours the continuations meet. The grid grows from several
first blocks, each time by the block that fits best; swaps and shifts of the whole follow, and the cheapest end is
taken. No public image is needed. Host NumPy.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_array, csgraph

from djax import schemes
from djax.attacks.base import Attack, Estimate, Known, Progress
from djax.host import blockwise
from djax.ops import blocks
from djax.schemes import Trait

__all__ = ["ATTACK", "Scores", "jigsaw", "scores"]

_IMAGES = 2000  # are enough
_SINGLES = 3  # images solved alone, to compare with
_STARTS = 32
_STARTS_ALONE = 4
_LARGE = 256  # positions above which there are fewer starts, in proportion
_GREY = 1.0  # squared grey levels that rounding alone may differ by
_MIDDLE = 127.5  # taken off to keep rounding small
_TRIED = 16  # swaps looked at closely in each round
_SAME = 1e-6  # change of cost below which two arrangements are as good


class Scores(NamedTuple):
  """How right an arrangement is: shares of what there is, 0..1.

  Attributes:
    direct: blocks in their place.
    neighbour: pairs of neighbours in the original that are neighbours in the arrangement, on the same side.
    largest_component: blocks in the largest group that hangs together by such pairs.
  """

  direct: float
  neighbour: float
  largest_component: float


def scores(
  perm_true: Sequence[int] | np.ndarray,
  perm_found: Sequence[int] | np.ndarray,
  grid: tuple[int, int],
) -> Scores:
  """Compares the arrangement found with the true one.

  Args:
    perm_true: ``[P]``, the original position of each disguised one: ``perm`` of the key.
    perm_found: ``[P]``, as the attack says under ``positions``.
    grid: rows and columns of blocks.

  Raises:
    ValueError: if these are not two permutations of the grid's positions.
  """
  true, found = np.asarray(perm_true), np.asarray(perm_found)
  positions = np.arange(grid[0] * grid[1])
  for name, perm in (("perm_true", true), ("perm_found", found)):
    if not np.array_equal(np.sort(perm), positions):
      raise ValueError(
        f"scores: {name} must hold every position of the grid {grid[0]} x {grid[1]} once, got {perm.size} entries."
      )
  lies_at = np.empty_like(positions)  # where the block of each original position was put
  lies_at[true] = found
  row, column = np.divmod(lies_at.reshape(grid), grid[1])
  ids = positions.reshape(grid)
  edges, pairs = [], 0
  for here, there, down, right in (
    (np.s_[:, :-1], np.s_[:, 1:], 0, 1),
    (np.s_[:-1], np.s_[1:], 1, 0),
  ):
    meets = (row[there] - row[here] == down) & (column[there] - column[here] == right)
    edges.append(np.stack([ids[here][meets], ids[there][meets]]))
    pairs += meets.size
  joined = np.concatenate(edges, 1)  # [2, number of neighbours that are neighbours still]
  graph = coo_array((np.ones(joined.shape[1]), joined), shape=(positions.size, positions.size))
  _, component = csgraph.connected_components(graph, directed=False)
  return Scores(
    direct=float((true == found).mean()),
    neighbour=joined.shape[1] / pairs if pairs else 1.0,
    largest_component=float(np.bincount(component).max() / positions.size),
  )


def jigsaw(known: Known, *, seed: int, progress: Progress) -> Estimate:
  """Puts the blocks of all images where their borders fit best in sum.

  Args:
    known: what the attacker has; used: ``disguised``.
    seed: of the random starts.
    progress: called with the fraction done and the current step.

  Returns:
    Estimates; as diagnostics ``images`` used; ``positions``, the original position found for each disguised one;
    ``cost`` of that arrangement, about 0 for a random one; ``starts``, the share of starts that ended there;
    ``interchangeable``, how many blocks could change places with another at no cost; ``single``, for each of the first
    images, solved alone, its ``Scores`` against ``positions`` (not against the truth, which the attack does not know).
  """
  height, width, _ = known.spec["image_shape"]
  b = known.spec["block_size"]
  grid = blocks.grid_shape(height, width, block_size=b)
  cut = _cut(known.disguised[:_IMAGES], b)
  order = np.random.default_rng(seed).permutation(cut.shape[1])
  order = order[: max(1, _STARTS * _LARGE // max(_LARGE, order.size))]
  costs = _costs(cut)
  solved = _solve(costs, grid, order, lambda done: progress(0.6 * done, "fitting borders"))
  positions = np.argsort(solved.blocks)
  singles = []
  for one in range(min(_SINGLES, len(cut))):
    progress(0.6 + 0.4 * one / _SINGLES, "one image alone")
    alone = _solve(_costs(cut[one : one + 1]), grid, order[:_STARTS_ALONE], lambda done: None)
    singles.append(scores(positions, np.argsort(alone.blocks), grid)._asdict())
  targets = blockwise.permute(solved.blocks, np.asarray(known.targets, np.float32), block_size=b)
  ties = _interchangeable(costs, grid, solved.blocks)
  warnings = []
  if len(cut) == 1:
    warnings.append("1 disguised image: the puzzle of one image is often not unique")
  if ties:
    warnings.append(
      f"{ties} of {len(positions)} blocks could change places with another at no cost: a guess among equals"
    )
  diagnostics = {
    "images": len(cut),
    "positions": positions.tolist(),
    "cost": solved.cost,
    "starts": solved.agreeing,
    "interchangeable": ties,
    "single": singles,
    "warnings": warnings,
  }
  return Estimate(targets[:, :height, :width], diagnostics)


def _refuses(spec: Mapping[str, Any]) -> str | None:
  """Takes blocks that were moved alone, and that have borders to speak of."""
  traits = schemes.traits(spec)
  if Trait.MATRICES in traits or not {Trait.LINEAR, Trait.MOVED} <= traits:
    return f"borders of {spec['scheme']!r} blocks do not continue each other; for 'rmt' there is placement"
  if spec["block_size"] < 2:
    return "blocks of one pixel have no border to continue; use a block_size of at least 2"
  return None


ATTACK = Attack(
  "jigsaw", 1, (), "a puzzle over block borders, summed over images", _refuses, jigsaw
)


class _Solved(NamedTuple):
  """The block at each grid position, the cost of that, and the share of starts that got there."""

  blocks: np.ndarray
  cost: float
  agreeing: float


def _cut(images: np.ndarray, block_size: int) -> np.ndarray:
  """Returns blocks as float32 ``[n, P, b, b, C]``."""
  return np.asarray(blocks.blockify(jnp.asarray(images, jnp.float32), block_size=block_size))


def _costs(cut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns float64 ``[P, P]`` twice: the cost of the second block right of the first, and below it.

  The log of the mean squared gap between the continuations over that of strangers: the same two blocks of different
  images. So a block that is flat in all images fits nowhere better than elsewhere. Of a single image strangers are
  the other blocks (the median).
  """
  right = _cost(_continued(cut, -1, -2), _continued(cut, 0, 1))
  turned = cut.swapaxes(2, 3)
  return right, _cost(_continued(turned, -1, -2), _continued(turned, 0, 1))


def _continued(cut: np.ndarray, edge: int, inner: int) -> np.ndarray:
  """Returns what lies half a pixel beyond the edge column, ``[P, n, b * C]``."""
  beyond = 1.5 * cut[..., edge, :] - 0.5 * cut[..., inner, :]  # [n, P, b, C]
  return beyond.swapaxes(0, 1).reshape(cut.shape[1], len(cut), -1).astype(np.float64) - _MIDDLE


def _cost(after: np.ndarray, before: np.ndarray) -> np.ndarray:
  """Returns what it costs if each of ``after`` meets each of ``before``, 0 for a block and itself."""
  positions, count, _ = after.shape
  x, y = after.reshape(positions, -1), before.reshape(positions, -1)
  # |x - y|^2 = |x|^2 + |y|^2 - 2 x'y, over the same image, and below over two different ones.
  squares, products = (x**2).sum(1)[:, None] + (y**2).sum(1), x @ y.T
  gaps = np.log(np.maximum(squares - 2 * products, 0) / x.shape[1] + _GREY)
  if count > 1:
    crossed = (after.sum(1) @ before.sum(1).T - products) / (count - 1)
    usual = np.log(np.maximum(squares - 2 * crossed, 0) / x.shape[1] + _GREY)
  else:
    usual = 0.5 * (np.median(gaps, 0) + np.median(gaps, 1)[:, None])
  return (gaps - usual) * (1 - np.eye(positions))


def _solve(
  costs: tuple[np.ndarray, np.ndarray],
  grid: tuple[int, int],
  starts: np.ndarray,
  report: Callable[[float], None],
) -> _Solved:
  """Returns the cheapest of the arrangements that grow from several first blocks."""
  ends, reached = [], []
  for number, first in enumerate(starts):
    report(number / len(starts))
    ends.append(_polish(costs, grid, _grow(costs, grid, first)))
    reached.append(_total(costs, grid, ends[-1]))
  lowest = min(reached)
  return _Solved(
    blocks=ends[reached.index(lowest)],
    cost=lowest,
    agreeing=float(np.mean(np.array(reached) < lowest + _SAME)),
  )


def _interchangeable(
  costs: tuple[np.ndarray, np.ndarray], grid: tuple[int, int], arranged: np.ndarray
) -> int:
  """Counts the blocks that could change places with another at no cost."""
  cost = _total(costs, grid, arranged)
  near = np.abs(_swaps(costs, grid, arranged)) < _SAME
  np.fill_diagonal(near, False)
  free = [
    (p, q)
    for p, q in np.argwhere(near)
    if _total(costs, grid, _swapped(arranged, p, q)) < cost + _SAME
  ]
  return len({p for p, _ in free})


def _grow(costs: tuple[np.ndarray, np.ndarray], grid: tuple[int, int], first: int) -> np.ndarray:
  """Starts from one block and always sets the block that fits best, in the mean, beside those that lie."""
  rows, columns = grid
  board = np.full((2 * rows + 1, 2 * columns + 1), -1)  # the first in the middle, a margin around
  total, sides = np.zeros((*board.shape, rows * columns)), np.zeros(board.shape)
  left = np.ones(rows * columns, bool)
  low = high = np.array(grid)
  at, block = low, first
  while True:
    board[tuple(at)], left[block] = block, False
    low, high = np.minimum(low, at), np.maximum(high, at)
    if not left.any():
      return board[low[0] : low[0] + rows, low[1] : low[1] + columns].reshape(-1)
    for step, cost in (
      ((0, 1), costs[0][block]),
      ((0, -1), costs[0][:, block]),
      ((1, 0), costs[1][block]),
      ((-1, 0), costs[1][:, block]),
    ):
      total[at[0] + step[0], at[1] + step[1]] += cost
      sides[at[0] + step[0], at[1] + step[1]] += 1
    fits = np.zeros(board.shape, bool)
    fits[high[0] - rows + 1 : low[0] + rows, high[1] - columns + 1 : low[1] + columns] = True
    cells = np.argwhere(fits & (board < 0) & (sides > 0))
    mean = total[cells[:, 0], cells[:, 1]] / sides[cells[:, 0], cells[:, 1], None]
    mean[:, ~left] = np.inf
    cell, block = (int(i) for i in np.unravel_index(np.argmin(mean), mean.shape))
    at = cells[cell]


def _total(
  costs: tuple[np.ndarray, np.ndarray], grid: tuple[int, int], arranged: np.ndarray
) -> float:
  """Returns the cost of a whole arrangement."""
  a = arranged.reshape(grid)
  return float(costs[0][a[:, :-1], a[:, 1:]].sum() + costs[1][a[:-1], a[1:]].sum())


def _swapped(arranged: np.ndarray, p: int, q: int) -> np.ndarray:
  """Returns the arrangement with two positions exchanged."""
  other = arranged.copy()
  other[[p, q]] = arranged[[q, p]]
  return other


def _swaps(
  costs: tuple[np.ndarray, np.ndarray], grid: tuple[int, int], arranged: np.ndarray
) -> np.ndarray:
  """Returns ``[P, P]``, what it would change to swap two positions; right unless they are neighbours."""
  a = arranged.reshape(grid)
  there = np.zeros((arranged.size, *grid))  # each block at each position
  there[:, :, :-1] += costs[0][:, a[:, 1:]]
  there[:, :, 1:] += costs[0].T[:, a[:, :-1]]
  there[:, :-1] += costs[1][:, a[1:]]
  there[:, 1:] += costs[1].T[:, a[:-1]]
  moved = there.reshape(arranged.size, -1)[arranged]
  here = np.diag(moved)
  return moved + moved.T - here[:, None] - here


def _polish(
  costs: tuple[np.ndarray, np.ndarray], grid: tuple[int, int], arranged: np.ndarray
) -> np.ndarray:
  """Shifts the whole, round its edges, and swaps blocks as long as either makes it cheaper."""
  cost = _total(costs, grid, arranged)
  while True:
    change = _swaps(costs, grid, arranged)
    tried_most = min(_TRIED, change.size)
    promising = np.argpartition(np.triu(change, 1), tried_most - 1, axis=None)[:tried_most]
    tried = [_swapped(arranged, *divmod(int(at), arranged.size)) for at in promising]
    reached = [_total(costs, grid, other) for other in tried]
    if min(reached) > cost - _SAME:
      tried = [
        np.roll(arranged.reshape(grid), (down, right), (0, 1)).reshape(-1)
        for down in range(grid[0])
        for right in range(grid[1])
      ]
      reached = [_total(costs, grid, other) for other in tried]
    best = int(np.argmin(reached))
    if reached[best] > cost - _SAME:
      return arranged
    arranged, cost = tried[best], reached[best]
