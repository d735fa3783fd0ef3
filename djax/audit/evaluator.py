"""How much of the originals an estimate shows: PSNR, SSIM, MSE, and what a network trained on originals recognises.

The last is the papers' measure: a *DNN examiner*, trained on originals, looks at the estimates; its success rate is its
accuracy there over its accuracy on the originals (DisguisedNets, doi:10.1145/3609506). It looks at small copies of
large images; PSNR, SSIM and MSE are those at full size.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax.attacks.common import copies
from djax.models import Cnn
from djax.ops import metrics

__all__ = ["Examiner", "Scores", "score", "ssim", "train_examiner"]

_BATCH = 128
_STEPS = 800
_CHUNK = 1000
_TOLD = 10


class Scores(NamedTuple):
  """Scores of estimates of ``t`` originals.

  Attributes:
    mse: float32 ``[t]``, squared grey levels.
    psnr: float32 ``[t]``, dB.
    ssim: float32 ``[t]``.
    accuracy: of the examiner on the estimates, 0..1.
    success: ``accuracy`` over ``plain``.
    above_chance: where ``accuracy`` lies between ``chance``, 0, and ``plain``, 1; 0 where the examiner does not beat
      chance on the originals either, so that there is nothing to measure with.
    plain: accuracy of the examiner on the originals.
    chance: accuracy of one guess for all.
  """

  mse: np.ndarray
  psnr: np.ndarray
  ssim: np.ndarray
  accuracy: float
  success: float
  above_chance: float
  plain: float
  chance: float


class Examiner:
  """A network trained on originals.

  Args:
    classify: ``images [n, H, W, C] -> labels [n]``, jitted, of copies of at most 32 pixels a side.
  """

  def __init__(self, classify: Any):
    self._classify = classify

  def labels(self, images: np.ndarray) -> np.ndarray:
    """Returns int32 ``[n]``, what the network sees in each image.

    Args:
      images: ``[n, H, W, C]`` on the 0..255 scale.
    """
    parts = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    return np.concatenate([np.asarray(self._classify(copies.small(part))) for part in parts])


def train_examiner(
  images: np.ndarray,
  labels: np.ndarray,
  *,
  classes: int,
  seed: int,
  progress: Callable[[float, str], None] = lambda fraction, word: None,
  what: str = "training the examiner",
) -> Examiner:
  """Trains an examiner on originals: a small convolutional network, some seconds to a minute on two cores.

  Of images with more than 32 pixels a side it sees copies of that size.

  Args:
    images: ``[n, H, W, C]`` on the 0..255 scale.
    labels: int ``[n]``.
    classes: number of classes.
    seed: of initial parameters and order.
    progress: told which share of the steps is done.
    what: it is told that is being done.
  """
  images = copies.small(images)
  model = Cnn(classes=classes, width=16, dropout=0.2)
  mean = np.mean(images, axis=(0, 1, 2), dtype=np.float64).astype(np.float32)
  scale = np.float32(np.std(images[:_CHUNK]) or 1)
  rng = jax.random.key(seed)
  variables = model.init(rng, jnp.zeros((1, *images.shape[1:])), train=False)
  optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, _STEPS), weight_decay=1e-3)

  def standardised(batch):
    return (batch.astype(jnp.float32) - mean) / scale

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, batch, wanted, index):
    params, stats, opt_state = state

    def loss_of(params):
      logits, updated = model.apply(
        {"params": params, "batch_stats": stats},
        standardised(batch),
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.fold_in(rng, index)},
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
      return losses.mean(), updated["batch_stats"]

    gradients, stats = jax.grad(loss_of, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), stats, opt_state

  params = variables["params"]
  state = (params, variables["batch_stats"], optimizer.init(params))
  progress(0, f"{what}: compiling")
  draw = np.random.default_rng(seed)
  for index in range(_STEPS):
    rows = draw.integers(len(images), size=min(_BATCH, len(images)))
    state = step(state, images[rows], labels[rows].astype(np.int32), index)
    if index % _TOLD == 0:
      # Steps are computed behind this loop's back: what is told is done.
      jax.block_until_ready(state)
      progress(index / _STEPS, f"{what}: step {index} of {_STEPS}")
  params, stats, _ = state

  @jax.jit
  def classify(batch):
    logits: Any = model.apply(
      {"params": params, "batch_stats": stats}, standardised(batch), train=False
    )
    return jnp.argmax(logits, axis=-1)

  return Examiner(classify)


def score(
  originals: np.ndarray, labels: np.ndarray, estimates: np.ndarray, examiner: Examiner
) -> Scores:
  """Scores estimates against the originals that the attack did not see.

  Args:
    originals: ``[t, H, W, C]``.
    labels: int ``[t]``, their classes.
    estimates: float32 ``[t, H, W, C]``.
    examiner: trained on other originals.
  """
  x, y = (jnp.asarray(images, jnp.float32) for images in (originals, estimates))
  seen = float(np.mean(examiner.labels(estimates) == labels))
  plain = float(np.mean(examiner.labels(originals) == labels))
  chance = float(np.bincount(labels).max() / len(labels))
  return Scores(
    mse=np.asarray(metrics.mse(x, y)),
    psnr=np.asarray(metrics.psnr(x, y)),
    ssim=ssim(x, y),
    accuracy=seen,
    success=seen / plain if plain else 0.0,
    above_chance=float(np.clip((seen - chance) / (plain - chance), 0, 1))
    if plain > chance
    else 0.0,
    plain=plain,
    chance=chance,
  )


_ssim = jax.jit(metrics.ssim, static_argnames="filter_size")


def ssim(originals: Any, estimates: Any) -> np.ndarray:
  """Returns the structural similarity of each image, float32 ``[n]``, with the window that small images allow.

  Args:
    originals: float32 ``[n, H, W, C]``.
    estimates: the same shape.
  """
  x, y = jnp.asarray(originals), jnp.asarray(estimates)
  return np.asarray(_ssim(x, y, filter_size=metrics.window(x.shape)))
