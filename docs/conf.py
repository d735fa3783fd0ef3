"""The site: ``python -m sphinx -W -b html docs OUT``. Nothing is executed or fetched."""

import dataclasses
import logging
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from pygments.lexers.special import TextLexer

HERE = Path(__file__).parent
TUTORIALS = HERE / "tutorials"

project = "djax"
author = "the djax authors"
version = release = metadata.version("djax")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"

# Types of other packages: their pages are not fetched.
_OTHERS = "collections|configs|cryptography|flax|jax|matplotlib|ml_collections|numpy|optax|os|pathlib|PIL|rich"
nitpick_ignore_regex = [("py:class", rf"({_OTHERS})\..*|ConfigDict|Path|.*\._\w+")]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "djax"
html_theme_options = {"show_toc_level": 2}
html_math_renderer = "mathml"
copybutton_prompt_text = ">>> "
copybutton_only_copy_prompt_lines = False


def _copy_notebooks() -> None:
  """Puts the notebooks where Sphinx finds them: a folder that Git ignores."""
  shutil.rmtree(TUTORIALS, ignore_errors=True)
  TUTORIALS.mkdir()
  for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
    shutil.copy(notebook, TUTORIALS)


def _skip(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
  """Leaves out fields of named tuples: the docstring of the class has them, Python's own says "Alias for field"."""
  return True if type(member).__name__ == "_tuplegetter" else None


def _plain_options(app: Any, member: Any, bound: bool) -> None:
  """Leaves out of a signature what ``Annotated`` adds for flags and configs."""
  for name, annotation in getattr(member, "__annotations__", {}).items():
    if hasattr(annotation, "__metadata__"):
      member.__annotations__[name] = annotation.__origin__


def _no_fields(app: Any, what: str, name: str, member: Any, *_: Any) -> tuple[str, None] | None:
  """Leaves the fields of a record out of its signature: the docstring has them, with their meaning."""
  record = dataclasses.is_dataclass(member) or hasattr(member, "_fields")
  return ("", None) if what == "class" and record else None


def _formula(translator: Any, node: Any) -> None:
  """Writes a formula as MathML, which browsers draw without a script from another host."""
  block = node.tagname == "math_block"
  text = latex2mathml.tex2mathml(node.astext(), as_block=block)
  translator.body.append(f'<div style="margin: 1rem 0">{text}</div>' if block else text)
  raise nodes.SkipNode


def _link_security(app: Any, name: str, source: list[str]) -> None:
  """Leads links to SECURITY.md, which lies above docs/, to its page."""
  source[0] = source[0].replace("](../SECURITY.md)", f"]({'../' * name.count('/')}security.md)")


def setup(app: Any) -> None:
  """Called by Sphinx."""
  _copy_notebooks()
  # A table of contents may be empty: without notebooks beside docs/ there are no tutorials. No option says so.
  table_of_contents = logging.getLogger("sphinx.sphinx.directives.other")
  table_of_contents.addFilter(lambda record: getattr(record, "subtype", "") != "empty_glob")
  app.connect("source-read", _link_security)
  app.connect("autodoc-skip-member", _skip)
  app.connect("autodoc-before-process-signature", _plain_options)
  app.connect("autodoc-process-signature", _no_fields)
  app.add_html_math_renderer("mathml", (_formula, None), (_formula, None))
  # The import graph stays text: drawing it would take a script from another host.
  app.add_lexer("mermaid", TextLexer)
