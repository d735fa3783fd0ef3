"""The network for CIFAR-10 on two cores, and its convolution with a gradient of its own."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from djax.models import airbench, convolution
from djax.models.airbench import Airbench


def ordinary(images, kernel):
  """The convolution whose gradients are the library's."""
  return jax.lax.conv_general_dilated(
    images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def random(*shape, seed=0, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize(
  ("images", "kernel"),
  [((4, 7, 5, 3), (3, 3, 3, 8)), ((2, 6, 6, 5), (5, 3, 5, 2)), ((3, 4, 4, 2), (1, 1, 2, 2))],
)
def test_values_and_gradients_are_those_of_the_ordinary_convolution(images, kernel):
  x, k = random(*images), random(*kernel, seed=1)
  weight = random(*images[:3], kernel[3], seed=2)

  def loss(convolve, x, k):
    return jnp.vdot(convolve(x, k), weight)

  ours = jax.jit(jax.value_and_grad(lambda x, k: loss(convolution.convolve, x, k), (0, 1)))(x, k)
  theirs = jax.value_and_grad(lambda x, k: loss(ordinary, x, k), (0, 1))(x, k)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


def test_both_ways_to_the_gradient_of_a_kernel_agree():
  x, g, k = random(4, 6, 6, 3), random(4, 6, 6, 8, seed=1), random(3, 3, 3, 8, seed=2)
  by_places = convolution.by_places(x, g, k.shape)
  np.testing.assert_allclose(by_places, convolution.by_library(x, g, k), rtol=1e-4, atol=1e-4)
  shifted = convolution.by_places(jnp.roll(x, 1, axis=1), g, k.shape)
  assert np.abs(shifted - by_places).max() > 1


def test_a_convolution_begins_as_the_identity():
  x = random(2, 5, 5, 3)
  for features in (2, 3, 7):
    layer = convolution.Convolution(features)
    out = layer.apply(layer.init(jax.random.key(0), x), x)
    same = min(features, 3)
    np.testing.assert_array_equal(out[..., :same], x[..., :same])
    assert (np.abs(out[..., same:]).mean(axis=(0, 1, 2)) > 0.05).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_filters_are_orthonormal_and_whiten_photographs(channels):
  filters = airbench._filters(channels).reshape(4 * channels, -1)
  np.testing.assert_allclose(filters.T @ filters, np.eye(4 * channels), atol=1e-6)
  # Neighbours and channels of a photograph are alike: a covariance that each step away multiplies by 0.9.
  near = 0.9 ** np.abs(np.subtract.outer(np.arange(2), np.arange(2)))
  across = 0.9 ** np.abs(np.subtract.outer(np.arange(channels), np.arange(channels)))
  covariance = filters.T @ np.kron(np.kron(near, near), across) @ filters
  scale = np.sqrt(np.diag(covariance))
  correlation = covariance / np.outer(scale, scale)
  assert np.abs(correlation - np.eye(4 * channels)).max() < 0.1


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 9, 3)])
def test_pooling_and_its_gradient_are_those_of_flax(shape):
  x = random(*shape)
  flax = lambda x: nn.max_pool(x, (2, 2), (2, 2))  # noqa: E731
  np.testing.assert_array_equal(airbench._pooled(x), flax(x))
  ours, theirs = (jax.grad(lambda x, f=f: (f(x) ** 2).sum())(x) for f in (airbench._pooled, flax))
  np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_and_parameters_are_float32(dtype):
  model = Airbench(classes=4, width=2, dtype=dtype)
  x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  logits, variables = jax.eval_shape(
    lambda rng, x: model.init_with_output(rng, x, train=False), jax.random.key(0), x
  )
  assert (logits.shape, logits.dtype) == ((2, 4), jnp.float32)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_images_that_pooling_would_use_up_are_refused():
  model = Airbench(classes=4, width=2)
  with pytest.raises(ValueError, match="at least 9x9 pixels, got 8x12"):
    jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x, train=False), jnp.zeros((1, 8, 12, 3))
    )


@pytest.mark.slow
def test_it_learns_images_by_heart_and_evaluates_without_the_batch():
  model = Airbench(classes=4, width=4)
  x, labels = random(16, 9, 9, 3), jnp.arange(16) % 4
  variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x)
  answers = jax.jit(functools.partial(model.apply, train=False))
  optimizer = optax.adam(3e-2)

  @jax.jit
  def step(variables, state):
    def loss(params):
      logits, new = model.apply(
        {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
      )
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

    (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    updates, state = optimizer.update(gradients, state)
    return {"params": optax.apply_updates(variables["params"], updates), **new}, state, value

  state = jax.jit(optimizer.init)(variables["params"])
  first = None
  for _ in range(80):
    variables, state, value = step(variables, state)
    first = value if first is None else first
  assert value < 0.1 < first
  logits = answers(variables, x)
  assert (logits.argmax(axis=1) == labels).all()
  np.testing.assert_allclose(answers(variables, x[:3]), logits[:3], rtol=1e-3, atol=1e-3)
