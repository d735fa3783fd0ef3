"""Gradient descent: one loop for all networks and images that attacks fit."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

__all__ = ["descend", "fit"]


def descend(
  loss: Callable[[Any, Any], jax.Array],
  optimizer: optax.GradientTransformation,
  params: Any,
  state: Any,
  batches: Any,
  *,
  project: Callable[[Any], Any] = lambda params: params,
) -> tuple[Any, Any]:
  """Takes one step on each batch. To be jitted by the caller.

  Args:
    loss: ``(params, batch) -> scalar``.
    optimizer: of the steps.
    params: pytree to begin with.
    state: of the optimizer.
    batches: pytree whose leaves have a leading axis of steps.
    project: applied to the parameters after each step.

  Returns:
    The parameters and the state of the optimizer after the last step.
  """

  def step(carry, batch):
    params, state = carry
    params, state = _step(loss, optimizer, params, state, batch)
    return (project(params), state), None

  return jax.lax.scan(step, (params, state), batches)[0]


def fit(
  network: nn.Module,
  inputs: Sequence[np.ndarray],
  targets: np.ndarray,
  *,
  steps: int,
  every: int,
  batch: int,
  rate: float,
  decay: float,
  seed: int,
) -> Iterator[Any]:
  """Fits a network by least squares: AdamW, clipped gradients, cosine decay.

  Args:
    network: of as many arguments as there are inputs.
    inputs: float32 ``[n, ...]`` each.
    targets: float32 ``[n, ...]``, what the network should return.
    steps: in all.
    every: how many steps a yield stands for, the last one perhaps for fewer.
    batch: rows of a step, drawn without replacement; at most n.
    rate: of learning, at the start.
    decay: of the weights.
    seed: of the initial weights and of the batches.

  Yields:
    The network's variables so far.
  """
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=decay),
  )
  variables = jax.jit(network.init)(jax.random.key(seed), *(a[:1] for a in inputs))
  state = optimizer.init(variables)
  draw = np.random.default_rng(seed)
  count = len(targets)

  def loss(variables, rows):
    *seen, wanted = rows
    return jnp.mean((network.apply(variables, *seen) - wanted) ** 2)

  # Not ``descend``: on a CPU, XLA runs convolutions inside a scan with twenty times the work.
  step = jax.jit(functools.partial(_step, loss, optimizer))
  for number in range(1, steps + 1):
    rows = draw.choice(count, min(batch, count), replace=False)
    variables, state = step(variables, state, [a[rows] for a in (*inputs, targets)])
    if number % every == 0 or number == steps:
      yield variables


def _step(
  loss: Callable[[Any, Any], jax.Array],
  optimizer: optax.GradientTransformation,
  params: Any,
  state: Any,
  batch: Any,
) -> tuple[Any, Any]:
  """Takes one step."""
  updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
  return optax.apply_updates(params, updates), state
