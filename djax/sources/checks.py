"""What djax takes as labelled images: one set of checks, for every kind of source and for images asked about."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from djax.errors import DataError
from djax.io import escape

__all__ = [
  "check_class_names",
  "check_classes",
  "check_dtype",
  "check_labels",
  "check_scale",
  "check_shape",
  "to_255",
]

_MAX_CLASSES = 65536  # a label beyond this is a record number or a year, not a class
_RARE = 0.01  # so few of the positive values may lie above 1 where white is 1
_ROUNDING = 1e-5  # relative; what float32 arithmetic on the way to a scale of 0..1 leaves above 1
_UNWRITTEN = (
  "Cc",
  "Cs",
  "Zl",
  "Zp",
)  # control characters, halves of characters, line and paragraph breaks
_ADVICE = {
  "bool": "If True is white: images.astype('uint8') * 255.",
  "int8": "If the values lie in 0..127 and are grey levels: images.astype('uint8').",
  "uint16": "If white is 65535: (images // 257).astype('uint8').",
}


def check_dtype(what: str, dtype: np.dtype) -> None:
  """Refuses images that are neither bytes nor floats.

  Args:
    what: the source, for the message.
    dtype: of the images.

  Raises:
    DataError: if so.
  """
  if dtype == np.uint8 or dtype.kind == "f":
    return
  advice = _ADVICE.get(dtype.name, "")
  if not advice and dtype.kind in "iu":
    advice = "If all values lie in 0..255: images.astype('uint8')."
  raise DataError(f"{what}: must be uint8, or float from 0 to 255, got {dtype}. {advice}".rstrip())


def check_shape(what: str, shape: tuple[int, ...]) -> None:
  """Refuses images without pixels, with axes in another order, or with channels that may be alpha.

  Args:
    what: the source, for the message.
    shape: ``(H, W, C)``.

  Raises:
    DataError: if so.
  """
  height, width, channels = shape
  if 0 in shape:
    raise DataError(f"{what}: images have no pixels, shape {shape}")
  if height <= 4 < channels and (channels > 16 or channels == width != height):
    raise DataError(
      f"{what}: must be [N, H, W, C], got images of {shape}, {height} pixels high with {channels} channels. "
      "If channels come first: np.moveaxis(images, 1, -1)."
    )
  if channels in (2, 4):
    raise DataError(
      f"{what}: {channels} channels are not taken, as the last may be alpha, which is no picture. If it is: "
      "images[..., :-1]. If it is not, add a channel of zeros."
    )


def check_labels(what: str, labels: np.ndarray, start: int = 0, classes: int | None = None) -> None:
  """Refuses no labels and labels out of range.

  Args:
    what: the source, for the message.
    labels: integers ``[n]``.
    start: index of the first.
    classes: their number, where it is known.

  Raises:
    DataError: if so.
  """
  if not len(labels):
    raise DataError(f"{what}: no images")
  bad, fault = labels < 0, "negative"
  if classes is not None and not bad.any():
    bad, fault = labels >= classes, f"{classes} or more, the number of classes"
  if bad.any():
    first = start + bad.argmax()
    raise DataError(f"{what}: {bad.sum()} labels are {fault}, the first at index {first}")


def check_classes(what: str, classes: int) -> None:
  """Refuses numbers of classes that djax does not take.

  Args:
    what: the source, for the message.
    classes: their number.

  Raises:
    DataError: if so.
  """
  if not 2 <= classes <= _MAX_CLASSES:
    raise DataError(f"{what}: needs 2 to {_MAX_CLASSES} classes, labelled from 0; has {classes}")


def check_class_names(what: str, names: Sequence[str]) -> None:
  """Refuses names that would not come back the same from a file with one name a line, as TFDS keeps them.

  Args:
    what: the source, for the message.
    names: one a class.

  Raises:
    DataError: for names that are equal or empty, or hold line breaks, other control characters, blanks at an end, or
      what UTF-8 cannot express.
  """
  for name, count in Counter(names).items():
    shown = escape.for_terminal(repr(name))
    if not name:
      raise DataError(f"{what}: every class needs a name, but one is empty. Name it.")
    if count > 1:
      raise DataError(f"{what}: {count} classes are called {shown}. Give each its own name.")
    if name != name.strip() or any(unicodedata.category(c) in _UNWRITTEN for c in name):
      raise DataError(
        f"{what}: a class name must be one line of text without blanks at its ends, got {shown}. Rename it."
      )


def check_scale(what: str, images: Iterable[np.ndarray]) -> None:
  """Refuses images whose white looks as if it were 1: of the values above 0, nearly all are at most 1.

  Black images pass. One value decides nothing.

  Args:
    what: the source, for the message.
    images: arrays of values, read no further than needed.

  Raises:
    DataError: if so.
  """
  positive = above = 0
  for values in images:
    positive += int(np.count_nonzero(values > 0))
    above += int(np.count_nonzero(values > 1 + _ROUNDING))
    if above > _RARE * max(positive, 1) and positive >= 1 << 16:
      return
  if positive and above <= _RARE * positive:
    few = f"only {above} of {positive} values above 0 are" if above else "no value is"
    raise DataError(
      f"{what}: {few} above 1, but the scale is 0..255. Say what white is: --scale 1 or --scale 255 "
      "(training: --config.data.scale)."
    )


def to_255(what: str, images: np.ndarray, scale: int, start: int) -> np.ndarray:
  """Returns images on the scale 0..255.

  Args:
    what: the source, for the message.
    images: ``[n, H, W, C]``, uint8 or float.
    scale: the value of white; 0 means 255.
    start: index of the first.

  Returns:
    uint8, or float32.

  Raises:
    DataError: for values outside ``0..scale``, NaN or infinite.
  """
  white = scale or 255
  if images.dtype == np.uint8 and white == 255:
    return images
  bad, fault = ~np.isfinite(images), "NaN or infinite"
  if not bad.any():
    slack = _ROUNDING if white == 1 else 0
    bad, fault = (images < 0) | (images > white * (1 + slack)), f"outside 0..{white}"
  if bad.any():
    first = start + int(bad.reshape(len(images), -1).any(axis=1).argmax())
    raise DataError(f"{what}: {bad.sum()} values are {fault}, the first in image {first}")
  if images.dtype == np.uint8:
    return images * np.uint8(255)
  images = images.astype(np.float32, copy=False)
  return images if white == 255 else np.minimum(images * np.float32(255), np.float32(255))
