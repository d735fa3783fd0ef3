"""Encrypted units: how they are cut, and what equal ones are called.

Units are sliced as the cipher slices them (docs/key-format.md, section 6): block by block, in a block channel by
channel, in a channel row by row, every ``unit_pixels`` bytes one unit. ECB makes equal units equal wherever one key is
used; where each position has a key, equal units of one position. Host NumPy.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from djax.attacks.common import statistics
from djax.attacks.common.statistics import Layout
from djax.host import blockwise

__all__ = ["changes", "codes_of", "commonest", "image_of", "names_of", "slices", "units_of"]


def units_of(images: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
  """Slices images into the units of the cipher, original or disguised alike.

  Args:
    images: ``[n, H, W, C]`` or ``[n, H', W', C]``, whole numbers of 0..255 in any dtype.
    spec: of an ``aes`` scheme.

  Returns:
    uint8 ``[n, P, C, b * b / u, u]``.
  """
  return slices(np.rint(images).astype(np.uint8), spec)


def slices(images: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
  """Slices like ``units_of``, dtype unchanged."""
  layout = _layout(spec)
  whole = layout.units(blockwise.pad_to_blocks(images, block_size=layout.block_size))
  u = spec["unit_pixels"]
  slices = layout.block_size**2 // u
  return whole.reshape(len(images), layout.positions, layout.channels, slices, u)


def image_of(units: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
  """Puts units ``[n, P, C, s, u]`` back into float32 images of the original size."""
  layout = _layout(spec)
  whole = layout.images(units.reshape(len(units), *layout.shape).astype(np.float32))
  return whole[:, : spec["image_shape"][0], : spec["image_shape"][1]]


def codes_of(units: np.ndarray) -> np.ndarray:
  """Names units by 64 bits: as they are up to 8 bytes, mixed above (two in 2^64 that differ get one name)."""
  size = units.shape[-1]
  words = np.ascontiguousarray(units).view(f"<u{min(size, 8)}").astype(np.uint64)
  return words[..., 0] if size <= 8 else _mix(_mix(words[..., 0]) + words[..., 1])


def names_of(units: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
  """Names units ``[n, P, C, s, u]`` by code, and by position where each has its own key: uint64 ``[n, P, C, s]``."""
  codes = codes_of(units)
  if not spec["position_keys"]:
    return codes
  positions = np.arange(codes.shape[1], dtype=np.uint64)[:, None, None]
  return _mix(_mix(codes) + positions)


def commonest(names: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
  """Returns the most frequent name, of all or of each position: broadcasts against ``[n, P, C, s]``."""
  axes = range(names.shape[1]) if spec["position_keys"] else [slice(None)]
  winners = []
  for position in axes:
    values, counts = np.unique(names[:, position], return_counts=True)
    winners.append(values[np.argmax(counts)])
  return np.asarray(winners, np.uint64)[:, None, None]


def changes(values: np.ndarray) -> np.ndarray:
  """Whether each of sorted values differs from the one before."""
  return np.concatenate([np.ones(min(1, len(values)), bool), values[1:] != values[:-1]])


def _mix(words: np.ndarray) -> np.ndarray:
  """Scrambles uint64 one to one (the finaliser of SplitMix64, doi:10.1145/2660193.2660195)."""
  words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return words ^ (words >> np.uint64(31))


def _layout(spec: Mapping[str, Any]) -> Layout:
  """Returns the layout of blocks that are cut into channels, and these into rows."""
  return statistics.layout_of(spec)._replace(groups="channel")
