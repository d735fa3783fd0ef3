"""Writes a disguised data set: has its shards written, and finishes it with manifest and data card.

Everything happens on the owner's machine. A run that was killed goes on where it stopped, and what comes out has the
same bytes. The directory is specified in docs/format.md.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from djax import keys
from djax.disguised import containers, datacard, quantise
from djax.disguised import manifest as manifest_lib
from djax.disguised.manifest import Manifest, Shard
from djax.disguised.quantise import Quantiser
from djax.errors import DataError, DjaxError
from djax.io import files
from djax.keys import Master
from djax.owner import plan, pool, restore, shards, unfinished
from djax.owner.ledger import Ledger
from djax.owner.plan import Job, Request
from djax.owner.shards import Share, Task
from djax.sources.inventory import Inventory

__all__ = ["Engine", "Part", "disguise", "disguise_part", "finish"]

# Does the tasks of a job in place of worker processes of this machine, and calls the last with the number of records
# that were done since. It is given no secret: ``cluster.connected``.
Engine = Callable[[Job, Sequence[Task], Callable[[int], None]], None]

_BYTES_OF_A_WORKER = 64 << 20
_SHARD_OVERHEAD = 128 << 10  # what ArrayRecord takes for a file at least


class Part(NamedTuple):
  """What a part of the work has done.

  Attributes:
    shards: of this part.
    of: shards of the whole directory.
    written: whether they are written. False where only their values' range was found, since that of others is missing:
      a data set is quantised by the range of all.
  """

  shards: int
  of: int
  written: bool


def disguise(
  request: Request,
  out: str | os.PathLike,
  master: Master,
  *,
  ledger: Ledger | None = None,
  workers: int = 0,
  engine: Engine | None = None,
  parts_alone: bool = False,
  say: Callable[[str], None] = lambda line: None,
  look: Callable[[Inventory, int], None] = lambda found, size: None,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
  """Writes a disguised data set; goes on where an earlier call was stopped.

  Args:
    request: what is asked.
    out: the directory; new, empty, or left unfinished by a call with the same request and key.
    master: the owner's key.
    ledger: the owner's list of data sets, in which this one is entered; None for none.
    workers: processes; 0: as many as the size of the work and the machine call for.
    engine: what does the work instead of these processes, such as ``cluster.connected`` yields it; None for them.
    parts_alone: whether to refuse if ``disguise_part`` has not written every shard, rather than write what is missing.
    say: called, before the work, with each line that the ledger has on the same source, and with one if images are
      padded.
    look: called, before the work, with what is in the source, and about how many bytes will be written.
    progress: called with how many records are done, and of how many.

  Returns:
    The manifest of the whole directory.

  Raises:
    ConfigError: for parameters that cannot work.
    DataError: if the source is damaged, or not the one of the call that this one would go on with; or if the directory
      is whole already, but damaged or tampered with; or if a shard is missing, with ``parts_alone``.
    KeyMismatchError: if the directory was begun with another key.
    UnsafeError: if the directory holds anything else, or lies in the source, or the id was given to another data set.
    DjaxError: if the disk has too little room, or the ledger cannot be written.
  """
  pool.refuse_inside_import()
  folder = Path(out).expanduser()
  begun = unfinished.begun_id(folder)
  if parts_alone and begun is None:
    raise DataError(
      f"{folder} must hold the parts of a disguise, nothing was begun there. Run every --part first."
    )
  planned = plan.make(_identified(request, begun), folder, master)
  job, manifest = planned.job, planned.job.manifest
  unfinished.check_place(folder, planned.roots)
  whole = unfinished.already_whole(folder, manifest, master)
  entry = None
  if ledger is not None:
    assert planned.hashes is not None
    entry = ledger.planned(manifest, planned.hashes, master)
    if begun is None or parts_alone:  # parts did not ask it
      for line in ledger.warnings(entry):
        say(line)
  _say_padding(manifest, say)
  look(planned.inventory, _size(manifest, _records(manifest)))
  if whole is None:
    with files.named(folder), unfinished.hold(job, planned.look):
      whole = _work(job, master, workers, progress, parts_alone, engine)
  if ledger is not None and entry is not None:
    ledger.enter(entry, whole)
  return whole


def disguise_part(
  request: Request,
  out: str | os.PathLike,
  master: Master,
  share: Share,
  *,
  workers: int = 0,
  say: Callable[[str], None] = lambda line: None,
  look: Callable[[Inventory, int], None] = lambda found, size: None,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Part:
  """Writes a part of the shards of a disguised data set, perhaps beside processes that write other parts.

  The first to come plans the work and leaves the plan in the directory; all others check that theirs is the same. What
  is written already is kept, so parts may run in any order, twice, or be cut otherwise. ``disguise`` ends the work.

  Args:
    request: what is asked, of all parts the same.
    out: the directory, which all parts write to.
    master: the owner's key.
    share: the part.
    workers: as of ``disguise``.
    say: as of ``disguise``; the ledger is asked at the end.
    look: as of ``disguise``.
    progress: as of ``disguise``, of this part.

  Raises:
    DjaxError: as ``disguise`` raises.
  """
  pool.refuse_inside_import()
  folder = Path(out).expanduser()
  begun = unfinished.begun_id(folder)
  planned = plan.make(_identified(request, begun), folder, master, hashed=unfinished.hashed(folder))
  unfinished.check_place(folder, planned.roots)
  if begun is None and not request.dataset_id:
    with files.named(folder):
      first = unfinished.claim(planned.job, planned.look)
    if first != planned.job.manifest.id:  # another part began meanwhile, under an id of its own
      again = dataclasses.replace(request, dataset_id=first)
      planned = plan.make(again, folder, master, hashed=unfinished.hashed(folder))
  job, manifest = planned.job, planned.job.manifest
  every = len(shards.tasks(job))
  mine = len(share.of(shards.tasks(job)))
  if unfinished.already_whole(folder, manifest, master):
    return Part(mine, every, written=True)
  _say_padding(manifest, say)
  look(planned.inventory, _size(manifest, _records(manifest)))
  with files.named(folder), unfinished.hold(job, planned.look, shared=True):
    return Part(mine, every, written=_work_part(job, master, workers, progress, share))


def _identified(request: Request, begun: str | None) -> Request:
  """Fills in the id: that of an earlier call, else a new one."""
  return dataclasses.replace(request, dataset_id=request.dataset_id or begun or keys.new_id())


def _say_padding(manifest: Manifest, say: Callable[[str], None]) -> None:
  """Says if images are padded."""
  if manifest.disguised_shape != (shape := tuple(manifest.spec["image_shape"])):
    (height, width, _), (rows, columns, _) = shape, manifest.disguised_shape
    block = manifest.spec["block_size"]
    say(
      f"images are padded from {height}x{width} to {rows}x{columns}, as blocks of {block}x{block} do not divide them"
    )


class _Bench:
  """Does tasks of a job and counts the records.

  Args:
    job: the job.
    master: the owner's key.
    workers: processes; 0: by the size of the work.
    total: records that will be done.
    progress: called with how many are.
    engine: as of ``disguise``.
  """

  def __init__(
    self,
    job: Job,
    master: Master,
    workers: int,
    total: int,
    progress: Callable[[int, int], None],
    engine: Engine | None = None,
  ):
    self._job, self._total, self._progress, self._done = job, total, progress, 0
    self._engine = engine
    self._secret = master.data_set(job.manifest.id, job.manifest.spec)
    self._workers = workers or _workers(job.manifest)

  def scan(self, tasks: Sequence[Task]) -> None:
    """Finds the range of values of shards that were not scanned yet."""
    self._run(tasks, {task for task in tasks if shards.scanned(self._job, task) is not None})

  def written(self, tasks: Sequence[Task]) -> dict[Task, Shard]:
    """Returns the facts of those shards that are there and whole."""
    return {task: shard for task in tasks if (shard := shards.written(self._job, task, check=True))}

  def write(self, tasks: Sequence[Task], whole: Collection[Task]) -> None:
    """Writes shards, but for those that are whole."""
    missing = [task for task in tasks if task not in whole]
    needed = _size(self._job.manifest, _records_of(self._job, missing))
    needed += len(missing) * _SHARD_OVERHEAD
    files.check_room(self._job.out, needed, hint=", or store float16 or uint8")
    self._run(tasks, whole)

  def _run(self, tasks: Sequence[Task], done: Collection[Task]) -> None:
    for task in done:
      self._advance(_records_of(self._job, [task]))
    waiting = [task for task in tasks if task not in done]
    if waiting and self._engine is not None:
      self._engine(self._job, waiting, self._advance)
    elif waiting:
      pool.run(self._job, self._secret, waiting, workers=self._workers, advance=self._advance)

  def _advance(self, count: int) -> None:
    self._done += count
    self._progress(self._done, self._total)


def _work(
  job: Job,
  master: Master,
  workers: int,
  progress: Callable[[int, int], None],
  parts_alone: bool,
  engine: Engine | None,
) -> Manifest:
  """Has every shard scanned, if need be, and written; then finishes the directory."""
  manifest, scans = job.manifest, _scans(job.manifest)
  total = _records(manifest) * (2 if scans else 1)
  bench = _Bench(job, master, workers, total, progress, engine)
  quantiser = None
  if scans:
    if not parts_alone:
      bench.scan(shards.tasks(job, scan=True))
    quantiser = _quantiser(job)
  tasks = shards.tasks(job, quantiser)
  whole = bench.written(tasks)
  if parts_alone:
    _refuse_missing(job, [task for task in tasks if task not in whole])
  bench.write(tasks, whole)
  by_split: dict[str, list[Shard]] = {name: [] for name in job.starts_of}
  for task in tasks:
    # What other machines wrote is read once more, as --finish does.
    shard = whole.get(task) or shards.written(job, task, check=engine is not None)
    if shard is None:
      raise DjaxError(
        f"{job.out} lost {job.shard_file(task.split, task.index)} while it was written. Re-run the command to resume."
      )
    by_split[task.split].append(shard)
  manifest = dataclasses.replace(
    manifest,
    quantiser=quantiser,
    error=quantise.bounds(manifest.spec, manifest.dtype, quantiser),
    splits={
      name: dataclasses.replace(split, shards=tuple(by_split[name]))
      for name, split in manifest.splits.items()
    },
  )
  return finish(job.out, manifest, master)


def _work_part(
  job: Job, master: Master, workers: int, progress: Callable[[int, int], None], share: Share
) -> bool:
  """Does what ``_work`` does with a part of the shards, and returns whether they are written, not scanned alone."""
  scans = _scans(job.manifest)
  count = _records_of(job, share.of(shards.tasks(job)))
  bench = _Bench(job, master, workers, count * (2 if scans else 1), progress)
  quantiser = None
  if scans:
    bench.scan(share.of(shards.tasks(job, scan=True)))
    quantiser = _quantiser(job)
    if quantiser is None:
      return False
  tasks = share.of(shards.tasks(job, quantiser))
  bench.write(tasks, bench.written(tasks))
  return True


def _refuse_missing(job: Job, missing: Sequence[Task]) -> None:
  """Refuses if a shard is not written, or not as it was left, and names it."""
  if missing:
    names = [job.shard_file(task.split, task.index) for task in missing]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    raise DataError(
      f"every shard must be written and whole before --finish, {job.out} lacks {', '.join(names[:5])}{more}. "
      "Run the parts again: they write what is missing and keep the rest."
    )


def _scans(manifest: Manifest) -> bool:
  """Returns whether the range of values must be known before anything is stored."""
  return manifest.has_floats and manifest.dtype == "uint8"


def _quantiser(job: Job) -> Quantiser | None:
  """Returns the quantiser that the ranges of all shards give; None if one was not scanned yet."""
  ranges = [shards.scanned(job, task) for task in shards.tasks(job, scan=True)]
  if None in ranges:
    return None
  low, high = np.array(ranges, np.float32).swapaxes(0, 1)
  return quantise.quantiser_for(low.min(0), high.max(0))


def finish(folder: Path, manifest: Manifest, master: Master) -> Manifest:
  """Writes what other readers need, the data card and, last, the manifest.

  Args:
    folder: the directory, with its shards and ``.unfinished``.
    manifest: all but the hashes of the files written here.
    master: the owner's key.
  """
  texts = containers.of(manifest, folder).texts()
  texts["README.md"] = datacard.text(manifest).encode()
  for name, data in texts.items():
    manifest_lib.replace(folder / name, data)
  hashes = {name: hashlib.sha256(data).hexdigest() for name, data in texts.items()}
  manifest = dataclasses.replace(manifest, files=hashes)
  manifest_lib.write(folder, manifest, mac_key=restore.mac_key(manifest, master))
  return manifest_lib.read(folder)


def _size(manifest: Manifest, records: int) -> int:
  """Returns about how many bytes some records take."""
  return records * containers.of(manifest, Path()).record_bytes


def _records(manifest: Manifest) -> int:
  """Returns how many records a data set has."""
  return sum(split.records for split in manifest.splits.values())


def _records_of(job: Job, tasks: Iterable[Task]) -> int:
  """Returns how many records some shards have."""
  return sum(len(job.rows(task.split, task.index)) for task in tasks)


def _workers(manifest: Manifest) -> int:
  """Returns a process for each 64 MiB to write, at most one a core."""
  return min(os.cpu_count() or 1, 1 + _size(manifest, _records(manifest)) // _BYTES_OF_A_WORKER)
