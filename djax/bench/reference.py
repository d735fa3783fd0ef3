"""The slow reference: a disguise as plain loops over images, block positions and channels."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from djax import schemes
from djax.schemes import Trait

__all__ = ["disguise"]


def disguise(spec: Mapping[str, Any], key: Any, images: np.ndarray) -> np.ndarray:
  """Disguises images block by block, without noise.

  Args:
    spec: ``SchemeSpec.to_dict()`` of a scheme whose ``Kind`` has a ``reference``, which says what it can do.
    key: the scheme's secret.
    images: uint8 ``[B, H, W, C]`` of whole blocks.

  Returns:
    Images of the same shape: float32 for a disguise of floats, else uint8.
  """
  kind, b = schemes.kind_of(spec), spec["block_size"]
  assert kind.reference is not None, f"{kind.name} is benched without a reference"
  one_block = kind.reference(key)
  columns = images.shape[2] // b
  positions = images.shape[1] // b * columns
  moved = Trait.MOVED in kind.traits(spec)
  order = np.asarray(key.perm).tolist() if moved else range(positions)
  result = np.empty(images.shape, np.float32 if Trait.FLOATS in kind.traits(spec) else np.uint8)
  for image, disguised in zip(images, result, strict=True):
    for target, source in enumerate(order):
      row, column = source // columns * b, source % columns * b
      to_row, to_column = target // columns * b, target % columns * b
      for channel in range(images.shape[3]):
        block = one_block(source, image[row : row + b, column : column + b, channel])
        disguised[to_row : to_row + b, to_column : to_column + b, channel] = block
  return result
