"""The answers to a split, its accuracy and loss, and the statistics that standardise its images."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from djax import models
from train import processes
from train.data.input_pipeline import Pipeline
from train.data.inputs import STATISTICS_RECORDS

__all__ = ["Score", "estimates", "score", "statistics"]


class Score(NamedTuple):
  """What a network answers to every record of a split.

  Attributes:
    accuracy: in 0..1.
    loss: mean cross-entropy.
    labels: int32 ``[N]``, in the order of the split.
    answers: int32 ``[N]``, the labels that the network gives.
  """

  accuracy: float
  loss: float
  labels: np.ndarray
  answers: np.ndarray


def score(log_probabilities: Callable, state: Any, pipeline: Pipeline, *, views: int) -> Score:
  """Asks a network for every record, by the mean log-probabilities of its views.

  Args:
    log_probabilities: ``(state, images) -> [B, K]``, float32.
    state: of the network.
    pipeline: of the split.
    views: of each record, over which log-probabilities are averaged.
  """
  right = loss = 0.0
  pairs = []
  for batches in zip(*(pipeline.all_records(view=view) for view in range(views)), strict=True):
    logs = processes.on_host([log_probabilities(state, batch.images) for batch in batches])
    total = np.stack(logs).sum(0, np.float64)
    labels, mask = processes.on_host((batches[0].labels, batches[0].mask))
    answers = total.argmax(-1)
    right += float(mask @ (answers == labels))
    loss -= float(mask @ total[np.arange(len(labels)), labels]) / views
    pairs.append(np.stack([labels, answers]).astype(np.int32)[:, mask > 0])
  return Score(right / len(pipeline), loss / len(pipeline), *np.concatenate(pairs, axis=1))


def estimates(model: Any, train: Pipeline) -> dict[str, Any]:
  """Returns what the network estimates from all views of the training images before the first step.

  Args:
    model: the network's module; one without a method ``estimate`` takes nothing.
    train: of the training split.
  """
  if not hasattr(model, "estimate"):
    return {}

  views = (train.images(view=view) for view in range(train.feed.views))
  return model.estimate(itertools.chain.from_iterable(views))


def statistics(model: nn.Module, pipeline: Pipeline, shape: tuple[int, ...]) -> tuple[Any, Any]:
  """Returns mean image and spread of the first training images: all that standardisation needs.

  Args:
    model: the network's module; one that takes pixels as they are stored gets 0 and 1.
    pipeline: of the training split.
    shape: of an image, ``(H, W, C)``.

  Returns:
    float32 ``[H, W, C]`` and float32 ``[]``.
  """
  if not models.standardised(model):
    return jnp.zeros(shape, jnp.float32), jnp.ones((), jnp.float32)
  images = np.concatenate(list(pipeline.images(STATISTICS_RECORDS)))
  mean = images.mean(axis=0, dtype=np.float64)
  scale = np.sqrt(np.mean((images - mean) ** 2)) or 1.0
  return jnp.asarray(mean, jnp.float32), jnp.asarray(scale, jnp.float32)
