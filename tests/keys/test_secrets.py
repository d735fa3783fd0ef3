"""The key's bytes are in no output, log, checkpoint, lowered program or compilation cache; a planted one is found.

The search knows raw bytes, hex and base64 of them, and floats and integers as MLIR prints them.
"""

import base64
import subprocess
import sys
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.leaks import leaks, numbers, secrets_of

from djax import keys, schemes
from djax.sources import Images
from train.data import owned
from train.data.input_pipeline import Pipeline

SPEC = {"scheme": "rmt", "image_shape": [8, 8, 1], "block_size": 2, "noise_level": 25.0}
SEED = 7

TRAIN = """
import sys, train
from train import config
import jax
jax.config.update("jax_compilation_cache_dir", sys.argv[1] + "/cache")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_log_compiles", True)
jax.config.update("jax_dump_ir_to", sys.argv[1] + "/ir")
c = config.load("digits_rmt")
config.override(c, ["data.train_split=train[:64]", "data.test_split=test[:20]", "model.name=mlp", "model.width=1",
                    "train.epochs=1", "train.batch_size=32", f"disguise.experiment_seed={sys.argv[2]}"])
if "resident" in sys.argv[3]:
  from train import device_loop
  device_loop.fits = lambda pipeline: True
if "planted" in sys.argv[3]:
  from djax import keys
  from train.data import owned
  original = owned._per_record
  def closed_over(scheme, *views):
    key = scheme.make_key(keys.experiment(c.disguise.experiment_seed).read)
    disguise = original(scheme, *views)
    return lambda given, *rest: disguise((jax.tree.map(jax.numpy.asarray, key), *given[1:]), *rest)
  owned._per_record = closed_over
print(train.run(c, sys.argv[1] + "/run"))
"""


def run(folder, mode):
  done = subprocess.run(
    [sys.executable, "-c", TRAIN, str(folder), str(SEED), mode], capture_output=True, check=True
  )
  (folder / "stdout").write_bytes(done.stdout)
  (folder / "stderr").write_bytes(done.stderr)
  return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def searched():
  return secrets_of(keys.experiment(SEED), SPEC)


@pytest.mark.parametrize("way", ["stepwise", "resident"])
@pytest.mark.slow
def test_no_file_of_a_run_holds_the_key(tmp_path, searched, way):
  files = run(tmp_path, way)
  kinds = {path.relative_to(tmp_path).parts[0] for path in files}
  assert kinds >= {"cache", "ir", "run", "stdout", "stderr"}
  assert any("checkpoints" in path.parts for path in files)
  assert b"experiment-seed7-" in (tmp_path / "run" / "disguise.json").read_bytes()
  for path in files:
    assert not leaks(path.read_bytes(), *searched), path
  # Checkpoints hold compressed chunks inside a database: their arrays are searched as they come back.
  manager = ocp.CheckpointManager(tmp_path / "run" / "checkpoints")
  saved = manager.restore(
    manager.latest_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore())
  )
  manager.close()
  leaves = jax.tree.leaves(saved["state"])
  assert len(leaves) > 10
  for leaf in leaves:
    assert not leaks(np.asarray(leaf).tobytes(), *searched)


@pytest.mark.slow
def test_a_planted_key_is_found_in_program_and_cache(tmp_path, searched):
  files = run(tmp_path, "resident planted")
  where = {path.parent.name for path in files if leaks(path.read_bytes(), *searched)}
  assert {"cache", "ir"} <= where


def test_each_kind_of_secret_is_found_in_a_blob(searched):
  found, key = searched
  for name, secret in found.items():
    for form in (secret, secret.hex().encode(), base64.b64encode(secret), zlib.compress(secret)):
      assert name in leaks(b"xx" + form if form[:2] != b"x\x9c" else form, found, key), name
  assert "perm as text" in leaks(str(key.perm.tolist()).encode(), found, key)
  assert not leaks(np.random.default_rng(0).bytes(10_000), found, key)


def test_the_lowered_disguise_holds_no_key(searched):
  found, key = searched
  scheme = schemes.from_spec(SPEC)
  images = np.zeros((8, 8, 8, 1), np.uint8)
  data = Images(images, np.zeros(8, np.int32), ("a", "b"))
  mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  feed = owned.disguised(data, scheme, key, rng=jax.random.key(0))
  pipeline = Pipeline(feed, mesh=mesh, batch_size=8)
  rows = np.zeros(8, np.int32)
  text = pipeline._transform.lower(pipeline._argument, images, data.labels, rows).as_text()
  assert not leaks(text.encode(), found, key)

  def closed_over(argument, *rest):
    return feed.transform((jax.tree.map(jax.numpy.asarray, key), *argument[1:]), *rest)

  planted = Pipeline(feed._replace(transform=closed_over), mesh=mesh, batch_size=8)
  text = planted._transform.lower(planted._argument, images, data.labels, rows).as_text()
  assert leaks(text.encode(), found, key)


def test_no_repr_shows_a_value(searched):
  _, key = searched
  for shown in (repr(key), str(jax.device_put(key)), repr(keys.experiment(SEED)), f"{[key]}"):
    values = numbers(shown.encode())
    assert not values[values % 1 != 0].size
  values = numbers(repr(key.matrices).encode())
  assert values[values % 1 != 0].size
