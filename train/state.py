"""The state of a run: how it is made, applied to images, saved and restored."""

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

from djax.errors import DjaxError

__all__ = ["State", "checkpoints", "forward", "initial", "restore", "save"]

_SPARE_BYTES = 1 << 20


class State(NamedTuple):
  """All that a step changes, and the statistics that standardise its input.

  Attributes:
    step: int32 scalar, steps done.
    params: float32 parameters.
    average: their exponential moving average, which is what is tested; empty for a run without.
    batch_stats: running means and variances, and what the network estimated before the first step.
    opt_state: of the optimizer.
    mean: float32 ``[H, W, C]``, of disguised training images; 0 for a network that takes them as they are.
    scale: float32 scalar, their standard deviation around ``mean``; 1 for such a network.
  """

  step: jax.Array
  params: Any
  average: Any
  batch_stats: Any
  opt_state: Any
  mean: jax.Array
  scale: jax.Array


def initial(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  rng: jax.Array,
  mean: jax.Array,
  scale: jax.Array,
  *,
  averaged: bool = False,
  estimates: Mapping[str, Any] | None = None,
) -> State:
  """Makes the state before the first step.

  Args:
    model: the network.
    optimizer: of its parameters.
    rng: of the initial parameters.
    mean: float32 ``[H, W, C]``, see ``State``.
    scale: float32 scalar, see ``State``.
    averaged: whether an average of the parameters is kept.
    estimates: entries of ``batch_stats`` that the network took from the training images, see ``train.models``.
  """
  variables = jax.jit(functools.partial(model.init, train=False))(rng, mean[None])
  params = variables["params"]
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    average=jax.tree.map(jnp.copy, params) if averaged else {},
    batch_stats=_updated(variables.get("batch_stats", {}), estimates or {}),
    opt_state=optimizer.init(params),
    mean=mean,
    scale=scale,
  )


def forward(model: nn.Module, state: State, images: jax.Array) -> jax.Array:
  """Returns float32 logits ``[B, K]`` outside of training.

  Args:
    model: the network.
    state: its parameters and statistics.
    images: float32 ``[B, H, W, C]``, disguised.
  """
  params = state.average or state.params
  variables = {"params": params, "batch_stats": state.batch_stats}
  logits: Any = model.apply(variables, (images - state.mean) / state.scale, train=False)
  return logits


def _updated(stats: Mapping[str, Any], estimates: Mapping[str, Any]) -> dict[str, Any]:
  """Replaces leaves of ``stats`` by those of ``estimates``, which has no others."""
  found = dict(stats)
  for name, value in estimates.items():
    if isinstance(value, Mapping):
      found[name] = _updated(stats[name], value)
    else:
      assert stats[name].shape == value.shape and stats[name].dtype == value.dtype, name
      found[name] = jnp.asarray(value)
  return found


def checkpoints(workdir: Path) -> ocp.CheckpointManager:
  """Opens the checkpoints of a run directory, the two newest of which are kept.

  Args:
    workdir: the run directory, absolute.
  """
  options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
  return ocp.CheckpointManager(workdir / "checkpoints", options=options)


def save(manager: ocp.CheckpointManager, step: int, state: State, seconds: float) -> None:
  """Writes a checkpoint.

  Args:
    manager: from ``checkpoints``.
    step: steps done.
    state: what to write.
    seconds: spent on training so far.

  Raises:
    DjaxError: if the disk has no room for it.
  """
  # Looked at first: what Orbax's threads print when a disk is full hides the one line that helps.
  needed = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SPARE_BYTES
  free = shutil.disk_usage(manager.directory).free
  if free < needed:
    raise DjaxError(
      f"the run directory needs {needed / 1e6:.1f} MB free for the next checkpoint, got {free / 1e6:.1f} MB. "
      "Make room and give the same command again."
    )
  args = ocp.args.Composite(
    state=ocp.args.StandardSave(state._asdict()), meta=ocp.args.JsonSave({"seconds": seconds})
  )
  manager.save(step, args=args, force=True)


def restore(manager: ocp.CheckpointManager, state: State) -> tuple[State, float]:
  """Reads the newest checkpoint.

  Args:
    manager: from ``checkpoints``.
    state: shapes, dtypes and shardings to restore to: arrays, or ``jax.ShapeDtypeStruct``.

  Returns:
    State and seconds spent on it; the state given and 0 where there is no checkpoint.
  """
  step = manager.latest_step()
  if step is None:
    return state, 0.0
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state._asdict())
  restored = manager.restore(
    step,
    args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()),
  )
  return State(**restored["state"]), restored["meta"]["seconds"]
