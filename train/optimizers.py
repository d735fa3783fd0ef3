"""Optax optimizers and schedules from the ``optimizer`` group of a config."""

import re
from typing import Any

import jax
import optax
from ml_collections import ConfigDict
from optax import contrib

__all__ = ["create"]

# The learning rate of Adam, in those of Muon.
_ADAM = 1 / 12


def create(config: ConfigDict, steps_per_epoch: int, steps: int) -> optax.GradientTransformation:
  """Makes optimizer and schedule.

  Args:
    config: the ``optimizer`` group of a config.
    steps_per_epoch: steps of an epoch, the unit of the warm-up.
    steps: of the whole run; the cosine ends there.
  """
  warmup = min(int(config.warmup_epochs * steps_per_epoch), steps - 1)
  peak = config.learning_rate
  rest = (
    optax.cosine_decay_schedule(peak, max(steps - warmup, 1))
    if config.schedule == "cosine"
    else optax.constant_schedule(peak)
  )
  schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), rest], [warmup])

  spared = re.compile(config.no_decay)

  def decayed(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: not spared.search(jax.tree_util.keystr(path, simple=True, separator="/")),
      params,
    )

  if config.name == "adamw":
    return optax.adamw(schedule, weight_decay=config.weight_decay, mask=decayed)
  if config.name == "muon":
    return _muon(schedule, config)
  return optax.chain(
    optax.add_decayed_weights(config.weight_decay, mask=decayed),
    optax.sgd(schedule, momentum=config.momentum, nesterov=True),
  )


def _muon(schedule: optax.Schedule, config: ConfigDict) -> optax.GradientTransformation:
  """Makes Muon (Jordan et al. 2024) for the kernels of convolutions, and Adam for all else, as published."""
  kernels = contrib.muon(schedule, beta=config.momentum, weight_decay=config.weight_decay)
  others = optax.adam(lambda step: schedule(step) * _ADAM, b1=0.8, b2=0.95, nesterov=True)
  return optax.partition(
    {"kernels": _of_matrices(kernels), "others": others},
    lambda params: jax.tree.map(lambda leaf: "kernels" if leaf.ndim == 4 else "others", params),
  )


def _of_matrices(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Gives an optimizer of matrices the kernels ``[r, s, C, F]`` of convolutions, as ``[r s C, F]``."""

  def matrices(kernels: Any) -> Any:
    return jax.tree.map(lambda kernel: kernel.reshape(-1, kernel.shape[-1]), kernels)

  def init(params: Any) -> Any:
    return inner.init(matrices(params))

  def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    updates, state = inner.update(matrices(gradients), state, matrices(params))
    return jax.tree.map(lambda new, old: new.reshape(old.shape), updates, gradients), state

  return optax.GradientTransformation(init, update)
