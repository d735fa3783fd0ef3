"""The key's bytes are in no output, log, checkpoint, lowered program or compilation cache; a planted one is found.

The search knows raw bytes, hex and base64 of them, and floats and integers as MLIR prints them.
"""

import base64
import itertools
import re
import subprocess
import sys
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from djax import keys, schemes
from djax.sources import Images
from train.data import inputs
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
config.override(c, ["data.train_split=train[:64]", "data.test_split=test[:20]", "model.width=1", "train.epochs=1",
                    "train.batch_size=32", f"disguise.experiment_seed={sys.argv[2]}"])
if "resident" in sys.argv[3]:
  from train import device_loop
  device_loop.fits = lambda pipeline: True
if "planted" in sys.argv[3]:
  from djax import keys
  from train.data import inputs
  original = inputs._per_record
  def closed_over(scheme, *views):
    key = scheme.make_key(keys.experiment(c.disguise.experiment_seed).read)
    disguise = original(scheme, *views)
    return lambda given, *rest: disguise((jax.tree.map(jax.numpy.asarray, key), *given[1:]), *rest)
  inputs._per_record = closed_over
print(train.run(c, sys.argv[1] + "/run"))
"""


def secrets_of(master, spec):
  """Returns the byte strings that must appear nowhere: master, subkeys, and the arrays of the key pytree."""
  key = schemes.from_spec(spec).make_key(master.read)
  positions = len(key.perm)
  labels = [f"perm|{positions}", *(f"rmt|{p}|{spec['block_size']}" for p in range(positions))]
  found = {"master": master._secret}
  found |= {label: master.subkey(label) for label in labels}
  for dtype in ("<i4", "<i8"):
    found[f"perm {dtype}"] = key.perm.astype(dtype).tobytes()
  for axes, matrices in orders(key):
    for dtype in ("<f4", "<f8"):
      found[f"matrices {axes} {dtype}"] = matrices.astype(dtype).tobytes()
  return found, key


def orders(key):
  """Yields the matrices as a compiler may lay them out; their slices are parts of one of these."""
  for axes in itertools.permutations(range(key.matrices.ndim)):
    yield axes, np.transpose(key.matrices, axes)


def decoded(blob):
  """Yields a blob and what it holds compressed: JAX compresses its cache."""
  yield blob
  for window in (15, 31):
    try:
      yield zlib.decompress(blob, window)
    except zlib.error:
      continue
  if blob[:4] == b"\x28\xb5\x2f\xfd":
    import zstandard

    yield zstandard.ZstdDecompressor().decompressobj().decompress(blob)


def numbers(text):
  return np.array([float(x) for x in re.findall(rb"-?\d+\.?\d*(?:[eE][-+]?\d+)?", text)])


def leaks(blob, found, key):
  """Returns the names of the secrets in a blob."""
  hits = set()
  for data in decoded(blob):
    lower = data.lower()
    for name, secret in found.items():
      # Arrays may be cut up; a quarter of their bytes in a row is no chance hit.
      part = secret if len(secret) <= 32 else secret[: len(secret) // 4]
      forms = (part, part.hex().encode(), base64.b64encode(part)[: len(part) * 4 // 3 - 3])
      if forms[0] in data or forms[1] in lower or forms[2] in data:
        hits.add(name)
    if data[:2000].isascii():
      values = numbers(data)
      for _, matrices in orders(key):
        want = matrices.reshape(-1)[:8]
        for offset in np.flatnonzero(np.isclose(values, want[0], rtol=1e-5, atol=0)):
          row = values[offset : offset + len(want)]
          if row.shape == want.shape and np.allclose(row, want, rtol=1e-5, atol=0):
            hits.add("matrices as text")
      order = ", ".join(map(str, key.perm[:12])).encode()
      if order in data or order.replace(b", ", b" ") in data:
        hits.add("perm as text")
  return hits


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


@pytest.mark.parametrize("way", ["stepwise", "resident"])
def test_a_planted_key_is_found_in_program_and_cache(tmp_path, searched, way):
  files = run(tmp_path, f"{way} planted")
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
  feed = inputs.disguised(data, scheme, key, rng=jax.random.key(0))
  pipeline = Pipeline(feed, mesh=mesh, batch_size=8)
  rows = np.zeros(8, np.int32)
  text = pipeline._transform.lower(pipeline._argument, images, data.labels, rows).as_text()
  assert "stablehlo.multiply" in text
  assert not leaks(text.encode(), found, key)

  def closed_over(images):
    return scheme.disguise(
      jax.tree.map(jax.numpy.asarray, key), images, None, rng=jax.random.key(0)
    )[0]

  planted = jax.jit(closed_over).lower(images).as_text()
  assert leaks(planted.encode(), found, key)


def test_no_repr_shows_a_value(searched):
  _, key = searched
  for shown in (repr(key), str(jax.device_put(key)), repr(keys.experiment(SEED)), f"{[key]}"):
    values = numbers(shown.encode())
    assert not values[values % 1 != 0].size
  values = numbers(repr(key.matrices).encode())
  assert values[values % 1 != 0].size
