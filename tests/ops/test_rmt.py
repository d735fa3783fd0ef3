import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import pixels
from hypothesis import given
from hypothesis import strategies as st

from djax.ops import rmt

# As one program each: call by call, every operation is compiled for every shape.
PROJECT = jax.jit(rmt.project, static_argnames="mix")
UNPROJECT = jax.jit(rmt.unproject, static_argnames=("mix", "orthogonal"))
KINDS = ("rows", "rows per channel", "block")


def slow_project(matrices, cut, mix):
  """METHOD section 1, in float64: Y_i = X_i R_i, each channel's block times its matrix."""
  cut = cut.astype(np.float64)
  *leading, positions, b, _, channels = cut.shape
  result = np.zeros_like(cut)
  for index in np.ndindex(*leading):
    for p in range(positions):
      if mix == "block":
        flat = [cut[index][p, r, c, k] for r in range(b) for c in range(b) for k in range(channels)]
        mixed = sum(x * matrices[p, i] for i, x in enumerate(flat))
        result[index][p] = mixed.reshape(b, b, channels)
        continue
      for channel in range(channels):
        matrix = matrices[p, channel] if matrices.ndim == 4 else matrices[p]
        for row in range(b):
          for column in range(b):
            result[index][p, row, column, channel] = sum(
              cut[index][p, row, k, channel] * matrix[k, column] for k in range(b)
            )
  return result


def matrices_of(seed, kind, positions, b, channels, *, orthogonal):
  """Random matrices of every shape, made without djax."""
  rng = np.random.default_rng(seed)
  shape = {
    "rows": (positions, b, b),
    "rows per channel": (positions, channels, b, b),
    "block": (positions, b * b * channels, b * b * channels),
  }[kind]
  left, right = (np.linalg.qr(rng.normal(size=shape))[0] for _ in range(2))
  if orthogonal:
    return left.astype(np.float32)
  return (left * rng.uniform(0.5, 2, (*shape[:-2], 1, shape[-1])) @ right).astype(np.float32)


def mix_of(kind):
  return "block" if kind == "block" else "rows"


@given(
  st.integers(0, 99),
  st.sampled_from(KINDS),
  st.booleans(),
  st.sampled_from([(), (2,), (2, 1)]),
  st.integers(1, 6),
  st.integers(1, 4),
  st.integers(1, 4),
  st.sampled_from([np.uint8, np.float32]),
)
def test_projecting_agrees_with_a_loop_and_is_undone(
  seed, kind, orthogonal, leading, positions, b, channels, dtype
):
  matrices = matrices_of(seed, kind, positions, b, channels, orthogonal=orthogonal)
  assert matrices.shape == rmt.matrix_shape(
    positions, b, channels, mix=mix_of(kind), per_channel=kind == "rows per channel"
  )
  cut = pixels(seed, (*leading, positions, b, b, channels), dtype)
  mixed = PROJECT(matrices, cut, mix=mix_of(kind))
  assert mixed.dtype == jnp.float32
  np.testing.assert_allclose(mixed, slow_project(matrices, cut, mix_of(kind)), atol=2e-3, rtol=0)
  restored = UNPROJECT(matrices, mixed, mix=mix_of(kind), orthogonal=orthogonal)
  assert restored.dtype == jnp.float32
  np.testing.assert_allclose(restored, cut.astype(np.float32), atol=0.01, rtol=0)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_large_matrices_restore_within_a_hundredth_of_a_grey_level(orthogonal):
  matrices = matrices_of(0, "block", 2, 8, 3, orthogonal=orthogonal)  # 192 x 192
  cut = pixels(0, (8, 2, 8, 8, 3))
  restored = rmt.unproject(
    matrices, rmt.project(matrices, cut, mix="block"), mix="block", orthogonal=orthogonal
  )
  np.testing.assert_allclose(restored, cut.astype(np.float32), atol=0.01, rtol=0)


def test_orthogonal_matrices_keep_the_norm_of_every_row():
  cut = pixels(1, (3, 4, 5, 5, 2), np.float32)
  mixed = rmt.project(matrices_of(1, "rows", 4, 5, 2, orthogonal=True), cut)
  np.testing.assert_allclose(
    np.linalg.norm(mixed, axis=-2), np.linalg.norm(cut, axis=-2), rtol=1e-5
  )
  assert np.abs(np.asarray(mixed) - cut).mean() > 10


@pytest.mark.parametrize("kind", KINDS)
def test_plain_jit_vmap_and_leading_axes_agree(kind):
  mix = mix_of(kind)
  cut = pixels(2, (2, 3, 4, 3, 3, 2))
  matrices = matrices_of(2, kind, 4, 3, 2, orthogonal=False)

  def there(matrices, x):
    return rmt.project(matrices, x, mix=mix)

  def back(matrices, x):
    return rmt.unproject(matrices, x, mix=mix, orthogonal=False)

  for function, x in ((there, cut), (back, cut.astype(np.float32))):
    plain = np.asarray(function(matrices, x))
    over_images = jax.vmap(function, in_axes=(None, 0))
    others = (
      jax.jit(function)(matrices, x),
      jax.vmap(over_images, in_axes=(None, 0))(matrices, x),
      np.stack([[function(matrices, x[i, j]) for j in range(3)] for i in range(2)]),
    )
    for other in others:
      np.testing.assert_allclose(other, plain, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_transpose_and_matches_finite_differences(kind):
  mix = mix_of(kind)
  matrices = matrices_of(3, kind, 2, 3, 2, orthogonal=False)
  cut = pixels(3, (2, 3, 3, 2), np.float32)
  weights = np.random.default_rng(4).normal(size=cut.shape).astype(np.float32)

  def loss(x):
    return (rmt.project(matrices, x, mix=mix) * weights).sum()

  gradient = np.asarray(jax.grad(loss)(cut))
  transpose = slow_project(np.swapaxes(matrices, -1, -2), weights, mix)
  np.testing.assert_allclose(gradient, transpose, atol=1e-4)
  for index in ((0, 1, 2, 1), (1, 2, 0, 0)):
    step = np.zeros_like(cut)
    step[index] = 1
    slow = (slow_project(matrices, cut + step, mix) - slow_project(matrices, cut - step, mix)) / 2
    np.testing.assert_allclose(gradient[index], (slow * weights).sum(), atol=1e-4)


def test_gradient_reaches_the_matrices():
  """Attacks fit the matrices by gradient descent; the inverse is differentiable too."""
  matrices = matrices_of(5, "rows", 2, 3, 1, orthogonal=False)
  cut = pixels(5, (2, 3, 3, 1), np.float32) / 255

  def loss(matrices):
    return (rmt.unproject(matrices, cut, orthogonal=False) ** 2).sum()

  gradient = np.asarray(jax.grad(loss)(matrices))
  index, step = (1, 0, 2), 1e-2
  moved = [matrices.copy() for _ in range(2)]
  moved[0][index] += step
  moved[1][index] -= step
  difference = (loss(moved[0]) - loss(moved[1])) / (2 * step)
  np.testing.assert_allclose(gradient[index], difference, rtol=0.02)


def test_second_call_with_another_key_compiles_nothing():
  traced = []

  @jax.jit
  def mix(matrices, x):
    traced.append(x.shape)
    return rmt.project(matrices, x)

  cut = pixels(6, (2, 4, 3, 3, 1))
  first = mix(matrices_of(6, "rows", 4, 3, 1, orthogonal=True), cut)
  second = mix(matrices_of(7, "rows", 4, 3, 1, orthogonal=True), cut)
  assert len(traced) == 1
  assert np.abs(np.asarray(first) - np.asarray(second)).mean() > 10


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_matrices_do_not_restore(kind, orthogonal):
  right, wrong = (matrices_of(s, kind, 4, 3, 2, orthogonal=orthogonal) for s in (8, 9))
  cut = pixels(8, (4, 3, 3, 2))
  mixed = rmt.project(right, cut, mix=mix_of(kind))
  restored = rmt.unproject(wrong, mixed, mix=mix_of(kind), orthogonal=orthogonal)
  assert np.abs(np.asarray(restored) - cut).mean() > 30


def test_neighbours_do_not_share_a_matrix():
  """One matrix a position and, where asked, a channel: swapping two of them changes the result."""
  matrices = matrices_of(10, "rows per channel", 2, 3, 2, orthogonal=True)
  cut = pixels(10, (2, 3, 3, 2))
  mixed = np.asarray(rmt.project(matrices, cut))
  assert np.abs(np.asarray(rmt.project(matrices[::-1], cut)) - mixed).mean() > 10
  assert np.abs(np.asarray(rmt.project(matrices[:, ::-1], cut)) - mixed).mean() > 10


def test_unknown_mixes_and_impossible_shapes_are_refused():
  cut = np.zeros((4, 2, 2, 3), np.uint8)
  matrices = np.zeros((4, 2, 2), np.float32)
  for call in (
    lambda: rmt.project(matrices, cut, mix="columns"),
    lambda: rmt.unproject(matrices, cut, mix="columns"),
    lambda: rmt.matrix_shape(4, 2, 3, mix="columns", per_channel=False),
  ):
    with pytest.raises(ValueError, match=r"mix must be one of .*'columns'"):
      call()
  with pytest.raises(ValueError, match="per_channel must be False with mix='block'"):
    rmt.matrix_shape(4, 2, 3, mix="block", per_channel=True)
  for shape, mix in (
    ((3, 2, 2), "rows"),
    ((4, 3, 3), "rows"),
    ((4, 2, 2, 2), "rows"),
    ((2, 2), "rows"),
    ((4, 2, 2), "block"),
    ((4, 12, 12), "rows"),
  ):
    for function in (rmt.project, rmt.unproject):
      with pytest.raises(ValueError, match=r"must fit together.*Use the key"):
        function(np.zeros(shape, np.float32), cut, mix=mix)
