import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import assert_same, pixels
from hypothesis import given
from hypothesis import strategies as st

from djax.ops import permutation


def slow_permute(perm, cut):
  """METHOD section 1: disguised position p holds original position perm[p]."""
  moved = np.zeros_like(cut)
  for p in range(len(perm)):
    moved[..., p, :, :, :] = cut[..., perm[p], :, :, :]
  return moved


@given(
  st.integers(0, 99),
  st.sampled_from([(), (2,), (2, 3)]),
  st.integers(1, 30),
  st.integers(1, 4),
  st.integers(1, 4),
  st.sampled_from([np.uint8, np.float32, np.float16, np.int32]),
)
def test_permuting_agrees_with_a_loop_and_is_undone_bit_for_bit(seed, leading, p, b, c, dtype):
  cut = pixels(seed, (*leading, p, b, b, c), dtype)
  perm = np.random.default_rng(seed).permutation(p).astype(np.int32)
  moved = permutation.permute(perm, cut)
  assert_same(moved, slow_permute(perm, cut))
  assert_same(permutation.invert(perm, moved), cut)
  assert_same(permutation.permute(perm, permutation.invert(perm, cut)), cut)


def test_special_values_keep_their_bits():
  cut = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32).reshape(4, 1, 1, 1)
  moved = permutation.permute(np.array([2, 0, 3, 1]), cut)
  expected = np.array([np.inf, np.nan, 1e-45, -0.0], np.float32).view(np.uint32)
  np.testing.assert_array_equal(np.asarray(moved).reshape(-1).view(np.uint32), expected)


def test_plain_jit_vmap_and_leading_axes_agree():
  cut = pixels(1, (2, 3, 5, 2, 2, 3), np.uint8)
  perm = np.array([3, 0, 4, 1, 2], np.int32)
  for function in (permutation.permute, permutation.invert):
    plain = np.asarray(function(perm, cut))
    assert_same(jax.jit(function)(perm, cut), plain)
    over_images = jax.vmap(function, in_axes=(None, 0))
    assert_same(jax.vmap(over_images, in_axes=(None, 0))(perm, cut), plain)
    assert_same(function(perm, cut[1, 2]), plain[1, 2])


def test_other_permutations_give_other_blocks_and_a_wrong_one_does_not_restore():
  cut = pixels(2, (16, 2, 2, 1), np.uint8)
  right, wrong = (np.random.default_rng(seed).permutation(16) for seed in (1, 2))
  moved = permutation.permute(right, cut)
  assert (np.asarray(moved) != np.asarray(permutation.permute(wrong, cut))).mean() > 0.5
  assert (np.asarray(permutation.invert(wrong, moved)) != cut).mean() > 0.5


def test_gradient_goes_back_to_where_the_blocks_came_from():
  cut = jnp.asarray(pixels(3, (5, 2, 2, 1), np.float32))
  weights = pixels(4, (5, 2, 2, 1), np.float32)
  perm = np.array([3, 0, 4, 1, 2], np.int32)
  gradient = jax.grad(lambda x: (permutation.permute(perm, x) * weights).sum())(cut)
  expected = np.zeros_like(weights)
  for p in range(5):
    expected[perm[p]] = weights[p]
  assert_same(gradient, expected)


def test_second_call_with_another_key_compiles_nothing():
  traced = []

  @jax.jit
  def move(perm, x):
    traced.append(x.shape)
    return permutation.permute(perm, x)

  cut = pixels(5, (4, 2, 2, 1), np.uint8)
  first = move(np.array([1, 2, 3, 0], np.int32), cut)
  second = move(np.array([3, 2, 0, 1], np.int32), cut)
  assert len(traced) == 1
  assert (np.asarray(first) != np.asarray(second)).any()


@pytest.mark.parametrize(
  ("perm_shape", "blocks_shape"), [((5,), (4, 2, 2, 1)), ((4, 1), (4, 2, 2, 1)), ((4,), (4, 2, 2))]
)
def test_keys_of_another_length_are_refused(perm_shape, blocks_shape):
  for function in (permutation.permute, permutation.invert):
    with pytest.raises(ValueError, match=rf"{function.__name__}: perm must be \[P\].*Use the key"):
      function(np.zeros(perm_shape, np.int32), np.zeros(blocks_shape, np.uint8))


WRONG = {
  "twice": np.array([0, 1, 1, 3], np.int32),
  "above": np.array([0, 1, 2, 4], np.int32),
  "below": np.array([-1, 1, 2, 3], np.int32),
  "floats": np.array([0, 1, 2, 3], np.float32),
  "bools": np.array([True, False, True, False]),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_what_is_no_permutation_is_refused(wrong, array):
  """Else blocks are doubled and lost without a word."""
  cut, perm = pixels(6, (4, 2, 2, 1), np.uint8), array(WRONG[wrong])
  words = "each of 0..3 once" if perm.dtype == np.int32 else "must hold integers, got"
  for function in (permutation.permute, permutation.invert):
    with pytest.raises(ValueError, match=rf"{function.__name__}: perm .*{words}"):
      function(perm, cut)
    with pytest.raises(ValueError, match=words):
      jax.jit(lambda x, function=function: function(perm, x))(cut)


def test_a_traced_permutation_that_is_none_does_what_is_documented():
  cut = pixels(7, (4, 2, 2, 1), np.float32)
  perm = np.array([-3, 9, 1, 1], np.int32)
  clipped = [0, 3, 1, 1]
  assert_same(jax.jit(permutation.permute)(perm, cut), cut[clipped])
  assert_same(jax.jit(permutation.invert)(perm, cut), cut[np.argsort(perm, kind="stable")])
  weights = pixels(8, cut.shape, np.float32)
  summed = lambda x, perm: (permutation.permute(perm, x) * weights).sum()  # noqa: E731
  gradient = jax.jit(jax.grad(summed))(cut, perm)
  expected = np.zeros_like(cut)
  np.add.at(expected, clipped, weights)
  np.testing.assert_allclose(np.asarray(gradient), expected)
  with pytest.raises(ValueError, match="must hold integers"):
    jax.jit(permutation.permute)(perm.astype(np.float32), cut)
