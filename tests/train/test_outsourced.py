"""Training on a directory that was disguised elsewhere, from memory and from disk; and on what the host disguises."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.digits import MASTER, SPLITS, write
from helpers.training import Logged, assert_same_state, config_for, interrupt, params, tiny

import train
from djax import keys, models, schemes, sources
from djax.disguised import directory, manifest, quantise
from djax.errors import ConfigError, DataError, KeyMismatchError
from djax.io import picture
from djax.owner import query
from train import __main__ as cli
from train import config as config_lib
from train import loop
from train.data import input_pipeline, inputs, outsourced, owned
from train.data.input_pipeline import Feed, Pipeline, epoch_order


@pytest.fixture(scope="module")
def mesh():
  return loop.data_mesh()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("data") / "disguised"
  write(path, dtype="uint8")
  return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory, folder):
  """The same run from memory and from disk: directories and results."""
  place = tmp_path_factory.mktemp("runs")
  return {
    name: (place / name, train.run(config_for(folder, f"data.memory_gb={gb}"), place / name))
    for name, gb in (("memory", 4), ("streamed", 0))
  }


def test_a_run_leaves_what_it_promises_and_no_original(runs, folder):
  workdir, result = runs["memory"]
  facts = manifest.read(folder)
  stored = json.loads((workdir / "result.json").read_text())
  assert result == {**stored, "workdir": str(workdir)}
  assert result["plain_accuracy"] is None
  assert result["labels"] == "permuted" and result["test_images"] == 50
  assert result["key_fingerprint"] == facts.key_fingerprint == MASTER.fingerprint
  assert result["scheme"] == facts.spec
  page = (workdir / "report.html").read_text()
  assert re.findall(r'<img alt="(\w+)', page) == ["disguised"]
  assert "This page shows no original." in page and page.count("not measured") >= 2
  kept = json.loads((workdir / "disguise.json").read_text())
  assert kept["source_sha256"] == facts.sha256 and kept["spec"] == facts.spec
  for name in ("MANIFEST.json", "MANIFEST.mac"):
    assert (workdir / name).read_bytes() == (folder / name).read_bytes()
  assert manifest.read(workdir).sha256 == facts.sha256


def test_the_preview_shows_disguised_images_only(monkeypatch, tmp_path, mesh, folder):
  drawn = []
  real = picture.sheet
  monkeypatch.setattr(
    picture, "sheet", lambda rows, title: drawn.append(rows) or real(rows, title=title)
  )
  for given in (outsourced.inputs(config_for(folder)), owned.inputs(tiny(), None)):
    loop._preview(tmp_path, given, Pipeline(given.test, mesh=mesh, batch_size=32))
  assert [list(rows) for rows in drawn] == [["disguised"], ["originals", "disguised"]]
  assert all(len(images) == 8 for rows in drawn for images in rows.values())
  assert (tmp_path / "preview.png").read_bytes().startswith(b"\x89PNG")


def test_the_summary_says_what_is_missing(runs):
  workdir, result = runs["memory"]
  text = cli._summary(result, workdir)
  assert "network on plain images  not measured: it needs originals" in text
  assert f"{workdir / 'preview.png'}  (the run directory holds no original)" in text
  assert "permuted: only the owner knows their names" in text
  assert "EXPERIMENT" in text and "shows originals" not in text


def test_from_disk_ends_with_the_same_bits_as_from_memory(runs):
  assert_same_state(params(runs["memory"][0]), params(runs["streamed"][0]))
  mean = params(runs["memory"][0])[1]["mean"]
  assert np.abs(mean).max() > 1


def test_memory_gb_decides_whether_records_are_held(folder):
  held = outsourced.inputs(config_for(folder, "data.memory_gb=0.0001"))
  read = outsourced.inputs(config_for(folder, "data.memory_gb=0.00001"))
  assert isinstance(held.train.records, inputs.Arrays) and not held.train.streamed
  assert read.train.streamed and not isinstance(read.train.records, inputs.Arrays)


@pytest.mark.slow
def test_a_streamed_run_stopped_resumes_to_the_same_bits(tmp_path, monkeypatch, folder, runs):
  config = config_for(folder, "data.memory_gb=0")
  with monkeypatch.context() as patch, pytest.raises(loop.Stopped, match="after step 6"):
    interrupt(patch, input_pipeline.Pipeline, "training")
    train.run(config, tmp_path / "run")
  moved = tmp_path / "moved"
  shutil.copytree(folder, moved)
  # Another place, another limit: still the same data.
  train.run(config_for(moved, "data.memory_gb=1e-6"), tmp_path / "run")
  assert_same_state(params(runs["memory"][0]), params(tmp_path / "run"))


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("gb", [0, 4])
def test_batches_equal_a_loop_over_records(tmp_path, mesh, monkeypatch, dtype, gb):
  facts = write(tmp_path / "set", dtype=dtype, splits={"train": "train[:64]", "test": "test[:10]"})
  config = config_for(tmp_path / "set", f"data.memory_gb={gb}", "data.train_split=train[20:51]")
  pipeline = Pipeline(outsourced.inputs(config).train, mesh=mesh, batch_size=8)
  sent, put = [], jax.device_put

  def spy(value, *args):
    sent.append(value[0].dtype)
    return put(value, *args)

  monkeypatch.setattr(jax, "device_put", spy)
  batches = list(pipeline.all_records())
  assert set(sent) == {np.dtype(dtype)} and len(batches) == 4
  got = np.concatenate([np.asarray(b.images)[np.asarray(b.mask) > 0] for b in batches])
  labels = np.concatenate([np.asarray(b.labels)[np.asarray(b.mask) > 0] for b in batches])
  split = directory.open(tmp_path / "set").splits["train"]
  assert got.dtype == np.float32 and len(got) == 31
  for i in range(31):
    stored, label = split.read(np.array([20 + i]))
    want = stored[0].astype(np.float32)
    if dtype == "uint8":
      want = quantise.dequantise(stored[0], facts.quantiser, block_size=2)
    np.testing.assert_allclose(got[i], want, rtol=1e-6, atol=1e-4)
    assert labels[i] == label[0]


def feed_of(records, *, streamed):
  return Feed(records, inputs.widened, (), streamed)


def test_streaming_reads_a_few_batches_ahead_and_no_more(mesh):
  records = Logged(8000)
  pipeline = Pipeline(feed_of(records, streamed=True), mesh=mesh, batch_size=8)
  batches = pipeline.training(seed=0, start=0, stop=1000)
  next(batches)
  time.sleep(0.5)
  # Two on the devices, the buffer, and what the threads have in hand.
  assert 3 <= len(records.reads) <= 2 + input_pipeline._BUFFERED + input_pipeline._THREADS + 1


@pytest.mark.parametrize("start", [0, 1, 4, 7, 9, 22])
@pytest.mark.parametrize("streamed", [False, True])
def test_the_batches_of_any_step_on_are_those_of_the_order(mesh, start, streamed):
  pipeline = Pipeline(feed_of(Logged(37), streamed=streamed), mesh=mesh, batch_size=8)
  batches = pipeline.training(seed=3, start=start, stop=23)
  got = [np.asarray(b.images)[:, 0, 0, 0].tolist() for b in batches]
  orders = [epoch_order(37, seed=3, epoch=epoch) for epoch in range(6)]
  want = [orders[step // 4][step % 4 * 8 :][:8].tolist() for step in range(start, 23)]
  assert got == want


def test_no_batches_are_no_batches(mesh):
  pipeline = Pipeline(feed_of(Logged(37), streamed=True), mesh=mesh, batch_size=8)
  assert list(pipeline.training(seed=0, start=4, stop=4)) == []


# What is refused.


def damage(folder, target):
  """Copies a data set and flips bytes in the middle of a shard."""
  shutil.copytree(folder, target)
  shard = sorted(target.glob("*-train.array_record-*"))[1]
  data = bytearray(shard.read_bytes())
  for place in range(len(data) // 2, len(data) // 2 + 200):
    data[place] ^= 0xFF
  shard.write_bytes(data)
  return shard.name


@pytest.mark.parametrize("gb", [0, 4])
def test_a_damaged_shard_is_named_and_exits_4(tmp_path, capsys, folder, gb):
  name = damage(folder, tmp_path / "damaged")
  config = config_for(tmp_path / "damaged", f"data.memory_gb={gb}")
  flags = [f"--config.{field}={value}" for field, value in config_lib.leaves(config)]
  assert cli.main([f"--workdir={tmp_path / 'run'}", *flags]) == 4
  line = capsys.readouterr().err.splitlines()[-1]
  assert f"{tmp_path / 'damaged'}: {name} is damaged. Take the files from a good copy." in line
  assert not (tmp_path / "run").exists()


def test_a_shard_that_no_batch_asks_for_is_hashed_too(tmp_path, folder):
  """What is wrong with a split is found before anything is written, not hours later."""
  damage(folder, tmp_path / "damaged")
  config = config_for(tmp_path / "damaged", "data.memory_gb=0", "data.train_split=train[:10]")
  with pytest.raises(DataError, match="00001-of-00004 is damaged"):
    train.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("gb", [0, 4])
def test_a_label_outside_the_classes_is_refused(tmp_path, folder, gb):
  shutil.copytree(folder, tmp_path / "set")
  facts = dataclasses.replace(manifest.read(folder), classes=7)
  (tmp_path / "set" / manifest.UNFINISHED).mkdir()
  manifest.write(tmp_path / "set", facts, mac_key=bytes(32))
  with pytest.raises(DataError, match=r"label [789], .*7 classes"):
    train.run(config_for(tmp_path / "set", f"data.memory_gb={gb}"), tmp_path / "run")


def test_a_run_says_what_it_is_trained_on(tmp_path, capsys, folder):
  """The config has a default, so that another directory than the one meant may lie there."""
  train.run(config_for(folder), tmp_path / "run")
  with directory.open(folder) as data:
    train_count, test_count = (len(data.splits[name]) for name in ("train", "test"))
  sides = "x".join(map(str, manifest.read(folder).disguised_shape))
  told = (
    f"disguised images: {folder}, {train_count} training and {test_count} test images of {sides}"
  )
  assert told in capsys.readouterr().err.splitlines()


def test_a_directory_that_is_none_exits_4(tmp_path, capsys):
  (tmp_path / "empty").mkdir()
  for name in ("missing", "empty"):
    flags = ["--config=outsourced", f"--config.data.disguised_dir={tmp_path / name}"]
    assert cli.main([f"--workdir={tmp_path / 'run'}", *flags]) == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / name / 'MANIFEST.json'} must exist" in line
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("split", "words"),
  [
    ("trian", "must be one of train, test, .* got 'trian'. Did you mean 'train'?"),
    ("train[:129]", "train of .* has 128"),
    ("train[5:5]", "must name records that exist"),
    ("train[:50%]", "a part such as train"),
  ],
)
def test_a_split_that_cannot_be_had_is_refused(tmp_path, folder, split, words):
  with pytest.raises(ConfigError, match=words):
    train.run(config_for(folder, f"data.train_split={split}"), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_key_is_refused(tmp_path, folder):
  with pytest.raises(ConfigError, match=r"master must be None with config.data.disguised_dir"):
    train.run(config_for(folder), tmp_path / "run", master=MASTER)
  assert not (tmp_path / "run").exists()


def test_resuming_on_another_data_set_is_refused(tmp_path, runs, folder):
  workdir, result = runs["memory"]
  write(tmp_path / "other_key", master=keys.experiment(4), dtype="uint8")
  with pytest.raises(KeyMismatchError, match="holds a run with the key experiment-seed3"):
    train.run(config_for(tmp_path / "other_key"), workdir)
  write(tmp_path / "other_data", dtype="uint8", splits={**SPLITS, "test": "test[50:100]"})
  with pytest.raises(ConfigError, match=r"holds a run on other images than .*other_data"):
    train.run(config_for(tmp_path / "other_data"), workdir)
  stored = json.loads((workdir / "result.json").read_text())
  assert {**stored, "workdir": str(workdir)} == result
  assert (workdir / "MANIFEST.json").read_bytes() == (folder / "MANIFEST.json").read_bytes()


LOADED = """
import json, sys, train
from train import config
c = config.load("digits_rmt")
config.override(c, ["data.train_split=train[:32]", "data.test_split=test[:10]", "model.name=mlp", "model.width=1",
                    "train.epochs=1", "train.batch_size=32", *json.loads(sys.argv[1])])
train.run(c, sys.argv[2])
if len(sys.argv) > 3:
  from train import answer
  assert len(answer.answer(sys.argv[2], sys.argv[3])["probabilities"]) == 5
names = ("djax.keys", "djax.keys.keyfile", "djax.owner", "djax.host.aes", "cryptography", "tensorflow", "grain")
print(json.dumps([name for name in names if name in sys.modules]))
"""


def loaded(workdir, overrides, *request):
  command = [sys.executable, "-c", LOADED, json.dumps(overrides), str(workdir), *map(str, request)]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_training_and_answering_never_load_code_that_could_hold_a_key(tmp_path, folder):
  asked = query.Query(sources.load("digits", "test[:5]").images, tuple("abcde"))
  query.request(asked, manifest.read(folder), MASTER, tmp_path / "request")
  ours = [f"data.disguised_dir={folder}", "disguise.scheme=plain", "data.memory_gb=0"]
  assert loaded(tmp_path / "outsourced", ours, tmp_path / "request") == ["grain"]
  # Its twin shows that the search finds such code.
  assert {"djax.keys", "cryptography"} <= set(loaded(tmp_path / "owned", []))


# Disguised on the host, with the key at hand: aes.


def aes(*overrides):
  return tiny("disguise.scheme=aes", "disguise.block_size=4", "disguise.noise_level=0", *overrides)


@pytest.mark.slow
def test_the_host_disguises_each_record_by_its_index_alone(monkeypatch):
  config = aes("disguise.salt_pepper=0.2")
  whole = owned.inputs(config, MASTER)
  monkeypatch.setattr(owned, "_CHUNK", 7)
  pieces = owned.inputs(config, MASTER)
  scheme = config_lib.make_scheme(config, (8, 8, 1))
  key = scheme.make_key(MASTER.read)
  originals = sources.load("digits", "train[:128]").images
  images, labels = whole.train.records.read(np.arange(128))
  assert images.dtype == np.uint8 and images.shape == (128, 8, 8, 1)
  np.testing.assert_array_equal(images, pieces.train.records.read(np.arange(128))[0])
  rng = jax.random.fold_in(jax.random.key(config.seed), 1)
  for i in (0, 6, 7, 127):
    noise = np.asarray(jax.random.uniform(jax.random.fold_in(rng, i), (8, 8, 1)))
    want = scheme.export(key, originals[i : i + 1], lambda noise=noise: noise[None])
    np.testing.assert_array_equal(images[i], want[0])
  clean = scheme.restore(key, images)
  changed = np.mean(np.asarray(clean) != originals)
  assert 0.1 < changed < 0.2  # a tenth turns 0, where most pixels are 0 already, a tenth 255
  np.testing.assert_array_equal(labels, sources.load("digits", "train[:128]").labels)


@pytest.mark.slow
def test_a_run_under_aes_feeds_bytes(tmp_path, mesh):
  config = aes("train.epochs=1", "model.name=unit_mlp")
  given = owned.inputs(config, None)
  images = next(Pipeline(given.train, mesh=mesh, batch_size=32).all_records()).images
  assert images.dtype == np.float32
  np.testing.assert_array_equal(np.asarray(images), given.train.records.read(np.arange(32))[0])
  result = train.run(config, tmp_path)
  assert result["scheme"] == {**result["scheme"], "scheme": "aes", "unit_pixels": 16}
  assert result["plain_accuracy"] is not None and result["labels"] == "plain"
  assert result["key_fingerprint"] == keys.experiment(0).fingerprint


def test_aes_of_floats_is_one_line(tmp_path):
  pixels = np.linspace(0, 255, 8 * 64, dtype=np.float32).reshape(8, 8, 8, 1)
  labels = np.arange(8) % 2
  arrays = dict(train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels)
  np.savez(tmp_path / "set.npz", **arrays)
  config = aes(f"data.source={tmp_path / 'set.npz'}", "data.train_split=train")
  config.data.test_split = "test"
  with pytest.raises(ConfigError, match=r"config.disguise: aes: images must be uint8"):
    train.run(config, tmp_path / "run")


# Networks that know the disguise.


class Raw(nn.Module):
  """Takes pixels as they are, and the side of a block from the spec."""

  standardised: ClassVar[bool] = False
  classes: int
  width: int
  dropout: float
  dtype: Any
  block_size: int

  @staticmethod
  def from_spec(spec):
    return {"block_size": spec["block_size"]}

  @nn.compact
  def __call__(self, images, *, train):
    return nn.Dense(self.classes)(images.reshape(len(images), -1) / 255)


def test_a_network_gets_raw_pixels_and_facts_of_the_disguise(tmp_path, monkeypatch, folder):
  monkeypatch.setitem(models.MODELS, "raw", Raw)
  config = config_for(folder, "model.name=raw", "train.epochs=1")
  assert models.create(config.model, classes=3, spec={"block_size": 2}).block_size == 2
  train.run(config, tmp_path)
  state = params(tmp_path)[1]
  np.testing.assert_array_equal(state["mean"], np.zeros((8, 8, 1)))
  assert state["scale"] == 1
  with pytest.raises(
    ConfigError, match=r"model.name=raw needs block_size of the disguise, which plain"
  ):
    models.create(config.model, classes=3, spec=schemes.plain_scheme((8, 8, 1)).spec.to_dict())


def test_a_part_of_a_split_gives_its_own_records_alone(folder):
  """Others of the split are no records of the part, and none counts from the end."""
  config = config_for(folder, "data.memory_gb=0.0", "data.train_split=train[2:5]")
  given = outsourced.inputs(config)
  part = given.train.records
  assert len(part) == 3 and len(part.read(np.arange(3))[0]) == 3
  for row in (-1, 3, 99):
    with pytest.raises(IndexError, match=rf"part of train must lie in 0\.\.2, got {row}\.\.{row}"):
      part.read(np.array([row]))
  given.close()
