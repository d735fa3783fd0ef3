"""What pages show: blocks of commands and code, and how a command is run as its reader would."""

import importlib
import os
import re
import shlex
import subprocess
import sys

from helpers.fresh import ROOT


def blocks(text, *languages):
  """Returns what stands in the fenced blocks of some languages, in order."""
  found = re.findall(r"^```(.*)\n((?s:.*?))^```$", text, re.MULTILINE)
  return [block for language, block in found if language in languages]


def commands(text):
  """Returns the commands of all blocks without a language or of bash, without comments."""
  lines = "\n".join(blocks(text, "", "bash")).splitlines()
  return [line.partition(" #")[0].strip() for line in lines if line]


def run(command, cwd, **env):
  """Runs a command with this Python; returns what it printed, and fails if it did."""
  words = shlex.split(command)
  done = subprocess.run(
    [sys.executable if words[0] == "python" else words[0], *words[1:]],
    cwd=cwd,
    capture_output=True,
    text=True,
    stdin=subprocess.DEVNULL,
    env={**os.environ, "PYTHONPATH": str(ROOT), **env},
  )
  assert done.returncode == 0, f"{command}: {done.stderr}"
  return done.stdout


def call(command):
  """Runs ``python -m MODULE ...`` in this process, which loads nothing anew; fails if it does."""
  python, dash, name, *words = shlex.split(command)
  assert (python, dash) == ("python", "-m"), command
  module = importlib.import_module(f"{name}.__main__" if name in ("djax", "train") else name)
  assert module.main(words) == 0, command
