"""How a run talks and listens: signals, a progress bar on a terminal, plain lines elsewhere."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["progress", "say", "signals"]


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
  """Collects SIGTERM and SIGINT; a second one of a kind does what it always did.

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
def progress(total: int, done: int, label: str) -> Iterator[Callable[[], None]]:
  """Shows a bar on a terminal; elsewhere the epoch lines are enough.

  Args:
    total: steps of the whole run.
    done: steps done already.
    label: what stands beside the bar.

  Yields:
    A function to call after every step.
  """
  if not sys.stderr.isatty():
    yield lambda: None
    return
  from rich.console import Console
  from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

  columns = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
  )
  with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
    task = bar.add_task(label, total=total, completed=done)
    yield lambda: bar.advance(task)


def say(text: str) -> None:
  """Prints a line of talk to stderr; stdout is for results."""
  print(text, file=sys.stderr, flush=True)
