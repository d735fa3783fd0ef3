"""The measurement of train/experiments/views.py on small images, and what averaging must and must not gain."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.fresh import ROOT

from djax.attacks.common import denoise
from djax.attacks.common import views as registered
from djax.attacks.rmt import placement, several_views
from djax.audit import scenario
from djax.ops import augment, metrics
from train.experiments import views

pytestmark = pytest.mark.slow  # they attack sets of views

DOCS = ROOT / "docs"
SIDE, NOISE = 8, 20.0
DIGITS = views.Setting(
  "digits",
  "digits",
  {"scheme": "rmt", "block_size": 4, "noise_level": 50.0, "permute": True},
  {"crop": 1},
)
SMALL = views.Plan(scenario.Sizes(1000, 500, 40, ()), (1, 4), (0,))


def smooth_images(count, seed=0):
  """Random waves of two colours: smooth, all different."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:SIDE, :SIDE] / SIDE
  u = rng.uniform(-1, 1, (count, 3, 2))[:, :, :, None, None]
  images = 128 + 50 * u[:, 0] * np.sin(3 * u[:, 1] * y + 2 * x) + 40 * u[:, 2] * x
  return np.moveaxis(images, 1, -1).astype(np.float32)


def still(count, number):
  places = np.stack(np.mgrid[:SIDE, :SIDE], -1).astype(np.float32)
  return np.broadcast_to(places, (count, number, SIDE, SIDE, 2))


def noisy(images, number, seed=1):
  """Returns copies ``[t, K, H, W, C]`` with noise of their own."""
  rng = np.random.default_rng(seed)
  shape = (len(images), number, *images.shape[1:])
  return (images[:, None] + rng.normal(0, NOISE, shape)).astype(np.float32)


def flat_prior(deviation=1e4):
  """Knows nothing: every image is as likely, so that nothing is smoothed."""
  size = SIDE * SIDE * 2
  return several_views.Prior(
    np.full(size, 128, np.float32),
    np.full(size, deviation, np.float32),
    np.eye(size, dtype=np.float32),
  )


def db(images, estimates):
  return float(np.median(metrics.psnr(jnp.asarray(images), jnp.asarray(estimates))))


@pytest.mark.parametrize("number", [2, 4, 8])
def test_aligned_copies_gain_what_statistics_says(number):
  images = smooth_images(60)
  copies = noisy(images, number)
  one = several_views.combine(copies[:, :1], still(60, 1), flat_prior(), NOISE**2)
  all_ = several_views.combine(copies, still(60, number), flat_prior(), NOISE**2)
  assert db(images, one) == pytest.approx(20 * np.log10(255 / NOISE), abs=0.3)
  assert db(images, all_) - db(images, one) == pytest.approx(10 * np.log10(number), abs=0.3)
  np.testing.assert_allclose(all_, np.clip(copies.mean(1), 0, 255), atol=0.05)


def test_views_of_different_images_gain_nothing():
  images = smooth_images(60)
  copies = noisy(images, 4)
  kind = several_views.prior(smooth_images(500, seed=2))
  one = several_views.combine(copies[:, :1], still(60, 1), kind, NOISE**2)
  strangers = np.concatenate([copies[:, :1], np.roll(copies, 7, axis=0)[:, 1:]], axis=1)
  found = several_views.register(strangers[:, 0], strangers[:, 1:], {"crop": 1, "flip": True})
  places = np.concatenate([still(60, 1), found], axis=1)
  mixed = several_views.combine(strangers, places, kind, NOISE**2)
  assert db(images, mixed) < db(images, one) - 1
  own = several_views.combine(copies, still(60, 4), kind, NOISE**2)
  assert db(images, own) > db(images, one) + 2


def test_one_view_that_lies_still_is_combined_as_smooth_does():
  kind = several_views.prior(smooth_images(500, seed=2))
  noisy = smooth_images(60) + np.random.default_rng(0).normal(0, NOISE, (60, SIDE, SIDE, 2))
  noisy = noisy.astype(np.float32)
  found = several_views.smooth(noisy, kind, NOISE**2)
  slow = several_views.combine(noisy[:, None], still(60, 1), kind, NOISE**2)
  np.testing.assert_allclose(found, slow, atol=0.05)


def test_register_finds_shifts_mirrors_and_warps():
  images = smooth_images(20)
  moves = [(-1, 1, False), (2, 0, True), (0, -2, True), (1, 1, False)]
  ways = registered.moves((SIDE, SIDE, 2), {"crop": 2, "flip": True})
  which = [np.flatnonzero((ways.by == (d, a)).all(1))[int(mirror)] for d, a, mirror in moves]
  maps = np.stack(np.divmod(ways.shown[which], SIDE), -1).reshape(-1, SIDE, SIDE, 2)
  shifted = np.stack([images[:, m[..., 0], m[..., 1]] for m in maps], axis=1)
  found = several_views.register(images, shifted, {"crop": 2, "flip": True})
  again = np.stack(
    [
      [image[p[..., 0].astype(int), p[..., 1].astype(int)] for p in places]
      for image, places in zip(images, found, strict=True)
    ]
  )
  np.testing.assert_array_equal(again, shifted)
  assert (found == maps).mean() > 0.95
  assert (several_views.register(images, shifted, {"crop": 1}) == maps).mean() < 0.9


def test_of_one_view_it_is_the_attack_itself_and_more_views_help(monkeypatch):
  """But for the network against noise, which would hide what views are worth."""
  linear = lambda estimates, *_, **__: (np.clip(estimates["linear"], 0, 255), {})  # noqa: E731
  monkeypatch.setattr(denoise, "improve", linear)
  attacked = scenario.from_source(DIGITS.source, DIGITS.disguise, seed=0, sizes=SMALL.sizes)
  alone = placement.attack(attacked.known(0), seed=0, progress=lambda *_: None).images
  wanted = db(attacked.private[: attacked.targets].astype(np.float32), np.clip(alone, 0, 255))
  one, four = views.measure(SMALL, [DIGITS])["runs"]
  assert one["psnr"] == pytest.approx(wanted, abs=0.02)
  assert one["registered"] is None
  assert four["registered"] > 0.9
  assert 3 < four["psnr"] - one["psnr"] < 6.5


def test_register_finds_warps_that_no_shift_makes():
  rng = np.random.default_rng(4)
  y, x = np.mgrid[:20, :20]
  spots = rng.uniform(5, 14, (6, 4, 2))[..., None, None]
  images = 200 * np.exp(-((y - spots[:, :, 0]) ** 2 + (x - spots[:, :, 1]) ** 2) / 12).sum(1)
  images = images[..., None].astype(np.float32)
  options = {"crop": 1, "rotate": 12.0, "scale": 0.1, "shear": 0.1}
  make = jax.jit(jax.vmap(functools.partial(augment.view, **options), (0, None, None)))
  ramp = np.broadcast_to(np.stack([y, x], -1).astype(np.float32), (6, 20, 20, 2))
  others, truth = (
    np.stack([make(what, jax.random.key(5), number) for number in (1, 2, 3)], axis=1)
    for what in (images, ramp)
  )

  def missed(found):
    seen = others[..., 0] > 20  # what lies in the dark cannot be placed
    return np.linalg.norm(found - truth, axis=-1)[seen].mean()

  fitted = missed(several_views.register(images, others, options))
  assert fitted < 0.1
  assert missed(several_views.register(images, others, {"crop": 1})) > 5 * fitted


def made_up(title, seed, count, psnr):
  registered = 0.5 if count > 1 else None
  row = {"psnr": psnr, "ssim": 0.9, "registered": registered}
  return {"title": title, "seed": seed, "views": count, **row}


def test_the_page_shows_medians_over_keys():
  runs = [
    made_up("some", seed, count, psnr)
    for seed, single in enumerate((20.0, 22.0, 30.0))
    for count, psnr in ((1, single), (4, single + 3 + seed))
  ]
  sizes = {"private": 11, "public": 12, "targets": 13, "pairs": []}
  text = views.page({"sizes": sizes, "runs": runs})
  assert "| some | 1 | 22.0 | +0.0 | 0.900 |  |" in text
  assert "|  | 4 | 26.0 | +4.0 | 0.900 | 50% |" in text
  assert "3 keys; 11 disguised images and 12 public ones" in text


def test_the_stored_page_is_that_of_the_stored_figures():
  measured = json.loads((DOCS / "views.json").read_text())
  assert (DOCS / "views.md").read_text() == views.page(measured)
