"""What a large data set will take: arithmetic from rates that are measured here, and where it ends.

The rates are those of one process that disguises random images of the same shape from a ``.npz`` file and writes them
to a disk; what decoding photographs and a network add is not in them. All the rest is exact, or said to be about.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from djax import keys
from djax.disguised import manifest as manifest_lib
from djax.disguised.manifest import Manifest
from djax.owner import export, plan
from djax.owner.plan import Request

__all__ = ["CASES", "Case", "Rate", "estimate", "measure", "text"]

_MEASURED_BYTES = 192 << 20  # of stored images: three shards
_LEAST_IMAGES = 40
_DAY = 86_400


class Case(NamedTuple):
  """A disguise as it is stored.

  Attributes:
    disguise: parameters of the scheme, without the shape.
    dtype: of the stored values.
  """

  disguise: Mapping[str, Any]
  dtype: str


class Rate(NamedTuple):
  """What was measured of a case.

  Attributes:
    images_per_second: of one process.
    stored_bytes: of an image, with its share of what else stands in a full shard.
    entry_bytes: of a shard in ``MANIFEST.json``.
  """

  images_per_second: float
  stored_bytes: float
  entry_bytes: int


_RMT = {"scheme": "rmt", "block_size": 8, "noise_level": 25.0}
CASES: tuple[Case, ...] = (
  Case(_RMT, "float32"),
  Case(_RMT, "float16"),
  Case(_RMT, "uint8"),
  Case({"scheme": "aes", "block_size": 8}, "uint8"),
)


def measure(case: Case, image_shape: tuple[int, int, int]) -> Rate:
  """Disguises some random images in one process.

  Args:
    case: what is measured.
    image_shape: ``(H, W, C)``.
  """
  size = math.prod(image_shape)
  count = max(_LEAST_IMAGES, _MEASURED_BYTES // (size * np.dtype(case.dtype).itemsize))
  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory(prefix="djax-scaling-") as folder:
    source = Path(folder) / "images.npz"
    images = rng.integers(0, 256, (count, *image_shape), np.uint8)
    labels = np.arange(count) % 2
    np.savez(
      source,
      train_images=images,
      train_labels=labels,
      test_images=images[:2],
      test_labels=labels[:2],
    )
    request = Request(str(source), case.disguise, dtype=case.dtype)
    began = time.perf_counter()
    manifest = export.disguise(request, Path(folder) / "disguised", keys.experiment(0), workers=1)
    seconds = time.perf_counter() - began
  full = manifest.splits["train"].shards[0]
  return Rate(count / seconds, full.bytes / full.records, _entry_bytes(manifest))


def estimate(
  case: Case, rate: Rate, *, count: int, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
  """Returns what a data set of many images takes.

  Args:
    case: how it is disguised and stored.
    rate: as ``measure`` gave it.
    count: images, one view each.
    image_shape: ``(H, W, C)``.

  Returns:
    ``bytes_in`` as uint8 pixels, ``bytes_out``, ``shards`` of the usual size, ``hours`` of one process,
    ``processes_for_a_day``, ``bytes_per_second`` that these write to the disk they share, ``manifest_bytes``, and
    ``most_images`` that a manifest can name in such shards.
  """
  stored = math.prod(image_shape) * np.dtype(case.dtype).itemsize
  per_shard = max(1, plan.SHARD_BYTES // stored)
  shards = -(-count // per_shard)
  seconds = count / rate.images_per_second
  bytes_out = round(count * rate.stored_bytes)
  return {
    "bytes_in": count * math.prod(image_shape),
    "bytes_out": bytes_out,
    "shards": shards,
    "hours": seconds / 3600,
    "processes_for_a_day": math.ceil(seconds / _DAY),
    "bytes_per_second": bytes_out / min(seconds, _DAY),
    "manifest_bytes": shards * rate.entry_bytes,
    "most_images": manifest_lib.MOST_BYTES // rate.entry_bytes * per_shard,
  }


def text(
  rows: Sequence[tuple[Case, Rate, Mapping[str, Any]]],
  *,
  count: int,
  image_shape: tuple[int, int, int],
) -> str:
  """Returns a table of estimates, and where they end.

  Args:
    rows: cases with what was measured and estimated of them.
    count: images.
    image_shape: ``(H, W, C)``.
  """
  shape = "x".join(map(str, image_shape))
  lines = [
    f"{count:,} images of {shape}, {_size(rows[0][2]['bytes_in'])} as pixels",
    "",
    f"{'stored as':<24}{'images/s':>9}{'written':>10}{'shards':>11}{'hours':>11}{'for a day':>11}"
    f"{'they write':>12}{'manifest':>10}{'at most':>17}",
  ]
  for case, rate, row in rows:
    spec = case.disguise
    b = spec["block_size"]
    noise = f" N={spec['noise_level']:g}" if spec.get("noise_level") else ""
    name = f"{spec['scheme']} {b}x{b}{noise} {case.dtype}"
    lines.append(
      f"{name:<24}"
      f"{rate.images_per_second:>9,.0f}{_size(row['bytes_out']):>10}{row['shards']:>11,}"
      f"{row['hours']:>11,.1f}{row['processes_for_a_day']:>11,}"
      f"{_size(row['bytes_per_second']) + '/s':>12}{_size(row['manifest_bytes']):>10}{row['most_images']:>17,}"
    )
    if row["manifest_bytes"] > manifest_lib.MOST_BYTES:
      lines[-1] += "  too many"
  lines += [
    "",
    "images/s: of one process here, from a .npz file; decoding photographs comes to that. hours: of one process.",
    "for a day: processes that end within a day; they write: what all of them send to their disk.",
    f"at most: images that a manifest of {_size(manifest_lib.MOST_BYTES)} can name in shards of "
    f"{_size(plan.SHARD_BYTES)}. Shards of more",
    "originals (--originals-per-shard) name more; each process holds one shard in memory.",
    "Memory of a process, checkpoints and the network do not depend on the number of images.",
  ]
  return "\n".join(lines)


def _entry_bytes(manifest: Manifest) -> int:
  """Returns how many bytes one more shard takes in MANIFEST.json."""
  split = manifest.splits["train"]
  longer = dataclasses.replace(split, shards=(*split.shards, split.shards[-1]))
  more = dataclasses.replace(manifest, splits={**manifest.splits, "train": longer})
  return len(manifest_lib.encoded(more)) - len(manifest_lib.encoded(manifest))


def _size(count: float) -> str:
  """Returns a number of bytes in words."""
  for unit in ("B", "kB", "MB", "GB", "TB"):
    if count < 1000:
      return f"{count:.3g} {unit}"
    count /= 1000
  return f"{count:,.0f} PB"
