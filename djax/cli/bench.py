"""What ``python -m djax bench`` does. Data goes to stdout, talk to stderr."""

import argparse
import json
from pathlib import Path
from typing import Any

from djax.bench import disguises, guard, page, scaling
from djax.bench.machine import machine
from djax.cli import training
from djax.cli.common import say
from djax.errors import ConfigError, DataError

__all__ = ["run"]

_ROUNDS = 11
_FAST_ROUNDS = 5
_PHOTOGRAPH, _LEAST_SIDE = (224, 224, 3), 8


def run(args: argparse.Namespace) -> None:
  """Measures, or writes a page of what was measured.

  Args:
    args: of the verb ``bench``.

  Raises:
    DjaxError: for flags or files that cannot be used, or a speed that fell.
  """
  if args.image_shape and not args.scale:
    raise ConfigError("bench: --image-shape is for --scale. Give --scale, or leave it out.")
  if args.scale:
    if args.fast or args.against or args.page:
      raise ConfigError("bench: --scale goes with --image-shape and --json alone.")
    _scale(args)
    return
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


def _scale(args: argparse.Namespace) -> None:
  """Measures rates, and says what many images take."""
  image_shape = args.image_shape or _PHOTOGRAPH
  if min(image_shape[:2]) < _LEAST_SIDE:
    raise ConfigError(
      f"bench: --image-shape must have sides of {_LEAST_SIDE} pixels at least, which are cut into blocks of 8, got "
      f"{'x'.join(map(str, image_shape))}."
    )
  rows = []
  for case in scaling.CASES:
    say(f"{case.disguise['scheme']}, {case.dtype}: disguising for a while")
    rate = scaling.measure(case, image_shape)
    rows.append(
      (case, rate, scaling.estimate(case, rate, count=args.scale, image_shape=image_shape))
    )
  if args.json:
    found = [{**case._asdict(), **rate._asdict(), **row} for case, rate, row in rows]
    print(json.dumps({"machine": machine(), "images": args.scale, "rows": found}, indent=1))
  else:
    print(scaling.text(rows, count=args.scale, image_shape=image_shape))


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
