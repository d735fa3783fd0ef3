"""``python -m djax``."""

import sys

from djax.cli.main import main

if __name__ == "__main__":
  sys.exit(main())
