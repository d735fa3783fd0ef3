"""What several attacks compute, beside the same by loops or written out."""

import flax.linen as nn
import numpy as np
import pytest
from scipy import linalg

from djax.attacks.common import assignment, copies, fitting
from djax.attacks.common import linear as linear_lib


def test_agreement_is_that_of_a_loop():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 3, 5, 5))
  perm = rng.permutation(5)
  expected = sum(
    a[layer, p, q] * b[layer, perm[p], perm[q]]
    for layer in range(3)
    for p in range(5)
    for q in range(5)
  )
  assert assignment.agreement(a, b, perm) == pytest.approx(expected)


@pytest.mark.parametrize(("symmetric", "known"), [(False, 0.3), (True, 0.0)])
def test_the_climb_finds_a_hidden_order(symmetric, known):
  rng = np.random.default_rng(0)
  layers = rng.normal(size=(4, 12, 12)).astype(np.float32)
  if symmetric:
    layers = layers + layers.swapaxes(1, 2)
  order = rng.permutation(12)
  hidden = layers[:, order][:, :, order]
  start = np.eye(12, dtype=np.float32)[order] * known + (1 - known) / 12
  found = assignment.climb(hidden, layers, start, symmetric=symmetric)
  np.testing.assert_array_equal(found, order)
  np.testing.assert_allclose(
    assignment.agreement(hidden, layers, found), np.square(layers).sum(), rtol=1e-5
  )
  if symmetric:  # the short cut changes nothing
    np.testing.assert_array_equal(assignment.climb(hidden, layers, start), found)


@pytest.mark.parametrize("count", [6, 40])  # dual and primal
def test_ridge_regression_written_out(count):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, count, 8)), rng.normal(size=(2, count, 3))
  new = rng.normal(size=(2, 5, 8))
  maps = linear_lib.Ridge(x, y)
  for group in range(2):
    a, b = x[group] - x[group].mean(0), y[group] - y[group].mean(0)
    weights = np.linalg.solve(a.T @ a + 0.1 * (a**2).sum() / 8 * np.eye(8), a.T @ b)
    expected = (new[group] - x[group].mean(0)) @ weights + y[group].mean(0)
    np.testing.assert_allclose(maps.weights(0.1)[group], weights, atol=1e-9)
    np.testing.assert_allclose(maps.predict(new, 0.1)[group], expected, atol=1e-9)
  ridges, wanted = np.array([0.01, 0.1, 10.0]), rng.normal(size=(2, 5, 3))
  slow = [np.square(maps.predict(new, ridge) - wanted).sum() for ridge in ridges]
  np.testing.assert_allclose(maps.errors(new, wanted, ridges), slow, rtol=1e-5)


def test_polar_factors_are_those_of_scipy():
  matrices = np.random.default_rng(0).normal(size=(3, 4, 4))
  expected = [linalg.polar(matrix)[0] for matrix in matrices]
  np.testing.assert_allclose(linear_lib.polar(matrices), expected, atol=1e-12)


def test_fits_come_nearer_in_every_part_the_last_perhaps_shorter():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(200, 3)).astype(np.float32)
  y = x @ np.array([[1.0], [2.0], [-1.0]], np.float32) + 3
  network = nn.Dense(1)
  options = {"steps": 250, "every": 100, "batch": 300, "rate": 0.1, "decay": 0.0, "seed": 0}
  errors = [
    float(np.mean((network.apply(variables, x) - y) ** 2))
    for variables in fitting.fit(network, [x], y, **options)
  ]
  assert len(errors) == 3 and errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


def test_copies_have_32_pixels_on_the_longer_side_and_keep_what_is_smooth():
  down, across = np.mgrid[:96, :64].astype(np.float32)
  images = np.stack([down, across], -1)[None]
  small = copies.small(images)
  assert small.shape == (1, 32, 21, 2) and small.dtype == np.float32
  back = copies.resized(small, (96, 64))
  np.testing.assert_allclose(back[:, 8:-8, 8:-8], images[:, 8:-8, 8:-8], atol=0.5)
  stripes = np.broadcast_to(255.0 * (np.arange(96) % 2)[:, None, None], (2, 96, 96, 1))
  np.testing.assert_allclose(copies.small(stripes)[:, 1:-1], 127.5, atol=20)  # nothing folds
  assert copies.small(small) is small
  assert copies.small(images[:0]).shape == (0, 32, 21, 2)
