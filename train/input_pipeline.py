"""From arrays of originals to disguised batches on the devices.

uint8 batches travel; the jitted, vmapped scheme disguises them where the step finds them. A record's noise depends on
its index alone, the order of an epoch on (seed, epoch) alone, so any step can be resumed.
"""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from djax.schemes import Scheme
from djax.sources import Images

__all__ = ["Batch", "Pipeline", "epoch_order"]


class Batch(NamedTuple):
  """What a step sees.

  Attributes:
    images: float32 ``[B, H, W, C]``, disguised.
    labels: int32 ``[B]``.
    mask: float32 ``[B]``, 0 for rows that only fill the last batch.
  """

  images: jax.Array
  labels: jax.Array
  mask: jax.Array


class Pipeline:
  """Disguised batches of one split. The key is held as device arrays and given to the program as an argument.

  Args:
    data: originals, in host memory.
    scheme: an on-device scheme.
    key: the scheme's secret pytree.
    rng: JAX key of the split's noise.
    mesh: with one axis ``data``, over which batches are split.
    batch_size: rows of a batch; a multiple of the mesh's size.
  """

  def __init__(
    self,
    data: Images,
    scheme: Scheme,
    key: Any,
    *,
    rng: jax.Array,
    mesh: Mesh,
    batch_size: int,
  ):
    self.data = data
    self.batch_size = batch_size
    self._rows = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    self._key, self._rng = jax.device_put((key, rng), everywhere)
    self._disguise = jax.jit(_per_record(scheme))

  @property
  def steps_per_epoch(self) -> int:
    """Whole batches in the split."""
    return len(self.data.images) // self.batch_size

  def training(self, *, seed: int, start: int, stop: int) -> Iterator[Batch]:
    """Yields the batches of steps ``start .. stop - 1``; the order is a function of the seed and the step.

    Args:
      seed: of the order.
      start: first step.
      stop: one past the last step.
    """
    return self._ahead(self._training_rows(seed, start, stop))

  def all_records(self, limit: int | None = None) -> Iterator[Batch]:
    """Yields every record once, in order; the last batch is filled up and masked.

    Args:
      limit: stop after this many records.
    """
    count = len(self.data.images) if limit is None else min(limit, len(self.data.images))
    starts = range(0, count, self.batch_size)
    rows = (np.arange(start, min(start + self.batch_size, count)) for start in starts)
    return self._ahead(rows)

  def _training_rows(self, seed: int, start: int, stop: int) -> Iterator[np.ndarray]:
    per_epoch = self.steps_per_epoch
    epoch, order = -1, np.empty(0, np.int64)
    for step in range(start, stop):
      if step // per_epoch != epoch:
        epoch = step // per_epoch
        order = epoch_order(len(self.data.images), seed=seed, epoch=epoch)
      first = step % per_epoch * self.batch_size
      yield order[first : first + self.batch_size]

  def _batch(self, rows: np.ndarray) -> Batch:
    filled = np.concatenate([rows, np.zeros(self.batch_size - len(rows), rows.dtype)])
    mask = (np.arange(self.batch_size) < len(rows)).astype(np.float32)
    host = (
      self.data.images[filled],
      self.data.labels[filled].astype(np.int32),
      filled.astype(np.int32),
      mask,
    )
    images, labels, indices, mask = jax.device_put(host, self._rows)
    images, labels = self._disguise(self._key, images, labels, indices, self._rng)
    return Batch(images, labels, mask)

  def _ahead(self, rows: Iterable[np.ndarray], depth: int = 2) -> Iterator[Batch]:
    """Keeps ``depth`` batches under way on the devices while the step works."""
    rows = iter(rows)
    queue = collections.deque(self._batch(r) for r in itertools.islice(rows, depth))
    while queue:
      yield queue.popleft()
      queue.extend(self._batch(r) for r in itertools.islice(rows, 1))


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
  """Returns the order of an epoch, int64 ``[count]``: a permutation that depends on both numbers, not on their sum.

  Args:
    count: number of records.
    seed: of the run.
    epoch: counted from 0.
  """
  return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch]))).permutation(
    count
  )


def _per_record(scheme: Scheme) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Vmaps a scheme over records, each with the noise of its own index; images become float32."""

  def disguise(key, images, labels, indices, rng):
    def one(image, label, index):
      return scheme.disguise(key, image, label, rng=jax.random.fold_in(rng, index))

    images, labels = jax.vmap(one)(images, labels, indices)
    return images.astype(jnp.float32), labels

  return disguise
