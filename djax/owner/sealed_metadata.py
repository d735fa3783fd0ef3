"""What the owner alone may read in a manifest: class names, sealed under the key. docs/format.md section 5."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from djax.disguised.manifest import Manifest
from djax.errors import ManifestError
from djax.keys import Master

__all__ = ["Box", "box_of"]

_UNIT = 4096


class Box(NamedTuple):
  """Where something is sealed.

  Attributes:
    subkey: gives the 32 secret bytes of a label.
    label: of the subkey. No two boxes share it: under one subkey two messages with the same plaintext and other
      associated data would have one nonce.
    associated: bytes that are authenticated along with the content.
  """

  subkey: Callable[[str], bytes]
  label: str
  associated: bytes

  def seal(self, content: Mapping[str, Any]) -> str:
    """Encrypts what the owner alone may read in a manifest.

    Args:
      content: JSON types.

    Returns:
      base64; the same for the same content and box. Its length tells that of the content in steps of 4096 bytes.
    """
    plain = json.dumps(content).encode()
    plain += b" " * (-len(plain) % _UNIT)
    nonce = hmac.new(self.subkey(f"{self.label}|nonce"), plain, hashlib.sha256).digest()[:12]
    box = ChaCha20Poly1305(self.subkey(self.label)).encrypt(nonce, plain, self.associated)
    return base64.b64encode(nonce + box).decode()

  def unseal(self, sealed: str) -> dict[str, Any]:
    """Undoes ``seal``.

    Args:
      sealed: as in the manifest.

    Raises:
      ManifestError: if it is damaged or of another key or box.
    """
    try:
      box = base64.b64decode(sealed, validate=True)
      aead = ChaCha20Poly1305(self.subkey(self.label))
      return json.loads(aead.decrypt(box[:12], box[12:], self.associated))
    except (InvalidTag, ValueError):
      raise ManifestError(
        "the sealed part of the manifest must open with this key, it does not."
      ) from None


def box_of(manifest: Manifest, master: Master) -> Box:
  """Returns the box of a data set or a request.

  Args:
    manifest: of it, ``sealed`` perhaps not filled yet.
    master: its key.
  """
  if manifest.version == 1:
    return Box(master.subkey, "sealed", b"djax-disguised 1")
  secret = master.data_set(manifest.id, manifest.spec)
  own = f"|{manifest.request}" if manifest.request else ""
  return Box(secret.subkey, f"sealed|{manifest.role}{own}", b"djax-disguised 2")
