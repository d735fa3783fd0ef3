"""What is known to break a setting is said once where it is used; one field silences it, and nothing else."""

import numpy as np
import pytest

import train
from djax import audit, keys
from djax.cli import main as owner_cli
from djax.keys import keyfile
from train import config as config_lib


def tiny(*overrides):
  config = config_lib.load("digits_rmt")
  few = [
    "data.train_split=train[:64]",
    "data.test_split=test[:20]",
    "train.epochs=1",
    "model.name=mlp",
    "model.width=1",
  ]
  config_lib.override(config, [*few, *overrides])
  return config


def known_lines(text):
  return [line for line in text.splitlines() if "as audited on" in line]


@pytest.mark.slow
def test_training_says_what_breaks_its_disguise_unless_acknowledged(tmp_path, capsys):
  train.run(tiny(), tmp_path / "said")
  (line,) = known_lines(capsys.readouterr().err)
  assert "broken from the disguised images alone by placement" in line
  train.run(tiny("disguise.acknowledge=true"), tmp_path / "silent")
  assert not known_lines(capsys.readouterr().err)
  # A run goes on whether or not it was acknowledged.
  train.run(tiny("disguise.acknowledge=true"), tmp_path / "said")
  assert not known_lines(capsys.readouterr().err)


@pytest.mark.slow
def test_a_plain_run_has_nothing_to_say(tmp_path, capsys):
  train.run(tiny("disguise.scheme=plain"), tmp_path)
  assert not known_lines(capsys.readouterr().err)


@pytest.mark.parametrize("outsourced", [False, True])
@pytest.mark.slow
def test_disguise_and_training_on_its_directory_say_it(tmp_path, capsys, outsourced):
  keyfile.write(tmp_path / "k", keys.generate(), passphrase=None)
  where = ["--key", str(tmp_path / "k"), "--out", str(tmp_path / "set")]
  what = ["--source", "digits", "--scheme", "rmt", "--block-size", "2", "--noise-level", "25"]
  assert owner_cli.main(["disguise", *what, *where]) == 0
  said = known_lines(capsys.readouterr().err)
  assert len(said) == 1
  if outsourced:
    config = tiny("disguise.scheme=plain", f"data.disguised_dir={tmp_path / 'set'}")
    config.disguise.update(config_lib.load("outsourced").disguise)
    train.run(config, tmp_path / "run")
    assert len(known_lines(capsys.readouterr().err)) == 1


def test_every_row_of_the_table_is_an_outcome_of_attacks_that_exist():
  from djax.attacks import ATTACKS
  from djax.audit import known_breaks, verdicts

  found = known_breaks.read()
  of_baselines = ("clusters", "matching", "cloning")
  assert found["attacks"] == [name for name in ATTACKS if name not in of_baselines]
  assert len(found["rows"]) > 40
  for row in found["rows"]:
    for level in row["levels"].values():
      assert level["verdict"] in verdicts.VERDICTS and not level["failed"]
      assert set(level["by"]) <= set(ATTACKS)
  broken = [row for row in found["rows"] if row["levels"]["1"]["verdict"] == "broken"]
  assert np.mean([row["disguise"]["scheme"] == "rmt" for row in broken]) > 0.5


def test_a_setting_nobody_audited_says_nothing():
  spec = {"scheme": "rmt", "image_shape": [64, 64, 3], "block_size": 2, "permute": True}
  options = {"matrix": "orthogonal", "mix": "rows", "per_channel": False, "noise_place": "after"}
  assert audit.lookup({**spec, **options, "noise_level": 999.0}) is None
