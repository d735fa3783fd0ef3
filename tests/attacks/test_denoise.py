"""The network against noise: it helps where images are alike, and learns nothing from wrong pairs."""

import dataclasses

import numpy as np
import pytest
from helpers.encrypted import figures
from helpers.fields import psnr

from djax.attacks.common import denoise

LEVEL = 100.0
SHORT = dataclasses.replace(denoise.USUAL, steps=120)


def silent(fraction, word):
  assert 0 <= fraction <= 1


def with_noise(images, seed):
  """``rehearse`` takes a third of what it is given."""
  return denoise.rehearse(np.tile(images, (3, 1, 1, 1)), LEVEL, seed)


def denoised(public, targets, wanted=None, settings=SHORT):
  """Noisy targets, and what is made of them; all public images are rehearsed."""
  noisy = with_noise(targets, 9)
  images, how = denoise.improve(
    {"raw": noisy},
    {"raw": with_noise(public, 0)},
    public if wanted is None else wanted,
    seed=0,
    progress=silent,
    settings=settings,
  )
  return noisy, images, how


@pytest.fixture(scope="module")
def drawings():
  return figures(400), figures(40, seed=1)


@pytest.mark.slow
def test_it_takes_noise_off_new_images(drawings):
  noisy, images, how = denoised(*drawings)
  assert how["method"] == "network" and how["validation"]["network"] > how["validation"]["raw"] + 3
  assert psnr(drawings[1], images) > psnr(drawings[1], np.clip(noisy, 0, 255)) + 3
  assert images.dtype == np.float32 and images.min() >= 0 and images.max() <= 255


@pytest.mark.slow
def test_from_shuffled_pairs_it_learns_no_more_than_the_mean(drawings):
  public, targets = drawings
  _, images, _ = denoised(public, targets, np.roll(public, 1, axis=0))
  mean = np.broadcast_to(public.mean(0), targets.shape)
  assert psnr(targets, images) < psnr(targets, mean) + 0.5


@pytest.mark.slow
def test_patches_that_do_not_lie_alike_are_noticed(drawings, monkeypatch):
  real = denoise._patches
  shifted = lambda noisy, wanted, seed: real(noisy, np.roll(wanted, 3, axis=1), seed)  # noqa: E731
  monkeypatch.setattr(denoise, "_patches", shifted)
  with pytest.raises(AssertionError):
    test_it_takes_noise_off_new_images(drawings)


def test_exact_images_and_those_of_too_few_stay_as_they_are(drawings):
  public, targets = drawings
  exact, how = denoise.improve(
    {"raw": targets.astype(np.float32)},
    {"raw": public.astype(np.float32)},
    public,
    seed=0,
    progress=silent,
  )
  assert how["method"] == "raw" and np.array_equal(exact, targets)
  noisy, images, how = denoised(public[:40], targets)
  assert how["method"] == "raw" and np.array_equal(images, np.clip(noisy, 0, 255))


@pytest.mark.slow
def test_images_larger_than_a_patch():
  public, targets = figures(60, (40, 70, 1)), figures(10, (40, 70, 1), seed=1)
  noisy, images, how = denoised(public, targets)
  assert images.shape == targets.shape and how["method"] == "network"
  assert psnr(targets, images) > psnr(targets, np.clip(noisy, 0, 255)) + 1


def test_what_is_rehearsed_is_noise_of_its_level():
  public = np.full((50, 16, 16, 1), 100, np.uint8)
  noise = denoise.rehearse(public, LEVEL, seed=0) - 100
  assert abs(noise.mean()) < 1 and np.abs(noise).max() <= LEVEL / 2
  assert noise.var() == pytest.approx(LEVEL**2 / 12, rel=0.05)


def test_a_part_of_the_public_images_is_rehearsed():
  assert denoise.count(np.empty((9000, 8, 8, 1))) == 1000
  assert denoise.count(np.empty((300, 8, 8, 1))) == 100
  assert denoise.count(np.empty((1200, 256, 256, 2))) == 256
