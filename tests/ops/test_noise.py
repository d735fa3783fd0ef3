import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from djax.ops import noise

ALPHA = 1e-6  # false alarms of each statistical test, were its seed drawn afresh


def uniform_p(draws, noise_level):
  """Smallest corrected p-value that ``draws`` are i.i.d. uniform on [0, N)."""
  draws = np.asarray(draws, np.float64).reshape(-1)
  if draws.min() < 0 or draws.max() >= noise_level:
    return 0.0
  count, deviations = len(draws), draws - noise_level / 2
  squares = deviations**2
  scores = (
    deviations.mean() / (noise_level / np.sqrt(12 * count)),
    (squares.mean() - noise_level**2 / 12) / (noise_level**2 / np.sqrt(180 * count)),
    (deviations[1:] * deviations[:-1]).mean() / (noise_level**2 / 12 / np.sqrt(count - 1)),
  )
  pvalues = [2 * scipy.stats.norm.sf(abs(z)) for z in scores]
  pvalues.append(scipy.stats.kstest(draws / noise_level, "uniform").pvalue)
  return min(pvalues) * len(pvalues)


@pytest.mark.parametrize("noise_level", [1, 25, 200.0])
def test_noise_is_uniform_on_0_to_n(noise_level):
  drawn = noise.uniform(jax.random.key(0), (40, 25, 20), noise_level=noise_level)
  assert drawn.shape == (40, 25, 20)
  assert drawn.dtype == jnp.float32
  assert uniform_p(drawn, noise_level) > ALPHA


@pytest.mark.parametrize("shape", [(), (1,), (3, 5, 7)])
def test_an_odd_number_of_values_fills_its_shape(shape):
  drawn = noise.uniform(jax.random.key(1), shape, noise_level=8)
  assert drawn.shape == shape
  longer = noise.uniform(jax.random.key(1), (drawn.size + 1,), noise_level=8)
  assert len(np.unique(longer)) == longer.size  # no word is used twice


def test_the_statistics_reject_other_noise():
  rng = np.random.default_rng(0)
  count, level = 20000, 25.0
  normal = rng.normal(level / 2, level / np.sqrt(12), count)
  for wrong in (
    normal[(normal >= 0) & (normal < level)],
    np.clip(normal, 0, level * (1 - 1e-7)),
    rng.uniform(0, level / 255, count),  # on a 0..1 scale
    rng.uniform(-level / 2, level / 2, count),
    rng.uniform(0, level * 0.97, count),
    rng.uniform(0, level * 1.03, count),
    np.floor(rng.uniform(0, level, count)),  # whole grey levels
    np.repeat(rng.uniform(0, level, count // 2), 2),  # shared by two channels
    np.zeros(count),
  ):
    assert uniform_p(wrong, level) < ALPHA
  assert uniform_p(rng.uniform(0, level, count), level) > ALPHA


def test_one_rng_is_one_noise():
  rng = jax.random.key(3)
  first, again = (noise.uniform(rng, (50,), noise_level=25) for _ in range(2))
  np.testing.assert_array_equal(first, again)
  other = noise.uniform(jax.random.fold_in(rng, 1), (50,), noise_level=25)
  assert np.abs(np.asarray(first) - np.asarray(other)).mean() > 1


def test_a_record_has_its_noise_alone_in_a_batch_and_in_another_batch():
  rng, shape = jax.random.key(4), (4, 3, 3, 2)

  def of_record(index):
    return noise.uniform(jax.random.fold_in(rng, index), shape, noise_level=50)

  batch = np.asarray(jax.jit(jax.vmap(of_record))(np.array([7, 3, 11])))
  other_batch = np.asarray(jax.vmap(of_record)(np.array([3, 5])))
  alone = np.asarray(of_record(3))
  np.testing.assert_array_equal(batch[1], alone)
  np.testing.assert_array_equal(other_batch[0], alone)
  for different in (batch[0], batch[2], other_batch[1]):
    assert np.abs(different - alone).mean() > 5


def test_plain_and_jit_agree_and_level_zero_is_silent():
  rng = jax.random.key(5)

  def draw(rng):
    return noise.uniform(rng, (30, 2), noise_level=100.0)

  np.testing.assert_array_equal(draw(rng), jax.jit(draw)(rng))
  assert not np.asarray(noise.uniform(rng, (30,), noise_level=0)).any()


@pytest.mark.parametrize("noise_level", [-1, -1e-9, float("nan"), float("inf"), float("-inf")])
def test_levels_that_are_no_amplitude_are_refused(noise_level):
  with pytest.raises(ValueError, match="noise_level must be a finite number of at least 0"):
    noise.uniform(jax.random.key(0), (2,), noise_level=noise_level)
