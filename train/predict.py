"""The network of a run directory, put to work on disguised images. Needs no key."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from djax.errors import ConfigError
from train import config as config_lib
from train import models, optimizers
from train import state as state_lib

__all__ = ["Predictor", "load"]


class Predictor:
  """A trained network.

  Args:
    model: the network.
    state: its parameters and statistics.
    facts: public facts of the run.

  Attributes:
    classes: number of label ids ``K``.
    facts: what ``disguise.json`` of the run holds, its ``model`` and ``step``.
  """

  def __init__(self, model: Any, state: state_lib.State, facts: dict[str, Any]):
    self.classes: int = facts["classes"]
    self.facts = facts
    self._state = state
    self._probabilities = jax.jit(
      lambda state, images: jax.nn.softmax(state_lib.forward(model, state, images))
    )

  def probabilities(self, images: np.ndarray, batch: int) -> np.ndarray:
    """Classifies disguised images.

    Args:
      images: float32 ``[n, H', W', C]``, disguised as the training images were, dequantised.
      batch: how many are worked on at once.

    Returns:
      float32 ``[n, K]``, by label id; each row sums to 1.

    Raises:
      ConfigError: for images of another shape than the network was made for.
    """
    shape = tuple(self.facts["disguised_shape"])
    if images.shape[1:] != shape:
      raise ConfigError(
        f"images must be [n, {', '.join(map(str, shape))}] as in the run, got {images.shape}. "
        "Disguise them as the training images were."
      )
    found = [np.zeros((0, self.classes), np.float32)]
    for start in range(0, len(images), batch):
      part = images[start : start + batch]
      # Filled up, so that one program serves every batch.
      filled = np.concatenate([part, np.zeros((batch - len(part), *shape), part.dtype)])
      found.append(np.asarray(self._probabilities(self._state, filled))[: len(part)])
    return np.concatenate(found)


def load(workdir: str | Path) -> Predictor:
  """Reads the newest checkpoint of a run.

  Args:
    workdir: the run directory.

  Raises:
    ConfigError: if it holds no run, or no checkpoint yet.
  """
  folder = Path(workdir).expanduser().resolve()
  try:
    config = ConfigDict(json.loads((folder / "config.json").read_text()))
    facts = json.loads((folder / "disguise.json").read_text())
    config_lib.check(config)
    shape, classes, spec = facts["disguised_shape"], facts["classes"], facts["spec"]
  except (OSError, ValueError, KeyError) as error:
    raise ConfigError(
      f"{workdir} must be a run directory with config.json and disguise.json, got {type(error).__name__}: {error}. "
      "Give the --workdir of a run of `python -m train`."
    ) from error
  if not (folder / "checkpoints").is_dir():
    raise ConfigError(f"{workdir} must hold a checkpoint, it has none yet. Let the run go on.")
  model = models.create(config.model, classes=classes, spec=spec)
  with state_lib.checkpoints(folder) as checkpoints:
    step = checkpoints.latest_step()
    if step is None:
      raise ConfigError(f"{workdir} must hold a checkpoint, it has none yet. Let the run go on.")
    state, _ = state_lib.restore(checkpoints, _abstract(config, model, shape))
  return Predictor(model, state, {**facts, "model": config.model.to_dict(), "step": step})


def _abstract(config: ConfigDict, model: Any, shape: list[int]) -> state_lib.State:
  """Returns shapes and dtypes of a run's state, to be restored to one device."""
  optimizer = optimizers.create(config.optimizer, 1, 1)
  mean, scale = jnp.zeros(shape, jnp.float32), jnp.ones((), jnp.float32)
  state = jax.eval_shape(
    lambda rng: state_lib.initial(
      model, optimizer, rng, mean, scale, averaged=config.optimizer.ema > 0
    ),
    jax.random.key(0),
  )
  place = SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)
