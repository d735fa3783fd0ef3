"""Key files: one master secret in a small text file, perhaps under a passphrase.

Argon2id turns the passphrase into a key for ChaCha20-Poly1305; everything above the payload is its
associated data. The format is specified in docs/key-format.md and pinned by golden vectors.
"""

import base64
import binascii
import datetime
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from djax import keys
from djax.errors import ConfigError, KeyFileError, UnsafeError, WrongPassphraseError
from djax.io import files
from djax.keys.passphrase import (
  ENVIRONMENT,
  find_passphrase,
  forms,
  new_passphrase,
  read_private,
)

__all__ = ["ENVIRONMENT", "VERSION", "KeyInfo", "find_passphrase", "inspect", "read", "write"]

VERSION = 1

_MAGIC = b"# djax key file\n"
_IN_THE_CLEAR = (
  "# No passphrase: the secret below is in the clear. Whoever reads this file has the key.\n"
)
_SALT_BYTES = 16
_NONCE_BYTES = 12
_TAG_BYTES = 16
_CHECKSUM = re.compile(rb"checksum: ([0-9a-f]{64})\n")
_CHECKSUM_BYTES = len("checksum: \n") + 64
_FORMAT = re.compile(
  r"(?P<header>(?:#.*\n)+?"
  r"# created: (?P<created>[0-9TZ:-]+)\n"
  r"(?:#.*\n)*"
  r"version: [0-9]+\n"
  r"expansion: [a-z0-9]+\n"
  r"fingerprint: (?P<fingerprint>djx1-[a-z2-7]{16})\n"
  r"kdf: (?:none|argon2id t=(?P<t>[0-9]{1,9}) m=(?P<m>[0-9]{1,9}) p=(?P<p>[0-9]{1,9})"
  r" salt=(?P<salt>[A-Za-z0-9+/=]+)\n"
  r"nonce: (?P<nonce>[A-Za-z0-9+/=]+))\n)"
  r"payload: (?P<payload>[A-Za-z0-9+/=]+)\n"
)

_Path = str | os.PathLike[str]


class _Cost(NamedTuple):
  """Argon2id's passes, KiB of memory and lanes."""

  t: int
  m: int
  p: int


_COST = _Cost(t=3, m=1 << 16, p=4)
_MOST = _Cost(t=16, m=1 << 20, p=16)


@dataclass(frozen=True)
class KeyInfo:
  """What a key file says without its passphrase.

  Attributes:
    fingerprint: public name of the key.
    expansion: version of the derivation.
    version: version of the file format.
    created: UTC time in ISO 8601.
    protected: whether a passphrase is needed.
  """

  fingerprint: str
  expansion: str
  version: int
  created: str
  protected: bool


class _Parsed(NamedTuple):
  """A whole and well-formed key file, not opened yet."""

  info: KeyInfo
  header: bytes
  cost: _Cost | None
  salt: bytes
  nonce: bytes
  payload: bytes

  def __repr__(self) -> str:
    return f"_Parsed({self.info})"


def write(path: _Path, master: keys.Master, *, passphrase: str | None) -> None:
  """Writes a new key file, mode 0600; it gets its name when it is on the disk and was read back.

  Args:
    path: where; must not exist.
    master: the secret.
    passphrase: what protects the file, see ``new_passphrase``; or None to keep the secret in it in the clear.

  Raises:
    UnsafeError: if ``path`` exists or is being written by another process, or ``master`` is an experiment's.
    ConfigError: if ``passphrase`` is empty.
    KeyFileError: if the passphrase could not be typed again, or the file read back is not what was written. A failed
      write leaves no file.
    OSError: if the file cannot be written.
  """
  path = os.fspath(path)
  if master.experiment_seed is not None:
    raise UnsafeError(
      f"key file {path}: an experiment's key comes from a public seed and protects nothing, "
      "so it is not written. Make a key with keygen."
    )
  if passphrase == "":
    raise ConfigError(f"key file {path}: a passphrase must not be empty.")
  if passphrase is not None:
    passphrase = new_passphrase(passphrase)
  target = Path(path)
  given = None if passphrase is None else lambda: passphrase
  try:
    with files.new_file(target) as file:
      mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
      if os.name == "posix" and mode & 0o077:
        raise KeyFileError(
          f"key file {path}: must lie where files have rights of their own, but on this disk its mode is {mode:04o}: "
          "others could read the key. Nothing was written; choose another disk."
        )
      file.write(_render(path, master, passphrase))
      file.flush()
      os.fsync(file.fileno())
      back = _read(path, files.temporary_of(target), passphrase=given)
      if not hmac.compare_digest(keys.secret_bytes(back), keys.secret_bytes(master)):
        raise KeyFileError(f"key file {path}: read back as another key than was written.")
  except UnsafeError as error:
    if os.path.lexists(target):
      raise UnsafeError(
        f"key file {path}: exists already and is never overwritten. Choose another name."
      ) from None
    raise UnsafeError(f"key file {error}") from None


def read(path: _Path, *, passphrase: Callable[[], str] | None) -> keys.Master:
  """Opens a key file.

  Args:
    path: the file; a symbolic link is followed.
    passphrase: called once if the file is protected, see ``find_passphrase``; None if there is none
      to give.

  Returns:
    The master secret.

  Raises:
    KeyFileError: if the file is missing, damaged, open to others, of a newer version, too costly to
      open, or needs a passphrase and ``passphrase`` is None.
    WrongPassphraseError: if the file is whole and the passphrase does not open it.
  """
  return _read(os.fspath(path), path, passphrase=passphrase)


def _read(path: str, place: _Path, *, passphrase: Callable[[], str] | None) -> keys.Master:
  """Opens a key file; messages call it ``path``, wherever it lies."""
  parsed = _parse(path, place)
  if parsed.cost is None:
    return _master(path, parsed.payload, parsed.info)
  if passphrase is None:
    raise KeyFileError(
      f"key file {path}: is protected, and no passphrase was given. In code: keys.load(path, getpass.getpass())."
    )
  for text in forms(passphrase()):
    key = _stretch(path, text, parsed.cost, parsed.salt)
    try:
      secret = ChaCha20Poly1305(key).decrypt(parsed.nonce, parsed.payload, parsed.header)
    except InvalidTag:
      continue
    return _master(path, secret, parsed.info)
  raise WrongPassphraseError(
    f"key file {path}: wrong passphrase. The file itself is whole (its checksum holds)."
  )


def inspect(path: _Path) -> KeyInfo:
  """Reads what a key file says of itself, without its passphrase.

  A protected file's header is vouched for only when the passphrase opens it.

  Args:
    path: the file; a symbolic link is followed.

  Raises:
    KeyFileError: as ``read``.
  """
  path = os.fspath(path)
  parsed = _parse(path, path)
  if parsed.cost is None:
    _master(path, parsed.payload, parsed.info)
  return parsed.info


def _render(path: str, master: keys.Master, passphrase: str | None) -> bytes:
  """Returns the bytes of a key file."""
  created = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
  salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
  if passphrase is None:
    protection = "kdf: none\n"
  else:
    cost = " ".join(f"{name}={value}" for name, value in _COST._asdict().items())
    protection = f"kdf: argon2id {cost} salt={_base64(salt)}\nnonce: {_base64(nonce)}\n"
  header = (
    f"{_MAGIC.decode()}"
    f"# created: {created}\n"
    f"# fingerprint: {master.fingerprint}\n"
    f"{_IN_THE_CLEAR if passphrase is None else ''}"
    f"version: {VERSION}\n"
    f"expansion: {keys.EXPANSION}\n"
    f"fingerprint: {master.fingerprint}\n"
    f"{protection}"
  ).encode()
  payload = keys.secret_bytes(master)
  if passphrase is not None:
    key = _stretch(path, passphrase, _COST, salt)
    payload = ChaCha20Poly1305(key).encrypt(nonce, payload, header)
  body = header + f"payload: {_base64(payload)}\n".encode()
  return body + f"checksum: {hashlib.sha256(body).hexdigest()}\n".encode()


def _parse(path: str, place: _Path) -> _Parsed:
  """Reads a key file and checks all that needs no passphrase."""
  name = f"key file {path}"
  # Whoever moved the file through a system with other line ends has lost nothing: the checksum is over these.
  missing = " Correct the path, or take a copy. For a new key: python -m djax keygen OUT"
  content = read_private(place, name, missing).replace(b"\r\n", b"\n")
  if not content:
    raise KeyFileError(f"{name}: is empty.")
  if not content.startswith(_MAGIC):
    why = "it does not begin with '# djax key file'" if content.isascii() else "it is not text"
    raise KeyFileError(f"{name}: is not a djax key file, {why}.")
  body, last = content[:-_CHECKSUM_BYTES], _CHECKSUM.fullmatch(content[-_CHECKSUM_BYTES:])
  if last is None:
    raise KeyFileError(
      f"{name}: is damaged, it does not end with its checksum line. Use a copy of the file."
    )
  if hashlib.sha256(body).hexdigest() != last[1].decode():
    raise KeyFileError(f"{name}: is damaged, its checksum does not hold. Use a copy of the file.")
  text = body.decode("ascii", "replace")
  version = _number(name, text, r"version: ([0-9]{1,9})")
  if version > VERSION:
    raise KeyFileError(
      f"{name}: has format version {version}, this djax reads up to {VERSION}. Update djax."
    )
  expansion = _number(name, text, r"expansion: djx([0-9]{1,9})")
  if expansion > int(keys.EXPANSION.removeprefix("djx")):
    raise KeyFileError(
      f"{name}: has expansion djx{expansion}, this djax knows up to {keys.EXPANSION}. Update djax."
    )
  fields = _FORMAT.fullmatch(text)
  if version != VERSION or f"djx{expansion}" != keys.EXPANSION or fields is None:
    raise _malformed(name)
  protected = fields["t"] is not None
  info = KeyInfo(
    fields["fingerprint"], keys.EXPANSION, version, fields["created"], protected=protected
  )
  header = fields["header"].encode("ascii", "replace")
  if not protected:
    payload = _bytes(name, fields["payload"], keys.MASTER_BYTES)
    return _Parsed(info, header, None, b"", b"", payload)
  cost = _Cost(*(int(fields[part]) for part in _Cost._fields))
  if any(asked > most for asked, most in zip(cost, _MOST, strict=True)):
    raise KeyFileError(
      f"{name}: asks for Argon2id t={cost.t} m={cost.m} p={cost.p}, more than this djax spends "
      f"(t={_MOST.t} m={_MOST.m} p={_MOST.p})."
    )
  if cost.t < 1 or cost.p < 1 or cost.m < 8 * cost.p:
    raise _malformed(name)
  return _Parsed(
    info,
    header,
    cost,
    _bytes(name, fields["salt"], _SALT_BYTES),
    _bytes(name, fields["nonce"], _NONCE_BYTES),
    _bytes(name, fields["payload"], keys.MASTER_BYTES + _TAG_BYTES),
  )


def _number(name: str, text: str, line: str) -> int:
  """Returns the number in the one line of that form."""
  match = re.search(f"^{line}$", text, re.MULTILINE)
  if match is None:
    raise _malformed(name)
  return int(match[1])


def _bytes(name: str, encoded: str, length: int) -> bytes:
  """Decodes base64 of a known length."""
  try:
    decoded = base64.b64decode(encoded, validate=True)
  except binascii.Error:
    raise _malformed(name) from None
  if len(decoded) != length:
    raise _malformed(name)
  return decoded


def _malformed(name: str) -> KeyFileError:
  return KeyFileError(f"{name}: its checksum holds, but it is not of the form of version 1.")


def _master(path: str, secret: bytes, info: KeyInfo) -> keys.Master:
  """Makes the master and holds it against the fingerprint in the file."""
  master = keys.Master(secret)
  if master.fingerprint != info.fingerprint:
    raise KeyFileError(
      f"key file {path}: names {info.fingerprint}, but holds the key {master.fingerprint}."
    )
  return master


def _stretch(path: str, passphrase: str, cost: _Cost, salt: bytes) -> bytes:
  """Derives 32 bytes from a passphrase by Argon2id."""
  try:
    kdf = Argon2id(salt=salt, length=32, iterations=cost.t, lanes=cost.p, memory_cost=cost.m)
  except UnsupportedAlgorithm:
    raise KeyFileError(
      f"key file {path}: this build of cryptography has no Argon2id. Install its wheel from PyPI."
    ) from None
  return kdf.derive(passphrase.encode("utf-8", "surrogateescape"))


def _base64(data: bytes) -> str:
  return base64.b64encode(data).decode()
