import jax.numpy as jnp
import numpy as np
import pytest

from djax import keys, schemes, sources
from djax.attacks.base import Known
from djax.attacks.model import model_targeted, shadows
from djax.attacks.rmt import placement
from djax.audit import evaluator
from djax.errors import ConfigError

pytestmark = pytest.mark.slow  # they train many small networks


def test_fano_factor_by_hand():
  assert model_targeted.fano_factor(np.repeat(np.arange(4), 5), classes=4) == 0
  assert model_targeted.fano_factor(np.full(20, 3), classes=4) == pytest.approx(20 * 3 / 4)
  # Counts 3, 1, 0: mean 4 / 3, variance (25 + 1 + 16) / 27.
  found = model_targeted.fano_factor(np.array([0, 0, 1, 0]), classes=3)
  assert found == pytest.approx((25 + 1 + 16) / 27 / (4 / 3))


def test_fano_factor_of_guesses_is_that_of_a_multinomial():
  """Expected: 1 - 1 / K for uniform labels."""
  draw = np.random.default_rng(0)
  found = [model_targeted.fano_factor(draw.integers(0, 10, 100), classes=10) for _ in range(2000)]
  assert np.mean(found) == pytest.approx(0.9, abs=0.04)


@pytest.mark.parametrize("labels", [[], [0, 4], [-1, 2]])
def test_labels_that_are_none_are_refused(labels):
  with pytest.raises(ConfigError, match=r"at least one number in 0\.\.3"):
    model_targeted.fano_factor(np.array(labels, int), classes=4)


def test_class_membership_counts_and_separates():
  sure, unsure = np.full(40, 1), np.arange(40) % 4
  found = model_targeted.class_membership([sure] * 3, [unsure] * 3, classes=4)
  assert found["with"] == [30, 30, 30] and found["without"] == [0, 0, 0]
  assert (found["auc"], found["threshold"], found["accuracy"], found["queries"]) == (1, 15, 1, 40)
  same = model_targeted.class_membership([sure, unsure], [unsure, sure], classes=4)
  assert (same["auc"], same["accuracy"]) == (0.5, 0.5)
  turned = model_targeted.class_membership([unsure] * 3, [sure] * 3, classes=4)
  assert (turned["auc"], turned["accuracy"]) == (0, 0.5)


def test_unequal_queries_are_refused():
  with pytest.raises(ConfigError, match=r"got \[3, 4\] queries"):
    model_targeted.class_membership([np.zeros(3, int)], [np.zeros(4, int)], classes=2)


@pytest.fixture(scope="module")
def world():
  """Digits, plain and disguised, and models of both: on all classes, and without each."""
  train, test = sources.load("digits", "train[:1000]"), sources.load("digits", "test")
  scheme = schemes.rmt_scheme((8, 8, 1), block_size=2, noise_level=25.0)
  key = scheme.make_key(keys.experiment(0).read)

  def disguised(images, seed):
    rng = np.random.default_rng(seed)
    return scheme.export(key, images, lambda: rng.random(images.shape, np.float32))

  members = shadows.without_a_class(train.labels, 10)
  sets = {
    "plain": (train.images.astype(np.float32), test.images.astype(np.float32)),
    "disguised": (disguised(train.images, 0), disguised(test.images, 1)),
  }
  recipe = shadows.Recipe(steps=300)
  models = {
    name: shadows.train(images, train.labels, members, classes=10, seed=0, recipe=recipe)
    for name, (images, _) in sets.items()
  }
  return train, test, scheme, key, sets, models


def factors(world, trained, asked):
  _, test, _, _, sets, models = world
  networks, images = models[trained], sets[asked][1]
  if asked != trained:
    mean, scale = shadows.standards(images)
    networks = networks._replace(mean=mean, scale=scale)
  predicted = shadows.logits(networks, images).argmax(-1)
  rows = [np.flatnonzero(test.labels == c)[:20] for c in range(10)]
  seen = [predicted[0, row] for row in rows]
  unseen = [predicted[1 + c, row] for c, row in enumerate(rows)]
  return model_targeted.class_membership(seen, unseen, classes=10)


@pytest.mark.parametrize("name", ["plain", "disguised"])
def test_a_class_that_was_trained_on_betrays_itself(world, name):
  found = factors(world, name, name)
  assert found["auc"] > 0.98 and found["accuracy"] >= 0.95
  assert min(found["with"]) > 0.7 * 18  # of at most 20 (1 - 1 / 10)


def test_plain_queries_do_not_betray_it(world):
  found = factors(world, "disguised", "plain")
  assert found["auc"] < 0.8
  assert np.mean(found["with"]) < 0.6 * np.mean(factors(world, "disguised", "disguised")["with"])


def inverted(world, name, seed=0):
  wanted = np.repeat(np.arange(10), 2)
  sets, models = world[4:]
  logits_of = shadows.as_function(models[name], 0)
  return wanted, model_targeted.invert(logits_of, wanted, sets[name][0], seed=seed)


@pytest.fixture(scope="module")
def examiner(world):
  test = world[1]
  return evaluator.train_examiner(test.images, test.labels, classes=10, seed=0)


def accuracy(examiner, images, wanted):
  return np.mean(examiner.labels(np.clip(images, 0, 255)) == wanted)


def test_inversion_shows_the_classes_of_a_plain_network(world, examiner):
  wanted, images = inverted(world, "plain")
  assert images.dtype == np.float32 and images.shape == (20, 8, 8, 1)
  assert accuracy(examiner, images, wanted) > 0.9
  mean = world[4]["plain"][0].mean(0)
  assert accuracy(examiner, np.repeat(mean[None], 20, 0), wanted) <= 0.2


def test_inversion_of_a_disguised_network_needs_the_key_or_an_attack(world, examiner):
  _, test, scheme, key, sets, _ = world
  wanted, images = inverted(world, "disguised")
  assert accuracy(examiner, images, wanted) < 0.4
  assert accuracy(examiner, scheme.restore(key, images), wanted) > 0.9
  known = Known(scheme.spec.to_dict(), sets["disguised"][0], images, test.images)
  undone = placement.attack(known, seed=0, progress=lambda fraction, word: None).images
  assert accuracy(examiner, undone, wanted) > 0.9
  other = scheme.restore(scheme.make_key(keys.experiment(1).read), images)
  assert accuracy(examiner, other, wanted) < 0.6


def test_a_network_that_knows_nothing_shows_nothing(world, examiner):
  train = world[0]
  labels = np.random.default_rng(0).permutation(train.labels)
  images = train.images.astype(np.float32)
  model = shadows.train(
    images, labels, np.ones((11, 1000), bool), classes=10, seed=0, recipe=shadows.Recipe(steps=500)
  )
  wanted = np.repeat(np.arange(10), 2)
  found = model_targeted.invert(shadows.as_function(model, 0), wanted, images, seed=0)
  assert accuracy(examiner, found, wanted) < 0.5


def test_ascent_finds_the_best_image_within_the_prior():
  """For linear logits it is known: the weights, seen through the covariance, three deviations out."""
  rng = np.random.default_rng(0)
  examples = (100 + rng.normal(size=(300, 3, 2, 1)) * rng.uniform(1, 20, (3, 2, 1))).astype(
    np.float32
  )
  weights = rng.normal(size=(6, 4)).astype(np.float32)
  wanted = np.array([0, 1, 2, 3, 3])
  found = model_targeted.invert(lambda x: x.reshape(len(x), -1) @ weights, wanted, examples, seed=0)
  flat = examples.reshape(300, -1).astype(np.float64)
  covariance = np.cov(flat.T, bias=True)
  for image, c in zip(found, wanted, strict=True):
    w = weights[:, c]
    best = flat.mean(0) + 3 * covariance @ w / np.sqrt(w @ covariance @ w)
    np.testing.assert_allclose(image.ravel(), best, atol=0.5)


def test_a_network_without_gradient_leaves_the_start_where_it_was():
  examples = np.random.default_rng(0).normal(size=(50, 4, 4, 1)).astype(np.float32)
  one, two = (
    model_targeted.invert(lambda x: jnp.zeros((len(x), 3)), np.arange(3), examples, seed=seed)
    for seed in (0, 1)
  )
  assert np.isfinite(one).all() and (one != two).any()
