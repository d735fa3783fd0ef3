"""The run directory: config, environment, public facts of the disguise, metrics, result. Never a key."""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import stat
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

import djax
from configs import base
from djax.errors import ConfigError, DataError, DjaxError, KeyMismatchError, UnsafeError
from djax.io import files, foreign, form, locks
from djax.io.foreign import Content
from djax.models import checksums
from train import config as config_lib

__all__ = ["Metrics", "extend", "locked", "note_environment", "open_run", "write_json"]

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "grain")
# Where data and parameters lie and are held may change; disguise.json says which data they are.
_FREE = (
  "data.disguised_dir",
  "data.memory_gb",
  "disguise.acknowledge",
  "train.shard_parameters",
)
_EPOCHS = "train.epochs"
_COPY_BYTES = 8 << 20
_GIT_SECONDS = 10
_SHOWN = 8  # fields that differ
_LOCK = ".lock"
_COPIES = ("MANIFEST.json", "MANIFEST.mac")
_FOLDERS = (checksums.CHECKPOINTS, checksums.FOLDER, "events")
_TEXT = re.compile(r"[ -~]{1,200}")


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
  """Makes a run directory if need be, and keeps other trainers out of it.

  The lock goes with the process that holds it; its file stays.

  Raises:
    UnsafeError: if another process trains there, or it holds files that are not of a run.
    DjaxError: if the directory cannot be written, or this platform has no locks.
  """
  locks.require_locks(workdir)
  with contextlib.ExitStack() as stack:
    with _writable(workdir):
      workdir.mkdir(parents=True, exist_ok=True)
      _check_ours(workdir)
      busy = f"another process trains in {workdir}. Wait for it, or give another --workdir."
      stack.enter_context(locks.working_lock(workdir / _LOCK, busy=busy))
    yield


def open_run(
  workdir: Path,
  config: ConfigDict,
  disguise: dict[str, Any],
  *,
  steps_per_epoch: int,
  copies: Sequence[Path] = (),
) -> checksums.Record | None:
  """Makes a run directory, or checks that the one there belongs to the same run; then it changes nothing.

  A finished run may go on with more epochs: see ``extend``.

  Args:
    workdir: the directory.
    config: the run's config.
    disguise: public facts: the scheme's spec, the key's fingerprint, the hash of the source and more.
    steps_per_epoch: of the run.
    copies: files that a new directory gets copies of.

  Returns:
    The record of its newest finished checkpoint, or None where there is none.

  Raises:
    ConfigError: if the directory holds a run of another config or source.
    KeyMismatchError: if it holds a run with another key.
    DataError: if the run there is damaged.
    DjaxError: if the directory cannot be written.
  """
  with _writable(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    record = checksums.newest(workdir)
    if record is not None or os.path.lexists(workdir / checksums.CONFIG):
      checksums.settle_config(workdir, record)
      _check_same(workdir, config, disguise, record, steps_per_epoch)
    for name in _FOLDERS:
      _own_folder(workdir / name)
    if os.path.lexists(workdir / checksums.CONFIG):
      return record
    for path in copies:
      data = foreign.read(path.parent, path.name, limit=_COPY_BYTES)
      files.replace(workdir / path.name, data)
    write_json(workdir / checksums.DISGUISE, disguise)
    write_json(workdir / checksums.CONFIG, config.to_dict())
  return record


def extend(workdir: Path, config: ConfigDict, record: checksums.Record) -> int:
  """Notes the config of a finished run that goes on with more epochs.

  Args:
    workdir: the directory, as ``open_run`` left it.
    config: the run's config.
    record: of its newest checkpoint.

  Returns:
    The epochs it had before; those of ``config`` where nothing changed.

  Raises:
    DjaxError: if the directory cannot be written.
  """
  before = config_lib.from_json(checksums.checked(workdir, record, checksums.CONFIG))
  if before.train.epochs != config.train.epochs:
    with _writable(workdir):
      checksums.exchange_config(workdir, record, _json(config.to_dict()))
  return before.train.epochs


def note_environment(workdir: Path) -> None:
  """Writes ``environment.json``: versions, devices and the revision of the code.

  Raises:
    DjaxError: if the directory cannot be written.
  """
  with _writable(workdir):
    write_json(workdir / "environment.json", _environment())


def write_json(path: Path, value: Any) -> None:
  """Writes JSON atomically; a link of that name is not followed.

  Raises:
    OSError: if it cannot be written; the old file is still there.
  """
  files.replace(path, _json(value))


def _json(value: Any) -> bytes:
  return (json.dumps(value, indent=2) + "\n").encode()


class Metrics:
  """Appends metrics to ``metrics.jsonl`` and to a TensorBoard event file.

  Args:
    workdir: the run directory, with a folder ``events``.
    step: steps already done.
    recorded: what ``metrics.jsonl`` held by then; what an interrupted run added is dropped.

  Raises:
    DataError: if ``metrics.jsonl`` begins with anything else.
  """

  def __init__(self, workdir: Path, *, step: int, recorded: Content | None = None):
    self._path = workdir / checksums.METRICS
    files.replace(self._path, b"" if recorded is None else checksums.beginning(workdir, recorded))
    folder = workdir / "events"
    stamp = f"{time.time():.0f}.{len(list(folder.iterdir()))}"
    self._events = _new(folder / f"events.out.tfevents.{stamp}")
    self._event(file_version="brain.Event:2")
    self._event(step=step + 1, session_log={"status": "START"})

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds one line."""
    flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(self._path, flags), "a") as file:
      file.write(json.dumps({"step": step, **values}) + "\n")
      file.flush()
      os.fsync(file.fileno())
    tags = [{"tag": name, "simple_value": value} for name, value in values.items()]
    self._event(step=step, summary={"value": tags})

  def close(self) -> None:
    """Closes the event file."""
    self._events.close()

  def _event(self, **fields: Any) -> None:
    self._events.write(_framed(Event(wall_time=time.time(), **fields).SerializeToString()))
    self._events.flush()


@contextlib.contextmanager
def _writable(workdir: Path) -> Iterator[None]:
  """Turns an error of writing into one line."""
  try:
    yield
  except OSError as error:
    raise DjaxError(
      f"the run directory must be writable, got {error.strerror} for {workdir}. Give another --workdir."
    ) from error


def _check_ours(workdir: Path) -> None:
  """Refuses a directory with files of others: a new run would write over some, and Orbax clears its folder."""
  if os.path.lexists(workdir / checksums.CONFIG) or _holds_files(workdir / checksums.FOLDER):
    return
  # What a run leaves that ended before its config was written.
  started = (_LOCK, checksums.DISGUISE, *_COPIES)
  left = {*started, *(f".{name}.tmp" for name in (checksums.CONFIG, *started))}
  for entry in sorted(workdir.iterdir()):
    if entry.name in left or (entry.name in _FOLDERS and not _holds_files(entry)):
      continue
    raise UnsafeError(
      f"the run directory must be new or hold a run, {workdir} holds {entry.name}. Give another --workdir."
    )


def _holds_files(folder: Path) -> bool:
  is_folder = folder.is_dir() and not folder.is_symlink()
  return any(folder.iterdir()) if is_folder else os.path.lexists(folder)


def _own_folder(path: Path) -> None:
  """Makes a folder; what is a link is not written through."""
  with contextlib.suppress(FileExistsError):
    path.mkdir()
  if not stat.S_ISDIR(path.lstat().st_mode):
    raise DataError(f"{path} must be a folder, it is not. Give another --workdir.")


def _new(path: Path) -> Any:
  """Makes a file for writing; what stands under its name is neither followed nor opened."""
  flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
  return os.fdopen(os.open(path, flags, 0o666), "wb")


def _framed(data: bytes) -> bytes:
  """Frames a record of an event file. tensorboardX would open the file by its name, a link of that name included."""
  length = struct.pack("<Q", len(data))
  sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
  return b"".join((length, next(sums), data, next(sums)))


def _check_same(
  workdir: Path,
  config: ConfigDict,
  disguise: dict[str, Any],
  record: checksums.Record | None,
  steps_per_epoch: int,
) -> None:
  """Refuses to go on with a run of another config, source or key, or a damaged one."""
  try:
    old_config = config_lib.from_json(_stored(workdir, checksums.CONFIG, record))
    old = foreign.parse_json(_stored(workdir, checksums.DISGUISE, record))
    form.check(old, {"key_fingerprint": (None, _TEXT)}, checksums.DISGUISE)
  except ValueError as error:
    raise DataError(
      f"{workdir} must hold a whole run to go on with, got a damaged config.json or disguise.json ({error}). "
      "Give another --workdir."
    ) from error
  now = dict(config_lib.leaves(config))
  # A field that came later was, in effect, at its usual value.
  before = {**dict(config_lib.leaves(base.get_config())), **dict(config_lib.leaves(old_config))}
  differ = [
    name
    for name in sorted(before.keys() | now.keys())
    if before.get(name) != now.get(name) and name not in _FREE
  ]
  if differ == [_EPOCHS] and now[_EPOCHS] > before[_EPOCHS]:
    if record is None or record.step != before[_EPOCHS] * steps_per_epoch:
      raise ConfigError(
        f"{workdir} holds a run of {before[_EPOCHS]} epochs that is not finished. Finish it with "
        f"--config.{_EPOCHS}={before[_EPOCHS]}; then it may go on to {now[_EPOCHS]}."
      )
    differ = []
  if differ:
    changed = [f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in differ]
    raise ConfigError(
      f"{workdir} holds a run of another config ({'; '.join(changed[:_SHOWN])}). Give another --workdir, or the old "
      "config."
    )
  if old["key_fingerprint"] != disguise["key_fingerprint"]:
    raise KeyMismatchError(
      f"{workdir} holds a run with the key {old['key_fingerprint']}, got {disguise['key_fingerprint']}. "
      "Go on with that key, or give another --workdir."
    )
  if old != disguise:
    source = config.data.disguised_dir or config.data.source
    raise ConfigError(
      f"{workdir} holds a run on other images than {source} has now. Give another --workdir."
    )


def _stored(workdir: Path, name: str, record: checksums.Record | None) -> bytes:
  """Reads a file of a run: as recorded, or as it is where no checkpoint is finished yet."""
  if record is None:
    return checksums.unchecked(workdir, name)
  return checksums.checked(workdir, record, name)


def _environment() -> dict[str, Any]:
  """Returns versions, devices and the revision of the code."""
  return {
    "python": platform.python_version(),
    "platform": platform.platform(),
    "cpus": os.cpu_count(),
    "devices": [device.device_kind for device in jax.devices()],
    "versions": {"djax": djax.__version__, **{name: _version(name) for name in _PACKAGES}},
    "revision": _revision(),
  }


def _version(package: str) -> str | None:
  """Returns the version of a package, or None if it is not installed."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _revision() -> str | None:
  """Returns the commit of djax's own checkout; None without one, without git, or inside another repository."""
  checkout = Path(djax.__file__).parents[1]
  lines = (_git(checkout, "rev-parse", "--show-toplevel", "HEAD") or "").splitlines()
  if len(lines) != 2 or Path(lines[0]).resolve() != checkout.resolve():
    return None
  # A copy that another repository ignores, such as one under its site-packages, is not what its commit holds.
  if _git(checkout, "ls-files", "--error-unmatch", "--", "djax/__init__.py") is None:
    return None
  return lines[1]


def _git(folder: Path, *words: str) -> str | None:
  """Returns what git prints about a folder, or None. The passphrase is none of git's business."""
  # In a hook, GIT_DIR names the repository that git works on, whatever the folder.
  hidden = ("DJAX_PASSPHRASE", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")
  environment = {name: v for name, v in os.environ.items() if name not in hidden}
  try:
    done = subprocess.run(
      ["git", *words],
      cwd=folder,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
      timeout=_GIT_SECONDS,
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout if done.returncode == 0 else None
