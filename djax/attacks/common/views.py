"""Several views of one image: how each of them lies on the first, found out from estimates of them.

View 0 is the original; others are shifted by whole pixels, mirrored beyond the edge, and mirrored left to right or not
(``djax.ops.augment.view``). Options are public, what was drawn is not.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from djax.attacks.base import Views
from djax.host import augment
from djax.ops import augment as device_augment

__all__ = ["Moves", "bring_back", "draw", "misfits", "moves", "register"]

_ROUNDS = 2
_CHUNK = 64  # images at a time


class Moves(NamedTuple):
  """The ways in which a view may lie; the first one is that of view 0.

  Attributes:
    shown: int ``[S, H * W]``: the pixel of the original that each pixel of the view shows.
    seen: int ``[S, H * W]``: a pixel of the view that shows each pixel of the original, or -1.
    shift: int ``[S]``: which of the shifts it is; a shift and its mirror image have the same number.
    by: int ``[S, 2]``: the shift, rows and columns.
  """

  shown: np.ndarray
  seen: np.ndarray
  shift: np.ndarray
  by: np.ndarray


def moves(shape: tuple[int, ...], options: Mapping[str, Any]) -> Moves:
  """Lists the shifts, and their mirror images if views are mirrored.

  Args:
    shape: of an image, ``(H, W, C)``.
    options: of ``djax.ops.augment.view``; warps are left out.
  """
  height, width = shape[:2]
  crop = options.get("crop", 0)
  steps = sorted(range(-crop, crop + 1), key=abs)
  shown, shift, by = [], [], []
  for number, (down, across) in enumerate((d, a) for d in steps for a in steps):
    rows, columns = _mirrored(np.arange(height) + down), _mirrored(np.arange(width) + across)
    for mirror in (False, True) if options.get("flip") else (False,):
      order = columns[::-1] if mirror else columns
      shown.append((rows[:, None] * width + order).ravel())
      shift.append(number)
      by.append((down, across))
  every = np.stack(shown)
  seen = np.full_like(every, -1)
  np.put_along_axis(seen, every, np.broadcast_to(np.arange(height * width), every.shape), 1)
  return Moves(every, seen, np.array(shift), np.array(by))


def _mirrored(places: np.ndarray) -> np.ndarray:
  """Folds places beyond the edge back, the edge itself not repeated."""
  size = len(places)
  places = np.abs(places)
  return np.where(places >= size, 2 * (size - 1) - places, places)


def draw(
  images: np.ndarray, *, count: int, views: Views, seed: int
) -> Iterator[tuple[slice, np.ndarray]]:
  """Makes views of images as their owner does, some images at a time.

  Args:
    images: ``[n, H, W, C]``, 0..255.
    count: K, of each image, the image itself included.
    views: how they were made.
    seed: of the draws.

  Yields:
    Which images, and their views ``[m, K, H, W, C]``; the first is the image itself.
  """
  make = functools.partial(device_augment.view, **views.options)
  every = jax.jit(jax.vmap(jax.vmap(make, (None, None, 0)), (0, 0, None)))
  rngs, uniform = jax.random.split(jax.random.key(seed), len(images)), np.random.default_rng(seed)
  for start in range(0, len(images), _CHUNK):
    part = slice(start, start + _CHUNK)
    some = images[part]
    if views.distinct:
      yield part, np.asarray(every(some, rngs[part], jnp.arange(count)))
      continue
    uniforms = uniform.random((len(some) * (count - 1), augment.DRAWS), np.float32)
    others = augment.augment(some.repeat(count - 1, 0), uniforms, **views.options)
    others = others.reshape(len(some), count - 1, *some.shape[1:])
    yield part, np.concatenate([some[:, None], others], 1)


def register(estimates: np.ndarray, ways: Moves, *, distinct: bool) -> np.ndarray:
  """Finds how each view lies: by least squares on the first, then on the mean of all as they were found to lie.

  Args:
    estimates: float32 ``[t, K, H, W, C]``, of what each view shows; the first is that of the original.
    ways: in which a view may lie.
    distinct: whether no shift comes twice before all came, as ``djax.ops.augment.view`` draws them. Then the views of
      an image are assigned to different shifts, where there are enough.

  Returns:
    int ``[t, K]``, numbers of ways; 0 for the first.
  """
  shape = estimates.shape
  chosen = np.zeros(shape[:2], int)
  others = ways.shift.max()  # besides no shift
  apart = distinct and 1 < shape[1] <= others + 1
  for start in range(0, len(estimates), _CHUNK):
    flat = estimates[start : start + _CHUNK].reshape(-1, shape[1], shape[2] * shape[3], shape[4])
    mean = flat[:, 0]
    for _ in range(_ROUNDS):
      errors = misfits(mean, flat[:, 1:], ways)
      for image, error in enumerate(errors):
        chosen[start + image, 1:] = _assigned(error, ways) if apart else error.argmin(1)
      mean = bring_back(flat, chosen[start : start + _CHUNK], ways)
  return chosen


def misfits(images: np.ndarray, views: np.ndarray, ways: Moves) -> np.ndarray:
  """Returns how far each view is from the image in each way: squares, less a number for each view.

  Args:
    images: float32 ``[t, H * W, C]``.
    views: float32 ``[t, k, H * W, C]``.
    ways: in which a view may lie.

  Returns:
    float32 ``[t, k, S]``.
  """
  looks = images[:, ways.shown].reshape(len(images), len(ways.shown), -1)  # [t, S, D]
  # |v - l|^2 less |v|^2, which is the same for all ways.
  flat = views.reshape(*views.shape[:2], -1)
  return np.square(looks).sum(-1)[:, None] - 2 * flat @ looks.swapaxes(1, 2)


def bring_back(views: np.ndarray, chosen: np.ndarray, ways: Moves) -> np.ndarray:
  """Returns the mean of views, each laid on the original: where none shows a pixel, 0.

  Args:
    views: float32 ``[t, K, H * W, C]``.
    chosen: int ``[t, K]``, as ``register`` returns it.
    ways: of them.

  Returns:
    float32 ``[t, H * W, C]``.
  """
  total = np.zeros((len(views), *views.shape[2:]), np.float32)
  count = np.zeros((len(views), views.shape[2], 1), np.float32)
  rows = np.arange(len(views))[:, None]
  for view in range(views.shape[1]):
    at = ways.seen[chosen[:, view]]  # [t, H * W]
    there = (at >= 0)[..., None]
    total += views[rows, view, np.maximum(at, 0)] * there
    count += there
  return total / np.maximum(count, 1)


def _assigned(errors: np.ndarray, ways: Moves) -> np.ndarray:
  """Returns the ways of least error ``[k, S]`` in all that have different shifts, none of them no shift."""
  shifts = np.arange(1, ways.shift.max() + 1)
  by_shift = np.stack([errors[:, ways.shift == shift].min(1) for shift in shifts], 1)
  shift = shifts[linear_sum_assignment(by_shift)[1]]
  return np.where(ways.shift == shift[:, None], errors, np.inf).argmin(1)
