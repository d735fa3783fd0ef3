"""The site: no orphan, links between pages lead somewhere, code shown is code tested, Sphinx has no warning."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from helpers import documents
from helpers.fresh import ROOT, SOURCE

DOCS = ROOT / "docs"
MADE = ("_build", "tutorials")  # folders that the build makes
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def pages(docs):
  """Returns all pages by their name without ``.md``."""
  found = {path.relative_to(docs).with_suffix("").as_posix(): path for path in docs.rglob("*.md")}
  return {name: path for name, path in found.items() if name.split("/")[0] not in MADE}


def listed(docs):
  """Returns the pages that are reached from the index by tables of contents."""
  names, waiting = {"index"}, ["index"]
  while waiting:
    text = (docs / f"{waiting.pop()}.md").read_text()
    for block in documents.blocks(text, "{toctree}"):
      for line in block.splitlines():
        if not line or line.startswith(":"):
          continue
        new = {
          path.relative_to(docs).with_suffix("").as_posix() for path in docs.glob(f"{line}.md")
        }
        waiting += new - names
        names |= new
  return names


def headings(text):
  """Returns the anchors of a page's headings, as GitHub and MyST form them."""
  plain = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
  titles = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
  return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def dead(docs):
  """Returns links of pages to files or headings that are not there, as ``page: link``."""
  found = []
  for name, path in pages(docs).items():
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in LINK.findall(text):
      if re.match(r"https?:", link):
        continue
      target, _, heading = link.partition("#")
      file = path.parent / target if target else path
      if not file.exists() or (heading and heading not in headings(file.read_text())):
        found.append(f"{name}: {link}")
  return found


def test_no_page_is_an_orphan():
  assert len(pages(DOCS)) > 30
  assert set(pages(DOCS)) - listed(DOCS) == set()


def test_links_between_pages_lead_somewhere():
  assert sum(len(LINK.findall(path.read_text())) for path in pages(DOCS).values()) > 30
  assert dead(DOCS) == []


def test_an_orphan_and_a_dead_link_are_found(tmp_path):
  (tmp_path / "index.md").write_text(
    "# A\n\n```{toctree}\n:glob:\n\nb\nin/*\n```\n\n[b](b.md#here)\n"
  )
  (tmp_path / "b.md").write_text("# Here\n[x](gone.md) [y](#there) [z](https://a.b)\n")
  (tmp_path / "c.md").write_text("# C\n")
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "d.md").write_text("[up](../b.md)\n")
  assert set(pages(tmp_path)) - listed(tmp_path) == {"c"}
  assert dead(tmp_path) == ["b: gone.md", "b: #there"]


def test_every_module_of_the_api_pages_exists_and_each_public_package_has_one():
  text = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
  modules = re.findall(r"automodule:: ([\w.]+)", text)
  assert len(modules) > 60 and [name for name in modules if find_spec(name) is None] == []
  packages = {f"djax.{path.parent.name}" for path in (SOURCE / "djax").glob("*/__init__.py")}
  shown = {".".join(name.split(".")[:2]) for name in modules}
  # The command line has its own help, the benchmark its page.
  assert packages - shown == {"djax.cli", "djax.bench"}


def test_code_on_the_page_of_additions_is_whole_and_that_of_the_tests():
  def bare(text):
    return "\n".join(line.strip() for line in text.splitlines() if line)

  tested = bare((ROOT / "tests" / "test_extending.py").read_text())
  blocks = documents.blocks((DOCS / "extend.md").read_text(), "python")
  assert len(blocks) == 5
  exec(compile("\n".join(blocks), "extend.md", "exec"), {"__name__": "extend"})
  for block in blocks[1:]:
    assert bare(block) in tested, block


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
  for name in ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx_copybutton"):
    pytest.importorskip(name, reason="the site needs: pip install -e '.[docs]'")
  done = subprocess.run(
    [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-E", "docs", tmp_path],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "howto" / "train.html").exists()
