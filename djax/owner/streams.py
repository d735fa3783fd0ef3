"""Record streams: what is drawn for one image that leaves the owner's machine, noise and views.

Derivation ``djx1``, docs/key-format.md section 7. A record's stream depends on the key, the disguise, the split, the
record's index and its pixels alone: not on shards, workers or the order of work. The same record has one noise however
often it is written, so nothing can be averaged away; two images never share one, so nothing cancels.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

__all__ = ["Subkey", "label", "uniforms"]

Subkey = Callable[[str], bytes]


def label(purpose: str, spec: Mapping[str, Any], split: str) -> str:
  """Returns the label of a purpose's streams for one disguise and split.

  Args:
    purpose: ``noise`` or ``views``.
    spec: ``SchemeSpec.to_dict()``, complete.
    split: the split's name.
  """
  text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
  return f"{purpose}|{hashlib.sha256(text.encode()).hexdigest()[:16]}|{split}"


def uniforms(
  subkey: bytes, originals: np.ndarray, indices: Sequence[int], *, view: int = 0, count: int
) -> np.ndarray:
  """Draws numbers for each of some records.

  Args:
    subkey: 32 secret bytes, of ``label``.
    originals: ``[B, H, W, C]`` uint8 or float32, before any view was made.
    indices: of the originals in their split, ``[B]``.
    view: which view of the originals.
    count: how many numbers a record.

  Returns:
    float32 ``[B, count]``, uniform on ``[0, 1)`` in steps of 2^-24.
  """
  words = np.empty((len(originals), count), "<u4")
  zeros = bytes(4 * count)
  for row, original, index in zip(words, originals, indices, strict=True):
    little = np.ascontiguousarray(original, original.dtype.newbyteorder("<"))
    pixels = hashlib.sha256(little).digest()
    place = int(index).to_bytes(8, "little") + view.to_bytes(4, "little")
    nonce = bytes(4) + hashlib.sha256(place + pixels).digest()[:12]
    stream = Cipher(ChaCha20(subkey, nonce), mode=None).encryptor()
    stream.update_into(zeros, memoryview(row).cast("B"))
  return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
