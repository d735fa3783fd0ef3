"""Audits over block sizes, noise levels and known pairs: what noise costs in use, and what it saves.

Each pair of block size and noise level is a cell with a file of its own, written when it is done; a sweep that was
stopped resumes with the cells that are missing.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import djax
from djax import schemes
from djax.attacks.base import Attack
from djax.audit import evaluator, runner, scenario, verdicts
from djax.audit.scenario import Scenario
from djax.errors import ConfigError, UnsafeError
from djax.io import pages
from djax.sources import AS_IS, Reading

__all__ = ["CELLS", "PLAN", "RESULTS", "Plan", "leakage", "lines", "run"]

CELLS = "cells"
RESULTS = "sweep.json"
PLAN = "plan.json"
_PLOTS = ("sweep.png", "sweep.svg")
_BLOCK_SIZES = (2, 4, 8)
Progress = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class Plan:
  """A sweep.

  Attributes:
    source: as ``sources.open`` takes it.
    disguise: scheme and parameters, without block size.
    block_sizes: sides of blocks; empty: 2, 4 and 8.
    noise_levels: of rmt, for aes shares of salt and pepper; empty: some that suit the scheme.
    attacks: their names.
    seed: of everything.
    full: whether with many images.
    reading: how the source is read.
    split: of the source.
  """

  source: str
  disguise: Mapping[str, Any]
  block_sizes: tuple[int, ...]
  noise_levels: tuple[float, ...]
  attacks: tuple[str, ...]
  seed: int = 0
  full: bool = False
  reading: Reading = AS_IS
  split: str = "train"


def run(
  plan: Plan,
  out: Path,
  table: Mapping[str, Attack],
  *,
  progress: Progress = lambda fraction, word: None,
) -> dict[str, Any]:
  """Runs a sweep, or resumes it; writes ``sweep.json``, ``sweep.png`` and ``sweep.svg``.

  Args:
    plan: what to try.
    out: the directory; new, or that of the same sweep.
    table: of attacks.
    progress: called with the share that is done and a word on what is being done.

  Returns:
    The content of ``sweep.json``.

  Raises:
    ConfigError: for parameters that cannot work.
    DataError: if the source cannot be used.
    UnsafeError: if ``out`` holds anything else.
  """
  name, levels = schemes.SCHEMES[plan.disguise["scheme"]].strength
  if name in plan.disguise or (plan.noise_levels and not name):
    raise ConfigError(
      f"audit: a sweep of {plan.disguise['scheme']} takes its noise from --noise-levels"
      f"{'' if name else ', but this scheme has none'}."
    )
  plan = dataclasses.replace(
    plan,
    block_sizes=plan.block_sizes or _BLOCK_SIZES,
    noise_levels=plan.noise_levels or levels,
  )
  _claim(plan, out)
  grid = [(size, noise) for size in plan.block_sizes for noise in plan.noise_levels]
  cells, examiner = [], None
  for place, (size, noise) in enumerate(grid):

    def report(fraction, word, place=place, size=size, noise=noise):
      cell = f"blocks of {size}, noise {noise:g}"
      progress((place + fraction) / len(grid), f"{cell}: {word}")

    path = out / CELLS / f"block{size}-noise{noise:g}.json"
    cell = pages.read_json(path)
    if cell is None:
      disguise = {**plan.disguise, "block_size": size, **({name: noise} if name else {})}
      cell, examiner = _cell(plan, disguise, table, examiner, report)
      cell = {"block_size": size, "noise": noise, **cell}
      pages.write_json(path, cell)
    cells.append(cell)
  results = {"format": "djax-sweep", "version": 1, "plan": _identity(plan), "cells": cells}
  _draw(cells, out)
  pages.write_json(out / RESULTS, results)
  return results


def leakage(cell: Mapping[str, Any], pairs: int | None) -> float | None:
  """Returns the most that any attack reached in a cell, of SSIM or examiner: 0 is chance, 1 the originals.

  Args:
    cell: of ``sweep.json``.
    pairs: of the attacks that count; None: those that need none.
  """
  return max(
    (
      max(0.0, run["scores"]["ssim_above_chance"], run["scores"]["above_chance"])
      for row in cell["attacks"]
      for run in row["runs"]
      if run["pairs"] == pairs
    ),
    default=None,
  )


def lines(results: Mapping[str, Any], out: Path) -> list[str]:
  """Returns a sweep for the terminal.

  Args:
    results: as ``run`` returns them.
    out: its directory.
  """
  counts = _pairs(results["cells"])
  rows = ["block  noise  utility  level 1" + "".join(f"  {count} pairs" for count in counts)]
  for cell in results["cells"]:
    if cell["refused"]:
      rows.append(f"{cell['block_size']:5} {cell['noise']:6g}  {cell['refused']}")
      continue
    columns = [leakage(cell, count) for count in (None, *counts)]
    numbers = "".join(f"{'-' if x is None else format(x, '.2f'):>9}" for x in columns)
    rows.append(
      f"{cell['block_size']:5} {cell['noise']:6g} {cell['utility']['above_chance']:8.2f}{numbers}"
    )
  return [*rows, f"plot         {out / _PLOTS[0]}"]


def _cell(
  plan: Plan,
  disguise: Mapping[str, Any],
  table: Mapping[str, Attack],
  examiner: evaluator.Examiner | None,
  progress: Progress,
) -> tuple[dict[str, Any], evaluator.Examiner | None]:
  """Audits one setting; returns also the examiner, the same for all cells: they have the same originals."""
  sizes = scenario.FULL if plan.full else scenario.FAST
  try:
    attacked = scenario.from_source(
      plan.source,
      disguise,
      seed=plan.seed,
      sizes=dataclasses.replace(sizes, pairs=scenario.FULL.pairs),
      reading=plan.reading,
      split=plan.split,
      progress=progress,
    )
  except ConfigError as error:  # such as blocks that do not fit the images
    return {"refused": str(error), "utility": None, "attacks": [], "levels": {}}, examiner
  examiner = examiner or runner.train_examiner(attacked, seed=plan.seed, progress=progress)
  attacks = [table[name] for name in plan.attacks]
  outcome = runner.audit(
    attacked, attacks, seed=plan.seed, examiner=examiner, with_key=False, progress=progress
  )
  utility = _utility(attacked, plan.seed, examiner, progress)
  audit = {name: outcome.facts[name] for name in ("attacks", "levels", "seconds")}
  return {"refused": "", "utility": utility, **audit}, examiner


def _utility(
  attacked: Scenario, seed: int, examiner: evaluator.Examiner, progress: Progress
) -> dict[str, float]:
  """Returns the accuracy of the examiner's network trained on disguised images, beside that of the plain one."""
  rest, targets = slice(attacked.targets, None), slice(attacked.targets)
  network = evaluator.train_examiner(
    attacked.disguised[rest],
    attacked.labels[rest],
    classes=attacked.classes,
    seed=seed,
    progress=progress,
    what="training on disguised images",
  )
  labels = attacked.labels[targets]
  seen = float(np.mean(network.labels(attacked.disguised[targets]) == labels))
  plain = float(np.mean(examiner.labels(attacked.private[targets]) == labels))
  chance = float(np.bincount(labels).max() / len(labels))
  above = float(np.clip((seen - chance) / (plain - chance), 0, 1)) if plain > chance else 0.0
  return {"accuracy": seen, "plain_accuracy": plain, "chance": chance, "above_chance": above}


def _claim(plan: Plan, out: Path) -> None:
  """Makes the directory of a sweep, or refuses one that holds something else."""
  if not os.path.lexists(out):
    (out / CELLS).mkdir(parents=True)
    pages.write_json(out / PLAN, _identity(plan))
    return
  try:
    same = (out / PLAN).read_text() == pages.json_text(_identity(plan))
  except OSError:
    same = False
  if not same:
    raise UnsafeError(
      f"{out} exists and is not this sweep, begun with this version. Give another name, or the same flags."
    )
  (out / CELLS).mkdir(exist_ok=True)


def _identity(plan: Plan) -> dict[str, Any]:
  """Returns what a sweep is resumed with: the version of djax and the plan, as JSON gives them back."""
  facts = dataclasses.asdict(plan)
  # What is not given is left out, so that a field that comes later changes no sweep that has begun.
  reading = {name: value for name, value in facts.pop("reading").items() if value}
  return json.loads(json.dumps({"djax": djax.__version__, **facts, **reading}))


def _pairs(cells: Sequence[Mapping[str, Any]]) -> list[int]:
  runs = [run for cell in cells for row in cell["attacks"] for run in row["runs"]]
  return sorted({run["pairs"] for run in runs if run["pairs"] is not None})


def _draw(every: Sequence[Mapping[str, Any]], out: Path) -> None:
  """Draws utility and leakage over noise, one panel a block size."""
  cells = [cell for cell in every if not cell["refused"]]
  sizes = sorted({cell["block_size"] for cell in cells})
  if not sizes:
    raise ConfigError(f"audit: nothing of the sweep fits: {every[0]['refused']}")
  figure = Figure(figsize=(1 + 3.2 * len(sizes), 3.4), layout="constrained")
  panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
  for axes, size in zip(panels, sizes, strict=True):
    row = [cell for cell in cells if cell["block_size"] == size]
    noise = [cell["noise"] for cell in row]
    utility = [cell["utility"]["above_chance"] for cell in row]
    axes.plot(noise, utility, "k--", marker="s", label="use: a CNN trained on disguised images")
    for pairs in (None, *_pairs(cells)):
      label = "level 1" if pairs is None else f"level 2, {pairs} pairs"
      values = [np.nan if (x := leakage(cell, pairs)) is None else x for cell in row]
      axes.plot(noise, values, marker="o", label=label)
    axes.axhline(verdicts.BROKEN, color="0.6", linewidth=1, linestyle=":")
    axes.set(title=f"blocks of {size}", xlabel="noise", ylim=(-0.05, 1.05))
  panels[0].set_ylabel("0: chance, 1: originals")
  handles, labels = panels[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside right upper", fontsize="small", frameon=False)
  for name in _PLOTS:
    figure.savefig(out / name)
