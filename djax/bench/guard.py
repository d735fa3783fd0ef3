"""Compares speeds with stored ones: ratios to the plain loop, to a copy, to raw AES; never seconds."""

from collections.abc import Mapping
from typing import Any

from djax.errors import DataError, DjaxError

__all__ = ["MARGIN", "SlowerError", "compare"]

MARGIN = 2.5  # other processors, other memory, a busy neighbour


class SlowerError(DjaxError):
  """A ratio fell below what was stored."""


def compare(found: Mapping[str, Any], stored: Mapping[str, Any]) -> int:
  """Refuses speeds that are lower, as ratios, than stored ones by more than ``MARGIN``.

  Args:
    found: what was measured, as ``--json`` prints it.
    stored: an earlier one; it may hold more rows.

  Returns:
    How many ratios were compared.

  Raises:
    SlowerError: naming every ratio that fell.
    DataError: if the two have no ratio in common.
  """
  before, now = _ratios(stored), _ratios(found)
  common = [name for name in now if name in before]
  if not common:
    raise DataError(
      "bench: --against must hold some of the rows measured now, got none of them. "
      "Give what `python -m djax bench --json` wrote."
    )
  fallen = [
    f"{name} is {now[name]:.3g}, was {before[name]:.3g}"
    for name in common
    if now[name] * MARGIN < before[name]
  ]
  if fallen:
    raise SlowerError(
      f"bench: ratios must stay above 1/{MARGIN:g} of the stored ones: {'; '.join(fallen)}. "
      "Find what became slow, or store new ones and say why."
    )
  return len(common)


def _ratios(results: Mapping[str, Any]) -> dict[str, float]:
  """Returns every median ratio by a name that says what it is of."""
  try:
    found = {}
    for row in results["disguises"]:
      spec = " ".join(f"{name}={value}" for name, value in sorted(row["spec"].items()))
      for other, (median, *_) in row["times"].items():
        found[f"{row['where']} {spec} batch={row['batch']} against {other}"] = median
    for row in results["steps"]:
      found[f"step of {row['model']} batch={row['batch']}, plain over disguised"] = (
        1 / row["times"][0]
      )
    return found
  except (KeyError, TypeError, ValueError, IndexError):
    raise DataError(
      "bench: a file of speeds must be what `python -m djax bench --json` wrote."
    ) from None
