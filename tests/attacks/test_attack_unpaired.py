import dataclasses
import json

import numpy as np
import pytest
from helpers.fields import chance, fields, psnr

from djax import keys, schemes, sources
from djax.attacks import base
from djax.attacks.common import learned
from djax.attacks.generic import unpaired
from djax.errors import ConfigError
from djax.ops import metrics

pytestmark = pytest.mark.slow  # they train networks

THEIRS = 1 << 40  # a key seed that the attack never draws


def digits():
  images = sources.load("digits", "train").images
  return np.random.default_rng(0).permutation(images)


def spec_of(images, **options):
  spec = {"scheme": "rmt", "image_shape": list(images.shape[1:]), "block_size": 4, **options}
  return schemes.from_spec(spec).spec.to_dict()


def world(images, public, **options):
  """The first images are public, the rest targets under a key of somebody else."""
  spec = spec_of(images, **options)
  hidden = unpaired.disguise(spec, images[public:], key_seed=THEIRS, seed=5)
  return base.Known(spec, hidden, hidden, images[:public]), images[public:]


def ssim(originals, estimates):
  pair = (np.asarray(images, np.float32) for images in (originals, estimates))
  return float(np.median(metrics.ssim(*pair, filter_size=metrics.window(originals.shape))))


def blank(public, count):
  return np.broadcast_to(public.mean(0), (count, *public.shape[1:]))


# Smaller, and trained for a moment.
SHORT = unpaired.Settings(images=2000, network=learned.Settings(steps=100, hidden=128))


def learn(spec, public, settings=SHORT, **options):
  return unpaired.learn(spec, public, seed=0, settings=settings, **options)


def run(known):
  return base.run(unpaired.ATTACK, known, seed=0, settings=SHORT)


# Keys of the data set's own matter: the inverse of a key that is public works, and fails under a fresh one.


@pytest.mark.parametrize(
  "options", [{}, {"noise_level": 25.0}, {"matrix": "projection"}, {"scheme": "permutation"}]
)
def test_a_public_key_is_learnt_and_a_fresh_one_is_not(options):
  images = digits()
  public, held = images[:900], images[900:1000]
  spec = spec_of(images, **options)
  inverse = learn(spec, public, key_seeds=[3])
  same, fresh = (unpaired.disguise(spec, held, key_seed=key, seed=9) for key in (3, 4))
  nothing = ssim(held, blank(public, 100))
  assert ssim(held, inverse(same)) > 0.9
  assert ssim(held, inverse(fresh)) < nothing + 0.05


def test_from_shuffled_pairs_it_learns_no_more_than_the_mean(monkeypatch):
  """The negative control: the inverse of the very key that the held images are under, learnt from wrong pairs."""
  images = digits()
  public, held = images[:900], images[900:1000]
  spec = spec_of(images)
  seen = unpaired.disguise(spec, held, key_seed=3, seed=9)
  good = unpaired.disguise
  shuffled = lambda spec, images, **keys: good(spec, images[::-1], **keys)  # noqa: E731
  monkeypatch.setattr(unpaired, "disguise", shuffled)
  assert (
    ssim(held, learn(spec, public, key_seeds=[3])(seen)) < ssim(held, blank(public, 100)) + 0.05
  )


def test_encrypted_units_that_recur_are_learnt_under_one_key():
  level = np.random.default_rng(0).integers(0, 3, (600, 2, 2))
  images = (level * 85).repeat(4, 1).repeat(4, 2)[..., None].astype(np.uint8)
  spec = spec_of(images, scheme="aes")
  inverse = learn(spec, images[:500], key_seeds=[3])
  same, fresh = (unpaired.disguise(spec, images[500:], key_seed=key, seed=9) for key in (3, 4))
  error = [float(np.mean((inverse(seen) - images[500:]) ** 2)) for seen in (same, fresh)]
  assert error[0] < 0.1 * images.var() < images.var() < error[1]


def test_many_keys_teach_what_no_key_hides():
  """Rows keep their energy where blocks stay in place."""
  images = digits()
  public, held = images[:900], images[900:1000]
  nothing = ssim(held, blank(public, 100))
  for permute, margin in ((False, (0.1, 1)), (True, (-1, 0.05))):
    spec = spec_of(images, permute=permute, block_size=2)
    inverse = learn(spec, public, key_seeds=range(40))
    fresh = unpaired.disguise(spec, held, key_seed=THEIRS, seed=9)
    assert margin[0] < ssim(held, inverse(fresh)) - nothing < margin[1]


# The attack, and its own controls.


@pytest.mark.parametrize("permute", [True, False])
def test_the_report_says_what_to_expect(permute):
  known, originals = world(digits()[:1200], 1000, permute=permute, block_size=2)
  result = run(known)
  json.dumps(result.diagnostics)
  found = result.diagnostics
  assert found["own_key"]["ssim"] > 0.9
  assert found["fresh_key"]["ssim"] < found["mean"]["ssim"] + 0.05
  assert abs(found["mean"]["ssim"] - ssim(originals, blank(known.public, len(originals)))) < 0.05
  assert found["chosen"] == "many"
  assert abs(ssim(originals, result.images) - found["many_keys"]["ssim"]) < 0.1
  if permute:
    assert "does not carry over" in found["warnings"][0]
  else:
    assert found["many_keys"]["psnr"] > found["mean"]["psnr"] + unpaired._MARGIN
    assert not found["warnings"]


def test_a_control_that_fails_is_told():
  """Noise is not learnt even under the attacker's own key."""
  images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)
  known, _ = world(images, 250, scheme="aes")
  found = run(known).diagnostics
  assert found["own_key"]["psnr"] < found["mean"]["psnr"] + unpaired._MARGIN
  assert "even under the attacker's own key" in found["warnings"][0]


def test_targets_decide_nothing():
  known, _ = world(digits()[:300], 250)
  other = base.Known(known.spec, known.disguised, known.targets[:3] * 0, known.public)
  first, second = (run(k).diagnostics for k in (known, other))
  assert first == second


@pytest.mark.parametrize("name", ["ridge", "_Scaled"])
def test_a_broken_step_is_noticed(monkeypatch, name):
  images = digits()
  public, held = images[:500], images[500:560]
  spec = spec_of(images)
  seen = unpaired.disguise(spec, held, key_seed=3, seed=9)
  assert ssim(held, learn(spec, public, key_seeds=[3])(seen)) > 0.9
  if name == "ridge":
    good = learned.ridge
    broken = lambda seen, wanted, *a: good(seen, wanted[::-1], *a)  # noqa: E731
  else:

    class broken(unpaired._Scaled):
      def __call__(self, numbers):
        return np.sort(super().__call__(numbers), 1)

  monkeypatch.setattr(learned if name == "ridge" else unpaired, name, broken)
  untrained = dataclasses.replace(SHORT, network=learned.Settings(steps=100, rate=0.0))
  assert ssim(held, learn(spec, public, untrained, key_seeds=[3])(seen)) < 0.7


# Keys of the attacker's own, slow twins, odd inputs.


def test_own_keys_are_the_scheme_s_and_never_the_owner_s():
  images = digits()[:4]
  spec = spec_of(images, noise_level=25.0)
  first = unpaired.disguise(spec, images, key_seed=1, seed=2)
  np.testing.assert_array_equal(first, unpaired.disguise(spec, images, key_seed=1, seed=2))
  scheme = schemes.from_spec(spec)
  shape = (4, *scheme.spec.disguised_shape)
  for key_seed, seed in ((2, 2), (1, 3)):
    assert not np.array_equal(first, unpaired.disguise(spec, images, key_seed=key_seed, seed=seed))
  theirs = scheme.make_key(keys.experiment(1).read)
  owner = scheme.export(theirs, images, lambda: np.random.default_rng(2).random(shape, np.float32))
  assert not np.array_equal(first, owner)


def test_the_linear_part_is_ridge_regression():
  rng = np.random.default_rng(0)
  for count, features in ((60, 8), (20, 30)):
    x, y = rng.normal(size=(count, features)), rng.normal(size=(count, 3))
    out = np.arange(count) % 4 == 0
    a, b = x[~out] - x[~out].mean(0), y[~out] - y[~out].mean(0)
    energy = (a**2).sum() / features
    found = []
    for ridge in learned._RIDGES:
      weights = np.linalg.solve(a.T @ a + ridge * energy * np.eye(features), a.T @ b)
      found.append((x - x[~out].mean(0)) @ weights + y[~out].mean(0))
    best = min(found, key=lambda shown: float(np.square(shown - y)[out].sum()))
    predict = learned.ridge(x, y, ~out, out)
    np.testing.assert_allclose(predict(x), best, rtol=1e-3, atol=1e-4)


def test_energies_are_those_of_rows_of_blocks():
  y = np.random.default_rng(0).normal(size=(3, 4, 6, 2)).astype(np.float32)
  pixels, energy = unpaired._numbers({"block_size": 2, "image_shape": [4, 6, 2]}, y)
  expected = [
    [float(np.sqrt((image[r, 2 * c : 2 * c + 2, k] ** 2).mean())) for r in range(4) for c in range(3) for k in range(2)]
    for image in y
  ]  # fmt: skip
  np.testing.assert_allclose(energy, expected, rtol=1e-5)
  np.testing.assert_array_equal(pixels, y)


def test_of_large_images_the_mean_rows_of_blocks_are_seen():
  y = np.random.default_rng(0).normal(size=(2, 64, 96, 1)).astype(np.float32)
  pixels, energy = unpaired._numbers({"block_size": 4, "image_shape": [64, 96, 1]}, y)
  assert pixels.shape == (2, 16 * 96) and energy.shape == (2, 16 * 24)
  np.testing.assert_allclose(pixels[1, 96 + 5], y[1, 4:8, 5, 0].mean(), rtol=1e-5)
  norms = np.sqrt(np.square(y[1, 4:8, 4:8, 0]).mean(1))
  np.testing.assert_allclose(energy[1, 24 + 1], norms.mean(), rtol=1e-5)


def test_large_images_are_estimated_as_small_copies():
  images = fields(0, 260, (72, 64, 1))
  spec = spec_of(images, block_size=8)
  inverse = learn(spec, images[:250], key_seeds=[3])
  own, other = (inverse(unpaired.disguise(spec, images[250:], key_seed=k, seed=9)) for k in (3, 4))
  assert own.shape == (10, 72, 64, 1) and own.dtype == np.float32
  assert psnr(images[250:], own) > chance(images[250:]) + 1 > psnr(images[250:], other)


def test_edges_are_padded_and_colours_kept():
  images = np.random.default_rng(0).integers(0, 256, (60, 10, 13, 3), np.uint8)
  spec = spec_of(images)
  inverse = learn(spec, images, key_seeds=[1, 2])
  estimates = inverse(unpaired.disguise(spec, images[:5], key_seed=1, seed=0))
  assert estimates.shape == (5, 10, 13, 3) and estimates.dtype == np.float32
  assert inverse(np.zeros((0, 12, 16, 3), np.float32)).shape == (0, 10, 13, 3)


@pytest.mark.parametrize("value", [0, 255])
def test_constant_images_are_right(value):
  known, originals = world(np.full((60, 8, 8, 1), value, np.uint8), 50)
  np.testing.assert_allclose(run(known).images, originals, atol=1)


def test_refusals():
  images = digits()[:60]
  with pytest.raises(ValueError, match="learn: needs 10"):
    learn(spec_of(images), images[:9], key_seeds=[1])
  with pytest.raises(ValueError, match="0 keys"):
    learn(spec_of(images), images, key_seeds=[])
  known, _ = world(images, 50)
  for scheme, reason in (
    ("plain", "nothing to invert"),
    ("instahide", "use 'clusters'"),
    ("neuracrypt", "use 'matching'"),
  ):
    spec = {"scheme": scheme, "image_shape": [8, 8, 1]}
    with pytest.raises(ConfigError, match=reason):
      base.run(unpaired.ATTACK, base.Known(spec, known.targets, known.targets), seed=0)
  with pytest.raises(ConfigError, match="needs public"):
    base.run(unpaired.ATTACK, base.Known(known.spec, known.targets, known.targets), seed=0)
  assert (unpaired.ATTACK.level, unpaired.ATTACK.needs) == (1, ("public",))


def test_mnist_under_own_and_fresh_keys(tfds_dir):
  images = sources.load("mnist", "test[:3100]", data_dir=str(tfds_dir)).images
  known, _ = world(images, 3000, noise_level=25.0)
  found = base.run(unpaired.ATTACK, known, seed=0).diagnostics
  assert found["own_key"]["ssim"] > 0.85
  assert max(found[way]["ssim"] for way in ("fresh_key", "many_keys")) < 0.2
