import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from test_attack_moments import (
  PRIVATE,
  PUBLIC,
  SHAPE,
  TARGETS,
  WINS,
  chance,
  disguise,
  fields,
  known_of,
  psnr,
  run,
  scheme_and_key,
)

from djax import errors
from djax.attacks import placement
from djax.attacks.contract import Known

ATTACK = placement.ATTACK


@pytest.fixture(scope="module")
def plain_case():
  scheme, key = scheme_and_key()
  return key, known_of(scheme, key, PRIVATE, TARGETS, PUBLIC)


def test_positions_and_images_are_found(plain_case):
  key, known = plain_case
  perm, found = placement.estimate_permutation(known, 0)
  np.testing.assert_array_equal(perm, key.perm)
  assert found["perm"] == key.perm.tolist() and found["likeness"] > 0.9 and found["warnings"] == []
  result = run(known, ATTACK)
  assert psnr(TARGETS, result.images) > WINS
  assert result.diagnostics["placement"]["perm"] == key.perm.tolist()


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("rmt", {"noise_level": 100.0}),
    ("rmt", {"noise_level": 25.0, "noise_place": "after"}),
    ("rmt", {"mix": "block"}),
    ("rmt", {"block_size": 2}),
    ("rmt", {"matrix": "projection"}),
    ("permutation", {}),
    ("permutation", {"block_size": 8}),
  ],
)
def test_positions_are_found(name, options):
  scheme, key = scheme_and_key(name, **options)
  perm, _ = placement.estimate_permutation(known_of(scheme, key, PRIVATE, TARGETS, PUBLIC), 0)
  np.testing.assert_array_equal(perm, key.perm)


@pytest.mark.parametrize("options", [{}, {"per_channel": True}])
def test_positions_are_found_in_padded_colour_images(options):
  shape = (14, 11, 3)
  private, targets, public = (fields(s, n, shape) for s, n in ((1, 3000), (2, 10), (3, 3000)))
  scheme, key = scheme_and_key(shape=shape, **options)
  result = run(known_of(scheme, key, private, targets, public), ATTACK)
  assert result.diagnostics["placement"]["perm"] == key.perm.tolist()
  assert psnr(targets, result.images) > chance(targets) + 5


def test_a_permutation_alone_is_undone_exactly():
  scheme, key = scheme_and_key("permutation")
  result = run(known_of(scheme, key, PRIVATE, TARGETS, PUBLIC), ATTACK)
  np.testing.assert_array_equal(result.images, TARGETS)


def test_projection_keys_are_passed_on_to_ica():
  scheme, key = scheme_and_key(matrix="projection")
  result = run(known_of(scheme, key, PRIVATE, TARGETS, PUBLIC), ATTACK)
  assert psnr(TARGETS, result.images) > chance(TARGETS) + 5


def test_gives_nothing_on_random_pixels():
  rng = np.random.default_rng(4)
  private, targets, public = (
    rng.integers(0, 256, (n, *SHAPE)).astype(np.uint8) for n in (3000, 30, 3000)
  )
  scheme, key = scheme_and_key()
  result = run(known_of(scheme, key, private, targets, public), ATTACK)
  assert (np.array(result.diagnostics["placement"]["perm"]) == key.perm).sum() < 6
  assert psnr(targets, result.images) < chance(targets) + 0.5
  assert any("do not rely on them" in w for w in result.diagnostics["warnings"])


def test_gives_nothing_on_targets_of_another_key(plain_case):
  _, known = plain_case
  scheme, other = scheme_and_key(seed=5)
  targets = disguise(scheme, other, TARGETS)
  result = run(Known(known.spec, known.disguised, targets, PUBLIC), ATTACK)
  assert psnr(TARGETS, result.images) < chance(TARGETS)


def test_gives_nothing_on_aes(plain_case):
  scheme, key = scheme_and_key("aes")
  encrypted = [disguise(scheme, key, images) for images in (PRIVATE, TARGETS)]
  result = run(Known(plain_case[1].spec, *encrypted, PUBLIC), ATTACK)
  assert psnr(TARGETS, result.images) < chance(TARGETS)
  assert (np.array(result.diagnostics["placement"]["perm"]) == key.perm).sum() < 6


def test_fails_when_blocks_are_put_back_the_wrong_way(plain_case, monkeypatch):
  estimate = placement.estimate_permutation

  def inverse(known, seed):
    perm, found = estimate(known, seed)
    return np.argsort(perm), found

  monkeypatch.setattr(placement, "estimate_permutation", inverse)
  assert not psnr(TARGETS, run(plain_case[1], ATTACK).images) > WINS


def test_fails_without_the_layers_of_norms(plain_case, monkeypatch):
  norms = placement._norms

  def shuffled(known, layout):
    disguised, public = norms(known, layout)
    rng = np.random.default_rng(0)
    return rng.permuted(disguised.reshape(-1)).reshape(disguised.shape), public

  monkeypatch.setattr(placement, "_norms", shuffled)
  assert not psnr(TARGETS, run(plain_case[1], ATTACK).images) > WINS


def test_a_mirrored_solution_is_turned_round(plain_case, monkeypatch):
  key, known = plain_case
  grid = np.arange(16).reshape(4, 4)
  mirrored = np.eye(16)[grid[:, ::-1].ravel()[key.perm]]
  monkeypatch.setattr(placement, "_by_neighbours", lambda *_: mirrored)
  monkeypatch.setattr(
    placement, "_assign", lambda d, p, start: linear_sum_assignment(start, maximize=True)[1]
  )
  perm, _ = placement.estimate_permutation(known, 0)
  np.testing.assert_array_equal(perm, key.perm)


def test_score_agrees_with_a_loop():
  rng = np.random.default_rng(0)
  disguised, public = rng.normal(size=(2, 3, 5, 5))
  perm = rng.permutation(5)
  expected = sum(
    disguised[layer, p, q] * public[layer, perm[p], perm[q]]
    for layer in range(3)
    for p in range(5)
    for q in range(5)
  )
  assert placement._score(disguised, public, perm) == pytest.approx(expected)


def test_assignment_climbs_to_the_planted_permutation():
  rng = np.random.default_rng(0)
  public = rng.normal(size=(3, 12, 12)).astype(np.float32)
  perm = rng.permutation(12)
  disguised = public[:, perm][:, :, perm]
  start = np.eye(12, dtype=np.float32)[perm] * 0.3 + 0.7 / 12
  np.testing.assert_array_equal(placement._assign(disguised, public, start), perm)


def test_constant_images_do_not_crash():
  still = np.full((50, *SHAPE), 90, np.uint8)
  scheme, key = scheme_and_key()
  result = run(known_of(scheme, key, still, still[:3], still), ATTACK)
  assert np.isfinite(result.images).all()
  assert any("do not rely on them" in w for w in result.diagnostics["warnings"])
  assert any("do not vary" in w for w in result.diagnostics["warnings"])


def test_refusals():
  scheme, key = scheme_and_key(permute=False)
  with pytest.raises(errors.ConfigError, match="no blocks are moved"):
    run(known_of(scheme, key, PRIVATE[:2], TARGETS[:2], PUBLIC[:2]), ATTACK)
  scheme, key = scheme_and_key("aes")
  with pytest.raises(errors.ConfigError, match="does not keep"):
    run(known_of(scheme, key, PRIVATE[:2], TARGETS[:2], PUBLIC[:2]), ATTACK)
  scheme, key = scheme_and_key()
  with pytest.raises(errors.ConfigError, match="needs public images"):
    run(known_of(scheme, key, PRIVATE[:2], TARGETS[:2], None), ATTACK)


@pytest.mark.slow
@pytest.mark.parametrize(("noise_level", "least"), [(0, 35), (25, 29), (100, 17)])
def test_cifar10(tfds_dir, noise_level, least):
  from djax import sources

  images = sources.load("cifar10", "train", data_dir=str(tfds_dir)).images
  targets = sources.load("cifar10", "test[:200]", data_dir=str(tfds_dir)).images
  right, scores = [], []
  for seed in range(3):
    scheme, key = scheme_and_key(seed=seed, shape=(32, 32, 3), noise_level=noise_level)
    result = run(known_of(scheme, key, images[:10000], targets, images[30000:40000]), ATTACK)
    right.append((np.array(result.diagnostics["placement"]["perm"]) == key.perm).sum())
    scores.append(psnr(targets, result.images))
  assert np.median(right) == 64
  assert np.median(scores) > least


def test_a_single_block_is_where_it_is():
  spec = {"scheme": "permutation", "image_shape": [8, 8, 1], "block_size": 8}
  images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.float32)
  known = Known(spec, images, images, public=images)
  perm, found = placement.estimate_permutation(known, 0)
  assert perm.tolist() == [0] and found["warnings"] == []
