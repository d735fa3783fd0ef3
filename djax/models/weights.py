"""Arrays of a network in one plain file, in the safetensors format: a header that names them, then their bytes.

A file that comes back from a machine nobody vouches for is never parsed: the reader knows which arrays it wants, so the
header must be, byte for byte, the one it would have written itself. Nothing in the file decides how much is allocated.
"""

import json
from typing import Any

import jax
import numpy as np

__all__ = ["dump", "load", "size"]

_ALIGNED = 8
_DTYPES = {
  "bool": "BOOL",
  "uint8": "U8",
  "int8": "I8",
  "uint16": "U16",
  "int16": "I16",
  "uint32": "U32",
  "int32": "I32",
  "bfloat16": "BF16",
  "float16": "F16",
  "float32": "F32",
}


def dump(tree: Any) -> bytes:
  """Returns the content of a file that holds the leaves of a tree.

  Args:
    tree: of arrays. A leaf's name is its path, with ``/``.

  Raises:
    KeyError: for a dtype that JAX does not use by default, such as float64.
  """
  leaves = (np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(jax.device_get(tree)))
  return b"".join((_header(tree), *leaves))


def size(tree: Any) -> int:
  """Returns how many bytes ``dump`` would return."""
  return len(_header(tree)) + sum(map(_bytes, jax.tree.leaves(tree)))


def load(data: bytes, like: Any) -> Any:
  """Returns the arrays of a file, as views of its bytes.

  Args:
    data: what ``dump`` returned.
    like: a tree of arrays or ``jax.ShapeDtypeStruct``, of the same names, shapes and dtypes.

  Raises:
    ValueError: if the file holds other arrays.
  """
  header = _header(like)
  if len(data) != size(like) or not data.startswith(header):
    raise ValueError("a file of weights must hold the arrays that are wanted, it holds others")
  leaves, structure = jax.tree.flatten(like)
  arrays, start = [], len(header)
  for leaf in leaves:
    count = int(np.prod(leaf.shape, dtype=object))
    arrays.append(np.frombuffer(data, leaf.dtype, count, start).reshape(leaf.shape))
    start += _bytes(leaf)
  return jax.tree.unflatten(structure, arrays)


def _header(tree: Any) -> bytes:
  """Returns what stands before the bytes: its own length, and name, dtype, shape and place of each array."""
  fields, start = {}, 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    stop = start + _bytes(leaf)
    fields[jax.tree_util.keystr(path, simple=True, separator="/")] = {
      "dtype": _DTYPES[str(leaf.dtype)],
      "shape": list(leaf.shape),
      "data_offsets": [start, stop],
    }
    start = stop
  text = json.dumps(fields, separators=(",", ":")).encode()
  text += b" " * (-len(text) % _ALIGNED)
  return len(text).to_bytes(8, "little") + text


def _bytes(leaf: Any) -> int:
  """Returns the size of an array; exact also where the shape is absurd."""
  return int(np.prod(leaf.shape, dtype=object)) * np.dtype(leaf.dtype).itemsize
