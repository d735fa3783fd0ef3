"""An install on Colab changes none of the packages that are loaded there already."""

import os
import pathlib
import shutil
import subprocess
import tomllib

import pytest
from helpers.fresh import ROOT

COLAB = ("jax==0.7.2", "jaxlib==0.7.2", "flax==0.11.2", "numpy==2.1.*")  # Python 3.13
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def python313():
  """Returns a Python 3.13 with pip, or skips."""
  root = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
  places = sorted(root.glob("versions/3.13.*/bin/python"))
  python = str(places[-1]) if places else shutil.which("python3.13")
  if python is None or subprocess.run([python, "-m", "pip", "-V"], capture_output=True).returncode:
    pytest.skip("there is no Python 3.13 with pip here")
  return python


def resolved(python, folder, *requirements):
  """Asks pip for packages beside Colab's, and installs nothing."""
  pins = folder / "constraints.txt"
  pins.write_text("\n".join(COLAB))
  command = [python, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-q", "-c", pins]
  return subprocess.run([*command, *requirements], capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_dependencies_fit_what_colab_has(tmp_path):
  python = python313()
  if (alone := resolved(python, tmp_path, *COLAB)).returncode:
    pytest.skip(f"no package index can be reached: {alone.stderr.splitlines()[-1]}")
  done = resolved(python, tmp_path, *DEPENDENCIES)
  assert done.returncode == 0, done.stderr
  raised = resolved(python, tmp_path, "numpy>=2.2")
  assert raised.returncode and "conflicting" in raised.stderr
