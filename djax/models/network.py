"""The base of all networks; and a trained one: its parameters and statistics, and how it is applied."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["Classifier", "Network", "logits"]


class Classifier(nn.Module):
  """Called with float images ``[B, H, W, C]`` and ``train=...``; returns float32 logits ``[B, K]``.

  Attributes:
    classes: number of labels ``K``.
    dropout: rate; each network says where.
    dtype: of the layers' arithmetic; parameters stay float32.
  """

  classes: int
  dropout: float = 0.0
  dtype: Any = jnp.float32


class Network(NamedTuple):
  """What classifies images: a part of the ``State`` of a run.

  Attributes:
    params: float32 parameters, or their average in a run that keeps one.
    batch_stats: as in ``State``, and so ``mean`` and ``scale``.
  """

  params: Any
  batch_stats: Any
  mean: jax.Array
  scale: jax.Array


def logits(model: nn.Module, network: Network, images: jax.Array) -> jax.Array:
  """Returns float32 logits ``[B, K]`` of disguised images, float32 ``[B, H, W, C]``, outside of training."""
  variables = {"params": network.params, "batch_stats": network.batch_stats}
  result: Any = model.apply(variables, (images - network.mean) / network.scale, train=False)
  return result
