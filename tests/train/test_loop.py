"""The training loop: it learns, resumes to the bit, stops cleanly, and refuses what would spoil a run."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from helpers.training import USUAL, assert_same_state, interrupt, params, tiny

import train
from configs import base
from djax import keys, models, sources
from djax.errors import ConfigError, DataError, DjaxError, KeyMismatchError
from djax.io import foreign
from djax.sources import Images
from train import __main__ as cli
from train import config as config_lib
from train import loop, optimizers, run_dir
from train import state as state_lib
from train import steps as steps_lib
from train.data import input_pipeline, mixing


def scalars(folder):
  """Reads the test accuracies of an event file back: length, its checksum, the event, its checksum."""
  from tensorboardX.proto.event_pb2 import Event

  (path,) = folder.iterdir()
  data, found = path.read_bytes(), []
  while data:
    length = int.from_bytes(data[:8], "little")
    event = Event.FromString(data[12 : 12 + length])
    data = data[16 + length :]
    found += [(event.step, v.simple_value) for v in event.summary.value if v.tag == "test_accuracy"]
  return [(step, pytest.approx(value, rel=1e-6)) for step, value in found]


def test_a_run_leaves_what_it_promises(tmp_path, capsys):
  result = train.run(tiny(*USUAL), tmp_path)
  assert result.pop("workdir") == str(tmp_path)
  assert result == json.loads((tmp_path / "result.json").read_text())
  for name in ("test_accuracy", "plain_accuracy", "other_key_accuracy"):
    right = result["test_images"] * result[name]  # the images of the last, padded batch count once
    assert result["test_images"] == 50 and right == pytest.approx(round(right), abs=1e-4)
  assert result["key_fingerprint"] == keys.experiment(0).fingerprint
  assert result["key_fingerprint"].startswith("experiment-seed0-")
  assert result["scheme"]["scheme"] == "rmt" and result["scheme"]["noise_level"] == 25.0
  assert result["steps"] == 8 and result["seconds"] > 0 and result["steps_per_second"] > 0
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [4, 8]
  assert rows[-1]["test_accuracy"] == result["test_accuracy"]
  environment = json.loads((tmp_path / "environment.json").read_text())
  assert environment["versions"]["jax"] == jax.__version__ and len(environment["devices"]) == 2
  assert scalars(tmp_path / "events") == [(row["step"], row["test_accuracy"]) for row in rows]
  assert (tmp_path / "preview.png").read_bytes().startswith(b"\x89PNG")
  assert (tmp_path / "preview.png").stat().st_mode & 0o077 == 0  # it shows originals
  assert "epoch 2/2" in capsys.readouterr().err


@pytest.mark.slow
def test_overfits_32_examples(tmp_path):
  config = tiny(
    "data.train_split=train[:32]", "data.test_split=train[:32]", "train.epochs=30", "model.width=32",
    "model.dropout=0", "optimizer.learning_rate=0.01", "disguise.noise_level=0", "train.checkpoint_every_steps=1000",
  )  # fmt: skip
  assert train.run(config, tmp_path)["test_accuracy"] == 1.0


@pytest.mark.slow
def test_a_plain_run_scores_plain_images_the_same(tmp_path):
  result = train.run(tiny("disguise.scheme=plain"), tmp_path)
  assert result["plain_accuracy"] == result["test_accuracy"]
  assert result["key_fingerprint"] is None and result["other_key_accuracy"] is None


@pytest.mark.parametrize(
  "overrides",
  [
    ["disguise.scheme=permutation", "disguise.block_size=3"],
    ["model.dtype=bfloat16", "optimizer.name=sgd", "optimizer.schedule=constant"],
    ["disguise.block_size=3", "disguise.mix=block", "disguise.matrix=projection"],
  ],
)  # fmt: skip
@pytest.mark.slow
def test_other_settings_run(tmp_path, overrides):
  result = train.run(tiny("train.epochs=1", *overrides), tmp_path)
  assert np.isfinite(result["test_loss"])
  for leaf in jax.tree.leaves(params(tmp_path)[1]["params"]):
    assert leaf.dtype == np.float32


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
  config = tiny("model.dropout=0.3")
  train.run(config, tmp_path / "whole")
  for number in (signal.SIGTERM, signal.SIGINT):
    folder = tmp_path / f"stopped{number}"
    with (
      monkeypatch.context() as patch,
      pytest.raises(loop.Stopped, match="after step 6") as stopped,
    ):
      interrupt(patch, input_pipeline.Pipeline, "training", number)
      train.run(config, folder)
    assert stopped.value.exit_code == 128 + number
    assert not (folder / "result.json").exists()
    before = signal.getsignal(number)
    train.run(config, folder)
    assert signal.getsignal(number) is before
    assert_same_state(params(tmp_path / "whole"), params(folder))
    steps = [json.loads(row)["step"] for row in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [4, 8]


@pytest.mark.slow
def test_jax_enable_x64_changes_nothing(tmp_path):
  train.run(tiny(), tmp_path / "usual")
  jax.config.update("jax_enable_x64", True)
  try:
    train.run(tiny(), tmp_path / "x64")
  finally:
    jax.config.update("jax_enable_x64", False)
  assert_same_state(params(tmp_path / "usual"), params(tmp_path / "x64"))


def test_metrics_of_steps_that_were_lost_are_dropped(tmp_path):
  kept = '{"step": 4}\n{"step": 8}\n'
  (tmp_path / "metrics.jsonl").write_text(kept + '{"step": 12}\n{"st')
  (tmp_path / "events").mkdir()
  content = foreign.Content(len(kept), hashlib.sha256(kept.encode()).hexdigest())
  metrics = run_dir.Metrics(tmp_path, step=8, recorded=content)
  metrics.write(12, {"loss": 1.0})
  metrics.close()
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert rows == [{"step": 4}, {"step": 8}, {"step": 12, "loss": 1.0}]


@pytest.mark.slow
def test_resuming_under_another_config_key_or_source_is_refused(tmp_path, capsys):
  config = tiny("train.epochs=1")
  train.run(config, tmp_path)
  before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
  with pytest.raises(ConfigError, match=r"optimizer.learning_rate was 0.002, now 0.5"):
    train.run(tiny("train.epochs=1", "optimizer.learning_rate=0.5"), tmp_path)
  with pytest.raises(KeyMismatchError, match="holds a run with the key experiment-seed0") as error:
    train.run(config, tmp_path, master=keys.generate())
  assert error.value.exit_code == 3
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(DataError, match=r"config\.json is damaged|must have|bytes"):
    train.run(config, tmp_path)
  assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_field_that_came_later_was_at_its_usual_value(tmp_path, monkeypatch):
  train.run(tiny("train.epochs=1"), tmp_path)
  usual = base.get_config

  def with_field(config, value):
    with config.unlocked():
      config.data.later = value
    return config

  monkeypatch.setattr(base, "get_config", lambda: with_field(usual(), 3))
  train.run(with_field(tiny("train.epochs=1"), 3), tmp_path)
  with pytest.raises(ConfigError, match=r"data\.later was 3, now 4"):
    train.run(with_field(tiny("train.epochs=1"), 4), tmp_path)


@pytest.mark.slow
def test_a_source_that_changed_is_refused(tmp_path):
  path = tmp_path / "set.npz"

  def write(offset):
    pixels = np.random.default_rng(0).integers(0, 200, (64, 8, 8, 1)).astype(np.uint8) + np.uint8(
      offset
    )
    labels = np.arange(64) % 4
    arrays = dict(train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels)
    np.savez(path, **arrays)

  config = tiny(
    f"data.source={path}", "data.train_split=train", "data.test_split=test", "train.epochs=1"
  )
  write(0)
  train.run(config, tmp_path / "run")
  write(1)
  with pytest.raises(ConfigError, match="other images"):
    train.run(config, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_and_keeps_no_bad_checkpoint(tmp_path, monkeypatch):
  monkeypatch.setattr(optimizers, "create", lambda *args: optax.sgd(1e30))
  with pytest.raises(
    loop.TrainingError, match=r"the loss must stay finite, got .*learning_rate"
  ) as error:
    train.run(tiny("train.checkpoint_every_steps=1"), tmp_path)
  assert error.value.exit_code == 1
  manager = ocp.CheckpointManager(tmp_path / "checkpoints")
  step = manager.latest_step()
  manager.close()
  assert step is not None and step < 4
  assert not (tmp_path / "result.json").exists()


@pytest.mark.slow
def test_the_second_step_compiles_nothing():
  config = tiny()
  model = models.create(config.model, classes=3, spec={"scheme": "plain"})
  optimizer = optimizers.create(config.optimizer, 4, 8)
  mean = np.zeros((8, 8, 1), np.float32)
  state = state_lib.initial(model, optimizer, jax.random.key(0), mean, np.float32(1))
  state = jax.device_put(state, jax.devices()[0])
  step = jax.jit(lambda s, b, r: steps_lib.update(model, optimizer, steps_lib.Recipe(3), s, b, r))
  images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
  batch = input_pipeline.Batch(images, np.arange(4, dtype=np.int32) % 3, np.ones(4, np.float32))
  losses = []
  for _ in range(3):
    state, loss = step(state, batch, jax.random.key(1))
    losses.append(float(loss))
  assert step._cache_size() == 1
  assert len(set(losses)) == 3 and int(state.step) == 3


def step_by_hand(model, recipe, **made):
  optimizer = optax.sgd(0.1)
  mean = np.zeros((8, 8, 1), np.float32)
  state = state_lib.initial(model, optimizer, jax.random.key(0), mean, np.float32(1), **made)
  images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
  batch = input_pipeline.Batch(images, np.arange(4, dtype=np.int32) % 3, np.ones(4, np.float32))
  return (
    batch,
    state,
    jax.jit(
      lambda state: steps_lib.update(model, optimizer, recipe, state, batch, jax.random.key(1))
    ),
  )


@pytest.mark.slow
def test_the_average_forgets_fast_at_first_and_is_what_is_tested():
  model = models.MODELS["mlp"](classes=3, width=4)
  batch, state, step = step_by_hand(model, steps_lib.Recipe(3, ema=0.2), averaged=True)
  want = state.params
  for number in range(4):
    state, _ = step(state)
    decay = min(0.2, (1 + number) / (10 + number))
    want = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, want, state.params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.average, want)
  logits = state_lib.forward(model, state, batch.images)
  variables = {"params": state.average, "batch_stats": state.batch_stats}
  np.testing.assert_allclose(logits, model.apply(variables, batch.images, train=False), atol=1e-6)
  variables["params"] = state.params
  assert np.abs(logits - model.apply(variables, batch.images, train=False)).max() > 1e-4
  _, plain, _ = step_by_hand(model, steps_lib.Recipe(3))
  assert plain.average == {}


@pytest.mark.parametrize("recipe", [{"label_smoothing": 0.3}, {"mixup": 1.0}, {"cutout": 0.5}])
@pytest.mark.slow
def test_a_step_does_what_its_recipe_says(recipe):
  model = models.MODELS["mlp"](classes=3, width=4)
  batch, state, step = step_by_hand(model, steps_lib.Recipe(3, block_size=2, **recipe))
  _, got = step(state)
  rng = jax.random.fold_in(jax.random.key(1), 0)
  images, targets = batch.images, np.eye(3)[batch.labels]
  if "label_smoothing" in recipe:
    targets = 0.7 * targets + 0.1
  if "mixup" in recipe:
    images, targets = mixing.mixup(jax.random.fold_in(rng, 1), images, targets, alpha=1.0)
  if "cutout" in recipe:
    images = mixing.cut_blocks(jax.random.fold_in(rng, 2), images, share=0.5, block_size=2)
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
  want = -np.mean(np.sum(targets * np.asarray(jax.nn.log_softmax(logits)), -1))
  np.testing.assert_allclose(got, want, rtol=1e-5)
  _, state, other = step_by_hand(model, steps_lib.Recipe(3))
  assert abs(float(other(state)[1]) - want) > 1e-3


class Counting(nn.Module):
  """Remembers how many images it was shown before the first step."""

  classes: int
  width: int
  dropout: float
  dtype: object

  def estimate(self, batches):
    return {"seen": np.float32(sum(len(images) for images in batches))}

  @nn.compact
  def __call__(self, images, *, train):
    self.variable("batch_stats", "seen", lambda: np.float32(0))
    return nn.Dense(self.classes)(images.reshape(len(images), -1))


@pytest.mark.slow
def test_a_network_estimates_once_from_all_views_and_a_resumed_run_keeps_it(tmp_path, monkeypatch):
  monkeypatch.setitem(models.MODELS, "counting", Counting)
  config = tiny("model.name=counting", "augment.views=2", "augment.crop=1")
  train.run(config, tmp_path)
  _, state = params(tmp_path)
  assert state["batch_stats"] == {"seen": 256}
  monkeypatch.setattr(Counting, "estimate", None)
  (tmp_path / "result.json").unlink()
  train.run(config, tmp_path)


@pytest.mark.slow
def test_another_key_and_further_views_are_told_apart(tmp_path):
  config = tiny("augment.test_views=3", "augment.crop=1", "train.epochs=16", "model.width=128")
  result = train.run(config, tmp_path)
  assert result["test_views"] == 3
  assert result["single_view_accuracy"] > 0.5 and result["test_accuracy"] > 0.5
  assert result["test_accuracy"] != result["single_view_accuracy"]
  assert result["other_key_accuracy"] < 0.4


@pytest.mark.slow
def test_evaluation_agrees_with_a_count_by_hand(tmp_path):
  config = tiny()
  result = train.run(config, tmp_path)
  data = sources.load("digits", "test[:50]")
  scheme = config_lib.make_scheme(config, data.images.shape[1:])
  key = scheme.make_key(keys.experiment(0).read)
  _, state = params(tmp_path)
  model = models.create(config.model, classes=10, spec=scheme.spec.to_dict())
  rng = jax.random.fold_in(jax.random.key(config.seed), 2)
  right = 0
  for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
    noise = jax.random.fold_in(rng, index)
    disguised, _ = scheme.disguise(key, image, label, rng=noise)
    variables = {"params": state["params"], "batch_stats": state["batch_stats"]}
    x = (np.asarray(disguised) - state["mean"]) / state["scale"]
    right += int(np.argmax(model.apply(variables, x[None], train=False))) == label
  assert result["test_images"] == 50
  assert result["test_accuracy"] == right / 50
  assert 0 < right < 50


def test_a_workdir_that_cannot_be_written_is_one_line_and_exit_1(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  assert cli.main([f"--workdir={tmp_path / 'file' / 'run'}"]) == 1
  line = capsys.readouterr().err.splitlines()[-1]
  assert "the run directory must be writable, got Not a directory" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
@pytest.mark.slow
def test_a_full_disk_is_one_line_and_exit_1(tmp_path):
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=900k", "none", str(tmp_path)],
    capture_output=True,
    check=False,
  )
  if mounted.returncode:
    pytest.skip("mounting a small tmpfs is not allowed here")
  try:
    command = [*_command(tmp_path / "run"), "--config.disguise.acknowledge=true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    place, *lines = [x for x in done.stderr.splitlines() if not x.startswith("epoch")]
    assert place == f"run directory: {tmp_path / 'run'}"
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: the run directory needs ") and "MB free" in lines[0]
    assert not (tmp_path / "run" / "result.json").exists()
  finally:
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize(("accuracy", "warned"), [(0.115, True), (0.15, True), (0.16, False)])
def test_summary_says_where_accuracy_is_at_chance(tmp_path, accuracy, warned):
  result = {
    "key_fingerprint": "djx1:x",
    "classes": 10,
    "test_accuracy": accuracy,
    "test_views": 1,
    "single_view_accuracy": accuracy,
    "other_key_accuracy": None,
    "plain_accuracy": None,
    "val_accuracy": None,
    "labels": "permuted",
    "seconds": 1.0,
    "steps_per_second": 1.0,
  }
  assert ("HARDLY BETTER THAN CHANCE" in cli._summary(result, tmp_path)) == warned


def test_summary_marks_the_experiment(tmp_path, capsys):
  flags = [f"--config.{name}={value}" for name, value in config_lib.leaves(tiny("train.epochs=1"))]
  assert cli.main([f"--workdir={tmp_path}", *flags]) == 0
  out = capsys.readouterr().out
  assert "disguised test accuracy" in out and re.search(
    r"network on plain images  [\d.]+% \(chance 10%\): misuse", out
  )
  assert re.search(r"disguised test accuracy  [\d.]+% \(chance 10%\)", out)
  assert "EXPERIMENT: made from a public seed, protects nothing" in out
  assert str(tmp_path / "preview.png") in out


LOADED = """
import sys, train
from train import config
c = config.load("digits_rmt")
config.override(c, ["data.train_split=train[:32]", "data.test_split=test[:10]", "model.name=mlp", "model.width=1",
                    "train.epochs=1", "train.batch_size=32", "disguise.scheme=" + sys.argv[1]])
train.run(c, sys.argv[2])
print(*[m for m in ("djax.keys", "djax.keys.keyfile", "tensorflow") if m in sys.modules], "end")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "loaded"), [("plain", "end"), ("rmt", "djax.keys end")])
def test_a_run_without_a_key_never_loads_the_code_that_could_hold_one(tmp_path, scheme, loaded):
  done = subprocess.run(
    [sys.executable, "-c", LOADED, scheme, str(tmp_path)],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split("\n")[-2].strip() == loaded


def _long():
  return tiny("train.epochs=6", "train.checkpoint_every_steps=2", "model.dropout=0.3")


def _command(workdir):
  flags = [f"--config.{name}={value}" for name, value in config_lib.leaves(_long())]
  return [sys.executable, "-m", "train", f"--workdir={workdir}", *flags]


def test_bad_disguise_options_name_the_group():
  config = tiny("disguise.mix=block", "disguise.per_channel=true")
  with pytest.raises(ConfigError, match=r"config.disguise: rmt: per_channel must be False"):
    config_lib.make_scheme(config, (8, 8, 3))


def test_splits_must_belong_together():
  def split(shape, names):
    return Images(np.zeros((2, *shape), np.uint8), np.zeros(2, np.int32), names)

  with pytest.raises(DjaxError, match="one image shape and the same classes"):
    config_lib.check_data(split((8, 8, 1), ("a", "b")), split((8, 8, 1), ("a", "c")))
  with pytest.raises(DjaxError, match="at least one image"):
    empty = Images(np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int32), ("a", "b"))
    config_lib.check_data(split((8, 8, 1), ("a", "b")), empty)
