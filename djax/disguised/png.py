"""PNG files of one layout: 8 bits a value, 1 or 3 channels, uncompressed. The same image has the same bytes everywhere.

Disguised bytes do not compress. Without compression, no zlib has a say in the bytes, a file's length follows from its
shape, and one of any other layout is refused without being decoded. docs/format.md section 9.
"""

import struct
import zlib

import numpy as np

__all__ = ["CHANNELS", "decode", "encode", "size"]

CHANNELS = {1: 0, 3: 2}  # to the PNG's colour type
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_STORED = 65535  # greatest length of a stored block of deflate
_ZLIB_HEADER = b"\x78\x01"
_BEFORE = len(_SIGNATURE) + 25 + 8 + len(_ZLIB_HEADER)  # signature, IHDR, head of IDAT
_AFTER = 4 + 4 + 12  # checksum of zlib, CRC of IDAT, IEND


def size(shape: tuple[int, ...]) -> int:
  """Returns the length of a file in bytes.

  Args:
    shape: ``(H, W, C)`` of the image.
  """
  raw = _raw_size(shape)
  return _BEFORE + raw + 5 * -(-raw // _STORED) + _AFTER


def encode(image: np.ndarray) -> bytes:
  """Returns a PNG file.

  Args:
    image: uint8 ``[H, W, C]``, ``C`` 1 or 3.
  """
  height, width, channels = image.shape
  rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row behind its filter: none
  rows[:, 1:] = image.reshape(height, -1)
  raw = rows.tobytes()
  blocks = [raw[at : at + _STORED] for at in range(0, len(raw), _STORED)]
  stream = [_ZLIB_HEADER]
  for number, block in enumerate(blocks, 1):
    stream += [struct.pack("<BHH", number == len(blocks), len(block), len(block) ^ 0xFFFF), block]
  stream.append(struct.pack(">I", zlib.adler32(raw)))
  header = struct.pack(">IIBBBBB", width, height, 8, CHANNELS[channels], 0, 0, 0)
  parts = (_chunk(b"IHDR", header), _chunk(b"IDAT", b"".join(stream)), _chunk(b"IEND", b""))
  return _SIGNATURE + b"".join(parts)


def decode(data: bytes, image: np.ndarray) -> None:
  """Writes the image of a PNG file into an array.

  Args:
    data: the file.
    image: uint8 ``[H, W, C]``, to be filled.

  Raises:
    ValueError: if ``encode`` would not write an image of this shape so.
  """
  height, width, channels = image.shape
  if len(data) == size(image.shape):
    raw = bytearray()
    at, left = _BEFORE, _raw_size(image.shape)
    while left:
      length = min(left, _STORED)
      raw += data[at + 5 : at + 5 + length]
      at, left = at + 5 + length, left - length
    rows = np.frombuffer(raw, np.uint8).reshape(height, 1 + width * channels)
    image[...] = rows[:, 1:].reshape(image.shape)
    if encode(image) == data:
      return
  raise ValueError(
    f"it is no uncompressed PNG file of {height}x{width}x{channels} as djax writes it"
  )


def _raw_size(shape: tuple[int, ...]) -> int:
  """Returns the bytes of all rows, each with its filter."""
  height, width, channels = shape
  return height * (1 + width * channels)


def _chunk(kind: bytes, content: bytes) -> bytes:
  """Returns a chunk of a PNG file."""
  crc = zlib.crc32(kind + content)
  return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)
