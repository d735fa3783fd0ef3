"""First and second moments of blocks, for the attacks that need no pair: public, disguised, or guessed.

Values that share one secret matrix are a *group*; a group has several *views*, the vectors of ``n`` values that this
matrix multiplies. Moments are ``mean [G, V, n]`` and ``covariance [D, D]`` with ``D = G * V * n``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import linalg
from scipy.optimize import minimize_scalar

from djax import schemes
from djax.host import blockwise
from djax.schemes import Trait

__all__ = [
  "CHANNELS_ALIKE",
  "ROUNDING",
  "WHOLE",
  "WINDOW",
  "Layout",
  "Moments",
  "add_noise",
  "between",
  "coordinates",
  "image_model",
  "layout_of",
  "measure",
  "norms",
  "power",
  "transform",
  "within",
]

WINDOW = 3072  # values: 32 x 32 x 3; their covariance takes 75 MB in float64
WHOLE = (slice(None), slice(None))  # the window that is all of an image
CHANNELS_ALIKE = 0.95  # correlation of neighbouring channels where the matrices hide it
ROUNDING = 1 / 12  # variance of rounding to whole grey levels


class Layout(NamedTuple):
  """How a disguise groups the values of an image.

  Attributes:
    rows: of blocks.
    columns: of blocks.
    block_size: side ``b`` in pixels.
    channels: ``C``.
    groups: ``"rows"`` (a matrix for all rows of a block), ``"channel"`` (for the rows of one channel), ``"block"`` (for
      the whole block) or ``"pixels"`` (no matrix).
  """

  rows: int
  columns: int
  block_size: int
  channels: int
  groups: str

  @property
  def positions(self) -> int:
    """Number of block positions ``P``."""
    return self.rows * self.columns

  @property
  def shape(self) -> tuple[int, int, int]:
    """``(G, V, n)``."""
    b, channels = self.block_size, self.channels
    kinds = {
      "rows": (1, b * channels, b),
      "channel": (channels, b, b),
      "block": (1, 1, b * b * channels),
      "pixels": (1, b * b * channels, 1),
    }
    groups, views, side = kinds[self.groups]
    return self.positions * groups, views, side

  def units(self, images: np.ndarray) -> np.ndarray:
    """Returns images ``[B, H', W', C]`` of whole blocks as ``[B, G, V, n]``, dtype unchanged."""
    b = self.block_size
    grid = images.reshape(len(images), self.rows, b, self.columns, b, self.channels)
    return grid.transpose(0, 1, 3, *self._inner()).reshape(len(images), *self.shape)

  def images(self, units: np.ndarray) -> np.ndarray:
    """Returns units as images: the inverse of ``units``."""
    b, inner = self.block_size, self._inner()
    axes = (0, 1, 3, *inner)
    sizes = (len(units), self.rows, b, self.columns, b, self.channels)
    grid = units.reshape([sizes[a] for a in axes]).transpose(np.argsort(axes))
    return grid.reshape(len(units), self.rows * b, self.columns * b, self.channels)

  def vectors(self, images: np.ndarray) -> np.ndarray:
    """Returns the vectors that the matrix of each group multiplies, float64 ``[G, B * V, n]``."""
    groups, _, side = self.shape
    return self.units(images).swapaxes(0, 1).reshape(groups, -1, side).astype(np.float64)

  def from_vectors(self, vectors: np.ndarray) -> np.ndarray:
    """Returns vectors as float32 images: the inverse of ``vectors``."""
    groups, views, side = self.shape
    units = vectors.reshape(groups, -1, views, side).swapaxes(0, 1)
    return self.images(units.astype(np.float32))

  def windows(self, values: int = WINDOW) -> list[tuple[slice, slice, "Layout"]]:
    """Returns pieces of the image small enough for a covariance of all their values: rows and columns of pixels."""
    b, rows, columns = self.block_size, self.rows, self.columns
    if rows * columns * b * b * self.channels > values:
      side = max(1, int((values / self.channels) ** 0.5) // b)
      rows, columns = min(rows, side), min(columns, side)
    pieces = []
    for top in range(0, self.rows, rows):
      for left in range(0, self.columns, columns):
        part = self._replace(
          rows=min(rows, self.rows - top), columns=min(columns, self.columns - left)
        )
        down = slice(top * b, (top + part.rows) * b)
        pieces.append((down, slice(left * b, (left + part.columns) * b), part))
    return pieces

  def _inner(self) -> tuple[int, int, int]:
    """Returns the order of row, pixel and channel within a block; a channel comes first where it splits views."""
    if self.groups in ("block", "pixels"):
      return 2, 4, 5
    return (5, 2, 4) if self.groups == "channel" else (2, 5, 4)


class Moments(NamedTuple):
  """Mean float64 ``[G, V, n]`` and covariance float32 ``[D, D]``."""

  mean: np.ndarray
  covariance: np.ndarray


def layout_of(spec: Mapping[str, Any]) -> Layout:
  """Returns the layout of a spec of a linear scheme."""
  height, width, channels = spec["image_shape"]
  b = spec["block_size"]
  groups = "pixels"
  if Trait.MATRICES in schemes.traits(spec):
    groups = "block" if spec["mix"] == "block" else "channel" if spec["per_channel"] else "rows"
  return Layout(-(-height // b), -(-width // b), b, channels, groups)


def measure(
  layout: Layout,
  images: np.ndarray,
  window: tuple[slice, slice] = WHOLE,
  *,
  chunk: int = 2048,
) -> Moments:
  """Measures the moments of images.

  Args:
    layout: of the window.
    images: ``[n, H, W, C]``, uint8 or float, n at least 1; padded to whole blocks if need be.
    window: rows and columns of pixels to look at.
    chunk: images summed up at a time.
  """
  size = np.prod(layout.shape)
  total, products = np.zeros(size), np.zeros((size, size))
  shift = np.zeros(size, np.float32)
  for start in range(0, len(images), chunk):
    part = blockwise.pad_to_blocks(images[start : start + chunk], block_size=layout.block_size)
    x = layout.units(part[:, *window]).reshape(len(part), size).astype(np.float32)
    if start == 0:
      shift = x.mean(0)  # sums of small numbers lose less in float32
    x -= shift
    total += x.sum(0, dtype=np.float64)
    products += x.T @ x
  mean = total / len(images)
  covariance = (products / len(images) - np.outer(mean, mean)).astype(np.float32)
  return Moments((mean + shift).reshape(layout.shape), covariance)


def transform(moments: Moments, matrices: np.ndarray) -> Moments:
  """Returns the moments after every group is multiplied by its matrix from the right.

  Args:
    moments: of some images.
    matrices: ``[G, n, n]``, one a group.
  """
  half = _times(moments.covariance, matrices, moments.mean.shape)  # S R, then (S R)' R = R' S R
  covariance = _times(half.T, matrices, moments.mean.shape)
  return moments._replace(mean=moments.mean @ matrices, covariance=covariance)


def within(moments: Moments) -> np.ndarray:
  """Returns the covariance within each group, averaged over its views: float64 ``[G, n, n]``."""
  groups, views, side = moments.mean.shape
  split = moments.covariance.reshape(groups, views, side, groups, views, side)
  return np.einsum("gvigvj->gij", split).astype(np.float64) / views


def between(x: Moments, y: Moments, matrices: np.ndarray) -> np.ndarray:
  """Returns ``M_k = sum over l of X[k, l] R_l Y[k, l]'``, means included: float64 ``[G, n, n]``.

  Its polar factor is the orthogonal matrix of group k that fits best if all others are right.

  Args:
    x: moments of originals.
    y: moments of disguised images.
    matrices: ``[G, n, n]``, the ``R_l``.
  """
  groups, views, side = x.mean.shape
  moved = _times(x.covariance, matrices, x.mean.shape).reshape(groups, views, side, -1)
  other = y.covariance.reshape(groups, views, side, -1)
  result = x.mean.swapaxes(1, 2) @ y.mean
  for v in range(views):
    result += moved[:, v] @ other[:, v].swapaxes(1, 2)
  return result


def norms(moments: Moments) -> np.ndarray:
  """Returns the covariances of views: for ``n > 1`` their Frobenius norms, which no orthogonal matrix changes.

  Returns:
    float32 ``[G, V, G, V]``.
  """
  groups, views, side = moments.mean.shape
  if side == 1:
    return moments.covariance.reshape(groups, views, groups, views)
  return _frobenius(moments.covariance, side).reshape(groups, views, groups, views)


def add_noise(moments: Moments, variance: float) -> Moments:
  """Returns the moments with independent noise of a variance and mean 0 added to all values."""
  covariance = moments.covariance.copy()
  covariance[np.diag_indices(len(covariance))] += np.float32(variance)
  return moments._replace(covariance=covariance)


def power(matrices: np.ndarray, exponent: float) -> np.ndarray:
  """Returns powers of positive semidefinite matrices; empty directions are kept finite.

  Args:
    matrices: ``[G, n, n]``.
    exponent: such as -0.5 for whitening.
  """
  values, vectors = np.linalg.eigh(matrices)
  floor = np.maximum(1e-7 * values[:, -1:], 1e-6)
  scaled = vectors * (np.maximum(values, floor) ** exponent)[:, None, :]
  return scaled @ vectors.swapaxes(1, 2)


def image_model(layout: Layout, disguised: Moments, noise: float) -> tuple[Moments, dict[str, Any]]:
  """Guesses the moments of the originals from those of orthogonally disguised images alone.

  An image is a separable AR(1) field: pixels a step apart correlate by rho, channels by a factor. Traces and norms of
  covariances survive the matrices; they give each view its variance and the channels their correlation, and rho is what
  fits the norms best. A view's mean is flat, and its length survives too.

  Args:
    layout: of the disguised images.
    disguised: their moments, the mean of noise after the projection already taken off.
    noise: variance of the noise.

  Returns:
    The moments, noise not included in the covariance, and ``rho`` and ``channels`` (their correlations).
  """
  side, channels = disguised.mean.shape[-1], layout.channels
  observed = add_noise(disguised, -noise).covariance
  variance = np.maximum(np.diag(observed).reshape(-1, side).mean(1), ROUNDING)
  correlation = _frobenius(observed, side) / np.sqrt(np.outer(variance, variance)) / side
  rows, columns, channel = coordinates(layout)
  alike = CHANNELS_ALIKE ** np.abs(np.subtract.outer(np.arange(channels), np.arange(channels)))
  if layout.groups != "block":
    of_view = channel[::side]
    norm = np.maximum(_by_channel(correlation, of_view, channels), 1e-9)
    alike = np.minimum(1, norm / np.sqrt(np.outer(np.diag(norm), np.diag(norm))))

  def correlations(rho, places):
    side = np.arange(places.max() + 1)
    return linalg.toeplitz(rho**side)[places][:, places]

  def field(rho):
    # Separable: the correlation of two values is the product of those of rows, columns and channels.
    down, across = correlations(rho, rows), correlations(rho, columns)
    return (down * across * alike[channel][:, channel]).astype(np.float32)

  def misfit(rho):
    return float(np.square(_frobenius(field(rho), side) / side - correlation).mean())

  fit = minimize_scalar(misfit, bounds=(0.7, 0.995), method="bounded", options={"xatol": 2e-3})
  scale = np.repeat(np.sqrt(variance), side).astype(np.float32)
  covariance = field(fit.x) * scale * scale[:, None]
  level = np.sqrt(np.square(disguised.mean).mean(-1, keepdims=True))
  diagnostics = {
    "rho": round(float(fit.x), 4),
    "channels": np.round(alike.astype(np.float64), 3).tolist(),
  }
  return Moments(np.broadcast_to(level, disguised.mean.shape), covariance), diagnostics


def coordinates(layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns row, column and channel of each value, int ``[D]`` each, in the order of the moments."""
  b, channels = layout.block_size, layout.channels
  shape = (layout.rows * b, layout.columns * b, channels)
  order = layout.units(np.arange(np.prod(shape)).reshape(1, *shape)).ravel()
  rows, columns, channel = np.unravel_index(order, shape)
  return rows, columns, channel


def _times(covariance: np.ndarray, matrices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Multiplies the columns of every group by its matrix."""
  groups, views, side = shape
  columns = covariance.reshape(-1, groups, views, side).transpose(1, 0, 2, 3)
  moved = columns.reshape(groups, -1, side) @ matrices.astype(np.float32)
  return moved.reshape(groups, -1, views, side).transpose(1, 0, 2, 3).reshape(covariance.shape)


def _frobenius(covariance: np.ndarray, side: int) -> np.ndarray:
  """Returns the Frobenius norm of every ``side``-square block."""
  views = len(covariance) // side
  blocks = covariance.reshape(views, side, views, side)
  return np.sqrt(np.einsum("aibj,aibj->ab", blocks, blocks))


def _by_channel(correlation: np.ndarray, of_view: np.ndarray, channels: int) -> np.ndarray:
  """Averages the norms of covariances between the channels of the same rows: ``[C, C]``."""
  views = [np.flatnonzero(of_view == c) for c in range(channels)]
  return np.array([[correlation[a, b].mean() for b in views] for a in views])
