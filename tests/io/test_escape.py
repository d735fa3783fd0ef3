import html
import io
import json
import os
import re
import subprocess
import sys
import types
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from markdown_it import MarkdownIt

import djax
from djax import schemes
from djax.audit import comparison, report, runner
from djax.cli import common
from djax.cli.main import main
from djax.disguised import datacard
from djax.disguised.quantise import Bounds
from djax.io import escape
from djax.keys import keyfile
from train import config as config_lib
from train import page as run_page
from train.data.inputs import Inputs
from train.evaluate import Score

FALSE_LINE = "\x1b[1A\x1b[2K\x1b[Gauthenticated  written with the key djx1-aaaaaaaaaaaaaaaa"
# What a foreign file may hold, and what is shown of it.
HOSTILE = {
  FALSE_LINE: r"\x1b[1A\x1b[2K\x1b[Gauthenticated  written with the key djx1-aaaaaaaaaaaaaaaa",
  "\x1b]0;another title\x07": r"\x1b]0;another title\x07",
  "\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\": r"\x1b]8;;http://evil\x1b\here\x1b]8;;\x1b\\"[:-1],
  "\x9b2J\x9d0;title\x9c": r"\x9b2J\x9d0;title\x9c",  # the same in one character
  "real\rfalse": r"real\rfalse",
  "one\ntwo\r\nthree\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029": (
    r"one\ntwo\r\nthree\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
  ),
  "a\tb\x08\x7f\x00": r"a\tb\x08\x7f\x00",
  "exe.\u202egnp": r"exe.\u202egnp",
  "\u2066\u2067\u2068\u2069\u200e\u200f\u061c": r"\u2066\u2067\u2068\u2069\u200e\u200f\u061c",
  "a\u200bb\u200c\u200d\u2060\ufeff\u00ad": r"a\u200bb\u200c\u200d\u2060\ufeff\xad",
  "\U000e0041\U000e007f": r"\U000e0041\U000e007f",  # letters of tags, which nobody sees
  "\u3164\u115f\u1160\uffa0\u034f\ufe0f\U000e0100": (
    r"\u3164\u115f\u1160\uffa0\u034f\ufe0f\U000e0100"
  ),
  "\udcff\ud83d\udfff": r"\udcff\ud83d\udfff",
  "\ue000\U0010fffd\uffff\u0378": r"\ue000\U0010fffd\uffff\u0378",
}
HARMLESS = [
  "",
  "rmt: linear; a few known pairs reveal the matrices (block_size 4, N = 100).",
  "Größe, naïve Ørsted, Ελληνικά, Русский, עברית, العربية, हिन्दी, ไทย, 鍵 한국어 日本語",
  "e\u0301 combined",
  "no-break\u00a0space, wide\u3000space",
  "½ → ∑ “quotes” … 🐈 §",
  r"C:\Users\x1b",
]
MARKUP = [
  "<script>alert(1)</script>",
  "\"><img src=x onerror='alert(1)'>",
  "' onmouseover='alert(1)",
  "&lt;b&gt; &amp; &#60; &#x3c;",
  "--><!-- <!DOCTYPE html> ]]> <?php",
  "</td></tr></table><h1>authenticated</h1>",
  "javascript:alert(1)",
]
MARKDOWN = [
  "[click](http://evil)",
  "![picture](http://evil/x.png)",
  "<http://evil> https://evil www.evil.example",
  "[a]: http://evil",
  "a | b | c",
  "# heading",
  "  # heading",
  "    code",
  "- list",
  "+ list",
  "* list",
  "12. list",
  "3) list",
  "---",
  "===",
  "***",
  "___",
  ":-:",
  "|--|--|",
  "> quoted",
  "```",
  "~~~",
  "`code`",
  "**bold** __bold__ *i* _i_ ~~gone~~ _ _ a_b _a b_",
  "\\",
  "back\\slash \\* \\",
  "&copy; &#42;",
  "$x^2$ $`y`$",
  "end  ",
]


# The functions.


@pytest.mark.parametrize("text", HOSTILE)
def test_what_hides_is_shown(text):
  shown = HOSTILE[text]
  assert escape.for_terminal(text) == shown
  assert escape.for_html(text) == html.escape(shown)
  assert escape.for_terminal(f"ü{text}") == f"ü{shown}"


@pytest.mark.parametrize("text", HARMLESS)
def test_letters_of_any_script_stay(text):
  assert escape.for_terminal(text) == text
  assert html.unescape(escape.for_html(text)) == text


# Unicode's Default_Ignorable_Code_Point, DerivedCoreProperties.txt of Unicode 14.0.
IGNORABLE = [
  *(0x00AD, 0x034F, 0x061C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810)),
  *(*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x3164),
  *(*range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0, *range(0xFFF0, 0xFFF9), *range(0x1BCA0, 0x1BCA4)),
  *(*range(0x1D173, 0x1D17B), *range(0xE0000, 0xE1000)),
]


def test_every_character_there_is():
  categories = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
  ignorable = set(IGNORABLE)
  every = [chr(code) for code in range(sys.maxunicode + 1)]
  hidden = [c for c in every if unicodedata.category(c) in categories or ord(c) in ignorable]
  assert {unicodedata.category(c) for c in hidden} == {*categories, "Lo", "Mn"}
  shown = escape.for_terminal("".join(hidden))
  assert shown.isascii() and shown.isprintable()
  # Each is shown as one escape that names it.
  escapes = re.findall(r"\\(?:[tnr]|x..|u....|U........)", shown)
  assert "".join(escapes) == shown
  assert [word.encode().decode("unicode_escape") for word in escapes] == hidden
  plain = "".join(sorted(set(every) - set(hidden)))
  assert escape.for_terminal(plain) == plain and len(plain) > 140_000


@hypothesis.given(strategies.text())
@hypothesis.example("\x1b")
def test_no_text_makes_a_second_line_or_moves_anything(text):
  for shown in (escape.for_terminal(text), escape.for_html(text), escape.for_markdown(text)):
    assert len(f"{shown}.".splitlines()) == 1
    assert all(unicodedata.category(character)[0] != "C" for character in shown)
    shown.encode()  # holds no surrogate


class Elements(HTMLParser):
  """What a browser would make of a page: elements with their attributes, and text."""

  def __init__(self, page):
    super().__init__()
    self.elements, self.text = [], ""
    self.feed(page)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))

  def handle_data(self, data):
    self.text += data

  def handle_comment(self, data):
    self.elements.append(("!--", {}))


@pytest.mark.parametrize("text", [*MARKUP, *HOSTILE, *HARMLESS, *MARKDOWN])
def test_html_shows_a_text_and_runs_nothing(text):
  shown = escape.for_html(text)
  page = Elements(f"<p title=\"{shown}\" class='{shown}'>{shown}</p>")
  plain = escape.for_terminal(text)
  assert page.elements == [("p", {"title": plain, "class": plain})]
  assert page.text == plain


# Markdown as GitHub reads it, as far as there is a parser for it here: addresses that become links are looked at below.
RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def rendered(text, pattern):
  """Renders Markdown and returns what stands where the pattern has its group."""
  page = RENDERER.render(text)
  found = re.fullmatch(pattern, page, re.DOTALL)
  assert found, page
  assert "<" not in found[1], page
  return html.unescape(found[1])


def check_markdown(text):
  """Asserts that a text is shown as it is on its own, after words, in a list, in a table, and as code."""
  plain, shown = escape.for_terminal(text), escape.for_markdown(text)
  stripped = plain.strip(" ")
  if stripped:
    assert rendered(shown, r"<p>(.*)</p>\n").strip(" ") == stripped
    assert rendered(f"- {shown}\n", r"<ul>\n<li>(.*)</li>\n</ul>\n").strip(" ") == stripped
    assert rendered(f"words\n{shown}", r"<p>words\n(.*)</p>\n").strip(" ") == stripped
  table = r"<table>.*<tbody>\n<tr>\n<td>(.*)</td>\n<td>2</td>\n</tr>\n</tbody>\n</table>\n"
  head = "| a | b |\n|---|---|\n"
  assert rendered(f"{head}| {shown} | 2 |\n", table).strip(" ") == stripped
  code = escape.for_markdown_code(text)
  inner = rendered(f"x {code} y", r"<p>x <code>(.*)</code> y</p>\n")
  assert inner == plain if stripped else not inner.strip(" ")


@pytest.mark.parametrize("text", [*MARKDOWN, *MARKUP, *HOSTILE, *HARMLESS])
def test_markdown_shows_a_text_as_it_is(text):
  check_markdown(text)


@hypothesis.settings(max_examples=500)
@hypothesis.given(strategies.text("\\`*_{}[]()#+!|<>&~-=.:/$^ ab1w\n\t\"';@\x1b", max_size=15))
def test_markdown_shows_any_text_as_it_is(text):
  check_markdown(text)


def test_the_check_of_markdown_can_fail(monkeypatch):
  monkeypatch.setattr(escape, "for_markdown", escape.for_terminal)
  for text in ("*i*", "# heading", "a | b", "- list", "<b>", "&copy;", "back\\*slash"):
    with pytest.raises(AssertionError):
      check_markdown(text)


def test_marks_that_github_alone_knows():
  # GitHub makes links of addresses as such, unless a backslash stands within.
  shown = escape.for_markdown("see https://evil.example, ftp://evil and WWW.evil.example")
  assert shown == r"see https\://evil.example, ftp\://evil and WWW\.evil.example"
  # Formulas, other dialects' attributes and templates, and a table's rule without a bar are not known to this renderer.
  assert escape.for_markdown("$x$ {{x}}") == r"\$x\$ \{\{x\}\}"
  assert escape.for_markdown(":-:") == r"\:-:"


def test_plain_words_are_no_different_in_markdown():
  for text in (
    HARMLESS[1],
    "aes: unit by unit (ECB), 16 pixels; see a/b.c, 50% off - or not!",
    "-1",
  ):
    assert escape.for_markdown(text).removeprefix("\\") == text


# Where they are used: talk and errors.


@pytest.mark.parametrize("text", HOSTILE)
def test_talk_is_one_line_and_shows_everything(capsys, text):
  common.say(f"warning: {text}")
  assert capsys.readouterr().err == f"djax: warning: {HOSTILE[text]}\n"


@pytest.mark.parametrize("text", HARMLESS)
def test_talk_of_ordinary_words_is_as_it_was(capsys, text):
  common.say(text)
  assert capsys.readouterr().err == f"djax: {text}\n"


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\0" not in name])
def test_errors_are_one_line_and_show_everything(capsys, tmp_path, name, monkeypatch):
  def bad(path):
    raise keyfile.KeyFileError(f"key file {path}: does not exist.")

  monkeypatch.setattr(keyfile, "inspect", bad)
  assert main(["show", name]) == 3
  out, err = capsys.readouterr()
  assert out == ""
  words = " ".join(f"key file {name}: does not exist.".splitlines())
  assert err == f"djax: error: {escape.for_terminal(words)}\n"
  assert re.fullmatch(r"[ -~]*\n", err)


def test_also_errors_of_the_system_and_of_the_arguments(capsys, monkeypatch):
  def full(path):
    raise OSError(28, "No space left\x1b[2K", "\x1b[1A/d/x")

  monkeypatch.setattr(keyfile, "inspect", full)
  assert main(["show", "x"]) == 1
  assert (
    capsys.readouterr().err
    == "djax: error: \\x1b[1A/d/x: no space left on the disk. Make room and re-run the command.\n"
  )
  assert main(["show", "x", f"--{FALSE_LINE}"]) == 2
  assert "\x1b" not in capsys.readouterr().err
  assert main([FALSE_LINE]) == 2
  assert "\x1b" not in capsys.readouterr().err


def test_a_terminal_that_lacks_letters_ends_nothing():
  raw = io.BytesIO()
  stream = io.TextIOWrapper(raw, "ascii")
  escape.never_fail(stream)
  print("größe 鍵", file=stream, flush=True)
  assert raw.getvalue() == b"gr\\xf6\\xdfe \\u9375\n"
  kept = io.TextIOWrapper(io.BytesIO(), "ascii", errors="surrogateescape")
  escape.never_fail(kept)
  assert kept.errors == "surrogateescape"
  escape.never_fail(io.StringIO())


def test_the_command_line_shows_letters_that_the_terminal_lacks(tmp_path):
  code = (
    "import sys\n"
    "from djax.cli import main as program; from djax.sources import download\n"
    "download.prepare = lambda name, **options: name\n"
    "sys.exit(program.main(['prepare', 'größe']))\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=Path(djax.__file__).parent.parent,
    env={**os.environ, "PYTHONIOENCODING": "ascii"},
    capture_output=True,
    timeout=60,
  )
  assert (done.returncode, done.stdout) == (0, b"gr\\xf6\\xdfe\n"), done.stderr


# The audit's page.

ALL = "".join([*HOSTILE, *MARKUP])
SPEC = schemes.rmt_scheme((8, 8, 1), block_size=2).spec.to_dict()


def outcome(text):
  """An audit in which every text is foreign."""
  scores = {"ssim": {"median": 0.5}, "psnr": {"median": 20.0}}
  scores |= {"ssim_above_chance": 0.5, "success": 0.5, "above_chance": 0.5}
  run = {"pairs": None, "scores": scores, "seconds": 1.0, "verdict": "leaks"}
  rows = [
    {"status": "ran", "runs": [{**run, "diagnostics": {"warnings": [text]}}], "shown": None},
    {"status": "failed", "runs": [], "reason": text, "shown": None},
    {"status": "refused", "runs": [], "reason": text, "shown": None},
  ]
  for row in rows:
    row |= {"name": text, "title": text, "level": text}
  spec = {"scheme": text, "image_shape": [2, 2, 1], text: text}
  setting = {"spec": spec, "source": text, "key": text, "warnings": [text]}
  setting["sizes"] = {"private": 1, "public": 1, "targets": 1, "pairs": [5]}
  levels = {"1": {"verdict": "leaks", "words": text}}
  facts = {"setting": setting, "attacks": rows, "levels": levels, "thresholds": {}}
  facts["noise_alone"] = {"words": "nothing"}
  facts["ceiling"] = {"words": "nothing"}
  return runner.Outcome({**facts, "seed": text, "seconds": 1.0, "djax": text}, {})


def test_the_page_of_an_audit_shows_foreign_text_and_nothing_else_changes():
  page, plain = Elements(report.page(outcome(ALL))), Elements(report.page(outcome("QQ")))
  assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
  shown = escape.for_terminal(ALL)
  for (_, attributes), (_, expect) in zip(page.elements, plain.elements, strict=True):
    assert {name: value.replace(shown, "QQ") for name, value in attributes.items()} == expect
  assert page.text.replace(shown, "QQ") == plain.text
  assert plain.text.count("QQ") >= 15
  assert not {"\x1b", "\u202e", "\udcff"} & set(report.page(outcome(ALL)))


def page_of_a_run(text):
  """The page of a run in which every text is foreign."""
  config = config_lib.load("digits_rmt")
  config_lib.override(config, [f"data.source={text}", f"model.name={text}"])
  spec = {**SPEC, "scheme": "rmt"}
  given = Inputs(
    types.SimpleNamespace(records=[1]),
    None,
    spec,
    disguised_shape=(8, 8, 1),
    classes=2,
    labels="plain",
    key_fingerprint=text,
    source_sha256=text,
    class_names=(text, text),
  )
  score = Score(0.5, 1.0, np.array([0, 1]), np.array([0, 0]))
  numbers = {"test_images": 2, "steps": 1, "chosen_step": 1}
  pictures = {"disguised": np.zeros((2, 8, 8, 1))}
  return run_page._page(
    run_page.Content(config, given, {**result(text), **numbers}, score, pictures), []
  )


def page_of_several(text):
  """Runs and an audit side by side, every text in them foreign."""
  config = {"data": {"source": text}, "model": {"name": text}, text: text}
  disguise = {"key_fingerprint": text, "source_sha256": text}
  facts = outcome(text).facts
  judged = {"verdict": "leaks", "by": [text], "pairs": 5, "words": text}
  facts = {**facts, "levels": {"1": judged, "2": judged}}
  return comparison.page(
    [
      comparison.Run(Path(f"a{text}"), SPEC, disguise, config, None, []),
      comparison.Audited(Path(f"a{text}"), SPEC, facts),
    ]
  )


@pytest.mark.parametrize(
  ("make", "foreign"),
  # A path has no two slashes in a row.
  [(page_of_a_run, ALL), (page_of_several, ALL.replace("//", "/"))],
)
def test_the_pages_of_runs_show_foreign_text_and_nothing_else_changes(make, foreign):
  page, plain = Elements(make(foreign)), Elements(make("QQ"))
  assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
  shown = escape.for_terminal(foreign)
  for (_, attributes), (_, expect) in zip(page.elements, plain.elements, strict=True):
    assert {name: value.replace(shown, "QQ") for name, value in attributes.items()} == expect
  assert page.text.replace(shown, "QQ") == plain.text
  assert plain.text.count("QQ") >= 7
  assert not {"\x1b", "\u202e", "\udcff"} & set(make(foreign))


def test_the_page_is_written_for_its_owner_alone_whatever_it_holds(tmp_path, monkeypatch):
  monkeypatch.setenv("LC_ALL", "C")
  before = os.umask(0)
  try:
    report.write(tmp_path, outcome(f"größe 鍵 {ALL}"))
  finally:
    os.umask(before)
  for name in (report.FACTS, report.PAGE):
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
  assert "größe 鍵" in (tmp_path / report.PAGE).read_text("utf-8")
  assert json.loads((tmp_path / report.FACTS).read_text("utf-8"))["seed"].startswith(
    "größe 鍵 \x1b"
  )


# The data card.


def facts(text):
  """A manifest in which every text is foreign."""
  split = types.SimpleNamespace(records=3, views=1, shards=[1])
  return types.SimpleNamespace(
    djax=text,
    dtype=text,
    key_fingerprint=text,
    spec={"scheme": text, "image_shape": [2, 2, 1], text: text},
    disguised_shape=(2, 2, 1),
    labels="permuted",
    container="shards",
    classes=5,
    splits={text: split},
    warnings=(text,),
    quantiser=None,
    error=Bounds(0.0, 0.0, 0.0),
    role="dataset",
  )


@pytest.mark.parametrize(
  "text", [*MARKDOWN[:5], *MARKUP, *HOSTILE, 'a"]; import os; ["b', "```\n# x"]
)
def test_the_data_card_shows_foreign_text_and_nothing_else_changes(text):
  page = RENDERER.render(datacard.text(facts(text)))
  plain = RENDERER.render(datacard.text(facts("x")))
  tags = re.compile(r"</?\w+[^>]*>")
  assert tags.findall(page) == tags.findall(plain)
  shown = escape.for_terminal(text)
  # In the table, the list, emphasis, the text, as a key, and in the code, where it is a string of Python.
  words = html.unescape(tags.sub("", page))
  assert words.count(shown) >= 7
  (code,) = re.findall(r"^source = .*$", words, re.M)
  names = []

  class Source:
    def __getitem__(self, name):
      names.append(name)

  builder = types.SimpleNamespace(as_data_source=Source)
  exec(code, {"tfds": types.SimpleNamespace(builder_from_directory=lambda path: builder)})
  assert len(names) == 1
  assert names == [text] or max(text) > "\uffff"  # where JSON's strings are not Python's


# What a training run says at its end.


def result(text):
  return {
    "key_fingerprint": text,
    "classes": 5,
    "test_accuracy": 0.5,
    "test_views": 1,
    "single_view_accuracy": 0.5,
    "other_key_accuracy": None,
    "plain_accuracy": None,
    "val_accuracy": None,
    "labels": "permuted",
    "seconds": 1.0,
    "steps_per_second": 1.0,
  }


@pytest.mark.parametrize("text", [text for text in HOSTILE if "/" not in text])
def test_the_summary_of_a_run_shows_everything(text):
  from train.__main__ import _summary

  plain = _summary(result("djx1-x"), Path("runs/x"))
  assert plain.splitlines()[2] == "key                      djx1-x"
  shown = _summary(result(text), Path("runs") / text)
  assert "\x1b" not in shown
  assert len(shown.splitlines()) == len(plain.splitlines())
  assert shown.splitlines()[2] == f"key                      {HOSTILE[text]}"
  assert shown.splitlines()[-1] == f"everything else          runs/{HOSTILE[text]}"
