"""The network is chosen by the validation split, never by the test split."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers.training import interrupt, tiny

import train
from djax import keys, models, sources
from djax.errors import ConfigError, DataError
from djax.models import checksums, predict
from djax.models.network import logits
from djax.owner import export
from djax.owner.plan import Request
from train import config as config_lib
from train import loop
from train import state as state_lib
from train.data import input_pipeline, owned

pytestmark = pytest.mark.slow  # they train several networks

PER_EPOCH, EPOCHS = 4, 6


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """Digits whose validation labels are what the network of the second epoch says: no later one can do better."""
  place = tmp_path_factory.mktemp("source")
  train_, test = (sources.load("digits", name) for name in ("train[:128]", "test"))
  arrays = dict(
    train_images=train_.images,
    train_labels=train_.labels,
    val_images=test.images[:40],
    val_labels=test.labels[:40],
    test_images=test.images[40:90],
    test_labels=np.concatenate([np.arange(10, dtype=np.int32), test.labels[50:90]]),
  )
  np.savez(place / "first.npz", **arrays)
  config, networks = validated(place / "first.npz"), {}
  with pytest.MonkeyPatch.context() as patch:
    save = state_lib.save

    def kept(workdir, step, state, *rest):
      networks[step] = jax.device_get(state_lib.network(state))
      save(workdir, step, state, *rest)

    patch.setattr(state_lib, "save", kept)
    train.run(config, place / "run")
  given = owned.inputs(config, None)
  model = models.create(config.model, classes=given.classes, spec=given.spec)
  pipeline = input_pipeline.Pipeline(given.val, mesh=loop.data_mesh(), batch_size=40)
  (batch,) = pipeline.all_records(view=0)
  said = logits(model, networks[2 * PER_EPOCH], batch.images).argmax(-1)
  np.savez(place / "x.npz", **arrays | {"val_labels": np.asarray(said, np.int32)})
  return place / "x.npz"


def validated(source, *overrides):
  return tiny(
    f"data.source={source}",
    "data.train_split=train",
    "data.test_split=test",
    "data.val_split=val",
    f"train.epochs={EPOCHS}",
    *overrides,
  )


def rows_of(workdir):
  return [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]


def network_of(workdir, step):
  return (workdir / "checkpoints" / str(step) / checksums.NETWORK).read_bytes()


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole") / "run"
  return workdir, train.run(validated(source), workdir)


def test_the_first_epoch_of_the_greatest_accuracy_is_kept(whole):
  workdir, result = whole
  rows = rows_of(workdir)
  assert all("test_accuracy" not in row for row in rows)
  accuracies = [row["val_accuracy"] for row in rows]
  best = int(np.argmax(accuracies))
  assert len(rows) == EPOCHS and best == 1 and accuracies[-1] < accuracies[1]
  assert result["val_accuracy"] == accuracies[best]
  assert result["chosen_step"] == rows[best]["step"] == PER_EPOCH * (best + 1)
  assert result["steps"] == PER_EPOCH * EPOCHS


def test_what_answers_is_the_network_that_was_tested(whole, source):
  workdir, result = whole
  config = validated(source)
  given = owned.inputs(config, None)
  pipeline = input_pipeline.Pipeline(given.test, mesh=loop.data_mesh(), batch_size=50)
  (batch,) = pipeline.all_records(view=0)
  images, labels, mask = (np.asarray(x) for x in (batch.images, batch.labels, batch.mask))
  probabilities = predict.load(workdir).probabilities(images, 50)
  assert mask.all() and np.mean(probabilities.argmax(-1) == labels) == result["test_accuracy"]


def test_a_run_without_it_ends_with_the_last_epoch(whole, source, tmp_path):
  workdir, _ = whole
  config = validated(source)
  config.data.val_split = ""
  last = train.run(config, tmp_path)
  assert (last["val_accuracy"], last["chosen_step"]) == (None, last["steps"])
  step = last["steps"]
  assert network_of(tmp_path, step) != network_of(workdir, step)
  assert all("val_accuracy" not in row for row in rows_of(tmp_path))


def test_a_stopped_run_goes_on_with_what_was_best(whole, source, tmp_path, monkeypatch):
  workdir, result = whole
  for _ in range(4):  # each goes on for four or five steps
    with monkeypatch.context() as patch:
      interrupt(patch, input_pipeline.Pipeline, "training")
      try:
        train.run(validated(source), tmp_path)
        break
      except loop.Stopped:
        pass
  else:
    train.run(validated(source), tmp_path)
  again = json.loads((tmp_path / "result.json").read_text())
  for name in ("test_accuracy", "test_loss", "val_accuracy", "chosen_step"):
    assert again[name] == result[name], name
  assert network_of(tmp_path, result["steps"]) == network_of(workdir, result["steps"])
  assert [row["val_accuracy"] for row in rows_of(tmp_path)] == [
    row["val_accuracy"] for row in rows_of(workdir)
  ]


def test_an_outsourced_run_is_validated_too(source, tmp_path):
  splits = {"train": "train", "val": "val", "test": "test"}
  disguise = {"scheme": "rmt", "block_size": 2}
  export.disguise(
    Request(str(source), disguise, splits=splits), tmp_path / "set", keys.experiment(3)
  )
  config = config_lib.load("outsourced")
  fields = [f"data.disguised_dir={tmp_path / 'set'}", "data.val_split=val", "model.name=mlp"]
  config_lib.override(config, [*fields, "model.width=8", "train.epochs=2", "train.batch_size=32"])
  result = train.run(config, tmp_path / "run")
  assert result["val_accuracy"] == max(row["val_accuracy"] for row in rows_of(tmp_path / "run"))
  config.data.val_split = "train[100:]"
  with pytest.raises(ConfigError, match="must share no record with train_split"):
    train.run(config, tmp_path / "other")


@pytest.mark.parametrize(
  ("train_split", "test_split", "val_split", "words"),
  [
    ("train", "test", "train", "share no record with train_split"),
    ("train", "test", "train[1200:]", r"such as train\[:1000\] and train\[1000:\]"),
    ("train[:1000]", "test", "train[999:]", "share no record with train_split"),
    ("train", "test[:100]", "test[50:150]", "share no record with test_split"),
    ("train[:80%]", "test", "train[1000:]", "both count records or both percent"),
    ("train+more", "test", "val", "train_split must be a split or a part"),
    ("train", "test", "train[-100:]", "val_split must be a split or a part"),
    ("train", "test", "train[10%:500]", "val_split must be a split or a part"),
    ("train[0:80%]", "test", "train[80%:]", None),
    ("train[:1000]", "test", "train[1000:]", None),
    ("train[:80%]", "test", "train[80%:]", None),
    ("train", "test[100:]", "test[:100]", None),
    ("train+more", "test", "", None),
  ],
)
def test_no_record_is_in_it_and_in_another_split(train_split, test_split, val_split, words):
  config = tiny()
  config.data.update(train_split=train_split, test_split=test_split, val_split=val_split)
  if words is None:
    config_lib.check(config)
    return
  with pytest.raises(ConfigError, match=words):
    config_lib.check(config)


def test_it_belongs_to_the_source(source):
  own = sources.load(str(source), "val")
  for other, words in (
    (dataclasses.replace(own, class_names=("a", *own.class_names[1:])), "the same classes"),
    (dataclasses.replace(own, images=own.images[:, :4]), "one image shape"),
    (dataclasses.replace(own, images=own.images[:0]), "at least one image"),
  ):
    with pytest.raises(DataError, match=f"validation split must .*{words}"):
      config_lib.check_data(own, own, other)
  config = validated(source)
  before = owned.inputs(config, None).source_sha256
  config.data.val_split = "val[:20]"
  assert owned.inputs(config, None).source_sha256 != before
