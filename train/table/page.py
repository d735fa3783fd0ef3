"""The results page and the table in the README, Markdown, from the facts of ``collect`` alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from djax.audit import verdicts
from train.table.figures import NEAR_CHANCE, Figures, Spread, figures

__all__ = [
  "BEGIN",
  "END",
  "NOT_RUN",
  "Columns",
  "best",
  "between",
  "disguised",
  "headline",
  "matters",
  "page",
  "percent",
  "points",
  "table",
]

BEGIN, END = "<!-- results -->", "<!-- /results -->"

NOT_RUN = "not run yet"
_ALONG = ("moments", "placement")

Pair = tuple[Mapping[str, Any], Figures]
Columns = dict[str, Callable[[Mapping[str, Any], Figures], str]]


def page(facts: Mapping[str, Any], *, plot: str) -> str:
  """Returns the page.

  Args:
    facts: as ``collect`` returns them.
    plot: the file of the plot, beside the page.
  """
  parts = [_head(), headline(facts, plot=plot), _explained()]
  groups: dict[str, list[Pair]] = {}
  for row in facts["rows"]:
    groups.setdefault(row["group"], []).append((row, figures(row, facts)))
  for group, pairs in groups.items():
    parts.append(f"## {group}")
    parts.append(f"What the network does:\n\n{table(_utility(pairs), pairs)}")
    parts.append(f"What the key does, and what attacks get back:\n\n{table(_privacy(), pairs)}")
  return "\n\n".join(parts) + "\n"


def headline(facts: Mapping[str, Any], *, plot: str) -> str:
  """Returns the short table and the plot.

  Args:
    facts: as ``collect`` returns them.
    plot: the path of the plot from where the table stands.
  """
  pairs = [(row, figures(row, facts)) for row in facts["rows"] if row["headline"]]
  columns: Columns = {
    "row": lambda row, f: row["row"],
    "data": lambda row, f: row["data"],
    "disguise": lambda row, f: row["disguise"],
    "network": lambda row, f: _network(row),
    "disguised %": disguised,
    "plain twin %": lambda row, f: percent(f.plain),
    "cost": lambda row, f: points(f.cost),
    "key matters": lambda row, f: matters(f),
    "best Level 1": lambda row, f: best(f, 1),
    "best Level 2": lambda row, f: best(f, 2),
    "seeds": lambda row, f: _seeds(f),
  }
  caption = (
    "Accuracy on disguised test images against the SSIM of the best reconstruction that an attack gets back; hollow: "
    "the plain twin"
  )
  return f"{table(columns, pairs)}\n\n![{caption}]({plot})"


def between(text: str, new: str) -> str:
  """Returns a text with ``new`` between the two markers; the same text where it has no markers.

  Args:
    text: such as a README.
    new: what shall stand there.
  """
  before, begin, rest = text.partition(BEGIN)
  _, end, after = rest.partition(END)
  return f"{before}{begin}\n{new}\n{end}{after}" if end else text


def _head() -> str:
  return """# Results

Made by `python -m train.table --page docs/results.md --runs RUNS` from run directories; no number is typed by hand.
`python -m train.table --runs RUNS` runs the rows, or goes on with them; `--list` says what is missing, and
`python -m train.table NAME...` runs some. `docs/results.json` holds the same facts, and keeps those whose run
directories are on another machine for as long as the row's config is the same. Every seed has a key of its own, the
public experiment key of that seed, whose fingerprint stands there too."""


def _explained() -> str:
  worse, better = verdicts.VERDICTS[0], verdicts.VERDICTS[1]
  return f"""## How to read it

- **disguised**: accuracy on disguised test images; mean over seeds, in brackets the least and the greatest. Where the
  network answers by the mean over several views of a test image, what one view gives stands beside it.
- **plain twin**: the same network, training images and budget without a disguise. **cost**: plain twin less disguised,
  in points, over the seeds that both have.
- **gap closed**: of the gap between the same trunk without a stem and the plain twin, the share that the stem closes.
- **other key**, **misused**: accuracy of the same network on test images under another key, and on plain ones. The key
  **matters** if both stay below chance + {100 * NEAR_CHANCE:.0f} points for every seed.
- **Level 1** attacks have the disguised images and public ones, **Level 2** attacks known pairs as well. Of each level
  the attack with the highest median SSIM stands there, with its PSNR; verdicts ({worse}, {better}, or not) are those of
  `python -m djax audit`, and that of Level 2 includes Level 1. Each audit draws on the whole training split, with the
  sizes of `--fast` and seed 0. A stem that aligns blocks does what `moments` and `placement` do; these columns are
  empty where the attack does not apply."""


def _utility(pairs: Sequence[Pair]) -> Columns:
  """Returns the columns of the first table; those that no row fills are left out."""
  columns: Columns = {
    "row": _described,
    "disguise": lambda row, f: row["disguise"],
    "network": lambda row, f: _network(row),
    "disguised %": disguised,
    "plain twin %": lambda row, f: percent(f.plain),
    "cost": lambda row, f: points(f.cost),
  }
  if any(f.ordinary for _, f in pairs):
    columns["gap closed"] = lambda row, f: "" if f.closed is None else f"{f.closed:.0%}"
  return {
    **columns,
    "seeds": lambda row, f: _seeds(f),
    "seconds": lambda row, f: "" if f.seconds is None else f"{f.seconds:.0f}",
    "hardware": lambda row, f: "; ".join(f.hardware),
  }


def _privacy() -> Columns:
  def along(name):
    return lambda row, f: f"{f.ssim[name]:.2f}" if name in f.ssim else ""

  return {
    "row": lambda row, f: row["row"],
    "other key %": lambda row, f: percent(f.other_key) if f.seeds else NOT_RUN,
    "misused %": lambda row, f: percent(f.misused),
    "key matters": lambda row, f: matters(f),
    "best Level 1": lambda row, f: best(f, 1, psnr=True),
    "verdict 1": lambda row, f: f.verdicts.get(1) or "",
    "best Level 2": lambda row, f: best(f, 2, psnr=True),
    "verdict 2": lambda row, f: f.verdicts.get(2) or "",
    **{f"{name} SSIM": along(name) for name in _ALONG},
  }


def table(columns: Columns, pairs: Iterable[Pair]) -> str:
  """Returns a Markdown table.

  Args:
    columns: by title, what makes the cell of a row.
    pairs: rows with their figures.
  """
  lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
  for row, f in pairs:
    cells = (cell(row, f).replace("|", r"\|") for cell in columns.values())
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _described(row: Mapping[str, Any], f: Figures) -> str:
  """Names a row and how to run it without the table."""
  same = row["config"] == row["row"]
  words = [] if same else [f"`{row['config']}`"]
  words += [f"`{override}`" for override in row["overrides"]]
  return f"**{row['row']}**" + (f"<br>{' '.join(words)}" if words else "")


def _network(row: Mapping[str, Any]) -> str:
  return row["network"] + (f"; stem: {row['stem']}" if row["stem"] else "")


def disguised(row: Mapping[str, Any], f: Figures) -> str:
  """Returns the accuracy on disguised test images in percent, beside it that of one view where several are averaged.

  Args:
    row: of ``collect``.
    f: its figures.
  """
  if f.disguised is None:
    return NOT_RUN
  if f.test_views == 1:
    return percent(f.disguised)
  return f"{percent(f.disguised)}; one view {percent(f.single)}"


def percent(spread: Spread | None) -> str:
  """Returns the mean over seeds in percent, in brackets least and greatest where they differ; empty for None.

  Args:
    spread: shares in [0, 1].
  """
  if spread is None:
    return ""
  mean, low, high = (f"{100 * value:.2f}" for value in (spread.mean, spread.low, spread.high))
  return mean if low == high else f"{mean} ({low}–{high})"


def points(value: float | None) -> str:
  """Returns a difference of shares in points; empty for None.

  Args:
    value: in [-1, 1].
  """
  return "" if value is None else f"{100 * value:.2f}"


def matters(f: Figures) -> str:
  """Returns whether the key matters to the network; empty where nothing ran.

  Args:
    f: figures of a row.
  """
  if f.key_matters is None:
    return "not measured" if f.seeds else ""
  return "yes" if f.key_matters else "**no**"


def best(f: Figures, level: int, *, psnr: bool = False) -> str:
  """Returns SSIM and name of the attack that got most back.

  Args:
    f: figures of a row.
    level: of the attacks, 1 or 2.
    psnr: whether to give that too, in dB.
  """
  if not f.verdicts:
    return "not audited yet"
  if level not in f.best:
    return "none ran"
  found = f.best[level]
  decibels = f", {found['psnr']:.1f} dB" if psnr else ""
  pairs = f", {found['pairs']} pairs" if found["pairs"] else ""
  return f"{found['ssim']:.2f}{decibels} ({found['name']}{pairs})"


def _seeds(f: Figures) -> str:
  return str(f.seeds) if f.seeds == f.wanted else f"{f.seeds} of {f.wanted}"
