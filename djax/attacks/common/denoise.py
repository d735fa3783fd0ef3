"""A small network that takes off the noise that a linear filter leaves, learnt from public images under such noise."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from djax.attacks.base import Progress
from djax.attacks.common import fitting
from djax.attacks.common.learned import GREY, SPREAD
from djax.ops import metrics

__all__ = ["USUAL", "Settings", "count", "improve", "rehearse"]

_PUBLIC = 1000  # images that are learnt from, at most
_SHARE = 3  # of all public images: one in so many
_VALUES = 1 << 25  # that all of these may have
_HELD = 4  # one in so many is held out
_SIDE = 32  # of the patches that are learnt from
_ROUNDS = 4  # after each of which what is held out is scored
_CHUNK = 100
_BEST = 100.0  # dB; exact estimates would be infinite
_EXACT = 60.0  # dB, from which on there is no noise to take off
_FEW = 50  # images, below which no network is trained


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of the network and its training."""

  channels: int = 16
  convolutions: int = 3
  steps: int = 256  # at most
  pixels: int = 1 << 22  # seen at most, which bounds the time
  batch: int = 32  # patches of a step
  rate: float = 3e-3  # of learning, at the start
  decay: float = 1e-3  # of the weights


USUAL = Settings()


class _Network(nn.Module):
  """Adds a correction to the last channels of its input."""

  channels: int
  convolutions: int
  outputs: int

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    x = images
    for _ in range(self.convolutions):
      x = nn.gelu(nn.Conv(self.channels, (3, 3))(x))
    change = nn.Conv(self.outputs, (3, 3), kernel_init=nn.initializers.zeros)(x)
    return images[..., -self.outputs :] + change


def count(public: np.ndarray) -> int:
  """Returns how many public images are rehearsed; the others say what images are like, as they do for targets.

  Args:
    public: ``[m, H, W, C]``.
  """
  return min(len(public) // _SHARE, _PUBLIC, max(_FEW, _VALUES // max(1, public[0].size)))


def rehearse(public: np.ndarray, level: float, seed: int) -> np.ndarray:
  """Adds noise to public images, less its mean.

  Args:
    public: ``[m, H, W, C]``, 0..255.
    level: N, of the noise, uniform on ``[0, N)``.
    seed: of the draws.

  Returns:
    float32 ``[count, H, W, C]``, the first of them with noise.
  """
  some = public[: count(public)]
  draw = np.random.default_rng(seed).random(some.shape, np.float32)
  return some + (draw - np.float32(0.5)) * np.float32(level)


def _quality(wanted: np.ndarray, images: np.ndarray) -> float:
  """Returns the mean PSNR in dB, of each image at most 100."""
  found = np.asarray(metrics.psnr(*(np.clip(each, 0, 255) for each in (wanted, images))))
  return float(np.mean(np.minimum(found, _BEST)))


def improve(
  estimates: Mapping[str, np.ndarray],
  rehearsed: Mapping[str, np.ndarray],
  public: np.ndarray,
  *,
  seed: int,
  progress: Progress,
  settings: Settings = USUAL,
) -> tuple[np.ndarray, dict[str, Any]]:
  """Returns the best of some estimates and of what a network makes of them, by public images that are held out.

  With too few of these it is the last of the estimates.

  Args:
    estimates: by method, float32 ``[t, H, W, C]``; the network corrects the last.
    rehearsed: the same of public images, float32 ``[m, H, W, C]``.
    public: the originals of these, and perhaps more.
    seed: of the network.
    progress: called with the fraction done and the current step.
    settings: of the network.

  Returns:
    float32 ``[t, H, W, C]``, 0..255; and ``method``, with ``validation``: of each method the mean PSNR in dB on public
    images held out.
  """
  wanted = public[: len(next(iter(rehearsed.values())))]
  if len(wanted) < _FEW:
    method = list(estimates)[-1]
    return np.clip(estimates[method], 0, 255), {"method": method, "validation": {}}
  held = _held(len(wanted))
  validation = {name: _quality(wanted[held], shown[held]) for name, shown in rehearsed.items()}
  best = max(validation, key=validation.__getitem__)
  if validation[best] >= _EXACT:
    return np.clip(estimates[best], 0, 255), {"method": best, "validation": validation}
  noisy, shown = (np.concatenate([*each.values()], -1) for each in (rehearsed, estimates))
  correct, validation["network"] = _learn(noisy, wanted, seed, progress, settings)
  if validation["network"] > validation[best]:
    return correct(shown), {"method": "network", "validation": validation}
  return np.clip(estimates[best], 0, 255), {"method": best, "validation": validation}


def _learn(
  noisy: np.ndarray, wanted: np.ndarray, seed: int, progress: Progress, settings: Settings
) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
  """Trains the network; returns it as it was after the best of the rounds, and its quality.

  Args:
    noisy: float32 ``[m, H, W, c]``; the last C channels are estimates, which are corrected.
    wanted: ``[m, H, W, C]``, 0..255.
    seed: of the network and of the patches.
    progress: called with the fraction done and the current step.
    settings: of the network.
  """
  held = _held(len(wanted))
  network = _Network(settings.channels, settings.convolutions, wanted.shape[-1])
  seen, goals = _patches(_scaled(noisy[~held]), _scaled(wanted[~held]), seed)
  most = settings.pixels // (settings.batch * seen.shape[1] * seen.shape[2])
  steps = max(_ROUNDS, min(settings.steps, most))
  forward = jax.jit(network.apply)

  def estimates(variables: Any, images: np.ndarray) -> np.ndarray:
    parts = [_scaled(images[s : s + _CHUNK]) for s in range(0, len(images), _CHUNK)]
    shown = np.concatenate([np.asarray(forward(variables, part)) for part in parts])
    return np.clip(shown * SPREAD + GREY, 0, 255)

  rounds = fitting.fit(
    network,
    [seen],
    goals,
    steps=steps,
    every=-(-steps // _ROUNDS),
    batch=settings.batch,
    rate=settings.rate,
    decay=settings.decay,
    seed=seed,
  )
  best, highest = None, -np.inf
  for number, variables in enumerate(rounds):
    progress(number / _ROUNDS, "training a network against noise")
    score = _quality(wanted[held], estimates(variables, noisy[held]))
    if score > highest:
      best, highest = variables, score
  return lambda images: estimates(best, images), highest


def _held(count: int) -> np.ndarray:
  """Returns which images are not learnt from, bool ``[count]``."""
  return np.arange(count) % _HELD == 0


def _scaled(images: np.ndarray) -> np.ndarray:
  return ((images - GREY) / SPREAD).astype(np.float32)


def _patches(noisy: np.ndarray, wanted: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Cuts the same patches out of both, of each image as many as fit side by side."""
  count, height, width = noisy.shape[:3]
  down, across = min(_SIDE, height), min(_SIDE, width)
  rows = np.tile(np.arange(count), (height // down) * (width // across))
  draw = np.random.default_rng(seed)
  top = draw.integers(height - down + 1, size=len(rows))
  left = draw.integers(width - across + 1, size=len(rows))
  cuts = [
    (row, slice(y, y + down), slice(x, x + across))
    for row, y, x in zip(rows, top, left, strict=True)
  ]
  return np.stack([noisy[cut] for cut in cuts]), np.stack([wanted[cut] for cut in cuts])
