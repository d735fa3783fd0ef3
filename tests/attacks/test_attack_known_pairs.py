import numpy as np
import pytest
from helpers import attacked
from helpers.attacked import chance, disguise, fields, loses, quality, wins, world
from scipy import linalg, optimize

from djax import sources
from djax.attacks import base
from djax.attacks.generic import known_pairs
from djax.attacks.generic.known_pairs import PROCRUSTES, REGRESSION
from djax.errors import ConfigError


def pictures(count, shape=(10, 13, 3)):
  return attacked.pictures(count, shape)


OPTIONS = [
  {},
  {"permute": False},
  {"mix": "block", "block_size": 2},
  {"per_channel": True},
  {"block_size": 2},
  {"block_size": 8},
  {"noise_level": 4.0},
  {"noise_level": 4.0, "noise_place": "after"},
  {"noise_level": 4.0, "mix": "block", "block_size": 2, "permute": False},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("attack", [REGRESSION, PROCRUSTES])
@pytest.mark.parametrize("shape", [(8, 16, 3), (10, 13, 3)])
def test_enough_pairs_open_every_disguise(shape, attack, options):
  known, originals, key = world(pictures(160, shape), 120, **options)
  floor = 28 if options.get("noise_level") else 45
  result = wins(attack, known, originals, floor)
  assert chance(known, originals) < 17
  found = result.diagnostics["positions"]
  assert found == (None if key.perm is None else key.perm.tolist())
  padded = shape[0] % 8 > 0  # what repeats the edge has fewer directions
  drowned = attack is PROCRUSTES and "noise_level" in options  # the faintest directions may be
  assert drowned or (result.diagnostics["learnt"] == 1) == (not padded)
  assert result.diagnostics["warnings"] == []


@pytest.mark.parametrize("mix", ["rows", "block"])
def test_regression_opens_projections(mix):
  known, originals, key = world(
    pictures(160), 120, matrix="projection", mix=mix, block_size=2 if mix == "block" else 4
  )
  result = wins(REGRESSION, known, originals, 45)
  assert result.diagnostics["positions"] == key.perm.tolist()


@pytest.mark.parametrize("attack", [REGRESSION, PROCRUSTES])
def test_moved_blocks_alone_are_put_back(attack):
  originals = pictures(20)
  spec = {"scheme": "permutation", "image_shape": [10, 13, 3], "block_size": 4}
  disguised, key = disguise(spec, originals, 0, 0)
  known = base.Known(spec, disguised[1:], disguised[1:], None, (originals[:1], disguised[:1]))
  result = base.run(attack, known, seed=0)
  assert result.diagnostics["positions"] == key.perm.tolist()
  if attack is PROCRUSTES:
    assert quality(result.images, originals[1:]) > 40


@pytest.mark.parametrize("place", ["before", "after"])
def test_one_pair_is_enough_for_procrustes_not_for_regression(place):
  known, originals, _ = world(
    pictures(200, (16, 16, 3)), 1, permute=False, noise_level=25.0, noise_place=place
  )
  wins(PROCRUSTES, known, originals, 26)
  with pytest.raises(AssertionError):
    wins(REGRESSION, known, originals, 26)


@pytest.mark.parametrize("attack", [REGRESSION, PROCRUSTES])
def test_pairs_of_another_key_do_not_beat_chance(attack):
  known, originals, _ = world(pictures(60, (16, 16, 3)), 20, other=1, noise_level=25.0)
  result = loses(attack, known, originals)
  assert quality(result.images, originals) < chance(known, originals) + 0.5


@pytest.mark.parametrize("attack", [REGRESSION, PROCRUSTES])
def test_noise_instead_of_disguised_images_does_not_beat_chance(attack):
  known, originals, _ = world(pictures(60, (16, 16, 3)), 20, permute=False)
  noise = np.random.default_rng(0).normal(0, 150, known.targets.shape).astype(np.float32)
  result = loses(attack, base.Known(known.spec, noise, noise, None, known.pairs), originals)
  assert quality(result.images, originals) < chance(known, originals) + 0.5


@pytest.mark.parametrize("attack", [REGRESSION, PROCRUSTES])
def test_encrypted_units_passed_off_as_projected_do_not_beat_chance(attack):
  images = pictures(60, (16, 16, 3))
  spec = {"scheme": "aes", "image_shape": [16, 16, 3], "block_size": 4}
  encrypted, _ = disguise(spec, images, 0, 0)
  known, originals, _ = world(images, 20)
  pairs = (images[:20], encrypted[:20].astype(np.float32))
  targets = encrypted[20:].astype(np.float32)
  result = loses(attack, base.Known(known.spec, targets, targets, None, pairs), originals)
  assert quality(result.images, originals) < chance(known, originals) + 0.5


# The same assertions must fail for attacks that were broken on purpose.


def transposed(x, y=None):
  gram = x.swapaxes(-1, -2) @ (x if y is None else y)
  return gram if y is None else gram.swapaxes(-1, -2)


@pytest.mark.parametrize("attack", [REGRESSION, PROCRUSTES])
def test_transposed_matrices_are_noticed(monkeypatch, attack):
  known, originals, _ = world(pictures(60), 40, permute=False)
  wins(attack, known, originals, 45)
  monkeypatch.setattr(known_pairs, "_gram", transposed)
  with pytest.raises(AssertionError):
    wins(attack, known, originals, 45)


@pytest.mark.parametrize("place", ["before", "after"])
def test_forgetting_the_mean_of_the_noise_is_noticed(monkeypatch, place):
  known, originals, _ = world(pictures(60), 10, noise_level=50.0, noise_place=place, permute=False)
  wins(PROCRUSTES, known, originals, 24)
  monkeypatch.setattr(known_pairs, "_noise_means", lambda spec: (0.0, 0.0))
  with pytest.raises(AssertionError):
    wins(PROCRUSTES, known, originals, 24)


def test_unplaced_blocks_are_noticed(monkeypatch):
  known, originals, _ = world(pictures(60), 40)
  monkeypatch.setattr(known_pairs, "_match", lambda x, *_: np.arange(len(x)))
  for attack in (REGRESSION, PROCRUSTES):
    with pytest.raises(AssertionError):
      wins(attack, known, originals, 45)


@pytest.mark.parametrize("rows", [3, 30])
@pytest.mark.parametrize("orthogonal", [True, False])
def test_blocks_are_placed_by_the_least_total_residual(rows, orthogonal):
  rng = np.random.default_rng(rows)
  x, y = rng.normal(size=(2, 6, 2, rows, 5))

  def residual(a, b):
    if orthogonal or rows <= 5:
      return np.sum((a @ linalg.orthogonal_procrustes(a, b)[0] - b) ** 2)
    return np.sum((a @ np.linalg.lstsq(a, b)[0] - b) ** 2)

  cost = np.array(
    [[sum(residual(p[g], q[g]) for g in range(2)) for q in y] for p in x]
  )  # [original, moved]
  original, moved = optimize.linear_sum_assignment(cost)
  expected = original[np.argsort(moved)]
  np.testing.assert_array_equal(known_pairs._match(x, y, orthogonal, 1 << 24), expected)


@pytest.mark.parametrize("attack", [REGRESSION, PROCRUSTES])
def test_memory_bounds_change_nothing(attack):
  known, _, _ = world(pictures(30), 10, noise_level=25.0)
  one_by_one = known_pairs.Settings(numbers=1)
  whole, parts = (base.run(attack, known, seed=0, settings=s).images for s in (None, one_by_one))
  np.testing.assert_allclose(parts, whole, atol=1e-3)


def test_too_few_pairs_are_said_to_be_too_few():
  known, originals, _ = world(pictures(60, (8, 8, 1)), 5, mix="block", permute=False)
  wins(PROCRUSTES, known, originals, chance(known, originals) + 3)
  diagnostics = base.run(REGRESSION, known, seed=0).diagnostics
  assert diagnostics["pairs"] == 5
  assert "5 pairs give 5 equations for 16 unknowns" in diagnostics["warnings"][0]
  assert 0 < diagnostics["learnt"] <= 5 / 16


@pytest.mark.parametrize("attack", [REGRESSION, PROCRUSTES])
def test_no_pair_gives_grey_and_says_so(attack):
  known, originals, _ = world(pictures(6), 0)
  result = base.run(attack, known, seed=0)
  assert (result.images == 127.5).all() and len(result.images) == len(originals)
  assert "0 pairs" in result.diagnostics["warnings"][0]


@pytest.mark.parametrize("level", [0.0, 25.0])
@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("attack", [REGRESSION, PROCRUSTES])
def test_constant_images_do_not_crash_and_are_right(attack, value, level):
  known, originals, _ = world(np.full((6, 10, 13, 3), value, np.uint8), 2, noise_level=level)
  result = base.run(attack, known, seed=0)
  assert np.isfinite(result.images).all()
  if level == 0 or attack is PROCRUSTES:
    assert quality(result.images, originals) > 25


def test_positions_without_signal_are_not_filled_with_noise():
  images = pictures(40, (12, 12, 1))
  images[:, :4] = 0  # no pair tells a thing about this row of blocks
  known, _, _ = world(images, 5, noise_level=100.0, permute=False)
  for attack in (REGRESSION, PROCRUSTES):
    dark = base.run(attack, known, seed=0).images[:, :4]
    assert np.sqrt(np.mean(dark**2)) < 8, attack.name  # the noise's own is 29


def test_attacks_say_what_they_cannot_handle():
  known, _, _ = world(pictures(4), 2)
  aes = {"scheme": "aes", "image_shape": [10, 13, 3], "block_size": 4}
  with pytest.raises(ConfigError, match="codebook"):
    base.run(REGRESSION, base.Known(aes, *fields(known)), seed=0)
  projection = {**known.spec, "matrix": "projection"}
  assert "regression" in PROCRUSTES.refuses(projection)
  assert REGRESSION.refuses(projection) is None
  assert PROCRUSTES.refuses(known.spec) is None
  for attack in (REGRESSION, PROCRUSTES):
    assert attack.refuses({"scheme": "plain", "image_shape": [8, 8, 1]})
    assert (attack.level, attack.needs) == (2, ("pairs",))


@pytest.mark.slow
def test_one_pair_of_cifar10(tfds_dir):
  images = sources.load("cifar10", "test[:1100]", data_dir=str(tfds_dir)).images
  scores = {"procrustes": [], "regression": []}
  for picture in range(12):  # which one is known matters most: 25 to 31 dB; the key does not
    order = np.random.default_rng(picture).permutation(len(images))
    known, originals, _ = world(
      images[order][:301], 1, picture % 3, permute=False, noise_level=25.0
    )
    for attack in (PROCRUSTES, REGRESSION):
      result = base.run(attack, known, seed=0)
      scores[attack.name].append(quality(result.images, originals))
  assert np.median(scores["procrustes"]) >= 27
  assert np.median(scores["regression"]) < 22


@pytest.mark.slow
def test_more_pairs_of_mnist_show_more(tfds_dir):
  images = sources.load("mnist", "test[:1100]", data_dir=str(tfds_dir)).images
  for attack in (PROCRUSTES, REGRESSION):
    curve = []
    for pairs in (1, 5, 15, 35):
      known, originals, _ = world(images[: pairs + 500], pairs, block_size=7, noise_level=100.0)
      curve.append(quality(base.run(attack, known, seed=0).images, originals))
    assert curve[0] + 2 < curve[-1] and curve[2] > 15, (attack.name, curve)
