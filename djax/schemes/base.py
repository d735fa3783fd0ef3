"""What describes a scheme, and the keys, checks and cuts that schemes share."""

import contextlib
import dataclasses
import enum
import functools
import inspect
import os
import pathlib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, NoReturn

import jax
import numpy as np

from djax.errors import ConfigError
from djax.host import samplers
from djax.ops import blocks as blocks_lib
from djax.schemes.contract import Scheme, SchemeSpec

__all__ = [
  "BLOCK_SIZE",
  "PERMUTE",
  "Key",
  "Kind",
  "Option",
  "Parameter",
  "Reach",
  "Scheme",
  "SchemeSpec",
  "Secret",
  "Trait",
  "check_concrete",
  "check_export",
  "check_images",
  "check_key_memory",
  "checked_shape",
  "draw_perm",
  "geometry",
  "to_blocks",
  "to_images",
]


_LIMITS_OF_CONTAINERS = (
  pathlib.Path("/sys/fs/cgroup/memory.max"),
  pathlib.Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


class Secret:
  """A key pytree that does not show its values, and is not pickled or copied. Base of frozen dataclasses."""

  def __repr__(self) -> str:
    shown = ", ".join(
      f"{field.name}={' '.join(arrays)}"
      for field in dataclasses.fields(self)  # type: ignore[arg-type]
      if (arrays := [*_shapes(getattr(self, field.name))])
    )
    return f"{type(self).__name__}({shown}; values hidden)"

  def __reduce__(self) -> NoReturn:
    raise TypeError(
      f"{type(self).__name__}: a secret is not pickled or copied. Make it again from the master with make_key."
    )


def _shapes(tree: Any) -> Iterator[str]:
  for leaf in jax.tree.leaves(tree):
    # A dtype has a shape too: jax.tree.map may put anything where the arrays are.
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
      yield f"{leaf.dtype}{list(leaf.shape)}"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Key(Secret):
  """The secret pytree of a scheme. Pass it as an argument; a closed-over array is written into compiled programs.

  Attributes:
    perm: int32 ``[P]``, or None where blocks stay in place.
    matrices: float32 of ``rmt.matrix_shape``, or None where pixels are not projected.
    aes_keys: uint8 ``[1, 16]``, or ``[P, 16]`` where each position has its own; None where nothing is encrypted.
  """

  perm: jax.Array | np.ndarray | None = None
  matrices: jax.Array | np.ndarray | None = None
  aes_keys: jax.Array | np.ndarray | None = None


class Trait(enum.Enum):
  """A property of a disguise, so that no other code asks for its name."""

  IDENTITY = "disguises nothing"
  BLOCKS = "works block by block, on a grid of blocks of block_size"
  LINEAR = "a disguised block is a matrix times the block, or the block itself"
  MATRICES = "secret matrices mix the pixels of a block, as the options matrix, mix, per_channel and noise of rmt say"
  ORTHOGONAL = "its matrices, if it has any, are orthogonal"
  UNITS = "units of a block are mapped by a secret table, as the options of aes say: equal units stay equal"
  MOVED = "blocks are moved by a secret permutation"
  FLOATS = "disguised images are float32, whatever the originals are"
  MIXED_IMAGES = "an encoding mixes several images"
  TOKENS = "a disguised image is a list of tokens, not an image"


class Option(NamedTuple):
  """Description of an option of a scheme, as ``typing.Annotated[type, Option(...)]`` in the signature of its function.

  Attributes:
    help: in a few words, for ``--help``.
    choices: what it may be; empty: anything of its type that the scheme takes.
    most: the greatest number that a config may ask for: far above what has a use, it keeps made-up configs from filling
      memory.
    config: the value in configs of an option that has no default.
    letter: for ``--help``, of its value.
  """

  help: str
  choices: tuple[str, ...] = ()
  most: float = float("inf")
  config: Any = None
  letter: str = ""


class Parameter(NamedTuple):
  """An option of a scheme.

  Attributes:
    name: also of its field ``config.disguise.NAME``.
    type: int, float, bool or str.
    default: None where it must be given.
    option: its description.
  """

  name: str
  type: type
  default: Any
  option: Option

  @property
  def flag(self) -> str:
    """Its flag on the command line; of an option that is on by default, the one that turns it off."""
    return f"--{'no-' * (self.default is True)}{self.name.replace('_', '-')}"


class Reach(NamedTuple):
  """How far values of a disguise reach, for the bounds of what storing them costs.

  Attributes:
    terms: how many products are summed to a disguised value; 0 where no value is computed.
    norm: of a matrix.
    level: of the noise.
    noise: what the noise adds to a restored pixel at most, in grey levels.
    restorable: whether there is a way back.
  """

  terms: int = 0
  norm: float = 1.0
  level: float = 0.0
  noise: float = 0.0
  restorable: bool = True


BLOCK_SIZE = Option("side of a block in pixels", most=1 << 14, config=2, letter="B")
PERMUTE = Option("leave blocks in place")


@dataclasses.dataclass(frozen=True)
class Kind:
  """All that djax knows of a scheme. Each scheme has one, at the end of its file.

  Attributes:
    name: by which it is asked for.
    make: ``(image_shape, *, options) -> Scheme``. Its signature defines the options: type, default and ``Option``.
    traits: ``(spec) -> traits``; a spec is ``SchemeSpec.to_dict()``.
    written: whether ``djax disguise`` writes it to disk. It then works block by block.
    takes_floats: whether originals may be float32.
    reach: ``(spec) -> Reach``, of a scheme that is written.
    restored_as: ``(spec) -> words`` on restored images that no number says, or empty.
    warnings: ``(spec) -> lines``: what to know before relying on it.
    words: ``(options) -> words`` that name the disguise in a table of results.
    breaks: ``(spec) -> words`` by which settings are classed where the same attacks break them.
    audited: ``() -> disguises`` that the table of known breaks is made of.
    strength: the option that a sweep of audits varies, and its values; an empty name for none.
    benched: ``(block sizes) -> (disguise, on_device)``: what is timed.
    reference: ``(key) -> ((position, block) -> block)``: one channel of a block of the original's position, written
      down the plain way, to be timed against.
  """

  name: str
  make: Callable[..., "Scheme"]
  traits: Callable[[Mapping[str, Any]], frozenset[Trait]] = lambda spec: frozenset()
  written: bool = False
  takes_floats: bool = True
  reach: Callable[[Mapping[str, Any]], Reach] = lambda spec: Reach()
  restored_as: Callable[[Mapping[str, Any]], str] = lambda spec: ""
  warnings: Callable[[Mapping[str, Any]], Iterable[str]] = lambda spec: ()
  words: Callable[[Mapping[str, Any]], Sequence[str]] | None = None
  breaks: Callable[[Mapping[str, Any]], Sequence[str]] = lambda spec: ()
  audited: Callable[[], Iterable[Mapping[str, Any]]] = lambda: ()
  strength: tuple[str, tuple[float, ...]] = ("", (0.0,))
  benched: Callable[[Sequence[int]], Iterable[tuple[Mapping[str, Any], bool]]] = lambda sizes: ()
  reference: Callable[[Any], Callable[[int, np.ndarray], np.ndarray]] | None = None

  @functools.cached_property
  def parameters(self) -> dict[str, Parameter]:
    """The options by name that a config or the command line can set, those with an ``Option``."""
    hints = typing.get_type_hints(self.make, include_extras=True)
    parameters = {}
    for name, given in inspect.signature(self.make).parameters.items():
      if typing.get_origin(hints.get(name)) is not Annotated:
        continue
      kind, option = typing.get_args(hints[name])
      default = None if given.default is given.empty else given.default
      parameters[name] = Parameter(name, kind, default, option)
    return parameters

  @property
  def takes_classes(self) -> bool:
    """Whether it must be told the number of classes."""
    return "classes" in inspect.signature(self.make).parameters


def draw_perm(read: samplers.Reader, positions: int) -> np.ndarray:
  """Draws the permutation of the block positions, the same for every scheme of a key.

  Args:
    read: of the key's streams.
    positions: how many there are.

  Returns:
    The permutation, integers ``[positions]``.
  """
  return samplers.permutation(samplers.Words(read, f"perm|{positions}"), positions)


def geometry(
  image_shape: Sequence[int], block_size: int
) -> tuple[tuple[int, int, int], tuple[int, int, int], int]:
  """Returns the image shape, the shape padded to whole blocks, and the number of block positions.

  Args:
    image_shape: ``(H, W, C)``.
    block_size: side of a block in pixels.

  Raises:
    ValueError: for a shape or size that is not positive.
  """
  shape = checked_shape(image_shape)
  rows, columns = blocks_lib.grid_shape(shape[0], shape[1], block_size=block_size)
  return shape, (rows * block_size, columns * block_size, shape[2]), rows * columns


def checked_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
  """Returns ``(H, W, C)`` as plain integers."""
  shape = tuple(int(side) for side in image_shape)
  if len(shape) != 3 or min(shape) < 1:
    raise ValueError(f"image_shape must be (H, W, C), all at least 1, got {tuple(image_shape)}.")
  return shape


def check_images(images: jax.Array | np.ndarray, shape: tuple[int, int, int]) -> None:
  """Refuses images of another shape than the key and spec were made for.

  Args:
    images: ``[..., H, W, C]``.
    shape: ``(H, W, C)`` of the spec.

  Raises:
    ValueError: for another shape.
  """
  if images.shape[-3:] != shape:
    raise ValueError(
      f"images must be [..., {', '.join(map(str, shape))}] as in the spec, got images.shape={images.shape}. "
      "Make the scheme for this image shape."
    )


def check_concrete(function: str, values: Any, advice: str) -> None:
  """Refuses what JAX is tracing, for functions that work on the host in NumPy.

  Args:
    function: who asks.
    values: a pytree of all that is to be worked on.
    advice: what to do instead, whole sentences.

  Raises:
    TypeError: for a tracer among them.
  """
  traced = [leaf for leaf in jax.tree.leaves(values) if isinstance(leaf, jax.core.Tracer)]
  if traced:
    raise TypeError(
      f"{function}: works on the host, in NumPy, and needs arrays with values, got a traced "
      f"{traced[0].aval.str_short()}. {advice}"
    )


def check_export(images: np.ndarray, shape: tuple[int, int, int], key: Any = None) -> None:
  """Refuses what is not a batch of originals on the host.

  Args:
    images: uint8 or float32 ``[B, H, W, C]`` on the 0..255 scale.
    shape: ``(H, W, C)`` of the spec.
    key: the secret pytree of the scheme.

  Raises:
    TypeError: under ``jit``, ``vmap`` or ``grad``.
    ValueError: for another shape or dtype.
  """
  check_concrete(
    "export", (images, key), "Call export outside of jit, vmap and grad; inside use disguise."
  )
  check_images(images, shape)
  if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
    raise ValueError(
      f"export: images must be uint8 or float32 [B, {', '.join(map(str, shape))}], got {images.dtype} "
      f"{list(images.shape)}. Convert them on the 0..255 scale, as one batch."
    )


def check_key_memory(key_bytes: int) -> None:
  """Refuses to draw a key that this machine cannot hold.

  Args:
    key_bytes: of the scheme.

  Raises:
    ConfigError: if it is more than the memory of the machine, or of the container; nobody knows that where there is no
      ``sysconf``.
  """
  if not hasattr(os, "sysconf"):
    return
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  for path in _LIMITS_OF_CONTAINERS:
    with contextlib.suppress(OSError, ValueError):  # not there, or "max"
      memory = min(memory, int(path.read_text()))
  if key_bytes > memory:
    raise ConfigError(
      f"drawing the matrices of this key takes about {key_bytes / 1e9:,.0f} GB of memory, this machine has "
      f"{memory / 1e9:,.0f}. Use a smaller block_size, or mix=rows."
    )


def to_blocks(images: jax.Array, shape: tuple[int, int, int], block_size: int) -> jax.Array:
  """Pads and cuts images of a known shape.

  Args:
    images: ``[..., H, W, C]``.
    shape: ``(H, W, C)`` of the spec.
    block_size: side of a block in pixels.

  Returns:
    The blocks, as ``djax.ops.blocks.blockify`` gives them.

  Raises:
    ValueError: for another shape.
  """
  check_images(images, shape)
  padded = blocks_lib.pad_to_blocks(images, block_size=block_size)
  return blocks_lib.blockify(padded, block_size=block_size)


def to_images(blocks: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
  """Puts blocks together and cuts the padding off: the inverse of ``to_blocks``.

  Args:
    blocks: as ``to_blocks`` gives them.
    shape: ``(H, W, C)`` of the spec.

  Returns:
    ``[..., H, W, C]``.
  """
  return blocks_lib.unblockify(blocks, height=shape[0], width=shape[1])
