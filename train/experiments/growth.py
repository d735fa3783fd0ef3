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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np

matplotlib.use("svg")
from matplotlib import pyplot

__all__ = ["Fit", "Plan", "check", "curve", "draw", "fit", "measure", "peak_of", "rates", "summary"]

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SIDE, BLOCK = 32, 4  # where the number of images grows
SCHEMES = {"rmt": ("--noise-level", "25"), "aes": ()}
VERBS = ("disguise rmt", "disguise aes", "verify", "epoch")
LEAST_R2, MOST_MEMORY, LEAST_RATE = 0.99, 1.15, 0.5
_TEST_IMAGES = 256
_VERIFIES = 3  # a round: the hashing is short beside the start
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
    rounds: over everything; of the two largest epochs there is one.
  """

  images: int
  factors: tuple[int, ...]
  sides: tuple[int, ...]
  blocks: tuple[int, ...]
  rounds: int


FULL = Plan(10_000, (1, 2, 4, 8, 16), (32, 64, 128, 224), (2, 4, 8, 16), 3)
SMALL = Plan(256, (1, 8, 16), (32, 64), (4, 8), 1)


class Fit(NamedTuple):
  """A straight line by least squares: ``y = start + slope * x``, and the share of variance it explains."""

  slope: float
  start: float
  r2: float


def fit(x: Iterable[float], y: Iterable[float]) -> Fit:
  """Fits a line.

  Args:
    x: at least two different values.
    y: as many.
  """
  x, y = np.array([*x], np.float64), np.array([*y], np.float64)
  slope, start = np.polyfit(x, y, 1)
  rest, spread = np.sum((y - start - slope * x) ** 2), np.sum((y - y.mean()) ** 2)
  return Fit(float(slope), float(start), float(1 - rest / spread) if spread else 0.0)


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
  found = {}
  for value in sorted({run[by] for run in runs if run["verb"] == verb}):
    side = value if by == "side" else SIDE
    images, seconds, _ = curve(runs, verb, **{by: value}).T
    slope = fit(images * side**2 / 1e6, seconds).slope
    found[value] = _per_second(slope)
  return found


def _per_second(slope: float) -> float:
  """Inverts what one costs; NaN where noise hides it."""
  return 1 / slope if slope > 0 else float("nan")


def check(runs: list[dict[str, Any]]) -> list[str]:
  """Judges a measurement; returns what grows faster than it should, in words, or nothing.

  Args:
    runs: of a measurement.
  """
  faults = []
  for verb in VERBS:
    images, seconds, peak = curve(runs, verb).T
    line = fit(images, seconds)
    if not (line.slope > 0 and line.r2 >= LEAST_R2):
      faults.append(f"{verb}: time must be linear, R^2 >= {LEAST_R2}, got {line.r2:.4f}")
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
    line = fit(images, seconds)
    lines.append(
      f"{verb:13} {1000 * line.slope:7.3f} s a 1000 images ({_per_second(line.slope):.0f}/s), R^2 {line.r2:.4f}, "
      f"start {line.start:.2f} s, {peak[0]:.0f} MB at {images[0]:.0f} images, {peak[-1]:.0f} MB "
      f"at {images[-1]:.0f} (x{peak[-1] / peak[0]:.2f})"
    )
  for verb, by in itertools.product(VERBS[:2], ("side", "block")):
    found = ", ".join(f"{value}: {rate:.1f}" for value, rate in rates(runs, verb, by).items())
    lines.append(f"{verb:13} megapixels/s by {by}: {found}")
  return lines


def draw(measured: dict[str, Any], target: Path) -> None:
  """Draws a measurement.

  Args:
    measured: as ``measure`` returns it.
    target: the SVG file; the same bytes for the same measurement.
  """
  runs, machine = measured["runs"], measured["machine"]
  matplotlib.rcParams["svg.hashsalt"] = "djax"
  figure, ((time, memory), (sides, blocks)) = pyplot.subplots(
    2, 2, figsize=(9, 6.5), layout="constrained"
  )
  for number, verb in enumerate(VERBS):
    images, seconds, peak = curve(runs, verb).T
    line = fit(images, seconds)
    ends = np.array([0, images[-1]])
    time.plot(images / 1000, seconds, "o", color=f"C{number}", label=verb)
    time.plot(ends / 1000, line.start + line.slope * ends, "-", color=f"C{number}", linewidth=1)
    memory.plot(images / 1000, peak, "o-", color=f"C{number}", label=verb)
  for number, verb in enumerate(VERBS[:2]):
    for axes, by in ((sides, "side"), (blocks, "block")):
      found = rates(runs, verb, by)
      axes.plot([*found], [*found.values()], "o-", color=f"C{number}", label=verb)
      axes.set_xscale("log", base=2)
      ticks = sorted({run[by] for run in runs})
      axes.set_xticks(ticks, map(str, ticks))
  time.set(
    xlabel="thousand training images, 32x32x3", ylabel="seconds, with the start", xlim=0, ylim=0
  )
  memory.set(
    xlabel="thousand training images, 32x32x3", ylabel="peak MB of the largest process", xlim=0
  )
  sides.set(xlabel=f"image side, blocks of {BLOCK}", ylabel="megapixels/s, without the start")
  blocks.set(xlabel=f"block size, images of {SIDE}", ylabel="megapixels/s, without the start")
  for axes in (time, memory, sides, blocks):
    axes.set_ylim(0)
    axes.legend()
  figure.suptitle(f"{machine['cpu']}, {machine['cores']} cores, jax {machine['jax']}")
  figure.savefig(target, metadata={"Date": None})
  pyplot.close(figure)


def peak_of(command: list[str], *, cwd: Path | None = None) -> tuple[float, float]:
  """Runs a command to its end.

  Args:
    command: what to run; its first word is a path.
    cwd: where.

  Returns:
    Wall seconds, and MB of the largest resident set of one process: its own, or of a child it waited for.

  Raises:
    RuntimeError: with what it had to say, if it fails.
  """
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  environment.pop("XLA_FLAGS", None)
  done = subprocess.run(
    [sys.executable, "-I", "-S", "-c", _WATCH, *command],
    cwd=cwd,
    env=environment,
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
  seconds, kibibytes = done.stdout.split()
  return float(seconds), float(kibibytes) * 1024 / 1e6


def measure(plan: Plan) -> dict[str, Any]:
  """Measures what a plan says, round by round, so that what slows the machine down slows all of it down.

  Args:
    plan: what to measure.

  Returns:
    ``machine``, and ``runs``: verb, side, block, training images, and ``seconds`` and ``peak_mb`` of each round.
  """
  found: dict[tuple[str, int, int, int], dict[str, Any]] = {}
  with tempfile.TemporaryDirectory(prefix="djax-growth-") as name:
    place = Path(name)
    key = place / "key.djaxkey"
    _run("djax", "keygen", str(key), "--no-passphrase")
    for round_ in range(plan.rounds):
      for case, command in _commands(plan, place, key):
        seconds, peak = command()
        row = found.setdefault(case, {"seconds": [], "peak_mb": []})
        row["seconds"].append(round(seconds, 3))
        row["peak_mb"].append(round(peak, 1))
        print(round_, *case, f"{seconds:.2f} s {peak:.0f} MB", file=sys.stderr)
  names = ("verb", "side", "block", "images")
  runs = [{**dict(zip(names, case, strict=True)), **row} for case, row in found.items()]
  return {"machine": _machine(), "runs": runs}


def _commands(
  plan: Plan, place: Path, key: Path
) -> Iterator[tuple[tuple[str, int, int, int], Callable[[], tuple[float, float]]]]:
  """Yields each case of a round and what runs it; directories are taken away as soon as they have served."""
  for factor, scheme in itertools.product(plan.factors, SCHEMES):
    images, out = plan.images * factor, place / "out"
    yield (f"disguise {scheme}", SIDE, BLOCK, images), _disguise(place, key, out, scheme, images)
    if scheme == "rmt":
      for _ in range(_VERIFIES):
        command = ("djax", "verify", str(out), "--key", str(key))
        yield ("verify", SIDE, BLOCK, images), functools.partial(_run, *command)
      yield ("epoch", SIDE, BLOCK, images), functools.partial(_epoch, out, place / "run")
    shutil.rmtree(out)
  others = [(side, BLOCK) for side in plan.sides] + [(SIDE, block) for block in plan.blocks]
  for (side, block), scheme in itertools.product(others, SCHEMES):
    if (side, block) == (SIDE, BLOCK) or (scheme == "aes" and block < 4):
      continue  # the first is measured above; an AES unit of 16 pixels does not fit into smaller blocks
    for factor in (plan.factors[0], plan.factors[-2]):
      images, out = plan.images * factor * SIDE**2 // side**2, place / "out"
      run = _disguise(place, key, out, scheme, images, side, block)
      yield (f"disguise {scheme}", side, block, images), run
      shutil.rmtree(out)


def _disguise(
  place: Path,
  key: Path,
  out: Path,
  scheme: str,
  images: int,
  side: int = SIDE,
  block: int = BLOCK,
) -> Callable[[], tuple[float, float]]:
  """Returns what disguises a source, which is made now."""
  source = place / f"{side}-{images}.npz"
  if not source.exists():
    _write_source(source, images, side)
  words = f"--scheme {scheme} --block-size {block} --workers 1".split()
  paths = ("--source", str(source), "--key", str(key), "--out", str(out))
  return functools.partial(_run, "djax", "disguise", *paths, *words, *SCHEMES[scheme])


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
  return peak_of([sys.executable, "-m", module, *words], cwd=ROOT)


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


def _machine() -> dict[str, Any]:
  """Returns what the figures depend on; no name and no path."""
  cpu = platform.machine()
  information = Path("/proc/cpuinfo")
  if information.exists():
    lines = [line for line in information.read_text().splitlines() if line.startswith("model name")]
    cpu = lines[0].partition(":")[2].strip() if lines else cpu
  versions = {name: importlib.metadata.version(name) for name in ("jax", "numpy")}
  return {
    "cpu": cpu,
    "cores": os.cpu_count(),
    "python": platform.python_version(),
    **versions,
  }


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
    measured = measure(SMALL if args.small else FULL)
    args.file.write_text(json.dumps(measured, indent=1) + "\n")
    return 0
  measured = json.loads(args.file.read_text())
  draw(measured, DOCS / "growth.svg")
  faults = check(measured["runs"])
  print("\n".join([*summary(measured["runs"]), *(faults or ["linear and flat"])]))
  return 1 if faults else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
