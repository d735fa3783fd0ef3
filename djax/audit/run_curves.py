"""The curves of training runs, for the page of one and for several side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from djax.io import html

__all__ = ["draw"]

_TITLES = {
  "train_loss": "training loss",
  "val_accuracy": "validation accuracy",
  "test_accuracy": "test accuracy",
}


def draw(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """Draws loss and accuracy by epoch.

  Args:
    runs: by name, plain text of this package, the rows of ``run_files.metrics_from``.

  Returns:
    An ``<svg>`` element for the loss, and one for the accuracy on each split that was asked.
  """
  drawn = ""
  for field, title in _TITLES.items():
    lines = {}
    for name, rows in runs.items():
      own = [row for row in rows if row.get(field) is not None]
      if own:
        lines[name or title] = [row["epoch"] for row in own], [row[field] for row in own]
    if lines:
      drawn += html.curves(title, "epoch", lines, share=field != "train_loss")
  return drawn
