"""The master secret and its labelled byte streams: derivations ``djx1`` and ``djx2``.

``djx1``: ``subkey(label) = HKDF-SHA256(master, salt="djax/djx1/salt", info="djx1|" + label)``; the stream of a label is
ChaCha20 (RFC 8439) under its subkey with counter and nonce zero. Nothing in it tells one data set from another, so it
serves old directories and experiments alone.

``djx2``: each data set has a secret of its own, derived from the master, a random public id and the scheme with all its
parameters; labels below it give streams as in ``djx1``. Labels and samplers are specified in docs/key-format.md and
pinned by golden vectors.
"""

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from typing import Any, NoReturn

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = [
  "DATA_SETS",
  "EXPANSION",
  "MASTER_BYTES",
  "Master",
  "Streams",
  "experiment",
  "generate",
  "new_id",
  "secret_bytes",
  "spec_hash",
]

EXPANSION = "djx1"  # of the master's fingerprint and of key files
DATA_SETS = "djx2"  # of the data sets that are written now
MASTER_BYTES = 32
_ID_BYTES = 16
_ID_FORM = re.compile(r"[0-9a-f]{32}")


class Streams:
  """A secret and its labelled streams. Its ``repr`` shows no secret, and it refuses to be pickled or copied.

  Args:
    secret: 32 secret bytes.
    expansion: ``djx1`` or ``djx2``.
    context: put before each label.
  """

  __slots__ = ("_context", "_expansion", "_secret")

  def __init__(self, secret: bytes, *, expansion: str, context: str = ""):
    if not isinstance(secret, bytes) or len(secret) != MASTER_BYTES:
      raise ValueError(
        f"{type(self).__name__}: secret must be {MASTER_BYTES} bytes. Make one with generate()."
      )
    self._secret = secret
    self._expansion = expansion
    self._context = context

  def __repr__(self) -> str:
    return f"{type(self).__name__}({self._expansion}; secret hidden)"

  def __reduce__(self) -> NoReturn:
    raise TypeError(
      f"{type(self).__name__}: a secret is not pickled or copied. Pass the key file's path and open it there."
    )

  def read(self, label: str, count: int) -> bytes:
    """Returns the first ``count`` bytes of a label's stream; what a scheme's ``make_key`` is given.

    Args:
      label: purpose and shape, such as ``perm|64`` or ``rmt|0|4``.
      count: number of bytes.
    """
    stream = Cipher(ChaCha20(self.subkey(label), bytes(16)), mode=None).encryptor()
    return stream.update(bytes(count))

  def subkey(self, label: str) -> bytes:
    """Returns the 32 secret bytes of a label.

    Args:
      label: purpose and shape.
    """
    return _derived(self._secret, self._expansion, self._context + label)


class Master(Streams):
  """A master secret, and its streams under ``djx1``. Its ``repr`` shows the fingerprint only.

  Args:
    secret: 32 bytes from a cryptographic generator.
    experiment_seed: set by ``experiment`` alone; marks the fingerprint.

  Raises:
    ValueError: if ``secret`` is not 32 bytes.
  """

  __slots__ = ("experiment_seed",)

  def __init__(self, secret: bytes, *, experiment_seed: int | None = None):
    super().__init__(secret, expansion=EXPANSION)
    self.experiment_seed = experiment_seed

  def __repr__(self) -> str:
    return f"Master({self.fingerprint})"

  @property
  def fingerprint(self) -> str:
    """Public name of the key, ``djx1-`` and 80 bits in base32, or ``experiment-seed<n>-...``."""
    name = base64.b32encode(self.read("fingerprint", 10)).decode().lower()
    if self.experiment_seed is None:
      return f"{EXPANSION}-{name}"
    return f"experiment-seed{self.experiment_seed}-{name}"

  def owner(self) -> Streams:
    """Returns the streams under ``djx2`` of what concerns the owner alone: MACs and the ledger."""
    return Streams(self._secret, expansion=DATA_SETS, context="owner|")

  def data_set(self, dataset_id: str, spec: Mapping[str, Any]) -> Streams:
    """Returns the streams of one data set under ``djx2``: those of its matrices, orders, noise and sealed names.

    Two data sets whose ids or specs differ in anything share no stream. Who learns this secret, by a known pair or
    otherwise, learns nothing of the master or of other data sets.

    Args:
      dataset_id: 32 hexadecimal digits, from ``new_id``; public.
      spec: ``SchemeSpec.to_dict()``, complete.

    Raises:
      ValueError: for an id of another form.
    """
    if not _ID_FORM.fullmatch(dataset_id):
      raise ValueError(
        f"data_set: dataset_id must be 32 hexadecimal digits in lower case, got {dataset_id!r}. Make one with new_id()."
      )
    label = f"data set|{dataset_id}|{spec_hash(spec)}"
    return Streams(_derived(self._secret, DATA_SETS, label), expansion=DATA_SETS)


def _derived(secret: bytes, expansion: str, label: str) -> bytes:
  """HKDF-SHA256 with the salt and the prefix of a derivation."""
  salt, info = f"djax/{expansion}/salt".encode(), f"{expansion}|{label}".encode()
  return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret)


def spec_hash(spec: Mapping[str, Any]) -> str:
  """Returns SHA-256, in hex, of a spec as JSON: keys sorted, no spaces.

  Args:
    spec: ``SchemeSpec.to_dict()``, complete.
  """
  text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def new_id() -> str:
  """Draws a random public id of a data set or a request: 32 hexadecimal digits."""
  return secrets.token_hex(_ID_BYTES)


def generate() -> Master:
  """Makes a new master secret from the operating system's generator."""
  return Master(secrets.token_bytes(MASTER_BYTES))


def experiment(seed: int) -> Master:
  """Makes the key of a public seed: reproducible, no secret, marked ``experiment`` in its fingerprint.

  Anyone who reads the seed in a config has the key. Never outsource data disguised with it.

  Args:
    seed: any integer of at least 0.

  Raises:
    ValueError: if ``seed`` is negative.
  """
  if seed < 0:
    raise ValueError(f"experiment: seed must be at least 0, got {seed}.")
  secret = hashlib.sha256(f"djax/{EXPANSION}/experiment|{seed}".encode()).digest()
  return Master(secret, experiment_seed=seed)


def secret_bytes(streams: Streams) -> bytes:
  """Returns the 32 secret bytes, for a key file or a worker process's pipe.

  Args:
    streams: a key, or the secret of a data set.
  """
  return streams._secret
