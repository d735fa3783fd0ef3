"""What is known to break a setting: the table of audits that ships with the package."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from djax import schemes
from djax.schemes import Trait

__all__ = ["FILE", "FORMAT", "classify", "levels", "lookup", "read"]

FILE = Path(__file__).with_name("known_breaks.json")
FORMAT = "djax-audit-table"

_BLOCKS = ((3, "2-3"), (7, "4-7"))
_PLACES = ((16, "up to 16"), (64, "17-64"), (256, "65-256"))
_NOISE = ((0, "no"), (25, "up to 25"), (50, "25-50"), (100, "50-100"))
_VERDICTS = ("broken", "leaks")
_LEVELS = {"1": "from the disguised images alone", "2": "with a few known originals"}


def classify(spec: Mapping[str, Any]) -> str:
  """Returns the class of settings that a disguise belongs to, in words.

  Args:
    spec: ``SchemeSpec.to_dict()``, complete. The shape of the images counts by the number of blocks that are moved.
  """
  size = spec["block_size"]
  height, width, _ = spec["image_shape"]
  count = -(-height // size) * -(-width // size)
  places = next((name for most, name in _PLACES if count <= most), "more than 256")
  blocks = next((name for most, name in _BLOCKS if size <= most), "8 and more")
  words = [f"{spec['scheme']} with blocks of {blocks} pixels"]
  words += schemes.kind_of(spec).breaks(spec)
  moved = count > 1 and Trait.MOVED in schemes.traits(spec)
  words.append(f"permuted among {places} places" if moved else "not permuted")
  return ", ".join(words)


def lookup(spec: Mapping[str, Any], *, path: Path = FILE) -> str | None:
  """Returns in one line what is known to break a setting: the nearest that was audited, and on which data set.

  Args:
    spec: ``SchemeSpec.to_dict()``, complete.
    path: the table.

  Returns:
    The worst that any audited data set of this class of settings showed; None where none was audited, or where none of
    the attacks did anything, which is no reason to rely on it.
  """
  worst = levels(spec, path=path)
  for verdict in _VERDICTS:
    for number, how in _LEVELS.items():
      known = worst[number]
      if known and known["verdict"] == verdict:
        with_pairs = f" ({known['pairs']} pairs)" if known["pairs"] else ""
        setting = named = _named({**spec, **known["disguise"]})
        if _distance(spec, known["disguise"]) > 0:
          setting = f"{named} (the nearest setting audited to {_named(spec)})"
        return (
          f"{setting}: {verdict} {how}{with_pairs} by {', '.join(known['by'])}, as audited on {known['source']}. "
          "On your images: python -m djax audit"
        )
  return None


def levels(spec: Mapping[str, Any], *, path: Path = FILE) -> dict[str, dict[str, Any] | None]:
  """Returns what is known to break a setting, by threat level.

  Args:
    spec: ``SchemeSpec.to_dict()``, complete.
    path: the table.

  Returns:
    For ``"1"`` and ``"2"`` the worst that any audited data set of this class of settings showed: ``verdict``, *broken*
    or *leaks*, ``by``, ``pairs``, ``source`` and the ``disguise`` audited; None as for ``lookup``.
  """
  worst: dict[str, dict[str, Any] | None] = dict.fromkeys(_LEVELS)
  if Trait.BLOCKS not in schemes.traits(spec):  # plain, and the baselines
    return worst
  known = classify(spec)
  rows = [row for row in read(path)["rows"] if row["class"] == known]
  rows.sort(key=lambda row: _distance(spec, row["disguise"]))
  for number in worst:
    judged = [
      {**row["levels"][number], "source": row["source"], "disguise": row["disguise"]}
      for row in rows
    ]
    ordered = (one for verdict in _VERDICTS for one in judged if one["verdict"] == verdict)
    worst[number] = next(ordered, None)
  return worst


def _named(spec: Mapping[str, Any]) -> str:
  """Names a setting as the table of results does."""
  words = schemes.kind_of(spec).words
  return ", ".join(words(spec)) if words else classify(spec)


def _distance(spec: Mapping[str, Any], audited: Mapping[str, Any]) -> float:
  """Returns how far an audited disguise of the same class is from a setting; 0 for the setting itself."""
  away = 0.0
  for name, value in audited.items():
    given = spec[name]
    if isinstance(value, int | float):
      away += abs(given - value) / max(abs(given), abs(value), 1)
    else:
      away += given != value
  return away


@functools.cache
def read(path: Path = FILE) -> dict[str, Any]:
  """Reads the table.

  Args:
    path: of the file.

  Returns:
    ``format``, ``djax`` (version), ``seed``, ``attacks`` and ``rows``: ``class``, ``source``, ``disguise``, ``sizes``
    and, by level, ``verdict``, ``by``, ``pairs`` and ``failed``.
  """
  return json.loads(path.read_text())
