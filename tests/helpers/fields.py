"""Smooth images for the attacks that lean on smoothness."""

import numpy as np

from djax import keys, schemes
from djax.attacks import base
from djax.attacks.base import Known
from djax.attacks.rmt import moments

SHAPE = (16, 16, 1)
RHO = 0.95


def fields(seed, count, shape=SHAPE, *, rho=RHO):
  """Smooth images: separable AR(1) fields, stronger further down and right, on a sloping mean."""
  rng = np.random.default_rng(seed)
  height, width, channels = shape
  roots = [np.linalg.cholesky(rho ** np.abs(np.subtract.outer(*[np.arange(k)] * 2))) for k in shape]
  x = rng.normal(size=(count, *shape))
  x = np.einsum("ij,kl,cd,bjld->bikc", roots[0], roots[1], roots[2][:channels], x, optimize=True)
  down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j][..., None]
  images = 110 + 30 * down + 15 * across + (25 + 8 * down + 3 * across) * x
  return np.clip(np.round(images), 0, 255).astype(np.uint8)


def scheme_and_key(name="rmt", seed=0, shape=SHAPE, **options):
  scheme = schemes.SCHEMES[name].make(shape, **{"block_size": 4, **options})
  return scheme, scheme.make_key(keys.experiment(seed).read)


def disguise(scheme, key, images, seed=0):
  rng = np.random.default_rng([77, seed])
  shape = (len(images), *scheme.spec.disguised_shape)
  return scheme.export(key, images, lambda: rng.random(shape, np.float32))


def known_of(scheme, key, private, targets, public):
  both = [disguise(scheme, key, images, seed) for seed, images in enumerate((private, targets))]
  return Known(scheme.spec.to_dict(), *both, public)


def psnr(originals, estimates):
  error = np.square(originals.astype(np.float64) - estimates).mean((1, 2, 3))
  return float(np.mean(20 * np.log10(255) - 10 * np.log10(np.maximum(error, 1e-6))))


def chance(images):
  """PSNR of the best single image as an estimate for all: what is known without breaking anything."""
  return psnr(images, images.mean(0))


def run(known, attack=moments.ATTACK, settings=None):
  return base.run(attack, known, seed=0, settings=settings)


WINS = 33  # dB that the attack by moments reaches; chance is 19
PRIVATE, TARGETS, PUBLIC = fields(1, 4000), fields(2, 30), fields(3, 4000)
