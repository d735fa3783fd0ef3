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
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from djax.host import blockwise

__all__ = ["decrypt", "encrypt", "encryptor"]

_UNIT_BYTES = 16
_CHUNK_BYTES = 3 << 16  # worked on at a time, so that every pass finds its data in the cache
_THREAD_BYTES = (
  2 << 20
)  # a batch below twice this, as a worker process of many has, stays on one thread


def encryptor(key: np.ndarray) -> CipherContext:
  """Returns AES-128 in ECB mode, to be fed whole units.

  Args:
    key: uint8 ``[16]``.
  """
  return Cipher(AES(key.tobytes()), ECB()).encryptor()


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
    TypeError: under ``jit``, ``vmap`` or ``grad``.

  Security: see the module; equal units stay equal.
  """
  keys, images = blockwise.arrays("aes.encrypt", keys=keys, images=images)
  places, order = _places(images, block_size, perm)
  return _apply(keys, encryptor, images, places, _sources(places, order), unit_pixels)


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

  def start(key: np.ndarray) -> CipherContext:
    return Cipher(AES(key.tobytes()), ECB()).decryptor()

  keys, images = blockwise.arrays("aes.decrypt", keys=keys, images=images)
  places, order = _places(images, block_size, perm)
  gather, scatter = places[np.argsort(order)], _sources(places, np.arange(len(places)))
  return _apply(keys, start, images, gather, scatter, _UNIT_BYTES)


def _places(
  images: np.ndarray, block_size: int, perm: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns where each word of each block lies in a channel's plane, ``[P, words]``, and the block at each position."""
  _, height, width, _ = images.shape
  word = math.gcd(block_size, 16)  # bytes moved at once
  words = block_size // word
  grid = np.arange(height * width // word).reshape(
    height // block_size, block_size, width // block_size, words
  )
  places = grid.swapaxes(1, 2).reshape(-1, block_size * words)
  if perm is None:
    return places, np.arange(len(places))
  (order,) = blockwise.arrays("aes", perm=perm)
  blockwise.check_permutation("aes", order, len(places))
  return places, order


def _sources(places: np.ndarray, order: np.ndarray) -> np.ndarray:
  """Returns for each word of a plane its index among the words of the blocks that go there."""
  sources = np.empty(places.size, np.intp)
  words = places.shape[1]
  sources[places] = order[:, None] * words + np.arange(words)
  return sources


def _apply(
  keys: np.ndarray,
  start: Callable[[np.ndarray], CipherContext],
  images: np.ndarray,
  gather: np.ndarray,
  scatter: np.ndarray,
  unit_pixels: int,
) -> np.ndarray:
  """Sends a few images at a time through block order, cipher and back, a large batch on every core."""
  batch, height, width, channels = images.shape
  if len(keys) not in (1, len(gather)):
    raise ValueError(
      f"aes: keys must be 1 or one for each of {len(gather)} block positions, got {len(keys)}. "
      "Use the key made for this image shape and block size."
    )
  plane = height * width
  word = np.dtype(f"V{plane // gather.size}")
  gather = gather.reshape(-1)
  count = max(1, min(batch, _CHUNK_BYTES // (plane * channels)))
  result = np.empty(images.shape, np.uint8)

  def work(starts: range) -> None:
    buffers = [np.empty(count * plane * channels, np.uint8) for _ in range(2)]
    share = len(starts) * buffers[0].size // len(keys)
    # Its own for each thread: a context serves one caller at a time.
    ciphers = [_cipher(start(key), unit_pixels, share) for key in keys]
    for first in starts:
      chunk = images[first : first + count].reshape(-1, channels)
      done = result[first : first + count].reshape(-1, channels)
      shape = (chunk.size // plane, plane)  # channel by channel, in each image by image
      a, b = (buffer[: chunk.size].reshape(shape) for buffer in buffers)
      if channels == 1:
        a, moved = np.ascontiguousarray(chunk).reshape(shape), done.reshape(shape)
      else:
        moved = a
        for channel, values in enumerate(a.reshape(channels, -1)):
          values[:] = chunk[:, channel]
      np.take(a.view(word), gather, axis=1, mode="clip", out=b.view(word))
      by_key = b.reshape(shape[0], len(keys), -1)
      parts = [cipher(by_key[:, i].reshape(-1)) for i, cipher in enumerate(ciphers)]
      if len(parts) > 1:
        np.stack([part.reshape(shape[0], -1) for part in parts], axis=1, out=by_key)
        parts = [b]
      units = parts[0].reshape(shape)
      np.take(units.view(word), scatter, axis=1, mode="clip", out=moved.view(word))
      if channels > 1:
        for channel, values in enumerate(moved.reshape(channels, -1)):
          done[:, channel] = values

  starts = range(0, batch, count)
  threads = min(os.cpu_count() or 1, images.nbytes // _THREAD_BYTES, len(starts))
  if threads <= 1:
    work(starts)
  else:
    with ThreadPoolExecutor(threads) as pool:
      list(pool.map(work, [starts[i::threads] for i in range(threads)]))
  return result


def _cipher(
  context: CipherContext, unit_pixels: int, share: int
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns what maps the units of a flat array; ``share`` bytes in all say whether a table pays."""
  times = _UNIT_BYTES // unit_pixels
  spare = np.empty(0, np.uint8)

  def whole(data: np.ndarray) -> np.ndarray:
    nonlocal spare
    if spare.size < data.size + _UNIT_BYTES:  # more than it writes, as the cipher asks
      spare = np.empty(data.size + _UNIT_BYTES, np.uint8)
    context.update_into(memoryview(data), memoryview(spare))
    return spare[: data.size]

  def stretched(data: np.ndarray) -> np.ndarray:
    if times < _UNIT_BYTES:  # a product of words is many times faster than np.repeat
      ones = int.from_bytes(b"\1" * times)
      wide = np.multiply(data, ones, dtype=f"u{times}").view(np.uint8)
    else:
      wide = np.repeat(data, times)
    total = _sums(whole(wide), times)
    return ((total + times // 2) // times).astype(np.uint8)

  def looked_up(data: np.ndarray) -> np.ndarray:
    return np.take(table, data.view(table.dtype), mode="clip").view(np.uint8)

  if times == 1:
    return whole
  values = 1 << 8 * unit_pixels
  if unit_pixels > 2 or share < values * unit_pixels:
    return stretched
  every_unit = np.arange(values, dtype=f"u{unit_pixels}")
  table = stretched(every_unit.view(np.uint8)).view(every_unit.dtype)
  return looked_up


def _sums(values: np.ndarray, count: int) -> np.ndarray:
  """Sums every ``count`` bytes, a power of two, by adding neighbours inside ever wider words."""
  while count > 1 and values.itemsize < 8:
    bits = 8 * values.itemsize
    pairs = values.view(f"u{2 * values.itemsize}")
    values = (pairs & ((1 << bits) - 1)) + (pairs >> bits)
    count //= 2
  return values if count == 1 else values[0::2] + values[1::2]
