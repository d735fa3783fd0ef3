"""Questions to the network of a run on originals, where they and the key are: images in, class names out."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from djax import keys, schemes, sources
from djax.errors import ConfigError, KeyMismatchError
from djax.keys import Master
from djax.models import checksums, predict
from djax.owner import pictures
from djax.owner.query import Answers, answered
from djax.schemes import Trait
from train import config as config_lib
from train import loop
from train.data import owned
from train.data.input_pipeline import Pipeline
from train.streams import Stream, rng_of

__all__ = ["ask"]

_BATCH = 256


def ask(
  run: str | os.PathLike, paths: Sequence[str | os.PathLike], master: Master | None, **reading: Any
) -> Answers:
  """Has the network of a run classify images, disguised as the run disguises its test images, with noise of their own.

  Args:
    run: the run directory; the source of its config must still be there, which names the classes.
    paths: images, as ``djax.owner.query.read`` takes them.
    master: the key of the run; None for an experiment, or a run on plain images.
    **reading: ``image_size``, ``scale`` and ``background``, where they are not those of the run.

  Raises:
    ConfigError: if this is no run on originals, or it needs a key.
    DataError: if the run is damaged, its source is missing, or the images do not fit.
    KeyMismatchError: if the run was trained with another key.
  """
  folder = Path(run).expanduser()
  predictor = predict.load(folder)
  # The bytes that ``load`` has just compared with their checksum.
  config = config_lib.from_json(checksums.unchecked(folder, checksums.CONFIG))
  config_lib.check(config)
  if config.data.disguised_dir:
    raise ConfigError(
      f"{run} was trained on {config.data.disguised_dir}, and the copy of its MANIFEST.json is gone. Take the run from "
      "a good copy."
    )
  scheme = schemes.from_spec(predictor.summary["spec"])
  key = _key(run, config, scheme, predictor.summary, master)
  given = {name: value for name, value in reading.items() if value}
  how = vars(dataclasses.replace(config_lib.reading_of(config), **given))
  pool = None
  with sources.open(config.data.source, config.data.train_split, **how) as records:
    names, dtype = records.class_names, records.dtype
    if scheme.encode is not None:  # a query is mixed with training images
      pool = records.read(0, len(records))
  asked = pictures.read_as(
    paths,
    scheme.spec.image_shape,
    dtype.name,
    **{name: how[name] for name in ("image_size", "scale", "background")},
  )
  views = config.augment.test_views
  rng = rng_of(config.seed, Stream.QUERY_NOISE)
  options = {name: config.augment[name] for name in config_lib.VIEW_OPTIONS}
  feed = owned.disguised(
    sources.Images(asked.images, np.zeros(len(asked.names), np.int32), names),
    scheme,
    key,
    rng=rng,
    views=owned.Views(views, rng_of(config.seed, Stream.TEST_VIEWS), options),
    pool=pool,
  )
  mesh = loop.data_mesh()
  pipeline = Pipeline(feed, mesh=mesh, batch_size=-(-_BATCH // mesh.size) * mesh.size)
  parts = [
    predictor.probabilities(np.concatenate([*pipeline.images(view=view)]), _BATCH)
    for view in range(views)
  ]
  return answered(_averaged(parts), asked.names, names)


def _key(
  run: str | os.PathLike, config: Any, scheme: Any, summary: Any, master: Master | None
) -> Any:
  """Makes the key pytree of a run, or refuses a master key that is not its own."""
  if Trait.IDENTITY in schemes.traits(summary["spec"]):
    return schemes.Key()
  public = keys.experiment(config.disguise.experiment_seed)
  if master is None:
    if summary["key_fingerprint"] != public.fingerprint:
      raise ConfigError(f"{run} was trained with a key of its owner. Give it: --key K")
    master = public
  if master.fingerprint != summary["key_fingerprint"]:
    raise KeyMismatchError(
      f"{run} was trained with the key {summary['key_fingerprint']}, got {master.fingerprint}. Give the key it was "
      "trained with."
    )
  return owned.key_of(config, scheme, master, dataset_id=summary.get("dataset_id"))


def _averaged(views: Sequence[np.ndarray]) -> np.ndarray:
  """Averages log-probabilities ``[n, K]`` over the views of an image, as the test of a run does."""
  logs = sum(np.log(np.maximum(part, np.finfo(np.float32).tiny)) for part in views) / len(views)
  shares = np.exp(logs - np.max(logs, axis=1, keepdims=True))
  return shares / shares.sum(axis=1, keepdims=True)
