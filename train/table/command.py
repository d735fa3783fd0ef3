"""``python -m train.table``: runs the rows of the results table, lists what is missing, writes the page.

``parse`` and ``line`` serve ``python -m train.compare`` as well.
"""

import argparse
import functools
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import train
from djax.cli.guide import Guide, text, width
from djax.errors import ConfigError, nearest
from djax.io import files, pages
from train import terminal
from train.table import collect, page, plot, rows, runner

__all__ = ["line", "main", "parse"]

_USAGE = """python -m train.table [ROW ...] [--runs DIR] [--minutes M] [--no-audit] [--json] [--config.FIELD=VALUE ...]
       python -m train.table --list [ROW ...] [--runs DIR]
       python -m train.table --page docs/results.md [--runs DIR]"""
_SHARED: dict[str, dict[str, Any]] = {
  "--runs": {
    "metavar": "DIR",
    "type": Path,
    "help": "the folder of all runs (default %(default)s)",
  },
  "--minutes": {
    "metavar": "M",
    "type": float,
    "help": "stop after so many minutes, with a checkpoint; re-run the command to resume",
  },
  "--page": {"metavar": "FILE", "type": Path},
}
_FLAGS: dict[str, dict[str, Any]] = {
  "rows": {"nargs": "*", "metavar": "ROW", "help": "a name or glob; all rows by default"},
  "--runs": {"default": "runs/table"},
  "--minutes": {},
  "--no-audit": {"action": "store_true", "help": "leave out the audits of the disguises"},
  "--list": {"action": "store_true", "help": "list what is done and what is missing; run nothing"},
  "--page": {"help": "write FILE.md, its .json and .svg; run nothing"},
  "--json": {"action": "store_true", "help": "print JSON"},
}

_GUIDE = Guide(
  (
    ("what is done, what is missing?", "--list"),
    ("run the rows of MNIST for an hour, or go on", "'mnist_*' --minutes 60"),
    ("write the page", "--page docs/results.md"),
  ),
  (4, 143),
)

line = functools.partial(print, flush=True)  # seen at once, also in a file


def main(argv: Sequence[str] | None = None) -> int:
  """Parses flags, runs what is missing or shows what is there.

  Args:
    argv: arguments without the program's name; ``sys.argv`` by default.

  Returns:
    Exit code: 0 ok or time up, 1 a row failed, 2 usage or config, 4 data, 143/130 after a signal.
  """
  words = sys.argv[1:] if argv is None else list(argv)
  return terminal.guarded(_main, words, place="the folder of the runs")


def parse(
  words: Sequence[str],
  flags: Mapping[str, Mapping[str, Any]],
  *,
  prog: str,
  description: str,
  guide: Guide,
  **parser: Any,
) -> argparse.Namespace:
  """Parses the flags of a command that runs rows; paths may begin with ``~``.

  Args:
    words: the arguments.
    flags: by name, what ``add_argument`` takes; ``--runs``, ``--minutes`` and ``--page`` only what they add to the
      shared definition.
    prog: the command.
    description: of it.
    guide: what its help ends with.
    **parser: what ``ArgumentParser`` takes besides.

  Raises:
    ConfigError: for arguments that are unknown or have no such value.
  """
  reader = argparse.ArgumentParser(
    prog=prog,
    description=textwrap.fill(description, width()),
    epilog=text(prog, guide),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    exit_on_error=False,
    **parser,
  )
  for name, options in flags.items():
    reader.add_argument(name, **{**_SHARED.get(name, {}), **options})
  try:
    args, unknown = reader.parse_known_intermixed_args(words)
  except argparse.ArgumentError as error:
    raise ConfigError(f"{error}. See --help.") from None
  if unknown:
    suggestion = nearest(unknown[0].partition("=")[0], (*flags, "--help"))
    raise ConfigError(f"unknown argument {unknown[0]!r}.{suggestion} See --help.")
  if args.minutes is not None and not args.minutes >= 0:
    raise ConfigError(f"--minutes must be at least 0, got {args.minutes}.")
  args.runs, args.page = (path and path.expanduser() for path in (args.runs, args.page))
  return args


def _main(argv: list[str]) -> int:
  overrides, rest = [], []
  words = iter(argv)
  for word in words:
    if word.startswith("--config."):
      name = word.removeprefix("--config.")
      overrides.append(name if "=" in name else f"{name}={next(words, '')}")
    else:
      rest.append(word)
  args = parse(
    rest,
    _FLAGS,
    prog="python -m train.table",
    usage=_USAGE,
    description="Runs the rows of the results table, or resumes them, and writes the page from their results.",
    guide=_GUIDE,
  )
  chosen = rows.choose(args.rows, rows.ROWS)
  if args.page:
    if args.rows or overrides or args.list or args.minutes is not None or args.no_audit:
      raise ConfigError("--page takes --runs and --json only: it shows all rows as they are.")
    return _page(args.page, args.runs, args.json)
  jobs = functools.partial(
    runner.jobs, runs=args.runs, overrides=overrides, audits=not args.no_audit
  )
  if args.list:
    return _list({row.name: jobs([row]) for row in chosen}, args.json)
  report = runner.work(
    jobs(chosen),
    train=train.run,
    audit=runner.attack,
    minutes=args.minutes,
    say=terminal.say if args.json else line,
  )
  if args.json:
    print(json.dumps(vars(report), indent=2))
  return 1 if report.failed else 0


def _page(path: Path, runs: Path, as_json: bool) -> int:
  """Writes the page, its results and its plot, and the table of the README above its folder."""
  results_file, plot_file = path.with_suffix(".json"), path.with_suffix(".svg")
  results = collect.collect(rows.ROWS, runs, collect.earlier(results_file))
  path.parent.mkdir(parents=True, exist_ok=True)
  plot.draw(results, plot_file)
  pages.write_json(results_file, results)
  files.replace(path, page.page(results, plot=plot_file.name).encode())
  short = page.headline(results, plot=f"{path.parent.name}/{plot_file.name}")
  readme = path.absolute().parent.parent / "README.md"
  if readme.is_file():
    before = readme.read_text()
    after = pages.between(before, short, begin=page.BEGIN, end=page.END)
    if after != before:
      files.replace(readme, after.encode())
  print(json.dumps(results) if as_json else short)
  return 0


def _list(jobs: Mapping[str, Sequence[runner.Job]], as_json: bool) -> int:
  """Prints what is done and what is missing, a line a row."""
  states: dict[str, dict[str, str]] = {}
  for name, of_row in jobs.items():
    missing: dict[str, str] = {}
    for job in of_row:
      seed = "" if job.kind == "audit" else f" {job.seed}"
      state = missing.setdefault(job.kind, "")
      if job.result() is None:
        missing[job.kind] = f"{state or 'missing'}{seed}"
    states[name] = {kind: state or "done" for kind, state in missing.items()}
  if as_json:
    print(json.dumps(states, indent=2))
    return 0
  width = max(map(len, states))
  for name, kinds in states.items():
    cells = "  ".join(f"{kind} {state:13}" for kind, state in kinds.items())
    print(f"{name:{width}}  {cells.rstrip()}")
  return 0
