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

from djax import keys, schemes
from djax.attacks.base import Known
from djax.attacks.common import statistics
from djax.attacks.rmt import moments, placement, several_views
from djax.audit import scenario
from djax.host import blockwise
from djax.io import pages
from djax.ops import augment, metrics
from train.experiments import DOCS

__all__ = ["FULL", "SETTINGS", "Plan", "Setting", "measure", "page"]

_CLOSE = 0.5  # pixels

_PAGE = """# What several views of one image cost

Written by `train/experiments/views.py` from `docs/views.json`; not by hand.

Views are made before the disguise and each has its own noise, so that a network sees more. So does the cloud: whoever
has found the matrices from the disguised images alone (`moments`, with `placement` where blocks are moved) undoes every
view, finds out by trial how each lies on the first, and solves for the one image that all of them show. One view is the
attack as it was; the gain is what the others add. RMT, orthogonal matrices; medians over {targets} targets, then over
{keys} keys; {private} disguised images and {public} public ones. That views belong together is given, as with
`--views-together` and in sets of format 1, where they are neighbours, and wherever a network answers over several
views; in others the cloud has to link them first, which nobody has measured here, so do not count on it. How each lies
on the first is not given.

| setting | views | PSNR, dB | gain, dB | SSIM | placed to half a pixel |
|---|---|---|---|---|---|
{rows}

- Noise hides less the more views there are: where they are whole-pixel shifts and mirrors, K of them leave about the
  noise of level N / sqrt(K). To keep what one view had, raise N by sqrt(K), or give fewer views.
- Warped views are harder to place, and gain less here; that is not safety.
- It is one attack, linear, with given statistics; a better one may gain more.
- Without noise there is none to average: one view already comes back as well as the matrices are known (not measured).
- AES has no noise to average, but the grid of its units lies differently on each view: `frequency` lays all views on
  each other and draws outlines at pixel resolution. [Results](results.md) has what that gives.
- `python -m djax audit --views K --crop C --flip`, `--config` and `--data` attack all views of each target; so do the
  scores of [results](results.md).
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

  sizes: scenario.Sizes
  views: tuple[int, ...]
  seeds: tuple[int, ...]


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
FULL = Plan(scenario.Sizes(6000, 4000, 100, ()), (1, 2, 4, 8), (0, 1, 2))


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
      attacked = scenario.from_source(setting.source, setting.disguise, seed=seed, sizes=plan.sizes)
      for row in _rows(attacked, setting, seed, plan.views):
        runs.append({"title": setting.title, "seed": seed, **row})
        print(runs[-1], file=sys.stderr)
  return {"sizes": dataclasses.asdict(plan.sizes), "runs": runs}


def page(measured: Mapping[str, Any]) -> str:
  """Returns the page: medians over the keys.

  Args:
    measured: as ``measure`` returns it.
  """
  runs, sizes = measured["runs"], measured["sizes"]
  single = {(run["title"], run["seed"]): run["psnr"] for run in runs if run["views"] == 1}
  groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
  for run in runs:
    groups.setdefault((run["title"], run["views"]), []).append(run)
  lines = []
  for (title, count), rows in groups.items():
    psnr, ssim = (np.median([row[name] for row in rows]) for name in ("psnr", "ssim"))
    gain = np.median([row["psnr"] - single[row["title"], row["seed"]] for row in rows])
    placed = f"{np.median([row['registered'] for row in rows]):.0%}" if count > 1 else ""
    lines.append(
      f"| {title if count == 1 else ''} | {count} | {psnr:.1f} | {gain:+.1f} | {ssim:.3f} | {placed} |"
    )
  keys_used = len({run["seed"] for run in runs})
  return _PAGE.format(keys=keys_used, rows="\n".join(lines), **sizes)


def _rows(
  attacked: scenario.Scenario, setting: Setting, seed: int, counts: tuple[int, ...]
) -> Iterable[dict[str, Any]]:
  """Yields the scores of each number of views."""
  originals = attacked.private[: attacked.targets]
  disguised, truth = _disguised_views(attacked, setting, seed, counts[-1])
  raw = _undo(attacked.known(0), seed)(disguised)
  variance = attacked.spec["noise_level"] ** 2 / 12
  kind = several_views.prior(attacked.public)
  alone = raw.reshape(-1, 1, *originals.shape[1:])
  still = np.repeat(truth[:, :1], counts[-1], 0)
  clear = several_views.combine(alone, still, kind, variance).reshape(raw.shape)
  others = several_views.register(clear[:, 0], clear[:, 1:], setting.options)
  places = np.concatenate([truth[:, :1], others], 1)
  close = np.linalg.norm(places - truth, axis=-1).mean((2, 3)) < _CLOSE
  for count in counts:
    estimates = several_views.combine(raw[:, :count], places[:, :count], kind, variance)
    x, y = jnp.asarray(originals, jnp.float32), jnp.asarray(estimates)
    yield {
      "views": count,
      "psnr": round(float(np.median(metrics.psnr(x, y))), 2),
      "ssim": round(float(np.median(metrics.ssim(x, y, filter_size=metrics.window(x.shape)))), 3),
      "registered": round(float(close[:, 1:count].mean()), 3) if count > 1 else None,
    }


def _disguised_views(
  attacked: scenario.Scenario, setting: Setting, seed: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns all views of the targets, disguised, ``[t, K, H, W, C]``, and what they show, ``[t, K, H, W, 2]``."""
  originals = attacked.private[: attacked.targets]
  scheme = schemes.from_spec(attacked.spec)
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
  disguised[:, 0] = attacked.disguised[: attacked.targets]
  return disguised, truth


def _undo(known: Known, seed: int) -> Any:
  """Estimates the inverse of a disguise from single disguised images.

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
    pages.write_json(args.file, measure(FULL, SETTINGS))
  else:
    (DOCS / "views.md").write_text(page(json.loads(args.file.read_text())))


if __name__ == "__main__":
  main(sys.argv[1:])
