"""Several processes that train one run: how they meet, agree and stop together.

Each has the devices of its host, and an array of a step is spread over the devices of all. What is asked of all must be
asked by all, in the same order: a process that goes its own way leaves the others waiting. So they agree first on what
they were given, then on every step that any of them may fail.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

import djax
from djax.errors import ConfigError, DjaxError
from train import terminal

__all__ = [
  "agree",
  "broadcast",
  "end_together",
  "first",
  "greatest",
  "join",
  "left_alone",
  "on_host",
  "put",
  "put_rows",
  "several",
  "stdout_for_results",
  "together",
  "versions",
  "watched",
]

_JOIN_SECONDS = 300
_SILENT_SECONDS = 30  # after which a process counts as gone, and JAX ends the others
_LEAVE_SECONDS = 15
_BIND = "JAX_COORDINATOR_BIND_ADDRESS"
_CONNECT_SECONDS, _AGAIN_SECONDS = 5, 0.5
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_joined = _ended_together = False


def join(
  coordinator: str | None,
  count: int | None,
  process: int | None,
  *,
  seconds: int = _JOIN_SECONDS,
) -> None:
  """Makes this process one of several, before JAX looks for devices.

  Process 0 listens at the address given and at no other, unless ``JAX_COORDINATOR_BIND_ADDRESS`` says where. What the
  processes tell each other is neither secret nor signed: the network between them must be private.

  Args:
    coordinator: ``host:port`` of process 0; None, as the rest: what Slurm, Open MPI, Kubernetes or Cloud TPUs say.
    count: of all processes.
    process: number of this one, from 0.
    seconds: to wait for all others.

  Raises:
    ConfigError: if process 0 cannot or does not listen, or JAX finds no cluster. If another process does not come, JAX
      ends this one.
  """
  global _joined
  if coordinator:
    terminal.say(f"process {process} of {count}: meets the others at {coordinator}")
    # JAX would end the process with a stack trace where one of these refuses.
    if process:
      _wait_for(coordinator, seconds)
    else:
      _try_to_listen(os.environ.get(_BIND) or coordinator)
  try:
    jax.distributed.initialize(
      coordinator,
      count,
      process,
      initialization_timeout=seconds,
      heartbeat_timeout_seconds=_SILENT_SECONDS,
      shutdown_timeout_seconds=_LEAVE_SECONDS,
      coordinator_bind_address=os.environ.get(_BIND) or (coordinator if process == 0 else None),
    )
  except ValueError as error:
    raise ConfigError(
      f"--distributed=auto must find the processes of a cluster that JAX knows, got: {error} Give --coordinator, "
      "--num-processes and --process-id."
    ) from error
  _joined = True


@contextlib.contextmanager
def stdout_for_results() -> Iterator[None]:
  """Sends to stderr what libraries print to stdout meanwhile: Gloo does, and stdout is for results."""
  sys.stdout.flush()
  kept = os.dup(1)
  os.dup2(2, 1)
  try:
    yield
  finally:
    sys.stdout.flush()
    os.dup2(kept, 1)
    os.close(kept)


def several() -> bool:
  """Returns whether this process is one of several."""
  return jax.process_count() > 1


def first() -> bool:
  """Returns whether this process is the one that writes and speaks for all."""
  return jax.process_index() == 0


def left_alone() -> bool:
  """Returns whether this process ends with an error that the others do not know of.

  Then it must not wait for them, as JAX does at the end of a process: they wait for it.
  """
  return _joined and not _ended_together


def end_together() -> None:
  """Notes that the error which now ends this process ends all of them, here and now."""
  global _ended_together
  _ended_together = True


def agree(facts: Mapping[str, Any]) -> None:
  """Compares what the processes were given, by hash: nothing but hashes is exchanged.

  Args:
    facts: by the words for it, what must be the same; of what JSON can hold.

  Raises:
    ConfigError: in all of them, if a process was given anything else than process 0.
  """
  if not several():
    return
  texts = (json.dumps(fact, sort_keys=True).encode() for fact in facts.values())
  own = np.array([list(hashlib.sha256(text).digest()) for text in texts], np.uint8)
  hashes = multihost_utils.process_allgather(own)  # [processes, facts, 32]
  for name, column in zip(facts, hashes.swapaxes(0, 1), strict=True):
    others = np.flatnonzero((column != column[0]).any(-1))
    if len(others):
      end_together()
      raise ConfigError(
        f"all processes of a run must have the same {name}; that of process {others[0]} is not that of process 0. "
        "Start all of them alike."
      )


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
  """Does something in every process; if it fails in one of them, all end.

  Nothing that is asked of all may be within it: who fails before that would leave the others waiting there.

  Args:
    what: it is, for the processes in which it did not fail.

  Raises:
    DjaxError: if it failed in another process, which says why.
  """
  try:
    yield
  except Exception:
    if several():
      # If another is gone by now, the first error counts.
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        multihost_utils.process_allgather(np.array(1))
        end_together()
    raise
  if several():
    failed = np.flatnonzero(multihost_utils.process_allgather(np.array(0)))
    if len(failed):
      end_together()
      raise DjaxError(f"process {failed[0]} could not {what}; its own output says why.")


def greatest(number: int) -> int:
  """Returns the greatest of the numbers that the processes hold.

  Args:
    number: that of this process.
  """
  if not several():
    return number
  return int(np.max(multihost_utils.process_allgather(np.array(number))))


def broadcast(text: str) -> str:
  """Returns the text of process 0.

  Args:
    text: that of this process, in ASCII; as long as those of the others.
  """
  if not several():
    return text
  own = np.frombuffer(text.encode("ascii"), np.uint8)
  return bytes(np.asarray(multihost_utils.broadcast_one_to_all(own))).decode("ascii")


@contextlib.contextmanager
def watched(advice: str) -> Iterator[None]:
  """Turns an error of what all compute together into one line: JAX raises one where another process is lost.

  Args:
    advice: what is kept and what to do.

  Raises:
    DjaxError: if a computation over all processes failed.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if not several() or "RESOURCE_EXHAUSTED" in str(error):
      raise
    raise DjaxError(
      f"what all {jax.process_count()} processes compute together must not fail, got: {_first_line(error)}. {advice}"
    ) from error


def put(tree: Any, sharding: Any) -> Any:
  """Puts arrays that every process holds alike onto the devices of all.

  Args:
    tree: of arrays on the host or on a device of this process, JAX keys among them.
    sharding: ``jax.sharding.Sharding`` of all of them, or a tree of the same structure.
  """
  if not several():
    return jax.device_put(tree, sharding)

  def one(leaf: Any, sharding: Sharding) -> jax.Array:
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
      data = one(jax.random.key_data(leaf), sharding)
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    # Not device_put: it would compare the values over the network, and they may be a key's.
    value = np.asarray(leaf)
    return jax.make_array_from_process_local_data(sharding, value, value.shape)

  if isinstance(sharding, Sharding):
    return jax.tree.map(lambda leaf: one(leaf, sharding), tree)
  return jax.tree.map(one, tree, sharding)


def put_rows(tree: Any, sharding: Any, *, rows: int) -> Any:
  """Puts the rows that each process holds onto its devices.

  Args:
    tree: of arrays on the host, ``[m, ...]``: the rows of this process's devices, in order.
    sharding: ``jax.sharding.Sharding`` over the first axis.
    rows: of all processes.

  Returns:
    Arrays ``[rows, ...]`` over the devices of all.
  """
  if not several():
    return jax.device_put(tree, sharding)
  return jax.tree.map(
    lambda own: jax.make_array_from_process_local_data(sharding, own, (rows, *own.shape[1:])), tree
  )


def on_host(tree: Any) -> Any:
  """Returns arrays of all devices, whole, in the memory of every host; it is asked of all processes.

  Args:
    tree: of arrays, on devices or on the host.
  """

  def one(leaf: Any) -> np.ndarray:
    spread = isinstance(leaf, jax.Array) and not (
      leaf.is_fully_addressable or leaf.is_fully_replicated
    )
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True) if spread else leaf)

  return jax.tree.map(one, tree)


def versions() -> dict[str, str]:
  """Returns the versions that must be the same in all processes."""
  return {
    "python": ".".join(platform.python_version_tuple()[:2]),
    "djax": djax.__version__,
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
  }


def _try_to_listen(address: str) -> None:
  """Refuses an address at which this machine cannot listen."""
  try:
    host, port = _host_and_port(address)
    family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    socket.create_server(place, family=family).close()
  except (OSError, OverflowError, ValueError) as error:
    raise ConfigError(
      f"process 0 must be able to listen at {address}, got: {error}. Give an address of this machine, and a free port."
    ) from error


def _host_and_port(address: str) -> tuple[str, int]:
  host, _, port = address.rpartition(":")
  return host.strip("[]"), int(port)


def _wait_for(address: str, seconds: float) -> None:
  """Waits until somebody listens at an address."""
  end = time.monotonic() + seconds
  while True:
    try:
      socket.create_connection(_host_and_port(address), timeout=_CONNECT_SECONDS).close()
      return
    except (OSError, OverflowError) as error:
      if time.monotonic() > end:
        raise ConfigError(
          f"process 0 must listen at {address} within {seconds:g} s, got: {error}. Start it with the same flag."
        ) from error
    time.sleep(_AGAIN_SECONDS)


def _first_line(error: BaseException) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
