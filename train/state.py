"""The state of a run: how it is made, applied to images, saved and restored.

A checkpoint is a folder that Orbax writes, with all that training needs, and one plain file with what answering needs:
the network alone. It is finished when its checksums are recorded.
"""

import concurrent.futures
import contextlib
import functools
import logging
import math
import os
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from djax.cli import boundary
from djax.errors import DataError, DjaxError
from djax.io import files, foreign
from djax.models import checksums, weights
from djax.models.network import Network, logits
from train import processes

T = TypeVar("T")

__all__ = [
  "Best",
  "State",
  "forward",
  "initial",
  "network",
  "remove_unfinished",
  "restore",
  "save",
  "shardings",
  "with_network",
]

_SPARE_BYTES = 1 << 20
_KEPT = 2  # checkpoints


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


class Best(NamedTuple):
  """The network that did best on the validation split so far; of equals the first.

  Attributes:
    accuracy: in 0..1.
    step: after which it was judged.
    network: its arrays, on the host.
  """

  accuracy: float
  step: int
  network: Network


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
    estimates: entries of ``batch_stats`` that the network took from the training images, see ``djax.models``.
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


def shardings(state: State, mesh: Mesh, *, parameters: bool) -> State:
  """Returns where each array of a state lies.

  Args:
    state: of arrays.
    mesh: with one axis ``data``.
    parameters: whether each device holds a share of parameters, their average and the optimizer's state, along their
      longest axis that the devices divide; False: all of them on every device.

  Returns:
    The same tree, of ``NamedSharding``.
  """
  replicated = NamedSharding(mesh, PartitionSpec())

  def share(leaf: jax.Array) -> NamedSharding:
    axes = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
    if not axes:
      return replicated
    longest = max(axes, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))

  placed = jax.tree.map(lambda leaf: replicated, state)
  if not parameters:
    return placed
  shared = ("params", "average", "opt_state")
  return placed._replace(**{name: jax.tree.map(share, getattr(state, name)) for name in shared})


def forward(model: nn.Module, state: State, images: jax.Array) -> jax.Array:
  """Returns float32 logits ``[B, K]`` of disguised images, float32 ``[B, H, W, C]``, outside of training."""
  return logits(model, network(state), images)


def network(state: State) -> Network:
  """Returns the part of a state that classifies images."""
  return Network(state.average or state.params, state.batch_stats, state.mean, state.scale)


def with_network(state: State, chosen: Network) -> State:
  """Returns a state that is tested with another network of the same run."""
  tested = "average" if state.average else "params"
  return state._replace(**{tested: chosen.params}, batch_stats=chosen.batch_stats)


def _updated(stats: Mapping[str, Any], estimates: Mapping[str, Any]) -> dict[str, Any]:
  """Replaces leaves of ``stats`` by those of ``estimates``, which has no others."""
  updated = dict(stats)
  for name, value in estimates.items():
    if isinstance(value, Mapping):
      updated[name] = _updated(stats[name], value)
    else:
      assert stats[name].shape == value.shape and stats[name].dtype == value.dtype, name
      updated[name] = jnp.asarray(value)
  return updated


def remove_unfinished(workdir: Path) -> None:
  """Removes checkpoints that were never finished, and whatever else lies there; nobody else may write to the run."""
  _remove_old(workdir)  # where the process ended right before it did
  finished = set(map(str, checksums.recorded(workdir)))
  for entry in (workdir / checksums.CHECKPOINTS).iterdir():
    if entry.name not in finished:
      _remove(entry)


def save(workdir: Path, step: int, state: State, seconds: float, best: Best | None = None) -> None:
  """Writes a checkpoint and records it; of the finished ones, the two newest are kept.

  Each process writes what its devices hold, and the first the rest.

  Args:
    workdir: the run directory, absolute.
    step: of the state.
    state: all that training needs.
    seconds: spent on it.
    best: the network that answers questions; None: that of the state.

  Raises:
    DjaxError: if the disk has no room for it.
    OSError: if it cannot be written.
  """
  folder = workdir / checksums.CHECKPOINTS / str(step)
  # Looked at first: what Orbax's threads print when a disk is full hides the one line that helps.
  needed = 2 * _nbytes(state) + _nbytes(network(state)) + _SPARE_BYTES
  free = shutil.disk_usage(workdir).free
  if free < needed:
    raise DjaxError(
      f"the run directory needs {needed / 1e6:.1f} MB free for the next checkpoint, got {free / 1e6:.1f} MB. "
      "Make room and re-run the command."
    )
  meta: dict[str, Any] = {"seconds": seconds}
  if best:
    meta["best"] = {"accuracy": best.accuracy, "step": best.step}
  args = ocp.args.Composite(
    state=ocp.args.StandardSave(state._asdict()), meta=ocp.args.JsonSave(meta)
  )
  try:
    with _hushed():
      whole = _apart(functools.partial(_written, folder, args, state))
  except Exception as error:  # Orbax and TensorStore each have their own
    raise DjaxError(
      f"the run directory must be writable, got {_reason(error)} for {folder}. Make room and re-run "
      "the command."
    ) from error
  if not whole:
    raise DjaxError(
      f"{folder} reads back as something else than was written. Check the disk, and re-run the command."
    )
  answering = best.network if best else processes.on_host(network(state))
  with processes.together("record a checkpoint"):
    if processes.first():
      (folder / checksums.NETWORK).write_bytes(weights.dump(answering))
      checksums.write(workdir, step)
      _remove_old(workdir)


def restore(
  workdir: Path, record: checksums.Record | None, state: State
) -> tuple[State, float, Best | None]:
  """Reads a finished checkpoint, after all files that its record names are verified.

  Security: checksums detect damage, not who wrote the run. What Orbax and TensorStore do with files that somebody made
  for them, with checksums that fit, is up to them; to answer questions, ``djax.models.predict`` needs neither.

  Args:
    workdir: the run directory, absolute.
    record: of its newest checkpoint, or None where there is none.
    state: shapes, dtypes and shardings to restore to: arrays, or ``jax.ShapeDtypeStruct``.

  Returns:
    State, seconds spent on it, and the best network so far where there is a validation split; the state given, 0 and
    None where there is no checkpoint.

  Raises:
    DataError: if anything is missing, damaged or of another run.
  """
  if record is None:
    return state, 0.0, None
  folder = f"{checksums.CHECKPOINTS}/{record.step}"
  network_file = f"{folder}/{checksums.NETWORK}"
  copied = {name: content for name, content in record.checkpoint.items() if name != network_file}
  checksums.verify(
    workdir, record, limit=checksums.limit(weights.size(network(state))), apart_from=copied
  )
  args = ocp.args.Composite(state=_restored_as(state), meta=ocp.args.JsonRestore())
  with foreign.private_copies(workdir, copied) as copies, _orbax() as orbax:
    hook = _without_late_reports()
    try:
      restored = orbax.restore(copies / folder, args=args)
      restored_state, seconds = State(**restored["state"]), float(restored["meta"]["seconds"])
      sound = int(restored_state.step) == record.step and math.isfinite(seconds) and seconds >= 0
      best = None
      if noted := restored["meta"].get("best"):
        best = Best(float(noted["accuracy"]), int(noted["step"]), network(restored_state))
        sound = sound and 0 <= best.accuracy <= 1 and 0 < best.step <= record.step
      sys.unraisablehook = hook
    except Exception as error:  # Orbax, TensorStore and msgpack each have their own
      raise DataError(
        f"{workdir / folder} must be a checkpoint of this run, it cannot be read ({type(error).__name__}). "
        "Take the run from a good copy."
      ) from error
  if not sound:
    raise DataError(
      f"{workdir / folder} must be a checkpoint of step {record.step}, it is not. Take the run from a good copy."
    )
  if best:
    size = weights.size(best.network)
    data = checksums.checked(workdir, record, network_file, limit=size)
    try:
      best = best._replace(network=weights.load(data, best.network))
    except ValueError:
      raise DataError(
        f"{workdir / network_file} must hold the network of this run, it holds another. Take the run from a good copy."
      ) from None
  return restored_state, seconds, best


def _written(folder: Path, args: Any, state: State) -> bool:
  """Writes a checkpoint, and returns whether it reads as it should: Orbax passes over some errors of the disk."""
  with _orbax() as orbax:
    orbax.save(folder, args=args)
    restored = orbax.restore(folder, args=ocp.args.Composite(state=_restored_as(state)))["state"]
  pairs = zip(jax.tree.leaves(restored), jax.tree.leaves(state._asdict()), strict=True)
  return all(
    np.asarray(mine.data).tobytes() == np.asarray(yours.data).tobytes()
    for a, b in pairs
    for mine, yours in zip(a.addressable_shards, b.addressable_shards, strict=True)
  )


def _restored_as(state: State) -> ocp.args.StandardRestore:
  """Asks Orbax for shapes, dtypes and shardings of a state."""
  return ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, state._asdict()))


def _apart(work: Callable[[], T]) -> T:
  """Does something in a thread that no process waits for at its end, and so do the threads that it starts.

  Where a folder of a checkpoint cannot be made, Orbax raises, but its own threads wait for that folder, for minutes.
  """
  outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

  def run() -> None:
    try:
      outcome.set_result(work())
    except BaseException as error:
      outcome.set_exception(error)

  threading.Thread(target=run, daemon=True).start()
  return outcome.result()


def _orbax() -> ocp.Checkpointer:
  """Returns what writes and reads a checkpoint, in one go: it is hashed right after."""
  return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


def _without_late_reports() -> Any:
  """Drops what Orbax's threads and coroutines report late, after a failure; returns the hook before."""
  before = sys.unraisablehook

  def hook(report: Any) -> None:
    code = getattr(report.object, "cr_code", None)
    if "Event loop is closed" in str(report.exc_value) or "orbax" in getattr(
      code, "co_filename", ""
    ):
      return
    before(report)

  sys.unraisablehook = hook
  return before


def _remove_old(workdir: Path) -> None:
  """Removes finished checkpoints but for the newest."""
  for old in checksums.recorded(workdir)[:-_KEPT]:
    checksums.forget(workdir, old)
    _remove(workdir / checksums.CHECKPOINTS / str(old))


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
  """Silences what Orbax's threads print when a write fails, also afterwards: the caller prints one line."""
  log, hooks = logging.getLogger("asyncio"), (sys.excepthook, sys.unraisablehook)
  level = log.level
  log.setLevel(logging.CRITICAL + 1)
  silent: Any = lambda *_: None  # noqa: E731
  sys.excepthook, sys.unraisablehook = silent, silent
  try:
    yield
  except BaseException:
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    raise
  sys.excepthook, sys.unraisablehook = hooks
  log.setLevel(level)


def _reason(error: BaseException) -> str:
  """Returns the system's word for an error, however deep libraries hid it."""
  for cause in boundary.chain(error):
    if isinstance(cause, OSError) and cause.strerror:
      return cause.strerror
  number = re.search(r"os_error_code='([0-9]+)'", str(error))
  return os.strerror(int(number[1])) if number else type(error).__name__


def _nbytes(tree: Any) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _remove(path: Path) -> None:
  """Removes a file, a link or a folder."""
  with files.named(path):
    if path.is_dir() and not path.is_symlink():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)
