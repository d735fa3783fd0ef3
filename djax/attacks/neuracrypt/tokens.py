"""Tokens of NeuraCrypt: sorted by position without a key, and what they keep of the patches whatever the weights.

A token is a deterministic function of a patch and its secret position, so tokens of one position lie together. Groups
are ``[P, n, hidden]``: of each of n images one token in each group. Which group is which position is found by comparing
inner products, norms and what recurs with tokens of the attacker's own encoders.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from djax.attacks.common import assignment
from djax.attacks.common.statistics import Layout

__all__ = [
  "cut",
  "distances",
  "groups",
  "inner",
  "mean_norms",
  "named",
  "norms",
  "own",
  "places",
  "recurring",
  "symmetries",
  "uncut",
  "unit",
]

_OWN = 6  # encoders of the attacker's own, over which likeness is averaged
_GROUPED = 1000  # images that show the groups
_SWAPS = 30
_RECURRING = 0.01  # of the images, that the same token must be found in
_FLAT = 10.0  # weight of what recurs beside norms


def groups(tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Sorts tokens into groups, of each image one token in each: k-means with an assignment for each image.

  Args:
    tokens: float ``[n, P, hidden]``, in any order within an image.
    rng: of the first centres.

  Returns:
    ``[P, n, hidden]``, groups in any order.
  """
  few = tokens[rng.permutation(len(tokens))[:_GROUPED]]
  flat = few.reshape(-1, few.shape[-1])  # [n * P, hidden]
  centres = flat[rng.integers(len(flat))][None]
  while (
    len(centres) < tokens.shape[1]
  ):  # k-means++: each next centre at a chance of its squared distance
    distance = distances(flat, centres).min(1)
    chance = distance / distance.sum() if distance.sum() > 0 else None
    centres = np.concatenate([centres, flat[rng.choice(len(flat), p=chance)][None]])
  before = None
  for _ in range(_SWAPS):
    groups, labels = _sorted(few, centres)
    centres = groups.mean(1)
    if before is not None and (labels == before).all():
      break
    before = labels
  return _sorted(tokens, centres)[0]


def _sorted(tokens: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns tokens by the centre that each is assigned to, ``[P, n, h]``, and which token that is, ``[n, P]``."""
  tables = distances(tokens.reshape(-1, tokens.shape[-1]), centres)
  tables = tables.reshape(*tokens.shape[:2], len(centres))  # [n, tokens, groups]
  at = np.stack([linear_sum_assignment(table.T)[1] for table in tables])
  return np.take_along_axis(tokens, at[..., None], 1).swapaxes(0, 1), at


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns squared distances between rows, ``[n, m]``: one matrix product, which SciPy's ``cdist`` is not.

  Args:
    a: ``[n, d]``.
    b: ``[m, d]``.
  """
  squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
  return np.maximum(squares, 0)


def own(
  images: np.ndarray, patch: int, hidden: int, depth: int, rng: np.random.Generator
) -> list[np.ndarray]:
  """Encodes images by encoders of the attacker's own.

  Args:
    images: ``[n, H, W, C]`` on the 0..255 scale.
    patch: side of a patch in pixels.
    hidden: length of a token.
    depth: dense layers before the positions.
    rng: of the weights.

  Returns:
    A list of ``[P, n, hidden]``, positions row by row.
  """
  patches = cut(images.astype(np.float32), patch) / np.float32(127.5) - 1
  own = []
  for _ in range(_OWN):
    tokens = patches
    for _ in range(depth):
      tokens = np.maximum(tokens @ _dense(tokens.shape[-1], hidden, rng), 0)
    positions = rng.normal(size=tokens.shape[1:]).astype(np.float32)
    own.append((np.maximum(tokens + positions, 0) @ _dense(hidden, hidden, rng)).swapaxes(0, 1))
  return own


def _dense(inward: int, outward: int, rng: np.random.Generator) -> np.ndarray:
  """Draws the weights of a layer."""
  return (rng.normal(size=(inward, outward)) * (2 / inward) ** 0.5).astype(np.float32)


def recurring(groups: np.ndarray) -> np.ndarray:
  """Whether each vector of ``[P, n, d]`` is the most frequent of its position, up to rounding: float32 ``[n, P]``."""
  views = np.random.default_rng(0).normal(size=(groups.shape[-1], 2))
  seen = groups @ views
  grid = np.round(seen / (1e-3 * max(seen.std(), 1e-9))).astype(np.int64)
  result = np.zeros(groups.shape[1::-1], np.float32)
  for position, codes in enumerate(grid[..., 0] * (1 << 32) + grid[..., 1]):
    _, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    if counts.max() > max(2, _RECURRING * len(codes)):
      result[:, position] = inverse == counts.argmax()
  return result


def inner(groups: np.ndarray) -> np.ndarray:
  """Returns the centred inner products among images at each position, ``[P, n, n]``."""
  centred = groups - groups.mean(1, keepdims=True)
  return centred @ centred.swapaxes(1, 2)


def norms(groups: np.ndarray) -> np.ndarray:
  """Returns norms of the covariances between positions, ``[P, P]``."""
  positions, count, hidden = groups.shape
  centred = (groups - groups.mean(1, keepdims=True)).swapaxes(0, 1).reshape(count, -1)
  covariance = (centred.T @ centred / count).reshape(positions, hidden, positions, hidden)
  return np.sqrt(np.square(covariance).sum((1, 3)))


def mean_norms(own: list[np.ndarray]) -> np.ndarray:
  """Returns the geometric mean of norms over the attacker's own encoders."""
  return np.exp(np.mean([np.log(norms(tokens) + 1e-6) for tokens in own], 0))


def places(
  seen: tuple[np.ndarray, np.ndarray],
  expected: tuple[np.ndarray, np.ndarray],
  rng: np.random.Generator,
  restarts: int = 0,
) -> list[tuple[np.ndarray, float]]:
  """Finds for each group a position, from several starts.

  Args:
    seen: norms between groups, ``[P, P]``, and what recurs, ``[n, P]``.
    expected: the same of positions; of other images, or fewer.
    rng: of further starts.
    restarts: how many of them.

  Returns:
    Integers ``[P]``, the position of each group, and how well norms and what recurs then agree, for each start.
  """
  sides = []
  for norms, flat in (seen, expected):
    norms = np.log(norms + 1e-3 * max(norms.mean(), 1e-9))
    norms = (norms - norms.mean()) / max(norms.std(), 1e-9)
    sides.append((norms, flat.T @ flat / len(flat)))
  count, middle = len(sides[0][0]), sides[1][1].mean()
  layers, rows = [], []
  for norms, often in sides:
    rows.append([np.sort(norms, 1), 3 * np.diag(norms)[:, None]])
    rows[-1] += [_FLAT * np.sort(often, 1), 3 * _FLAT * np.diag(often)[:, None]]
    square = (norms, _FLAT * (often - middle))
    straight = [count**0.5 * np.diag(np.diag(layer)) for layer in square]
    layers.append(np.stack([*square, *straight]).astype(np.float32))
  distance = distances(*(np.concatenate(row, 1) for row in rows))
  guess = assignment.best_match(-distance)
  even = np.full_like(guess, 1 / count)
  starts = [guess, (guess + even) / 2, even]
  starts += [(guess[rng.permutation(count)] + even) / 2 for _ in range(restarts)]
  a, b = layers
  orders = [assignment.climb(a, b, start, symmetric=True) for start in starts]
  return [(order, assignment.agreement(a, b, order)) for order in orders]


def symmetries(rows: int, columns: int) -> list[np.ndarray]:
  """Returns the grid of positions as it is, mirrored and, if it is square, turned: integers ``[P]`` each.

  Args:
    rows: of the grid.
    columns: of the grid.
  """
  grid = np.arange(rows * columns).reshape(rows, columns)
  grids = [grid, grid.T] if rows == columns else [grid]
  return [g[:: 1 - 2 * a, :: 1 - 2 * b].ravel() for g in grids for a in (0, 1) for b in (0, 1)]


def named(seen: np.ndarray, expected: np.ndarray) -> np.ndarray:
  """Returns for each group the position at which the same images are alike, int ``[P]``.

  Args:
    seen: inner products of the groups, ``[P, n, n]``.
    expected: those of positions, of the same images in the same order.
  """
  weight = np.sqrt(np.trace(seen, axis1=1, axis2=2))
  sides = [unit(k).reshape(len(k), -1) for k in (seen, expected)]
  return linear_sum_assignment(weight[:, None] * (sides[0] @ sides[1].T), maximize=True)[1]


def unit(products: np.ndarray) -> np.ndarray:
  """Scales each layer to norm 1."""
  return products / np.maximum(np.linalg.norm(products, axis=(1, 2), keepdims=True), 1e-9)


def cut(images: np.ndarray, patch: int) -> np.ndarray:
  """Cuts images into flat patches, row by row: ``[n, P, patch * patch * C]``.

  Args:
    images: ``[n, H, W, C]``.
    patch: side of a patch in pixels; divides H and W.
  """
  return _layout(images.shape[1:], patch).units(images)[:, :, 0]


def uncut(patches: np.ndarray, shape: tuple[int, ...], patch: int) -> np.ndarray:
  """Puts patches back together, float32 ``[n, H, W, C]``.

  Args:
    patches: ``[P, n, patch * patch * C]``.
    shape: ``(H, W, C)``.
    patch: side of a patch in pixels.
  """
  return _layout(shape, patch).from_vectors(patches)


def _layout(shape: tuple[int, ...], patch: int) -> Layout:
  return Layout(shape[0] // patch, shape[1] // patch, patch, shape[2], "block")
