"""``python -m train.compare``."""

import sys

from djax.cli import program

if __name__ == "__main__":
  program.own_modules_first()
  from train.compare import command  # it imports the configs, which must be ours

  sys.exit(command.main())
