"""The report card: ``audit.json`` with all numbers, ``audit.html`` for a person. One file, no script, no request."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from djax.audit import verdicts
from djax.audit.runner import Outcome
from djax.io import escape, files, pages

__all__ = ["FACTS", "PAGE", "curves", "page", "write"]

FACTS = "audit.json"
PAGE = "audit.html"

_CELL = 64
_GAP = 4
_TITLES = (
  *("attack", "level", "pairs", "verdict", "SSIM", "SSIM<br>above chance", "PSNR dB"),
  *("examiner<br>success", "examiner<br>above chance", "seconds"),
)
_WORDS = ("attack", "verdict")  # the columns that are no numbers
_NOT_COVERED = (
  "attacks on the trained network: its use on plain images, membership, inversion of the model",
  "attackers with more images, more time, other networks or better ideas than these",
  "what is visible without any picture: numbers of images and classes, class frequencies, the order of records",
  "how the key is kept, and whether it has been used elsewhere",
)
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d0d7de; --page: #fff; --card: #f6f8fa }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9da7b1; --line: #3d444d; --page: #0d1117; --card: #161b22 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
p, dd, li, td.why { overflow-wrap: anywhere }
.soft { color: var(--soft) }
.note { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .75rem }
.levels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem }
.level { background: var(--card); border: 1px solid var(--line); border-left: .5rem solid var(--mark);
  border-radius: 6px; padding: .75rem 1rem }
.level p { margin: .25rem 0 0 }
.verdict { font-size: 1.25rem; font-weight: 700 }
.broken { --mark: #c62828 } .leaks { --mark: #b26a00 } .not { --mark: #3a6ea5 } .nothing { --mark: #777 }
.chip { border-left: .3rem solid var(--mark); padding-left: .4rem; white-space: nowrap; display: inline-block }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top }
th { background: var(--card) }
th, td:first-child { white-space: nowrap }
td.n, th.n { text-align: right; white-space: nowrap }
tr:last-child td { border-bottom: 0 }
td.why { min-width: 14rem }
figure { margin: 0 0 .75rem }
figcaption { font-size: .9rem }
figure img { width: 100%; max-width: 540px; height: auto; display: block; image-rendering: pixelated }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem }
.plots div { background: #fff; border-radius: 6px; border: 1px solid var(--line); max-width: 32rem }
.plots svg { width: 100%; height: auto; display: block }
@media (max-width: 40rem) { .chip { white-space: normal; min-width: 6.5rem } th, td { padding: .35rem } }
dt { font-weight: 600; margin-top: .5rem } dd { margin-left: 0 }
"""


def write(folder: Path, outcome: Outcome) -> None:
  """Writes ``audit.json`` and ``audit.html``, readable by their owner alone: the page shows originals.

  Args:
    folder: exists, and is empty.
    outcome: of the audit.
  """
  for name, text in ((FACTS, pages.json_text(outcome.facts)), (PAGE, page(outcome))):
    with files.private(folder / name) as file:
      file.write(text.encode())


def page(outcome: Outcome) -> str:
  """Returns the report card, HTML.

  Args:
    outcome: of the audit.
  """
  facts = outcome.facts
  setting = facts["setting"]
  spec = setting["spec"]
  options = ", ".join(
    f"{name} {value}" for name, value in spec.items() if name not in ("scheme", "image_shape")
  )
  sizes = setting["sizes"]
  shape = " x ".join(map(str, spec["image_shape"]))
  pairs = " or ".join(map(str, sizes["pairs"]))
  if pairs:
    pairs = f"; at level 2 also {pairs} known pairs of an original and its disguised image"
  warnings = "".join(f"<li>{_text(warning)}</li>" for warning in setting["warnings"])
  plots = ""
  if shown := curves(facts):
    plots = f'<h2>With more known pairs</h2><div class="plots">{shown}</div>'
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>Audit of {_text(spec["scheme"])} on {_text(setting["source"])}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Audit: {_text(spec["scheme"])} on {_text(setting["source"])}</h1>
<p class="soft">{_text(options)}. Images of {_text(shape)}. djax {_text(facts["djax"])}, seed {_text(facts["seed"])},
{facts["seconds"]:.0f} s. Key: {_text(setting["key"])}.</p>
<p class="note"><strong>This page shows originals: keep it on your machine.</strong></p>
<div class="levels">{"".join(_level(n, level) for n, level in facts["levels"].items())}</div>
<h2>Attack by attack</h2>
{_table(facts["attacks"])}
<p class="soft">Medians over {sizes["targets"]} targets whose originals no attack saw. Above chance: 0 is what guessing
gives, 1 the originals themselves.</p>
{_refused(facts["attacks"])}
{plots}
<h2>What comes back</h2>
{"".join(_strip(caption, images, facts) for caption, images in outcome.pictures.items())}
<h2>What was tried</h2>
<p>The attacker had {sizes["private"]} disguised images and {sizes["public"]} public images of the same
kind{pairs}. None of these originals is a target.</p>
<ul>{warnings}</ul>
<h2>How verdicts are made</h2>
<dl>{"".join(_threshold(name) for name in facts["thresholds"])}
<dt>{_text(verdicts.VERDICTS[2])}</dt><dd>neither of the two. It is a statement about these attacks, not about the
disguise.</dd></dl>
<p>The examiner is a network trained on originals that are no targets; its accuracy is read between one guess for all
images (0) and what it reaches on the originals (1). Estimates that are better when all of them are mirrored left to
right are judged and shown so: a mirrored picture tells as much. Level 2 includes the attacks of level 1.</p>
<h2>What is not covered</h2>
<ul>{"".join(f"<li>{_text(item)}</li>" for item in _NOT_COVERED)}</ul>
</body>
</html>
"""


def curves(facts: Mapping[str, Any]) -> str:
  """Draws both measures over the number of known pairs.

  Args:
    facts: of ``audit.json``.

  Returns:
    Two ``<svg>`` elements, or an empty string where there are not several numbers of pairs.
  """
  rows = [row for row in facts["attacks"] if len(row["runs"]) > 1]
  if not rows:
    return ""
  plots = ""
  measures = {"ssim_above_chance": "SSIM above chance", "above_chance": "examiner above chance"}
  for name, title in measures.items():
    figure = Figure(figsize=(4.2, 3), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel="known pairs", ylim=(-0.05, 1.05), xscale="log")
    axes.axhline(verdicts.BROKEN, color="0.6", linewidth=1, linestyle=":")
    ticks = sorted({run["pairs"] for row in rows for run in row["runs"]})
    axes.set_xticks(ticks, [str(count) for count in ticks])
    axes.minorticks_off()
    for row in rows:
      values = [run["scores"][name] for run in row["runs"]]
      axes.plot([run["pairs"] for run in row["runs"]], values, marker="o", label=row["name"])
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    plots += f"<div>{pages.svg(figure)}</div>"
  return plots


def _level(number: str, level: Mapping[str, Any]) -> str:
  verdict = level["verdict"] or verdicts.UNTRIED
  knows = {"1": "disguised images alone", "2": "also a few known originals"}[number]
  return (
    f'<section class="level {_mark(verdict)}"><div class="soft">Level {number}: {knows}</div>'
    f'<div class="verdict">{_text(verdict)}</div><p>{_text(level["words"])}</p></section>'
  )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
  number = '<td class="n">{}</td>'.format
  heads = ("<th>" if title in _WORDS else '<th class="n">' for title in _TITLES)
  lines = ["".join(f"{head}{title}</th>" for head, title in zip(heads, _TITLES, strict=True))]
  for row in rows:
    name = (
      f'<td title="{_text(row["title"])}">{_text(row["name"])}</td>{number(_text(row["level"]))}'
    )
    for run in row["runs"]:
      scores, verdict = run["scores"], run["verdict"]
      pairs = "" if run["pairs"] is None else run["pairs"]
      chip = f'<td><span class="chip {_mark(verdict)}">{_text(verdict)}</span></td>'
      cells = (
        f"{scores['ssim']['median']:.3f}",
        f"{scores['ssim_above_chance']:.2f}",
        f"{scores['psnr']['median']:.1f}",
        f"{scores['success']:.0%}",
        f"{scores['above_chance']:.2f}",
        f"{run['seconds']:.1f}",
      )
      lines.append(f"{name}{number(_text(pairs))}{chip}{''.join(map(number, cells))}")
      for warning in run["diagnostics"].get("warnings", ()):
        lines.append(f'<td></td><td colspan="9" class="soft why">{_text(warning)}</td>')
    if row["status"] == "failed":
      reason = _text(f"failed: {row['reason']}")
      lines.append(f'{name}<td></td><td colspan="7" class="soft why">{reason}</td>')
  body = "".join(f"<tr>{line}</tr>" for line in lines)
  return f'<div class="scroll"><table>{body}</table></div>'


def _refused(rows: Sequence[Mapping[str, Any]]) -> str:
  """Lists the attacks that do not apply."""
  items = "".join(
    f"<li>{_text(row['name'])}, level {_text(row['level'])}: {_text(row['reason'])}</li>"
    for row in rows
    if row["status"] == "refused"
  )
  return items and f'<p class="soft">Not for this disguise:</p><ul class="soft">{items}</ul>'


def _mark(verdict: str) -> str:
  """Returns the class of a verdict in the style sheet."""
  return _text(verdict.split()[0])


def _threshold(name: str) -> str:
  value, reason = verdicts.THRESHOLDS[name]
  return f"<dt>{_text(name)}: {value:g}</dt><dd>{_text(reason)}.</dd>"


def _strip(caption: str, images: np.ndarray, facts: Mapping[str, Any]) -> str:
  """Returns a row of pictures, with what it is."""
  words = caption
  for row in facts["attacks"]:
    if row["name"] == caption and row["shown"]:
      words = f"{caption}, {row['shown']} known pair{'s' * (row['shown'] != 1)}"
  if caption == "disguised":
    low, high = np.percentile(images.astype(np.float32), [1, 99])
    images = (images.astype(np.float32) - low) / max(high - low, 1e-6) * 255
  pixels = np.clip(np.rint(images), 0, 255).astype(np.uint8)
  # The first one or three channels; a gap of transparent pixels between the images.
  colours = pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, -1)
  times = max(1, _CELL // max(colours.shape[1:3]))
  colours = colours.repeat(times, 1).repeat(times, 2)
  count, height = colours.shape[:2]
  opaque = np.concatenate([colours, np.full_like(colours[..., :1], 255)], -1)
  spaced = np.pad(opaque, ((0, 0), (0, 0), (0, _GAP), (0, 0)))
  sheet = np.concatenate(spaced, axis=1)[:, :-_GAP]
  buffer = io.BytesIO()
  Image.fromarray(sheet).save(buffer, "PNG")
  data = base64.b64encode(buffer.getvalue()).decode()
  return (
    f'<figure><figcaption>{_text(words)}</figcaption><img alt="{_text(words)}: {count} images" '
    f'width="{sheet.shape[1]}" height="{height}" src="data:image/png;base64,{data}"></figure>'
  )


def _text(value: Any) -> str:
  return escape.for_html(str(value))
