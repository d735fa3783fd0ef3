"""AES-128 in ECB on pixels: uint8 images ``[B, H, W, C]`` of whole blocks, host NumPy, offline.

Inside each block, channel by channel, every ``unit_pixels`` bytes are one unit (docs/key-format.md, section 6). A unit
of 16 is one block of the cipher. A smaller unit is stretched to 16 bytes by repeating each pixel, encrypted, and
shrunk back by averaging: there is no way back from it.

Security: ECB keeps equal units equal, in one image and in all images under one key. Flat areas stay visible as the
most frequent units (frequency analysis), and every known pair fills a dictionary of units (codebook). A small unit is a
fixed substitution of u pixels by u pixels: 65 536 values for u = 2, a mere 256 for u = 1. Keys by position only split
the dictionary by position. Nothing is authenticated: blocks can be swapped or replaced unseen.
Source: DisguisedNets, doi:10.1145/3609506; AES in FIPS 197, ECB in NIST SP 800-38A.
"""

import math

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

__all__ = ["decrypt", "encrypt"]

_UNIT_BYTES = 16
_CHUNK_BYTES = 3 << 16  # worked on at a time, so that every pass finds its data in the cache


def encrypt(
  keys: np.ndarray,
  images: np.ndarray,
  *,
  block_size: int,
  perm: np.ndarray | None = None,
  unit_pixels: int = 16,
) -> np.ndarray:
  """Encrypts every unit of every block, then moves the blocks.

  Args:
    keys: secret, uint8 ``[1, 16]``, or ``[P, 16]`` for a key of its own at each position.
    images: uint8 ``[B, H, W, C]``, both sides multiples of the block size.
    block_size: side ``b`` in pixels; ``b * b`` a multiple of ``unit_pixels``.
    perm: secret, ``[P]`` integers: block ``perm[p]`` goes to position ``p``. None to leave blocks in place.
    unit_pixels: 16, 8, 4, 2 or 1.

  Returns:
    uint8 images of the same shape.

  Raises:
    ValueError: if key and images do not fit together.

  Security: see the module; equal units stay equal.
  """
  contexts = [Cipher(AES(key.tobytes()), ECB()).encryptor() for key in keys]
  places, order = _places(images, block_size, perm)
  return _apply(contexts, images, places, _sources(places, order), unit_pixels)


def decrypt(
  keys: np.ndarray, images: np.ndarray, *, block_size: int, perm: np.ndarray | None = None
) -> np.ndarray:
  """Undoes ``encrypt`` with 16-pixel units, exactly. A wrong key gives noise, not an error.

  Args:
    keys: the secret that ``encrypt`` was given.
    images: uint8 ``[B, H, W, C]``.
    block_size: side ``b`` in pixels.
    perm: the secret that ``encrypt`` was given.

  Raises:
    ValueError: if key and images do not fit together.
  """
  contexts = [Cipher(AES(key.tobytes()), ECB()).decryptor() for key in keys]
  places, order = _places(images, block_size, perm)
  home = np.arange(len(places))
  return _apply(contexts, images, places[np.argsort(order)], _sources(places, home), _UNIT_BYTES)


def _places(
  images: np.ndarray, block_size: int, perm: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns where each word of each block lies in a channel's plane, ``[P, words]``, and the block at each position."""
  _, height, width, _ = images.shape
  word = math.gcd(block_size, 8)  # bytes moved at once
  words = block_size // word
  grid = np.arange(height * width // word).reshape(
    height // block_size, block_size, width // block_size, words
  )
  places = grid.swapaxes(1, 2).reshape(-1, block_size * words)
  order = np.arange(len(places)) if perm is None else perm
  if len(order) != len(places):
    raise ValueError(
      f"aes: perm must be one index for each of {len(places)} block positions, got {len(order)}. "
      "Use the key made for this image shape and block size."
    )
  return places, order


def _sources(places: np.ndarray, order: np.ndarray) -> np.ndarray:
  """Returns for each word of a plane its index among the words of the blocks that go there."""
  sources = np.empty(places.size, np.intp)
  words = places.shape[1]
  sources[places] = order[:, None] * words + np.arange(words)
  return sources


def _apply(
  contexts: list[CipherContext],
  images: np.ndarray,
  gather: np.ndarray,
  scatter: np.ndarray,
  unit_pixels: int,
) -> np.ndarray:
  """Sends the channels of a few images at a time through block order, cipher and back."""
  batch, height, width, channels = images.shape
  if len(contexts) not in (1, len(gather)):
    raise ValueError(
      f"aes: keys must be 1 or one for each of {len(gather)} block positions, got {len(contexts)}. "
      "Use the key made for this image shape and block size."
    )
  plane = height * width
  word = np.dtype(f"u{plane // gather.size}")
  gather = gather.reshape(-1)
  stretched = plane * channels * _UNIT_BYTES // unit_pixels
  count = max(1, min(batch, _CHUNK_BYTES // stretched))
  # The cipher asks for 15 bytes more than it writes.
  units, spare = (np.empty(count * plane * channels + _UNIT_BYTES, np.uint8) for _ in range(2))
  result = np.empty(images.shape, np.uint8)
  for first in range(0, batch, count):
    chunk = images[first : first + count].reshape(-1, channels)
    shape = (chunk.size // plane, plane)  # channel by channel, in each image by image
    a, b = units[: chunk.size].reshape(shape), spare[: chunk.size].reshape(shape)
    b.reshape(channels, -1)[...] = chunk.T
    np.take(b.view(word), gather, axis=1, mode="clip", out=a.view(word))
    by_key = a.reshape(shape[0], len(contexts), -1)
    for i, context in enumerate(contexts):
      by_key[:, i] = _cipher(context, by_key[:, i], spare, unit_pixels)
    np.take(a.view(word), scatter, axis=1, mode="clip", out=b.view(word))
    pixels = result[first : first + count].reshape(-1, channels)
    for channel, values in enumerate(b.reshape(channels, -1)):
      pixels[:, channel] = values
  return result


def _cipher(
  context: CipherContext, data: np.ndarray, spare: np.ndarray, unit_pixels: int
) -> np.ndarray:
  """Encrypts or decrypts the units of an array in C order."""
  flat = np.ascontiguousarray(data).reshape(-1)
  if unit_pixels == _UNIT_BYTES:
    context.update_into(memoryview(flat), memoryview(spare)[: flat.size + _UNIT_BYTES - 1])
    return spare[: flat.size].reshape(data.shape)
  times = _UNIT_BYTES // unit_pixels
  stretched = np.repeat(flat, times)
  total = _sums(np.frombuffer(context.update(memoryview(stretched)), np.uint8), times)
  return ((total + times // 2) // times).astype(np.uint8).reshape(data.shape)


def _sums(values: np.ndarray, count: int) -> np.ndarray:
  """Sums every ``count`` bytes, a power of two, by adding neighbours inside ever wider words."""
  while count > 1 and values.itemsize < 8:
    bits = 8 * values.itemsize
    pairs = values.view(f"u{2 * values.itemsize}")
    values = (pairs & ((1 << bits) - 1)) + (pairs >> bits)
    count //= 2
  return values if count == 1 else values[0::2] + values[1::2]
