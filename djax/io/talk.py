"""Talk with the person at the terminal, on stderr: lines, in colour on a terminal alone, or nothing but errors."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from djax.io import escape

__all__ = ["coloured", "line", "painted", "quiet", "silent"]

_COLOURS = {"error:": "1;31", "problem": "1;31", "warning:": "33", "warning": "33", "ok": "32"}
_silent = False


@contextlib.contextmanager
def quiet(on: bool) -> Iterator[None]:
  """Leaves errors alone of what is said meanwhile, and shows no bars.

  Args:
    on: whether it does.
  """
  global _silent
  before, _silent = _silent, on
  try:
    yield
  finally:
    _silent = before


def silent() -> bool:
  """Returns whether ``quiet`` is on."""
  return _silent


def line(text: str, *, name: str = "") -> None:
  """Prints a line to stderr whose every character is shown; stdout is for data.

  Args:
    text: may come from outside; an error begins with ``error:``.
    name: of the program, before the text.
  """
  if _silent and not text.startswith("error:"):
    return
  before = f"{name}: " if name else ""
  print(before + painted(escape.for_terminal(text), sys.stderr), file=sys.stderr, flush=True)


def painted(text: str, stream: Any) -> str:
  """Returns a text whose first word has its colour, where the stream shows colours.

  Args:
    text: already escaped.
    stream: that it goes to.
  """
  word, blank, rest = text.partition(" ")
  if word not in _COLOURS or not coloured(stream):
    return text
  return f"\x1b[{_COLOURS[word]}m{word}\x1b[0m{blank}{rest}"


def coloured(stream: Any) -> bool:
  """Returns whether colours are shown: on a terminal that has them, unless ``NO_COLOR`` is set.

  Args:
    stream: such as ``sys.stdout``.
  """
  if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") in ("", "dumb", "unknown"):
    return False
  return bool(stream is not None and stream.isatty())
