"""Which faults there are for a command, one of them done and judged, and the table of all."""

import gc
import importlib
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from . import process
from .commands import Command, Snapshot, is_temporary, snapshot
from .process import Fault

__all__ = ["Case", "Result", "Stage", "table"]

# Errors by what a call does: those that a full or failing disk, rights, and a process with too many files give.
_ERRORS = {
  "open for writing": ("ENOSPC", "EIO", "EACCES", "EMFILE"),
  "open for reading": ("EIO", "EACCES", "EMFILE"),
  "write": ("ENOSPC", "EIO"),
  "sync": ("ENOSPC", "EIO"),
  "name": ("ENOSPC", "EIO", "EACCES"),
  "unname": ("EIO", "EACCES"),
  "rights": ("EIO", "EACCES"),
  "look": ("EIO", "EACCES"),
  "hold": ("EIO",),
}
_GROUPS = {
  "write": ("write", "writev", "pwrite64", "pwritev", "truncate", "ftruncate", "fallocate"),
  "sync": ("fsync", "fdatasync", "sync_file_range"),
  "name": ("rename", "renameat", "renameat2", "link", "linkat", "symlink", "mkdir", "mkdirat"),
  "unname": ("unlink", "unlinkat", "rmdir"),
  "rights": ("chmod", "fchmod", "fchmodat"),
  "look": ("stat", "lstat", "fstat", "newfstatat", "statx", "access", "faccessat", "faccessat2"),
}
_GROUP_OF = {name: group for group, names in _GROUPS.items() for name in names}
_MAKES = re.compile(r"O_CREAT|O_TMPFILE|O_TRUNC")
# A kill at another call leaves what a kill at the next one of these leaves.
_CHANGES = ("open for writing", "write", "sync", "name", "unname", "rights")
_MUST_FAIL = ("write", "sync", "open for writing")
_TRIES = 3
_SHORTEST_NAME = 6
_LONGEST = 500  # of a problem's text
_CUTS = 4  # limits tried for each length of a file


class Case(NamedTuple):
  """A fault of a command.

  Attributes:
    command: its name in the table.
    fault: what goes wrong.
    group: what the call does.
    text: the call as a clean run made it.
  """

  command: str
  fault: Fault
  group: str
  text: str

  @property
  def key(self) -> str:
    """Tells it from the others."""
    return "/".join(map(str, (self.command, *self.fault)))


class Result(NamedTuple):
  """What came of a fault.

  Attributes:
    key: of the case.
    command: its name.
    kind: of the fault.
    group: what the call does.
    text: the call that was hit, or the clean run's.
    outcome: ``refused`` in one line, ``harmless``, ``killed``, or ``missed`` where the call was not made.
    problems: what is wrong; empty where all was recovered.
  """

  key: str
  command: str
  kind: str
  group: str
  text: str
  outcome: str
  problems: list[str]


class Stage:
  """A folder in which a command is made to fail again and again.

  Args:
    command: what to run.
    root: a folder of its own.
    say: told what is done.
  """

  def __init__(self, command: Command, root: Path, say: Callable[[str], None]):
    self._command, self._root = command, root
    self._work, self._before = root / "work", root / "before"
    self._say = say
    for name in command.modules:
      importlib.import_module(name)
    shutil.rmtree(root, ignore_errors=True)
    self._work.mkdir(parents=True)
    self._must(lambda: command.prepare(self._work), "preparation")
    shutil.move(self._work, self._before)
    self._there = snapshot(self._before)
    self._import_what_it_imports()
    self._renew()
    outcome = process.run(self._main, log=root / "clean", cwd=root, late=command.late)
    if outcome.code != 0:
      raise RuntimeError(f"{command.name} must work without a fault, got: {outcome.stderr}")
    self._clean = self._state()
    self._limits = _limits(self._there, snapshot(self._work))
    self._said = _lines(outcome.stderr)
    self.calls = process.calls_of(root / "clean", self._work)
    made = [call.text for call in self.calls if call.name.startswith("mkdir")]
    self._folders = {path for text in made for path in self._paths(text)}
    if problems := self._command.problems(self._work, self._there, snapshot(self._work)):
      raise RuntimeError(f"{command.name} without a fault: {problems}")

  def cases(self) -> list[Case]:
    """Returns every fault there is, in the order of the calls."""
    found: dict[str, Case] = {}
    for call in self.calls:
      group = _group(call.name, call.text)
      kinds = _ERRORS[group]
      if group in _CHANGES:
        kinds = (*kinds, "KILL")
      for kind in kinds:
        if call.thread and not self._command.threads:
          continue
        fault = Fault(call.name, call.number, kind, call.thread > 0)
        case = Case(self._command.name, fault, group, call.text)
        found.setdefault(case.key, case)
    for limit in self._limits:
      case = Case(self._command.name, Fault("", limit, "CUT"), "cut", f"{limit} bytes a file")
      found.setdefault(case.key, case)
    return list(found.values())

  def run(self, case: Case) -> Result:
    """Makes a command fail, looks at what is left, and runs it again.

    Args:
      case: of this command.
    """
    for _ in range(_TRIES):
      self._renew()
      outcome = process.run(self._main, fault=case.fault, cwd=self._root, late=self._command.late)
      fair = bool(outcome.hits) and all(str(self._work) in line for line in outcome.hits)
      if fair or case.fault.kind == "CUT":
        break
    else:
      text = (outcome.hits or [case.text])[0]
      return Result(case.key, case.command, case.fault.kind, case.group, text, "missed", [])
    text = outcome.hits[0] if outcome.hits else case.text
    word, problems = self._judged(outcome, case, text)
    problems += self._lost()
    problems += self._command.problems(self._work, self._there, self._clean)
    problems += self._repeated()
    short = [problem[:_LONGEST] for problem in problems]
    return Result(case.key, case.command, case.fault.kind, case.group, text, word, short)

  def _main(self) -> int | None:
    os.environ["TMPDIR"] = str(self._work / "tmp")
    if "jax" in sys.modules:  # to compile would take longer than all else
      sys.modules["jax"].config.update(
        "jax_compilation_cache_dir", str(self._root.parent / "compiled")
      )
    return self._command.main(self._work)

  def _must(self, command: Callable[[], int | None], what: str) -> None:
    outcome = process.run(command, cwd=self._root)
    if outcome.code != 0:
      raise RuntimeError(f"{what} of {self._command.name} failed: {outcome.stderr}")

  def _renew(self) -> None:
    shutil.rmtree(self._work, ignore_errors=True)
    shutil.copytree(self._before, self._work, symlinks=True)

  def _state(self) -> Snapshot:
    return self._command.same(snapshot(self._work), self._work)

  def _import_what_it_imports(self) -> None:
    """Imports here what a run imports, so that no run has to."""

    def command() -> int:
      code = self._main()
      print("\n" + json.dumps(sorted(sys.modules)))
      return code or 0

    self._renew()
    outcome = process.run(command, cwd=self._root)
    if outcome.code != 0:
      raise RuntimeError(f"{self._command.name} must work without a fault, got: {outcome.stderr}")
    for name in json.loads(outcome.stdout.splitlines()[-1]):
      if name not in sys.modules and "__main__" not in name:
        try:
          importlib.import_module(name)
        except Exception:  # made up by another module
          continue
    gc.collect()
    gc.freeze()  # else a collection in a forked process copies all its memory
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
      self._say(f"warning: {threads} threads run after the imports of {self._command.name}")

  def _judged(self, outcome: process.Outcome, case: Case, text: str) -> tuple[str, list[str]]:
    """Says how a command with a fault ended, and what is wrong with that."""
    if outcome.code is None:
      return "hung", ["it did not end"]
    if case.fault.kind == "KILL":
      return "killed", [] if outcome.code == -9 else [f"it ended with {outcome.code}"]
    problems = []
    if "Traceback" in outcome.stderr or "Exception ignored" in outcome.stderr:
      problems.append("a traceback: " + outcome.stderr.strip().splitlines()[-1])
    if outcome.code < 0:
      return "crashed", [*problems, f"signal {-outcome.code}"]
    new = [line for line in _lines(outcome.stderr) if line not in self._said]
    if outcome.code == 0:
      if self._left_out() != self._clean:
        problems.append("exit code 0, but the result is not the clean one")
      lossless = self._is_folder(text) or "report.html" in text  # a run is whole without its page
      if _group(case.fault.name, text) in _MUST_FAIL and not lossless:
        problems.append("exit code 0, though what was written may be lost")
      return "harmless", problems
    if len(new) != 1 or "error: " not in new[0]:
      problems.append(f"it must say one line, said {new}")
    elif not self._names_place(new[0], text):
      problems.append(f"its line names no place: {new[0]}")
    return "refused", problems

  def _left_out(self) -> Snapshot:
    """Returns the state without temporary names, which a harmless fault may leave for the next call."""
    return {name: content for name, content in self._state().items() if not is_temporary(name)}

  def _is_folder(self, text: str) -> bool:
    """Whether a call is about a folder: to sync it is of use, and not more."""
    return any(Path(path).is_dir() or path in self._folders for path in self._paths(text))

  def _names_place(self, line: str, text: str) -> bool:
    """Whether a line says where something went wrong: a path, or the last name in the call that was hit."""
    names = re.findall(r"[^/\">]+(?=[\">])", text)
    places = {str(self._work), *(name for name in names if len(name) >= _SHORTEST_NAME)}
    return "the run directory" in line or any(_lines(place)[0] in line for place in places)

  def _paths(self, text: str) -> list[str]:
    """Returns the paths in the folder that a call names."""
    found = re.findall(rf"{re.escape(str(self._work))}[^>\",]*", text)
    return [path.rstrip("/") for path in found]

  def _lost(self) -> list[str]:
    """Names what was there before and is no more."""
    now, before = self._state(), self._command.same(self._there, self._work)
    return [
      f"{name} was there before and has changed"
      for name, content in before.items()
      if now.get(name) != content and self._clean.get(name) == content
    ]

  def _repeated(self) -> list[str]:
    """Runs the command again, without a fault, and compares what is there with the result of a clean run."""
    whole = self._left_out() == self._clean
    outcome = process.run(self._main, cwd=self._root)
    problems = []
    refused = self._command.once and whole and outcome.code == 5
    if outcome.code != 0 and not refused:
      problems.append(f"repeated: exit code {outcome.code}: {outcome.stderr.strip()[-300:]}")
    if (now := self._state()) != self._clean:
      names = sorted(n for n in now.keys() | self._clean.keys() if now.get(n) != self._clean.get(n))
      problems.append(f"repeated: not as after a clean run: {', '.join(names[:6])}")
    problems += self._command.problems(self._work, self._there, self._clean)
    return problems


def chosen(cases: Sequence[Case], sample: int) -> list[Case]:
  """Returns some cases, drawn so that every group and kind is among them where there is room; always the same ones.

  Args:
    cases: all.
    sample: how many; 0: all.
  """
  if not sample or sample >= len(cases):
    return list(cases)
  rng = random.Random(0)
  by_sort: dict[tuple[str, str], list[Case]] = {}
  for case in cases:
    by_sort.setdefault((case.group, case.fault.kind), []).append(case)
  sorts = list(by_sort.values())
  for sort in sorts:
    rng.shuffle(sort)
  rng.shuffle(sorts)
  picked: list[Case] = []
  while len(picked) < sample:
    for sort in sorts:
      if sort and len(picked) < sample:
        picked.append(sort.pop())
  return sorted(picked, key=cases.index)


def table(results: Sequence[Result]) -> str:
  """Returns results as Markdown: a row for each command and kind of fault.

  Args:
    results: of all commands.
  """
  rows: dict[tuple[str, str], list[Result]] = {}
  for result in results:
    rows.setdefault((result.command, result.kind), []).append(result)
  lines = [
    "| command | fault | injected | refused in one line | harmless | killed | recovered | not recovered |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for (command, kind), found in rows.items():
    lines.append(_row(command, kind, found))
  lines.append(_row("all", "", list(results)))
  return "\n".join(lines)


def _row(command: str, kind: str, results: Sequence[Result]) -> str:
  done = [result for result in results if result.outcome != "missed"]
  good = sum(not result.problems for result in done)
  counts = [sum(r.outcome == word for r in done) for word in ("refused", "harmless", "killed")]
  cells = [command, kind, len(done), *counts, good, len(done) - good]
  return "| " + " | ".join(map(str, cells)) + " |"


def _limits(before: Snapshot, after: Snapshot) -> list[int]:
  """Returns how long files may become, so that a write ends within each of those that a command makes."""
  lengths = {len(data) for name, (_, data) in after.items() if data and name not in before}
  found = {0, 1}
  for length in lengths:
    found |= {length * part // _CUTS for part in range(1, _CUTS)} | {length - 1}
  return sorted(found)


def _group(name: str, text: str) -> str:
  """Says what a call does; only the open that makes a file is one for writing: others change nothing."""
  if name in ("open", "openat"):
    return f"open for {'writing' if _MAKES.search(text) else 'reading'}"
  return _GROUP_OF.get(name, "hold")


def _lines(text: str) -> list[str]:
  """Returns lines, numbers left out: some say seconds."""
  return [re.sub(r"\b[0-9]+(\.[0-9]+)?", "0", line) for line in text.splitlines() if line]
