"""The picture of the README: drawings, their disguises, and what an attack gets back from disguised ones alone.

``python -m djax.audit.picture --out docs/picture.png`` makes it, with the public key of experiment 0.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from djax import keys, schemes
from djax.attacks import ATTACKS, base
from djax.io import picture
from djax.ops import metrics

__all__ = ["Column", "columns", "drawings", "figure", "main"]

_SIDE = 32
_BLOCK = 4
_NOISE = 25.0
_FINE = 3  # pixels of a drawing, along a side, that become one
_HELD = 3000  # disguised drawings that the cloud holds
_PUBLIC = 3000  # drawings that the attacker has made
_SCORED = 100
_SHOWN = 3
_ATTACK = "placement"


class Column(NamedTuple):
  """One column of the picture.

  Attributes:
    title: above it.
    words: below it.
    images: ``[3, H, W, 3]`` on the 0..255 scale, or leaving it.
  """

  title: str
  words: str
  images: np.ndarray


def drawings(count: int, *, seed: int) -> np.ndarray:
  """Draws landscapes with hills, houses and trees, no two alike.

  Args:
    count: how many.
    seed: of what is drawn.

  Returns:
    uint8 ``[count, 32, 32, 3]``.
  """
  rng = np.random.default_rng(seed)
  return np.stack([_landscape(rng) for _ in range(count)])


def columns() -> list[Column]:
  """Disguises drawings in three ways, and attacks the RMT from its disguised drawings alone (Level 1)."""
  originals = drawings(_HELD, seed=0)
  shape, read = originals.shape[1:], keys.experiment(0).read
  noisy = schemes.rmt_scheme(shape, block_size=_BLOCK, noise_level=_NOISE)
  moved = schemes.permutation_scheme(shape, block_size=_BLOCK)
  encrypted = schemes.aes_scheme(shape, block_size=_BLOCK)

  disguised = _rmt(noisy, noisy.make_key(read), originals)
  known = base.Known(
    noisy.spec.to_dict(),
    disguised=disguised,
    targets=disguised[:_SCORED],
    public=drawings(_PUBLIC, seed=1),
  )
  estimates = base.run(ATTACKS[_ATTACK], known, seed=0).images
  ssim = metrics.ssim(jnp.asarray(originals[:_SCORED]), jnp.asarray(estimates))
  shown = originals[:_SHOWN]
  return [
    Column("originals", "drawn by a program,\n32 x 32 pixels", shown),
    Column("blocks moved", "by a secret permutation\nof 64 blocks", _exported(moved, read, shown)),
    Column(
      "RMT",
      f"blocks moved, multiplied\nby matrices, noise N = {_NOISE:g};\nbrightness stretched",
      disguised[:_SHOWN],
    ),
    Column("AES", "blocks moved, encrypted\nin 16-pixel units", _exported(encrypted, read, shown)),
    Column(
      "RMT, attacked",
      f"{_ATTACK}: {_HELD} disguised,\n{_PUBLIC} other drawings, no key;\n"
      f"SSIM {float(np.median(ssim)):.2f}, median of {_SCORED}",
      estimates[:_SHOWN],
    ),
  ]


def figure(shown: Sequence[Column]) -> Figure:
  """Lays columns side by side: 1600 pixels wide at 200 to the inch, on white.

  Args:
    shown: the columns.
  """
  drawn = Figure(figsize=(8, 5.6), facecolor="white")
  grid = drawn.subplots(
    _SHOWN,
    len(shown),
    gridspec_kw={
      "left": 0.01,
      "right": 0.99,
      "top": 0.93,
      "bottom": 0.14,
      "wspace": 0.05,
      "hspace": 0.05,
    },
  )
  for number, column in enumerate(shown):
    for axes, image in zip(grid[:, number], picture.visible(column.images), strict=True):
      axes.imshow(image, interpolation="nearest")
      axes.set_axis_off()
    grid[0, number].set_title(column.title, fontsize=11, fontweight="bold", color="#222222")
    middle = grid[-1, number].get_position()
    drawn.text(
      (middle.x0 + middle.x1) / 2,
      0.125,
      column.words,
      ha="center",
      va="top",
      fontsize=7.5,
      color="#222222",
      linespacing=1.35,
    )
  return drawn


def main(argv: Sequence[str] | None = None) -> int:
  """Makes the picture.

  Args:
    argv: arguments without the program's name; those of the process if None.

  Returns:
    0, the exit code.
  """
  parser = argparse.ArgumentParser(prog="python -m djax.audit.picture", description=__doc__)
  parser.add_argument("--out", metavar="FILE.png", type=Path, required=True, help="is replaced")
  args = parser.parse_args(argv)
  if args.out.suffix != ".png" or not args.out.parent.is_dir():
    parser.error(f"--out must be a .png file in a folder that exists, got {args.out}")
  figure(columns()).savefig(args.out, dpi=200, metadata={"Software": None})
  return 0


def _rmt(scheme: schemes.Scheme, key: Any, images: np.ndarray) -> np.ndarray:
  """Disguises every image with noise of its own."""
  rngs = jax.random.split(jax.random.key(0), len(images))
  each = jax.vmap(
    lambda key, image, rng: scheme.disguise(key, image, None, rng=rng)[0], (None, 0, 0)
  )
  return np.asarray(jax.jit(each)(key, jnp.asarray(images), rngs))


def _exported(scheme: schemes.Scheme, read: Any, images: np.ndarray) -> np.ndarray:
  """Disguises images with a scheme that draws nothing."""
  return np.asarray(scheme.disguise(scheme.make_key(read), images, None, rng=None)[0])


def _landscape(rng: np.random.Generator) -> np.ndarray:
  """Draws one landscape, uint8 ``[32, 32, 3]``."""
  size = _SIDE * _FINE
  drawn = Image.fromarray(_sky(rng, size))
  pen = ImageDraw.Draw(drawn)
  for shape, corners, color in _things(rng, size):
    getattr(pen, shape)(corners, fill=tuple(_near(rng, color)))
  small = np.asarray(drawn.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)
  light = np.linspace(1.15, 0.75, _SIDE)[:, None] ** rng.uniform(0.3, 1)  # from the left
  return np.clip(np.rint(small * light), 0, 255).astype(np.uint8)


def _sky(rng: np.random.Generator, size: int) -> np.ndarray:
  high, low = _near(rng, (70, 130, 200), 40), _near(rng, (205, 215, 235), 30)
  part = np.linspace(0, 1, size)[:, None, None]
  sky = high * (1 - part) + low * part
  return np.broadcast_to(sky, (size, size, 3)).astype(np.uint8)


def _near(rng: np.random.Generator, color: Sequence[int], spread: int = 25) -> np.ndarray:
  """Returns a colour near another one."""
  return np.clip(np.array(color) + rng.integers(-spread, spread, 3, endpoint=True), 0, 255)


def _things(rng: np.random.Generator, size: int) -> Iterator[tuple[str, Any, tuple[int, int, int]]]:
  """Yields what stands before the sky, the farthest first: shape, corners and colour."""

  def box(left, top, right, bottom):
    return [float(side) * size for side in (left, top, right, bottom)]

  x, y, radius = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.3), rng.uniform(0.05, 0.1)
  yield "ellipse", box(x - radius, y - radius, x + radius, y + radius), (250, 220, 90)
  for number, color in enumerate([(110, 140, 150), (90, 150, 90), (60, 120, 60)]):
    across = np.linspace(0, 1, 33)
    waves = rng.uniform(0.02, 0.08) * np.sin(across * rng.uniform(3, 7) + rng.uniform(0, 6.3))
    waves += rng.uniform(0.01, 0.04) * np.sin(across * rng.uniform(9, 15) + rng.uniform(0, 6.3))
    ridge = rng.uniform(0.42, 0.6) + 0.11 * number + waves
    edge = np.stack([across, ridge], 1)[::-1].ravel() * size
    yield "polygon", box(0, 1, 1, 1) + edge.tolist(), color
  for _ in range(rng.integers(1, 3)):
    wide, bottom = rng.uniform(0.16, 0.3), rng.uniform(0.72, 0.95)
    left, high = rng.uniform(0.02, 0.98) - wide / 2, wide * rng.uniform(0.6, 0.9)
    yield "rectangle", box(left, bottom - high, left + wide, bottom), (225, 205, 180)
    eaves, top = bottom - high, bottom - high - wide * rng.uniform(0.35, 0.6)
    roof = box(left - 0.1 * wide, eaves, left + 1.1 * wide, eaves)
    yield "polygon", [*roof, (left + wide / 2) * size, top * size], (170, 60, 45)
    door = box(left + 0.55 * wide, bottom - 0.6 * high, left + 0.8 * wide, bottom)
    yield "rectangle", door, (90, 60, 45)
    window = (left + 0.15 * wide, bottom - 0.7 * high, left + 0.4 * wide, bottom - 0.4 * high)
    yield "rectangle", box(*window), (80, 120, 160)
  for _ in range(rng.integers(1, 4)):
    high, x, bottom = rng.uniform(0.2, 0.4), rng.uniform(0.05, 0.95), rng.uniform(0.7, 0.97)
    trunk = box(x - 0.05 * high, bottom - 0.4 * high, x + 0.05 * high, bottom)
    yield "rectangle", trunk, (95, 70, 50)
    crown = box(x - 0.28 * high, bottom - high, x + 0.28 * high, bottom - 0.3 * high)
    yield "ellipse", crown, (50, 110, 50)


if __name__ == "__main__":
  sys.exit(main())
