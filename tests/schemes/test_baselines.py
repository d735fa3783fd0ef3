"""InstaHide and NeuraCrypt: encodings against slow twins, what is drawn, keys, refusals, training on digits."""

import copy
import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from scipy import stats

from configs import mnist_instahide, mnist_neuracrypt
from djax import keys, schemes
from djax.errors import ConfigError, NotInvertibleError
from djax.schemes import instahide, secret
from train import __main__ as cli
from train import config as config_lib

SHAPE = (8, 12, 1)
DRAW = np.random.default_rng(0)
IMAGES = DRAW.integers(0, 256, (20, *SHAPE)).astype(np.uint8)
LABELS = (np.arange(20) % 3).astype(np.int32)
RNG = jax.random.key(5)


@pytest.mark.parametrize(
  "module",
  ["schemes.instahide", "schemes.neuracrypt", "attacks", "schemes", "models", "owner.export"],
)
@pytest.mark.slow
def test_every_module_can_be_the_first(module):
  done = subprocess.run([sys.executable, "-c", f"import djax.{module}"], timeout=120)
  assert done.returncode == 0


def mixed(**options):
  scheme = schemes.instahide_scheme(SHAPE, classes=3, **options)
  return scheme, scheme.make_key(keys.experiment(0).read)


def tokens(**options):
  scheme = schemes.neuracrypt_scheme(SHAPE, **{"patch": 4, "hidden": 16, **options})
  return scheme, scheme.make_key(keys.experiment(0).read)


@pytest.mark.parametrize("public_k", [0, 2])
@pytest.mark.slow
def test_an_encoding_is_the_mix_of_what_was_drawn(public_k):
  scheme, key = mixed(public_k=public_k)
  public = DRAW.integers(0, 256, (7, *SHAPE)).astype(np.uint8)
  key = dataclasses.replace(key, public=public)
  found, shares = scheme.encode(key, IMAGES[3], LABELS[3], IMAGES, LABELS, 3, rng=RNG)
  parts = jax.random.split(secret.rng_of(key.seed, RNG), 4)
  weights = np.asarray(instahide.coefficients(parts[0], k=4, cap=0.65))
  rows = [3, *np.asarray(instahide.partners(parts[1], 20, 3, count=3 - public_k))]
  others = np.asarray(jax.random.randint(parts[2], (public_k,), 0, 7))
  expected, wanted = np.zeros(SHAPE), np.zeros(3)
  for weight, row in zip(weights, rows, strict=False):
    expected += weight * (IMAGES[row] / 127.5 - 1)
    wanted[LABELS[row]] += weight
  for weight, row in zip(weights[len(rows) :], others, strict=True):
    expected += weight * (public[row] / 127.5 - 1)
  np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-5)
  np.testing.assert_allclose(shares, wanted / wanted.sum(), atol=1e-5)
  positive = np.mean(np.asarray(found) * expected > 0)
  assert 0.3 < positive < 0.7


def coefficients(count, cap=0.65):
  rngs = jax.random.split(jax.random.key(1), count)
  return np.asarray(jax.vmap(lambda rng: instahide.coefficients(rng, k=4, cap=cap))(rngs))


def test_weights_are_uniform_below_the_cap():
  found = coefficients(4000)
  np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
  assert found.max() <= 0.65 and (found.argmax(1) == 0).all()
  every = np.random.default_rng(2).dirichlet(np.ones(4), 20000)
  right = every[every.max(1) <= 0.65][:4000]
  clipped = np.minimum(every[:4000], 0.65)

  def alike(other):
    return stats.ks_2samp(found[:, 0], other.max(1)).pvalue > 1e-3

  assert alike(right) and not alike(every[:4000]) and not alike(clipped)
  # Behind the largest there is no order.
  assert np.ptp(found[:, 1:].mean(0)) < 0.02


def test_partners_differ_and_are_uniform():
  rngs = jax.random.split(jax.random.key(1), 3000)
  draw = jax.jit(jax.vmap(lambda rng, own: instahide.partners(rng, 6, own, count=3), (0, None)))
  found = np.asarray(draw(rngs, 2))
  assert all(len({2, *row}) == 4 for row in found.tolist())
  counts = np.bincount(found.ravel(), minlength=6)
  assert counts[2] == 0 and stats.chisquare(np.delete(counts, 2)).pvalue > 1e-3
  sets = np.unique(np.sort(found, 1), axis=0, return_counts=True)[1]
  assert len(sets) == 10 and stats.chisquare(sets).pvalue > 1e-3
  biased = np.minimum(found, 4)
  assert stats.chisquare(np.bincount(biased.ravel(), minlength=5)[[0, 1, 3, 4]]).pvalue < 1e-3
  queries = np.asarray(draw(rngs, -1))
  assert set(queries.ravel()) == set(range(6))


@pytest.mark.slow
def test_encodings_follow_from_key_and_rng():
  scheme, key = mixed()
  jitted = jax.jit(lambda key, rng: scheme.disguise(key, IMAGES, LABELS, rng=rng))
  images, shares = jitted(key, RNG)
  again, _ = scheme.disguise(key, IMAGES, LABELS, rng=RNG)
  np.testing.assert_allclose(images, again, atol=1e-5)
  np.testing.assert_allclose(np.asarray(shares).sum(1), 1, atol=1e-5)
  other = scheme.make_key(keys.experiment(1).read)
  for changed in (jitted(key, jax.random.key(6)), jitted(other, RNG)):
    signs = np.sign(changed[0]) == np.sign(images)
    assert 0.4 < signs.mean() < 0.6
    assert not np.allclose(np.abs(changed[0]), np.abs(images), atol=0.05)
  assert scheme.disguise(key, IMAGES, None, rng=RNG)[1] is None


def test_tokens_equal_a_loop_up_to_their_order():
  scheme, key = tokens()
  found, labels = scheme.disguise(key, IMAGES, LABELS, rng=RNG)
  assert found.shape == (20, 6, 1, 16) and labels is LABELS
  *layers, mixer = key.kernels
  for image, encoded in zip(IMAGES[:3], np.asarray(found)[:3, :, 0], strict=True):
    wanted = []
    for position in range(6):
      row, column = divmod(position, 3)
      patch = image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
      token = patch.reshape(-1) / 127.5 - 1
      for kernel in layers:
        token = np.maximum(token @ kernel, 0)
      wanted.append(np.maximum(token + key.positions[position], 0) @ mixer)
    distances = np.abs(np.array(wanted)[:, None] - encoded).max(-1)
    assert sorted(distances.argmin(1)) == list(range(6)) and distances.min(1).max() < 1e-4


def test_the_order_of_tokens_is_uniform():
  scheme, key = tokens()
  rngs = jax.random.split(jax.random.key(3), 1200)
  image = IMAGES[0]
  found = jax.vmap(lambda rng: scheme.disguise(key, image, None, rng=rng)[0])(rngs)[:, :, 0]
  first = np.asarray(np.abs(found[:, :, None] - found[0]).max(-1).argmin(2))
  assert all(len(set(row)) == 6 for row in first.tolist())
  for place in (0, 5):
    assert stats.chisquare(np.bincount(first[:, place], minlength=6)).pvalue > 1e-3
  assert stats.chisquare(np.bincount(np.minimum(first[:, 0], 4), minlength=6)[:5]).pvalue < 1e-3


@pytest.mark.parametrize("made", [mixed, tokens])
def test_keys_stay_secret_and_nothing_goes_back_or_to_disk(made):
  scheme, key = made()
  assert "values hidden" in repr(key) and str(int(key.seed[0])) not in repr(key)
  with pytest.raises(TypeError, match="not pickled"):
    copy.copy(key)
  with pytest.raises(NotInvertibleError, match="Keep the originals"):
    scheme.restore(key, IMAGES)
  with pytest.raises(ConfigError, match="is a baseline"):
    scheme.export(key, IMAGES, None)
  assert schemes.from_spec(scheme.spec.to_dict()).spec == scheme.spec


def test_keys_are_those_of_version_1():
  _, key = mixed()
  assert (
    key.seed.tolist() == np.frombuffer(keys.experiment(0).read("instahide|seed", 8), "<u4").tolist()
  )
  _, key = tokens()
  assert [k.shape for k in key.kernels] == [(16, 16)] * 4 and key.positions.shape == (6, 16)
  assert 0.8 < np.std(np.stack(key.kernels)) / (2 / 16) ** 0.5 < 1.2


def asked(scheme, key, images=IMAGES, labels=LABELS):
  return lambda: scheme.disguise(key, images, labels, rng=RNG)


@pytest.mark.parametrize(
  ("call", "said"),
  [
    (lambda: mixed(k=1), "k must be at least 2"),
    (lambda: mixed(public_k=4), "public_k must be at least 0 and below k=4"),
    (lambda: mixed(cap=0.3), r"cap must lie in \[0.6, 1\], got 0.3"),
    (asked(*mixed(), IMAGES[:3], LABELS[:3]), "at least as many, got 3"),
    (asked(*mixed(), labels=np.ones((20, 3), np.float32)), "class numbers, integers, got float32"),
    (asked(*mixed(public_k=1)), "needs public images in the key, got none"),
    (lambda: tokens(patch=3), "patch must divide both sides .* got patch=3 for 8 x 12"),
    (lambda: tokens(hidden=0), "hidden and depth must be at least 1"),
  ],
)
def test_bad_input_is_one_line(call, said):
  with pytest.raises(ValueError, match=said) as caught:
    call()
  assert "\n" not in str(caught.value)


def test_public_images_of_another_shape_are_refused():
  scheme, key = mixed(public_k=1)
  key = dataclasses.replace(key, public=np.zeros((4, 9, 9, 1), np.uint8))
  with pytest.raises(
    ValueError, match=r"must be \[8, 12, 1\] as the private ones, got \[9, 9, 1\]"
  ):
    scheme.disguise(key, IMAGES, LABELS, rng=RNG)


def small(module, *assignments):
  config = module.get_config()
  tiny = ["data.source=digits", "data.train_split=train[:256]", "data.test_split=test[:64]"]
  tiny += ["train.batch_size=64", "train.epochs=2", "model.width=8", *assignments]
  config_lib.override(config, tiny)
  return config


def test_a_plain_twin_learns_from_one_view_and_sees_patches_as_large():
  twin = config_lib.twin(small(mnist_instahide, "augment.views=2"))
  assert (twin.augment.views, twin.model.stem, twin.disguise.scheme) == (1, "none", "plain")
  assert config_lib.twin(small(mnist_neuracrypt, "disguise.patch=2")).model.patch == 2


def test_more_images_to_mix_than_there_are_end_a_run_in_one_line(tmp_path, capsys):
  few = ["--config.data.train_split=train[:60]", "--config.train.batch_size=20"]
  given = ["--config=mnist_instahide", "--config.data.source=digits", *few]
  code = cli.main([*given, "--config.disguise.k=61", f"--workdir={tmp_path / 'run'}"])
  said = capsys.readouterr().err.splitlines()
  assert code == 2 and "at least as many, got 60" in said[-1]
  assert not any("Traceback" in line for line in said)


@pytest.mark.parametrize(
  ("assignment", "said"),
  [
    ("augment.crop=1", "must not change images with instahide"),
    ("disguise.public_k=1", "public_source must name a source"),
  ],
)
def test_configs_that_cannot_work_are_refused(assignment, said):
  with pytest.raises(ConfigError, match=said):
    config_lib.check(small(mnist_instahide, assignment))
