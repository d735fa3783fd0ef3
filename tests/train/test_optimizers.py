"""Muon: kernels of convolutions get orthogonal steps, whatever their gradients' size; all else gets Adam's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import base
from train import optimizers

PARAMS = {
  "conv": {"kernel": jnp.ones((3, 3, 4, 8))},
  "dense": {"kernel": jnp.ones((8, 5)), "bias": jnp.zeros(5)},
}


def muon(**options):
  config = base.get_config().optimizer
  config.update(
    {"name": "muon", "learning_rate": 0.2, "warmup_epochs": 0.0, "weight_decay": 0.0, **options}
  )
  return optimizers.create(config, steps_per_epoch=10, steps=100)


def gradients(seed=0, size=1.0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(size * rng.normal(size=leaf.shape), jnp.float32), PARAMS
  )


def first_updates(grads, **options):
  optimizer = muon(**options)
  return optimizer.update(grads, optimizer.init(PARAMS), PARAMS)[0]


def test_a_kernels_step_is_nearly_orthogonal_and_down_the_gradient():
  grads = gradients()
  updates = first_updates(grads)
  step = updates["conv"]["kernel"].reshape(36, 8)
  values = np.linalg.svd(step, compute_uv=False) / 0.2
  # Five steps of the published polynomial bring singular values near 1, not to it.
  assert values.min() > 0.6 and values.max() < 1.3
  gradient = grads["conv"]["kernel"].reshape(36, 8)
  left, _, right = np.linalg.svd(gradient, full_matrices=False)
  polar = -(left @ right)
  assert np.vdot(step, polar) / np.linalg.norm(step) / np.linalg.norm(polar) > 0.95


def test_the_size_of_gradients_does_not_matter():
  small, large = (first_updates(gradients(size=size)) for size in (1e-2, 1e2))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.02, atol=1e-4), small, large)


def test_all_else_is_adams_at_a_twelfth_of_the_rate():
  grads = gradients()
  adam = optax.adam(0.2 / 12, b1=0.8, b2=0.95, nesterov=True)
  expected, _ = adam.update(grads["dense"], adam.init(PARAMS["dense"]))
  updates = first_updates(grads)["dense"]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)


def test_weight_decay_pulls_kernels_alone():
  plain, decayed = (first_updates(gradients(), weight_decay=wd) for wd in (0.0, 0.5))
  pull = plain["conv"]["kernel"] - decayed["conv"]["kernel"]
  np.testing.assert_allclose(pull, 0.2 * 0.5 * PARAMS["conv"]["kernel"], rtol=1e-4)
  jax.tree.map(np.testing.assert_array_equal, plain["dense"], decayed["dense"])


def test_the_rate_falls_to_nothing_at_the_end():
  optimizer = muon(momentum=0.0)
  state = optimizer.init(PARAMS)
  sizes = []
  update = jax.jit(optimizer.update)
  for _ in range(101):
    updates, state = update(gradients(), state, PARAMS)
    sizes.append(max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(updates)))
  assert sizes[-1] == 0 < sizes[50] < sizes[0]
