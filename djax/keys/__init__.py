"""The owner's secrets: the master key, and the file that keeps it. docs/key-format.md.

``generate()`` makes a master key; ``load(path, passphrase)`` opens the key file that ``djax keygen`` wrote.
"""

import os

from djax.keys import master
from djax.keys.master import *  # noqa: F403
from djax.keys.master import Master

__all__ = [*master.__all__, "load"]


def load(path: str | os.PathLike[str], passphrase: str | None = None) -> Master:
  """Opens one's own key file: ``keys.load("owner.djaxkey", getpass.getpass())``.

  Args:
    path: the file; a symbolic link is followed.
    passphrase: what protects the file; None if nothing does. Do not write it into a program or a notebook.

  Returns:
    The master key, for ``scheme.make_key`` and ``train.run``.

  Raises:
    KeyFileError: if the file is missing, damaged, open to others, of a newer version, too costly to open, or protected
      and no passphrase is given.
    WrongPassphraseError: if the file is whole and the passphrase does not open it.
  """
  from djax.keys import keyfile  # who opens no key file loads no code that does

  return keyfile.read(path, passphrase=None if passphrase is None else lambda: passphrase)
