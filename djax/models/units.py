"""A network for images under AES: whole units are its words, and the most frequent of them are its vocabulary."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from djax.models.network import Classifier
from djax.ops import blocks

__all__ = ["UnitMlp"]

_CHUNK = 2**21  # units counted at a time
_COUNTED = 2**26  # units counted at all: more would not change which are the most frequent
_TABLE = 2**21  # units with a count of their own; beyond it, those with the least are forgotten


class UnitMlp(Classifier):
  """Embeds the units of encrypted images by their hashes, and joins the positions in hidden layers.

  A cipher leaves nothing but equality: equal units stay equal, and their pixels say nothing. So each unit of the
  vocabulary has a vector of its own, learned with the labels. Most units are seen once; their vectors would only
  memorise images. All units outside the vocabulary therefore share one vector, "unknown". The vocabulary is counted in
  disguised training images before the first step, see ``estimate``; nothing of the key is used.

  The smaller ``unit_pixels`` and the fewer the values of an image, the more there is to learn. Units of 16 pixels of
  photographs hardly ever repeat; for these there is no accuracy to be had.

  Attributes:
    width: of the hidden layers.
    depth: number of hidden layers.
    dropout: rate after each hidden layer; before the first it is half of it.
    block_size: side ``b`` in pixels, of the disguise.
    unit_pixels: pixels of one channel in a unit, of the disguise.
    shared: whether one key serves all block positions; else equal units at two positions are two words.
    vocabulary: number of units with a vector of their own.
    features: length of a vector.
    unit_dropout: share of the units that count as unknown in training; the most frequent one of a key, which stands
      for an empty background, never does.
  """

  width: int = 1024
  depth: int = 1
  dropout: float = 0.5
  block_size: int = 4
  unit_pixels: int = 16
  shared: bool = True
  vocabulary: int = 2**14
  features: int = 16
  unit_dropout: float = 0.1

  standardised: ClassVar[bool] = False

  @staticmethod
  def from_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """See ``djax.models``; raises ``KeyError`` if the disguise has no units.

    A unit of few pixels takes few values and says little: it gets a short vector and is seldom dropped.
    """
    pixels, shared = spec["unit_pixels"], not spec["position_keys"]
    return {
      "block_size": spec["block_size"],
      "unit_pixels": pixels,
      "shared": shared,
      "vocabulary": 2**8 if shared and pixels == 1 else 2**14,
      "features": min(pixels + 2, 16),
      "unit_dropout": 0.1 if pixels == 16 else 0.05,
    }

  def estimate(self, batches: Iterator[np.ndarray]) -> dict[str, np.ndarray]:
    """Counts the units of disguised training images, on the host and in bounded memory.

    Units seen only once stay unknown. Beyond some 67 million units it stops; rare ones of a large set may be counted
    short by a few. The result depends on the order of the images, not on how they are cut into batches.

    Args:
      batches: ``[B, H, W, C]``, whole numbers in 0..255 of any dtype, any ``B``; at least one image in all.

    Returns:
      What the module keeps in ``batch_stats``: ``vocabulary``, uint32 ``[vocabulary]``, sorted hashes of the most
      frequent units, the last one repeated where there are fewer; ``background``, uint32 ``[1]`` or ``[P]``, hashes of
      the most frequent unit of each key.

    Raises:
      ValueError: if blocks do not fit the images, or units the block.
    """
    hashed = jax.jit(self._hashes)
    chunks = _chunks(jax.device_get(hashed(jax.device_put(batch))) for batch in batches)
    table, counted = np.empty(0, np.uint64), 0
    for chunk in chunks:
      if not counted:
        by_key = chunk.reshape(1, -1) if self.shared else np.moveaxis(chunk, 1, 0)
        background = np.array([_most_frequent(units.ravel()) for units in by_key])
      table = _merged(table, chunk.ravel())
      counted += chunk.size
      if counted >= _COUNTED:
        break
    units, counts = table >> 32, table & 0xFFFFFFFF
    units, counts = units[counts > 1], counts[counts > 1]
    # The most frequent first; of two as frequent, the smaller hash.
    chosen = np.sort(units[np.argsort(-counts.astype(np.int64), kind="stable")[: self.vocabulary]])
    if not chosen.size:
      chosen = background[:1]
    spare = self.vocabulary - chosen.size
    return {
      "vocabulary": np.pad(chosen.astype(np.uint32), (0, spare), mode="edge"),
      "background": background,
    }

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns float32 logits ``[B, K]`` of images ``[B, H, W, C]``: whole numbers in 0..255, of any dtype.

    Raises:
      ValueError: while tracing, if blocks do not fit the image, or units the block.
    """
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
    drop = partial(nn.Dropout, deterministic=not train)
    hashes = self._hashes(images)  # [B, P, U]
    keys = 1 if self.shared else hashes.shape[1]
    vocabulary = self.variable(
      "batch_stats", "vocabulary", jnp.zeros, (self.vocabulary,), jnp.uint32
    )
    background = self.variable("batch_stats", "background", jnp.zeros, (keys,), jnp.uint32)
    rows = _rows(vocabulary.value, hashes)
    if train and self.unit_dropout:
      dropped = jax.random.bernoulli(self.make_rng("dropout"), self.unit_dropout, rows.shape)
      rows = jnp.where(dropped & (hashes != background.value[:, None]), self.vocabulary, rows)
    # Small beside a weight: a unit must earn its vector.
    init = nn.initializers.normal(0.1)
    x = nn.Embed(self.vocabulary + 1, self.features, embedding_init=init, dtype=self.dtype)(rows)
    x = norm()(x).reshape(x.shape[0], -1)  # [B, P * U * features]
    x = drop(self.dropout / 2)(x)
    for _ in range(self.depth):
      x = nn.relu(norm()(nn.Dense(self.width, use_bias=False, dtype=self.dtype)(x)))
      x = drop(self.dropout)(x)
    return nn.Dense(self.classes, dtype=jnp.float32)(x.astype(jnp.float32))

  def _hashes(self, images: jax.Array) -> jax.Array:
    """Returns a hash for each unit, uint32 ``[B, P, U]``: U units of a block, channel by channel."""
    if self.block_size**2 % self.unit_pixels:
      raise ValueError(
        f"UnitMlp: block_size**2 must be a multiple of unit_pixels, got block_size={self.block_size} with "
        f"unit_pixels={self.unit_pixels}. Give the values of the disguise."
      )
    cut = jnp.moveaxis(blocks.blockify(images, block_size=self.block_size), -1, -3)
    units = cut.reshape(*cut.shape[:2], -1, self.unit_pixels).astype(jnp.uint32)
    # Odd, so that one changed byte always changes the sum modulo 2**32; the rounds after it are bijections.
    powers = [pow(0x9E3779B1, i + 1, 2**32) for i in range(self.unit_pixels)]
    mixed = jnp.sum(units * np.array(powers, np.uint32), axis=-1, dtype=jnp.uint32)
    if not self.shared:
      mixed += (np.arange(cut.shape[1], dtype=np.uint32) * np.uint32(0x85157AF5))[:, None]
    mixed ^= mixed >> 16
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> 13
    mixed *= np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> 16)


def _rows(vocabulary: jax.Array, hashes: jax.Array) -> jax.Array:
  """Returns int32 places of hashes in a sorted vocabulary, its length for those that it does not hold."""
  rows = jnp.searchsorted(vocabulary, hashes)
  size = vocabulary.shape[0]
  return jnp.where(vocabulary[jnp.minimum(rows, size - 1)] == hashes, rows, size)


def _chunks(parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
  """Cuts arrays ``[n, P, U]`` anew, all but the last to one size."""
  held: list[np.ndarray] = []
  for part in parts:
    held.append(part)
    size = max(1, _CHUNK // part[0].size)
    if sum(map(len, held)) >= size:
      joined = np.concatenate(held)
      whole = len(joined) - len(joined) % size
      yield from np.split(joined[:whole], whole // size)
      held = [joined[whole:]]
  if sum(map(len, held)):
    yield np.concatenate(held)


def _merged(table: np.ndarray, units: np.ndarray) -> np.ndarray:
  """Counts units into a table, uint64: hash above, count below, sorted. The rarest leave one that is too long."""
  units, counts = np.unique(units, return_counts=True)
  table = np.concatenate([table, (units.astype(np.uint64) << 32) | counts.astype(np.uint64)])
  table.sort()
  units = table >> 32
  starts = np.flatnonzero(np.concatenate([[True], units[1:] != units[:-1]]))
  counts = np.add.reduceat(table & 0xFFFFFFFF, starts)
  if counts.size > _TABLE:
    least = np.partition(counts, -_TABLE)[-_TABLE - 1]
    starts, counts = starts[counts > least], counts[counts > least]
  return (units[starts] << 32) | counts


def _most_frequent(units: np.ndarray) -> np.uint32:
  """Returns the most frequent of some hashes, the smallest of several."""
  values, counts = np.unique(units, return_counts=True)
  return values[counts.argmax()]
