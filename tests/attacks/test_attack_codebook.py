import collections
import itertools
import math

import numpy as np
import pytest
from helpers.attacked import disguise
from helpers.encrypted import figures, loses, quality, spec_of, wins, world

from djax import sources
from djax.attacks import base
from djax.attacks.aes import codebook as codebook_lib
from djax.attacks.aes import units as units_lib
from djax.attacks.aes.codebook import ATTACK as CODEBOOK
from djax.attacks.aes.units import units_of
from djax.errors import ConfigError

# Slicing.


def slow_units(image, spec):
  """Units of one image by loops over blocks, channels and pixels."""
  b, u = spec["block_size"], spec["unit_pixels"]
  height, width, channels = image.shape
  for top, left in itertools.product(range(0, height, b), range(0, width, b)):
    for channel in range(channels):
      data = [
        int(image[min(top + r, height - 1), min(left + c, width - 1), channel])
        for r, c in itertools.product(range(b), range(b))
      ]
      yield from (data[start : start + u] for start in range(0, b * b, u))


CUTS = list(itertools.product((16, 8, 4, 2, 1), (4, 8)))


@pytest.mark.parametrize(("unit", "block"), CUTS)
def test_units_are_those_of_the_loops(unit, block):
  images = np.random.default_rng(0).integers(0, 256, (2, 13, 18, 3), np.uint8)
  spec = spec_of((13, 18, 3), block, unit_pixels=unit)
  units = units_of(images, spec)
  assert units.dtype == np.uint8
  assert units.shape == (2, -(-13 // block) * -(-18 // block), 3, block * block // unit, unit)
  expected = [list(slow_units(image, spec)) for image in images]
  np.testing.assert_array_equal(units.reshape(2, -1, unit), expected)
  np.testing.assert_array_equal(units_lib.image_of(units, spec), images)


def planted(unit, block, **options):
  """One known image, and targets whose units are those of the known one, shuffled."""
  shape = (16, 16, 3)
  spec = spec_of(shape, block, unit_pixels=unit, permute=False, **options)
  rng = np.random.default_rng(unit)
  original = rng.choice(np.array([3, 70, 131, 250], np.uint8), (1, *shape))
  units = units_of(original, spec)
  flat = units.reshape(-1, unit)
  shuffled = np.stack([rng.permutation(flat).reshape(units.shape[1:]) for _ in range(4)])
  targets = units_lib.image_of(shuffled, spec).astype(np.uint8)
  pairs = (original, disguise(spec, original)[0])
  disguised = disguise(spec, targets)[0]
  return base.Known(spec, disguised, disguised, None, pairs), targets


def reads_planted(known, targets):
  result = base.run(CODEBOOK, known, seed=0)
  assert result.diagnostics["found"] == 1
  assert np.mean(result.images == targets) > 0.95  # averaged ciphers collide at times


@pytest.mark.parametrize(("unit", "block"), CUTS)
def test_planted_units_are_read(monkeypatch, unit, block):
  known, targets = planted(unit, block)
  reads_planted(known, targets)
  slices = units_lib.slices
  for wrong in (
    lambda images, spec: slices(np.roll(images, 1, 2), spec),  # across units
    lambda images, spec: slices(images.swapaxes(1, 2), spec),  # column by column
  ):
    if unit == 1:
      continue  # a pixel by itself is a unit wherever it is cut
    monkeypatch.setattr(units_lib, "slices", wrong)
    monkeypatch.setattr(codebook_lib, "slices", wrong)
    with pytest.raises(AssertionError):
      reads_planted(known, targets)


# The dictionary.


def test_dictionary_holds_the_most_frequent_units_first():
  rng = np.random.default_rng(0)
  names = rng.integers(0, 30, (500,)).astype(np.uint64)
  plain = rng.integers(0, 4, (500, 2)).astype(np.uint8)
  entries, units, exists = codebook_lib._dictionary(names, plain)
  np.testing.assert_array_equal(entries, np.unique(names))
  for name, candidates, there in zip(entries, units, exists, strict=True):
    counted = collections.Counter(map(tuple, plain[names == name]))
    counts = [counted[tuple(unit)] for unit in candidates[there].tolist()]
    assert counts == [n for _, n in counted.most_common(codebook_lib._CANDIDATES)]
    assert len({tuple(unit) for unit in candidates[there].tolist()}) == len(counts)


def test_joint_counts_are_those_of_the_loops():
  joint = np.sort(np.random.default_rng(0).integers(0, 5, (7, 40)), -1)
  slow = [sum(n * math.log(n) for n in collections.Counter(row).values()) for row in joint.tolist()]
  np.testing.assert_allclose(codebook_lib._n_log_n(joint), slow)


def test_names_tell_units_of_sixteen_apart():
  units = np.random.default_rng(0).integers(0, 2, (4000, 16)).astype(np.uint8)
  names = units_lib.codes_of(units)
  assert len(np.unique(names)) == len(np.unique(units, axis=0)) < len(units)


# The codebook attack.

OPTIONS = [
  {"unit_pixels": 2},
  {"unit_pixels": 1},
  {"unit_pixels": 4, "permute": False},
  {"unit_pixels": 2, "position_keys": True},
  {"unit_pixels": 16},
  {"unit_pixels": 2, "block_size": 6},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_known_images_open_others(options):
  known, originals, key = world(figures(260), 200, **options)
  small = options["unit_pixels"] <= 4
  result = wins(CODEBOOK, known, originals, 5 if small else 1.5)
  if key.perm is None:
    assert result.diagnostics["positions"] is None
    return
  found = np.array(result.diagnostics["positions"])
  b = known.spec["block_size"]
  cut = units_of(known.pairs[0], known.spec)
  used = cut.reshape(*cut.shape[:2], -1).any(-1).mean(0) > 0.2  # black places look alike
  assert b and used.sum() >= 4
  np.testing.assert_array_equal(found[used[key.perm]], key.perm[used[key.perm]])


def test_a_key_for_each_position_is_a_dictionary_for_each_position(monkeypatch):
  known, originals, _ = world(figures(160), 100, unit_pixels=1, position_keys=True, permute=False)
  wins(CODEBOOK, known, originals, 4)
  monkeypatch.setattr(codebook_lib, "names_of", lambda units, spec: units_lib.codes_of(units))
  with pytest.raises(AssertionError):
    wins(CODEBOOK, known, originals, 4)


def test_unplaced_blocks_are_noticed(monkeypatch):
  known, originals, _ = world(figures(160), 100, unit_pixels=2)
  wins(CODEBOOK, known, originals, 5)
  monkeypatch.setattr(codebook_lib, "_place", lambda plain, *rest: np.arange(plain.shape[1]))
  with pytest.raises(AssertionError):
    wins(CODEBOOK, known, originals, 5)


def test_pairs_of_another_key_do_not_beat_chance():
  for unit in (16, 4):
    known, originals, _ = world(figures(160), 100, other=1, unit_pixels=unit)
    assert loses(CODEBOOK, known, originals).diagnostics["found"] < 0.01


def test_random_images_do_not_beat_chance():
  noise = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3))
  for unit in (16, 8):
    known, originals, _ = world(noise, 40, unit_pixels=unit)
    assert loses(CODEBOOK, known, originals).diagnostics["found"] < 0.01


def test_salt_and_pepper_spoils_the_codebook():
  results = {}
  for unit, rate in itertools.product((16, 2), (0.0, 0.1, 0.3)):
    known, originals, _ = world(figures(120), 60, unit_pixels=unit, salt_pepper=rate, permute=False)
    result = base.run(CODEBOOK, known, seed=0)
    results[unit, rate] = result.diagnostics["found"], quality(result.images, originals)
  found = [results[16, rate][0] for rate in (0.0, 0.1, 0.3)]
  assert found[0] > found[1] + 0.05 and found[1] > found[2] + 0.1
  seen = [results[2, rate][1] for rate in (0.0, 0.1, 0.3)]
  assert seen[0] > seen[1] + 5 and seen[1] > seen[2] + 1


def test_chunks_of_targets_change_nothing():
  known, _, _ = world(figures(40), 20, unit_pixels=2)
  whole = base.run(CODEBOOK, known, seed=0)
  parts = base.run(CODEBOOK, known, seed=0, settings=codebook_lib.Settings(pixels=3 * 256))
  np.testing.assert_allclose(parts.images, whole.images, atol=1e-3)
  assert parts.diagnostics["found"] == pytest.approx(whole.diagnostics["found"])


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("pairs", [0, 1])
def test_no_pair_one_pair_and_constant_images_do_not_crash(pairs, value):
  for options in ({}, {"unit_pixels": 2}, {"unit_pixels": 1, "position_keys": True}):
    known, originals, _ = world(np.full((5, 9, 13, 3), value), pairs, **options)
    result = base.run(CODEBOOK, known, seed=0)
    assert result.diagnostics["pairs"] == pairs
    if pairs:
      assert (result.images == originals).all()
      assert result.diagnostics["found"] == 1
    else:
      np.testing.assert_allclose(result.images, 127.5, atol=0.01)
      assert result.diagnostics["warnings"]


def test_the_attack_says_what_it_cannot_handle():
  known, _, _ = world(figures(6), 2)
  rmt = {"scheme": "rmt", "image_shape": [16, 16, 1], "block_size": 4}
  assert CODEBOOK.level == 2 and CODEBOOK.refuses(known.spec) is None
  with pytest.raises(ConfigError, match="aes"):
    base.run(CODEBOOK, base.Known(rmt, known.disguised, known.targets), seed=0)
  with pytest.raises(ConfigError, match="pairs"):
    base.run(CODEBOOK, base.Known(known.spec, known.disguised, known.targets), seed=0)


@pytest.mark.slow
def test_nine_known_images_of_cifar10_open_two_pixel_units(tfds_dir):
  images = sources.load("cifar10", "test[:1000]", data_dir=str(tfds_dir)).images
  for permute in (False, True):
    known, originals, _ = world(images[:309], 9, unit_pixels=2, permute=permute)
    result = wins(CODEBOOK, known, originals, 2.5)
    held = set(map(bytes, units_of(known.pairs[0], known.spec).reshape(-1, 2)))
    hit = np.mean([bytes(u) in held for u in units_of(originals, known.spec).reshape(-1, 2)])
    assert result.diagnostics["found"] >= hit > 0.5  # ciphers that collide are found as well
  known, originals, _ = world(images[:309], 9, unit_pixels=16)
  assert loses(CODEBOOK, known, originals).diagnostics["found"] < 0.05


@pytest.mark.slow
def test_mnist_shows_with_fifty_pairs(tfds_dir):
  images = sources.load("mnist", "test[:3000]", data_dir=str(tfds_dir)).images
  for unit, permute in ((16, False), (16, True), (2, True)):
    known, originals, _ = world(images[:350], 50, unit_pixels=unit, permute=permute)
    result = wins(CODEBOOK, known, originals, 1 if unit == 16 else 4)
    assert result.diagnostics["pairs"] == 50
