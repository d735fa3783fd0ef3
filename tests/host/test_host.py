import dataclasses
import hashlib
import itertools
import json

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.fresh import ROOT
from hypothesis import given
from hypothesis import strategies as st

from djax import keys, schemes
from djax.cli import selftest
from djax.disguised import quantise
from djax.host import aes, augment, blockwise
from djax.ops import blocks

VECTORS = ROOT / "tests" / "vectors" / "export-v1.json"
EXPORTED = ("plain", "permutation", "rmt", "aes")  # baselines are not written to disk
SHAPES = [((8, 12, 3), 4), ((7, 10, 1), 4), ((5, 9, 3), 3)]
OPTIONS = {
  "permute": (True, False),
  "matrix": schemes.MATRICES,
  "mixing": (("rows", False), ("rows", True), ("block", False)),
  "noise": ((0.0, "before"), (100.0, "before"), (33.3, "after")),
}
COMBINATIONS = list(itertools.product(*OPTIONS.values()))


def rmt_spec(
  shape,
  block_size,
  permute=True,
  matrix="orthogonal",
  mixing=("rows", False),
  noise=(0.0, "before"),
):
  return {
    "scheme": "rmt",
    "image_shape": list(shape),
    "block_size": block_size,
    "permute": permute,
    "matrix": matrix,
    "mix": mixing[0],
    "per_channel": mixing[1],
    "noise_level": noise[0],
    "noise_place": noise[1],
  }


def made(spec, seed=0):
  scheme = schemes.from_spec(spec)
  return scheme, scheme.make_key(keys.experiment(seed).read)


def pixels(seed, shape, dtype=np.uint8):
  return np.random.default_rng(seed).uniform(0, 255.99, shape).astype(dtype)


def uniform(seed, shape):
  return np.random.default_rng(seed).random(shape, np.float32)


def never():
  raise AssertionError("no noise is needed")


def assert_same(result, expected):
  assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
  assert result.tobytes() == expected.tobytes()


# docs/format.md, section 3, and docs/key-format.md, section 6, by loops over float32 scalars.


def slow_sum(products, order):
  total = None
  for k in order(range(len(products))):
    total = products[k] if total is None else np.float32(total + products[k])
  return total


def slow_export(spec, key, images, drawn, order=iter):
  """What goes to disk, value by value; another ``order`` of summing is wrong."""
  images = np.asarray(images)
  _, height, width, channels = images.shape
  if spec["scheme"] == "plain":
    return images
  b = spec["block_size"]
  rows, columns = -(-height // b), -(-width // b)
  projects = spec["scheme"] == "rmt"
  dtype = np.float32 if projects else images.dtype.type
  out = np.zeros((len(images), rows * b, columns * b, channels), dtype)
  level, place = np.float32(spec.get("noise_level", 0)), spec.get("noise_place", "before")
  for i, q in itertools.product(range(len(images)), range(rows * columns)):
    p = q if key.perm is None else int(key.perm[q])  # what stands at q stood at p
    block = {}
    for r, c, channel in itertools.product(range(b), range(b), range(channels)):
      y, x = p // columns * b + r, p % columns * b + c
      block[r, c, channel] = dtype(images[i, min(y, height - 1), min(x, width - 1), channel])
      if level and place == "before":
        block[r, c, channel] += np.float32(level * drawn[i, y, x, channel])
    if projects:
      block = slow_products(spec, key.matrices[p], block, order)
    for r, c, channel in block:
      value = block[r, c, channel]
      if level and place == "after":
        y, x = p // columns * b + r, p % columns * b + c
        value += np.float32(level * drawn[i, y, x, channel])
      out[i, q // columns * b + r, q % columns * b + c, channel] = value
  return out


def slow_products(spec, matrix, block, order):
  result = {}
  for r, c, channel in block:
    if spec.get("mix", "rows") == "block":
      places = sorted(block)  # row by row, pixel by pixel, channel by channel
      weights = matrix[:, places.index((r, c, channel))]
    else:
      places = [(r, k, channel) for k in range(spec["block_size"])]
      weights = (matrix[channel] if matrix.ndim == 3 else matrix)[:, c]
    products = [np.float32(block[at] * w) for at, w in zip(places, weights, strict=True)]
    result[r, c, channel] = slow_sum(products, order)
  return result


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_rmt_writes_the_bytes_of_the_loops(options):
  for n, (shape, b) in enumerate(SHAPES):
    spec = rmt_spec(shape, b, *options)
    scheme, key = made(spec)
    images = pixels(n, (2, *shape), (np.uint8, np.float32)[n % 2])
    drawn = uniform(n, (2, *scheme.spec.disguised_shape))
    written = scheme.export(key, images, lambda drawn=drawn: drawn)
    assert written.dtype == np.float32
    assert_same(written, slow_export(spec, key, images, drawn))


def test_another_order_of_summing_gives_other_bytes():
  for mixing in (("rows", False), ("block", False)):
    spec = rmt_spec((8, 8, 3), 4, mixing=mixing)
    scheme, key = made(spec)
    images = pixels(0, (1, 8, 8, 3))
    written = scheme.export(key, images, never)
    turned = slow_export(spec, key, images, None, order=reversed)
    np.testing.assert_allclose(written, turned, rtol=0, atol=1e-3)
    assert (written != turned).mean() > 0.1


@pytest.mark.parametrize("options", [o for o in COMBINATIONS if not o[3][0]], ids=str)
@pytest.mark.slow
def test_export_agrees_with_the_device(options):
  for n, (shape, b) in enumerate(SHAPES):
    scheme, key = made(rmt_spec(shape, b, *options))
    images = pixels(n, (3, *shape))
    on_device, _ = scheme.disguise(key, images, None, rng=None)
    written = scheme.export(key, images, never)
    np.testing.assert_allclose(written, on_device, rtol=1e-5, atol=255 * 1e-5)
    restored = np.asarray(scheme.restore(key, written))
    np.testing.assert_allclose(restored, images, rtol=0, atol=0.01)


@pytest.mark.parametrize("spec", [
  rmt_spec((10, 13, 3), 4, noise=(50.0, "before")),
  rmt_spec((10, 13, 3), 4, mixing=("block", False), noise=(50.0, "after")),
  rmt_spec((10, 13, 3), 4, mixing=("rows", True)),
  {"scheme": "permutation", "image_shape": [10, 13, 3], "block_size": 4},
  {"scheme": "aes", "image_shape": [10, 13, 3], "block_size": 4, "salt_pepper": 0.1},
  {"scheme": "aes", "image_shape": [10, 13, 3], "block_size": 4, "unit_pixels": 2},
  {"scheme": "aes", "image_shape": [10, 13, 3], "block_size": 4, "position_keys": True},
], ids=str)  # fmt: skip
def test_bytes_depend_on_neither_batch_nor_chunk(spec, monkeypatch):
  from djax.host import aes

  scheme, key = made(spec)
  images = pixels(1, (37, 10, 13, 3))
  drawn = uniform(1, (37, 12, 16, 3))
  whole = scheme.export(key, images, lambda: drawn)
  for size in (1, 2, 16, 36):
    for start in range(0, 37, size):
      part = slice(start, start + size)
      assert_same(scheme.export(key, images[part], lambda part=part: drawn[part]), whole[part])
  for limit in (1, 5000, 1 << 30):
    monkeypatch.setattr(blockwise, "_STRIP_BYTES", limit)
    monkeypatch.setattr(aes, "_CHUNK_BYTES", limit)
    assert_same(scheme.export(key, images, lambda: drawn), whole)
  empty = scheme.export(key, images[:0], lambda: drawn[:0])
  assert (empty.shape, empty.dtype) == ((0, 12, 16, 3), whole.dtype)


def test_arrays_of_any_layout_give_the_same_bytes():
  spec = rmt_spec((8, 8, 3), 4, noise=(50.0, "before"))
  scheme, key = made(spec)
  images, drawn = pixels(2, (5, 8, 8, 3)), uniform(2, (5, 8, 8, 3))
  expected = scheme.export(key, images, lambda: drawn)
  before = images.copy(), drawn.copy()
  for turn in (np.asfortranarray, lambda a: np.repeat(a, 2, axis=0)[::2]):
    assert_same(scheme.export(key, turn(images), lambda turn=turn: turn(drawn)), expected)
  images.flags.writeable = drawn.flags.writeable = False
  assert_same(scheme.export(key, images, lambda: drawn), expected)
  assert_same(images, before[0])
  assert_same(drawn, before[1])


@hypothesis.settings(max_examples=30)
@given(
  st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4)),
  st.integers(1, 7),
  st.sampled_from([np.uint8, np.float32]),
)
def test_permutation_writes_the_blocks_of_the_loops(shape, b, dtype):
  spec = {"scheme": "permutation", "image_shape": shape, "block_size": min(b, *shape[:2])}
  scheme, key = made(spec)
  images = pixels(3, (2, *shape), dtype)
  assert_same(scheme.export(key, images, never), slow_export(spec, key, images, None))


def test_permutation_and_padding_agree_with_the_device():
  for shape, b in SHAPES:
    spec = {"scheme": "permutation", "image_shape": shape, "block_size": b}
    scheme, key = made(spec)
    images = pixels(3, (2, *shape))
    on_device, _ = scheme.disguise(key, images, None, rng=None)
    assert_same(scheme.export(key, images, never), np.asarray(on_device))
    padded = blockwise.pad_to_blocks(images, block_size=b)
    assert_same(padded, np.asarray(blocks.pad_to_blocks(images, block_size=b)))


def test_plain_exports_the_images_themselves():
  scheme, key = made({"scheme": "plain", "image_shape": [5, 6, 2]})
  for dtype in (np.uint8, np.float32):
    images = pixels(4, (3, 5, 6, 2), dtype)
    assert_same(scheme.export(key, images, never), images)


def test_noise_is_drawn_once_and_only_where_there_is_some():
  shape = [8, 8, 3]
  for spec, expected in (
    (rmt_spec(shape, 4), 0),
    (rmt_spec(shape, 4, noise=(10.0, "before")), 1),
    (rmt_spec(shape, 4, noise=(10.0, "after")), 1),
    ({"scheme": "aes", "image_shape": shape, "block_size": 4}, 0),
    ({"scheme": "aes", "image_shape": shape, "block_size": 4, "salt_pepper": 0.1}, 1),
  ):
    scheme, key = made(spec)
    calls = []

    def draw(calls=calls):
      calls.append(None)
      return uniform(5, (2, *shape))

    scheme.export(key, pixels(5, (2, *shape)), draw)
    assert len(calls) == expected


def test_salt_and_pepper_by_hand():
  images = np.full((1, 1, 6, 1), 100, np.uint8)
  drawn = np.array([0, 0.0999, 0.1, 0.1999, 0.2, 0.999], np.float32).reshape(images.shape)
  speckled = blockwise.salt_pepper(images, drawn, rate=0.2)
  assert speckled.dtype == np.uint8
  assert speckled.ravel().tolist() == [0, 0, 255, 255, 100, 100]
  ends = np.array([0.25, 0.5], np.float32).reshape(1, 1, 2, 1)
  assert blockwise.salt_pepper(images[:, :, :2], ends, rate=0.5).ravel().tolist() == [255, 100]
  # The rate is compared as it is, not rounded to the next float32: 0.7 lies between two of these.
  below, above = np.nextafter(np.float32(0.7), np.float32([0, 1]))
  at = np.array([below, np.float32(0.7), above], np.float32).reshape(1, 1, 3, 1)
  assert np.float64(np.float32(0.7)) < 0.7 < np.float64(above)
  changed = blockwise.salt_pepper(images[:, :, :3], at, rate=0.7) != 100
  assert changed.ravel().tolist() == [True, True, False]


@pytest.mark.parametrize(
  ("images", "message"),
  [
    (np.zeros((2, 8, 8, 3)), r"export: images must be uint8 or float32 .*got float64 \[2, 8, 8, 3\]"),
    (np.zeros((2, 8, 8, 3), np.int32), "export: images must be uint8 or float32 .*got int32"),
    (np.zeros((8, 8, 3), np.uint8), r"\[B, 8, 8, 3\], got uint8 \[8, 8, 3\]"),
    (np.zeros((1, 2, 8, 8, 3), np.uint8), r"\[B, 8, 8, 3\], got uint8 \[1, 2, 8, 8, 3\]"),
    (np.zeros((2, 8, 9, 3), np.uint8), "as in the spec"),
  ],
)  # fmt: skip
def test_what_is_no_batch_of_originals_is_refused(images, message):
  for name in EXPORTED:
    options = {} if name == "plain" else {"block_size": 4}
    scheme, key = made({"scheme": name, "image_shape": [8, 8, 3], **options})
    with pytest.raises(ValueError, match=message) as caught:
      scheme.export(key, images, never)
    assert "\n" not in str(caught.value)


def test_noise_of_another_shape_or_type_is_refused():
  spec = rmt_spec((7, 8, 3), 4, noise=(10.0, "before"))
  scheme, key = made(spec)
  images = pixels(6, (2, 7, 8, 3))
  for drawn in (uniform(0, (2, 7, 8, 3)), uniform(0, (1, 8, 8, 3)), np.zeros((2, 8, 8, 3))):
    with pytest.raises(ValueError, match=r"noise must be drawn as float32 \[2, 8, 8, 3\], got"):
      scheme.export(key, images, lambda drawn=drawn: drawn)
  with pytest.raises(ValueError, match=r"drawn as \[1, 2, 3\], got \[1, 2, 4\]"):
    blockwise.salt_pepper(np.zeros((1, 2, 3), np.uint8), uniform(0, (1, 2, 4)), rate=0.1)


def test_a_key_of_another_geometry_is_refused():
  _, key = made(rmt_spec((8, 8, 3), 4))
  for spec in (
    rmt_spec((12, 8, 3), 4),
    rmt_spec((8, 8, 3), 2),
    rmt_spec((8, 8, 3), 4, mixing=("block", False)),
  ):
    with pytest.raises(ValueError, match="Use the key made for this image shape"):
      schemes.from_spec(spec).export(key, np.zeros((1, *spec["image_shape"]), np.uint8), never)
  scheme = schemes.permutation_scheme((8, 12, 3), block_size=4)
  with pytest.raises(ValueError, match=r"each of 6 block positions, got int32 \[4\]"):
    scheme.export(key, np.zeros((1, 8, 12, 3), np.uint8), never)


# The golden vectors, by the loops above: the documents alone suffice.


def vectors():
  return [v for v in json.loads(VECTORS.read_text())["vectors"] if v["call"] == "export"]


def of_vector(vector):
  """The scheme, key, images and noise of a vector, by the formulas of its file."""
  scheme = schemes.from_spec(vector["spec"])
  master = (
    keys.experiment(vector["experiment"])
    if "experiment" in vector
    else keys.Master(bytes.fromhex(vector["secret"]))
  )
  shape = (vector["batch"], *scheme.spec.image_shape)
  hashes = [2654435761 * i % 2**32 for i in range(int(np.prod(shape)))]
  if vector["dtype"] == "uint8":
    images = np.array([h // 2**24 for h in hashes], np.uint8)
  else:
    images = np.array([np.float32(255) * np.float32(h // 2**8 / 2**24) for h in hashes])
  shape_of_noise = (vector["batch"], *scheme.spec.disguised_shape)
  hashes = [2246822519 * (i + 1) % 2**32 for i in range(int(np.prod(shape_of_noise)))]
  noise = np.array([h // 2**8 / 2**24 for h in hashes], np.float32)
  key = scheme.make_key(master.read)
  return scheme, key, images.reshape(shape), noise.reshape(shape_of_noise)


def test_the_loops_give_every_golden_vector():
  asked = [v for v in vectors() if v["spec"]["scheme"] != "aes"]
  for vector in asked:
    _, key, images, noise = of_vector(vector)
    written = slow_export(vector["spec"], key, images, noise)
    dtype = "float32" if vector["spec"]["scheme"] == "rmt" else vector["dtype"]
    digest = hashlib.sha256(written.astype(f"<{written.dtype.str[1:]}").tobytes()).hexdigest()
    assert [dtype, list(written.shape), digest] == vector["expect"], vector["name"]
  assert {v["spec"]["scheme"] for v in asked} == {"plain", "permutation", "rmt"}


def test_golden_vectors_cover_the_options():
  specs = [v["spec"] for v in vectors()]
  assert {s["scheme"] for s in specs} == set(EXPORTED)
  assert {s.get("mix") for s in specs} >= {None, "block"}
  assert {s.get("noise_place") for s in specs if s.get("noise_level")} == {None, "after"}
  assert any(s.get("matrix") for s in specs) and any(s.get("per_channel") for s in specs)
  assert {s.get("unit_pixels") for s in specs} >= {None, 8, 2, 1}
  assert any(s.get("position_keys") for s in specs) and any(s.get("salt_pepper") for s in specs)
  assert {s["image_shape"][2] for s in specs} == {1, 3}


def test_a_fused_or_reordered_product_would_not_pass_the_vectors(monkeypatch):
  def by_matmul(matrices, x):
    return np.einsum("gckl,grkcb->grlcb", np.broadcast_to(
      matrices, (len(matrices), x.shape[3], *matrices.shape[2:])), x.astype(np.float64)
    ).astype(np.float32)  # fmt: skip

  monkeypatch.setattr(blockwise, "_multiply", by_matmul)
  vector = next(v for v in vectors() if v["spec"].get("mix") == "block")
  answer = selftest.answer(vector)
  assert answer[:2] == vector["expect"][:2] and answer[2] != vector["expect"][2]


# What cannot be worked on: no permutation, and what is traced.


def keyed(key, perm):
  """The key with another permutation, as one that was put together by hand or read from somewhere."""
  return dataclasses.replace(key, perm=perm)


@pytest.mark.parametrize("scheme", ["rmt", "aes", "permutation"])
@pytest.mark.parametrize("wrong", [[0, 1, 1, 3], [0, 1, 2, 4], [-1, 1, 2, 3], [0.0, 1, 2, 3]])
def test_a_key_without_a_permutation_is_refused_by_every_way(scheme, wrong):
  tool, key = made({"scheme": scheme, "image_shape": [8, 8, 1], "block_size": 4})
  images = pixels(0, (2, 8, 8, 1))
  perm = np.array(wrong)
  ways = {
    "disguise": lambda key: tool.disguise(key, images, None, rng=jax.random.key(0)),
    "restore": lambda key: tool.restore(key, images),
    "export": lambda key: tool.export(key, images, never),
  }
  for way in ways.values():
    way(keyed(key, np.array([3, 1, 0, 2])))
    with pytest.raises(ValueError, match=r"perm must (hold each of 0\.\.3 once|.*float64)"):
      way(keyed(key, perm))


def test_host_functions_refuse_what_is_no_permutation():
  images = pixels(0, (1, 8, 8, 1))
  matrices = np.stack([np.eye(4, dtype=np.float32)] * 4)
  calls = {
    "permute": lambda perm: blockwise.permute(perm, images, block_size=4),
    "project": lambda perm: blockwise.project(matrices, images, perm=perm, block_size=4),
  }
  for name, call in calls.items():
    call(np.array([3, 1, 0, 2]))
    for wrong, words in (
      (np.array([0, 1, 1, 3]), "each of 0..3 once, got 3 different indices in 0..3"),
      (np.array([0, 1, 2, -4]), "each of 0..3 once, got 4 different indices in -4..2"),
      (np.array([0, 1, 2]), "one index for each of 4"),
      (np.array([0.0, 1, 2, 3]), "got float64"),
    ):
      with pytest.raises(ValueError, match=rf"{name}: perm must .*{words}.*Use the key"):
        call(wrong)


IMAGES = pixels(0, (1, 8, 8, 1))
FOUR = np.stack([np.eye(4, dtype=np.float32)] * 4)
STEPS = quantise.Quantiser(np.zeros(4, np.float32), np.ones(4, np.float32))
HOST_ONLY = {
  "pad_to_blocks": (lambda x: blockwise.pad_to_blocks(x, block_size=3), IMAGES),
  "permute": (lambda x: blockwise.permute(np.arange(4), x, block_size=4), IMAGES),
  "permute by": (lambda perm: blockwise.permute(perm, IMAGES, block_size=4), np.arange(4)),
  "project": (lambda x: blockwise.project(FOUR, x, perm=None, block_size=4), IMAGES),
  "project by": (lambda m: blockwise.project(m, IMAGES, perm=None, block_size=4), FOUR),
  "project to": (lambda p: blockwise.project(FOUR, IMAGES, perm=p, block_size=4), np.arange(4)),
  "salt_pepper": (lambda x: blockwise.salt_pepper(IMAGES, x, rate=0.1), uniform(0, IMAGES.shape)),
  "aes.encrypt": (lambda x: aes.encrypt(np.ones((1, 16), np.uint8), x, block_size=4), IMAGES),
  "aes.decrypt": (lambda k: aes.decrypt(k, IMAGES, block_size=4), np.ones((1, 16), np.uint8)),
  "quantise": (lambda x: quantise.quantise(x, STEPS, block_size=4), IMAGES),
  "augment": (lambda x: augment.augment(x, uniform(0, (1, 3)), crop=1, flip=True), IMAGES),
}


@pytest.mark.parametrize("name", HOST_ONLY)
def test_host_functions_refuse_what_is_traced_in_one_line(name):
  call, argument = HOST_ONLY[name]
  call(argument)
  call(jnp.asarray(argument))  # a device array with values is no obstacle
  words = (
    rf"^{name.split()[0]}: works on the host, in NumPy: .* got a \w+Tracer. Call it outside of jit"
  )
  for changed in (jax.jit(call), jax.vmap(call)):
    with pytest.raises(TypeError, match=words) as caught:
      changed(argument)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["plain", "rmt", "aes", "permutation"])
def test_export_refuses_what_is_traced_in_one_line(scheme):
  sizes = {} if scheme == "plain" else {"block_size": 4}
  tool, key = made({"scheme": scheme, "image_shape": [8, 8, 1], **sizes})
  words = r"^export: works on the host, .* got a traced \w+\[.*\]\. Call export outside of jit"
  calls = [jax.jit(lambda x: tool.export(key, x, never))]
  if jax.tree.leaves(key):
    calls.append(lambda x: jax.jit(lambda key: tool.export(key, x, never))(key))
  for call in calls:
    with pytest.raises(TypeError, match=words) as caught:
      call(IMAGES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"salt_pepper": 0.1}])
def test_aes_says_in_one_line_that_it_works_on_the_host(options):
  spec = {"scheme": "aes", "image_shape": [8, 8, 1], "block_size": 4, **options}
  tool, key = made(spec)
  rng = jax.random.key(0)
  disguise = lambda key, x, rng: tool.disguise(key, x, None, rng=rng)[0]  # noqa: E731
  disguise(key, IMAGES, rng)
  floats = IMAGES.astype(np.float32)
  for call in (
    lambda: jax.jit(disguise)(key, IMAGES, rng),
    lambda: jax.jit(lambda x: disguise(key, x, rng))(IMAGES),
    lambda: jax.jit(lambda key: disguise(key, IMAGES, rng))(key),
    lambda: jax.jit(lambda rng: disguise(key, IMAGES, rng))(rng),
    lambda: jax.vmap(lambda x: disguise(key, x, rng))(IMAGES),
    lambda: jax.grad(lambda x: disguise(key, x, rng).sum())(floats),
    lambda: jax.jit(tool.restore)(key, IMAGES),
    lambda: jax.vmap(lambda x: tool.restore(key, x))(IMAGES),
  ):
    with pytest.raises(
      TypeError, match=r"^aes: works on the host.*python -m djax disguise"
    ) as caught:
      call()
    assert "\n" not in str(caught.value)
