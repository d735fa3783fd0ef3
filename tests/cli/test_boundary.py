"""Whatever goes wrong in a program ends in one line and an exit code, and names no cause that is not known."""

import errno
import io
import os
import subprocess
import sys

import pytest
from helpers.fresh import ROOT

from djax.cli import boundary
from djax.errors import ConfigError, DataError


def end(error, *, debug=False):
  lines = []

  def work():
    if error is not None:
      raise error
    return 0

  code = boundary.guarded(work, say=lines.append, place=lambda: "the folder", debug=debug)
  return code, lines


def full():
  wrapped = ValueError("of a library")
  wrapped.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  return wrapped


@pytest.mark.parametrize(
  ("error", "code", "line"),
  [
    (None, 0, None),
    (ConfigError("x must be y"), 2, "error: x must be y"),
    (DataError("two\nlines"), 4, "error: two lines"),
    (KeyboardInterrupt(), 130, "error: interrupted"),
    (KeyboardInterrupt("stopped. Re-run"), 130, "error: stopped. Re-run"),
    (BrokenPipeError(), 1, None),
    (
      full(),
      1,
      "error: the folder: no space left on the disk. Make room and re-run the command.",
    ),
    (FileNotFoundError(2, "No such file or directory", "tests/b"), 1, "error: tests/b: No such"),
    (
      FileNotFoundError(2, "No such file or directory", "none/.x.tmp"),
      1,
      "error: none: no such folder. Make it, or give another name.",
    ),
    (PermissionError(13, "Permission denied"), 1, "error: the folder: Permission denied"),
    (MemoryError("Unable to allocate 4 GiB"), 1, "error: out of memory (Unable to allocate 4 GiB)"),
    (MemoryError(), 1, "error: out of memory (MemoryError). Use fewer --workers"),
    (RuntimeError("RESOURCE_EXHAUSTED: 9 bytes"), 1, "error: out of memory (RESOURCE_EXHAUSTED"),
    (
      RuntimeError("Could not determine home directory."),
      1,
      "error: a path that begins with ~ needs the home directory of a user that exists.",
    ),
    (
      RuntimeError("odd\nand more"),
      1,
      "error: unexpected RuntimeError (odd). Re-run the command with --debug to see where, and report it.",
    ),
    (KeyError("a"), 1, "error: unexpected KeyError ('a')"),
  ],
)
def test_what_goes_wrong_is_one_line(monkeypatch, error, code, line):
  monkeypatch.setattr(boundary.os, "dup2", lambda *descriptors: None)
  monkeypatch.setattr(boundary.sys, "stdout", io.StringIO())
  monkeypatch.setattr(boundary.sys.stdout, "fileno", lambda: 1)
  assert end(error)[0] == code
  lines = end(error)[1]
  assert lines == [] if line is None else len(lines) == 1 and lines[0].startswith(line)


def test_debug_shows_the_traceback_of_what_is_unknown_alone():
  with pytest.raises(KeyError):
    end(KeyError("a"), debug=True)
  assert end(ConfigError("a"), debug=True) == (2, ["error: a"])
  assert boundary.without_debug(["a", "--debug", "b"]) == (["a", "b"], True)
  assert boundary.without_debug(["a", "b"]) == (["a", "b"], False)


@pytest.mark.parametrize("program", ["-m djax bench --fast", "-m train --workdir={}/run"])
@pytest.mark.slow
def test_a_platform_that_is_not_there_is_named(tmp_path, program):
  done = subprocess.run(
    [sys.executable, *program.format(tmp_path).split()],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cuda"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  (line,) = [x for x in done.stderr.splitlines() if "error:" in x]
  assert "JAX_PLATFORMS=cuda" in line and "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error():
  command = f"{sys.executable} -m train --help | head -1"
  done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout and not done.stderr
