"""``python -m train.compare``."""

import sys

from djax.cli import program


def main() -> int:
  """Runs the command; returns its exit code."""
  program.own_modules_first()
  from train.compare import command  # it imports the configs, which must be ours

  return command.main()


if __name__ == "__main__":
  sys.exit(main())
