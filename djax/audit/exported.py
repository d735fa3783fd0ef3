"""A scenario of what was exported: a disguised directory, the originals it was made from, and its key."""

import contextlib
import dataclasses
from collections.abc import Mapping

import numpy as np

from djax import sources
from djax.attacks.base import Views
from djax.attacks.common import denoise
from djax.audit import ceiling
from djax.audit.scenario import CHUNK, Progress, Scenario, Sizes, assemble, divide, draw_rows, read
from djax.disguised import directory
from djax.disguised.manifest import Manifest
from djax.errors import DataError
from djax.keys import Master
from djax.owner import disguiser, record_noise, restore
from djax.owner.disguiser import Disguiser

__all__ = ["from_directory"]

_PAIRS = 16
_LINKED = (
  "views of an image do not lie side by side; the scores are those of an attacker who knows which of them belong "
  "together"
)


def from_directory(
  path: str,
  source: str,
  master: Master,
  *,
  seed: int,
  sizes: Sizes,
  reading: sources.Reading = sources.AS_IS,
  splits: Mapping[str, str] | None = None,
  progress: Progress = lambda fraction, word: None,
) -> Scenario:
  """Takes a disguised directory and its originals, which score, and make known pairs.

  The key says which record shows which original, and does nothing else: no attack gets it. Some of the originals play
  the public images; their disguised twins are left out of what the attacker gets. Of several views of an image the
  first is among the disguised ones; all views of the targets are given, as those that belong together: where they do
  not lie side by side, the cloud would have to link them first, and the scores are those of one that has.

  Args:
    path: what ``disguise`` wrote.
    source: it was made from.
    master: its key.
    seed: of the parts.
    sizes: at most; a smaller directory is divided in proportion.
    reading: how the originals are read.
    splits: of the source, by the names of the directory's splits; by default the same names.
    progress: told how far it is.

  Raises:
    KeyMismatchError: if the directory was made with another key.
    ManifestError: if the directory is damaged or tampered with.
    DataError: if the originals are not those of the directory, are too few, or are all the same.
  """
  with contextlib.ExitStack() as stack:
    data = stack.enter_context(directory.open(path))
    manifest = data.manifest
    restore.authenticate(manifest, data.path, master)
    drawn = record_noise.of(manifest, master)
    opened = {
      name: stack.enter_context(
        sources.open(source, (splits or {}).get(name, name), **vars(reading))
      )
      for name in data.splits
    }
    for name, records in opened.items():
      records.check()
      _check_match(name, records, manifest)
    split, records = next(iter(opened.items()))
    counts = divide(len(records), sizes)
    rows = draw_rows(len(records), counts.private + counts.public, np.random.default_rng(seed))
    images, labels = read(records, rows, progress)
    classes = len(records.class_names)
    count = counts.private
    progress(0.5, "reading disguised images")
    places = _places(drawn, manifest, split)
    stored, ids = _read_split(data.splits[split], places[rows[:count], 0])
    views = manifest.splits[split].views
    if views > 1:
      others_of = places[rows[: counts.targets], 1:].reshape(-1)
      further = _read_split(data.splits[split], others_of)[0]
    others_too = slice(count, count + denoise.count(images[count:]))
    public = _read_split(data.splits[split], places[rows[others_too], 0])[0]
    labels_and_ids = {split: (labels[:count], ids)}
    for name, others in opened.items():
      if name != split:
        some = draw_rows(len(others), CHUNK, np.random.default_rng(seed))
        held = _read_split(data.splits[name], _places(drawn, manifest, name)[some, 0])[1]
        labels_and_ids[name] = read(others, some, progress)[1], held
  _check_labels(labels_and_ids, classes)
  _check_pairs(images[:_PAIRS], stored[:_PAIRS], split, rows[:_PAIRS].tolist(), manifest, drawn)
  origin = {"kind": "data", "source": manifest.source["name"], "key": manifest.key_fingerprint}
  origin["stored"] = manifest.dtype
  disguised = restore.values(stored, manifest)
  found = assemble(origin, manifest.spec, classes, images, labels, disguised, counts, sizes)
  if views > 1:
    shown = restore.values(further, manifest)
    options = {name: manifest.views[name] for name in ("crop", "flip")}
    shape = (counts.targets, views - 1, *shown.shape[1:])
    seen = Views(shown.reshape(shape), options, distinct=False)
    warnings = list(found.facts["warnings"])
    if not manifest.views["together"]:
      warnings.append(_LINKED)
    facts = {**found.facts, "views": views, "warnings": warnings}
    found = dataclasses.replace(found, facts=facts, views=seen)
  back = Disguiser(manifest.spec, drawn).restored
  given = ceiling.restored(back, found.known(0), lambda: restore.values(public, manifest))
  return dataclasses.replace(found, opened=given)


def _places(drawn: record_noise.RecordStreams, manifest: Manifest, split: str) -> np.ndarray:
  """Returns, for each original of a split, the places of its views: int ``[n, K]``."""
  views = manifest.splits[split].views
  order = drawn.order(split, manifest.splits[split].records // views, views)
  return np.argsort(order, kind="stable").reshape(-1, views)


def _read_split(split: directory.Split, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  parts = [split.read(rows[s : s + CHUNK]) for s in range(0, len(rows), CHUNK)]
  images, labels = zip(*parts, strict=True)
  return np.concatenate(images), np.concatenate(labels)


def _check_match(name: str, records: sources.Records, manifest: Manifest) -> None:
  """Refuses originals of another shape or number than the directory was made of."""
  held = manifest.splits[name].records // manifest.splits[name].views
  shape = tuple(manifest.spec["image_shape"])
  if records.image_shape != shape:
    raise DataError(
      f"audit: the originals must be those of the directory, of shape {shape}, got {records.image_shape}. "
      "Give the source it was made from."
    )
  if len(records) != held:
    raise DataError(
      f"audit: the originals must be those of the directory, whose split {name} holds {held} images; "
      f"got {len(records)}. Give --{name}-split, --group-by and --split-seed as they were given to disguise."
    )


def _check_pairs(
  images: np.ndarray,
  stored: np.ndarray,
  split: str,
  indices: list[int],
  manifest: Manifest,
  drawn: record_noise.RecordStreams,
) -> None:
  """Disguises some originals again: scores against other images would make the disguise look stronger than it is."""
  exact = Disguiser(manifest.spec, drawn).images(images, split, indices)
  again = disguiser.stored(
    exact, manifest.dtype, manifest.quantiser, block_size=manifest.block_size
  )
  if again.tobytes() != stored[: len(again)].tobytes():
    raise DataError(
      f"audit: the originals must be those of the directory, and disguised again the first ones of {split} differ from "
      "it. Give the source as disguise had it, with the same splits, --image-size, --scale, --background, --group-by "
      "and --split-seed."
    )


def _check_labels(
  labels_and_ids: Mapping[str, tuple[np.ndarray, np.ndarray]], classes: int
) -> None:
  """Refuses originals whose labels no renaming of classes, one for all splits, turns into those of the directory."""
  table = np.zeros((classes, 1 + max(ids.max() for _, ids in labels_and_ids.values())), bool)
  for name, (labels, ids) in labels_and_ids.items():
    table[labels, ids] = True
    if table.sum(0).max() > 1 or table.sum(1).max() > 1:
      raise DataError(
        f"audit: the originals must be those of the directory, in the same order; in split {name} their labels are "
        "not. Give the source and the splits it was made from."
      )
