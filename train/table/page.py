"""The results page and the table in the README, Markdown, from the results of ``collect`` alone."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from djax.audit import verdicts
from djax.io import pages
from train.table.summary import NEAR_CHANCE, Spread, Summary

__all__ = ["BEGIN", "COLUMNS", "END", "NOT_RUN", "PRIVACY", "headline", "page", "table"]

BEGIN, END = "<!-- results -->", "<!-- /results -->"

NOT_RUN = "not run yet"
_BAD, _WEAK, *_ = verdicts.VERDICTS

_HEAD = """# Results

Made by `python -m train.table --page docs/results.md --runs RUNS` from run directories; no number is typed by hand.
`python -m train.table --runs RUNS` runs the rows, or goes on with them; `--list` says what is missing, and
`python -m train.table NAME...` runs some. `docs/results.json` holds the same facts, and keeps those whose run
directories are on another machine for as long as the row's config is the same. Every seed has a key of its own, the
public experiment key of that seed, whose fingerprint stands there too."""
_LEGEND = f"""## How to read it

- **disguised**: accuracy on disguised test images; mean over seeds, in brackets the least and the greatest. Where the
  network answers by the mean over several views of a test image, what one view gives stands beside it.
- **plain twin**: the same network, training images and budget without a disguise. **cost**: plain twin less disguised,
  in points, over the seeds that both have.
- **gap closed**: of the gap between the same trunk without a stem and the plain twin, the share that the stem closes.
- **other key**, **misused**: accuracy of the same network on test images under another key, and on plain ones. The key
  **matters** if both stay below chance + {100 * NEAR_CHANCE:.0f} points for every seed.
- **Level 1** attacks have the disguised images and public ones, **Level 2** attacks known pairs as well. Of each level
  the attack with the highest median SSIM stands there, with its PSNR; verdicts ({_BAD}, {_WEAK}, or not) are those of
  `python -m djax audit`, and that of Level 2 includes Level 1. Each audit draws on the whole training split, with the
  sizes of `--fast` and seed 0. Where a run shows several views of an image, in training or in asking, the attacks get
  as many of every target, and know that they belong together, but not how each lies. A stem that aligns blocks does
  what `moments` and `placement` do; these columns are
  empty where the attack does not apply."""
_CAPTION = (
  "Accuracy on disguised test images against the SSIM of the best reconstruction that an attack gets back; hollow: "
  "the plain twin"
)

Columns = Mapping[str, Callable[[Summary], str]]


def page(results: Mapping[str, Any], *, plot: str) -> str:
  """Returns the page.

  Args:
    results: as ``collect`` returns them.
    plot: the file of the plot, beside the page.
  """
  parts = [_HEAD, headline(results, plot=plot), _LEGEND]
  groups: dict[str, list[Summary]] = {}
  for row in results["rows"]:
    groups.setdefault(row["group"], []).append(Summary(row, results))
  for group, rows in groups.items():
    closed = ["gap closed"] if any(summary.row["ordinary"] for summary in rows) else []
    utility = [*_UTILITY, *closed, "seeds", "seconds", "hardware"]
    described = {**COLUMNS, "row": _described}
    parts.append(f"## {group}")
    parts.append(f"What the network does:\n\n{table(utility, rows, described)}")
    privacy = table(["row", *PRIVACY, "moments SSIM", "placement SSIM"], rows)
    parts.append(f"What the key does, and what attacks get back:\n\n{privacy}")
  return "\n\n".join(parts) + "\n"


def headline(results: Mapping[str, Any], *, plot: str) -> str:
  """Returns the short table and the plot.

  Args:
    results: as ``collect`` returns them.
    plot: the path of the plot from where the table stands.
  """
  rows = [Summary(row, results) for row in results["rows"] if row["headline"]]
  columns = {
    **COLUMNS,
    "best Level 1": lambda summary: _best(summary, 1, psnr=False),
    "best Level 2": lambda summary: _best(summary, 2, psnr=False),
  }
  titles = (
    *("row", "data", *_UTILITY[1:], "key matters"),
    *("best Level 1", "best Level 2", "seeds"),
  )
  return f"{table(titles, rows, columns)}\n\n![{_CAPTION}]({plot})"


def table(titles: Iterable[str], rows: Iterable[Summary], columns: Columns | None = None) -> str:
  """Returns a Markdown table.

  Args:
    titles: of the columns.
    rows: their summaries.
    columns: by title, what returns the cell of a row; ``COLUMNS`` by default.
  """
  cells = [(columns or COLUMNS)[title] for title in titles]
  return pages.table(titles, ([cell(summary) for cell in cells] for summary in rows))


def _described(summary: Summary) -> str:
  """Names a row and how to run it without the table."""
  row = summary.row
  words = [row["config"]] * (row["config"] != row["row"]) + row["overrides"]
  return f"**{row['row']}**" + (f"<br>`{'` `'.join(words)}`" if words else "")


def _network(summary: Summary) -> str:
  stem = summary.row["stem"]
  return summary.row["network"] + (f"; stem: {stem}" if stem else "")


def _disguised(summary: Summary) -> str:
  """Returns the accuracy on disguised test images, beside it that of one view where several are averaged."""
  if summary.disguised is None:
    return NOT_RUN
  if summary.test_views == 1:
    return _percent(summary.disguised)
  return f"{_percent(summary.disguised)}; one view {_percent(summary.single)}"


def _percent(spread: Spread | None) -> str:
  """Returns the mean over seeds in percent, in brackets minimum and maximum where they differ; empty for None."""
  if spread is None:
    return ""
  mean, low, high = (f"{100 * value:.2f}" for value in (spread.mean, spread.low, spread.high))
  return mean if low == high else f"{mean} ({low}–{high})"


def _matters(summary: Summary) -> str:
  """Returns whether the key matters to the network; empty where nothing ran."""
  if summary.key_matters is None:
    return "not measured" if summary.seeds else ""
  return "yes" if summary.key_matters else "**no**"


def _best(summary: Summary, level: int, *, psnr: bool = True) -> str:
  """Returns SSIM and name of the attack of a level that got most back, and PSNR if asked."""
  if not summary.verdicts:
    return "not audited yet"
  if level not in summary.best:
    return "none ran"
  attack = summary.best[level]
  decibels = f", {attack['psnr']:.1f} dB" if psnr else ""
  pairs = f", {attack['pairs']} pairs" if attack["pairs"] else ""
  return f"{attack['ssim']:.2f}{decibels} ({attack['name']}{pairs})"


def _seeds(summary: Summary) -> str:
  seeds, wanted = summary.seeds, summary.wanted
  return str(seeds) if seeds == wanted else f"{seeds} of {wanted}"


def _number(value: float | None, form: str) -> str:
  """Formats a number; empty for None."""
  return "" if value is None else format(value, form)


_UTILITY = ("row", "disguise", "network", "disguised %", "plain twin %", "cost")
PRIVACY = (
  *("other key %", "misused %", "key matters"),
  *("best Level 1", "verdict 1", "best Level 2", "verdict 2"),
)
COLUMNS: Columns = {
  "row": lambda summary: summary.row["row"],
  "data": lambda summary: summary.row["data"],
  "disguise": lambda summary: summary.row["disguise"],
  "network": _network,
  "disguised %": _disguised,
  "plain twin %": lambda summary: _percent(summary.plain),
  "cost": lambda summary: "" if summary.cost is None else f"{100 * summary.cost:.2f}",
  "gap closed": lambda summary: _number(summary.closed, ".0%"),
  "seeds": _seeds,
  "seconds": lambda summary: _number(summary.seconds, ".0f"),
  "hardware": lambda summary: "; ".join(summary.hardware),
  "other key %": lambda summary: _percent(summary.other_key) if summary.seeds else NOT_RUN,
  "misused %": lambda summary: _percent(summary.misused),
  "key matters": _matters,
  "best Level 1": lambda summary: _best(summary, 1),
  "verdict 1": lambda summary: summary.verdicts.get(1) or "",
  "best Level 2": lambda summary: _best(summary, 2),
  "verdict 2": lambda summary: summary.verdicts.get(2) or "",
  "moments SSIM": lambda summary: _number(summary.ssim.get("moments"), ".2f"),
  "placement SSIM": lambda summary: _number(summary.ssim.get("placement"), ".2f"),
}
