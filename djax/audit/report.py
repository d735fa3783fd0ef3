"""The report card: ``audit.json`` with all numbers, ``audit.html`` for a person. One file, no script, no request."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from djax.audit import verdicts
from djax.audit.runner import Outcome
from djax.io import files, html, pages
from djax.io.html import text

__all__ = ["FACTS", "PAGE", "attacks", "chip", "level", "page", "write"]

FACTS = "audit.json"
PAGE = "audit.html"

_COLUMNS = (
  *("attack", "verdict", "level", "pairs", "SSIM", "SSIM above chance", "PSNR dB"),
  *("examiner above chance", "seconds"),
)
_MEASURES = {"ssim_above_chance": "SSIM above chance", "above_chance": "examiner above chance"}
_WORDS = (0, 1)  # columns that are no numbers
_NOT_COVERED = (
  "attacks on the trained network: its use on plain images, membership, inversion of the model",
  "attackers with more images, more time, other networks or better ideas than these",
  "what is visible without any picture: numbers of images and classes, class frequencies, the order of records",
  "how the key is kept, and whether it has been used elsewhere",
)


def write(folder: Path, outcome: Outcome) -> None:
  """Writes ``audit.json`` and ``audit.html``, readable by their owner alone: the page shows originals.

  Args:
    folder: exists, and is empty.
    outcome: of the audit.
  """
  for name, content in ((FACTS, pages.json_text(outcome.facts)), (PAGE, page(outcome))):
    with files.private(folder / name) as file:
      file.write(content.encode())


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
  views = ""
  if setting.get("views", 1) > 1:
    views = f"; of each target {setting['views']} views that belong together"
  warnings = "".join(f"<li>{text(warning)}</li>" for warning in setting["warnings"])
  plots = ""
  if shown := _curves(facts):
    plots = f'<h2>With more known pairs</h2><div class="plots">{shown}</div>'
  return html.page(
    f"Audit: {spec['scheme']} on {setting['source']}",
    f"""<p class="soft">{text(options)}. Images of {text(shape)}. djax {text(facts["djax"])},
seed {text(facts["seed"])}, {facts["seconds"]:.0f} s. Key: {text(setting["key"])}.</p>
<p class="note"><strong>This page shows originals: keep it on your machine.</strong></p>
<div class="levels">{"".join(level(number, judged) for number, judged in facts["levels"].items())}</div>
<h2>Attack by attack</h2>
{attacks(facts["attacks"], "Attack by attack")}
<p class="soft">Medians over {sizes["targets"]} targets whose originals no attack saw. Above chance: 0 is what guessing
gives, 1 the originals themselves.</p>
{_refused(facts["attacks"])}
{plots}
<h2>What comes back</h2>
{"".join(_strip(caption, images, facts) for caption, images in outcome.pictures.items())}
<h2>What was tried</h2>
<p>The attacker had {sizes["private"]} disguised images and {sizes["public"]} public images of the same
kind{pairs}{views}. None of these originals is a target.</p>
<ul>{warnings}</ul>
<h2>What the key gives back</h2>
<p>With the key: {text(facts["ceiling"]["words"])}.</p>
<h2>What the noise alone proves</h2>
<p>Whatever an attacker does: {text(facts["noise_alone"]["words"])}.</p>
<h2>How verdicts are made</h2>
<dl>{"".join(_threshold(name) for name in facts["thresholds"])}
<dt>{text(verdicts.VERDICTS[-1])}</dt><dd>none of these. It is a statement about these attacks, not about the
disguise.</dd></dl>
<p>The examiner is a network trained on originals that are no targets; its accuracy is read between one guess for all
images (0) and what it reaches on the originals (1). Estimates that are better when all of them are mirrored left to
right are judged and shown so: a mirrored picture tells as much. Level 2 includes the attacks of level 1.</p>
<h2>What is not covered</h2>
<ul>{"".join(f"<li>{text(item)}</li>" for item in _NOT_COVERED)}</ul>""",
  )


def attacks(rows: Sequence[Mapping[str, Any]], label: str) -> str:
  """Returns the table of the attacks that ran or failed.

  Args:
    rows: ``attacks`` of ``audit.json``.
    label: plain text that names the table.
  """
  lines: list[tuple[str, ...]] = []
  for row in rows:
    name = text(row["name"])
    for place, run in enumerate(row["runs"]):
      scores = run["scores"]
      title = f'<br><span class="soft">{text(row["title"])}</span>' if place == 0 else ""
      lines.append(
        (
          name + title,
          chip(run["verdict"]),
          text(row["level"]),
          "" if run["pairs"] is None else text(run["pairs"]),
          f"{scores['ssim']['median']:.3f}",
          f"{scores['ssim_above_chance']:.2f}",
          f"{scores['psnr']['median']:.1f}",
          f"{scores['above_chance']:.2f}",
          f"{run['seconds']:.1f}",
        )
      )
      lines += [(name, text(warning)) for warning in run["diagnostics"].get("warnings", ())]
    if row["status"] == "failed":
      lines.append((name, text(f"failed: {row['reason']}")))
  return html.table(label, _COLUMNS, lines, words=_WORDS)


def chip(verdict: str) -> str:
  """Returns a verdict with the colour of its mark."""
  return f'<span class="chip {_mark(verdict)}">{text(verdict)}</span>'


def level(number: str, judged: Mapping[str, Any]) -> str:
  """Returns a threat level, its verdict and what to do.

  Args:
    number: ``"1"`` or ``"2"``.
    judged: of ``levels`` in ``audit.json``.
  """
  verdict = judged["verdict"] or verdicts.UNTRIED
  knows = {"1": "disguised images alone", "2": "also a few known originals"}[number]
  return (
    f'<section class="level {_mark(verdict)}"><div class="soft">Level {number}: {knows}</div>'
    f'<div class="verdict">{text(verdict)}</div><p>{text(judged["words"])}</p></section>'
  )


def _curves(facts: Mapping[str, Any]) -> str:
  """Draws both measures over the number of known pairs; nothing where there are not several numbers of pairs."""
  rows = [row for row in facts["attacks"] if len(row["runs"]) > 1]
  if not rows:
    return ""
  return "".join(
    html.curves(
      title,
      "known pairs",
      {
        row["name"]: (
          [run["pairs"] for run in row["runs"]],
          [run["scores"][name] for run in row["runs"]],
        )
        for row in rows
      },
      share=True,
      mark=verdicts.BROKEN,
      log=True,
    )
    for name, title in _MEASURES.items()
  )


def _refused(rows: Sequence[Mapping[str, Any]]) -> str:
  """Lists the attacks that do not apply."""
  items = "".join(
    f"<li>{text(row['name'])}, level {text(row['level'])}: {text(row['reason'])}</li>"
    for row in rows
    if row["status"] == "refused"
  )
  return items and f'<p class="soft">Not for this disguise:</p><ul class="soft">{items}</ul>'


def _mark(verdict: str) -> str:
  """Returns the class of a verdict in the style sheet."""
  return text(verdict.split()[0])


def _threshold(name: str) -> str:
  value, reason = verdicts.THRESHOLDS[name]
  return f"<dt>{text(name)}: {value:g}</dt><dd>{text(reason)}.</dd>"


def _strip(caption: str, images: np.ndarray, facts: Mapping[str, Any]) -> str:
  """Returns a row of pictures, with what it is."""
  words = caption
  for row in facts["attacks"]:
    if row["name"] == caption and row["shown"]:
      words = f"{caption}, {row['shown']} known pair{'s' * (row['shown'] != 1)}"
  stretched = caption == "disguised"
  if stretched:
    words += ", values stretched to the visible range"
  return html.strip(words, images, stretched=stretched)
