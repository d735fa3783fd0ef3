import itertools
import math

import numpy as np
import pytest

from djax import schemes
from djax.audit import bounds

SPEC = {"scheme": "rmt", "image_shape": (8, 8, 1), "block_size": 4, "noise_level": 25.0}


def spec_of(**options):
  return schemes.from_spec({**SPEC, **options}).spec.to_dict()


@pytest.mark.parametrize("level", [10.0, 64.0])
def test_variation_is_that_of_a_grid(level):
  """In one and two dimensions: half the sum of the differences of two densities on a fine grid."""
  for x, y in (([3.0], [5.5]), ([3.0], [80.0]), ([0.0, 0.0], [2.0, 4.5]), ([1.0, 9.0], [1.0, 9.0])):
    x, y = np.array(x), np.array(y)
    low, high = min(x.min(), y.min()), max(x.max(), y.max()) + level
    axis = np.linspace(low, high, 801)[:-1] + (high - low) / 1600
    points = np.array(list(itertools.product(axis, repeat=len(x))))
    p, q = (
      ((points >= centre) & (points < centre + level)).all(1) / level ** len(x) for centre in (x, y)
    )
    slow = 0.5 * np.abs(p - q).sum() * ((high - low) / 800) ** len(x)
    assert bounds.variation(x, y, level) == pytest.approx(slow, abs=0.01)


def test_variation_is_the_delta_of_every_epsilon():
  x, y, level = np.array([3.0]), np.array([8.0]), 20.0
  axis = np.linspace(0, 40, 4001)
  p, q = (((axis >= c[0]) & (axis < c[0] + level)) / level for c in (x, y))
  for epsilon in (0.0, 1.0, 8.0):
    delta = np.maximum(p - math.exp(epsilon) * q, 0).sum() * 0.01
    assert bounds.variation(x, y, level) == pytest.approx(delta, abs=0.01)


def test_no_test_does_better_than_the_variation():
  rng = np.random.default_rng(0)
  x, y, level = np.array([10.0, 20.0, 30.0]), np.array([14.0, 18.0, 30.0]), 20.0
  noisy = {name: image + level * rng.random((200_000, 3)) for name, image in (("x", x), ("y", y))}

  def advantage(says_x):
    return float(says_x(noisy["x"]).mean() - says_x(noisy["y"]).mean())

  best = advantage(lambda seen: ~((seen >= y) & (seen < y + level)).all(1))  # impossible under y
  assert best == pytest.approx(float(bounds.variation(x, y, level)), abs=0.01)
  nearer = advantage(
    lambda seen: ((seen - level / 2 - x) ** 2).sum(1) < ((seen - level / 2 - y) ** 2).sum(1)
  )
  assert 0.05 < nearer < best


def test_information_bounds_what_a_grid_gives():
  rng = np.random.default_rng(0)
  every = tuple(range(256))
  for values, level in (((0, 255), 100.0), ((0, 64, 128, 192, 255), 25.0), (every, 100.0)):
    images = rng.choice(values, (20_000, 1)).astype(np.float32)
    axis = np.arange(0, 255 + level, 0.05)
    each = np.mean([((axis >= v) & (axis < v + level)) / level for v in values], 0)
    entropy = -(each[each > 0] * np.log2(each[each > 0])).sum() * 0.05
    exact = entropy - math.log2(level)
    bound = bounds.information(images, level)
    assert exact <= bound + 0.01
  assert bound < exact + 0.3  # of grey values that are all as likely, few bits too many
  two = np.repeat(images, 2, 1)
  assert bounds.information(two, 50.0) == pytest.approx(2 * bounds.information(images, 50.0))


def test_nobody_guesses_better_than_fano_allows():
  rng = np.random.default_rng(0)
  candidates = rng.integers(0, 256, (64, 1)).astype(np.float64)
  level = 255.0 * 8
  least = bounds.least_error(bounds.information(candidates, level), len(candidates))
  named = rng.integers(0, 64, 20_000)
  seen = candidates[named] + level * rng.random((20_000, 1))
  possible = (seen >= candidates.T) & (seen < candidates.T + level)
  wrong = np.mean((possible * rng.random(possible.shape)).argmax(1) != named)
  assert 0.5 < least < wrong
  assert bounds.least_error(100.0, 64) == 0


def test_what_is_said_of_a_disguise():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (80, 8, 8, 1)).astype(np.uint8)
  found = bounds.noise_alone(spec_of(), images[:20], images[20:])
  assert found["vacuous"] and found["variation"] == 1 and found["least_error"] == 0
  assert "that proves nothing" in found["words"] and "60 others" in found["words"]
  alike = np.full((80, 8, 8, 1), 7, np.uint8)
  alike[::2, 0, 0] += 1
  found = bounds.noise_alone(spec_of(noise_level=200.0), alike[:2], alike[2:])
  assert found["variation"] == pytest.approx(1 / 200) and not found["vacuous"]
  several = bounds.noise_alone(spec_of(noise_level=200.0), alike[:2], alike[2:], views=3)
  assert "of one view, and 3 leave" in several["words"]
  for other in (
    spec_of(noise_level=0.0),
    spec_of(noise_place="after"),
    spec_of(matrix="projection"),
    schemes.from_spec({"scheme": "aes", "image_shape": (8, 8, 1), "block_size": 4}).spec.to_dict(),
  ):
    found = bounds.noise_alone(other, images[:20], images[20:])
    assert found["vacuous"] and set(found) == {"vacuous", "words"}
