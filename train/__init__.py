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
  config: "ConfigDict", workdir: "str | Path | None" = None, *, master: "Master | None" = None
) -> dict[str, Any]:
  """Trains and evaluates as the config says; resumes an earlier run in ``workdir``.

  In a notebook it shows ``preview.png``: clear the output before you share a notebook that shows your originals.

  Args:
    config: a complete config, such as ``configs.digits_rmt.get_config()``.
    workdir: the run directory, made if it does not exist. Its ``preview.png`` and ``report.html`` show originals where
      there are any. None: a new temporary directory, which nobody removes.
    master: the owner's key; without it the public key of ``config.disguise.experiment_seed``. A run on
      ``config.data.disguised_dir`` takes none.

  Returns:
    What ``result.json`` holds. In 0..1: ``test_accuracy`` by the mean log-probabilities of ``test_views`` views,
    ``single_view_accuracy``, and those of the same network on plain images (``plain_accuracy``, None without
    originals) and under another key (``other_key_accuracy``, None without a key). ``val_accuracy`` is that of the
    network which ``config.data.val_split`` chose, after ``chosen_step`` steps; without one None, and the last step.
    Seconds, steps per second, the key's fingerprint and the scheme's public spec. Besides, ``workdir``.

  Raises:
    ConfigError: if a field is unknown, missing, of another type, or cannot work, or ``workdir`` holds a run of
      another config.
    KeyMismatchError: if ``workdir`` holds a run with another key.
    DataError: if the source or the disguised data set is missing or damaged.
    TrainingError: if the loss is no longer finite.
    Stopped: on SIGTERM or SIGINT, after a checkpoint.
  """
  from train import (
    api,  # JAX, Flax and Optax: what asks for one module of train does not wait for them
  )

  return api.run(config, workdir, master)
