"""What pages of results share: JSON files, Markdown tables, generated text inside a page, and plots as SVG."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from djax.io import files

__all__ = ["between", "json_text", "read_json", "save_svg", "svg", "table", "write_json"]

_SVG: dict[Any, Any] = {"svg.hashsalt": "djax", "svg.fonttype": "path"}


def json_text(value: Any) -> str:
  """Returns results as the text of a JSON file; NaN and infinity raise ``ValueError``.

  Args:
    value: JSON types.
  """
  return json.dumps(value, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
  """Writes results; under the name of the file there is always a whole one.

  Args:
    path: the file.
    value: JSON types, without NaN and infinity.
  """
  files.replace(path, json_text(value).encode())


def read_json(path: Path) -> Any:
  """Returns the content of a JSON file; None if it is missing or incomplete.

  Args:
    path: the file, written on this machine.
  """
  try:
    return json.loads(path.read_text())
  except (FileNotFoundError, ValueError):
    return None


def table(columns: Iterable[str], rows: Iterable[Sequence[Any]], *, right: int = 0) -> str:
  """Returns a Markdown table.

  Args:
    columns: the titles.
    rows: one cell for each title, any type; ``|`` is escaped.
    right: how many columns, the last ones, are aligned to the right.
  """
  titles = list(columns)
  rules = ["---"] * (len(titles) - right) + ["---:"] * right
  lines = [titles, rules, *([str(cell).replace("|", r"\|") for cell in row] for row in rows)]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def between(text: str, new: str, *, begin: str, end: str) -> str:
  """Returns a text with ``new`` between two markers, on lines of its own; unchanged where a marker is missing.

  Args:
    text: such as a README.
    new: the generated part.
    begin: the first marker.
    end: the second one.
  """
  before, first, rest = text.partition(begin)
  _, last, after = rest.partition(end)
  return f"{before}{first}\n{new}\n{last}{after}" if last else text


def save_svg(figure: Figure, path: Path) -> None:
  """Writes a figure as an SVG file, the same bytes for the same figure.

  Args:
    figure: the figure.
    path: the file.
  """
  with matplotlib.rc_context(_SVG):
    figure.savefig(path, format="svg", metadata={"Date": None})


def svg(figure: Figure) -> str:
  """Returns a figure as an ``<svg>`` element for a page, letters as outlines.

  Args:
    figure: the figure.
  """
  buffer = io.StringIO()
  with matplotlib.rc_context(_SVG):
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=metadata)
  text = buffer.getvalue()
  return text[text.index("<svg") :]
