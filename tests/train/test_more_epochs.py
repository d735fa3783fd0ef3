"""A finished run goes on with more epochs."""

import json
import os
import shutil

import pytest
from helpers.training import assert_same_state, interrupt, params, tiny

import train
from djax.errors import ConfigError
from djax.models import checksums
from train import loop
from train.data import input_pipeline

pytestmark = pytest.mark.slow  # they train several networks

CONSTANT = "optimizer.schedule=constant"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run of two epochs."""
  workdir = tmp_path_factory.mktemp("finished")
  train.run(tiny(), workdir)
  return workdir


@pytest.fixture(scope="module")
def constant(tmp_path_factory):
  """One at a constant rate."""
  workdir = tmp_path_factory.mktemp("constant")
  train.run(tiny(CONSTANT), workdir)
  return workdir


def test_a_finished_run_goes_on_as_one_that_is_longer(constant, tmp_path, capsys):
  shutil.copytree(constant, tmp_path / "run")
  assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 8
  result = train.run(tiny(CONSTANT, "train.epochs=4"), tmp_path / "run")
  assert "going on from epoch 2 to 4\n" in capsys.readouterr().err
  whole = train.run(tiny(CONSTANT, "train.epochs=4"), tmp_path / "whole")
  assert_same_state(params(tmp_path / "run"), params(tmp_path / "whole"))
  own = {"seconds", "steps_per_second", "workdir"}
  assert {k: v for k, v in result.items() if k not in own} == {
    k: v for k, v in whole.items() if k not in own
  }
  for name in ("config.json", "disguise.json", "metrics.jsonl"):
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
  # And the same command again only gives the result.
  again = train.run(tiny(CONSTANT, "train.epochs=4"), tmp_path / "run")
  assert again["test_accuracy"] == result["test_accuracy"]
  assert "going on" not in capsys.readouterr().err


def test_it_says_where_the_result_is_not_that_of_one_run(finished, tmp_path, capsys):
  shutil.copytree(finished, tmp_path / "run")
  assert train.run(tiny("train.epochs=3"), tmp_path / "run")["steps"] == 12
  said = capsys.readouterr().err
  assert "going on from epoch 2 to 3, at the learning rate that so long a run has there" in said


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (["train.epochs=1"], "train.epochs was 2, now 1"),
    (["train.epochs=4", "model.width=3"], "model.width was 4, now 3; train.epochs was 2, now 4"),
    (["train.epochs=4", "seed=1"], "seed was 0, now 1"),
  ],
)
def test_anything_else_is_another_run(finished, tmp_path, overrides, message):
  shutil.copytree(finished, tmp_path / "run")
  before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
  with pytest.raises(ConfigError) as caught:
    train.run(tiny(*overrides), tmp_path / "run")
  assert "holds a run of another config" in str(caught.value) and message in str(caught.value)
  assert before == {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}


def test_an_unfinished_run_is_finished_first(tmp_path):
  with pytest.MonkeyPatch.context() as patch:
    interrupt(patch, input_pipeline.Pipeline, "training")
    config = tiny("train.checkpoint_every_steps=1")
    with pytest.raises(loop.Stopped):
      train.run(config, tmp_path / "run")
  longer = tiny("train.epochs=3", "train.checkpoint_every_steps=1")
  with pytest.raises(
    ConfigError, match=r"is not finished\. Finish it with --config.train.epochs=2"
  ):
    train.run(longer, tmp_path / "run")
  train.run(config, tmp_path / "run")
  assert train.run(longer, tmp_path / "run")["steps"] == 12


@pytest.mark.parametrize("moment", ["before the record", "before the file"])
def test_an_interrupted_exchange_is_settled(constant, tmp_path, monkeypatch, moment):
  """Whenever the process ends while the config is exchanged, either run can be asked for again."""
  shutil.copytree(constant, tmp_path / "run")
  real = os.replace

  def ends(source, target):
    name = os.path.basename(os.fspath(target))
    if name == {"before the record": "8.json", "before the file": "config.json"}[moment]:
      raise KeyboardInterrupt
    real(source, target)

  monkeypatch.setattr(os, "replace", ends)
  with pytest.raises(KeyboardInterrupt):
    train.run(tiny(CONSTANT, "train.epochs=3"), tmp_path / "run")
  monkeypatch.undo()
  if moment == "before the record":
    assert train.run(tiny(CONSTANT), tmp_path / "run")["steps"] == 8
  assert train.run(tiny(CONSTANT, "train.epochs=3"), tmp_path / "run")["steps"] == 12
  assert not (tmp_path / "run" / "config.json.next").exists()
  record = checksums.newest(tmp_path / "run")
  checksums.checked(tmp_path / "run", record, "config.json")
