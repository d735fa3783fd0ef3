"""The plain way to disguise: loops over images, block positions and channels, as one writes it down first."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

__all__ = ["disguise"]


def disguise(spec: Mapping[str, Any], key: Any, images: np.ndarray) -> np.ndarray:
  """Disguises images block by block, without noise.

  Args:
    spec: ``SchemeSpec.to_dict()`` of ``permutation``, of ``rmt`` with ``mix="rows"`` and one matrix a position, or of
      ``aes`` with 16-pixel units and one key.
    key: the scheme's secret.
    images: uint8 ``[B, H, W, C]`` of whole blocks.

  Returns:
    Images of the same shape: float32 for ``rmt``, uint8 for the others.
  """
  name, b = spec["scheme"], spec["block_size"]
  encryptor = _encryptor(key) if name == "aes" else None
  columns = images.shape[2] // b
  positions = images.shape[1] // b * columns
  order = range(positions) if key.perm is None else np.asarray(key.perm).tolist()
  matrices = None if key.matrices is None else np.asarray(key.matrices)
  result = np.empty(images.shape, np.float32 if name == "rmt" else np.uint8)
  for image, disguised in zip(images, result, strict=True):
    for target, source in enumerate(order):
      row, column = source // columns * b, source % columns * b
      to_row, to_column = target // columns * b, target % columns * b
      for channel in range(images.shape[3]):
        block = image[row : row + b, column : column + b, channel]
        if matrices is not None:
          block = block.astype(np.float32) @ matrices[source]
        if encryptor is not None:
          block = np.frombuffer(encryptor.update(block.tobytes()), np.uint8).reshape(b, b)
        disguised[to_row : to_row + b, to_column : to_column + b, channel] = block
  return result


def _encryptor(key: Any) -> Any:
  (secret,) = np.asarray(key.aes_keys)
  return Cipher(AES(secret.tobytes()), ECB()).encryptor()
