import base64
import hmac
import json
import pathlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from test_streams import twin_subkey

from djax import keys
from djax.errors import ManifestError
from djax.owner import sealed

VECTORS = json.loads(
  (pathlib.Path(__file__).parent / "vectors" / "record-streams.json").read_text()
)["sealed"]
MASTER = keys.Master(bytes(range(32)))
NAMES = {"class_names": ["cat", "dog", "größer", "鳥"]}


def twin_seal(secret, plain):
  """docs/format.md, section 5, over the bytes of the JSON."""
  padded = plain + b" " * (-len(plain) % 4096)
  nonce = hmac.digest(twin_subkey(secret, "sealed|nonce"), padded, "sha256")[:12]
  box = ChaCha20Poly1305(twin_subkey(secret, "sealed")).encrypt(nonce, padded, b"djax-disguised 1")
  return base64.b64encode(nonce + box).decode()


def test_what_was_sealed_comes_back():
  for content in (NAMES, {"class_names": []}, {"class_names": ["x" * 10_000], "names": ["a"]}):
    assert sealed.unseal(sealed.seal(content, MASTER), MASTER) == content


def test_sealing_equals_the_twin_and_is_deterministic():
  found = sealed.seal(NAMES, MASTER)
  assert found == sealed.seal(NAMES, keys.Master(bytes(range(32))))
  assert found == twin_seal(bytes(range(32)), json.dumps(NAMES).encode())


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_golden_vectors_hold_for_the_module_and_the_twin(vector):
  secret = bytes.fromhex(vector["secret"])
  found = sealed.seal(vector["content"], keys.Master(secret))
  assert sealed.unseal(found, keys.Master(secret)) == vector["content"]
  # The whole is 5.5 kB of base64: its nonce and tag depend on every byte.
  box = base64.b64decode(found)
  expected = {"length": len(box), "nonce": box[:12].hex(), "tag": box[-16:].hex()}
  assert expected == vector["expect"]
  assert twin_seal(secret, json.dumps(vector["content"]).encode()) == found


def test_the_length_tells_nothing_of_the_names():
  lengths = {len(sealed.seal({"class_names": ["x" * n]}, MASTER)) for n in (0, 1, 17, 3000)}
  assert len(lengths) == 1
  plain = len(json.dumps({"class_names": [""]}))
  full = {"class_names": ["x" * (4096 - plain)]}
  assert len(sealed.seal(full, MASTER)) in lengths
  assert len(sealed.seal({"class_names": ["x" * (4097 - plain)]}, MASTER)) not in lengths


def test_other_content_has_another_nonce():
  first, second = (
    base64.b64decode(sealed.seal({"class_names": [name]}, MASTER)) for name in ("cat", "dog")
  )
  assert first[:12] != second[:12]
  # One keystream for both would show the difference of the names.
  same = np.frombuffer(first[12:], np.uint8) == np.frombuffer(second[12:], np.uint8)
  assert same.mean() < 0.05


def test_nothing_of_the_names_is_in_the_sealed_bytes():
  box = base64.b64decode(sealed.seal({"class_names": ["secretname"] * 50}, MASTER))
  assert b"secretname" not in box
  assert b"class_names" not in box


def test_another_key_is_refused():
  with pytest.raises(ManifestError, match="must open with this key"):
    sealed.unseal(sealed.seal(NAMES, MASTER), keys.Master(bytes(32)))


def test_every_flipped_byte_is_refused():
  box = base64.b64decode(sealed.seal(NAMES, MASTER))
  places = sorted({*range(40), *range(40, len(box), 61), *range(len(box) - 20, len(box))})
  for place in places:
    damaged = bytearray(box)
    damaged[place] ^= 1 << place % 8
    with pytest.raises(ManifestError):
      sealed.unseal(base64.b64encode(damaged).decode(), MASTER)


@pytest.mark.parametrize(
  "damaged", ["", "!", "AAAA", "A" * 16, "é", "A" * 40, base64.b64encode(bytes(4124)).decode()]
)
def test_what_is_no_box_is_refused(damaged):
  with pytest.raises(ManifestError) as error:
    sealed.unseal(damaged, MASTER)
  assert "\n" not in str(error.value)


def test_a_cut_box_is_refused():
  whole = sealed.seal(NAMES, MASTER)
  for length in (4, 16, 40, len(whole) - 4):
    with pytest.raises(ManifestError):
      sealed.unseal(whole[:length], MASTER)
