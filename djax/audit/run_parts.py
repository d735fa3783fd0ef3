"""What pages say of training runs, of one or of several side by side."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from djax import schemes
from djax.audit import known_breaks
from djax.io import html
from djax.io.html import text
from djax.schemes import Trait

__all__ = ["accuracies", "config", "curves", "known", "percent"]

_CURVES = {
  "train_loss": "training loss",
  "val_accuracy": "validation accuracy",
  "test_accuracy": "test accuracy",
}


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """Draws loss and accuracy by epoch.

  Args:
    runs: by name, plain text of this package, the rows of ``run_files.metrics_from``.

  Returns:
    HTML: a picture of the loss, and one of the accuracy on each split that was asked; empty without any row.
  """
  drawn = ""
  for field, title in _CURVES.items():
    lines = {}
    for name, rows in runs.items():
      own = [row for row in rows if row.get(field) is not None]
      if own:
        lines[name or title] = [row["epoch"] for row in own], [row[field] for row in own]
    if lines:
      drawn += html.curves(title, "epoch", lines, share=field != "train_loss")
  return drawn and f'<div class="plots">{drawn}</div>'


def accuracies(result: Mapping[str, Any], label: str) -> str:
  """Returns the accuracy on images under the key, under another one and without, beside guessing.

  Args:
    result: as ``run_files.result_from`` returns it.
    label: plain text that names the table.
  """
  disguised = result["key_fingerprint"] is not None
  own = "disguised with the key of this run" if disguised else "as they are"
  rows = {own: result["test_accuracy"]}
  if result["test_views"] > 1:
    rows = {
      f"{own}, over {result['test_views']} views": result["test_accuracy"],
      f"{own}, one view alone": result["single_view_accuracy"],
    }
  if disguised:
    rows["disguised with another key"] = result["other_key_accuracy"]
    rows["without a disguise (misuse)"] = result["plain_accuracy"]
  rows["guessing"] = 1 / result["classes"]
  cells = ((text(name), percent(share)) for name, share in rows.items())
  table = html.table(label, ("test images", "accuracy"), cells)
  words = f"{result['test_images']} test images, {result['classes']} classes."
  if result["val_accuracy"] is not None:
    words += (
      f" The network is that of step {result['chosen_step']} of {result['steps']}, the best on the validation images "
      f"({percent(result['val_accuracy'])})."
    )
  if None in rows.values():
    words += " What is not measured needs originals that the network can take, and there were none."
  elif disguised:
    words += (
      " The nearer another key and no disguise are to guessing, the less the network is of use to someone without the "
      "key."
    )
  return f'{table}\n<p class="soft">{text(words)}</p>'


def known(spec: Mapping[str, Any]) -> str:
  """Says what is known to break the disguise of a run.

  Args:
    spec: ``SchemeSpec.to_dict()``.
  """
  if Trait.IDENTITY in schemes.traits(spec):
    words = "There is no disguise: whoever has the images sees them."
  else:
    words = known_breaks.lookup(spec) or (
      "Nothing in the table of audits that comes with djax, which is no reason to rely on it. Audit it on your images: "
      "python -m djax audit"
    )
  return f"<p>{text(words)}</p>"


def config(fields: Iterable[tuple[str, Any]], label: str) -> str:
  """Returns the fields of a config, folded away.

  Args:
    fields: names and values.
    label: plain text that names the table.
  """
  rows = ((text(name), text(value) if value != "" else "empty") for name, value in fields)
  table = html.table(label, ("field", "value"), rows, words=(0, 1))
  return f"<details><summary>{text(label)}</summary>{table}</details>"


def percent(share: float | None) -> str:
  """Returns a share of 0..1 in words."""
  return "not measured" if share is None else f"{share:.2%}"
