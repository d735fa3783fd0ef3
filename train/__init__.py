"""Training on disguised images: what runs on the rented machine, or on the owner's own.

``run(config, workdir)`` is the whole of ``python -m train`` as a function, for notebooks and Colab.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from pathlib import Path

  from ml_collections import ConfigDict

  from djax.keys import Master

__all__ = ["run"]


def run(
  config: "ConfigDict", workdir: "str | Path", *, master: "Master | None" = None
) -> dict[str, Any]:
  """Trains and evaluates as the config says; goes on where an earlier run in ``workdir`` stopped.

  Args:
    config: a complete config, such as ``configs.digits_rmt.get_config()``.
    workdir: the run directory, made if it does not exist. Its ``preview.png`` shows originals.
    master: the owner's key; without it the public key of ``config.disguise.experiment_seed``.

  Returns:
    What ``result.json`` holds: ``test_accuracy`` and ``plain_accuracy`` in 0..1, seconds, steps per second, key
    fingerprint and the scheme's public spec.

  Raises:
    ConfigError: if a field is unknown, missing, of another type, or cannot work, or ``workdir`` holds a run of
      another config.
    KeyMismatchError: if ``workdir`` holds a run with another key.
    DataError: if the source is missing or damaged.
    TrainingError: if the loss is no longer finite.
    Stopped: on SIGTERM or SIGINT, after a checkpoint.
  """
  from djax import schemes, sources
  from train import config as config_lib
  from train import loop

  config_lib.check(config)
  data = config.data
  train, test = (
    sources.load(data.source, split, data_dir=data.data_dir, image_size=data.image_size)
    for split in (data.train_split, data.test_split)
  )
  config_lib.check_data(train, test)
  scheme = config_lib.make_scheme(config, train.images.shape[1:])
  key, fingerprint = schemes.Key(), None
  if scheme.spec.scheme != "plain":
    if master is None:
      from djax import keys

      master = keys.experiment(config.disguise.experiment_seed)
    key, fingerprint = scheme.make_key(master.read), master.fingerprint
  return loop.fit(config, workdir, train, test, scheme, key, fingerprint=fingerprint)
