import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from djax.ops import augment

WARP = {"rotate": 20.0, "scale": 0.2, "shear": 0.3}


def many(image, count, seed=0, numbers=None, **options):
  """Returns view 1 of ``count`` records, or the given views of one."""
  rngs = jax.random.split(jax.random.key(seed), count)
  make = functools.partial(augment.view, **options)
  if numbers is None:
    return np.asarray(jax.jit(jax.vmap(make, (None, 0, None)))(image, rngs, 1))
  return np.asarray(jax.jit(jax.vmap(make, (None, None, 0)))(image, rngs[0], numbers))


def ramp(height, width):
  """An image whose pixels say where they are: y, x."""
  return np.stack(np.mgrid[:height, :width], -1).astype(np.float32)


def read_move(view):
  """Reads shift and mirror off the middle of a view of ``ramp``."""
  height, width, _ = view.shape
  here, right = view[height // 2, width // 2 : width // 2 + 2]
  mirrored = bool(right[1] < here[1])
  middle = width - 1 - width // 2 if mirrored else width // 2
  return int(here[0]) - height // 2, int(here[1]) - middle, mirrored


def read_warp(view):
  """Reads the 2 x 2 matrix off a warped view of ``ramp``, where it lies inside."""
  height, width, _ = view.shape
  centre = np.array([(height - 1) / 2, (width - 1) / 2])
  places, found = ramp(height, width).reshape(-1, 2) - centre, view.reshape(-1, 2) - centre
  inside = (np.abs(found) < centre - 0.01).all(1)
  return np.linalg.lstsq(places[inside], found[inside], rcond=None)[0].T.astype(np.float64)


def parts(matrix):
  """Splits ``R S D``: angle in degrees, both log-scales, shear."""
  across = np.hypot(*matrix[:, 1])
  angle = math.atan2(-matrix[0, 1], matrix[1, 1])
  turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
  rest = turn.T @ matrix
  return (
    math.degrees(angle),
    math.log(rest[0, 0]),
    math.log(across),
    rest[1, 0] / rest[0, 0] / across,
  )


def moved_twin(image, down, across, mirrored):
  height, width, _ = image.shape
  result = np.empty_like(image)

  def inside(place, size):
    while not 0 <= place < size:
      place = -place if place < 0 else 2 * (size - 1) - place
    return place

  for y in range(height):
    for x in range(width):
      target = width - 1 - x if mirrored else x
      result[y, target] = image[inside(y + down, height), inside(x + across, width)]
  return result


def warped_twin(image, matrix):
  height, width, channels = image.shape
  result = np.empty(image.shape, np.float64)
  for y in range(height):
    for x in range(width):
      at = matrix @ [y - (height - 1) / 2, x - (width - 1) / 2]
      row = min(max(at[0] + (height - 1) / 2, 0), height - 1)
      column = min(max(at[1] + (width - 1) / 2, 0), width - 1)
      total = np.zeros(channels)
      for j in range(height):
        for i in range(width):
          weight = max(0, 1 - abs(row - j)) * max(0, 1 - abs(column - i))
          total += weight * image[j, i]
      result[y, x] = total
  return result


@settings(max_examples=6)
@given(
  shape=st.tuples(st.integers(2, 6), st.integers(4, 7), st.integers(1, 3)),
  data=st.data(),
  flip=st.booleans(),
  dtype=st.sampled_from([np.uint8, np.int32, np.float32, np.float16]),
)
def test_shift_and_mirror_equal_the_twin(shape, data, flip, dtype):
  crop = data.draw(st.integers(0, min(shape[:2]) - 1))
  image = np.random.default_rng(1).integers(0, 256, shape).astype(dtype)
  found = many(image, 20, crop=crop, flip=flip)
  assert found.dtype == dtype
  side = range(-crop, crop + 1)
  possible = {
    moved_twin(image, down, across, mirrored).tobytes()
    for down in side
    for across in side
    for mirrored in ({False, flip})
    if (down, across) != (0, 0) or crop == 0
  }
  assert {view.tobytes() for view in found} <= possible


@pytest.mark.slow
def test_everything_together_equals_the_twin_by_what_each_option_draws_alone():
  image = np.random.default_rng(2).uniform(0, 255, (12, 15, 2)).astype(np.float32)
  moves = many(ramp(12, 15), 8, crop=3, flip=True)
  warps = many(ramp(12, 15), 8, **WARP)
  found = many(image, 8, crop=3, flip=True, **WARP)
  for view, move, warp in zip(found, moves, warps, strict=True):
    expected = warped_twin(moved_twin(image, *read_move(move)), read_warp(warp))
    np.testing.assert_allclose(view, expected, atol=0.02)
    assert np.abs(view - image).mean() > 10


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float16])
@pytest.mark.parametrize("options", [{}, {"crop": 2, "flip": True}, {"crop": 1, **WARP}])
@pytest.mark.slow
def test_number_0_is_the_image_to_the_bit(dtype, options):
  bits = np.random.default_rng(3).integers(0, 256, (5, 6, 3 * np.dtype(dtype).itemsize), np.uint8)
  image = bits.view(dtype)  # NaN, infinities and all
  for number in (0, np.int32(0)):
    made = functools.partial(augment.view, **options)(jnp.asarray(image), jax.random.key(0), number)
    assert np.asarray(made).tobytes() == image.tobytes()
  traced = jax.jit(functools.partial(augment.view, **options))(image, jax.random.key(0), 0)
  assert np.asarray(traced).tobytes() == image.tobytes()


def test_no_options_change_nothing():
  image = ramp(4, 5)
  np.testing.assert_array_equal(many(image, 1, numbers=np.arange(6)), np.stack([image] * 6))


@pytest.mark.parametrize("options", [{"crop": 2, "flip": True}, {"crop": 1, "flip": True, **WARP}])
@pytest.mark.slow
def test_jit_and_vmap_agree_with_single_calls(options):
  images = np.random.default_rng(4).integers(0, 256, (6, 7, 8, 3)).astype(np.uint8)
  rngs, numbers = jax.random.split(jax.random.key(5), 6), np.arange(6, dtype=np.int32)
  make = functools.partial(augment.view, **options)
  found = np.asarray(jax.jit(jax.vmap(make))(images, rngs, numbers))
  for row in range(6):
    alone = np.asarray(make(jnp.asarray(images[row]), rngs[row], int(numbers[row])))
    assert np.abs(found[row].astype(int) - alone).max() <= ("rotate" in options)
    assert alone.dtype == np.uint8
  assert len({view.tobytes() for view in found}) == 6


def test_the_view_is_a_function_of_rng_and_number():
  image = np.random.default_rng(6).uniform(0, 255, (9, 9, 1)).astype(np.float32)
  numbers = np.array([1, 2, 1])
  first, second = (
    many(image, 1, seed=seed, numbers=numbers, crop=3, flip=True, **WARP) for seed in (0, 1)
  )
  np.testing.assert_array_equal(first[0], first[2])
  assert (first[0] != first[1]).any()
  assert (first[0] != second[0]).any()


@pytest.mark.parametrize("crop", [1, 3])
def test_shifts_do_not_repeat_before_all_were_there(crop):
  every = (2 * crop + 1) ** 2
  found = many(ramp(9, 11), 1, numbers=np.arange(2 * every - 1), crop=crop)
  moves = [read_move(view)[:2] for view in found]
  assert moves[0] == (0, 0)
  side = range(-crop, crop + 1)
  assert set(moves[:every]) == {(down, across) for down in side for across in side}
  assert moves[1:every] == moves[every:]
  others = many(ramp(9, 11), 1, seed=1, numbers=np.arange(every), crop=crop)
  assert [read_move(view)[:2] for view in others] != moves[:every]


def test_uint8_is_the_float_view_rounded():
  image = np.random.default_rng(7).choice([0, 255], (10, 10, 3)).astype(np.uint8)
  found = many(image, 40, crop=2, **WARP)
  wanted = many(image.astype(np.float32), 40, crop=2, **WARP)
  assert found.dtype == np.uint8
  assert np.abs(found - wanted.astype(np.float64)).max() < 0.501
  assert {0, 255} < set(found.ravel().tolist())


def uniform(values, least, most):
  """Whether values pass for uniform; true ones fail once in 10^6 seeds."""
  return stats.kstest(values, "uniform", (least, most - least)).pvalue > 1e-6


def evenly(counts):
  return stats.chisquare(counts).pvalue > 1e-6


@pytest.fixture(scope="module")
def moves():
  found = many(ramp(8, 11), 6000, crop=2, flip=True)
  return np.array([read_move(view) for view in found])


@pytest.fixture(scope="module")
def warps():
  found = many(ramp(13, 16), 3000, **WARP)
  return np.array([parts(read_warp(view)) for view in found])


def test_shifts_are_uniform_but_for_none_and_half_are_mirrored(moves):
  table = np.zeros((5, 5, 2))
  np.add.at(table, tuple(moves.T + np.array([[2], [2], [0]])), 1)
  assert table[2, 2].sum() == 0
  shifts = np.delete(table.sum(2).ravel(), 12)
  assert evenly(shifts)
  assert evenly(table.sum((0, 1)))
  assert stats.chi2_contingency(np.delete(table.reshape(25, 2), 12, 0)).pvalue > 1e-6


@pytest.mark.slow
def test_angles_scales_and_shears_are_uniform_and_independent(warps):
  greatest = (WARP["rotate"], WARP["scale"], WARP["scale"], WARP["shear"])
  for column, most in zip(warps.T, greatest, strict=True):
    assert uniform(column, -most, most)
  moves = [read_move(view) for view in many(ramp(13, 16), len(warps), crop=2, flip=True)]
  drawn = np.concatenate([warps, moves], axis=1)
  ranks = stats.spearmanr(drawn).statistic[np.triu_indices(7, 1)]
  assert np.abs(ranks).max() < 5 / math.sqrt(len(warps))


def test_the_statistics_reject_wrong_samplers(moves, warps):
  rng = np.random.default_rng(8)
  biased = np.bincount(rng.integers(0, 2**5, 6000) % 24, minlength=24)
  assert not evenly(biased)
  assert not evenly(np.bincount(rng.random(6000) < 0.45))
  angles = warps[:, 0]
  assert not uniform(angles * 1.15, -20, 20)
  assert not uniform(np.abs(angles), -20, 20)
  assert not uniform(rng.normal(0, 20 / math.sqrt(3), 3000), -20, 20)


@pytest.mark.parametrize(
  ("options", "word"),
  [
    ({"crop": 6}, "crop must be a whole number from 0 to 5"),
    ({"crop": -1}, "crop"),
    ({"crop": 1.5}, "crop"),
    ({"rotate": -1.0}, "rotate must be a finite number"),
    ({"scale": -0.1}, "scale"),
    ({"shear": float("nan")}, "shear"),
  ],
)
def test_bad_options_are_refused_in_one_line(options, word):
  with pytest.raises(ValueError, match=word) as caught:
    augment.view(jnp.zeros((6, 8, 1)), jax.random.key(0), 1, **options)
  assert "\n" not in str(caught.value)


def test_a_batch_is_refused():
  with pytest.raises(ValueError, match="Use vmap"):
    augment.view(jnp.zeros((2, 6, 8, 1)), jax.random.key(0), 1, crop=1)
