"""What a fresh interpreter has loaded."""

import subprocess
import sys

HEAVY = {"jax", "flax", "tensorflow_datasets", "tensorflow", "djax.keys", "cryptography"}


def loaded_by(statement):
  """Modules of ``HEAVY`` that a fresh interpreter has after a statement."""
  script = f"{statement}\nimport sys\nprint(*({HEAVY!r} & set(sys.modules)))"
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
  )
  return set(done.stdout.split())
