"""Writing files of the owner: whole or not at all, readable by the owner alone where they hold originals, and durable.

What is written goes under a temporary name first. That name is always the same one for a target, is locked while
somebody writes, and is cleared by the next call: what a killed process left does not stay. A rename
gives the final name; file and folder are synced, so that it survives a power cut. Whatever else lies under a temporary
name, such as a link, a pipe or a file of another user, is neither written to nor taken away.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NoReturn

from djax.errors import DjaxError, UnsafeError
from djax.io import locks

__all__ = [
  "check_new",
  "check_room",
  "named",
  "new_file",
  "new_folder",
  "private",
  "replace",
  "sync_folder",
  "sync_tree",
  "temporary_of",
]

_PRIVATE_FILE, _PRIVATE_FOLDER = 0o600, 0o700
_NEW = os.O_CREAT | os.O_EXCL | locks.SAFE_OPEN
_SPARE_BYTES = 4 << 20
_TRIES = 100
_SYNCS = 8  # at a time


def check_new(target: Path) -> None:
  """Refuses a target that exists; a second, temporary name of it that a killed process left is taken away.

  Args:
    target: the file or folder to be written.

  Raises:
    UnsafeError: if it exists, also as a dangling link.
  """
  if os.path.lexists(target):
    _clear_second_name(target)
    raise UnsafeError(f"{target} exists and is not overwritten. Give another name.")


def check_room(target: Path, needed: int, *, hint: str = "") -> None:
  """Refuses to begin what the disk has no room for.

  Args:
    target: what is to be written; itself or its folder exists.
    needed: about how many bytes it takes.
    hint: what else helps, after "Make room and re-run the command".

  Raises:
    DjaxError: if less is free, or hardly more.
  """
  needed += _SPARE_BYTES
  free = shutil.disk_usage(target if target.is_dir() else target.parent).free
  if free < needed:
    raise DjaxError(
      f"{target} needs {needed / 1e6:.1f} MB free, got {free / 1e6:.1f} MB. "
      f"Make room and re-run the command{hint}."
    )


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
  """Puts a path into an ``OSError`` that has none: a call on an open file knows no name, and a person needs one.

  Args:
    path: what is written or read.

  Raises:
    OSError: as it came, with a path.
  """
  try:
    yield
  except OSError as error:
    known = error.filename
    if not isinstance(known, str) or not os.path.dirname(
      known
    ):  # rmtree names what lies in an open folder
      error.filename = os.fspath(path)
    raise


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[IO[bytes]]:
  """Yields a private file, open for reading and writing, that gets its name when all is written, else is removed.

  A target that appears meanwhile is not overwritten either, except, on disks without hard links, in the last moment.

  Args:
    target: its name; must not exist. The mode is 0600.

  Raises:
    UnsafeError: if the target exists, another process is writing it, or something else has the temporary name.
    DjaxError: if this platform has no locks.
    OSError: if it cannot be written.
  """
  with _claimed(target, folder=False) as (descriptor, temporary):
    with os.fdopen(descriptor, "r+b", closefd=False) as file:
      yield file
    os.fsync(descriptor)
    _check_ours(descriptor, temporary)
    _publish(temporary, target)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
  """Yields a private folder that gets its name when all is written, else is removed.

  A target that appears meanwhile is not overwritten either, except for an empty folder in the last moment.

  Args:
    target: its name; must not exist. The mode is 0700, that of files in it 0600 if they are made by ``private``.

  Raises:
    UnsafeError: as ``new_file``.
    DjaxError: as ``new_file``.
    OSError: if it cannot be written.
  """
  with _claimed(target, folder=True) as (descriptor, temporary):
    yield temporary
    _check_ours(descriptor, temporary)
    sync_tree(temporary)
    _check_ours(descriptor, temporary)
    check_new(target)
    try:
      os.rename(temporary, target)
    except OSError:
      check_new(target)  # it appeared in the last moment
      raise


@contextlib.contextmanager
def _claimed(target: Path, *, folder: bool) -> Iterator[tuple[int, Path]]:
  """Yields descriptor and name of a locked temporary file or folder; the body publishes it, else it is removed."""
  check_new(target)
  locks.require_locks(target)
  temporary = temporary_of(target)
  with named(target):
    descriptor = _claim(temporary, folder=folder)
    try:
      check_new(target)  # who held the lock before may have written it
      yield descriptor, temporary
    except BaseException:
      _discard(descriptor, temporary)
      raise
    finally:
      with contextlib.suppress(OSError):  # what counts is on the disk already
        os.close(descriptor)
  sync_folder(target.parent)


def private(path: Path) -> IO[bytes]:
  """Makes a new file of mode 0600, open for writing.

  Args:
    path: must not exist.

  Raises:
    OSError: if it exists, also as a dangling link, or cannot be made.
  """
  return os.fdopen(_make_file(path, os.O_WRONLY), "wb")


def replace(
  path: Path, data: bytes, *, mode: int = 0o666, folder: Path | None = None, writer: str = ""
) -> None:
  """Writes a file so that under its name there is always a whole one, the old or the new.

  Args:
    path: the file; a link of that name is replaced, not followed.
    data: its content.
    mode: its rights, less the umask.
    folder: where the temporary file lies, on the same disk; by default beside the file.
    writer: a part of that file's name, of each process another, where two may write the same file at a time.

  Raises:
    OSError: if it cannot be written; the old file is still there.
  """
  temporary = (folder or path.parent) / f".{path.name}{writer}.tmp"
  temporary.unlink(missing_ok=True)  # what a killed process left; a link goes too
  try:
    with named(path), os.fdopen(os.open(temporary, os.O_WRONLY | _NEW, mode), "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise
  sync_folder(path.parent)


def temporary_of(target: Path) -> Path:
  """Returns the one temporary name of a target, beside it.

  Args:
    target: the file or folder to be written.
  """
  return target.with_name(f".{target.name}.djax-partial")


def sync_folder(folder: Path) -> None:
  """Makes names in a folder survive a power cut, on file systems that can; a failure is ignored.

  Args:
    folder: the folder.
  """
  with contextlib.suppress(OSError):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def sync_tree(folder: Path) -> None:
  """Syncs every file and folder below a folder, and the folder itself; links are left alone.

  Args:
    folder: the folder.

  Raises:
    OSError: if a folder cannot be read, or a file's content cannot be written to the disk.
  """
  folders, paths = [], []
  for place, _, names in os.walk(folder, topdown=False, onerror=_raise):
    folders.append(Path(place))
    paths += [os.path.join(place, name) for name in names]
  # A disk takes many syncs at a time in the time of one: 10 000 small files in a second instead of twenty.
  with ThreadPoolExecutor(_SYNCS) as pool:
    for _ in pool.map(_sync_file, paths):
      pass
  for below in folders:
    sync_folder(below)


def _sync_file(path: str) -> None:
  """Syncs a file; what is none is left alone."""
  if not stat.S_ISREG(os.lstat(path).st_mode):
    return
  descriptor = os.open(path, os.O_RDONLY | locks.SAFE_OPEN)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _raise(error: OSError) -> NoReturn:
  raise error


def _claim(temporary: Path, *, folder: bool) -> int:
  """Makes a temporary file or folder, opens and locks it.

  What a killed process left there is taken away and not written into: it may have a second name, under which it was
  finished. The name may change hands between any two steps, so it is looked at again once the lock is held.
  """
  for _ in range(_TRIES):
    left = _open_left(temporary, folder=folder)
    descriptor = _make(temporary, folder=folder) if left is None else left
    if descriptor is None:
      continue
    locked = locks.try_lock(descriptor)
    if locked and _is_at(descriptor, temporary):
      if left is None:
        return descriptor
      _remove(temporary)
    os.close(descriptor)
    if not locked and left is not None:
      raise UnsafeError(
        f"{temporary} is being written by another process. Wait for it, or give another name."
      )
  raise DjaxError(f"{temporary} keeps changing. Give another name for the output.")


def _open_left(temporary: Path, *, folder: bool) -> int | None:
  """Opens what has a temporary name; None if nothing does. Refuses what djax cannot have left there."""
  access = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) if folder else os.O_RDWR
  try:
    if not _could_be_left(os.lstat(temporary), folder=folder):
      locks.refuse_in_the_way(temporary)
    descriptor = os.open(temporary, access | locks.SAFE_OPEN)
  except FileNotFoundError:
    return None
  if not _could_be_left(os.fstat(descriptor), folder=folder):
    os.close(descriptor)
    locks.refuse_in_the_way(temporary)
  return descriptor


def _could_be_left(status: os.stat_result, *, folder: bool) -> bool:
  """Whether djax of this user may have made it: in a shared folder others can put things under any name."""
  kind = stat.S_ISDIR if folder else stat.S_ISREG
  return kind(status.st_mode) and (not hasattr(os, "geteuid") or status.st_uid == os.geteuid())


def _make(temporary: Path, *, folder: bool) -> int | None:
  """Makes and opens a file or folder; None if another process was quicker."""
  try:
    if not folder:
      return _make_file(temporary, os.O_RDWR)
    temporary.mkdir(mode=_PRIVATE_FOLDER)
  except FileExistsError:
    return None
  try:
    temporary.chmod(_PRIVATE_FOLDER)  # the umask may have taken the owner's rights
    return os.open(temporary, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | locks.SAFE_OPEN)
  except FileNotFoundError:  # another process took it for something left
    return None
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.rmdir()
    raise


def _make_file(path: Path, access: int) -> int:
  """Makes and opens a private file."""
  descriptor = os.open(path, access | _NEW, _PRIVATE_FILE)
  try:
    if hasattr(os, "fchmod"):
      os.fchmod(descriptor, _PRIVATE_FILE)  # the umask may have taken the owner's rights
  except BaseException:
    os.close(descriptor)
    with contextlib.suppress(OSError):
      path.unlink()
    raise
  return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
  """Whether what is open still has this name."""
  try:
    return os.path.samestat(os.fstat(descriptor), os.lstat(path))
  except FileNotFoundError:
    return False


def _check_ours(descriptor: int, temporary: Path) -> None:
  """Refuses to publish what another process put under the temporary name, on disks without locks."""
  if not _is_at(descriptor, temporary):
    raise UnsafeError(f"{temporary} was taken away while it was written. Give the command again.")


def _clear_second_name(target: Path) -> None:
  """Takes away what a kill between the two steps of ``_publish`` leaves: the temporary name of a whole file."""
  with contextlib.suppress(OSError, ValueError):  # no such file, or no name to make another one of
    temporary = temporary_of(target)
    if os.path.samestat(os.lstat(temporary), os.lstat(target)):
      temporary.unlink()


def _publish(temporary: Path, target: Path) -> None:
  """Gives a file its name, unless something of that name appeared: a link is made or refused in one step."""
  try:
    os.link(temporary, target, follow_symlinks=False)
  except FileExistsError:
    check_new(target)
    raise
  except (OSError, NotImplementedError):  # disks without hard links
    check_new(target)
    os.rename(temporary, target)
    return
  with contextlib.suppress(OSError):  # it is published; the next call takes the other name away
    temporary.unlink()


def _discard(descriptor: int, temporary: Path) -> None:
  """Takes away what is not finished, without hiding the reason."""
  with contextlib.suppress(OSError):
    if _is_at(descriptor, temporary):
      _remove(temporary)


def _remove(path: Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
