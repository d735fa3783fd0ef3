import itertools

import numpy as np
import pytest
from helpers.fields import chance, disguise, fields, known_of, psnr, run, scheme_and_key

from djax import errors
from djax.attacks.base import Known
from djax.attacks.common import statistics
from djax.attacks.rmt import borders, placement

SHAPE = (72, 64, 1)  # more values than one covariance takes
PRIVATE, TARGETS, PUBLIC = fields(1, 300, SHAPE), fields(2, 5, SHAPE), fields(3, 300, SHAPE)


def case(name="rmt", shape=SHAPE, images=(PRIVATE, TARGETS, PUBLIC), **options):
  scheme, key = scheme_and_key(name, shape=shape, **{"block_size": 8, **options})
  return key, known_of(scheme, key, *images)


def orders(known, key):
  """The true order, and that of the mirrored image."""
  layout = statistics.layout_of(known.spec)
  grid = np.arange(layout.positions).reshape(layout.rows, layout.columns)
  return key.perm, grid[:, ::-1].ravel()[key.perm]


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("rmt", {}),
    ("rmt", {"block_size": 4}),
    ("rmt", {"noise_level": 50.0}),
    ("rmt", {"noise_level": 25.0, "noise_place": "after"}),
    ("rmt", {"matrix": "projection"}),
    ("permutation", {}),
  ],
)
def test_positions_are_found(name, options):
  key, known = case(name, **options)
  perm, found = placement.estimate_permutation(known, 0)
  np.testing.assert_array_equal(perm, key.perm)
  assert found["perm"] == key.perm.tolist() and found["warnings"] == []
  assert found["likeness"] == min(found["below"], found["beside"]) > 0.5


@pytest.mark.parametrize("options", [{}, {"per_channel": True}])
def test_positions_are_found_in_padded_colour_images_without_public_ones(options):
  shape = (50, 45, 3)
  key, known = case(
    shape=shape, images=(fields(1, 300, shape), fields(2, 5, shape), None), **options
  )
  perm, found = placement.estimate_permutation(known, 0)
  assert any(np.array_equal(perm, order) for order in orders(known, key))
  assert found["warnings"] == []


def test_the_whole_image_comes_back():
  key, known = case()
  result = run(known, placement.ATTACK)
  assert result.diagnostics["placement"]["perm"] == key.perm.tolist()
  assert psnr(TARGETS, result.images) > chance(TARGETS) + 7


def test_a_permutation_alone_is_undone_exactly_without_public_images():
  _, known = case("permutation", images=(PRIVATE, TARGETS, None))
  np.testing.assert_array_equal(run(known, placement.ATTACK).images, TARGETS)


def test_targets_of_another_key_give_nothing():
  _, known = case()
  scheme, other = scheme_and_key(seed=5, shape=SHAPE, block_size=8)
  targets = disguise(scheme, other, TARGETS)
  result = run(Known(known.spec, known.disguised, targets, PUBLIC), placement.ATTACK)
  assert psnr(TARGETS, result.images) < chance(TARGETS)


def test_random_pixels_give_nothing_and_a_warning():
  private = np.random.default_rng(4).integers(0, 256, (300, *SHAPE)).astype(np.uint8)
  key, known = case(images=(private, private[:5], None))
  perm, found = placement.estimate_permutation(known, 0)
  assert max((perm == order).sum() for order in orders(known, key)) < 6
  assert any("do not rely on their places" in warning for warning in found["warnings"])


def test_still_images_do_not_crash():
  still = np.full((20, *SHAPE), 90, np.uint8)
  _, known = case(images=(still, still[:3], still))
  perm, found = placement.estimate_permutation(known, 0)
  assert sorted(perm) == list(range(72)) and found["warnings"]


def test_nothing_is_found_where_borders_belong_to_other_images(monkeypatch):
  cut = borders._rows

  def shuffled(*args):
    rows, rng = cut(*args), np.random.default_rng(0)
    return rows._replace(values=rng.permuted(rows.values, axis=3))

  monkeypatch.setattr(borders, "_rows", shuffled)
  key, known = case()
  perm, _ = placement.estimate_permutation(known, 0)
  assert max((perm == order).sum() for order in orders(known, key)) < 6


def test_pieces_of_columns_are_put_at_their_height(monkeypatch):
  below = borders._below
  key, known = case()
  row, column = np.divmod(key.perm, 8)

  def broken(rows):
    candidates, gaps = below(rows)
    gaps[(column == 3) & (row < 4)] = 0
    return candidates, gaps

  monkeypatch.setattr(borders, "_below", broken)
  perm, _ = placement.estimate_permutation(known, 0)
  np.testing.assert_array_equal(perm, key.perm)
  # Without its rows a piece may stand anywhere.
  monkeypatch.setattr(
    borders, "_merged", lambda values: np.ones((*values.shape[:1], 1, 8, 8), np.float32)
  )
  perm, _ = placement.estimate_permutation(known, 0)
  assert not any(np.array_equal(perm, order) for order in orders(known, key))


def test_the_heaviest_path_is_found():
  rng = np.random.default_rng(0)
  order = rng.permutation(12)
  links = rng.uniform(0, 0.5, (12, 12))
  links = links + links.T
  for p, q in itertools.pairwise(order):
    links[p, q] = links[q, p] = 1.5
  found = borders._path(links)
  assert found.tolist() in (order.tolist(), order[::-1].tolist())


def test_what_memory_is_not_for_is_refused():
  shape = (96, 96, 1)
  still = np.zeros((2, *shape), np.uint8)
  _, known = case(shape=shape, images=(still, still, still), mix="block")
  with pytest.raises(errors.ConfigError, match="at most 8192 values, got 9216"):
    run(known, placement.ATTACK)
  layout = statistics.Layout(256, 256, 2, 1, "rows")
  with pytest.raises(errors.ConfigError, match="at most 16384 blocks, got 65536"):
    borders.arrange(layout, np.zeros((1, 512, 512, 1), np.float32))


@pytest.mark.slow
def test_memory_stays_bounded():
  import resource

  shape = (224, 224, 3)
  key, known = case(
    shape=shape, images=(fields(1, 150, shape), fields(2, 5, shape), None), block_size=4
  )
  perm, _ = placement.estimate_permutation(known, 0)
  assert any(np.array_equal(perm, order) for order in orders(known, key))
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20  # KiB
