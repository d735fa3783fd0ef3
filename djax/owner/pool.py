"""Worker processes for the shards of a job.

The secret of the data set, not the master key, reaches them through pipes: no argument or file shows it.
"""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from djax import keys
from djax.errors import ConfigError, DjaxError
from djax.keys import Streams
from djax.owner.plan import Job
from djax.owner.shards import Task, Worker

__all__ = ["refuse_inside_import", "run"]

_IMPORTED = 97


def run(
  job: Job,
  secret: Streams,
  tasks: Sequence[Task],
  *,
  workers: int,
  advance: Callable[[int], None],
) -> None:
  """Does tasks in several processes, or in this one if ``workers`` is 1.

  Args:
    job: what to do; sent to the processes.
    secret: of the data set; its bytes go through pipes between parent and child alone.
    tasks: what to do, in order.
    workers: number of processes.
    advance: called now and then with the number of records that were done since.

  Raises:
    DjaxError: the first error of a worker, or a worker's death.
  """
  workers = min(workers, len(tasks))
  if workers <= 1:
    with contextlib.closing(Worker(job, secret)) as worker:
      for task in tasks:
        worker.run(task, advance)
    return
  # Fresh interpreters: JAX's threads do not survive a fork.
  context = multiprocessing.get_context("spawn")
  pipes: dict[Any, Any] = {}
  resource_tracker.ensure_running()  # it would unmask what is masked below
  try:
    for _ in range(workers):
      ours, theirs = context.Pipe()
      process = context.Process(target=_serve, args=(theirs,), daemon=True)
      # Inherited: Ctrl-C reaches all processes of a terminal, and a worker that starts would show its traceback.
      unmasked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
      process.start()
      signal.pthread_sigmask(signal.SIG_SETMASK, unmasked)
      theirs.close()
      pipes[ours] = process
      ours.send_bytes(keys.secret_bytes(secret))
      ours.send(job)
    _distribute(pipes, list(tasks), advance)
  finally:
    for pipe, process in pipes.items():
      pipe.close()
      process.terminate()
      process.join()


def _distribute(pipes: dict[Any, Any], waiting: list[Task], advance: Callable[[int], None]) -> None:
  """Hands out tasks until all are done."""
  busy = set(pipes)
  for pipe in pipes:
    pipe.send(waiting.pop(0))
  while busy:
    ready: list[Any] = wait(list(busy))
    for pipe in ready:
      try:
        message = pipe.recv()
        if message is None and waiting:
          pipe.send(waiting.pop(0))
          continue
      except (EOFError, ConnectionError):
        pipes[pipe].join()
        raise _early_end(pipes[pipe].exitcode) from None
      if isinstance(message, Exception):
        raise message
      if message is None:
        busy.discard(pipe)
      else:
        advance(message)


def refuse_inside_import() -> None:
  """Ends a worker whose import of the calling script comes to the call again, before it does any work.

  Workers are fresh interpreters that import the script. Without a main guard it would disguise once a worker.
  """
  if getattr(multiprocessing.current_process(), "_inheriting", False):
    raise SystemExit(_IMPORTED)


def _early_end(exit_code: int) -> DjaxError:
  """Says how a worker ended, and no cause that is not known."""
  if exit_code == _IMPORTED:
    return ConfigError(
      "disguise: a script that calls it must do so below `if __name__ == '__main__':`, since worker processes import "
      "the script. Or give workers=1."
    )
  how = f"exit code {exit_code}" if exit_code >= 0 else f"killed by signal {-exit_code}"
  return DjaxError(
    f"a worker process ended early ({how}). Re-run the command; whole shards are kept. Fewer --workers use less memory."
  )


def _serve(pipe: Connection) -> None:
  """Runs a worker: gets secret, job, then tasks. Sends counts, None after a task, or the error that ended it."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    secret = Streams(pipe.recv_bytes(), expansion=keys.DATA_SETS)
    worker = Worker(pipe.recv(), secret)
    while True:
      worker.run(pipe.recv(), lambda count: pipe.send(count))
      pipe.send(None)
  except (EOFError, ConnectionError):
    return  # the parent has gone
  except Exception as error:
    pipe.send(
      error if isinstance(error, DjaxError) else DjaxError(f"{type(error).__name__}: {error}")
    )
