"""The pages in Chromium: they complain of nothing, ask for nothing, and fit a phone."""

import numpy as np
import pytest
from helpers import browser

from djax.io import html

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(browser.PROGRAM is None, reason="needs Chromium, which is not installed"),
]
ROWS = [("a" * 60, *("0.123456",) * 30), ("short", "a note " * 20)]


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
  with browser.opened(tmp_path_factory.mktemp("profile")) as opened:
    yield opened


@pytest.fixture
def page(tmp_path):
  """All parts of the template: a wide table, curves, pictures, and words that no line holds."""
  body = (
    f"{html.table('Wide', [f'column {n}' for n in range(31)], ROWS)}"
    f'<div class="plots">{html.curves("loss", "epoch", {"a": ([1, 2], [3.0, 2.0])})}</div>'
    f"{html.strip('pictures', np.zeros((8, 32, 32, 3)))}<p>{'b' * 500}</p>"
  )
  path = tmp_path / "page.html"
  path.write_text(html.page("c" * 100, body))
  return path


def width(tab):
  return tab.value("document.documentElement.scrollWidth")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("pixels", [400, 800, 1400])
def test_a_page_is_quiet_and_as_wide_as_its_window(tab, page, pixels, dark):
  tab.show(page, width=pixels, dark=dark)
  assert width(tab) == pixels
  assert tab.requests == [] and tab.complaints == []
  # The wide table scrolls in its box, also by keys.
  assert tab.value("(b => b.scrollWidth > 2 * b.clientWidth)(document.querySelector('.scroll'))")
  tab.value("document.querySelector('.scroll').focus()")
  assert tab.value("document.activeElement.getAttribute('aria-label')") == "Wide"
  background = tab.value("getComputedStyle(document.body).backgroundColor")
  assert (background == "rgb(255, 255, 255)") != dark


def test_these_checks_can_fail(tab, page, tmp_path):
  text = page.read_text().replace("overflow-x: auto", "")
  page.write_text(text.replace("</main>", '<script>1</script><img alt="" src="no.png"></main>'))
  tab.show(page, width=400)
  assert width(tab) > 400
  # The policy of the page lets neither through; that they were tried is seen.
  assert tab.requests == [(tmp_path / "no.png").as_uri()] and len(tab.complaints) == 2
