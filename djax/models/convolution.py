"""A convolution whose kernel gradient is quick on a CPU.

XLA computes the gradient of a kernel as a convolution of the images with the gradient of the output: the window is as
large as an image, and the rate a fraction of the forward pass's. The same sum is one matrix product for each place of
the kernel, of the images shifted by it and the gradient.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["Convolution", "by_library", "by_places", "convolve", "identity"]


class Convolution(nn.Module):
  """A 3x3 convolution without bias that begins as the identity, see ``identity``.

  Attributes:
    features: output channels ``F``.
    dtype: of the arithmetic; the kernel stays float32.
  """

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns ``[B, H, W, F]`` of images ``[B, H, W, C]``."""
    kernel = self.param("kernel", identity, (3, 3, images.shape[-1], self.features))
    return convolve(images.astype(self.dtype), jnp.asarray(kernel, self.dtype))


def identity(rng: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
  """Initializes ``[r, s, C, F]`` to pass ``min(C, F)`` channels on; what further outputs there are is random.

  As in Jordan's airbench (arXiv:2404.00498), whose sources call it "dirac".
  """
  random = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(rng, shape, dtype)
  passing = (
    jnp.zeros(shape, dtype).at[shape[0] // 2, shape[1] // 2].set(jnp.eye(shape[2], shape[3]))
  )
  return jnp.where(jnp.arange(shape[3]) < shape[2], passing, random)


def _convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
  return jax.lax.conv_general_dilated(
    images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


@jax.custom_vjp
def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves with zero padding and stride 1; differentiable once, in reverse mode.

  Args:
    images: ``[B, H, W, C]``.
    kernel: ``[r, s, C, F]`` of the same dtype, ``r`` and ``s`` odd.

  Returns:
    ``[B, H, W, F]`` of that dtype.
  """
  return _convolve(images, kernel)


def _forward(images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
  return _convolve(images, kernel), (images, kernel)


def _backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
  images, kernel = saved
  (to_images,) = jax.vjp(lambda images: _convolve(images, kernel), images)[1](gradient)
  to_kernel = jax.lax.platform_dependent(
    images,
    gradient,
    kernel,
    cpu=lambda images, gradient, kernel: by_places(images, gradient, kernel.shape),
    default=by_library,
  )
  return to_images, to_kernel


def by_library(images: jax.Array, gradient: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns the gradient of a kernel as XLA computes it."""
  return jax.vjp(lambda kernel: _convolve(images, kernel), kernel)[1](gradient)[0]


def by_places(images: jax.Array, gradient: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns the gradient of a kernel ``[r, s, C, F]``, of images ``[B, H, W, C]`` and the output's ``[B, H, W, F]``."""
  (r, s), (_, h, w, channels) = shape[:2], images.shape
  padded = jnp.pad(images, ((0, 0), (r // 2, r // 2), (s // 2, s // 2), (0, 0)))
  rows = gradient.reshape(-1, shape[3])
  places = [
    padded[:, i : i + h, j : j + w].reshape(-1, channels).T @ rows
    for i in range(r)
    for j in range(s)
  ]
  return jnp.stack(places).reshape(shape)


convolve.defvjp(_forward, _backward)
