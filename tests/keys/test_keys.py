import copy
import hashlib
import hmac
import json
import math
import pickle
import re
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from helpers.fresh import ROOT

from djax import keys, schemes
from djax.cli import selftest
from djax.errors import DataError
from djax.host import samplers

VECTORS = ROOT / "tests" / "vectors"
SECRET = bytes(range(32))
ID = "00112233445566778899aabbccddeeff"
SPEC = {"scheme": "permutation", "image_shape": [8, 8, 1], "block_size": 4}
NAMES = [
  "djx1",
  "djx2",
  "export-v1",
  "keyfile-v1",
  "record-streams",
  "rfc5869",
  "rfc8439",
  "rfc9106",
  "sp800-38a",
]

# A slow twin of docs/key-format.md, sections 2 to 6 and 8: hashlib, integers and Python floats only.


def twin_subkey(secret, label, expansion="djx1"):
  extracted = hmac.digest(f"djax/{expansion}/salt".encode(), secret, "sha256")
  return hmac.digest(extracted, f"{expansion}|{label}".encode() + b"\x01", "sha256")


def twin_data_set(secret, dataset_id, spec):
  """The secret of a data set under djx2."""
  text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
  spec_hash = hashlib.sha256(text.encode()).hexdigest()
  return twin_subkey(secret, f"data set|{dataset_id}|{spec_hash}", "djx2")


def twin_chacha20_block(key, counter):
  state = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574]
  state += [*struct.unpack("<8I", key), counter, 0, 0, 0]
  x = list(state)

  def add_xor_rotate(a, b, d, bits):
    x[a] = (x[a] + x[b]) & 0xFFFFFFFF
    x[d] ^= x[a]
    x[d] = ((x[d] << bits) | (x[d] >> (32 - bits))) & 0xFFFFFFFF

  columns = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
  diagonals = [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
  for a, b, c, d in (columns + diagonals) * 10:
    add_xor_rotate(a, b, d, 16)
    add_xor_rotate(c, d, b, 12)
    add_xor_rotate(a, b, d, 8)
    add_xor_rotate(c, d, b, 7)
  return struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(x, state, strict=True)))


def twin_stream(secret, label, length, expansion="djx1"):
  key = twin_subkey(secret, label, expansion)
  blocks = [twin_chacha20_block(key, counter) for counter in range(-(-length // 64))]
  return b"".join(blocks)[:length]


def twin_words(secret, label, expansion="djx1"):
  key = twin_subkey(secret, label, expansion)
  for counter in range(1 << 32):
    yield from struct.unpack("<8Q", twin_chacha20_block(key, counter))


def twin_permutation(words, n):
  perm = list(range(n))
  for i in range(n - 1, 0, -1):
    word = next(words)
    while word >= (2**64 // (i + 1)) * (i + 1):
      word = next(words)
    j = word % (i + 1)
    perm[i], perm[j] = perm[j], perm[i]
  return perm


def twin_uniform(words):
  return (next(words) >> 11) * 2.0**-53


def twin_log(x):
  m, e = math.frexp(x)
  if m < 0.7071067811865476:
    m, e = m + m, e - 1
  z = (m - 1.0) / (m + 1.0)
  q = z * z
  s = 1.0 / 23.0
  for d in range(21, 0, -2):
    s = (s * q) + 1.0 / d
  return (e * 0.6931471805599453) + ((z + z) * s)


def twin_normals(words, count):
  found = []
  while len(found) < count:
    u1, u2 = twin_uniform(words), twin_uniform(words)
    a, b = 2.0 * u1 - 1.0, 2.0 * u2 - 1.0
    t = (a * a) + (b * b)
    if 0.0 < t < 1.0:
      f = math.sqrt((-2.0 * twin_log(t)) / t)
      found += [a * f, b * f]
  return found[:count]


def twin_tree(x):
  while len(x) > 1:
    h = len(x) // 2
    x = [x[i] + x[h + i] for i in range(h)] + x[2 * h :]
  return x[0]


def twin_orthogonal(normals, n):
  q = [[0.0] * n for _ in range(n)]
  normals = iter(normals)
  for size in range(1, n + 1):
    x = [next(normals) for _ in range(size)]
    c = n - size
    sign = -1.0 if x[0] < 0.0 else 1.0
    if size == 1:
      q[c][c] = sign
      continue
    q[c][c] = -sign
    x[0] = x[0] + sign * math.sqrt(twin_tree([v * v for v in x]))
    f = 2.0 / twin_tree([v * v for v in x])
    r = [twin_tree([x[i] * q[c + i][c + k] for i in range(size)]) * f for k in range(size)]
    for i in range(size):
      for k in range(size):
        q[c + i][c + k] = q[c + i][c + k] - x[i] * r[k]
  return q


def twin_haar(words, n):
  return twin_orthogonal(twin_normals(words, n * (n + 1) // 2), n)


def twin_invertible(words, n):
  normals = twin_normals(words, n * (n + 1))
  s = [0.5 + 1.5 * twin_uniform(words) for _ in range(n)]
  q1 = twin_orthogonal(normals[: len(normals) // 2], n)
  q2 = twin_orthogonal(normals[len(normals) // 2 :], n)
  return [
    [twin_tree([(q1[i][k] * s[k]) * q2[k][j] for k in range(n)]) for j in range(n)]
    for i in range(n)
  ]


def twin_key(secret, spec, expansion="djx1"):
  """The key of a scheme as (perm, matrices by position and channel), or for aes (perm, keys)."""
  height, width, channels = spec["image_shape"]
  b = spec["block_size"]
  positions = math.ceil(height / b) * math.ceil(width / b)
  perm = None
  if spec.get("permute", True):
    words = twin_words(secret, f"perm|{positions}", expansion)
    perm = twin_permutation(words, positions)
  if spec["scheme"] == "permutation":
    return perm, None
  if spec["scheme"] == "aes":
    names = range(positions) if spec["position_keys"] else ["all"]
    return perm, [twin_stream(secret, f"aes|{name}", 16, expansion).hex() for name in names]
  n = b if spec.get("mix", "rows") == "rows" else b * b * channels
  kind, draw = "", twin_haar
  if spec.get("matrix") == "projection":
    kind, draw = "|projection", twin_invertible
  suffixes = [f"|channel{c}" for c in range(channels)] if spec.get("per_channel") else [""]
  return perm, [
    draw(twin_words(secret, f"rmt|{position}|{n}{kind}{suffix}", expansion), n)
    for position in range(positions)
    for suffix in suffixes
  ]


def bits(values):
  return [float(value).hex() for value in np.asarray(values, np.float64).ravel()]


def scripted(*words):
  """Both a djax stream and the twin's, of given words, over and over."""
  data = struct.pack(f"<{len(words)}Q", *words)
  ours = samplers.Words(lambda label, count: (data * (count // len(data) + 1))[:count], "test")
  return ours, (word for _ in range(1000) for word in words)


def secret_of(vector):
  if "experiment" in vector:
    return hashlib.sha256(b"djax/djx1/experiment|%d" % vector["experiment"]).digest()
  return bytes.fromhex(vector["secret"])


def vectors(name):
  return json.loads((VECTORS / f"{name}.json").read_text())["vectors"]


# Golden vectors.


@pytest.fixture(scope="module")
def groups():
  return {group.name: group for group in selftest.run(VECTORS)}


@pytest.mark.parametrize("name", NAMES)
def test_golden_vectors_hold(name, groups):
  assert sorted(groups) == NAMES
  assert groups[name].mismatch is None
  assert groups[name].vectors == len(vectors(name)) > 0


def changed(expect):
  """An answer that is off by one character, bit or index somewhere."""
  if isinstance(expect, dict) and "tag" in expect:
    return {**expect, "tag": changed(expect["tag"])}
  if isinstance(expect, dict):
    return {**expect, "perm": [1]}
  if isinstance(expect, list):
    last = expect[-1]
    if isinstance(last, int):
      return [*expect[:-1], last + 1]
    if last.lstrip("-").startswith("0x"):
      return [*expect[:-1], math.nextafter(float.fromhex(last), 9.0).hex()]
    return [*expect[:-1], last[:-1] + "!"]
  return expect[:-1] + "!"


@pytest.mark.parametrize("name", NAMES)
def test_selftest_sees_the_least_change_of_any_vector(name, tmp_path):
  for vector in vectors(name):
    content = {"source": "", "vectors": [{**vector, "expect": changed(vector["expect"])}]}
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (group,) = selftest.run(tmp_path)
    assert group.mismatch == vector["name"]


def test_selftest_sees_a_key_file_that_no_longer_opens(tmp_path):
  vector = vectors("keyfile-v1")[0]
  content = {"source": "", "vectors": [{**vector, "passphrase": "another"}]}
  (tmp_path / "keyfile-v1.json").write_text(json.dumps(content))
  assert selftest.run(tmp_path)[0].mismatch == vector["name"]


def test_selftest_without_vectors_is_no_success(tmp_path):
  with pytest.raises(DataError, match="no golden vectors"):
    selftest.run(tmp_path)


def test_golden_vectors_cover_what_keys_are_made_of():
  asked = {(v["call"], v.get("n")) for v in vectors("djx1")}
  assert {("permutation", n) for n in (2, 9, 16, 64)} <= asked
  assert {("haar", n) for n in (2, 4, 7)} | {("invertible", 4)} <= asked
  assert {"fingerprint", "subkey", "stream", "uniform", "normal", "log"} <= {c for c, _ in asked}
  specs = [v["spec"] for v in vectors("djx1") if v["call"] == "scheme"]
  assert any(spec.get("mix") == "block" for spec in specs)
  assert any(spec.get("per_channel") for spec in specs)
  assert {spec["scheme"] for spec in specs} == {"permutation", "rmt"}


def test_golden_vectors_cover_what_a_data_set_is_made_of():
  asked = vectors("djx2")
  calls = {name for name in selftest._CALLS if name.startswith("djx2-")}
  assert {v["call"] for v in asked} == calls and len(calls) == 10
  labels = {v["label"] for v in asked if v["call"] == "djx2-owner-subkey"}
  assert labels == {"manifest|dataset", "manifest|request", "ledger"}
  specs = [v["spec"] for v in asked if v["call"] == "djx2-scheme"]
  assert {spec["scheme"] for spec in specs} == {"permutation", "rmt", "aes"}
  assert {spec.get("mix") for spec in specs} >= {"rows", "block"}
  assert {spec.get("matrix") for spec in specs} >= {"orthogonal", "projection"}
  # No two vectors of one call and label have one answer: keys, ids and specs all enter.
  for call in ("djx2-subkey", "djx2-stream"):
    found = [json.dumps(v["expect"]) for v in asked if v["call"] == call]
    assert len(set(found)) == len(found) > 0


def test_golden_vectors_are_never_written_twice(tmp_path):
  shutil.copy(VECTORS / "make.py", tmp_path)
  (tmp_path / "djx1.json").write_text("kept")
  made = subprocess.run(
    [sys.executable, tmp_path / "make.py", "djx1.json", "keyfile-v1.json", "djx2.json"],
    env={"PYTHONPATH": str(VECTORS.parent.parent), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert made.returncode == 1
  assert "FileExistsError" in made.stderr
  assert (tmp_path / "djx1.json").read_text() == "kept"
  assert not (tmp_path / "keyfile-v1.json").exists()
  assert not (tmp_path / "djx2.json").exists()


# The twin gives the golden vectors too, so the document alone suffices.


def twin_answer(vector):
  call = vector["call"]
  if call == "log":
    return bits([twin_log(float.fromhex(x)) for x in vector["x"]])
  secret = secret_of(vector)
  if call == "fingerprint":
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    number = int.from_bytes(twin_stream(secret, "fingerprint", 10), "big")
    name = "".join(alphabet[number >> shift & 31] for shift in range(75, -1, -5))
    seed = vector.get("experiment")
    return f"djx1-{name}" if seed is None else f"experiment-seed{seed}-{name}"
  if call == "scheme":
    perm, matrices = twin_key(secret, vector["spec"])
    return perm, None if matrices is None else bits(np.array(matrices).astype(np.float32))
  if call == "subkey":
    return twin_subkey(secret, vector["label"]).hex()
  if call == "stream":
    return twin_stream(secret, vector["label"], vector["length"]).hex()
  words = twin_words(secret, vector["label"])
  if call == "permutation":
    return twin_permutation(words, vector["n"])
  if call == "uniform":
    return bits([twin_uniform(words) for _ in range(vector["count"])])
  if call == "normal":
    return bits(twin_normals(words, vector["count"]))
  return bits({"haar": twin_haar, "invertible": twin_invertible}[call](words, vector["n"]))


def test_the_twin_gives_every_golden_vector():
  for vector in vectors("djx1"):
    expect = vector["expect"]
    if vector["call"] == "scheme":
      expect = (expect["perm"], expect["matrices"])
    assert twin_answer(vector) == expect, vector["name"]


def twin_answer_of_a_data_set(vector):
  """Answers to the vectors of djx2 that are about keys alone."""
  master = bytes.fromhex(vector["secret"])
  if vector["call"] == "djx2-owner-subkey":
    return twin_subkey(master, f"owner|{vector['label']}", "djx2").hex()
  secret = twin_data_set(master, vector["id"], vector["spec"])
  if vector["call"] == "djx2-subkey":
    return twin_subkey(secret, vector["label"], "djx2").hex()
  if vector["call"] == "djx2-stream":
    return twin_stream(secret, vector["label"], vector["length"], "djx2").hex()
  if vector["call"] == "djx2-source":
    heads = [*([name, part] for name, part in vector["splits"].items()), vector["image_size"]]
    said = json.dumps(heads).encode()
    for name, digest in zip(vector["names"], vector["hashes"], strict=True):
      said += hashlib.sha256(name.encode()).digest() + bytes.fromhex(digest)
    return hmac.digest(twin_subkey(secret, "source", "djx2"), said, "sha256").hex()
  perm, matrices = twin_key(secret, vector["spec"], "djx2")
  if vector["spec"]["scheme"] == "rmt":
    matrices = bits(np.array(matrices).astype(np.float32))
  return perm, matrices


def test_the_twin_gives_every_golden_vector_about_the_keys_of_data_sets():
  seen = set()
  calls = ("owner-subkey", "subkey", "stream", "source", "scheme")
  for vector in vectors("djx2"):
    if vector["call"].removeprefix("djx2-") not in calls:
      continue  # test_streams.py and test_sealed.py
    seen.add(vector["call"])
    expect = vector["expect"]
    if vector["call"] == "djx2-scheme":
      expect = (expect["perm"], expect.get("matrices", expect.get("aes_keys")))
    assert twin_answer_of_a_data_set(vector) == expect, vector["name"]
  assert len(seen) == len(calls)


def test_the_twins_chacha20_is_that_of_the_rfc():
  vector = next(v for v in vectors("rfc8439") if v["name"] == "A.1 #2")
  assert twin_chacha20_block(bytes(32), 1).hex() == vector["expect"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [3, 5, 8, 13])
def test_matrices_agree_with_the_twin(seed, n):
  secret = secret_of({"experiment": seed})
  ours = samplers.Words(keys.experiment(seed).read, "test")
  words = twin_words(secret, "test")
  assert bits(samplers.haar([ours], n)) == bits(twin_haar(words, n))
  assert bits(samplers.invertible([ours], n)) == bits(twin_invertible(words, n))
  assert samplers.permutation(ours, n).tolist() == twin_permutation(words, n)
  assert int(ours.take(1)[0]) == next(words)


def test_many_matrices_at_once_are_those_one_by_one():
  secret = keys.experiment(5)
  labels = [f"rmt|{position}|6" for position in range(4)]
  together = samplers.haar([samplers.Words(secret.read, label) for label in labels], 6)
  for label, matrix in zip(labels, together, strict=True):
    assert bits(matrix) == bits(twin_haar(twin_words(secret_of({"experiment": 5}), label), 6))


def test_log_agrees_with_the_twin():
  x = np.array([twin_uniform(twin_words(SECRET, f"{i}")) + 2.0**-53 for i in range(500)])
  assert bits(samplers.log(x)) == bits([twin_log(v) for v in x.tolist()])


def test_rejected_words_are_dropped_as_the_twin_drops_them():
  top = 2**64 - 1
  words = (top, 5, 2**64 // 7 * 7, 2**64 // 7 * 7 - 1, top - 1, 3, 2, top - 3, 1, 0, 9)
  ours, twin = scripted(*words)
  assert samplers.permutation(ours, 7).tolist() == twin_permutation(twin, 7)
  assert int(ours.take(1)[0]) == next(twin)


def test_rejected_pairs_are_dropped_as_the_twin_drops_them():
  center, corner = 2**63, 2**64 - 1
  words = (center, center, corner, corner, 0, 0, center, 3**39, 5**27, center, corner, 7)
  ours, twin = scripted(*words)
  assert bits(samplers.normal(ours, 9)) == bits(twin_normals(twin, 9))
  assert int(ours.take(1)[0]) == next(twin)


# The master.


def test_repr_shows_the_fingerprint_only():
  master = keys.Master(SECRET)
  assert repr(master) == f"Master({master.fingerprint})"
  for shown in (repr(master), str(master), f"{master}", repr([master]), repr(keys.experiment(3))):
    assert SECRET.hex()[:8] not in shown
    assert "\\x" not in shown


@pytest.mark.parametrize(
  "master",
  [
    keys.generate(),
    keys.experiment(1),
    keys.generate().owner(),
    keys.generate().data_set(ID, SPEC),
  ],
)
def test_secrets_refuse_pickle_and_copy(master):
  for take in (pickle.dumps, copy.copy, copy.deepcopy):
    with pytest.raises(TypeError, match="not pickled or copied"):
      take(master)


def test_scheme_key_hides_its_values_and_refuses_pickle_and_copy():
  key = schemes.rmt_scheme((4, 4, 1), block_size=2).make_key(keys.experiment(0).read)
  assert repr(key) == "Key(perm=int32[4], matrices=float32[4, 2, 2]; values hidden)"
  for take in (pickle.dumps, copy.copy, copy.deepcopy):
    with pytest.raises(TypeError, match="not pickled or copied"):
      take(key)


def test_repr_of_a_data_sets_secret_shows_nothing():
  for streams in (keys.Master(SECRET).owner(), keys.Master(SECRET).data_set(ID, SPEC)):
    assert repr(streams) == "Streams(djx2; secret hidden)"
    assert keys.secret_bytes(streams).hex()[:8] not in f"{streams} {[streams]}"


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33), "0" * 32, bytearray(32)])
def test_master_needs_32_bytes(secret):
  with pytest.raises(ValueError, match="secret must be 32 bytes") as caught:
    keys.Master(secret)
  assert repr(secret) not in str(caught.value)


def test_generated_keys_differ_and_are_named_djx1():
  names = {keys.generate().fingerprint for _ in range(50)}
  assert len(names) == 50
  assert all(re.fullmatch("djx1-[a-z2-7]{16}", name) for name in names)


def test_experiment_is_marked_and_reproducible():
  master = keys.experiment(7)
  assert re.fullmatch("experiment-seed7-[a-z2-7]{16}", master.fingerprint)
  assert master.fingerprint == keys.experiment(7).fingerprint
  assert master.experiment_seed == 7
  assert keys.generate().experiment_seed is None
  with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
    keys.experiment(-1)


def test_masters_of_other_seeds_share_nothing():
  streams = {keys.experiment(seed).read("perm|64", 64) for seed in range(50)}
  assert len({stream[i : i + 8] for stream in streams for i in range(0, 64, 8)}) == 400
  assert len({keys.experiment(seed).fingerprint[-16:] for seed in range(50)}) == 50


def test_one_changed_bit_of_the_secret_changes_every_stream():
  first = keys.Master(SECRET)
  for i in range(32):
    other = keys.Master(bytes(b ^ (i == j) for j, b in enumerate(SECRET)))
    for label in ("fingerprint", "perm|64", "rmt|0|4"):
      a, b = (np.frombuffer(m.read(label, 512), np.uint8) for m in (first, other))
      different_bits = int(np.unpackbits(a ^ b).sum())
      assert 1792 < different_bits < 2304  # of 4096: eight standard deviations


def test_labels_are_independent_of_each_other():
  labels = ["fingerprint", "perm|1", "perm|11", "rmt|1|11", "rmt|11|1", "rmt|1|1|1", "", "|"]
  labels += [f"rmt|{position}|4" for position in range(64)]
  labels += [f"rmt|{position}|4|channel{c}" for position in range(8) for c in range(3)]
  master = keys.Master(SECRET)
  streams = [np.unpackbits(np.frombuffer(master.read(x, 512), np.uint8)) for x in labels]
  for i, stream in enumerate(streams):
    for other in streams[:i]:
      assert 1792 < int((stream ^ other).sum()) < 2304  # of 4096: eight standard deviations


def test_keys_of_a_scheme_share_no_matrix():
  scheme = schemes.rmt_scheme((8, 8, 3), block_size=2, per_channel=True)
  matrices = np.concatenate(
    [np.asarray(scheme.make_key(keys.experiment(s).read).matrices) for s in range(2)]
  )
  assert len({matrix.tobytes() for matrix in matrices.reshape(-1, 4)}) == 2 * 16 * 3


def test_a_stream_is_a_prefix_of_its_longer_self():
  master = keys.Master(SECRET)
  assert master.read("perm|9", 200)[:37] == master.read("perm|9", 37)
  assert master.read("perm|9", 0) == b""


# Data sets.


@pytest.mark.parametrize(
  "wrong", ["", "0" * 31, "0" * 33, "0" * 31 + "G", "A" * 32, "0" * 32 + "\n", "٣" * 32]
)
def test_an_id_of_another_form_is_refused(wrong):
  with pytest.raises(ValueError, match="dataset_id must be 32 hexadecimal digits in lower case"):
    keys.Master(SECRET).data_set(wrong, SPEC)


def test_new_ids_have_the_form_and_differ():
  ids = {keys.new_id() for _ in range(50)}
  assert len(ids) == 50
  assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
  keys.Master(SECRET).data_set(ids.pop(), SPEC)


def test_spec_hash_knows_a_spec_by_its_content():
  assert keys.spec_hash(dict(reversed(SPEC.items()))) == keys.spec_hash(SPEC)
  assert keys.spec_hash(json.loads(json.dumps(SPEC))) == keys.spec_hash(SPEC)
  assert keys.spec_hash({**SPEC, "image_shape": (8, 8, 1)}) == keys.spec_hash(SPEC)
  assert keys.spec_hash({**SPEC, "block_size": 2}) != keys.spec_hash(SPEC)
  text = '{"block_size":4,"image_shape":[8,8,1],"scheme":"permutation"}'
  assert keys.spec_hash(SPEC) == hashlib.sha256(text.encode()).hexdigest()


def test_data_sets_the_owner_and_the_key_share_no_stream():
  """512 bytes a stream; of 4096 bits two streams differ in half, within eight standard deviations."""
  master = keys.Master(SECRET)
  every = [master, master.owner(), keys.Master(bytes(32)).data_set(ID, SPEC)]
  every += [master.data_set(one, SPEC) for one in (ID, "0" * 32, ID[:-1] + "e")]
  every += [master.data_set(ID, {**SPEC, name: 2}) for name in ("block_size", "new")]
  # A label that spells out another's derivation is not that one.
  labels = ["perm|64", "owner|perm|64", f"data set|{ID}|{keys.spec_hash(SPEC)}"]
  streams = [
    np.unpackbits(np.frombuffer(one.read(label, 512), np.uint8))
    for one in every
    for label in labels
  ]
  for i, stream in enumerate(streams):
    for other in streams[:i]:
      assert 1792 < int((stream ^ other).sum()) < 2304


def test_the_secret_of_a_data_set_does_not_give_another_one():
  """What workers get: from it neither the master nor the secret of another data set follows by the same rules."""
  master = keys.Master(SECRET)
  one = keys.secret_bytes(master.data_set(ID, SPEC))
  other = keys.secret_bytes(master.data_set("0" * 32, SPEC))
  assert keys.secret_bytes(keys.Master(one).data_set("0" * 32, SPEC)) != other
  assert (
    len({one, other, SECRET, keys.secret_bytes(master.owner())}) == 3
  )  # the owner's is the master
