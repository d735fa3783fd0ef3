"""``python -m train.compare``: runs what is missing of the comparison, attacks the models, writes the page."""

import sys
from collections.abc import Sequence
from typing import Any

import train
from djax.cli.guide import Guide
from djax.io import files
from train import run_dir, terminal
from train.compare import collect, page
from train.table import collect as table_collect
from train.table import rows, runner
from train.table.command import line, parse

__all__ = ["main"]

_FLAGS: dict[str, dict[str, Any]] = {
  "--runs": {"default": "runs/compare"},
  "--page": {"default": "docs/comparison.md", "help": "FILE.md, and its .json beside it"},
  "--minutes": {},
  "--no-run": {"action": "store_true", "help": "train and audit nothing, write what is there"},
}

_GUIDE = Guide(
  (
    ("for an hour, or go on", "--minutes 60"),
    ("the page of what is there", "--no-run --page docs/comparison.md"),
  ),
  (4, 143),
)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs, attacks and writes.

  Args:
    argv: arguments without the program's name; ``sys.argv`` by default.

  Returns:
    Exit code: 0 ok or time up, 1 a row failed, 2 usage or config, 4 data, 143/130 after a signal.
  """
  words = sys.argv[1:] if argv is None else list(argv)
  return terminal.guarded(_main, words, place="the folder of the runs")


def _main(argv: list[str]) -> int:
  args = parse(
    argv,
    _FLAGS,
    prog="python -m train.compare",
    description="Compares RMT, AES, InstaHide, NeuraCrypt and plain training on the same MNIST images: runs what is "
    "missing, attacks disguises and models, writes the page. Resumes where it stopped.",
    guide=_GUIDE,
  )
  results_file = args.page.with_suffix(".json")
  previous = table_collect.earlier(results_file, form=collect.FORMAT)
  failed = False
  if not args.no_run:
    report = runner.work(
      runner.jobs(rows.COMPARED, args.runs),
      train=train.run,
      audit=runner.attack,
      minutes=args.minutes,
      say=line,
    )
    failed = bool(report.failed)
  results = collect.collect(rows.COMPARED, args.runs, previous, say=line)
  args.page.parent.mkdir(parents=True, exist_ok=True)
  run_dir.write_json(results_file, results)
  files.replace(args.page, page.page(results).encode())
  line(f"wrote {args.page}")
  return 1 if failed else 0
