"""What classifies images: parameters and statistics of a network, and how it is applied outside of training."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax

__all__ = ["Network", "logits"]


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
  """Returns float32 logits ``[B, K]`` outside of training.

  Args:
    model: the network's module.
    network: its parameters and statistics.
    images: float32 ``[B, H, W, C]``, disguised.
  """
  variables = {"params": network.params, "batch_stats": network.batch_stats}
  found: Any = model.apply(variables, (images - network.mean) / network.scale, train=False)
  return found
