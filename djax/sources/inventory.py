"""What is in a source, counted, so that its owner sees a mistake before the work and not after it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from djax.sources.base import Records

__all__ = ["Inventory", "take"]

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Inventory:
  """What is in a source.

  Attributes:
    source: its public name.
    image_shape: ``(H, W, C)``.
    dtype: of the images.
    class_names: in the order of their numbers.
    counts: by split, the number of images of each class.
    notes: how the source was read, in words.
  """

  source: str
  image_shape: tuple[int, int, int]
  dtype: str
  class_names: tuple[str, ...]
  counts: Mapping[str, tuple[int, ...]]
  notes: tuple[str, ...]

  def to_dict(self) -> dict[str, Any]:
    """Returns it as JSON has it."""
    return {
      **dataclasses.asdict(self),
      "image_shape": list(self.image_shape),
      "class_names": list(self.class_names),
      "counts": {name: list(counts) for name, counts in self.counts.items()},
      "notes": list(self.notes),
      "warnings": self.warnings(),
    }

  def lines(self) -> list[str]:
    """Returns it in words, without warnings."""
    height, width, channels = self.image_shape
    splits = ", ".join(f"{name} {sum(counts)}" for name, counts in self.counts.items())
    names = ", ".join(self.class_names[:_SHOWN])
    more = ", ..." if len(self.class_names) > _SHOWN else ""
    lines = [
      f"images: {splits}; {height}x{width}x{channels} {self.dtype}",
      f"classes: {len(self.class_names)} ({names}{more})",
    ]
    for name, counts in self.counts.items():
      least, most = int(np.argmin(counts)), int(np.argmax(counts))
      few, many = self.class_names[least], self.class_names[most]
      spread = f" of {few!r} to {counts[most]} of {many!r}" if least != most else " of each class"
      lines.append(f"{name}: {counts[least]} images{spread}")
    return [*lines, *self.notes]

  def warnings(self) -> list[str]:
    """Returns what is probably not meant."""
    lines = []
    for split, counts in self.counts.items():
      empty = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
      if empty:
        names = ", ".join(map(repr, empty[:_SHOWN])) + (", ..." if len(empty) > _SHOWN else "")
        lines.append(f"{split} has no image of {len(empty)} classes: {names}")
    return lines


def take(opened: Mapping[str, Records]) -> Inventory:
  """Counts the images of a source.

  Args:
    opened: its splits by name, at least one; their labels are read.

  Raises:
    DataError: if labels are damaged.
  """
  first = next(iter(opened.values()))
  classes = len(first.class_names)
  return Inventory(
    source=first.name,
    image_shape=first.image_shape,
    dtype=first.dtype.name,
    class_names=first.class_names,
    counts={
      name: tuple(np.bincount(records.labels(), minlength=classes).tolist())
      for name, records in opened.items()
    },
    notes=tuple(dict.fromkeys(note for records in opened.values() for note in records.notes)),
  )
