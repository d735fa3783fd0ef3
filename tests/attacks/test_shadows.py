import types

import jax
import numpy as np
import pytest

from djax import sources
from djax.attacks.model import shadows
from djax.errors import ConfigError

pytestmark = pytest.mark.slow  # they train many small networks

RECIPE = shadows.Recipe(width=32, steps=100)  # of one size, and compiled once


@pytest.fixture(scope="module")
def digits():
  return sources.load("digits", "train[:300]")


def train(data, members, **changes):
  given = {"classes": 10, "seed": 0, "recipe": RECIPE, **changes}
  return shadows.train(data.images, data.labels, members, **given)


@pytest.mark.parametrize("models", [2, 8])
def test_couples_share_all_records_and_each_record_is_in_half(models):
  members = shadows.halves(models, 100, seed=0)
  assert members.shape == (models, 100)
  assert (members.sum(0) == models // 2).all() and (members.sum(1) == 50).all()
  assert (members[::2] ^ members[1::2]).all()


def test_halves_are_random_and_seeded():
  members = shadows.halves(400, 100, seed=0)[::2]
  np.testing.assert_array_equal(members, shadows.halves(400, 100, seed=0)[::2])
  assert (members != shadows.halves(400, 100, seed=1)[::2]).any()
  # Of 100 shares of 200 draws none lies further out than four deviations, at a false alarm rate below 1 %.
  assert np.abs(members.mean(0) - 0.5).max() < 4 * 0.5 / 200**0.5
  together = (members[:, :1] == members[:, 1:]).mean(0)
  assert np.abs(together - 0.5).max() < 0.16


@pytest.mark.parametrize(("models", "records"), [(3, 10), (4, 9), (0, 10), (2, 0)])
def test_odd_numbers_are_refused(models, records):
  with pytest.raises(ConfigError, match=f"must both be even.*got {models} and {records}"):
    shadows.halves(models, records, seed=0)


def same(one, other, *, rtol=2e-3):
  for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=2e-4)


def test_together_is_one_by_one(digits):
  members = shadows.halves(4, 300, seed=0)
  same(
    train(digits, members),
    shadows.train_one_by_one(
      digits.images, digits.labels, members, classes=10, seed=0, recipe=RECIPE
    ),
  )


def test_together_is_one_by_one_at_the_size_of_an_attack(digits):
  members = shadows.halves(32, 300, seed=0)
  recipe = shadows.Recipe(steps=200)
  same(
    train(digits, members, recipe=recipe),
    shadows.train_one_by_one(
      digits.images, digits.labels, members, classes=10, seed=0, recipe=recipe
    ),
  )


def test_a_step_is_adam_by_hand(digits):
  """One model, two steps: the same in NumPy, gradients by differences."""
  members = np.ones((1, 300), bool)
  recipe = shadows.Recipe(width=3, steps=2, batch=4, rate=0.01)
  given = shadows._given(digits.images, digits.labels, members, 10, 0, recipe)
  params, x, y, orders = (jax.device_get(part) for part in given[:4])
  names = sorted(params)
  values = {name: params[name][0].astype(np.float64) for name in names}

  def loss(values, rows):
    hidden = np.maximum(x[rows] @ values["inward"] + values["bias"], 0)
    z = hidden @ values["outward"] + values["last"]
    z = z - z.max(1, keepdims=True)
    return np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(rows)), y[rows]])

  m = {name: np.zeros_like(value) for name, value in values.items()}
  v = {name: np.zeros_like(value) for name, value in values.items()}
  for t in (1, 2):
    rows, gradients = orders[0, t - 1], {}
    for name in names:
      gradients[name] = np.zeros_like(values[name])
      for place in np.ndindex(values[name].shape):
        ends = []
        for sign in (1, -1):
          moved = {other: value.copy() for other, value in values.items()}
          moved[name][place] += sign * 1e-6
          ends.append(loss(moved, rows))
        gradients[name][place] = (ends[0] - ends[1]) / 2e-6
    for name in names:
      m[name] = 0.9 * m[name] + 0.1 * gradients[name]
      v[name] = 0.999 * v[name] + 0.001 * gradients[name] ** 2
      # Where a gradient is no more than rounding, Adam's step is not determined.
      values[name] = values[name] - 0.01 * (m[name] / (1 - 0.9**t)) / (
        np.sqrt(v[name] / (1 - 0.999**t)) + 1e-8
      )
  trained = train(digits, members, recipe=recipe).params
  for name in names:
    clear = np.sqrt(v[name]) > 1e-5
    assert clear.mean() > 0.5
    np.testing.assert_allclose(trained[name][0][clear], values[name][clear], atol=2e-5)


def test_an_order_has_each_own_record_once_a_round():
  members = shadows.halves(4, 40, seed=0)
  images, labels = np.zeros((40, 2, 2, 1)), np.zeros(40, np.int32)
  recipe = shadows.Recipe(steps=9, batch=5)
  orders = np.asarray(shadows._given(images, labels, members, 2, 0, recipe)[3])
  assert orders.shape == (4, 9, 5)
  for order, row in zip(orders, members, strict=True):
    first, second, rest = np.split(order.ravel(), [20, 40])
    for whole in (first, second):
      np.testing.assert_array_equal(np.sort(whole), np.flatnonzero(row))
    assert row[rest].all() and (first != second).any()


def test_nothing_of_the_other_records_enters_but_how_images_are_standardised(digits):
  members = np.zeros((4, 300), bool)
  members[0, :100], members[1:, 100:] = True, True
  labels = np.where(members[0], digits.labels, 9 - digits.labels)
  changed = types.SimpleNamespace(images=digits.images, labels=labels)
  one, other = train(digits, members), train(changed, members)
  np.testing.assert_array_equal(one.params["inward"][0], other.params["inward"][0])
  assert (one.params["inward"][1] != other.params["inward"][1]).any()


def test_models_overfit_their_own_half(digits):
  members = shadows.halves(4, 300, seed=0)
  recipe = RECIPE._replace(steps=400)
  trained = train(digits, members, recipe=recipe)
  right = shadows.logits(trained, digits.images).argmax(-1) == digits.labels
  assert right[members].mean() == 1
  assert 0.8 < right[~members].mean() < 0.97


def test_answers_do_not_depend_on_how_they_are_asked(digits):
  trained = train(digits, shadows.halves(4, 300, seed=0))
  logits = shadows.logits(trained, digits.images)
  assert logits.shape == (4, 300, 10)
  for number in range(4):
    one = shadows.as_function(trained, number)(digits.images[:7].astype(np.float32))
    np.testing.assert_allclose(one, logits[number, :7], rtol=1e-4, atol=1e-4)
  parts = shadows.logits(trained, digits.images, chunk=17)
  np.testing.assert_allclose(parts, logits, rtol=1e-4, atol=1e-4)


def test_the_first_is_trained_on_all_and_the_others_lack_a_class():
  labels = np.array([2, 0, 1, 1])
  expected = [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 0]]
  np.testing.assert_array_equal(shadows.without_a_class(labels, 2), np.array(expected, bool))


def test_images_of_another_scale_are_brought_to_that_of_the_training(digits):
  trained = train(digits, shadows.halves(4, 300, seed=0))
  mean, scale = shadows.standards(digits.images / 9 - 5)
  moved = shadows.logits(trained._replace(mean=mean, scale=scale), digits.images / 9 - 5)
  np.testing.assert_allclose(moved, shadows.logits(trained, digits.images), rtol=1e-3, atol=1e-3)
  assert shadows.standards(np.ones((3, 2, 2, 1)))[1] == 1


def test_a_second_training_compiles_nothing(digits):
  members = shadows.halves(4, 300, seed=0)
  train(digits, members)
  before = shadows._together._cache_size()
  train(digits, ~members, seed=5)
  assert shadows._together._cache_size() == before


def test_soft_labels_and_models_without_records_are_refused(digits):
  members = shadows.halves(2, 300, seed=0)
  labels = np.eye(10, dtype=np.float32)[digits.labels]
  soft = types.SimpleNamespace(images=digits.images, labels=labels)
  with pytest.raises(ConfigError, match=r"int \[n\], got float32 \[300, 10\]"):
    train(soft, members)
  with pytest.raises(ConfigError, match="at least one record"):
    train(digits, np.stack([members[0], np.zeros(300, bool)]))
