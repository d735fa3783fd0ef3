r"""Text from outside, made safe to show: on a terminal, in Markdown and in HTML.

Names, warnings and fingerprints of a foreign file may hold escape sequences that move the cursor, change a window's
title or draw a line that djax never wrote, and characters that turn the direction of writing or cannot be seen. Letters
of any script stay as they are. What is escaped is not meant to be read back: a text that holds ``\x1b`` in four letters
looks like one that held the character.
"""

import html
import io
import re
import unicodedata
from typing import TextIO

__all__ = ["for_html", "for_markdown", "for_markdown_code", "for_terminal", "never_fail"]

# Control and format characters, surrogates, private and unassigned ones, line and paragraph separators.
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
# Letters and marks that are drawn as nothing: Unicode's Default_Ignorable_Code_Point beyond those categories.
_INVISIBLE = re.compile(
  "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
# What GitHub's Markdown reads as a mark within a line, addresses that it would make a link of among them; an underscore
# within a word is none, so that block_size stays as it is.
_MARKS = re.compile(r"[\\`*{}\[\]|<>&~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=[Ww]{3})\.")
# What makes a heading, a list, a rule or code of a line that begins so.
_BEGINNING = re.compile(r"[#+=-]|:(?=-)|(?<=\d)[.)]")


def for_terminal(text: str) -> str:
  r"""Returns a text in one line whose every character is shown; what hides becomes ``\x1b``, ``\u202e`` and so on.

  Args:
    text: any string, also one with surrogates of a file name that is not UTF-8.
  """
  if text.isascii() and text.isprintable():
    return text
  return "".join(
    character.encode("unicode_escape").decode("ascii")
    if unicodedata.category(character) in _HIDDEN or _INVISIBLE.match(character)
    else character
    for character in text
  )


def for_markdown(text: str) -> str:
  """Returns a text in one line that Markdown shows as it is, also in a list or a table.

  Args:
    text: any string.
  """
  shown = _MARKS.sub(r"\\\g<0>", for_terminal(text))
  if shown[:1] == " ":
    return f"&#32;{shown[1:]}"
  number = re.match(r"[0-9]{1,9}(?=[.)])", shown)
  start = number.end() if number else 0
  return f"{shown[:start]}\\{shown[start:]}" if _BEGINNING.match(shown, start) else shown


def for_markdown_code(text: str) -> str:
  """Returns a text in one line as code in a line of Markdown, the backticks around it included; not for tables.

  Args:
    text: any string.
  """
  shown = for_terminal(text)
  fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
  space = "" if shown and shown == shown.strip("` ") else " "
  return f"{fence}{space}{shown}{space}{fence}"


def for_html(text: str) -> str:
  """Returns a text in one line for HTML, also within an attribute in quotes.

  Args:
    text: any string.
  """
  return html.escape(for_terminal(text), quote=True)


def never_fail(stream: TextIO) -> None:
  r"""Has a stream show letters that its encoding lacks as ``\u9375``, where printing them would end the process.

  Args:
    stream: such as ``sys.stdout``.
  """
  if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
    stream.reconfigure(errors="backslashreplace")
