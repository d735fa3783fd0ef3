"""The training loop: state, steps, mesh, checkpoints, evaluation. It gets a scheme and a key; it makes neither."""

import functools
import hashlib
import math
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from djax import blocks
from djax.errors import ConfigError, DjaxError
from djax.schemes import Key, Scheme, plain_scheme
from djax.sources import Images
from train import models, optimizers, report, run_dir, terminal
from train.input_pipeline import Batch, Pipeline

__all__ = ["State", "Stopped", "TrainingError", "fit"]

_STATISTICS_RECORDS = 4096
_SPARE_BYTES = 1 << 20


class Stopped(DjaxError):
  """A signal stopped the run after a checkpoint; ``exit_code`` is 128 plus the signal."""

  def __init__(self, number: int, step: int, workdir: Path):
    super().__init__(
      f"stopped by {signal.Signals(number).name} after step {step}; the same command goes on from {workdir}."
    )
    self.exit_code = 128 + number


class TrainingError(DjaxError):
  """Training cannot go on."""


class State(NamedTuple):
  """All that a step changes, and the statistics that standardise its input.

  Attributes:
    step: int32 scalar, steps done.
    params: float32 parameters.
    batch_stats: running means and variances.
    opt_state: of the optimizer.
    mean: float32 ``[H, W, C]``, of disguised training images.
    scale: float32 scalar, their standard deviation around ``mean``.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  mean: jax.Array
  scale: jax.Array


def fit(
  config: ConfigDict,
  workdir: str | Path,
  train: Images,
  test: Images,
  scheme: Scheme,
  key: Key,
  *,
  fingerprint: str | None,
) -> dict[str, Any]:
  """Trains on disguised images, evaluates on disguised and on plain ones, writes the run directory.

  Args:
    config: a checked config.
    workdir: the run directory.
    train: originals to train on.
    test: originals to test on.
    scheme: an on-device scheme.
    key: its secret pytree.
    fingerprint: of the key, or None for the plain scheme.

  Returns:
    What ``result.json`` holds.

  Raises:
    ConfigError: if the batch does not fit the devices or the data, or ``workdir`` holds another run.
    TrainingError: if the loss is no longer finite.
    Stopped: on SIGTERM or SIGINT, after a checkpoint.
  """
  workdir = Path(workdir).expanduser().resolve()
  mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
  _check_batch(config, mesh, len(train.images))
  disguise = {
    "spec": scheme.spec.to_dict(),
    "key_fingerprint": fingerprint,
    "source_sha256": _digest(train, test),
  }
  run_dir.open_run(workdir, config, disguise)

  rng = jax.random.key(config.seed)
  pipeline = functools.partial(Pipeline, mesh=mesh, batch_size=config.train.batch_size)
  disguised_train = pipeline(train, scheme, key, rng=jax.random.fold_in(rng, 1))
  disguised_test = pipeline(test, scheme, key, rng=jax.random.fold_in(rng, 2))
  _preview(workdir, test, disguised_test, scheme, fingerprint)

  model = models.create(config.model, classes=len(train.class_names))
  steps = config.train.epochs * disguised_train.steps_per_epoch
  optimizer = optimizers.create(config.optimizer, disguised_train.steps_per_epoch, steps)
  mean, scale = _statistics(disguised_train)
  state = _initial_state(model, optimizer, jax.random.fold_in(rng, 3), mean, scale)
  state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
  evaluate = functools.partial(_evaluate, jax.jit(functools.partial(_count, model)))

  with _checkpoints(workdir) as checkpoints:
    state, seconds = _restore(checkpoints, state)
    state, seconds = _train(
      config,
      workdir,
      disguised_train,
      state,
      step_fn=jax.jit(functools.partial(_step, model, optimizer), donate_argnums=0),
      dropout_rng=jax.random.fold_in(rng, 4),
      test_accuracy=lambda state: evaluate(state, disguised_test)[0],
      checkpoints=checkpoints,
      seconds=seconds,
      label=f"{scheme.spec.scheme}, key {fingerprint}" if fingerprint else "plain, no key",
    )
  test_accuracy, test_loss = evaluate(state, disguised_test)
  plain_train, plain_test = (
    pipeline(_padded(data, scheme), plain_scheme(scheme.spec.disguised_shape), Key(), rng=rng)
    for data in (train, test)
  )
  mean, scale = _statistics(plain_train)
  plain_accuracy, _ = evaluate(state._replace(mean=mean, scale=scale), plain_test)
  result = {
    "test_accuracy": test_accuracy,
    "plain_accuracy": plain_accuracy,
    "test_loss": test_loss,
    "test_images": len(test.images),
    "classes": len(test.class_names),
    "steps": steps,
    "seconds": round(seconds, 3),
    "steps_per_second": round(steps / seconds, 3),
    "key_fingerprint": fingerprint,
    "scheme": scheme.spec.to_dict(),
  }
  run_dir.write_json(workdir / "result.json", result)
  return result


def _train(
  config: ConfigDict,
  workdir: Path,
  pipeline: Pipeline,
  state: State,
  *,
  step_fn: Callable[..., tuple[State, jax.Array]],
  dropout_rng: jax.Array,
  test_accuracy: Callable[[State], float],
  checkpoints: ocp.CheckpointManager,
  seconds: float,
  label: str,
) -> tuple[State, float]:
  """Runs the steps that are left; returns the last state and all seconds spent, those before a resume included."""
  per_epoch = pipeline.steps_per_epoch
  start, stop = int(state.step), config.train.epochs * per_epoch
  if start:
    terminal.say(f"resumed after step {start} of {stop}")
  metrics = run_dir.Metrics(workdir, step=start)
  clock = time.perf_counter() - seconds
  losses: list[jax.Array] = []
  kind = "plain" if config.disguise.scheme == "plain" else "disguised"
  batches = pipeline.training(seed=config.seed, start=start, stop=stop)
  try:
    with terminal.signals() as received, terminal.progress(stop, start, label) as advance:
      for step, batch in enumerate(batches, start + 1):
        state, loss = step_fn(state, batch, dropout_rng)
        losses.append(loss)
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
        _save(checkpoints, step, state, time.perf_counter() - clock)
        if received:
          raise Stopped(received[0], step, workdir)
  finally:
    metrics.close()
  return state, time.perf_counter() - clock


def _step(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  state: State,
  batch: Batch,
  dropout_rng: jax.Array,
) -> tuple[State, jax.Array]:
  """One update of the parameters; returns the new state and the mean loss of the batch."""

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
  logits: Any = model.apply(
    {"params": state.params, "batch_stats": state.batch_stats},
    (batch.images - state.mean) / state.scale,
    train=False,
  )
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
  right = jnp.argmax(logits, axis=-1) == batch.labels
  return jnp.sum(right * batch.mask), jnp.sum(losses * batch.mask)


def _evaluate(count: Callable, state: State, pipeline: Pipeline) -> tuple[float, float]:
  """Returns accuracy in 0..1 and mean loss over every record."""
  sums = [count(state, batch) for batch in pipeline.all_records()]
  right, loss = np.asarray(jax.device_get(sums), np.float64).sum(axis=0)
  return float(right / len(pipeline.data.images)), float(loss / len(pipeline.data.images))


def _initial_state(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  rng: jax.Array,
  mean: jax.Array,
  scale: jax.Array,
) -> State:
  variables = jax.jit(functools.partial(model.init, train=False))(rng, mean[None])
  params = variables["params"]
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables.get("batch_stats", {}),
    opt_state=optimizer.init(params),
    mean=mean,
    scale=scale,
  )


def _statistics(pipeline: Pipeline) -> tuple[jax.Array, jax.Array]:
  """Returns mean image and spread of the first disguised training images: all that standardisation needs."""
  batches = [
    np.asarray(batch.images)[np.asarray(batch.mask) > 0]
    for batch in pipeline.all_records(limit=_STATISTICS_RECORDS)
  ]
  images = np.concatenate(batches)
  mean = images.mean(axis=0, dtype=np.float64)
  scale = np.sqrt(np.mean((images - mean) ** 2)) or 1.0
  return jnp.asarray(mean, jnp.float32), jnp.asarray(scale, jnp.float32)


def _checkpoints(workdir: Path) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
  return ocp.CheckpointManager(workdir / "checkpoints", options=options)


def _save(checkpoints: ocp.CheckpointManager, step: int, state: State, seconds: float) -> None:
  # Looked at first: what Orbax's threads print when a disk is full hides the one line that helps.
  needed = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SPARE_BYTES
  free = shutil.disk_usage(checkpoints.directory).free
  if free < needed:
    raise DjaxError(
      f"the run directory needs {needed / 1e6:.1f} MB free for the next checkpoint, got {free / 1e6:.1f} MB. "
      "Make room and give the same command again."
    )
  args = ocp.args.Composite(
    state=ocp.args.StandardSave(state._asdict()), meta=ocp.args.JsonSave({"seconds": seconds})
  )
  checkpoints.save(step, args=args, force=True)


def _restore(checkpoints: ocp.CheckpointManager, state: State) -> tuple[State, float]:
  """Returns the newest checkpoint's state and the seconds spent on it, or the state given."""
  step = checkpoints.latest_step()
  if step is None:
    return state, 0.0
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state._asdict())
  restored = checkpoints.restore(
    step,
    args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()),
  )
  return State(**restored["state"]), restored["meta"]["seconds"]


def _finite_mean(losses: list[jax.Array], step: int, workdir: Path) -> float:
  mean = float(np.mean(jax.device_get(losses)))
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


def _padded(data: Images, scheme: Scheme) -> Images:
  """Pads originals to the shape the network was made for."""
  if scheme.spec.block_size is None:
    return data
  padded = blocks.pad_to_blocks(jnp.asarray(data.images), block_size=scheme.spec.block_size)
  return Images(np.asarray(padded), data.labels, data.class_names)


def _preview(
  workdir: Path, data: Images, pipeline: Pipeline, scheme: Scheme, fingerprint: str | None
) -> None:
  shown = min(8, len(data.images), pipeline.batch_size)
  first = next(pipeline.all_records(limit=shown))
  title = f"{scheme.spec.scheme}  key {fingerprint}" if fingerprint else "plain: no disguise"
  disguised = np.asarray(first.images)[:shown]
  report.preview(workdir / "preview.png", data.images[:shown], disguised, title=title)


def _digest(*splits: Images) -> str:
  """Returns SHA-256 over pixels and labels, so that a resumed run sees the same records."""
  digest = hashlib.sha256()
  for split in splits:
    digest.update(repr((split.images.shape, str(split.images.dtype))).encode())
    digest.update(np.ascontiguousarray(split.images))
    digest.update(np.ascontiguousarray(split.labels, np.int32))
  return digest.hexdigest()
