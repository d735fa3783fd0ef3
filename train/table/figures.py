"""What the page and the plot show of a row: means, spreads, costs and judgements, from the facts of ``collect``."""

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

__all__ = ["NEAR_CHANCE", "Figures", "Spread", "figures"]

NEAR_CHANCE = 0.1


@dataclasses.dataclass(frozen=True)
class Spread:
  """Mean, least and greatest of some seeds, 0..1."""

  mean: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Figures:
  """What is shown of a row; None is what is not known.

  Attributes:
    seeds: how many of its runs are done.
    wanted: how many it has.
    test_views: over which the answer to a test image is averaged.
    disguised: accuracy on disguised test images.
    single: the same of one view.
    plain: accuracy of the plain twin on plain test images.
    cost: ``plain - disguised`` over the seeds that both have.
    ordinary: name of the row with the same trunk and disguise but without a stem.
    closed: share of the gap between that row and the plain twin that the stem closes.
    other_key: accuracy on test images under another key.
    misused: accuracy on plain test images.
    key_matters: whether both stay below chance and ``NEAR_CHANCE``, for every seed.
    seconds: median time of training.
    hardware: what the runs ran on.
    best: by level, the attack of that level with the highest SSIM: ``name``, ``pairs``, ``ssim``, ``psnr``.
    verdicts: by level.
    ssim: by attack.
  """

  seeds: int
  wanted: int
  test_views: int | None
  disguised: Spread | None
  single: Spread | None
  plain: Spread | None
  cost: float | None
  ordinary: str | None
  closed: float | None
  other_key: Spread | None
  misused: Spread | None
  key_matters: bool | None
  seconds: float | None
  hardware: tuple[str, ...]
  best: dict[int, dict[str, Any]]
  verdicts: dict[int, str | None]
  ssim: dict[str, float]


def figures(row: Mapping[str, Any], facts: Mapping[str, Any]) -> Figures:
  """Derives what is shown of a row.

  Args:
    row: one of ``facts["rows"]``.
    facts: as ``collect`` returns them.
  """
  runs = [run["disguised"] for run in row["runs"] if run["disguised"]]
  twins = [run["plain"]["test_accuracy"] for run in row["runs"] if run["plain"]]
  own, plain = _by_seed(row, "disguised"), _by_seed(row, "plain")
  both = sorted(own.keys() & plain.keys())
  other_key, misused = (
    [run[name] for run in runs] for name in ("other_key_accuracy", "plain_accuracy")
  )
  matters = None
  if runs and None not in (*other_key, *misused):
    matters = max(*other_key, *misused) < 1 / runs[0]["classes"] + NEAR_CHANCE
  audit = row["audit"] or {"levels": {}, "attacks": []}
  attacks = {attack["name"]: attack for attack in audit["attacks"]}
  levels = {int(number): found for number, found in audit["levels"].items()}
  return Figures(
    seeds=len(runs),
    wanted=len(row["runs"]),
    test_views=runs[0]["test_views"] if runs else None,
    disguised=_spread([run["test_accuracy"] for run in runs]),
    single=_spread([run["single_view_accuracy"] for run in runs]),
    plain=_spread(twins),
    cost=fmean(plain[s] - own[s] for s in both) if both else None,
    ordinary=row["ordinary"],
    closed=_closed(row, facts),
    other_key=_spread(other_key),
    misused=_spread(misused),
    key_matters=matters,
    seconds=median(run["seconds"] for run in runs) if runs else None,
    hardware=tuple(sorted({run["hardware"] for run in runs})),
    best={n: attacks[found["best"]] for n, found in levels.items() if found["best"]},
    verdicts={n: found["verdict"] for n, found in levels.items()},
    ssim={name: attack["ssim"] for name, attack in attacks.items()},
  )


def _closed(row: Mapping[str, Any], facts: Mapping[str, Any]) -> float | None:
  """Returns the share of the gap that a stem closes, over the seeds that all three have; None where there is no gap."""
  if row["ordinary"] is None:
    return None
  (partner,) = (other for other in facts["rows"] if other["row"] == row["ordinary"])
  own, plain, without = (
    _by_seed(row, "disguised"),
    _by_seed(row, "plain"),
    _by_seed(partner, "disguised"),
  )
  seeds = sorted(own.keys() & plain.keys() & without.keys())
  gap = sum(plain[s] - without[s] for s in seeds)
  return sum(own[s] - without[s] for s in seeds) / gap if gap > 0 else None


def _by_seed(row: Mapping[str, Any], kind: str) -> dict[int, float]:
  return {run["seed"]: run[kind]["test_accuracy"] for run in row["runs"] if run[kind]}


def _spread(values: Sequence[float | None]) -> Spread | None:
  known = [value for value in values if value is not None]
  return Spread(fmean(known), min(known), max(known)) if known else None
