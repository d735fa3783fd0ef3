"""Worlds of encrypted images: drawings, pairs, public images and targets, and what a win and a loss are."""

import json
import math

import numpy as np

from djax import schemes
from djax.attacks import base
from djax.ops import metrics
from helpers.attacked import disguise


def spec_of(shape, block_size=4, **options):
  spec = {"scheme": "aes", "image_shape": list(shape), "block_size": block_size, **options}
  return schemes.from_spec(spec).spec.to_dict()


def figures(count, shape=(16, 16, 1), seed=0):
  """Grey-scale figures on black, somewhere near the middle, like handwriting."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[: shape[0], : shape[1]]
  images = np.zeros((count, *shape))
  for image in images:
    angle, shift = rng.uniform(0, math.pi), rng.normal(0, 2)
    centre = np.array(shape[:2]) / 2 + rng.normal(0, 1.5, 2)
    across = (y - centre[0]) * math.cos(angle) + (x - centre[1]) * math.sin(angle) - shift
    along = (x - centre[1]) * math.cos(angle) - (y - centre[0]) * math.sin(angle)
    image[...] = (255 * np.clip(2 - np.abs(across), 0, 1) * (np.abs(along) < 5))[..., None]
  return np.rint(images / 51) * 51


def world(originals, pairs, seed=0, other=None, public=0, **options):
  """The first images are known, some are public, the rest are targets, perhaps under the key of another seed."""
  originals = originals.astype(np.uint8)
  spec = spec_of(originals.shape[1:], **options)
  shown, key = disguise(spec, originals[:pairs], seed, 1)
  hidden = originals[pairs + public :]
  targets, _ = disguise(spec, hidden, seed if other is None else other, 2)
  everything = targets if other is None else disguise(spec, hidden, seed, 2)[0]
  known = base.Known(
    spec,
    everything,
    targets,
    originals[pairs : pairs + public] if public else None,
    (originals[:pairs], shown),
  )
  return known, hidden, key


def quality(estimates, originals):
  estimates = np.broadcast_to(np.asarray(estimates, np.float32), originals.shape)
  return float(np.mean(metrics.psnr(originals, np.maximum(estimates, 0.01))))


def chance(known, originals):
  """The constant guess: the mean of the originals that the attacker has, for every target."""
  mine = known.pairs[0] if known.public is None else known.public
  return quality(mine.mean(0), originals)


def wins(attack, known, originals, margin, settings=None):
  result = base.run(attack, known, seed=0, settings=settings)
  json.dumps(result.diagnostics)
  assert quality(result.images, originals) > chance(known, originals) + margin
  return result


def loses(attack, known, originals, settings=None):
  result = base.run(attack, known, seed=0, settings=settings)
  assert quality(result.images, originals) < chance(known, originals) + 0.5
  return result
