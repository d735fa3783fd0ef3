"""Stems: maps from disguised images to images for any network behind them, one linear map for each block position.

A convolution shares its filters over all positions, while each position has a secret matrix of its own. A stem keeps
the shape of the images, ``[B, H, W, C]``, standardised. Its arithmetic is float32 whatever the network's: it is cheap,
and rounded matrices would blur the images. It is made from the public spec, never from the key.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from djax import schemes
from djax.errors import ConfigError
from djax.models import alignment
from djax.ops import blocks, permutation, rmt
from djax.schemes import Trait

__all__ = ["Aligned", "Magnitude", "Position"]


class Magnitude(nn.Module):
  """Takes the absolute value of every pixel: the random signs of InstaHide say nothing.

  Attributes:
    dtype: of the images returned.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns images ``[B, H, W, C]``, none of them negative."""
    del train
    return jnp.abs(images).astype(self.dtype)


class Position(nn.Module):
  """Multiplies the vectors that the disguise mixes by a learned matrix of their block position; at first, the identity.

  For ``rmt`` these are the rows of a block, or the whole block, as its matrices take them. Other disguises treat a
  block as one, and so does the stem: its vector holds all pixels and channels.

  Attributes:
    block_size: side ``b`` in pixels, of the disguise.
    mix: ``"rows"`` or ``"block"``, as in ``rmt.project``.
    per_channel: whether rows of each channel have a matrix of their own.
    rank: if not 0, all positions share a matrix, and each adds one of this rank; else each has a full one.
    mixing: whether positions are then mixed by a learned ``[P, P]`` matrix, which can undo a permutation.
    dtype: of the images returned.
  """

  block_size: int
  mix: str = "rows"
  per_channel: bool = False
  rank: int = 0
  mixing: bool = False
  dtype: Any = jnp.float32

  @staticmethod
  def from_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """See ``djax.models``; raises ``ConfigError`` if the disguise has no blocks."""
    _check_blocks("position", spec)
    return {
      "block_size": spec["block_size"],
      "mix": spec.get("mix", "block"),
      "per_channel": spec.get("per_channel", False),
    }

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns images ``[B, H, W, C]`` of images of that shape.

    Raises:
      ValueError: while tracing, if blocks do not fit the image.
    """
    del train
    x = blocks.blockify(images.astype(jnp.float32), block_size=self.block_size)
    shape = _matrix_shape(x, self.mix, self.per_channel)
    if self.rank:
      short = nn.initializers.normal(shape[-1] ** -0.5)
      shared = self.param("shared", _identity, shape[1:])
      down = self.param("down", short, (*shape[:-1], self.rank))
      up = self.param("up", nn.initializers.zeros, (*shape[:-2], self.rank, shape[-1]))
      matrices = shared + down @ up
    else:
      matrices = self.param("matrices", _identity, shape)
    x = rmt.project(matrices, x, mix=self.mix)
    if self.mixing:
      x = jnp.einsum("qp,np...->nq...", self.param("mixing", _identity, (shape[0],) * 2), x)
    return blocks.unblockify(x.astype(self.dtype), height=images.shape[1], width=images.shape[2])


class Aligned(nn.Module):
  """Puts the blocks back and undoes the matrices, both as estimated from the disguised training images alone.

  No key, no known pair and no public image is used: what helps the network here is what the disguise leaks. Mirror
  images, and constants that standardising adds or takes, do not matter to a network that learns. Until ``estimate``
  has given the entries of ``batch_stats``, blocks stay in place and the matrices are identities.

  Attributes:
    spec: ``SchemeSpec.to_dict()`` of the disguise.
    frozen: whether the matrices stay as estimated. Else training corrects those of each position by a factor
      ``I + D``, ``D`` zero at first.
    dtype: of the images returned.
  """

  spec: Mapping[str, Any]
  frozen: bool = False
  dtype: Any = jnp.float32

  @staticmethod
  def from_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """See ``djax.models``; raises ``ConfigError`` if there are no blocks, or nothing that could be estimated."""
    _check_blocks("aligned", spec)
    if reason := alignment.refuses(spec):
      raise ConfigError(
        f"config.model.stem=aligned cannot be estimated: {reason}. Use stem=position, which learns from any blocks."
      )
    # jit hashes modules.
    return {"spec": FrozenDict({**spec, "image_shape": tuple(spec["image_shape"])})}

  def estimate(self, batches: Iterator[np.ndarray]) -> dict[str, np.ndarray]:
    """See ``djax.models``; gives float32 ``inverse`` and int32 ``perm``, where the disguise has them."""
    inverse, perm = alignment.estimate(self.spec, batches)
    estimates = {"inverse": inverse, "perm": perm}
    return {name: value for name, value in estimates.items() if value is not None}

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns images ``[B, H, W, C]`` of images of that shape.

    Raises:
      ValueError: while tracing, if blocks do not fit the image.
    """
    del train
    b, mix = self.spec["block_size"], self.spec.get("mix", "block")
    x = blocks.blockify(images.astype(jnp.float32), block_size=b)
    traits = schemes.traits(self.spec)
    if Trait.MOVED in traits:
      perm = self.variable("batch_stats", "perm", jnp.arange, x.shape[1], dtype=jnp.int32)
      x = permutation.invert(jnp.asarray(perm.value), x)
    shape = _matrix_shape(x, mix, self.spec.get("per_channel", False))
    if Trait.MATRICES in traits:
      x = rmt.project(
        self.variable("batch_stats", "inverse", _identity, None, shape).value, x, mix=mix
      )
    if not self.frozen:
      x = x + rmt.project(self.param("correction", nn.initializers.zeros, shape), x, mix=mix)
    return blocks.unblockify(x.astype(self.dtype), height=images.shape[1], width=images.shape[2])


def _identity(rng: Any, shape: tuple[int, ...]) -> jax.Array:
  """Returns identity matrices, as an initializer."""
  del rng
  return jnp.broadcast_to(jnp.eye(shape[-1]), shape)


def _matrix_shape(x: jax.Array, mix: str, per_channel: bool) -> tuple[int, ...]:
  """Returns the shape of matrices for blocks ``[B, P, b, b, C]``."""
  return rmt.matrix_shape(x.shape[1], x.shape[2], x.shape[4], mix=mix, per_channel=per_channel)


def _check_blocks(stem: str, spec: Mapping[str, Any]) -> None:
  """Refuses a disguise that does not cut images into blocks."""
  if "block_size" not in spec:
    raise ConfigError(
      f"config.model.stem={stem} needs a disguise in blocks, got a data set of scheme {spec['scheme']!r}. "
      "Use stem=none, or name a disguise with a block_size."
    )
