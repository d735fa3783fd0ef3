"""No disguise at all: the baseline of every disguised result."""

from collections.abc import Sequence

from djax.schemes.base import (
  Key,
  Kind,
  Scheme,
  SchemeSpec,
  Trait,
  check_export,
  check_images,
  checked_shape,
)

__all__ = ["KIND", "plain_scheme"]


def plain_scheme(image_shape: Sequence[int]) -> Scheme:
  """Disguises nothing: the baseline of every disguised result.

  Args:
    image_shape: ``(H, W, C)``.

  Security: none at all.
  """
  shape = checked_shape(image_shape)

  def disguise(key, images, labels, *, rng):
    del key, rng
    check_images(images, shape)
    return images, labels

  def restore(key, images):
    del key
    check_images(images, shape)
    return images

  def export(key, images, draw):
    del key, draw
    check_export(images, shape)
    return images

  spec = SchemeSpec("plain", shape, shape, None, {})
  return Scheme(spec, lambda read: Key(), disguise, restore, export)


KIND = Kind("plain", plain_scheme, traits=lambda spec: frozenset({Trait.IDENTITY}))
