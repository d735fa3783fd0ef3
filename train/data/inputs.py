"""What a run trains on: originals with a key (``owned``), or a directory that was disguised elsewhere (``outsourced``).

``outsourced`` needs no key and loads no code that could hold one.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from djax import schemes, sources
from djax.disguised import directory, manifest, quantise
from djax.errors import ConfigError, nearest
from djax.ops import augment as views_lib
from djax.ops import blocks
from djax.schemes import Trait
from djax.sources import Images
from train import config as config_lib
from train.data.input_pipeline import Feed

if TYPE_CHECKING:
  from djax.disguised.directory import Disguised
  from djax.keys import Master
  from djax.schemes import Scheme

__all__ = [
  "STATISTICS_RECORDS",
  "Arrays",
  "Inputs",
  "Views",
  "disguised",
  "key_of",
  "outsourced",
  "owned",
]

STATISTICS_RECORDS = 4096  # that say how images are standardised
_CHUNK = 1024
_CHUNK_BYTES = 4 << 20  # fewer large records: what is read lies in memory twice


class Views(NamedTuple):
  """Fixed views of originals, made before the disguise.

  Attributes:
    per_record: how many each record has, itself included.
    rng: JAX key of what is drawn for them.
    options: of ``djax.ops.augment.view``: ``crop``, ``flip``, ``rotate``, ``scale``, ``shear``.
  """

  per_record: int
  rng: jax.Array
  options: Mapping[str, Any]

  def of(self, image: jax.Array, index: jax.Array, records: int) -> jax.Array:
    """Returns a view of a record, of the record's shape and dtype.

    Args:
      image: the record, ``[H, W, C]``.
      index: of the view, int32, as ``train.data.input_pipeline`` counts them.
      records: how many there are.
    """
    rng = jax.random.fold_in(self.rng, index % records)
    return views_lib.view(image, rng, index // records, **self.options)


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
    spec: of the scheme, ``SchemeSpec.to_dict()``.
    disguised_shape: ``(H', W', C)``.
    classes: number of label ids.
    labels: ``plain``, or ``permuted`` by the owner.
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
  originals: tuple[Images, Images] | None = None
  other_key: Callable[[], tuple[Feed, Feed]] | None = None
  copies: tuple[Path, ...] = ()
  close: Callable[[], None] = lambda: None

  @property
  def facts(self) -> dict[str, Any]:
    """What ``disguise.json`` of a run directory holds."""
    facts = {
      "spec": self.spec,
      "disguised_shape": list(self.disguised_shape),
      "classes": self.classes,
      "labels": self.labels,
      "key_fingerprint": self.key_fingerprint,
      "source_sha256": self.source_sha256,
    }
    return facts if self.dataset_id is None else {**facts, "dataset_id": self.dataset_id}

  @property
  def plain(self) -> tuple[Feed, Feed] | None:
    """The originals themselves, padded to the shape the network was made for; None where they have no such shape."""
    if self.originals is None or Trait.TOKENS in schemes.traits(self.spec):
      return None
    transform = functools.partial(_padded, self.spec.get("block_size"))
    train, test = (Feed(Arrays(x.images, x.labels), transform) for x in self.originals)
    return train, test


def owned(config: ConfigDict, master: "Master | None", *, dataset_id: str | None = None) -> Inputs:
  """Loads originals and the scheme that disguises them.

  Args:
    config: a checked config.
    master: the owner's key, or None for the public one of ``config.disguise.experiment_seed``.
    dataset_id: under which the run was begun; None: that of the config, else a new one. An experiment needs none: its
      key is public, and the same in every run.

  Raises:
    ConfigError: if the disguise does not fit the images.
    DataError: if the source is missing or damaged.
  """
  _check_id(config, master)
  data = config.data
  train, test = (
    sources.load(data.source, split, data_dir=data.data_dir, image_size=data.image_size)
    for split in (data.train_split, data.test_split)
  )
  config_lib.check_data(train, test)
  scheme = config_lib.make_scheme(config, train.images.shape[1:], len(train.class_names))
  key: Any = schemes.Key()
  fingerprint = own_id = None
  if Trait.IDENTITY not in schemes.traits(scheme.spec.to_dict()):
    if master is None:
      master = _keys().experiment(config.disguise.experiment_seed)
    if master.experiment_seed is None:
      own_id = config.disguise.dataset_id or dataset_id or _keys().new_id()
    key, fingerprint = key_of(config, scheme, master, dataset_id=own_id), master.fingerprint
  rng = jax.random.key(config.seed)
  options = {name: config.augment[name] for name in ("crop", "flip", "rotate", "scale", "shear")}
  try:
    jax.eval_shape(functools.partial(views_lib.view, **options), train.images[0], rng, 0)
  except ValueError as error:
    raise ConfigError(f"config.augment: {error}") from error
  try:
    feeds = [
      disguised(
        split,
        scheme,
        key,
        rng=jax.random.fold_in(rng, number),
        views=Views(count, jax.random.fold_in(rng, number + 4), options),
        pool=pool,
      )
      for number, split, count, pool in (
        (1, train, config.augment.views, None),
        (2, test, config.augment.test_views, train),
      )
    ]
  except ValueError as error:
    raise ConfigError(f"config.disguise: {error}") from error

  def other_key() -> tuple[Feed, Feed]:
    other: Any = key_of(config, scheme, _keys().experiment(config.disguise.experiment_seed + 1))
    few = dataclasses.replace(
      train, images=train.images[:STATISTICS_RECORDS], labels=train.labels[:STATISTICS_RECORDS]
    )
    return disguised(few, scheme, other, rng=rng), disguised(
      test, scheme, other, rng=rng, pool=train
    )

  return Inputs(
    train=feeds[0],
    test=feeds[1],
    spec=scheme.spec.to_dict(),
    disguised_shape=scheme.spec.disguised_shape,
    classes=len(train.class_names),
    labels="plain",
    key_fingerprint=fingerprint,
    source_sha256=_digest(train, test),
    dataset_id=own_id,
    originals=(train, test),
    other_key=other_key if fingerprint else None,
  )


def _keys() -> Any:
  """Returns the module of key material, which a plain or an outsourced run never loads."""
  from djax import keys

  return keys


def _check_id(config: ConfigDict, master: "Master | None") -> None:
  """Refuses an id of another form, or one that no key goes with."""
  given = config.disguise.dataset_id
  if given and not re.fullmatch(r"[0-9a-f]{32}", given):
    raise ConfigError(
      f"config.disguise.dataset_id must be empty or 32 hexadecimal digits in lower case, got {given!r}."
    )
  if given and (master is None or master.experiment_seed is not None):
    raise ConfigError(
      "config.disguise.dataset_id goes with --key: an experiment has none, its key is public and the same in every run."
    )


def disguised(
  data: Images,
  scheme: "Scheme",
  key: Any,
  *,
  rng: jax.Array,
  views: Views | None = None,
  pool: Images | None = None,
) -> Feed:
  """Makes the feed of originals under a scheme: disguised batch by batch on the device, or at once on the host.

  Args:
    data: originals.
    scheme: the scheme; where ``on_device`` is False the whole split is disguised now.
    key: its secret pytree.
    rng: JAX key of the split's noise.
    views: of each record; the record alone by default. Where the scheme encodes, that many encodings, which need no
      other change.
    pool: for a scheme that encodes, the images to mix queries with, whose labels stay; by default ``data`` itself, and
      its labels become shares. Others do not look at it.

  Raises:
    ValueError: if the pool holds fewer images than an encoding mixes.
  """
  if views is None or views.per_record == 1:
    views = Views(1, rng, {})
  if scheme.encode is not None:
    mixed = data if pool is None else pool
    others = mixed.images, mixed.labels.astype(np.int32)
    encoded = _encoded(scheme, len(data.labels), query=pool is not None)
    held, argument = Arrays(data.images, data.labels), (key, rng, others)
    first = data.images[:1], data.labels[:1].astype(np.int32), np.zeros(1, np.int32)
    jax.eval_shape(encoded, argument, *first)  # refuses what cannot be mixed
    return Feed(held, encoded, argument, views=views.per_record)
  if scheme.on_device:
    records = Arrays(data.images, data.labels)
    transform = _per_record(scheme, len(records), views.per_record, views.options)
    return Feed(records, transform, (key, rng, views.rng), views=views.per_record)
  images = _on_host(scheme, key, data.images, rng, views)
  return Feed(Arrays(images, data.labels), _widened, views=views.per_record)


def key_of(
  config: ConfigDict, scheme: "Scheme", master: "Master", *, dataset_id: str | None = None
) -> Any:
  """Makes the key pytree of a run, with the public images where the scheme mixes such in.

  Args:
    config: a checked config.
    scheme: of the run.
    master: the owner's key.
    dataset_id: of the run, which no other run's key has anything in common with; None for an experiment.

  Raises:
    ConfigError: if the public images have another shape than the private ones.
    DataError: if their source is missing or damaged.
  """
  streams: Any = master
  if dataset_id is not None:
    streams = master.data_set(dataset_id, scheme.spec.to_dict())
  key = scheme.make_key(streams.read)
  if not scheme.spec.options.get("public_k"):
    return key
  data = config.data
  public = sources.load(
    config.disguise.public_source, "train", data_dir=data.data_dir, image_size=data.image_size
  )
  if public.images.shape[1:] != scheme.spec.image_shape:
    raise ConfigError(
      f"config.disguise.public_source must have images of {list(scheme.spec.image_shape)} as the private ones, got "
      f"{list(public.images.shape[1:])}. Choose another, or public_k=0."
    )
  return dataclasses.replace(key, public=public.images)


def outsourced(config: ConfigDict) -> Inputs:
  """Opens the disguised data set of ``config.data.disguised_dir``; reads it from disk as needed if it is large.

  Args:
    config: a checked config.

  Raises:
    ConfigError: if a split cannot be had.
    DataError: if the directory is missing, unfinished or damaged.
  """
  data = directory.open(config.data.disguised_dir)
  try:
    return _outsourced(config, data)
  except BaseException:
    data.close()
    raise


def _outsourced(config: ConfigDict, data: "Disguised") -> Inputs:
  """Takes both splits of an open data set, and closes what is not read again."""
  facts = data.manifest
  parts = [_part(data, text) for text in (config.data.train_split, config.data.test_split)]
  for part in parts:
    part.check()  # before anything is written about them
  streamed = sum(part.nbytes for part in parts) > config.data.memory_gb * 1e9
  transform: Callable[..., tuple[jax.Array, jax.Array]] = _widened
  argument: Any = ()
  if facts.quantiser is not None:
    transform = functools.partial(_dequantised, quantise.dequantise, facts.block_size)
    argument = facts.quantiser
  train, test = (
    Feed(part if streamed else _held(part), transform, argument, streamed) for part in parts
  )
  if not streamed:
    data.close()
  return Inputs(
    train,
    test,
    spec=dict(facts.spec),
    disguised_shape=facts.disguised_shape,
    classes=facts.classes,
    labels=facts.labels,
    key_fingerprint=facts.key_fingerprint,
    source_sha256=facts.sha256,
    dataset_id=facts.id or None,
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


def _part(data: "Disguised", text: str) -> _Part:
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


def _on_host(
  scheme: "Scheme", key: Any, originals: np.ndarray, rng: jax.Array, views: Views
) -> np.ndarray:
  """Disguises all views of a split in pieces; what is drawn depends on the index alone, not on the pieces."""
  shape = scheme.spec.disguised_shape

  @jax.jit
  def uniforms(rng, indices):
    return jax.vmap(lambda index: jax.random.uniform(jax.random.fold_in(rng, index), shape))(
      indices
    )

  @jax.jit
  def seen(rng, images, indices):
    of = functools.partial(views._replace(rng=rng).of, records=len(originals))
    return jax.vmap(of)(images, indices)

  count = views.per_record * len(originals)
  found: Any = None
  for start in range(0, count, _CHUNK):
    indices = np.arange(start, min(start + _CHUNK, count))
    draw = functools.partial(lambda indices: np.asarray(uniforms(rng, indices)), indices)
    images = originals[indices % len(originals)]
    if views.per_record > 1:
      images = np.asarray(seen(views.rng, images, indices))
    piece = scheme.export(key, images, draw)
    if found is None:
      found = np.empty((count, *piece.shape[1:]), piece.dtype)
    found[indices] = piece
  return found


def _per_record(scheme: "Scheme", records: int, per_record: int, options: Mapping[str, Any]) -> Any:
  """Vmaps a scheme over records, each with the view and the noise of its own index; images become float32."""

  def disguise(argument, images, labels, indices):
    key, rng, views_rng = argument
    views = Views(per_record, views_rng, options)

    def one(image, label, index):
      if per_record > 1:
        image = views.of(image, index, records)
      return scheme.disguise(key, image, label, rng=jax.random.fold_in(rng, index))

    images, labels = jax.vmap(one)(images, labels, indices)
    return images.astype(jnp.float32), labels

  return disguise


def _encoded(scheme: "Scheme", records: int, *, query: bool) -> Any:
  """Vmaps an encoding over records, each with the draw of its own index; queries keep their labels."""
  encode: Any = scheme.encode

  def transform(argument, images, labels, indices):
    key, rng, pool = argument

    def one(image, label, index):
      own = -1 if query else index % records
      return encode(key, image, label, *pool, own, rng=jax.random.fold_in(rng, index))

    images, shares = jax.vmap(one)(images, labels, indices)
    return images, labels if query else shares

  return transform


def _widened(argument, images, labels, indices):
  """Gives stored values to the network as they are."""
  del argument, indices
  return images.astype(jnp.float32), labels


def _dequantised(dequantise, block_size, quantiser, images, labels, indices):
  """Undoes the quantiser of the data set."""
  del indices
  return dequantise(images, quantiser, block_size=block_size), labels


def _padded(block_size, argument, images, labels, indices):
  """Pads originals to whole blocks."""
  del argument, indices
  if block_size is not None:
    images = blocks.pad_to_blocks(images, block_size=block_size)
  return images.astype(jnp.float32), labels


def _digest(*splits: Images) -> str:
  """Returns SHA-256 over pixels and labels, so that a resumed run sees the same records."""
  digest = hashlib.sha256()
  for split in splits:
    digest.update(repr((split.images.shape, str(split.images.dtype))).encode())
    digest.update(np.ascontiguousarray(split.images))
    digest.update(np.ascontiguousarray(split.labels, np.int32))
  return digest.hexdigest()
