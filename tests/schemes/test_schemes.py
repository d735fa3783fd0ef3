import copy
import doctest
import itertools
import json
import pickle
import pydoc
import zlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import assert_same, pixels
from hypothesis import given
from hypothesis import strategies as st

from djax import keys, schemes
from djax.errors import ConfigError
from djax.ops import noise

SHAPE = (6, 9, 2)  # blocks of 4 pad it to 8 x 12
RNG = jax.random.key(0, impl="rbg")  # compiles faster than the default


def reader(seed):
  """Labelled bytes without the key module; a prefix is the same however much is read."""

  def read(label, count):
    words = np.random.default_rng([seed, zlib.crc32(label.encode())]).integers(
      0, 1 << 64, -(-count // 8), np.uint64
    )
    return words.astype("<u8").tobytes()[:count]

  return read


def rmt(**options):
  return {"scheme": "rmt", "image_shape": list(SHAPE), "block_size": 4, **options}


SPECS = {
  "plain": {"scheme": "plain", "image_shape": list(SHAPE)},
  "permutation": {"scheme": "permutation", "image_shape": list(SHAPE), "block_size": 4},
  "rmt": rmt(),
  "rmt in place": rmt(permute=False),
  "rmt projection, noise after": rmt(matrix="projection", noise_level=25.0, noise_place="after"),
  "rmt per channel, noise": rmt(per_channel=True, noise_level=100.0),
  "rmt block": rmt(block_size=3, mix="block", matrix="projection", noise_level=50.0),
  "aes": {"scheme": "aes", "image_shape": list(SHAPE), "block_size": 4},
}
every_scheme = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
ON_DEVICE = {name: spec for name, spec in SPECS.items() if name != "aes"}
every_on_device = pytest.mark.parametrize("spec", ON_DEVICE.values(), ids=ON_DEVICE.keys())
SECRET = {name: spec for name, spec in SPECS.items() if name != "plain"}


def differ(one, other):
  return np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean()


# METHOD section 1, by loops, in float64.


def slow_blocks(image, b):
  height, width, channels = image.shape
  rows, columns = -(-height // b), -(-width // b)
  cut = np.zeros((rows * columns, b, b, channels))
  for p, r, c in itertools.product(range(rows * columns), range(b), range(b)):
    row, column = p // columns * b + r, p % columns * b + c
    cut[p, r, c] = image[min(row, height - 1), min(column, width - 1)]
  return cut


def slow_image(cut, height, width):
  b = cut.shape[1]
  image = np.zeros((height, width, cut.shape[-1]), cut.dtype)
  for row, column in itertools.product(range(height), range(width)):
    image[row, column] = cut[row // b * (width // b) + column // b, row % b, column % b]
  return image


def slow_multiply(cut, matrices, mix):
  result = np.zeros_like(cut)
  for p in range(len(cut)):
    if mix == "block":
      result[p] = (cut[p].reshape(1, -1) @ matrices[p]).reshape(cut[p].shape)
      continue
    for channel in range(cut.shape[-1]):
      matrix = matrices[p, channel] if matrices.ndim == 4 else matrices[p]
      result[p, :, :, channel] = cut[p, :, :, channel] @ matrix
  return result


def slow_disguise(key, image, spec, drawn):
  b, place = spec["block_size"], spec.get("noise_place", "before")
  cut = slow_blocks(image, b)
  if key.matrices is not None:
    matrices = np.asarray(key.matrices, np.float64)
    before = drawn if place == "before" else 0
    after = drawn if place == "after" else 0
    cut = slow_multiply(cut + before, matrices, spec.get("mix", "rows")) + after
  if key.perm is not None:
    cut = np.stack([cut[key.perm[p]] for p in range(len(cut))])
  height, width = (-(-side // b) * b for side in image.shape[:2])
  return slow_image(cut, height, width)


@st.composite
def geometries(draw, smallest=1):
  height, width = draw(st.integers(smallest, 20)), draw(st.integers(smallest, 20))
  block_size = draw(st.integers(smallest, min(height, width, 7)))
  leading = draw(st.sampled_from([(), (2,), (2, 1)]))
  return leading, (height, width, draw(st.integers(1, 4))), block_size


@given(
  geometries(),
  st.sampled_from([np.uint8, np.float32, np.float16, np.int32]),
  st.integers(0, 99),
)
def test_permutation_round_trip_is_bit_exact(geometry, dtype, seed):
  leading, shape, b = geometry
  spec = {"scheme": "permutation", "image_shape": shape, "block_size": b}
  scheme = schemes.from_spec(spec)
  key = scheme.make_key(reader(seed))
  images = pixels(seed, (*leading, *shape), dtype)
  # As one program each: call by call, every operation is compiled for every shape.
  disguised = jax.jit(lambda key, x: scheme.disguise(key, x, None, rng=None)[0])(key, images)
  assert disguised.shape == (*leading, *scheme.spec.disguised_shape)
  twin = [slow_disguise(key, image, spec, 0) for image in images.reshape(-1, *shape)]
  assert_same(disguised, np.stack(twin).reshape(disguised.shape).astype(dtype))
  assert_same(jax.jit(scheme.restore)(key, disguised), images)


def check_rmt(spec, leading, dtype, seed, *, compiled):
  """Disguises as the loops do, and restores within a hundredth of a grey level or the noise."""
  scheme = schemes.from_spec(spec)
  key = scheme.make_key(reader(seed))
  shape, b = scheme.spec.image_shape, spec["block_size"]
  level, place = spec["noise_level"], spec["noise_place"]
  images = pixels(seed, (*leading, *shape), dtype)
  rng = jax.random.fold_in(RNG, seed)

  def disguise(key, images, rng):
    return scheme.disguise(key, images, None, rng=rng)[0]

  wrap = jax.jit if compiled else lambda function: function
  disguised = wrap(disguise)(key, images, rng)
  assert disguised.dtype == jnp.float32
  height, width, _ = scheme.spec.disguised_shape
  assert disguised.shape == (*leading, height, width, shape[2])

  cut = (height * width // b**2, b, b, shape[2])
  drawn = np.asarray(noise.uniform(rng, (*leading, *cut), noise_level=level)) if level else 0
  drawn = np.broadcast_to(drawn, (*leading, *cut)).reshape(-1, *cut)
  each = zip(images.reshape(-1, *shape), drawn, strict=True)
  twin = np.stack([slow_disguise(key, image, spec, d) for image, d in each])
  np.testing.assert_allclose(disguised, twin.reshape(disguised.shape), atol=5e-3, rtol=0)

  restored = wrap(scheme.restore)(key, disguised)
  assert restored.dtype == jnp.float32
  error = np.abs(np.asarray(restored) - images.astype(np.float32))
  limit = np.full(cut, level / 2)
  if place == "after":
    inverses = np.abs(np.linalg.inv(np.asarray(key.matrices, np.float64)))
    limit = slow_multiply(limit, inverses, spec["mix"])
  limit = slow_image(limit, height, width)[: shape[0], : shape[1]]
  assert (error <= limit + 0.01).all()
  if level and error.size > 50:
    assert error.mean() > level / 20  # it is there, and of this scale


OPTIONS = {
  "permute": (True, False),
  "matrix": schemes.MATRICES,
  "mixing": (("rows", False), ("rows", True), ("block", False)),
  "noise": ((0.0, "before"), (100.0, "before"), (100.0, "after")),
}


def rmt_spec(shape, block_size, permute, matrix, mixing, noise):
  return {
    "scheme": "rmt",
    "image_shape": shape,
    "block_size": block_size,
    "permute": permute,
    "matrix": matrix,
    "mix": mixing[0],
    "per_channel": mixing[1],
    "noise_level": noise[0],
    "noise_place": noise[1],
  }


@pytest.mark.parametrize("options", list(itertools.product(*OPTIONS.values())), ids=str)
@pytest.mark.slow
def test_every_combination_of_rmt_options(options):
  for dtype in (np.uint8, np.float32):
    check_rmt(rmt_spec(SHAPE, 4, *options), (2,), dtype, 1, compiled=False)


@hypothesis.settings(max_examples=20)
@given(
  geometries(smallest=2),
  st.sampled_from([np.uint8, np.float32]),
  st.integers(0, 99),
  st.tuples(*(st.sampled_from(values) for values in OPTIONS.values())),
)
@pytest.mark.slow
def test_rmt_on_any_geometry(geometry, dtype, seed, options):
  leading, shape, b = geometry
  b = min(b, 4) if options[2][0] == "block" else b  # 64 x 64 matrices at most
  check_rmt(rmt_spec(shape, b, *options), leading, dtype, seed, compiled=True)


# One contract for every scheme.


@every_scheme
def test_spec_round_trips_through_json(spec):
  scheme = schemes.from_spec(spec)
  assert scheme.spec.scheme == spec["scheme"]
  written = json.dumps(scheme.spec.to_dict())
  again = schemes.from_spec(json.loads(written))
  assert again.spec == scheme.spec
  assert json.dumps(again.spec.to_dict()) == written
  assert json.loads(written).items() >= spec.items()


@every_scheme
def test_the_spec_alone_restores_years_later(spec):
  """The key is made again from its reader, the scheme from its JSON: no object survives."""
  scheme = schemes.from_spec(spec)
  images = pixels(0, SHAPE)
  disguised, _ = scheme.disguise(scheme.make_key(reader(1)), images, 0, rng=RNG)
  later = schemes.from_spec(json.loads(json.dumps(scheme.spec.to_dict())))
  restored = later.restore(later.make_key(reader(1)), disguised)
  same = scheme.restore(scheme.make_key(reader(1)), disguised)
  assert_same(restored, np.asarray(same))
  assert differ(restored, images) <= spec.get("noise_level", 0) / 2 + 0.01


@every_scheme
def test_shapes_dtypes_and_labels(spec):
  scheme = schemes.from_spec(spec)
  key = scheme.make_key(reader(1))
  b = spec.get("block_size", 1)
  padded = (-(-SHAPE[0] // b) * b, -(-SHAPE[1] // b) * b, SHAPE[2])
  assert scheme.spec.image_shape == SHAPE
  assert scheme.spec.disguised_shape == padded
  aes = spec["scheme"] == "aes"
  assert scheme.on_device == (not aes)
  for leading, dtype in (((), np.uint8), ((3,), np.uint8 if aes else np.float32)):
    images, labels = pixels(2, (*leading, *SHAPE), dtype), np.arange(5)
    disguised, passed = scheme.disguise(key, images, labels, rng=RNG)
    assert passed is labels
    assert disguised.shape == (*leading, *padded)
    kept = spec["scheme"] != "rmt"
    assert disguised.dtype == (dtype if kept else np.float32)
    restored = scheme.restore(key, disguised)
    assert restored.shape == images.shape
    assert restored.dtype == (dtype if kept else np.float32)


@every_on_device
def test_plain_jit_vmap_and_leading_axes_agree(spec):
  scheme = schemes.from_spec(spec)
  key = scheme.make_key(reader(1))
  images, labels = pixels(3, (3, *SHAPE)), np.arange(3, dtype=np.int32)
  rng = jax.random.key(0)  # the default generator draws the same under vmap
  rngs = jax.vmap(lambda i: jax.random.fold_in(rng, i))(labels)
  records = jax.vmap(
    lambda key, image, label, rng: scheme.disguise(key, image, label, rng=rng), (None, 0, 0, 0)
  )
  batch, passed = jax.jit(records)(key, images, labels, rngs)
  assert_same(passed, labels)
  tolerance = 0 if spec["scheme"] != "rmt" else 2e-3
  alone = np.stack(
    [scheme.disguise(key, images[i], i, rng=rngs[i])[0] for i in range(3)]
  )  # one record has one noise
  np.testing.assert_allclose(batch, alone, atol=tolerance, rtol=0)
  if not spec.get("noise_level"):
    whole, _ = scheme.disguise(key, images, labels, rng=rng)
    np.testing.assert_allclose(whole, alone, atol=tolerance, rtol=0)
  restored = np.asarray(scheme.restore(key, batch))
  np.testing.assert_allclose(
    jax.vmap(scheme.restore, (None, 0))(key, batch), restored, atol=2e-3, rtol=0
  )


@every_on_device
def test_second_call_with_another_key_compiles_nothing(spec):
  scheme = schemes.from_spec(spec)
  traced = []

  @jax.jit
  def disguise(key, images, rng):
    traced.append(images.shape)
    return scheme.disguise(key, images, None, rng=rng)[0]

  images = pixels(4, (2, *SHAPE))
  first = disguise(scheme.make_key(reader(1)), images, RNG)
  second = disguise(scheme.make_key(reader(2)), images, jax.random.fold_in(RNG, 1))
  assert len(traced) == 1
  if spec["scheme"] == "plain":
    assert_same(first, images)
  else:
    assert differ(first, second) > 10


@every_on_device
def test_gradients_flow_through_the_disguise_and_back(spec):
  scheme = schemes.from_spec(spec)
  key = scheme.make_key(reader(1))
  image = pixels(5, SHAPE, np.float32)
  weights = np.random.default_rng(5).normal(size=scheme.spec.disguised_shape).astype(np.float32)

  def loss(x):
    return (scheme.disguise(key, x, None, rng=RNG)[0] * weights).sum()

  gradient, direction = jax.grad(loss)(image), pixels(6, SHAPE, np.float32) / 255
  difference = (loss(image + direction) - loss(image - direction)) / 2
  np.testing.assert_allclose((gradient * direction).sum(), difference, rtol=1e-3, atol=0.05)

  def undone(x):
    return scheme.restore(key, scheme.disguise(key, x, None, rng=RNG)[0]).sum()

  np.testing.assert_allclose(jax.grad(undone)(image), np.ones(SHAPE), atol=1e-3)


@pytest.mark.parametrize("spec", SECRET.values(), ids=SECRET.keys())
def test_a_wrong_key_does_not_restore(spec):
  scheme = schemes.from_spec(spec)
  images = pixels(7, (4, *SHAPE))
  disguised, _ = scheme.disguise(scheme.make_key(reader(1)), images, None, rng=RNG)
  other, _ = scheme.disguise(scheme.make_key(reader(2)), images, None, rng=RNG)
  assert differ(disguised, other) > 20
  assert differ(disguised[..., : SHAPE[0], : SHAPE[1], :], images) > 20
  assert differ(scheme.restore(scheme.make_key(reader(2)), disguised), images) > 30


@every_scheme
def test_images_of_another_shape_are_refused(spec):
  scheme = schemes.from_spec(spec)
  key = scheme.make_key(reader(1))
  height, width, channels = SHAPE
  for wrong in (
    (height, width, channels + 1),
    (width, height, channels),
    (2, height + 1, width, channels),
    (height, width),
    (channels, height, width),
  ):
    with pytest.raises(ValueError, match=r"images must be \[..., 6, 9, 2\] as in the spec.*Make"):
      scheme.disguise(key, np.zeros(wrong, np.uint8), None, rng=RNG)
  with pytest.raises(ValueError, match="as in the spec"):
    scheme.restore(key, np.zeros((height + 1, width, channels), np.float32))


# Keys.


@every_scheme
def test_keys_are_pytrees_that_hide_their_values(spec):
  scheme = schemes.from_spec(spec)
  key = scheme.make_key(reader(1))
  leaves = jax.tree.leaves(key)
  has_matrices, has_perm = spec["scheme"] == "rmt", spec.get("permute", spec["scheme"] != "plain")
  has_aes = spec["scheme"] == "aes"
  assert len(leaves) == has_matrices + has_perm + has_aes
  assert (key.perm is not None, key.matrices is not None) == (has_perm, has_matrices)
  assert (key.aes_keys is not None) == has_aes
  for text in (repr(key), str(key), f"{key}", f"{[key]}", repr(jax.device_put(key))):
    assert "values hidden" in text
    for leaf in leaves:
      assert str(leaf.dtype) in text and str(list(leaf.shape)) in text
      for value in np.asarray(leaf).reshape(-1)[:50]:
        assert leaf.dtype == np.int32 or f"{abs(value):.3f}"[1:] not in text
  assert repr(key).count("[") == len(leaves)  # shapes alone
  assert repr(jax.tree.map(lambda leaf: leaf.dtype, key)) == "Key(; values hidden)"


def test_a_key_that_showed_its_values_would_be_seen():
  key = schemes.from_spec(SPECS["rmt"]).make_key(reader(1))
  value = f"{abs(float(key.matrices[0, 0, 0])):.3f}"[1:]
  assert value in str(np.round(key.matrices, 3))
  assert value not in repr(key)


def test_keys_refuse_to_be_pickled_or_copied():
  key = schemes.from_spec(SPECS["rmt"]).make_key(reader(1))
  for leave in (pickle.dumps, copy.copy, copy.deepcopy, lambda k: pickle.dumps([k])):
    with pytest.raises(TypeError, match="not pickled or copied"):
      leave(key)
  copied = jax.tree.map(lambda leaf: leaf, key)  # what JAX does all the time still works
  assert isinstance(copied, schemes.Key)


@every_scheme
def test_keys_depend_on_their_reader_alone(spec):
  scheme = schemes.from_spec(spec)
  one, again, other = (jax.tree.leaves(scheme.make_key(reader(s))) for s in (1, 1, 2))
  for a, b, c in zip(one, again, other, strict=True):
    assert_same(a, b)
    assert a.shape == c.shape and (np.asarray(a) != np.asarray(c)).any()
    assert isinstance(a, np.ndarray)  # made on the host, of the dtypes the programs expect
    assert a.dtype in (np.int32, np.float32, np.uint8)


def test_every_matrix_has_a_label_of_its_own():
  for options in ({}, {"per_channel": True}, {"matrix": "projection"}, {"mix": "block"}):
    read, labels = reader(1), []

    def recorded(label, count, read=read, labels=labels):
      labels.append(label)
      return read(label, count)

    key = schemes.from_spec(rmt(block_size=3, **options)).make_key(recorded)
    count = int(np.prod(key.matrices.shape[:-2]))
    assert len(set(labels)) == count + 1  # and the permutation
    flat = key.matrices.reshape(count, -1)
    assert len(np.unique(flat.round(4), axis=0)) == count
    identity = np.eye(key.matrices.shape[-1])
    product = key.matrices @ key.matrices.swapaxes(-1, -2)
    assert (np.abs(product - identity).max() < 1e-5) == ("matrix" not in options)


# What published code got wrong (METHOD section 5).


def test_one_key_serves_the_whole_data_set_and_later_queries():
  for name in ("permutation", "rmt"):
    scheme = schemes.from_spec(SPECS[name])
    key = scheme.make_key(reader(1))
    image = pixels(8, SHAPE)
    training, _ = scheme.disguise(key, np.stack([image] * 3), None, rng=RNG)
    query, _ = scheme.disguise(key, image, None, rng=jax.random.key(99))
    for disguised in training:
      np.testing.assert_allclose(disguised, query, atol=1e-3)


def test_noise_reaches_the_disguise_at_its_own_scale_and_is_one_a_record():
  spec = rmt(image_shape=[32, 32, 3], noise_level=100.0)
  scheme = schemes.from_spec(spec)
  silent = schemes.from_spec({**spec, "noise_level": 0.0})
  key = scheme.make_key(reader(1))
  images = pixels(9, (2, 32, 32, 3))

  def restored(index, image):
    disguised, _ = scheme.disguise(key, image, None, rng=jax.random.fold_in(RNG, index))
    return np.asarray(silent.restore(key, disguised), np.float64)

  drawn = restored(3, images[0]) - images[0]
  assert drawn.min() > -0.01 and drawn.max() < 100.01
  assert abs(drawn.mean() - 50) < 3 and abs(drawn.std() - 100 / np.sqrt(12)) < 2
  # Read again it is the same; another record's differs, on every pixel and channel.
  np.testing.assert_array_equal(restored(3, images[0]) - images[0], drawn)
  other = restored(4, images[0]) - images[0]
  assert np.abs(np.corrcoef(drawn.reshape(-1), other.reshape(-1))[0, 1]) < 0.1
  for axis in range(3):
    half = np.roll(drawn, 1, axis)
    assert np.abs(np.corrcoef(drawn.reshape(-1), half.reshape(-1))[0, 1]) < 0.1
  whole, _ = scheme.disguise(key, images, None, rng=RNG)
  noises = np.asarray(silent.restore(key, whole)) - images.astype(np.float32)
  assert np.abs(np.corrcoef(noises[0].reshape(-1), noises[1].reshape(-1))[0, 1]) < 0.1


def test_noise_before_is_mixed_and_noise_after_is_not():
  image = np.zeros((32, 32, 1), np.uint8)  # all there is, is noise
  spec = rmt(image_shape=[32, 32, 1], noise_level=50.0)
  after = schemes.from_spec({**spec, "noise_place": "after"})
  before = schemes.from_spec(spec)
  key = before.make_key(reader(1))
  drawn = np.asarray(after.disguise(key, image, None, rng=RNG)[0])
  assert drawn.min() >= 0 and drawn.max() < 50
  mixed = np.asarray(before.disguise(key, image, None, rng=RNG)[0])
  assert mixed.min() < -5


def test_restore_takes_the_mean_of_the_noise_away():
  image = pixels(10, (32, 32, 3))
  for options in ({}, {"noise_place": "after"}, {"noise_place": "after", "matrix": "projection"}):
    scheme = schemes.from_spec(rmt(image_shape=[32, 32, 3], noise_level=100.0, **options))
    key = scheme.make_key(reader(1))
    disguised, _ = scheme.disguise(key, image, None, rng=RNG)
    error = np.asarray(scheme.restore(key, disguised)) - image.astype(np.float32)
    assert abs(error.mean()) < 4  # 50 without


def test_floats_leave_0_to_255_and_are_not_wrapped_or_clipped():
  scheme = schemes.from_spec(rmt(image_shape=[32, 32, 3]))
  disguised, _ = scheme.disguise(scheme.make_key(reader(1)), pixels(11, (32, 32, 3)), 0, rng=RNG)
  outside = (np.asarray(disguised) < 0) | (np.asarray(disguised) > 255)
  assert 0.2 < outside.mean() < 0.8
  assert disguised.dtype == jnp.float32


# Bad input.


def test_unknown_and_missing_names_come_with_the_nearest():
  for spec, message in (
    ({"scheme": "rmtt"}, r"plain, .*rmt, aes, .*, got 'rmtt'\. Did you mean 'rmt'\?"),
    ({"scheme": "permute"}, r"got 'permute'\. Did you mean 'permutation'\?"),
    ({"scheme": "zzz"}, r"got 'zzz'\.$"),
    ({"image_shape": [8, 8, 1]}, "scheme must be one of .* got None"),
    ({**SPECS["plain"], "block_size": 4}, "scheme 'plain' has no parameter 'block_size'"),
    (rmt(noise_levl=3), r"no parameter 'noise_levl'\. Did you mean 'noise_level'\?"),
    (rmt(blocksize=3), r"Did you mean 'block_size'\? It takes image_shape, block_size"),
    ({"scheme": "rmt"}, "scheme 'rmt' needs image_shape, block_size"),
    ({"scheme": "permutation", "image_shape": [8, 8, 1]}, "needs block_size"),
  ):
    with pytest.raises(ConfigError, match=message):
      schemes.from_spec(spec)


@pytest.mark.parametrize("name", ["permutation", "rmt"])
@pytest.mark.parametrize("block_size", [0, -1, 7, 100])
def test_blocks_that_do_not_fit_are_refused(name, block_size):
  with pytest.raises(ValueError, match=f"block_size={block_size} for 6 x 9 pixels"):
    schemes.from_spec({**SPECS[name], "block_size": block_size})


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"noise_level": -1}, "noise_level must be a finite number of at least 0.*got -1"),
    ({"noise_level": float("nan")}, "noise_level must be a finite number.*got nan"),
    ({"noise_level": float("inf")}, "noise_level must be a finite number.*got inf"),
    ({"noise_place": "befor"}, r"noise_place must be one of .* Did you mean 'before'\?"),
    ({"matrix": "orthogonl"}, r"matrix must be one of .* Did you mean 'orthogonal'\?"),
    ({"mix": "columns"}, "mix must be one of .*'columns'"),
    ({"mix": "block", "per_channel": True}, "per_channel must be False with mix='block'"),
    ({"block_size": 1}, "larger than 1 x 1.*block_size of at least 2"),
    ({"block_size": 1, "mix": "block", "image_shape": [8, 8, 1]}, "larger than 1 x 1"),
    ({"image_shape": [8, 8]}, r"image_shape must be \(H, W, C\), all at least 1"),
    ({"image_shape": [8, 8, 0]}, r"image_shape must be \(H, W, C\), all at least 1"),
    ({"image_shape": [1, 8, 8, 3]}, r"image_shape must be \(H, W, C\)"),
  ],
)
def test_options_that_do_not_exist_or_fit_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    schemes.from_spec(rmt(**options))


def test_matrices_that_do_not_fit_into_memory_are_not_drawn():
  huge = rmt(image_shape=[1024, 1024, 3], block_size=128, mix="block")
  scheme = schemes.from_spec(huge)  # who only reads the spec may be a smaller machine
  with pytest.raises(
    ConfigError, match=r"takes about 7,1\d\d GB of memory, this machine has .*mix=row"
  ):
    scheme.make_key(reader(1))


def test_single_pixels_of_several_channels_can_be_mixed_as_blocks():
  scheme = schemes.from_spec(rmt(block_size=1, mix="block"))
  key = scheme.make_key(reader(1))
  assert key.matrices.shape == (54, 2, 2)
  images = pixels(12, SHAPE)
  disguised, _ = scheme.disguise(key, images, None, rng=RNG)
  np.testing.assert_allclose(scheme.restore(key, disguised), images.astype(np.float32), atol=0.01)


def test_a_key_of_another_geometry_is_refused():
  key = schemes.from_spec(rmt(image_shape=[8, 8, 2])).make_key(reader(1))
  for spec in (rmt(), SPECS["permutation"]):
    with pytest.raises(ValueError, match="Use the key made for this image shape"):
      schemes.from_spec(spec).disguise(key, pixels(13, SHAPE), None, rng=RNG)


@pytest.mark.parametrize("wrong", [None, 7, bytes(32), "owner.djaxkey"])
def test_what_is_no_master_key_makes_no_key(wrong):
  with pytest.raises(TypeError, match=r"must get a master key, got \w+\. Make one with keys\.gene"):
    schemes.from_spec(rmt()).make_key(wrong)


@every_scheme
def test_help_of_a_scheme_says_its_shapes_and_its_examples_run(spec):
  scheme = schemes.from_spec(spec)
  names = {"jax": jax, "keys": keys, "scheme": scheme, "images": pixels(14, (2, *SHAPE))}
  attempted = 0
  for function in (scheme.make_key, scheme.disguise, scheme.restore):
    text = pydoc.render_doc(function, renderer=pydoc.plaintext)
    assert text.splitlines()[2].startswith(f"{function.__name__}(")
    example = doctest.DocTestParser().get_doctest(function.__doc__, names, "help", None, 0)
    failed, tried = doctest.DocTestRunner().run(example, clear_globs=False)
    names.update(example.globs)
    assert not failed
    attempted += tried
  assert attempted == 3
  assert "[..., 6, 9, 2]" in scheme.disguise.__doc__
  assert f"[..., {', '.join(map(str, names['disguised'].shape[1:]))}]" in scheme.disguise.__doc__
  assert names["restored"].shape == (2, *SHAPE)


def test_a_scheme_keeps_docstrings_of_its_own():
  base = schemes.plain_scheme(SHAPE)

  def disguise(key, images, labels, *, rng):
    """Does what it likes."""

  scheme = schemes.Scheme(base.spec, base.make_key, disguise, dict.fromkeys, base.export)
  assert scheme.disguise.__doc__ == "Does what it likes."
