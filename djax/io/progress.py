"""A bar on a terminal that shows how far some work is."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from djax.io import escape

__all__ = ["bar"]

_NOTEBOOK = "JPY_PARENT_PID"  # every Jupyter kernel has it, and so has what a cell runs


@contextlib.contextmanager
def bar(
  label: str, *columns: ProgressColumn, transient: bool = True, **task: Any
) -> Iterator[Callable[..., None] | None]:
  """Yields a function that moves a bar on stderr, or None where nothing moves.

  That is where stderr is no terminal, and in a notebook, which gives its commands a terminal but shows the control
  characters of a bar as they are.

  Args:
    label: beside the bar; may come from outside.
    *columns: between the bar and the time that is left.
    transient: whether the bar is taken away in the end.
    **task: ``total``, ``completed`` and fields of the columns, as the function takes them too, and ``advance``.
  """
  if not sys.stderr.isatty() or _NOTEBOOK in os.environ:
    yield None
    return
  shown = (TextColumn("{task.description}", markup=False), BarColumn(), *columns)
  console = Console(stderr=True)
  with Progress(*shown, TimeRemainingColumn(), console=console, transient=transient) as progress:
    number = progress.add_task(escape.for_terminal(label), **{"total": None, **task})
    yield functools.partial(progress.update, number)
