"""Views of originals on the device: shifted, mirrored and warped before the disguise.

After it they would break the block grid. Images are ``[H, W, C]``; vmap for batches. Exported sets take their views
from ``djax.host.augment`` instead, whose draws come from the key.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy import ndimage

__all__ = ["view"]


def view(
  image: jax.Array,
  rng: jax.Array,
  number: jax.Array | int,
  *,
  crop: int = 0,
  flip: bool = False,
  rotate: float = 0.0,
  scale: float = 0.0,
  shear: float = 0.0,
) -> jax.Array:
  """Makes one view of an image, the same one for the same ``rng`` and ``number``; number 0 is the image itself.

  The image is shifted, then mirrored, then warped: the pixel at ``(y, x)`` from the centre shows what lies at
  ``R S D (y, x)`` from it, with the rotation ``R``, the shear ``S: x += s y`` and the scale ``D`` of both axes. What an
  option draws does not depend on the others.

  Args:
    image: ``[H, W, C]``, any dtype; warps pass through float32, and integers are rounded.
    rng: a JAX PRNG key, one an image.
    number: of the view, an int32 of at least 0, traced or not.
    crop: greatest shift in pixels, below the shorter side; beyond the edge pixels are mirrored, the edge not repeated.
      The shifts of an image's views come in a random order, each of the ``(2 crop + 1)^2 - 1`` once before any returns.
    flip: whether to mirror half of the views left to right.
    rotate: greatest angle in degrees, either way; angles are uniform.
    scale: greatest logarithm of the scale, drawn for each axis, uniform, either way.
    shear: greatest shear, uniform, either way.

  Returns:
    ``[H, W, C]`` of the same dtype. Warps are bilinear and repeat the edge beyond it.

  Raises:
    ValueError: while tracing, if the image has not three axes or an option is out of range.

  Example:
    >>> image = jnp.arange(4.0).reshape(2, 2, 1)
    >>> view(image, jax.random.key(0), 0, flip=True)[..., 0]
    Array([[0., 1.],
           [2., 3.]], dtype=float32)
  """
  _check(image.shape, crop, {"rotate": rotate, "scale": scale, "shear": shear})
  height, width, _ = image.shape
  order, draws = jax.random.split(rng)
  u = jax.random.uniform(jax.random.fold_in(draws, number), (5,))
  down, across = _shift(order, number, crop)
  rows = _mirrored(jnp.arange(height) + down, height)
  columns = _mirrored(jnp.arange(width) + across, width)
  if flip:
    columns = jnp.where(u[0] < 0.5, columns[::-1], columns)
  result = image[rows[:, None], columns[None, :]]
  if rotate or scale or shear:
    greatest = jnp.array([math.radians(rotate), scale, scale, shear], jnp.float32)
    result = _warped(result, (2 * u[1:] - 1) * greatest)
  return jnp.where(jnp.asarray(number) == 0, image, result)


def _check(shape: tuple[int, ...], crop: int, greatest: dict[str, float]) -> None:
  """Refuses what is no image, and options out of range."""
  if len(shape) != 3:
    raise ValueError(
      f"view: image must be [H, W, C], got image.shape={shape}. Use vmap for batches."
    )
  side = min(shape[:2])
  if not isinstance(crop, int) or not 0 <= crop < side:
    raise ValueError(
      f"view: crop must be a whole number from 0 to {side - 1}, below the shorter side, got {crop}. "
      "Choose a smaller shift."
    )
  for name, value in greatest.items():
    if not 0 <= value < float("inf"):
      raise ValueError(
        f"view: {name} must be a finite number of at least 0, got {value}. It is the greatest value either way."
      )


def _shift(rng: jax.Array, number: jax.Array | int, crop: int) -> tuple[jax.Array, jax.Array]:
  """Returns the rows and columns by which a view is shifted."""
  side = 2 * crop + 1
  others = side * side - 1
  if not others:
    return jnp.int32(0), jnp.int32(0)
  place = jax.random.permutation(rng, others)[(jnp.asarray(number, jnp.int32) - 1) % others]
  place = place + (place >= others // 2)  # no shift is none
  return place // side - crop, place % side - crop


def _mirrored(places: jax.Array, size: int) -> jax.Array:
  """Folds places beyond the edge back, the edge itself not repeated."""
  places = jnp.abs(places)
  return jnp.where(places >= size, 2 * (size - 1) - places, places)


def _warped(image: jax.Array, drawn: jax.Array) -> jax.Array:
  """Warps an image by an angle, two log-scales and a shear."""
  height, width, _ = image.shape
  angle, log_down, log_across, shear = drawn
  middle, centre = (height - 1) / 2, (width - 1) / 2
  y = (jnp.arange(height, dtype=jnp.float32)[:, None] - middle) * jnp.exp(log_down)
  x = (jnp.arange(width, dtype=jnp.float32)[None, :] - centre) * jnp.exp(log_across)
  x = x + shear * y
  places = [
    y * jnp.cos(angle) - x * jnp.sin(angle) + middle,
    y * jnp.sin(angle) + x * jnp.cos(angle) + centre,
  ]

  def read(channel: jax.Array) -> jax.Array:
    return ndimage.map_coordinates(channel, places, order=1, mode="nearest")

  result = jax.vmap(read, in_axes=-1, out_axes=-1)(image.astype(jnp.float32))
  if jnp.issubdtype(image.dtype, jnp.integer):
    result = jnp.round(result)
  return result.astype(image.dtype)
