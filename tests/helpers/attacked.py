"""What attacks on blocks are tried on: images, part of them known, and how close the estimates come."""

import json

import numpy as np
from scipy import ndimage

from djax import keys, schemes
from djax.attacks import base
from djax.ops import metrics


def pictures(count, shape=(8, 12, 1), *, sigma=1.5, contrast=300):
  """Smooth images that fill 0..255, each with its own mean."""
  rng = np.random.default_rng(0)
  smooth = ndimage.gaussian_filter(rng.normal(size=(count, *shape)), (0, sigma, sigma, 0))
  return np.clip(smooth * contrast + rng.uniform(60, 190, (count, 1, 1, 1)), 0, 255).astype(
    np.uint8
  )


def disguise(spec, images, seed=0, draw=0):
  """Returns the images disguised under the key of a seed, and that key."""
  scheme = schemes.from_spec(spec)
  key = scheme.make_key(keys.experiment(seed).read)
  rng = np.random.default_rng(draw)
  shape = (len(images), *scheme.spec.disguised_shape)
  return scheme.export(key, images, lambda: rng.random(shape, np.float32)), key


def world(originals, pairs, seed=0, other=None, **options):
  """The first ``pairs`` images are known, the rest are targets, perhaps under the key of another seed."""
  spec = {"scheme": "rmt", "image_shape": list(originals.shape[1:]), "block_size": 4, **options}
  spec = schemes.from_spec(spec).spec.to_dict()
  shown, key = disguise(spec, originals[:pairs], seed, 1)
  hidden, _ = disguise(spec, originals[pairs:], seed if other is None else other, 2)
  known = base.Known(spec, hidden, hidden, None, (originals[:pairs], shown))
  return known, originals[pairs:], key


def fields(known):
  """What an attacker has, but for the spec."""
  return known.disguised, known.targets, known.public, known.pairs


def quality(estimates, originals):
  return float(np.mean(metrics.psnr(originals, np.asarray(estimates, np.float32))))


def chance(known, originals):
  """The constant guess: the mean of the images that the attacker has, for every target."""
  mine = known.public if known.pairs is None else known.pairs[0]
  return quality(np.broadcast_to(mine.mean(0), originals.shape), originals)


def wins(attack, known, originals, decibel, settings=None):
  result = base.run(attack, known, seed=0, settings=settings)
  json.dumps(result.diagnostics)
  assert quality(result.images, originals) > decibel
  return result


def loses(attack, known, originals, settings=None):
  result = base.run(attack, known, seed=0, settings=settings)
  assert quality(result.images, originals) < chance(known, originals) + 0.5
  return result
