"""The Scheme contract, and the schemes: ``plain``, ``permutation`` and ``rmt`` on the device, ``aes`` on the host.

A scheme is made from public facts alone; its secret is a key pytree, always an argument. A new scheme is one function
that returns a ``Scheme`` and one row of ``SCHEMES``.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from djax import blocks as blocks_lib
from djax import host, noise, rmt, samplers
from djax import permutation as permutation_lib
from djax.errors import ConfigError, NotInvertibleError, nearest

__all__ = [
  "SCHEMES",
  "Key",
  "Scheme",
  "SchemeSpec",
  "aes_scheme",
  "from_spec",
  "permutation_scheme",
  "plain_scheme",
  "rmt_scheme",
]

MATRICES = ("orthogonal", "projection")
NOISE_PLACES = ("before", "after")
UNITS = (16, 8, 4, 2, 1)
# From this block size on, blocks are moved before they are projected: the gather then writes float32 once, where XLA
# would turn each uint8 into a float in every product that it enters. Smaller blocks are better moved last.
_MOVED_FIRST = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Key:
  """The secret pytree of a scheme. Pass it as an argument; a closed-over array is written into compiled programs.

  Attributes:
    perm: int32 ``[P]``, or None where blocks stay in place.
    matrices: float32 of ``rmt.matrix_shape``, or None where pixels are not projected.
    aes_keys: uint8 ``[1, 16]``, or ``[P, 16]`` where each position has its own; None where nothing is encrypted.
  """

  perm: jax.Array | np.ndarray | None = None
  matrices: jax.Array | np.ndarray | None = None
  aes_keys: jax.Array | np.ndarray | None = None

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
    restore: ``(key, images) -> images``, float32 for ``rmt`` (less the noise's mean N/2), else the same dtype;
      raises ``NotInvertibleError`` where there is no way back.
    export: ``(key, images, draw) -> images``: host NumPy, what goes to disk, the same bytes on every machine and
      in every batch. Images are uint8 or float32 ``[B, H, W, C]`` on the 0..255 scale; ``draw()`` returns the
      records' noise, float32 ``[B, H', W', C]`` uniform on [0, 1) of the disguised shape, and is called once if the
      scheme needs noise, else never. float32 for ``rmt``, else the same dtype.
    on_device: whether ``disguise`` may be jitted; if not, it works on host arrays.
  """

  spec: SchemeSpec
  make_key: Callable[[samplers.Reader], Any]
  disguise: Callable[..., tuple[jax.Array, jax.Array]]
  restore: Callable[[Any, jax.Array], jax.Array]
  export: Callable[[Any, np.ndarray, Callable[[], np.ndarray]], np.ndarray]
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

  def export(key, images, draw):
    del key, draw
    _check_export(images, shape)
    return images

  spec = SchemeSpec("plain", shape, shape, None, {})
  return Scheme(spec, lambda read: Key(), disguise, restore, export)


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
    return Key(perm=_draw_perm(read, positions))

  def disguise(key, images, labels, *, rng):
    del rng
    cut = _to_blocks(images, shape, block_size)
    return _to_images(permutation_lib.permute(key.perm, cut), disguised_shape), labels

  def restore(key, images):
    cut = _to_blocks(images, disguised_shape, block_size)
    whole = _to_images(permutation_lib.invert(key.perm, cut), disguised_shape)
    return blocks_lib.crop(whole, height=shape[0], width=shape[1])

  def export(key, images, draw):
    del draw
    _check_export(images, shape)
    padded = host.pad_to_blocks(images, block_size=block_size)
    return host.permute(np.asarray(key.perm), padded, block_size=block_size)

  spec = SchemeSpec("permutation", shape, disguised_shape, block_size, {})
  return Scheme(spec, make_key, disguise, restore, export)


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
    return Key(perm=_draw_perm(read, positions) if permute else None, matrices=matrices)

  def disguise(key, images, labels, *, rng):
    x = _to_blocks(images, shape, block_size).astype(np.float32)
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
      matrices = jnp.take(key.matrices, key.perm, axis=0, mode="clip")
      y = rmt.project(matrices, permutation_lib.permute(key.perm, x), mix=mix)
      if noise_level and noise_place == "after":
        y = y + permutation_lib.permute(key.perm, drawn)
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

  def export(key, images, draw):
    _check_export(images, shape)
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


def aes_scheme(
  image_shape: Sequence[int],
  *,
  block_size: int,
  permute: bool = True,
  position_keys: bool = False,
  unit_pixels: int = 16,
  salt_pepper: float = 0.0,
) -> Scheme:
  """Encrypts the pixels of every block with AES-128 in ECB, then moves the blocks: uint8 in, uint8 out, on the host.

  ``restore`` is exact, but for salt and pepper, which stay; units below 16 pixels have no way back.

  Args:
    image_shape: ``(H, W, C)``; padded to whole blocks by repeating the edge.
    block_size: side ``b`` in pixels; ``b * b`` a multiple of ``unit_pixels``.
    permute: whether the blocks are moved as well.
    position_keys: whether each block position has an AES key of its own.
    unit_pixels: pixels of one channel in a unit: 16, 8, 4, 2 or 1.
    salt_pepper: share of values set to 0 or 255 before encryption, to spoil codebooks; in [0, 1).

  Raises:
    ValueError: for an option that does not exist or does not fit.

  Security: equal units stay equal; open to frequency analysis and codebooks, see ``djax.aes``.
  """
  shape, disguised_shape, positions = _geometry(image_shape, block_size)
  if type(unit_pixels) is not int or unit_pixels not in UNITS:
    raise ValueError(f"aes: unit_pixels must be one of {UNITS}, got {unit_pixels!r}.")
  if block_size * block_size % unit_pixels:
    raise ValueError(
      f"aes: block_size * block_size must be a multiple of unit_pixels, got block_size={block_size} with "
      f"unit_pixels={unit_pixels}. Use a block_size of 4, 8 or 16, or smaller units."
    )
  if not 0 <= salt_pepper < 1:
    raise ValueError(
      f"aes: salt_pepper must be a share of at least 0 and below 1, got {salt_pepper}."
    )
  labels_of_keys = [f"aes|{p}" for p in range(positions)] if position_keys else ["aes|all"]

  def make_key(read):
    secret = b"".join(read(label, 16) for label in labels_of_keys)
    aes_keys = np.frombuffer(secret, np.uint8).reshape(-1, 16)
    return Key(perm=_draw_perm(read, positions) if permute else None, aes_keys=aes_keys)

  def geometry(key):
    return {"block_size": block_size, "perm": np.asarray(key.perm) if permute else None}

  def encrypt(key, batch, draw):
    from djax import aes  # core imports no crypto package until it is asked to encrypt

    padded = host.pad_to_blocks(batch, block_size=block_size)
    if salt_pepper:
      padded = host.salt_pepper(padded, draw(), rate=salt_pepper)
    return aes.encrypt(np.asarray(key.aes_keys), padded, unit_pixels=unit_pixels, **geometry(key))

  def disguise(key, images, labels, *, rng):
    batch, leading = _bytes_of(images, shape)

    def draw():
      return np.asarray(jax.random.uniform(rng, (len(batch), *disguised_shape), np.float32))

    return encrypt(key, batch, draw).reshape(*leading, *disguised_shape), labels

  def restore(key, images):
    if unit_pixels != UNITS[0]:
      raise NotInvertibleError(
        f"aes: only units of 16 pixels can be restored, this scheme has unit_pixels={unit_pixels}, which averages "
        "ciphers away. Keep the originals."
      )
    from djax import aes

    batch, leading = _bytes_of(images, disguised_shape)
    whole = aes.decrypt(np.asarray(key.aes_keys), batch, **geometry(key))
    return whole[:, : shape[0], : shape[1]].reshape(*leading, *shape)

  def export(key, images, draw):
    _check_export(images, shape)
    return encrypt(key, _bytes_of(images, shape)[0], draw)

  options = {
    "permute": bool(permute),
    "position_keys": bool(position_keys),
    "unit_pixels": unit_pixels,
    "salt_pepper": float(salt_pepper),
  }
  spec = SchemeSpec("aes", shape, disguised_shape, block_size, options)
  return Scheme(spec, make_key, disguise, restore, export, on_device=False)


SCHEMES: dict[str, Callable[..., Scheme]] = {
  "plain": plain_scheme,
  "permutation": permutation_scheme,
  "rmt": rmt_scheme,
  "aes": aes_scheme,
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


def _draw_perm(read: samplers.Reader, positions: int) -> np.ndarray:
  """Draws the permutation of the block positions, the same for every scheme of a key."""
  return samplers.permutation(samplers.Words(read, f"perm|{positions}"), positions)


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


def _check_images(images: jax.Array | np.ndarray, shape: tuple[int, int, int]) -> None:
  """Refuses images of another shape than the key and spec were made for."""
  if images.shape[-3:] != shape:
    raise ValueError(
      f"images must be [..., {', '.join(map(str, shape))}] as in the spec, got images.shape={images.shape}. "
      "Make the scheme for this image shape."
    )


def _check_export(images: np.ndarray, shape: tuple[int, int, int]) -> None:
  """Refuses what is not a batch of originals on the host."""
  _check_images(images, shape)
  if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
    raise ValueError(
      f"export: images must be uint8 or float32 [B, {', '.join(map(str, shape))}], got {images.dtype} "
      f"{list(images.shape)}. Convert them on the 0..255 scale, as one batch."
    )


def _bytes_of(images: Any, shape: tuple[int, int, int]) -> tuple[np.ndarray, tuple[int, ...]]:
  """Returns uint8 images on the host as one batch, and their leading axes."""
  _check_images(images, shape)
  if images.dtype != np.uint8:
    raise ValueError(
      f"aes: images must be uint8, got {images.dtype}. Give 8-bit images on the 0..255 scale, or use rmt for floats."
    )
  return np.asarray(images).reshape(-1, *shape), images.shape[:-3]


def _to_blocks(images: jax.Array, shape: tuple[int, int, int], block_size: int) -> jax.Array:
  """Pads and cuts images of a known shape."""
  _check_images(images, shape)
  padded = blocks_lib.pad_to_blocks(images, block_size=block_size)
  return blocks_lib.blockify(padded, block_size=block_size)


def _to_images(blocks: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
  return blocks_lib.unblockify(blocks, height=shape[0], width=shape[1])
