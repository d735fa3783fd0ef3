"""Measures what several views of one image tell the cloud, and writes docs/views.md.

About five minutes on two quiet cores; MNIST and CIFAR-10 as prepared by TFDS.

python -m train.experiments.views --measure docs/views.json
python -m train.experiments.views docs/views.json

The attacker finds the matrices from view 0 of all records, undoes all views of a target, places each on view 0 by what
the single estimates show, and solves for the one image that all of them show, under the statistics of public images; of
one view that is the estimate of ``djax.attacks.rmt.moments``. Which views belong together is given: with
``--views-together``, and in exported sets of format 1, they are neighbours.
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from scipy import sparse
from scipy.sparse import linalg

from djax import keys, schemes
from djax.attacks.base import Known
from djax.attacks.common import statistics
from djax.attacks.rmt import moments, placement
from djax.audit import scenario as audited
from djax.host import blockwise
from djax.ops import augment, metrics

__all__ = [
  "FULL",
  "SETTINGS",
  "Plan",
  "Prior",
  "Setting",
  "attack",
  "combine",
  "measure",
  "page",
  "prior",
  "register",
]

_FITS = 20
_STEPS, _SETTLED = 200, 1e-4
_DAMPING = 1e-2
_CLOSE = 0.5  # pixels

_PAGE = """# What several views of one image cost

Written by `train/experiments/views.py` from `docs/views.json`; not by hand.

Views are made before the disguise and each has its own noise, so that a network sees more. So does the cloud: whoever
has found the matrices from the disguised images alone (`moments`, with `placement` where blocks are moved) undoes every
view, finds out by trial how each lies on the first, and solves for the one image that all of them show. One view is the
attack as it was; the gain is what the others add. RMT, orthogonal matrices; medians over {targets} targets, then over
{keys} keys; {private} disguised images and {public} public ones. That views belong together is given, as with
`--views-together` and in sets of format 1, where they are neighbours; in others the cloud has to link them first, which
nobody has measured here, so do not count on it. How each lies on the first is not given.

| setting | views | PSNR, dB | gain, dB | SSIM | placed to half a pixel |
|---|---|---|---|---|---|
{rows}

- Noise hides less the more views there are: where they are whole-pixel shifts and mirrors, K of them leave about the
  noise of level N / sqrt(K). To keep what one view had, raise N by sqrt(K), or give fewer views.
- Warped views are harder to place, and gain less here; that is not safety.
- It is one attack, linear, with given statistics; a better one may gain more.
- Without noise there is none to average: one view already comes back as well as the matrices are known (not measured).
- AES has no noise to average either, but every view is encrypted under the same key, so K views show the cloud up to K
  times as many units of the same image to count, compare and look up (not measured here).
"""


class Setting(NamedTuple):
  """What the owner does.

  Attributes:
    title: a few words.
    source: of the images.
    disguise: parameters of the scheme, without ``image_shape``.
    options: of ``djax.ops.augment.view``.
  """

  title: str
  source: str
  disguise: Mapping[str, Any]
  options: Mapping[str, Any]


class Plan(NamedTuple):
  """How much is measured.

  Attributes:
    sizes: of the audit's parts.
    views: the numbers K of views of an image, rising from 1.
    seeds: of key, parts and views.
  """

  sizes: audited.Sizes
  views: tuple[int, ...]
  seeds: tuple[int, ...]


class Prior(NamedTuple):
  """What the attacker knows of a kind of image.

  Attributes:
    mean: float32 ``[D]``.
    root: float32 ``[D]``, standard deviations along the vectors.
    vectors: float32 ``[D, D]``, those of the covariance, in columns.
  """

  mean: np.ndarray
  root: np.ndarray
  vectors: np.ndarray


SETTINGS = (
  *(
    Setting(
      f"CIFAR-10, 4x4, N={level:.0f}, not permuted; crop 4, flip",
      "cifar10",
      {"scheme": "rmt", "block_size": 4, "noise_level": level, "permute": False},
      {"crop": 4, "flip": True},
    )
    for level in (25.0, 50.0)
  ),
  Setting(
    "MNIST, 7x7, N=100, permuted; crop 2, rotate 10, scale 0.1, shear 0.1",
    "mnist",
    {"scheme": "rmt", "block_size": 7, "noise_level": 100.0, "permute": True},
    {"crop": 2, "rotate": 10.0, "scale": 0.1, "shear": 0.1},
  ),
)
FULL = Plan(audited.Sizes(6000, 4000, 100, ()), (1, 2, 4, 8), (0, 1, 2))


def attack(known: Known, seed: int) -> Any:
  """Finds what undoes a disguise, from single disguised images.

  Args:
    known: what the attacker has; rmt with orthogonal matrices and noise before them, blocks that fill the image.
    seed: of the search for the permutation.

  Returns:
    ``disguised [..., H, W, C] -> float32 estimates`` of the same shape, noise included, less its mean.
  """
  b, shape = known.spec["block_size"], known.spec["image_shape"]
  back = np.arange((shape[0] // b) * (shape[1] // b))
  if known.spec["permute"]:
    back = np.argsort(placement.estimate_permutation(known, seed)[0])
    known = dataclasses.replace(
      known,
      spec={**known.spec, "permute": False},
      disguised=blockwise.permute(back, known.disguised, block_size=b),
    )
  layout = statistics.layout_of(known.spec)
  inverse = moments.estimate_matrices(known)[0].swapaxes(-1, -2)

  def undo(disguised: np.ndarray) -> np.ndarray:
    flat = blockwise.permute(back, disguised.reshape(-1, *shape), block_size=b)
    x = layout.units(flat) @ inverse - known.spec["noise_level"] / 2
    return layout.images(x.astype(np.float32)).reshape(disguised.shape)

  return undo


def register(first: np.ndarray, others: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
  """Finds what each view shows of the first one: a shift and a mirror, and if need be an affine map near it.

  Args:
    first: float32 ``[t, H, W, C]``, estimates of view 0.
    others: float32 ``[t, k, H, W, C]``, of other views of the same images.
    options: of ``djax.ops.augment.view``; they are public.

  Returns:
    float32 ``[t, k, H, W, 2]``: row and column of the first view that each pixel of another shows.
  """
  height, width = first.shape[1:3]
  crop, warped = options["crop"], {"rotate", "scale", "shear"} & options.keys()
  side = range(-crop, crop + 1)
  mirrors = (False, True) if options.get("flip") else (False,)
  moves = [(down, across, mirror) for down in side for across in side for mirror in mirrors]
  maps = np.stack([_moved(height, width, *move) for move in moves])
  errors = []
  for places in maps:
    moved = first[:, places[..., 0], places[..., 1]]
    errors.append(np.square(moved[:, None] - others).sum((2, 3, 4)))
  best = np.argmin(errors, axis=0)
  found = maps[best].astype(np.float32)
  if not warped:
    return found
  start = np.array(moves, np.float32)[best, :2]
  return np.clip(_refined(first, others, start), 0, np.array([height - 1, width - 1], np.float32))


def prior(public: np.ndarray) -> Prior:
  """Measures public images.

  Args:
    public: ``[m, H, W, C]``.
  """
  seen = public.reshape(len(public), -1).astype(np.float32)
  mean = seen.mean(0)
  values, vectors = np.linalg.eigh((seen - mean).T @ (seen - mean) / len(seen))
  return Prior(mean, np.sqrt(np.maximum(values, 0)), vectors)


def combine(images: np.ndarray, places: np.ndarray, kind: Prior, variance: float) -> np.ndarray:
  """Estimates what all views show: the best linear estimate; of one view, that of ``moments``.

  Args:
    images: float32 ``[t, K, H, W, C]`` with white noise.
    places: float32 ``[t, K, H, W, 2]``: row and column of the original that each pixel shows, bilinear.
    kind: of images.
    variance: of the noise.

  Returns:
    float32 ``[t, H, W, C]``, cut to 0..255.
  """
  count, number, *shape = images.shape
  size = len(kind.mean)
  looks = _looks(places)
  again = (looks.T @ looks).tocsr()

  def pixels(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, shape[-1])

  def seen_again(u: np.ndarray) -> np.ndarray:
    x = pixels((u.reshape(count, size) * kind.root) @ kind.vectors.T)
    return ((again @ x).reshape(count, size) @ kind.vectors * kind.root).ravel() + variance * u

  # The inverse, were every pixel seen once a view.
  guess = np.tile(1 / (number * kind.root**2 + variance), count)
  rest = pixels(images) - looks @ pixels(np.tile(kind.mean, (count, 1)))
  wanted = ((looks.T @ rest).reshape(count, size) @ kind.vectors * kind.root).ravel()
  operator, nearly = (
    linalg.LinearOperator((count * size,) * 2, matvec=call, dtype=np.float32)
    for call in (seen_again, lambda u: guess * u)
  )
  solution, _ = linalg.cg(operator, wanted, M=nearly, rtol=_SETTLED, maxiter=_STEPS)
  found = (solution.reshape(count, size) * kind.root) @ kind.vectors.T + kind.mean
  return np.clip(found, 0, 255).reshape(count, *shape).astype(np.float32)


def measure(plan: Plan, settings: Iterable[Setting]) -> dict[str, Any]:
  """Attacks every setting under every key.

  Args:
    plan: how much.
    settings: what.

  Returns:
    ``sizes``, and ``runs``: title, seed, views K, medians ``psnr`` and ``ssim``, and ``registered``, the share of the
    other views placed to half a pixel.
  """
  runs = []
  for setting in settings:
    for seed in plan.seeds:
      made = audited.from_source(setting.source, setting.disguise, seed=seed, sizes=plan.sizes)
      for row in _rows(made, setting, seed, plan.views):
        runs.append({"title": setting.title, "seed": seed, **row})
        print(runs[-1], file=sys.stderr)
  return {"sizes": dataclasses.asdict(plan.sizes), "runs": runs}


def page(measured: Mapping[str, Any]) -> str:
  """Returns the page: medians over the keys.

  Args:
    measured: as ``measure`` returns it.
  """
  runs, sizes = measured["runs"], measured["sizes"]
  groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
  for run in runs:
    groups.setdefault((run["title"], run["views"]), []).append(run)
  lines = []
  for (title, count), rows in groups.items():
    psnr, ssim = (np.median([row[name] for row in rows]) for name in ("psnr", "ssim"))
    gain = np.median([row["psnr"] - _single(runs, row) for row in rows])
    placed = f"{np.median([row['registered'] for row in rows]):.0%}" if count > 1 else ""
    lines.append(
      f"| {title if count == 1 else ''} | {count} | {psnr:.1f} | {gain:+.1f} | {ssim:.3f} | {placed} |"
    )
  facts = {"keys": len({run["seed"] for run in runs}), "rows": "\n".join(lines), **sizes}
  return _PAGE.format(**facts)


def _single(runs: list[dict[str, Any]], row: Mapping[str, Any]) -> float:
  """Returns the PSNR of the single view beside a row."""
  same = [run for run in runs if all(run[name] == row[name] for name in ("title", "seed"))]
  return min(same, key=lambda run: run["views"])["psnr"]


def _rows(
  made: audited.Scenario, setting: Setting, seed: int, counts: tuple[int, ...]
) -> Iterable[dict[str, Any]]:
  """Yields the scores of each number of views."""
  originals = made.private[: made.targets]
  known = made.known(0)
  disguised, truth = _disguised_views(made, setting, seed, counts[-1])
  raw = attack(known, seed)(disguised)
  variance = made.spec["noise_level"] ** 2 / 12
  kind = prior(made.public)
  alone = raw.reshape(-1, 1, *originals.shape[1:])
  clear = combine(alone, np.repeat(truth[:, :1], counts[-1], 0), kind, variance).reshape(raw.shape)
  places = np.concatenate([truth[:, :1], register(clear[:, 0], clear[:, 1:], setting.options)], 1)
  close = np.linalg.norm(places - truth, axis=-1).mean((2, 3)) < _CLOSE
  for count in counts:
    estimates = combine(raw[:, :count], places[:, :count], kind, variance)
    x, y = jnp.asarray(originals, jnp.float32), jnp.asarray(estimates)
    yield {
      "views": count,
      "psnr": round(float(np.median(metrics.psnr(x, y))), 2),
      "ssim": round(float(np.median(metrics.ssim(x, y, filter_size=metrics.window(x.shape)))), 3),
      "registered": round(float(close[:, 1:count].mean()), 3) if count > 1 else None,
    }


def _disguised_views(
  made: audited.Scenario, setting: Setting, seed: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns all views of the targets, disguised, ``[t, K, H, W, C]``, and what they show, ``[t, K, H, W, 2]``."""
  originals = made.private[: made.targets]
  scheme = schemes.from_spec(made.spec)
  key = scheme.make_key(keys.experiment(seed).read)
  for_views, for_noise = jax.random.split(jax.random.key(seed))
  make = functools.partial(augment.view, **setting.options)
  every = jax.jit(jax.vmap(jax.vmap(make, (None, None, 0)), (0, 0, None)))
  rngs, numbers = jax.random.split(for_views, len(originals)), np.arange(count)
  grid = np.indices(originals.shape[1:3])
  ramp = np.moveaxis(grid, 0, -1).astype(np.float32)
  truth = np.asarray(every(np.broadcast_to(ramp, (len(originals), *ramp.shape)), rngs, numbers))
  images = every(originals, rngs, numbers)
  labels = np.zeros(images.shape[:2], np.int32)
  disguised = np.array(jax.jit(scheme.disguise)(key, images, labels, rng=for_noise)[0])
  disguised[:, 0] = made.disguised[: made.targets]
  return disguised, truth


def _looks(places: np.ndarray) -> sparse.csr_matrix:
  """Returns the matrix that makes all views of all images, ``[t K H W, t H W]``."""
  count, number, height, width, _ = places.shape
  low = np.floor(places).astype(int)
  part = places - low
  target = np.arange(count)[:, None, None, None]
  weights, columns = [], []
  for down in (0, 1):
    for across in (0, 1):
      row = np.minimum(low[..., 0] + down, height - 1)
      column = np.minimum(low[..., 1] + across, width - 1)
      columns.append(((target * height + row) * width + column).ravel())
      weight = np.abs(1 - down - part[..., 0]) * np.abs(1 - across - part[..., 1])
      weights.append(weight.ravel())
  rows = np.tile(np.arange(count * number * height * width), 4)
  entries = (np.concatenate(weights), (rows, np.concatenate(columns)))
  return sparse.csr_matrix(entries, (count * number * height * width, count * height * width))


def _moved(height: int, width: int, down: int, across: int, mirror: bool) -> np.ndarray:
  """Returns the places that a shifted and mirrored view shows, int64 ``[H, W, 2]``."""
  rows, columns = np.abs(np.arange(height) + down), np.abs(np.arange(width) + across)
  rows = np.where(rows >= height, 2 * (height - 1) - rows, rows)
  columns = np.where(columns >= width, 2 * (width - 1) - columns, columns)
  columns = columns[::-1] if mirror else columns
  return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)


@jax.jit
def _refined(first: jax.Array, others: jax.Array, start: jax.Array) -> jax.Array:
  """Fits affine maps by damped Gauss-Newton steps from shifts ``[t, k, 2]``; keeps the shift where that fits better."""
  height, width = first.shape[1:3]
  centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
  grid = jnp.stack(jnp.mgrid[:height, :width], -1) - centre

  def places(map_: jax.Array) -> jax.Array:
    return grid @ map_[:, :2].T + map_[:, 2] + centre

  def fit(image: jax.Array, other: jax.Array, shift: jax.Array) -> jax.Array:
    def rest(map_: jax.Array) -> jax.Array:
      at = jnp.moveaxis(places(map_.reshape(2, 3)), -1, 0)
      read = functools.partial(map_coordinates, coordinates=list(at), order=1, mode="nearest")
      return (jax.vmap(read, -1, -1)(image) - other).ravel()

    def step(map_: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
      slope, error = jax.jacfwd(rest)(map_), rest(map_)
      square = slope.T @ slope
      square = square + jnp.diag(_DAMPING * jnp.diag(square) + 1e-6)
      return map_ - jnp.linalg.solve(square, slope.T @ error), jnp.sum(error**2)

    begin = jnp.concatenate([jnp.eye(2), shift[:, None]], 1).ravel()
    end, _ = jax.lax.scan(step, begin, None, length=_FITS)
    better = jnp.sum(rest(end) ** 2) < jnp.sum(rest(begin) ** 2)
    return places(jnp.where(better, end, begin).reshape(2, 3))

  return jax.vmap(jax.vmap(fit, (None, 0, 0)))(first, others, start)


def main(argv: list[str]) -> None:
  """Measures, or writes the page.

  Args:
    argv: arguments without the program's name.
  """
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("file", type=Path, help="the JSON file")
  parser.add_argument("--measure", action="store_true", help="write it, rather than the page")
  args = parser.parse_args(argv)
  if args.measure:
    measured = measure(FULL, SETTINGS)
    args.file.write_text(json.dumps(measured, indent=1) + "\n")
    return
  (Path(__file__).resolve().parents[2] / "docs" / "views.md").write_text(
    page(json.loads(args.file.read_text()))
  )


if __name__ == "__main__":
  main(sys.argv[1:])
