import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from djax import keys, schemes
from djax.disguised import quantise
from djax.disguised.quantise import Quantiser
from djax.errors import ConfigError
from djax.host import samplers

RMT = {"scheme": "rmt", "image_shape": [8, 8, 1], "block_size": 4}
KINDS = {
  "rows": {},
  "rows of 2": {"block_size": 2},
  "projection": {"matrix": "projection"},
  "block": {"mix": "block", "image_shape": [8, 8, 3], "block_size": 2},
  "block projection": {"mix": "block", "matrix": "projection", "block_size": 2},
  "noise before": {"noise_level": 100.0},
  "noise after": {"noise_level": 100.0, "noise_place": "after", "matrix": "projection"},
}


# The exact disguise and the exact way back, in float64, straight from docs/format.md and docs/key-format.md.


def grid(images, b):
  """``[B, P, b, b, C]``."""
  batch, height, width, channels = images.shape
  cut = images.reshape(batch, height // b, b, width // b, b, channels).transpose(0, 1, 3, 2, 4, 5)
  return cut.reshape(batch, -1, b, b, channels)


def ungrid(blocks, shape):
  batch, _, b, _, channels = blocks.shape
  height, width = shape[:2]
  cut = blocks.reshape(batch, height // b, width // b, b, b, channels).transpose(0, 1, 3, 2, 4, 5)
  return cut.reshape(batch, height, width, channels)


def multiplied(blocks, matrices, mix):
  if mix == "rows":
    return np.einsum("zprkc,pkl->zprlc", blocks, matrices)
  flat = blocks.reshape(*blocks.shape[:2], -1)
  return np.einsum("zpk,pkl->zpl", flat, matrices).reshape(blocks.shape)


def fixed_order(blocks, matrices, mix):
  """The disguise as it is stored: float32, products summed from the first to the last."""
  x = blocks if mix == "rows" else blocks.reshape(*blocks.shape[:2], 1, -1, 1)
  x, m = x.astype(np.float32), matrices.astype(np.float32)
  y = None
  for k in range(m.shape[-1]):
    product = x[..., k : k + 1, :] * m[None, :, None, k, :, None]
    y = product if y is None else y + product
  assert y.dtype == np.float32
  return y.reshape(blocks.shape)


def complete(kind):
  """The complete spec of a kind, and its scheme."""
  scheme = schemes.from_spec({**RMT, **KINDS[kind]})
  return scheme.spec.to_dict(), scheme


def matrices_of(spec):
  """Secret matrices in float64; the last one is the worst: a column that is 1 / sqrt(n) all along."""
  b, (height, width, channels) = spec["block_size"], spec["image_shape"]
  positions = height // b * (width // b)
  n = b if spec["mix"] == "rows" else b * b * channels
  draw = samplers.haar if spec["matrix"] == "orthogonal" else samplers.invertible
  streams = [samplers.Words(keys.experiment(3).read, f"test|{p}") for p in range(positions)]
  found = draw(streams, n)
  # The reflection that sends the first axis to (1, ..., 1) / sqrt(n).
  v = np.eye(n)[0] - 1 / math.sqrt(n)
  worst = np.eye(n) - 2 * np.outer(v, v) / (v @ v)
  if spec["matrix"] == "projection":
    worst *= np.where(np.arange(n) == 0, 2.0, 0.5)  # singular values at both ends of the range
  found[-1] = worst
  return found


def originals_of(spec, matrices, count=150):
  """Random images, images of 0 and 255 alone, all black, all white, and those that drive each output furthest."""
  rng = np.random.default_rng(5)
  shape, b = tuple(spec["image_shape"]), spec["block_size"]
  values = [
    rng.integers(0, 256, (count, *shape)),
    255 * rng.integers(0, 2, (count, *shape)),
    np.zeros((1, *shape)),
    np.full((1, *shape), 255),
  ]
  n = matrices.shape[-1]
  for column, sign in itertools.product(range(n), (1, -1)):
    extreme = 255.0 * (sign * matrices[:, :, column] > 0)  # [P, n]
    if spec["mix"] == "rows":
      extreme = np.repeat(extreme[:, None, :, None], b, 1).repeat(shape[2], 3)
    values.append(ungrid(extreme.reshape(1, len(matrices), b, b, shape[2]), shape))
  return np.concatenate(values).astype(np.float64)


def noise_of(spec, shape):
  """Noise over [0, N), its ends included, in float64 of float32 values."""
  u = np.random.default_rng(6).random(shape, np.float32)
  u[: len(u) // 3] = np.where(u[: len(u) // 3] < 0.5, 0, np.float32(1 - 2**-24))
  return (np.float32(spec["noise_level"]) * u).astype(np.float64)


def stored_as(computed, dtype, spec):
  """What is stored, dequantised, and the quantiser."""
  b = spec["block_size"]
  if dtype == "float16":
    return computed.astype(np.float16).astype(np.float32), None
  if dtype == "float32":
    return computed, None
  cut = grid(computed, b)
  quantiser = quantise.quantiser_for(cut.min((0, 2, 3, 4)), cut.max((0, 2, 3, 4)))
  q = quantise.quantise(computed, quantiser, block_size=b)
  return quantise.dequantise(q, quantiser, block_size=b), quantiser


@pytest.mark.parametrize("dtype", quantise.DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_bounds_hold_for_every_image_and_are_not_idle(kind, dtype):
  spec, scheme = complete(kind)
  exact_matrices = matrices_of(spec)
  originals = originals_of(spec, exact_matrices)
  noise = noise_of(spec, originals.shape)
  before = spec["noise_place"] == "before"
  b, mix, level = spec["block_size"], spec["mix"], np.float32(spec["noise_level"])
  drawn = grid(noise, b)
  x = grid(originals, b) + (drawn if before else 0)
  exact = multiplied(x, exact_matrices, mix) + (0 if before else drawn)
  x32 = grid(originals, b).astype(np.float32)
  if before:
    x32 = x32 + drawn.astype(np.float32)
  y32 = fixed_order(x32, exact_matrices, mix)
  if not before:
    y32 = y32 + drawn.astype(np.float32)
  shape = tuple(spec["image_shape"])
  values, quantiser = stored_as(ungrid(y32, shape), dtype, spec)
  bounds = quantise.bounds(spec, dtype, quantiser)

  stored = abs(values - ungrid(exact, shape)).max()
  assert stored <= bounds.stored
  key = schemes.Key(
    perm=np.arange(len(exact_matrices), dtype=np.int32), matrices=exact_matrices.astype(np.float32)
  )
  back = np.asarray(scheme.restore(key, values), np.float64)
  # What noise that is known exactly would leave: the rest is the error of arithmetic and storage.
  off = drawn - level / 2
  effect = off if before else multiplied(off, np.linalg.inv(exact_matrices), mix)
  restored = abs(back - originals - ungrid(effect, shape)).max()
  assert restored <= bounds.restored
  assert abs(effect).max() <= bounds.noise
  assert abs(back - originals).max() <= bounds.restored + bounds.noise
  # No idle talk: the worst case is within a factor of 20 (of 120, where n roundings in float32 seldom conspire).
  idle = 120 if dtype == "float32" else 20
  assert stored >= bounds.stored / idle
  assert restored >= bounds.restored / idle
  if level:
    assert abs(effect).max() >= bounds.noise / (1.01 if before else 3)
  else:
    assert bounds.noise == 0


def test_the_brute_force_sees_a_bound_that_is_too_small():
  """Half of the bound of uint8 would not hold."""
  spec, _ = complete("rows")
  matrices = matrices_of(spec)
  exact = ungrid(multiplied(grid(originals_of(spec, matrices), 4), matrices, "rows"), (8, 8, 1))
  values, quantiser = stored_as(exact.astype(np.float32), "uint8", spec)
  assert abs(values - exact).max() > quantise.bounds(spec, "uint8", quantiser).stored / 2


def test_bounds_of_permutation():
  spec = {"scheme": "permutation", "image_shape": [4, 4, 1], "block_size": 2}
  assert quantise.bounds(spec, "uint8", None) == quantise.Bounds(0, 0, 0)
  assert quantise.bounds(spec, "float32", None) == quantise.Bounds(0, 0, 0)
  bounds = quantise.bounds(spec, "float16", None)
  values = np.random.default_rng(0).uniform(0, 255, 10_000).astype(np.float32)
  found = abs(values.astype(np.float16).astype(np.float64) - values).max()
  assert bounds.stored / 1.01 < found <= bounds.stored == bounds.restored == 1 / 16
  low, high = np.full(4, 0, np.float32), np.full(4, 255, np.float32)
  bounds = quantise.bounds(spec, "uint8", quantise.quantiser_for(low, high))
  assert 0.5 <= bounds.stored == bounds.restored < 0.501


@pytest.mark.parametrize(
  ("unit", "salt", "expected"),
  [(16, 0.0, (0, 0, 0)), (16, 0.1, (0, 0, 255)), (2, 0.0, (0, None, 0)), (1, 0.1, (0, None, 255))],
)
def test_bounds_of_aes(unit, salt, expected):
  spec = {"scheme": "aes", "image_shape": [4, 4, 1], "unit_pixels": unit, "salt_pepper": salt}
  assert quantise.bounds(spec, "uint8", None) == quantise.Bounds(*expected)


def test_float16_is_refused_where_it_could_overflow():
  options = {"mix": "block", "image_shape": [32, 32, 3], "block_size": 32, "matrix": "projection"}
  spec = schemes.from_spec({**RMT, **options}).spec.to_dict()
  exact = quantise.bounds(spec, "float32", None).stored
  # Values reach 255 * sqrt(3072) * 2 = 28267, and half a step of float16 from 16384 on is 8.
  assert quantise.bounds(spec, "float16", None).stored - exact == pytest.approx(8)
  spec["noise_level"] = 400.0
  with pytest.raises(
    ConfigError, match=r"float16 must hold values up to 73\d{3}, its largest is 65504"
  ):
    quantise.bounds(spec, "float16", None)
  assert np.isfinite(quantise.bounds(spec, "float32", None).stored)


# Quantiser.


def ranges(seed=0, positions=6):
  rng = np.random.default_rng(seed)
  low = rng.uniform(-500, 0, positions).astype(np.float32)
  return low, (low + rng.uniform(1, 1000, positions)).astype(np.float32)


def images_between(low, high, batch=40, b=2):
  """``[B, 2 b, 3 b, 2]`` within the range of each of 6 positions, its ends included."""
  u = np.random.default_rng(1).random((batch, 6, b, b, 2))
  u[0], u[1] = 0, 1
  values = low[:, None, None, None] + u * (high - low)[:, None, None, None].astype(np.float64)
  values = np.clip(values.astype(np.float32), low[:, None, None, None], high[:, None, None, None])
  return ungrid(values, (2 * b, 3 * b))


def twin_quantise(images, quantiser, b):
  """docs/format.md, section 3, value by value."""
  result = np.empty(images.shape, np.uint8)
  for z, y, x, c in np.ndindex(images.shape):
    p = y // b * (images.shape[2] // b) + x // b
    value = (float(images[z, y, x, c]) - float(quantiser.offset[p])) / float(quantiser.scale[p])
    below, rest = math.floor(value), value - math.floor(value)
    step = below + (below % 2 if rest == 0.5 else rest > 0.5)
    result[z, y, x, c] = min(max(step, 0), 255)
  return result


def twin_dequantise(q, quantiser, b):
  result = np.empty(q.shape, np.float32)
  for z, y, x, c in np.ndindex(q.shape):
    p = y // b * (q.shape[2] // b) + x // b
    result[z, y, x, c] = float(quantiser.offset[p]) + float(quantiser.scale[p]) * int(q[z, y, x, c])
  return result


def test_both_ways_equal_the_twins():
  quantiser = quantise.quantiser_for(*ranges())
  images = images_between(*ranges(), batch=5) * np.float32(1.1)  # some outside
  q = quantise.quantise(images, quantiser, block_size=2)
  assert q.dtype == np.uint8
  np.testing.assert_array_equal(q, twin_quantise(images, quantiser, 2))
  assert {0, 255} <= set(q.ravel().tolist())
  back = quantise.dequantise(q, quantiser, block_size=2)
  assert back.dtype == np.float32
  np.testing.assert_array_equal(back, twin_dequantise(q, quantiser, 2))


def test_each_position_has_its_own_map():
  """A map that counted positions down columns, or one for all, would differ."""
  quantiser = Quantiser(np.arange(6, dtype=np.float32) * 1000, np.ones(6, np.float32))
  back = quantise.dequantise(np.zeros((1, 4, 6, 1), np.uint8), quantiser, block_size=2)
  assert (back[0, ::2, ::2, 0] / 1000).tolist() == [[0, 1, 2], [3, 4, 5]]
  np.testing.assert_array_equal(back[0, 1::2, 1::2], back[0, ::2, ::2])


@pytest.mark.parametrize("seed", range(8))
def test_the_range_is_covered_to_both_ends(seed):
  """No value between low and high is cut, so half a step is all that is lost."""
  low, high = ranges(seed)
  quantiser = quantise.quantiser_for(low, high)
  assert quantiser.offset.dtype == quantiser.scale.dtype == np.float32
  reach = quantiser.offset.astype(np.float64) + 255 * quantiser.scale.astype(np.float64)
  assert (reach >= high).all()
  assert (quantiser.scale <= (high.astype(np.float64) - low) / 255 * (1 + 2**-15)).all()
  images = images_between(low, high)
  q = quantise.quantise(images, quantiser, block_size=2)
  assert (grid(q[:1], 2) == 0).all()
  assert (grid(q[1:2], 2) == 255).all()
  off = grid(abs(quantise.dequantise(q, quantiser, block_size=2) - images.astype(np.float64)), 2)
  half = quantiser.scale / 2
  assert (off.max((0, 2, 3, 4)) <= half * (1 + 1e-4)).all()
  assert (off.max((0, 2, 3, 4)) > half * 0.9).all()


def test_a_position_with_one_value_keeps_it():
  low, high = np.array([-7.25, 0, 3], np.float32), np.array([-7.25, 0, 9], np.float32)
  quantiser = quantise.quantiser_for(low, high)
  assert quantiser.scale[:2].tolist() == [1, 1]
  images = np.repeat(np.repeat(low, 2)[None, None, :, None], 2, axis=1)
  q = quantise.quantise(images, quantiser, block_size=2)
  assert (q == 0).all()
  np.testing.assert_array_equal(quantise.dequantise(q, quantiser, block_size=2), images)


def test_ties_go_to_even_and_what_lies_outside_is_cut():
  quantiser = Quantiser(np.array([-1], np.float32), np.array([0.5], np.float32))
  steps = np.array([0.5, 1.5, 2.5, 3.5, 253.5, 254.5, 255.4, 255.5, 256.5, 1e9, -0.5, -0.6, -1e9])
  images = (steps * 0.5 - 1).astype(np.float32).reshape(1, 1, -1, 1)
  found = [
    int(quantise.quantise(image[None, None], quantiser, block_size=1)[0, 0, 0])
    for image in images.reshape(-1, 1)
  ]
  assert found == [0, 2, 2, 4, 254, 254, 255, 255, 255, 255, 0, 0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_dequantise_under_jit_has_the_bits_of_numpy(seed):
  quantiser = quantise.quantiser_for(*ranges(seed))
  q = np.random.default_rng(seed).integers(0, 256, (64, 4, 6, 2), np.uint8)
  expected = quantise.dequantise(q, quantiser, block_size=2)
  assert type(expected) is np.ndarray
  jitted = jax.jit(lambda images, given: quantise.dequantise(images, given, block_size=2))
  found = jitted(q, quantiser)
  assert isinstance(found, jax.Array)
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(
    quantise.dequantise(jnp.asarray(q), quantiser, block_size=2), expected
  )
  np.testing.assert_array_equal(quantise.dequantise(q[0], quantiser, block_size=2), expected[0])


def test_a_step_of_24_bits_would_not_have_the_same_bits():
  """Why steps are rounded: product and sum fused, and not, differ for a step of full precision."""
  low, high = ranges()
  scale = ((high - low) / np.float32(255)).astype(np.float32)
  q = np.arange(256, dtype=np.float32)[:, None]
  once = (low + scale * q.astype(np.float64)).astype(np.float32)
  assert (once != low + scale * q).any()
  scale = quantise.quantiser_for(low, high).scale
  once = (low + scale * q.astype(np.float64)).astype(np.float32)
  assert (once == low + scale * q).all()


def test_the_quantiser_is_a_pytree_and_survives_json():
  quantiser = quantise.quantiser_for(*ranges())
  assert len(jax.tree.leaves(quantiser)) == 2
  for values in (quantiser.offset, quantiser.scale):
    read = np.asarray(json.loads(json.dumps(values.tolist())), np.float32)
    np.testing.assert_array_equal(read, values)
