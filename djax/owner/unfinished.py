"""A directory that is being written: its place, its lock, and the plan that calls and parts must share."""

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import djax
from djax.disguised import directory, quantise
from djax.disguised import manifest as manifest_lib
from djax.disguised.manifest import UNFINISHED, Manifest
from djax.errors import DataError, KeyMismatchError, UnsafeError
from djax.io import files, foreign, form, locks
from djax.keys import Master
from djax.owner import restore
from djax.owner.plan import Hashed, Job, Request

__all__ = ["already_whole", "begun_id", "check_place", "claim", "hashed", "hold", "job_of"]

_PLAN = "plan.json"


def begun_id(folder: Path) -> str | None:
  """Returns the id of what an earlier call left in the directory, unfinished or whole.

  Args:
    folder: the directory.
  """
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


def hashed(folder: Path) -> Hashed | None:
  """Returns the hash of the source that the plan of a directory holds, if it was begun.

  Args:
    folder: the directory.
  """
  match _plan_of(folder):
    case {"look": str(look), "asked": {"source": {"hmac": str(found)}}}:
      return Hashed(look, found)
  return None


def job_of(folder: Path, request: Request, snapshots: Mapping[str, str]) -> Job:
  """Returns the job that the plan of a directory describes, for a worker that sees the directory and not who planned.

  Args:
    folder: the directory; its work has begun.
    request: what was asked, its paths as this machine has them.
    snapshots: as of ``Job``.

  Raises:
    DataError: if there is no plan, or that of another data set.
  """
  content = _plan_of(folder)
  if content is None or content["asked"].get("id") != request.dataset_id:
    there = "none" if content is None else f"that of {content['asked'].get('id')}"
    raise DataError(
      f"{folder} must hold the plan of the data set {request.dataset_id}, got {there}. "
      "It must be one directory, under one path, on all machines."
    )
  asked, starts = content["asked"], content["starts"]
  try:
    splits = {
      name: {"records": count, "views": request.views if name == "train" else 1, "shards": []}
      for name, count in asked["splits"].items()
    }
    bounds = quantise.bounds(asked["spec"], asked["dtype"], None)
    later = {"error": dataclasses.asdict(bounds), "quantiser": None, "files": {}}
    facts = {**asked, **later, "djax": djax.__version__, "splits": splits}
    manifest = manifest_lib.planned(facts)
    starts_of = {name: tuple(starts[name]) for name in splits}
  except (KeyError, TypeError, ValueError) as error:
    raise DataError(
      f"{folder / UNFINISHED / _PLAN} must be a plan of this djax, is not ({error}). Give another --out."
    ) from None
  return Job(request, manifest, folder, starts_of, snapshots)


def check_place(folder: Path, roots: set[Path]) -> None:
  """Refuses to write among originals or over anything.

  Args:
    folder: the directory.
    roots: files and folders that hold originals.

  Raises:
    UnsafeError: if it does.
  """
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


def already_whole(folder: Path, manifest: Manifest, master: Master) -> Manifest | None:
  """Returns the manifest if the directory is whole and the same.

  Args:
    folder: the directory.
    manifest: of what is asked.
    master: the owner's key.

  Raises:
    DataError: if it is damaged.
    UnsafeError: if it is another one.
  """
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


def claim(job: Job, look: str) -> str:
  """Leaves the plan in the directory, unless another part was first; returns the id of the plan that is there.

  Args:
    job: what is to be done.
    look: as of ``Plan``.
  """
  locks.require_locks(job.out)
  (job.out / UNFINISHED).mkdir(parents=True, exist_ok=True)
  return str(_first_plan(job.out, _content(job, look), shared=True)["asked"].get("id", ""))


def _content(job: Job, look: str) -> dict[str, Any]:
  """Returns what a plan's file holds."""
  content = {"asked": _asked(job.manifest), "starts": dict(job.starts_of), "look": look}
  return json.loads(json.dumps(content))


@contextlib.contextmanager
def hold(job: Job, look: str, *, shared: bool = False) -> Iterator[None]:
  """Holds the directory's lock and its plan while it is written; leaves both if the work stops.

  Args:
    job: what is to be done.
    look: as of ``Plan``.
    shared: whether others may write parts meanwhile; then lock and plan stay at the end as well.

  Raises:
    UnsafeError: if another process works there, or the directory was begun with other parameters.
    KeyMismatchError: if it was begun with another key.
    DataError: if it was begun with another source.
  """
  folder = job.out
  locks.require_locks(folder)
  place = folder / UNFINISHED
  place.mkdir(parents=True, exist_ok=True)
  busy = f"{folder} is being written by another process. Wait for it, or stop it."
  with locks.working_lock(place / "lock", busy=busy, shared=shared):
    if (folder / manifest_lib.FILE).exists():  # between our look and our lock
      shutil.rmtree(place, ignore_errors=shared)  # late parts may do so side by side
      raise UnsafeError(
        f"{folder} was finished by another process meanwhile. Re-run the command to check it."
      )
    new = _content(job, look)
    _check_plan(folder, new, _first_plan(folder, new, shared=shared))
    if not shared:
      for entry in place.iterdir():
        if entry.suffix[1:].isdigit() or entry.suffix == ".tmp":
          entry.unlink(missing_ok=True)  # what a killed process was writing
    yield
    if not shared:
      shutil.rmtree(place)


def _first_plan(folder: Path, new: dict[str, Any], *, shared: bool) -> dict[str, Any]:
  """Returns the plan of a directory, which is this one if no other process was before us."""
  if (begun := _plan_of(folder)) is not None:
    return begun
  place = folder / UNFINISHED
  if not shared:
    manifest_lib.replace(place / _PLAN, json.dumps(new).encode())
    return new
  draft = place / f"{_PLAN}.{secrets.randbelow(10**18)}"
  manifest_lib.replace(draft, json.dumps(new).encode())
  try:
    # Unlike a rename, a link never takes the place of a plan that another part left in this moment.
    with contextlib.suppress(FileExistsError):
      os.link(draft, place / _PLAN)
  except OSError:  # a disk without links
    os.replace(draft, place / _PLAN)
  draft.unlink(missing_ok=True)
  files.sync_folder(place)
  begun = _plan_of(folder)
  assert begun is not None
  return begun


def _check_plan(folder: Path, new: dict[str, Any], old: dict[str, Any]) -> None:
  """Refuses to go on with the work of another call."""
  asked, before = new["asked"], old["asked"]
  if (asked, new["starts"]) == (before, old["starts"]):
    return
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
