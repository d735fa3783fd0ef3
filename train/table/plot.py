"""The plot: accuracy on disguised images against what the best attack gets back, the plain twin above it."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.table.figures import Figures, Spread, figures

__all__ = ["draw"]

_MARKS = "os^DvPX"
_COLOURS = 10  # of matplotlib's own cycle
_STEP = 0.02  # between points that would lie on one another
_CAPTION = "filled: on disguised images, with the span of the seeds; hollow: the plain twin"
_SETTINGS: dict[Any, Any] = {
  "svg.hashsalt": "djax",
  "svg.fonttype": "path",
  "font.size": 9,
  "lines.markersize": 5,
}

Member = tuple[Mapping[str, Any], Spread, Figures]


def draw(facts: Mapping[str, Any], target: Path) -> None:
  """Draws all rows that have both a run and an audit: a pair of panels a group, one a threat level.

  Args:
    facts: as ``collect`` returns them.
    target: the SVG file; the same bytes for the same facts.
  """
  groups: dict[str, list[Member]] = {}
  for row in facts["rows"]:
    shown = figures(row, facts)
    if shown.disguised and shown.best:
      groups.setdefault(row["group"], []).append((row, shown.disguised, shown))
  heights = [max(2.5, 0.7 + 0.19 * len(members)) for members in groups.values()] or [1.0]
  with matplotlib.rc_context(_SETTINGS):
    figure = Figure(figsize=(9, 0.3 + sum(heights)), layout="constrained")
    if groups:
      panels = figure.subplots(len(groups), 2, height_ratios=heights, squeeze=False, sharey="row")
      for (group, members), pair in zip(groups.items(), panels, strict=True):
        _group(pair, group, sorted(members, key=lambda member: -member[1].mean))
      figure.suptitle(_CAPTION, fontsize=9)
      for level, axes in enumerate(panels[-1], 1):
        axes.set_xlabel(f"SSIM of the best Level {level} reconstruction")
    else:
      figure.text(0.5, 0.5, "no row has been run and audited yet", ha="center")
    figure.savefig(target, format="svg", metadata={"Date": None})


class _Styles(dict[Any, str]):
  """Gives each new name the next style, and begins again when all are given."""

  def __init__(self, styles: Iterable[str]):
    super().__init__()
    self._styles = itertools.cycle(styles)

  def __missing__(self, name: Any) -> str:
    return self.setdefault(name, next(self._styles))


def _group(pair: Sequence[Axes], group: str, members: Sequence[Member]) -> None:
  """Draws one group: a mark a disguise, a colour a network; its rows are named at the right, the best first."""
  handles = {}
  marks, colours = _Styles(_MARKS), _Styles([f"C{number}" for number in range(_COLOURS)])
  for row, accuracy, shown in members:
    mark, colour = marks[row["disguise"]], colours[row["network"], row["stem"]]
    for level, axes in enumerate(pair, 1):
      if level not in shown.best:
        continue
      x = _beside(shown, level, members)
      axes.plot([x, x], [100 * accuracy.low, 100 * accuracy.high], colour, linewidth=3, alpha=0.4)
      if shown.plain:
        axes.plot([x, x], [100 * accuracy.mean, 100 * shown.plain.mean], colour, linewidth=0.8)
        axes.plot(x, 100 * shown.plain.mean, mark, color=colour, markerfacecolor="white")
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


def _beside(shown: Figures, level: int, members: Sequence[Member]) -> float:
  """Returns the place on the x axis: points of one SSIM stand side by side."""
  x = shown.best[level]["ssim"]
  same = [f for _, _, f in members if level in f.best and f.best[level]["ssim"] == x]
  return x + _STEP * (next(i for i, f in enumerate(same) if f is shown) - (len(same) - 1) / 2)
