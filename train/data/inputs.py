"""What a run trains on: two splits and public facts about them, made by ``owned`` or ``outsourced``."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from djax import schemes
from djax.ops import blocks
from djax.schemes import Trait
from djax.sources import Images
from train.data.input_pipeline import Feed

__all__ = ["STATISTICS_RECORDS", "Arrays", "Inputs", "widened"]

STATISTICS_RECORDS = 4096  # that say how images are standardised


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
  """Records in host memory.

  Attributes:
    images: ``[N, H, W, C]``, or all views one after another, ``[V * N, H, W, C]``.
    labels: ``[N]``.
  """

  images: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of some indices; views that are made later are given their record."""
    return self.images[indices % len(self.images)], self.labels[indices % len(self.labels)]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Inputs:
  """All that the loop is given: two splits, and public facts about them.

  Attributes:
    train: what is trained on.
    test: what is tested on.
    val: by what the network is chosen among those at the ends of epochs; None: the last one is taken.
    spec: of the scheme, ``SchemeSpec.to_dict()``.
    disguised_shape: ``(H', W', C)``.
    classes: number of label ids.
    labels: ``plain``, or ``permuted`` by the owner.
    class_names: one a label id, from whoever made the source; None where the owner keeps them.
    key_fingerprint: of the key, or None for the plain scheme.
    dataset_id: of the data set; None for an experiment and for sets of format version 1.
    source_sha256: of the originals, or of the manifest of an outsourced set.
    originals: training and test split as they were, or None where this machine has none.
    other_key: makes the feeds of both splits under another key, the first of some records only; None where there is no
      key at hand.
    copies: files of an outsourced set that belong into the run directory.
    close: closes the files that are read from; what is read later opens them again.
  """

  train: Feed
  test: Feed
  spec: dict[str, Any]
  disguised_shape: tuple[int, int, int]
  classes: int
  labels: str
  key_fingerprint: str | None
  source_sha256: str
  dataset_id: str | None = None
  class_names: tuple[str, ...] | None = None
  val: Feed | None = None
  originals: tuple[Images, Images] | None = None
  other_key: Callable[[], tuple[Feed, Feed]] | None = None
  copies: tuple[Path, ...] = ()
  close: Callable[[], None] = lambda: None

  @property
  def summary(self) -> dict[str, Any]:
    """What ``disguise.json`` of a run directory holds."""
    summary = {
      "spec": self.spec,
      "disguised_shape": list(self.disguised_shape),
      "classes": self.classes,
      "labels": self.labels,
      "key_fingerprint": self.key_fingerprint,
      "source_sha256": self.source_sha256,
    }
    return summary if self.dataset_id is None else {**summary, "dataset_id": self.dataset_id}

  @property
  def plain(self) -> tuple[Feed, Feed] | None:
    """The originals themselves, padded to the shape the network was made for; None where they have no such shape."""
    if self.originals is None or Trait.TOKENS in schemes.traits(self.spec):
      return None
    transform = functools.partial(_padded, self.spec.get("block_size"))
    train, test = (Feed(Arrays(x.images, x.labels), transform) for x in self.originals)
    return train, test


def widened(argument, images, labels, indices):
  """Gives stored values to the network as they are."""
  del argument, indices
  return images.astype(jnp.float32), labels


def _padded(block_size, argument, images, labels, indices):
  """Pads originals to whole blocks."""
  del argument, indices
  if block_size is not None:
    images = blocks.pad_to_blocks(images, block_size=block_size)
  return images.astype(jnp.float32), labels
