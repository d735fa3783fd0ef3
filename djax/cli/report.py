"""What ``python -m djax report`` does."""

import argparse
from pathlib import Path

from djax.audit import comparison
from djax.cli.common import say, show
from djax.io import files
from djax.owner import restore

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
  """Writes one page about several runs and audits.

  Args:
    args: of the verb.

  Raises:
    ConfigError: if a directory is neither.
    DataError: if one is damaged.
    UnsafeError: if the file exists.
  """
  out = restore.check_new(args.out, None)
  page = comparison.page([comparison.read(Path(name).expanduser()) for name in args.directories])
  with files.new_file(out) as file:
    file.write(page.encode())
  show([str(out)])
  say("it shows no image: originals stay in the directories")
