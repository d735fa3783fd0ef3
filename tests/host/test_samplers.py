import itertools

import numpy as np
import pytest
import scipy.stats

from djax import keys
from djax.host import samplers

ALPHA = 1e-6  # false alarms of each statistical test, were its seed drawn afresh


def words(seed, label="test"):
  return samplers.Words(keys.experiment(seed).read, label)


def words_of(*values):
  """A stream of the given words, then zeros."""

  def read(label, count):
    given = np.array(values, "<u8").tobytes()
    return (given + bytes(count))[:count]

  return samplers.Words(read, "fake")


def mean_p(values, expected):
  """p-value that each column of ``values`` has the expected mean."""
  score = (values.mean(0) - expected) / (values.std(0) / np.sqrt(len(values)) + 1e-300)
  pvalues = np.atleast_1d(2 * scipy.stats.norm.sf(np.abs(score)))
  return pvalues.min() * pvalues.size


# Words.


def test_words_are_little_endian_and_taken_in_order():
  stream = samplers.Words(lambda label, count: bytes(range(count)), "test")
  assert int(stream.peek(1)[0]) == 0x0706050403020100
  assert int(stream.take(1)[0]) == 0x0706050403020100
  assert int(stream.take(1)[0]) == 0x0F0E0D0C0B0A0908


def test_words_do_not_depend_on_how_many_are_taken_at_once():
  whole = words(1).take(300)
  parts = words(1)
  taken = []
  for count in (1, 0, 31, 2, 200, 66):
    parts.peek(count + 5)
    taken.append(parts.take(count))
  np.testing.assert_array_equal(np.concatenate(taken), whole)
  assert len(np.unique(whole)) == 300


def test_streams_differ_by_label_and_by_key():
  streams = [words(1, "a"), words(1, "b"), words(2, "a")]
  for one, other in itertools.combinations([stream.take(50) for stream in streams], 2):
    assert not (one == other).any()


def test_words_hide_their_values():
  stream = words(1)
  stream.take(3)
  assert repr(stream) == "Words('test', taken=3)"


# Permutations.


def permutation_p(permutations):
  """Chi-square over all orders of ``n`` items."""
  orders = {order: i for i, order in enumerate(itertools.permutations(range(len(permutations[0]))))}
  counts = np.bincount([orders[tuple(p)] for p in permutations], minlength=len(orders))
  return scipy.stats.chisquare(counts).pvalue


def test_permutations_are_uniform():
  stream = words(2)
  assert permutation_p([samplers.permutation(stream, 4).tolist() for _ in range(12000)]) > ALPHA


def test_the_chi_square_rejects_wrong_shuffles():
  rng = np.random.default_rng(0)

  def swap_any(n):
    perm = list(range(n))
    for i in range(n):
      j = int(rng.integers(n))
      perm[i], perm[j] = perm[j], perm[i]
    return perm

  def biased_modulo(n):
    perm = list(range(n))
    for i in range(n - 1, 0, -1):
      j = int(rng.integers(16)) % (i + 1)  # 16 is no multiple of 3
      perm[i], perm[j] = perm[j], perm[i]
    return perm

  def never_stays(n):
    perm = list(range(n))
    for i in range(n - 1, 0, -1):
      j = int(rng.integers(i))
      perm[i], perm[j] = perm[j], perm[i]
    return perm

  for wrong in (swap_any, biased_modulo, never_stays):
    assert permutation_p([wrong(4) for _ in range(12000)]) < ALPHA
  assert permutation_p([rng.permutation(4).tolist() for _ in range(12000)]) > ALPHA


def test_permutation_draws_from_the_top_and_rejects_words_that_bias_the_modulo():
  top = (1 << 64) - 1  # 2^64 - 1 is a multiple of 3, so below 3 this one word is refused
  stream = words_of(top, 4, 1)
  np.testing.assert_array_equal(samplers.permutation(stream, 3), [0, 2, 1])
  assert repr(stream) == "Words('fake', taken=3)"
  # A power of two divides 2^64: nothing is refused.
  stream = words_of(top)
  np.testing.assert_array_equal(samplers.permutation(stream, 2), [0, 1])
  assert repr(stream) == "Words('fake', taken=1)"
  stream = words_of(top - 1, 0)  # the largest word accepted below 3 gives 2
  np.testing.assert_array_equal(samplers.permutation(stream, 3), [1, 0, 2])


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_permutations_are_bijections(n):
  perm = samplers.permutation(words(3), n)
  assert perm.dtype == np.int32
  np.testing.assert_array_equal(np.sort(perm), np.arange(n))
  if n == 100:
    assert (perm != samplers.permutation(words(4), n)).mean() > 0.5


# Uniforms and normals.


def test_uniforms_are_the_top_53_bits():
  values = samplers.uniform(words_of(0, 1 << 63, (1 << 64) - 1, (1 << 11) - 1, 1 << 11), 5)
  assert values.tolist() == [0.0, 0.5, 1 - 2.0**-53, 0.0, 2.0**-53]
  drawn = words(5).take(100)
  np.testing.assert_array_equal(samplers.uniform(words(5), 100), (drawn >> 11) / 2.0**53)


def test_uniforms_pass_kolmogorov_smirnov_and_powers_of_them_do_not():
  values = samplers.uniform(words(6), 50000)
  assert scipy.stats.kstest(values, "uniform").pvalue > ALPHA
  assert scipy.stats.kstest(values**1.1, "uniform").pvalue < ALPHA


def normal_p(values):
  """Smallest corrected p-value that ``values`` are i.i.d. standard normal."""
  pairs = values[: len(values) // 2 * 2].reshape(-1, 2)
  squares = values**2
  hermite = (values, squares - 1, (squares - 3) * values, squares * (squares - 6) + 3)
  products = np.stack([pairs[:, 0] * pairs[:, 1], (pairs[:, 0] ** 2 - 1) * (pairs[:, 1] ** 2 - 1)])
  pvalues = [
    scipy.stats.kstest(values, "norm").pvalue,
    mean_p(np.stack(hermite, 1), 0),
    mean_p(products.T, 0),
    mean_p(values[1:-1:2] * values[2::2], 0),
  ]
  return min(pvalues) * len(pvalues)


def test_normals_are_normal():
  values = samplers.normal(words(7), 100000)
  assert values.shape == (100000,)
  assert normal_p(values) > ALPHA


def test_the_statistics_reject_other_normals():
  rng = np.random.default_rng(1)
  count = 100000
  v = rng.uniform(-1, 1, (count, 2))
  s = (v**2).sum(1)
  inside = s < 1
  shared = rng.normal(size=count // 2)
  for wrong in (
    rng.uniform(size=(count, 12)).sum(1) - 6,
    rng.normal(size=count) * 1.03,
    rng.normal(size=count) + 0.03,
    rng.standard_t(20, size=count),
    np.repeat(shared, 2),
    np.stack([shared, -shared], 1).reshape(-1),
    np.stack([shared, shared * rng.choice([-1, 1], count // 2)], 1).reshape(-1),
    (v[inside] * np.sqrt(-np.log(s[inside]) / s[inside])[:, None]).reshape(-1),  # no factor 2
  ):
    assert normal_p(wrong) < ALPHA
  assert normal_p(rng.normal(size=count)) > ALPHA


def test_normals_are_marsaglias_polar_method_pair_by_pair():
  drawn = words(8).take(400)
  unit = (drawn >> 11) / 2.0**53
  expected, used = [], 0
  while len(expected) < 101:
    a, b = 2 * unit[used] - 1, 2 * unit[used + 1] - 1
    used += 2
    s = a * a + b * b
    if 0 < s < 1:
      factor = np.sqrt(-2 * np.log(s) / s)
      expected += [a * factor, b * factor]
  stream = words(8)
  np.testing.assert_allclose(samplers.normal(stream, 101), expected[:101], rtol=1e-13)
  assert repr(stream) == f"Words('test', taken={used})"


def test_log_is_within_its_bound():
  rng = np.random.default_rng(2)
  near = 1 - rng.uniform(0, 1e-3, 20000)
  x = np.concatenate(
    [rng.uniform(0, 1, 20000), 2.0 ** -rng.uniform(0, 53, 20000), near, [1.0, 0.5, 2.0**-53]]
  )
  exact = np.log(x.astype(np.longdouble))
  assert (np.abs(samplers.log(x) - exact) <= 1e-15 * np.abs(exact)).all()


# Matrices.


def haar_p(matrices):
  """Smallest corrected p-value that ``matrices`` are Haar on O(n); 0 if one is not orthogonal."""
  count, n, _ = matrices.shape
  if np.abs(matrices @ matrices.swapaxes(1, 2) - np.eye(n)).max() > 1e-12:
    return 0.0
  trace = np.trace(matrices, axis1=1, axis2=2)
  flat = matrices.reshape(count, -1)
  neighbours = (matrices[:, :-1, :-1] * matrices[:, 1:, 1:]).reshape(count, -1)
  positive = int((np.linalg.det(matrices) > 0).sum())
  pvalues = [
    mean_p(flat, 0),  # the sign of every column
    mean_p(flat**2, 1 / n),
    mean_p(flat**4, 3 / (n * (n + 2))),
    mean_p(trace, 0),
    mean_p(trace**2, 1),
    mean_p(neighbours, 0),
    mean_p(flat[1:] * flat[:-1], 0),  # one matrix tells nothing about the next
    scipy.stats.binomtest(positive, count).pvalue,
  ]
  return min(pvalues) * len(pvalues)


@pytest.mark.parametrize(("n", "count"), [(2, 3000), (3, 3000), (6, 2000)])
def test_orthogonal_matrices_are_haar(n, count):
  matrices = samplers.haar([words(9, "haar")] * count, n)
  assert matrices.shape == (count, n, n)
  assert haar_p(matrices) > ALPHA


def test_the_statistics_reject_other_orthogonal_matrices():
  rng = np.random.default_rng(3)
  count, n = 5000, 4
  normals = rng.normal(size=(count, n, n))

  def qr(x, *, fix=True):
    q, r = np.linalg.qr(x)
    return q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :] if fix else q

  haar = qr(normals)
  rotations = haar.copy()
  rotations[:, :, 0] *= np.sign(np.linalg.det(rotations))[:, None]
  for wrong in (
    qr(normals, fix=False),
    rotations,
    qr(rng.uniform(-1, 1, (count, n, n)) ** 3),
    qr(np.abs(normals)),
    qr(np.eye(n) + 0.5 * normals),
    np.repeat(haar[: count // 2], 2, axis=0),
    normals / np.linalg.norm(normals, axis=1, keepdims=True),
  ):
    assert haar_p(wrong) < ALPHA
  assert haar_p(haar) > ALPHA


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 48])
def test_orthogonal_to_rounding(n):
  matrices = samplers.haar([words(10, "a"), words(10, "b")], n)
  np.testing.assert_allclose(
    matrices @ matrices.swapaxes(1, 2), np.broadcast_to(np.eye(n), (2, n, n)), atol=1e-14
  )
  if n > 1:
    assert np.abs(matrices[0] - matrices[1]).max() > 0.1


def test_matrices_do_not_depend_on_their_neighbours():
  alone = samplers.haar([words(11, "b")], 5)[0]
  np.testing.assert_array_equal(samplers.haar([words(11, "a"), words(11, "b")], 5)[1], alone)
  alone = samplers.invertible([words(11, "b")], 5)[0]
  np.testing.assert_array_equal(samplers.invertible([words(11, "a"), words(11, "b")], 5)[1], alone)


def test_first_column_is_the_last_vector_of_normals_and_the_counts_are_as_written():
  """Column 0 of the n x n matrix is x / |x| for the n normals drawn last."""
  n = 4
  stream = words(12)
  matrix = samplers.haar([stream], n)[0]
  twin = words(12)
  last = samplers.normal(twin, n * (n + 1) // 2)[-n:]
  np.testing.assert_allclose(matrix[:, 0], last / np.linalg.norm(last), atol=1e-15)
  assert repr(stream) == repr(twin)


def invertible_p(matrices):
  """Smallest corrected p-value that the scales are uniform on [0.5, 2) between Haar factors."""
  left, scales, right = np.linalg.svd(matrices)
  if scales.min() < 0.5 - 1e-12 or scales.max() > 2 + 1e-12:
    return 0.0
  count, n, _ = matrices.shape
  flat = matrices.reshape(count, -1)
  positive = int((np.linalg.det(matrices) > 0).sum())
  pvalues = [
    scipy.stats.kstest((scales.reshape(-1) - 0.5) / 1.5, "uniform").pvalue,
    mean_p(flat, 0),
    mean_p(flat**2, 1.75 / n),  # the mean of s^2
    mean_p(left.reshape(count, -1) ** 4, 3 / (n * (n + 2))),
    mean_p(right.reshape(count, -1) ** 4, 3 / (n * (n + 2))),
    scipy.stats.binomtest(positive, count).pvalue,
  ]
  return min(pvalues) * len(pvalues)


def test_invertible_matrices_have_uniform_scales_between_haar_factors():
  matrices = samplers.invertible([words(13)] * 3000, 3)
  assert matrices.shape == (3000, 3, 3)
  assert invertible_p(matrices) > ALPHA
  for n in (2, 7, 24):
    scales = np.linalg.svd(samplers.invertible([words(14)], n), compute_uv=False)
    assert scales.min() >= 0.5 and scales.max() < 2


def test_the_statistics_reject_other_invertible_matrices():
  rng = np.random.default_rng(4)
  count, n = 3000, 3
  left, right = samplers.haar([words(15)] * 2 * count, n).reshape(2, count, n, n)
  scales = rng.uniform(0.5, 2, (count, 1, n))
  for wrong in (
    rng.normal(size=(count, n, n)),
    left * rng.uniform(0.5, 1.9, (count, 1, n)) @ right,
    left * np.exp(rng.uniform(np.log(0.5), np.log(2), (count, 1, n))) @ right,
    left * scales @ np.broadcast_to(np.eye(n), right.shape),
    left * scales @ left.swapaxes(1, 2),  # symmetric
    left,
  ):
    assert invertible_p(wrong) < ALPHA
  assert invertible_p(left * scales @ right) > ALPHA
