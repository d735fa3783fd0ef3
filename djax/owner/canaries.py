"""Planted queries: images of known classes among those that are asked about.

The rented machine cannot tell them from the others by how they are disguised or where they stand. Answers that were
invented, or given to other images than they belong to, are right on them no more often than a guess. What they do not
show is a few answers changed among many.

They must be images that the cloud does not hold: one of the training set looks, noise apart, as its record there, which
gives away that it is planted, and its label id with it.
"""

import random
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binom

from djax import sources
from djax.disguised.manifest import Manifest
from djax.errors import DataError

__all__ = ["Canaries", "Outcome", "judge", "read"]

_MOST = 200
_CHANCE_LIMIT = 0.01


class Canaries(NamedTuple):
  """Images to be planted.

  Attributes:
    images: ``[N, H, W, C]``, of the data set's shape and dtype.
    labels: int32 ``[N]``, class numbers of the source.
  """

  images: np.ndarray
  labels: np.ndarray


class Outcome(NamedTuple):
  """What became of planted images.

  Attributes:
    count: how many there were.
    right: how many got their class.
    chance: the probability that someone who knows no image gets as many right, at best.
    suspicious: whether that is above 1 %.
  """

  count: int  # type: ignore[assignment]  # hides the method of tuples
  right: int
  chance: float
  suspicious: bool


def read(
  source: str,
  manifest: Manifest,
  names: tuple[str, ...],
  **reading: Any,
) -> Canaries:
  """Reads images of known classes, at most 200 of them, drawn at random.

  Args:
    source: as ``sources.open`` takes it; its classes must have names of the data set's.
    manifest: of the data set.
    names: of its classes, unsealed.
    **reading: as ``sources.open`` takes it.

  Raises:
    DataError: for images of another shape or dtype, a class that the data set does not have, or too few to tell answers
      from guesses.
  """
  parts = [sources.load(source, split, **reading) for split in ("train", "test")]
  unknown = sorted(set(parts[0].class_names) - set(names))
  if unknown:
    raise DataError(
      f"canaries: classes must be those of the data set, got {unknown[0]!r}. Name the folders as its classes."
    )
  shape, dtype = tuple(manifest.spec["image_shape"]), manifest.source["dtype"]
  images = np.concatenate([part.images for part in parts])
  if images.shape[1:] != shape or (images.dtype != np.uint8 and dtype == "uint8"):
    raise DataError(
      f"canaries: images must be {dtype} {list(shape)} as in the data set, got {images.dtype} {list(images.shape[1:])}."
    )
  number_of = np.array([names.index(name) for name in parts[0].class_names], np.int32)
  labels = number_of[np.concatenate([part.labels for part in parts])]
  chosen = random.SystemRandom().sample(range(len(labels)), min(_MOST, len(labels)))
  planted = Canaries(images[chosen].astype(dtype), labels[chosen])
  if judge(planted.labels.tolist(), planted.labels.tolist()).suspicious:
    raise DataError(
      f"canaries: {len(chosen)} images of these classes are too few to tell answers from guesses. Give at least 10, of "
      "several classes."
    )
  return planted


def judge(expected: list[int], given: list[int]) -> Outcome:
  """Compares answers with what is known.

  Who knows nothing does best by naming the commonest class every time: each answer is then right with the share of that
  class, and as many right answers as there are come about with the upper tail of a binomial distribution.

  Args:
    expected: class numbers, at least one.
    given: class numbers answered, as many.

  Returns:
    The outcome. Suspicious are also answers of a network that is right no more often than a guess.
  """
  right = sum(a == b for a, b in zip(expected, given, strict=True))
  share = max(expected.count(x) for x in set(expected)) / len(expected)
  chance = float(binom.sf(right - 1, len(expected), share))
  return Outcome(len(expected), right, chance, chance > _CHANCE_LIMIT)
