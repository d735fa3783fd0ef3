"""A scheme with its key and record streams: originals in, what leaves the owner's machine out."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from djax import schemes
from djax.disguised import quantise
from djax.disguised.quantise import Quantiser
from djax.host import augment
from djax.owner.record_noise import RecordStreams

__all__ = ["Disguiser", "stored"]


class Disguiser:
  """Disguises images of one data set. Holds the key.

  Args:
    spec: ``SchemeSpec.to_dict()``.
    streams: of the data set.
  """

  def __init__(self, spec: Mapping[str, Any], streams: RecordStreams):
    self.scheme = schemes.from_spec(spec)
    self._streams = streams
    self._key = self.scheme.make_key(streams.read)
    restore = self.scheme.restore
    self._restore = jax.jit(restore) if self.scheme.on_device else restore

  def images(
    self,
    originals: np.ndarray,
    split: str,
    indices: Sequence[int],
    *,
    view: int = 0,
    crop: int = 0,
    flip: bool = False,
  ) -> np.ndarray:
    """Disguises one view of some originals.

    Args:
      originals: ``[B, H, W, C]`` uint8 or float32, 0..255.
      split: the split's name, which the noise depends on.
      indices: of the originals in their split, ``[B]``; the noise depends on them too.
      view: 0 is the original itself.
      crop: greatest shift of a further view in pixels.
      flip: whether further views are mirrored.

    Returns:
      ``[B, H', W', C]``, float32 or uint8 as the scheme gives it; the same bytes on every machine.
    """
    images = originals
    if view:
      drawn = self._streams.views(originals, split, indices, view)
      images = augment.augment(originals, drawn, crop=crop, flip=flip)

    def draw() -> np.ndarray:
      shape = self.scheme.spec.disguised_shape
      count = int(np.prod(shape))
      values = self._streams.noise(originals, images, split, indices, view, count)
      return values.reshape(-1, *shape)

    return self.scheme.export(self._key, images, draw)

  def restored(self, images: Any) -> np.ndarray:
    """Undoes a disguise as far as the scheme can, less the mean of its noise.

    Args:
      images: ``[B, H', W', C]``, dequantised.

    Returns:
      ``[B, H, W, C]``: float32 for rmt, else the same dtype.

    Raises:
      NotInvertibleError: where there is no way back.
    """
    return np.asarray(self._restore(self._key, images))


def stored(
  images: np.ndarray, dtype: str, quantiser: Quantiser | None, *, block_size: int
) -> np.ndarray:
  """Turns disguised images into what is stored.

  Args:
    images: ``[B, H', W', C]``, as ``Disguiser.images`` gives them.
    dtype: ``float32``, ``float16`` or ``uint8``.
    quantiser: for uint8 of float values, else None.
    block_size: side ``b`` in pixels.

  Returns:
    The same shape, little-endian ``dtype``.
  """
  if quantiser is not None:
    images = quantise.quantise(images, quantiser, block_size=block_size)
  return images.astype(np.dtype(dtype).newbyteorder("<"), copy=False)
