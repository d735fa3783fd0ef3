"""Exception types and the command-line exit code each one stands for.

Bad arguments to functions are plain ``ValueError`` and ``TypeError``. What a caller may want to catch has a type
here. Messages read: what must hold, what came, what to do next; never key bytes, passphrases or pixels.
"""

import difflib
from collections.abc import Iterable

__all__ = [
  "ConfigError",
  "DataError",
  "DjaxError",
  "KeyFileError",
  "KeyMismatchError",
  "ManifestError",
  "NotInvertibleError",
  "UnsafeError",
  "WrongPassphraseError",
  "nearest",
]


class DjaxError(Exception):
  """Base of all djax errors; ``exit_code`` is what the command line returns for it."""

  exit_code = 1


class ConfigError(DjaxError, ValueError):
  """A config, flag or argument that cannot work."""

  exit_code = 2


class NotInvertibleError(DjaxError, ValueError):
  """A disguise that its own key cannot undo."""

  exit_code = 2


class KeyFileError(DjaxError):
  """A key file that is missing, damaged, readable by others, or of a newer version."""

  exit_code = 3


class WrongPassphraseError(KeyFileError):
  """The key file is whole, but the passphrase does not open it."""


class KeyMismatchError(DjaxError):
  """Data or a run made with another key than the one given."""

  exit_code = 3


class DataError(DjaxError):
  """Source data that is missing, damaged or of a kind djax does not take."""

  exit_code = 4


class ManifestError(DataError):
  """A disguised data set whose manifest or files are missing, damaged, tampered with or of a newer version."""


class UnsafeError(DjaxError):
  """Refused because it would overwrite or expose something."""

  exit_code = 5


def nearest(name: str, known: Iterable[str]) -> str:
  """Returns `` Did you mean 'x'?`` for the known name closest to ``name``, or an empty string.

  Args:
    name: what was given.
    known: the names that exist.
  """
  matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  return f" Did you mean {matches[0]!r}?" if matches else ""
