"""Cutting images into square blocks and back. Images are ``[..., H, W, C]``, blocks ``[..., P, b, b, C]``.

Position ``p = row * (W // b) + column`` counts from the top left; every per-position key follows it.
Source: image blocktization in DisguisedNets, doi:10.1145/3609506.
"""

import jax
import jax.numpy as jnp

__all__ = ["blockify", "crop", "grid_shape", "pad_to_blocks", "unblockify"]


def grid_shape(height: int, width: int, *, block_size: int) -> tuple[int, int]:
  """Returns how many rows and columns of blocks cover an image, the padded edge included.

  Args:
    height: of the image, in pixels.
    width: of the image, in pixels.
    block_size: side of a block in pixels.

  Raises:
    TypeError: if ``block_size`` is not a Python int.
    ValueError: if ``block_size`` is not between 1 and the shorter side of the image.
  """
  if not isinstance(block_size, int):
    raise TypeError(f"block_size must be a Python int, got {type(block_size).__name__}.")
  if not 1 <= block_size <= min(height, width):
    raise ValueError(
      f"block_size must lie between 1 and the shorter side of the image, got block_size={block_size} for "
      f"{height} x {width} pixels. Choose a divisor of both sides where there is one (others are padded)."
    )
  return -(-height // block_size), -(-width // block_size)


def pad_to_blocks(images: jax.Array, *, block_size: int) -> jax.Array:
  """Repeats the last row and column until both sides are multiples of the block size.

  Args:
    images: ``[..., H, W, C]``, any dtype.
    block_size: side ``b`` in pixels; static.

  Returns:
    ``[..., H', W', C]`` with ``H'`` and ``W'`` the next multiples of ``b``; ``crop`` undoes it.

  Raises:
    ValueError: while tracing, if ``images`` has fewer than three axes or ``b`` does not fit.

  Example:
    >>> pad_to_blocks(jnp.arange(6).reshape(2, 3, 1), block_size=2)[..., 0]
    Array([[0, 1, 2, 2],
           [3, 4, 5, 5]], dtype=int32)
  """
  height, width = _image_axes("pad_to_blocks", images)
  rows, columns = grid_shape(height, width, block_size=block_size)
  bottom, right = rows * block_size - height, columns * block_size - width
  if bottom == right == 0:
    return images
  widths = [(0, 0)] * (images.ndim - 3) + [(0, bottom), (0, right), (0, 0)]
  return jnp.pad(images, widths, mode="edge")


def crop(images: jax.Array, *, height: int, width: int) -> jax.Array:
  """Keeps the top left ``height x width`` pixels: the inverse of ``pad_to_blocks``.

  Args:
    images: ``[..., H', W', C]``, any dtype.
    height: rows to keep, at most ``H'``.
    width: columns to keep, at most ``W'``.

  Raises:
    ValueError: while tracing, if the images are smaller than what is to be kept.
  """
  have_height, have_width = _image_axes("crop", images)
  if have_height < height or have_width < width:
    raise ValueError(
      f"crop: images must be at least {height} x {width}, got images.shape={images.shape}."
    )
  return images[..., :height, :width, :]


def blockify(images: jax.Array, *, block_size: int) -> jax.Array:
  """Cuts images into square blocks, row by row.

  Args:
    images: ``[..., H, W, C]``, any dtype.
    block_size: side ``b`` in pixels; static.

  Returns:
    ``[..., P, b, b, C]`` with ``P = (H // b) * (W // b)``; values and dtype unchanged.
    ``unblockify`` is the exact inverse.

  Raises:
    ValueError: while tracing, if ``H`` or ``W`` is not a multiple of ``b``.

  Example:
    >>> blockify(jnp.arange(16).reshape(4, 4, 1), block_size=2)[1, ..., 0]
    Array([[2, 3],
           [6, 7]], dtype=int32)
  """
  height, width = _image_axes("blockify", images)
  b = block_size
  rows, columns = grid_shape(height, width, block_size=b)
  if height % b or width % b:
    raise ValueError(
      f"blockify: H and W must be multiples of block_size, got images.shape={images.shape} with block_size={b} "
      f"(H % {b} = {height % b}, W % {b} = {width % b}). Crop the images, or pad them first with "
      f"pad_to_blocks(images, block_size={b})."
    )
  *leading, _, _, channels = images.shape
  grid = images.reshape(*leading, rows, b, columns, b, channels)
  grid = jnp.swapaxes(grid, -4, -3)  # [..., rows, columns, b, b, C]
  return grid.reshape(*leading, rows * columns, b, b, channels)


def unblockify(blocks: jax.Array, *, height: int, width: int) -> jax.Array:
  """Puts blocks back together: the exact inverse of ``blockify``.

  Args:
    blocks: ``[..., P, b, b, C]``, any dtype.
    height: of the images, a multiple of ``b``; static.
    width: of the images, a multiple of ``b``; static.

  Returns:
    ``[..., H, W, C]``; values and dtype unchanged.

  Raises:
    ValueError: while tracing, if the blocks are not square or do not fill ``height x width``.

  Example:
    >>> image = jnp.arange(16).reshape(4, 4, 1)
    >>> bool((unblockify(blockify(image, block_size=2), height=4, width=4) == image).all())
    True
  """
  if blocks.ndim < 4 or blocks.shape[-3] != blocks.shape[-2]:
    raise ValueError(
      f"unblockify: blocks must be [..., P, b, b, C], got blocks.shape={blocks.shape}."
    )
  *leading, positions, b, _, channels = blocks.shape
  if height % b or width % b or positions * b * b != height * width:
    raise ValueError(
      f"unblockify: {positions} blocks of side {b} must fill the image, got height={height}, width={width}. "
      "Give the height and width after padding."
    )
  grid = blocks.reshape(*leading, height // b, width // b, b, b, channels)
  return jnp.swapaxes(grid, -4, -3).reshape(*leading, height, width, channels)


def _image_axes(function: str, images: jax.Array) -> tuple[int, int]:
  """Returns H and W, refusing arrays that lack an image axis."""
  if images.ndim < 3:
    raise ValueError(
      f"{function}: images must be [..., H, W, C], got images.shape={images.shape}. "
      "Add a channel axis to grey images: images[..., None]."
    )
  return images.shape[-3], images.shape[-2]
