import hashlib
import hmac
import json
import pathlib
import struct

import numpy as np
import pytest
from scipy import stats

from djax import keys, samplers
from djax.owner import disguiser, streams

VECTORS = json.loads(
  (pathlib.Path(__file__).parent / "vectors" / "record-streams.json").read_text()
)
SECRET = bytes(range(32))
SPEC = {"scheme": "rmt", "image_shape": [4, 5, 2], "block_size": 2, "noise_level": 25.0}


# A slow twin of docs/key-format.md, sections 2, 3 and 7: hashlib, integers and Python floats only.


def twin_subkey(secret, label):
  extracted = hmac.digest(b"djax/djx1/salt", secret, "sha256")
  return hmac.digest(extracted, b"djx1|" + label.encode() + b"\x01", "sha256")


def twin_block(key, counter, nonce):
  """The ChaCha20 block function of RFC 8439, section 2.3."""
  start = struct.unpack("<16I", b"expand 32-byte k" + key + struct.pack("<I", counter) + nonce)
  x = list(start)
  columns = [(i, i + 4, i + 8, i + 12) for i in range(4)]
  diagonals = [(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4) for i in range(4)]
  for a, b, c, d in (columns + diagonals) * 10:
    for add_to, term, turned, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
      x[add_to] = (x[add_to] + x[term]) % 2**32
      mixed = x[turned] ^ x[add_to]
      x[turned] = (mixed << bits | mixed >> (32 - bits)) % 2**32
  return struct.pack("<16I", *((a + b) % 2**32 for a, b in zip(x, start, strict=True)))


def twin_label(purpose, spec, split):
  text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
  return f"{purpose}|{hashlib.sha256(text.encode()).hexdigest()[:16]}|{split}"


def twin_uniforms(secret, purpose, spec, split, pixels, index, view, count):
  place = struct.pack("<QI", index, view)
  nonce = hashlib.sha256(place + hashlib.sha256(pixels).digest()).digest()[:12]
  key = twin_subkey(secret, twin_label(purpose, spec, split))
  stream = b"".join(twin_block(key, i, nonce) for i in range(-(-count // 16)))
  return [(word >> 8) * 2.0**-24 for word in struct.unpack_from(f"<{count}I", stream)]


def twin_label_permutation(secret, classes):
  key = twin_subkey(secret, f"labels|{classes}")
  stream = b"".join(twin_block(key, i, bytes(12)) for i in range(2 + classes // 4))
  words = iter(struct.unpack(f"<{len(stream) // 8}Q", stream))
  perm = list(range(classes))
  for i in range(classes - 1, 0, -1):
    word = next(words)
    while word >= 2**64 // (i + 1) * (i + 1):
      word = next(words)
    j = word % (i + 1)
    perm[i], perm[j] = perm[j], perm[i]
  return perm


def test_twin_is_chacha20():
  """RFC 8439, section 2.3.2."""
  nonce = bytes.fromhex("000000090000004a00000000")
  block = twin_block(SECRET, 1, nonce)
  assert block[:16].hex() == "10f1e7e4d13b5915500fdd1fa32071c4"
  assert block[-16:].hex() == "b5129cd1de164eb9cbd083e8a2503c4e"


def drawn(
  originals,
  indices,
  *,
  secret=SECRET,
  purpose="noise",
  spec=SPEC,
  split="train",
  view=0,
  count=40,
):
  subkey = keys.Master(secret).subkey(streams.label(purpose, spec, split))
  return streams.uniforms(subkey, originals, indices, view=view, count=count)


def originals(batch=3, dtype=np.uint8):
  values = np.random.default_rng(0).integers(0, 256, (batch, 4, 5, 2))
  return values.astype(np.uint8) if dtype == np.uint8 else (values / 3).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("purpose", ["noise", "views"])
@pytest.mark.parametrize("count", [3, 16, 40])
def test_uniforms_equal_the_twin(dtype, purpose, count):
  images, indices = originals(dtype=dtype), [0, 7, 2**40 + 1]
  found = drawn(images, indices, purpose=purpose, view=2, count=count)
  assert found.dtype == np.float32
  for image, index, row in zip(images, indices, found, strict=True):
    pixels = image.astype("<f4" if dtype == np.float32 else "u1").tobytes()
    expected = twin_uniforms(SECRET, purpose, SPEC, "train", pixels, index, 2, count)
    assert row.tolist() == expected


def test_originals_in_another_memory_order_or_endianness_have_the_same_noise():
  images = originals(dtype=np.float32)
  expected = drawn(images, range(3))
  for other in (images.transpose(3, 2, 1, 0).copy().transpose(3, 2, 1, 0), images.astype(">f4")):
    np.testing.assert_array_equal(drawn(other, range(3)), expected)


def test_uniforms_change_with_all_that_makes_a_record():
  images = originals(1)
  one_pixel = images.copy()
  one_pixel[0, 3, 4, 1] ^= 1
  variants = {
    "itself": drawn(images, [5]),
    "index": drawn(images, [6]),
    "high index": drawn(images, [5 + 2**32]),
    "view": drawn(images, [5], view=1),
    "pixel": drawn(one_pixel, [5]),
    "split": drawn(images, [5], split="test"),
    "purpose": drawn(images, [5], purpose="views"),
    "option": drawn(images, [5], spec={**SPEC, "noise_level": 50.0}),
    "shape": drawn(images, [5], spec={**SPEC, "image_shape": [4, 5, 1]}),
    "key": drawn(images, [5], secret=bytes(32)),
    "dtype": drawn(images.astype(np.float32), [5]),
  }
  seen = {}
  for name, found in variants.items():
    # 40 draws of 24 bits: even two alike in a place are rare, all alike means one stream.
    for other, before in seen.items():
      assert (found == before).sum() <= 2, (name, other)
    seen[name] = found


def test_uniforms_do_not_change_with_batch_or_order():
  images, indices = originals(5), np.array([3, 9, 4, 0, 8])
  whole = drawn(images, indices)
  order = np.array([4, 2, 0, 3, 1])
  np.testing.assert_array_equal(drawn(images[order], indices[order]), whole[order])
  for row in range(5):
    np.testing.assert_array_equal(
      drawn(images[row : row + 1], indices[row : row + 1]), whole[row : row + 1]
    )
  np.testing.assert_array_equal(drawn(images, indices, count=7), whole[:, :7])


def test_the_same_image_at_the_same_place_has_one_noise_and_elsewhere_another():
  images = np.repeat(originals(1), 3, axis=0)
  found = drawn(images, [4, 4, 5])
  np.testing.assert_array_equal(found[0], found[1])
  assert not np.array_equal(found[0], found[2])


def test_label_knows_a_spec_by_its_content():
  turned = dict(reversed(SPEC.items()))
  assert list(turned) != list(SPEC)
  read_back = json.loads(json.dumps({**SPEC, "image_shape": (4, 5, 2)}))
  assert streams.label("noise", SPEC, "train") == twin_label("noise", SPEC, "train")
  assert streams.label("noise", turned, "train") == streams.label("noise", read_back, "train")
  assert streams.label("noise", {**SPEC, "permute": True}, "train") != streams.label(
    "noise", SPEC, "train"
  )


def test_images_and_indices_must_be_as_many():
  with pytest.raises(ValueError):
    drawn(originals(3), [0, 1])


def is_uniform(values):
  """Whether values pass for uniform on [0, 1) in steps of 2^-24; a true sampler fails once in 10^6 seeds.

  A Kolmogorov-Smirnov test, a chi-square test over 512 bins, one over the lowest 8 bits, and the range.
  """
  if not ((values >= 0) & (values < 1)).all():
    return False
  steps = values * 2.0**24
  if (steps != np.floor(steps)).any():
    return False
  low = np.bincount(steps.astype(np.int64) % 256, minlength=256)
  bins = np.histogram(values, 512, (0, 1))[0]
  chances = (
    stats.kstest(values, "uniform").pvalue,
    stats.chisquare(bins).pvalue,
    stats.chisquare(low).pvalue,
  )
  return min(chances) > 1e-6 / len(chances)


@pytest.fixture(scope="module")
def many():
  images = np.random.default_rng(1).integers(0, 256, (400, 4, 5, 2), np.uint8)
  return drawn(images, range(400), count=1000).astype(np.float64)


def test_uniforms_are_uniform_and_records_independent(many):
  assert is_uniform(many.ravel())
  assert is_uniform(many[:, 0])  # the first word of 400 streams
  # Neighbouring records: differences of independent uniforms have a variance of 1/6 (sixfold below: 6 sigma).
  difference = many[1:] - many[:-1]
  assert abs(difference.var() - 1 / 6) < 6 * np.sqrt(7 / 180 / difference.size)


@pytest.mark.parametrize(
  "wrong",
  [
    lambda u: u * 255 / 256,
    lambda u: u**2,
    lambda u: np.floor(u * 256) / 256,
    lambda u: np.floor(u * 2**23) / 2**23,
    lambda u: np.where(u < 2**-7, u + 0.5, u),
  ],
  ids=["255/256", "squared", "8 bits", "even steps", "no small values"],
)
def test_the_statistics_reject_a_wrong_sampler(many, wrong):
  assert not is_uniform(wrong(many.ravel()))


def test_the_statistics_see_shared_noise(many):
  shared = np.repeat(many[::2], 2, axis=0)
  difference = shared[1:] - shared[:-1]
  assert abs(difference.var() - 1 / 6) > 6 * np.sqrt(7 / 180 / difference.size)


# Golden vectors; `vectors` is what djax.selftest runs too.


@pytest.mark.parametrize("vector", VECTORS["uniforms"], ids=lambda v: v["name"])
def test_golden_uniforms_hold_for_the_module_and_the_twin(vector):
  secret, pixels = bytes.fromhex(vector["secret"]), bytes.fromhex(vector["original"])
  image = np.frombuffer(pixels, vector["dtype"]).reshape(vector["spec"]["image_shape"])
  found = drawn(
    image[None],
    [vector["index"]],
    secret=secret,
    **{name: vector[name] for name in ("purpose", "spec", "split", "view", "count")},
  )
  expected = [float.fromhex(x) for x in vector["expect"]]
  assert found[0].tolist() == expected
  arguments = (vector[n] for n in ("purpose", "spec", "split"))
  place = (vector[n] for n in ("index", "view", "count"))
  assert twin_uniforms(secret, *arguments, pixels, *place) == expected


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda v: v["name"])
def test_golden_label_permutations_hold_for_the_module_and_the_twin(vector):
  master = keys.Master(bytes.fromhex(vector["secret"]))
  assert vector["label"] == f"labels|{vector['n']}"
  assert disguiser.label_permutation(master, vector["n"]).tolist() == vector["expect"]
  words = samplers.Words(master.read, vector["label"])
  assert samplers.permutation(words, vector["n"]).tolist() == vector["expect"]
  assert twin_label_permutation(bytes.fromhex(vector["secret"]), vector["n"]) == vector["expect"]
