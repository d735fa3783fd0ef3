"""What the owner alone may read in a manifest: class names, sealed under the key. docs/format.md section 5."""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from djax.errors import ManifestError
from djax.keys import Master

__all__ = ["seal", "unseal"]

_UNIT = 4096
_ASSOCIATED = b"djax-disguised 1"


def seal(content: Mapping[str, Any], master: Master) -> str:
  """Encrypts what the owner alone may read in a manifest.

  Args:
    content: JSON types.
    master: the owner's key.

  Returns:
    base64; the same for the same content and key.
  """
  plain = json.dumps(content).encode()
  plain += b" " * (-len(plain) % _UNIT)
  nonce = hmac.new(master.subkey("sealed|nonce"), plain, hashlib.sha256).digest()[:12]
  box = ChaCha20Poly1305(master.subkey("sealed")).encrypt(nonce, plain, _ASSOCIATED)
  return base64.b64encode(nonce + box).decode()


def unseal(sealed: str, master: Master) -> dict[str, Any]:
  """Undoes ``seal``.

  Args:
    sealed: as in the manifest.
    master: the owner's key.

  Raises:
    ManifestError: if it is damaged or of another key.
  """
  try:
    box = base64.b64decode(sealed, validate=True)
    aead = ChaCha20Poly1305(master.subkey("sealed"))
    return json.loads(aead.decrypt(box[:12], box[12:], _ASSOCIATED))
  except (InvalidTag, ValueError):
    raise ManifestError(
      "the sealed part of the manifest must open with this key, it does not."
    ) from None
