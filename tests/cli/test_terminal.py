"""What a person meets at the terminal: help, suggestions, the doctor, colours, narrow windows, silence."""

import contextlib
import io
import json
import os
import pty
import re
import select
import shlex
import sys
import time
import types

import pytest
from helpers import verbs
from helpers.audits import FAKES, quick

import djax
from djax import keys
from djax.cli import doctor, guide
from djax.cli import main as cli
from djax.errors import ConfigError, DjaxError
from djax.io import progress, talk
from djax.keys import keyfile


@pytest.fixture
def call(capsys):
  return verbs.caller(capsys)


class Terminal(io.StringIO):
  def isatty(self):
    return True


def terminal(monkeypatch):
  """Makes stderr a terminal with colours, and returns it."""
  screen = Terminal()
  monkeypatch.setattr(sys, "stderr", screen)
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.delenv("NO_COLOR", raising=False)
  return screen


# Help.


def parsed(verb, arguments):
  return cli._parser(verb).parse_args(shlex.split(arguments))


def test_every_verb_has_an_example_that_its_parser_takes():
  assert set(guide.VERBS) == {"", *cli._VERBS}
  for verb in cli._VERBS:
    assert guide.VERBS[verb].examples
    for _, arguments in guide.VERBS[verb].examples:
      assert arguments.split()[0] == verb
      assert parsed(verb, arguments).verb == verb
  with pytest.raises(ConfigError):
    parsed("audit", "audit --source digits --frobnicate")


def test_exit_codes_are_those_of_the_errors():
  known = {kind.exit_code for kind in subclasses(DjaxError)}
  assert known - {1} <= {code for one in guide.VERBS.values() for code in (0, 2, *one.codes)}
  assert known <= set(guide.CODES)


def subclasses(kind):
  yield kind
  for below in kind.__subclasses__():
    if below.__module__ == "djax.errors":
      yield from subclasses(below)


@pytest.mark.parametrize("columns", [40, 60, 100])
@pytest.mark.parametrize("verb", ["", "keygen", "query", "audit"])
def test_help_fits_its_window_and_ends_with_examples_and_codes(verb, columns, monkeypatch):
  monkeypatch.setenv("COLUMNS", str(columns))
  page = cli._parser(verb)
  if verb:
    page = page._subparsers._group_actions[0].choices[verb]
  text = page.format_help()
  assert "\nexamples:\n" in text and "exit codes: 0 ok, 1 failed, 2 usage or" in text
  body = text.partition("\n\n")[2]
  # A name that is longer than its column stays whole.
  assert [line for line in body.splitlines() if len(line) > columns and " " in line.strip()] == []
  commands = text.partition("examples:\n")[2].partition("\n\n")[0].replace(" \\\n", " ")
  for _, arguments in guide.VERBS[verb].examples:
    assert arguments in re.sub(" +", " ", commands)


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ("disguise --source digits --noise 25", "unrecognized arguments: --noise. Did you mean '--noise-level'?"),
    ("disguise --source digits --noise after", "Did you mean '--noise-place'?"),
    ("disguise --sorce digits", "unrecognized arguments: --sorce. Did you mean '--source'?"),
    ("audit --sorce digits", "Did you mean '--source'?"),
    ("show --qwertyuiop x", "unrecognized arguments: --qwertyuiop. See "),
    ("disguise --source digits", "the following arguments are required: --out, --key"),
  ],
)  # fmt: skip
def test_an_option_that_does_not_exist_gets_the_nearest(call, arguments, said):
  code, out, (line,) = call(*arguments.split())
  assert code == 2 and out == "" and said in line


def test_a_source_that_is_none_is_told_what_forms_there_are(call, tmp_path):
  code, _, (line,) = call("check", "--source", "nodir", "--data-dir", tmp_path)
  assert code == 4
  assert "prepare nodir" not in line
  assert "A source is digits, a file x.npz, a folder of images such as ./nodir, or" in line
  code, _, (line,) = call("check", "--source", "mnist", "--data-dir", tmp_path)
  assert code == 4 and "python -m djax prepare mnist" in line


def test_a_short_passphrase_is_warned_of_and_taken(tmp_path, call):
  for text, warned in (("%", True), ("seven77", True), ("eight888", False)):
    (tmp_path / "pass").write_text(text)
    folder = tmp_path / str(len(text))
    folder.mkdir()
    (tmp_path / "pass").chmod(0o600)
    code, _, err = call("keygen", folder / "key", "--passphrase-file", tmp_path / "pass")
    assert code == 0
    warnings = [line for line in err if "warning: the passphrase is shorter than 8" in line]
    assert len(warnings) == warned
    assert text not in " ".join(err)


# The doctor.


def looked(monkeypatch, **changes):
  """Findings without starting JAX, by name."""
  monkeypatch.setattr(doctor, "_probe", changes.pop("probe", lambda env: ({"cpu (cpu)": 1}, "")))
  found = {}
  for one in doctor.findings(**changes):
    found.setdefault(one.name, []).append(one)
  return found


def bad(found):
  return [one for group in found.values() for one in group if one.status != doctor.OK]


def test_the_doctor_finds_this_machine_fit(tmp_path, call):
  keyfile.write(tmp_path / "k", keys.Master(bytes(32)), passphrase=None)
  code, out, err = call("doctor", "--json", "--key", tmp_path / "k", "--data-dir", tmp_path)
  facts = json.loads(out)
  assert code == 0 and facts["ok"] and err == ["djax: djax can work here"]
  words = {one["name"]: one["words"] for one in facts["findings"] if one["status"] == "ok"}
  assert set(words) == {"versions", "devices", "data", "space", "threads", "key"}
  assert f"Python {sys.version.split()[0]}" in words["versions"]
  assert re.search(r"jax \d.*jaxlib \d.*flax \d.*numpy \d", words["versions"])
  assert "cpu" in words["devices"] and "mode 0600" in words["key"]


def test_the_doctor_says_one_line_a_finding(monkeypatch, call, tmp_path):
  monkeypatch.setattr(doctor, "_probe", lambda env: ({}, "RuntimeError: no backend"))
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  code, out, err = call("doctor", "--data-dir", tmp_path / "none")
  assert code == 1 and err == ["djax: problems: 1"]
  (line,) = [line for line in out.splitlines() if line.startswith("problem")]
  assert "JAX does not start: RuntimeError: no backend. See it in full: " in line
  assert "none, which does not exist" in out


def test_the_doctor_knows_a_platform_that_is_not_there(monkeypatch):
  def probe(environment):
    return ({}, "no cuda") if environment.get("JAX_PLATFORMS") else ({"cpu (cpu)": 1}, "")

  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  (found,) = looked(monkeypatch, probe=probe)["devices"]
  assert found.status == doctor.PROBLEM
  assert "what JAX_PLATFORMS=cuda asks for (no cuda); without it, it finds cpu (cpu)" in found.words


@pytest.mark.slow
def test_the_doctor_asks_jax_itself(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
  (found,) = doctor._devices()
  assert found.status == doctor.PROBLEM and "JAX_PLATFORMS=nonsense" in found.words


def test_the_doctor_knows_what_is_missing_old_or_loaded_too_early(monkeypatch):
  versions = {
    "djax": djax.__version__,
    "jax": "0.10.2",
    "jaxlib": "0.10.1",
    "numpy": "1.9",
    "flax": "0.12",
  }
  monkeypatch.setattr(doctor, "_installed", lambda name: versions.get(name, "99"))
  monkeypatch.setattr(doctor, "_LOADED", ("numpy", "djax"))
  monkeypatch.setitem(sys.modules, "numpy", types.SimpleNamespace(__version__="2.0"))
  found = looked(monkeypatch)
  monkeypatch.undo()
  assert [one.status for one in found["versions"]] == [doctor.PROBLEM, doctor.WARNING]
  assert "numpy 1.9 must be at least 2.0" in found["versions"][0].words
  assert "jax 0.10.2 and jaxlib 0.10.1 differ" in found["versions"][1].words
  (loaded,) = found["loaded"]
  assert loaded.words == "numpy 2.0 is loaded in this Python, 1.9 is installed"
  assert "Restart" in loaded.advice
  assert doctor._numbers("0.10.2rc1") > doctor._numbers("0.9") > doctor._numbers("0.7.2")


def test_the_doctor_lists_data_sets_and_odd_threads(monkeypatch, tmp_path):
  for name, stored in (("mnist/3.0.1", "array_record"), ("many/big/1.0.0", None), ("x/1.0.0", 3)):
    (tmp_path / name).mkdir(parents=True)
    text = "{" if stored == 3 else json.dumps({"fileFormat": stored} if stored else {})
    (tmp_path / name / "dataset_info.json").write_text(text)
  for name, value in (("OPENBLAS_NUM_THREADS", "many"), ("OMP_NUM_THREADS", "1")):
    monkeypatch.setenv(name, value)
  found = looked(monkeypatch, data_dir=str(tmp_path))
  usable, others = found["data"]
  assert usable.words == f"digits, and in {tmp_path}: mnist:3.0.1"
  assert others.words.endswith("x:1.0.0 (damaged), many/big:1.0.0 (tfrecord)")
  assert [one.words for one in bad(found) if one.name == "threads"] == [
    f"OPENBLAS_NUM_THREADS must lie between 1 and {len(os.sched_getaffinity(0))}, is many"
  ]


def test_the_doctor_looks_at_the_key_file(monkeypatch, tmp_path):
  keyfile.write(tmp_path / "k", keys.Master(bytes(32)), passphrase=None)
  (tmp_path / "k").chmod(0o640)
  for name, words in (
    ("k", "is open to others (mode 0640). Run: chmod 600"),
    ("no", "does not exist"),
  ):
    (found,) = looked(monkeypatch, key=str(tmp_path / name))["key"]
    assert found.status == doctor.PROBLEM and words in found.words


def test_the_doctor_waits_for_nothing_that_does_not_answer():
  start = time.monotonic()
  (found,) = doctor._within("disk", lambda: iter([time.sleep(30)]), 0.1)
  assert found.status == doctor.PROBLEM and "no answer within" in found.words
  assert time.monotonic() - start < 5
  (found,) = doctor._within("disk", lambda: iter([1 / 0]), 5)
  assert found.words == "ZeroDivisionError: division by zero"


# Colours, windows, silence.


def test_colours_on_a_terminal_alone(monkeypatch):
  screen = terminal(monkeypatch)
  talk.line("warning: a \x1b[1m name", name="djax")
  assert screen.getvalue() == "djax: \x1b[33mwarning:\x1b[0m a \\x1b[1m name\n"
  for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
    with monkeypatch.context() as patch:
      patch.setenv(name, value)
      assert talk.painted("warning: a", screen) == "warning: a"
  assert talk.painted("warning: a", io.StringIO()) == "warning: a"
  assert talk.painted("warning: a", None) == "warning: a"


def drawn(ours):
  """Returns what a terminal was sent, as lines without the codes that move and colour."""
  shown = b""
  while select.select([ours], [], [], 0.2)[0]:
    shown += os.read(ours, 1 << 16)
  text = shown.decode()
  return [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", part) for part in re.split(r"[\r\n]", text)]


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_a_bar_takes_one_line_however_narrow(monkeypatch, columns):
  ours, theirs = pty.openpty()
  with os.fdopen(theirs, "w") as screen:
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    with progress.staged(talk.line) as tell:
      tell(0.4, "training the examiner: step 320 of 800 of a network with a long name")
      time.sleep(0.15)
    with progress.counted("disguising a folder of a long name", "images", talk.line) as tell:
      tell(12345, 60000)
      time.sleep(0.15)
    lines = [line.rstrip() for line in drawn(ours)]
  os.close(ours)
  shown = [line for line in lines if "%" in line]
  assert any("training" in line and "40%" in line for line in shown)
  assert any("disguising" in line and "21%" in line and "images/s" in line for line in shown), lines
  assert max(map(len, lines)) <= columns


def test_a_stage_that_begins_again_is_estimated_anew(monkeypatch):
  said, now = [], [100.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  with progress.staged(said.append) as tell:
    tell(0, "training: step 0")
    now[0] += 40
    tell(0.5, "training: step 400")
    tell(0.1, "moments: 5 pairs")
    now[0] += 10
    tell(0.5, "moments: later")
  assert said == [
    "    0 s  training: step 0, 0%",
    "   40 s  training: step 400, 50%, about 40 s left",
    "   40 s  moments: 5 pairs, 10%",
    "   50 s  moments: later, 50%, about 10 s left",
  ]


@pytest.fixture
def disguised(tmp_path, call):
  keyfile.write(tmp_path / "k", keys.Master(bytes(32)), passphrase=None)
  splits = ("--train-split", "train[:20]", "--test-split", "test[:10]")
  made = call(
    *("disguise", "--source", "digits", *splits, "--scheme", "aes", "--block-size", "4"),
    *("--key", tmp_path / "k", "--out", tmp_path / "set", "--quiet"),
  )
  return tmp_path, made


def test_quiet_leaves_the_result_and_errors(disguised, call, monkeypatch):
  folder, (code, out, err) = disguised
  assert (code, err) == (0, []) and out.startswith("directory ")
  key = ("--key", folder / "k")
  code, out, err = call("verify", folder / "set", *key, "--quiet")
  assert (code, err) == (0, []) and "authenticated" in out
  loud = call("restore", folder / "set", *key, "--out", folder / "a.npz")
  code, out, err = call("restore", folder / "set", *key, "--out", folder / "b.npz", "--quiet")
  assert (code, out, err) == (0, f"{folder / 'b.npz'}\n", []) and len(loud[2]) > 0
  code, out, err = call("restore", folder / "set", *key, "--out", folder / "b.npz", "--quiet")
  assert code == 5 and out == "" and len(err) == 1 and "exists" in err[0]
  quick(monkeypatch, FAKES[:1])
  setting = ("--source", "digits", "--scheme", "rmt", "--block-size", "2")
  code, out, err = call("audit", *setting, "--out", folder / "audit", "--quiet")
  assert (code, err) == (0, []) and "level 1: " in out
  assert not talk.silent()


def test_quiet_draws_no_bar(monkeypatch):
  terminal(monkeypatch)
  with talk.quiet(True), progress.bar("x", total=1) as update:
    assert update is None
  with progress.bar("x", total=1) as update:
    assert update is not None


def test_the_table_of_an_audit_on_a_narrow_terminal(call, monkeypatch, tmp_path):
  quick(monkeypatch, FAKES)
  setting = ("--source", "digits", "--scheme", "rmt", "--block-size", "2")
  _, out, _ = call("audit", *setting, "--out", tmp_path / "wide")
  table = out.partition("\n\n")[0].splitlines()
  assert [line.split()[-1] for line in table[:2]] == ["examiner", "above"]
  assert table[2].split() == ["attack", "level", "pairs", "SSIM", "PSNR", "chance", "s", "verdict"]
  screen = Terminal()
  monkeypatch.setenv("COLUMNS", "50")
  with contextlib.redirect_stdout(screen):
    assert cli.main(["audit", *setting, "--out", str(tmp_path / "narrow")]) == 0
  lines = screen.getvalue().splitlines()
  first = next(i for i, line in enumerate(lines) if line.startswith("perfect (level 1): broken"))
  assert (
    lines[first + 1].startswith("  SSIM 1.00, PSNR ")
    and "examiner above chance" in lines[first + 1]
  )
  words = [line for line in lines if line.startswith(("level ", "  "))]
  assert max(map(len, words)) <= 70
