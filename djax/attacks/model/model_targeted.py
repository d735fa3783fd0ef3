"""Attacks on the trained network: does it betray a class it was trained on, and can it be asked for images?

Membership of single records is in ``djax.attacks.model.membership``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax.attacks.model import membership
from djax.errors import ConfigError

__all__ = ["class_membership", "fano_factor", "invert"]

_STEPS = 200
_RATE = 0.1
_RADIUS = 3.0  # standard deviations from the mean image
_EXAMPLES = 1000


def fano_factor(labels: np.ndarray, *, classes: int) -> float:
  """Returns the variance of the histogram of predicted labels over its mean.

  0 if all labels are predicted equally often, ``n (1 - 1 / K)`` if one label is predicted for all. It grows with
  ``n``: compare equal numbers of queries only. The papers name this measure for the queries of one class; their full
  text was not at hand, so this is our reading: counts of all ``K`` labels, those that never came included, and the
  population variance, divided by ``K``.

  Args:
    labels: int ``[n]``, predicted; ``n`` at least 1.
    classes: number of labels ``K``.

  Raises:
    ConfigError: for no labels, or one that is not below ``classes``.
  """
  labels = np.asarray(labels)
  if not len(labels) or not 0 <= labels.min() <= labels.max() < classes:
    raise ConfigError(
      f"predicted labels must be at least one number in 0..{classes - 1}, got {len(labels)}, some of them outside "
      "or none at all. Ask the network for at least one image."
    )
  counts = np.bincount(labels, minlength=classes)
  return float(counts.var() / counts.mean())


def class_membership(
  seen: Sequence[np.ndarray], unseen: Sequence[np.ndarray], *, classes: int
) -> dict[str, Any]:
  """Runs the authors' test: networks that never saw a class spread their predictions for its images.

  Args:
    seen: by class, predicted labels int ``[n]`` of its images, by a network that was trained on the class.
    unseen: by class, those of the same images by a network that was trained without this class.
    classes: number of labels ``K``.

  Returns:
    ``with`` and ``without``: the Fano factors, by class. ``auc``: the chance that one of the former lies above one of
    the latter, 0.5 is guessing. ``threshold``: from which on a factor is best taken for a class that was seen, and
    ``accuracy``: of all factors, by that threshold, chosen with the answers in sight. ``queries``: ``n``.

  Raises:
    ConfigError: if not all have the same number of queries, which factors grow with.
  """
  counts = {len(labels) for labels in (*seen, *unseen)}
  if len(counts) != 1 or len(seen) != len(unseen):
    raise ConfigError(
      f"class membership needs as many queries of each class with and without it, got {sorted(counts)} queries for "
      f"{len(seen)} and {len(unseen)} classes. Cut them to the least."
    )
  factors = np.array(
    [[fano_factor(one, classes=classes) for one in side] for side in (seen, unseen)]
  )
  known = np.repeat([[True], [False]], len(seen), 1)
  ordered = np.unique(factors)  # thresholds: the lowest factor, and half way between any two
  cuts = np.concatenate([ordered[:1], (ordered[1:] + ordered[:-1]) / 2])
  accuracies = [float(np.mean((factors >= cut) == known)) for cut in cuts]
  best = int(np.argmax(accuracies))
  return {
    "with": factors[0].tolist(),
    "without": factors[1].tolist(),
    "auc": membership.auc(factors, known),
    "threshold": float(cuts[best]),
    "accuracy": accuracies[best],
    "queries": counts.pop(),
  }


def invert(
  logits_of: Callable[[jax.Array], jax.Array],
  wanted: np.ndarray,
  examples: np.ndarray,
  *,
  seed: int,
) -> np.ndarray:
  """Looks for images that a network takes for some classes, by gradient ascent on the logit of each.

  The prior is the spread of the images that the network takes: an image is their mean and a mix of their deviations
  from it, ``sum_i u_i (x_i - mean) / sqrt(n)``, with ``|u|`` at most 3. Gaussian ``u`` would give images of their
  covariance, so these are within three standard deviations. It needs no notion of neighbours, which disguised images do
  not have: total variation means nothing there, and on plain ones it did worse.

  Args:
    logits_of: images float32 ``[B, H, W, C]``, as ``examples``, to logits ``[B, K]``; can be differentiated.
    wanted: int ``[m]``, a class for each image.
    examples: ``[n, H, W, C]``, images such as the network takes: the cloud holds those it was trained on. The first
      1000 are used.
    seed: of the images that the ascent starts from.

  Returns:
    float32 ``[m, H, W, C]``, as the network takes them: disguised if ``examples`` are.
  """
  few = np.asarray(examples[:_EXAMPLES], np.float32)
  mean = few.mean(0, dtype=np.float64).astype(np.float32)
  basis = ((few - mean) / len(few) ** 0.5).reshape(len(few), -1)  # [n, H * W * C]
  rows = jnp.arange(len(wanted))

  def painted(mix, mean, basis):
    return mean + (mix @ basis).reshape(len(wanted), *mean.shape)

  @jax.jit
  def ascend(mix, mean, basis):
    def aim(mix):
      return logits_of(painted(mix, mean, basis))[rows, wanted].sum()

    def step(_, mix):
      uphill = jax.grad(aim)(mix)
      uphill = uphill / jnp.maximum(jnp.linalg.norm(uphill, axis=1, keepdims=True), 1e-12)
      return _within(mix + _RATE * _RADIUS * uphill)

    return painted(jax.lax.fori_loop(0, _STEPS, step, mix), mean, basis)

  start = jax.random.normal(jax.random.key(seed), (len(wanted), len(few)))
  return np.asarray(ascend(_within(start), mean, basis), np.float32)


def _within(mix: jax.Array) -> jax.Array:
  """Pulls rows back into the ball of the prior."""
  return mix * jnp.minimum(1, _RADIUS / jnp.linalg.norm(mix, axis=1, keepdims=True))
