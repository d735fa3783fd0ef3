"""The networks for images: sizes, modes of training and evaluation, and what each may look at."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from djax.models.cnn import Cnn
from djax.models.mixer import Mixer
from djax.models.mlp import Mlp
from djax.models.resnet import ResNet18
from djax.models.vgg import Vgg16
from djax.models.vit import Vit, cut

TINY = {
  Cnn: {"width": 2},
  ResNet18: {"width": 4},
  Vgg16: {"width": 4},
  Mlp: {"width": 16},
  Vit: {"width": 16, "depth": 2, "patch": 4},
  Mixer: {"width": 16, "depth": 2, "patch": 4},
}
TOKENS = (Vit, Mixer)
NORMED = (Cnn, ResNet18, Vgg16, Mlp)

every_network = pytest.mark.parametrize("network", TINY)


def tiny(network, **options):
  return network(classes=4, **{**TINY[network], **options})


def random_images(count, shape=(8, 8, 3), seed=0):
  return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def shapes(model, shape):
  """Shapes and dtypes of what init returns, without computing any of it."""
  images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
  return jax.eval_shape(lambda rng, x: model.init(rng, x, train=False), jax.random.key(0), images)


def filled(model, images, seed=1):
  """Variables with random values in every place, also where init puts a 0 or a 1."""
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    value = rng.normal(size=leaf.shape) / max(1, np.prod(leaf.shape[:-1])) ** 0.5
    positive = path[-1].key in ("scale", "var")
    return jnp.asarray(np.abs(value) + 0.5 if positive else value, leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, shapes(model, images.shape[1:]))


# Whole: each operation alone would be a program of its own, and hundreds of them take minutes and gigabytes.
@functools.partial(jax.jit, static_argnums=0)
def evaluated(model, variables, images):
  return model.apply(variables, images, train=False)


@functools.partial(jax.jit, static_argnums=0)
def training(model, variables, images, rng=1):
  """One forward pass as in training: logits, and the collections that changed."""
  return model.apply(
    variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(rng)}
  )


def count(model, shape):
  return sum(leaf.size for leaf in jax.tree.leaves(shapes(model, shape)["params"]))


@every_network
@pytest.mark.parametrize("shape", [(8, 8, 3), (12, 16, 1)])
@pytest.mark.slow
def test_logits_and_parameters_are_float32_in_both_dtypes(network, shape):
  images = random_images(8, shape)
  logits = {}
  for dtype in (jnp.float32, jnp.bfloat16):
    model = tiny(network, dtype=dtype)
    variables = filled(model, images)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    logits[dtype] = evaluated(model, variables, images)
    assert (logits[dtype].shape, logits[dtype].dtype) == ((8, 4), jnp.float32)
    assert np.isfinite(logits[dtype]).all()
  # Equal only if the layers ignored the dtype.
  apart = np.abs(logits[jnp.float32] - logits[jnp.bfloat16]).max()
  assert 0 < apart < 0.1 * np.abs(logits[jnp.float32]).max()


def test_parameters_of_vgg():
  kernels = 9 * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 256 + 2 * 256 * 256)
  kernels += 9 * (256 * 512 + 5 * 512 * 512)
  assert kernels == 14_710_464
  norms = 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512)
  assert count(Vgg16(classes=10, width=64), (32, 32, 3)) == kernels + norms + 512 * 10 + 10
  # Nothing depends on the sides.
  assert count(Vgg16(classes=10, width=64), (28, 28, 3)) == kernels + norms + 512 * 10 + 10


def test_parameters_of_resnet():
  want = 9 * 3 * 64 + 2 * 64  # first convolution
  want += 4 * (9 * 64 * 64 + 2 * 64)
  for features in (128, 256, 512):
    half = features // 2
    want += 9 * half * features + 3 * 9 * features**2 + 4 * 2 * features
    want += half * features + 2 * features  # shortcut
  want += 512 * 10 + 10
  assert count(ResNet18(classes=10, width=64), (32, 32, 3)) == want == 11_173_962


def test_parameters_of_cnn():
  want = 25 * 1 * 16 + 2 * 16 + 25 * 16 * 32 + 2 * 32
  want += 7 * 7 * 32 * 512 + 2 * 512 + 512 * 10 + 10
  assert count(Cnn(classes=10, width=16), (28, 28, 1)) == want


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_parameters_of_mlp(depth):
  pixels, width = 28 * 28, 100
  want = pixels * 10 + 10
  if depth:
    want = pixels * width + (depth - 1) * width**2 + depth * 2 * width + width * 10 + 10
  assert count(Mlp(classes=10, width=width, depth=depth), (28, 28, 1)) == want


@pytest.mark.parametrize(("width", "depth", "patch"), [(64, 3, 4), (192, 1, 8)])
def test_parameters_of_vit(width, depth, patch):
  tokens = 32 * 32 // patch**2
  want = patch**2 * 3 * width + width + tokens * width
  attention = 4 * (width * width + width)
  dense = 2 * 4 * width * width + 4 * width + width
  want += depth * (attention + dense + 2 * 2 * width) + 2 * width + width * 10 + 10
  assert count(Vit(classes=10, width=width, depth=depth, patch=patch), (32, 32, 3)) == want


@pytest.mark.parametrize(("width", "depth", "patch"), [(64, 3, 4), (192, 1, 8)])
def test_parameters_of_mixer(width, depth, patch):
  tokens, across = 32 * 32 // patch**2, width // 2
  want = patch**2 * 3 * width + width
  tokenwise = 2 * tokens * across + across + tokens
  channelwise = 2 * 4 * width * width + 4 * width + width
  want += depth * (tokenwise + channelwise + 2 * 2 * width) + 2 * width + width * 10 + 10
  assert count(Mixer(classes=10, width=width, depth=depth, patch=patch), (32, 32, 3)) == want


@pytest.mark.parametrize(("width", "heads"), [(16, 1), (32, 1), (96, 3)])
def test_heads_have_32_channels(width, heads):
  params = shapes(tiny(Vit, width=width), (8, 8, 1))["params"]
  query = params["MultiHeadDotProductAttention_0"]["query"]["kernel"]
  assert query.shape == (width, heads, width // heads)


@every_network
@pytest.mark.slow
def test_dropout_is_on_in_training_and_off_in_evaluation(network):
  images = random_images(8)  # as many as in other tests: what these compiled serves
  without, model = tiny(network), tiny(network, dropout=0.5)
  variables = filled(model, images)
  np.testing.assert_array_equal(
    evaluated(model, variables, images), evaluated(without, variables, images)
  )
  one, same, other = (training(model, variables, images, rng)[0] for rng in (1, 1, 2))
  np.testing.assert_array_equal(one, same)
  assert (one != other).any()
  one, other = (training(without, variables, images, rng)[0] for rng in (1, 2))
  np.testing.assert_array_equal(one, other)


@every_network
@pytest.mark.slow
def test_statistics_move_in_training_only(network):
  images = random_images(8)
  model = tiny(network)
  variables = filled(model, images)
  assert ("batch_stats" in variables) == (network in NORMED)
  if network in TOKENS:
    # Without statistics an image cannot depend on the others of its batch.
    logits = training(model, variables, images)[0]
    np.testing.assert_allclose(logits, evaluated(model, variables, images), atol=1e-5)
    return
  evaluate = jax.jit(lambda v, x: model.apply(v, x, train=False, mutable=["batch_stats"])[1])
  updated = evaluate(variables, images)
  jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])
  _, updated = training(model, variables, images)
  for path, new in jax.tree.leaves_with_path(updated["batch_stats"]):
    old = variables["batch_stats"]
    for key in path:
      old = old[key.key]
    assert (new != old).all(), path


def test_statistics_forget_a_tenth_a_step():
  images = random_images(8)
  model = tiny(Mlp)
  variables = filled(model, images)
  _, updated = training(model, variables, images)
  seen = images.reshape(8, -1) @ variables["params"]["Dense_0"]["kernel"]
  old, new = (x["batch_stats"]["BatchNorm_0"]["mean"] for x in (variables, updated))
  np.testing.assert_allclose(new, 0.9 * old + 0.1 * seen.mean(axis=0), atol=1e-5)


@every_network
@pytest.mark.slow
def test_overfits_32_images_and_not_their_absence(network):
  model = tiny(network)
  images = jnp.asarray(random_images(32))
  labels = jnp.asarray(np.random.default_rng(0).integers(0, 4, 32))
  optimizer = optax.adam(3e-3)

  @jax.jit
  def step(variables, opt_state, images):
    def loss_of(params):
      logits, updated = training(model, {**variables, "params": params}, images)
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

    gradients, updated = jax.grad(loss_of, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(gradients, opt_state, variables["params"])
    params = optax.apply_updates(variables["params"], updates)
    return {"params": params, **updated}, opt_state

  start = filled(model, images)  # init would take longer to compile than the step
  accuracy = {}
  for shown in ("images", "nothing"):
    variables, opt_state = start, optimizer.init(start["params"])
    data = images if shown == "images" else jnp.zeros_like(images)
    for _ in range(60):
      variables, opt_state = step(variables, opt_state, data)
    logits = jnp.concatenate([evaluated(model, variables, part) for part in jnp.split(data, 4)])
    accuracy[shown] = float((logits.argmax(axis=-1) == labels).mean())
  most = np.bincount(labels).max() / 32
  assert accuracy["images"] == 1
  assert accuracy["nothing"] <= most < 0.5


def slow_vgg(variables, images):
  """The publication's column D layer by layer; every maximum is written out. Evaluation only."""
  x = images
  layer = 0
  for channels in ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8)):
    for factor in channels:
      kernel = variables["params"][f"Conv_{layer}"]["kernel"]
      assert kernel.shape[-1] == factor * variables["params"]["Conv_0"]["kernel"].shape[-1]
      norm = variables["params"][f"BatchNorm_{layer}"]
      stats = variables["batch_stats"][f"BatchNorm_{layer}"]
      padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
      height, width = x.shape[1:3]
      x = sum(
        padded[:, i : i + height, j : j + width] @ np.asarray(kernel[i, j])
        for i in range(3)
        for j in range(3)
      )
      x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"]
      x = np.maximum(np.asarray(x), 0)
      layer += 1
    rows = range(0, x.shape[1], 2)
    columns = range(0, x.shape[2], 2)
    x = np.stack(
      [np.stack([x[:, i : i + 2, j : j + 2].max((1, 2)) for j in columns], 1) for i in rows], 1
    )
  assert layer == 13
  head = variables["params"]["Dense_0"]
  return x.mean(axis=(1, 2)) @ np.asarray(head["kernel"]) + head["bias"]


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 20, 1)])
@pytest.mark.slow
def test_vgg_equals_loops(shape):
  images = random_images(2, shape)
  model = tiny(Vgg16, width=2)
  variables = filled(model, images)
  got = evaluated(model, variables, images)
  np.testing.assert_allclose(got, slow_vgg(variables, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("secret", ["permutation", "orthogonal"])
def test_mlp_takes_in_a_secret_linear_map(secret):
  rng = np.random.default_rng(3)
  matrix = np.eye(192)[rng.permutation(192)]
  if secret == "orthogonal":
    matrix = np.linalg.qr(rng.normal(size=(192, 192)))[0]
  matrix = matrix.astype(np.float32)
  images = random_images(5)
  disguised = (images.reshape(5, -1) @ matrix).reshape(images.shape)
  model = tiny(Mlp)
  variables = filled(model, images)
  learned = jax.tree.map(lambda x: x, variables)
  kernel = variables["params"]["Dense_0"]["kernel"]
  learned["params"]["Dense_0"]["kernel"] = matrix.T @ kernel
  np.testing.assert_allclose(
    jnp.linalg.norm(learned["params"]["Dense_0"]["kernel"]), jnp.linalg.norm(kernel), rtol=1e-5
  )
  want, want_stats = training(model, variables, images)
  got, got_stats = training(model, learned, disguised)
  np.testing.assert_allclose(got, want, atol=1e-3)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got_stats, want_stats)
  assert np.abs(training(model, variables, disguised)[0] - want).max() > 0.1


@pytest.mark.parametrize(("shape", "patch"), [((8, 8, 3), 4), ((4, 6, 2), 2), ((3, 3, 1), 1)])
def test_cut_equals_loops(shape, patch):
  images = random_images(2, shape)
  want = [
    [
      image[top : top + patch, left : left + patch].ravel()
      for top in range(0, shape[0], patch)
      for left in range(0, shape[1], patch)
    ]
    for image in images
  ]
  np.testing.assert_array_equal(cut(jnp.asarray(images), patch=patch), want)


def swapped(images):
  """Images of 8 x 8 whose patches 0 and 3 of side 4 have changed places."""
  images = images.copy()
  images[:, :4, :4], images[:, 4:, 4:] = images[:, 4:, 4:].copy(), images[:, :4, :4].copy()
  return images


def reordered(network, params):
  """Parameters for images whose patches 0 and 3 have changed places."""
  order = np.array([3, 1, 2, 0])
  params = dict(params)
  if network is Vit:
    return {**params, "positions": params["positions"][order]}
  for name, layer in params.items():
    # The layers across tokens are told by their four inputs or outputs.
    if name.startswith("Dense") and layer["kernel"].shape[0] == 4:
      params[name] = {**layer, "kernel": layer["kernel"][order]}
    elif name.startswith("Dense") and layer["kernel"].shape[1] == 4:
      params[name] = {"kernel": layer["kernel"][:, order], "bias": layer["bias"][order]}
  return params


@pytest.mark.parametrize("network", TOKENS)
def test_tokens_may_change_places_with_their_positions(network):
  images = random_images(3)
  model = network(classes=5, **TINY[network])
  variables = filled(model, images)
  want = evaluated(model, variables, images)
  moved = {"params": reordered(network, variables["params"])}
  np.testing.assert_allclose(evaluated(model, moved, swapped(images)), want, atol=1e-4)
  assert np.abs(evaluated(model, variables, swapped(images)) - want).max() > 1e-3
  assert np.abs(evaluated(model, moved, images) - want).max() > 1e-3


@pytest.mark.parametrize("network", TOKENS)
def test_blocks_that_add_nothing_leave_the_tokens_alone(network):
  """The tokens run past attention and layers untouched: norms stand before these, not on the way."""
  images = random_images(3)
  model = network(classes=5, **TINY[network])
  params = filled(model, images)["params"]
  silent = dict(params)
  for i in range(2):
    if network is Vit:
      name = f"MultiHeadDotProductAttention_{i}"
      silent[name] = {**params[name], "out": jax.tree.map(jnp.zeros_like, params[name]["out"])}
      outputs = [2 + 2 * i]
    else:
      outputs = [2 + 4 * i, 4 + 4 * i]
    for layer in outputs:
      silent[f"Dense_{layer}"] = jax.tree.map(jnp.zeros_like, params[f"Dense_{layer}"])
  tokens = cut(images, patch=4) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
  tokens += params.get("positions", 0)
  centred = tokens - tokens.mean(axis=-1, keepdims=True)
  norm, head = params["LayerNorm_4"], params[f"Dense_{5 if network is Vit else 9}"]
  normed = centred / jnp.sqrt(centred.var(axis=-1, keepdims=True) + 1e-6)
  normed = normed * norm["scale"] + norm["bias"]
  want = normed.mean(axis=1) @ head["kernel"] + head["bias"]
  got = evaluated(model, {"params": silent}, images)
  np.testing.assert_allclose(got, want, atol=1e-4)
  assert np.abs(evaluated(model, {"params": params}, images) - want).max() > 1e-2


@pytest.mark.parametrize("network", TOKENS)
@pytest.mark.parametrize(("shape", "patch"), [((8, 10, 1), 4), ((10, 8, 1), 4), ((8, 8, 1), 0)])
def test_refuses_patches_that_do_not_fit(network, shape, patch):
  with pytest.raises(ValueError, match=rf"patch={patch} for {shape[0]} x {shape[1]}") as error:
    shapes(tiny(network, patch=patch), shape)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("width", [33, 100])
def test_vit_refuses_a_width_without_whole_heads(width):
  with pytest.raises(ValueError, match=rf"multiple of 32.*width={width}") as error:
    shapes(tiny(Vit, width=width), (8, 8, 1))
  assert "\n" not in str(error.value)
