import numpy as np
import pytest
from helpers.fields import (
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
from djax.attacks.base import Known
from djax.attacks.common import assignment, statistics
from djax.attacks.rmt import placement

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

  def inverse(*args, **options):
    perm, found = estimate(*args, **options)
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
  monkeypatch.setattr(assignment, "climb", lambda d, p, start: start.argmax(1))
  # Exchanges would undo the mirroring, too.
  monkeypatch.setattr(assignment, "exchange", lambda _d, _m, perm, _least: perm)
  perm, _ = placement.estimate_permutation(known, 0)
  np.testing.assert_array_equal(perm, key.perm)


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
  scheme, key = scheme_and_key(matrix="projection")
  with pytest.raises(errors.ConfigError, match="needs public images for projection"):
    run(known_of(scheme, key, PRIVATE[:2], TARGETS[:2], None), ATTACK)


def symmetries(layout):
  """Images of the grid under left-right mirroring, and then under the rest of the square's symmetries."""
  grid = np.arange(layout.positions).reshape(layout.rows, layout.columns)
  mirrors = [grid, grid[:, ::-1], grid[::-1], grid[::-1, ::-1]]
  return [m.ravel() for m in mirrors + [m.T for m in mirrors if layout.rows == layout.columns]]


@pytest.mark.parametrize(
  ("name", "options", "shape", "turned"),
  [
    ("rmt", {}, SHAPE, 2),
    ("rmt", {"noise_level": 100.0}, SHAPE, 2),
    ("rmt", {"noise_level": 25.0, "noise_place": "after"}, SHAPE, 2),
    ("rmt", {"mix": "block"}, SHAPE, 8),
    ("rmt", {"block_size": 2}, SHAPE, 2),
    ("rmt", {"per_channel": True}, (14, 11, 3), 2),
    ("permutation", {}, SHAPE, 1),
    ("permutation", {}, (14, 11, 3), 1),
  ],
)
def test_without_public_images_positions_are_found_up_to_symmetry(name, options, shape, turned):
  scheme, key = scheme_and_key(name, shape=shape, **options)
  known = known_of(scheme, key, fields(1, 4000, shape), fields(2, 5, shape), None)
  perm, found = placement.estimate_permutation(known, 0)
  allowed = symmetries(statistics.layout_of(known.spec))[:turned]
  assert any(np.array_equal(perm, turn[key.perm]) for turn in allowed)
  assert found["perm"] == perm.tolist() and found["warnings"] == [] and found["likeness"] > 0.6


@pytest.mark.parametrize("key_seed", range(4))
def test_without_public_images_small_blocks_are_found_whatever_the_rounding(key_seed):
  scheme, key = scheme_and_key(seed=key_seed, block_size=2)
  known = known_of(scheme, key, fields(1, 4000), fields(2, 5), None)
  allowed = [turn[key.perm] for turn in symmetries(statistics.layout_of(known.spec))[:2]]
  # Each round stands for another processor: the images differ in their last bits.
  for seed in range(3):
    noise = np.random.default_rng(seed).normal(size=known.disguised.shape).astype(np.float32)
    disguised = known.disguised * (1 + np.float32(1e-6) * noise)
    rounded = Known(known.spec, disguised, known.targets, None)
    perm, report = placement.estimate_permutation(rounded, seed)
    assert any(np.array_equal(perm, turn) for turn in allowed)
    assert report["warnings"] == []


def test_tilted_starts_reach_the_top_by_themselves(monkeypatch):
  monkeypatch.setattr(placement, "_by_neighbours", lambda *_: np.eye(64, dtype=np.float32))
  scheme, key = scheme_and_key(block_size=2)
  known = known_of(scheme, key, fields(1, 4000), fields(2, 5), None)
  allowed = [turn[key.perm] for turn in symmetries(statistics.layout_of(known.spec))[:2]]

  def right(seed, settings):
    perm, report = placement.estimate_permutation(known, seed, settings=settings)
    return any(np.array_equal(perm, turn) for turn in allowed) and report["starts"] == 3

  assert all(right(seed, placement.Settings()) for seed in range(3))
  tilted = placement.Settings(tilt=32)  # half way to a permutation, where climbs end low
  assert not all(right(seed, tilted) for seed in range(3))


def test_without_public_images_the_whole_image_comes_back_or_its_mirror_image():
  scheme, key = scheme_and_key(noise_level=25.0)
  result = run(known_of(scheme, key, PRIVATE, TARGETS, None), ATTACK)
  best = max(psnr(TARGETS, result.images), psnr(TARGETS[:, :, ::-1], result.images))
  assert best > chance(TARGETS) + 7
  assert result.diagnostics["statistics"] == "image model"


def test_a_permutation_alone_is_undone_exactly_without_public_images():
  scheme, key = scheme_and_key("permutation")
  result = run(known_of(scheme, key, PRIVATE, TARGETS, None), ATTACK)
  np.testing.assert_array_equal(result.images, TARGETS)


@pytest.mark.parametrize("name", ["rmt", "permutation"])
def test_without_public_images_nothing_is_found_in_random_pixels(name):
  private = np.random.default_rng(4).integers(0, 256, (3000, *SHAPE)).astype(np.uint8)
  scheme, key = scheme_and_key(name)
  known = known_of(scheme, key, private, private[:5], None)
  perm, found = placement.estimate_permutation(known, 0)
  right = [(perm == turn[key.perm]).sum() for turn in symmetries(statistics.layout_of(known.spec))]
  assert max(right) < 8
  assert any("do not rely on them" in warning for warning in found["warnings"])


def test_covariances_themselves_do_not_give_the_order_without_public_images(monkeypatch):
  # Stronger to one side, as pictures are: what the inverse leaves out.
  x = fields(1, 4000).astype(np.float32)
  light = np.random.default_rng(0).normal(size=(4000, 2, 1, 1, 1)).astype(np.float32)
  edge = np.abs(np.linspace(-1, 1, 16, dtype=np.float32))
  private = x + 40 * light[:, 0] * edge[:, None, None] + 40 * light[:, 1] * edge[None, :, None]
  scheme, key = scheme_and_key()
  known = known_of(scheme, key, private, private[:5], None)
  allowed = [turn[key.perm] for turn in symmetries(statistics.layout_of(known.spec))[:2]]
  perm, _ = placement.estimate_permutation(known, 0)
  assert any(np.array_equal(perm, turn) for turn in allowed)
  monkeypatch.setattr(np.linalg, "inv", lambda covariance: covariance)
  perm, _ = placement.estimate_permutation(known, 0)
  assert not any(np.array_equal(perm, turn) for turn in allowed)


def test_climbs_leave_local_summits():
  layout = statistics.Layout(6, 6, 1, 1, "pixels")
  rows, columns = np.divmod(np.arange(36), 6)
  apart = np.abs(np.subtract.outer(rows, rows)) + np.abs(np.subtract.outer(columns, columns))
  model = (apart == 1).astype(np.float32)[None]
  perm = np.random.default_rng(0).permutation(36)
  disguised = model[:, perm][:, :, perm]
  found, reached = placement._climb(disguised, model, layout, np.random.default_rng(0))
  assert assignment.agreement(disguised, model, found) == model.sum() and reached >= 1
  flat = np.full((36, 36), 1 / 36, np.float32)
  once = assignment.climb(disguised, model, flat)
  assert assignment.agreement(disguised, model, once) < model.sum()


def test_exchanges_end_where_none_raises_the_score():
  rng = np.random.default_rng(0)
  disguised, model = rng.normal(size=(2, 3, 7, 7))
  start = rng.permutation(7)
  perm = assignment.exchange(disguised, model, start, 1e-9)

  def neighbours(order):
    for p in range(7):
      for q in range(p):
        other = order.copy()
        other[[p, q]] = other[[q, p]]
        yield assignment.agreement(disguised, model, other)

  score = assignment.agreement(disguised, model, perm)
  assert max(neighbours(perm)) < score
  assert score >= max(neighbours(start)) > assignment.agreement(disguised, model, start)


def test_exchanges_mend_what_assignment_leaves():
  # Two pairs of neighbours exchanged across the axis of the grid: the slope leads to no better order, exchanges do.
  rows, columns = np.divmod(np.arange(64), 8)
  apart = np.hypot(np.subtract.outer(rows, rows), np.subtract.outer(columns, columns))
  model = np.exp(-apart)[None].astype(np.float32) * (apart > 0)
  perm = np.arange(64)
  perm[[11, 12, 19, 20]] = [12, 11, 20, 19]
  stuck = assignment.climb(model, model, np.eye(64, dtype=np.float32)[perm])
  np.testing.assert_array_equal(stuck, perm)
  found = assignment.exchange(model, model, stuck, 1e-3)
  np.testing.assert_array_equal(found, np.arange(64))


def test_moves_are_permutations_of_the_grid():
  layout = statistics.Layout(2, 3, 1, 1, "pixels")
  moves = placement._moves(layout)
  assert all(sorted(move) == list(range(6)) for move in moves)
  assert [2, 1, 0, 3, 4, 5] in [move.tolist() for move in moves]  # the first row mirrored
  assert [3, 4, 5, 0, 1, 2] in [move.tolist() for move in moves]  # all rolled
  assert len(moves) == 3 * 5


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
    perm = np.array(result.diagnostics["placement"]["perm"])
    grid = np.arange(64).reshape(8, 8)
    right.append(max((perm == turn.ravel()[key.perm]).sum() for turn in (grid, grid[:, ::-1])))
    scores.append(max(psnr(t, result.images) for t in (targets, targets[:, :, ::-1])))
  assert right == 3 * [64]
  assert min(scores) > least


def test_a_single_block_is_where_it_is():
  spec = {"scheme": "permutation", "image_shape": [8, 8, 1], "block_size": 8}
  images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.float32)
  known = Known(spec, images, images, public=images)
  perm, found = placement.estimate_permutation(known, 0)
  assert perm.tolist() == [0] and found["warnings"] == []


@pytest.mark.slow
@pytest.mark.parametrize("noise_level", [0, 25, 100])
def test_cifar10_without_public_images(tfds_dir, noise_level):
  from djax import sources

  images = sources.load("cifar10", "train[:10000]", data_dir=str(tfds_dir)).images
  right = []
  for seed in range(3):
    scheme, key = scheme_and_key(seed=seed, shape=(32, 32, 3), noise_level=noise_level)
    known = known_of(scheme, key, images, images[:1], None)
    perm, _ = placement.estimate_permutation(known, 0)
    turns = symmetries(statistics.layout_of(known.spec))[:2]
    right.append(max((perm == turn[key.perm]).sum() for turn in turns))
  assert np.median(right) == 64
