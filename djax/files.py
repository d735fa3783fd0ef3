"""Writing files of the owner: whole or not at all, readable by the owner alone where they hold originals, and durable.

What is written goes under a temporary name first. That name is always the same one for a target, is locked while
somebody writes, and is cleared by the next call: a process that was killed leaves nothing behind for ever. A rename
gives the final name; file and folder are synced, so that it survives a power cut.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from djax.errors import DjaxError, UnsafeError

__all__ = [
  "check_new",
  "new_file",
  "new_folder",
  "private",
  "replace",
  "sync_folder",
  "sync_tree",
  "temporary_of",
  "working_lock",
]

_PRIVATE_FILE, _PRIVATE_FOLDER = 0o600, 0o700
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def check_new(target: Path) -> None:
  """Refuses a target that exists.

  Args:
    target: the file or folder to be written.

  Raises:
    UnsafeError: if it exists, also as a dangling link.
  """
  if os.path.lexists(target):
    raise UnsafeError(f"{target} exists and is not overwritten. Give another name.")


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[IO[bytes]]:
  """Yields a private file, open for reading and writing, that gets its name when all is written, else is removed.

  Args:
    target: its name; must not exist. The mode is 0600.

  Raises:
    UnsafeError: if the target exists, or another process is writing it.
    OSError: if it cannot be written.
  """
  temporary = temporary_of(target)
  _clear_second_name(temporary, target)
  check_new(target)
  descriptor = _locked(temporary, os.O_RDWR | os.O_CREAT)
  with os.fdopen(descriptor, "r+b") as file:
    try:
      if hasattr(os, "fchmod"):
        os.fchmod(descriptor, _PRIVATE_FILE)  # the umask may have taken the owner's rights
      file.truncate(0)
      yield file
      file.flush()
      os.fsync(descriptor)
      _publish(temporary, target)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise
  sync_folder(target.parent)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
  """Yields a private folder that gets its name when all is written, else is removed.

  Args:
    target: its name; must not exist. The mode is 0700, that of files in it 0600 if they are made by ``private``.

  Raises:
    UnsafeError: if the target exists, or another process is writing it.
    OSError: if it cannot be written.
  """
  check_new(target)
  temporary = temporary_of(target)
  with contextlib.suppress(FileExistsError):
    temporary.mkdir(mode=_PRIVATE_FOLDER)
  descriptor = _locked(temporary, getattr(os, "O_DIRECTORY", 0))
  try:
    temporary.chmod(_PRIVATE_FOLDER)
    for entry in temporary.iterdir():
      _remove(entry)
    yield temporary
    sync_tree(temporary)
    check_new(target)
    os.rename(temporary, target)
  except BaseException:
    _remove(temporary)
    raise
  finally:
    os.close(descriptor)
  sync_folder(target.parent)


def private(path: Path) -> IO[bytes]:
  """Makes a new file that its owner alone may read, open for writing.

  Args:
    path: must not exist.
  """
  flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW
  return os.fdopen(os.open(path, flags, _PRIVATE_FILE), "wb")


def replace(path: Path, data: bytes, *, mode: int = 0o666, folder: Path | None = None) -> None:
  """Writes a file so that under its name there is always a whole one, the old or the new.

  Args:
    path: the file; a link of that name is replaced, not followed.
    data: its content.
    mode: its rights, less the umask.
    folder: where the temporary file lies, on the same disk; by default beside the file. Its name is always the same, so
      two processes must not write one file at a time.

  Raises:
    OSError: if it cannot be written; the old file is still there.
  """
  temporary = (folder or path.parent) / f".{path.name}.tmp"
  try:
    temporary.unlink(missing_ok=True)  # what a killed process left; a link goes too
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  sync_folder(path.parent)


@contextlib.contextmanager
def working_lock(path: Path, *, busy: str) -> Iterator[None]:
  """Holds a lock while a directory is worked on; the file stays, the lock does not outlive the process.

  Args:
    path: the lock's file; made if need be.
    busy: what to say where another process holds it.

  Raises:
    UnsafeError: if another process holds it.
    OSError: if the file cannot be made.
  """
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NOFOLLOW, 0o666)
  try:
    if not _try_lock(descriptor):
      raise UnsafeError(busy)
    yield
  finally:
    os.close(descriptor)


def temporary_of(target: Path) -> Path:
  """Returns the one temporary name of a target, beside it."""
  return target.with_name(f".{target.name}.djax-partial")


def sync_folder(folder: Path) -> None:
  """Makes names in a folder survive a power cut, on file systems that can.

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
  """Syncs every file and folder below a folder, and the folder itself.

  Args:
    folder: the folder.

  Raises:
    OSError: if a file's content cannot be written to the disk.
  """
  for place, _, files in os.walk(folder, topdown=False):
    for name in files:
      descriptor = os.open(os.path.join(place, name), os.O_RDONLY | _NOFOLLOW)
      try:
        os.fsync(descriptor)
      finally:
        os.close(descriptor)
    sync_folder(Path(place))


def _locked(temporary: Path, flags: int) -> int:
  """Opens a temporary file or folder and locks it; the name may change hands meanwhile, so it is looked at again."""
  for _ in range(100):
    try:
      descriptor = os.open(temporary, flags | _NOFOLLOW, _PRIVATE_FILE)
    except OSError as error:
      if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR):
        raise UnsafeError(
          f"{temporary} is in the way: it is not what djax would write. Give another name for the output."
        ) from None
      raise
    if not _try_lock(descriptor):
      os.close(descriptor)
      raise UnsafeError(
        f"{temporary} is being written by another process. Wait for it, or give another name."
      )
    try:
      if os.path.samestat(os.fstat(descriptor), os.lstat(temporary)):
        return descriptor
    except FileNotFoundError:
      if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        temporary.mkdir(mode=_PRIVATE_FOLDER)
    os.close(descriptor)
  raise DjaxError(f"{temporary} keeps changing. Give another name for the output.")


def _try_lock(descriptor: int) -> bool:
  """Locks a file for this process; False if another one has it. Disks without locks are written without."""
  try:
    import fcntl  # not everywhere
  except ImportError:
    return True
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    return error.errno not in _BUSY
  return True


def _clear_second_name(temporary: Path, target: Path) -> None:
  """Takes away what a kill between the two steps of ``_publish`` leaves: the temporary name of a whole file."""
  with contextlib.suppress(OSError):
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
  temporary.unlink()


def _remove(path: Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)
