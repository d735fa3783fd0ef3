"""Mixtures of InstaHide: which image each part of an encoding is, and which images explain all encodings.

A magnitude is ``|t (s_1 x_1 + ... + s_m x_m) + (1 - t) u|``: private images ``x`` in the shares ``s`` of the mixed
label, whose sum is 1, their total weight ``t``, and public images ``u`` that no label names. Those are taken for normal
noise with the mean and spread of public images, so that the mean magnitude is known in closed form. Without them ``t``
is 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax.attacks.common import fitting

__all__ = ["Crowd", "Mixtures", "assign", "crowd", "solve"]

_STEPS = 150
_BATCH = 512
_OPTIMIZER = optax.adam(optax.cosine_decay_schedule(0.03, _STEPS))
_TURNS = 3
_CHUNK = 500
_TOTALS = 46
_LEAST_TOTAL = 0.1
_LEAST_SPREAD = 1e-3
_LOOKED_AT = 2000  # encodings that the residual is taken over


class Crowd(NamedTuple):
  """What public images of weight 1 add to an encoding: ``mean`` and ``spread`` of each pixel, float32 ``[pixels]``."""

  mean: np.ndarray
  spread: np.ndarray


class Mixtures(NamedTuple):
  """Encodings that are mixed of images of different classes.

  Attributes:
    seen: magnitudes, float32 ``[n, pixels]``.
    shares: of the private images, float32 ``[n, m]``, the largest first, sum 1.
    labels: their classes, int ``[n, m]``.
    totals: weight of all private images together, float32 ``[n]``, as far as it is known.
  """

  seen: np.ndarray
  shares: np.ndarray
  labels: np.ndarray
  totals: np.ndarray


def crowd(public: np.ndarray, public_k: int) -> Crowd | None:
  """Returns what public images add together; None if there are none in an encoding.

  Args:
    public: float32 ``[p, pixels]`` in [-1, 1].
    public_k: how many of an encoding's images are public.
  """
  if not public_k:
    return None
  share = np.sqrt(2 / (public_k + 1))  # root of the mean sum of squares of weights with sum 1
  return Crowd(public.mean(0), share * public.std(0))


def assign(
  mixtures: Mixtures, images: np.ndarray, classes: np.ndarray, crowd: Crowd | None
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the images and the total weight that fit each encoding best.

  Args:
    mixtures: the encodings.
    images: private ones, float32 ``[m, pixels]`` in [-1, 1].
    classes: theirs, int ``[m]``.
    crowd: of the public images, or None.

  Returns:
    For each part of each encoding the row of an image of its class, int ``[n, m]``; and ``totals``, which without
    public images are those given.
  """
  most = np.bincount(classes).max()
  table = np.zeros((mixtures.labels.max() + 1, most), int)
  for label in np.unique(mixtures.labels):
    table[label] = np.resize(np.flatnonzero(classes == label), most)
  candidates = table[mixtures.labels]
  encodings = mixtures.seen, mixtures.shares, mixtures.totals, candidates
  chosen = [
    _chosen(*(a[s : s + _CHUNK] for a in encodings), images, crowd)
    for s in range(0, len(candidates), _CHUNK)
  ]
  parts, totals = zip(*chosen, strict=True)
  return np.concatenate(parts), np.concatenate(totals)


def solve(
  mixtures: Mixtures,
  parts: np.ndarray,
  images: np.ndarray,
  crowd: Crowd | None,
  draw: np.random.Generator,
) -> tuple[np.ndarray, float]:
  """Fits the images to all encodings by gradient descent.

  Args:
    mixtures: the encodings.
    parts: rows of ``images``, int ``[n, m]``.
    images: those to begin with, float32 ``[images, pixels]`` in [-1, 1].
    crowd: of the public images, or None.
    draw: of the batches.

  Returns:
    The images, and the root mean square of what they leave unexplained.
  """
  weights = np.zeros((len(parts), len(images)), np.float32)
  shares = mixtures.shares * mixtures.totals[:, None]
  np.add.at(weights, (np.arange(len(parts))[:, None], parts), shares)
  seen, mixed = jnp.asarray(mixtures.seen), jnp.asarray(weights)
  x = _descended(images, draw.integers(len(parts), size=(_STEPS, _BATCH)), seen, mixed, crowd)
  left = _errors(x, seen[:_LOOKED_AT], mixed[:_LOOKED_AT], crowd)
  return np.asarray(x), float(np.sqrt(np.mean(left**2)))


@jax.jit
def _chosen(
  seen: jax.Array,
  shares: jax.Array,
  totals: jax.Array,
  candidates: jax.Array,
  images: jax.Array,
  crowd: Crowd | None,
) -> tuple[jax.Array, jax.Array]:
  """Goes some times through the parts of each encoding; parts not yet chosen are the mean of their candidates."""

  def one(seen, shares, total, candidates):
    offered = images[candidates]  # [m, most, pixels]
    current = offered.mean(1)
    chosen = jnp.zeros(len(shares), jnp.int32)
    for _ in range(_TURNS):
      for part in range(len(shares)):
        rest = shares @ current - shares[part] * current[part]
        tried = total * (rest + shares[part] * offered[part])
        best = jnp.argmin(((_expected(tried, total, crowd) - seen) ** 2).sum(1))
        chosen = chosen.at[part].set(candidates[part, best])
        current = current.at[part].set(offered[part, best])
      if crowd is not None:
        totals = jnp.linspace(_LEAST_TOTAL, 1, _TOTALS)
        tried = _expected(totals[:, None] * (shares @ current), totals[:, None], crowd)
        total = totals[jnp.argmin(((tried - seen) ** 2).sum(1))]
    return chosen, total

  return jax.lax.map(lambda a: one(*a), (seen, shares, totals, candidates), batch_size=50)


@jax.jit
def _descended(
  images: jax.Array, order: jax.Array, seen: jax.Array, weights: jax.Array, crowd: Crowd | None
) -> jax.Array:
  """Takes a step on the encodings of each row of ``order``; images stay in [-1, 1]."""

  def loss(x, rows):
    # Absolute values: encodings whose parts are wrong shall not pull.
    return jnp.abs(_errors(x, seen[rows], weights[rows], crowd)).mean() * len(x)

  state = _OPTIMIZER.init(images)
  clip = lambda x: jnp.clip(x, -1, 1)  # noqa: E731
  return fitting.descend(loss, _OPTIMIZER, images, state, order, project=clip)[0]


def _errors(x: jax.Array, seen: jax.Array, weights: jax.Array, crowd: Crowd | None) -> jax.Array:
  return _expected(weights @ x, weights.sum(1, keepdims=True), crowd) - seen


def _expected(mixed: jax.Array, total: jax.Array, crowd: Crowd | None) -> jax.Array:
  """Returns the mean magnitude of what private images make together and public ones add."""
  if crowd is None:
    return jnp.abs(mixed)
  # The folded normal distribution: E|z| = s sqrt(2 / pi) exp(-m^2 / 2 s^2) + m erf(m / s sqrt(2)).
  middle = mixed + (1 - total) * crowd.mean
  spread = (1 - total) * crowd.spread + _LEAST_SPREAD
  scaled = middle / (spread * np.sqrt(2))
  return spread * np.sqrt(2 / np.pi) * jnp.exp(-(scaled**2)) + middle * jax.lax.erf(scaled)
