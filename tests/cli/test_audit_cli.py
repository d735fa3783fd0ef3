"""``python -m djax audit``: its files, its table, and one line for whatever cannot work."""

import argparse
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers import verbs
from helpers.audits import (
  FAKES,
  HALF,
  RAISING,
  USELESS,
  quick,
  refused,
)

from djax import keys, sources
from djax.__main__ import main
from djax.attacks import ATTACKS
from djax.audit import (
  build_known_breaks,
  evaluator,
  exported,
  report,
  runner,
  scenario,
  sweep,
  verdicts,
)
from djax.audit.scenario import Sizes
from djax.cli import parsers
from djax.keys import keyfile
from train import verbs as training

RMT = ("--scheme", "rmt", "--block-size", "2", "--noise-level", "25")
SIZES = Sizes(private=600, public=300, targets=60, pairs=(1, 5))


@pytest.fixture
def call(capsys):
  return verbs.caller(capsys)


@pytest.fixture
def fakes(monkeypatch):
  quick(monkeypatch, FAKES)


class Page(HTMLParser):
  """Tags, attributes and text of a page."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.text, self.open = [], [], "", []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, name, value or "") for name, value in attrs]
    if tag not in ("meta", "link", "img", "br"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += f"{data}\n"


@pytest.fixture
def done(tmp_path, call, fakes):
  code, out, err = call("audit", "--source", "digits", *RMT, "--seed", "3", "--out", tmp_path / "o")
  assert code == 0, err
  facts = json.loads((tmp_path / "o" / "audit.json").read_text())
  return tmp_path / "o", out, err, facts


def test_the_files_hold_everything(done):
  folder, _, err, facts = done
  assert sorted(path.name for path in folder.iterdir()) == ["audit.html", "audit.json"]
  assert facts["format"] == "djax-audit" and facts["version"] == 1 and facts["seed"] == 3
  assert facts["setting"]["key"] == "experiment, seed 3"
  assert facts["setting"]["spec"]["noise_level"] == 25.0
  assert facts["setting"]["sizes"]["targets"] == 60
  assert set(facts["versions"]) == {"python", "jax", "numpy", "scipy"}
  assert facts["thresholds"]["broken"] == verdicts.BROKEN
  assert "with an advantage of" in facts["noise_alone"]["words"]
  assert [row["name"] for row in facts["attacks"]] == [attack.name for attack in FAKES]
  taken = [run["seconds"] for row in facts["attacks"] for run in row["runs"]]
  assert min(taken) > 0 and sum(taken) < facts["seconds"]
  assert err[-1] == f"djax: {folder}/audit.html shows originals: keep it on this machine"
  assert any("useless" in line for line in err[:-1])


def test_the_table_on_stdout_says_what_came_of_each(done):
  folder, out, _, _ = done
  lines = {line.split()[0]: line for line in out.splitlines() if line}
  assert lines["perfect"].endswith("broken") and not lines["perfect"].endswith("not broken")
  assert lines["useless"].endswith("not broken by these attacks")
  assert "failed: RuntimeError: out of luck" in lines["raising"]
  assert "refused: not rmt" in lines["refusing"]
  assert lines["report"].endswith(str(folder / "audit.html"))
  assert "level 1: broken. " in out and "level 2: broken. " in out
  assert "noise alone: who has the key tells an image" in out
  assert "with the key: restored targets have a median SSIM of" in out


def test_the_page_is_whole_and_asks_for_nothing(done):
  folder, _, _, facts = done
  text = (folder / "audit.html").read_text()
  page = Page(text)
  assert page.open == []
  assert not {"script", "iframe", "object", "embed", "base", "form"} & set(page.tags)
  for tag, name, value in page.attributes:
    assert not name.startswith("on")
    if name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
      assert value.startswith(("data:", "#")), (tag, name, value[:60])
  style = text[text.index("<style>") : text.index("</style>")]
  assert "url(" not in style and "@import" not in style and "@font-face" not in style
  assert "keep it on your machine" in page.text
  assert page.tags.count("img") == len(
    ("originals", "disguised", "perfect", "useless", "paired", "with the key")
  )
  assert page.tags.count("svg") == 2  # both measures over known pairs
  for word in ("Level 1", "Level 2", "RuntimeError: out of luck", "not rmt", "mind"):
    assert word in page.text
  for name, value in facts["thresholds"].items():
    assert f"{name}: {value:g}" in page.text


def test_what_is_seen_in_a_page_check_can_fail():
  assert ("img", "src", "http://x/y.png") in Page('<img src="http://x/y.png">').attributes
  with pytest.raises(AssertionError):
    Page("<p><b></p>")


@pytest.mark.parametrize("attacks", [FAKES, (USELESS,), (RAISING,), (HALF,)])
def test_nothing_is_ever_called_secure(tmp_path, call, monkeypatch, attacks):
  quick(monkeypatch, attacks)
  code, out, err = call("audit", "--source", "digits", *RMT, "--out", tmp_path / "o")
  assert code == 0
  told = [out, *err, *(path.read_text() for path in (tmp_path / "o").iterdir())]
  assert "broken" in "".join(told)
  assert "secure" not in re.sub(r"base64,[^\"]*", "", "".join(told)).lower()


def test_names_are_escaped():
  facts = {"attacks": [], "levels": {}, "thresholds": {}, "seed": 0, "seconds": 1.0, "djax": "0"}
  spec = {"scheme": "<b>", "image_shape": [2, 2, 1]}
  made = {"spec": spec, "sizes": dict.fromkeys(("private", "public", "targets"), 1)}
  made |= {"source": "a&b", "key": '"', "warnings": ["<script>"]}
  made["sizes"]["pairs"] = [5]
  facts["noise_alone"] = {"words": "<i>"}
  facts["ceiling"] = {"words": "<u>"}
  page = report.page(runner.Outcome({**facts, "setting": made}, {}))
  assert "<b>" not in page and "<script>" not in page and "<i>" not in page and "<u>" not in page
  assert "&lt;b&gt; on a&amp;b" in page and "&lt;script&gt;" in page


def test_json_for_programs(tmp_path, call, fakes):
  given = ("--source", "digits", *RMT, "--attacks", "useless", "--json", "--out", tmp_path / "o")
  code, out, _ = call("audit", *given)
  assert code == 0
  facts = json.loads(out)
  assert facts == json.loads((tmp_path / "o" / "audit.json").read_text())
  assert [row["name"] for row in facts["attacks"]] == ["useless"]


def test_a_training_config_is_audited(tmp_path, call, fakes):
  code, out, err = call("audit", "--config", "digits_rmt", "--json", "--out", tmp_path / "o")
  assert code == 0, err
  spec = json.loads(out)["setting"]["spec"]
  assert (spec["scheme"], spec["block_size"], spec["noise_level"]) == ("rmt", 2, 25.0)


def test_a_config_that_mixes_in_images_of_another_source_is_refused(tmp_path, call, fakes):
  lines = ["from configs import base", "def get_config():", "  config = base.get_config()"]
  for field, value in (("scheme", "instahide"), ("public_k", 2), ("public_source", "mnist")):
    lines.append(f"  config.disguise.{field} = {value!r}")
  (tmp_path / "mixed.py").write_text("\n".join([*lines, "  return config"]))
  given = ("audit", "--config", tmp_path / "mixed.py", "--out", tmp_path / "o")
  refused(call(*given), 2, "public_source must be 'digits', got 'mnist'")
  assert not (tmp_path / "o").exists()


# A directory and its originals.


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  folder = tmp_path_factory.mktemp("directory")
  keyfile.write(folder / "key", keys.Master(bytes(range(32))), passphrase=None)
  splits = ("--train-split", "train[:300]", "--test-split", "test[:50]")
  views = ("--views", "2", "--crop", "1", "--dtype", "uint8")
  given = ["disguise", "--source", "digits", *RMT, *splits, *views, "--key", str(folder / "key")]
  assert main([*given, "--out", str(folder / "d")]) == 0
  return folder / "d"


SPLITS = ("--train-split", "train[:300]", "--test-split", "test[:50]")


def test_a_directory_is_attacked(tmp_path, call, directory, monkeypatch):
  quick(monkeypatch, (USELESS, ATTACKS["procrustes"]))
  given = ("--data", directory, "--originals", "digits", *SPLITS)
  # Records stand in an order that only the key knows.
  refused(call("audit", *given, "--out", tmp_path / "o"), 2, "audit: --data needs --key")
  given += ("--key", directory.parent / "key")
  code, out, err = call("audit", *given, "--json", "--out", tmp_path / "o")
  assert code == 0, err
  facts = json.loads(out)
  assert facts["setting"]["key"].startswith("djx1-") and facts["setting"]["stored"] == "uint8"
  assert facts["setting"]["sizes"] == {
    "private": 200,
    "public": 100,
    "targets": 37,
    "pairs": [1, 5],
  }
  # The pairs belong together: from them alone comes what is unseen.
  assert {row["name"]: row["verdict"] for row in facts["attacks"]} == {
    "useless": "not broken by these attacks",
    "procrustes": "broken",
  }


def test_view_0_of_each_original_is_taken(directory):
  master = keys.Master(bytes(range(32)))
  made = exported.from_directory(
    directory,
    "digits",
    master,
    seed=0,
    sizes=SIZES,
    splits={"train": "train[:300]", "test": "test[:50]"},
  )
  from djax.disguised import directory as directory_lib
  from djax.owner import record_noise, restore

  facts = directory_lib.open(directory).manifest
  train = sources.load("digits", "train[:300]").images
  (row,) = np.flatnonzero((train == made.private[7]).all((1, 2, 3)))
  order = record_noise.of(facts, master).order("train", 300, 2)
  place = np.flatnonzero(order == 2 * row)
  stored, _ = directory_lib.open(directory).splits["train"].read(place)
  assert np.array_equal(restore.values(stored, facts)[0], made.disguised[7])
  # The attacker gets the other view as well, and is told what nobody says: that it is one.
  place = np.flatnonzero(order == 2 * row + 1)
  stored, _ = directory_lib.open(directory).splits["train"].read(place)
  further, options, distinct = made.views
  assert further.shape[:2] == (37, 1) and options == {"crop": 1, "flip": False} and not distinct
  assert np.array_equal(restore.values(stored, facts)[0], further[7, 0])
  assert made.facts["views"] == 2
  assert any("do not lie side by side" in warning for warning in made.facts["warnings"])


def test_views_and_their_changes_go_together(tmp_path, call, fakes):
  start = ("audit", "--source", "digits", *RMT, "--out", tmp_path / "o")
  refused(call(*start, "--views", "3"), 2, "--views above 1 needs --crop or --flip.*got --views 3")
  refused(call(*start, "--flip"), 2, "got --views 1, --crop 0, --flip")
  refused(call(*start, "--views", "3", "--crop", "8"), 2, "crop must be a whole number from 0 to 7")
  assert not (tmp_path / "o").exists()


def mixed(folder, *splits):
  """An .npz like the digits of ``directory``, some splits in another order."""
  train, test = sources.load("digits", "train[:300]"), sources.load("digits", "test[:50]")
  arrays = {}
  for name, part in (("train", train), ("test", test)):
    rows = np.random.default_rng(0).permutation(len(part.labels)) if name in splits else slice(None)
    arrays |= {f"{name}_images": part.images[rows], f"{name}_labels": part.labels[rows]}
  np.savez(folder / "mixed.npz", **arrays)
  return folder / "mixed.npz"


def test_originals_that_are_not_those_of_the_directory(tmp_path, call, directory, fakes):
  key = ("--key", directory.parent / "key")
  start = ("audit", "--data", directory, "--out", tmp_path / "o", *key, "--originals")
  refused(call(*start, "digits"), 4, r"split train holds 300 images; got 1438\. Give --train-split")
  refused(call(*start, "digits", *SPLITS[:3], "test[:49]"), 4, "test holds 50 images; got 49")
  refused(call(*start, mixed(tmp_path, "train")), 4, "in the same order; in split train")
  refused(call(*start, mixed(tmp_path, "test")), 4, "in the same order; in split test")
  wide = np.zeros((300, 9, 8, 1), np.uint8)
  labels = np.arange(300) % 2
  parts = {"train_images": wide, "train_labels": labels, "test_images": wide, "test_labels": labels}
  np.savez(tmp_path / "wide.npz", **parts)
  refused(call(*start, tmp_path / "wide.npz"), 4, r"of shape \(8, 8, 1\), got \(9, 8, 1\)")
  assert not (tmp_path / "o").exists()
  assert call(*start, mixed(tmp_path))[0] == 0


# Real attacks.


@pytest.mark.slow
def test_from_digits_to_the_report_with_real_attacks(tmp_path, call, monkeypatch):
  """With a training so short that the examiner knows little; pictures come back all the same."""
  monkeypatch.setattr(evaluator, "_STEPS", 60)
  monkeypatch.setattr(scenario, "FAST", Sizes(private=900, public=450, targets=40, pairs=(5,)))
  names = ",".join(
    name for name in ATTACKS if name not in ("inversion", "unpaired")
  )  # they train networks
  given = ("--source", "digits", *RMT, "--no-permute", "--attacks", names)
  code, out, err = call("audit", *given, "--json", "--out", tmp_path / "o")
  assert code == 0, err
  facts = json.loads(out)
  rows = {row["name"]: row for row in facts["attacks"]}
  assert list(rows) == names.split(",")
  assert not [row for row in rows.values() if row["status"] == "failed"]
  assert rows["procrustes"]["verdict"] == rows["regression"]["verdict"] == "broken"
  assert facts["levels"]["2"]["verdict"] == "broken"
  assert (tmp_path / "o" / "audit.html").stat().st_size > 10_000


def test_the_table_is_written_where_it_is_wanted(tmp_path, call, fakes, monkeypatch):
  monkeypatch.setattr(build_known_breaks, "ATTACKS", {"useless": USELESS})
  monkeypatch.setattr(build_known_breaks, "SOURCES", ("digits",))
  monkeypatch.setattr(build_known_breaks, "settings", lambda: [{"scheme": "rmt", "block_size": 2}])
  code, out, err = call("audit", "--write-table", tmp_path / "table.json")
  assert (code, out) == (0, ""), err
  (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
  assert (row["source"], row["levels"]["1"]["by"]) == ("digits", ["useless"])


# What cannot work.


@pytest.mark.parametrize(
  ("given", "code", "message"),
  [
    (("--source", "digits", *RMT), 2, "needs --out"),
    (("--out", "o"), 2, "takes --source .* got none of them"),
    (("--source", "digits", "--config", "digits_rmt", "--out", "o"), 2, "--config and --source"),
    (("--data", "d", "--out", "o"), 2, "got --data"),
    (("--source", "digits", "--out", "o"), 2, "needs --scheme and --block-size"),
    (("--source", "digits", "--scheme", "rmt", "--out", "o"), 2, "needs --scheme and --block-size"),
    (
      ("--source", "digits", *RMT, "--unit-pixels", "2", "--out", "o"),
      2,
      "--scheme rmt takes .*; got --unit-pixels",
    ),
    (("--source", "digits", "--scheme", "plain", "--out", "o"), 2, "invalid choice: 'plain'"),
    (("--config", "digits_plain", "--out", "o"), 5, "plain disguises nothing"),
    (("--config", "outsourced", "--out", "o"), 2, "Give --data DIR --originals S"),
    (("--config", "digits_rnt", "--out", "o"), 2, "Did you mean 'digits_rmt'"),
    (("--config", "digits_rmt", *RMT, "--out", "o"), 2, "--scheme has no meaning with --config"),
    (
      ("--config", "digits_rmt", "--block-size", "2", "--out", "o"),
      2,
      "--block-size has no meaning with",
    ),
    (
      ("--source", "digits", *RMT, "--attacks", "usless", "--out", "o"),
      2,
      "got 'usless'. Did you mean 'useless'",
    ),
    (("--source", "digits", *RMT, "--out", "there"), 5, "there exists and is not overwritten"),
    (
      ("--source", "digits", *RMT, "--train-split", "train[:99]", "--out", "o"),
      4,
      "needs at least 160 images.* got 99",
    ),
    (("--source", "digits", *RMT, "--full", "--fast", "--out", "o"), 2, "not allowed with"),
    (("--source", "digits", *RMT, "--seed", "-1", "--out", "o"), 2, "--seed"),
    (
      ("--source", "digits", *RMT, "--block-sizes", "2", "--out", "o"),
      2,
      "goes with --sweep. Leave it out",
    ),
  ],
)
def test_one_line_says_what_is_wrong(tmp_path, call, fakes, monkeypatch, given, code, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "there").mkdir()
  refused(call("audit", *given), code, message)
  assert [path.name for path in tmp_path.iterdir()] == ["there"]


# Each mode with what it needs, and each flag with a value that a mode which takes it must feel.
MODES = {
  "--source": ("--source", "digits", "--scheme", "rmt", "--block-size", "2", "--out", "o"),
  "--config": ("--config", "digits_rmt", "--out", "o"),
  "--data": ("--data", "d", "--originals", "digits", "--key", "k", "--out", "o"),
  "--run": ("--run", "r", "--out", "o"),
  "--sweep": ("--sweep", "--source", "digits", "--scheme", "rmt", "--out", "o"),
  "--write-table": ("--write-table", "t"),
}
SCHEMES = "--source --sweep"
IMAGES = "--source --sweep --config --data"
FLAGS = {
  "--source": (("x",), SCHEMES),
  "--config": (("digits_plain",), "--config"),
  "--data": (("x",), "--data"),
  "--run": (("x",), "--run"),
  "--originals": (("x",), "--data"),
  "--key": (("x",), "--data"),
  "--passphrase-file": (("x",), "--data"),
  "--data-dir": (("x",), f"{IMAGES} --write-table"),
  "--image-size": (("9",), IMAGES),
  "--scale": (("255",), IMAGES),
  "--background": (("white",), IMAGES),
  "--train-split": (("x",), "--source --sweep --data"),
  "--val-split": (("nonsense",), "--data"),
  "--test-split": (("nonsense",), "--data"),
  "--group-by": (("(a)",), "--data"),
  "--split-seed": (("1",), "--data"),
  "--scheme": (("permutation",), SCHEMES),
  "--block-size": (("4",), "--source"),
  "--views": (("3", "--crop", "1"), "--source"),
  "--crop": (("1", "--views", "3"), "--source"),
  "--flip": (("--views", "3"), "--source"),
  "--no-permute": ((), SCHEMES),
  "--matrix": (("projection",), SCHEMES),
  "--mix": (("block",), SCHEMES),
  "--per-channel": ((), SCHEMES),
  "--noise-level": (("9",), SCHEMES),
  "--noise-place": (("after",), SCHEMES),
  "--unit-pixels": (("2", "--scheme", "aes"), SCHEMES),
  "--position-keys": (("--scheme", "aes"), SCHEMES),
  "--salt-pepper": (("0.1", "--scheme", "aes"), SCHEMES),
  "--fast": ((), IMAGES),
  "--full": ((), IMAGES),
  "--attacks": (("useless",), IMAGES),
  "--seed": (("9",), f"{IMAGES} --run"),
  "--out": (("x",), f"{IMAGES} --run"),
  "--sweep": ((), "--sweep"),
  "--block-sizes": (("4",), "--sweep"),
  "--noise-levels": (("9",), "--sweep"),
  "--write-table": (("x",), "--write-table"),
  "--json": ((), f"{IMAGES} --run"),
  "--quiet": ((), f"{IMAGES} --run --write-table"),
}


@pytest.fixture
def felt(call, fakes, monkeypatch, tmp_path):
  """Runs the verb with nothing behind it; returns its answer and all that reached what stands behind."""
  reached = []

  def heard(name, gives):
    def hear(*given, **named):
      named.pop("progress", None)
      if gives is not None:
        reached.append((name, repr(given), repr(named)))
      return gives

    return hear

  facts = {"attacks": [], "levels": {}, "noise_alone": {"words": "w"}, "ceiling": {"words": "w"}}
  outcome = runner.Outcome({**facts, "setting": {"warnings": []}}, {})
  for module, name, gives in (
    (scenario, "from_source", "made"),
    (exported, "from_directory", "made"),
    (runner, "audit", outcome),
    (report, "write", None),
    (sweep, "run", {"cells": []}),
    (build_known_breaks, "write", "table"),
    (keyfile, "read", "master"),
    (keyfile, "find_passphrase", "passphrase"),
    (training, "examine", {}),
    (training, "figure", ""),
    (training, "lines", []),
  ):
    monkeypatch.setattr(module, name, heard(name, gives))
  monkeypatch.chdir(tmp_path)

  def run(*given):
    reached.clear()
    answer = call("audit", *given)
    shutil.rmtree("o", ignore_errors=True)
    return answer, [answer[1], *reached]

  return run


@pytest.mark.parametrize("mode", MODES)
def test_a_flag_is_used_or_refused_in_every_mode(felt, mode):
  answer, plain = felt(*MODES[mode])
  assert answer[0] == 0, answer
  for flag, (value, modes) in FLAGS.items():
    answer, reached = felt(*MODES[mode], flag, *value)
    if mode in modes.split():
      assert answer[0] == 0, (flag, answer)
      # What is the default, what names the mode, or what silences stderr, changes nothing.
      assert (reached != plain) != (flag in ("--fast", "--quiet", mode) and not value), flag
    else:
      # A flag that names a mode itself may be the one that stays.
      one, other = rf"{flag} has no meaning with {mode}\b", rf"--\S+ has no meaning with {flag}\b"
      refused(answer, 2, rf"audit: ({one}|{other}|takes --source .* got .*{flag}\b)")


def test_the_flags_of_the_verb_are_all_in_the_table():
  verbs = argparse.ArgumentParser().add_subparsers()
  parsers.add(verbs, "audit")
  known = {flag for action in verbs.choices["audit"]._actions for flag in action.option_strings}
  assert known - {"-h", "--help"} == set(FLAGS)
  assert {*SPLITS[::2]} <= known  # the check can fail


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path, call, fakes, monkeypatch):
  def full(folder, outcome):
    (folder / "audit.json").write_text("half")
    raise OSError(28, "No space left on device", "audit.json")

  monkeypatch.setattr(report, "write", full)
  code, out, err = call("audit", "--source", "digits", *RMT, "--out", tmp_path / "o")
  assert (code, out) == (1, "") and "no space left on the disk" in err[-1]
  assert list(tmp_path.iterdir()) == []
