"""The plot: accuracy on disguised images against what the best attack gets back, the plain twin above it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from djax.io import pages
from train.table.summary import Spread, Summary

__all__ = ["draw"]

_MARKS = "os^DvPX"
_STEP = 0.02  # between points that would lie on one another
_CAPTION = "filled: on disguised images, with the span of the seeds; hollow: the plain twin"
_SETTINGS: dict[Any, Any] = {"font.size": 9, "lines.markersize": 5}

Member = tuple[Spread, Summary]


def draw(results: Mapping[str, Any], path: Path) -> None:
  """Draws all rows that have both a run and an audit: a pair of panels a group, one a threat level.

  Args:
    results: as ``collect`` returns them.
    path: the SVG file; the same bytes for the same results.
  """
  groups: dict[str, list[Member]] = {}
  for row in results["rows"]:
    summary = Summary(row, results)
    if summary.disguised and summary.best:
      groups.setdefault(row["group"], []).append((summary.disguised, summary))
  heights = [max(2.5, 0.7 + 0.19 * len(members)) for members in groups.values()] or [1.0]
  with matplotlib.rc_context(_SETTINGS):
    figure = Figure(figsize=(9, 0.3 + sum(heights)), layout="constrained")
    if groups:
      panels = figure.subplots(len(groups), 2, height_ratios=heights, squeeze=False, sharey="row")
      for (group, members), pair in zip(groups.items(), panels, strict=True):
        _group(pair, group, sorted(members, key=lambda member: -member[0].mean))
      figure.suptitle(_CAPTION, fontsize=9)
      for level, axes in enumerate(panels[-1], 1):
        axes.set_xlabel(f"SSIM of the best Level {level} reconstruction")
    else:
      figure.text(0.5, 0.5, "no row has been run and audited yet", ha="center")
    pages.save_svg(figure, path)


def _group(pair: Sequence[Axes], group: str, members: Sequence[Member]) -> None:
  """Draws one group: a mark a disguise, a colour a network; its rows are named at the right, the best first."""
  handles = {}
  marks: dict[str, str] = {}
  colours: dict[tuple[str, str], str] = {}
  for accuracy, summary in members:
    row, plain = summary.row, summary.plain
    mark = marks.setdefault(row["disguise"], _MARKS[len(marks) % len(_MARKS)])
    colour = colours.setdefault((row["network"], row["stem"]), f"C{len(colours)}")
    for level, axes in enumerate(pair, 1):
      if level not in summary.best:
        continue
      x = _beside(summary, level, members)
      axes.plot([x, x], [100 * accuracy.low, 100 * accuracy.high], colour, linewidth=3, alpha=0.4)
      if plain:
        axes.plot([x, x], [100 * accuracy.mean, 100 * plain.mean], colour, linewidth=0.8)
        axes.plot(x, 100 * plain.mean, mark, color=colour, markerfacecolor="white")
      (handles[row["row"]],) = axes.plot(x, 100 * accuracy.mean, mark, color=colour)
  for axes in pair:
    axes.set_xlim(-0.06, 1.1)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
  pair[0].set_ylabel("test accuracy, %")
  pair[0].set_title(group, loc="left")
  pair[1].legend(
    [*handles.values()],
    [*handles],
    loc="center left",
    bbox_to_anchor=(1.02, 0.5),
    frameon=False,
    fontsize=8,
    labelspacing=0.35,
  )


def _beside(summary: Summary, level: int, members: Sequence[Member]) -> float:
  """Returns the place on the x axis: points of one SSIM stand side by side."""
  x = summary.best[level]["ssim"]
  same = [s for _, s in members if level in s.best and s.best[level]["ssim"] == x]
  return x + _STEP * (same.index(summary) - (len(same) - 1) / 2)
