"""The one door for files that come from outside the owner's machine: a disguised directory, a run, a request, answers.

Such files are hostile until shown otherwise. A name may be a link to a device or a pipe that never ends, a file may be
larger than memory, and it may be exchanged between the moment it is checked and the moment it is used. So each file is
opened once, without following links and without waiting; it must be a regular file of at most a stated size; and what
is hashed or authenticated is what is handed to the parser: the bytes themselves, or a private copy of them.

A limit is also one of memory: ``read`` needs twice as much for a moment, and ``parse_json`` up to 25 times.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from djax.errors import DataError
from djax.io import files, locks

__all__ = [
  "Content",
  "ForeignFileError",
  "MissingFileError",
  "copy_file",
  "digest",
  "names",
  "opened",
  "parse_json",
  "private_copies",
  "read",
  "size_of",
]

_PIECE = 1 << 20
_LINKS_REFUSED = getattr(os, "O_NOFOLLOW", 0)
_HOLDS_FOLDERS = os.open in os.supports_dir_fd
_MOST_DIGITS = 40  # those of 128 bits and a sign; longer integers overflow what they are put into
_KINDS = {
  stat.S_IFLNK: "a symbolic link",
  stat.S_IFDIR: "a folder",
  stat.S_IFIFO: "a pipe",
  stat.S_IFCHR: "a device",
  stat.S_IFBLK: "a device",
  stat.S_IFSOCK: "a socket",
}


class ForeignFileError(DataError):
  """A file from outside that is not what it must be."""


class MissingFileError(ForeignFileError):
  """A file from outside that is not there."""


class Content(NamedTuple):
  """What a file must hold: its length in bytes and its SHA-256 in hex."""

  bytes: int
  sha256: str


@contextlib.contextmanager
def opened(folder: Path, name: str, *, limit: int) -> Iterator[IO[bytes]]:
  """Opens a file for reading, unbuffered.

  Who reads beyond ``limit`` reads what was added since: the length is checked when the file is opened.

  Args:
    folder: where it lies; the user named it, so links in it are followed.
    name: of the file below it, with ``/``; neither the file nor a folder on the way may be a link.
    limit: greatest length in bytes.

  Raises:
    MissingFileError: if it does not exist.
    ForeignFileError: if it is no regular file, is longer, or cannot be read, or if the name leads out of the folder.
  """
  descriptor = _open(folder, name, limit)
  with files.named(folder / name), os.fdopen(descriptor, "rb", buffering=0) as file:
    yield file


def read(folder: Path, name: str, *, limit: int) -> bytes:
  """Returns the bytes of a file, read once.

  Args:
    folder: as for ``opened``.
    name: as for ``opened``.
    limit: greatest length in bytes.

  Raises:
    MissingFileError: if it does not exist.
    ForeignFileError: if it is no regular file, is longer (also if it grows meanwhile), or cannot be read.
  """
  with opened(folder, name, limit=limit) as file:
    return b"".join(_pieces(file, folder / name, limit))


def digest(folder: Path, name: str, *, limit: int) -> Content:
  """Returns length and SHA-256 of a file, read once, in pieces.

  Args:
    folder: as for ``opened``.
    name: as for ``opened``.
    limit: greatest length in bytes.

  Raises:
    MissingFileError: if it does not exist.
    ForeignFileError: as for ``read``.
  """
  sha256, length = hashlib.sha256(), 0
  with opened(folder, name, limit=limit) as file:
    for piece in _pieces(file, folder / name, limit):
      sha256.update(piece)
      length += len(piece)
  return Content(length, sha256.hexdigest())


@contextlib.contextmanager
def private_copies(folder: Path, contents: Mapping[str, Content]) -> Iterator[Path]:
  """Yields a folder of the caller alone with copies of some files, for libraries that take a name and not bytes.

  A file is hashed as it is copied, so what is read from the copy is what was checked, whatever becomes of the file.

  Args:
    folder: where the files lie.
    contents: by name, what each must hold.

  Raises:
    MissingFileError: if one does not exist.
    ForeignFileError: if one is no regular file, cannot be read, or holds anything else.
    OSError: if the copies cannot be written.
  """
  with tempfile.TemporaryDirectory(prefix="djax-") as place:
    copies = Path(place)
    for name, content in contents.items():
      copy_file(folder, name, content, copies / name)
    yield copies


def copy_file(folder: Path, name: str, content: Content, target: Path) -> None:
  """Copies one file to a private place and checks what was copied; a copy of anything else is taken away again.

  Args:
    folder: where it lies, as for ``opened``.
    name: of the file below it, as for ``opened``.
    content: what it must hold.
    target: the copy, in a folder of the caller alone; must not exist. Its mode is 0600.

  Raises:
    MissingFileError: if it does not exist.
    ForeignFileError: if it is no regular file, cannot be read, or holds anything else.
    OSError: if the copy cannot be written.
  """
  sha256 = hashlib.sha256()
  path = folder / name
  with opened(folder, name, limit=content.bytes) as source:
    size = os.fstat(source.fileno()).st_size
    if size != content.bytes:
      raise ForeignFileError(f"{path} must have {content.bytes} bytes, has {size}.")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy = files.private(target)
    try:
      with copy:
        for piece in _pieces(source, path, content.bytes):
          sha256.update(piece)
          copy.write(piece)
      if sha256.hexdigest() != content.sha256:
        raise ForeignFileError(f"{path} is damaged: its SHA-256 is not the recorded one.")
    except BaseException:
      target.unlink()
      raise


def size_of(folder: Path, name: str) -> int:
  """Returns the length of a regular file in bytes, without opening it.

  Args:
    folder: where it lies, as for ``opened``.
    name: of the file below it, as for ``opened``.

  Raises:
    MissingFileError: if it does not exist.
    ForeignFileError: if it is no regular file.
  """
  try:
    with _below(folder, name) as (last, at):
      return _regular(folder / name, os.stat(last, dir_fd=at, follow_symlinks=False)).st_size
  except OSError as error:
    _refuse(folder / name, error)


def names(folder: Path, *, most: int = 1 << 20) -> list[str]:
  """Returns the names of what lies in a folder, sorted.

  Args:
    folder: the folder; links are followed, and what lies in it is not looked at.
    most: greatest number of names.

  Raises:
    MissingFileError: if it does not exist.
    ForeignFileError: if it is no folder, cannot be read, or holds more.
  """
  entry_names: list[str] = []
  try:
    with os.scandir(folder) as entries:
      for entry in entries:
        entry_names.append(entry.name)
        if len(entry_names) > most:
          raise ForeignFileError(f"{folder} must hold at most {most} entries, has more.")
  except OSError as error:
    _refuse(folder, error)
  return sorted(entry_names)


def parse_json(data: bytes) -> Any:
  """Parses JSON from an untrusted source.

  Strings may hold any character, also one half of a surrogate pair, which cannot be written as UTF-8.

  Args:
    data: UTF-8.

  Raises:
    ValueError: for what is no JSON, is nested too deeply, names a field twice, or holds NaN, an infinity or an integer
      of more than 39 digits.
  """
  try:
    return json.loads(
      data.decode("utf-8"),
      parse_constant=_no_number,
      parse_float=_finite,
      parse_int=_whole,
      object_pairs_hook=_unique,
    )
  except RecursionError:
    raise ValueError("it is nested too deeply") from None


def _no_number(text: str) -> NoReturn:
  raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
  """Reads a number with a point or an exponent; 1e999 would become an infinity."""
  value = float(text)
  if value in (float("inf"), float("-inf")):
    raise ValueError(f"{text[:20]} is too large")
  return value


def _whole(text: str) -> int:
  """Reads an integer; 10**400 would overflow where it becomes a float."""
  if len(text) > _MOST_DIGITS:
    raise ValueError(f"{text[:20]}... has too many digits")
  return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Makes an object; of two fields of one name, another parser might take the other."""
  value = dict(pairs)
  if len(value) != len(pairs):
    raise ValueError("a field stands twice in one object")
  return value


def _parts(folder: Path, name: str) -> list[str]:
  """Takes a name apart; refuses one that leads out of the folder, or that no file can have."""
  parts = name.split("/")
  bad = any(part in ("", ".", "..") for part in parts) or "\0" in name
  try:
    os.fsencode(name)
  except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold
    bad = True
  if os.sep != "/":
    bad = bad or os.sep in name or ":" in name
  if bad:
    raise ForeignFileError(f"{folder}: {name!r} must be the name of a file below it, it is not.")
  return parts


@contextlib.contextmanager
def _below(folder: Path, name: str) -> Iterator[tuple[str | Path, int | None]]:
  """Yields name and ``dir_fd`` of a file below a folder, no link followed on the way."""
  *folders, last = _parts(folder, name)
  if not _HOLDS_FOLDERS:
    # Windows: links are refused, but one that is put in after this look is followed.
    place = folder
    for part in (*folders, last):
      place = place / part
      if place.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    yield place, None
    return
  at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
  try:
    for part in folders:
      below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _LINKS_REFUSED, dir_fd=at)
      os.close(at)
      at = below
    yield last, at
  finally:
    os.close(at)


def _open(folder: Path, name: str, limit: int) -> int:
  """Opens a regular file of at most so many bytes."""
  path = folder / name
  try:
    with _below(folder, name) as (last, at):
      # Some devices act when they are opened, so it is looked at before as well as after.
      _regular(path, os.stat(last, dir_fd=at, follow_symlinks=False))
      descriptor = os.open(last, os.O_RDONLY | locks.SAFE_OPEN, dir_fd=at)
  except OSError as error:
    _refuse(path, error)
  try:
    with files.named(path):
      size = _regular(path, os.fstat(descriptor)).st_size
    if size > limit:
      raise ForeignFileError(
        f"{path} must have at most {limit} bytes, has {size}. It was not read."
      )
  except BaseException:
    os.close(descriptor)
    raise
  return descriptor


def _regular(path: Path, status: os.stat_result) -> os.stat_result:
  """Refuses what is no regular file."""
  if not stat.S_ISREG(status.st_mode):
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
    raise ForeignFileError(f"{path} must be a regular file, is {kind}. It was not read.")
  return status


def _pieces(file: IO[bytes], path: Path, limit: int) -> Iterator[bytes]:
  """Yields a file's bytes; refuses one that grows beyond the limit while it is read."""
  length = 0
  while True:
    try:
      piece = file.read(_PIECE)
    except OSError as error:
      _refuse(path, error)
    if not piece:
      return
    length += len(piece)
    if length > limit:
      raise ForeignFileError(f"{path} must have at most {limit} bytes, it grows while it is read.")
    yield piece


def _refuse(path: Path, error: OSError) -> NoReturn:
  """Raises the error that says why a file cannot be opened."""
  if isinstance(error, FileNotFoundError):
    raise MissingFileError(f"{path} must exist, it does not.") from None
  if error.errno in (errno.ENOTDIR, errno.ELOOP):
    raise ForeignFileError(
      f"{path} must be reached through folders; a part of it is a link or no folder. It was not read."
    ) from None
  raise ForeignFileError(f"{path} must be readable: {error.strerror}.") from None
