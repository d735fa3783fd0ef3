"""Text from outside, made safe to show: on a terminal, in Markdown and in HTML.

Names, warnings and fingerprints of a foreign file may hold escape sequences that move the cursor, change a window's
title or draw a line that djax never said, and characters that turn the direction of writing.
"""

import html
import re
import unicodedata

__all__ = ["for_html", "for_markdown", "for_terminal"]

# Control and format characters, surrogates, private ones, line and paragraph separators.
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|<>&~-])")


def for_terminal(text: str) -> str:
  r"""Returns a text in one line whose every character is shown; what hides becomes ``\x1b``, ``\u202e`` and so on.

  Args:
    text: any string, also one with surrogates of a file name that is not UTF-8.
  """
  if text.isascii() and text.isprintable():
    return text
  return "".join(
    character.encode("unicode_escape").decode("ascii")
    if unicodedata.category(character) in _HIDDEN
    else character
    for character in text
  )


def for_markdown(text: str) -> str:
  """Returns a text in one line that Markdown shows as it is.

  Args:
    text: any string.
  """
  return _MARKDOWN.sub(r"\\\1", for_terminal(text))


def for_html(text: str) -> str:
  """Returns a text in one line for HTML, also within an attribute.

  Args:
    text: any string.
  """
  return html.escape(for_terminal(text), quote=True)
