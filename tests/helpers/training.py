"""Small training runs, and what is compared of them."""

import jax
import numpy as np
import orbax.checkpoint as ocp

from train import config as config_lib


def tiny(*overrides):
  config = config_lib.load("digits_rmt")
  config_lib.override(
    config,
    [
      "data.train_split=train[:128]",
      "data.test_split=test[:50]",
      "model.width=2",
      "train.epochs=2",
      "train.batch_size=32",
      "train.checkpoint_every_steps=3",
      *overrides,
    ],
  )
  return config


def params(workdir):
  manager = ocp.CheckpointManager(workdir / "checkpoints")
  step = manager.latest_step()
  args = ocp.args.Composite(state=ocp.args.StandardRestore())
  state = manager.restore(step, args=args)["state"]
  manager.close()
  return step, jax.tree.map(np.asarray, state)


def assert_same_state(a, b):
  (step_a, state_a), (step_b, state_b) = a, b
  assert step_a == step_b
  leaves_a, leaves_b = jax.tree.leaves(state_a), jax.tree.leaves(state_b)
  assert len(leaves_a) == len(leaves_b) > 10
  for x, y in zip(leaves_a, leaves_b, strict=True):
    assert x.tobytes() == y.tobytes()


def config_for(folder, *overrides):
  splits = ["data.train_split=train", "data.test_split=test", "disguise.scheme=plain"]
  return tiny(f"data.disguised_dir={folder}", *splits, "disguise.noise_level=0", *overrides)


class Logged:
  """Records that note which rows are asked for."""

  def __init__(self, count):
    self.count, self.reads = count, []

  def __len__(self):
    return self.count

  def read(self, rows):
    self.reads.append(rows)
    return np.zeros((len(rows), 4, 4, 1), np.uint8) + (rows % 251)[:, None, None, None].astype(
      np.uint8
    ), rows % 3
