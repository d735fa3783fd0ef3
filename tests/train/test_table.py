"""``python -m train.table``: what is run, in which order, what is skipped, shared, stopped and reported."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import tables
from helpers.audits import nearest_mean, restored
from helpers.fresh import ROOT
from helpers.tables import STEMMED, TABLE, TINY, fake_audit, fake_run

import train
from configs import base
from djax import schemes, sources
from djax.attacks import ATTACKS
from djax.errors import ConfigError, DjaxError
from djax.models import MODELS, STEMS
from train import audited, run_dir, terminal
from train import config as config_lib
from train.loop import Stopped
from train.table import rows, runner
from train.table.rows import Row


@pytest.fixture
def table(monkeypatch):
  return tables.faked(monkeypatch)


@pytest.fixture
def call(capsys, tmp_path):
  return tables.caller(capsys, tmp_path)


def test_rows_are_real():
  """Every row has a config that can be run, a name of its own, and a twin; those of one disguise share an audit."""
  names = [row.name for row in rows.ROWS]
  assert len(set(names)) == len(names) and "plain" not in names and "audits" not in names
  for row in rows.ROWS:
    config = rows.config_of(row, row.seeds[0])
    config_lib.check(config)
    config_lib.check(config_lib.twin(config))
    assert config.disguise.scheme != "plain"
  audits = {rows.audited(rows.config_of(row, 0))["hash"] for row in rows.ROWS}
  assert len(audits) < len(rows.ROWS)


def test_order_twins_and_audits(table, call, tmp_path):
  code, out, _ = call()
  assert code == 0
  assert table == [
    "first/0", "plain/0", "second/0", "third/1", "plain/1", "first/1", "second/1",
    "audit rmt", "audit aes",
  ]  # fmt: skip
  assert len(out) == len(table) == len(call.begun)
  assert call.begun[0] == f"first, seed 0: begins in {tmp_path}/runs/first/seed0"
  assert out[0] == "first, seed 0: 70.00% on disguised test images, 3 s"
  assert out[1] == "first, seed 0, plain twin: 90.00% on plain test images, 3 s"
  assert out[-1] == "third, audit: level 1 leaks, level 2 broken, 1 s"
  config = json.loads((tmp_path / "runs/second/seed1/config.json").read_text())
  assert config["seed"] == config["disguise"]["experiment_seed"] == 1
  assert config["model"]["stem"] == "aligned" and config["train"]["epochs"] == 1
  assert len(list((tmp_path / "runs/plain").iterdir())) == 2
  assert len(list((tmp_path / "runs/audits").iterdir())) == 2


def test_the_finished_is_skipped_and_the_rest_goes_on(table, call, tmp_path):
  call("first", "--no-audit")
  assert table == ["first/0", "plain/0", "first/1", "plain/1"]
  (tmp_path / "runs/first/seed1/result.json").unlink()
  table.clear()
  code, out, _ = call("first")
  assert code == 0 and table == ["first/1", "audit rmt"] and len(call.begun) == 2
  assert out[0] == "first, seed 0: 70.00% on disguised test images, 3 s, done before"
  table.clear()
  assert call("sec*", "--no-audit")[0] == 0
  assert table == ["second/0", "second/1"]


def test_a_run_of_another_config_is_one_line_and_the_next_begins(table, call, tmp_path):
  call("--no-audit", "--config.model.width=3")
  table.clear()
  code, out, err = call("first", "third", "--no-audit", "--config.model.width=4")
  assert code == 1 and err == []
  failed = [line for line in out if ": failed: " in line]
  assert [line.partition(":")[0] for line in failed] == ["first, seed 0", "third, seed 1", "first, seed 1"]  # fmt: skip
  assert "model.width was 3, now 4" in failed[0]
  assert sum("plain twin: 9" in line for line in out) == 2


@pytest.mark.parametrize(
  ("error", "message"),
  [(DjaxError("no such\nimages"), "no such images"), (MemoryError("too large"), "MemoryError: too large")],
)  # fmt: skip
def test_what_fails_is_reported_and_the_rest_run(table, call, monkeypatch, error, message):
  def run(config, folder):
    if Path(folder).parent.name == "first":
      raise error
    return fake_run(config, folder)

  monkeypatch.setattr(train, "run", run)
  monkeypatch.setattr(runner, "attack", lambda config, progress: 1 / 0)
  code, out, _ = call()
  assert code == 1 and len(out) == 9
  assert out[0] == f"first, seed 0: failed: {message}"
  assert out[-1] == "third, audit: failed: ZeroDivisionError: division by zero"
  assert sum(" failed: " in line for line in out) == 4
  report = json.loads("\n".join(call("--json")[1]))
  assert sorted(report["failed"]) == [
    "first, audit", "first, seed 0", "first, seed 1", "third, audit"
  ]  # fmt: skip
  assert len(report["kept"]) == 5 and report["done"] == report["missing"] == []


def test_no_time_begins_nothing(table, call):
  code, out, _ = call("second", "--minutes", "0")
  assert code == 0 and table == []
  assert out == [
    "time is up; missing: second, seed 0; second, seed 0, plain twin; second, seed 1; second, seed 1, plain twin; "
    "second, audit. Re-run the command to resume."
  ]


@pytest.mark.slow
def test_a_real_run_stops_with_a_checkpoint_and_goes_on(monkeypatch, call, tmp_path):
  more = (*TINY[:3], "model.name=mlp", "model.depth=1", "train.epochs=2", TINY[4])
  monkeypatch.setattr(rows, "ROWS", (Row("real", "digits_rmt", more, seeds=(0,)),))
  handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  write = run_dir.Metrics.write

  def write_and_signal(self, step, values):
    write(self, step, values)
    os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(run_dir.Metrics, "write", write_and_signal)
  code, out, err = call("--no-audit")
  assert code == 143 and out == [] and "stopped by SIGTERM after step 4" in err[-1]
  assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
  monkeypatch.setattr(run_dir.Metrics, "write", write)
  code, out, err = call("--no-audit")
  assert code == 0 and err.count("resumed after step 4 of 8") == 1
  assert [line.partition(":")[0] for line in out] == ["real, seed 0", "real, seed 0, plain twin"]
  result = json.loads((tmp_path / "runs/real/seed0/result.json").read_text())
  assert result["steps"] == 8 and result["key_fingerprint"].startswith("experiment-seed0-")


def test_the_deadline_stops_the_run_in_progress(table, call, monkeypatch, tmp_path):
  def run(config, folder):
    """Waits as the training loop does: for a signal, which becomes a checkpoint and Stopped."""
    with terminal.signals() as received:
      while not received:
        time.sleep(0.01)
    raise Stopped(received[0], 3, tmp_path)

  call("third", "--no-audit")
  monkeypatch.setattr(train, "run", run)
  code, out, err = call("first", "third", "--no-audit", "--minutes", "0.005")
  assert code == 0 and err == []
  assert out == [
    "time is up; missing: first, seed 0; first, seed 0, plain twin; first, seed 1. Re-run the command to resume."
  ]


def test_a_signal_that_came_before_the_loop_listened_is_sent_again(table, call, monkeypatch, tmp_path):  # fmt: skip
  def run(config, folder):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)
    with terminal.signals() as received:
      until = time.monotonic() + 10
      while not received and time.monotonic() < until:
        time.sleep(0.01)
    raise Stopped(received[0], 3, tmp_path)

  monkeypatch.setattr(train, "run", run)
  code, out, err = call("first")
  assert code == 130 and out == [] and "stopped by SIGINT after step 3" in err[0]


def slow_audit(config, progress):
  """Is stopped where it tells how far it is, though it takes every exception for a failed attack."""
  for _ in range(1000):
    try:
      time.sleep(0.01)
      progress(0.5, "at work")
    except Exception:
      pass
  return fake_audit(config)


def test_a_signal_ends_an_audit_and_the_command(table, call, monkeypatch):
  def audit(config, progress):
    os.kill(os.getpid(), signal.SIGTERM)
    return slow_audit(config, progress)

  monkeypatch.setattr(runner, "attack", audit)
  code, _, err = call("third")
  assert code == 143
  assert err == ["error: stopped by SIGTERM. Re-run the command to resume with third, audit."]


def test_the_deadline_ends_an_audit(table, call, monkeypatch):
  monkeypatch.setattr(runner, "attack", slow_audit)
  code, out, err = call("third", "--minutes", "0.01")
  assert code == 0 and err == []
  assert out[-1] == "time is up; missing: third, audit. Re-run the command to resume."


def test_a_signal_given_twice_ends_the_process_at_once(tmp_path):
  """In a process of its own: the second SIGTERM does not wait for the run."""
  script = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers.tables import TABLE
from train.table import runner

def run(config, folder):
  for _ in range(2):
    os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(60)

runner.work(runner.jobs(TABLE[:1], Path(sys.argv[2])), train=run, audit=None)
"""
  words = [sys.executable, "-c", script, str(ROOT / "tests"), str(tmp_path)]
  done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == -signal.SIGTERM, done.stderr


def test_stopped_goes_through_where_the_time_is_not_up(table, call, monkeypatch, tmp_path):
  def run(config, folder):
    raise Stopped(signal.SIGINT, 3, tmp_path)

  monkeypatch.setattr(train, "run", run)
  code, out, err = call("--minutes", "10")
  assert code == 130 and out == [] and "SIGINT" in err[0] and len(err) == 1


def test_list_says_what_is_there(table, call):
  call("second", "--no-audit", "--config.seed=0")
  table.clear()
  code, out, _ = call("--list")
  assert code == 0 and table == []
  assert [line.split("  ")[0] for line in out] == ["first", "second", "third"]
  assert " ".join(out[0].split()) == "first disguised missing 0 1 plain missing 1 audit missing"
  assert " ".join(out[1].split()) == "second disguised missing 1 plain missing 1 audit missing"
  code, out, _ = call("--list", "--json", "second")
  states = {"disguised": "missing 1", "plain": "missing 1", "audit": "missing"}
  assert json.loads("\n".join(out)) == {"second": states}


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["frist"], "row 'frist' does not exist. Did you mean 'first'?"),
    (["fir*", "x*"], "row 'x*' does not exist."),
    (["--config.model.widht=2"], "Did you mean 'config.model.width'?"),
    (["--minutes", "soon"], "argument --minutes: invalid float value: 'soon'."),
    (["--minutes", "-1"], "--minutes must be at least 0, got -1.0."),
    (["--lst"], "unknown argument '--lst'. Did you mean '--list'?"),
    (["--page", "x.md", "first"], "--page takes --runs and --json only"),
  ],
)
def test_what_cannot_work_is_one_line(table, call, words, message):
  code, out, err = call(*words)
  assert code == 2 and out == [] and table == []
  assert len(err) == 1 and message in err[0]


def test_what_changes_no_result_changes_no_hash():
  config = rows.config_of(TABLE[0], 0)
  same = rows.config_of(TABLE[0], 0, ["data.data_dir=/elsewhere", "disguise.acknowledge=true"])
  other = rows.config_of(TABLE[0], 0, ["optimizer.learning_rate=1e-3"])
  assert rows.fingerprint(config) == rows.fingerprint(same) != rows.fingerprint(other)
  assert rows.fingerprint(json.loads(json.dumps(config.to_dict()))) == rows.fingerprint(config)
  more = rows.config_of(TABLE[0], 1, ["data.train_split=train[:1000]", "model.name=resnet18"])
  noisier = rows.config_of(TABLE[0], 0, ["disguise.noise_level=26"])
  assert rows.audited(config) == rows.audited(more) != rows.audited(noisier)
  assert rows.audited(config)["split"] == "train"


def test_an_audit_sees_the_views_that_a_run_shows():
  seen = {row.name: rows.audited(rows.config_of(row, row.seeds[0])) for row in rows.ROWS}
  assert (seen["mnist_aes"]["views"], seen["mnist_aes"]["options"]) == (25, {"crop": 2})
  assert seen["mnist_rmt"]["views"] == 8 and seen["mnist_rmt"]["options"]["rotate"] == 10
  assert seen["cifar10_rmt"]["options"] == {"crop": 4, "flip": True}
  assert "views" not in seen["digits_rmt"]
  more = rows.config_of(TABLE[0], 0, ["augment.test_views=3", "augment.crop=1"])
  assert rows.audited(more)["views"] == 3
  assert rows.audited(more)["hash"] != rows.audited(rows.config_of(TABLE[0], 0))["hash"]


def test_the_audit_of_a_row_is_given_its_views(monkeypatch):
  given = {}
  monkeypatch.setattr("train.audited.scenario.from_source", lambda *a, **named: given.update(named))
  config = rows.config_of(TABLE[0], 0, ["augment.views=4", "augment.flip=true"])
  audited.scenario_of(config, seed=0, sizes=None, progress=None)
  assert (given["views"], given["options"]) == (4, {"flip": True})


def test_a_field_of_a_later_version_changes_no_hash():
  config = rows.config_of(TABLE[0], 0).to_dict()
  before = rows.fingerprint(config)
  assert config["augment"].pop("mixup") == 0
  assert rows.fingerprint(config) == before
  config["augment"]["mixup"] = 0.5
  assert rows.fingerprint(config) != before


def test_hashes_know_the_defaults_they_leave_out():
  """Who changes a default raises ``rows._DEFAULTS``, and writes both here; who adds a field adds it here."""
  pinned = json.loads((ROOT / "tests" / "defaults.json").read_text())
  fields = dict(config_lib.leaves(base.get_config()))
  assert pinned == {"defaults": rows._DEFAULTS, **json.loads(json.dumps(fields))}


def test_the_ordinary_row_differs_by_the_stem_alone():
  other = Row("other", "digits_rmt", (*TINY, *STEMMED, "disguise.permute=false"))
  assert rows.ordinary(TABLE[0], TABLE) is None
  assert rows.ordinary(TABLE[1], TABLE) is TABLE[0]
  assert rows.ordinary(other, TABLE) is None


def test_an_audit_attacks_what_the_config_disguises(monkeypatch):
  """The audit itself, on few images and with the attacks that take no time."""
  from djax.audit import scenario

  few = scenario.Sizes(private=300, public=150, targets=40, pairs=(5,))
  quick = {name: ATTACKS[name] for name in ("examiner", "procrustes")}
  monkeypatch.setattr(scenario, "FAST", few)
  monkeypatch.setattr(runner, "ATTACKS", quick)
  digits = sources.load("digits", "test")
  examiner = nearest_mean(digits.images, digits.labels)
  monkeypatch.setattr("djax.audit.runner.train_examiner", lambda *_, **__: examiner)
  monkeypatch.setattr("djax.audit.ceiling.estimate", restored)
  stages = []
  facts = runner.attack(rows.config_of(TABLE[0], 1), lambda _, word: stages.append(word))
  assert any(word.startswith("procrustes") for word in stages)
  assert [row["name"] for row in facts["attacks"]] == ["examiner", "procrustes"]
  assert facts["setting"]["source"] == "digits" and facts["setting"]["sizes"]["private"] == 300
  spec = schemes.from_spec(facts["setting"]["spec"]).spec
  assert (spec.scheme, spec.options["noise_level"]) == ("rmt", 25.0)
  assert facts["levels"]["2"]["verdict"] == "broken"


def test_names_that_rows_rely_on_exist():
  assert {"cnn", "vit", "mixer", "unit_mlp", "mlp", "resnet18"} <= MODELS.keys()
  assert {"none", "position", "aligned"} <= set(STEMS)
  with pytest.raises(ConfigError):
    rows.choose(["nothing*"], rows.ROWS)
