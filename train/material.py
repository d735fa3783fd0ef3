"""What the attacks on the model of a run are made on: its config, and images disguised as the run disguises them."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from djax import keys, schemes
from djax.attacks.model import shadows as shadows_lib
from djax.errors import ConfigError, KeyMismatchError
from djax.io import foreign
from djax.models import checksums, run_files
from train import config as config_lib
from train import loop
from train.data import owned
from train.data.input_pipeline import Feed, Pipeline
from train.data.inputs import Inputs
from train.streams import Stream, rng_of

__all__ = ["HELD", "Material", "config_of", "load"]

HELD = 4000  # disguised images that the cloud looks at, and originals for the examiner
_ASKED = 2000  # test records, for the classes
_BATCH = 256


class Material(NamedTuple):
  """What the attacks are made on.

  Attributes:
    given: inputs of the run.
    labels: int32, of the training records.
    disguised: training records as the network takes them, float32; ``plain``, originals padded to whole
      blocks where there are such.
    fresh: training records disguised once more under the same key, with other draws; None where nothing is drawn.
    asked: test records likewise, disguised and plain, and ``asked_labels``.
    alike: whether plain images have the shape that the network takes.
    scheme: of the run, and ``key``.
  """

  given: Inputs
  labels: np.ndarray
  disguised: np.ndarray
  fresh: np.ndarray | None
  plain: np.ndarray
  asked_labels: np.ndarray
  asked: np.ndarray
  asked_plain: np.ndarray
  alike: bool
  scheme: Any
  key: Any


def config_of(run: str | Path | ConfigDict) -> tuple[ConfigDict, Path | None]:
  """Returns the checked config, and the run directory if there is one.

  Raises:
    ConfigError: if this is no run of this machine's originals.
  """
  folder = None
  if isinstance(run, ConfigDict):
    config = run
  else:
    folder = Path(run).expanduser().resolve()
    try:
      config = config_lib.from_json(checksums.unchecked(folder, checksums.CONFIG))
    except (foreign.MissingFileError, ValueError) as error:
      raise ConfigError(
        f"{run} must be a run directory with config.json, got {type(error).__name__}: {error}. "
        "Give the --workdir of a run of `python -m train`."
      ) from error
  config_lib.check(config)
  if config.data.disguised_dir:
    raise ConfigError(
      "the model can only be examined where its originals and key are, got a run on config.data.disguised_dir="
      f"{config.data.disguised_dir!r}. Train the same config on the source itself."
    )
  return config, folder


def load(config: ConfigDict, folder: Path | None, records: int) -> Material:
  """Loads and disguises what is needed.

  Raises:
    KeyMismatchError: if the run was made with another key than that of its ``experiment_seed``.
  """
  given = owned.inputs(config, None)
  assert given.originals is not None
  if folder is not None:
    disguise = run_files.disguise_from(checksums.unchecked(folder, checksums.DISGUISE))
    used = disguise["key_fingerprint"]
    if used != given.key_fingerprint:
      raise KeyMismatchError(
        f"{folder} must be a run with the public key of config.disguise.experiment_seed, {given.key_fingerprint}, got "
        f"{used}. Train it without --key."
      )
  scheme = schemes.from_spec(given.spec)
  key = owned.key_of(config, scheme, keys.experiment(config.disguise.experiment_seed))
  held = max(records, HELD)
  seen = _images(given.train, held)
  rng = rng_of(config.seed, Stream.EXAMINER_NOISE)
  fresh = _images(owned.disguised(given.originals[0], scheme, key, rng=rng), held)
  if given.plain is None:
    plain, asked_plain = (
      split.images[:limit].astype(np.float32)
      for split, limit in zip(given.originals, (held, _ASKED), strict=True)
    )
  else:
    plain, asked_plain = _images(given.plain[0], held), _images(given.plain[1], _ASKED)
  return Material(
    given,
    shadows_lib.hard_labels(given.originals[0].labels[:held]),
    seen,
    None if np.array_equal(fresh, seen) else fresh,
    plain,
    shadows_lib.hard_labels(given.originals[1].labels[:_ASKED]),
    _images(given.test, _ASKED),
    asked_plain,
    tuple(given.disguised_shape) == plain.shape[1:],
    scheme,
    key,
  )


def _images(feed: Feed, limit: int) -> np.ndarray:
  """Returns the first view of the first records, float32, as the network takes them."""
  pipeline = Pipeline(feed, mesh=loop.data_mesh(), batch_size=_BATCH)
  return np.concatenate(list(pipeline.images(limit)))
