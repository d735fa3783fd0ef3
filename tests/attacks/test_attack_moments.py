import dataclasses

import numpy as np
import pytest
from helpers.encrypted import figures
from helpers.fields import (
  PRIVATE,
  PUBLIC,
  RHO,
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
from djax.attacks.base import Known, Views
from djax.attacks.common import denoise, statistics
from djax.attacks.rmt import moments, several_views
from djax.host import augment
from djax.ops import blocks

ROUGH, NO_SWEEPS = moments.Settings(smooth=False), moments.Settings(sweeps=0)
QUICK = moments.Settings(network=dataclasses.replace(denoise.USUAL, steps=40))


def case(noise_level=0.0, public=PUBLIC, **options):
  scheme, key = scheme_and_key(permute=False, noise_level=noise_level, **options)
  return scheme, key, known_of(scheme, key, PRIVATE, TARGETS, public)


@pytest.fixture(scope="module")
def plain_case():
  return case()[2]


def test_wins_without_noise(plain_case):
  result = run(plain_case)
  assert psnr(TARGETS, result.images) > WINS
  assert result.diagnostics["warnings"] == [] and not result.diagnostics["smoothed"]


@pytest.mark.parametrize(
  "options", [{"mix": "block", "block_size": 2}, {"per_channel": True}, {"block_size": 2}]
)
def test_wins_for_every_mixing_in_colour(options):
  shape = (8, 12, 3)
  private, targets, public = (fields(s, n, shape) for s, n in ((1, 5000), (2, 30), (3, 5000)))
  scheme, key = scheme_and_key(shape=shape, permute=False, **options)
  result = run(known_of(scheme, key, private, targets, public))
  assert psnr(targets, result.images) > chance(targets) + 7


def test_wins_without_public_images():
  result = run(case(public=None)[2])
  assert psnr(TARGETS, result.images) > WINS
  (window,) = result.diagnostics["windows"]
  assert window["rho"] == pytest.approx(RHO, abs=0.03)


@pytest.mark.parametrize("place", ["before", "after"])
def test_noise_is_the_only_limit_and_smoothing_helps(place):
  scheme, key, known = case(25.0, noise_place=place)
  floor = psnr(TARGETS, np.asarray(scheme.restore(key, known.targets)))
  assert psnr(TARGETS, run(known, settings=QUICK).images) > floor + 1
  assert floor - 2 < psnr(TARGETS, run(known, settings=ROUGH).images) < floor + 0.2


@pytest.mark.slow
def test_a_network_takes_more_noise_off_drawings_than_a_linear_filter():
  private, targets, public = (
    figures(n, seed=s).astype(np.uint8) for s, n in ((1, 2000), (2, 30), (3, 2000))
  )
  scheme, key = scheme_and_key(permute=False, noise_level=100.0)
  result = run(known_of(scheme, key, private, targets, public))
  how = result.diagnostics["denoised"]
  assert how["method"] == "network" and how["validation"]["network"] > how["validation"]["linear"]
  floor = psnr(targets, np.clip(scheme.restore(key, disguise(scheme, key, targets)), 0, 255))
  assert psnr(targets, result.images) > floor + 3


def several(count):
  """Noisy targets with further views: each a shift and perhaps a mirror image, with noise of its own."""
  scheme, key = scheme_and_key(permute=False, noise_level=60.0)
  known = known_of(scheme, key, PRIVATE, TARGETS, PUBLIC)
  options = {"crop": 1, "flip": True}
  draw = np.random.default_rng(9)
  images = np.rint(TARGETS).astype(np.uint8)
  drawn = draw.random((len(images) * count, augment.DRAWS), np.float32)
  others = augment.augment(images.repeat(count, 0), drawn, **options)
  shown = disguise(scheme, key, others, 7).reshape(len(images), count, *known.targets.shape[1:])
  return dataclasses.replace(known, views=Views(shown, options, distinct=False))


@pytest.mark.slow
def test_further_views_lower_the_noise():
  known = several(5)
  one = psnr(TARGETS, run(dataclasses.replace(known, views=None), settings=QUICK).images)
  result = run(known, settings=QUICK)
  assert result.diagnostics["views"] == 6
  assert psnr(TARGETS, result.images) > one + 2
  others = known.views._replace(disguised=np.roll(known.views.disguised, 1, 0))
  assert psnr(TARGETS, run(dataclasses.replace(known, views=others), settings=QUICK).images) < one


@pytest.mark.slow
def test_views_of_large_images_are_not_combined(monkeypatch):
  known = several(2)
  monkeypatch.setattr(several_views, "MOST", 255)
  result = run(known, settings=QUICK)
  assert result.diagnostics["views"] == 1
  assert any("at most 255 values, these have 256" in w for w in result.diagnostics["warnings"])
  one = run(dataclasses.replace(known, views=None), settings=QUICK)
  np.testing.assert_array_equal(result.images, one.images)


def test_views_without_noise_change_nothing(plain_case):
  still = np.repeat(plain_case.targets[:, None], 2, 1)
  known = dataclasses.replace(plain_case, views=Views(still, {"crop": 1}))
  np.testing.assert_array_equal(run(known).images, run(plain_case).images)


def test_gives_nothing_on_random_pixels():
  rng = np.random.default_rng(4)
  private, targets, public = (
    rng.integers(0, 256, (n, *SHAPE)).astype(np.uint8) for n in (4000, 30, 4000)
  )
  scheme, key = scheme_and_key(permute=False)
  result = run(known_of(scheme, key, private, targets, public))
  assert psnr(targets, result.images) < chance(targets) + 0.5


def test_gives_nothing_on_targets_of_another_key(plain_case):
  scheme, other = scheme_and_key(seed=5, permute=False)
  result = run(
    Known(plain_case.spec, plain_case.disguised, disguise(scheme, other, TARGETS), PUBLIC)
  )
  assert psnr(TARGETS, result.images) < chance(TARGETS)


def test_gives_nothing_on_aes(plain_case):
  scheme, key = scheme_and_key("aes", permute=False)
  encrypted = [disguise(scheme, key, images) for images in (PRIVATE, TARGETS)]
  result = run(Known(plain_case.spec, *encrypted, PUBLIC))
  assert psnr(TARGETS, result.images) < chance(TARGETS)


def test_fails_with_a_wrong_sign_rule(plain_case, monkeypatch):
  monkeypatch.setattr(moments, "_signs", lambda x, *_: np.ones(x.mean.shape[::2]))
  assert not psnr(TARGETS, run(plain_case, settings=NO_SWEEPS).images) > WINS


def test_fails_with_transposed_matrices(plain_case, monkeypatch):
  align = moments.align

  def transposed(x, y, **options):
    matrices, diagnostics = align(x, y, **options)
    return matrices.swapaxes(1, 2), diagnostics

  monkeypatch.setattr(moments, "align", transposed)
  assert not psnr(TARGETS, run(plain_case).images) > WINS


def test_close_eigenvalues_need_the_sweeps():
  """Digits have many still pixels at the edge: eigenvectors of equal eigenvalues are arbitrary."""
  from djax import sources

  images = sources.load("digits", "train").images
  private, public, targets = images[::2], images[1::2], sources.load("digits", "test").images[:50]
  scheme, key = scheme_and_key(shape=(8, 8, 1), permute=False, mix="block")
  known = known_of(scheme, key, private, targets, public)
  result = psnr(targets, run(known).images)
  assert result > chance(targets) + 3
  assert psnr(targets, run(known, settings=NO_SWEEPS).images) < result - 1


def test_statistics_of_another_kind_give_a_warning(plain_case):
  other = fields(9, 2000, rho=0.2)
  result = run(Known(plain_case.spec, plain_case.disguised, plain_case.targets, other))
  assert any("covariances stay unexplained" in w for w in result.diagnostics["warnings"])


def test_estimated_matrices_are_the_keys(plain_case):
  _, key = scheme_and_key(permute=False)
  matrices, _ = moments.estimate_matrices(plain_case)
  np.testing.assert_allclose(matrices, key.matrices, atol=0.2)
  np.testing.assert_allclose(
    matrices @ matrices.swapaxes(1, 2), np.tile(np.eye(4), (16, 1, 1)), atol=1e-6
  )


def test_large_images_are_taken_in_windows(plain_case):
  result = run(plain_case, settings=moments.Settings(window=128))
  assert len(result.diagnostics["windows"]) == 4
  assert psnr(TARGETS, result.images) > chance(TARGETS) + 10


def test_padded_images():
  shape = (10, 11, 1)
  private, targets, public = (fields(s, n, shape) for s, n in ((1, 3000), (2, 20), (3, 3000)))
  scheme, key = scheme_and_key(shape=shape, permute=False)
  result = run(known_of(scheme, key, private, targets, public))
  assert result.images.shape == (20, *shape)
  assert psnr(targets, result.images) > chance(targets) + 5


@pytest.mark.parametrize("public", [True, False])
def test_constant_images_do_not_crash(public):
  still = np.full((50, *SHAPE), 90, np.uint8)
  scheme, key = scheme_and_key(permute=False)
  result = run(known_of(scheme, key, still, still[:3], still if public else None))
  assert any("disguised images do not vary" in w for w in result.diagnostics["warnings"])
  assert any("public images do not vary" in w for w in result.diagnostics["warnings"]) == public
  assert np.isfinite(result.images).all()


def test_few_public_images_give_a_warning():
  result = run(case(public=PUBLIC[:95])[2])
  assert [w for w in result.diagnostics["warnings"] if "95 public images are few for 96" in w]
  assert run(case(public=PUBLIC[:96])[2]).diagnostics["warnings"] == []


@pytest.mark.parametrize(
  ("name", "options", "hint"),
  [
    ("rmt", {"matrix": "projection", "permute": False}, "use ica"),
    ("rmt", {}, "placement"),
    ("permutation", {}, "has none"),
    ("aes", {}, "has none"),
  ],
)
def test_refusals(name, options, hint):
  scheme, key = scheme_and_key(name, **options)
  with pytest.raises(errors.ConfigError, match=hint):
    run(known_of(scheme, key, PRIVATE[:2], TARGETS[:2], PUBLIC[:2]))


LAYOUTS = [statistics.Layout(2, 3, 2, 3, kind) for kind in ("rows", "channel", "block", "pixels")]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.groups)
def test_units_are_what_the_matrices_multiply(layout):
  images = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
  units = layout.units(images)
  cut = np.asarray(blocks.blockify(images, block_size=2))  # [B, P, r, k, C]
  for p in range(6):
    block = cut[:, p]
    views = {
      "rows": [(p, [block[:, r, :, c] for r in range(2) for c in range(3)])],
      "channel": [(p * 3 + c, [block[:, r, :, c] for r in range(2)]) for c in range(3)],
      "block": [(p, [block.reshape(2, -1)])],
      "pixels": [(p, list(block.reshape(2, -1, 1).swapaxes(0, 1)))],
    }
    for group, expected in views[layout.groups]:
      np.testing.assert_array_equal(units[:, group], np.stack(expected, 1))
  np.testing.assert_array_equal(layout.images(units), images)


def two_moments(layout):
  rng = np.random.default_rng(1)
  a, b = (200 + rng.normal(size=(40, 4, 6, 3)).cumsum(1) for _ in range(2))
  return [statistics.measure(layout, x.astype(np.float32), chunk=7) for x in (a, b)], a


@pytest.mark.parametrize("layout", LAYOUTS[:3], ids=lambda layout: layout.groups)
def test_moments_and_their_products_agree_with_loops(layout):
  (x, y), images = two_moments(layout)
  flat = layout.units(images).reshape(40, -1)
  np.testing.assert_allclose(x.mean.ravel(), flat.mean(0), rtol=1e-6)
  np.testing.assert_allclose(x.covariance, np.cov(flat.T, bias=True), atol=1e-4)
  groups, views, n = layout.shape
  matrices = np.linalg.qr(np.random.default_rng(2).normal(size=(groups, n, n)))[0]
  at = lambda m, k, v, l, w: m.covariance.reshape(groups, views, n, groups, views, n)[k, v, :, l, w]  # noqa: E731, E741
  expected = np.zeros((groups, n, n))
  inner = np.zeros((groups, n, n))
  for k in range(groups):
    for v in range(views):
      inner[k] += at(x, k, v, k, v) / views
      expected[k] += np.outer(x.mean[k, v], y.mean[k, v])
      for other in range(groups):
        for w in range(views):
          expected[k] += at(x, k, v, other, w) @ matrices[other] @ at(y, k, v, other, w).T
  np.testing.assert_allclose(statistics.between(x, y, matrices), expected, rtol=1e-4)
  np.testing.assert_allclose(statistics.within(x), inner, rtol=1e-5)
  turned = statistics.transform(x, matrices)
  measured = np.einsum("bgvi,gij->bgvj", layout.units(images), matrices).reshape(40, -1)
  np.testing.assert_allclose(turned.covariance, np.cov(measured.T, bias=True), atol=1e-3)
  np.testing.assert_allclose(statistics.norms(turned), statistics.norms(x), atol=1e-3)


CIFAR = [
  # disguised, public, block size, noise level, least dB
  (20000, 10000, 4, 0, 40),
  (20000, 10000, 4, 25, 29),
  (12000, 0, 4, 25, 27),
  (1000, 0, 2, 25, 22),
]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "public", "block_size", "noise_level", "least"), CIFAR)
def test_cifar10(tfds_dir, count, public, block_size, noise_level, least):
  from djax import sources

  images = sources.load("cifar10", "train", data_dir=str(tfds_dir)).images
  targets = sources.load("cifar10", "test[:200]", data_dir=str(tfds_dir)).images
  scores = []
  for seed in range(3):
    scheme, key = scheme_and_key(
      seed=seed, shape=(32, 32, 3), block_size=block_size, permute=False, noise_level=noise_level
    )
    others = images[30000 : 30000 + public] if public else None
    known = known_of(scheme, key, images[:count], targets, others)
    scores.append(psnr(targets, run(known, settings=ROUGH).images))
  assert np.median(scores) > least
