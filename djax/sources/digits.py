"""The handwritten digits that scikit-learn ships."""

import numpy as np

from djax.sources.base import Images, Records, Source, parse_split

__all__ = ["DigitsRecords"]


class DigitsRecords(Records):
  """One split of the 1797 digits, 8x8x1; every fifth is test. They are in memory as a whole."""

  def __init__(self, split: str):
    from sklearn import datasets  # takes a second, for this source alone

    digits = datasets.load_digits()
    every = np.arange(len(digits.target))
    indices = {"train": every[every % 5 != 4], "test": every[4::5]}
    name, part = parse_split(split, {key: len(x) for key, x in indices.items()})
    chosen = indices[name][part]
    self._images = np.round(digits.images[chosen, :, :, None] * (255 / 16)).astype(np.uint8)
    self._labels = digits.target[chosen].astype(np.int32)
    super().__init__(
      len(chosen),
      name="digits",
      image_shape=(8, 8, 1),
      dtype=np.uint8,
      class_names=tuple("0123456789"),
      files={},
    )

  def _read(self, start: int, stop: int) -> Images:
    return Images(self._images[start:stop], self._labels[start:stop], self.class_names)

  def labels(self) -> np.ndarray:
    return self._labels

  def _take(self, rows: np.ndarray) -> Images:
    return Images(self._images[rows], self._labels[rows], self.class_names)


SOURCE = Source(
  "digits", lambda source: source == "digits", lambda source, split, reading: DigitsRecords(split)
)
