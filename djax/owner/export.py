"""Writes a disguised data set: has its shards written, and finishes it with manifest and data card.

Everything happens on the owner's machine. A run that was killed goes on where it stopped, and what comes out has the
same bytes. The directory is specified in docs/format.md.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from djax import keys
from djax.disguised import containers, datacard, directory, quantise
from djax.disguised import manifest as manifest_lib
from djax.disguised.manifest import UNFINISHED, Manifest, Shard
from djax.errors import DataError, DjaxError, KeyMismatchError, UnsafeError
from djax.io import files, foreign, form, locks
from djax.keys import Master
from djax.owner import plan, pool, restore, shards
from djax.owner.ledger import Ledger
from djax.owner.plan import Job, Request
from djax.owner.shards import Task
from djax.sources.inventory import Inventory

__all__ = ["disguise", "finish"]

_BYTES_OF_A_WORKER = 64 << 20
_SHARD_OVERHEAD = 128 << 10  # what ArrayRecord takes for a file at least
_PLAN = "plan.json"


def disguise(
  request: Request,
  out: str | os.PathLike,
  master: Master,
  *,
  ledger: Ledger | None = None,
  workers: int = 0,
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
    say: called, before the work, with each line that the ledger has on the same source, and with one if images are
      padded.
    look: called, before the work, with what is in the source, and about how many bytes will be written.
    progress: called with how many records are done, and of how many.

  Returns:
    The manifest of the whole directory.

  Raises:
    ConfigError: for parameters that cannot work.
    DataError: if the source is damaged, or not the one of the call that this one would go on with; or if the directory
      is whole already, but damaged or tampered with.
    KeyMismatchError: if the directory was begun with another key.
    UnsafeError: if the directory holds anything else, or lies in the source, or the id was given to another data set.
    DjaxError: if the disk has too little room, or the ledger cannot be written.
  """
  pool.refuse_inside_import()
  folder = Path(out).expanduser()
  begun = _begun_id(folder)
  request = dataclasses.replace(request, dataset_id=request.dataset_id or begun or keys.new_id())
  job, roots, hashes, found = plan.make(request, folder, master)
  manifest = job.manifest
  _check_place(folder, roots)
  whole = _already_whole(folder, manifest, master)
  entry = None
  if ledger is not None:
    entry = ledger.planned(manifest, hashes, master)
    if begun is None:
      for line in ledger.warnings(entry):
        say(line)
  if manifest.disguised_shape != (shape := tuple(manifest.spec["image_shape"])):
    (height, width, _), (rows, columns, _) = shape, manifest.disguised_shape
    block = manifest.spec["block_size"]
    say(
      f"images are padded from {height}x{width} to {rows}x{columns}, as blocks of {block}x{block} do not divide them"
    )
  look(found, _size(manifest, sum(split.records for split in manifest.splits.values())))
  if whole is None:
    with files.named(folder), _unfinished(job):
      whole = _work(job, master, workers, progress)
  if ledger is not None and entry is not None:
    ledger.enter(entry, whole)
  return whole


def _begun_id(folder: Path) -> str | None:
  """Returns the id of what an earlier call left in the directory, unfinished or whole."""
  if not folder.is_dir():
    return None
  if (folder / manifest_lib.FILE).exists():
    return manifest_lib.read(folder).id
  begun = _plan_of(folder)
  return None if begun is None else str(begun["asked"].get("id", ""))


def _plan_of(folder: Path) -> dict[str, Any] | None:
  """Reads the plan of an unfinished directory, if there is one."""
  try:
    content = foreign.parse_json(
      foreign.read(folder / UNFINISHED, _PLAN, limit=2 * manifest_lib.MOST_BYTES)
    )
    form.check(content, {"asked": {"key_fingerprint": str}, "starts": dict}, "plan")
    return content
  except foreign.MissingFileError:
    return None
  except ValueError as error:
    raise DataError(
      f"{folder / UNFINISHED / _PLAN} must be the plan of an unfinished run, is not ({error}). Give another --out."
    ) from None


def _check_place(folder: Path, roots: set[Path]) -> None:
  """Refuses to write among originals or over anything."""
  target = folder.resolve()
  for root in sorted(roots):
    if target == root or root in target.parents:
      raise UnsafeError(f"{folder} lies in the source {root}. Give an --out elsewhere.")
  if target.exists() and not target.is_dir():
    raise UnsafeError(f"{folder} exists and is no directory. Give another --out.")
  if target.is_dir() and not (target / UNFINISHED).is_dir():
    others = sorted(entry.name for entry in target.iterdir())
    if others and manifest_lib.FILE not in others:
      raise UnsafeError(f"{folder} is not empty (holds {others[0]}). Give a new --out.")


def _already_whole(folder: Path, manifest: Manifest, master: Master) -> Manifest | None:
  """Returns the manifest if the directory is whole and the same; refuses another one."""
  if not (folder / manifest_lib.FILE).exists():
    return None
  there = manifest_lib.read(folder)
  if _asked(there) != _asked(manifest):
    raise UnsafeError(
      f"{folder} holds a disguised data set already, made otherwise ({_difference(there, manifest)}). "
      "Nothing is overwritten: give another --out."
    )
  restore.authenticate(there, folder, master)
  directory.verify(folder, manifest=there, unfinished=True)
  shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
  return there


def _asked(manifest: Manifest) -> dict[str, Any]:
  """Returns what a call asks for: all of a manifest but what the work finds out, and the version that did it."""
  wanted = manifest.to_dict()
  for name in ("quantiser", "error", "files", "djax"):
    del wanted[name]
  wanted["splits"] = {name: split.records for name, split in manifest.splits.items()}
  return json.loads(json.dumps(wanted))


def _difference(there: Manifest, manifest: Manifest) -> str:
  """Names the facts in which two data sets differ."""
  old, new = _asked(there), _asked(manifest)
  names = [name for name in {**new, **old} if old.get(name) != new.get(name) and name != "sealed"]
  return ", ".join(names) or "sealed"


@contextlib.contextmanager
def _unfinished(job: Job) -> Iterator[None]:
  """Holds the directory's lock and its plan while it is written; leaves both if the work stops."""
  folder = job.out
  locks.require_locks(folder)
  place = folder / UNFINISHED
  place.mkdir(parents=True, exist_ok=True)
  busy = f"{folder} is being written by another process. Wait for it, or stop it."
  with locks.working_lock(place / "lock", busy=busy):
    if (folder / manifest_lib.FILE).exists():  # between our look and our lock
      shutil.rmtree(place)
      raise UnsafeError(
        f"{folder} was finished by another process meanwhile. Re-run the command to check it."
      )
    asked = json.loads(json.dumps({"asked": _asked(job.manifest), "starts": dict(job.starts_of)}))
    begun = _plan_of(folder)
    if begun is not None:
      _check_plan(folder, asked, begun)
    else:
      manifest_lib.replace(place / _PLAN, json.dumps(asked).encode())
    for entry in place.iterdir():
      if entry.suffix[1:].isdigit() or entry.suffix == ".tmp":
        entry.unlink(missing_ok=True)  # what a killed process was writing
    yield
    shutil.rmtree(place)


def _check_plan(folder: Path, new: dict[str, Any], old: dict[str, Any]) -> None:
  """Refuses to go on with the work of another call."""
  if new == old:
    return
  asked, before = new["asked"], old["asked"]
  if before.get("version") in (None, 1):
    raise UnsafeError(
      f"{folder} was begun by an older djax, whose records have another order. Finish it with that one, or give "
      "another --out."
    )
  if asked["key_fingerprint"] != before["key_fingerprint"]:
    raise KeyMismatchError(
      f"{folder} was begun with the key {before['key_fingerprint']}, got {asked['key_fingerprint']}. "
      "Give that key, or another --out."
    )
  changed = [name for name in asked if asked[name] != before.get(name)]
  if changed in (["source"], ["source", "splits"], ["splits"]):
    raise DataError(
      f"the source must be the one {folder} was begun with, but its files have changed. "
      "Bring the old ones back, or give another --out."
    )
  what = ", ".join(changed) or "originals_per_shard"
  raise UnsafeError(
    f"{folder} was begun with other parameters ({what}). Give the same ones, or another --out."
  )


def _work(job: Job, master: Master, workers: int, progress: Callable[[int, int], None]) -> Manifest:
  """Has every shard scanned, if need be, and written; then finishes the directory."""
  manifest = job.manifest
  secret = master.data_set(manifest.id, manifest.spec)
  count = sum(split.records for split in manifest.splits.values())
  scans = manifest.has_floats and manifest.dtype == "uint8"
  total, done = count * (2 if scans else 1), 0

  def advance(count: int) -> None:
    nonlocal done
    done += count
    progress(done, total)

  def run(tasks: list[Task], outcomes: dict[Task, Any]) -> None:
    """Does the tasks that have no outcome yet."""
    for task in outcomes:
      advance(len(job.rows(task.split, task.index)))
    if waiting := [task for task in tasks if task not in outcomes]:
      pool.run(job, secret, waiting, workers=workers or _workers(manifest), advance=advance)

  quantiser = None
  if scans:
    tasks = shards.tasks(job, scan=True)
    run(tasks, {task: True for task in tasks if shards.scanned(job, task) is not None})
    ranges = [shards.scanned(job, task) for task in tasks]
    low, high = np.array(ranges, np.float32).swapaxes(0, 1)
    quantiser = quantise.quantiser_for(low.min(0), high.max(0))
  tasks = shards.tasks(job, quantiser)
  whole = {task: shard for task in tasks if (shard := shards.written(job, task, check=True))}
  missing = [task for task in tasks if task not in whole]
  needed = _size(manifest, sum(len(job.rows(task.split, task.index)) for task in missing))
  needed += len(missing) * _SHARD_OVERHEAD
  files.check_room(job.out, needed, hint=", or store float16 or uint8")
  run(tasks, whole)
  by_split: dict[str, list[Shard]] = {name: [] for name in job.starts_of}
  for task in tasks:
    shard = whole.get(task) or shards.written(job, task)
    if shard is None:
      raise DjaxError(
        f"{job.out} lost {job.shard_file(task.split, task.index)} while it was written."
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


def _workers(manifest: Manifest) -> int:
  """Returns a process for each 64 MiB to write, at most one a core."""
  records = sum(split.records for split in manifest.splits.values())
  return min(os.cpu_count() or 1, 1 + _size(manifest, records) // _BYTES_OF_A_WORKER)
