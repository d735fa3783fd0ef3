"""Runs commands in forked processes, which need no start-up, under strace, which makes one of their system calls fail.

The process that forks imports everything and does nothing else: it has one thread. strace is attached to the child
before its command begins, so that neither an interpreter's start nor an import counts.
"""

import atexit
import contextlib
import ctypes
import gc
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

__all__ = ["Call", "Fault", "Outcome", "begin", "calls_of", "run", "why_not"]

# What a file can be touched by. Calls on a descriptor that is no file of the work folder are not counted.
_CHANGING = (
  "write",
  "writev",
  "pwrite64",
  "pwritev",
  "rename",
  "renameat",
  "renameat2",
  "link",
  "linkat",
  "symlink",
  "symlinkat",
  "unlink",
  "unlinkat",
  "rmdir",
  "mkdir",
  "mkdirat",
  "truncate",
  "ftruncate",
  "fallocate",
  "chmod",
  "fchmod",
  "fchmodat",
  "utimensat",
  "copy_file_range",
  "sendfile",
)
_HOLDING = ("open", "openat", "close", "fsync", "fdatasync", "sync_file_range", "flock")
_LOOKING = (
  "read",
  "readv",
  "pread64",
  "preadv",
  "stat",
  "lstat",
  "fstat",
  "newfstatat",
  "statx",
  "statfs",
  "fstatfs",
  "access",
  "faccessat",
  "faccessat2",
  "readlink",
  "readlinkat",
  "getdents64",
)
TRACED = (*_CHANGING, *_HOLDING, *_LOOKING)

_LINE = re.compile(r"(\w+)\((.*)")
_PR_SET_PTRACER, _ANYONE = 0x59616D61, ctypes.c_ulong(-1)

# In a forked process that is traced from a later moment on: waits until strace is there.
_begin: Callable[[], None] | None = None


class Call(NamedTuple):
  """A system call of a command that touches the work folder.

  Attributes:
    name: of the call.
    number: which call of that name it is in its thread, from 1.
    thread: which of the threads that touch the folder, from 0.
    text: as strace shows it.
  """

  name: str
  number: int
  thread: int
  text: str


class Fault(NamedTuple):
  """What goes wrong.

  Attributes:
    name: of the call.
    number: which call of that name in each thread.
    kind: the error's name, ``KILL``, or ``CUT``: then ``number`` is how many bytes a file may have.
    all_threads: whether calls of all threads count, else those of the first one.
  """

  name: str
  number: int
  kind: str
  all_threads: bool = False


class Outcome(NamedTuple):
  """How a command ended.

  Attributes:
    code: exit code; minus the signal's number where one ended it; None where it took too long.
    stdout: its text.
    stderr: its text.
    hits: calls that were made to fail, as strace shows them.
    seconds: how long it took.
  """

  code: int | None
  stdout: str
  stderr: str
  hits: list[str]
  seconds: float


def why_not() -> str:
  """Returns why strace cannot inject faults here, or nothing."""
  if sys.platform != "linux":
    return "needs strace, which is for Linux alone"
  if shutil.which("strace") is None:
    return "needs strace, which is not installed"
  done = run(lambda: os.stat("/nowhere/at/all") and 0, fault=Fault("newfstatat", 1, "EMFILE"))
  if not done.hits:
    return "needs strace 5 or newer that may attach to processes (ptrace), which it may not here"
  return ""


def begin() -> None:
  """Called by a command from whose beginning not everything counts: what comes after it does."""
  if _begin is not None:
    _begin()


def run(
  command: Callable[[], int | None],
  *,
  fault: Fault | None = None,
  log: Path | None = None,
  cwd: Path | None = None,
  late: bool = False,
  timeout: float = 120,
) -> Outcome:
  """Runs a command in a forked process.

  Args:
    command: returns the exit code.
    fault: what strace does to it.
    log: a folder for what strace writes, one file a thread; else it is not kept.
    cwd: where it runs.
    late: whether calls count from ``begin`` on only, which the command then calls.
    timeout: seconds after which it is killed.
  """
  start = time.monotonic()
  gate, open_gate = os.pipe()
  reached, reach = os.pipe()
  out, err = os.pipe(), os.pipe()
  sys.stdout.flush()
  sys.stderr.flush()
  pid = os.fork()
  if pid == 0:
    for theirs in (open_gate, reached, out[0], err[0]):
      os.close(theirs)
    _child(command, gate, reach, out[1], err[1], fault, cwd, late)
  for theirs in (gate, reach, out[1], err[1]):
    os.close(theirs)
  with contextlib.ExitStack() as stack:
    folder = log
    strace = None
    if folder is None and fault is not None and fault.kind != "CUT":
      folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="djax-strace-")))
    if folder is not None and os.read(reached, 1):  # nothing where it ended before
      strace = _attach(pid, folder, fault)
    with contextlib.suppress(BrokenPipeError):
      os.write(open_gate, b"!")
    os.close(open_gate)
    os.close(reached)
    texts, late = _drain(pid, [out[0], err[0]], start + timeout)
    _, status = os.waitpid(pid, 0)
    if strace is not None:
      strace.communicate(timeout=60)
    hits = _hits(folder, fault, status) if folder is not None and fault is not None else []
  code = None if late else os.waitstatus_to_exitcode(status)
  return Outcome(code, *texts, hits, time.monotonic() - start)


def calls_of(log: Path, work: Path) -> list[Call]:
  """Returns the calls of a run without a fault that touch a folder, in the order of each thread.

  Args:
    log: what ``run`` wrote.
    work: the folder, absolute.
  """
  found = []
  for thread, file in enumerate(sorted(log.glob("log.*"), key=lambda path: int(path.suffix[1:]))):
    count: dict[str, int] = {}
    for line in file.read_text(errors="replace").splitlines():
      if match := _LINE.match(line):
        name = match[1]
        count[name] = count.get(name, 0) + 1
        if str(work) in line:
          found.append(Call(name, count[name], thread, line))
  return found


def _child(
  command: Callable[[], int | None],
  gate: int,
  reach: int,
  out: int,
  err: int,
  fault: Fault | None,
  cwd: Path | None,
  late: bool,
) -> NoReturn:
  """The forked process: waits until strace is there, runs the command, and ends as an interpreter does."""
  global _begin

  def wait() -> None:
    with contextlib.suppress(BrokenPipeError):
      os.write(reach, b"!")
    os.close(reach)
    os.read(gate, 1)

  code: int | None = 70
  try:
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYONE, 0, 0, 0)  # where Yama is
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    for other in set(range(3, 1 << 10)) - {gate, reach}:
      with contextlib.suppress(OSError):
        os.close(other)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
    if cwd is not None:
      os.chdir(cwd)
    if late:
      _begin = wait
    else:
      wait()
    if fault is not None and fault.kind == "CUT":
      resource.setrlimit(resource.RLIMIT_FSIZE, (fault.number, fault.number))
    try:
      code = command()
    except SystemExit as end:
      code = end.code if isinstance(end.code, int) else 1
    except BaseException:
      traceback.print_exc()
      code = 1
    gc.collect()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
  except BaseException:
    traceback.print_exc()
  finally:
    os._exit(code or 0)


def _attach(pid: int, folder: Path, fault: Fault | None) -> "subprocess.Popen[Any]":
  """Starts strace and waits until it holds the process."""
  folder.mkdir(parents=True, exist_ok=True)
  command = ["strace", "-ff", "-y", "-s", "0", "-o", str(folder / "log")]
  command += ["-e", "trace=?" + ",?".join(TRACED), "-e", "signal=none"]
  if fault is not None:
    what = "signal=KILL" if fault.kind == "KILL" else f"error={fault.kind}"
    command += ["-e", f"inject={fault.name}:{what}:when={fault.number}"]
    if not fault.all_threads:
      command.remove("-ff")
      command[command.index("-o") + 1] += f".{pid}"
  strace = subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
  assert strace.stderr is not None
  said = strace.stderr.readline()
  if "attached" not in said:
    strace.kill()
    raise RuntimeError(f"strace must attach to a process, got: {said.strip()}")
  return strace


def _drain(pid: int, pipes: list[int], deadline: float) -> tuple[list[str], bool]:
  """Reads what a process says until it has ended; kills it at the deadline."""
  texts: dict[int, list[bytes]] = {pipe: [] for pipe in pipes}
  waiting, late = set(pipes), False
  while waiting:
    ready, _, _ = select.select(list(waiting), [], [], max(0.0, deadline - time.monotonic()))
    if not ready:
      late = True
      os.kill(pid, signal.SIGKILL)
      deadline += 60
    for pipe in ready:
      data = os.read(pipe, 1 << 16)
      texts[pipe].append(data)
      if not data:
        waiting.discard(pipe)
        os.close(pipe)
  return [b"".join(texts[pipe]).decode("utf-8", "replace") for pipe in pipes], late


def _hits(folder: Path, fault: Fault, status: int) -> list[str]:
  """Returns the calls at which a fault struck."""
  del status
  found = []
  for file in sorted(folder.glob("log.*")):
    count = 0
    for line in file.read_text(errors="replace").splitlines():
      match = _LINE.match(line)
      if match and match[1] == fault.name:
        count += 1
        if count == fault.number and (fault.kind == "KILL" or "(INJECTED)" in line):
          found.append(line)
  return found
