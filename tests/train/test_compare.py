"""The comparison of schemes: what is run, measured, kept and shown, at the size of digits."""

import json

import pytest
from helpers.fresh import ROOT

from train import verbs
from train.compare import collect, command, page
from train.table import collect as table_collect
from train.table import rows, runner
from train.table.rows import Row

_TINY = ("data.source=digits", "train.epochs=1", "augment.views=2", "augment.test_views=1")
TABLE = tuple(
  Row(name, f"mnist_{name}", fields, (0,), "digits")
  for name, fields in {
    "rmt": (*_TINY, "disguise.block_size=4", "model.width=4"),
    "aes": (*_TINY, "model.width=4"),
    "instahide": (*_TINY, "model.name=mlp", "model.width=2"),
    "neuracrypt": (*_TINY[:2], "disguise.patch=4", "model.width=8", "model.depth=1"),
  }.items()
)
QUIET = lambda line: None  # noqa: E731


def examined(folder):
  """What ``examine`` gives, in no time: numbers of their own for each run."""
  spec = json.loads((folder / "disguise.json").read_text())["spec"]["scheme"]
  own = "plain" if spec == "plain" else "disguised"
  rates = {"auc": 0.75, "tpr": {"0.01": 0.125}, "refused": {}, "curve": [0.0]}
  return {
    "setting": {"records": 1000, "shadows": 32, "classes": 10},
    "membership": {own: {"lira": rates, "loss": {**rates, "tpr": {"0.01": None}}}},
    "class_membership": {own: {"auc": 0.9, "with": [40.0, 20.0], "without": [10.0, 4.0]}},
    "model_inversion": {
      "baseline": {"accuracy": 0.1},
      "examiner": 0.98,
      "images": 30,
      "run": {"raw": {"accuracy": 0.25}, "undone": None},
    },
  }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  import train

  folder = tmp_path_factory.mktemp("runs")
  todo = runner.jobs(TABLE, folder, audits=False)
  assert not runner.work(todo, train=train.run, audit=runner.attack, say=QUIET).failed
  return folder


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(collect, "examine", examined)
  monkeypatch.setattr(collect, "_BATCH", 20)
  monkeypatch.setattr(collect, "_ROUNDS", 2)
  monkeypatch.setattr(rows, "COMPARED", TABLE)


@pytest.mark.slow
def test_the_facts_come_from_runs_and_stay_without_them(runs, quick, tmp_path, monkeypatch):
  found = json.loads(json.dumps(collect.collect(TABLE, runs, None, say=QUIET)))
  for row in [*found["rows"], found]:
    assert row["model"]["shadows"] == 32
  for row in found["rows"]:
    (one,) = row["runs"]
    stored = json.loads((runs / row["row"] / "seed0" / "result.json").read_text())
    assert one["disguised"]["test_accuracy"] == stored["test_accuracy"]
    assert one["plain"]["test_accuracy"] > 0
    assert stored["scheme"]["scheme"] == row["row"]
    assert stored["other_key_accuracy"] is not None
  monkeypatch.setattr(collect, "examine", None)  # what is known is not asked again
  again = collect.collect(TABLE, runs, None, say=QUIET)
  assert json.loads(json.dumps(again)) == found
  kept = collect.collect(TABLE, tmp_path / "none", found, say=QUIET)
  assert json.loads(json.dumps(kept)) == found


@pytest.mark.slow
def test_the_page_shows_what_was_found(runs, quick):
  found = json.loads(json.dumps(collect.collect(TABLE, runs, None, say=QUIET)))
  text = page.page(found)
  for name in ("plain", "rmt", "aes", "instahide", "neuracrypt"):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| **{name}** | 12.5%")]
    assert line.split(" | ")[1:] == [
      "12.5% (AUC 0.75)", "–", "–", "–", "0.90", "–", "30.0 / 7.0", "25% / – / – |"
    ]  # fmt: skip
  growth = {row: one["growth"] for row, one in found["cost"]["rows"].items()}
  assert growth == {"rmt": 4, "aes": 1, "instahide": 4, "neuracrypt": 16}
  assert all(one["microseconds"][0] > 0 for one in found["cost"]["rows"].values())
  found["rows"][1]["model"] = None
  assert "| **aes** | not run yet |" in page.page(found)


@pytest.mark.slow
def test_the_command_runs_what_is_missing_and_writes_the_page(runs, quick, tmp_path, monkeypatch):
  asked = []

  def attack(config, progress):
    asked.append(config.disguise.scheme)
    return {"setting": {"sizes": {}}, "attacks": [], "levels": {}, "seconds": 1.0}

  monkeypatch.setattr(runner, "attack", attack)
  words = ["--runs", str(runs), "--page", str(tmp_path / "deep" / "page.md")]
  assert command.main(words) == 0
  assert asked == ["rmt", "aes", "instahide", "neuracrypt"]
  assert (tmp_path / "deep" / "page.md").read_text() == page.page(
    json.loads((tmp_path / "deep" / "page.json").read_text())
  )
  assert command.main(words) == 0 and len(asked) == 4


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--mintues", "3"], "unknown argument '--mintues'"),
    (["--minutes", "-1"], "--minutes must be at least 0, got -1"),
    (["--minutes", "x"], "invalid float value"),
  ],
)
def test_what_cannot_work_is_one_line(words, message, capsys):
  assert command.main(words) == 2
  assert message in capsys.readouterr().err


def test_a_file_of_something_else_is_not_overwritten(tmp_path, capsys):
  (tmp_path / "page.json").write_text("{}")
  assert command.main(["--page", str(tmp_path / "page.md")]) == 4
  assert "must be a djax-comparison file" in capsys.readouterr().err
  assert (tmp_path / "page.json").read_text() == "{}"


def test_the_shipped_page_is_of_the_shipped_facts_and_rows():

  docs = ROOT / "docs"
  found = table_collect.earlier(docs / "comparison.json", form=collect.FORMAT)
  assert (docs / "comparison.md").read_text() == page.page(found)
  for row, known in zip(rows.COMPARED, found["rows"], strict=True):
    config = rows.config_of(row, 0)
    assert known["runs"][0]["disguised"]["of"] == known["model"]["of"] == rows.fingerprint(config)
    assert known["audit"]["of"] == rows.audited(config)["hash"]


@pytest.mark.slow
def test_a_run_is_examined_from_the_command_line(runs, monkeypatch, tmp_path, capsys):
  from djax.cli.main import main

  real = {
    **examined(runs / "rmt" / "seed0"),
    "misuse": {
      "chance": 0.1,
      "test_accuracy": 0.9,
      "plain_accuracy": 0.1,
      "other_key_accuracy": 0.1,
    },
  }
  real["membership"]["disguised"]["loss"] = {
    "auc": 0.5, "tpr": {"0.01": 0.01}, "refused": {"0.001": "too few shadow models"}
  }  # fmt: skip
  monkeypatch.setattr(verbs, "examine", lambda folder, seed, progress: real)
  monkeypatch.setattr(verbs, "figure", lambda facts: "<svg/>")
  words = ["audit", "--run", str(runs / "rmt" / "seed0"), "--out", str(tmp_path / "out")]
  assert main(words) == 0
  out = capsys.readouterr().out
  assert "1.0%: 12.5%" in out and "too few shadow models" in out and "25% as they are" in out
  assert json.loads((tmp_path / "out" / "examination.json").read_text()) == real
  assert (tmp_path / "out" / "membership.svg").read_text() == "<svg/>"
  for more, code, line in (
    ([], 5, "not overwritten"),
    (["--source", "digits"], 2, "--source has no meaning with --run"),
    (["--scheme", "rmt"], 2, "--scheme has no meaning with --run"),
    (["--full"], 2, "--full has no meaning with --run"),
    (["--image-size", "8"], 2, "--image-size has no meaning with --run"),
  ):
    assert main([*words, *more]) == code
    assert line in capsys.readouterr().err
  assert main(words[:3]) == 2
