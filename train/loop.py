"""The training loop: mesh, checkpoints, evaluation. It is given its inputs and never sees how a key is made."""

import contextlib
import functools
import io
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
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from djax import audit, models, schemes
from djax.errors import ConfigError, DjaxError
from djax.io import files, picture
from djax.models import checksums
from djax.schemes import Trait
from train import config as config_lib
from train import device_loop, optimizers, page, processes, run_dir, terminal
from train import evaluate as evaluate_lib
from train import state as state_lib
from train import steps as steps_lib
from train.data.input_pipeline import Feed, Pipeline
from train.data.inputs import Inputs
from train.state import Best, State
from train.streams import Stream, rng_of

__all__ = ["Stopped", "TrainingError", "data_mesh", "fit"]


_LOOK_STEPS = 10  # after which several processes ask each other for signals


class Stopped(DjaxError):
  """A signal stopped the run after a checkpoint; ``exit_code`` is 128 plus the signal."""

  def __init__(self, number: int, step: int, workdir: Path):
    super().__init__(
      f"stopped by {signal.Signals(number).name} after step {step}. Re-run the command to resume from {workdir}."
    )
    self.exit_code = 128 + number


class TrainingError(DjaxError):
  """Training cannot go on."""


def fit(config: ConfigDict, workdir: str | Path, inputs: Inputs) -> dict[str, Any]:
  """Trains on disguised images, evaluates on them and, where there are originals, on plain ones.

  Returns:
    What ``result.json`` holds.

  Raises:
    ConfigError: if the batch does not fit the devices or the data, or ``workdir`` holds another run.
    DataError: if the run in ``workdir`` is damaged.
    UnsafeError: if another process trains there.
    TrainingError: if the loss is no longer finite.
    Stopped: on SIGTERM or SIGINT, after a checkpoint.
  """
  workdir = Path(workdir).expanduser().resolve()
  mesh = data_mesh()
  _check_batch(config, mesh, len(inputs.train.records))
  named = config_lib.with_network(config, inputs.spec, inputs.disguised_shape)
  if named is not config:
    terminal.say(
      f"network: {named.model.name}, width {named.model.width}, as the disguise asks for"
    )
  config = named
  model = models.create(config.model, classes=inputs.classes, spec=inputs.spec)
  recipe = _recipe(config, model, inputs)
  _check_shapes(model, inputs.disguised_shape)
  advice = f"The last checkpoint is kept in {workdir}; re-run the command in all of them to resume."
  with contextlib.ExitStack() as stack:
    stack.enter_context(processes.watched(advice))
    processes.agree({"images, disguise and key": inputs.summary})
    with processes.together(f"lock {workdir}"):
      if processes.first():
        stack.enter_context(run_dir.locked(workdir))
    return _fit(config, workdir, inputs, mesh, model, recipe)


def _fit(
  config: ConfigDict,
  workdir: Path,
  inputs: Inputs,
  mesh: Mesh,
  model: nn.Module,
  recipe: steps_lib.Recipe,
) -> dict[str, Any]:
  """Does what ``fit`` does, in a directory that is locked."""
  pipeline = functools.partial(Pipeline, mesh=mesh, batch_size=config.train.batch_size)
  train, test = pipeline(inputs.train), pipeline(inputs.test)
  record = _opened(workdir, config, inputs, train.steps_per_epoch)
  judging = test if inputs.val is None else pipeline(inputs.val)

  steps = config.train.epochs * train.steps_per_epoch
  optimizer = optimizers.create(config.optimizer, train.steps_per_epoch, steps)
  log_probabilities = jax.jit(
    lambda state, images: jax.nn.log_softmax(state_lib.forward(model, state, images)),
    out_shardings=train.replicated,
  )
  evaluate = functools.partial(evaluate_lib.score, log_probabilities)

  resident = not processes.greatest(int(not device_loop.fits(train)))
  chunks = functools.partial(
    device_loop.chunks if resident else steps_lib.single_steps,
    train,
    functools.partial(steps_lib.update, model, optimizer, recipe),
    rng=rng_of(config.seed, Stream.STEPS),
    seed=config.seed,
    stop=steps,
    every=config.train.checkpoint_every_steps,
  )
  mean, scale = evaluate_lib.statistics(model, train, inputs.disguised_shape)
  state = state_lib.initial(
    model,
    optimizer,
    rng_of(config.seed, Stream.PARAMETERS),
    mean,
    scale,
    averaged=recipe.ema > 0,
    estimates={} if record else evaluate_lib.estimates(model, train),
  )
  placed = state_lib.shardings(state, mesh, parameters=config.train.shard_parameters)
  state = processes.put(state, placed)
  # Up to here nothing was written to a run that was there before.
  state, seconds, best = state_lib.restore(workdir, record, state)
  with processes.together(f"begin in {workdir}"):
    if processes.first():
      state_lib.remove_unfinished(workdir)
      if record:
        _say_extended(run_dir.extend(workdir, config, record), config)
      run_dir.note_environment(workdir)
  terminal.say(f"run directory: {workdir}")
  if config.data.disguised_dir:  # it has a default name, so that the wrong one may lie there
    sides = "x".join(map(str, inputs.disguised_shape))
    counts = f"{len(inputs.train.records)} training and {len(inputs.test.records)} test images"
    terminal.say(f"disguised images: {config.data.disguised_dir}, {counts} of {sides}")
  if not config.disguise.acknowledge and (known := audit.lookup(inputs.spec)):
    terminal.say(f"warning: {known}")
  pictures = _preview(workdir, inputs, test)
  state, seconds, best = _train(
    config,
    workdir,
    state,
    chunks=chunks,
    per_epoch=train.steps_per_epoch,
    accuracy=lambda state: evaluate(state, judging, views=1).accuracy,
    record=record,
    seconds=seconds,
    best=best,
    inputs=inputs,
  )
  if best:
    placed_network = jax.tree.map(lambda leaf: leaf.sharding, state_lib.network(state))
    state = state_lib.with_network(state, processes.put(best.network, placed_network))
  tested = evaluate(state, test, views=inputs.test.views)

  def misused(feeds: tuple[Feed, Feed]) -> float:
    other_train, other_test = (pipeline(feed) for feed in feeds)
    statistics = evaluate_lib.statistics(model, other_train, inputs.disguised_shape)
    mean, scale = processes.put(statistics, train.replicated)
    return evaluate(state._replace(mean=mean, scale=scale), other_test, views=1).accuracy

  result = {
    "test_accuracy": tested.accuracy,
    "test_views": inputs.test.views,
    "single_view_accuracy": evaluate(state, test, views=1).accuracy,
    "plain_accuracy": misused(inputs.plain) if inputs.plain else None,
    "other_key_accuracy": misused(inputs.other_key()) if inputs.other_key else None,
    "val_accuracy": best.accuracy if best else None,
    "test_loss": tested.loss,
    "test_images": len(test),
    "classes": inputs.classes,
    "labels": inputs.labels,
    "steps": steps,
    "chosen_step": best.step if best else steps,
    "seconds": round(seconds, 3),
    "steps_per_second": round(steps / seconds, 3),
    "key_fingerprint": inputs.key_fingerprint,
    "scheme": inputs.spec,
  }
  with processes.together(f"write to {workdir}"):
    if processes.first():
      run_dir.write_json(workdir / "result.json", result)
      _page(workdir, config, inputs, result, tested, pictures)
  return result


def _opened(
  workdir: Path, config: ConfigDict, inputs: Inputs, steps_per_epoch: int
) -> checksums.Record | None:
  """Opens the run directory: the first process makes it, the others find it."""
  open_run = functools.partial(
    run_dir.open_run,
    workdir,
    config,
    inputs.summary,
    steps_per_epoch=steps_per_epoch,
    copies=inputs.copies,
  )
  record = None
  with processes.together(f"open {workdir}"):
    if processes.first():
      record = open_run()
  with processes.together(f"open {workdir}"):
    if not processes.first():
      if not (workdir / checksums.CONFIG).exists():
        raise ConfigError(
          f"{workdir} must lie on a disk that all processes share, this one does not see what the first wrote. "
          "Give another --workdir."
        )
      record = open_run()
  return record


def _say_extended(before: int, config: ConfigDict) -> None:
  """Says what a finished run does that goes on with more epochs."""
  if before == config.train.epochs:
    return
  # A constant rate gives the very numbers of a longer run.
  jump = ""
  if config.optimizer.schedule != "constant":
    jump = (
      ", at the learning rate that so long a run has there, so the result is not that of one run"
    )
  terminal.say(f"going on from epoch {before} to {config.train.epochs}{jump}")


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
  accuracy: Callable[[State], float],
  record: checksums.Record | None,
  seconds: float,
  best: Best | None,
  inputs: Inputs,
) -> tuple[State, float, Best | None]:
  """Runs the remaining steps.

  Returns:
    The last state, all seconds spent, including those before a resume, and what did best on the validation split.
  """
  step = start = int(state.step)
  stop = config.train.epochs * per_epoch
  if start:
    terminal.say(f"resumed after step {start} of {stop}")
  metrics = None
  if processes.first():
    metrics = run_dir.Metrics(workdir, step=start, recorded=record.metrics if record else None)
  clock = time.perf_counter() - seconds
  losses: list[Any] = []
  key = inputs.key_fingerprint
  kind = "disguised" if key else "plain"
  split = "val" if inputs.val else "test"
  label = f"{inputs.spec['scheme']}, key {key}" if key else "plain, no key"
  try:
    with terminal.signals() as received, terminal.progress(stop, start, label) as advance:
      work = chunks(state)
      for state, chunk_losses in work:
        losses.append(chunk_losses)
        step += chunk_losses.size
        advance(chunk_losses.size)
        epoch_ends = step % per_epoch == 0
        signal_number = _signal(received, step, chunk_losses.size)
        if not (epoch_ends or signal_number or step % config.train.checkpoint_every_steps == 0):
          continue
        train_loss = _finite_mean(losses, step, workdir)
        if epoch_ends:
          losses.clear()
          right = accuracy(state)
          if inputs.val and (best is None or right > best.accuracy):
            best = Best(right, step, processes.on_host(state_lib.network(state)))
          epoch = step // per_epoch
          if metrics:
            metrics.write(
              step, {"epoch": epoch, "train_loss": train_loss, f"{split}_accuracy": right}
            )
          terminal.say(
            f"epoch {epoch}/{config.train.epochs}  loss {train_loss:.4f}  {kind} {split} accuracy {right:.2%}"
          )
        state_lib.save(workdir, step, state, time.perf_counter() - clock, best)
        # It may have come meanwhile.
        signal_number = signal_number or _signal(received, step, chunk_losses.size)
        if signal_number:
          processes.end_together()
          raise Stopped(signal_number, step, workdir)
  finally:
    if metrics:
      metrics.close()
  return state, time.perf_counter() - clock, best


def _signal(received: list[int], step: int, done: int) -> int:
  """Returns the signal that stops the run after a step, or 0: the same in all processes.

  Args:
    received: by this process.
    step: up to now.
    done: of these steps since the last call.
  """
  if processes.several() and step // _LOOK_STEPS == (step - done) // _LOOK_STEPS:
    return 0
  return processes.greatest(received[0] if received else 0)


def _recipe(config: ConfigDict, model: nn.Module, inputs: Inputs) -> steps_lib.Recipe:
  """Reads the recipe of a config, and refuses what does not go with the network."""
  augment = config.augment
  for name in ("mixup", "cutout"):
    if augment[name] and not models.standardised(model):
      raise ConfigError(
        f"config.augment.{name} must be 0 with {config.model.name}, which takes units as they are, got {augment[name]}."
      )
  return steps_lib.Recipe(
    inputs.classes,
    label_smoothing=config.optimizer.label_smoothing,
    ema=config.optimizer.ema,
    mixup=augment.mixup,
    cutout=augment.cutout,
    block_size=inputs.spec.get("block_size", config.disguise.block_size),
  )


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


def _check_shapes(model: nn.Module, shape: tuple[int, ...]) -> None:
  """Refuses a network that cannot take images of this shape."""
  images = jnp.zeros((1, *shape), jnp.float32)
  try:
    jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
  except ValueError as error:
    raise ConfigError(f"config.model: {error}") from error


def _page(workdir: Path, *content: Any) -> None:
  """Writes the page of a run. Whatever is wrong with it, the run is whole without it."""
  try:
    page.write(workdir, page.Content(*content))
  except Exception as error:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    terminal.say(f"report.html could not be written ({reason}). The run is complete without it.")


def _preview(workdir: Path, inputs: Inputs, test: Pipeline) -> dict[str, np.ndarray]:
  """Draws the first test images; returns them by caption, ``[n, H, W, C]``."""
  shown = min(8, len(test), test.batch_size)
  first = next(test.all_records(limit=shown))
  spec, key = inputs.spec, inputs.key_fingerprint
  title = f"{spec['scheme']}  key {key}" if key else "plain: no disguise"
  disguised = processes.on_host(first.images)[:shown]
  if Trait.TOKENS in schemes.traits(spec):
    disguised = disguised.swapaxes(2, 3)
  rows = {"disguised": disguised}
  if inputs.originals is not None:
    rows = {"originals": inputs.originals[1].images[:shown], **rows}
  if not processes.first():
    return rows
  sheet, content = picture.sheet(rows, title=title), io.BytesIO()
  sheet.save(content, "png")
  files.replace(workdir / "preview.png", content.getvalue(), mode=0o600)
  terminal.show(sheet)
  return rows
