"""Locks that keep other processes out while something is written, and the flags that files are opened with safely.

Disks that know no locks are written without. Where Python itself has none, nothing that needs one is written.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

try:
  import fcntl
except ImportError:  # not on Windows, where keys and data can still be read
  fcntl = None  # type: ignore[assignment]

from djax.errors import DjaxError, UnsafeError

__all__ = [
  "SAFE_OPEN",
  "refuse_in_the_way",
  "require_locks",
  "try_lock",
  "wait_for_lock",
  "working_lock",
]

# Links are refused, and opening a pipe does not wait for its other end, which may never come; O_BINARY is for Windows.
SAFE_OPEN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextlib.contextmanager
def working_lock(path: Path, *, busy: str, shared: bool = False) -> Iterator[None]:
  """Holds a lock while a directory is worked on; the file stays, the lock does not outlive the process.

  Processes that were forked meanwhile hold it as well. Disks that know no locks are worked on without one.

  Args:
    path: the lock's file; made if need be.
    busy: what to say where another process holds it.
    shared: whether other processes may hold it as well, if they share it too.

  Raises:
    UnsafeError: if another process holds it, or something else than a file has that name.
    DjaxError: if this platform has no locks.
    OSError: if the file cannot be made.
  """
  require_locks(path)
  if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
    refuse_in_the_way(path)
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT | SAFE_OPEN, 0o666)
  try:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
      refuse_in_the_way(path)
    if not try_lock(descriptor, shared=shared):
      raise UnsafeError(busy)
    yield
  finally:
    os.close(descriptor)


def wait_for_lock(descriptor: int) -> None:
  """Locks an open file, waiting for whoever has it; on disks without locks it does nothing.

  Call ``require_locks`` before the file is made.

  Args:
    descriptor: of the file.
  """
  with contextlib.suppress(OSError):
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
  """Locks an open file for this process; False if another one has it, True on disks without locks.

  Args:
    descriptor: of the file.
    shared: whether other processes may hold it as well, if they share it too.
  """
  try:
    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
  except OSError as error:
    return error.errno not in _BUSY
  return True


def require_locks(path: Path) -> None:
  """Refuses to write where Python has no file locks, before anything is made.

  Args:
    path: what would be written.

  Raises:
    DjaxError: if this platform has no locks.
  """
  if fcntl is None:
    raise DjaxError(
      f"{path} must be locked while it is written, and file locking is not available on this platform (Python has no "
      "module fcntl here). Write it on Linux, on macOS or under WSL."
    )


def refuse_in_the_way(path: Path) -> NoReturn:
  """Refuses what djax cannot have left under a name that it needs.

  Args:
    path: the name.

  Raises:
    UnsafeError: always.
  """
  raise UnsafeError(
    f"{path} is in the way: it is nothing that djax made. Take it away, or give another name for the output."
  )
