"""Signals, a progress bar on a terminal, plain lines elsewhere, errors as one line."""

import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from djax.errors import DjaxError
from djax.io.escape import for_terminal

__all__ = ["chain", "guarded", "progress", "say", "signals"]


def guarded(work: Callable[[], int], *, place: str) -> int:
  """Runs a command; an error becomes one line and an exit code.

  Args:
    work: the command; returns its exit code.
    place: what the command writes to, for the line about a disk that is full.

  Returns:
    Exit code: 0 ok, 1 failed, 2 usage or config, 3 key, 4 data, 5 refused for safety, 143/130 after a signal.
  """
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  try:
    return work()
  except DjaxError as error:
    say(f"error: {error}")
    return error.exit_code
  except KeyboardInterrupt:
    return 130
  except Exception as error:
    # Orbax wraps what the file system says in types of its own.
    full = any("No space left" in str(one) for one in chain(error))
    if not full and not isinstance(error, OSError):
      raise
    reason = "no space left on the disk" if full else error
    say(f"error: {place} must be writable, got: {reason}. Make room and re-run the command.")
    return 1


def chain(error: BaseException | None) -> Iterator[BaseException]:
  """Yields an error and what led to it, the first cause last."""
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
  """Collects SIGTERM and SIGINT; a second signal of a kind has its usual effect.

  Yields:
    A list that grows by the number of each signal.
  """
  received: list[int] = []
  previous: dict[int, Any] = {}

  def note(number, frame):
    del frame
    received.append(number)
    signal.signal(number, previous[number])

  numbers: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)
  try:
    for number in numbers:
      previous[number] = signal.signal(number, note)
  except ValueError:  # not the main thread: its owner handles signals
    previous.clear()
  try:
    yield received
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def progress(total: int, done: int, label: str) -> Iterator[Callable[[int], None]]:
  """Shows a bar on a terminal; elsewhere the epoch lines are enough.

  Yields:
    A function to call with the number of steps since it was last called.
  """
  if not sys.stderr.isatty():
    yield lambda steps: None
    return
  columns = (
    TextColumn("{task.description}", markup=False),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
  )
  with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
    task = bar.add_task(for_terminal(label), total=total, completed=done)
    yield lambda steps: bar.advance(task, steps)


def say(text: str) -> None:
  """Prints a line to stderr, escaped: parts of it may come from untrusted files. stdout is for results."""
  print(for_terminal(text), file=sys.stderr, flush=True)
