"""How a program of djax starts: the name it was called by, and the modules it finds."""

import os
import sys
from pathlib import Path

import djax

__all__ = ["name", "own_modules_first"]


def name(module: str, script: str) -> str:
  """Returns the command that started this process, for usage lines.

  Args:
    module: what ``python -m`` runs, such as ``train``.
    script: the console script that does the same, such as ``djax-train``.
  """
  called = Path(sys.argv[0]).name.removesuffix(".exe") if sys.argv else ""
  return script if called == script else f"python -m {module}"


def own_modules_first() -> None:
  """Makes ``import train`` and ``import configs`` find the packages beside ``djax``, not those of the current folder.

  ``python -m`` searches the current folder first, and somebody's own ``train.py`` may lie there. It is searched last
  from here on, so that a config file can still import its neighbours. Worker processes get the same search path.
  """
  try:
    here = os.path.realpath("")
    own = os.path.samefile(here, Path(djax.__file__).parents[1])
  except OSError:  # the current folder was deleted: nothing lies there
    return
  others = [entry for entry in sys.path if os.path.realpath(entry) != here]
  if not own and len(others) < len(sys.path):
    sys.path[:] = [*others, here]
