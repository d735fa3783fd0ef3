"""The network of a run directory, put to work on disguised images. Needs no key.

A run may come back from a machine that nobody vouches for. So its files are compared with their checksums before they
are used, nothing in them is run, matched or compiled, and no number in them decides alone how much is allocated.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from djax import models
from djax.errors import ConfigError, DataError
from djax.io.foreign import MissingFileError, names
from djax.models import checksums, run_files, weights
from djax.models.network import Network, logits

__all__ = ["Predictor", "load"]

_NETWORK_BYTES = 4 << 30
_LARGEST_ARRAY = 1 << 28  # bytes, of what is between the layers; larger batches are cut
_TOLERANCE = 1e-3  # of the sum of probabilities
_LONGEST_REASON = 300


class Predictor:
  """A trained network.

  Args:
    model: the network's module.
    network: its parameters and statistics.
    summary: public description of the run.

  Attributes:
    model: as given, and so ``network``, which lies on the first device.
    classes: number of label ids ``K``.
    summary: what ``disguise.json`` of the run holds, its ``model`` and ``step``.
  """

  def __init__(self, model: nn.Module, network: Network, summary: dict[str, Any]):
    self.classes: int = summary["classes"]
    self.summary = summary
    self.model, self.network = model, jax.device_put(network, jax.devices()[0])
    self._forward = lambda network, images: jax.nn.softmax(logits(model, network, images))
    self._probabilities = jax.jit(self._forward)

  def probabilities(self, images: np.ndarray, batch: int) -> np.ndarray:
    """Classifies disguised images.

    Args:
      images: float32 ``[n, H', W', C]``, disguised as the training images were, dequantised.
      batch: how many are worked on at once, at most: fewer where the network needs much memory for each.

    Returns:
      float32 ``[n, K]``, by label id; each row sums to 1.

    Raises:
      ConfigError: for images of another shape than the network was made for.
      DataError: if what comes out are no probabilities, or one image alone takes too much memory.
    """
    shape = tuple(self.summary["disguised_shape"])
    if images.shape[1:] != shape:
      raise ConfigError(
        f"images must be [n, {', '.join(map(str, shape))}] as in the run, got {images.shape}. "
        "Disguise them as the training images were."
      )
    batch = min(batch, self._most_at_once)
    parts = [np.zeros((0, self.classes), np.float32)]
    for start in range(0, len(images), batch):
      part = images[start : start + batch]
      # Filled up, so that one program serves every batch.
      filled = np.concatenate([part, np.zeros((batch - len(part), *shape), part.dtype)])
      parts.append(np.asarray(self._probabilities(self.network, filled))[: len(part)])
    return _checked(np.concatenate(parts))

  @functools.cached_property
  def _most_at_once(self) -> int:
    """How many images may be worked on at once, by the largest array that one makes on its way."""
    one = jax.ShapeDtypeStruct((1, *self.summary["disguised_shape"]), jnp.float32)
    largest = max(_sizes(jax.make_jaxpr(self._forward)(self.network, one).jaxpr, one.shape))
    if largest > _LARGEST_ARRAY:
      raise DataError(
        f"the network of the run must need at most {_LARGEST_ARRAY} bytes between its layers for an image, it needs "
        f"{largest}."
      )
    return _LARGEST_ARRAY // largest


def load(workdir: str | Path) -> Predictor:
  """Reads the network of the newest finished checkpoint of a run, and changes nothing there.

  Raises:
    ConfigError: if it holds no run, or no checkpoint yet.
    DataError: if a file of the checkpoint is missing, damaged or no regular file, or does not describe a network.
  """
  folder = Path(workdir).expanduser().resolve()
  record = checksums.newest(folder)
  if record is None:
    _refuse_unfinished(folder)
  while True:
    try:
      return _load(folder, record)
    except MissingFileError:
      # A run that goes on removes its older checkpoints.
      latest = checksums.newest(folder)
      if latest is None or latest.step == record.step:
        raise
      record = latest


def _load(folder: Path, record: checksums.Record) -> Predictor:
  config_bytes = checksums.checked(folder, record, checksums.CONFIG)
  disguise_bytes = checksums.checked(folder, record, checksums.DISGUISE)
  try:
    settings = models.check(run_files.config_from(config_bytes)["model"])
    disguise = run_files.disguise_from(disguise_bytes)
    model = models.create(settings, classes=disguise["classes"], spec=disguise["spec"])
    like = _abstract(model, tuple(disguise["disguised_shape"]))
    size = weights.size(like)
  except Exception as error:  # a scheme or a network says in its own way what it cannot take
    reason = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
    raise DataError(
      f"{folder} must describe a network in config.json and disguise.json, it does not: {reason}"
    ) from error
  name = f"{checksums.CHECKPOINTS}/{record.step}/{checksums.NETWORK}"
  if size > _NETWORK_BYTES:
    raise DataError(
      f"{folder} must have a network of at most {_NETWORK_BYTES} bytes, its config asks for {size}."
    )
  # All but the network, which is not read twice.
  checksums.verify(folder, record, limit=checksums.limit(size), apart_from=(name,))
  data = checksums.checked(folder, record, name, limit=size)
  try:
    network = weights.load(data, like)
  except ValueError:
    raise DataError(
      f"{folder / name} must hold the network that config.json and disguise.json describe, it holds another."
    ) from None
  return Predictor(
    model, network, {**disguise, "model": dataclasses.asdict(settings), "step": record.step}
  )


def _abstract(model: Any, shape: tuple[int, ...]) -> Network:
  """Returns names, shapes and dtypes of what a network needs; nothing of that size is made."""
  mean: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
  scale: Any = jax.ShapeDtypeStruct((), jnp.float32)
  variables = jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.eval_shape(lambda: jax.random.key(0)),
    jax.ShapeDtypeStruct((1, *shape), jnp.float32),
  )
  return Network(variables["params"], variables.get("batch_stats", {}), mean, scale)


def _checked(probabilities: np.ndarray) -> np.ndarray:
  """Refuses what are no probabilities, as of a network with NaN in it."""
  lies = (probabilities >= 0) & (probabilities <= 1)
  if not lies.all() or (np.abs(probabilities.sum(axis=1) - 1) > _TOLERANCE).any():
    raise DataError(
      "the network of the run must give probabilities, in 0..1 and with the sum 1 for each image; it gives others. "
      "Take the run from a good copy, or train it again."
    )
  return probabilities


def _sizes(jaxpr: Any, shape: tuple[int, ...]) -> Iterator[int]:
  """Yields the sizes in bytes of all arrays that a program makes, its inner programs included."""
  yield 4 * math.prod(shape)
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield math.prod(variable.aval.shape) * variable.aval.dtype.itemsize
    for inner in equation.params.values():
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        yield from _sizes(inner, ())


def _refuse_unfinished(folder: Path) -> NoReturn:
  """Says what a directory without a finished checkpoint lacks."""
  if not all(os.path.lexists(folder / name) for name in (checksums.CONFIG, checksums.DISGUISE)):
    raise ConfigError(
      f"{folder} must be a run directory with config.json and disguise.json, it has none. "
      "Give the --workdir of a run of `python -m train`."
    )
  if os.path.lexists(folder / checksums.CHECKPOINTS) and names(folder / checksums.CHECKPOINTS):
    raise DataError(
      f"{folder} must hold a checkpoint with its checksums, it has one without: it was not finished, or its record is "
      "lost. Resume the run, or take it from a good copy."
    )
  raise ConfigError(f"{folder} must hold a checkpoint, it has none yet. Resume the run.")
