"""The random streams of a run, folded into ``jax.random.key(config.seed)``. A number, once used, keeps its meaning."""

import enum

import jax

__all__ = ["StepStream", "Stream", "rng_of"]


class Stream(enum.IntEnum):
  """What a run draws for."""

  TRAIN_NOISE = 1  # each record folds its index in
  TEST_NOISE = 2
  PARAMETERS = 3
  STEPS = 4  # each step folds its number in
  TRAIN_VIEWS = 5
  TEST_VIEWS = 6
  EXAMINER_NOISE = 8  # of training records disguised once more
  OTHER_KEY_NOISE = 9  # of records under a key that the run was not trained with
  VAL_NOISE = 10  # and encodings
  QUERY_NOISE = 11  # of images that the network of a run is asked about


class StepStream(enum.IntEnum):
  """What a step draws for, beside dropout: Flax folds a hash of the layer's path into the step's key."""

  MIXUP = 1
  CUTOUT = 2


def rng_of(seed: int, stream: Stream) -> jax.Array:
  """Returns the JAX key of a stream."""
  return jax.random.fold_in(jax.random.key(seed), stream)
