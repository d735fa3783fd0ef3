import dataclasses
import itertools

import numpy as np
import pytest
from helpers.attacked import disguise
from helpers.encrypted import figures, loses, quality, spec_of, wins, world

from djax import schemes, sources
from djax.attacks import base
from djax.attacks.aes import frequency
from djax.attacks.aes.frequency import ATTACK
from djax.attacks.aes.units import image_of, units_of
from djax.attacks.common import learned, views
from djax.errors import ConfigError
from djax.host import augment

SHORT = frequency.Settings(network=learned.Settings(steps=150, hidden=64))
OPTIONS = {"crop": 2, "flip": False}


def short(known):
  return base.run(ATTACK, known, seed=0, settings=SHORT)


@pytest.mark.parametrize(
  "options",
  [
    {"permute": False},
    {"unit_pixels": 2},
    {"unit_pixels": 2, "position_keys": True},
    {"unit_pixels": 8, "permute": False},
  ],
)
def test_drawings_show_without_any_pair(options):
  known, originals, _ = world(figures(500), 1, public=300, **options)
  result = wins(ATTACK, known, originals, 3 if "unit_pixels" in options else 2, SHORT)
  black = (units_of(originals, known.spec) == 0).all(-1).mean()
  assert result.diagnostics["flat"] == pytest.approx(black, abs=0.05)


def test_without_public_images_flat_units_are_black():
  known, originals, _ = world(figures(100), 1, unit_pixels=2, permute=False)
  result = base.run(ATTACK, known, seed=0)
  flat = image_of(units_of(originals, known.spec), known.spec) == 0
  assert np.mean((result.images == 0) == flat) > 0.85
  assert set(np.unique(result.images)) == {0, 127.5}


def test_random_images_do_not_beat_chance():
  noise = np.random.default_rng(0).integers(0, 256, (400, 16, 16, 1))
  known, originals, _ = world(noise, 1, public=200, unit_pixels=4)
  assert loses(ATTACK, known, originals, SHORT).diagnostics["repeated"] < 0.05


def test_targets_of_another_key_do_not_beat_chance():
  known, originals, _ = world(figures(400), 1, public=200, other=1, unit_pixels=16)
  assert loses(ATTACK, known, originals, SHORT).diagnostics["flat"] == 0


def test_public_images_that_belong_to_other_facts_do_not_beat_chance(monkeypatch):
  """The negative control: a map learnt from shuffled pairs knows the mean image and no more."""
  known, originals, _ = world(figures(400), 1, public=200, unit_pixels=2, permute=False)
  assert wins(ATTACK, known, originals, 3, SHORT).diagnostics["views"] == 1
  good = frequency._learn
  shuffled = lambda facts, images, **options: good(facts[::-1], images, **options)  # noqa: E731
  monkeypatch.setattr(frequency, "_learn", shuffled)
  assert loses(ATTACK, known, originals, SHORT).diagnostics["views"] == 1


def test_facts_of_no_unit_are_noticed(monkeypatch):
  known, originals, _ = world(figures(400), 1, public=200, unit_pixels=16, permute=False)
  assert wins(ATTACK, known, originals, 2, SHORT).diagnostics["flat"] > 0.1
  blank = lambda names, counts: np.zeros((*names.shape, 2), np.float32)  # noqa: E731
  monkeypatch.setattr(frequency, "_facts", blank)
  assert loses(ATTACK, known, originals, SHORT).diagnostics["views"] == 1


@pytest.mark.slow
def test_blocks_are_placed(monkeypatch):
  # Off the centre, as a data set that is its own mirror image leaves open which way round it lies.
  images = np.roll(figures(1200, (24, 24, 1)), (4, 2), (1, 2))
  known, _, key = world(images, 1, public=600)
  used = images.reshape(-1, 6, 4, 6, 4).any((2, 4)).mean(0).ravel() > 0.1

  def right():
    places = np.array(short(known).diagnostics["positions"])
    return (places == key.perm)[used[key.perm]].mean()

  assert right() == 1
  monkeypatch.setattr(frequency.assignment, "exchange", lambda a, b, perm, least: perm)
  monkeypatch.setattr(frequency.assignment, "climb", lambda a, b, start, **_: start.argmax(1))
  assert right() < 1  # the means alone leave some open


def several(originals, public, count, options=OPTIONS, distinct=False, seed=0, **spec):
  """Targets with several views, as ``disguise`` makes them: shifts drawn, not given."""
  spec = spec_of(originals.shape[1:], **spec)
  originals = originals.astype(np.uint8)
  draw = np.random.default_rng(seed)
  drawn = draw.random((len(originals) * (count - 1), augment.DRAWS), np.float32)
  others = augment.augment(originals.repeat(count - 1, 0), drawn, **options)
  targets, key = disguise(spec, originals, seed, 1)
  further, _ = disguise(spec, others, seed, 2)
  further = further.reshape(len(originals), count - 1, *further.shape[1:])
  shown = base.Views(further, options, distinct)
  return base.Known(spec, targets, targets, public.astype(np.uint8), views=shown), key


@pytest.mark.slow
def test_several_views_show_more_than_one():
  images = figures(500)
  known, _ = several(images[:100], images[100:], 12, permute=False)
  one = short(dataclasses.replace(known, views=None))
  all_ = short(known)
  assert all_.diagnostics["views"] == 12
  assert quality(all_.images, images[:100]) > quality(one.images, images[:100]) + 0.8


@pytest.mark.slow
def test_views_of_other_images_are_no_help(monkeypatch):
  """The wrong views: those of the next target. What is learnt is right, so they must do harm."""
  images = figures(350)
  known, _ = several(images[:50], images[50:], 6, permute=False)
  good = quality(short(known).images, images[:50])
  wrong = known.views._replace(disguised=np.roll(known.views.disguised, 1, 0))
  bad = quality(short(dataclasses.replace(known, views=wrong)).images, images[:50])
  assert bad < good - 1


# How views lie.


@pytest.mark.parametrize("flip", [False, True])
def test_moves_are_those_of_the_owner(flip):
  options = {"crop": 1, "flip": flip}
  image = np.random.default_rng(0).integers(0, 256, (1, 5, 7, 2), np.uint8)
  ways = views.moves(image.shape[1:], options)
  looks = image.reshape(1, -1, 2)[0][ways.shown].reshape(-1, 5, 7, 2)
  assert len(looks) == 9 * (1 + flip) == len(np.unique(looks, axis=0))
  np.testing.assert_array_equal(looks[0], image[0])
  drawn = itertools.product((0.1, 0.5, 0.9), (0.1, 0.5, 0.9), (0.1, 0.9))
  for uniforms in drawn:
    made = augment.augment(image, np.array([uniforms], np.float32), **options)[0]
    assert (looks == made).all((1, 2, 3)).sum() == 1


def test_views_are_registered_and_brought_back():
  rng = np.random.default_rng(0)
  images = rng.normal(size=(30, 8, 9, 1)).astype(np.float32)
  ways = views.moves((8, 9, 1), {"crop": 2, "flip": True})
  apart = np.stack([rng.permutation(np.arange(1, 25))[:6] for _ in images])  # different shifts
  truth = np.concatenate([np.zeros((30, 1), int), 2 * apart + rng.integers(0, 2, (30, 6))], 1)
  flat = images.reshape(30, 72, 1)
  shown = np.stack([flat[i][ways.shown[truth[i]]] for i in range(30)])
  np.testing.assert_array_equal(
    ways.shift[truth[:, 1:]], apart
  )  # a shift and its mirror are one number
  noisy = (shown + 0.3 * rng.normal(size=shown.shape)).astype(np.float32).reshape(30, 7, 8, 9, 1)
  for distinct in (False, True):
    found = views.register(noisy, ways, distinct=distinct)
    assert (found == truth).mean() > 0.99
    if distinct:
      assert all(len(set(row)) == 7 for row in ways.shift[found].tolist())
  np.testing.assert_allclose(views.bring_back(shown, truth, ways), flat, rtol=1e-5, atol=1e-6)
  wrong = views.bring_back(shown, np.roll(truth, 1, 0), ways)
  assert np.abs(wrong - flat).mean() > 0.3


def test_a_view_says_nothing_of_what_it_does_not_show():
  ways = views.moves((4, 4, 1), {"crop": 1})
  down = int(np.flatnonzero(ways.shown[:, 0] == 4)[0])  # shifted by a row, mirrored at the top
  view = np.arange(16, dtype=np.float32).reshape(1, 1, 16, 1)
  back = views.bring_back(view, np.array([[down]]), ways)[0, :, 0]
  shown = np.unique(ways.shown[down])
  assert len(shown) < 16
  assert (back[np.setdiff1d(np.arange(16), shown)] == 0).all()


@pytest.mark.slow
def test_odd_inputs_do_not_crash():
  for value, options in ((0, {}), (255, {"unit_pixels": 2}), (0, {"unit_pixels": 1})):
    known, originals, _ = world(np.full((40, 5, 6, 3), value), 1, public=20, **options)
    assert quality(short(known).images, originals) > 40
  known, _, _ = world(figures(12), 1, public=3)
  assert "stay where they are" in short(known).diagnostics["warnings"][0]


def test_the_attack_says_what_it_cannot_handle():
  known, _, _ = world(figures(6), 2)
  assert ATTACK.level == 1 and ATTACK.refuses(known.spec) is None
  rmt = schemes.from_spec({"scheme": "rmt", "image_shape": [16, 16, 1], "block_size": 4})
  with pytest.raises(ConfigError, match="aes"):
    base.run(ATTACK, base.Known(rmt.spec.to_dict(), known.disguised, known.targets), seed=0)


@pytest.mark.slow
def test_mnist_shows_without_any_pair(tfds_dir):
  images = sources.load("mnist", "test[:3000]", data_dir=str(tfds_dir)).images
  for unit, permute, margin in ((16, False, 3), (16, True, 3), (2, True, 6)):
    known, originals, _ = world(images, 1, public=1000, unit_pixels=unit, permute=permute)
    assert wins(ATTACK, known, originals, margin).diagnostics["flat"] > 0.5
