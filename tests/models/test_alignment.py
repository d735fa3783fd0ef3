"""Estimation on the host: smooth images give themselves away, random ones do not."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.fields import chance, disguise, fields, psnr, scheme_and_key

from djax.models import alignment
from djax.models.stems import Aligned

SHAPE = (16, 24, 1)
PRIVATE = fields(1, 4000, SHAPE)


def batches_of(images, size=500):
  return (images[start : start + size] for start in range(0, len(images), size))


def aligned(scheme, key, private, targets, seed=0):
  """Targets as a frozen stem shows them: standardised, turned back, and scaled to grey levels again."""
  disguised, other = (disguise(scheme, key, images, seed) for images in (private, targets))
  stem = Aligned(**Aligned.from_spec(scheme.spec.to_dict()), frozen=True)
  found = stem.estimate(batches_of(disguised.astype(np.float32)))
  mean, spread = disguised.mean(0), disguised.std()
  x = jnp.asarray((other - mean) / spread, jnp.float32)
  shown = stem.init(jax.random.key(0), x, train=False)["batch_stats"]
  assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
    k: (v.shape, v.dtype) for k, v in shown.items()
  }
  estimates = stem.apply({"batch_stats": found}, x, train=False) * spread
  return np.asarray(estimates) + private.mean(0), found


def best_psnr(originals, private, estimates):
  """The better of the images and their mirror images, each about its own mean."""
  centred = estimates - private.mean(0)
  mirrored = centred[:, :, ::-1] + private.mean(0)
  return max(psnr(originals, estimates), psnr(originals, mirrored))


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("rmt", {"noise_level": 25.0}),
    ("rmt", {"permute": False}),
    ("permutation", {}),
  ],
)
def test_smooth_images_are_put_back(name, options):
  scheme, key = scheme_and_key(name, shape=SHAPE, **options)
  targets = fields(2, 30, SHAPE)
  estimates, found = aligned(scheme, key, PRIVATE, targets)
  noise_free = not options.get("noise_level")
  assert best_psnr(targets, PRIVATE, estimates) > (30 if noise_free else 26) > chance(targets) + 6
  assert set(found) == {"perm", "inverse"} - (
    {"inverse"} if name == "permutation" else {"perm"} if "permute" in options else set()
  )
  if name == "permutation":
    np.testing.assert_array_equal(found["perm"], key.perm)
  if "inverse" in found:
    matrices = found["inverse"]
    unit = matrices @ matrices.swapaxes(-1, -2)
    np.testing.assert_allclose(unit, np.broadcast_to(np.eye(4), unit.shape), atol=1e-5)


@pytest.mark.parametrize("options", [{"per_channel": True}, {"mix": "block", "block_size": 2}])
def test_colour_images_of_every_mixing_are_put_back(options):
  shape = (8, 12, 3)
  private, targets = fields(1, 5000, shape), fields(2, 30, shape)
  scheme, key = scheme_and_key(shape=shape, permute=False, **options)
  estimates, _ = aligned(scheme, key, private, targets)
  assert best_psnr(targets, private, estimates) > chance(targets) + 4


def test_random_pixels_stay_hidden(caplog):
  rng = np.random.default_rng(4)
  private, targets = (rng.integers(0, 256, (n, *SHAPE)).astype(np.uint8) for n in (3000, 30))
  scheme, key = scheme_and_key(shape=SHAPE)
  with caplog.at_level(logging.WARNING):
    estimates, found = aligned(scheme, key, private, targets)
  assert best_psnr(targets, private, estimates) < chance(targets)
  assert (found["perm"] == key.perm).sum() < 6
  assert "stem aligned: the positions found correlate" in caplog.text


def test_images_of_another_key_stay_hidden():
  scheme, key = scheme_and_key(shape=SHAPE)
  _, other = scheme_and_key(seed=5, shape=SHAPE)
  targets = fields(2, 30, SHAPE)
  found = alignment.estimate(scheme.spec.to_dict(), batches_of(disguise(scheme, key, PRIVATE)))
  stem = Aligned(**Aligned.from_spec(scheme.spec.to_dict()), frozen=True)
  x = disguise(scheme, other, targets)
  stats = {"inverse": found[0], "perm": found[1]}
  x = x - disguise(scheme, other, PRIVATE).mean(0)
  estimates = np.asarray(stem.apply({"batch_stats": stats}, x, train=False)) + PRIVATE.mean(0)
  assert best_psnr(targets, PRIVATE, estimates) < chance(targets)


def test_no_more_images_are_read_than_needed(monkeypatch):
  monkeypatch.setattr(alignment, "IMAGES", 1100)
  scheme, key = scheme_and_key(shape=SHAPE, permute=False)
  disguised = disguise(scheme, key, PRIVATE)
  asked = []

  def batches():
    for start in range(0, 4000, 500):
      asked.append(start)
      yield disguised[start : start + 500]

  inverse, perm = alignment.estimate(scheme.spec.to_dict(), batches())
  assert asked == [0, 500, 1000] and perm is None
  same, _ = alignment.estimate(scheme.spec.to_dict(), iter([disguised[:1100]]))
  np.testing.assert_array_equal(inverse, same)


def test_few_images_are_doubted(caplog):
  scheme, key = scheme_and_key(shape=SHAPE, permute=False)
  with caplog.at_level(logging.WARNING):
    alignment.estimate(scheme.spec.to_dict(), iter([disguise(scheme, key, PRIVATE[:50])]))
  assert "50 disguised images are few" in caplog.text
