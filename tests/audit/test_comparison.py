"""Runs and audits side by side; what they hold may be anybody's."""

import json
import os
import re
import shutil

import pytest
from helpers import verbs
from helpers.audits import FAKES, quick
from helpers.training import tiny

from djax.audit import comparison
from djax.errors import ConfigError, DataError
from djax.io import pages
from djax.models import checksums, run_files
from train import config as config_lib
from train.data.inputs import Inputs

RMT = ("--scheme", "rmt", "--block-size", "2", "--noise-level", "25")


def run(folder, accuracy, *overrides, images="a"):
  """Writes what a run leaves, without training."""
  config = tiny(*overrides)
  scheme = config_lib.make_scheme(config, (8, 8, 1), 10).spec
  key = None if config.disguise.scheme == "plain" else "experiment-seed0-x"
  given = Inputs(
    None, None, scheme.to_dict(), scheme.disguised_shape, 10, "plain", key, source_sha256=images
  )  # fmt: skip
  (folder / "checkpoints" / "8").mkdir(parents=True)
  (folder / "checksums").mkdir()
  pages.write_json(folder / "config.json", config.to_dict())
  pages.write_json(folder / "disguise.json", given.summary)
  rows = [{"step": 4 * n, "epoch": n, "train_loss": 1 / n, "test_accuracy": 0.5} for n in (1, 2)]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  result = dict.fromkeys(("test_accuracy", "single_view_accuracy", "other_key_accuracy"), accuracy)
  result |= dict.fromkeys(("plain_accuracy", "val_accuracy"), None) | {"test_views": 1}
  result |= {"test_images": 50, "classes": 10, "steps": 8, "chosen_step": 8, "seconds": 1.0}
  pages.write_json(folder / "result.json", result | {"key_fingerprint": key})
  checksums.write(folder, 8)


@pytest.fixture
def made(tmp_path):
  """A run, its plain twin, and a run of other images."""
  place = tmp_path / "made"
  run(place / "rmt", 0.9)
  run(place / "plain", 0.97, "disguise.scheme=plain")
  run(place / "few", 0.8, images="b")
  return place


@pytest.fixture
def call(capsys):
  return verbs.caller(capsys)


@pytest.fixture
def audit(tmp_path, call, monkeypatch):
  quick(monkeypatch, FAKES)
  code, _, err = call("audit", "--source", "digits", *RMT, "--out", tmp_path / "audit")
  assert code == 0, err
  return tmp_path / "audit"


def cells(text):
  """The rows of the first table, tags taken away."""
  body = text[text.index("<tbody>") : text.index("</tbody>")]
  rows = [re.findall(r"<t[hd].*?</t[hd]>", row) for row in body.split("<tr>")[1:]]
  return [[re.sub("<.*?>", " ", cell).split() for cell in row] for row in rows]


def test_runs_and_audits_lie_side_by_side(made, audit, tmp_path, call):
  out = tmp_path / "page.html"
  given = (made / "rmt", made / "plain", made / "few", audit)
  code, told, err = call("report", *given, "--out", out)
  assert (code, told.strip()) == (0, str(out)), err
  assert out.stat().st_mode & 0o777 == 0o600
  text = out.read_text()
  rmt, plain, few, audited = cells(text)
  assert rmt[3] == ["90.00%"] and rmt[4] == ["10%"]
  assert rmt[5] == ["7.00", "points", "beside", "2"]
  assert plain[5] == [] and few[5] == ["no", "plain", "run"]  # of other images
  assert plain[6] == plain[7] == ["no", "disguise"]
  assert rmt[6][0] == audited[6][0] == "broken" and rmt[6][-3:] == ["audited", "in", "4"]
  assert audited[3] == audited[4] == audited[5] == []
  assert "out of luck" in text and text.count("<svg") == 2
  # Nothing leads out of the page, and no picture of a directory is in it.
  assert "<img" not in text
  for link in re.findall(r'(?:href|src)="(.*?)"', text):
    assert link.startswith("#") or link == "data:,", link


def test_without_an_audit_here_the_table_of_known_breaks_tells(made):
  text = comparison.page([comparison.read(made / "rmt")])
  ((*_, level1, _),) = cells(text)
  assert level1 == ["broken", "placement;", "known", "from", "digits"]


def test_what_is_not_finished_says_so(made, tmp_path):
  shutil.copytree(made / "rmt", tmp_path / "run")
  (tmp_path / "run" / "result.json").unlink()
  text = comparison.page([comparison.read(tmp_path / "run")])
  assert cells(text)[0][3] == ["not", "finished"] and "2 epochs are" in text
  shutil.rmtree(tmp_path / "run" / "checksums")
  (tmp_path / "run" / "checksums").mkdir()
  assert comparison.read(tmp_path / "run").metrics == []


def test_other_directories_are_refused(tmp_path, call):
  with pytest.raises(ConfigError, match=r"has neither config.json nor audit.json"):
    comparison.read(tmp_path)
  code, out, err = call("report", tmp_path, "--out", tmp_path / "x.html")
  assert (code, out, len(err)) == (2, "", 1) and not (tmp_path / "x.html").exists()
  (tmp_path / "x.html").write_text("mine")
  assert call("report", tmp_path, "--out", tmp_path / "x.html")[0] == 5


@pytest.mark.parametrize("name", ["config.json", "disguise.json", "metrics.jsonl"])
def test_a_file_that_is_not_the_recorded_one_is_refused(made, tmp_path, name):
  shutil.copytree(made / "rmt", tmp_path / "run")
  path = tmp_path / "run" / name
  path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
  with pytest.raises(DataError, match="is damaged"):
    comparison.read(tmp_path / "run")


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("test_accuracy", 1.5),
    ("test_accuracy", None),
    ("test_accuracy", True),
    ("plain_accuracy", "<b>"),
    ("classes", 0),
    ("test_views", 1e300),
    ("key_fingerprint", "\x1b[2J"),
    ("val_accuracy", -1),
  ],
)
def test_a_result_that_cannot_be_is_refused(made, tmp_path, field, value):
  shutil.copytree(made / "rmt", tmp_path / "run")
  path = tmp_path / "run" / "result.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
  with pytest.raises(DataError, match=field):
    comparison.read(tmp_path / "run")


def test_a_link_in_place_of_a_result_is_not_followed(made, tmp_path):
  shutil.copytree(made / "rmt", tmp_path / "run")
  (tmp_path / "run" / "result.json").unlink()
  os.symlink(made / "rmt" / "result.json", tmp_path / "run" / "result.json")
  with pytest.raises(DataError, match="a symbolic link"):
    comparison.read(tmp_path / "run")


@pytest.mark.parametrize(
  "line",
  [
    b"[]",
    b'{"step": 1, "epoch": 1}',
    b'{"step": 1, "epoch": 1, "train_loss": 1e999}',
    b'{"step": 1, "epoch": 1, "train_loss": 1, "test_accuracy": 2}',
    b'{"step": 1, "epoch": 1, "train_loss": 1, "val_accuracy": "x"}',
    b"{",
  ],
)
def test_metrics_that_cannot_be_are_refused(line):
  good = b'{"step": 1, "epoch": 1, "train_loss": 1.5, "test_accuracy": 1, "other": 3}\n'
  assert run_files.metrics_from(good)[0]["train_loss"] == 1.5
  with pytest.raises(ValueError, match=r"."):
    run_files.metrics_from(good + line)


def test_an_audit_that_cannot_be_is_refused(audit):
  """Each value in turn becomes something else: the page is made or the directory refused, in one line."""
  path = audit / "audit.json"
  facts = json.loads(path.read_text())
  refused = 0

  def inner(value, at=()):
    yield at
    pairs = (
      value.items()
      if isinstance(value, dict)
      else enumerate(value)
      if isinstance(value, list)
      else ()
    )
    for name, item in pairs:
      yield from inner(item, (*at, name))

  places = [
    at for at in inner(facts) if at and at[0] in ("setting", "levels", "attacks", "version")
  ]
  assert len(places) > 100
  for at in places:
    for other in (None, "<b>", 1e40):
      changed = json.loads(path.read_text())
      place = changed
      for name in at[:-1]:
        place = place[name]
      place[at[-1]] = other
      (audit / "changed").mkdir(exist_ok=True)
      (audit / "changed" / "audit.json").write_text(json.dumps(changed))
      try:
        text = comparison.page([comparison.read(audit / "changed")])
        assert "<b>" not in text
      except DataError as error:
        refused += 1
        assert len(str(error).splitlines()) == 1
  assert refused > len(places)
