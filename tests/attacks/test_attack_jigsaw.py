import json

import numpy as np
import pytest
from helpers import attacked

from djax import sources
from djax.attacks import base
from djax.attacks.permutation import jigsaw
from djax.errors import ConfigError
from djax.ops import metrics


def pictures(count, shape=(16, 20, 3)):
  return attacked.pictures(count, shape, sigma=2.5, contrast=500)


def disguise(originals, block_size, seed=0):
  spec = {
    "scheme": "permutation",
    "image_shape": list(originals.shape[1:]),
    "block_size": block_size,
  }
  disguised, key = attacked.disguise(spec, originals, seed)
  grid = tuple(side // block_size for side in disguised.shape[1:3])
  return base.Known(spec, disguised, disguised), np.asarray(key.perm), grid


def right(known, perm, grid, originals):
  """Runs the attack and asserts that every block is where it belongs."""
  result = base.run(jigsaw.ATTACK, known, seed=0)
  json.dumps(result.diagnostics)
  assert result.diagnostics["positions"] == perm.tolist()
  assert jigsaw.scores(perm, result.diagnostics["positions"], grid) == (1, 1, 1)
  np.testing.assert_array_equal(result.images, originals[: len(result.images)])
  assert result.diagnostics["interchangeable"] == 0
  return result


def by_chance(known, perm, grid):
  """Runs the attack and asserts that hardly anything is right: of P blocks one is, of the neighbours 1 in P."""
  result = base.run(jigsaw.ATTACK, known, seed=0)
  found = jigsaw.scores(perm, result.diagnostics["positions"], grid)
  assert found.direct < 0.2 and found.neighbour < 0.2
  return result


CASES = [
  ((16, 20, 3), 2),
  ((16, 20, 3), 4),
  ((14, 21, 3), 4),  # padded at both edges
  ((16, 20, 1), 4),
  ((40, 24, 1), 8),
  ((48, 64, 3), 16),
  ((4, 20, 1), 4),  # one row of blocks
]


@pytest.mark.parametrize("shape,block_size", CASES)
def test_every_block_is_put_back(shape, block_size):
  originals = pictures(200, shape)
  known, perm, grid = disguise(originals, block_size)
  assert (perm != np.arange(perm.size)).any()
  right(known, perm, grid, originals)


def test_the_embedded_digits_are_put_back():
  originals = sources.load("digits", "train").images[:500]
  known, perm, grid = disguise(originals, 2)
  right(known, perm, grid, originals)


def test_targets_follow_the_arrangement_of_all_images():
  originals = pictures(200)
  known, perm, grid = disguise(originals, 4)
  few = base.Known(known.spec, known.disguised, known.disguised[7:9])
  right(few, perm, grid, originals[7:])


def test_floats_are_put_back_too():
  originals = pictures(100).astype(np.float32) / 3
  known, perm, grid = disguise(originals, 4)
  right(known, perm, grid, originals)


def test_one_image_alone_says_less_than_all_of_them():
  originals = pictures(200, (16, 16, 1))
  noise = np.random.default_rng(1).normal(0, 25, originals.shape)
  originals = np.clip(originals + noise, 0, 255).astype(np.uint8)
  known, perm, grid = disguise(originals, 2)
  result = right(known, perm, grid, originals)
  alone = result.diagnostics["single"]
  assert len(alone) == 3 and max(one["neighbour"] for one in alone) < 0.5
  single = base.Known(known.spec, known.disguised[:1], known.targets[:1])
  result = base.run(jigsaw.ATTACK, single, seed=0)
  found = jigsaw.scores(perm, result.diagnostics["positions"], grid)
  assert found.neighbour < 0.5
  assert "1 disguised image" in result.diagnostics["warnings"][0]


def test_one_smooth_image_of_large_blocks_is_enough():
  originals = pictures(1, (48, 48, 3))
  known, perm, _ = disguise(originals, 16)
  result = base.run(jigsaw.ATTACK, known, seed=0)
  assert result.diagnostics["positions"] == perm.tolist()


# Negative controls.


def test_random_pixels_have_no_borders():
  originals = np.random.default_rng(0).integers(0, 256, (200, 24, 24, 3), np.uint8)
  by_chance(*disguise(originals, 4))


def test_a_permutation_for_each_image_hides_the_common_one():
  originals = pictures(100, (24, 24, 3))
  parts = [disguise(originals[i : i + 1], 4, seed=i) for i in range(100)]
  known, perm, grid = parts[0]
  mixed = np.concatenate([part[0].disguised for part in parts])
  by_chance(base.Known(known.spec, mixed, mixed), perm, grid)


def test_the_arrangement_of_another_key_does_not_fit():
  originals = pictures(200, (24, 24, 3))
  known, perm, grid = disguise(originals, 4)
  other, other_perm, _ = disguise(originals, 4, seed=1)
  foreign = base.Known(known.spec, other.disguised, known.targets)
  result = by_chance(foreign, perm, grid)
  assert result.diagnostics["positions"] == other_perm.tolist()
  error = np.mean(metrics.psnr(originals, result.images))
  assert error < 20


def test_encrypted_blocks_have_no_borders():
  originals = pictures(200, (24, 24, 1))
  spec = {"scheme": "aes", "image_shape": [24, 24, 1], "block_size": 4}
  encrypted, key = attacked.disguise(spec, originals)
  known, _, grid = disguise(originals, 4)
  by_chance(base.Known(known.spec, encrypted, encrypted), np.asarray(key.perm), grid)


# The same assertion must fail for attacks that were broken on purpose.


@pytest.mark.parametrize(
  "name,broken",
  [
    ("_continued", lambda cut, edge, inner: np.zeros((cut.shape[1], len(cut), cut.shape[2]))),
    ("_cost", lambda after, before, cost=jigsaw._cost: cost(after, before).T),
    ("_grow", lambda costs, grid, first: np.roll(np.arange(grid[0] * grid[1]), first)),
  ],
)
def test_a_broken_step_is_noticed(monkeypatch, name, broken):
  originals = pictures(100, (24, 24, 3))
  known, perm, grid = disguise(originals, 4)
  right(known, perm, grid, originals)
  monkeypatch.setattr(jigsaw, name, broken)
  with pytest.raises(AssertionError):
    right(known, perm, grid, originals)


def test_a_shift_of_the_whole_is_undone():
  costs = jigsaw._costs(jigsaw._cut(pictures(100, (24, 24, 3)), 4))
  shifted = np.roll(np.arange(36).reshape(6, 6), (2, 1), (0, 1)).reshape(-1)
  np.testing.assert_array_equal(jigsaw._polish(costs, (6, 6), shifted), np.arange(36))


# Slow twins.


@pytest.mark.parametrize("count", [1, 7])
def test_costs_equal_those_counted_pixel_by_pixel(count):
  cut = jigsaw._cut(pictures(count, (6, 9, 2)), 3)
  right_of, below = jigsaw._costs(cut)

  def gap(n, p, m, q, turned):
    a, b = (x.swapaxes(0, 1) if turned else x for x in (cut[n, p], cut[m, q]))
    after = a[:, -1] + (a[:, -1] - a[:, -2]) / 2
    before = b[:, 0] + (b[:, 0] - b[:, 1]) / 2
    return np.mean((after - before) ** 2)

  for turned, cost in ((False, right_of), (True, below)):
    gaps = np.array(
      [
        [np.mean([gap(n, p, n, q, turned) for n in range(count)]) + 1 for q in range(6)]
        for p in range(6)
      ]
    )
    if count > 1:
      usual = np.log(
        [
          [
            1
            + np.mean(
              [gap(n, p, m, q, turned) for n in range(count) for m in range(count) if n != m]
            )
            for q in range(6)
          ]
          for p in range(6)
        ]
      )
    else:
      logs = np.log(gaps)
      usual = np.array(
        [[(np.median(logs[p]) + np.median(logs[:, q])) / 2 for q in range(6)] for p in range(6)]
      )
    expected = np.log(gaps) - usual
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(cost, expected, atol=1e-6)


def test_total_and_swaps_equal_those_counted_one_by_one():
  rng = np.random.default_rng(0)
  rows, columns = grid = 3, 4
  costs = rng.normal(size=(2, 12, 12))
  a = rng.permutation(12)

  def total(a):
    cost = 0.0
    for p in range(12):
      if p % columns < columns - 1:
        cost += costs[0][a[p], a[p + 1]]
      if p < 12 - columns:
        cost += costs[1][a[p], a[p + columns]]
    return cost

  assert jigsaw._total(costs, grid, a) == pytest.approx(total(a))
  change = jigsaw._swaps(costs, grid, a)
  far = 0
  for p in range(12):
    for q in range(12):
      steps = abs(p // columns - q // columns) + abs(p % columns - q % columns)
      if steps > 1:
        swapped = a.copy()
        swapped[p], swapped[q] = a[q], a[p]
        assert change[p, q] == pytest.approx(total(swapped) - total(a))
        far += 1
  assert far == 144 - 12 - 2 * (rows * (columns - 1) + columns * (rows - 1))


def test_scores_by_hand():
  grid = (2, 3)
  identity = list(range(6))
  assert jigsaw.scores(identity, identity, grid) == (1, 1, 1)
  shifted = [1, 2, 0, 4, 5, 3]  # every block one to the right, the last column round the edge
  direct, neighbour, largest = jigsaw.scores(identity, shifted, grid)
  assert (direct, neighbour, largest) == (0, 5 / 7, 4 / 6)
  perm = [3, 0, 5, 1, 2, 4]
  assert jigsaw.scores(perm, perm, grid) == (1, 1, 1)
  swapped = [0, 3, 5, 1, 2, 4]  # two upper left blocks exchanged: 0 above 3 no longer
  direct, neighbour, largest = jigsaw.scores(perm, swapped, grid)
  assert (direct, neighbour, largest) == (4 / 6, 4 / 7, 4 / 6)
  with pytest.raises(ValueError, match="perm_found must hold every position"):
    jigsaw.scores(identity, [0] * 6, grid)
  with pytest.raises(ValueError, match="perm_true must hold every position"):
    jigsaw.scores(identity[:4], identity, grid)


# Odd inputs.


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("value", [0, 255])
def test_constant_images_are_right_and_said_to_be_guesses(value, count):
  originals = np.full((count, 10, 13, 3), value, np.uint8)
  known, _, _ = disguise(originals, 4)
  result = base.run(jigsaw.ATTACK, known, seed=0)
  np.testing.assert_array_equal(result.images, originals)
  assert result.diagnostics["interchangeable"] == 12
  assert "12 of 12 blocks" in result.diagnostics["warnings"][-1]


def test_a_single_block_stays_where_it_is():
  originals = pictures(3, (8, 8, 1))
  known, perm, grid = disguise(originals, 8)
  right(known, perm, grid, originals)


def test_black_corners_are_interchangeable():
  originals = pictures(200, (24, 24, 1))
  for rows in (slice(0, 4), slice(20, 24)):
    for columns in (slice(0, 4), slice(20, 24)):
      originals[:, rows, columns] = 0
  known, _, _ = disguise(originals, 4)
  result = base.run(jigsaw.ATTACK, known, seed=0)
  assert result.diagnostics["interchangeable"] == 4
  np.testing.assert_array_equal(result.images, originals)


def test_the_seed_decides():
  known, _, _ = disguise(pictures(2, (24, 24, 1)), 4)
  first, again = (base.run(jigsaw.ATTACK, known, seed=3) for _ in range(2))
  assert first.diagnostics == again.diagnostics


def test_refusals():
  shape = {"image_shape": [8, 8, 1], "block_size": 4}
  assert jigsaw.ATTACK.refuses({"scheme": "permutation", **shape}) is None
  assert "one pixel" in jigsaw.ATTACK.refuses({"scheme": "permutation", **shape, "block_size": 1})
  known, _, _ = disguise(pictures(2, (8, 8, 1)), 4)
  for scheme in ("rmt", "aes", "plain"):
    other = base.Known({"scheme": scheme, **shape}, known.disguised, known.targets)
    with pytest.raises(ConfigError, match="borders of"):
      base.run(jigsaw.ATTACK, other, seed=0)
  assert (jigsaw.ATTACK.name, jigsaw.ATTACK.level, jigsaw.ATTACK.needs) == ("jigsaw", 1, ())


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [2, 4, 8, 16])
def test_500_images_of_cifar10(tfds_dir, block_size):
  images = sources.load("cifar10", "test[:2000]", data_dir=str(tfds_dir)).images
  for seed in range(3):
    originals = images[np.random.default_rng(seed).permutation(len(images))[:500]]
    known, perm, grid = disguise(originals, block_size, seed)
    right(known, perm, grid, originals)


@pytest.mark.slow
def test_500_images_of_mnist_are_right_up_to_what_is_black_in_all(tfds_dir):
  images = sources.load("mnist", "test[:2000]", data_dir=str(tfds_dir)).images
  for seed in range(3):
    originals = images[np.random.default_rng(seed).permutation(len(images))[:500]]
    known, perm, _ = disguise(originals, 4, seed)
    result = base.run(jigsaw.ATTACK, known, seed=0)
    np.testing.assert_array_equal(result.images, originals)
    wrong = np.sum(perm != result.diagnostics["positions"])
    assert wrong <= result.diagnostics["interchangeable"] < 10
