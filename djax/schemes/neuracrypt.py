"""NeuraCrypt (Yala et al., arXiv:2106.02484): patches through a secret random network, then shuffled in every image.

A patch of pixels in [-1, 1] goes through ``depth`` random layers with ReLU, the first of them a convolution whose
stride is the patch. The secret vector of its position is added, and one more random layer mixes both. The tokens of an
image come in a random order, another one for each image. Weights are Gaussian, and there is no batch normalisation, so
an image is encoded without the others.

Security: encodings are matched with their originals and the encoder is cloned (Carlini et al., arXiv:2108.07256), see
``djax.attacks.neuracrypt.matching``.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from djax.errors import NotInvertibleError
from djax.host import samplers
from djax.ops import blocks
from djax.schemes import secret
from djax.schemes.base import (
  Kind,
  Option,
  Scheme,
  SchemeSpec,
  Secret,
  Trait,
  check_images,
  checked_shape,
)

__all__ = ["KIND", "NeuraCryptKey", "neuracrypt_scheme"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class NeuraCryptKey(Secret):
  """The key of NeuraCrypt.

  Attributes:
    kernels: ``depth + 1`` float32 matrices: ``[patch * patch * C, hidden]``, then ``[hidden, hidden]``.
    positions: float32 ``[P, hidden]``.
    seed: uint32 ``[2]``, of the order of tokens.
  """

  kernels: tuple[jax.Array | np.ndarray, ...]
  positions: jax.Array | np.ndarray
  seed: jax.Array | np.ndarray


def neuracrypt_scheme(
  image_shape: Sequence[int],
  *,
  patch: Annotated[int, Option("side of a patch in pixels", most=1 << 10, config=4)],
  hidden: Annotated[int, Option("channels of a token", most=1 << 14)] = 64,
  depth: Annotated[int, Option("layers before positions are added", most=64)] = 3,
) -> Scheme:
  """Turns each patch of an image into a token; encodings are float32 ``[..., P, 1, hidden]``.

  Args:
    image_shape: ``(H, W, C)``.
    patch: side of a patch in pixels; divides H and W.
    hidden: channels of a token.
    depth: layers before the positions are added.

  Raises:
    ValueError: for a number that does not fit.

  Security: see the module.
  """
  shape = checked_shape(image_shape)
  height, width, channels = shape
  if patch < 1 or height % patch or width % patch:
    raise ValueError(
      f"neuracrypt: patch must divide both sides of the image, got patch={patch} for {height} x {width} pixels. "
      "Give a common divisor."
    )
  if min(hidden, depth) < 1:
    raise ValueError(
      f"neuracrypt: hidden and depth must be at least 1, got hidden={hidden} and depth={depth}."
    )
  positions = (height // patch) * (width // patch)
  fans = [patch * patch * channels, *[hidden] * depth]

  def make_key(read):
    def normal(name, *sides):
      words = samplers.Words(read, f"neuracrypt|{name}")
      return samplers.normal(words, int(np.prod(sides))).reshape(sides).astype(np.float32)

    kernels = tuple(
      normal(f"kernel{layer}", fan, hidden) * np.float32((2 / fan) ** 0.5)
      for layer, fan in enumerate(fans)
    )
    return NeuraCryptKey(
      kernels, normal("positions", positions, hidden), secret.seed_of(read, "neuracrypt|seed")
    )

  def disguise(key, images, labels, *, rng):
    check_images(images, shape)
    cut = blocks.blockify(images, block_size=patch)
    tokens = cut.reshape(*cut.shape[:-3], -1).astype(jnp.float32) / 127.5 - 1
    *layers, mixer = key.kernels
    for kernel in layers:
      tokens = jax.nn.relu(jnp.matmul(tokens, kernel, precision="highest"))
    tokens = jnp.matmul(jax.nn.relu(tokens + key.positions), mixer, precision="highest")
    draw = jax.random.uniform(secret.rng_of(key.seed, rng), tokens.shape[:-1])
    order = jnp.argsort(draw, axis=-1)
    return jnp.take_along_axis(tokens, order[..., None], axis=-2)[..., None, :], labels

  def restore(key, images):
    raise NotInvertibleError(
      "neuracrypt: encodings cannot be restored, the layers lose what they set to zero. Keep the originals."
    )

  options = {"patch": int(patch), "hidden": int(hidden), "depth": int(depth)}
  spec = SchemeSpec("neuracrypt", shape, (positions, 1, hidden), None, options)
  return Scheme(spec, make_key, disguise, restore, secret.not_exported("neuracrypt"))


KIND = Kind(
  "neuracrypt",
  neuracrypt_scheme,
  traits=lambda spec: frozenset({Trait.TOKENS, Trait.FLOATS}),
  words=lambda options: [
    f"NeuraCrypt, patches {options['patch']}x{options['patch']}",
    f"{options['hidden']} channels",
  ],
)
