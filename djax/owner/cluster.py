"""A Dask cluster that writes the shards of a job. Its workers see originals and key, so it must be the owner's.

A task is a text of paths, numbers and public facts. Each worker reads the plan in the directory and opens the key file
by its path, with a passphrase from its own file or environment. The secret is in no task, argument, pickle or log:
``keys.Streams`` refuses to be pickled, and a worker returns a count.
"""

import contextlib
import dataclasses
import ipaddress
import json
import logging
import os
import queue
import secrets
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import djax
from djax import sources
from djax.disguised.quantise import Quantiser
from djax.errors import ConfigError, DjaxError, KeyMismatchError, UnsafeError
from djax.keys import keyfile
from djax.owner import shards, unfinished
from djax.owner.export import Engine
from djax.owner.plan import Job, Request
from djax.owner.shards import Task, Worker

__all__ = ["Cluster", "connected", "work"]

_CONNECT_SECONDS = 30
_LOOK_SECONDS = 2.0
# A network disk shows a new file to another machine only when what that one knows of the folder has grown old.
_VISIBLE_SECONDS = 90


class Cluster(NamedTuple):
  """A cluster, and where its workers find the key.

  Attributes:
    scheduler: address, ``tls://HOST:PORT`` or, on this machine, ``tcp://127.0.0.1:PORT``.
    key: path of the key file, the same on all workers.
    passphrase_file: path of the file with its passphrase, the same on all workers; empty: their environment has it.
    tls_ca_file: certificate of the authority that signed those of scheduler, workers and client; PEM, as the next two.
    tls_cert: the client's certificate.
    tls_key: its key; empty if the file of the certificate holds it.
    without_tls: whether addresses may be taken that other machines reach without TLS.
  """

  scheduler: str
  key: str | os.PathLike[str]
  passphrase_file: str | os.PathLike[str] = ""
  tls_ca_file: str = ""
  tls_cert: str = ""
  tls_key: str = ""
  without_tls: bool = False


@contextlib.contextmanager
def connected(
  cluster: Cluster, *, say: Callable[[str], None] = lambda line: None
) -> Iterator[Engine]:
  """Connects to a cluster, and yields what does the tasks of a job there.

  Args:
    cluster: which.
    say: called with a line on what the workers see, and with one while there are none.

  Yields:
    The ``engine`` for ``export.disguise``. A task goes to another worker if its own dies; the first error of a worker
    ends the work. Whole shards are kept.

  Raises:
    ConfigError: for an address or files of TLS that cannot work, or if ``dask.distributed`` is not installed.
    UnsafeError: if others could reach the scheduler or a worker without TLS, unless ``without_tls``: whoever reaches
      one can run programs there, and so read the key.
    DjaxError: if the scheduler does not answer, or is lost; or as a worker says.

  Security:
    Without TLS whoever has an account on this machine reaches a scheduler on 127.0.0.1 as well, and can read the key.

    A worker holds the secret of the data set in memory until the work ends, or if it does not hear of that until
    another work begins or the worker ends.
  """
  _check(cluster)
  distributed = _distributed()
  options = {}
  if cluster.tls_cert:
    options["security"] = security = distributed.Security(
      tls_ca_file=cluster.tls_ca_file,
      tls_client_cert=cluster.tls_cert,
      tls_client_key=cluster.tls_key or None,
      require_encryption=True,
    )
    try:
      security.get_connection_args("client")
    except ssl.SSLError as error:
      raise ConfigError(
        f"the files of --tls-ca-file, --tls-cert and --tls-key must fit together, and be PEM; they do not "
        f"({_first_line(error)}). Correct the paths."
      ) from None
  with _silent("distributed"):
    try:
      client = distributed.Client(
        cluster.scheduler, timeout=_CONNECT_SECONDS, set_as_default=False, **options
      )
    except Exception as error:  # of sockets, TLS or versions, as it comes
      raise DjaxError(
        f"the scheduler {cluster.scheduler} must answer within {_CONNECT_SECONDS} s, it did not "
        f"({_first_line(error)}). Start it, or correct --scheduler."
      ) from None
    try:
      if not cluster.without_tls:  # it may listen to more than the address that was given
        _refuse_open(client.scheduler_info()["address"], "scheduler")
      say(f"the workers of {cluster.scheduler} see originals and key: the cluster must be yours")
      yield _Connection(client, cluster, say).run
    finally:
      client.close()


class _Connection:
  """Has tasks done by the workers of a scheduler."""

  def __init__(self, client: Any, cluster: Cluster, say: Callable[[str], None]):
    self._client, self._cluster, self._say = client, cluster, say
    self._name = f"djax-{secrets.token_hex(8)}"  # nothing of another run counts as done

  def run(self, job: Job, tasks: Sequence[Task], advance: Callable[[int], None]) -> None:
    """Does tasks, as ``export.Engine``."""
    facts = _facts(job, self._cluster, self._name)
    counts = [len(job.rows(task.split, task.index)) for task in tasks]
    done = [0] * len(tasks)
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Dask calls these from threads of its own; what they say is acted on in this one.
    self._client.subscribe_topic(self._name, lambda event: heard.put(event[1]))
    keys = [f"{self._name}-{'scan' if task.scan else 'write'}-{i}" for i, task in enumerate(tasks)]
    texts = [_text(i, task) for i, task in enumerate(tasks)]
    futures = self._client.map(work, [facts] * len(tasks), texts, key=keys, pure=False)
    number_of = {future.key: i for i, future in enumerate(futures)}
    for future in futures:
      future.add_done_callback(heard.put)
    left, warned = len(tasks), False
    try:
      while left:
        try:
          message = heard.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
          warned = self._look_for_workers(warned)
          continue
        if isinstance(message, list | tuple):
          number, count = message
        else:
          self._refuse_failed(message, job, tasks[number_of[message.key]])
          number = number_of[message.key]
          count, left = counts[number], left - 1
        # A task that was begun again on another worker counts from where the first one was.
        if count > done[number]:
          advance(count - done[number])
          done[number] = count
    finally:
      if self._client.status == "running":
        with contextlib.suppress(Exception):  # of a scheduler that goes in this moment
          if left:
            self._client.cancel(futures)
          self._client.run(_forget, self._name, on_error="ignore")
    _wait_until_seen(job, tasks)

  def _look_for_workers(self, warned: bool) -> bool:
    """Says once if there are no workers, and returns whether there are none."""
    try:
      workers = self._client.scheduler_info()["workers"]
    except Exception:
      raise self._lost() from None
    if not workers and not warned:
      self._say(f"the scheduler {self._cluster.scheduler} has no workers; waiting for one")
    return not workers

  def _refuse_failed(self, future: Any, job: Job, task: Task) -> None:
    """Raises what a task ended with, if it is not done."""
    if future.status == "finished":
      return
    if future.status != "error":
      raise self._lost()
    error = future.exception()
    if isinstance(error, DjaxError):
      raise error
    if type(error).__name__ == "KilledWorker":
      raise DjaxError(
        f"{job.shard_file(task.split, task.index)}: {error.allowed_failures + 1} workers ended, one after the other, "
        f"while they worked on it, last {error.last_worker.address}. Look at their logs, then re-run the command; "
        "whole shards are kept."
      )
    raise DjaxError(
      f"a task failed on the cluster ({type(error).__name__}: {_first_line(error)}). Look at the logs of scheduler and "
      f"workers, which all need djax {djax.__version__} with its extra cluster, then re-run the command."
    )

  def _lost(self) -> DjaxError:
    return DjaxError(
      f"the connection to the scheduler {self._cluster.scheduler} was lost. Re-run the command when it runs again; "
      "whole shards are kept."
    )


def work(facts: str, text: str) -> int:
  """Does a task on a worker, and returns the number of its records.

  Args:
    facts: JSON of ``_facts``.
    text: JSON of ``_text``.

  Raises:
    DjaxError: what went wrong, with the address of the worker.
  """
  worker = _distributed().get_worker()
  try:
    job, doer = _opened(facts, worker.address)
    number, task = _task(text)
    done = 0

    def advance(count: int) -> None:
      nonlocal done
      done += count
      worker.log_event(json.loads(facts)["run"], [number, done])

    doer.run(task, advance)
    return len(job.rows(task.split, task.index))
  except DjaxError as error:
    raise type(error)(f"worker {worker.address}: {error}") from None
  except Exception as error:
    raise DjaxError(
      f"worker {worker.address}: {type(error).__name__}: {_first_line(error)}"
    ) from None


class _Held(NamedTuple):
  """What a thread of a worker keeps from task to task: opening a key takes a part of a second."""

  facts: str
  job: Job
  doer: Worker


_held: dict[int, _Held] = {}
_opening = threading.Lock()  # the passphrase is taken out of the environment once


def _opened(facts: str, address: str) -> tuple[Job, Worker]:
  """Returns the job, and what does its tasks in this thread: it is not for two at a time."""
  thread = threading.get_ident()
  held = _held.get(thread)
  if held is None or held.facts != facts:
    _held.pop(thread, None)
    with _opening:
      held = _held[thread] = _Held(facts, *_open(json.loads(facts), address))
  return held.job, held.doer


def _open(facts: dict[str, Any], address: str) -> tuple[Job, Worker]:
  """Opens the key and reads the plan, if they and this machine are what the work was planned with."""
  if facts["djax"] != djax.__version__:
    raise ConfigError(
      f"all machines must have one version of djax, got {djax.__version__} here and {facts['djax']} where the work was "
      "planned. Install the same one."
    )
  if not facts["without_tls"]:
    _refuse_open(address, "worker")
  passphrase = keyfile.find_passphrase(facts["passphrase_file"] or None, ask=False)
  master = keyfile.read(facts["key"], passphrase=passphrase)
  reading = sources.Reading(**facts["request"].pop("reading"))
  request = Request(**facts["request"], reading=reading)
  job = unfinished.job_of(Path(facts["out"]), request, facts["snapshots"])
  if master.fingerprint != job.manifest.key_fingerprint:
    raise KeyMismatchError(
      f"{facts['key']} must hold the key {job.manifest.key_fingerprint} of the plan, got {master.fingerprint}. "
      "Give all workers the same file."
    )
  return job, Worker(job, master.data_set(job.manifest.id, job.manifest.spec))


def _forget(run: str) -> None:
  """Drops the secret of a work that has ended."""
  for thread, held in list(_held.items()):
    if json.loads(held.facts)["run"] == run:
      _held.pop(thread, None)


def _facts(job: Job, cluster: Cluster, run: str) -> str:
  """Returns what all tasks of a run share."""
  return json.dumps(
    {
      "djax": djax.__version__,
      "run": run,
      "out": _path(job.out),
      "key": _path(cluster.key),
      "passphrase_file": cluster.passphrase_file and _path(cluster.passphrase_file),
      "without_tls": cluster.without_tls,
      "request": dataclasses.asdict(_absolute(job.request)),
      "snapshots": dict(job.snapshots),
    }
  )


def _absolute(request: Request) -> Request:
  """Returns a request whose paths do not depend on the folder that a process runs in, or on its environment."""
  reading = request.reading
  data_dir = reading.data_dir or os.environ.get("TFDS_DATA_DIR")
  if data_dir:
    reading = dataclasses.replace(reading, data_dir=_path(data_dir))
  if reading.group_by.lower().endswith(".csv") and "(" not in reading.group_by:
    reading = dataclasses.replace(reading, group_by=_path(reading.group_by))
  source = request.source
  kind = next(kind for kind in sources.SOURCES if kind.matches(source))
  if kind.name in ("folder", "npz"):
    source = _path(source)
  return dataclasses.replace(request, source=source, reading=reading)


def _path(path: str | os.PathLike[str]) -> str:
  return os.path.abspath(os.path.expanduser(path))


def _text(number: int, task: Task) -> str:
  """Returns a task as JSON."""
  steps = None
  if task.quantiser is not None:
    steps = [np.asarray(x).tolist() for x in (task.quantiser.offset, task.quantiser.scale)]
  return json.dumps([number, task.split, task.index, task.scan, steps])


def _task(text: str) -> tuple[int, Task]:
  """Reads what ``_text`` wrote."""
  number, split, index, scan, steps = json.loads(text)
  quantiser = None
  if steps is not None:
    quantiser = Quantiser(*(np.array(x, np.float32) for x in steps))
  return number, Task(split, index, scan, quantiser)


def _wait_until_seen(job: Job, tasks: Sequence[Task]) -> None:
  """Waits until this machine sees what the workers wrote."""
  end = time.monotonic() + _VISIBLE_SECONDS
  found = shards.scanned if tasks[0].scan else shards.written
  unseen = list(tasks)
  while unseen := [task for task in unseen if found(job, task) is None]:
    if time.monotonic() > end:
      name = job.shard_file(unseen[0].split, unseen[0].index)
      raise DjaxError(
        f"{job.out} must be one directory on all machines, but {name}, which a worker wrote, is not seen here after "
        f"{_VISIBLE_SECONDS} s. Re-run the command, or give another --out."
      )
    time.sleep(0.5)


def _check(cluster: Cluster) -> None:
  """Refuses an address, or files of TLS, that cannot work."""
  parts = urllib.parse.urlsplit(cluster.scheduler)
  try:
    whole = parts.scheme in ("tcp", "tls") and parts.hostname and parts.port and not parts.path
  except ValueError:  # a port that is none
    whole = False
  if not whole:
    raise ConfigError(
      f"--scheduler must be tls://HOST:PORT or tcp://HOST:PORT, got {cluster.scheduler!r}."
    )
  files = {
    "--tls-ca-file": cluster.tls_ca_file,
    "--tls-cert": cluster.tls_cert,
    "--tls-key": cluster.tls_key,
  }
  given = [flag for flag, path in files.items() if path]
  if parts.scheme == "tcp" and given:
    raise ConfigError(
      f"{given[0]} needs a scheduler at tls://, got {cluster.scheduler}. Correct --scheduler."
    )
  if parts.scheme == "tls" and not (cluster.tls_ca_file and cluster.tls_cert):
    raise ConfigError(
      f"{cluster.scheduler} needs --tls-ca-file and --tls-cert, and --tls-key if the certificate's file holds no key; "
      f"got {', '.join(given) or 'none of them'}."
    )
  for flag in given:
    if not os.access(files[flag], os.R_OK) or not os.path.isfile(files[flag]):
      raise ConfigError(
        f"{flag} must be a file that can be read, {files[flag]} is not. Correct the path."
      )
  if not cluster.without_tls:
    _refuse_open(cluster.scheduler, "scheduler")


def _refuse_open(address: str, what: str) -> None:
  """Refuses an address that other machines reach without TLS."""
  parts = urllib.parse.urlsplit(address)
  host = parts.hostname or ""
  try:
    here = ipaddress.ip_address(host).is_loopback
  except ValueError:
    here = host == "localhost"
  if parts.scheme == "tls" or here:
    return
  raise UnsafeError(
    f"the {what} must be reached by TLS or on this machine alone, got {address}: whoever reaches it can run programs "
    "on the workers and read the key. Start it with TLS or on 127.0.0.1, or give --without-tls if the network is yours."
  )


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
  """Keeps a library's log off the terminal: what matters of it comes as an error."""
  # Those below it have levels and handlers of their own.
  named = [one for one in logging.root.manager.loggerDict if f"{one}.".startswith(f"{name}.")]
  loggers = [logger for logger in map(logging.getLogger, named) if not logger.disabled]
  for logger in loggers:
    logger.disabled = True
  try:
    yield
  finally:
    for logger in loggers:
      logger.disabled = False


def _first_line(error: BaseException) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _distributed() -> Any:
  """Returns ``dask.distributed``, which is an extra and takes most of a second to import."""
  try:
    import distributed
  except ImportError:
    raise ConfigError(
      "--engine dask needs dask.distributed. Run: pip install 'djax[cluster]'"
    ) from None
  return distributed
