"""The attack on InstaHide: it wins with many encodings, fails on noise, and on MNIST with one each; refusals."""

import dataclasses

import jax
import numpy as np
import pytest

from djax import keys, schemes, sources
from djax.attacks import base
from djax.attacks.instahide import clusters
from djax.audit import scenario
from djax.errors import ConfigError
from djax.ops import metrics

IMAGES = 20
K = 4
ENCODINGS = 40


SHORT = clusters.Settings(steps=400)  # enough for digits


@pytest.fixture(scope="module")
def digits():
  return sources.load("digits", "train")


def encoded(digits, encodings, seed=0, public_k=0):
  """Returns shuffled encodings, mixed labels, and which image each belongs to."""
  scheme = schemes.instahide_scheme(digits.images.shape[1:], classes=10, k=K, public_k=public_k)
  key = scheme.make_key(keys.experiment(seed).read)
  if public_k:
    key = dataclasses.replace(key, public=digits.images[-300:])
  images, labels = digits.images[:IMAGES], digits.labels[:IMAGES].astype(np.int32)
  rngs = jax.random.split(jax.random.key(seed), encodings)
  made = [jax.jit(scheme.disguise)(key, images, labels, rng=rng) for rng in rngs]
  order = np.random.default_rng(seed).permutation(encodings * IMAGES)
  x, y = (
    np.concatenate([np.asarray(part) for part in parts])[order] for parts in zip(*made, strict=True)
  )
  return scheme.spec.to_dict(), x, y, order % IMAGES


def right(originals, found, least=0.95):
  """Returns the share of originals that some found image shows; on 8 x 8 digits SSIM 0.6 is nothing."""
  window = metrics.window(originals.shape)
  every = [
    np.asarray(metrics.ssim(np.broadcast_to(one, found.shape), found, filter_size=window))
    for one in originals.astype(np.float32)
  ]
  return np.mean(np.max(every, 1) >= least)


def recover(digits, x, y, seed=0):
  return clusters.recover(
    x, y, digits.images[IMAGES:], images=IMAGES, k=K, cap=0.65, seed=seed, settings=SHORT
  )


@pytest.mark.slow
def test_noise_gives_nothing_back(digits):
  _, x, y, _ = encoded(digits, 20)
  noise = np.random.default_rng(0).uniform(-1, 1, x.shape).astype(np.float32)
  lost = recover(digits, noise, y)
  assert right(digits.images[:IMAGES], lost.images) == 0 and lost.residual > 0.1


@pytest.mark.slow
def test_many_encodings_give_the_images_back_each_to_its_target(digits):
  spec, x, y, own = encoded(digits, ENCODINGS)
  rows = np.random.default_rng(1).permutation(len(x))[:60]
  known = base.Known(spec, x, x[rows], public=digits.images[IMAGES:], labels=y, encodings=ENCODINGS)
  result = base.run(clusters.ATTACK, known, seed=0, settings=SHORT)
  originals = digits.images[own[rows]].astype(np.float32)
  alike = metrics.ssim(originals, result.images, filter_size=metrics.window(originals.shape))
  assert np.median(np.asarray(alike)) > 0.8
  assert right(digits.images[:IMAGES], result.images) >= 0.8
  others = digits.images[IMAGES : 2 * IMAGES].astype(np.float32)
  assert right(digits.images[:IMAGES], others) <= 0.1  # what other digits score
  assert result.diagnostics["images"] == IMAGES and result.diagnostics["warnings"] == []
  with pytest.raises(ConfigError, match=r"targets among the encodings, 60 of 60 are not"):
    base.run(clusters.ATTACK, dataclasses.replace(known, targets=x[rows] + 1), seed=0)
  for labels in (None, own):
    with pytest.raises(ConfigError, match="needs the mixed labels"):
      base.run(clusters.ATTACK, dataclasses.replace(known, labels=labels), seed=0)
  for count in (None, 0):
    with pytest.raises(ConfigError, match=f"needs the number of encodings .* got {count}"):
      base.run(clusters.ATTACK, dataclasses.replace(known, encodings=count), seed=0)


@pytest.mark.slow
def test_public_images_mixed_in_do_not_help(digits):
  _, x, y, _ = encoded(digits, ENCODINGS, public_k=2)
  held = digits.images[IMAGES:-300]  # none of those mixed in
  options = {"images": IMAGES, "k": K, "cap": 0.65, "seed": 0, "public_k": 2}
  found = clusters.recover(x, y, held, **options, settings=SHORT)
  assert right(digits.images[:IMAGES], found.images, 0.9) >= 0.8
  others = digits.images[IMAGES : 2 * IMAGES].astype(np.float32)
  assert right(digits.images[:IMAGES], others, 0.9) <= 0.2


def test_images_are_shared_out_by_largest_remainders():
  assert clusters._divide(7, np.array([30, 10, 0, 21])).tolist() == [4, 1, 0, 2]
  for counts in np.random.default_rng(0).integers(0, 50, (20, 10)):
    found = clusters._divide(100, counts)
    assert found.sum() == 100 and (abs(found - 100 * counts / counts.sum()) < 1).all()


@pytest.mark.parametrize("encodings", [3, 12])
@pytest.mark.slow
def test_it_looks_for_as_many_images_as_the_setting_has(digits, monkeypatch, encodings):
  """Whatever number of encodings each image has, the attack is told that number."""
  made = scenario.from_source(
    "digits",
    {"scheme": "instahide", "k": K},
    seed=0,
    sizes=scenario.Sizes(private=120, public=300, targets=20, pairs=()),
    encodings=encodings,
  )
  looked_for = []

  def recover(seen, shares, public, *, images, **_):
    looked_for.append(images)
    shape = (images, *seen.shape[1:])
    return clusters.Recovered(
      np.zeros(shape, np.float32), np.zeros(images), np.zeros(len(seen), int), 0
    )

  monkeypatch.setattr(clusters, "recover", recover)
  base.run(clusters.ATTACK, made.known(0), seed=0)
  assert looked_for == [120 // encodings]


def test_what_it_refuses():
  assert "mixes none" in clusters.ATTACK.refuses({"scheme": "rmt"})
  assert clusters.ATTACK.refuses({"scheme": "instahide"}) is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mnist_falls_to_50_encodings_each_and_not_to_one(seed, tfds_dir):
  shares = {}
  for encodings in (50, 1):
    shares[encodings] = attacked(tfds_dir, seed, encodings)
  assert shares[50] >= 0.8 and shares[1] <= 0.5


@pytest.mark.slow
def test_cifar10_falls_to_50_encodings_each(tfds_dir):
  assert attacked(tfds_dir, 0, 50, "cifar10") >= 0.6


@pytest.mark.slow
@pytest.mark.parametrize(("k", "public_k"), [(4, 2), (6, 4)])
def test_mnist_falls_where_public_images_are_mixed_in(k, public_k, tfds_dir):
  assert attacked(tfds_dir, 0, 50, k=k, public_k=public_k) >= 0.8
  assert attacked(tfds_dir, 0, 1, k=k, public_k=public_k) <= 0.5


def attacked(tfds_dir, seed, encodings, source="mnist", k=K, public_k=0):
  made = scenario.from_source(
    source,
    {"scheme": "instahide", "k": k, "public_k": public_k},
    seed=seed,
    sizes=scenario.FULL,
    data_dir=str(tfds_dir),
    encodings=encodings,
  )
  options = {"images": 100, "k": k, "cap": 0.65, "seed": seed, "public_k": public_k}
  found = clusters.recover(made.disguised, made.seen_labels, made.public, **options)
  flat = made.private.reshape(len(made.private), -1)
  originals = np.unique(flat, axis=0).reshape(-1, *made.private.shape[1:])
  return right(originals, found.images, 0.6)
