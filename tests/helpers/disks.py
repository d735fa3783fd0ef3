"""Disks that fill up."""

import contextlib
import subprocess

import pytest


@contextlib.contextmanager
def tiny_disk(folder, megabytes):
  """Mounts a file system of a few megabytes on a new folder; skips where that is not allowed."""
  folder.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)],
    capture_output=True,
    check=False,
  )
  if mounted.returncode:
    pytest.skip("needs the right to mount a tmpfs")
  try:
    yield
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)
