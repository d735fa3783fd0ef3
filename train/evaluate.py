"""What is measured outside of a step: accuracy and loss of a split, and how its images are standardised."""

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from djax import models
from train.data.input_pipeline import Pipeline
from train.data.inputs import STATISTICS_RECORDS

__all__ = ["accuracy_and_loss", "estimates", "statistics"]


def accuracy_and_loss(
  log_probabilities: Callable, state: Any, pipeline: Pipeline, *, views: int
) -> tuple[float, float]:
  """Returns accuracy in 0..1 and mean loss over every record, by the mean log-probabilities of its views.

  Args:
    log_probabilities: ``(state, images) -> [B, K]``, float32.
    state: of the network.
    pipeline: of the split.
    views: of each record, over which log-probabilities are averaged.
  """
  right = loss = 0.0
  batches = zip(*(pipeline.all_records(view=view) for view in range(views)), strict=True)
  for every in batches:
    found = np.stack([log_probabilities(state, batch.images) for batch in every]).sum(0, np.float64)
    labels, mask = np.asarray(every[0].labels), np.asarray(every[0].mask)
    right += float(mask @ (found.argmax(-1) == labels))
    loss -= float(mask @ found[np.arange(len(labels)), labels]) / views
  return right / len(pipeline), loss / len(pipeline)


def estimates(model: Any, train: Pipeline) -> dict[str, Any]:
  """Returns what the network takes from all views of the training images before the first step.

  Args:
    model: the network's module; one without a method ``estimate`` takes nothing.
    train: of the training split.
  """
  if not hasattr(model, "estimate"):
    return {}

  def images() -> Iterator[np.ndarray]:
    for view in range(train.feed.views):
      for batch in train.all_records(view=view):
        yield np.asarray(batch.images)[np.asarray(batch.mask) > 0]

  return model.estimate(images())


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
  batches = [
    np.asarray(batch.images)[np.asarray(batch.mask) > 0]
    for batch in pipeline.all_records(limit=STATISTICS_RECORDS)
  ]
  images = np.concatenate(batches)
  mean = images.mean(axis=0, dtype=np.float64)
  scale = np.sqrt(np.mean((images - mean) ** 2)) or 1.0
  return jnp.asarray(mean, jnp.float32), jnp.asarray(scale, jnp.float32)
