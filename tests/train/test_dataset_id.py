"""Runs that disguise on the fly: with the owner's key each has an id of its own, and with it matrices of its own."""

import json

import numpy as np
import pytest

import train
from djax import keys
from train import config as config_lib
from train.data import owned

MASTER = keys.Master(bytes(range(32)))


def small(**changes):
  config = config_lib.load("digits_rmt")
  given = {"data.train_split": "train[:64]", "data.test_split": "test[:20]", "model.width": 1}
  given |= {"train.epochs": 1, "train.batch_size": 32, **changes}
  config_lib.override(config, [f"{name}={value}" for name, value in given.items()])
  return config


def matrices(given):
  return np.asarray(given.train.argument[0].matrices)


def test_each_run_with_a_key_has_an_id_and_matrices_of_its_own():
  first, second = (owned.inputs(small(), MASTER) for _ in range(2))
  assert first.dataset_id != second.dataset_id and len(first.dataset_id) == 32
  assert first.summary["dataset_id"] == first.dataset_id
  assert not np.isclose(matrices(first), matrices(second)).all((1, 2)).any()
  again = owned.inputs(small(), MASTER, dataset_id=first.dataset_id)
  np.testing.assert_array_equal(matrices(again), matrices(first))


def test_an_id_of_the_config_is_that_of_a_data_set():
  given = owned.inputs(small(**{"disguise.dataset_id": "ab" * 16}), MASTER)
  spec = given.spec
  from djax import schemes

  key = schemes.from_spec(spec).make_key(MASTER.data_set("ab" * 16, spec).read)
  np.testing.assert_array_equal(matrices(given), key.matrices)
  other = owned.inputs(
    small(**{"disguise.dataset_id": "ab" * 16, "disguise.noise_level": 1.0}), MASTER
  )
  assert not np.isclose(matrices(other), matrices(given)).all((1, 2)).any()


def test_an_experiment_has_none_and_is_the_same_every_time():
  first, second = (owned.inputs(small(), None) for _ in range(2))
  assert first.dataset_id is None and "dataset_id" not in first.summary
  np.testing.assert_array_equal(matrices(first), matrices(second))


@pytest.mark.slow
def test_a_run_goes_on_under_its_own_id(tmp_path):
  train.run(small(**{"train.epochs": 1}), tmp_path / "run", master=MASTER)
  facts = json.loads((tmp_path / "run" / "disguise.json").read_text())
  assert len(facts["dataset_id"]) == 32
  # Finished: the same again finds the same images, whose matrices a new id would change.
  train.run(small(**{"train.epochs": 1}), tmp_path / "run", master=MASTER)
  assert json.loads((tmp_path / "run" / "disguise.json").read_text()) == facts


@pytest.mark.parametrize("bad", ["12", "g" * 32, "A" * 32])
def test_an_id_of_another_form_is_refused(bad, tmp_path):
  from djax.errors import ConfigError

  with pytest.raises(ConfigError, match=r"config\.disguise\.dataset_id must be .*32 hex"):
    train.run(small(**{"disguise.dataset_id": bad}), tmp_path / "run", master=MASTER)
  assert not (tmp_path / "run").exists()


def test_an_id_without_a_key_is_refused(tmp_path):
  from djax.errors import ConfigError

  with pytest.raises(ConfigError, match=r"dataset_id .*--key"):
    train.run(small(**{"disguise.dataset_id": "ab" * 16}), tmp_path / "run")
