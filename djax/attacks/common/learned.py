"""Inverses that are learnt from features: a ridge regression, and a dense network that corrects it where that helps."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np

from djax.attacks.base import Progress
from djax.attacks.common import fitting, linear

__all__ = ["GREY", "SPREAD", "USUAL", "Settings", "learn", "ridge"]

GREY, SPREAD = 127.5, 64.0
_RIDGES = 10.0 ** np.arange(-4, 3)  # of the mean energy of a feature
_EVERY = 100  # steps between two calls of ``progress``
_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of the network and its training."""

  hidden: int = 512  # width of the network
  steps: int = 1200  # of its training, at most
  pixels: int = 1 << 27  # seen in training at most, which bounds its time
  batch: int = 64  # images of a step
  rate: float = 1e-3  # of learning, at the start
  decay: float = 1e-2  # of the weights


USUAL = Settings()


class _Network(nn.Module):
  """Corrects estimates by dense layers on the whole image."""

  hidden: int
  outputs: int

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    x = nn.gelu(nn.Dense(self.hidden)(features))
    x = x + nn.gelu(nn.Dense(self.hidden)(nn.LayerNorm()(x)))
    return nn.Dense(self.outputs, kernel_init=nn.initializers.zeros)(x)


def ridge(
  seen: np.ndarray, wanted: np.ndarray, rows: np.ndarray, out: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns the ridge regression that does best on held-out rows.

  Args:
    seen: float32 ``[n, F]``.
    wanted: float32 ``[n, D]``.
    rows: bool ``[n]``, learnt from.
    out: bool ``[n]``, held out.
  """
  maps = linear.Ridge(seen[rows], wanted[rows])
  best = _RIDGES[maps.errors(seen[out], wanted[out], _RIDGES).argmin()]
  weights = maps.weights(best).astype(np.float32)
  middle, mean = seen[rows].mean(0), wanted[rows].mean(0)
  return lambda new: (new - middle) @ weights + mean


def learn(
  seen: np.ndarray,
  more: np.ndarray | None,
  wanted: np.ndarray,
  rows: np.ndarray,
  out: np.ndarray,
  *,
  seed: int,
  progress: Progress,
  settings: Settings,
) -> Callable[..., np.ndarray]:
  """Learns ``(seen, more) -> wanted``: with the network, or without where that does better on held-out rows.

  Args:
    seen: float32 ``[n, F]`` of about unit size, for the ridge regression and the network.
    more: float32 ``[n, G]``, for the network alone; or None.
    wanted: float32 ``[n, D]``, 0..255.
    rows: bool ``[n]``, learnt from.
    out: bool ``[n]``, held out.
    seed: of the network.
    progress: called with the fraction done and the current step.
    settings: of the network.

  Returns:
    ``(seen, more=None) -> float32 [m, D]``, 0..255.
  """
  base = ridge(seen, wanted, rows, out)
  network = _Network(settings.hidden, wanted.shape[1])
  forward = jax.jit(network.apply)

  def inputs(seen, more, shown):
    parts = (
      [seen, (shown - GREY) / SPREAD] if more is None else [seen, more, (shown - GREY) / SPREAD]
    )
    return np.concatenate(parts, 1)

  shown = base(seen)
  steps = max(50, min(settings.steps, settings.pixels // (settings.batch * wanted.shape[1])))
  rounds = fitting.fit(
    network,
    [inputs(seen, more, shown)[rows]],
    ((wanted - shown) / SPREAD)[rows],
    steps=steps,
    every=_EVERY,
    batch=settings.batch,
    rate=settings.rate,
    decay=settings.decay,
    seed=seed,
  )
  for number, trained in enumerate(rounds):
    variables = trained
    progress(min(1, number * _EVERY / steps), "training the network")

  def corrected(seen, more):
    shown = base(seen)
    return shown + np.asarray(forward(variables, inputs(seen, more, shown))) * SPREAD

  def error(estimates):
    return float(np.square(np.clip(estimates, 0, 255) - wanted[out]).mean())

  held = seen[out], None if more is None else more[out]
  helps = error(corrected(*held)) < error(shown[out])

  def predict(seen, more=None):
    parts = []
    for start in range(0, len(seen), _CHUNK):
      part = slice(start, start + _CHUNK)
      few = seen[part], None if more is None else more[part]
      parts.append(corrected(*few) if helps else base(few[0]))
    flat = np.concatenate(parts) if parts else np.zeros((0, wanted.shape[1]), np.float32)
    return np.clip(flat, 0, 255).astype(np.float32)

  return predict
