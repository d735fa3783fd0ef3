"""What the page and the plot show of a row: means, spreads, costs and verdicts, from the results of ``collect``."""

import dataclasses
from collections.abc import Iterable, Mapping
from statistics import fmean, median
from typing import Any

__all__ = ["NEAR_CHANCE", "Spread", "Summary"]

NEAR_CHANCE = 0.1


@dataclasses.dataclass(frozen=True)
class Spread:
  """Mean, minimum and maximum over seeds, 0..1."""

  mean: float
  low: float
  high: float


class Summary:
  """What is shown of a row; None is what is not known.

  Args:
    row: one of ``results["rows"]``.
    results: as ``collect`` returns them.

  Attributes:
    row: as given.
    seeds: how many of its runs are done.
    wanted: how many it has.
    test_views: over which the prediction for a test image is averaged.
    disguised: accuracy on disguised test images.
    single: the same of one view.
    plain: accuracy of the plain twin on plain test images.
    cost: ``plain - disguised`` over the seeds that both have.
    closed: share of the gap between the same trunk without a stem and the plain twin that the stem closes.
    other_key: accuracy on test images under another key.
    misused: accuracy on plain test images.
    key_matters: whether both stay below chance and ``NEAR_CHANCE``, for every seed.
    seconds: median time of training.
    hardware: what the runs ran on.
    best: by level, the attack of that level with the highest SSIM: ``name``, ``pairs``, ``ssim``, ``psnr``.
    verdicts: by level.
    ssim: by attack.
  """

  def __init__(self, row: Mapping[str, Any], results: Mapping[str, Any]):
    runs = [run["disguised"] for run in row["runs"] if run["disguised"]]
    disguised, plain = _by_seed(row, "disguised"), _by_seed(row, "plain")
    both = disguised.keys() & plain.keys()
    other_key, misused = (
      [run[name] for run in runs] for name in ("other_key_accuracy", "plain_accuracy")
    )
    audit = row["audit"] or {"levels": {}, "attacks": []}
    attacks = {attack["name"]: attack for attack in audit["attacks"]}
    levels = {int(number): level for number, level in audit["levels"].items()}
    self.row = row
    self.seeds = len(runs)
    self.wanted = len(row["runs"])
    self.test_views = runs[0]["test_views"] if runs else None
    self.disguised = _spread(disguised.values())
    self.single = _spread(run["single_view_accuracy"] for run in runs)
    self.plain = _spread(plain.values())
    self.cost = fmean(plain[s] - disguised[s] for s in both) if both else None
    self.closed = _closed(row, results)
    self.other_key = _spread(other_key)
    self.misused = _spread(misused)
    self.key_matters = None
    if runs and None not in (*other_key, *misused):
      self.key_matters = max(*other_key, *misused) < 1 / runs[0]["classes"] + NEAR_CHANCE
    self.seconds = median(run["seconds"] for run in runs) if runs else None
    self.hardware = sorted({run["hardware"] for run in runs})
    self.best = {n: attacks[level["best"]] for n, level in levels.items() if level["best"]}
    self.verdicts = {n: level["verdict"] for n, level in levels.items()}
    self.ssim = {name: attack["ssim"] for name, attack in attacks.items()}


def _closed(row: Mapping[str, Any], results: Mapping[str, Any]) -> float | None:
  """Returns the share of the gap that a stem closes, over the seeds that all three have; None without a gap."""
  if row["ordinary"] is None:
    return None
  (partner,) = (other for other in results["rows"] if other["row"] == row["ordinary"])
  own, plain = _by_seed(row, "disguised"), _by_seed(row, "plain")
  without = _by_seed(partner, "disguised")
  seeds = own.keys() & plain.keys() & without.keys()
  gap = sum(plain[s] - without[s] for s in seeds)
  return sum(own[s] - without[s] for s in seeds) / gap if gap > 0 else None


def _by_seed(row: Mapping[str, Any], kind: str) -> dict[int, float]:
  return {run["seed"]: run[kind]["test_accuracy"] for run in row["runs"] if run[kind]}


def _spread(values: Iterable[float | None]) -> Spread | None:
  known = [value for value in values if value is not None]
  return Spread(fmean(known), min(known), max(known)) if known else None
