"""Timing works side by side: every round runs all of them, so that a machine that drifts drifts for all alike."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

__all__ = ["Work", "ratio", "repeated", "side_by_side", "spread"]

Work = Callable[[int], int]

_SECONDS_OF_A_TURN = 0.02


def side_by_side(works: Mapping[str, Work], *, rounds: int) -> dict[str, np.ndarray]:
  """Times works in turns. Each is run twice first, untimed, so that it is compiled and warm.

  Args:
    works: by name; ``work(n)`` does its work ``n`` times or more, returns when all is done, and says how often. A
      short work is given the ``n`` that makes a turn long enough for the clock.
    rounds: turns of each.

  Returns:
    Seconds of one time each work was done, float64 ``[rounds]`` by name.
  """
  times = {}
  for name, work in works.items():
    work(1)
    times[name] = max(1, math.ceil(_SECONDS_OF_A_TURN / max(_seconds(work, 1), 1e-6)))
  seconds: dict[str, list[float]] = {name: [] for name in works}
  for _ in range(rounds):
    for name, work in works.items():
      seconds[name].append(_seconds(work, times[name]))
  return {name: np.array(values) for name, values in seconds.items()}


def repeated(function: Callable[..., Any], *arguments: Any) -> Work:
  """Returns the work of a function, which waits for the device once, at the end.

  Args:
    function: called as often as asked.
    *arguments: its own.
  """

  def work(times: int) -> int:
    for _ in range(times):
      result = function(*arguments)
    jax.block_until_ready(result)
    return times

  return work


def spread(values: np.ndarray) -> list[float]:
  """Returns median and quartiles, in this order: ``[median, lower, upper]``.

  Args:
    values: ``[rounds]``.
  """
  lower, median, upper = np.percentile(values, (25, 50, 75))
  return [_short(median), _short(lower), _short(upper)]


def ratio(slow: np.ndarray, fast: np.ndarray) -> list[float]:
  """Returns how many times as long one work took as another in the same round: ``[median, lower, upper]``.

  Args:
    slow: seconds, ``[rounds]``.
    fast: seconds, ``[rounds]``, of the same rounds.
  """
  return spread(slow / fast)


def _seconds(work: Work, times: int) -> float:
  start = time.perf_counter()
  done = work(times)
  return (time.perf_counter() - start) / done


def _short(value: float) -> float:
  """Keeps four digits: no timing is better than that."""
  return float(f"{value:.4g}")
