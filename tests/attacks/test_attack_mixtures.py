"""Mixtures taken apart: parts, totals and images are found where they must be; what public images add is expected."""

import numpy as np
import pytest

from djax.attacks.instahide import mixtures

PIXELS = 200
CLASSES = np.repeat(np.arange(4), 3)


def mixed(draw, count, *, parts=4, total=None, noise=0.0):
  """Returns encodings of 12 random images, the images, and which are in each."""
  found = draw.uniform(-1, 1, (len(CLASSES), PIXELS)).astype(np.float32)
  shares = -np.sort(-draw.dirichlet(np.ones(parts), count), axis=1).astype(np.float32)
  wanted = np.stack(
    [[3 * c + draw.integers(3) for c in draw.permutation(4)[:parts]] for _ in range(count)]
  )
  totals = np.ones(count, np.float32) if total is None else draw.uniform(*total, count)
  private = np.einsum("nk,nkp->np", shares * totals[:, None], found[wanted])
  public = (1 - totals)[:, None] * (0.2 + noise * draw.standard_normal((count, PIXELS)))
  seen = np.abs(private + public).astype(np.float32)
  made = mixtures.Mixtures(seen, shares, CLASSES[wanted], totals.astype(np.float32))
  return made, found, wanted


def crowd(noise):
  return mixtures.Crowd(np.full(PIXELS, 0.2, np.float32), np.full(PIXELS, noise, np.float32))


def test_parts_are_those_that_fit():
  made, found, wanted = mixed(np.random.default_rng(0), 30)
  parts, totals = mixtures.assign(made, found, CLASSES, None)
  heavy = made.shares > 0.15
  assert np.mean(parts[heavy] == wanted[heavy]) > 0.9
  assert (CLASSES[parts] == made.labels).all() and (totals == 1).all()


def test_parts_and_totals_are_found_under_public_images():
  made, found, wanted = mixed(np.random.default_rng(0), 60, parts=2, total=(0.5, 0.9), noise=0.3)
  guessed = made._replace(totals=np.full(60, 0.7, np.float32))
  parts, totals = mixtures.assign(guessed, found, CLASSES, crowd(0.3))
  assert np.mean(parts[:, 0] == wanted[:, 0]) > 0.9
  assert np.median(np.abs(totals - made.totals)) < 0.02
  lost = mixtures.assign(guessed, found, CLASSES, crowd(1.0))[1]  # a wrong spread
  assert np.median(np.abs(lost - made.totals)) > 0.05


@pytest.mark.parametrize("public", [False, True])
def test_images_are_those_that_explain_all_encodings(public):
  draw = np.random.default_rng(0)
  options = {"total": (0.5, 0.9), "noise": 0.3} if public else {}
  made, wanted, parts = mixed(draw, 3000, parts=2, **options)
  begun = np.clip(wanted + draw.normal(0, 0.2, wanted.shape), -1, 1).astype(np.float32)
  around = crowd(0.3) if public else None

  def error(crowd, parts):
    found, residual = mixtures.solve(made, parts, begun, crowd, np.random.default_rng(1))
    return np.median(np.abs(found - wanted)), residual

  right, left = error(around, parts)
  assert right < 0.01 and left < 0.1
  lost, more = error(around, parts[:, ::-1])  # parts in the wrong order
  assert lost > 0.1 and more > 1.5 * left
  if public:
    assert error(None, parts)[0] > 5 * right  # public images forgotten


def test_expected_magnitudes_are_those_of_normal_noise():
  draw = np.random.default_rng(0)
  private = draw.uniform(-0.6, 0.6, (5, PIXELS)).astype(np.float32)
  total = np.linspace(0.2, 0.9, 5, dtype=np.float32)[:, None]
  around = crowd(0.4)
  samples = private + (1 - total) * (0.2 + 0.4 * draw.standard_normal((20000, 5, PIXELS)))
  mean = np.abs(samples).mean(0)
  # 1000 means of 20 000 with a spread below 0.32: five standard errors are 0.012.
  assert np.abs(mixtures._expected(private, total, around) - mean).max() < 0.012
  assert np.abs(mixtures._expected(private, total, crowd(0.3)) - mean).max() > 0.012


def test_what_public_images_add_is_measured():
  draw = np.random.default_rng(0)
  public = draw.uniform(-1, 1, (4000, 6)).astype(np.float32) * np.arange(1, 7, dtype=np.float32) / 6
  assert mixtures.crowd(public, 0) is None
  for count in (1, 2, 4):
    weights = draw.dirichlet(np.ones(count), 20000)
    sums = np.einsum("nk,nkp->np", weights, public[draw.integers(4000, size=(20000, count))])
    found = mixtures.crowd(public, count)
    np.testing.assert_allclose(found.mean, sums.mean(0), atol=0.02)
    np.testing.assert_allclose(found.spread, sums.std(0), rtol=0.03)
