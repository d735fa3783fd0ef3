"""Random multidimensional transformation: a secret matrix for every block position, and noise."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from djax.errors import nearest
from djax.host import blockwise, samplers
from djax.ops import blocks as blocks_lib
from djax.ops import noise, rmt
from djax.ops import permutation as permutation_lib
from djax.schemes.base import (
  BLOCK_SIZE,
  PERMUTE,
  Key,
  Kind,
  Option,
  Reach,
  Scheme,
  SchemeSpec,
  Trait,
  check_export,
  check_key_memory,
  draw_perm,
  geometry,
  to_blocks,
  to_images,
)

__all__ = ["KIND", "rmt_scheme"]

MATRICES = ("orthogonal", "projection")
NOISE_PLACES = ("before", "after")
_NOISE = ((0, "no"), (25, "up to 25"), (50, "25-50"), (100, "50-100"))
_PROJECTION_NORM = 2.0  # the largest singular value of a projection key, and of its inverse
# From this block size on, blocks are moved before they are projected: the gather then writes float32 once, where XLA
# would turn each uint8 into a float in every product that it enters. Smaller blocks are better moved last.
_MOVED_FIRST = 4
# What drawing matrices takes at its peak, measured at n = 192 and 768: bytes for each of their entries.
_DRAWING_BYTES = {"orthogonal": 46, "projection": 70}


def rmt_scheme(
  image_shape: Sequence[int],
  *,
  block_size: Annotated[int, BLOCK_SIZE],
  permute: Annotated[bool, PERMUTE] = True,
  matrix: Annotated[str, Option("orthogonal, or random invertible", MATRICES)] = "orthogonal",
  mix: Annotated[str, Option("what a matrix multiplies", ("rows", "block"))] = "rows",
  per_channel: Annotated[bool, Option("one matrix per channel")] = False,
  noise_level: Annotated[float, Option("uniform on [0, N) of 0..255", most=1e6, letter="N")] = 0.0,
  noise_place: Annotated[
    str, Option("the projection: where noise is added", NOISE_PLACES)
  ] = "before",
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

  Security: broken by known pairs, and without any pair by second moments; see ``djax.ops.rmt`` and the README.
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

  key_bytes = math.prod(matrix_shape) * _DRAWING_BYTES[matrix]

  def make_key(read):
    check_key_memory(key_bytes)
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
    return blockwise.project(
      np.asarray(key.matrices),
      blockwise.pad_to_blocks(images, block_size=block_size),
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
  return Scheme(spec, make_key, disguise, restore, export, key_bytes=key_bytes)


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


def _traits(spec: Mapping[str, Any]) -> frozenset[Trait]:
  traits = {Trait.BLOCKS, Trait.LINEAR, Trait.MATRICES, Trait.FLOATS}
  traits |= {Trait.ORTHOGONAL} if spec.get("matrix", "orthogonal") == "orthogonal" else set()
  return frozenset(traits | ({Trait.MOVED} if spec.get("permute", True) else set()))


def _reach(spec: Mapping[str, Any]) -> Reach:
  side, channels = spec["block_size"], spec["image_shape"][2]
  terms = side if spec["mix"] == "rows" else side * side * channels
  norm = 1.0 if spec["matrix"] == "orthogonal" else _PROJECTION_NORM
  level = spec["noise_level"]
  noise = level / 2 * (1.0 if spec["noise_place"] == "before" else math.sqrt(terms) * norm)
  return Reach(terms, norm, level, noise)


def _words(options: Mapping[str, Any]) -> list[str]:
  side = f"{options['block_size']}x{options['block_size']}"
  words = [f"RMT {side}", "permuted" if options["permute"] else "not permuted"]
  words += [f"{options['matrix']} matrices"] * (options["matrix"] != "orthogonal")
  words += ["whole blocks mixed"] * (options["mix"] != "rows")
  words += ["a matrix a channel"] * options["per_channel"]
  after = f" {options['noise_place']} the projection" * (options["noise_place"] != "before")
  return [*words, f"N = {options['noise_level']:g}{after}"]


def _breaks(spec: Mapping[str, Any]) -> list[str]:
  level = spec["noise_level"]
  noise = next((name for most, name in _NOISE if level <= most), "more than 100")
  place = f" {spec['noise_place']} the projection" if level else ""
  words = [f"{noise} noise{place}", f"{spec['matrix']} matrices that mix {spec['mix']}"]
  return words + ["one a channel"] * spec["per_channel"]


def _audited() -> Iterator[dict[str, Any]]:
  for size in (2, 4, 8):
    for permute in (False, True):
      for level in (0.0, 25.0, 50.0, 100.0):
        yield {"scheme": "rmt", "block_size": size, "permute": permute, "noise_level": level}
  for permute in (False, True):
    rmt: dict[str, Any] = {"scheme": "rmt", "block_size": 4, "permute": permute}
    yield {**rmt, "mix": "block"}
    yield {**rmt, "mix": "block", "noise_level": 25.0}
    yield {**rmt, "matrix": "projection"}
    yield {**rmt, "matrix": "projection", "noise_level": 25.0}
    yield {**rmt, "per_channel": True}


def _benched(sizes: Sequence[int]) -> Iterator[tuple[dict[str, Any], bool]]:
  middle = sizes[1]
  for size in sizes:
    yield {"scheme": "rmt", "block_size": size}, True
  yield {"scheme": "rmt", "block_size": middle, "noise_level": 25.0}, True
  yield {"scheme": "rmt", "block_size": middle}, False


def _reference(key: Any) -> Callable[[int, np.ndarray], np.ndarray]:
  """Multiplies each row of a block by the matrix of its position; ``mix="rows"``, one matrix for all channels."""
  matrices = np.asarray(key.matrices)
  return lambda position, block: block.astype(np.float32) @ matrices[position]


KIND = Kind(
  "rmt",
  rmt_scheme,
  traits=_traits,
  written=True,
  reach=_reach,
  warnings=lambda spec: (
    "rmt: linear; a few known pairs reveal the matrices, and statistics of the disguised images "
    "recover them without any pair.",
  ),
  words=_words,
  breaks=_breaks,
  audited=_audited,
  strength=("noise_level", (0.0, 25.0, 50.0, 100.0, 200.0)),
  benched=_benched,
  reference=_reference,
)
