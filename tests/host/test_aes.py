import concurrent.futures
import hashlib
import itertools
import json
import time

import hypothesis
import jax
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from helpers.fresh import ROOT
from hypothesis import given
from hypothesis import strategies as st

from djax import keys, schemes
from djax.errors import DjaxError, NotInvertibleError
from djax.host import aes

VECTORS = ROOT / "tests" / "vectors" / "export-v1.json"
RNG = jax.random.key(0)


def spec_of(shape=(10, 13, 3), block_size=4, **options):
  return {"scheme": "aes", "image_shape": list(shape), "block_size": block_size, **options}


def made(spec, seed=0):
  scheme = schemes.from_spec(spec)
  return scheme, scheme.make_key(keys.experiment(seed).read)


def pixels(seed, shape):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# docs/key-format.md, section 6, by loops over images, blocks, channels and units.


def slow_unit(encryptor, unit):
  times = 16 // len(unit)
  stretched = b"".join(bytes([value]) * times for value in unit)
  encrypted = encryptor.update(stretched)
  parts = [encrypted[i : i + times] for i in range(0, 16, times)]
  return [(sum(part) + times // 2) // times for part in parts]


def slow_encrypt(key, images, spec, drawn=None):
  _, height, width, channels = images.shape
  b, units, rate = spec["block_size"], spec.get("unit_pixels", 16), spec.get("salt_pepper", 0)
  rows, columns = -(-height // b), -(-width // b)
  encryptors = [Cipher(AES(bytes(one)), ECB()).encryptor() for one in key.aes_keys]
  out = np.zeros((len(images), rows * b, columns * b, channels), np.uint8)
  for i, image in enumerate(images):
    for q in range(rows * columns):
      p = q if key.perm is None else int(key.perm[q])
      for channel in range(channels):
        data = []
        for r, c in itertools.product(range(b), range(b)):
          y, x = p // columns * b + r, p % columns * b + c
          value = image[min(y, height - 1), min(x, width - 1), channel]
          if rate:
            u = float(drawn[i, y, x, channel])
            value = 0 if u < rate / 2 else 255 if u < rate else value
          data.append(int(value))
        encryptor = encryptors[p if len(encryptors) > 1 else 0]
        done = []
        for start in range(0, b * b, units):
          done += slow_unit(encryptor, data[start : start + units])
        for (r, c), value in zip(itertools.product(range(b), range(b)), done, strict=True):
          out[i, q // columns * b + r, q % columns * b + c, channel] = value
  return out


OPTIONS = list(
  itertools.product((True, False), (True, False), schemes.UNITS, (0.0, 0.3))
)  # fmt: skip


@pytest.mark.parametrize(("permute", "position_keys", "unit_pixels", "salt_pepper"), OPTIONS)
def test_every_combination_of_options_is_that_of_the_loops(
  permute, position_keys, unit_pixels, salt_pepper
):
  options = {
    "permute": permute,
    "position_keys": position_keys,
    "unit_pixels": unit_pixels,
    "salt_pepper": salt_pepper,
  }
  for shape in ((7, 9, 3), (8, 4, 1)):
    spec = spec_of(shape, **options)
    scheme, key = made(spec)
    images = pixels(1, (2, *shape))
    drawn = np.asarray(jax.random.uniform(RNG, (2, *scheme.spec.disguised_shape)))
    expected = slow_encrypt(key, images, spec, drawn)
    written = scheme.export(key, images, lambda drawn=drawn: drawn)
    assert written.dtype == np.uint8
    np.testing.assert_array_equal(written, expected)
    disguised, labels = scheme.disguise(key, images, "labels", rng=RNG)
    assert (type(disguised), disguised.dtype, labels) == (np.ndarray, np.uint8, "labels")
    np.testing.assert_array_equal(disguised, expected)


@hypothesis.settings(max_examples=25)
@given(
  st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4)),
  st.sampled_from([(1, 1), (2, 4), (3, 1), (4, 16), (6, 4), (8, 16), (12, 16), (16, 16)]),
  st.booleans(),
  st.booleans(),
  st.integers(0, 99),
)
def test_any_geometry_is_that_of_the_loops_and_comes_back(shape, block, permute, by_position, seed):
  b, units = block
  shape = (max(shape[0], b), max(shape[1], b), shape[2])
  spec = spec_of(shape, b, unit_pixels=units, permute=permute, position_keys=by_position)
  scheme, key = made(spec, seed)
  images = pixels(seed, (2, *shape))
  disguised, _ = scheme.disguise(key, images, None, rng=None)
  np.testing.assert_array_equal(disguised, slow_encrypt(key, images, spec))
  if units == 16:
    np.testing.assert_array_equal(scheme.restore(key, disguised), images)


@pytest.mark.parametrize(("channels", "unit_pixels"), [(1, 16), (3, 16), (3, 4), (3, 2)])
@pytest.mark.parametrize("position_keys", [False, True])
def test_threads_give_the_bytes_of_one_thread(monkeypatch, channels, unit_pixels, position_keys):
  spec = spec_of((8, 12, channels), unit_pixels=unit_pixels, position_keys=position_keys)
  scheme, key = made(spec)
  images = pixels(11, (50, 8, 12, channels))
  started = []

  class Pool(concurrent.futures.ThreadPoolExecutor):
    def __init__(self, workers):
      started.append(workers)
      super().__init__(workers)

  monkeypatch.setattr(aes, "ThreadPoolExecutor", Pool)
  monkeypatch.setattr(aes.os, "cpu_count", lambda: 3)
  alone = scheme.export(key, images, None)
  assert not started  # a small batch
  monkeypatch.setattr(aes, "_THREAD_BYTES", 1)
  monkeypatch.setattr(aes, "_CHUNK_BYTES", 1000)
  np.testing.assert_array_equal(scheme.export(key, images, None), alone)
  assert started == [3]
  if unit_pixels == 16:
    np.testing.assert_array_equal(scheme.restore(key, alone), images)
    assert started == [3, 3]


def test_the_table_of_a_large_batch_is_the_cipher_of_small_ones(monkeypatch):
  key = pixels(12, (1, 16))
  every_pair = np.random.default_rng(13).permutation(1 << 16).astype(np.uint16)
  images = every_pair.view(np.uint8).reshape(8, 128, 128, 1)
  options = {"block_size": 4, "unit_pixels": 2}
  small = [aes.encrypt(key, image[None], **options) for image in images]
  calls = []
  sums = aes._sums
  monkeypatch.setattr(aes, "_sums", lambda *args: calls.append(1) or sums(*args))
  monkeypatch.setattr(aes, "_CHUNK_BYTES", 1 << 14)
  np.testing.assert_array_equal(aes.encrypt(key, images, **options), np.concatenate(small))
  assert len(calls) == 1  # for the table; without one, once an image


def test_units_of_one_pixel_in_an_odd_number_are_looked_up():
  key = schemes.Key(aes_keys=pixels(16, (1, 16)))
  images = pixels(17, (3, 9, 33, 1))
  spec = spec_of((9, 33, 1), 3, unit_pixels=1)
  done = aes.encrypt(key.aes_keys, images, block_size=3, unit_pixels=1)
  np.testing.assert_array_equal(done, slow_encrypt(key, images, spec))


def test_any_memory_order_is_taken():
  key = pixels(14, (1, 16))
  for channels in (1, 3):
    images = pixels(15, (3, 16, 8, channels))
    turned = images.swapaxes(1, 2)
    plain = aes.encrypt(key, np.ascontiguousarray(turned), block_size=4)
    np.testing.assert_array_equal(aes.encrypt(key, turned, block_size=4), plain)


def test_leading_axes_are_free_and_jax_arrays_are_taken():
  scheme, key = made(spec_of())
  images = pixels(2, (2, 3, 10, 13, 3))
  whole, _ = scheme.disguise(key, images, None, rng=None)
  assert whole.shape == (2, 3, 12, 16, 3)
  alone, _ = scheme.disguise(key, images[1, 2], None, rng=None)
  assert alone.shape == (12, 16, 3)
  np.testing.assert_array_equal(alone, whole[1, 2])
  on_device, _ = scheme.disguise(jax.device_put(key), jax.device_put(images), None, rng=None)
  np.testing.assert_array_equal(on_device, whole)
  for leading in ((), (1,), (1, 2)):
    restored = scheme.restore(key, whole[leading])
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, images[leading])


def test_keys_come_from_their_own_streams():
  master = keys.experiment(3)
  scheme = schemes.from_spec(spec_of((8, 12, 1)))
  key = scheme.make_key(master.read)
  assert key.aes_keys.tobytes() == master.read("aes|all", 16)
  other = schemes.from_spec(spec_of((8, 12, 1), position_keys=True, permute=False))
  by_position = other.make_key(master.read)
  assert by_position.perm is None and by_position.aes_keys.shape == (6, 16)
  for p in range(6):
    assert by_position.aes_keys[p].tobytes() == master.read(f"aes|{p}", 16)
  rmt = schemes.rmt_scheme((8, 12, 1), block_size=4).make_key(master.read)
  np.testing.assert_array_equal(key.perm, rmt.perm)
  assert repr(key) == "Key(perm=int32[6], aes_keys=uint8[1, 16]; values hidden)"


# What ECB keeps and what it hides.


def test_equal_units_give_equal_ciphers_unless_each_position_has_its_key():
  tile = pixels(3, (4, 4, 3))
  images = np.tile(tile, (2, 4, 4, 1))
  for position_keys, distinct in ((False, 3), (True, 16 * 3)):
    scheme, key = made(spec_of((16, 16, 3), position_keys=position_keys))
    out, _ = scheme.disguise(key, images, None, rng=None)
    units = out.reshape(2, 4, 4, 4, 4, 3).transpose(0, 1, 3, 5, 2, 4).reshape(2, -1, 16)
    assert len(np.unique(units[0], axis=0)) == distinct
    np.testing.assert_array_equal(units[0], units[1])  # every image has the same keys


def test_a_small_unit_is_a_fixed_substitution():
  scheme, key = made(spec_of((16, 16, 1), unit_pixels=1))
  first, second = pixels(4, (16, 16, 1)), pixels(5, (16, 16, 1))
  key = schemes.Key(perm=np.arange(16), aes_keys=key.aes_keys)
  table = {}
  for image in (first, second):
    out, _ = scheme.disguise(key, image, None, rng=None)
    for plain, cipher in zip(image.ravel().tolist(), out.ravel().tolist(), strict=True):
      assert table.setdefault(plain, cipher) == cipher
  assert len(table) > 200


def test_a_wrong_key_does_not_restore():
  images = pixels(6, (4, 16, 16, 3))
  for options in ({}, {"permute": False}, {"position_keys": True, "permute": False}):
    scheme, key = made(spec_of((16, 16, 3), **options))
    disguised, _ = scheme.disguise(key, images, None, rng=None)
    assert (disguised == images).mean() < 0.02
    _, other = made(spec_of((16, 16, 3), **options), seed=1)
    assert (scheme.restore(other, disguised) == images).mean() < 0.02
    assert (scheme.restore(key, disguised) == images).all()


def test_one_changed_pixel_changes_its_unit_and_no_other():
  scheme, key = made(spec_of((8, 8, 3), permute=False))
  image = pixels(7, (8, 8, 3))
  changed = image.copy()
  changed[5, 2, 1] ^= 1
  one, other = (scheme.disguise(key, x, None, rng=None)[0] for x in (image, changed))
  different = one != other
  assert different[4:8, 0:4, 1].sum() >= 12  # of 16 bytes
  different[4:8, 0:4, 1] = False
  assert not different.any()


# Salt and pepper.


def test_salt_and_pepper_strike_at_their_rate_and_stay_after_restore():
  shape, rate = (32, 32, 3), 0.04
  scheme, key = made(spec_of(shape, salt_pepper=rate))
  images = np.full((40, *shape), 100, np.uint8)
  restored = scheme.restore(key, scheme.disguise(key, images, None, rng=RNG)[0])
  assert set(np.unique(restored)) == {0, 100, 255}
  n = images.size
  # Five standard deviations: a false alarm in less than one of a million seeds.
  for value in (0, 255):
    struck = (restored == value).sum()
    assert abs(struck - n * rate / 2) < 5 * np.sqrt(n * rate / 2)
    assert not abs(struck - n * rate) < 5 * np.sqrt(n * rate)  # the whole rate would be seen
  per_image = (restored != 100).reshape(40, -1).sum(1)
  assert abs(per_image - 3072 * rate).max() < 5 * np.sqrt(3072 * rate)
  assert (restored[0] != restored[1]).any()


def test_rng_is_looked_at_only_for_salt_and_pepper():
  images = pixels(8, (10, 13, 3))
  scheme, key = made(spec_of())
  one, other = (scheme.disguise(key, images, None, rng=rng)[0] for rng in (None, RNG))
  np.testing.assert_array_equal(one, other)
  scheme, key = made(spec_of(salt_pepper=0.5))
  runs = [scheme.disguise(key, images, None, rng=jax.random.fold_in(RNG, i))[0] for i in (0, 1, 0)]
  np.testing.assert_array_equal(runs[0], runs[2])
  assert (runs[0] != runs[1]).any()


# Refusals.


@pytest.mark.parametrize("unit_pixels", [8, 4, 2, 1])
def test_small_units_have_no_way_back(unit_pixels):
  scheme, key = made(spec_of((8, 8, 3), unit_pixels=unit_pixels))
  disguised, _ = scheme.disguise(key, pixels(9, (8, 8, 3)), None, rng=None)
  with pytest.raises(NotInvertibleError, match=f"unit_pixels={unit_pixels}, which.*Keep the") as e:
    scheme.restore(key, disguised)
  assert isinstance(e.value, DjaxError) and isinstance(e.value, ValueError)
  assert e.value.exit_code == 2 and "\n" not in str(e.value)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"unit_pixels": 3}, r"unit_pixels must be one of \(16, 8, 4, 2, 1\), got 3"),
    ({"unit_pixels": 32, "block_size": 8}, "unit_pixels must be one of .*got 32"),
    ({"unit_pixels": 16.0}, "unit_pixels must be one of .*got 16.0"),
    ({"unit_pixels": True}, "unit_pixels must be one of .*got True"),
    ({"block_size": 2}, "must be a multiple of unit_pixels, got block_size=2 with unit_pixels=16"),
    ({"block_size": 7, "unit_pixels": 2}, "must be a multiple of unit_pixels, got block_size=7"),
    ({"block_size": 6, "unit_pixels": 8}, "must be a multiple of unit_pixels, got block_size=6"),
    ({"block_size": 0}, "block_size=0 for 10 x 13"),
    ({"salt_pepper": -0.1}, "salt_pepper must be a share of at least 0 and below 1, got -0.1"),
    ({"salt_pepper": 1.0}, "salt_pepper must be .*got 1.0"),
    ({"salt_pepper": float("nan")}, "salt_pepper must be .*got nan"),
  ],
)
def test_options_that_do_not_exist_or_fit_are_refused(options, message):
  with pytest.raises(ValueError, match=message) as caught:
    schemes.from_spec(spec_of(**options))
  assert "\n" not in str(caught.value)


def test_floats_are_refused_and_what_they_could_use_is_named():
  scheme, key = made(spec_of())
  for dtype in (np.float32, np.float64, np.int32):
    with pytest.raises(
      ValueError, match=f"aes: images must be uint8, got {np.dtype(dtype)}.*rmt"
    ) as e:
      scheme.disguise(key, np.zeros((10, 13, 3), dtype), None, rng=None)
    assert "\n" not in str(e.value)
  with pytest.raises(ValueError, match="must be uint8"):
    scheme.export(key, np.zeros((2, 10, 13, 3), np.float32), None)
  with pytest.raises(ValueError, match="must be uint8"):
    scheme.restore(key, np.zeros((12, 16, 3), np.float32))


def test_a_key_of_another_geometry_is_refused():
  images = np.zeros((1, 8, 8, 1), np.uint8)
  _, key = made(spec_of((8, 12, 1), position_keys=True))
  for use in (aes.encrypt, aes.decrypt):
    with pytest.raises(ValueError, match="each of 4 block positions, got 6"):
      use(key.aes_keys, images, block_size=4)
    with pytest.raises(ValueError, match=r"each of 4 block positions, got int32 \[6\]"):
      use(key.aes_keys[:1], images, block_size=4, perm=key.perm)


# Golden vectors, by the loops.


def test_the_loops_give_every_golden_vector_of_aes():
  asked = [v for v in json.loads(VECTORS.read_text())["vectors"] if v["spec"]["scheme"] == "aes"]
  assert {v["call"] for v in asked} == {"scheme", "export"}
  for vector in asked:
    spec = vector["spec"]
    scheme = schemes.from_spec(spec)
    experiment, secret = vector.get("experiment"), bytes.fromhex(vector.get("secret", ""))
    master = keys.Master(secret) if experiment is None else keys.experiment(experiment)
    key = scheme.make_key(master.read)
    if vector["call"] == "scheme":
      labels = [f"aes|{p}" for p in range(len(key.aes_keys))]
      labels = labels if spec.get("position_keys") else ["aes|all"]
      assert vector["expect"]["aes_keys"] == [master.read(label, 16).hex() for label in labels]
      assert vector["expect"]["perm"] == (None if key.perm is None else key.perm.tolist())
      continue
    shape = (vector["batch"], *scheme.spec.image_shape)
    values = [2654435761 * i % 2**32 // 2**24 for i in range(int(np.prod(shape)))]
    images = np.array(values, np.uint8).reshape(shape)
    shape = (vector["batch"], *scheme.spec.disguised_shape)
    values = [2246822519 * (i + 1) % 2**32 // 2**8 / 2**24 for i in range(int(np.prod(shape)))]
    drawn = np.array(values, np.float32).reshape(shape)
    written = slow_encrypt(key, images, spec, drawn)
    digest = hashlib.sha256(written.tobytes()).hexdigest()
    assert vector["expect"] == ["uint8", list(written.shape), digest], vector["name"]


# Speed.


def seconds(function, repeats):
  """Median of CPU time, which other work on the machine disturbs least."""
  taken = []
  for _ in range(repeats):
    start = time.process_time()
    function()
    taken.append(time.process_time() - start)
  return sorted(taken)[repeats // 2]


def test_a_hundred_times_the_loops_and_near_the_cipher_alone():
  """CIFAR-10's shape, blocks of 4, permuted, all in one run. The loops get images of their own number."""
  spec = spec_of((32, 32, 3))
  scheme, key = made(spec)
  images = pixels(10, (10_000, 32, 32, 3))
  few = images[:2]
  encryptor = Cipher(AES(key.aes_keys[0].tobytes()), ECB()).encryptor()

  written = scheme.export(key, images, None)
  np.testing.assert_array_equal(written[:2], slow_encrypt(key, few, spec))
  ours = seconds(lambda: scheme.export(key, images, None), 7) / len(images)
  loops = seconds(lambda: slow_encrypt(key, few, spec), 5) / len(few)
  alone = seconds(lambda: encryptor.update(memoryview(images.reshape(-1))), 7) / len(images)
  assert loops / ours >= 100
  assert ours / alone <= 8
