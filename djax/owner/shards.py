"""One shard of a disguised data set: read originals, disguise, write records. Runs in worker processes.

A record's bytes depend on the data set's secret, the job's public facts, its original and its place alone, so shards
can be written in any order, by any process, twice. A shard's records come from all over the source: they are read in
the order of the source and put into their order in memory.
"""

import dataclasses
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from djax import sources
from djax.disguised import containers, directory
from djax.disguised import manifest as manifest_lib
from djax.disguised.manifest import UNFINISHED, Shard
from djax.disguised.quantise import Quantiser
from djax.errors import DataError
from djax.keys import Streams
from djax.owner import disguiser, record_noise
from djax.owner.disguiser import Disguiser
from djax.owner.plan import Job

__all__ = ["Share", "Task", "Worker", "scanned", "tasks", "written"]

_CHUNK_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """One shard's work: to find the range of its values (``scan``), or to write it."""

  split: str
  index: int
  scan: bool
  quantiser: Quantiser | None


class Share(NamedTuple):
  """A part of all shards; every shard is in one of the parts.

  Attributes:
    number: of the part, from 1 on.
    parts: how many there are.
  """

  number: int
  parts: int

  def of(self, tasks: Sequence[Task]) -> Sequence[Task]:
    """Returns this part of all tasks: each ``parts``-th, so that the parts are alike in size."""
    return tasks[self.number - 1 :: self.parts]

  def __str__(self) -> str:
    return f"{self.number}/{self.parts}"


def tasks(job: Job, quantiser: Quantiser | None = None, *, scan: bool = False) -> list[Task]:
  """Returns one task a shard, in order.

  Args:
    job: the job.
    quantiser: of the data set, where it has one.
    scan: whether the values' range is to be found, rather than the shard written.
  """
  return [
    Task(split, index, scan, quantiser)
    for split, starts in job.starts_of.items()
    for index in range(len(starts) - 1)
  ]


class Worker:
  """Does tasks of a job. Holds the secret of the data set.

  Args:
    job: what to do.
    secret: of the data set.
  """

  def __init__(self, job: Job, secret: Streams):
    self._job = job
    self._streams = record_noise.Current(
      secret, role=manifest_lib.DATASET, views=job.manifest.views
    )
    self._disguiser = Disguiser(job.manifest.spec, self._streams)
    self._label_of = np.arange(job.manifest.classes, dtype=np.int32)
    if not job.request.plain_labels:
      self._label_of = self._streams.labels(job.manifest.classes)
    self._sources: dict[str, sources.Records] = {}
    self._orders: dict[str, np.ndarray] = {}
    # Of no other process, on this machine or another: two parts may come to write the same shard.
    self._name = secrets.randbelow(10**18)

  def run(self, task: Task, advance: Callable[[int], None]) -> None:
    """Does a task and leaves its outcome in ``.unfinished``: the facts of a shard, or the range of its values.

    Args:
      task: what to do.
      advance: called now and then with the number of records that were done since.

    Raises:
      DjaxError: if the source is damaged or the disk full.
    """
    (self._scan if task.scan else self._write)(task, advance)

  def close(self) -> None:
    """Closes the source; another task opens it again."""
    while self._sources:
      self._sources.popitem()[1].close()

  def _scan(self, task: Task, advance: Callable[[int], None]) -> None:
    b = self._job.manifest.block_size
    low, high = [], []
    for _, images, _ in self._chunks(task, advance):
      _, height, width, channels = images.shape
      grid = images.reshape(-1, height // b, b, width // b, b, channels)
      low.append(grid.min((0, 2, 4, 5)).ravel())
      high.append(grid.max((0, 2, 4, 5)).ravel())
    self._leave(
      task, ".range.json", {"low": np.min(low, 0).tolist(), "high": np.max(high, 0).tolist()}
    )

  def _write(self, task: Task, advance: Callable[[int], None]) -> None:
    job, manifest = self._job, self._job.manifest
    count = len(job.rows(task.split, task.index))
    images = np.empty(
      (count, *manifest.disguised_shape), np.dtype(manifest.dtype).newbyteorder("<")
    )
    labels = np.empty(count, np.int32)
    for places, exact, ids in self._chunks(task, advance):
      images[places] = disguiser.stored(
        exact, manifest.dtype, task.quantiser, block_size=manifest.block_size
      )
      labels[places] = ids
    temporary = _path(job, task, f".{self._name}")
    first = job.rows(task.split, task.index).start
    containers.of(manifest, job.out).write(temporary, task.split, first, images, labels)
    name = job.shard_file(task.split, task.index)
    shard = Shard(name, count, temporary.stat().st_size, directory.file_sha256(temporary))
    self._leave(task, ".json", dataclasses.asdict(shard))
    os.replace(temporary, job.out / name)

  def _leave(self, task: Task, suffix: str, outcome: dict[str, Any]) -> None:
    data = json.dumps({"id": self._job.manifest.id, **outcome}).encode()
    manifest_lib.replace(_path(self._job, task, suffix), data, writer=f".{self._name}")

  def _chunks(
    self, task: Task, advance: Callable[[int], None]
  ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields places in a shard, the disguised images that belong there, and their label ids, a few MB at a time."""
    rows = self._job.rows(task.split, task.index)
    views = self._job.manifest.splits[task.split].views
    held = self._order(task.split)[rows.start : rows.stop]
    sources_first = np.argsort(held, kind="stable")  # the source is read forwards, once a shard
    rising = held[sources_first] // views
    step = max(1, _CHUNK_BYTES // (4 * math.prod(self._job.manifest.disguised_shape)))
    start = 0
    while start < len(held):
      stop = min(start + step, len(held))
      # The views of one original stay in one chunk: a compressed source that is asked to go back starts anew.
      while stop < len(held) and rising[stop] == rising[stop - 1]:
        stop += 1
      places = sources_first[start:stop]
      images, labels = self._disguised(task.split, *np.divmod(held[places], views))
      yield places, images, labels
      advance(len(places))
      start = stop

  def _order(self, split: str) -> np.ndarray:
    """Returns which record of the source stands at each place of a split."""
    if split not in self._orders:
      records, views = (
        self._job.manifest.splits[split].records,
        self._job.manifest.splits[split].views,
      )
      self._orders[split] = self._streams.order(split, records // views, views)
    return self._orders[split]

  def _disguised(
    self, split: str, originals: np.ndarray, views: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns one view each of some originals, which rise, and their label ids."""
    rows, back = np.unique(originals, return_inverse=True)
    given = self._source(split).take(rows)
    if given.labels.max() >= self._job.manifest.classes:
      raise DataError(
        f"labels must lie below the {self._job.manifest.classes} classes, got {given.labels.max()} "
        f"among the records {rows[0]}..{rows[-1]} of {split}."
      )
    images: np.ndarray | None = None
    for view in np.unique(views).tolist():
      places = np.flatnonzero(views == view)
      disguised = self._disguiser.images(
        given.images[back[places]],
        split,
        originals[places].tolist(),
        view=view,
        crop=self._job.request.crop,
        flip=self._job.request.flip,
      )
      if images is None:
        images = np.empty((len(originals), *disguised.shape[1:]), disguised.dtype)
      images[places] = disguised
    assert images is not None
    return images, self._label_of[given.labels[back]]

  def _source(self, split: str) -> sources.Records:
    """Opens a split of the source, once."""
    if split not in self._sources:
      records = self._job.request.open(split)
      if records.snapshot() != self._job.snapshots[split]:
        records.close()
        raise DataError(
          f"{self._job.request.source}: the files of the split {split} are not those that the work was planned for. "
          "Re-run the command when nothing writes there."
        )
      self._sources[split] = records
    return self._sources[split]


def scanned(job: Job, task: Task) -> tuple[list[float], list[float]] | None:
  """Returns the smallest and largest values at each block position of a shard, or None if it was not scanned.

  Args:
    job: the job.
    task: the shard's task.
  """
  outcome = _outcome(job, task, ".range.json")
  return (outcome["low"], outcome["high"]) if outcome else None


def written(job: Job, task: Task, *, check: bool = False) -> Shard | None:
  """Returns the facts of a shard that is written, or None.

  Args:
    job: the job.
    task: the shard's task.
    check: whether to hash the file: an earlier run wrote it, and anything may have happened since.
  """
  outcome = _outcome(job, task, ".json")
  if outcome is None:
    return None
  shard = Shard(**outcome)
  try:
    whole = (job.out / shard.file).stat().st_size == shard.bytes
    if whole and check:
      whole = directory.file_sha256(job.out / shard.file) == shard.sha256
      first = job.rows(task.split, task.index).start
      container = containers.of(job.manifest, job.out)
      whole = whole and not container.check(shard, task.split, first).faults
  except OSError:
    return None
  return shard if whole else None


def _outcome(job: Job, task: Task, suffix: str) -> dict[str, Any] | None:
  """Reads what a worker left in ``.unfinished``."""
  path = _path(job, task, suffix)
  if not path.exists():
    return None
  outcome = json.loads(path.read_bytes())
  # Under another id the bytes are others: two parts could begin at once on a disk where neither sees the other's plan.
  return outcome if outcome.pop("id", None) == job.manifest.id else None


def _path(job: Job, task: Task, suffix: str) -> Path:
  return job.out / UNFINISHED / (job.shard_file(task.split, task.index) + suffix)
