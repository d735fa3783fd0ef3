"""A learned inverse: from pairs alone, whatever the disguise, a linear map and a small network for what it leaves over.

Nothing about matrices, ciphers or noise is assumed. Where the blocks were moved, those are brought together whose
images are alike in the same way (the inner products among the pairs). Then ridge regressions of three sizes compete:
pixels of a row, of a block, of the whole image; in dual form where there are more pixels than pairs. A network sees the
best of them and the disguised blocks: dense layers of each position, one across positions, and convolutions. What does
best on held-out pairs is used.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from djax import schemes
from djax.attacks.base import Attack, Estimate, Known, Progress, constant_estimate
from djax.attacks.common import fitting, linear
from djax.attacks.common.statistics import Layout
from djax.host import blockwise
from djax.ops import blocks, metrics
from djax.schemes import Trait

__all__ = ["ATTACK", "Settings", "inversion"]

_VALUES = 1 << 23  # that all pairs together may have
_FOLDS = 4
_SIZES = ("row", "block", "image")  # of the vectors that linear maps take
_RIDGES = 10.0 ** np.arange(-5, 1)  # of the mean energy of a feature
_MATCHED = 256  # pairs that show which blocks belong together
_NUMBERS = 1 << 25  # inner products of them held at a time
_MARGIN = 0.25  # dB above the mean image that count as something learnt
_BEST = 100.0  # dB; exact estimates would be infinite

_ROUNDS = 8  # after each of which the held-out pairs are scored
_HIDDEN = 32
_CHANNELS = 24
_CONVOLUTIONS = 3
_GREY, _SPREAD = 127.5, 64.0
_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Settings:
  """Options, with the values it ships with."""

  pairs: int = 2000  # used at most
  network_pairs: int = 50  # below which no network is trained
  steps: int = 256  # of its training, at most
  pixels: int = 1 << 23  # seen in training at most, which bounds its time
  batch: int = 32  # images of a step
  rate: float = 2e-3  # of learning, at the start
  decay: float = 1e-2  # of the weights


_SETTINGS = Settings()


def inversion(
  known: Known, *, seed: int, progress: Progress, settings: Settings = _SETTINGS
) -> Estimate:
  """Learns to undo a disguise from known pairs by several methods; uses the one that is best on held-out pairs.

  Args:
    known: what the attacker has; used: ``pairs``.
    seed: of the parts for validation and of the network.
    progress: called with the fraction done and the current step.
    settings: the attack's constants.

  Returns:
    Estimates; as diagnostics ``pairs`` used; ``chosen``, the method; ``validation``, by method the mean PSNR on
    held-out pairs in dB, at most 100 (empty if there is nothing to hold out); ``positions``, the original position
    found for each disguised one, or None where blocks stay in place; ``seconds`` by method.
  """
  assert known.pairs is not None
  height, width, _ = known.spec["image_shape"]
  b = known.spec["block_size"]
  shape = known.targets.shape[1:]
  rows = np.random.default_rng(seed).permutation(len(known.pairs[0]))
  rows = rows[: min(settings.pairs, max(2, _VALUES // int(np.prod(shape))))]
  originals, disguised = (np.asarray(images[rows], np.float32) for images in known.pairs)
  count = len(rows)
  if count < 2:
    return constant_estimate(known, chosen="mean", validation={}, positions=None, seconds={})
  x, y = blockwise.pad_to_blocks(originals, block_size=b), disguised
  targets, places = np.asarray(known.targets, np.float32), None
  if Trait.MOVED in schemes.traits(known.spec):
    progress(0.0, "bringing blocks together")
    places = _match(*(_vectors("block", images, b) for images in (x, y)))
    y, targets = (_placed(images, places, b) for images in (y, targets))
  folds = np.arange(count) % min(count, _FOLDS)
  held = folds == 0 if count >= settings.network_pairs else np.ones(count, bool)

  def quality(images):
    shown = np.clip(images[:, :height, :width], 0, 255)
    return float(np.mean(np.minimum(metrics.psnr(originals[held], shown), _BEST)))

  crossed = {"mean": (x.sum(0) - x) / (count - 1)}  # the mean of all others
  ridges, seconds = {}, {}
  for number, size in enumerate(_SIZES):
    progress(0.1 + 0.1 * number, f"linear map of each {size}")
    start = time.perf_counter()
    crossed[size], ridges[size] = _cross(size, b, x, y, folds)
    seconds[size] = time.perf_counter() - start
  validation = {method: quality(images[held]) for method, images in crossed.items()}
  best = max(validation, key=validation.__getitem__)
  if validation[best] < validation["mean"] + _MARGIN:
    best = "mean"
  images = np.repeat(x.mean(0)[None], len(targets), 0)
  if best != "mean":
    images = _fit(best, b, x, y)(targets, ridges[best])
  chosen, warnings = best, []
  if count < settings.network_pairs:
    warnings.append(f"{count} pairs: no network below {settings.network_pairs}, linear maps alone")
  else:
    start = time.perf_counter()
    correct = _train(x, y, crossed[best], held, b, quality, seed, progress, settings)
    validation["network"] = quality(correct(y[held], crossed[best][held]))
    if validation["network"] > validation[best] + (_MARGIN if best == "mean" else 0):
      images, chosen = correct(targets, images), "network"
    seconds["network"] = time.perf_counter() - start
  if chosen == "mean":
    warnings.append(
      "nothing learnt: on held-out pairs no method is better than the mean of the others' originals, so the estimates "
      "are the mean of all"
    )
  diagnostics = {
    "pairs": count,
    "chosen": chosen,
    "validation": validation,
    "positions": None if places is None else places.tolist(),
    "seconds": seconds,
    "warnings": warnings,
  }
  return Estimate(images[:, :height, :width], diagnostics)


def _refuses(spec: Mapping[str, Any]) -> str | None:
  """Takes every disguise that has blocks."""
  if Trait.IDENTITY in schemes.traits(spec):
    return "there is nothing to invert; 'examiner' looks at the images as they are"
  if Trait.BLOCKS not in schemes.traits(spec):
    return f"it works block by block, and {spec['scheme']} has no blocks"
  return None


ATTACK = Attack(
  "inversion",
  2,
  ("pairs",),
  "an inverse learnt from pairs: linear maps and a network",
  _refuses,
  inversion,
)


class _Network(nn.Module):
  """Corrects estimates: dense layers of each position on the disguised blocks, one across positions, convolutions."""

  block_size: int

  @nn.compact
  def __call__(self, disguised: jax.Array, estimates: jax.Array) -> jax.Array:
    height, width, channels = estimates.shape[1:]
    cut = blocks.blockify(disguised, block_size=self.block_size)  # [B, P, b, b, C]
    x = cut.reshape(*cut.shape[:2], -1)  # [B, P, b * b * C]
    positions, features = x.shape[1:]
    init = nn.initializers.lecun_normal(batch_axis=(0,))
    inward = self.param("inward", init, (positions, features, _HIDDEN))
    outward = self.param("outward", nn.initializers.zeros, (positions, _HIDDEN, features))
    x = nn.gelu(jnp.einsum("npf,pfh->nph", x, inward))  # each position has weights of its own
    across = nn.Dense(positions)(x.swapaxes(1, 2)).swapaxes(1, 2)
    x = nn.LayerNorm()(x + nn.gelu(across))
    x = jnp.einsum("nph,phf->npf", x, outward).reshape(cut.shape)
    shown = estimates + blocks.unblockify(x, height=height, width=width)
    x = shown
    for _ in range(_CONVOLUTIONS):
      x = nn.gelu(nn.Conv(_CHANNELS, (3, 3))(x))
    return shown + nn.Conv(channels, (3, 3), kernel_init=nn.initializers.zeros)(x)


def _train(
  x: np.ndarray,
  y: np.ndarray,
  estimates: np.ndarray,
  held: np.ndarray,
  block_size: int,
  quality: Callable[[np.ndarray], float],
  seed: int,
  progress: Progress,
  settings: Settings,
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
  """Returns ``(disguised, estimates) -> estimates`` by the network of the round with the best score on ``held``."""
  mean, spread = y[~held].mean(0), max(float(y[~held].std()), 1e-3)
  network = _Network(block_size)
  budget = settings.pixels // (settings.batch * y.shape[1] * y.shape[2])
  steps = max(_ROUNDS, min(settings.steps, budget))
  forward = jax.jit(network.apply)

  def scaled(disguised, shown):
    return (disguised - mean) / spread, (shown - _GREY) / _SPREAD

  def correct(variables, disguised, shown):
    parts = []
    for start in range(0, len(shown), _CHUNK):
      inputs = scaled(disguised[start : start + _CHUNK], shown[start : start + _CHUNK])
      missing = min(_CHUNK, len(y)) - len(inputs[0])  # one shape, compiled once
      widths = ((0, max(0, missing)), (0, 0), (0, 0), (0, 0))
      whole = forward(variables, *(np.pad(a, widths) for a in inputs))
      parts.append(np.asarray(whole)[: len(inputs[0])] * _SPREAD + _GREY)
    return np.concatenate(parts) if parts else shown

  best, highest = None, -np.inf
  rounds = fitting.fit(
    network,
    scaled(y[~held], estimates[~held]),
    (x[~held] - _GREY) / _SPREAD,
    steps=steps,
    every=steps // _ROUNDS,
    batch=settings.batch,
    rate=settings.rate,
    decay=settings.decay,
    seed=seed,
  )
  for number, variables in enumerate(rounds):
    progress(0.4 + 0.5 * number / _ROUNDS, "training the network")
    score = quality(correct(variables, y[held], estimates[held]))
    if score > highest:
      best, highest = variables, score
  return lambda disguised, shown: correct(best, disguised, shown)


def _cross(
  size: str, block_size: int, x: np.ndarray, y: np.ndarray, folds: np.ndarray
) -> tuple[np.ndarray, float]:
  """Returns estimates of each pair by the map learnt from the other folds, and the ridge that was best for them."""
  estimates = np.empty((len(_RIDGES), *x.shape), np.float32)
  for fold in range(folds.max() + 1):
    out = folds == fold
    predict = _fit(size, block_size, x[~out], y[~out])
    for number, ridge in enumerate(_RIDGES):
      estimates[number, out] = predict(y[out], ridge)
  best = int(np.argmin([np.mean((images - x) ** 2) for images in estimates]))
  return estimates[best], float(_RIDGES[best])


def _fit(
  size: str, block_size: int, x: np.ndarray, y: np.ndarray
) -> Callable[[np.ndarray, float], np.ndarray]:
  """Returns ``(disguised, ridge) -> estimates``: ridge regression of vectors of a size."""
  maps = linear.Ridge(_vectors(size, y, block_size), _vectors(size, x, block_size))

  def predict(disguised, ridge):
    images = np.empty((len(disguised), *x.shape[1:]), np.float32)
    for start in range(0, len(disguised), _CHUNK):
      part = disguised[start : start + _CHUNK]
      vectors = maps.predict(_vectors(size, part, block_size), ridge)
      images[start : start + _CHUNK] = _images(size, vectors, part.shape, block_size)
    return images

  return predict


def _vectors(size: str, images: np.ndarray, block_size: int) -> np.ndarray:
  """Cuts images into float64 vectors ``[G, rows, d]``, G groups with one map each."""
  if size == "image":
    return images.reshape(1, len(images), -1).astype(np.float64)
  return _layout(size, images.shape, block_size).vectors(images)


def _images(size: str, vectors: np.ndarray, shape: tuple[int, ...], block_size: int) -> np.ndarray:
  """Puts vectors back into images: the inverse of ``_vectors``."""
  if size == "image":
    return vectors.reshape(shape)
  return _layout(size, shape, block_size).from_vectors(vectors)


def _layout(size: str, shape: tuple[int, ...], block_size: int) -> Layout:
  """Returns how whole blocks are cut into their rows, or left whole."""
  groups = "rows" if size == "row" else "block"
  return Layout(shape[1] // block_size, shape[2] // block_size, block_size, shape[3], groups)


def _match(originals: np.ndarray, disguised: np.ndarray) -> np.ndarray:
  """Returns for each disguised position the original one whose images are alike in the same way.

  Whatever a map does within a block, what was alike stays more or less alike: the centred inner products among the
  pairs, one list for each position, are correlated position by position, and the best assignment taken.
  """
  count = min(_MATCHED, int((_NUMBERS / len(originals)) ** 0.5))

  def likeness(vectors):
    vectors = vectors[:, :count].astype(np.float32)
    vectors = vectors - vectors.mean(1, keepdims=True)
    among = vectors @ vectors.swapaxes(1, 2)  # [P, n, n]
    lists = among[:, *np.triu_indices(among.shape[1], 1)]  # [P, n (n - 1) / 2]
    lists = lists - lists.mean(1, keepdims=True)
    return lists / np.maximum(np.linalg.norm(lists, axis=1, keepdims=True), 1e-6)

  score = likeness(disguised) @ likeness(originals).T
  return optimize.linear_sum_assignment(score, maximize=True)[1]


def _placed(images: np.ndarray, places: np.ndarray, block_size: int) -> np.ndarray:
  """Moves the blocks of disguised images back to where they were found to belong."""
  return blockwise.permute(np.argsort(places), images, block_size=block_size)
