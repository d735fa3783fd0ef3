"""Where a passphrase comes from, and files that nobody but their owner may read."""

import getpass
import os
import shlex
import stat
import sys
import unicodedata
from collections.abc import Callable

from djax.errors import KeyFileError

__all__ = ["ENVIRONMENT", "find_passphrase", "forms", "new_passphrase", "read_private"]

ENVIRONMENT = "DJAX_PASSPHRASE"

_MAX_BYTES = 1 << 16

# What the environment held, once it was taken out: processes that are started later, such as workers and git, do not
# inherit it. It stays in this process's memory, and the system still shows its owner what the process was started with.
_from_environment: str | None = None

_Path = str | os.PathLike[str]


def find_passphrase(
  passphrase_file: _Path | None, *, new: bool = False, ask: bool = True
) -> Callable[[], str]:
  """Says where a passphrase comes from: a file, else ``DJAX_PASSPHRASE``, else a prompt.

  The variable is taken out of the environment, whatever the passphrase comes from, and remembered for the next call.

  Args:
    passphrase_file: file that holds it, one trailing newline aside; or None.
    new: whether it is being set, so that a prompt asks twice.
    ask: whether there may be a prompt; a worker's terminal has nobody before it.

  Returns:
    A function that gets it when called, and raises ``KeyFileError`` if there is none, it is empty,
    or its file is missing or open to others.
  """
  _take_from_environment()

  def find() -> str:
    if passphrase_file is not None:
      name = f"passphrase file {os.fspath(passphrase_file)}"
      passphrase = _line(read_private(passphrase_file, name).decode("utf-8", "surrogateescape"))
    elif (held := _take_from_environment()) is not None:
      name, passphrase = f"environment variable {ENVIRONMENT}", held
    elif ask and sys.stdin is not None and sys.stdin.isatty():
      name, passphrase = "passphrase", _prompt(new)
    else:
      raise KeyFileError(
        f"a passphrase is needed: give --passphrase-file, or set {ENVIRONMENT}, "
        "or run on a terminal to be asked."
      )
    if not _line(passphrase):
      raise KeyFileError(f"{name}: must not be empty.")
    if new:
      try:
        return new_passphrase(passphrase)
      except KeyFileError as error:
        raise KeyFileError(f"{name}: {error}") from None
    return passphrase

  return find


def new_passphrase(text: str) -> str:
  """Returns a passphrase in the form in which it is used, or refuses what could not be typed again.

  Args:
    text: as it was typed, or read with the end of its line.

  Returns:
    One line without its end in Unicode's form NFC, since keyboards and systems differ in the form they give.

  Raises:
    KeyFileError: for bytes that are not UTF-8, control characters such as NUL or a second line, a byte order mark, or
      blanks at an end.
  """
  line = unicodedata.normalize("NFC", _line(text))
  categories = {unicodedata.category(character) for character in line}
  if "Cs" in categories:
    raise KeyFileError(
      "a new passphrase must be UTF-8 text, and these bytes are not. Save it as UTF-8."
    )
  if "\ufeff" in line:
    raise KeyFileError(
      "a new passphrase must hold no byte order mark, which nobody can type. Save it as UTF-8 without one."
    )
  if categories & {"Cc", "Zl", "Zp"}:
    raise KeyFileError(
      "a new passphrase must be one line without control characters, such as those of UTF-16. Save it as UTF-8."
    )
  if line != line.strip():
    raise KeyFileError(
      "a new passphrase must not begin or end with a blank, which nobody sees. Take it away."
    )
  return line


def forms(text: str) -> list[str]:
  """Returns the passphrases that a text may mean, the likeliest first: an older key file may be locked with any.

  Args:
    text: as it was typed, or read with the end of its line.
  """
  line = _line(text)
  likely = [unicodedata.normalize("NFC", line), line, unicodedata.normalize("NFD", line), text]
  return list(dict.fromkeys(likely))


def _line(text: str) -> str:
  """Takes the end of one line away."""
  return text.removesuffix("\n").removesuffix("\r")


def _take_from_environment() -> str | None:
  """Returns the passphrase of the environment, now or when it was last there."""
  global _from_environment
  if ENVIRONMENT in os.environ:
    _from_environment = os.environ.pop(ENVIRONMENT)
  return _from_environment


def _prompt(new: bool) -> str:
  """Asks on the terminal, twice for a new passphrase."""
  try:
    passphrase = getpass.getpass("New passphrase: " if new else "Passphrase: ")
    if new and passphrase and getpass.getpass("The same again: ") != passphrase:
      raise KeyFileError("passphrase: the two entries differ. Nothing was written; start again.")
  except EOFError:
    raise KeyFileError("passphrase: none was entered.") from None
  return passphrase


def read_private(path: _Path, name: str, missing: str = " Correct the path.") -> bytes:
  """Returns the bytes of a small regular file that nobody else may read.

  Args:
    path: the file; its owner named it, so a symbolic link is followed.
    name: what messages call it.
    missing: what to do where it does not exist.

  Raises:
    KeyFileError: if it is missing, no regular file, open to others, larger than 64 KiB, or cannot be read.
  """
  try:
    with open(path, "rb", opener=_without_waiting) as file:
      status = os.fstat(file.fileno())
      if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"{name}: is not a regular file.")
      mode = stat.S_IMODE(status.st_mode)
      if os.name == "posix" and mode & 0o077:
        raise KeyFileError(
          f"{name}: is open to others (mode {mode:04o}). "
          f"Run: chmod 600 {shlex.quote(os.fspath(path))}"
        )
      content = file.read(_MAX_BYTES + 1)
  except FileNotFoundError:
    raise KeyFileError(f"{name}: does not exist.{missing}") from None
  except IsADirectoryError:
    raise KeyFileError(f"{name}: is not a regular file.") from None
  except OSError as error:
    raise KeyFileError(f"{name}: cannot be read: {error.strerror}.") from None
  if len(content) > _MAX_BYTES:
    raise KeyFileError(f"{name}: is larger than {_MAX_BYTES} bytes.")
  return content


def _without_waiting(path: str, flags: int) -> int:
  """Opens a file; a pipe of that name would otherwise hold us."""
  return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
