"""The master secret and its labelled byte streams: derivation ``djx1``.

``subkey(label) = HKDF-SHA256(master, salt="djax/djx1/salt", info="djx1|" + label)``; the stream of a label is ChaCha20
(RFC 8439) under its subkey with counter and nonce zero. Labels and samplers are specified in docs/key-format.md and
pinned by golden vectors.
"""

import base64
import hashlib
import secrets
from typing import NoReturn

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = ["EXPANSION", "MASTER_BYTES", "Master", "experiment", "generate", "secret_bytes"]

EXPANSION = "djx1"
MASTER_BYTES = 32
_SALT = b"djax/djx1/salt"


class Master:
  """A master secret. Its ``repr`` shows the fingerprint only, and it refuses to be pickled or copied.

  Args:
    secret: 32 bytes from a cryptographic generator.
    experiment_seed: set by ``experiment`` alone; marks the fingerprint.

  Raises:
    ValueError: if ``secret`` is not 32 bytes.
  """

  __slots__ = ("_secret", "experiment_seed")

  def __init__(self, secret: bytes, *, experiment_seed: int | None = None):
    if not isinstance(secret, bytes) or len(secret) != MASTER_BYTES:
      raise ValueError(f"Master: secret must be {MASTER_BYTES} bytes. Make one with generate().")
    self._secret = secret
    self.experiment_seed = experiment_seed

  def __repr__(self) -> str:
    return f"Master({self.fingerprint})"

  def __reduce__(self) -> NoReturn:
    raise TypeError(
      "Master: a secret is not pickled or copied. Pass the key file's path and open it there."
    )

  @property
  def fingerprint(self) -> str:
    """Public name of the key: ``djx1-`` and 80 bits in base32, or ``experiment-seed<n>-...``."""
    name = base64.b32encode(self.read("fingerprint", 10)).decode().lower()
    if self.experiment_seed is None:
      return f"{EXPANSION}-{name}"
    return f"experiment-seed{self.experiment_seed}-{name}"

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
    info = f"{EXPANSION}|{label}".encode()
    return HKDF(algorithm=SHA256(), length=32, salt=_SALT, info=info).derive(self._secret)


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


def secret_bytes(master: Master) -> bytes:
  """Returns the 32 secret bytes, for a key file or a worker process's pipe.

  Args:
    master: the key.
  """
  return master._secret
