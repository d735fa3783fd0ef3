"""``python -m tests.faults``: the loop, with progress; what was done already is not done again."""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import process
from .commands import COMMANDS, TWINS
from .loop import Result, Stage, chosen, table

# A process that forks has one thread; what JAX compiles is kept; nothing is written beside the code.
_ENVIRONMENT = {
  "OPENBLAS_NUM_THREADS": "1",
  "OMP_NUM_THREADS": "1",
  "MKL_NUM_THREADS": "1",
  "JAX_PLATFORMS": "cpu",
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the loop.

  Args:
    argv: arguments without the program's name; those of the process if None.

  Returns:
    0 if all was recovered, 1 if not, 3 if strace cannot work here.
  """
  parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
  parser.add_argument(
    "--only", metavar="A;B", default="", help=f"of {', '.join(COMMANDS)} (default all)"
  )
  parser.add_argument(
    "--sample",
    metavar="N",
    type=int,
    default=None,
    help="so many faults of each command, drawn; 0 for all (default all, for train 400)",
  )
  parser.add_argument("--results", metavar="FILE", help="JSON lines; what stands there is not done")
  parser.add_argument("--folder", metavar="DIR", help="where to work (default a temporary one)")
  parser.add_argument("--case", metavar="KEY", help="one fault alone, by its name in the results")
  parser.add_argument("--list", action="store_true", help="list the faults, and do none")
  args = parser.parse_args(argv)
  os.environ.update(_ENVIRONMENT)  # nothing has imported NumPy or JAX yet
  sys.dont_write_bytecode = True
  if why := process.why_not():
    print(f"skipped: {why}", file=sys.stderr)
    return 3
  known = {**COMMANDS, **TWINS}
  names = args.only.split(";") if args.only else list(COMMANDS)
  if strange := [name for name in names if name not in known]:
    parser.error(f"--only takes {', '.join(known)}; got {', '.join(strange)}")
  if args.case:
    names = [args.case.split("/")[0]]
  path = Path(args.results) if args.results else None
  results = _read(path)
  start = time.monotonic()
  # No TemporaryDirectory: the processes that are forked would take it away at their end.
  place = tempfile.mkdtemp(prefix="djax-faults-", dir=args.folder)
  try:
    for name in names:
      stage = Stage(known[name], Path(place).resolve() / name.replace(" ", "-"), _say)
      sample = known[name].sample if args.sample is None else args.sample
      cases = chosen(stage.cases(), 0 if args.case else sample)
      if args.case:
        cases = [case for case in cases if case.key == args.case]
      _say(f"{name}: {len(stage.calls)} system calls touch the folder, {len(cases)} faults")
      for number, case in enumerate(cases):
        if args.list:
          print(case.key, case.text)
          continue
        # With threads the calls differ a little from one start to the next, and so does what is drawn.
        if case.key in results or 0 < sample <= _done(results, name):
          continue
        result = stage.run(case)
        results[case.key] = result
        if path is not None:
          with path.open("a") as file:
            file.write(json.dumps(result._asdict()) + "\n")
        if result.problems:
          _say(f"NOT RECOVERED {result.key} at {result.text}: {'; '.join(result.problems)}")
        if number % 50 == 49:
          _say(f"{name}: {number + 1} of {len(cases)}, {time.monotonic() - start:.0f} s")
  finally:
    shutil.rmtree(place, ignore_errors=True)
  shown = [result for result in results.values() if result.command in names]
  if args.list:
    return 0
  print(table(shown))
  missed = [result.key for result in shown if result.outcome == "missed"]
  _say(f"{time.monotonic() - start:.0f} s; {len(missed)} calls were not made again: {missed[:5]}")
  return int(any(result.problems for result in shown))


def _done(results: dict[str, Result], name: str) -> int:
  return sum(result.command == name for result in results.values())


def _read(path: Path | None) -> dict[str, Result]:
  if path is None or not path.exists():
    return {}
  rows = [Result(**json.loads(line)) for line in path.read_text().splitlines()]
  return {row.key: row for row in rows}


def _say(line: str) -> None:
  print(f"faults: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
  sys.exit(main())
