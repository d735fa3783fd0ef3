"""``report.html`` of a run directory: one page for a person, made when the run is done."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

import djax
from djax.audit import run_parts
from djax.io import files, html
from djax.io.html import text
from djax.models import checksums, run_files
from train import config as config_lib
from train.data.inputs import Inputs
from train.evaluate import Score

__all__ = ["FILE", "Content", "write"]

FILE = "report.html"

_MOST_CLASSES = 20  # of a whole confusion matrix; of more, the most frequent mistakes
_MISTAKES = 20


class Content(NamedTuple):
  """What a page shows besides the curves.

  Attributes:
    config: of the run.
    inputs: its public facts are shown; originals where there are any.
    result: of ``result.json``.
    tested: the answers to the test split.
    pictures: the first test images ``[n, H, W, C]`` by caption: ``disguised``, and ``originals`` where there are any.
  """

  config: ConfigDict
  inputs: Inputs
  result: Mapping[str, Any]
  tested: Score
  pictures: Mapping[str, np.ndarray]


def write(workdir: Path, content: Content) -> None:
  """Writes the page, readable by its owner alone.

  Args:
    workdir: the run directory, after the last checkpoint.
    content: what is shown.

  Raises:
    OSError: if it cannot be written.
  """
  record = checksums.newest(workdir)
  metrics = run_files.metrics_from(checksums.beginning(workdir, record.metrics)) if record else []
  files.replace(workdir / FILE, _page(content, metrics).encode(), mode=0o600)


def _page(content: Content, metrics: list[dict[str, Any]]) -> str:
  config, inputs, result = content.config, content.inputs, content.result
  source = config.data.disguised_dir or config.data.source
  fingerprint = inputs.key_fingerprint
  shape = " x ".join(map(str, inputs.disguised_shape))
  lead = (
    f"{config.model.name}, width {config.model.width}; {config.train.epochs} epochs of {len(inputs.train.records)} "
    f"images, {shape}; seed {config.seed}; {result['seconds']:.0f} s; djax {djax.__version__}. "
    + (f"Key: {fingerprint}." if fingerprint else "No key.")
  )
  if fingerprint and fingerprint.startswith("experiment"):
    lead += " It is made from a public seed and protects nothing."
  note = "This page shows originals: keep it on your machine."
  if inputs.originals is None:
    note = "This page shows no original."
  curves = run_parts.curves({"": metrics})
  return html.page(
    f"Run: {inputs.spec['scheme']} on {source}",
    f"""<p class="soft">{text(lead)}</p>
<p class="note"><strong>{note}</strong></p>
<h2>{"What the key does" if fingerprint else "Accuracy"}</h2>
{run_parts.accuracies(result, "Accuracy")}
{curves and f"<h2>Curves</h2>{curves}"}
<h2>What the network sees</h2>
{"".join(_pictures(content.pictures))}
<h2>What is known to break it</h2>
{run_parts.known(inputs.spec)}
<h2>Confusion matrix</h2>
{_confusions(content)}
<h2>Config</h2>
{run_parts.config(config_lib.leaves(config), "All fields of the config")}""",
  )


def _pictures(pictures: Mapping[str, np.ndarray]) -> Iterator[str]:
  """Yields the first test images, originals above disguises."""
  for caption, images in pictures.items():
    outside = bool(images.min() < 0 or images.max() > 255)
    words = f"{caption}, values stretched to the visible range" if outside else caption
    yield html.strip(words, images, stretched=outside)


def _confusions(content: Content) -> str:
  """Returns the confusion matrix, or the most frequent mistakes where there are many classes."""
  classes, tested = content.inputs.classes, content.tested
  names, words = content.inputs.class_names, ""
  if names is None:
    names = tuple(map(str, range(classes)))
    words = " Classes are label ids."
    if content.inputs.labels == "permuted":
      words = " Classes are label ids, permuted: only the owner knows their names."
  pairs, counts = np.unique([tested.labels, tested.answers], axis=1, return_counts=True)
  found = dict(zip(zip(*pairs.tolist(), strict=True), counts.tolist(), strict=True))
  totals = np.bincount(tested.labels, minlength=classes).tolist()
  if classes > _MOST_CLASSES:
    return (
      f'<p class="soft">The most frequent mistakes.{words}</p>\n{_mistakes(names, found, totals)}'
    )
  return (
    f'<p class="soft">Rows: what the images show. Columns: what the network says.{words}</p>\n'
    f"{_matrix(names, found, totals)}"
  )


def _matrix(
  names: Sequence[str], found: Mapping[tuple[int, int], int], totals: Sequence[int]
) -> str:
  """Returns the whole matrix as a table."""
  rows = []
  for label, (name, total) in enumerate(zip(names, totals, strict=True)):
    row = [found.get((label, answer), 0) for answer in range(len(names))]
    right = run_parts.percent(row[label] / total) if total else ""
    rows.append((text(name), *(_heat(count, total) for count in row), right))
  return html.table("Confusion matrix", ("class", *names, "right"), rows)


def _mistakes(
  names: Sequence[str], found: Mapping[tuple[int, int], int], totals: Sequence[int]
) -> str:
  """Returns the most frequent mistakes as a table."""
  wrong = [(count, pair) for pair, count in found.items() if pair[0] != pair[1]]
  rows = (
    (text(names[label]), text(names[answer]), str(count), f"{count / totals[label]:.1%}")
    for count, (label, answer) in sorted(wrong, key=lambda row: (-row[0], row[1]))[:_MISTAKES]
  )
  columns = ("the image shows", "the network says", "images", "of this class")
  return html.table("The most frequent mistakes", columns, rows, words=(0, 1))


def _heat(count: int, total: int) -> str:
  """Returns a count, the stronger coloured the greater its share."""
  return f'<span class="heat" style="--share:{100 * count / max(1, total):.0f}%">{count}</span>'
