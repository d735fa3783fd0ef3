"""The network for units: what it may look at, and that it learns from it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from djax import schemes
from train.models import units
from train.models.units import UnitMlp

SMALL = {"classes": 3, "width": 8, "buckets": 64, "features": 4}
SHAPES = [((8, 12, 1), 4, 16), ((8, 16, 3), 8, 16), ((8, 8, 2), 4, 2), ((6, 4, 1), 2, 1)]


def random_images(count, shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.float32)


def init(model, images):
  return model.init(jax.random.key(0), jnp.asarray(images), train=False)


def counted(model, variables, images, rng=1):
  """One forward pass as in training: logits, and variables with new statistics."""
  logits, updated = model.apply(
    variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(rng)}
  )
  return logits, {**variables, **updated}


def slow_buckets(image, block_size, unit_pixels, buckets):
  """The hash by loops over Python integers."""
  height, width, channels = image.shape
  found = []
  for top in range(0, height, block_size):
    for left in range(0, width, block_size):
      block = image[top : top + block_size, left : left + block_size]
      found.append([])
      for channel in range(channels):
        pixels = [int(v) for v in block[:, :, channel].ravel()]
        for start in range(0, len(pixels), unit_pixels):
          mixed = 0
          for i, pixel in enumerate(pixels[start : start + unit_pixels]):
            mixed = (mixed + pixel * 0x9E3779B1 ** (i + 1)) % 2**32
          mixed ^= mixed >> 16
          mixed = mixed * 0x85EBCA6B % 2**32
          mixed ^= mixed >> 13
          found[-1].append(mixed % buckets)
  return found


@pytest.mark.parametrize(("shape", "block_size", "unit_pixels"), SHAPES)
def test_buckets_equal_loops(shape, block_size, unit_pixels):
  images = random_images(2, shape)
  got = units._buckets(jnp.asarray(images), block_size, unit_pixels, 1000)
  assert got.dtype == jnp.int32
  want = [slow_buckets(image, block_size, unit_pixels, 1000) for image in images]
  np.testing.assert_array_equal(got, want)


def test_one_changed_byte_changes_one_bucket():
  images = np.repeat(random_images(1, (8, 8, 1)), 17, axis=0)
  for i in range(16):
    images[i + 1, 4 + i // 4, i % 4, 0] = (images[0, 4 + i // 4, i % 4, 0] + 1) % 256
  found = np.asarray(units._buckets(jnp.asarray(images), 4, 16, 2**31))[..., 0]
  others = found != found[0]
  np.testing.assert_array_equal(others[1:], [[False, False, True, False]] * 16)
  assert len(set(found[:, 2])) == 17


@pytest.mark.parametrize(("shape", "block_size", "unit_pixels"), SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits(shape, block_size, unit_pixels, dtype):
  model = UnitMlp(**SMALL, block_size=block_size, unit_pixels=unit_pixels, dtype=dtype)
  images = random_images(5, shape)
  variables = init(model, images)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
  logits, variables = counted(model, variables, images)
  assert (logits.shape, logits.dtype) == ((5, 3), jnp.float32)
  assert np.isfinite(model.apply(variables, images, train=False)).all()
  np.testing.assert_array_equal(
    model.apply(variables, images, train=False),
    model.apply(variables, images.astype(np.uint8), train=False),
  )


def test_equal_units_share_a_vector_wherever_they_are():
  model = UnitMlp(**SMALL, dropout=0.0, unit_dropout=0.0)
  image = random_images(1, (4, 8, 1))
  variables = init(model, image)
  assert variables["params"]["Embed_0"]["embedding"].shape == (64, 4)
  one = variables["batch_stats"]["counts"]
  _, variables = counted(model, variables, np.concatenate([image, image[:, :, [4, 5, 6, 7] * 2]]))
  counts = variables["batch_stats"]["counts"] - one
  right = int(units._buckets(jnp.asarray(image), 4, 16, 64)[0, 1, 0])
  assert counts[right] == 3
  assert counts.sum() == 4


def test_each_position_has_a_table_where_it_has_a_key():
  model = UnitMlp(**SMALL, shared=False)
  image = np.tile(random_images(1, (4, 4, 1)), (1, 1, 2, 1))
  variables = init(model, image)
  assert variables["params"]["Embed_0"]["embedding"].shape == (2 * 64, 4)
  _, variables = counted(model, variables, image)
  counts = variables["batch_stats"]["counts"].reshape(2, 64)
  np.testing.assert_array_equal(counts.sum(axis=1), [1, 1])
  np.testing.assert_array_equal(counts[0], counts[1])


def test_rare_units_are_all_the_same():
  model = UnitMlp(**{**SMALL, "buckets": 2**12}, min_rate=0.5, unit_dropout=0.0)
  often, once, never = random_images(3, (4, 4, 1))
  variables = init(model, often[None])
  _, variables = counted(model, variables, np.stack([often, often, once, often]))
  assert variables["batch_stats"]["images"] == 4
  logits = model.apply(variables, np.stack([often, once, never]), train=False)
  np.testing.assert_array_equal(logits[1], logits[2])
  assert np.abs(logits[0] - logits[1]).max() > 1e-4


def test_dropped_units_are_unknown_ones_but_never_the_background():
  model = UnitMlp(**{**SMALL, "buckets": 2**12}, dropout=0.0, unit_dropout=0.999)
  background, other = random_images(2, (4, 4, 1))
  images = np.stack([background] * 3 + [other] * 2)
  logits, _ = counted(model, init(model, images), images)
  np.testing.assert_allclose(logits[0], logits[1], atol=1e-6)
  kept, _ = counted(model.clone(unit_dropout=0.0), init(model, images), images)
  # Batch norm makes both two points; only the vectors behind them differ.
  assert np.isfinite(kept).all()
  assert np.abs(logits[0] - logits[3]).max() > 1e-4


def test_the_facts_come_from_the_disguise():
  spec = schemes.aes_scheme((28, 28, 1), block_size=8, unit_pixels=4, position_keys=True).spec
  facts = UnitMlp.from_spec(spec.to_dict())
  assert facts == {"block_size": 8, "unit_pixels": 4, "shared": False}
  with pytest.raises(KeyError, match="unit_pixels"):
    UnitMlp.from_spec(schemes.permutation_scheme((28, 28, 1), block_size=4).spec.to_dict())
  assert UnitMlp.standardised is False


def test_units_must_fit_the_block():
  with pytest.raises(ValueError, match="block_size=6 with unit_pixels=16"):
    init(UnitMlp(**SMALL, block_size=6), random_images(1, (12, 12, 1)))


def test_learns_which_units_are_where():
  words = random_images(6, (4, 4, 1))
  rng = np.random.default_rng(0)
  order = rng.integers(0, 6, (256, 4))
  order[:, 3] = 0
  labels = jnp.asarray((order[:, 0] + order[:, 1]) % 3)
  cut = words[order].reshape(256, 2, 2, 4, 4, 1)
  images = jnp.asarray(cut.swapaxes(2, 3).reshape(256, 8, 8, 1))
  model = UnitMlp(classes=3, width=64, buckets=256, features=8, dropout=0.1, unit_dropout=0.05)
  variables = init(model, images)
  params, stats = variables["params"], variables["batch_stats"]
  optimizer = optax.adamw(1e-2)

  @jax.jit
  def step(params, stats, opt_state, rng):
    def loss_of(params):
      variables = {"params": params, "batch_stats": stats}
      apply = functools.partial(model.apply, variables, images, train=True)
      logits, updated = apply(mutable=["batch_stats"], rngs={"dropout": rng})
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean(), updated["batch_stats"]

    gradients, stats_ = jax.grad(loss_of, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), stats_, opt_state

  opt_state = optimizer.init(params)
  for i in range(60):
    params, stats, opt_state = step(params, stats, opt_state, jax.random.key(i))
  logits = model.apply({"params": params, "batch_stats": stats}, images, train=False)
  assert (logits.argmax(axis=-1) == labels).mean() > 0.95
