"""The search for secrets in what a run leaves."""

import base64
import itertools
import re
import zlib

import numpy as np

from djax import schemes


def secrets_of(master, spec):
  """Returns the byte strings that must appear nowhere: master, subkeys, and the arrays of the key pytree."""
  key = schemes.from_spec(spec).make_key(master.read)
  positions = len(key.perm)
  labels = [f"perm|{positions}", *(f"rmt|{p}|{spec['block_size']}" for p in range(positions))]
  found = {"master": master._secret}
  found |= {label: master.subkey(label) for label in labels}
  for dtype in ("<i4", "<i8"):
    found[f"perm {dtype}"] = key.perm.astype(dtype).tobytes()
  for axes, matrices in orders(key):
    for dtype in ("<f4", "<f8"):
      found[f"matrices {axes} {dtype}"] = matrices.astype(dtype).tobytes()
  return found, key


def orders(key):
  """Yields the matrices as a compiler may lay them out; their slices are parts of one of these."""
  for axes in itertools.permutations(range(key.matrices.ndim)):
    yield axes, np.transpose(key.matrices, axes)


def decoded(blob):
  """Yields a blob and what it holds compressed: JAX compresses its cache."""
  yield blob
  for window in (15, 31):
    try:
      yield zlib.decompress(blob, window)
    except zlib.error:
      continue
  if blob[:4] == b"\x28\xb5\x2f\xfd":
    import zstandard

    yield zstandard.ZstdDecompressor().decompressobj().decompress(blob)


def numbers(text):
  return np.array([float(x) for x in re.findall(rb"-?\d+\.?\d*(?:[eE][-+]?\d+)?", text)])


def leaks(blob, found, key):
  """Returns the names of the secrets in a blob."""
  hits = set()
  for data in decoded(blob):
    lower = data.lower()
    for name, secret in found.items():
      # Arrays may be cut up; a quarter of their bytes in a row is no chance hit.
      part = secret if len(secret) <= 32 else secret[: len(secret) // 4]
      forms = (part, part.hex().encode(), base64.b64encode(part)[: len(part) * 4 // 3 - 3])
      if forms[0] in data or forms[1] in lower or forms[2] in data:
        hits.add(name)
    if data[:2000].isascii():
      values = numbers(data)
      for _, matrices in orders(key):
        want = matrices.reshape(-1)[:8]
        for offset in np.flatnonzero(np.isclose(values, want[0], rtol=1e-5, atol=0)):
          row = values[offset : offset + len(want)]
          if row.shape == want.shape and np.allclose(row, want, rtol=1e-5, atol=0):
            hits.add("matrices as text")
      order = ", ".join(map(str, key.perm[:12])).encode()
      if order in data or order.replace(b", ", b" ") in data:
        hits.add("perm as text")
  return hits
