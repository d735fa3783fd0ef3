"""Pixel encryption with AES in ECB, on the host."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from djax import host
from djax.errors import NotInvertibleError
from djax.schemes.contract import (
  Key,
  Scheme,
  SchemeSpec,
  check_concrete,
  check_export,
  check_images,
  draw_perm,
  geometry,
)

__all__ = ["aes_scheme"]

UNITS = (16, 8, 4, 2, 1)
_INSTEAD = (
  "Call it outside of jit, vmap and grad: disguise the data set beforehand, with python -m djax disguise, or choose "
  "rmt or permutation, which work inside."
)


def aes_scheme(
  image_shape: Sequence[int],
  *,
  block_size: int,
  permute: bool = True,
  position_keys: bool = False,
  unit_pixels: int = 16,
  salt_pepper: float = 0.0,
) -> Scheme:
  """Encrypts the pixels of every block with AES-128 in ECB, then moves the blocks: uint8 in, uint8 out, on the host.

  ``restore`` is exact, but for salt and pepper, which stay; units below 16 pixels have no way back.

  Args:
    image_shape: ``(H, W, C)``; padded to whole blocks by repeating the edge.
    block_size: side ``b`` in pixels; ``b * b`` a multiple of ``unit_pixels``.
    permute: whether the blocks are moved as well.
    position_keys: whether each block position has an AES key of its own.
    unit_pixels: pixels of one channel in a unit: 16, 8, 4, 2 or 1.
    salt_pepper: share of values set to 0 or 255 before encryption, to spoil codebooks; in [0, 1).

  Raises:
    ValueError: for an option that does not exist or does not fit.

  Security: equal units stay equal; open to frequency analysis and codebooks, see ``djax.aes``.
  """
  shape, disguised_shape, positions = geometry(image_shape, block_size)
  if type(unit_pixels) is not int or unit_pixels not in UNITS:
    raise ValueError(f"aes: unit_pixels must be one of {UNITS}, got {unit_pixels!r}.")
  if block_size * block_size % unit_pixels:
    raise ValueError(
      f"aes: block_size * block_size must be a multiple of unit_pixels, got block_size={block_size} with "
      f"unit_pixels={unit_pixels}. Use a block_size of 4, 8 or 16, or smaller units."
    )
  if not 0 <= salt_pepper < 1:
    raise ValueError(
      f"aes: salt_pepper must be a share of at least 0 and below 1, got {salt_pepper}."
    )

  def make_key(read):
    labels = [f"aes|{p}" for p in range(positions)] if position_keys else ["aes|all"]
    secret = b"".join(read(label, 16) for label in labels)
    aes_keys = np.frombuffer(secret, np.uint8).reshape(-1, 16)
    return Key(perm=draw_perm(read, positions) if permute else None, aes_keys=aes_keys)

  def moved(key):
    return {"block_size": block_size, "perm": np.asarray(key.perm) if permute else None}

  def encrypt(key, batch, draw):
    from djax import aes  # core imports no crypto package until it is asked to encrypt

    padded = host.pad_to_blocks(batch, block_size=block_size)
    if salt_pepper:
      padded = host.salt_pepper(padded, draw(), rate=salt_pepper)
    return aes.encrypt(np.asarray(key.aes_keys), padded, unit_pixels=unit_pixels, **moved(key))

  def disguise(key, images, labels, *, rng):
    check_concrete("aes", (key, images, rng), _INSTEAD)
    batch, leading = _bytes_of(images, shape)

    def draw():
      return np.asarray(jax.random.uniform(rng, (len(batch), *disguised_shape), np.float32))

    return encrypt(key, batch, draw).reshape(*leading, *disguised_shape), labels

  def restore(key, images):
    if unit_pixels != UNITS[0]:
      raise NotInvertibleError(
        f"aes: only units of 16 pixels can be restored, this scheme has unit_pixels={unit_pixels}, which averages "
        "ciphers away. Keep the originals."
      )
    from djax import aes

    check_concrete("aes", (key, images), _INSTEAD)
    batch, leading = _bytes_of(images, disguised_shape)
    whole = aes.decrypt(np.asarray(key.aes_keys), batch, **moved(key))
    return whole[:, : shape[0], : shape[1]].reshape(*leading, *shape)

  def export(key, images, draw):
    check_export(images, shape, key)
    return encrypt(key, _bytes_of(images, shape)[0], draw)

  options = {
    "permute": bool(permute),
    "position_keys": bool(position_keys),
    "unit_pixels": unit_pixels,
    "salt_pepper": float(salt_pepper),
  }
  spec = SchemeSpec("aes", shape, disguised_shape, block_size, options)
  return Scheme(spec, make_key, disguise, restore, export, on_device=False)


def _bytes_of(images: Any, shape: tuple[int, int, int]) -> tuple[np.ndarray, tuple[int, ...]]:
  """Returns uint8 images on the host as one batch, and their leading axes."""
  check_images(images, shape)
  if images.dtype != np.uint8:
    raise ValueError(
      f"aes: images must be uint8, got {images.dtype}. Give 8-bit images on the 0..255 scale, or use rmt for floats."
    )
  return np.asarray(images).reshape(-1, *shape), images.shape[:-3]
