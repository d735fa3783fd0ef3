"""Inputs from originals and a key, disguised here: batch by batch on the device, or at once on the host."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from djax import schemes, sources
from djax.errors import ConfigError
from djax.ops import augment as views_lib
from djax.schemes import Scheme, Trait
from djax.sources import Images
from train import config as config_lib
from train.data.input_pipeline import Feed
from train.data.inputs import STATISTICS_RECORDS, Arrays, Inputs, widened
from train.streams import Stream, rng_of

if TYPE_CHECKING:
  from djax.keys import Master

__all__ = ["Views", "disguised", "inputs", "key_of", "new_id"]

_CHUNK = 1024


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


def inputs(config: ConfigDict, master: "Master | None", *, dataset_id: str | None = None) -> Inputs:
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
  train, test, *val = (
    sources.load(data.source, split, **vars(config_lib.reading_of(config)))
    for split in (data.train_split, data.test_split, data.val_split)
    if split
  )
  config_lib.check_data(train, test, *val)
  scheme = config_lib.make_scheme(config, train.images.shape[1:], len(train.class_names))
  key: Any = schemes.Key()
  fingerprint = own_id = None
  if Trait.IDENTITY not in schemes.traits(scheme.spec.to_dict()):
    if master is None:
      master = _keys().experiment(config.disguise.experiment_seed)
    if master.experiment_seed is None:
      own_id = config.disguise.dataset_id or dataset_id or new_id()
    key, fingerprint = key_of(config, scheme, master, dataset_id=own_id), master.fingerprint
  options = {name: config.augment[name] for name in config_lib.VIEW_OPTIONS}
  try:
    jax.eval_shape(
      functools.partial(views_lib.view, **options), train.images[0], jax.random.key(0), 0
    )
  except ValueError as error:
    raise ConfigError(f"config.augment: {error}") from error
  try:
    feeds = [
      disguised(
        split,
        scheme,
        key,
        rng=rng_of(config.seed, noise),
        views=Views(count, rng_of(config.seed, views), options),
        pool=pool,
      )
      for split, noise, views, count, pool in (
        (train, Stream.TRAIN_NOISE, Stream.TRAIN_VIEWS, config.augment.views, None),
        (test, Stream.TEST_NOISE, Stream.TEST_VIEWS, config.augment.test_views, train),
        *((split, Stream.VAL_NOISE, Stream.VAL_NOISE, 1, train) for split in val),
      )
    ]
  except ValueError as error:
    raise ConfigError(f"config.disguise: {error}") from error

  def other_key() -> tuple[Feed, Feed]:
    other = key_of(config, scheme, _keys().experiment(config.disguise.experiment_seed + 1))
    few = dataclasses.replace(
      train, images=train.images[:STATISTICS_RECORDS], labels=train.labels[:STATISTICS_RECORDS]
    )
    rng = rng_of(config.seed, Stream.OTHER_KEY_NOISE)
    return (
      disguised(few, scheme, other, rng=rng),
      disguised(test, scheme, other, rng=rng, pool=train),
    )

  return Inputs(
    train=feeds[0],
    test=feeds[1],
    val=feeds[2] if val else None,
    spec=scheme.spec.to_dict(),
    disguised_shape=scheme.spec.disguised_shape,
    classes=len(train.class_names),
    labels="plain",
    class_names=train.class_names,
    key_fingerprint=fingerprint,
    source_sha256=_digest(train, test, *val),
    dataset_id=own_id,
    originals=(train, test),
    other_key=other_key if fingerprint else None,
  )


def new_id() -> str:
  """Draws the id of a data set, 32 hex digits."""
  return _keys().new_id()


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
  scheme: Scheme,
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
  views = views or Views(1, rng, {})
  records = Arrays(data.images, data.labels)
  if scheme.encode is not None:
    mixed = data if pool is None else pool
    encoded = _encoded(scheme, len(records), query=pool is not None)
    argument = key, rng, (mixed.images, mixed.labels.astype(np.int32))
    first = data.images[:1], data.labels[:1].astype(np.int32), np.zeros(1, np.int32)
    jax.eval_shape(encoded, argument, *first)  # refuses what cannot be mixed
    return Feed(records, encoded, argument, views=views.per_record)
  if scheme.on_device:
    transform = _per_record(scheme, len(records), views.per_record, views.options)
    return Feed(records, transform, (key, rng, views.rng), views=views.per_record)
  images = _on_host(scheme, key, data.images, rng, views)
  return Feed(Arrays(images, data.labels), widened, views=views.per_record)


def key_of(
  config: ConfigDict, scheme: Scheme, master: "Master", *, dataset_id: str | None = None
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
    config.disguise.public_source,
    "train",
    data_dir=data.data_dir,
    image_size=data.image_size,
    scale=data.scale,
    background=data.background,
  )
  if public.images.shape[1:] != scheme.spec.image_shape:
    raise ConfigError(
      f"config.disguise.public_source must have images of {list(scheme.spec.image_shape)} as the private ones, got "
      f"{list(public.images.shape[1:])}. Choose another, or public_k=0."
    )
  return dataclasses.replace(key, public=public.images)


def _on_host(
  scheme: Scheme, key: Any, originals: np.ndarray, rng: jax.Array, views: Views
) -> np.ndarray:
  """Disguises all views of a split in pieces; what is drawn depends on the index alone, not on the pieces."""
  shape = scheme.spec.disguised_shape

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, 0))
  def uniform(rng, index):
    return jax.random.uniform(jax.random.fold_in(rng, index), shape)

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, 0, 0))
  def view(rng, image, index):
    return views._replace(rng=rng).of(image, index, len(originals))

  count = views.per_record * len(originals)
  disguised: Any = None
  for start in range(0, count, _CHUNK):
    indices = np.arange(start, min(start + _CHUNK, count))
    draw = functools.partial(lambda indices: np.asarray(uniform(rng, indices)), indices)
    images = originals[indices % len(originals)]
    if views.per_record > 1:
      images = np.asarray(view(views.rng, images, indices))
    piece = scheme.export(key, images, draw)
    if disguised is None:
      disguised = np.empty((count, *piece.shape[1:]), piece.dtype)
    disguised[indices] = piece
  return disguised


def _per_record(scheme: Scheme, records: int, per_record: int, options: Mapping[str, Any]) -> Any:
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


def _encoded(scheme: Scheme, records: int, *, query: bool) -> Any:
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


def _digest(*splits: Images) -> str:
  """Returns SHA-256 over pixels and labels, so that a resumed run sees the same records."""
  digest = hashlib.sha256()
  for split in splits:
    digest.update(repr((split.images.shape, str(split.images.dtype))).encode())
    digest.update(np.ascontiguousarray(split.images))
    digest.update(np.ascontiguousarray(split.labels, np.int32))
  return digest.hexdigest()
