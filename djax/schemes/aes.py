"""Pixel encryption with AES in ECB, on the host."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np

from djax.errors import NotInvertibleError
from djax.host import blockwise
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
  check_concrete,
  check_export,
  check_images,
  draw_perm,
  geometry,
)

__all__ = ["KIND", "aes_scheme"]

UNITS = (16, 8, 4, 2, 1)
_INSTEAD = (
  "Call it outside of jit, vmap and grad: disguise the data set beforehand, with python -m djax disguise, or choose "
  "rmt or permutation, which work inside."
)


def aes_scheme(
  image_shape: Sequence[int],
  *,
  block_size: Annotated[int, BLOCK_SIZE],
  permute: Annotated[bool, PERMUTE] = True,
  position_keys: Annotated[bool, Option("an AES key for each position")] = False,
  unit_pixels: Annotated[
    int,
    Option("pixels of a unit, or 8, 4, 2, 1, which cannot be restored", most=1 << 14, letter="U"),
  ] = 16,
  salt_pepper: Annotated[float, Option("share of values made 0 or 255", letter="R")] = 0.0,
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

  Security: equal units stay equal; open to frequency analysis and codebooks, see ``djax.host.aes``.
  """
  shape, disguised_shape, positions = geometry(image_shape, block_size)
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

  def make_key(read):
    labels = [f"aes|{p}" for p in range(positions)] if position_keys else ["aes|all"]
    secret = b"".join(read(label, 16) for label in labels)
    aes_keys = np.frombuffer(secret, np.uint8).reshape(-1, 16)
    return Key(perm=draw_perm(read, positions) if permute else None, aes_keys=aes_keys)

  def moved(key):
    return {"block_size": block_size, "perm": np.asarray(key.perm) if permute else None}

  def encrypt(key, batch, draw):
    padded = blockwise.pad_to_blocks(batch, block_size=block_size)
    if salt_pepper:
      padded = blockwise.salt_pepper(padded, draw(), rate=salt_pepper)
    return _aes().encrypt(np.asarray(key.aes_keys), padded, unit_pixels=unit_pixels, **moved(key))

  def disguise(key, images, labels, *, rng):
    check_concrete("aes", (key, images, rng), _INSTEAD)
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
    check_concrete("aes", (key, images), _INSTEAD)
    batch, leading = _bytes_of(images, disguised_shape)
    whole = _aes().decrypt(np.asarray(key.aes_keys), batch, **moved(key))
    return whole[:, : shape[0], : shape[1]].reshape(*leading, *shape)

  def export(key, images, draw):
    check_export(images, shape, key)
    return encrypt(key, _bytes_of(images, shape)[0], draw)

  options = {
    "permute": bool(permute),
    "position_keys": bool(position_keys),
    "unit_pixels": unit_pixels,
    "salt_pepper": float(salt_pepper),
  }
  spec = SchemeSpec("aes", shape, disguised_shape, block_size, options)
  return Scheme(spec, make_key, disguise, restore, export, on_device=False)


def _aes() -> Any:
  """Returns the cipher: the schemes load no crypto package until one is asked to encrypt."""
  from djax.host import aes

  return aes


def _bytes_of(images: Any, shape: tuple[int, int, int]) -> tuple[np.ndarray, tuple[int, ...]]:
  """Returns uint8 images on the host as one batch, and their leading axes."""
  check_images(images, shape)
  if images.dtype != np.uint8:
    raise ValueError(
      f"aes: images must be uint8, got {images.dtype}. Give 8-bit images on the 0..255 scale, or use rmt for floats."
    )
  return np.asarray(images).reshape(-1, *shape), images.shape[:-3]


def _warnings(spec: Mapping[str, Any]) -> Iterator[str]:
  yield (
    "aes: encrypted unit by unit (ECB), so equal units stay equal, within an image and between images: "
    "outlines show, and frequencies and known pairs give units away."
  )
  if spec["unit_pixels"] < UNITS[0]:
    yield (
      f"aes: a unit covers {spec['unit_pixels']} pixels only, so a table of units is quickly complete; "
      "it cannot be restored, not even with the key."
    )


def _words(options: Mapping[str, Any]) -> list[str]:
  side = f"{options['block_size']}x{options['block_size']}"
  words = [f"AES {side}", "permuted" if options["permute"] else "not permuted"]
  words.append(f"{options['unit_pixels']}-pixel units")
  words += ["a key a position"] * options["position_keys"]
  return words + [f"{options['salt_pepper']:.1%} salt and pepper"] * bool(options["salt_pepper"])


def _breaks(spec: Mapping[str, Any]) -> list[str]:
  words = [f"units of {spec['unit_pixels']} pixels"]
  words += ["a key for each position"] * spec["position_keys"]
  return words + ["salt and pepper"] * bool(spec["salt_pepper"])


def _audited() -> Iterator[dict[str, Any]]:
  for permute in (False, True):
    aes: dict[str, Any] = {"scheme": "aes", "block_size": 4, "permute": permute}
    yield aes
    yield {**aes, "unit_pixels": 2}
    yield {**aes, "unit_pixels": 2, "salt_pepper": 0.02}
    yield {**aes, "position_keys": True}
    yield {**aes, "salt_pepper": 0.02}


def _restored_as(spec: Mapping[str, Any]) -> str:
  if not spec["salt_pepper"]:
    return ""
  return f"exact, but for the share {spec['salt_pepper']} that salt and pepper replaced"


def _reference(key: Any) -> Callable[[int, np.ndarray], np.ndarray]:
  """Encrypts one channel of a block: 16-pixel units, all under one key."""
  (secret,) = np.asarray(key.aes_keys)
  context = _aes().encryptor(secret)
  return lambda position, block: np.frombuffer(context.update(block.tobytes()), np.uint8).reshape(
    block.shape
  )


KIND = Kind(
  "aes",
  aes_scheme,
  traits=lambda spec: frozenset(
    {Trait.BLOCKS, Trait.UNITS} | ({Trait.MOVED} if spec.get("permute", True) else set())
  ),
  written=True,
  takes_floats=False,
  reach=lambda spec: Reach(
    noise=255.0 if spec["salt_pepper"] else 0.0, restorable=spec["unit_pixels"] == UNITS[0]
  ),
  restored_as=_restored_as,
  warnings=_warnings,
  words=_words,
  breaks=_breaks,
  audited=_audited,
  strength=("salt_pepper", (0.0, 0.02, 0.1)),
  benched=lambda sizes: [
    ({"scheme": "aes", "block_size": size}, False) for size in sizes if size % 4 == 0
  ],
  reference=_reference,
)
