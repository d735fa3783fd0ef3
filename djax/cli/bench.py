"""What ``python -m djax bench`` does. Data goes to stdout, talk to stderr."""

import argparse
import json
from pathlib import Path
from typing import Any

from djax.bench import disguises, guard, page
from djax.bench.machine import machine
from djax.cli import training
from djax.cli.common import say
from djax.errors import ConfigError, DataError

__all__ = ["run"]

_ROUNDS = 11
_FAST_ROUNDS = 5


def run(args: argparse.Namespace) -> None:
  """Measures, or writes a page of what was measured.

  Args:
    args: of the verb ``bench``.

  Raises:
    DjaxError: for flags or files that cannot be used, or a speed that fell.
  """
  if args.page:
    if args.fast or args.json or args.against:
      raise ConfigError("bench: --page takes files of speeds and no other flag.")
    print(page.text([_read(name) for name in args.page]), end="")
    return
  stored = _read(args.against) if args.against else None
  results = _measure(fast=args.fast)
  print(json.dumps(results, indent=1) if args.json else page.summary(results))
  if stored is not None:
    say(f"{guard.compare(results, stored)} ratios hold against {args.against}")


def _measure(*, fast: bool) -> dict[str, Any]:
  rounds = _FAST_ROUNDS if fast else _ROUNDS
  results: dict[str, Any] = {
    "machine": machine(),
    "rounds": rounds,
    "copy_gigabytes_per_second": disguises.copy_bandwidth(rounds=rounds),
    "errors": disguises.errors(),
    "disguises": [],
    "steps": [],
  }
  rows = list(disguises.cases(fast=fast))
  for number, row in enumerate(rows, 1):
    shape = "x".join(map(str, row.image_shape))
    say(f"{number}/{len(rows)}  {page.name(row.disguise)}, {row.batch} images of {shape}")
    results["disguises"].append(disguises.measure(row, rounds=rounds))
  steps = training.verbs("bench")
  for step in steps.step_cases(fast=fast):
    say(f"training step of {step.config}, with and without its disguise")
    results["steps"].append(steps.measure_step(step, rounds=rounds))
  return results


def _read(name: str) -> dict[str, Any]:
  path = Path(name).expanduser()
  try:
    return json.loads(path.read_bytes())
  except OSError as error:
    raise DataError(f"bench: cannot read {path}: {error.strerror}.") from None
  except ValueError:
    raise DataError(
      f"bench: {path} must be what `python -m djax bench --json` wrote, got other text."
    ) from None
