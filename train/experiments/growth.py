"""Measures how time and memory grow with a data set, and draws docs/growth.svg.

On quiet cores, a quarter of an hour and 3 GB of temporary files (--small: under a minute, and too noisy to judge by):

python -m train.experiments.growth --measure docs/growth.json
python -m train.experiments.growth docs/growth.json

Each run is a fresh process, as on a shell. Its peak is the largest resident set of any single process of it, workers
included. Disguising takes ``--workers 1``: left alone, the number of processes changes with the size. The key has no
passphrase, whose derivation would hide the peak of the work.
"""

import argparse
import functools
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from djax.bench.machine import processor
from djax.io import pages
from train.experiments import DOCS

__all__ = ["Plan", "check", "curve", "draw", "fit", "measure", "peak_of", "rates", "summary"]

SIDE, BLOCK = 32, 4  # where the number of images grows
SCHEMES = {"rmt": ("--noise-level", "25"), "aes": ()}
VERBS = ("disguise rmt", "disguise aes", "verify", "epoch")
LEAST_R2, MOST_MEMORY, LEAST_RATE = 0.99, 1.15, 0.5
_TEST_IMAGES = 256
# Its own process, as a child's peak starts at that of the process which starts it.
_WATCH = """
import os, sys, time
start = time.perf_counter()
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss)
sys.exit(status != 0)
"""


class Plan(NamedTuple):
  """What is measured.

  Attributes:
    images: training images of the smallest set, 32x32x3.
    factors: by which they are multiplied; the first and the last but one serve the other sides and block sizes too.
    sides: of images, at a constant number of pixels.
    blocks: block sizes at 32x32x3; AES leaves out those below 4.
    rounds: over everything.
    verifies: of each directory, a round: the hashing is short beside the start.
  """

  images: int
  factors: tuple[int, ...]
  sides: tuple[int, ...]
  blocks: tuple[int, ...]
  rounds: int
  verifies: int


FULL = Plan(10_000, (1, 2, 4, 8, 16), (32, 64, 128, 224), (2, 4, 8, 16), 3, 3)
SMALL = Plan(256, (1, 8, 16), (32, 64), (4, 8), 1, 1)


class Case(NamedTuple):
  """One command that is measured: what it does, and with how many training images of which side and block size."""

  verb: str
  side: int
  block: int
  images: int


def fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
  """Fits a line by least squares; returns its slope, its start and R^2, the share of variance it explains.

  Args:
    x: ``[n]``, at least two different values.
    y: ``[n]``.
  """
  slope, start = np.polyfit(x, y, 1)
  variance = np.var(y)
  return slope, start, 1 - np.var(y - start - slope * x) / variance if variance else 0.0


def curve(
  runs: list[dict[str, Any]], verb: str, side: int = SIDE, block: int = BLOCK
) -> np.ndarray:
  """Returns the medians of one verb over growing sets, float64 ``[n, 3]``: training images, seconds, peak in MB.

  Args:
    runs: of a measurement.
    verb: one of ``VERBS``.
    side: of the images.
    block: block size.
  """
  rows = [run for run in runs if (run["verb"], run["side"], run["block"]) == (verb, side, block)]
  medians = [(r["images"], np.median(r["seconds"]), np.median(r["peak_mb"])) for r in rows]
  return np.array(sorted(medians), np.float64).reshape(-1, 3)


def rates(runs: list[dict[str, Any]], verb: str, by: str) -> dict[int, float]:
  """Returns megapixels a second without the start, by side or block size; NaN where noise hides them.

  Args:
    runs: of a measurement.
    verb: one of ``VERBS``.
    by: ``side`` or ``block``.
  """
  result = {}
  for value in sorted({run[by] for run in runs if run["verb"] == verb}):
    side = value if by == "side" else SIDE
    images, seconds, _ = curve(runs, verb, **{by: value}).T
    result[value] = _per_second(fit(images * side**2 / 1e6, seconds)[0])
  return result


def _per_second(slope: float) -> float:
  """Inverts the seconds that one costs; NaN where noise hides them."""
  return 1 / slope if slope > 0 else float("nan")


def check(runs: list[dict[str, Any]]) -> list[str]:
  """Judges a measurement; returns a message for each thing that grows faster than it should.

  Args:
    runs: of a measurement.
  """
  faults = []
  for verb in VERBS:
    images, seconds, peak = curve(runs, verb).T
    slope, _, r2 = fit(images, seconds)
    if not (slope > 0 and r2 >= LEAST_R2):
      faults.append(f"{verb}: time must be linear, R^2 >= {LEAST_R2}, got {r2:.4f}")
    if not peak[-1] <= MOST_MEMORY * peak[0]:
      growth = f"{peak[0]:.0f} MB to {peak[-1]:.0f} MB"
      faults.append(f"{verb}: memory must be flat, at most {MOST_MEMORY} times, got {growth}")
  for verb in VERBS[:2]:
    by_side = rates(runs, verb, "side")
    for side, rate in by_side.items():
      if not rate >= LEAST_RATE * by_side[SIDE]:
        faults.append(
          f"{verb}: a pixel must cost the same at every side, rate at {side} at least {LEAST_RATE} of that "
          f"at {SIDE}, got {rate:.1f} and {by_side[SIDE]:.1f} MP/s"
        )
  return faults


def summary(runs: list[dict[str, Any]]) -> list[str]:
  """Returns one line a verb, and lines on sides and block sizes.

  Args:
    runs: of a measurement.
  """
  lines = []
  for verb in VERBS:
    images, seconds, peak = curve(runs, verb).T
    slope, start, r2 = fit(images, seconds)
    lines.append(
      f"{verb:13} {1000 * slope:7.3f} s a 1000 images ({_per_second(slope):.0f}/s), "
      f"R^2 {r2:.4f}, start {start:.2f} s, {peak[0]:.0f} MB at {images[0]:.0f} images, "
      f"{peak[-1]:.0f} MB at {images[-1]:.0f} (x{peak[-1] / peak[0]:.2f})"
    )
  for verb, by in itertools.product(VERBS[:2], ("side", "block")):
    values = ", ".join(f"{value}: {rate:.1f}" for value, rate in rates(runs, verb, by).items())
    lines.append(f"{verb:13} megapixels/s by {by}: {values}")
  return lines


def draw(measured: dict[str, Any], path: Path) -> None:
  """Draws a measurement.

  Args:
    measured: as ``measure`` returns it.
    path: the SVG file; the same bytes for the same measurement.
  """
  runs, machine = measured["runs"], measured["machine"]
  figure = Figure(figsize=(9, 6.5), layout="constrained")
  (time, memory), (sides, blocks) = panels = figure.subplots(2, 2)
  for number, verb in enumerate(VERBS):
    images, seconds, peak = curve(runs, verb).T
    slope, start, _ = fit(images, seconds)
    ends = np.array([0, images[-1]])
    color = f"C{number}"
    time.plot(images / 1000, seconds, "o", color=color, label=verb)
    time.plot(ends / 1000, start + slope * ends, "-", color=color, linewidth=1)
    memory.plot(images / 1000, peak, "o-", color=color, label=verb)
  for axes, by, title in (
    (sides, "side", f"image side, blocks of {BLOCK}"),
    (blocks, "block", f"block size, images of {SIDE}"),
  ):
    for number, verb in enumerate(VERBS[:2]):
      values = rates(runs, verb, by)
      axes.plot([*values], [*values.values()], "o-", color=f"C{number}", label=verb)
    axes.set_xscale("log", base=2)
    ticks = sorted({run[by] for run in runs})
    axes.set_xticks(ticks, map(str, ticks))
    axes.set(xlabel=title, ylabel="megapixels/s, without the start")
  for axes, title in (
    (time, "seconds, with the start"),
    (memory, "peak MB of the largest process"),
  ):
    axes.set(xlabel="thousand training images, 32x32x3", ylabel=title, xlim=0)
  for axes in panels.flat:
    axes.set_ylim(0)
    axes.legend()
  figure.suptitle(f"{machine['cpu']}, {machine['cores']} cores, jax {machine['jax']}")
  pages.save_svg(figure, path)


def peak_of(command: list[str], *, cwd: Path | None = None) -> tuple[float, float]:
  """Runs a command to its end.

  Args:
    command: what to run; its first word is a path.
    cwd: where.

  Returns:
    Wall seconds, and MB of the largest resident set of one process: its own, or of a child it waited for.

  Raises:
    RuntimeError: with the end of its stderr, if it fails.
  """
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  environment.pop("XLA_FLAGS", None)
  process = subprocess.run(
    [sys.executable, "-I", "-S", "-c", _WATCH, *command],
    cwd=cwd,
    env=environment,
    capture_output=True,
    text=True,
  )
  if process.returncode:
    raise RuntimeError(f"{' '.join(command)} failed: {process.stderr.strip()[-2000:]}")
  seconds, kibibytes = process.stdout.split()
  return float(seconds), float(kibibytes) * 1024 / 1e6


def measure(plan: Plan) -> dict[str, Any]:
  """Measures what a plan says, round by round, so that what slows the machine down slows all of it down.

  Args:
    plan: what to measure.

  Returns:
    ``machine``, and ``runs``: verb, side, block, training images, and ``seconds`` and ``peak_mb`` of each round.
  """
  rows: dict[Case, dict[str, Any]] = {}
  with tempfile.TemporaryDirectory(prefix="djax-growth-") as name:
    folder = Path(name)
    _run("djax", "keygen", str(folder / "key.djaxkey"), "--no-passphrase")
    for round_ in range(plan.rounds):
      for case, command in _commands(plan, folder):
        seconds, peak = command()
        row = rows.setdefault(case, {**case._asdict(), "seconds": [], "peak_mb": []})
        row["seconds"].append(round(seconds, 3))
        row["peak_mb"].append(round(peak, 1))
        print(round_, *case, f"{seconds:.2f} s {peak:.0f} MB", file=sys.stderr)
  versions = {name: importlib.metadata.version(name) for name in ("jax", "numpy")}
  machine = {"cpu": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
  return {"machine": {**machine, **versions}, "runs": [*rows.values()]}


def _commands(plan: Plan, folder: Path) -> Iterator[tuple[Case, Callable[[], tuple[float, float]]]]:
  """Yields each case of a round and what runs it; directories are removed as soon as they have served."""
  out = folder / "out"
  for factor, scheme in itertools.product(plan.factors, SCHEMES):
    case = Case(f"disguise {scheme}", SIDE, BLOCK, plan.images * factor)
    yield case, functools.partial(_disguise, folder, scheme, case)
    if scheme == "rmt":
      verify = ("djax", "verify", str(out), "--key", str(folder / "key.djaxkey"))
      for _ in range(plan.verifies):
        yield case._replace(verb="verify"), functools.partial(_run, *verify)
      yield case._replace(verb="epoch"), functools.partial(_epoch, out, folder / "run")
    shutil.rmtree(out)
  others = [(side, BLOCK) for side in plan.sides] + [(SIDE, block) for block in plan.blocks]
  for (side, block), scheme in itertools.product(others, SCHEMES):
    if (side, block) == (SIDE, BLOCK) or (scheme == "aes" and block < 4):
      continue  # the first is measured above; an AES unit of 16 pixels does not fit into smaller blocks
    for factor in (plan.factors[0], plan.factors[-2]):
      case = Case(f"disguise {scheme}", side, block, plan.images * factor * SIDE**2 // side**2)
      yield case, functools.partial(_disguise, folder, scheme, case)
      shutil.rmtree(out)


def _disguise(folder: Path, scheme: str, case: Case) -> tuple[float, float]:
  """Disguises a source, which is made before if need be."""
  source = folder / f"{case.side}-{case.images}.npz"
  if not source.exists():
    _write_source(source, case.images, case.side)
  options = f"--scheme {scheme} --block-size {case.block} --workers 1".split()
  paths = {"--source": source, "--key": folder / "key.djaxkey", "--out": folder / "out"}
  words = [word for flag, path in paths.items() for word in (flag, str(path))]
  return _run("djax", "disguise", *words, *options, *SCHEMES[scheme])


def _epoch(data: Path, workdir: Path) -> tuple[float, float]:
  """Trains for one epoch on a directory, read from disk batch by batch."""
  fields = {"data.disguised_dir": data, "data.memory_gb": 0, "train.epochs": 1}
  words = [f"--config.{name}={value}" for name, value in fields.items()]
  try:
    return _run("train", "--config=outsourced", f"--workdir={workdir}", *words)
  finally:
    shutil.rmtree(workdir, ignore_errors=True)


def _run(module: str, *words: str) -> tuple[float, float]:
  """Runs a module of this repository."""
  return peak_of([sys.executable, "-m", module, *words], cwd=DOCS.parent)


def _write_source(path: Path, images: int, side: int) -> None:
  """Writes smooth gradients under noise, from a fixed seed, uncompressed; few test images."""
  rng = np.random.default_rng(0)
  test = max(1, _TEST_IMAGES * SIDE**2 // side**2)
  ramp = np.linspace(0, 127, side, dtype=np.uint8)
  pixels = rng.integers(0, 128, (images + test, side, side, 3), np.uint8)
  pixels[::2] += ramp[:, None]
  pixels[1::2] += ramp[:, None, None]
  labels = rng.integers(0, 10, images + test)
  labels[-1] = 9  # the number of classes is that of the largest
  np.savez(
    path,
    train_images=pixels[:images],
    train_labels=labels[:images],
    test_images=pixels[images:],
    test_labels=labels[images:],
  )


def main(argv: list[str]) -> int:
  """Measures, or draws and judges.

  Args:
    argv: arguments without the program's name.

  Returns:
    Exit code: 1 where something is not linear or not flat.
  """
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("file", type=Path, help="the JSON file")
  parser.add_argument("--measure", action="store_true", help="write it, rather than draw it")
  parser.add_argument("--small", action="store_true", help="measure little, to see that it works")
  args = parser.parse_args(argv)
  if args.measure:
    pages.write_json(args.file, measure(SMALL if args.small else FULL))
    return 0
  measured = json.loads(args.file.read_text())
  draw(measured, DOCS / "growth.svg")
  faults = check(measured["runs"])
  print("\n".join([*summary(measured["runs"]), *(faults or ["linear and flat"])]))
  return 1 if faults else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
