"""Optax optimizers and schedules from the ``optimizer`` group of a config."""

import re

import jax
import optax
from ml_collections import ConfigDict

__all__ = ["create"]


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
  return optax.chain(
    optax.add_decayed_weights(config.weight_decay, mask=decayed),
    optax.sgd(schedule, momentum=config.momentum, nesterov=True),
  )
