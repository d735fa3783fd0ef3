"""The paper's noise D: i.i.d. uniform on ``[0, N)`` on the 0..255 scale, fresh for every image.

One record has *one* noise however often it is read: fold the record's index into ``rng``, never the epoch or the step.
Noise redrawn every epoch would be averaged away. JAX's generator serves noise that stays on the owner's machine.
Source: DisguisedNets, doi:10.1145/3609506.
"""

import jax
import jax.numpy as jnp

__all__ = ["uniform"]


def uniform(rng: jax.Array, shape: tuple[int, ...], *, noise_level: float) -> jax.Array:
  """Draws noise uniform on ``[0, noise_level)``; its mean is N/2 and its variance N^2/12.

  Args:
    rng: a JAX PRNG key, one a record.
    shape: of the noise.
    noise_level: the paper's N, at least 0, on the 0..255 scale; static.

  Returns:
    float32 array of ``shape``.

  Raises:
    ValueError: if ``noise_level`` is negative or not finite.
  """
  if not 0 <= noise_level < float("inf"):
    raise ValueError(
      f"noise_level must be a finite number of at least 0 on the 0..255 scale, got {noise_level}."
    )
  return noise_level * jax.random.uniform(rng, shape, jnp.float32)
