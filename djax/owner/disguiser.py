"""A scheme with its key and record streams: originals in, what leaves the owner's machine out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from djax import quantise, samplers, schemes
from djax.keys import Master
from djax.owner import streams, views
from djax.quantise import Quantiser

__all__ = ["Disguiser", "label_permutation", "stored"]


class Disguiser:
  """Disguises images of one spec under one key. Holds the key.

  Args:
    spec: ``SchemeSpec.to_dict()``.
    master: the owner's key.
  """

  def __init__(self, spec: Mapping[str, Any], master: Master):
    self.scheme = schemes.from_spec(spec)
    self._spec = spec
    self._master = master
    self._key = self.scheme.make_key(master.read)

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

    def uniforms(purpose: str, count: int) -> np.ndarray:
      subkey = self._master.subkey(streams.label(purpose, self._spec, split))
      return streams.uniforms(subkey, originals, indices, view=view, count=count)

    def draw() -> np.ndarray:
      shape = self.scheme.spec.disguised_shape
      return uniforms("noise", int(np.prod(shape))).reshape(-1, *shape)

    images = originals
    if view:
      images = views.augment(originals, uniforms("views", views.DRAWS), crop=crop, flip=flip)
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
    return np.asarray(self.scheme.restore(self._key, images))


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


def label_permutation(master: Master, classes: int) -> np.ndarray:
  """Returns int32 ``[K]``: class ``c`` of the source is stored as label id ``perm[c]``.

  Args:
    master: the owner's key.
    classes: number of classes ``K``.
  """
  return samplers.permutation(samplers.Words(master.read, f"labels|{classes}"), classes)
