import functools

import numpy as np
import pytest
from helpers import attacked
from helpers.attacked import chance, fields, pictures, quality, world

from djax import sources
from djax.attacks import base
from djax.attacks.generic import inversion
from djax.errors import ConfigError

wins = functools.partial(attacked.wins, inversion.ATTACK)
loses = functools.partial(attacked.loses, inversion.ATTACK)
LINEAR = inversion.Settings(network_pairs=1 << 20)  # no network, for speed
SHORT = inversion.Settings(steps=64)


OPTIONS = [
  ({"scheme": "permutation"}, (8, 12, 1), "row"),
  ({}, (8, 12, 1), "row"),
  ({}, (10, 13, 3), "row"),
  ({"permute": False}, (8, 12, 1), "row"),
  ({"matrix": "projection"}, (8, 12, 1), "row"),
  ({"mix": "block"}, (8, 12, 1), "block"),
  ({"mix": "block", "matrix": "projection"}, (8, 12, 1), "block"),
  ({"per_channel": True}, (8, 8, 2), "block"),
  ({"block_size": 2}, (8, 12, 3), "row"),
]


@pytest.mark.parametrize("options,shape,size", OPTIONS)
def test_pairs_are_enough_where_nothing_is_assumed(options, shape, size):
  known, originals, key = world(pictures(260, shape), 200, **options)
  result = wins(known, originals, 40, LINEAR)
  assert chance(known, originals) < 17
  assert result.diagnostics["chosen"] == size
  assert result.diagnostics["positions"] == (None if key.perm is None else key.perm.tolist())
  assert result.diagnostics["pairs"] == 200


def test_the_whole_image_is_one_map_if_blocks_do_not_help(monkeypatch):
  known, originals, _ = world(pictures(400, (8, 8, 1)), 350, mix="block")
  monkeypatch.setattr(inversion, "_match", lambda originals, disguised: np.arange(4))
  result = wins(known, originals, 35, LINEAR)
  assert result.diagnostics["chosen"] == "image"


def test_the_embedded_digits_come_back():
  images = sources.load("digits", "train").images
  known, originals, _ = world(images[:500], 300, block_size=2, noise_level=25.0)
  floor = chance(known, originals) + 8
  assert quality(wins(known, originals, floor, LINEAR).images, originals) > floor


def shapes():
  """Black and white: what noise does to them, only what is not linear can undo."""
  images = np.where(pictures(260, (16, 16, 1)) > 127, 255, 0).astype(np.uint8)
  return world(images, 200, noise_level=100.0)


@pytest.mark.slow
def test_the_network_takes_noise_away_that_linear_maps_leave():
  known, originals, _ = shapes()
  result = wins(known, originals, 25)
  found = result.diagnostics["validation"]
  assert result.diagnostics["chosen"] == "network"
  linear = max(found[size] for size in ("row", "block", "image"))
  assert quality(result.images, originals) > linear + 2
  assert abs(quality(result.images, originals) - found["network"]) < 1.5
  assert set(result.diagnostics["seconds"]) == {"row", "block", "image", "network"}


def test_encrypted_flat_blocks_are_learnt():
  level = np.random.default_rng(0).integers(0, 3, (300, 2, 3))  # three units of the code book
  images = (level * 85).repeat(4, 1).repeat(4, 2)[..., None].astype(np.uint8)
  known, originals, _ = world(images, 200, scheme="aes")
  floor = chance(known, originals) + 20
  assert quality(wins(known, originals, floor, LINEAR).images, originals) > floor


def test_validation_says_what_targets_will_show():
  known, originals, _ = world(pictures(260), 200, noise_level=50.0)
  result = base.run(inversion.ATTACK, known, seed=0, settings=LINEAR)
  found = result.diagnostics["validation"][result.diagnostics["chosen"]]
  assert abs(found - quality(result.images, originals)) < 1
  assert abs(result.diagnostics["validation"]["mean"] - chance(known, originals)) < 1
  assert set(result.diagnostics["validation"]) == {"mean", "row", "block", "image"}


# Negative controls.


@pytest.mark.parametrize("pairs", [20, 120])
@pytest.mark.slow
def test_pairs_of_another_key_do_not_beat_chance(pairs):
  known, originals, _ = world(pictures(pairs + 60), pairs, other=1)
  result = loses(known, originals, SHORT)
  assert quality(result.images, originals) < chance(known, originals) + 0.5


def test_originals_of_other_images_do_not_beat_chance():
  known, originals, _ = world(pictures(180), 120)
  shuffled = known.pairs[0][np.random.default_rng(0).permutation(120)]
  known = base.Known(known.spec, known.targets, known.targets, None, (shuffled, known.pairs[1]))
  result = loses(known, originals, LINEAR)
  assert "nothing learnt" in result.diagnostics["warnings"][-1]


def test_noise_instead_of_disguised_images_does_not_beat_chance():
  known, originals, _ = world(pictures(180), 120)
  noise = np.random.default_rng(0).normal(0, 150, known.targets.shape).astype(np.float32)
  result = loses(base.Known(known.spec, noise, noise, None, known.pairs), originals, LINEAR)
  assert quality(result.images, originals) < chance(known, originals) + 0.5


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [5, 120])
def test_encryption_stands(pairs):
  known, originals, _ = world(pictures(pairs + 60), pairs, scheme="aes")
  result = loses(known, originals, SHORT)
  assert "nothing learnt" in result.diagnostics["warnings"][-1]


# The same assertions must fail for attacks that were broken on purpose.


@pytest.mark.parametrize(
  "name,broken",
  [
    ("_match", lambda originals, disguised: np.arange(len(originals))),
    ("_placed", lambda images, places, block_size: images),
    ("_vectors", lambda *a, good=inversion._vectors: good(*a)[:, ::-1]),
    (
      "_images",
      lambda size, v, shape, b, good=inversion._images: good(size, v[..., ::-1], shape, b),
    ),
  ],
)
def test_a_broken_step_is_noticed(monkeypatch, name, broken):
  known, originals, _ = world(pictures(80, (16, 16, 3)), 50)
  wins(known, originals, 40, LINEAR)
  monkeypatch.setattr(inversion, name, broken)
  with pytest.raises(AssertionError):
    wins(known, originals, 40, LINEAR)


@pytest.mark.slow
def test_an_untrained_network_is_noticed():
  known, originals, _ = shapes()
  with pytest.raises(AssertionError):
    wins(known, originals, 25, inversion.Settings(rate=0.0))


# What is held out, and slow twins.


@pytest.mark.slow
def test_targets_decide_nothing():
  known, _, _ = world(pictures(70), 60, noise_level=50.0)
  other = base.Known(known.spec, known.targets, known.targets[:3] * 0, None, known.pairs)
  first, second = (
    base.run(inversion.ATTACK, k, seed=0, settings=SHORT).diagnostics for k in (known, other)
  )
  first.pop("seconds"), second.pop("seconds")
  assert first == second


def test_a_held_out_original_has_no_part_in_its_own_estimate():
  x = pictures(20).astype(np.float32)
  y = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
  folds = np.arange(20) % 5
  for size in inversion._SIZES:
    before, ridge = inversion._cross(size, 4, x, y, folds)
    changed = x.copy()
    changed[folds == 2] = 255 - changed[folds == 2]
    predict = inversion._fit(size, 4, changed[folds != 2], y[folds != 2])
    np.testing.assert_array_equal(predict(y[folds == 2], ridge), before[folds == 2])
    assert ridge in inversion._RIDGES


@pytest.mark.parametrize("count", [6, 40])  # dual and primal
@pytest.mark.parametrize("size", inversion._SIZES)
def test_linear_maps_equal_ridge_regression_written_out(size, count):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, count, 4, 4, 2)).astype(np.float32)
  fresh = rng.normal(size=(3, 4, 4, 2)).astype(np.float32)

  def vectors(images):
    """By group, the vectors of all images."""
    if size == "image":
      return [[image.reshape(-1) for image in images]]
    corners = [(r, c) for r in (0, 2) for c in (0, 2)]
    cut = [[image[r : r + 2, c : c + 2] for image in images] for r, c in corners]
    if size == "block":
      return [[block.reshape(-1) for block in group] for group in cut]
    return [[b[r, :, ch] for b in group for r in (0, 1) for ch in (0, 1)] for group in cut]

  got = vectors(inversion._fit(size, 2, x, y)(fresh, 0.1))
  for g, (wanted, seen, asked) in enumerate(zip(*map(vectors, (x, y, fresh)), strict=True)):
    wanted, seen, asked = (np.array(v, np.float64) for v in (wanted, seen, asked))
    a, b = seen - seen.mean(0), wanted - wanted.mean(0)
    ridge = 0.1 * (a**2).sum() / a.shape[1]
    weights = np.linalg.solve(a.T @ a + ridge * np.eye(a.shape[1]), a.T @ b)
    expected = (asked - seen.mean(0)) @ weights + wanted.mean(0)
    np.testing.assert_allclose(got[g], expected, atol=1e-4)


@pytest.mark.parametrize("pairs", [4, 40])
def test_blocks_are_brought_together_by_what_is_alike(pairs):
  known, _, key = world(pictures(pairs + 1, (16, 16, 3)), pairs, matrix="orthogonal")
  blocks = [inversion._vectors("block", images, 4) for images in known.pairs]
  np.testing.assert_array_equal(inversion._match(*blocks), key.perm)


# Few pairs and odd inputs.


def test_no_pair_gives_grey_and_one_pair_its_own_original():
  known, originals, _ = world(pictures(6, (10, 13, 3)), 1)
  result = base.run(inversion.ATTACK, known, seed=0)
  for image in result.images:
    np.testing.assert_array_equal(image, known.pairs[0][0])
  assert len(result.images) == len(originals)
  assert "1 pairs" in result.diagnostics["warnings"][0]
  none = base.Known(
    known.spec, known.targets, known.targets, None, tuple(a[:0] for a in known.pairs)
  )
  result = base.run(inversion.ATTACK, none, seed=0)
  assert (result.images == 127.5).all()
  assert "0 pairs" in result.diagnostics["warnings"][0]


@pytest.mark.parametrize("pairs", [2, 3, 10])
def test_few_pairs_do_not_mislead(pairs):
  known, originals, _ = world(pictures(pairs + 60), pairs)
  result = base.run(inversion.ATTACK, known, seed=0)
  assert quality(result.images, originals) > chance(known, originals) - 3
  assert "no network" in result.diagnostics["warnings"][0]
  assert "network" not in result.diagnostics["validation"]


@pytest.mark.parametrize(("value", "pairs"), [(0, 1), (255, 2), (0, 7), (255, 60)])
@pytest.mark.slow
def test_constant_images_do_not_crash_and_are_right(value, pairs):
  known, originals, _ = world(np.full((pairs + 3, 10, 13, 1), value, np.uint8), pairs)
  result = base.run(inversion.ATTACK, known, seed=0, settings=SHORT)
  np.testing.assert_allclose(result.images, originals, atol=1)


def test_at_most_so_many_pairs_are_used():
  known, _, _ = world(pictures(60), 50)
  few = inversion.Settings(pairs=30)
  assert base.run(inversion.ATTACK, known, seed=0, settings=few).diagnostics["pairs"] == 30


def test_refusals():
  known, _, _ = world(pictures(4), 2)
  plain = base.Known({"scheme": "plain", "image_shape": [8, 12, 1]}, *fields(known))
  with pytest.raises(ConfigError, match="nothing to invert"):
    base.run(inversion.ATTACK, plain, seed=0)
  with pytest.raises(ConfigError, match="needs pairs"):
    base.run(inversion.ATTACK, base.Known(known.spec, known.targets, known.targets), seed=0)
  for scheme in ("permutation", "rmt", "aes"):
    assert inversion.ATTACK.refuses({"scheme": scheme, "block_size": 4}) is None
  assert "instahide has no blocks" in inversion.ATTACK.refuses({"scheme": "instahide", "k": 4})
  assert (inversion.ATTACK.level, inversion.ATTACK.needs) == (2, ("pairs",))


@pytest.mark.slow
def test_1000_pairs_of_cifar10(tfds_dir):
  images = sources.load("cifar10", "test[:1200]", data_dir=str(tfds_dir)).images
  known, originals, key = world(images, 1000, noise_level=25.0)
  result = wins(known, originals, 32)  # the noise alone leaves 31
  assert result.diagnostics["positions"] == key.perm.tolist()
  assert result.diagnostics["chosen"] == "network"


@pytest.mark.slow
def test_more_pairs_of_cifar10_show_more(tfds_dir):
  images = sources.load("cifar10", "test[:1200]", data_dir=str(tfds_dir)).images
  curve = []
  for pairs in (1, 10, 100):
    known, originals, _ = world(images[: pairs + 200], pairs, noise_level=25.0)
    curve.append(quality(base.run(inversion.ATTACK, known, seed=0).images, originals))
  assert curve[0] < 10 and 30 < curve[1] < curve[2], curve
