"""Runs what is missing of some rows: disguised runs, their plain twins, audits; stops in time and resumes."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from ml_collections import ConfigDict

from djax.attacks import ATTACKS
from djax.audit import runner as audit_runner
from djax.audit import scenario
from djax.errors import DjaxError
from djax.io import pages
from train import audited, run_dir, terminal
from train import config as config_lib
from train.loop import Stopped
from train.table import rows
from train.table.rows import Row

__all__ = [
  "AUDIT",
  "Interrupted",
  "Job",
  "Report",
  "attack",
  "audit_dir",
  "jobs",
  "run_of",
  "work",
]

AUDIT = "audit.json"

Run = Callable[[ConfigDict, Path], dict[str, Any]]
Progress = Callable[[float, str], None]
Audit = Callable[[ConfigDict, Progress], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Job:
  """One thing to run.

  Attributes:
    row: the first row that needs it.
    kind: ``disguised``, ``plain`` or ``audit``.
    seed: of the run; 0 for an audit.
    config: of the run; for an audit, of the row.
    folder: where it goes.
  """

  row: str
  kind: str
  seed: int
  config: ConfigDict
  folder: Path

  @property
  def name(self) -> str:
    """What it is called in a line."""
    if self.kind == "audit":
      return f"{self.row}, audit"
    return f"{self.row}, seed {self.seed}{', plain twin' * (self.kind == 'plain')}"

  def result(self) -> dict[str, Any] | None:
    """Returns the result if there is one that belongs to this config."""
    if self.kind == "audit":
      return pages.read_json(self.folder / AUDIT)
    return run_of(self.folder, self.config)


@dataclasses.dataclass
class Report:
  """The outcome of some jobs, by name.

  Attributes:
    done: completed now.
    kept: completed earlier.
    failed: with the reason.
    missing: not done, because the time was up.
  """

  done: list[str] = dataclasses.field(default_factory=list)
  kept: list[str] = dataclasses.field(default_factory=list)
  failed: dict[str, str] = dataclasses.field(default_factory=dict)
  missing: list[str] = dataclasses.field(default_factory=list)


class Interrupted(DjaxError):
  """A signal came where there was no checkpoint to write; ``exit_code`` is 128 plus the signal."""

  def __init__(self, number: int, rest: Sequence[Job]):
    left = f". Re-run the command to resume with {rest[0].name}" if rest else " when all was done"
    super().__init__(f"stopped by {signal.Signals(number).name}{left}.")
    self.exit_code = 128 + number


class _Halt(BaseException):
  """Ends an audit, which would take an ``Exception`` for a failed attack and continue."""


def jobs(
  chosen: Sequence[Row], runs: Path, *, overrides: Sequence[str] = (), audits: bool = True
) -> list[Job]:
  """Returns all jobs of some rows, in the order in which they are run.

  The first seed of every row comes before the second of any; a plain twin right after the first row that needs it;
  audits last. Twins and audits that rows share are listed once.

  Args:
    chosen: the rows.
    runs: the folder of all runs.
    overrides: further config fields.
    audits: whether audits are wanted.

  Raises:
    ConfigError: for a config, field or value that does not exist.
  """
  by_folder: dict[Path, Job] = {}

  def add(*fields):
    by_folder.setdefault(fields[-1], Job(*fields))

  for place in range(max((len(row.seeds) for row in chosen), default=0)):
    for row in chosen:
      for seed in row.seeds[place : place + 1]:
        config = rows.config_of(row, seed, overrides)
        add(row.name, "disguised", seed, config, runs / row.name / f"seed{seed}")
        twin = config_lib.twin(config)
        add(row.name, "plain", seed, twin, runs / "plain" / rows.fingerprint(twin))
  for row in chosen if audits else ():
    config = rows.config_of(row, row.seeds[0], overrides)
    add(row.name, "audit", 0, config, audit_dir(runs, config))
  return list(by_folder.values())


def audit_dir(runs: Path, config: ConfigDict) -> Path:
  """Returns the folder of the audit of a run, shared by all runs of one source and disguise.

  Args:
    runs: the folder of all runs.
    config: of the run.
  """
  return runs / "audits" / rows.audited(config)["hash"]


def work(
  todo: Sequence[Job],
  *,
  train: Run,
  audit: Audit,
  minutes: float | None = None,
  say: Callable[[str], None] = print,
) -> Report:
  """Runs what is missing and prints a line for each job; a job that fails does not stop the others.

  Args:
    todo: the jobs.
    train: ``(config, folder) -> result``, such as ``train.run``: resumes what it finds in the folder.
    audit: ``(config, progress) -> content of audit.json``, such as ``attack``; ``progress`` ends it when it must stop.
    minutes: after which no job is begun, and the run in progress is stopped with a checkpoint.
    say: prints a line.

  Raises:
    DjaxError: on SIGTERM or SIGINT, with their exit code: ``Stopped`` where a checkpoint was written.
  """
  report = Report()
  rest = list(todo)
  with _Clock(minutes) as clock:
    while rest and not clock.received:
      try:
        _step(rest[0], train, audit, clock, report, say)
      except _Halt:
        break
      except Stopped:
        if not clock.is_up():
          raise
        break
      rest.pop(0)
    if clock.received and not clock.is_up():
      raise Interrupted(clock.received[0], rest)
  report.missing = [job.name for job in rest if job.result() is None]
  if report.missing:
    say(f"time is up; missing: {'; '.join(report.missing)}. Re-run the command to resume.")
  return report


def attack(config: ConfigDict, progress: Progress) -> dict[str, Any]:
  """Audits the disguise of a run with all attacks, as ``python -m djax audit --config`` does; takes minutes.

  Args:
    config: of the run.
    progress: called with the share that is done and a word on what is being done.

  Returns:
    What ``audit.json`` holds.

  Raises:
    DjaxError: if the source or the disguise cannot be audited.
  """
  attacked = audited.scenario_of(config, seed=0, sizes=scenario.FAST, progress=progress)
  return audit_runner.audit(attacked, list(ATTACKS.values()), seed=0, progress=progress).facts


def run_of(folder: Path, config: ConfigDict) -> dict[str, Any] | None:
  """Returns the result of a run directory; None if it is not finished, or is a run of another config.

  Args:
    folder: the run directory.
    config: what it must be a run of.
  """
  before, result = (pages.read_json(folder / f"{name}.json") for name in ("config", "result"))
  if before is None or rows.fingerprint(before) != rows.fingerprint(config):
    return None
  return result


def _step(
  job: Job, train: Run, audit: Audit, clock: "_Clock", report: Report, say: Callable[[str], None]
) -> None:
  """Does one job, unless it is done."""
  if (result := job.result()) is not None:
    report.kept.append(job.name)
    say(f"{job.name}: {_outcome(job, result)}, done before")
    return
  terminal.say(f"{job.name}: begins in {job.folder}")
  try:
    if job.kind == "audit":
      result = audit(job.config, clock.check)
      job.folder.mkdir(parents=True, exist_ok=True)
      run_dir.write_json(job.folder / AUDIT, result)
    else:
      result = train(job.config, job.folder)
  except Stopped:
    raise
  except Exception as error:  # such as a device out of memory: the other rows may still run
    kind = "" if isinstance(error, DjaxError) else f"{type(error).__name__}: "
    report.failed[job.name] = kind + " ".join(str(error).split())[:500]
    say(f"{job.name}: failed: {report.failed[job.name]}")
    return
  report.done.append(job.name)
  say(f"{job.name}: {_outcome(job, result)}")


def _outcome(job: Job, result: dict[str, Any]) -> str:
  """Describes the result of a job."""
  if job.kind == "audit":
    levels = (f"level {n} {level['verdict']}" for n, level in result["levels"].items())
    return f"{', '.join(levels)}, {result['seconds']:.0f} s"
  return f"{result['test_accuracy']:.2%} on {job.kind} test images, {result['seconds']:.0f} s"


class _Clock:
  """Notes signals while jobs run, and sends SIGTERM to this process when the time is up.

  It raises nothing by itself: an exception that comes from anywhere within JAX can crash the interpreter. The training
  loop stops at the end of a chunk of steps, but misses signals that came before its first: so each is sent again,
  second by second. Audits call ``check``.
  """

  def __init__(self, minutes: float | None):
    seconds = threading.TIMEOUT_MAX if minutes is None else 60 * minutes
    self._end = time.monotonic() + seconds
    self._own = False
    self._set_timer(seconds, signal.SIGTERM)
    self.received: list[int] = [] if seconds else [signal.SIGTERM]

  def is_up(self) -> bool:
    """Returns whether the time is over."""
    return time.monotonic() >= self._end

  def check(self, *_: object) -> None:
    """Stops an audit if a signal came; ignores the progress that it is called with."""
    if self.received:
      raise _Halt

  def __enter__(self) -> Self:
    numbers = (signal.SIGTERM, signal.SIGINT)
    self._previous = {number: signal.signal(number, self._note) for number in numbers}
    self._timer.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._timer.cancel()
    self._timer.join()  # else its signal may come when the handlers are gone
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _set_timer(self, seconds: float, number: int) -> None:
    self._timer = threading.Timer(seconds, self._send, (number,))
    self._timer.daemon = True

  def _send(self, number: int) -> None:
    self._own = True
    os.kill(os.getpid(), number)

  def _note(self, number: int, frame: object) -> None:
    """Notes a signal and will send it again; one given twice from outside ends the process at once."""
    del frame
    own, self._own = self._own, False
    if number in self.received and not own:
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)
    self.received.append(number)
    self._timer.cancel()
    self._set_timer(1, number)
    self._timer.start()
