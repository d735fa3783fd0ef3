"""docs/performance.md, from what ``bench --json`` printed, and the shorter table of the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from djax.io import pages

__all__ = ["name", "summary", "text"]

_HEAD = """\
# How fast

Made by `python -m djax bench --json > FILE` and `python -m djax bench --page FILE... > docs/performance.md`; no number
is typed by hand. Each row was measured with what it is compared to in turns, in one process; given are medians, and in
brackets the middle half of the rounds. On another machine expect other seconds and similar ratios.

- **loop**: how many times as fast as a plain loop over images, block positions and channels in NumPy
  (`djax/bench/reference.py`).
- **copy**: share of the speed at which the same runtime merely reads the same uint8 bytes and writes as many bytes as
  the disguise does (for RMT a cast to float32). A small batch stays in the processor's cache, so its share says what
  the arithmetic costs; a large one goes through memory.
- **raw AES**: share of the speed of AES-ECB alone on the same bytes, in one call that returns new memory, and into a
  buffer that lies ready.
- **GB/s**: bytes read and written by the disguise.

`device` rows run `Scheme.disguise`, jitted and mapped over records, as training does. `host` rows run
`Scheme.export`, the NumPy arithmetic behind `python -m djax disguise`, fixed to the bit.
"""
_GPU_MISSING = """\
## GPU

**Not run.** No GPU was to be had so far. The same two commands make this section where there is one.
"""
_GROWTH = """\
## Growth

Time and peak memory of `disguise`, `verify` and an epoch against the number of images, their side and the block size:
`python -m train.experiments.growth --measure docs/growth.json`, then `python -m train.experiments.growth
docs/growth.json`.

![seconds and memory against images](growth.svg)
"""


def name(disguise: Mapping[str, Any]) -> str:
  """Returns a disguise in a few words.

  Args:
    disguise: parameters of a scheme.
  """
  side = disguise["block_size"]
  noise = disguise.get("noise_level")
  return f"{disguise['scheme']} {side}x{side}" + (f" N={noise:g}" if noise else "")


def summary(results: Mapping[str, Any]) -> str:
  """Returns the tables for a terminal.

  Args:
    results: what was measured.
  """
  return "\n".join([_machine(results), "", _disguises(results), "", _steps(results)])


def text(machines: Sequence[Mapping[str, Any]]) -> str:
  """Returns the page.

  Args:
    machines: what was measured on each machine.
  """
  parts = [_HEAD]
  for results in machines:
    kind = results["machine"]["platform"].upper()
    copied = _middle(results["copy_gigabytes_per_second"])
    parts += [
      f"## {kind}",
      "",
      _machine(results),
      f"Adding 1 to 256 MiB of float32 on the device: {copied} GB/s read and written.",
      "",
      _disguises(results),
      "",
      "Largest error of the disguise against float64, relative to the largest value: "
      + "; ".join(
        f"{row['mix']} {row['ours']:.1e} (same product at JAX's default precision {row['default']:.1e})"
        for row in results["errors"]
      )
      + ".",
      "",
      _steps(results),
      "",
    ]
  if all(results["machine"]["platform"] == "cpu" for results in machines):
    parts.append(_GPU_MISSING)
  parts.append(_GROWTH)
  return "\n".join(parts)


def _machine(results: Mapping[str, Any]) -> str:
  machine = results["machine"]
  return (
    f"{machine['device']}, {machine['cores']} cores, {machine['devices']} {machine['platform']} device(s); Python "
    f"{machine['python']}, jax {machine['jax']}, numpy {machine['numpy']}, djax {machine['djax']}; "
    f"{results['rounds']} rounds."
  )


def _disguises(results: Mapping[str, Any]) -> str:
  columns = (
    *("where", "disguise", "images", "batch", "images/s"),
    *("GB/s", "loop", "copy", "raw AES", "compile s"),
  )
  rows = []
  for row in results["disguises"]:
    times, compiled = row["times"], row["compile_seconds"]
    rows.append(
      (
        row["where"],
        name(row["spec"]),
        "x".join(map(str, row["spec"]["image_shape"])),
        row["batch"],
        _middle(row["images_per_second"]["ours"]),
        f"{row['gigabytes_per_second'][0]:.2f}",
        f"{times['loop'][0]:.0f} x",
        _share(times["copy"]),
        " / ".join(_share(times[kind]) for kind in ("raw", "raw_reused") if kind in times),
        "" if compiled is None else f"{compiled:.2f}",
      )
    )
  return pages.table(columns, rows, right=7)


def _steps(results: Mapping[str, Any]) -> str:
  columns = ("training step", "disguise", "batch", "plain ms", "disguised ms", "disguised / plain")
  rows = [
    (
      row["model"],
      name(row["spec"]),
      row["batch"],
      f"{1000 * row['seconds']['plain'][0]:.2f}",
      f"{1000 * row['seconds']['disguised'][0]:.2f}",
      "{:.3f} ({:.3f}-{:.3f})".format(*row["times"]),
    )
    for row in results["steps"]
  ]
  return pages.table(columns, rows, right=4)


def _middle(values: Sequence[float]) -> str:
  """Writes median and quartiles without more digits than they have."""
  median, lower, upper = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values)
  return f"{median} ({lower}-{upper})"


def _share(values: Sequence[float]) -> str:
  return "{:.2f} ({:.2f}-{:.2f})".format(*values)
