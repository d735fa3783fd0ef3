"""A network for images under AES: whole units are its words, and words known by their frequency are its vocabulary."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from djax import blocks

__all__ = ["UnitMlp"]


class UnitMlp(nn.Module):
  """Embeds the units of encrypted images by their hashes, and joins the positions in one hidden layer.

  A cipher leaves nothing but equality: equal units stay equal, and their pixels say nothing. So each unit is hashed
  into a bucket, and buckets into vectors, learned with the labels. Most units are seen once; their vectors would only
  memorise images. Buckets seen in fewer than ``min_rate`` of the training images therefore share one vector.
  Frequencies are counted in ``batch_stats``, training records of all devices; nothing of the key is used.

  The smaller ``unit_pixels`` and the fewer the values of an image, the more there is to learn. Units of 16 pixels of
  photographs hardly ever repeat; for these there is no accuracy to be had.

  Attributes:
    classes: number of labels ``K``.
    width: of the hidden layer.
    dropout: rate before the last layer; before the hidden layer it is half of it.
    dtype: of the layers' arithmetic; parameters stay float32.
    block_size: side ``b`` in pixels, of the disguise.
    unit_pixels: pixels of one channel in a unit, of the disguise.
    shared: whether one key, so one table, serves all block positions; else each position has a table of its own.
    buckets: rows of a table; several units share a bucket by chance.
    features: length of a bucket's vector.
    min_rate: occurrences per training image from which on a bucket is told from the others.
    unit_dropout: share of the units that count as unknown in training; the most frequent one, which stands for an
      empty background, never does.
  """

  classes: int
  width: int = 1024
  dropout: float = 0.5
  dtype: Any = jnp.float32
  block_size: int = 4
  unit_pixels: int = 16
  shared: bool = True
  buckets: int = 2**16
  features: int = 16
  min_rate: float = 5e-4
  unit_dropout: float = 0.2

  standardised: ClassVar[bool] = False

  @staticmethod
  def from_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the attributes that the public facts of a disguise give.

    Args:
      spec: ``SchemeSpec.to_dict()`` of the scheme ``aes``.

    Raises:
      KeyError: if the disguise has no units.
    """
    return {
      "block_size": spec["block_size"],
      "unit_pixels": spec["unit_pixels"],
      "shared": not spec["position_keys"],
    }

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns float32 logits ``[B, K]`` of images ``[B, H, W, C]``: whole numbers in 0..255, of any dtype.

    Raises:
      ValueError: while tracing, if blocks do not fit the image, or units the block.
    """
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
    drop = partial(nn.Dropout, deterministic=not train)
    buckets = _buckets(images, self.block_size, self.unit_pixels, self.buckets)  # [B, P, U]
    known, common = self._known(buckets, train)
    if train and self.unit_dropout:
      keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.unit_dropout, buckets.shape)
      known &= keep | common
    # Small beside a weight: a bucket must earn its vector.
    init = nn.initializers.normal(0.1)
    embed = nn.Embed(
      self._tables(buckets) * self.buckets, self.features, embedding_init=init, dtype=self.dtype
    )
    unknown = self.param("unknown", init, (self.features,)).astype(self.dtype)
    x = jnp.where(known[..., None], embed(self._rows(buckets)), unknown)
    x = norm()(x).reshape(x.shape[0], -1)  # [B, P * U * features]
    x = drop(self.dropout / 2)(x)
    x = nn.relu(norm()(nn.Dense(self.width, use_bias=False, dtype=self.dtype)(x)))
    return nn.Dense(self.classes, dtype=jnp.float32)(drop(self.dropout)(x).astype(jnp.float32))

  def _tables(self, buckets: jax.Array) -> int:
    return 1 if self.shared else buckets.shape[1]

  def _rows(self, buckets: jax.Array) -> jax.Array:
    """Returns the rows of all tables, one below the other, that buckets ``[B, P, U]`` stand for."""
    return buckets + self.buckets * np.arange(self._tables(buckets), dtype=np.int32)[:, None]

  def _known(self, buckets: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    """Counts buckets while training; returns which are frequent enough, and which are the most frequent of all."""
    rows = self._rows(buckets)
    tables = self._tables(buckets)
    counts = self.variable("batch_stats", "counts", jnp.zeros, (tables * self.buckets,))
    images = self.variable("batch_stats", "images", jnp.zeros, ())
    if train and not self.is_initializing():
      # One batch first: float32 holds its whole numbers exactly, so the order of the sum does not matter.
      counts.value += jnp.zeros_like(counts.value).at[rows].add(1.0)
      images.value += rows.shape[0]
    known = (counts.value >= self.min_rate * images.value) & (counts.value > 0)
    most = counts.value.reshape(tables, -1).argmax(axis=-1)
    return known[rows], buckets == most[:, None]


def _buckets(images: jax.Array, block_size: int, unit_pixels: int, buckets: int) -> jax.Array:
  """Returns a bucket for each unit, int32 ``[B, P, U]``: U units of a block, channel by channel."""
  if block_size**2 % unit_pixels:
    raise ValueError(
      f"UnitMlp: block_size**2 must be a multiple of unit_pixels, got block_size={block_size} with "
      f"unit_pixels={unit_pixels}. Give the values of the disguise."
    )
  cut = jnp.moveaxis(blocks.blockify(images, block_size=block_size), -1, -3)  # [B, P, C, b, b]
  units = cut.reshape(*cut.shape[:2], -1, unit_pixels).astype(jnp.uint32)
  # Odd, so that one changed byte always changes the sum modulo 2**32; the rounds after it are bijections.
  powers = [pow(0x9E3779B1, i + 1, 2**32) for i in range(unit_pixels)]
  mixed = jnp.sum(units * np.array(powers, np.uint32), axis=-1, dtype=jnp.uint32)
  mixed ^= mixed >> 16
  mixed *= np.uint32(0x85EBCA6B)
  mixed ^= mixed >> 13
  return (mixed % np.uint32(buckets)).astype(jnp.int32)
