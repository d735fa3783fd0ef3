"""``python -m train.compare``: runs what is missing of the comparison, attacks the models, writes the page."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import train
from djax.errors import ConfigError
from train import run_dir, terminal
from train.compare import facts, page
from train.table import rows, runner

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
  """Runs, attacks and writes.

  Args:
    argv: arguments without the program's name; ``sys.argv`` by default.

  Returns:
    Exit code: 0 ok or time up, 1 a row failed, 2 usage or config, 4 data, 143/130 after a signal.
  """
  given = sys.argv[1:] if argv is None else list(argv)
  return terminal.guarded(lambda: _main(given), place="the folder of the runs")


def _main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="python -m train.compare",
    description="Compares RMT, AES, InstaHide, NeuraCrypt and plain training on the same MNIST images: runs what is "
    "missing, attacks disguises and models, writes the page. Goes on where it stopped.",
    allow_abbrev=False,
    exit_on_error=False,
  )
  parser.add_argument("--runs", default="runs/compare", metavar="DIR", help="default %(default)s")
  parser.add_argument(
    "--page", default="docs/comparison.md", metavar="FILE", help="FILE.md, and its .json beside it"
  )
  parser.add_argument(
    "--minutes", type=float, metavar="M", help="train no longer; the same command goes on"
  )
  parser.add_argument(
    "--no-run", action="store_true", help="train and audit nothing, write what is there"
  )
  try:
    flags, stray = parser.parse_known_args(argv)
  except argparse.ArgumentError as error:
    raise ConfigError(f"{error}. See --help.") from None
  if stray:
    raise ConfigError(f"unknown argument {stray[0]!r}. See --help.")
  if flags.minutes is not None and not flags.minutes >= 0:
    raise ConfigError(f"--minutes must be at least 0, got {flags.minutes}.")

  runs, path = Path(flags.runs).expanduser(), Path(flags.page).expanduser()
  kept = facts.earlier(path.with_suffix(".json"))
  failed = False
  if not flags.no_run:
    report = runner.work(
      runner.jobs(rows.COMPARED, runs),
      train=train.run,
      audit=runner.attack,
      minutes=flags.minutes,
      say=_line,
    )
    failed = bool(report.failed)
  found = json.loads(json.dumps(facts.collected(rows.COMPARED, runs, kept, say=_line)))
  path.parent.mkdir(parents=True, exist_ok=True)
  run_dir.write_json(path.with_suffix(".json"), found)
  path.write_text(page.page(found))
  _line(f"wrote {path}")
  return 1 if failed else 0


def _line(text: str) -> None:
  """Prints a line that is seen at once, also in a file."""
  print(text, flush=True)
