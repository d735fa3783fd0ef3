"""The Scheme contract, and the schemes that run on the device: ``plain``, ``permutation`` and ``rmt``.

A scheme is made from public facts alone; its secret is a key pytree, always an argument. A new scheme is one function
that returns a ``Scheme`` and one row of ``SCHEMES``.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from djax import blocks as blocks_lib
from djax import noise, rmt, samplers
from djax import permutation as permutation_lib
from djax.errors import ConfigError, nearest

__all__ = [
  "SCHEMES",
  "Key",
  "Scheme",
  "SchemeSpec",
  "from_spec",
  "permutation_scheme",
  "plain_scheme",
  "rmt_scheme",
]

MATRICES = ("orthogonal", "projection")
NOISE_PLACES = ("before", "after")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Key:
  """The secret pytree of a scheme. Pass it as an argument; a closed-over array is written into compiled programs.

  Attributes:
    perm: int32 ``[P]``, or None where blocks stay in place.
    matrices: float32 of ``rmt.matrix_shape``, or None where pixels stay as they are.
  """

  perm: jax.Array | np.ndarray | None = None
  matrices: jax.Array | np.ndarray | None = None

  def __repr__(self) -> str:
    fields = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
    shown = ", ".join(f"{k}={v.dtype}{list(v.shape)}" for k, v in fields if hasattr(v, "shape"))
    return f"Key({shown}; values hidden)"

  def __reduce__(self) -> NoReturn:
    raise TypeError(
      "Key: a secret is not pickled or copied. Make it again from the master with make_key."
    )


class SchemeSpec(NamedTuple):
  """Public facts of a disguise, JSON-able through ``to_dict``.

  Attributes:
    scheme: name in ``SCHEMES``.
    image_shape: ``(H, W, C)`` of the originals.
    disguised_shape: ``(H', W', C)`` after padding to whole blocks.
    block_size: side of a block in pixels, or None where there are no blocks.
    options: the scheme's other parameters.
  """

  scheme: str
  image_shape: tuple[int, int, int]
  disguised_shape: tuple[int, int, int]
  block_size: int | None
  options: Mapping[str, Any]

  def to_dict(self) -> dict[str, Any]:
    """Returns what ``from_spec`` takes: JSON types only."""
    facts: dict[str, Any] = {"scheme": self.scheme, "image_shape": list(self.image_shape)}
    if self.block_size is not None:
      facts["block_size"] = self.block_size
    return {**facts, **self.options}


class Scheme(NamedTuple):
  """A disguise behind one contract.

  Attributes:
    spec: public facts.
    make_key: ``(read) -> key``; host, once. ``read(label, n)`` gives labelled bytes, see ``djax.keys``.
    disguise: ``(key, images, labels, *, rng) -> (images, labels)``; pure. Images are ``[..., H, W, C]`` on the 0..255
      scale; ``rng`` is the JAX key of the noise, one draw for the whole array: vmap over records to fold their
      indices in.
    restore: ``(key, images) -> images``, float32 for ``rmt`` (less the noise's mean N/2), else the same dtype.
    on_device: whether ``disguise`` may be jitted.
  """

  spec: SchemeSpec
  make_key: Callable[[samplers.Reader], Any]
  disguise: Callable[..., tuple[jax.Array, jax.Array]]
  restore: Callable[[Any, jax.Array], jax.Array]
  on_device: bool = True


def plain_scheme(image_shape: Sequence[int]) -> Scheme:
  """Disguises nothing: the twin that every disguised result is held against.

  Args:
    image_shape: ``(H, W, C)``.

  Security: none at all.
  """
  shape = _image_shape(image_shape)

  def disguise(key, images, labels, *, rng):
    del key, rng
    _check_images(images, shape)
    return images, labels

  def restore(key, images):
    del key
    _check_images(images, shape)
    return images

  return Scheme(SchemeSpec("plain", shape, shape, None, {}), lambda read: Key(), disguise, restore)


def permutation_scheme(image_shape: Sequence[int], *, block_size: int) -> Scheme:
  """Moves the blocks of every image by one secret permutation; bits and dtype are kept.

  64-bit types are kept under ``jax_enable_x64`` only, as everywhere in JAX.

  Args:
    image_shape: ``(H, W, C)``; padded to whole blocks by repeating the edge.
    block_size: side ``b`` in pixels.

  Raises:
    ValueError: if the block does not fit.

  Security: every block stays readable; borders and statistics give the order away.
  """
  shape, disguised_shape, positions = _geometry(image_shape, block_size)

  def make_key(read):
    return Key(perm=samplers.permutation(samplers.Words(read, f"perm|{positions}"), positions))

  def disguise(key, images, labels, *, rng):
    del rng
    cut = _to_blocks(images, shape, block_size)
    return _to_images(permutation_lib.permute(key.perm, cut), disguised_shape), labels

  def restore(key, images):
    cut = _to_blocks(images, disguised_shape, block_size)
    whole = _to_images(permutation_lib.invert(key.perm, cut), disguised_shape)
    return blocks_lib.crop(whole, height=shape[0], width=shape[1])

  spec = SchemeSpec("permutation", shape, disguised_shape, block_size, {})
  return Scheme(spec, make_key, disguise, restore)


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
  shape, disguised_shape, positions = _geometry(image_shape, block_size)
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
  labels_of_matrices = _matrix_labels(matrix_shape, matrix)

  def make_key(read):
    streams = [samplers.Words(read, label) for label in labels_of_matrices]
    draw = samplers.haar if matrix == "orthogonal" else samplers.invertible
    matrices = draw(streams, matrix_shape[-1]).astype(np.float32).reshape(matrix_shape)
    perm = None
    if permute:
      perm = samplers.permutation(samplers.Words(read, f"perm|{positions}"), positions)
    return Key(perm=perm, matrices=matrices)

  def disguise(key, images, labels, *, rng):
    x = _to_blocks(images, shape, block_size).astype(np.float32)
    if noise_level:
      drawn = noise.uniform(rng, x.shape, noise_level=noise_level)
    if noise_level and noise_place == "before":
      x = x + drawn
    y = rmt.project(key.matrices, x, mix=mix)
    if noise_level and noise_place == "after":
      y = y + drawn
    if permute:
      y = permutation_lib.permute(key.perm, y)
    return _to_images(y, disguised_shape), labels

  def restore(key, images):
    y = _to_blocks(images, disguised_shape, block_size).astype(np.float32)
    if permute:
      y = permutation_lib.invert(key.perm, y)
    if noise_place == "after":
      y = y - noise_level / 2
    x = rmt.unproject(key.matrices, y, mix=mix, orthogonal=matrix == "orthogonal")
    if noise_place == "before":
      x = x - noise_level / 2
    whole = _to_images(x, disguised_shape)
    return blocks_lib.crop(whole, height=shape[0], width=shape[1])

  options = {
    "permute": bool(permute),
    "matrix": matrix,
    "mix": mix,
    "per_channel": bool(per_channel),
    "noise_level": float(noise_level),
    "noise_place": noise_place,
  }
  spec = SchemeSpec("rmt", shape, disguised_shape, block_size, options)
  return Scheme(spec, make_key, disguise, restore)


SCHEMES: dict[str, Callable[..., Scheme]] = {
  "plain": plain_scheme,
  "permutation": permutation_scheme,
  "rmt": rmt_scheme,
}


def from_spec(spec: Mapping[str, Any]) -> Scheme:
  """Makes the scheme that a spec describes.

  Args:
    spec: ``SchemeSpec.to_dict()``, perhaps read back from JSON: ``scheme``, ``image_shape`` and the parameters of that
      scheme's function.

  Returns:
    The scheme; ``from_spec(s).spec.to_dict()`` equals a complete ``s``.

  Raises:
    ConfigError: for an unknown scheme or parameter (with the nearest name), or a missing one.
    ValueError: for a parameter that does not fit, from the scheme itself.
  """
  options = dict(spec)
  name = options.pop("scheme", None)
  if name not in SCHEMES:
    raise ConfigError(
      f"scheme must be one of {', '.join(SCHEMES)}, got {name!r}.{nearest(str(name), SCHEMES)}"
    )
  parameters = inspect.signature(SCHEMES[name]).parameters
  for option in options:
    if option not in parameters:
      raise ConfigError(
        f"scheme {name!r} has no parameter {option!r}.{nearest(option, parameters)} "
        f"It takes {', '.join(parameters)}."
      )
  missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
  if missing:
    raise ConfigError(f"scheme {name!r} needs {', '.join(missing)}.")
  return SCHEMES[name](**options)


def _matrix_labels(matrix_shape: tuple[int, ...], matrix: str) -> list[str]:
  """Returns the stream label of every matrix, position by position and within it channel by channel."""
  side = matrix_shape[-1]
  kind = "" if matrix == "orthogonal" else f"|{matrix}"
  channels = [f"|channel{c}" for c in range(matrix_shape[1])] if len(matrix_shape) == 4 else [""]
  return [f"rmt|{p}|{side}{kind}{c}" for p in range(matrix_shape[0]) for c in channels]


def _geometry(
  image_shape: Sequence[int], block_size: int
) -> tuple[tuple[int, int, int], tuple[int, int, int], int]:
  """Returns the image shape, the shape padded to whole blocks, and the number of block positions."""
  shape = _image_shape(image_shape)
  rows, columns = blocks_lib.grid_shape(shape[0], shape[1], block_size=block_size)
  return shape, (rows * block_size, columns * block_size, shape[2]), rows * columns


def _image_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
  """Returns ``(H, W, C)`` as plain integers."""
  shape = tuple(int(side) for side in image_shape)
  if len(shape) != 3 or min(shape) < 1:
    raise ValueError(f"image_shape must be (H, W, C), all at least 1, got {tuple(image_shape)}.")
  return shape


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise ValueError(
      f"rmt: {name} must be one of {choices}, got {value!r}.{nearest(str(value), choices)}"
    )


def _check_images(images: jax.Array, shape: tuple[int, int, int]) -> None:
  """Refuses images of another shape than the key and spec were made for."""
  if images.shape[-3:] != shape:
    raise ValueError(
      f"images must be [..., {', '.join(map(str, shape))}] as in the spec, got images.shape={images.shape}. "
      "Make the scheme for this image shape."
    )


def _to_blocks(images: jax.Array, shape: tuple[int, int, int], block_size: int) -> jax.Array:
  """Pads and cuts images of a known shape."""
  _check_images(images, shape)
  padded = blocks_lib.pad_to_blocks(images, block_size=block_size)
  return blocks_lib.blockify(padded, block_size=block_size)


def _to_images(blocks: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
  return blocks_lib.unblockify(blocks, height=shape[0], width=shape[1])
