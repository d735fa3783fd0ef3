"""The network for units: what it may look at, how it counts, and that it learns from it."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from djax import schemes
from djax.models import units
from djax.models.units import UnitMlp

SMALL = {"classes": 3, "width": 8, "vocabulary": 32, "features": 4}
SHAPES = [((8, 12, 1), 4, 16), ((8, 16, 3), 8, 16), ((8, 8, 2), 4, 2), ((6, 4, 1), 2, 1)]
by_shape = pytest.mark.parametrize(("shape", "block_size", "unit_pixels"), SHAPES)
by_key = pytest.mark.parametrize("shared", [True, False])


def random_images(count, shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.float32)


def sentences(count, words, positions=4, seed=0):
  """Images ``[count, 4, 4 * positions, 1]`` of random words, some far more frequent; and which word is where."""
  rng = np.random.default_rng(seed)
  order = np.minimum(rng.geometric(0.2, (count, positions)) - 1, words - 1)
  written = random_images(words, (4, 4, 1), seed + 1)[order]  # [count, positions, 4, 4, 1]
  return np.moveaxis(written, 1, 2).reshape(count, 4, 4 * positions, 1), order


def cut(images, size):
  return (images[start : start + size] for start in range(0, len(images), size))


def init(model, images):
  """Variables with random parameters, without compiling what draws them."""
  made = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    value = rng.normal(size=leaf.shape) / max(1, np.prod(leaf.shape[:-1])) ** 0.5
    if path[-1].key in ("scale", "var"):
      value = np.ones(leaf.shape)
    return jnp.asarray(value if path[0].key == "params" else np.ones(leaf.shape), leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, made)


def forward(model, variables, images):
  return np.asarray(jax.jit(functools.partial(model.apply, train=False))(variables, images))


def training(model, variables, images, **options):
  """One forward pass as in training: logits, and the collections that changed."""
  apply = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(1)}, **options)
  return jax.jit(apply)(variables, images)


def hashes(model, images):
  return np.asarray(jax.jit(model._hashes)(images))


def told(model, images):
  """Variables with the vocabulary of some images."""
  variables = init(model, images[:1])
  found = model.estimate(cut(images, 16))
  for name, value in found.items():
    assert (value.shape, value.dtype) == (
      variables["batch_stats"][name].shape,
      variables["batch_stats"][name].dtype,
    )
  return {**variables, "batch_stats": {**variables["batch_stats"], **found}}


def slow_units(image, block_size, unit_pixels):
  """The units of an image as bytes, by loops: a list for each position."""
  height, width, channels = image.shape
  found = []
  for top in range(0, height, block_size):
    for left in range(0, width, block_size):
      block = image[top : top + block_size, left : left + block_size]
      found.append([])
      for channel in range(channels):
        pixels = bytes(int(value) for value in block[:, :, channel].ravel())
        found[-1] += [pixels[i : i + unit_pixels] for i in range(0, len(pixels), unit_pixels)]
  return found


def slow_hash(unit, salt):
  mixed = salt * 0x85157AF5
  for i, pixel in enumerate(unit):
    mixed += pixel * 0x9E3779B1 ** (i + 1)
  mixed %= 2**32
  mixed ^= mixed >> 16
  mixed = mixed * 0x85EBCA6B % 2**32
  mixed ^= mixed >> 13
  mixed = mixed * 0xC2B2AE35 % 2**32
  return mixed ^ (mixed >> 16)


def look_up(vocabulary, found):
  return np.asarray(jax.jit(units._rows)(vocabulary, found))


@by_key
@by_shape
def test_hashes_equal_loops(shape, block_size, unit_pixels, shared):
  images = random_images(2, shape)
  model = UnitMlp(**SMALL, block_size=block_size, unit_pixels=unit_pixels, shared=shared)
  want = [
    [[slow_hash(unit, 0 if shared else p) for unit in at] for p, at in enumerate(found)]
    for found in (slow_units(image, block_size, unit_pixels) for image in images)
  ]
  got = hashes(model, images)
  assert got.dtype == np.uint32
  np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(got, hashes(model, images.astype(np.uint8)))


def test_one_changed_byte_changes_one_hash():
  images = np.repeat(random_images(1, (8, 8, 1)), 17, axis=0)
  for i in range(16):
    images[i + 1, 4 + i // 4, i % 4, 0] = (images[0, 4 + i // 4, i % 4, 0] + 1) % 256
  found = hashes(UnitMlp(**SMALL), images)[..., 0]
  others = found != found[0]
  np.testing.assert_array_equal(others[1:], [[False, False, True, False]] * 16)
  assert len(set(found[:, 2])) == 17


@by_key
def test_look_up_equals_a_dict_of_bytes(shared):
  images, _ = sentences(200, words=40)
  model = UnitMlp(**SMALL, shared=shared)
  found = model.estimate(cut(images, 64))
  names = [  # of every unit: its bytes, and where it is if that matters
    [(unit, 0 if shared else p) for p, at in enumerate(slow_units(image, 4, 16)) for unit in at]
    for image in images
  ]
  counts = collections.Counter(name for image in names for name in image)
  assert sum(count > 1 for count in counts.values()) > 20
  ranked = sorted(counts, key=lambda name: (-counts[name], slow_hash(*name)))
  known = [name for name in ranked if counts[name] > 1][:32]
  row = {name: i for i, name in enumerate(sorted(known, key=lambda name: slow_hash(*name)))}
  rows = look_up(found["vocabulary"], hashes(model, images))
  want = [[row.get(name, 32) for name in image] for image in names]
  np.testing.assert_array_equal(rows[..., 0], want)
  at = [[name for name in ranked if shared or name[1] == p] for p in range(1 if shared else 4)]
  np.testing.assert_array_equal(found["background"], [slow_hash(*frequent[0]) for frequent in at])


def test_the_most_frequent_units_are_known_and_those_seen_once_are_not():
  words = random_images(5, (4, 4, 1))
  images = words[[0, 1, 1, 1, 2, 3, 3, 1, 4, 4, 4]]
  names = hashes(UnitMlp(**SMALL), words)[:, 0, 0]
  two = UnitMlp(**{**SMALL, "vocabulary": 2}).estimate(cut(images, 3))
  np.testing.assert_array_equal(two["vocabulary"], np.sort(names[[1, 4]]))
  np.testing.assert_array_equal(two["background"], names[[1]])
  some = UnitMlp(**SMALL).estimate(cut(images, 3))["vocabulary"]
  np.testing.assert_array_equal(some[:3], np.sort(names[[1, 3, 4]]))
  np.testing.assert_array_equal(some[3:], [some[2]] * 29)
  none = UnitMlp(**SMALL).estimate(iter([words[:1]]))["vocabulary"]
  np.testing.assert_array_equal(none, [names[0]] * 32)


@by_key
def test_estimate_does_not_depend_on_how_batches_are_cut(shared, monkeypatch):
  images, _ = sentences(300, words=60)
  model = UnitMlp(**SMALL, shared=shared)
  whole = model.estimate(iter([images]))
  # Chunks of 25 images, and a table that overflows: only the sequence of images may count.
  monkeypatch.setattr(units, "_CHUNK", 100)
  few = model.estimate(cut(images, 7))
  np.testing.assert_array_equal(few["vocabulary"], whole["vocabulary"])
  monkeypatch.setattr(units, "_TABLE", 20)
  short = [model.estimate(cut(images, size)) for size in (1, 7, 100, 300)]
  assert not np.array_equal(short[0]["vocabulary"], whole["vocabulary"])
  for other in short[1:]:
    for name, value in other.items():
      np.testing.assert_array_equal(value, short[0][name])


def test_estimate_forgets_rare_units_only_and_stops_early(monkeypatch):
  frequent, rare = random_images(1, (4, 4, 1), seed=1), random_images(640, (4, 4, 1), seed=2)
  mixed = np.concatenate([frequent.repeat(len(rare), 0), rare], axis=2).reshape(-1, 4, 8, 1)
  model = UnitMlp(**SMALL)
  monkeypatch.setattr(units, "_CHUNK", 128)
  monkeypatch.setattr(units, "_TABLE", 100)
  monkeypatch.setattr(units, "_COUNTED", 1000)
  lengths = []
  merged = units._merged
  monkeypatch.setattr(
    units, "_merged", lambda *given: lengths.append(len(merged(*given))) or merged(*given)
  )
  read = iter(cut(mixed, 64))
  found = model.estimate(read)
  assert set(found["vocabulary"]) == set(hashes(model, frequent).ravel())
  assert len(lengths) == 8  # 1024 units
  assert max(lengths) <= 100
  assert len(list(read)) == 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.slow
def test_logits(dtype):
  model = UnitMlp(**SMALL, depth=2, block_size=4, unit_pixels=8, dtype=dtype)
  images = random_images(5, (8, 12, 2))
  variables = told(model, images)
  assert {x.dtype for x in jax.tree.leaves(variables["params"])} == {jnp.dtype(jnp.float32)}
  logits, updated = training(model, variables, images, mutable=["batch_stats"])
  assert (logits.shape, logits.dtype) == ((5, 3), jnp.float32)
  for name in ("vocabulary", "background"):
    np.testing.assert_array_equal(updated["batch_stats"][name], variables["batch_stats"][name])
  variables = {**variables, **updated}
  logits = forward(model, variables, images)
  assert np.isfinite(logits).all()
  np.testing.assert_array_equal(logits, forward(model, variables, images.astype(np.uint8)))


def test_depth_is_the_number_of_hidden_layers():
  images = jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)
  for depth in (1, 3):
    model = UnitMlp(**SMALL, depth=depth)
    made = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    assert sum("Dense" in name for name in made["params"]) == depth + 1


def test_units_out_of_the_vocabulary_are_all_the_same():
  model = UnitMlp(**SMALL)
  often, never, neither = random_images(3, (4, 4, 1))
  variables = told(model, np.stack([often, often]))
  logits = forward(model, variables, np.stack([often, never, neither]))
  np.testing.assert_array_equal(logits[1], logits[2])
  assert np.abs(logits[0] - logits[1]).max() > 1e-4


def embedded(model, variables, images):
  """The vectors that the units of images get in training, ``[B, P, U, features]``."""
  mutable = ["batch_stats", "intermediates"]
  chosen = lambda module, _: module.name == "Embed_0"  # noqa: E731
  _, got = training(model, variables, images, mutable=mutable, capture_intermediates=chosen)
  return np.asarray(got["intermediates"]["Embed_0"]["__call__"][0])


def test_dropped_units_are_unknown_ones_but_never_the_background():
  background, other = random_images(2, (4, 4, 1))
  images = np.stack([background] * 300 + [other] * 200)
  model = UnitMlp(**SMALL, unit_dropout=0.4)
  variables = told(model, images)
  vectors = embedded(model, variables, images)[:, 0, 0]
  table = np.asarray(variables["params"]["Embed_0"]["embedding"])
  unknown = (vectors == table[-1]).all(axis=-1)
  assert not unknown[:300].any()
  assert 0.3 < unknown[300:].mean() < 0.5  # 0.4, give or take three standard deviations
  assert len(np.unique(vectors, axis=0)) == 3
  kept = embedded(model.clone(unit_dropout=0.0), variables, images)
  assert len(np.unique(kept[:, 0, 0], axis=0)) == 2


def test_each_position_has_its_own_background_where_it_has_a_key():
  words = random_images(2, (4, 4, 1))
  model = UnitMlp(**SMALL, shared=False, unit_dropout=0.999)
  images = np.concatenate([words[[0, 0, 0, 1, 1]], words[[1, 1, 1, 0, 0]]], axis=2)
  vectors = embedded(model, told(model, images), images)[:, :, 0]
  assert len(np.unique(vectors[:3, 0], axis=0)) == len(np.unique(vectors[:3, 1], axis=0)) == 1
  np.testing.assert_array_equal(vectors[3, 0], vectors[3, 1])  # unknown
  assert len(np.unique(vectors.reshape(-1, 4), axis=0)) == 3


def test_two_position_keys_never_share_a_row():
  every = np.arange(256, dtype=np.float32).reshape(-1, 1, 1, 1)
  images = np.tile(every, (2, 16, 16, 1))
  model = UnitMlp(**{**SMALL, "vocabulary": 2**17}, block_size=1, unit_pixels=1, shared=False)
  found = model.estimate(cut(images, 128))
  rows = look_up(found["vocabulary"], hashes(model, images[:256]))
  assert np.unique(rows).size == 256 * 256
  assert rows.max() == 256 * 256 - 1
  one_key = model.clone(shared=True).estimate(cut(images, 128))
  assert np.unique(one_key["vocabulary"]).size == 256


@pytest.mark.parametrize(
  ("unit_pixels", "position_keys", "sizes"),
  [
    (16, True, (2**14, 16, 0.1)),
    (4, False, (2**14, 6, 0.05)),
    (1, False, (2**8, 3, 0.05)),
    (1, True, (2**14, 3, 0.05)),
  ],
)
def test_the_facts_come_from_the_disguise(unit_pixels, position_keys, sizes):
  spec = schemes.aes_scheme(
    (28, 28, 1), block_size=8, unit_pixels=unit_pixels, position_keys=position_keys
  ).spec
  vocabulary, features, unit_dropout = sizes
  assert UnitMlp.from_spec(spec.to_dict()) == {
    "block_size": 8,
    "unit_pixels": unit_pixels,
    "shared": not position_keys,
    "vocabulary": vocabulary,
    "features": features,
    "unit_dropout": unit_dropout,
  }
  assert UnitMlp.standardised is False


def test_a_disguise_without_units_is_refused():
  with pytest.raises(KeyError, match="unit_pixels"):
    UnitMlp.from_spec(schemes.permutation_scheme((28, 28, 1), block_size=4).spec.to_dict())


def test_units_must_fit_the_block():
  model = UnitMlp(**SMALL, block_size=6)
  with pytest.raises(ValueError, match="block_size=6 with unit_pixels=16"):
    init(model, random_images(1, (12, 12, 1)))
  with pytest.raises(ValueError, match="block_size=6 with unit_pixels=16"):
    model.estimate(iter([random_images(1, (12, 12, 1))]))


@pytest.mark.slow
def test_learns_which_units_are_where():
  images, order = sentences(256, words=6)
  labels = jnp.asarray((order[:, 0] + order[:, 1]) % 3)
  model = UnitMlp(classes=3, width=64, vocabulary=256, features=8, dropout=0.1, unit_dropout=0.05)
  variables = told(model, images)
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

  def accuracy(stats):
    logits = forward(model, {"params": params, "batch_stats": stats}, images)
    return (logits.argmax(axis=-1) == labels).mean()

  opt_state = optimizer.init(params)
  for i in range(60):
    params, stats, opt_state = step(params, stats, opt_state, jax.random.key(i))
  assert accuracy(stats) > 0.95
  # Nothing but the vocabulary tells the units apart.
  assert accuracy({**stats, "vocabulary": jnp.zeros_like(stats["vocabulary"])}) < 0.6
