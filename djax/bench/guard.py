"""Compares speeds with stored ones: ratios to the plain loop, to a copy, to raw AES; never seconds."""

from collections.abc import Mapping
from typing import Any

from djax.errors import DataError, DjaxError

__all__ = ["MARGIN", "SlowerError", "compare"]

MARGIN = 4  # other processors, other memory; a busy neighbour halved a ratio, and once took three quarters of it


class SlowerError(DjaxError):
  """A ratio fell below what was stored."""


def compare(measured: Mapping[str, Any], stored: Mapping[str, Any]) -> int:
  """Refuses speeds that are lower, as ratios, than stored ones by more than ``MARGIN``: a lost jit, not a lost fifth.

  Of what is measured now the better quartile counts, of what is stored the median.

  Args:
    measured: now, as ``--json`` prints it.
    stored: measured earlier; it may hold more rows.

  Returns:
    How many ratios were compared.

  Raises:
    SlowerError: naming every ratio that fell.
    DataError: if the two have no ratio in common.
  """
  before, now = _ratios(stored, 0), _ratios(measured, 1)
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


def _ratios(results: Mapping[str, Any], better: int) -> dict[str, float]:
  """Returns every ratio by name: medians, or with ``better`` 1 the better quartiles."""
  try:
    ratios = {}
    for row in results["disguises"]:
      spec = " ".join(f"{name}={value}" for name, value in sorted(row["spec"].items()))
      for other, (median, _, upper) in row["times"].items():
        name = f"{row['where']} {spec} batch={row['batch']} against {other}"
        ratios[name] = (median, upper)[better]
    for row in results["steps"]:
      median, lower, _ = row["times"]
      name = f"step of {row['model']} batch={row['batch']}, plain over disguised"
      ratios[name] = 1 / (median, lower)[better]
    return ratios
  except (KeyError, TypeError, ValueError, IndexError):
    raise DataError(
      "bench: a file of speeds must be what `python -m djax bench --json` wrote."
    ) from None
