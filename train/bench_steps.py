"""A training step with the disguise in the input pipeline beside the same step on plain images."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from djax import keys, models, schemes
from djax.bench import clock
from djax.bench.clock import Work
from djax.sources import Images
from train import config as config_lib
from train import device_loop, loop, optimizers
from train import state as state_lib
from train import steps as steps_lib
from train.data import owned
from train.data.input_pipeline import Pipeline

__all__ = ["Case", "cases", "measure"]

_CLASSES = 10
_BATCHES = 64  # in the split
_SEED = 0
_ENDLESS = 1 << 30


class Case(NamedTuple):
  """One row.

  Attributes:
    config: a shipped config: its model, optimizer and disguise.
    image_shape: ``(H, W, C)``.
    batch: images a step.
  """

  config: str
  image_shape: tuple[int, int, int]
  batch: int


def cases(*, fast: bool) -> Iterator[Case]:
  """Yields the rows; ``fast`` leaves out the large network."""
  yield Case("mnist_rmt", (28, 28, 1), 128)
  if not fast:
    large = 32 if jax.default_backend() == "cpu" else 512
    yield Case("cifar10_rmt", (32, 32, 3), large)


def measure(case: Case, *, rounds: int) -> dict[str, Any]:
  """Measures one row.

  Returns:
    ``model``, ``batch``, ``spec`` of the disguise, ``seconds`` of a step ``plain`` and ``disguised``, and
    ``times``, how many times as long the disguised step takes; these three as ``clock.spread``.
  """
  config = config_lib.load(case.config)
  disguised = config_lib.make_scheme(config, case.image_shape)
  plain = schemes.plain_scheme(case.image_shape)
  works = {
    "plain": _steps(config, plain, case.batch),
    "disguised": _steps(config, disguised, case.batch),
  }
  seconds = clock.side_by_side(works, rounds=rounds)
  return {
    "model": config.model.name,
    "batch": case.batch,
    "spec": disguised.spec.to_dict(),
    "seconds": {name: clock.spread(taken) for name, taken in seconds.items()},
    "times": clock.ratio(seconds["disguised"], seconds["plain"]),
  }


def _steps(config: Any, scheme: schemes.Scheme, batch: int) -> Work:
  """Returns a work of training steps, fed as ``train.loop`` feeds them on this machine."""
  shape = scheme.spec.image_shape
  draw = np.random.default_rng(_SEED)
  data = Images(
    draw.integers(0, 256, (_BATCHES * batch, *shape), np.uint8),
    draw.integers(0, _CLASSES, _BATCHES * batch, np.int32),
    tuple(map(str, range(_CLASSES))),
  )
  key = scheme.make_key(keys.experiment(_SEED).read)
  feed = owned.disguised(data, scheme, key, rng=jax.random.key(_SEED))
  pipeline = Pipeline(feed, mesh=loop.data_mesh(), batch_size=batch)
  model = models.create(config.model, classes=_CLASSES, spec=scheme.spec.to_dict())
  optimizer = optimizers.create(config.optimizer, _BATCHES, _BATCHES)
  mean, scale = jnp.full(scheme.spec.disguised_shape, 128.0), jnp.float32(64)
  state = state_lib.initial(model, optimizer, jax.random.key(_SEED), mean, scale)
  state = jax.device_put(state, pipeline.replicated)
  steps: Any = device_loop.chunks if device_loop.fits(pipeline) else steps_lib.single_steps
  chunks = steps(
    pipeline,
    functools.partial(steps_lib.update, model, optimizer, steps_lib.Recipe(_CLASSES)),
    state,
    rng=jax.random.key(_SEED),
    seed=_SEED,
    stop=_ENDLESS,
    every=_ENDLESS,
  )

  def work(times: int) -> int:
    done = 0
    while done < times:
      state, losses = next(chunks)
      done += losses.size
    jax.block_until_ready(state)
    return done

  return work
