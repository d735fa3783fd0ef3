"""Signals, a progress bar on a terminal, plain lines elsewhere, errors as one line."""

import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image
from rich.progress import MofNCompleteColumn, TextColumn

from djax.cli import boundary
from djax.io import progress as bars
from djax.io import talk

__all__ = ["guarded", "progress", "say", "show", "signals"]


def guarded(work: Callable[[list[str]], int], argv: Sequence[str], *, place: str) -> int:
  """Runs a command; an error becomes one line and an exit code, see ``djax.cli.boundary``.

  Args:
    work: the command; given its arguments, returns its exit code.
    argv: the arguments; ``--debug`` among them shows tracebacks.
    place: what the command writes to, for errors of the file system that name no file.
  """
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  words, debug = boundary.without_debug(argv)
  return boundary.guarded(lambda: work(words), say=say, place=lambda: place, debug=debug)


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
  start, began = time.monotonic(), done
  columns = (MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
  with bars.bar(label, *columns, total=total, completed=done, rate="") as update:

    def advance(steps: int) -> None:
      nonlocal done
      done += steps
      if update:
        rate = (done - began) / max(time.monotonic() - start, 1e-3)
        update(completed=done, rate=f"{rate:.0f} steps/s")

    yield advance


def say(text: str) -> None:
  """Prints a line to stderr, escaped: parts of it may come from untrusted files. stdout is for results."""
  talk.line(text)


def show(picture: Image.Image) -> None:
  """Shows a picture below the cell of a notebook; elsewhere it does nothing."""
  # Where there is a kernel it has loaded IPython; where there is none we do not.
  ipython = sys.modules.get("IPython")
  if ipython and hasattr(ipython.get_ipython(), "kernel"):
    ipython.display.display(picture)
