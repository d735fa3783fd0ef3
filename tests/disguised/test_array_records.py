"""Files of records: the strict reader beside that of the library, and what it does not believe."""

import concurrent.futures
import os
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import descriptors, hostile

from djax.disguised import array_records

LONGEST = 1 << 20


def written(path, records, options="group_size:1,uncompressed"):
  from array_record.python.array_record_module import ArrayRecordWriter

  path.unlink(missing_ok=True)
  file = ArrayRecordWriter(str(path), options)
  for record in records:
    file.write(record)
  file.close()
  return path.read_bytes()


def opened(path, records, *, length=None, longest=LONGEST):
  length = path.stat().st_size if length is None else length
  with path.open("rb", buffering=0) as file:
    return array_records.Reader(file, length=length, records=records, longest=longest)


def of_library(path):
  from array_record.python.array_record_module import ArrayRecordReader

  reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
  found = reader.read(list(range(reader.num_records())))
  reader.close()
  return found


def content(sizes, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.bytes(size) for size in sizes]


# Chunks that end at, before and behind the end of a block, also within their headers.
USABLE = (1 << 16) - 24
EDGES = [[USABLE - 40 - 40 - 5 - off, 1, 9, 300] for off in (*range(60), 84, 85, 86)]


@pytest.mark.parametrize(
  "sizes",
  [[1], [1] * 3000, [127, 128, 129], [16_383, 16_384], [70_000, 5, 200_000, 1], [LONGEST]],
)
def test_records_are_those_that_the_library_reads(tmp_path, sizes):
  records = content(sizes)
  written(tmp_path / "x", records)
  reader = opened(tmp_path / "x", len(records))
  assert len(reader) == len(records)
  assert [bytes(reader.record(i)) for i in range(len(records))] == records
  assert of_library(tmp_path / "x") == records


def test_records_at_the_ends_of_blocks(tmp_path):
  for sizes in EDGES:
    records = content(sizes)
    data = written(tmp_path / "x", records)
    reader = opened(tmp_path / "x", len(records))
    order = [3, 0, 2, 1, 1, 0]
    assert [bytes(reader.record(i)) for i in order] == [records[i] for i in order]
    reader.close()
    assert len(data) % hostile.BLOCK == 0


@hypothesis.given(
  sizes=st.lists(
    st.one_of(st.integers(1, 300), st.integers(USABLE - 200, USABLE + 200)), min_size=1, max_size=40
  )
)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_any_records(tmp_path, sizes):
  records = content(sizes, seed=len(sizes))
  written(tmp_path / "x", records)
  reader = opened(tmp_path / "x", len(records))
  assert [bytes(reader.record(i)) for i in range(len(records))] == records
  reader.close()


def test_the_helper_makes_what_the_library_writes(tmp_path):
  """Hashes, blocks and all: so a hostile file differs in what it is told to differ in alone."""
  records = content([10, 70_000, 3, USABLE, 200])
  data = written(tmp_path / "x", records)
  parts = hostile.chunks_of(data)
  again = [hostile.chunk(kind, x, records=n, decoded=size) for kind, n, size, x in parts]
  assert hostile.blocks(again) == data
  assert again[1:6] == [hostile.simple([r]) for r in records]
  (tmp_path / "made").write_bytes(hostile.array_record(records))
  assert of_library(tmp_path / "made") == records
  reader = opened(tmp_path / "made", 5)
  assert [bytes(reader.record(i)) for i in range(5)] == records


def test_threads_read_the_same(tmp_path):
  records = content([1000 + i for i in range(200)])
  written(tmp_path / "x", records)
  reader = opened(tmp_path / "x", 200)
  rows = np.random.default_rng(0).integers(0, 200, 4000).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for row, data in zip(rows, pool.map(reader.record, rows), strict=True):
      assert data == records[row]


def test_the_file_is_its_own_and_is_given_back(tmp_path):
  written(tmp_path / "x", content([5, 6]))
  with (tmp_path / "x").open("rb", buffering=0) as file:
    file.seek(7)
    reader = array_records.Reader(file, length=131072, records=2, longest=6)
    assert file.tell() == 7
  (tmp_path / "x").unlink()
  assert descriptors.opened(tmp_path).total() == 1
  assert reader.record(1) == content([5, 6])[1]
  reader.close()
  reader.close()
  assert not descriptors.opened(tmp_path)
  with pytest.raises(RuntimeError, match="it was closed"):
    reader.record(0)
  written(tmp_path / "x", content([5, 6]))
  opened(tmp_path / "x", 2)
  with pytest.raises(ValueError, match="must hold 3 records"):
    opened(tmp_path / "x", 3)
  assert not descriptors.opened(tmp_path)


# What is no such file.


def refusal(path, records, **options):
  """Refused when it is opened or when it is read, with one line."""
  with pytest.raises(ValueError) as error:
    reader = opened(path, records, **options)
    for i in range(records):
      reader.record(i)
  assert str(error.value).isprintable()
  return str(error.value)


@pytest.mark.parametrize(
  "options",
  ["group_size:2,uncompressed", "group_size:1,zstd:3", "group_size:1,brotli:1", "group_size:65536"],
)
def test_what_the_library_was_told_to_write_otherwise_is_refused(tmp_path, options):
  written(tmp_path / "x", [bytes(100)] * 6, options)
  refusal(tmp_path / "x", 6)


def test_another_number_of_records_is_refused(tmp_path):
  written(tmp_path / "x", content([9] * 5))
  for count in (1, 4, 6, 10_000, 2**40):
    assert f"must hold {count} records" in refusal(tmp_path / "x", count)
  opened(tmp_path / "x", 5)


def test_a_record_longer_than_there_can_be_is_refused(tmp_path):
  written(tmp_path / "x", content([9, 11, 10]))
  opened(tmp_path / "x", 3, longest=11)
  assert "chunk 1 is none" in refusal(tmp_path / "x", 3, longest=10)


def test_an_empty_record_is_refused(tmp_path):
  (tmp_path / "x").write_bytes(hostile.array_record([b"a", b"", b"b"]))
  assert "chunk 1 is none" in refusal(tmp_path / "x", 3)


def test_a_chunk_with_more_than_its_record_is_refused(tmp_path):
  records = content([9, 9])
  for more in (b"", b"x", bytes(70_000)):
    data = bytes([0, 1, 9]) + records[0] + more
    first = hostile.chunk("r", data, records=1, decoded=9)
    made = hostile.array_record(records, chunks=[first, hostile.simple(records[1:])])
    (tmp_path / "x").write_bytes(made)
    if more:
      assert "chunk 0 is none" in refusal(tmp_path / "x", 2)
    else:
      assert opened(tmp_path / "x", 2).record(1) == records[1]


def test_an_index_that_leads_out_of_the_file_is_refused(tmp_path):
  for size in (600, 2**17, 2**63):
    index = hostile.chunk("r", bytes(600), records=3, size=size)
    (tmp_path / "x").write_bytes(hostile.array_record(content([9, 9]), footer=index))
    if size == 600:
      opened(tmp_path / "x", 2)
    else:
      assert "chunk 2 is none" in refusal(tmp_path / "x", 2)


@pytest.mark.parametrize("length", [0, 1, 65_535, 65_537, 131_071])
def test_a_length_that_no_file_has_is_refused(tmp_path, length):
  written(tmp_path / "x", content([9]))
  assert "multiple of 65536" in refusal(tmp_path / "x", 1, length=length)


def test_a_file_that_ends_too_early_is_refused(tmp_path):
  data = written(tmp_path / "x", content([300_000]))
  for blocks in range(1, 6):
    (tmp_path / "x").write_bytes(data[: blocks << 16])
    refusal(tmp_path / "x", 1, length=len(data))
    if blocks < 5:
      refusal(tmp_path / "x", 1)


def test_a_file_that_is_cut_off_later_is_refused(tmp_path):
  written(tmp_path / "x", content([300_000, 7]))
  reader = opened(tmp_path / "x", 2)
  os.truncate(tmp_path / "x", 250_000)
  for number in (0, 1):
    with pytest.raises(ValueError, match="it ends too early"):
      reader.record(number)


def changed(position, value, size=8):
  """Changes a number in a file, counted without the headers of the blocks."""
  data = bytearray(hostile.array_record(content([500, 600])))
  at = position // USABLE * hostile.BLOCK + 24 + position % USABLE
  data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
  return bytes(data)


FIRST = 40  # where the first record's chunk begins
NUMBERS = (0, 1, 2**16, 2**31, 2**32, 2**40, 2**56, 2**63 - 1, 2**63, 2**64 - 1)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("position", [8, 24, 32, FIRST + 8, FIRST + 24, FIRST + 32])
def test_numbers_of_headers_are_not_believed(tmp_path, position, number):
  (tmp_path / "x").write_bytes(changed(position, number))
  if (position, number) in ((8, 0), (32, 0)):
    opened(tmp_path / "x", 2)
    return
  tracemalloc.start()
  refusal(tmp_path / "x", 2)
  assert tracemalloc.get_traced_memory()[1] < 5 << 20
  tracemalloc.stop()


@pytest.mark.parametrize("place", range(5))
def test_the_prefix_of_a_record_is_compared(tmp_path, place):
  """Compression, the length of the list of lengths, and the length itself."""
  for value in (0, 1, 2, 5, 0x62, 0x7A, 0x80, 0xFF):
    data = changed(FIRST + 40 + place, value, 1)
    (tmp_path / "x").write_bytes(data)
    if data == changed(8, 0) or place > 3:  # nothing changed, or the content of the record alone
      assert len(opened(tmp_path / "x", 2).record(0)) == 500
    else:
      assert "compressed or damaged" in refusal(tmp_path / "x", 2)


# The library's reader fails on these, or ends the process, see test_fuzz_directory.py. Their records are whole, and are
# read: the index, which leads out of the file, is not looked at.


@pytest.mark.parametrize(
  "told",
  [
    {"count": 1 << 40},
    {"group": 0},
    {"group": 1 << 63},
    {"offsets": [1 << 40] * 5},
    {"offsets": [5000, 4000, 3000, 200, 64]},
    {"footer_at": 1 << 63},
    {"num_chunks": 1 << 60},
    {"magic": 0},
  ],
)
def test_the_index_of_the_library_is_not_looked_at(tmp_path, told):
  records = content([100] * 5)
  (tmp_path / "x").write_bytes(hostile.array_record(records, **told))
  reader = opened(tmp_path / "x", 5)
  assert [bytes(reader.record(i)) for i in range(5)] == records


def test_records_that_do_not_exist_and_a_closed_reader(tmp_path):
  written(tmp_path / "x", content([3, 4]))
  with opened(tmp_path / "x", 2) as reader:
    assert [len(reader.record(number)) for number in (0, 1)] == [3, 4]
    for number in (-1, -2, -3, 2, 9):
      with pytest.raises(IndexError, match=rf"must lie in 0\.\.1, got {number}\."):
        reader.record(number)
    descriptor = reader._descriptor
  with pytest.raises(OSError, match="Bad file descriptor"):
    os.fstat(descriptor)
  with pytest.raises(RuntimeError, match="must be open, it was closed"):
    reader.record(0)
