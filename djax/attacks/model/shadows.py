"""Small networks trained together: shadow models for membership inference, and models that never saw a class.

``vmap`` turns the training of one network into that of all: one program, parameters stacked along a leading axis, and
for each network its own initial parameters and its own order of its own records.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax.attacks.base import Progress
from djax.attacks.common import fitting
from djax.errors import ConfigError

__all__ = [
  "Models",
  "Recipe",
  "as_function",
  "halves",
  "hard_labels",
  "logits",
  "standards",
  "train",
  "train_one_by_one",
  "without_a_class",
]

_STEPS = 100  # in a program


class Recipe(NamedTuple):
  """How each network is trained: one hidden layer and no regularisation, so that it overfits.

  Attributes:
    width: of the hidden layer.
    steps: of Adam.
    batch: records of a step.
    rate: of learning, constant.
  """

  width: int = 64
  steps: int = 1000
  batch: int = 32
  rate: float = 2e-3


_RECIPE = Recipe()


class Models(NamedTuple):
  """``S`` trained networks.

  Attributes:
    params: float32 pytree, each leaf with a leading axis ``S``.
    mean: float32 ``[D]``, of the images of all of them; ``D`` values an image.
    scale: float32 scalar, their spread around it.
  """

  params: Any
  mean: np.ndarray
  scale: np.float32


def halves(models: int, records: int, *, seed: int) -> np.ndarray:
  """Draws the training sets: each even model gets a random half, the odd one after it the other half.

  So each record is in half of the models, and also in half of those that are left when such a couple is taken out.

  Args:
    models: ``S``, even.
    records: ``n``, even.
    seed: of the draw.

  Returns:
    bool ``[S, n]``.

  Raises:
    ConfigError: for an odd number of either, or none.
  """
  if models < 2 or records < 2 or models % 2 or records % 2:
    raise ConfigError(
      f"shadow models and records must both be even and at least 2, got {models} and {records}. "
      "Take one more or one less."
    )
  draw = np.random.default_rng([seed, 1])
  first = draw.permuted(np.tile(np.arange(records) < records // 2, (models // 2, 1)), axis=1)
  return np.stack([first, ~first], 1).reshape(models, records)


def without_a_class(labels: np.ndarray, classes: int) -> np.ndarray:
  """Returns training sets, bool ``[1 + classes, n]``: all records for the first model, then all but one class each.

  Args:
    labels: int ``[n]``.
    classes: how many are left out, one at a time, from class 0 on.
  """
  left_out = np.arange(classes)[:, None]
  return np.concatenate([np.ones((1, len(labels)), bool), labels != left_out])


def hard_labels(labels: np.ndarray) -> np.ndarray:
  """Returns labels as int32 ``[n]``.

  Args:
    labels: int ``[n]``.

  Raises:
    ConfigError: for soft labels ``[n, K]``: membership is asked of one record with one class.
  """
  labels = np.asarray(labels)
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise ConfigError(
      f"labels must be class numbers, int [n], got {labels.dtype} {list(labels.shape)}. "
      "Where they are mixed, give those of the originals."
    )
  return labels.astype(np.int32)


def train(
  images: np.ndarray,
  labels: np.ndarray,
  members: np.ndarray,
  *,
  classes: int,
  seed: int,
  recipe: Recipe = _RECIPE,
  progress: Progress = lambda fraction, step: None,
) -> Models:
  """Trains all networks at once.

  Args:
    images: ``[n, ...]``, uint8 or float32; plain or disguised.
    labels: int ``[n]``.
    members: bool ``[S, n]``, which records each network is trained on; at least one each.
    classes: number of labels ``K``.
    seed: of initial parameters and orders.
    recipe: of the training.
    progress: called with the fraction done and the current step.

  Raises:
    ConfigError: for soft labels, or a network without records.
  """
  params, x, y, orders, mean, scale = _given(images, labels, members, classes, seed, recipe)
  state = jax.vmap(optax.adam(recipe.rate).init)(params)
  for start in range(0, recipe.steps, _STEPS):
    progress(start / recipe.steps, f"{len(members)} models together")
    params, state = _together(recipe.rate, params, state, x, y, orders[:, start : start + _STEPS])
  return Models(jax.device_get(params), mean, scale)


def train_one_by_one(
  images: np.ndarray,
  labels: np.ndarray,
  members: np.ndarray,
  *,
  classes: int,
  seed: int,
  recipe: Recipe = _RECIPE,
) -> Models:
  """Trains the same networks in a plain loop, step by step, one after the other: what ``train`` is measured against.

  Args:
    images: as for ``train``, and so all that follows.
    labels: int ``[n]``.
    members: bool ``[S, n]``.
    classes: number of labels ``K``.
    seed: of initial parameters and orders.
    recipe: of the training.

  Returns:
    What ``train`` returns, but for rounding.
  """
  params, x, y, orders, mean, scale = _given(images, labels, members, classes, seed, recipe)
  trained, params = [], jax.device_get(params)
  for number in range(len(members)):
    own = jax.device_put(jax.tree.map(lambda leaf, number=number: leaf[number], params))
    state = optax.adam(recipe.rate).init(own)
    for step in range(recipe.steps):
      own, state = _alone(recipe.rate, own, state, x, y, orders[number, step : step + 1])
    trained.append(jax.device_get(own))
  return Models(jax.tree.map(lambda *leaves: np.stack(leaves), *trained), mean, scale)


def standards(images: np.ndarray) -> tuple[np.ndarray, np.float32]:
  """Returns what images are standardised by: mean float32 ``[D]``, and spread around it, a float32 scalar.

  Who asks with images of another kind does best to put ``mean`` and ``scale`` of these into ``Models``.

  Args:
    images: ``[n, ...]`` of ``D`` values each.
  """
  flat = np.asarray(images, np.float32).reshape(len(images), -1)
  mean = flat.mean(0, dtype=np.float64).astype(np.float32)
  return mean, np.float32(np.std(flat - mean) or 1)


def logits(models: Models, images: np.ndarray, *, chunk: int = 1000) -> np.ndarray:
  """Asks all networks.

  Args:
    models: from ``train``.
    images: ``[n, ...]`` as in training.
    chunk: images asked at once.

  Returns:
    float32 ``[S, n, K]``.
  """
  parts = []
  for start in range(0, len(images), chunk):
    x = _standardised(images[start : start + chunk], models.mean, models.scale)
    parts.append(np.asarray(_ask(models.params, x)))
  return np.concatenate(parts, 1)


def as_function(models: Models, number: int) -> Callable[[jax.Array], jax.Array]:
  """Returns one network as a function from images ``[B, ...]`` to logits ``[B, K]``, which can be differentiated.

  Args:
    models: from ``train``.
    number: of the network, below ``S``.
  """
  own = jax.tree.map(lambda leaf: leaf[number], models.params)
  return lambda images: _forward(
    own, (images.reshape(len(images), -1) - models.mean) / models.scale
  )


@jax.jit
def _ask(params: Any, images: jax.Array) -> jax.Array:
  return jax.vmap(_forward, in_axes=(0, None))(params, images)


def _forward(params: Any, images: jax.Array) -> jax.Array:
  """Returns logits ``[B, K]`` of standardised images ``[B, D]``."""
  hidden = jax.nn.relu(images @ params["inward"] + params["bias"])
  return hidden @ params["outward"] + params["last"]


def _steps(
  rate: float, params: Any, state: Any, images: jax.Array, labels: jax.Array, order: jax.Array
) -> tuple[Any, Any]:
  """Takes a step on each row of ``order [steps, B]``."""

  def loss(params, rows):
    answers = _forward(params, images[rows])
    return optax.softmax_cross_entropy_with_integer_labels(answers, labels[rows]).mean()

  return fitting.descend(loss, optax.adam(rate), params, state, order)


# All networks are trained on records of the same array, which has no axis of networks.
_together = jax.jit(
  jax.vmap(_steps, in_axes=(None, 0, 0, None, None, 0)), static_argnums=0, donate_argnums=(1, 2)
)
_alone = jax.jit(_steps, static_argnums=0, donate_argnums=(1, 2))


def _given(
  images: np.ndarray,
  labels: np.ndarray,
  members: np.ndarray,
  classes: int,
  seed: int,
  recipe: Recipe,
) -> tuple[Any, ...]:
  """Returns initial parameters, standardised records, labels, orders, and what standardised the records."""
  labels = hard_labels(labels)
  if not members.any(1).all():
    raise ConfigError("each model must have at least one record to be trained on, got one without.")
  mean, scale = standards(images)
  sizes = (len(mean), recipe.width, classes)
  params = _initial(jax.random.key(seed), len(members), sizes)
  orders = np.stack(
    [
      _order(np.flatnonzero(row), recipe.steps * recipe.batch, np.random.default_rng([seed, 2, s]))
      for s, row in enumerate(members)
    ]
  ).reshape(len(members), recipe.steps, recipe.batch)
  return (
    params,
    jnp.asarray(_standardised(images, mean, scale)),
    jnp.asarray(labels),
    orders,
    mean,
    scale,
  )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _initial(rng: jax.Array, models: int, sizes: tuple[int, int, int]) -> dict[str, jax.Array]:
  """Draws the parameters of all networks."""
  values, width, classes = sizes

  def one(rng):
    first, second = jax.random.split(rng)
    return {
      "inward": jax.random.normal(first, (values, width)) * (2 / values) ** 0.5,
      "bias": jnp.zeros(width),
      "outward": jax.random.normal(second, (width, classes)) * (1 / width) ** 0.5,
      "last": jnp.zeros(classes),
    }

  return jax.vmap(lambda number: one(jax.random.fold_in(rng, number)))(jnp.arange(models))


def _order(rows: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
  """Returns ``count`` record numbers, int32: all records of a network in a new order each time round."""
  rounds = [draw.permutation(rows) for _ in range(-(-count // len(rows)))]
  return np.concatenate(rounds)[:count].astype(np.int32)


def _standardised(images: np.ndarray, mean: np.ndarray, scale: np.float32) -> np.ndarray:
  return (np.asarray(images, np.float32).reshape(len(images), -1) - mean) / scale
