"""Training on records that lie on the devices: one program gathers, disguises and steps, many times a dispatch.

The records are there once, as stored; key, noise and records are arguments of the program. What is computed does not
depend on how a run is cut into chunks.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train import processes
from train.data.input_pipeline import Batch, Pipeline
from train.data.inputs import Arrays
from train.state import State

__all__ = ["chunks", "fits", "program"]

_SECONDS = 0.5  # of a chunk: the longest wait after a signal
_LONGEST = 1024  # steps of a chunk


def fits(pipeline: Pipeline) -> bool:
  """Returns whether a split is kept on the devices: accelerators, of whose free memory it takes at most half."""
  # XLA runs the body of a loop on one CPU thread: a convolution in it took 5 to 20 times as long as outside.
  if jax.default_backend() == "cpu":
    return False
  records = pipeline.feed.records
  if pipeline.feed.streamed or not isinstance(records, Arrays):
    return False
  stats = [device.memory_stats() or {} for device in pipeline.mesh.local_devices]
  free = min(s.get("bytes_limit", 0) - s.get("bytes_in_use", 0) for s in stats)
  return 2 * records.images.nbytes <= free


def chunks(
  pipeline: Pipeline,
  step: Callable[..., tuple[State, jax.Array]],
  state: State,
  *,
  rng: jax.Array,
  seed: int,
  stop: int,
  every: int,
) -> Iterator[tuple[State, np.ndarray]]:
  """Trains from ``state.step`` on; yields after each chunk of steps.

  A chunk ends with its epoch and at multiples of ``every``. Otherwise it takes about half a second: long compared with
  a dispatch, and short for a person who stopped the run.

  Args:
    pipeline: of a split whose records are ``Arrays``.
    step: ``(state, batch, rng) -> (state, loss)``, pure.
    state: before the first step; donated, as is each state yielded.
    rng: JAX key that ``step`` gets.
    seed: of the order.
    stop: one past the last step.
    every: steps between checkpoints.

  Yields:
    The state after a chunk, and the losses of its steps, float32 ``[n]``.
  """
  records: Any = pipeline.feed.records
  run = program(pipeline, step, jax.tree.map(lambda leaf: leaf.sharding, state))
  images, labels, argument, rng = processes.put(
    (records.images, records.labels.astype(np.int32), pipeline.feed.argument, rng),
    pipeline.replicated,
  )
  per_epoch, size = pipeline.steps_per_epoch, pipeline.batch_size
  done, length, epoch = int(state.step), 1, -1
  while done < stop:
    if epoch != done // per_epoch:
      epoch = done // per_epoch
      indices = pipeline.epoch(seed=seed, number=epoch)[: per_epoch * size]
      order = processes.put(indices.astype(np.int32).reshape(per_epoch, size), pipeline.replicated)
    place = done % per_epoch
    # Each process has a clock of its own, and all must run the same steps.
    count = processes.greatest(min(length, per_epoch - place, every - done % every, stop - done))
    began = time.perf_counter()
    state, losses = run(state, images, labels, argument, order, place, count, rng)
    on_host = np.asarray(losses)[:count]
    length = int(np.clip(_SECONDS * count / (time.perf_counter() - began), 1, _LONGEST))
    done += count
    yield state, on_host


def program(
  pipeline: Pipeline, step: Callable[..., tuple[State, jax.Array]], shardings: Any = None
) -> Any:
  """Makes the jitted program that ``chunks`` dispatches; one compilation serves any number of steps.

  Args:
    pipeline: of the split.
    step: ``(state, batch, rng) -> (state, loss)``, pure.
    shardings: of the state; None: it lies on every device.

  Returns:
    ``(state, images, labels, argument, order, first, count, rng) -> (state, losses)``: ``count`` steps from batch
    ``first`` of an epoch's ``order``, int32 ``[steps, B]``. The losses, float32, fill the front of what is returned.
  """
  transform, split = pipeline.feed.transform, pipeline.split

  def run(state, images, labels, argument, order, first, count, rng):
    mask = jnp.ones(pipeline.batch_size, jnp.float32)

    def one(index, carry):
      state, losses = carry
      indices = jax.lax.with_sharding_constraint(order[first + index], split)
      stored = images[indices % len(images)], labels[indices % len(labels)]
      batch = Batch(*transform(argument, *stored, indices), mask)
      state, loss = step(state, jax.lax.with_sharding_constraint(batch, split), rng)
      return state, losses.at[index].set(loss)

    return jax.lax.fori_loop(0, count, one, (state, jnp.zeros(_LONGEST, jnp.float32)))

  replicated = pipeline.replicated
  return jax.jit(run, donate_argnums=0, out_shardings=(shardings or replicated, replicated))
