"""Random multidimensional transformation: a secret matrix for every block position, and noise."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from djax import blocks as blocks_lib
from djax import host, noise, rmt, samplers
from djax import permutation as permutation_lib
from djax.errors import nearest
from djax.schemes.contract import (
  Key,
  Scheme,
  SchemeSpec,
  check_export,
  draw_perm,
  geometry,
  to_blocks,
  to_images,
)

__all__ = ["rmt_scheme"]

MATRICES = ("orthogonal", "projection")
NOISE_PLACES = ("before", "after")
# From this block size on, blocks are moved before they are projected: the gather then writes float32 once, where XLA
# would turn each uint8 into a float in every product that it enters. Smaller blocks are better moved last.
_MOVED_FIRST = 4


def rmt_scheme(
  image_shape: Sequence[int],
  *,
  block_size: int,
  permute: bool = True,
  matrix: str = "orthogonal",
  mix: str = "rows",
  per_channel: bool = False,
  noise_level: float = 0.0,
  noise_place: str = "before",
) -> Scheme:
  """Projects every block by the secret matrix of its position, then moves the blocks.

  Args:
    image_shape: ``(H, W, C)``; padded to whole blocks by repeating the edge.
    block_size: side ``b`` in pixels.
    permute: whether the blocks are moved as well.
    matrix: ``"orthogonal"`` (Haar) or ``"projection"`` (random invertible).
    mix: ``"rows"`` of each channel's block, or the whole ``"block"``.
    per_channel: with ``mix="rows"``, a matrix of its own for each channel.
    noise_level: the paper's N: noise uniform on ``[0, N)`` on the 0..255 scale.
    noise_place: noise ``"before"`` or ``"after"`` the projection.

  Raises:
    ValueError: for an option that does not exist or does not fit.

  Security: broken by known pairs, and without any pair by second moments; see ``djax.rmt`` and the README.
  """
  shape, disguised_shape, positions = geometry(image_shape, block_size)
  _check_choice("matrix", matrix, MATRICES)
  _check_choice("noise_place", noise_place, NOISE_PLACES)
  if not 0 <= noise_level < float("inf"):
    raise ValueError(
      f"rmt: noise_level must be a finite number of at least 0 on the 0..255 scale, got {noise_level}."
    )
  matrix_shape = rmt.matrix_shape(positions, block_size, shape[2], mix=mix, per_channel=per_channel)
  if matrix_shape[-1] == 1:
    raise ValueError(
      "rmt: a matrix must be larger than 1 x 1, which would only scale a pixel; got "
      f"block_size={block_size} with mix={mix!r}. Use a block_size of at least 2."
    )

  def make_key(read):
    streams = [samplers.Words(read, label) for label in _matrix_labels(matrix_shape, matrix)]
    draw = samplers.haar if matrix == "orthogonal" else samplers.invertible
    matrices = draw(streams, matrix_shape[-1]).astype(np.float32).reshape(matrix_shape)
    return Key(perm=draw_perm(read, positions) if permute else None, matrices=matrices)

  def disguise(key, images, labels, *, rng):
    x = to_blocks(images, shape, block_size).astype(np.float32)
    if noise_level:
      drawn = noise.uniform(rng, x.shape, noise_level=noise_level)
    if noise_level and noise_place == "before":
      x = x + drawn
    if not permute or block_size < _MOVED_FIRST:
      y = rmt.project(key.matrices, x, mix=mix)
      if noise_level and noise_place == "after":
        y = y + drawn
      if permute:
        y = permutation_lib.permute(key.perm, y)
    else:
      moved = permutation_lib.permute(key.perm, x)  # first: it refuses what is no permutation
      y = rmt.project(jnp.take(key.matrices, key.perm, axis=0, mode="clip"), moved, mix=mix)
      if noise_level and noise_place == "after":
        y = y + permutation_lib.permute(key.perm, drawn)
    return to_images(y, disguised_shape), labels

  def restore(key, images):
    y = to_blocks(images, disguised_shape, block_size).astype(np.float32)
    if permute:
      y = permutation_lib.invert(key.perm, y)
    if noise_place == "after":
      y = y - noise_level / 2
    x = rmt.unproject(key.matrices, y, mix=mix, orthogonal=matrix == "orthogonal")
    if noise_place == "before":
      x = x - noise_level / 2
    whole = to_images(x, disguised_shape)
    return blocks_lib.crop(whole, height=shape[0], width=shape[1])

  def export(key, images, draw):
    check_export(images, shape, key)
    return host.project(
      np.asarray(key.matrices),
      host.pad_to_blocks(images, block_size=block_size),
      perm=np.asarray(key.perm) if permute else None,
      block_size=block_size,
      mix=mix,
      drawn=draw() if noise_level else None,
      noise_level=noise_level,
      noise_place=noise_place,
    )

  options = {
    "permute": bool(permute),
    "matrix": matrix,
    "mix": mix,
    "per_channel": bool(per_channel),
    "noise_level": float(noise_level),
    "noise_place": noise_place,
  }
  spec = SchemeSpec("rmt", shape, disguised_shape, block_size, options)
  return Scheme(spec, make_key, disguise, restore, export)


def _matrix_labels(matrix_shape: tuple[int, ...], matrix: str) -> list[str]:
  """Returns the stream label of every matrix, position by position and within it channel by channel."""
  side = matrix_shape[-1]
  kind = "" if matrix == "orthogonal" else f"|{matrix}"
  channels = [f"|channel{c}" for c in range(matrix_shape[1])] if len(matrix_shape) == 4 else [""]
  return [f"rmt|{p}|{side}{kind}{c}" for p in range(matrix_shape[0]) for c in channels]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise ValueError(
      f"rmt: {name} must be one of {choices}, got {value!r}.{nearest(str(value), choices)}"
    )
