"""The template of the pages: one file of HTML without script or request, for light and dark, keyboards and phones.

What the functions take as text is escaped, what they return is HTML. Whoever puts a page together from strings of its
own escapes what is in them with ``text``.
"""

import base64
import io
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from djax.io import escape, pages

__all__ = ["curves", "page", "strip", "table", "text"]

_CELL = 64
_GAP = 4
_MOST_POINTS = 1000  # of a curve; more are not told apart
_STYLES = ("-", "--", ":", "-.")  # colours alone do not tell all eyes which curve is which
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d0d7de; --page: #fff; --card: #f6f8fa;
  --heat: #8fc1f5; --edge: #0004; --pad: .6rem }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9da7b1; --line: #3d444d; --page: #0d1117; --card: #161b22; --heat: #1f5190;
    --edge: #000c }
  .plots svg { filter: invert(.93) hue-rotate(180deg) }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
h3 { font-size: 1rem; margin: 1rem 0 .25rem }
a { color: inherit }
:focus-visible { outline: 2px solid #3a6ea5; outline-offset: 2px }
.soft { color: var(--soft) }
.note { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .75rem }
.levels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem }
.level { background: var(--card); border: 1px solid var(--line); border-left: .5rem solid var(--mark);
  border-radius: 6px; padding: .75rem 1rem }
.level p { margin: .25rem 0 0 }
.verdict { font-size: 1.25rem; font-weight: 700 }
.broken { --mark: #c62828 } .leaks { --mark: #b26a00 } .not { --mark: #3a6ea5 } .nothing, .too { --mark: #777 }
.chip { border-left: .3rem solid var(--mark); padding-left: .4rem; display: inline-block }
/* A shadow at each edge behind which a table goes on; the first two layers move with the table and cover it. */
.scroll { overflow-x: auto; margin: .5rem 0; border: 1px solid var(--line); border-radius: 6px; background:
  linear-gradient(to right, var(--page) 30%, transparent) 0 0 / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--page) 30%, transparent) 100% 0 / 3rem 100% no-repeat local,
  radial-gradient(farthest-side at 0 50%, var(--edge), transparent) 0 0 / 1rem 100% no-repeat scroll,
  radial-gradient(farthest-side at 100% 50%, var(--edge), transparent) 100% 0 / 1rem 100% no-repeat scroll }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem var(--pad); text-align: left; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: break-word }
thead th { vertical-align: bottom }
tbody th { font-weight: 600; max-width: 20rem }
tbody th .soft { font-weight: 400 }
.n { text-align: right }
td.n { white-space: nowrap }
.wide { min-width: 14rem }
tbody tr:last-child > * { border-bottom: 0 }
.heat { display: block; margin: -.35rem calc(-1 * var(--pad)); padding: .35rem var(--pad);
  background: color-mix(in srgb, var(--heat) var(--share), transparent) }
figure { margin: 0 0 .75rem }
figcaption { font-size: .9rem }
figure img { width: 100%; max-width: 540px; height: auto; display: block; image-rendering: pixelated }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem }
.plots svg { width: 100%; max-width: 32rem; height: auto; display: block }
@media (max-width: 40rem) { :root { --pad: .35rem } .wide { min-width: 10rem } tbody th { max-width: 8rem } }
dt { font-weight: 600; margin-top: .5rem } dd { margin-left: 0 }
summary { cursor: pointer }
"""


def page(title: str, body: str) -> str:
  """Returns a whole page.

  Args:
    title: plain text, also the heading.
    body: HTML below the heading.
  """
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{text(title)}</h1>
{body}
</main>
</body>
</html>
"""


def table(
  label: str,
  columns: Sequence[str],
  rows: Iterable[Sequence[str]],
  *,
  words: Collection[int] = (0,),
) -> str:
  """Returns a table in a box of its own, which scrolls sideways where the page is narrower.

  Args:
    label: plain text; names the box for those who do not see it, so no two on a page are the same.
    columns: titles, plain text.
    rows: cells, HTML. The first one is the row's header. In a row of fewer cells the last one reaches to the end.
    words: places of the columns that are text; the others are numbers.
  """

  def cells(tag: str, row: Sequence[str], start: str, rest: str) -> str:
    line = ""
    for place, cell in enumerate(row):
      last = place == len(row) - 1 < len(columns) - 1
      span = f' colspan="{len(columns) - place}" class="soft wide"' if last else ""
      number = ' class="n"' if place not in words and not last else ""
      name, scope = (tag, rest) if place else ("th", start)
      line += f"<{name}{scope}{span}{number}>{cell}</{name}>"
    return f"<tr>{line}</tr>"

  column = ' scope="col"'
  head = cells("th", [text(title) for title in columns], column, column)
  body = "".join(cells("td", row, ' scope="row"', "") for row in rows)
  return (
    f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">'
    f"<table><thead>{head}</thead><tbody>{body}</tbody></table></div>"
  )


def curves(
  title: str,
  across: str,
  lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  *,
  share: bool = False,
  mark: float | None = None,
  log: bool = False,
) -> str:
  """Draws curves.

  Args:
    title: plain text, of this package: letters that its font lacks would be boxes.
    across: title of the horizontal axis, likewise.
    lines: by name, likewise, x and y.
    share: whether y lies in 0..1, all of which is shown.
    mark: height of a dotted line.
    log: whether x is logarithmic, and each x has its tick.

  Returns:
    An ``<svg>`` element; its name for those who do not see it tells where each curve ends.
  """
  figure = Figure(figsize=(4.2, 3), layout="constrained")
  axes = figure.subplots()
  figure.patch.set_visible(False)
  axes.patch.set_visible(False)
  axes.set(title=title, xlabel=across, xscale="log" if log else "linear")
  if share:
    axes.set_ylim(-0.05, 1.05)
  if mark is not None:
    axes.axhline(mark, color="0.6", linewidth=1, linestyle=":")
  if log:
    ticks = sorted({x for xs, _ in lines.values() for x in xs})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
  else:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  ends = []
  for (name, (xs, ys)), style in zip(lines.items(), itertools.cycle(_STYLES)):
    thinned = slice(None, None, -(-len(xs) // _MOST_POINTS) or 1)
    marker = "o" if len(xs) < 20 else ""
    axes.plot(xs[thinned], ys[thinned], linestyle=style, marker=marker, markersize=4, label=name)
    if len(xs):
      ends.append(f"{name} from {ys[0]:.3g} at {xs[0]:g} to {ys[-1]:.3g} at {xs[-1]:g}")
  if len(lines) > 1:
    axes.legend(frameon=False, fontsize="small")
  label = text(f"{title} by {across}: {'; '.join(ends)}")
  return pages.svg(figure).replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def strip(caption: str, images: np.ndarray, *, stretched: bool = False) -> str:
  """Returns a row of pictures as a figure.

  Args:
    caption: plain text.
    images: ``[N, H, W, C]`` on the 0..255 scale, ``N`` at least 1. The first three channels are shown as colours,
      where there are fewer the first one in grey.
    stretched: whether the 1st to the 99th percentile is spread over the scale, as for disguises; what lies outside is
      cut off.
  """
  values = images.astype(np.float32)
  if stretched:
    low, high = np.percentile(values, [1, 99])
    values = (values - low) / max(high - low, 1e-6) * 255
  pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
  colours = pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, -1)
  times = max(1, _CELL // max(colours.shape[1:3]))
  colours = colours.repeat(times, 1).repeat(times, 2)
  count, height = colours.shape[:2]
  # A gap of transparent pixels between the images.
  opaque = np.concatenate([colours, np.full_like(colours[..., :1], 255)], -1)
  spaced = np.pad(opaque, ((0, 0), (0, 0), (0, _GAP), (0, 0)))
  sheet = np.concatenate(spaced, axis=1)[:, :-_GAP]
  buffer = io.BytesIO()
  Image.fromarray(sheet).save(buffer, "PNG")
  data = base64.b64encode(buffer.getvalue()).decode()
  return (
    f'<figure><figcaption>{text(caption)}</figcaption><img alt="{text(caption)}: {count} images" '
    f'width="{sheet.shape[1]}" height="{height}" src="data:image/png;base64,{data}"></figure>'
  )


def text(value: Any) -> str:
  """Returns a value as text in one line for HTML, also within an attribute in quotes."""
  return escape.for_html(str(value))
