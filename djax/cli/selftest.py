"""Golden vectors, run on this machine: a key must give the same values for ever, on every machine.

The vectors are tests/vectors/*.json, which a wheel carries as djax/vectors. Each vector is a
``call``, its arguments, and what to ``expect``; floats are written by ``float.hex``, so that every
bit counts.
"""

import base64
import hashlib
import json
import os
import tempfile
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

import djax
from djax import keys, schemes
from djax.errors import DataError, DjaxError
from djax.host import aes, samplers
from djax.keys import keyfile
from djax.owner import plan, record_noise, sealed_metadata
from djax.sources import Reading

__all__ = ["Group", "answer", "run", "vectors_folder"]


class Group(NamedTuple):
  """The outcome of one file of vectors.

  Attributes:
    name: of the file.
    source: where its vectors come from.
    vectors: how many there are.
    mismatch: the first that fails, or None.
  """

  name: str
  source: str
  vectors: int
  mismatch: str | None


def run(folder: Path | None = None) -> list[Group]:
  """Runs all golden vectors of a folder, by default of ``vectors_folder()``.

  Returns:
    One group a file, by name.

  Raises:
    DataError: if there are none.
  """
  folder = folder or vectors_folder()
  groups = [_run_file(path) for path in sorted(folder.glob("*.json"))]
  if not groups:
    raise DataError(f"selftest: no golden vectors in {folder}. Install djax again.")
  return groups


def vectors_folder() -> Path:
  """Returns where the golden vectors lie: in the installed package, else in its checkout."""
  package = Path(djax.__file__).parent
  installed = package / "vectors"
  return installed if installed.is_dir() else package.parent / "tests" / "vectors"


def answer(vector: Mapping[str, Any]) -> Any:
  """Computes what a vector's call gives on this machine.

  Returns:
    What ``expect`` must equal: JSON types only.
  """
  return _CALLS[vector["call"]](vector)


def _run_file(path: Path) -> Group:
  content = json.loads(path.read_text(encoding="utf-8"))
  mismatch = None
  for vector in content["vectors"]:
    try:
      same = answer(vector) == vector["expect"]
    except DjaxError:
      same = False
    if not same:
      mismatch = vector["name"]
      break
  return Group(path.stem, content["source"], len(content["vectors"]), mismatch)


def _hkdf(v: Mapping[str, Any]) -> str:
  salt, info = bytes.fromhex(v["salt"]), bytes.fromhex(v["info"])
  kdf = HKDF(algorithm=SHA256(), length=v["length"], salt=salt, info=info)
  return kdf.derive(bytes.fromhex(v["ikm"])).hex()


def _chacha20(v: Mapping[str, Any]) -> str:
  start = v["counter"].to_bytes(4, "little") + bytes.fromhex(v["nonce"])
  cipher = Cipher(ChaCha20(bytes.fromhex(v["key"]), start), mode=None)
  return cipher.encryptor().update(bytes(v["length"])).hex()


def _chacha20poly1305(v: Mapping[str, Any]) -> str:
  key, nonce, plaintext, header = (
    bytes.fromhex(v[name]) for name in ("key", "nonce", "plaintext", "associated_data")
  )
  return ChaCha20Poly1305(key).encrypt(nonce, plaintext, header).hex()


def _argon2id(v: Mapping[str, Any]) -> str:
  kdf = Argon2id(
    salt=bytes.fromhex(v["salt"]),
    length=v["length"],
    iterations=v["t"],
    lanes=v["p"],
    memory_cost=v["m"],
    ad=bytes.fromhex(v["associated_data"]),
    secret=bytes.fromhex(v["secret"]),
  )
  return kdf.derive(bytes.fromhex(v["password"])).hex()


def _keyfile(v: Mapping[str, Any]) -> list[str]:
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "key")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
      file.write("".join(f"{line}\n" for line in v["content"]).encode())
    master = keyfile.read(path, passphrase=lambda: v["passphrase"])
  return [master.fingerprint, master.read("keyfile", 32).hex()]


def _master(v: Mapping[str, Any]) -> keys.Master:
  if "experiment" in v:
    return keys.experiment(v["experiment"])
  return keys.Master(bytes.fromhex(v["secret"]))


def _words(v: Mapping[str, Any]) -> samplers.Words:
  return samplers.Words(_master(v).read, v["label"])


def _data_set(v: Mapping[str, Any]) -> keys.Streams:
  return _master(v).data_set(v["id"], v["spec"])


def _current(v: Mapping[str, Any]) -> record_noise.Current:
  views = {"count": 1, "crop": 0, "flip": False, "together": True, **v.get("views", {})}
  return record_noise.Current(_data_set(v), role=v["role"], views=views, own_id=v.get("request"))


def _drawn(v: Mapping[str, Any]) -> list[str]:
  """What is drawn for one record: ``original`` and ``image``, its view, are bytes in C order."""
  shape = v["spec"]["image_shape"]
  original, image = (
    np.frombuffer(bytes.fromhex(v[name]), v["dtype"]).reshape(1, *shape)
    for name in ("original", "image")
  )
  where = (v["split"], [v["index"]], v["view"])
  if v["call"] == "djx2-views":
    return _hex(_current(v).views(original, *where))
  return _hex(_current(v).noise(original, image, *where, v["count"]))


def _sealed(v: Mapping[str, Any]) -> dict[str, Any]:
  """Nonce and tag of a box depend on every byte of it."""
  fields = {name: v.get(name) for name in ("id", "spec", "role", "request")}
  facts: Any = types.SimpleNamespace(version=2, **fields)
  data = base64.b64decode(sealed_metadata.box_of(facts, _master(v)).seal(v["content"]))
  return {"length": len(data), "nonce": data[:12].hex(), "tag": data[-16:].hex()}


def _source(v: Mapping[str, Any]) -> str:
  request = plan.Request("", {}, v["splits"], reading=Reading(image_size=v["image_size"]))
  return plan.source_hmac(v["names"], v["hashes"], request, _data_set(v))


def _scheme(v: Mapping[str, Any]) -> dict[str, Any]:
  read = _data_set(v).read if v["call"] == "djx2-scheme" else _master(v).read
  key = schemes.from_spec(v["spec"]).make_key(read)
  perm = None if key.perm is None else np.asarray(key.perm).tolist()
  if key.aes_keys is not None:
    return {"perm": perm, "aes_keys": [bytes(one).hex() for one in key.aes_keys]}
  if key.matrices is None:
    return {"perm": perm, "shape": None, "matrices": None}
  return {"perm": perm, "shape": list(key.matrices.shape), "matrices": _hex(key.matrices)}


def _aes(v: Mapping[str, Any]) -> str:
  """Each unit of 16 bytes is an image of 4 x 4 pixels."""
  key, data = (np.frombuffer(bytes.fromhex(v[name]), np.uint8) for name in ("key", "data"))
  apply = aes.encrypt if v["call"] == "aes-ecb-encrypt" else aes.decrypt
  return apply(key[None], data.reshape(-1, 4, 4, 1), block_size=4).tobytes().hex()


def _export(v: Mapping[str, Any]) -> list[Any]:
  """What goes to disk for ``batch`` images, by SHA-256.

  Value i of the images, in C order, is ``floor(h / 2^24)`` for uint8 and ``255 * floor(h / 2^8) * 2^-24`` for float32,
  with ``h = 2654435761 * i mod 2^32``. Value i of the records' noise is ``floor(h / 2^8) * 2^-24`` with
  ``h = 2246822519 * (i + 1) mod 2^32``.
  """
  scheme = schemes.from_spec(v["spec"])
  spec, batch = scheme.spec, v["batch"]
  hashes = _hashes(2654435761, 0, (batch, *spec.image_shape))
  eight_bits = v["dtype"] == "uint8"
  images = (hashes >> 24).astype(np.uint8) if eight_bits else np.float32(255) * _uniform(hashes)
  noise = _uniform(_hashes(2246822519, 1, (batch, *spec.disguised_shape)))
  written = scheme.export(scheme.make_key(_master(v).read), images, lambda: noise)
  data = written.astype(written.dtype.newbyteorder("<")).tobytes()
  return [str(written.dtype), list(written.shape), hashlib.sha256(data).hexdigest()]


def _hashes(factor: int, first: int, shape: tuple[int, ...]) -> np.ndarray:
  numbers = np.arange(first, first + int(np.prod(shape)), dtype=np.uint64)
  return (numbers * np.uint64(factor) % np.uint64(1 << 32)).astype(np.uint32).reshape(shape)


def _uniform(hashes: np.ndarray) -> np.ndarray:
  return (hashes >> 8).astype(np.float32) * np.float32(2**-24)


def _hex(values: Any) -> list[str]:
  return [float(value).hex() for value in np.asarray(values).ravel()]


_CALLS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
  "hkdf-sha256": _hkdf,
  "chacha20": _chacha20,
  "chacha20-poly1305": _chacha20poly1305,
  "argon2id": _argon2id,
  "keyfile": _keyfile,
  "fingerprint": lambda v: _master(v).fingerprint,
  "subkey": lambda v: _master(v).subkey(v["label"]).hex(),
  "stream": lambda v: _master(v).read(v["label"], v["length"]).hex(),
  "permutation": lambda v: samplers.permutation(_words(v), v["n"]).tolist(),
  "uniform": lambda v: _hex(samplers.uniform(_words(v), v["count"])),
  "normal": lambda v: _hex(samplers.normal(_words(v), v["count"])),
  "log": lambda v: _hex(samplers.log(np.array([float.fromhex(x) for x in v["x"]]))),
  "haar": lambda v: _hex(samplers.haar([_words(v)], v["n"])),
  "invertible": lambda v: _hex(samplers.invertible([_words(v)], v["n"])),
  "scheme": _scheme,
  "aes-ecb-encrypt": _aes,
  "aes-ecb-decrypt": _aes,
  "export": _export,
  "djx2-owner-subkey": lambda v: _master(v).owner().subkey(v["label"]).hex(),
  "djx2-subkey": lambda v: _data_set(v).subkey(v["label"]).hex(),
  "djx2-stream": lambda v: _data_set(v).read(v["label"], v["length"]).hex(),
  "djx2-scheme": _scheme,
  "djx2-labels": lambda v: _current(v).labels(v["classes"]).tolist(),
  "djx2-order": lambda v: (
    _current(v).order(v["split"], v["originals"], v["views"]["count"]).tolist()
  ),
  "djx2-views": _drawn,
  "djx2-noise": _drawn,
  "djx2-sealed": _sealed,
  "djx2-source": _source,
}
