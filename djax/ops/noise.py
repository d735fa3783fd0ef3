"""The paper's noise D: i.i.d. uniform on ``[0, N)`` on the 0..255 scale, fresh for every image.

One record has *one* noise however often it is read: fold the record's index into ``rng``, never the epoch or the step.
Noise redrawn every epoch would be averaged away. JAX's generator serves noise that stays on the owner's machine.
Source: DisguisedNets, doi:10.1145/3609506.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["uniform"]


def uniform(rng: jax.Array, shape: tuple[int, ...], *, noise_level: float) -> jax.Array:
  """Draws noise uniform on ``[0, noise_level)`` in steps of N / 65536; its mean is N/2 and its variance N^2/12.

  Two values share a 32-bit word: drawing noise costs more than all the rest of a disguise.

  Args:
    rng: a JAX PRNG key, one a record.
    shape: of the noise.
    noise_level: the paper's N, at least 0, on the 0..255 scale; static.

  Returns:
    float32 array of ``shape``.

  Raises:
    ValueError: if ``noise_level`` is negative or not finite.

  Example:
    >>> drawn = uniform(jax.random.key(0), (8, 8, 3), noise_level=25.0)
    >>> drawn.shape, bool((drawn >= 0).all() and (drawn < 25).all())
    ((8, 8, 3), True)
  """
  if not 0 <= noise_level < float("inf"):
    raise ValueError(
      f"noise_level must be a finite number of at least 0 on the 0..255 scale, got {noise_level}."
    )
  count = math.prod(shape)
  words = jax.random.bits(rng, (-(-count // 2),), jnp.uint32)
  halves = lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:count].reshape(shape)
  return halves.astype(jnp.float32) * (noise_level / 2**16)
