"""What the schemes of the baselines have in common."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax.errors import ConfigError
from djax.host import samplers

__all__ = ["not_exported", "rng_of", "seed_of"]


def seed_of(read: samplers.Reader, label: str) -> np.ndarray:
  """Returns a secret seed of JAX's generator, uint32 ``[2]``.

  Args:
    read: reader of labelled bytes.
    label: of the stream.
  """
  return np.frombuffer(read(label, 8), "<u4").astype(np.uint32)


def rng_of(seed: jax.Array | np.ndarray, rng: jax.Array) -> jax.Array:
  """Returns the JAX key of what is drawn for one image: of the secret seed, and different for every ``rng``.

  Threefry has seeds of 64 bits: that, and no more, is what a search of all seeds has to try.

  Args:
    seed: uint32 ``[2]``, from ``seed_of``.
    rng: JAX key, another one for every image.
  """
  own = jax.random.wrap_key_data(jnp.asarray(seed), impl="threefry2x32")
  for word in jax.random.bits(rng, (2,)):
    own = jax.random.fold_in(own, word)
  return own


def not_exported(name: str) -> Any:
  """Returns the ``export`` of a scheme that is not written to disk.

  Args:
    name: of the scheme.
  """

  def export(key, images, draw):
    del key, images, draw
    raise ConfigError(
      f"{name} is a baseline: djax trains on it and audits it, and does not write it to disk. Choose rmt, aes or "
      "permutation."
    )

  return export
