import numpy as np
import pytest
from helpers.twins import twin
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from djax.host import augment


def draws(count, seed=0):
  """Uniforms as the streams give them: multiples of 2^-24."""
  steps = np.random.default_rng(seed).integers(0, 2**24, (count, augment.DRAWS))
  return (steps / 2**24).astype(np.float32)


def places(height, width, batch):
  """Images whose pixels say where they are."""
  y, x = np.mgrid[:height, :width]
  return np.repeat((1000 * y + x)[None, :, :, None], batch, axis=0).astype(np.float32)


def shift_of(view):
  """Reads ``(dy, dx)`` and whether it is mirrored off the middle of a view of ``places``."""
  height, width, _ = view.shape
  here, right = view[height // 2, width // 2 : width // 2 + 2, 0]
  mirrored = bool(right < here)
  middle = width - 1 - width // 2 if mirrored else width // 2
  return int(here // 1000) - height // 2, int(here % 1000) - middle, mirrored


@given(
  shape=st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 3)),
  data=st.data(),
  flip=st.booleans(),
  dtype=st.sampled_from([np.uint8, np.float32]),
)
def test_augment_equals_the_twin(shape, data, flip, dtype):
  crop = data.draw(st.integers(0, min(shape[:2]) - 1))
  values = np.random.default_rng(1).integers(0, 256, (12, *shape)).astype(dtype)
  u = draws(12, seed=crop)
  u[:3] = [[0, 0, 0], [1 - 2**-24] * 3, [0.5, 0.5, 0.5]]
  before = values.copy()
  found = augment.augment(values, u, crop=crop, flip=flip)
  assert found.dtype == dtype
  assert found.shape == values.shape
  for image, row, view in zip(values, u, found, strict=True):
    np.testing.assert_array_equal(view, twin(image, row, crop, flip))
  np.testing.assert_array_equal(values, before)


def test_a_shift_shows_what_lies_further_and_mirrors_beyond_the_edge():
  image = places(3, 5, 1)
  u = np.array([[0.99, 0.0, 0.9]], np.float32)  # dy = 2, dx = -2
  view = augment.augment(image, u, crop=2, flip=True)[0, :, :, 0]
  expected = [[2002, 2001, 2000, 2001, 2002], [1002, 1001, 1000, 1001, 1002], [2, 1, 0, 1, 2]]
  assert view.tolist() == expected
  mirrored = augment.augment(image, np.array([[0.99, 0.0, 0.49]], np.float32), crop=2, flip=True)
  assert mirrored[0, :, :, 0].tolist() == [row[::-1] for row in expected]


def test_crop_0_without_flip_is_the_original():
  image = places(4, 6, 50)
  np.testing.assert_array_equal(augment.augment(image, draws(50), crop=0, flip=False), image)


def test_flip_alone_mirrors_where_the_third_draw_is_below_one_half():
  image, u = places(4, 6, 50), draws(50)
  found = augment.augment(image, u, crop=0, flip=True)
  low = u[:, 2] < 0.5
  assert 10 < low.sum() < 40
  np.testing.assert_array_equal(found[low], image[low, :, ::-1])
  np.testing.assert_array_equal(found[~low], image[~low])


def test_without_flip_nothing_is_mirrored():
  found = augment.augment(places(9, 12, 200), draws(200), crop=3, flip=False)
  assert not any(shift_of(view)[2] for view in found)


def is_uniform(shifts, crop):
  """Whether shifts pass for uniform on ``-crop..crop``; a true sampler fails once in 10^6 seeds."""
  counts = np.array([(shifts == s).sum() for s in range(-crop, crop + 1)])
  return counts.sum() == len(shifts) and stats.chisquare(counts).pvalue > 1e-6


@pytest.fixture(scope="module")
def shifts():
  count, crop = 6000, 4
  found = augment.augment(places(11, 14, count), draws(count, seed=2), crop=crop, flip=True)
  return np.array([shift_of(view) for view in found]), crop


def test_shifts_are_uniform_in_range_and_independent_and_half_are_mirrored(shifts):
  found, crop = shifts
  for axis in (0, 1):
    assert is_uniform(found[:, axis], crop)
  mirrored = found[:, 2].sum()
  assert stats.binomtest(int(mirrored), len(found)).pvalue > 1e-6
  side = 2 * crop + 1
  table = np.zeros((side, side, 2))
  np.add.at(table, tuple(found.T + np.array([[crop], [crop], [0]])), 1)
  assert stats.chi2_contingency(table.reshape(side * side, 2)).pvalue > 1e-6
  assert stats.chi2_contingency(table.sum(2)).pvalue > 1e-6


@pytest.mark.parametrize(
  "wrong",
  [
    lambda u, c: np.floor(u * (2 * c)) - c,
    lambda u, c: np.floor(u * (2 * c + 2)) - c,
    lambda u, c: np.rint(u * 2 * c) - c,
    lambda u, c: np.trunc(u * (2 * c + 1) - c),
  ],
  ids=["one too few", "one too many", "halves at the ends", "towards zero"],
)
def test_the_statistics_reject_a_wrong_range(wrong):
  crop = 4
  assert not is_uniform(wrong(draws(6000, seed=2)[:, 0].astype(np.float64), crop), crop)
