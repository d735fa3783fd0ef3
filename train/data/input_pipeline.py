"""From stored records to batches on the devices.

Records travel as stored (uint8, float16 ...); one jitted function disguises or widens them where the step finds them.
Each of ``n`` records has the same number of views; view ``v`` of record ``i`` has the index ``v n + i``. View and noise
depend on the index alone, the order of an epoch on (seed, epoch) alone, so any step can be resumed, by any number of
processes: each reads the rows of a batch that its own devices hold.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train import processes

__all__ = ["Batch", "Feed", "Pipeline", "Records", "epoch_order"]

_THREADS = 4
_BUFFERED = 8  # batches


class Batch(NamedTuple):
  """What a step sees.

  Attributes:
    images: float32 ``[B, H, W, C]``, disguised.
    labels: int32 ``[B]``, or shares of all classes, float32 ``[B, K]``.
    mask: float32 ``[B]``, 0 for rows that only fill the last batch.
  """

  images: jax.Array
  labels: jax.Array
  mask: jax.Array


class Records(Protocol):
  """Random access to the records of a split, from several threads."""

  def __len__(self) -> int: ...

  def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images ``[m, H, W, C]`` as stored and the labels ``[m]`` of some indices."""


class Feed(NamedTuple):
  """A split, and the way from what is stored to what the network sees.

  Attributes:
    records: the split.
    transform: ``(argument, images, labels, indices) -> (images, labels)``; pure, over whole batches; images become
      float32.
    argument: the pytree that ``transform`` is given: key and noise, a quantiser, or nothing. Never closed over.
    streamed: whether the records are read ahead of the step in threads; False where they lie in memory.
    views: of each record.
  """

  records: Records
  transform: Callable[..., tuple[jax.Array, jax.Array]]
  argument: Any = ()
  streamed: bool = False
  views: int = 1


class Pipeline:
  """Batches of one split. The feed's argument is held as device arrays and given to the program as an argument.

  Args:
    feed: the split.
    mesh: with one axis ``data``, over which batches are split.
    batch_size: rows of a batch; a multiple of the mesh's size.

  Attributes:
    feed: as given, and so ``mesh`` and ``batch_size``.
    split: sharding of what has a row for each record of a batch.
    replicated: sharding of what lies on every device.
  """

  def __init__(self, feed: Feed, *, mesh: Mesh, batch_size: int):
    self.feed, self.mesh, self.batch_size = feed, mesh, batch_size
    self.split = NamedSharding(mesh, PartitionSpec("data"))
    self.replicated = NamedSharding(mesh, PartitionSpec())
    self._argument = processes.put(feed.argument, self.replicated)
    self._transform = jax.jit(feed.transform, out_shardings=self.split)
    # Those of this process's devices; the mesh may have its devices in any order.
    held = self.split.addressable_devices_indices_map((batch_size,)).values()
    self._rows = np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in held]))

  def __len__(self) -> int:
    """Records in the split."""
    return len(self.feed.records)

  @property
  def steps_per_epoch(self) -> int:
    """Whole batches in the split."""
    return len(self) // self.batch_size

  def epoch(self, *, seed: int, number: int) -> np.ndarray:
    """Returns what an epoch sees, int64 ``[n]``: one view of every record; in ``views`` epochs each of them once."""
    return _order(len(self), self.feed.views, seed, number)

  def training(self, *, seed: int, start: int, stop: int) -> Iterator[Batch]:
    """Yields the batches of steps ``start .. stop - 1``; the order is a function of the seed and the step."""

    def indices(step: int) -> np.ndarray:
      epoch, place = divmod(start + step, self.steps_per_epoch)
      first = place * self.batch_size
      return self.epoch(seed=seed, number=epoch)[first : first + self.batch_size]

    return self._batches(stop - start, indices)

  def all_records(self, limit: int | None = None, *, view: int = 0) -> Iterator[Batch]:
    """Yields every record once, in order; the last batch is filled up and masked."""
    count, size = len(self) if limit is None else min(limit, len(self)), self.batch_size

    def indices(batch: int) -> np.ndarray:
      return view * len(self) + np.arange(batch * size, min((batch + 1) * size, count))

    return self._batches(-(-count // size), indices)

  def images(self, limit: int | None = None, *, view: int = 0) -> Iterator[np.ndarray]:
    """Yields the images of ``all_records`` in host memory, ``[b, H, W, C]``; only the last batch may be smaller."""
    for batch in self.all_records(limit, view=view):
      images, mask = processes.on_host((batch.images, batch.mask))
      yield images[mask > 0]

  def _batches(self, count: int, indices: Callable[[int], np.ndarray]) -> Iterator[Batch]:
    source = _Source(count, lambda index: self._read(indices(index)))
    return self._ahead(_prefetched(source) if self.feed.streamed else iter(source))

  def _read(self, indices: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns images, labels, indices and mask of this process's rows of a batch, in host memory."""
    filled = np.concatenate([indices, np.zeros(self.batch_size - len(indices), indices.dtype)])
    filled = filled[self._rows]
    images, labels = self.feed.records.read(filled)
    mask = (self._rows < len(indices)).astype(np.float32)
    return images, labels.astype(np.int32), filled.astype(np.int32), mask

  def _on_devices(self, host: tuple[np.ndarray, ...]) -> Batch:
    images, labels, indices, mask = processes.put_rows(host, self.split, rows=self.batch_size)
    images, labels = self._transform(self._argument, images, labels, indices)
    return Batch(images, labels, mask)

  def _ahead(self, batches: Iterator[tuple[np.ndarray, ...]], depth: int = 2) -> Iterator[Batch]:
    """Keeps ``depth`` batches under way on the devices while the step works."""
    queue = collections.deque(self._on_devices(b) for b in itertools.islice(batches, depth))
    while queue:
      yield queue.popleft()
      queue.extend(self._on_devices(b) for b in itertools.islice(batches, 1))


class _Source:
  """Batches by index, as Grain takes them."""

  def __init__(self, count: int, read: Callable[[int], tuple[np.ndarray, ...]]):
    self._count, self._read = count, read

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
    return self._read(int(index))

  def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
    return map(self._read, range(self._count))


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
  """Returns the order of an epoch, int64 ``[count]``: a permutation that depends on both numbers, not on their sum."""
  return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch]))).permutation(
    count
  )


@functools.lru_cache(maxsize=2)
def _order(count: int, views: int, seed: int, epoch: int) -> np.ndarray:
  """Keeps the orders of two epochs: read-ahead works on both where they meet."""
  rows = epoch_order(count, seed=seed, epoch=epoch)
  return rows + count * ((epoch + rows) % views)


def _prefetched(source: _Source) -> Iterator[tuple[np.ndarray, ...]]:
  """Reads batches ahead in threads, a few at a time; errors come out where the batch would."""
  import grain  # for data that do not fit into memory alone

  options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BUFFERED)
  return iter(grain.MapDataset.source(source).to_iter_dataset(options))
