"""The stems: what they compute, beside loops; where they start; what they learn; what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from djax import errors, keys, schemes
from djax.models import stems
from djax.models.stems import Aligned, Position

SHAPE = (8, 12, 3)
RMT = {"scheme": "rmt", "image_shape": SHAPE, "block_size": 4}
SPECS = [
  RMT,
  {**RMT, "per_channel": True},
  {**RMT, "mix": "block"},
  {**RMT, "permute": False},
  {**RMT, "block_size": 2},
  {"scheme": "permutation", "image_shape": SHAPE, "block_size": 4},
]


def full(spec):
  return schemes.from_spec(spec).spec.to_dict()


def images_of(seed=0, count=4, shape=SHAPE):
  return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def init(stem, shape=SHAPE):
  return stem.init(jax.random.key(0), jnp.zeros((2, *shape)), train=False)


def scattered(tree, seed=0):
  """The same tree with other values, near enough to them."""
  leaves, treedef = jax.tree.flatten(tree)
  rng = np.random.default_rng(seed)
  moved = [np.float32(x + 0.3 * rng.normal(size=x.shape)) for x in leaves]
  return jax.tree.unflatten(treedef, moved)


def slow(spec, matrix, images):
  """Multiplies what the disguise mixes by ``matrix(position, channel)``, by loops."""
  b = spec["block_size"]
  out = np.empty_like(images)
  for n, image in enumerate(images):
    position = 0
    for top in range(0, image.shape[0], b):
      for left in range(0, image.shape[1], b):
        block = image[top : top + b, left : left + b]
        new = np.empty_like(block)
        if spec.get("mix", "block") == "block":
          new[:] = (block.ravel() @ matrix(position, 0)).reshape(block.shape)
        else:
          for row in range(b):
            for channel in range(image.shape[2]):
              new[row, :, channel] = block[row, :, channel] @ matrix(position, channel)
        out[n, top : top + b, left : left + b] = new
        position += 1
  return out


def moved(images, b, source):
  """Puts block ``source[q]`` at position ``q``, by loops."""
  columns = images.shape[2] // b
  out = np.empty_like(images)
  for q, p in enumerate(source):
    (to_row, to_column), (row, column) = divmod(q, columns), divmod(int(p), columns)
    out[:, to_row * b : to_row * b + b, to_column * b : to_column * b + b] = images[
      :, row * b : row * b + b, column * b : column * b + b
    ]
  return out


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
  "options", [{}, {"rank": 2}, {"mixing": True}, {"rank": 1, "mixing": True}]
)
@pytest.mark.slow
def test_position_starts_as_the_identity(spec, options):
  stem = Position(**Position.from_spec(full(spec)), **options)
  images = images_of()
  got = stem.apply(init(stem), images, train=True)
  assert (got.shape, got.dtype) == (images.shape, jnp.float32)
  np.testing.assert_allclose(got, images, rtol=1e-6)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("rank", [0, 2])
def test_position_equals_loops(spec, rank):
  spec = full(spec)
  stem = Position(**Position.from_spec(spec), rank=rank)
  params = scattered(init(stem)["params"])

  def matrix(position, channel):
    at = (position, channel) if spec.get("per_channel") else position
    if not rank:
      return params["matrices"][at]
    shared = params["shared"][channel] if spec.get("per_channel") else params["shared"]
    return shared + params["down"][at] @ params["up"][at]

  images = images_of(1)
  got = stem.apply({"params": params}, images, train=False)
  np.testing.assert_allclose(got, slow(spec, matrix, images), rtol=1e-4, atol=1e-4)


def test_low_rank_parts_are_small_and_add_nothing_at_first():
  facts = Position.from_spec(full({**RMT, "mix": "block"}))
  params = init(Position(**facts, rank=2))["params"]
  assert params["up"].shape == (6, 2, 48) and not params["up"].any()
  assert params["down"].shape == (6, 48, 2) and params["down"].std() > 0.05
  of_full = init(Position(**facts))["params"]
  assert sum(x.size for x in jax.tree.leaves(params)) < of_full["matrices"].size / 3


def test_mixing_can_undo_a_permutation():
  images, order = images_of(2), np.random.default_rng(3).permutation(6)
  stem = Position(**Position.from_spec(full(RMT)), mixing=True)
  params = init(stem)["params"]
  params = {**params, "mixing": np.eye(6, dtype=np.float32)[order]}
  got = stem.apply({"params": params}, images, train=False)
  np.testing.assert_allclose(got, moved(images, 4, order), rtol=1e-6)
  assert not np.allclose(got, images)


@pytest.mark.parametrize("spec", SPECS[:3])
def test_gradients_reach_every_parameter_of_position(spec):
  images, target = images_of(4), images_of(5)
  for rank in (0, 2):
    stem = Position(**Position.from_spec(full(spec)), rank=rank, mixing=True)

    def loss(params, stem=stem):
      return jnp.square(stem.apply({"params": params}, images, train=True) - target).mean()

    params = init(stem)["params"]
    slope = jax.jit(jax.grad(loss))
    gradients = slope(params)
    for name, gradient in gradients.items():
      # The two factors of a low-rank part cannot both move while one is zero.
      assert np.abs(gradient).max() > 0 or name == "down"
    stepped = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)
    for gradient in jax.tree.leaves(slope(stepped)):
      assert np.abs(gradient).max() > 0


def test_position_learns_the_matrices_from_pairs():
  scheme, key, disguised, originals = disguise({**RMT, "permute": False}, images_of(6, 200))
  stem = Position(**Position.from_spec(scheme.spec.to_dict()))

  def loss(params):
    return jnp.square(stem.apply({"params": params}, disguised, train=True) - originals).mean()

  params = init(stem)["params"]
  first = loss(params)
  optimizer = optax.adam(0.05)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state):
    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state

  for _ in range(100):
    params, state = step(params, state)
  assert loss(params) < 1e-3 < 0.5 < first
  np.testing.assert_allclose(params["matrices"], np.swapaxes(key.matrices, -1, -2), atol=0.05)


def disguise(spec, images):
  scheme = schemes.from_spec(spec)
  key = scheme.make_key(keys.experiment(3).read)
  return scheme, key, scheme.export(key, images, lambda: np.zeros_like(images)), images


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("frozen", [True, False])
def test_aligned_with_the_true_inverse_gives_the_originals(spec, frozen):
  scheme, key, disguised, originals = disguise(spec, images_of(7))
  stem = Aligned(**Aligned.from_spec(scheme.spec.to_dict()), frozen=frozen)
  variables = init(stem)
  truth = {} if key.perm is None else {"perm": key.perm}
  if key.matrices is not None:
    truth["inverse"] = np.swapaxes(key.matrices, -1, -2)
  found = variables["batch_stats"]
  assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
    k: (v.shape, v.dtype) for k, v in truth.items()
  }
  got = stem.apply({**variables, "batch_stats": truth}, disguised, train=True)
  np.testing.assert_allclose(got, originals, atol=1e-5)
  assert ("params" in variables) != frozen


def test_aligned_does_nothing_before_the_estimate():
  stem, images = Aligned(**Aligned.from_spec(full(RMT))), images_of(8)
  np.testing.assert_allclose(stem.apply(init(stem), images, train=True), images, rtol=1e-6)


@pytest.mark.parametrize("spec", SPECS)
def test_aligned_equals_loops_with_a_correction(spec):
  spec = full(spec)
  stem, images = Aligned(**Aligned.from_spec(spec)), images_of(9)
  variables = init(stem)
  stats, order = dict(variables["batch_stats"]), np.random.default_rng(0).permutation(6)
  if spec["block_size"] == 2:
    order = np.random.default_rng(0).permutation(24)
  if "inverse" in stats:
    stats["inverse"] = scattered(stats["inverse"], 1)
  if "perm" in stats:
    stats["perm"] = order
    images_back = moved(images, spec["block_size"], np.argsort(order))
  else:
    images_back = images
  params = scattered(variables["params"], 2)

  def matrix(position, channel):
    at = (position, channel) if spec.get("per_channel") else position
    own = np.eye(len(params["correction"][at])) + params["correction"][at]
    return stats["inverse"][at] @ own if "inverse" in stats else own

  got = stem.apply({"params": params, "batch_stats": stats}, images, train=False)
  np.testing.assert_allclose(got, slow(spec, matrix, images_back), rtol=1e-4, atol=1e-4)


def test_correction_learns_and_statistics_stay():
  stem, images, target = Aligned(**Aligned.from_spec(full(RMT))), images_of(10), images_of(11)
  variables = init(stem)
  assert not variables["params"]["correction"].any()

  def loss(params):
    got, updated = stem.apply(
      {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
    )
    return jnp.square(got - target).mean(), updated

  gradients, updated = jax.grad(loss, has_aux=True)(variables["params"])
  assert np.abs(gradients["correction"]).max() > 0
  jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("stem", [Position(block_size=4), Aligned(spec=full(RMT))])
def test_dtype_is_that_of_the_network_but_arithmetic_is_not(stem):
  short, images = stem.clone(dtype=jnp.bfloat16), images_of(12)
  got = short.apply(init(short), images, train=False)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, images.astype(jnp.bfloat16))
  assert {x.dtype for x in jax.tree.leaves(init(short))} <= {jnp.dtype("f4"), jnp.dtype("i4")}


def test_estimate_gives_what_the_collection_holds(monkeypatch):
  inverse, perm = np.ones((6, 4, 4), np.float32), np.arange(6, dtype=np.int32)
  seen = []

  def estimate(spec, batches):
    seen.append((dict(spec), next(batches)))
    return inverse, None if spec["image_shape"][1] == 8 else perm

  monkeypatch.setattr(stems.alignment, "estimate", estimate)
  stem = Aligned(**Aligned.from_spec(full(RMT)))
  found = stem.estimate(iter([images_of()]))
  assert list(found) == ["inverse", "perm"] and found["inverse"] is inverse
  assert seen[0][0]["image_shape"] == SHAPE
  np.testing.assert_array_equal(seen[0][1], images_of())
  other = Aligned(**Aligned.from_spec(full({**RMT, "image_shape": (8, 8, 3)})))
  assert list(other.estimate(iter([images_of()]))) == ["inverse"]


def test_stems_are_hashed_for_jit():
  for stem in (Aligned(**Aligned.from_spec(full(RMT))), Position(**Position.from_spec(full(RMT)))):
    assert hash(stem) == hash(stem.clone())


@pytest.mark.parametrize("stem", [Position, Aligned])
def test_plain_sets_are_refused(stem):
  with pytest.raises(
    errors.ConfigError, match=r"needs a disguise in blocks, got .* 'plain'"
  ) as said:
    stem.from_spec(full({"scheme": "plain", "image_shape": SHAPE}))
  assert "\n" not in str(said.value)


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"matrix": "projection"}, "projection matrices need public images"),
    ({"scheme": "aes"}, "neither matrices nor an order"),
    ({"image_shape": (64, 64, 3)}, "too large"),
  ],
)
def test_aligned_refuses_what_it_cannot_estimate(change, reason):
  spec = full({**RMT, **change})
  with pytest.raises(errors.ConfigError, match=reason) as said:
    Aligned.from_spec(spec)
  assert "stem=position" in str(said.value) and "\n" not in str(said.value)
  shape = spec["image_shape"]
  stem = Position(**Position.from_spec(spec))
  stem.apply(init(stem, shape), images_of(shape=shape), train=True)
