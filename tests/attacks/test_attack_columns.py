import numpy as np
import pytest
from helpers.fields import chance, disguise, fields, known_of, psnr, run, scheme_and_key

from djax.attacks.base import Known
from djax.attacks.rmt import columns

SHAPE = (72, 64, 1)
PRIVATE, TARGETS = fields(1, 300, SHAPE), fields(2, 5, SHAPE)
WINS = 12  # dB above the best image that is the same for all


def case(**options):
  options = {"block_size": 4, "permute": False, **options}
  scheme, key = scheme_and_key(shape=SHAPE, **options)
  return known_of(scheme, key, PRIVATE, TARGETS, None)


def gain(known):
  return psnr(TARGETS, run(known).images) - chance(TARGETS)


@pytest.mark.parametrize(
  ("options", "least"),
  [
    ({}, WINS),
    ({"block_size": 8}, 8),
    pytest.param({"noise_level": 25.0}, 8, marks=pytest.mark.slow),
    pytest.param({"noise_level": 25.0, "noise_place": "after"}, 8, marks=pytest.mark.slow),
  ],
)
def test_large_images_come_back_without_public_ones(options, least):
  assert gain(case(**options)) > least


def test_targets_of_another_key_give_nothing():
  known = case()
  scheme, other = scheme_and_key(seed=5, shape=SHAPE, permute=False)
  assert gain(Known(known.spec, known.disguised, disguise(scheme, other, TARGETS), None)) < 0


def test_random_pixels_give_nothing():
  private = np.random.default_rng(4).integers(0, 256, (300, *SHAPE)).astype(np.uint8)
  scheme, key = scheme_and_key(shape=SHAPE, permute=False)
  known = known_of(scheme, key, private, private[:20], None)
  assert psnr(private[:20], run(known).images) < chance(private[:20]) + 0.5


@pytest.mark.parametrize("step", ["polar", "_by_distance"])
def test_each_step_is_needed(monkeypatch, step):
  broken = {
    "polar": lambda m: np.broadcast_to(np.eye(m.shape[-1]), m.shape),
    "_by_distance": lambda covariance: np.eye(len(covariance)),
  }
  monkeypatch.setattr(columns, step, broken[step])
  assert gain(case()) < WINS


def test_still_images_do_not_crash():
  still = np.full((20, *SHAPE), 90, np.uint8)
  scheme, key = scheme_and_key(shape=SHAPE, permute=False)
  result = run(known_of(scheme, key, still, still[:3], None))
  assert np.isfinite(result.images).all()
