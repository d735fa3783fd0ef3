"""``python -m train.table``: runs the rows of the results table, says what is missing, writes the page."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import train
from djax.errors import ConfigError, nearest
from train import terminal
from train.table import collect, page, plot, rows, runner

if TYPE_CHECKING:
  from train.table.rows import Row

__all__ = ["main"]

_USAGE = """python -m train.table [ROW ...] [--runs DIR] [--minutes M] [--no-audit] [--json] [--config.FIELD=VALUE ...]
       python -m train.table --list [ROW ...] [--runs DIR]
       python -m train.table --page docs/results.md [--runs DIR]"""
_FLAGS = ("--runs", "--minutes", "--no-audit", "--list", "--page", "--json", "--help")


def main(argv: Sequence[str] | None = None) -> int:
  """Parses flags, runs what is missing or shows what is there.

  Args:
    argv: arguments without the program's name; ``sys.argv`` by default.

  Returns:
    Exit code: 0 ok or time up, 1 a row failed, 2 usage or config, 4 data, 143/130 after a signal.
  """
  given = sys.argv[1:] if argv is None else list(argv)
  return terminal.guarded(lambda: _main(given), place="the folder of the runs")


def _main(argv: list[str]) -> int:
  flags, assignments = _parse(argv)
  chosen = rows.choose(flags.rows, rows.ROWS)
  runs = Path(flags.runs).expanduser()
  if flags.page:
    if flags.rows or assignments or flags.list or flags.minutes is not None or flags.no_audit:
      raise ConfigError("--page takes --runs and --json only: it shows all rows as they are.")
    return _page(Path(flags.page).expanduser(), runs, flags.json)
  if flags.list:
    return _list(chosen, runs, assignments, not flags.no_audit, flags.json)
  todo = runner.jobs(chosen, runs, overrides=assignments, audits=not flags.no_audit)
  report = runner.work(
    todo,
    train=train.run,
    audit=runner.attack,
    minutes=flags.minutes,
    say=terminal.say if flags.json else _line,
  )
  if flags.json:
    print(json.dumps(vars(report), indent=2))
  return 1 if report.failed else 0


def _page(path: Path, runs: Path, as_json: bool) -> int:
  """Writes the page, its facts and its plot, and the table of the README above its folder."""
  facts_file, plot_file = path.with_suffix(".json"), path.with_suffix(".svg")
  facts = collect.collect(rows.ROWS, runs, collect.earlier(facts_file))
  path.parent.mkdir(parents=True, exist_ok=True)
  plot.draw(facts, plot_file)
  _write(facts_file, json.dumps(facts, indent=1, allow_nan=False) + "\n")
  _write(path, page.page(facts, plot=plot_file.name))
  short = page.headline(facts, plot=f"{path.parent.name}/{plot_file.name}")
  readme = path.absolute().parent.parent / "README.md"
  if readme.is_file():
    before = readme.read_text()
    after = page.between(before, short)
    if after != before:
      _write(readme, after)
  print(json.dumps(facts) if as_json else short)
  return 0


def _list(
  chosen: Sequence["Row"], runs: Path, assignments: list[str], audits: bool, as_json: bool
) -> int:
  """Prints what is done and what is missing, a line a row."""
  found: dict[str, dict[str, str]] = {}
  for row in chosen:
    missing: dict[str, list[str]] = {}
    for job in runner.jobs([row], runs, overrides=assignments, audits=audits):
      missing.setdefault(job.kind, [])
      if job.found() is None:
        missing[job.kind].append("" if job.kind == "audit" else f" {job.seed}")
    found[row.name] = {
      kind: f"missing{''.join(seeds)}" if seeds else "done" for kind, seeds in missing.items()
    }
  if as_json:
    print(json.dumps(found, indent=2))
    return 0
  width = max(map(len, found))
  for name, kinds in found.items():
    print(
      f"{name:{width}}  "
      + "  ".join(f"{kind} {state:13}" for kind, state in kinds.items()).rstrip()
    )
  return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """Splits the arguments into flags and ``group.name=value`` assignments."""
  assignments, rest = [], []
  words = iter(argv)
  for word in words:
    if word.startswith("--config."):
      name = word.removeprefix("--config.")
      assignments.append(name if "=" in name else f"{name}={next(words, '')}")
    else:
      rest.append(word)
  parser = argparse.ArgumentParser(
    prog="python -m train.table",
    usage=_USAGE,
    description="Runs the rows of the results table, or goes on with them, and writes the page from what they left.",
    allow_abbrev=False,
    exit_on_error=False,
  )
  parser.add_argument("rows", nargs="*", metavar="ROW", help="a name or glob; all rows by default")
  parser.add_argument(
    "--runs",
    default="runs/table",
    metavar="DIR",
    help="the folder of all runs (default %(default)s)",
  )
  parser.add_argument(
    "--minutes",
    type=float,
    metavar="M",
    help="stop then, with a checkpoint; the same command goes on",
  )
  parser.add_argument(
    "--no-audit", action="store_true", help="leave the audits of the disguises out"
  )
  parser.add_argument(
    "--list", action="store_true", help="say what is done and what is missing, and run nothing"
  )
  parser.add_argument(
    "--page", metavar="FILE", help="write FILE.md, its .json and .svg, and run nothing"
  )
  parser.add_argument("--json", action="store_true", help="print JSON")
  try:
    flags, stray = parser.parse_known_intermixed_args(rest)
  except argparse.ArgumentError as error:
    raise ConfigError(f"{error}. See --help.") from None
  if stray:
    raise ConfigError(
      f"unknown argument {stray[0]!r}.{nearest(stray[0].partition('=')[0], _FLAGS)} See --help."
    )
  if flags.minutes is not None and not flags.minutes >= 0:
    raise ConfigError(f"--minutes must be at least 0, got {flags.minutes}.")
  return flags, assignments


def _line(text: str) -> None:
  """Prints a line that is seen at once, also in a file."""
  print(text, flush=True)


def _write(path: Path, text: str) -> None:
  """Writes a file that appears under its name only when whole."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  os.replace(temporary, path)
