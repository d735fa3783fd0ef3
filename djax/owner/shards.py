"""One shard of a disguised data set: read originals, disguise, write records. Runs in worker processes.

A record's bytes depend on the key, the job's public facts, its original and its place alone, so shards can be written
in any order, by any process, twice.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from djax import datasets, manifest, records, sources
from djax.errors import DataError
from djax.keys import Master
from djax.manifest import UNFINISHED, Shard
from djax.owner import disguiser
from djax.owner.disguiser import Disguiser
from djax.owner.plan import Job
from djax.quantise import Quantiser

__all__ = ["Task", "Worker", "scanned", "tasks", "written"]

_CHUNK_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """One shard's work: to find the range of its values (``scan``), or to write it."""

  split: str
  index: int
  scan: bool
  quantiser: Quantiser | None


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
  """Does tasks of a job. Holds the key.

  Args:
    job: what to do.
    master: the owner's key.
  """

  def __init__(self, job: Job, master: Master):
    self._job = job
    self._disguiser = Disguiser(job.spec, master)
    self._label_of = np.arange(job.classes, dtype=np.int32)
    if not job.request.plain_labels:
      self._label_of = disguiser.label_permutation(master, job.classes)
    self._sources: dict[str, Any] = {}

  def run(self, task: Task, advance: Callable[[int], None]) -> None:
    """Does a task and leaves its outcome in ``.unfinished``: the facts of a shard, or the range of its values.

    Args:
      task: what to do.
      advance: told the number of originals done, now and then.

    Raises:
      DjaxError: if the source is damaged or the disk full.
    """
    (self._scan if task.scan else self._write)(task, advance)

  def _scan(self, task: Task, advance: Callable[[int], None]) -> None:
    b = self._job.spec["block_size"]
    low, high = [], []
    for images, _ in self._chunks(task, advance):
      _, height, width, channels = images.shape
      grid = images.reshape(-1, height // b, b, width // b, b, channels)
      low.append(grid.min((0, 2, 4, 5)).ravel())
      high.append(grid.max((0, 2, 4, 5)).ravel())
    found = {"low": np.min(low, 0).tolist(), "high": np.max(high, 0).tolist()}
    manifest.replace(_path(self._job, task, ".range.json"), json.dumps(found).encode())

  def _write(self, task: Task, advance: Callable[[int], None]) -> None:
    job = self._job
    shape = self._disguiser.scheme.spec.disguised_shape
    temporary = _path(job, task, f".{os.getpid()}")
    count = 0
    with records.writer(temporary, records.features(shape, job.dtype, job.classes)) as write:
      for images, labels in self._chunks(task, advance):
        b = job.spec["block_size"]
        write(disguiser.stored(images, job.dtype, task.quantiser, block_size=b), labels)
        count += len(images)
    name = job.shard_file(task.split, task.index)
    facts = Shard(name, count, temporary.stat().st_size, datasets.file_sha256(temporary))
    manifest.replace(_path(job, task, ".json"), json.dumps(dataclasses.asdict(facts)).encode())
    os.replace(temporary, job.out / name)

  def _chunks(self, task: Task, advance: Callable[[int], None]) -> Iterator[tuple[Any, Any]]:
    """Yields a shard's disguised images and labels in pieces of a few MB."""
    first, end = self._job.starts_of[task.split][task.index : task.index + 2]
    pixels = int(np.prod(self._disguiser.scheme.spec.disguised_shape))
    step = max(1, _CHUNK_BYTES // (4 * pixels * self._job.views_of(task.split)))
    for start in range(first, end, step):
      stop = min(start + step, end)
      yield self._disguised(task.split, start, stop)
      advance(stop - start)

  def _disguised(self, split: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns every view of the originals ``start .. stop - 1``, side by side, and their label ids."""
    job, request = self._job, self._job.request
    if split not in self._sources:
      self._sources[split] = sources.open(
        request.source,
        request.splits[split],
        data_dir=request.data_dir,
        image_size=request.image_size,
      )
    originals = self._sources[split].read(start, stop)
    if originals.labels.max() >= job.classes:
      raise DataError(
        f"labels must lie below the {job.classes} classes, got {originals.labels.max()} "
        f"among the records {start}..{stop - 1} of {split}."
      )
    every = [
      self._disguiser.images(
        originals.images,
        split,
        range(start, stop),
        view=view,
        crop=request.crop,
        flip=request.flip,
      )
      for view in range(job.views_of(split))
    ]
    images = np.stack(every, axis=1).reshape(-1, *every[0].shape[1:])
    return images, np.repeat(self._label_of[originals.labels], len(every))


def scanned(job: Job, task: Task) -> tuple[list[float], list[float]] | None:
  """Returns the smallest and largest values at each block position of a shard, or None if it was not scanned.

  Args:
    job: the job.
    task: the shard's task.
  """
  found = _outcome(job, task, ".range.json")
  return (found["low"], found["high"]) if found else None


def written(job: Job, task: Task, *, check: bool = False) -> Shard | None:
  """Returns the facts of a shard that is written, or None.

  Args:
    job: the job.
    task: the shard's task.
    check: whether to hash the file: an earlier run wrote it, and anything may have happened since.
  """
  found = _outcome(job, task, ".json")
  if found is None:
    return None
  facts = Shard(**found)
  try:
    whole = (job.out / facts.file).stat().st_size == facts.bytes
    if whole and check:
      whole = datasets.file_sha256(job.out / facts.file) == facts.sha256
  except OSError:
    return None
  return facts if whole else None


def _outcome(job: Job, task: Task, suffix: str) -> dict[str, Any] | None:
  """Reads what a worker left in ``.unfinished``."""
  path = _path(job, task, suffix)
  return json.loads(path.read_bytes()) if path.exists() else None


def _path(job: Job, task: Task, suffix: str) -> Path:
  return job.out / UNFINISHED / (job.shard_file(task.split, task.index) + suffix)
