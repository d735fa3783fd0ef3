"""Code in a fresh interpreter, and what it has loaded."""

import pathlib
import subprocess
import sys
import textwrap

import djax

ROOT = pathlib.Path(__file__).parents[2]  # tests, docs, README
SOURCE = (
  pathlib.Path(djax.__file__).resolve().parents[1]
)  # djax, train, configs: elsewhere when a wheel is tested

HEAVY = {"jax", "flax", "tensorflow_datasets", "tensorflow", "djax.keys", "cryptography"}


def run_code(code, *arguments, cwd=ROOT):
  """Runs code to its end; it may be killed or fail."""
  return subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=120,
  )


def succeeded(done):
  """Returns what such a run printed; fails if it did."""
  assert done.returncode == 0, done.stderr
  return done.stdout


def loaded_by(statement):
  """Modules of ``HEAVY`` that a fresh interpreter has after a statement."""
  script = f"{statement}\nimport sys\nprint(*({HEAVY!r} & set(sys.modules)))"
  return set(succeeded(run_code(script)).split())
