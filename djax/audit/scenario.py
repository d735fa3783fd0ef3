"""What is audited: images split into private, public, known pairs and targets, and the private ones disguised.

The cloud holds the disguised twins of all private images. Targets are some of them, known pairs others; public images
are in neither, so nothing is scored on what an attack saw. Everything follows from the seed.

A scheme that mixes images gives several encodings of each: here every encoding counts as a private image of its own,
in random order, whose original is the image to which it belongs. Public images that it mixes in are those the attacker
has.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from djax import keys, schemes, sources
from djax.attacks.base import Known
from djax.disguised import directory
from djax.disguised.manifest import Manifest
from djax.errors import ConfigError, DataError, UnsafeError
from djax.keys import Master
from djax.owner import record_noise, restore
from djax.owner.disguiser import Disguiser
from djax.schemes import Trait

__all__ = ["ENCODINGS", "FAST", "FULL", "Scenario", "Sizes", "from_directory", "from_source"]

Progress = Callable[[float, str], None]

ENCODINGS = 50
_MIXED = 100
_CHUNK = 500  # images disguised at once
_RUN = 100  # records read in a row: few enough that sorted sources are met everywhere
_LEAST_TARGETS = 20
_TARGETS_SHARE = 8
_PUBLIC_SHARE = 3
_SPLIT = "train"


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Of how many images an audit is made, at most.

  Attributes:
    private: what the cloud holds, disguised; targets and pairs are among them.
    public: what the attacker has of the same kind.
    targets: to be recovered.
    pairs: numbers of known pairs, rising.
  """

  private: int
  public: int
  targets: int
  pairs: tuple[int, ...]


FAST = Sizes(private=6000, public=4000, targets=200, pairs=(5,))
FULL = Sizes(private=20000, public=10000, targets=200, pairs=(1, 5, 15, 35, 500))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Scenario:
  """An experiment to be attacked. Holds no key.

  Attributes:
    facts: what it is, JSON types.
    spec: ``SchemeSpec.to_dict()``.
    classes: number of classes.
    private: originals ``[n, H, W, C]``: targets first, then pairs.
    labels: int32 ``[n]``, theirs.
    seen_labels: as the cloud sees them: int32 ``[n]``, or shares, float32 ``[n, K]``.
    disguised: ``[n, H', W', C]``, as the cloud holds them.
    public: originals ``[m, H, W, C]``.
    public_labels: int32 ``[m]``.
    targets: how many of the private ones are targets.
    pairs: numbers of known pairs, rising.
    encodings: how many of ``disguised`` show the same private image: 1, but for a scheme that mixes images.
  """

  facts: Mapping[str, Any]
  spec: Mapping[str, Any]
  classes: int
  private: np.ndarray
  labels: np.ndarray
  seen_labels: np.ndarray
  disguised: np.ndarray
  public: np.ndarray
  public_labels: np.ndarray
  targets: int
  pairs: tuple[int, ...]
  encodings: int = 1

  def known(self, pairs: int) -> Known:
    """Returns what an attacker has.

    Args:
      pairs: how many known pairs; 0 for none.
    """
    some = slice(self.targets, self.targets + pairs)
    return Known(
      spec=self.spec,
      disguised=self.disguised,
      targets=self.disguised[: self.targets],
      public=self.public,
      pairs=(self.private[some], self.disguised[some]) if pairs else None,
      labels=self.seen_labels,
      encodings=self.encodings,
    )


def from_source(
  source: str,
  disguise: Mapping[str, Any],
  *,
  seed: int,
  sizes: Sizes,
  data_dir: str = "",
  image_size: int = 0,
  split: str = _SPLIT,
  encodings: int = ENCODINGS,
  progress: Progress = lambda fraction, word: None,
) -> Scenario:
  """Disguises a part of a source with a fresh experiment key, exactly as ``disguise`` exports it.

  Args:
    source: as ``sources.open`` takes it.
    disguise: ``scheme`` and its parameters, without ``image_shape``.
    seed: of the key and of the parts.
    sizes: at most; a smaller source is divided in proportion.
    data_dir: of prepared TFDS sets.
    image_size: to which images of a folder are resized.
    split: of the source.
    encodings: of each private image, for a scheme that mixes images; ``sizes.private`` counts encodings, and no more
      than 100 private images are taken, as in the challenge that was broken (arXiv:2011.05315).
    progress: told how far it is.

  Raises:
    ConfigError: for parameters that cannot work.
    DataError: if the source cannot be used, is too small, or its images are all the same.
    UnsafeError: for a scheme that disguises nothing.
  """
  with sources.open(source, split, data_dir=data_dir, image_size=image_size) as records:
    spec = _spec(disguise, records.image_shape, len(records.class_names))
    scheme = schemes.from_spec(spec)
    if scheme.encode is not None:
      sizes = dataclasses.replace(sizes, private=min(_MIXED, sizes.private // encodings), pairs=())
    counts = _divide(len(records), sizes)
    draw = np.random.default_rng(seed)
    rows = _rows(len(records), counts.private + counts.public, draw)
    images, labels = _read(records, rows, progress)
    name, classes = records.name, len(records.class_names)
  count = counts.private
  if scheme.encode is not None:
    return _encoded(scheme, name, classes, images, labels, counts, seed, encodings)
  tool = Disguiser(spec, record_noise.Old(spec, keys.experiment(seed)))
  private, indices = images[:count], rows[:count]
  parts = []
  for start in range(0, count, _CHUNK):
    progress(start / count, "disguising")
    part = slice(start, start + _CHUNK)
    try:
      if Trait.TOKENS in schemes.traits(spec):
        parts.append(_tokens(scheme, private[part], indices[part], seed))
      else:
        parts.append(tool.images(private[part], _SPLIT, indices[part].tolist()))
    except ValueError as error:  # such as aes of floats
      raise ConfigError(str(error)) from error
  facts = {"kind": "source", "source": name, "key": f"experiment, seed {seed}"}
  return _setting(facts, spec, classes, images, labels, np.concatenate(parts), counts, sizes)


def from_directory(
  path: str,
  source: str,
  master: Master,
  *,
  seed: int,
  sizes: Sizes,
  data_dir: str = "",
  image_size: int = 0,
  splits: Mapping[str, str] | None = None,
  progress: Progress = lambda fraction, word: None,
) -> Scenario:
  """Takes a disguised directory and its originals, which score, and make known pairs.

  The key says which record shows which original, and does nothing else: no attack gets it. Some of the originals play
  the public images; their disguised twins are left out of what the attacker gets. Of several views of an image the
  first is taken.

  Args:
    path: what ``disguise`` wrote.
    source: it was made from.
    master: its key.
    seed: of the parts.
    sizes: at most; a smaller directory is divided in proportion.
    data_dir: of prepared TFDS sets.
    image_size: to which images of a folder are resized.
    splits: of the source, by the names of the directory's splits; by default the same names.
    progress: told how far it is.

  Raises:
    KeyMismatchError: if the directory was made with another key.
    ManifestError: if the directory is damaged or tampered with.
    DataError: if the originals are not those of the directory, are too few, or are all the same.
  """
  with contextlib.ExitStack() as stack:
    data = stack.enter_context(directory.open(path))
    facts = data.manifest
    restore.authenticate(facts, data.path, master)
    drawn = record_noise.of(facts, master)
    opened = {
      name: stack.enter_context(
        sources.open(
          source, (splits or {}).get(name, name), data_dir=data_dir, image_size=image_size
        )
      )
      for name in data.splits
    }
    for name, records in opened.items():
      _check_match(name, records, facts)
    split, records = next(iter(opened.items()))
    counts = _divide(len(records), sizes)
    rows = _rows(len(records), counts.private + counts.public, np.random.default_rng(seed))
    images, labels = _read(records, rows, progress)
    classes = len(records.class_names)
    count = counts.private
    progress(0.5, "reading disguised images")
    stored, ids = _read_split(data.splits[split], _places(drawn, facts, split)[rows[:count]])
    found = {split: (labels[:count], ids)}
    for name, others in opened.items():
      if name != split:
        some = _rows(len(others), _CHUNK, np.random.default_rng(seed))
        held = _read_split(data.splits[name], _places(drawn, facts, name)[some])[1]
        found[name] = _read(others, some, progress)[1], held
  _check_labels(found, classes)
  told = {"kind": "data", "source": facts.source["name"], "key": facts.key_fingerprint}
  told["stored"] = facts.dtype
  disguised = restore.values(stored, facts)
  return _setting(told, facts.spec, classes, images, labels, disguised, counts, sizes)


def _encoded(
  scheme: schemes.Scheme,
  name: str,
  classes: int,
  images: np.ndarray,
  labels: np.ndarray,
  counts: Sizes,
  seed: int,
  encodings: int,
) -> Scenario:
  """Mixes the private images among themselves, several times each, and shuffles what comes out."""
  count = counts.private
  private, given = images[:count], labels[:count].astype(np.int32)
  key = scheme.make_key(keys.experiment(seed).read)
  if scheme.spec.options["public_k"]:
    key = dataclasses.replace(key, public=images[count:])
  rounds = jax.random.split(jax.random.key(seed), encodings)
  mixed = jax.jit(scheme.disguise)
  try:
    made = [mixed(key, private, given, rng=rng) for rng in rounds]
  except ValueError as error:  # such as more images to mix than there are
    raise ConfigError(str(error)) from error
  order = np.random.default_rng(seed).permutation(encodings * count)
  disguised, seen = (
    np.concatenate([np.asarray(part) for part in parts])[order] for parts in zip(*made, strict=True)
  )
  own = order % count
  facts = {
    "kind": "source",
    "source": name,
    "key": f"experiment, seed {seed}",
    "encodings": encodings,
  }
  whole = np.concatenate([private[own], images[count:]])
  every = np.concatenate([labels[:count][own], labels[count:]])
  counts = dataclasses.replace(counts, private=len(own), targets=count)
  spec = scheme.spec.to_dict()
  whole_setting = _setting(facts, spec, classes, whole, every, disguised, counts, counts, seen)
  return dataclasses.replace(whole_setting, encodings=encodings)


def _tokens(
  scheme: schemes.Scheme, images: np.ndarray, indices: np.ndarray, seed: int
) -> np.ndarray:
  """Encodes a chunk, each image with the draw of its index."""
  key = scheme.make_key(keys.experiment(seed).read)
  rngs = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(indices)
  one = lambda key, image, rng: scheme.disguise(key, image, None, rng=rng)[0]  # noqa: E731
  return np.asarray(jax.jit(jax.vmap(one, (None, 0, 0)))(key, images, rngs))


def _spec(disguise: Mapping[str, Any], shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
  """Completes the parameters of a scheme."""
  if disguise.get("scheme") == "plain":
    raise UnsafeError(
      "audit: scheme plain disguises nothing, there is nothing to attack. "
      f"Choose one of {', '.join(schemes.written())}."
    )
  options = {**disguise, "image_shape": shape}
  name = disguise.get("scheme")
  if isinstance(name, str) and name in schemes.SCHEMES and schemes.SCHEMES[name].takes_classes:
    options["classes"] = classes
  try:
    return schemes.from_spec(options).spec.to_dict()
  except ConfigError:
    raise
  except (ValueError, TypeError) as error:
    raise ConfigError(str(error)) from error


def _divide(given: int, sizes: Sizes) -> Sizes:
  """Returns the sizes that a number of images allows."""
  needed = _LEAST_TARGETS * _TARGETS_SHARE
  if given < needed:
    raise DataError(
      f"audit: needs at least {needed} images, for targets, known pairs, private and public ones, got {given}. "
      "Give a larger source or split."
    )
  public = min(sizes.public, given // _PUBLIC_SHARE)
  private = min(sizes.private, given - public)
  targets = min(sizes.targets, given // _TARGETS_SHARE)
  most = (private - targets) // 2
  return Sizes(private, public, targets, tuple(count for count in sizes.pairs if count <= most))


def _rows(given: int, wanted: int, draw: np.random.Generator) -> np.ndarray:
  """Draws rows in random order, from all over a split, in runs that are cheap to read."""
  starts = np.arange(0, given, _RUN)
  rows = np.concatenate([np.arange(s, min(s + _RUN, given)) for s in draw.permutation(starts)])
  return draw.permutation(rows[: max(wanted, 1)])


def _read(
  records: sources.Records, rows: np.ndarray, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
  """Reads some rows, in their order."""
  order = np.sort(rows)
  cuts = np.flatnonzero(np.diff(order) > 1) + 1
  parts: list[sources.Images] = []
  for run in np.split(order, cuts):
    progress(len(parts) / (len(cuts) + 1), "reading originals")
    parts.append(records.read(int(run[0]), int(run[-1]) + 1))
  back = np.argsort(np.argsort(rows))
  images = np.concatenate([part.images for part in parts])[back]
  return images, np.concatenate([part.labels for part in parts])[back]


def _places(drawn: record_noise.RecordStreams, facts: Manifest, split: str) -> np.ndarray:
  """Returns, for each original of a split, the place of its view 0."""
  views = facts.splits[split].views
  order = drawn.order(split, facts.splits[split].records // views, views)
  return np.argsort(order, kind="stable")[::views]


def _read_split(split: directory.Split, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  parts = [split.read(rows[s : s + _CHUNK]) for s in range(0, len(rows), _CHUNK)]
  images, labels = zip(*parts, strict=True)
  return np.concatenate(images), np.concatenate(labels)


def _check_match(name: str, records: sources.Records, facts: Manifest) -> None:
  """Refuses originals of another shape or number than the directory was made of."""
  held = facts.splits[name].records // facts.splits[name].views
  shape = tuple(facts.spec["image_shape"])
  if records.image_shape != shape:
    raise DataError(
      f"audit: the originals must be those of the directory, of shape {shape}, got {records.image_shape}. "
      "Give the source it was made from."
    )
  if len(records) != held:
    raise DataError(
      f"audit: the originals must be those of the directory, whose split {name} holds {held} images; "
      f"got {len(records)}. Give --{name}-split as it was given to disguise."
    )


def _check_labels(found: Mapping[str, tuple[np.ndarray, np.ndarray]], classes: int) -> None:
  """Refuses originals whose labels no renaming of classes, one for all splits, turns into those of the directory."""
  table = np.zeros((classes, 1 + max(ids.max() for _, ids in found.values())), bool)
  for name, (labels, ids) in found.items():
    table[labels, ids] = True
    if table.sum(0).max() > 1 or table.sum(1).max() > 1:
      raise DataError(
        f"audit: the originals must be those of the directory, in the same order; in split {name} their labels are "
        "not. Give the source and the splits it was made from."
      )


def _setting(
  facts: Mapping[str, Any],
  spec: Mapping[str, Any],
  classes: int,
  images: np.ndarray,
  labels: np.ndarray,
  disguised: np.ndarray,
  counts: Sizes,
  sizes: Sizes,
  seen_labels: np.ndarray | None = None,
) -> Scenario:
  count = counts.private
  if not np.ptp(images.astype(np.float32), axis=0).any():
    raise DataError(
      f"audit: the originals must differ, all {len(images)} are the same image. Nothing can be learnt from that."
    )
  flat = np.ptp(images[: counts.targets].astype(np.float32), axis=(1, 2)).max(-1) == 0
  warnings = []
  if flat.any():
    warnings.append(
      f"{flat.sum()} of the {len(flat)} targets are of one colour: their SSIM says little"
    )
  for part in ("private", "public"):
    given, wanted = getattr(counts, part), getattr(sizes, part)
    if given < wanted:
      warnings.append(
        f"{part}: {given} images instead of {wanted}, the source has no more; attacks that need many look weaker than "
        "they are"
      )
  if counts.pairs != sizes.pairs:
    warnings.append(
      f"known pairs: up to {max(counts.pairs)} instead of {max(sizes.pairs)}, for the same reason"
    )
  told = {**facts, "sizes": dataclasses.asdict(counts), "warnings": warnings}
  told["sizes"]["pairs"] = list(counts.pairs)
  return Scenario(
    facts=told,
    spec=spec,
    classes=classes,
    private=images[:count],
    labels=labels[:count],
    seen_labels=labels[:count] if seen_labels is None else seen_labels,
    disguised=disguised,
    public=images[count:],
    public_labels=labels[count:],
    targets=counts.targets,
    pairs=counts.pairs,
  )
