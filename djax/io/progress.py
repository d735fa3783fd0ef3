"""How far some work is, on stderr: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
  BarColumn,
  Progress,
  ProgressColumn,
  TaskProgressColumn,
  TextColumn,
  TimeRemainingColumn,
)
from rich.table import Column

from djax.io import escape, talk

__all__ = ["bar", "counted", "staged"]

_SECONDS_OF_A_LINE = 10
# A shorter stage gives no estimate of what is left.
_SECONDS_TO_TELL = 2
# Below so many columns the bar itself is left out: what is done and what is left is also in words.
_WIDE = 60

_NOTEBOOK = "JPY_PARENT_PID"  # every Jupyter kernel has it, and so has what a cell runs


@contextlib.contextmanager
def bar(
  label: str, *columns: ProgressColumn, transient: bool = True, **task: Any
) -> Iterator[Callable[..., None] | None]:
  """Yields a function that moves a bar on stderr, or None where nothing moves.

  That is where stderr is no terminal or nothing shall be said, and in a notebook, which gives its commands a terminal
  but shows the control characters of a bar as they are.

  Args:
    label: beside the bar; may come from outside.
    *columns: between the bar and the time that is left.
    transient: whether the bar is taken away in the end.
    **task: ``total``, ``completed`` and fields of the columns, as the function takes them too, with ``advance`` and
      ``description``. Where ``completed`` falls, another stage begins, with a time of its own.
  """
  if talk.silent() or not sys.stderr.isatty() or _NOTEBOOK in os.environ:
    yield None
    return
  console = Console(stderr=True)
  text = TextColumn(
    "{task.description}",
    markup=False,
    table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
  )
  shown = (text, *([BarColumn(20)] if console.width >= _WIDE else []), *columns)
  # What goes to stdout is data: rich would print it to stderr while the bar is there.
  with Progress(
    *shown,
    TimeRemainingColumn(compact=True),
    console=console,
    transient=transient,
    redirect_stdout=False,
    expand=True,
  ) as progress:
    number = progress.add_task(escape.for_terminal(label), **{"total": None, **task})

    def update(**changes: Any) -> None:
      if "description" in changes:
        changes["description"] = escape.for_terminal(changes["description"])
      if changes.get("completed", float("inf")) < progress.tasks[0].completed:
        progress.reset(number, **changes)
      else:
        progress.update(number, **changes)

    yield update


@contextlib.contextmanager
def counted(
  label: str, unit: str, say: Callable[[str], None]
) -> Iterator[Callable[[float, float], None]]:
  """Yields a function to be told how much is done, and of how much.

  Args:
    label: what is done.
    unit: of what is counted.
    say: prints a line, where there is no bar.
  """
  start = spoken = time.monotonic()
  rate_column = TextColumn(
    "{task.fields[rate]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
  )
  columns = (TaskProgressColumn(), rate_column)
  with bar(label, *columns, rate="") as update:

    def show_state(done: float, total: float) -> None:
      nonlocal spoken
      now = time.monotonic()
      rate = done / max(now - start, 1e-3)
      if update:
        update(completed=done, total=total, rate=f"{rate:.0f} {unit}/s")
      elif now - spoken >= _SECONDS_OF_A_LINE and done:
        spoken = now
        left = (total - done) / rate
        say(f"{label}: {done / total:.0%}, {rate:.0f} {unit}/s, about {left:.0f} s left")

    yield show_state


@contextlib.contextmanager
def staged(say: Callable[[str], None]) -> Iterator[Callable[[float, str], None]]:
  """Yields a function to be told which share is done and what is being done, ``stage: step``.

  Where the share falls, other work begins, whose time is estimated anew.

  Args:
    say: prints a line, where there is no bar: for each stage, and now and then.
  """
  start = began = spoken = time.monotonic()
  stage, before = "", 0.0
  with bar("", TaskProgressColumn(), total=1) as update:

    def show_state(fraction: float, word: str) -> None:
      nonlocal began, spoken, stage, before
      now = time.monotonic()
      if update:
        update(completed=fraction, description=word)
        return
      if fraction < before:
        began = now
      before = fraction
      name = word.partition(":")[0]
      if name != stage or now - spoken >= _SECONDS_OF_A_LINE:
        spoken, stage = now, name
        told = 0 < fraction < 1 and now - began >= _SECONDS_TO_TELL
        left = f", about {(now - began) * (1 / fraction - 1):.0f} s left" if told else ""
        say(f"{now - start:5.0f} s  {word}, {fraction:.0%}{left}")

    yield show_state
