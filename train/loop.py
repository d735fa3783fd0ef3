"""The training loop: steps, mesh, evaluation. It gets its inputs ready made; it makes no key."""

import functools
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from djax import audit, picture
from djax.errors import ConfigError, DjaxError
from train import models, optimizers, resident, run_dir, terminal
from train import state as state_lib
from train.input_pipeline import Batch, Pipeline
from train.inputs import Inputs
from train.state import State

__all__ = ["Stopped", "TrainingError", "data_mesh", "fit", "single_steps", "update"]

_STATISTICS_RECORDS = 4096


class Stopped(DjaxError):
  """A signal stopped the run after a checkpoint; ``exit_code`` is 128 plus the signal."""

  def __init__(self, number: int, step: int, workdir: Path):
    super().__init__(
      f"stopped by {signal.Signals(number).name} after step {step}; the same command goes on from {workdir}."
    )
    self.exit_code = 128 + number


class TrainingError(DjaxError):
  """Training cannot go on."""


def fit(config: ConfigDict, workdir: str | Path, inputs: Inputs) -> dict[str, Any]:
  """Trains on disguised images, evaluates on them and, where there are originals, on plain ones.

  Args:
    config: a checked config.
    workdir: the run directory.
    inputs: what to train and test on.

  Returns:
    What ``result.json`` holds.

  Raises:
    ConfigError: if the batch does not fit the devices or the data, or ``workdir`` holds another run.
    TrainingError: if the loss is no longer finite.
    Stopped: on SIGTERM or SIGINT, after a checkpoint.
  """
  workdir = Path(workdir).expanduser().resolve()
  mesh = data_mesh()
  _check_batch(config, mesh, len(inputs.train.records))
  model = models.create(config.model, classes=inputs.classes, spec=inputs.spec)
  run_dir.open_run(workdir, config, inputs.facts, copies=inputs.copies)
  if not config.disguise.acknowledge and (known := audit.lookup(inputs.spec)):
    terminal.say(f"warning: {known}")

  rng = jax.random.key(config.seed)
  pipeline = functools.partial(Pipeline, mesh=mesh, batch_size=config.train.batch_size)
  train, test = pipeline(inputs.train), pipeline(inputs.test)
  _preview(workdir, inputs, test)

  steps = config.train.epochs * train.steps_per_epoch
  optimizer = optimizers.create(config.optimizer, train.steps_per_epoch, steps)
  mean, scale = _statistics(model, train, inputs.disguised_shape)
  state = state_lib.initial(model, optimizer, jax.random.fold_in(rng, 3), mean, scale)
  state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
  evaluate = functools.partial(_evaluate, jax.jit(functools.partial(_count, model)))

  chunks = functools.partial(
    resident.chunks if resident.fits(train) else single_steps,
    train,
    functools.partial(update, model, optimizer),
    rng=jax.random.fold_in(rng, 4),
    seed=config.seed,
    stop=steps,
    every=config.train.checkpoint_every_steps,
  )
  with state_lib.checkpoints(workdir) as checkpoints:
    state, seconds = state_lib.restore(checkpoints, state)
    state, seconds = _train(
      config,
      workdir,
      state,
      chunks=chunks,
      per_epoch=train.steps_per_epoch,
      test_accuracy=lambda state: evaluate(state, test)[0],
      checkpoints=checkpoints,
      seconds=seconds,
      inputs=inputs,
    )
  test_accuracy, test_loss = evaluate(state, test)
  plain_accuracy = None
  if inputs.plain is not None:
    plain_train, plain_test = (pipeline(feed) for feed in inputs.plain)
    mean, scale = _statistics(model, plain_train, inputs.disguised_shape)
    plain_accuracy, _ = evaluate(state._replace(mean=mean, scale=scale), plain_test)
  result = {
    "test_accuracy": test_accuracy,
    "plain_accuracy": plain_accuracy,
    "test_loss": test_loss,
    "test_images": len(test),
    "classes": inputs.classes,
    "labels": inputs.labels,
    "steps": steps,
    "seconds": round(seconds, 3),
    "steps_per_second": round(steps / seconds, 3),
    "key_fingerprint": inputs.key_fingerprint,
    "scheme": inputs.spec,
  }
  run_dir.write_json(workdir / "result.json", result)
  return result


def data_mesh() -> Mesh:
  """Returns all devices along one axis, ``data``, over which batches are split."""
  return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def _train(
  config: ConfigDict,
  workdir: Path,
  state: State,
  *,
  chunks: Callable[[State], Iterator[tuple[State, Any]]],
  per_epoch: int,
  test_accuracy: Callable[[State], float],
  checkpoints: ocp.CheckpointManager,
  seconds: float,
  inputs: Inputs,
) -> tuple[State, float]:
  """Runs the steps that are left; returns the last state and all seconds spent, those before a resume included."""
  step = start = int(state.step)
  stop = config.train.epochs * per_epoch
  if start:
    terminal.say(f"resumed after step {start} of {stop}")
  metrics = run_dir.Metrics(workdir, step=start)
  clock = time.perf_counter() - seconds
  losses: list[Any] = []
  key = inputs.key_fingerprint
  kind = "disguised" if key else "plain"
  label = f"{inputs.spec['scheme']}, key {key}" if key else "plain, no key"
  try:
    with terminal.signals() as received, terminal.progress(stop, start, label) as advance:
      work = chunks(state)
      for state, chunk_losses in work:
        losses.append(chunk_losses)
        for _ in range(chunk_losses.size):
          step += 1
          advance()
        epoch_ends = step % per_epoch == 0
        if not (epoch_ends or received or step % config.train.checkpoint_every_steps == 0):
          continue
        train_loss = _finite_mean(losses, step, workdir)
        if epoch_ends:
          losses.clear()
          accuracy = test_accuracy(state)
          epoch = step // per_epoch
          metrics.write(step, {"epoch": epoch, "train_loss": train_loss, "test_accuracy": accuracy})
          terminal.say(
            f"epoch {epoch}/{config.train.epochs}  loss {train_loss:.4f}  {kind} test accuracy {accuracy:.2%}"
          )
        state_lib.save(checkpoints, step, state, time.perf_counter() - clock)
        if received:
          raise Stopped(received[0], step, workdir)
  finally:
    metrics.close()
  return state, time.perf_counter() - clock


def single_steps(
  pipeline: Pipeline,
  step: Callable[..., tuple[State, jax.Array]],
  state: State,
  *,
  rng: jax.Array,
  seed: int,
  stop: int,
  every: int,
) -> Iterator[tuple[State, jax.Array]]:
  """Trains as ``resident.chunks`` does, by chunks of one step: a dispatch for each batch that the pipeline brings.

  Args:
    pipeline: of any split.
    step: ``(state, batch, rng) -> (state, loss)``, pure.
    state: before the first step; donated, as is each state yielded.
    rng: JAX key that ``step`` gets.
    seed: of the order.
    stop: one past the last step.
    every: of no matter here: every step ends a chunk.

  Yields:
    The state after a step, and its loss, float32 ``[]``.
  """
  del every
  step = jax.jit(step, donate_argnums=0)
  for batch in pipeline.training(seed=seed, start=int(state.step), stop=stop):
    state, loss = step(state, batch, rng)
    yield state, loss


def update(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  state: State,
  batch: Batch,
  dropout_rng: jax.Array,
) -> tuple[State, jax.Array]:
  """Updates the parameters once.

  Args:
    model: the network.
    optimizer: of its parameters.
    state: before; its ``step`` picks the dropout.
    batch: disguised images and labels.
    dropout_rng: JAX key of the run.

  Returns:
    The new state and the mean loss of the batch, float32 ``[]``.
  """

  def loss_of(params):
    logits, updated = model.apply(
      {"params": params, "batch_stats": state.batch_stats},
      (batch.images - state.mean) / state.scale,
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": jax.random.fold_in(dropout_rng, state.step)},
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    return losses.mean(), updated["batch_stats"]

  (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return (
    state._replace(
      step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state
    ),
    loss,
  )


def _count(model: nn.Module, state: State, batch: Batch) -> tuple[jax.Array, jax.Array]:
  """Returns how many images of a batch are recognised, and the sum of their losses."""
  logits = state_lib.forward(model, state, batch.images)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
  right = jnp.argmax(logits, axis=-1) == batch.labels
  return jnp.sum(right * batch.mask), jnp.sum(losses * batch.mask)


def _evaluate(count: Callable, state: State, pipeline: Pipeline) -> tuple[float, float]:
  """Returns accuracy in 0..1 and mean loss over every record."""
  sums = [count(state, batch) for batch in pipeline.all_records()]
  right, loss = np.asarray(jax.device_get(sums), np.float64).sum(axis=0)
  return float(right / len(pipeline)), float(loss / len(pipeline))


def _statistics(model: nn.Module, pipeline: Pipeline, shape: tuple[int, ...]) -> tuple[Any, Any]:
  """Returns mean image and spread of the first training images: all that standardisation needs."""
  if not models.standardised(model):
    return jnp.zeros(shape, jnp.float32), jnp.ones((), jnp.float32)
  batches = [
    np.asarray(batch.images)[np.asarray(batch.mask) > 0]
    for batch in pipeline.all_records(limit=_STATISTICS_RECORDS)
  ]
  images = np.concatenate(batches)
  mean = images.mean(axis=0, dtype=np.float64)
  scale = np.sqrt(np.mean((images - mean) ** 2)) or 1.0
  return jnp.asarray(mean, jnp.float32), jnp.asarray(scale, jnp.float32)


def _finite_mean(losses: list[Any], step: int, workdir: Path) -> float:
  mean = float(np.mean(np.hstack(jax.device_get(losses))))
  if not math.isfinite(mean):
    raise TrainingError(
      f"the loss must stay finite, got {mean} by step {step}. The last good checkpoint is kept in {workdir}; "
      "start again elsewhere with a lower --config.optimizer.learning_rate."
    )
  return mean


def _check_batch(config: ConfigDict, mesh: Mesh, records: int) -> None:
  """Refuses a batch that cannot be split over the devices or filled once."""
  batch_size = config.train.batch_size
  if batch_size % mesh.size:
    raise ConfigError(
      f"config.train.batch_size must be a multiple of the {mesh.size} devices, got {batch_size}."
    )
  if batch_size > records:
    raise ConfigError(
      f"config.train.batch_size must be at most the {records} training images, got {batch_size}."
    )


def _preview(workdir: Path, inputs: Inputs, test: Pipeline) -> None:
  shown = min(8, len(test), test.batch_size)
  first = next(test.all_records(limit=shown))
  spec, key = inputs.spec, inputs.key_fingerprint
  title = f"{spec['scheme']}  key {key}" if key else "plain: no disguise"
  rows = {"disguised": np.asarray(first.images)[:shown]}
  if inputs.originals is not None:
    rows = {"originals": inputs.originals[1].images[:shown], **rows}
  picture.sheet(rows, title=title).save(workdir / "preview.png")
