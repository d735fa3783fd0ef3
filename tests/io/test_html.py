"""The template of the pages."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from djax.io import html


class Cells(HTMLParser):
  """The cells of a table: tag, attributes and text."""

  def __init__(self, text):
    super().__init__()
    self.cells, self.box = [], {}
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    if tag in ("td", "th"):
      self.cells.append([tag, dict(attributes), ""])
    if tag == "div":
      self.box = dict(attributes)

  def handle_data(self, data):
    self.cells[-1][2] += data


def test_a_table_is_named_and_each_cell_has_its_headers():
  read = Cells(html.table("a & b", ("x", "y", "z"), [("<b>1</b>", "2", "3")], words=(0, 2)))
  assert read.box == {
    "class": "scroll",
    "tabindex": "0",
    "role": "region",
    "aria-label": "a & b",
  }
  assert [
    (tag, given.get("scope"), given.get("class"), text) for tag, given, text in read.cells
  ] == [
    ("th", "col", None, "x"),
    ("th", "col", "n", "y"),
    ("th", "col", None, "z"),
    ("th", "row", None, "1"),
    ("td", None, "n", "2"),
    ("td", None, None, "3"),
  ]


def test_the_last_cell_of_a_short_row_reaches_to_the_end():
  read = Cells(html.table("t", ("x", "y", "z"), [("1", "note")]))
  assert read.cells[-2][1] == {"scope": "row"}
  assert read.cells[-1][1] == {"colspan": "2", "class": "soft wide"}


def test_titles_and_labels_are_escaped():
  for made in (
    html.table("<i>", ("<i>",), []),
    html.page("<i>", ""),
    html.strip("<i>", np.zeros((1, 2, 2, 1))),
  ):
    assert "<i>" not in made and made.count("&lt;i&gt;") >= 2


def test_a_picture_of_curves_has_a_name_that_tells_their_ends():
  drawn = html.curves("loss", "epoch", {"a": ([1, 2], [0.5, 0.25]), "b": ([1], [2.0])})
  assert re.match(
    r'<svg role="img" aria-label="loss by epoch: a from 0.5 at 1 to 0.25 at 2; b ', drawn
  )
  assert "url(" not in re.sub(r"url\(#\w+\)", "", drawn)


@pytest.mark.parametrize(("count", "drawn"), [(1, 1), (1000, 1000), (1001, 501), (5000, 1000)])
def test_long_curves_are_thinned(monkeypatch, count, drawn):
  taken = []
  plot = html.Figure.subplots

  def watched(figure):
    axes = plot(figure)
    monkeypatch.setattr(axes, "plot", lambda xs, ys, **options: taken.append((len(xs), len(ys))))
    return axes

  monkeypatch.setattr(html.Figure, "subplots", watched)
  html.curves("t", "x", {"a": (range(count), range(count))})
  assert taken == [(drawn, drawn)]
