"""Small training runs, and what is compared of them."""

import signal

import jax
import numpy as np
import orbax.checkpoint as ocp

from train import config as config_lib

# Its programs take a second to compile; those of the usual network take ten.
SMALL = ("model.name=mlp", "model.depth=1", "model.width=4")
USUAL = ("model.name=cnn", "model.width=2")


def tiny(*overrides):
  config = config_lib.load("digits_rmt")
  config_lib.override(
    config,
    [
      "data.train_split=train[:128]",
      "data.test_split=test[:50]",
      *SMALL,
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


def assert_same_bits(a, b):
  leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
  assert len(leaves_a) == len(leaves_b) > 10
  for x, y in zip(leaves_a, leaves_b, strict=True):
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def assert_same_state(a, b):
  (step_a, state_a), (step_b, state_b) = a, b
  assert step_a == step_b
  assert_same_bits(state_a, state_b)


def interrupt(patch, owner, name, number=signal.SIGTERM):
  """Makes a generator function raise a signal after it yielded five times."""
  original = getattr(owner, name)

  def interrupted(*args, **kwargs):
    for place, item in enumerate(original(*args, **kwargs)):
      if place == 5:
        signal.raise_signal(number)
      yield item

  patch.setattr(owner, name, interrupted)


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
