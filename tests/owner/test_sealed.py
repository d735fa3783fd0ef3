import base64
import hmac
import json
import types

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from helpers.fresh import ROOT
from helpers.twins import twin_data_set, twin_subkey

from djax import keys
from djax.errors import ManifestError
from djax.owner import sealed_metadata

FOLDER = ROOT / "tests" / "vectors"
VECTORS = json.loads((FOLDER / "record-streams.json").read_text())["sealed"]
DJX2 = [
  v for v in json.loads((FOLDER / "djx2.json").read_text())["vectors"] if "sealed" in v["call"]
]
SECRET = bytes(range(32))
MASTER = keys.Master(SECRET)
NAMES = {"class_names": ["cat", "dog", "größer", "鳥"]}
ID = "00112233445566778899aabbccddeeff"
SPEC = {"scheme": "permutation", "image_shape": [8, 8, 1], "block_size": 4}


def facts(version=2, role="dataset", request=None, dataset_id=ID, spec=SPEC):
  """As much of a manifest as a box depends on."""
  return types.SimpleNamespace(
    version=version, role=role, request=request, id=dataset_id, spec=spec
  )


BOXES = {
  "version 1": facts(1),
  "data set": facts(),
  "request": facts(role="request", request="a" * 32),
}


@pytest.fixture(params=BOXES)
def box(request):
  return sealed_metadata.box_of(BOXES[request.param], MASTER)


def twin_seal(secret, plain, *, of=None):
  """docs/format.md, sections 5 and 7, over the bytes of the JSON."""
  padded = plain + b" " * (-len(plain) % 4096)
  label, expansion, associated = "sealed", "djx1", b"djax-disguised 1"
  if of is not None and of.version > 1:
    label = f"sealed|{of.role}|{of.request}" if of.request else f"sealed|{of.role}"
    secret, expansion = twin_data_set(secret, of.id, of.spec), "djx2"
    associated = b"djax-disguised 2"
  nonce_key = twin_subkey(secret, f"{label}|nonce", expansion)
  nonce = hmac.digest(nonce_key, padded, "sha256")[:12]
  key = twin_subkey(secret, label, expansion)
  content = ChaCha20Poly1305(key).encrypt(nonce, padded, associated)
  return base64.b64encode(nonce + content).decode()


def test_what_was_sealed_comes_back(box):
  for content in (NAMES, {"class_names": []}, {"class_names": ["x" * 10_000], "names": ["a"]}):
    assert box.unseal(box.seal(content)) == content


@pytest.mark.parametrize("name", BOXES)
def test_sealing_equals_the_twin_and_is_deterministic(name):
  found = sealed_metadata.box_of(BOXES[name], MASTER).seal(NAMES)
  assert found == sealed_metadata.box_of(BOXES[name], keys.Master(SECRET)).seal(NAMES)
  assert found == twin_seal(SECRET, json.dumps(NAMES).encode(), of=BOXES[name])


def test_no_two_boxes_share_a_key_or_open_each_other():
  others = {
    **BOXES,
    "another request": facts(role="request", request="b" * 32),
    "another id": facts(dataset_id="0" * 32),
    "another spec": facts(spec={**SPEC, "block_size": 2}),
  }
  found = {name: sealed_metadata.box_of(one, MASTER).seal(NAMES) for name, one in others.items()}
  assert len({content[:16] for content in found.values()}) == len(found)  # the nonces
  for name, content in found.items():
    for other, one in others.items():
      if other == name:
        assert sealed_metadata.box_of(one, MASTER).unseal(content) == NAMES
        continue
      with pytest.raises(ManifestError, match="must open with this key"):
        sealed_metadata.box_of(one, MASTER).unseal(content)


def test_repr_of_a_box_shows_no_secret(box):
  for secret in (SECRET, keys.secret_bytes(MASTER.data_set(ID, SPEC)), box.subkey(box.label)):
    assert secret.hex()[:8] not in repr(box) and repr(secret)[2:10] not in repr(box)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_golden_vectors_hold_for_the_module_and_the_twin(vector):
  secret = bytes.fromhex(vector["secret"])
  box = sealed_metadata.box_of(facts(1), keys.Master(secret))
  found = box.seal(vector["content"])
  assert box.unseal(found) == vector["content"]
  # The whole is 5.5 kB of base64: its nonce and tag depend on every byte.
  assert ends(found) == vector["expect"]
  assert twin_seal(secret, json.dumps(vector["content"]).encode()) == found


def ends(found):
  data = base64.b64decode(found)
  return {"length": len(data), "nonce": data[:12].hex(), "tag": data[-16:].hex()}


@pytest.mark.parametrize("vector", DJX2, ids=lambda v: v["name"])
def test_the_twin_gives_the_golden_boxes_of_djx2(vector):
  of = facts(2, vector["role"], vector.get("request"), vector["id"], vector["spec"])
  plain = json.dumps(vector["content"]).encode()
  assert ends(twin_seal(bytes.fromhex(vector["secret"]), plain, of=of)) == vector["expect"]
  assert {v["role"] for v in DJX2} == {"dataset", "request"}


def test_the_length_tells_nothing_of_the_names(box):
  lengths = {len(box.seal({"class_names": ["x" * n]})) for n in (0, 1, 17, 3000)}
  assert len(lengths) == 1
  plain = len(json.dumps({"class_names": [""]}))
  full = {"class_names": ["x" * (4096 - plain)]}
  assert len(box.seal(full)) in lengths
  assert len(box.seal({"class_names": ["x" * (4097 - plain)]})) not in lengths


def test_other_content_has_another_nonce(box):
  first, second = (base64.b64decode(box.seal({"class_names": [name]})) for name in ("cat", "dog"))
  assert first[:12] != second[:12]
  # One keystream for both would show the difference of the names.
  same = np.frombuffer(first[12:], np.uint8) == np.frombuffer(second[12:], np.uint8)
  assert same.mean() < 0.05


def test_nothing_of_the_names_is_in_the_sealed_bytes(box):
  data = base64.b64decode(box.seal({"class_names": ["secretname"] * 50}))
  assert b"secretname" not in data
  assert b"class_names" not in data


@pytest.mark.parametrize("name", BOXES)
def test_another_key_is_refused(name):
  found = sealed_metadata.box_of(BOXES[name], MASTER).seal(NAMES)
  with pytest.raises(ManifestError, match="must open with this key"):
    sealed_metadata.box_of(BOXES[name], keys.Master(bytes(32))).unseal(found)


def test_every_flipped_byte_is_refused(box):
  data = base64.b64decode(box.seal(NAMES))
  places = sorted({*range(40), *range(40, len(data), 61), *range(len(data) - 20, len(data))})
  for place in places:
    damaged = bytearray(data)
    damaged[place] ^= 1 << place % 8
    with pytest.raises(ManifestError):
      box.unseal(base64.b64encode(damaged).decode())


@pytest.mark.parametrize(
  "damaged", ["", "!", "AAAA", "A" * 16, "é", "A" * 40, base64.b64encode(bytes(4124)).decode()]
)
def test_what_is_no_box_is_refused(box, damaged):
  with pytest.raises(ManifestError) as error:
    box.unseal(damaged)
  assert "\n" not in str(error.value)


def test_a_cut_box_is_refused(box):
  whole = box.seal(NAMES)
  for length in (4, 16, 40, len(whole) - 4):
    with pytest.raises(ManifestError):
      box.unseal(whole[:length])
