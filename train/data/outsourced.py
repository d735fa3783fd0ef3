"""Inputs from a directory that was disguised elsewhere: without a key, or code that could hold one."""

import contextlib
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from djax.disguised import directory, manifest, quantise
from djax.disguised.directory import Disguised
from djax.errors import ConfigError, nearest
from train.data.input_pipeline import Feed
from train.data.inputs import Arrays, Inputs, widened

__all__ = ["inputs"]

_CHUNK = 1024
_CHUNK_BYTES = 4 << 20  # fewer large records: what is read lies in memory twice


def inputs(config: ConfigDict) -> Inputs:
  """Opens the disguised data set of ``config.data.disguised_dir``; reads it from disk as needed if it is large.

  Raises:
    ConfigError: if a split cannot be had.
    DataError: if the directory is missing, unfinished or damaged.
  """
  with contextlib.ExitStack() as stack:
    data = stack.enter_context(directory.open(config.data.disguised_dir))
    named = (config.data.train_split, config.data.test_split, config.data.val_split)
    parts = [_part(data, text) for text in named if text]
    for part in parts:
      part.check()  # before anything is written about them
    streamed = sum(part.nbytes for part in parts) > config.data.memory_gb * 1e9
    records = parts if streamed else [_held(part) for part in parts]
    if streamed:
      stack.pop_all()  # the files are read from until ``close``
  public = data.manifest
  transform: Callable[..., tuple[jax.Array, jax.Array]] = widened
  argument: Any = ()
  if public.quantiser is not None:
    transform = functools.partial(_dequantised, public.block_size)
    argument = public.quantiser
  train, test, *val = (Feed(split, transform, argument, streamed) for split in records)
  return Inputs(
    train,
    test,
    val=val[0] if val else None,
    spec=dict(public.spec),
    disguised_shape=public.disguised_shape,
    classes=public.classes,
    labels=public.labels,
    class_names=public.class_names,
    key_fingerprint=public.key_fingerprint,
    source_sha256=public.sha256,
    dataset_id=public.id or None,
    copies=(data.path / manifest.FILE, data.path / manifest.MAC_FILE),
    close=data.close,
  )


class _Part:
  """The records ``start .. stop - 1`` of a split on disk."""

  def __init__(self, split: Any, start: int, stop: int):
    self._split, self._start, self._stop = split, start, stop
    self.image_shape, self.dtype = split.image_shape, split.dtype

  def __len__(self) -> int:
    return self._stop - self._start

  @property
  def nbytes(self) -> int:
    return self._split.nbytes * len(self) // len(self._split)

  def check(self) -> None:
    """Hashes every shard of the split."""
    self._split.check()

  def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
      raise IndexError(  # the split may well hold them
        f"records of this part of {self._split.name} must lie in 0..{len(self) - 1}, got "
        f"{indices.min()}..{indices.max()}."
      )
    return self._split.read(indices + self._start)


def _part(data: Disguised, text: str) -> _Part:
  """Returns the part of a disguised set that ``train`` or ``train[:1000]`` names."""
  match = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", text, re.ASCII)
  if not match or match[1] not in data.splits:
    raise ConfigError(
      f"a split of {data.path} must be one of {', '.join(data.splits)}, or a part such as train[:1000], got "
      f"{text!r}.{nearest(match[1] if match else text, data.splits)}"
    )
  split = data.splits[match[1]]
  start, stop = int(match[2] or 0), int(match[3] or len(split))
  if not start < stop <= len(split):
    raise ConfigError(
      f"split {text!r} must name records that exist: {match[1]} of {data.path} has {len(split)}."
    )
  return _Part(split, start, stop)


def _held(part: _Part) -> Arrays:
  """Reads a part into memory, in pieces."""
  images = np.empty((len(part), *part.image_shape), part.dtype)
  labels = np.empty(len(part), np.int32)
  step = max(1, min(_CHUNK, _CHUNK_BYTES // images[0].nbytes))
  for start in range(0, len(part), step):
    rows = slice(start, min(start + step, len(part)))
    images[rows], labels[rows] = part.read(np.arange(rows.start, rows.stop))
  return Arrays(images, labels)


def _dequantised(block_size, quantiser, images, labels, indices):
  """Undoes the quantiser of the data set."""
  del indices
  return quantise.dequantise(images, quantiser, block_size=block_size), labels
