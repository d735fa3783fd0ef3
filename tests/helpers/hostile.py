"""What an attacker can make: manifests whose checksums hold, record files whose hashes do. Also watches processes."""

import bisect
import contextlib
import hashlib
import json
import os
import pathlib
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from helpers.fresh import ROOT

# Directories: who changes a manifest mends its checksum, and cannot mend its MAC.


def put(folder, data):
  """Writes bytes as a manifest whose checksum holds; the MAC stays as it is, or is zeros."""
  mac = folder / "MANIFEST.mac"
  first = mac.read_bytes().partition(b"\n")[0] if mac.is_file() else b""
  first = (first or b"hmac-sha256 " + b"0" * 64) + b"\n"
  (folder / "MANIFEST.json").write_bytes(data)
  mac.write_bytes(first + b"sha256 " + hashlib.sha256(data + first).hexdigest().encode() + b"\n")


def facts_of(folder):
  return json.loads((folder / "MANIFEST.json").read_bytes())


def forge(folder, **changes):
  """Changes fields of a manifest."""
  put(folder, json.dumps({**facts_of(folder), **changes}).encode())


def replace(folder, name, data):
  """Puts other bytes under a name that the manifest knows, and mends what it says of them."""
  (folder / name).write_bytes(data)
  facts = facts_of(folder)
  digest = hashlib.sha256(data).hexdigest()
  if name in facts["files"]:
    facts["files"][name] = digest
  for split in facts["splits"].values():
    for shard in split["shards"]:
      if shard["file"] == name:
        shard.update(bytes=len(data), sha256=digest)
  put(folder, json.dumps(facts).encode())


def tree(*places):
  """Returns all that lies in some places: kinds, rights, links, content."""
  found = {}
  for place in places:
    for path in [place, *sorted(place.rglob("*"))]:
      status = path.lstat()
      content = None
      if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
      elif stat.S_ISREG(status.st_mode):
        small = status.st_size < 1 << 24
        content = hashlib.sha256(path.read_bytes()).hexdigest() if small else status.st_size
      found[str(path)] = status.st_mode, content
  return found


# Processes.


class Done(NamedTuple):
  """How a process ended: exit code or minus its signal, output, seconds of the clock and of its CPUs, MB at most."""

  code: int
  out: str
  err: str
  seconds: float
  cpu: float
  megabytes: float


# Linux counts to a new process the memory of the one that it was split off; that of this wrapper is small.
_WRAPPER = """
import json, resource, subprocess, sys
report, limit, *command = sys.argv[1:]
limits = lambda: resource.setrlimit(resource.RLIMIT_AS, (int(limit),) * 2) if int(limit) else None
code = subprocess.run(command, stdin=subprocess.DEVNULL, preexec_fn=limits).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(report, "w") as file:
  json.dump([code, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024], file)
"""


def run(arguments, *, cwd=ROOT, environment=None, seconds=120, address_space=0):
  """Runs Python with some arguments; one that takes too long is killed, with the code -9."""
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    paths = [pathlib.Path(folder, name) for name in ("out", "err", "report")]
    out, err = (stack.enter_context(path.open("wb")) for path in paths[:2])
    wrapper = [sys.executable, "-I", "-c", _WRAPPER, str(paths[2]), str(address_space)]
    start = time.monotonic()
    process = subprocess.Popen(
      [*wrapper, sys.executable, *map(str, arguments)],
      stdout=out,
      stderr=err,
      cwd=cwd,
      env={**os.environ, **(environment or {})},
      start_new_session=True,
    )
    try:
      process.wait(seconds)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    taken = time.monotonic() - start
    texts = [path.read_bytes()[: 1 << 20].decode("utf-8", "replace") for path in paths[:2]]
    known = paths[2].exists()
    code, cpu, megabytes = json.loads(paths[2].read_text()) if known else (-9, 0.0, 0.0)
  return Done(code, *texts, taken, cpu, megabytes)


# ArrayRecord: https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md. Hashes are
# HighwayHash-64, https://github.com/google/highwayhash, under a key that everybody knows.

BLOCK, USABLE = 1 << 16, (1 << 16) - 24
_MASK = (1 << 64) - 1
_KEY = struct.unpack("<4Q", b"Riegeli/records\n" * 2)
_MULTIPLIERS = (
  (0xDBE6D5D5FE4CCE2F, 0xA4093822299F31D0, 0x13198A2E03707344, 0x243F6A8885A308D3),
  (0x3BD39E10CB0EF593, 0xC0ACF169B5F18A8C, 0xBE5466CF34E90C6C, 0x452821E638D01377),
)
_MAGIC = 0x71930E704FDAE05E


def _turned(value):
  return (value >> 32 | value << 32) & _MASK


def _zipped(high, low):
  """Mixes the bytes of two words."""
  first = ((low & 0xFF000000) | (high & 0xFF00000000)) >> 24
  first |= ((low & 0xFF0000000000) | (high & 0xFF000000000000)) >> 16
  first |= (low & 0xFF0000) | (low & 0xFF00) << 32 | (high & 0xFF00000000000000) >> 8
  second = ((high & 0xFF000000) | (low & 0xFF00000000)) >> 24
  second |= (high & 0xFF0000) | (high & 0xFF0000000000) >> 16 | (high & 0xFF00) << 24
  second |= (low & 0xFF000000000000) >> 8 | (high & 0xFF) << 48 | (low & 0xFF00000000000000)
  return second, (first | low << 56) & _MASK


def highway(data):
  """Returns HighwayHash-64 of some bytes under Riegeli's key."""
  first, second = (list(row) for row in _MULTIPLIERS)
  v0 = [m ^ k for m, k in zip(first, _KEY, strict=True)]
  v1 = [m ^ _turned(k) for m, k in zip(second, _KEY, strict=True)]

  def update(words):
    for i in range(4):
      v1[i] = (v1[i] + first[i] + words[i]) & _MASK
      first[i] ^= (v1[i] & 0xFFFFFFFF) * (v0[i] >> 32)
      v0[i] = (v0[i] + second[i]) & _MASK
      second[i] ^= (v0[i] & 0xFFFFFFFF) * (v1[i] >> 32)
    for source, target in ((v1, v0), (v0, v1)):
      for i in (0, 2):
        high, low = _zipped(source[i + 1], source[i])
        target[i + 1], target[i] = (target[i + 1] + high) & _MASK, (target[i] + low) & _MASK

  whole = len(data) & ~31
  for start in range(0, whole, 32):
    update(struct.unpack_from("<4Q", data, start))
  if rest := data[whole:]:
    size, quarter = len(rest), len(rest) & ~3
    for i in range(4):
      v0[i] = (v0[i] + (size << 32) + size) & _MASK
      halves = [
        (half << size | half >> 32 - size) & 0xFFFFFFFF
        for half in (v1[i] & 0xFFFFFFFF, v1[i] >> 32)
      ]
      v1[i] = halves[0] | halves[1] << 32
    packet = bytearray(32)
    packet[:quarter] = rest[:quarter]
    if size & 16:
      packet[28:] = rest[size - 4 :]
    elif last := rest[quarter:]:
      packet[16:19] = last[0], last[len(last) >> 1], last[-1]
    update(struct.unpack("<4Q", packet))
  for _ in range(4):
    update([_turned(v0[i]) for i in (2, 3, 0, 1)])
  return (v0[0] + v1[0] + first[0] + second[0]) & _MASK


def varint(value):
  found = b""
  while value > 127:
    found, value = found + bytes([value & 127 | 128]), value >> 7
  return found + bytes([value])


def field(number, value):
  """Serialises a field of a protobuf message: a number, or bytes."""
  if isinstance(value, int):
    return varint(number << 3) + varint(value & _MASK)
  return varint(number << 3 | 2) + varint(len(value)) + value


def chunk(kind, data, *, records=0, decoded=0, size=None):
  """Makes a chunk whose hashes hold, whatever it says of itself."""
  size = len(data) if size is None else size
  rest = struct.pack("<QQQQ", size, highway(data), ord(kind) | records << 8, decoded & _MASK)
  return struct.pack("<Q", highway(rest)) + rest + data


def simple(records, *, count=None, decoded=None, compression=0, sizes=None):
  """Makes a chunk of records, as the library writes it without compression."""
  sizes = b"".join(varint(len(r)) for r in records) if sizes is None else sizes
  data = bytes([compression]) + varint(len(sizes)) + sizes + b"".join(records)
  return chunk(
    "r",
    data,
    records=len(records) if count is None else count,
    decoded=sum(map(len, records)) if decoded is None else decoded,
  )


def blocks(chunks):
  """Puts chunks into blocks; what they take must fill them."""
  begins = [0]
  for one in chunks:
    begins.append(begins[-1] + len(one))
  data, found = b"".join(chunks), []
  assert len(data) % USABLE == 0
  for start in range(0, len(data), USABLE):
    number = bisect.bisect_right(begins, start) - 1
    here = start // USABLE * BLOCK
    before, after = here - place(begins[number]), place(begins[min(number + 1, len(chunks))]) - here
    rest = struct.pack("<QQ", before, after)
    found.append(struct.pack("<Q", highway(rest)) + rest + data[start : start + USABLE])
  return b"".join(found)


def place(logical):
  """Returns where a chunk begins in the file."""
  block, rest = divmod(logical, USABLE)
  return block * BLOCK + (24 + rest if rest else 0)


def padding(position):
  """Returns a chunk that fills the block."""
  left = -position % USABLE
  left += USABLE if 0 < left < 40 else 0
  return [chunk("p", bytes(left - 40))] if left else []


def array_record(
  records,
  *,
  chunks=None,
  count=None,
  num_chunks=None,
  group=1,
  offsets=None,
  footer=None,
  footer_at=None,
  magic=_MAGIC,
):
  """Makes an ArrayRecord file that says of itself what it is told to, every hash right."""
  parts = [chunk("s", b""), *([simple([r]) for r in records] if chunks is None else chunks)]
  begins = [0]
  for one in parts:
    begins.append(begins[-1] + len(one))
  places = [place(b) for b in begins[1:-1]] if offsets is None else offsets
  about = field(1, 1) + field(2, len(places) if num_chunks is None else num_chunks)
  about += field(3, len(records) if count is None else count)
  about = field(1, about + field(4, b"group_size:1,uncompressed"))
  index = [field(1, at) + field(2, len(records[0])) + field(3, group) for at in places]
  parts.append(simple([about, *index]) if footer is None else footer)
  at = place(begins[-1]) if footer_at is None else footer_at
  parts += padding(sum(map(len, parts)))
  parts.append(simple([field(1, at) + field(2, magic)]))
  parts += padding(sum(map(len, parts)))
  return blocks(parts)


def without_headers(data):
  """Takes the headers of the blocks out of a file."""
  return b"".join(data[start + 24 : start + BLOCK] for start in range(0, len(data), BLOCK))


def chunks_of(data):
  """Takes an ArrayRecord file apart: kind, number of records, their length and the data of each chunk."""
  whole, at, found = without_headers(data), 0, []
  while at + 40 <= len(whole):
    size, _, kind, decoded = struct.unpack_from("<8xQQQQ", whole, at)
    found.append((chr(kind & 255), kind >> 8, decoded, whole[at + 40 : at + 40 + size]))
    at += 40 + size
  return found
