"""Several views of one image, once the matrices are undone: place each on the first, solve for what all show.

Each view has noise of its own, so K of them leave about the noise of level ``N / sqrt(K)``.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from scipy import sparse
from scipy.sparse import linalg

from djax import schemes
from djax.attacks.base import Views
from djax.attacks.common import denoise, views
from djax.schemes import Trait

__all__ = [
  "MOST",
  "Prior",
  "combine",
  "estimate",
  "has_white_noise",
  "prior",
  "register",
  "rehearsed",
  "smooth",
]

MOST = 4096  # values of an image whose covariance is measured as a whole

_FITS = 20
_STEPS, _SETTLED = 200, 1e-4
_DAMPING = 1e-2
_REHEARSED = 4000  # views of public images in all
_CLEAN = 45.0  # dB


class Prior(NamedTuple):
  """What the attacker knows of a kind of image.

  Attributes:
    mean: float32 ``[D]``.
    root: float32 ``[D]``, standard deviations along the vectors.
    vectors: float32 ``[D, D]``, those of the covariance, in columns.
  """

  mean: np.ndarray
  root: np.ndarray
  vectors: np.ndarray


def has_white_noise(spec: Mapping[str, Any]) -> bool:
  """Returns whether the noise is white once the matrices are undone: not where it came after projection matrices.

  Args:
    spec: ``SchemeSpec.to_dict()``.
  """
  if Trait.MATRICES not in schemes.traits(spec):
    return False
  return spec["noise_place"] == "before" or spec["matrix"] == "orthogonal"


def smooth(images: np.ndarray, kind: Prior, variance: float) -> np.ndarray:
  """Takes white noise off by the linear filter of least squared error.

  Args:
    images: float32 ``[n, H, W, C]``.
    kind: of images.
    variance: of the noise.

  Returns:
    float32 ``[n, H, W, C]``.
  """
  # S (S + v I)^-1 (x - mean) + mean, by the eigenvectors of S; what ``combine`` comes to for one view that lies still.
  gain = kind.root**2 / (kind.root**2 + variance)
  weights = (kind.vectors * gain) @ kind.vectors.T
  centred = images.reshape(len(images), -1) - kind.mean
  return np.clip(centred @ weights + kind.mean, 0, 255).reshape(images.shape).astype(np.float32)


def estimate(
  raw: np.ndarray, single: np.ndarray, kind: Prior, options: Mapping[str, Any], level: float
) -> np.ndarray:
  """Estimates originals from single estimates of all their views.

  Args:
    raw: float32 ``[t, K, H, W, C]``, views with their noise less its mean; the first lies as the original.
    single: float32 ``[t, K, H, W, C]``, the same without noise as far as one view shows it.
    kind: of images.
    options: of ``djax.ops.augment.view``.
    level: of the noise, N: uniform on ``[0, N)``.

  Returns:
    float32 ``[t, H, W, C]``.
  """
  height, width = raw.shape[2:4]
  still = np.moveaxis(np.indices((height, width)), 0, -1).astype(np.float32)
  still = np.broadcast_to(still, (len(raw), 1, *still.shape))
  others = register(single[:, 0], single[:, 1:], options)
  return combine(raw, np.concatenate([still, others], 1), kind, level**2 / 12)


def rehearsed(
  raw: np.ndarray,
  single: np.ndarray | None,
  public: np.ndarray,
  seen: Views,
  level: float,
  seed: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Estimates originals from all their views, and does the same to views that are made of public images.

  Args:
    raw: as for ``estimate``.
    single: as for ``estimate``; None for those of the linear filter.
    public: ``[m, H, W, C]``, 0..255; the first of them are rehearsed, the others say what images are like.
    seen: how the views of the targets were made.
    level: of the noise, N.
    seed: of the views of public images and their noise.

  Returns:
    float32 ``[t, H, W, C]`` and ``[r, H, W, C]``, of the first r public images; r is 0 where little noise is left.
  """
  count = raw.shape[1]
  # Where less noise is left than a network could take off, nothing is rehearsed.
  left = 20 * np.log10(255) - 10 * np.log10(level**2 / 12 / count)
  some = public[: min(denoise.count(public), _REHEARSED // count) if left < _CLEAN else 0]
  kind = prior(public[len(some) :])
  noise = np.random.default_rng(seed)
  parts = [np.zeros((0, *raw.shape[2:]), np.float32)]

  def clear(noisy: np.ndarray) -> np.ndarray:
    return smooth(noisy.reshape(-1, *noisy.shape[2:]), kind, level**2 / 12).reshape(noisy.shape)

  for _, looks in views.draw(some, count=count, views=seen, seed=seed):
    noisy = looks + (noise.random(looks.shape, np.float32) - np.float32(0.5)) * np.float32(level)
    parts.append(estimate(noisy, clear(noisy), kind, seen.options, level))
  single = clear(raw) if single is None else single
  return estimate(raw, single, kind, seen.options, level), np.concatenate(parts)


def register(first: np.ndarray, others: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
  """Registers views on the first one: a shift and a mirror, and for warped views an affine map near it.

  Args:
    first: float32 ``[t, H, W, C]``, estimates of view 0.
    others: float32 ``[t, k, H, W, C]``, of other views of the same images.
    options: of ``djax.ops.augment.view``; they are public.

  Returns:
    float32 ``[t, k, H, W, 2]``: row and column of the first view that each pixel of another shows.
  """
  height, width = first.shape[1:3]
  ways = views.moves(first.shape[1:], options)
  best = []
  for image, further in zip(first, others, strict=True):
    flat = further.reshape(1, len(further), height * width, -1)
    best.append(views.misfits(image.reshape(1, height * width, -1), flat, ways)[0].argmin(1))
  chosen = np.stack(best)
  if not any(options.get(name) for name in ("rotate", "scale", "shear")):
    maps = np.stack(np.divmod(ways.shown, width), -1).reshape(-1, height, width, 2)
    return maps[chosen].astype(np.float32)
  start = ways.by[chosen].astype(np.float32)
  return np.clip(_refined(first, others, start), 0, np.array([height - 1, width - 1], np.float32))


def prior(public: np.ndarray) -> Prior:
  """Measures public images.

  Args:
    public: ``[m, H, W, C]``.
  """
  seen = public.reshape(len(public), -1).astype(np.float32)
  mean = seen.mean(0)
  values, vectors = np.linalg.eigh((seen - mean).T @ (seen - mean) / len(seen))
  return Prior(mean, np.sqrt(np.maximum(values, 0)), vectors)


def combine(images: np.ndarray, places: np.ndarray, kind: Prior, variance: float) -> np.ndarray:
  """Returns the best linear estimate of what all views show; of one view, that of ``moments``.

  Args:
    images: float32 ``[t, K, H, W, C]`` with white noise.
    places: float32 ``[t, K, H, W, 2]``: row and column of the original that each pixel shows, bilinear.
    kind: of images.
    variance: of the noise.

  Returns:
    float32 ``[t, H, W, C]``, cut to 0..255.
  """
  count, number, *shape = images.shape
  size = len(kind.mean)
  looks = _looks(places)
  again = (looks.T @ looks).tocsr()

  def seen_again(u: np.ndarray) -> np.ndarray:
    x = ((u.reshape(count, size) * kind.root) @ kind.vectors.T).reshape(-1, shape[-1])
    return ((again @ x).reshape(count, size) @ kind.vectors * kind.root).ravel() + variance * u

  # The inverse, were every pixel seen once a view.
  guess = np.tile(1 / (number * kind.root**2 + variance), count)
  mean = np.tile(kind.mean, count).reshape(-1, shape[-1])
  rest = images.reshape(-1, shape[-1]) - looks @ mean
  wanted = ((looks.T @ rest).reshape(count, size) @ kind.vectors * kind.root).ravel()
  operator, nearly = (
    linalg.LinearOperator((count * size,) * 2, matvec=call, dtype=np.float32)
    for call in (seen_again, lambda u: guess * u)
  )
  solution, _ = linalg.cg(operator, wanted, M=nearly, rtol=_SETTLED, maxiter=_STEPS)
  estimates = (solution.reshape(count, size) * kind.root) @ kind.vectors.T + kind.mean
  return np.clip(estimates, 0, 255).reshape(count, *shape).astype(np.float32)


def _looks(places: np.ndarray) -> sparse.csr_matrix:
  """Returns the matrix that makes all views of all images, ``[t K H W, t H W]``."""
  count, number, height, width, _ = places.shape
  low = np.floor(places).astype(int)
  part = places - low
  target = np.arange(count)[:, None, None, None]
  weights, columns = [], []
  for down in (0, 1):
    for across in (0, 1):
      row = np.minimum(low[..., 0] + down, height - 1)
      column = np.minimum(low[..., 1] + across, width - 1)
      columns.append(((target * height + row) * width + column).ravel())
      weight = np.abs(1 - down - part[..., 0]) * np.abs(1 - across - part[..., 1])
      weights.append(weight.ravel())
  rows = np.tile(np.arange(count * number * height * width), 4)
  entries = (np.concatenate(weights), (rows, np.concatenate(columns)))
  looks = sparse.csr_matrix(entries, (count * number * height * width, count * height * width))
  looks.eliminate_zeros()  # of shifts by whole pixels, three of four
  return looks


@jax.jit
def _refined(first: jax.Array, others: jax.Array, start: jax.Array) -> jax.Array:
  """Fits affine maps by damped Gauss-Newton steps from shifts ``[t, k, 2]``; keeps the shift where that fits better."""
  height, width = first.shape[1:3]
  centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
  grid = jnp.stack(jnp.mgrid[:height, :width], -1) - centre

  def places(map_: jax.Array) -> jax.Array:
    return grid @ map_[:, :2].T + map_[:, 2] + centre

  def fit(image: jax.Array, other: jax.Array, shift: jax.Array) -> jax.Array:
    def rest(map_: jax.Array) -> jax.Array:
      at = jnp.moveaxis(places(map_.reshape(2, 3)), -1, 0)
      read = functools.partial(map_coordinates, coordinates=list(at), order=1, mode="nearest")
      return (jax.vmap(read, -1, -1)(image) - other).ravel()

    def step(map_: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
      slope, error = jax.jacfwd(rest)(map_), rest(map_)
      square = slope.T @ slope
      square = square + jnp.diag(_DAMPING * jnp.diag(square) + 1e-6)
      return map_ - jnp.linalg.solve(square, slope.T @ error), jnp.sum(error**2)

    begin = jnp.concatenate([jnp.eye(2), shift[:, None]], 1).ravel()
    end, _ = jax.lax.scan(step, begin, None, length=_FITS)
    better = jnp.sum(rest(end) ** 2) < jnp.sum(rest(begin) ** 2)
    return places(jnp.where(better, end, begin).reshape(2, 3))

  return jax.vmap(jax.vmap(fit, (None, 0, 0)))(first, others, start)
