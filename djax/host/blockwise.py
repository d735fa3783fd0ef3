"""The owner's host path in NumPy: what a disguised data set holds, byte for byte.

Images are ``[B, H, W, C]`` on the 0..255 scale. The arithmetic of docs/format.md, section 3, is fixed: float32 products
and sums are each rounded by themselves, from the first term to the last. Nothing is left to BLAS, to ``einsum`` or to a
compiler that may fuse or reorder, so the bytes are the same on every machine and however the records are batched.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["arrays", "check_permutation", "pad_to_blocks", "permute", "project", "salt_pepper"]

_STRIP_BYTES = (
  1 << 17
)  # of float32 values worked on at a time; a few such arrays fit the cache of one core


def arrays(function: str, **given: Any) -> list[np.ndarray]:
  """Returns arguments as NumPy arrays, or refuses those that JAX is tracing.

  Args:
    function: the caller's name, for the message.
    **given: arguments by name.

  Raises:
    TypeError: for what has no values to work on.
  """
  result = []
  for name, value in given.items():
    try:
      result.append(np.asarray(value))
    except TypeError:
      raise TypeError(
        f"{function}: works on the host, in NumPy: {name} must be an array with values, got a {type(value).__name__}. "
        "Call it outside of jit, vmap and grad; what works inside is djax.ops."
      ) from None
  return result


def check_permutation(function: str, perm: np.ndarray, positions: int) -> None:
  """Refuses what is not a permutation of the block positions: blocks would be doubled and lost.

  Args:
    function: the caller's name, for the message.
    perm: secret, to be ``[P]`` integers, each of ``0..P-1`` once.
    positions: how many there are.

  Raises:
    ValueError: for anything else.
  """
  advice = "Use the key made for this image shape and block size."
  if perm.shape != (positions,) or not np.issubdtype(perm.dtype, np.integer):
    raise ValueError(
      f"{function}: perm must be one index for each of {positions} block positions, got {perm.dtype} "
      f"{list(perm.shape)}. {advice}"
    )
  values = np.sort(perm)
  if (values != np.arange(positions)).any():
    raise ValueError(
      f"{function}: perm must hold each of 0..{positions - 1} once, got {len(np.unique(values))} different indices in "
      f"{values[0]}..{values[-1]}. {advice}"
    )


def pad_to_blocks(images: np.ndarray, *, block_size: int) -> np.ndarray:
  """Repeats the last row and column until both sides are multiples of the block size, as ``blocks.pad_to_blocks``.

  Args:
    images: ``[B, H, W, C]``, any dtype.
    block_size: side ``b`` in pixels.

  Returns:
    ``[B, H', W', C]``, the same array where nothing is missing.
  """
  (images,) = arrays("pad_to_blocks", images=images)
  bottom, right = (-side % block_size for side in images.shape[1:3])
  if bottom == right == 0:
    return images
  return np.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge")


def permute(perm: np.ndarray, images: np.ndarray, *, block_size: int) -> np.ndarray:
  """Moves block ``perm[p]`` of every image to position ``p``.

  Args:
    perm: secret, ``[P]`` integers.
    images: ``[B, H', W', C]`` of whole blocks, any dtype.
    block_size: side ``b`` in pixels.

  Returns:
    Images of the same shape and dtype, bit for bit.

  Raises:
    ValueError: if ``perm`` is not a permutation of the block positions.
    TypeError: under ``jit``, ``vmap`` or ``grad``, as everything here.
  """
  perm, images = arrays("permute", perm=perm, images=images)
  grid = _grid(images, block_size)
  moved = np.empty_like(grid)
  for positions, (to_row, to_column) in _strips("permute", grid, perm):
    row = positions.start // grid.shape[3]
    moved[:, to_row, :, to_column] = grid[:, row].transpose(2, 0, 1, 3, 4)
  return moved.reshape(images.shape)


def project(
  matrices: np.ndarray,
  images: np.ndarray,
  *,
  perm: np.ndarray | None,
  block_size: int,
  mix: str = "rows",
  drawn: np.ndarray | None = None,
  noise_level: float = 0.0,
  noise_place: str = "before",
) -> np.ndarray:
  """Multiplies every block by the secret matrix of its position, in fixed order, and moves the blocks.

  Args:
    matrices: secret, float32 of ``rmt.matrix_shape``.
    images: ``[B, H', W', C]`` of whole blocks, uint8 or float32.
    perm: secret, ``[P]`` integers, or None to leave blocks in place.
    block_size: side ``b`` in pixels.
    mix: ``"rows"`` or ``"block"``.
    drawn: float32 like ``images``, uniform on [0, 1): the noise is ``noise_level * drawn``. None for no noise.
    noise_level: the paper's N on the 0..255 scale.
    noise_place: noise ``"before"`` or ``"after"`` the products.

  Returns:
    float32 images of the same shape. A record depends on nothing but itself and its own noise.

  Raises:
    ValueError: if key, images and noise do not fit together.
  """
  matrices, images = arrays("project", matrices=matrices, images=images)
  perm, drawn = (
    None if value is None else arrays("project", **{name: value})[0]
    for name, value in (("perm", perm), ("drawn", drawn))
  )
  grid = _grid(images, block_size)
  batch, rows, b, columns, _, channels = grid.shape
  side = b if mix == "rows" else b * b * channels
  if matrices.shape[0] != rows * columns or matrices.shape[-2:] != (side, side):
    raise ValueError(
      f"project: matrices must be those of {rows * columns} positions of side {side}, got matrices.shape="
      f"{matrices.shape}. Use the key made for this image shape and block size."
    )
  if drawn is not None and (drawn.shape != images.shape or drawn.dtype != np.float32):
    raise ValueError(
      f"project: noise must be drawn as float32 {list(images.shape)}, got {drawn.dtype} {list(drawn.shape)}. "
      "Draw it for the images after padding."
    )
  by_channel = matrices.reshape(len(matrices), -1, side, side)  # [P, 1 or C, n, n]
  noise = None if drawn is None else _grid(drawn, block_size)
  level = np.float32(noise_level)
  result = np.empty(grid.shape, np.float32)
  count = max(1, _STRIP_BYTES // (4 * b * columns * b * channels))
  for first in range(0, batch, count):
    records = slice(first, first + count)
    for positions, (to_row, to_column) in _strips("project", grid, perm):
      row = positions.start // columns
      x = _records_last(grid[records, row])
      d = None if noise is None else _records_last(noise[records, row]) * level
      if d is not None and noise_place == "before":
        x += d
      split = (columns, b, b, channels, -1) if mix == "rows" else (columns, 1, side, 1, -1)
      y = _multiply(by_channel[positions], x.reshape(split)).reshape(x.shape)
      if d is not None and noise_place == "after":
        y += d
      result[records, to_row, :, to_column] = y.transpose(0, 4, 1, 2, 3)
  return result.reshape(images.shape)


def salt_pepper(images: np.ndarray, drawn: np.ndarray, *, rate: float) -> np.ndarray:
  """Sets values to 0 where ``drawn < rate / 2`` and to 255 where ``rate / 2 <= drawn < rate``.

  Args:
    images: uint8, any shape.
    drawn: float32 of the same shape, uniform on [0, 1).
    rate: the share of values that change.

  Returns:
    A uint8 array of the same shape.

  Raises:
    ValueError: if the shapes differ.
  """
  images, drawn = arrays("salt_pepper", images=images, drawn=drawn)
  if drawn.shape != images.shape:
    raise ValueError(
      f"salt_pepper: noise must be drawn as {list(images.shape)}, got {list(drawn.shape)}. "
      "Draw it for the images after padding."
    )
  # A float64 scalar keeps the comparison exact; a Python float would be rounded to float32.
  extreme = np.where(drawn < np.float64(rate) / 2, np.uint8(0), np.uint8(255))
  return np.where(drawn < np.float64(rate), extreme, images)


def _grid(images: np.ndarray, b: int) -> np.ndarray:
  """Views images as ``[B, rows, b, columns, b, C]``."""
  batch, height, width, channels = images.shape
  return images.reshape(batch, height // b, b, width // b, b, channels)


def _strips(
  function: str, grid: np.ndarray, perm: np.ndarray | None
) -> Iterator[tuple[slice, tuple[np.ndarray, np.ndarray]]]:
  """Yields each row of blocks: its positions, and the rows and columns of blocks where they go."""
  rows, columns = grid.shape[1], grid.shape[3]
  targets = np.arange(rows * columns)
  if perm is not None:
    check_permutation(function, perm, len(targets))
    targets[perm] = targets.copy()
  for start in range(0, len(targets), columns):
    positions = slice(start, start + columns)
    yield positions, (targets[positions] // columns, targets[positions] % columns)


def _records_last(strip: np.ndarray) -> np.ndarray:
  """Turns ``[B, b, columns, b, C]`` into float32 ``[columns, b, b, C, B]``: long rows for NumPy's inner loops."""
  return np.ascontiguousarray(strip.transpose(2, 1, 3, 4, 0), np.float32)


def _multiply(matrices: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Sums ``x_k * M[k, l]`` from the first k to the last: ``[G, 1 or C, n, n]`` by ``[G, r, n, C, B]``."""

  def weights(k):
    return matrices[:, :, k].swapaxes(1, 2)[:, None, :, :, None]  # [G, 1, l, 1 or C, 1]

  y = x[:, :, :1] * weights(0)
  product = np.empty_like(y)
  for k in range(1, x.shape[2]):
    y += np.multiply(x[:, :, k : k + 1], weights(k), out=product)
  return y
