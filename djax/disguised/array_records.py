"""A strict reader of ArrayRecord files: of those that ``records.writer`` writes, and of no others.

The library's own reader believes what a file says of itself: it allocates, divides and looks up by these numbers, so a
file from an untrusted machine can end the process or fill the memory. Here every number is compared with the length of
the file, and with the longest record there can be, before it is used.

A file is a row of blocks of 64 KiB, each behind a header of 24 bytes that helps to find the way in damaged files. What
is left without these headers is a row of chunks, each behind a header of 40 bytes: the signature of the file, a chunk
for each record, and the library's own index, which is not looked at. Checksums are not looked at either: the manifest
has one of the whole file.

Source: https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md and docs/format.md section 1.
"""

import array
import contextlib
import functools
import os
import struct
import weakref
from typing import IO

__all__ = ["Reader"]

_BLOCK, _BLOCK_HEADER = 1 << 16, 24
_USABLE = _BLOCK - _BLOCK_HEADER
_WINDOW = 4 * _BLOCK  # read at once while chunks are listed
_HEADER = struct.Struct(
  "<8xQ8xQQ"
)  # length of the data, kind and number of records, length of the records
_SIGNATURE = ord("s")
_RECORDS = ord("r")  # and, from the second byte on, how many


class Reader(contextlib.AbstractContextManager["Reader"]):
  """The records of a file by their number; may be used from several threads.

  It holds a descriptor until ``close``, the end of a ``with`` statement, or until nothing refers to it.

  Args:
    file: the open file; the reader has a descriptor of its own and does not move its place.
    length: of the file in bytes; what comes behind is not read.
    records: how many there must be.
    longest: greatest length of a record in bytes.

  Raises:
    ValueError: if the file is laid out otherwise.
    OSError: if it cannot be read.
  """

  def __init__(self, file: IO[bytes], *, length: int, records: int, longest: int):
    self._descriptor = os.dup(file.fileno())
    self.close = weakref.finalize(self, os.close, self._descriptor)
    try:
      self._starts, self._sizes = _listed(self._descriptor, length, records, longest)
    except BaseException:
      self.close()
      raise

  def __len__(self) -> int:
    return len(self._starts)

  def __exit__(self, *error: object) -> None:
    self.close()

  def record(self, number: int) -> memoryview:
    """Returns the bytes of a record.

    Args:
      number: of the record, from 0; none counts from the end.

    Raises:
      IndexError: for a record that does not exist.
      RuntimeError: if the reader was closed, whose descriptor may be that of another file by now.
      ValueError: if it is compressed, or the file ends too early.
      OSError: if it cannot be read.
    """
    if not 0 <= number < len(self):
      raise IndexError(f"record: number must lie in 0..{len(self) - 1}, got {number}.")
    if not self.close.alive:
      raise RuntimeError("record: the reader must be open, it was closed. Open the file again.")
    size = self._sizes[number]
    before = _before(size)
    data = self._read(self._starts[number], len(before) + size)
    if data[: len(before)] != before:
      raise ValueError("a record is compressed or damaged")
    return memoryview(data)[len(before) :]

  def _read(self, start: int, count: int) -> bytes | bytearray:
    """Reads bytes, ``start`` counted without the headers of the blocks."""
    block, place = divmod(start, _USABLE)
    if place + count <= _USABLE:
      return _whole(self._descriptor, count, block * _BLOCK + _BLOCK_HEADER + place)
    data, filled = bytearray(count), 0
    while filled < count:
      some = min(count - filled, _USABLE - place)
      at = block * _BLOCK + _BLOCK_HEADER + place
      data[filled : filled + some] = _whole(self._descriptor, some, at)
      filled, block, place = filled + some, block + 1, 0
    return data


def _listed(
  descriptor: int, length: int, records: int, longest: int
) -> tuple[array.array, array.array]:
  """Returns where the data of each record's chunk starts, without the headers of blocks, and the records' lengths."""
  if length % _BLOCK or not length:
    raise ValueError(f"its length must be a multiple of {_BLOCK}, is {length}")
  end = length // _BLOCK * _USABLE
  starts, sizes = array.array("q"), array.array("q")
  window, first, position = b"", 0, 0
  for number in range(-1, records + 1):
    place = position - first
    if place + _HEADER.size > len(window):
      if position + _HEADER.size > end:
        raise ValueError(f"it must hold {records} records, ends after {max(number, 0)}")
      block = position // _USABLE
      first, place = block * _USABLE, position % _USABLE
      window = _window(descriptor, block * _BLOCK, length)
    size, kind, held = _HEADER.unpack_from(window, place)
    position += _HEADER.size
    if number < 0:
      fits = (size, kind, held) == (0, _SIGNATURE, 0)
    elif number == records:  # the index: a record for each of ours, and one about them all
      fits = kind == _RECORDS | (records + 1) << 8
    else:
      fits = kind == _RECORDS | 1 << 8 and 0 < held <= longest and size == held + _overhead(held)
      starts.append(position)
      sizes.append(held if fits else 0)
    if not fits or size > end - position:
      raise ValueError(
        f"it must hold {records} records as djax writes them, chunk {number} is none"
      )
    position += size
  return starts, sizes


def _window(descriptor: int, at: int, length: int) -> bytes:
  """Reads some blocks, and takes their headers out."""
  data = _whole(descriptor, min(_WINDOW, length - at), at)
  return b"".join(data[o + _BLOCK_HEADER : o + _BLOCK] for o in range(0, len(data), _BLOCK))


def _whole(descriptor: int, count: int, at: int) -> bytes:
  """Reads so many bytes."""
  data = os.pread(descriptor, count, at)
  if len(data) != count:
    raise ValueError("it ends too early")
  return data


def _overhead(size: int) -> int:
  """Returns the length of what stands before an uncompressed record in its chunk."""
  return 2 + max(1, -(-size.bit_length() // 7))


@functools.lru_cache(maxsize=256)  # records of a data set have few lengths
def _before(size: int) -> bytes:
  """Returns what stands before it: no compression, the length of the list of lengths, and that list: one varint."""
  count = _overhead(size) - 2
  groups = [size >> 7 * i & 127 | (128 if i < count - 1 else 0) for i in range(count)]
  return bytes([0, count, *groups])
