"""The examiner: it sees what nothing hides, and nothing else."""

import numpy as np
import pytest

from djax import keys, schemes, sources
from djax.attacks import base
from djax.attacks.base import Known
from djax.attacks.generic import examiner
from djax.audit import evaluator

pytestmark = pytest.mark.slow  # they train an examiner


@pytest.fixture(scope="module")
def digits():
  return sources.load("digits", "test[:200]")


@pytest.fixture(scope="module")
def judge():
  train = sources.load("digits", "train")
  return evaluator.train_examiner(train.images, train.labels, classes=10, seed=0)


def above_chance(judge, originals, labels, disguise):
  scheme = schemes.from_spec({"image_shape": [8, 8, 1], **disguise})
  key = scheme.make_key(keys.experiment(0).read)
  draw = np.random.default_rng(0)
  disguised = scheme.export(key, originals, lambda: draw.random(originals.shape, np.float32))
  known = Known(scheme.spec.to_dict(), disguised, disguised)
  found = base.run(examiner.ATTACK, known, seed=0)
  return evaluator.score(originals, labels, found.images, judge).above_chance


ONE_BLOCK = {"scheme": "permutation", "block_size": 8}  # nothing is moved: a weak key if any is


def test_it_recognises_originals_and_what_nothing_hides(judge, digits):
  assert np.mean(judge.labels(digits.images) == digits.labels) > 0.9
  assert above_chance(judge, digits.images, digits.labels, ONE_BLOCK) > 0.9


def test_a_copy_that_mixes_its_images_up_fails_the_same_line(judge, digits, monkeypatch):
  real = examiner.ATTACK

  def rolled(known, *, seed, progress):
    images, found = real.attack(known, seed=seed, progress=progress)
    return base.Estimate(np.roll(images, 3, axis=1)[::-1], found)

  monkeypatch.setattr(examiner, "ATTACK", real._replace(attack=rolled))
  assert not above_chance(judge, digits.images, digits.labels, ONE_BLOCK) > 0.9


@pytest.mark.parametrize(
  "disguise",
  [
    {"scheme": "rmt", "block_size": 4, "noise_level": 25.0},
    {"scheme": "aes", "block_size": 4},
  ],
)
def test_it_does_not_see_through_a_key(judge, digits, disguise):
  assert above_chance(judge, digits.images, digits.labels, disguise) < 0.2


def test_random_images_show_nothing(judge, digits):
  noise = np.random.default_rng(0).integers(0, 256, digits.images.shape, dtype=np.uint8)
  seen = np.mean(judge.labels(noise) == digits.labels)
  assert seen < 0.25
