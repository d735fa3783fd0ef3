"""Calls of ``python -m djax``, in a process of their own or in this one."""

import os
import re
import subprocess
import sys

import djax
from djax.__main__ import main
from helpers.fresh import ROOT

PACKAGE = os.path.dirname(djax.__file__)


def environment(**more):
  kept = {k: os.environ[k] for k in ("PATH", "HOME", "TMPDIR") if k in os.environ}
  return {**kept, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **more}


def run(*arguments, cwd=None, python=("-W", "error", "-m", "djax"), **env):
  return subprocess.run(
    [sys.executable, *python, *map(str, arguments)],
    cwd=cwd,
    env=environment(**env),
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=120,
  )


def failed(done, code, message):
  """Asserts one line on stderr, nothing on stdout, and the exit code; returns the line."""
  assert done.stdout == ""
  assert re.fullmatch(r"djax: error: .*\n", done.stderr), done.stderr
  assert re.search(message, done.stderr), done.stderr
  assert done.returncode == code
  return done.stderr


def caller(capsys):
  """Returns a function that runs a verb in this process; it returns code, stdout and the lines of stderr."""

  def call(*arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err.splitlines()

  return call


def refused(answer, code, message):
  """Asserts one line on stderr, nothing on stdout, and the exit code; returns the line."""
  assert answer[0] == code
  assert answer[1] == ""
  assert len(answer[2]) == 1
  assert re.match(f"djax: error: .*{message}", answer[2][0]), answer[2]
  return answer[2][0]
