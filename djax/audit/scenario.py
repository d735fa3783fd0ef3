"""What is audited: images split into private, public, known pairs and targets, and the private ones disguised.

The cloud holds the disguised twins of all private images. Targets are some of them, known pairs others; public images
are in neither, so nothing is scored on what an attack saw. Everything follows from the seed.

A scheme that mixes images gives several encodings of each: here every encoding counts as a private image of its own,
in random order, whose original is the image to which it belongs. Public images that it mixes in are those the attacker
has.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from djax import keys, schemes, sources
from djax.attacks.base import Known, Views
from djax.attacks.common import denoise
from djax.audit import ceiling
from djax.errors import ConfigError, DataError, UnsafeError
from djax.ops import augment
from djax.owner import record_noise
from djax.owner.disguiser import Disguiser
from djax.schemes import Trait

__all__ = [
  "CHUNK",
  "ENCODINGS",
  "FAST",
  "FULL",
  "Progress",
  "Scenario",
  "Sizes",
  "assemble",
  "divide",
  "draw_rows",
  "from_source",
  "read",
]

Progress = Callable[[float, str], None]

ENCODINGS = 50
_MIXED = 100
CHUNK = 500  # images disguised at once
_RUN = 100  # records read in a row: few enough that sorted sources are met everywhere
_LEAST_TARGETS = 20
_TARGETS_SHARE = 8
_TWIN = 4.0
_PUBLIC_SHARE = 3
_SPLIT = "train"
_VIEWS = 1  # of the random streams


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
    views: further ones of the targets, or None.
    opened: what the key gives back, which no attack sees; or why it gives nothing back.
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
  views: Views | None = None
  opened: ceiling.Opened | str = "the key was not at hand"

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
      views=self.views,
    )


def from_source(
  source: str,
  disguise: Mapping[str, Any],
  *,
  seed: int,
  sizes: Sizes,
  reading: sources.Reading = sources.AS_IS,
  split: str = _SPLIT,
  encodings: int = ENCODINGS,
  views: int = 1,
  options: Mapping[str, Any] | None = None,
  progress: Progress = lambda fraction, word: None,
) -> Scenario:
  """Disguises a part of a source with a fresh experiment key, exactly as ``disguise`` exports it.

  Of several views the cloud is taken to know which belong to one image, as it must where it answers over all of them.

  Args:
    source: as ``sources.open`` takes it.
    disguise: ``scheme`` and its parameters, without ``image_shape``.
    seed: of the key and of the parts.
    sizes: at most; a smaller source is divided in proportion.
    reading: how the source is read.
    split: of the source.
    encodings: of each private image, for a scheme that mixes images; ``sizes.private`` counts encodings, and no more
      than 100 private images are taken, as in the challenge that was broken (arXiv:2011.05315).
    views: of each target, the original included.
    options: of ``djax.ops.augment.view``, for the other views.
    progress: told how far it is.

  Raises:
    ConfigError: for parameters that cannot work.
    DataError: if the source cannot be used, is too small, or its images are all the same.
    UnsafeError: for a scheme that disguises nothing.
  """
  with sources.open(source, split, **vars(reading)) as records:
    records.check()
    spec = _spec(disguise, records.image_shape, len(records.class_names))
    scheme = schemes.from_spec(spec)
    if views > 1 and (scheme.encode is not None or Trait.TOKENS in schemes.traits(spec)):
      raise ConfigError(
        f"audit: views are attacked where images are disguised one by one in blocks, {spec['scheme']} does not. "
        "Leave them out."
      )
    if scheme.encode is not None:
      sizes = dataclasses.replace(sizes, private=min(_MIXED, sizes.private // encodings), pairs=())
    counts = divide(len(records), sizes)
    draw = np.random.default_rng(seed)
    rows = draw_rows(len(records), counts.private + counts.public, draw)
    images, labels = read(records, rows, progress)
    name, classes = records.name, len(records.class_names)
  facts = {"kind": "source", "source": name, "key": f"experiment, seed {seed}"}
  if scheme.encode is not None:
    return _encoded(scheme, facts, classes, images, labels, counts, seed, encodings)
  count = counts.private
  disguiser = Disguiser(spec, record_noise.Old(spec, keys.experiment(seed)))
  parts = []
  for start in range(0, count, CHUNK):
    progress(start / count, "disguising")
    part = slice(start, min(start + CHUNK, count))
    try:
      if Trait.TOKENS in schemes.traits(spec):
        parts.append(_tokens(scheme, images[part], rows[part], seed))
      else:
        parts.append(disguiser.images(images[part], _SPLIT, rows[part].tolist()))
    except ValueError as error:  # such as aes of floats
      raise ConfigError(str(error)) from error
  found = assemble(facts, spec, classes, images, labels, np.concatenate(parts), counts, sizes)
  if views > 1:
    progress(1.0, "disguising views")
    further = _views(images[: counts.targets], views, options or {}, seed)
    numbers = len(records) * np.arange(1, views) + rows[: counts.targets, None]
    flat = further.reshape(-1, *images.shape[1:])
    shown = disguiser.images(flat, _SPLIT, numbers.reshape(-1).tolist())
    seen = Views(shown.reshape(*further.shape[:2], *shown.shape[1:]), dict(options or {}))
    found = dataclasses.replace(found, facts={**found.facts, "views": views}, views=seen)
  some = slice(count, count + denoise.count(images[count:]))

  def public() -> np.ndarray:
    return disguiser.images(images[some], _SPLIT, rows[some].tolist())

  opened = ceiling.restored(disguiser.restored, found.known(0), public)
  return dataclasses.replace(found, opened=opened)


def _views(images: np.ndarray, count: int, options: Mapping[str, Any], seed: int) -> np.ndarray:
  """Makes the views of images besides the first: ``[n, count - 1, H, W, C]``."""
  make = functools.partial(augment.view, **options)
  every = jax.jit(jax.vmap(jax.vmap(make, (None, None, 0)), (0, 0, None)))
  # Not the draws of an attack with the same seed.
  rngs = jax.random.split(jax.random.fold_in(jax.random.key(seed), _VIEWS), len(images))
  try:
    return np.asarray(every(images, rngs, np.arange(1, count)))
  except ValueError as error:  # a shift that does not fit the image
    raise ConfigError(f"audit: {error}") from error


def assemble(
  facts: Mapping[str, Any],
  spec: Mapping[str, Any],
  classes: int,
  images: np.ndarray,
  labels: np.ndarray,
  disguised: np.ndarray,
  counts: Sizes,
  sizes: Sizes,
  *,
  seen_labels: np.ndarray | None = None,
  encodings: int = 1,
) -> Scenario:
  """Returns the scenario of some images.

  Args:
    facts: of the scenario, without sizes and warnings.
    spec: of the disguise.
    classes: number of classes.
    images: the private ones, then the public ones.
    labels: theirs.
    disguised: the private ones.
    counts: how many images there are of each kind.
    sizes: how many were asked for.
    seen_labels: of the private ones, as the cloud sees them; ``labels`` by default.
    encodings: of each private image.

  Raises:
    DataError: if the images are all the same.
  """
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
  if twins := _twins(images[: counts.targets], images[count:]):
    warnings.append(
      f"{twins} of the {len(flat)} targets have nearly the same image among the public ones: attacks that learn from "
      "these look stronger than they are"
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
  held = {**dataclasses.asdict(counts), "pairs": list(counts.pairs)}
  return Scenario(
    facts={**facts, "sizes": held, "warnings": warnings},
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
    encodings=encodings,
  )


def _twins(targets: np.ndarray, public: np.ndarray) -> int:
  """Returns how many targets have a public image within ``_TWIN`` grey values, root mean square; flat ones aside."""
  x, y = (images.reshape(len(images), -1).astype(np.float32) for images in (targets, public))
  x = x[np.ptp(x, axis=1) > 0]
  if not len(x) or not len(y):
    return 0
  apart = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
  return int((apart.min(1) < _TWIN**2 * x.shape[1]).sum())


def divide(given: int, sizes: Sizes) -> Sizes:
  """Returns the sizes that a number of images allows.

  Raises:
    DataError: if there are too few.
  """
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


def draw_rows(given: int, wanted: int, draw: np.random.Generator) -> np.ndarray:
  """Draws rows in random order, from all over a split, in runs that are cheap to read."""
  starts = np.arange(0, given, _RUN)
  rows = np.concatenate([np.arange(s, min(s + _RUN, given)) for s in draw.permutation(starts)])
  return draw.permutation(rows[: max(wanted, 1)])


def read(
  records: sources.Records, rows: np.ndarray, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
  """Reads the images and labels of some rows, in their order."""
  order = np.sort(rows)
  cuts = np.flatnonzero(np.diff(order) > 1) + 1
  parts: list[sources.Images] = []
  for run in np.split(order, cuts):
    progress(len(parts) / (len(cuts) + 1), "reading originals")
    parts.append(records.read(int(run[0]), int(run[-1]) + 1))
  back = np.argsort(np.argsort(rows))
  images = np.concatenate([part.images for part in parts])[back]
  return images, np.concatenate([part.labels for part in parts])[back]


def _encoded(
  scheme: schemes.Scheme,
  facts: Mapping[str, Any],
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
  mix = jax.jit(scheme.disguise)
  try:
    mixed = [mix(key, private, given, rng=rng) for rng in rounds]
  except ValueError as error:  # such as more images to mix than there are
    raise ConfigError(str(error)) from error
  order = np.random.default_rng(seed).permutation(encodings * count)
  disguised, seen = (np.concatenate(parts)[order] for parts in zip(*mixed, strict=True))
  rows = np.concatenate([order % count, np.arange(count, len(images))])
  counts = dataclasses.replace(counts, private=len(order), targets=count)
  found = assemble(
    {**facts, "encodings": encodings},
    scheme.spec.to_dict(),
    classes,
    images[rows],
    labels[rows],
    disguised,
    counts,
    counts,
    seen_labels=seen,
    encodings=encodings,
  )
  opened = ceiling.restored(
    lambda shown: np.asarray(scheme.restore(key, jax.numpy.asarray(shown))),
    found.known(0),
    lambda: images[count:],
  )
  return dataclasses.replace(found, opened=opened)


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
