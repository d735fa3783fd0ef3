import dataclasses

import numpy as np
import pytest
from helpers.fields import (
  PRIVATE,
  PUBLIC,
  SHAPE,
  TARGETS,
  chance,
  disguise,
  known_of,
  psnr,
  run,
  scheme_and_key,
)

from djax import errors
from djax.attacks.base import Known
from djax.attacks.common import denoise, statistics
from djax.attacks.rmt import ica, moments

WINS = 28  # dB; chance is 19
QUICK = ica.Settings(network=dataclasses.replace(denoise.USUAL, steps=40))


def attack(known, settings=None):
  return run(known, ica.ATTACK, settings)


def case(**options):
  scheme, key = scheme_and_key(permute=False, matrix="projection", **options)
  return scheme, key, known_of(scheme, key, PRIVATE, TARGETS, PUBLIC)


@pytest.fixture(scope="module")
def plain_case():
  return case()[2]


def test_wins_without_noise(plain_case):
  result = attack(plain_case)
  assert psnr(TARGETS, result.images) > WINS
  assert result.diagnostics["warnings"] == []


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.slow
def test_wins_with_noise(place):
  scheme, key, known = case(noise_level=25.0, noise_place=place)
  floor = psnr(TARGETS, np.asarray(scheme.restore(key, known.targets)))
  smoothed = psnr(TARGETS, attack(known, QUICK).images)
  rough = attack(known, ica.Settings(smooth=False)).images
  assert floor - 6 < psnr(TARGETS, rough) < smoothed


def test_gives_nothing_on_random_pixels():
  rng = np.random.default_rng(4)
  private, targets, public = (
    rng.integers(0, 256, (n, *SHAPE)).astype(np.uint8) for n in (4000, 30, 4000)
  )
  scheme, key = scheme_and_key(permute=False, matrix="projection")
  result = attack(known_of(scheme, key, private, targets, public))
  assert psnr(targets, result.images) < chance(targets) + 0.5


def test_gives_nothing_on_targets_of_another_key(plain_case):
  scheme, other = scheme_and_key(seed=5, permute=False, matrix="projection")
  targets = disguise(scheme, other, TARGETS)
  result = attack(Known(plain_case.spec, plain_case.disguised, targets, PUBLIC))
  assert psnr(TARGETS, result.images) < chance(TARGETS)


def test_gives_nothing_on_aes(plain_case):
  scheme, key = scheme_and_key("aes", permute=False)
  encrypted = [disguise(scheme, key, images) for images in (PRIVATE, TARGETS)]
  assert psnr(TARGETS, attack(Known(plain_case.spec, *encrypted, PUBLIC)).images) < chance(TARGETS)


def test_fails_without_whitening(plain_case, monkeypatch):
  monkeypatch.setattr(
    statistics, "power", lambda m, _: np.broadcast_to(np.eye(m.shape[-1]), m.shape)
  )
  assert not psnr(TARGETS, attack(plain_case).images) > WINS


def test_fails_without_the_rotation(plain_case, monkeypatch):
  def nothing(x, y, **options):
    return np.broadcast_to(np.eye(4), (16, 4, 4)), {"residual": 0.0}

  monkeypatch.setattr(moments, "align", nothing)
  assert not psnr(TARGETS, attack(plain_case).images) > WINS


def test_constant_images_do_not_crash():
  still = np.full((50, *SHAPE), 90, np.uint8)
  scheme, key = scheme_and_key(permute=False, matrix="projection")
  result = attack(known_of(scheme, key, still, still[:3], still))
  assert np.isfinite(result.images).all()
  assert any("do not vary" in w for w in result.diagnostics["warnings"])


def test_few_public_images_give_a_warning(plain_case):
  known = Known(plain_case.spec, plain_case.disguised, plain_case.targets, PUBLIC[:255])
  (warning,) = attack(known).diagnostics["warnings"]
  assert "255 public images are few for 256 unknowns" in warning


@pytest.mark.parametrize(
  ("name", "options", "hint"),
  [
    ("rmt", {"permute": False}, "moments"),
    ("rmt", {"matrix": "projection"}, "placement"),
    ("aes", {}, "has none"),
  ],
)
def test_refusals(name, options, hint):
  scheme, key = scheme_and_key(name, **options)
  with pytest.raises(errors.ConfigError, match=hint):
    attack(known_of(scheme, key, PRIVATE[:2], TARGETS[:2], PUBLIC[:2]))


@pytest.mark.slow
@pytest.mark.parametrize(("noise_level", "least"), [(0, 40), (25, 29)])
def test_cifar10(tfds_dir, noise_level, least):
  from djax import sources

  images = sources.load("cifar10", "train", data_dir=str(tfds_dir)).images
  targets = sources.load("cifar10", "test[:200]", data_dir=str(tfds_dir)).images
  scores = []
  for seed in range(3):
    scheme, key = scheme_and_key(
      seed=seed, shape=(32, 32, 3), permute=False, matrix="projection", noise_level=noise_level
    )
    result = attack(known_of(scheme, key, images[:20000], targets, images[30000:40000]))
    scores.append(psnr(targets, result.images))
  assert np.median(scores) > least
