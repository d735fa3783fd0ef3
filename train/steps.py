"""A step of training, and the loop of single steps: pure functions of state, batch and random key."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from train import processes
from train.data import mixing
from train.data.input_pipeline import Batch, Pipeline
from train.state import State
from train.streams import StepStream

__all__ = ["Recipe", "single_steps", "update"]


class Recipe(NamedTuple):
  """What a step does besides network and optimizer; by default nothing.

  Attributes:
    classes: number of labels ``K``.
    label_smoothing: share of the target that is spread over all classes.
    ema: greatest decay of the averaged parameters; 0 keeps none.
    mixup: of ``mixing.mixup``; 0 mixes nothing.
    cutout: of ``mixing.cut_blocks``, the share of blocks that are blanked.
    block_size: of these blocks.
  """

  classes: int
  label_smoothing: float = 0.0
  ema: float = 0.0
  mixup: float = 0.0
  cutout: float = 0.0
  block_size: int = 1


def single_steps(
  pipeline: Pipeline,
  step: Callable[..., tuple[State, jax.Array]],
  state: State,
  *,
  rng: jax.Array,
  seed: int,
  stop: int,
  every: int,
) -> Iterator[tuple[State, jax.Array]]:
  """Trains as ``device_loop.chunks`` does, but by chunks of one step: one dispatch per batch of the pipeline.

  The pipeline may be of any split, and ``every`` is ignored. Yields the state and its loss, float32 ``[]``.
  """
  del every
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, pipeline.replicated))
  rng = processes.put(rng, pipeline.replicated)
  for batch in pipeline.training(seed=seed, start=int(state.step), stop=stop):
    state, loss = step(state, batch, rng)
    yield state, loss


def update(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  recipe: Recipe,
  state: State,
  batch: Batch,
  rng: jax.Array,
) -> tuple[State, jax.Array]:
  """Updates the parameters once.

  Args:
    model: the network.
    optimizer: of its parameters.
    recipe: what else is done.
    state: before; its ``step`` picks the dropout and what is mixed.
    batch: disguised images, and labels or shares of them.
    rng: JAX key of the run.

  Returns:
    The new state and the mean loss of the batch, float32 ``[]``.
  """
  rng = jax.random.fold_in(rng, state.step)
  images = (batch.images - state.mean) / state.scale
  shares = batch.labels if batch.labels.ndim == 2 else jax.nn.one_hot(batch.labels, recipe.classes)
  targets = optax.smooth_labels(shares, recipe.label_smoothing)
  if recipe.mixup:
    mix_rng = jax.random.fold_in(rng, StepStream.MIXUP)
    images, targets = mixing.mixup(mix_rng, images, targets, alpha=recipe.mixup)
  if recipe.cutout:
    cut_rng = jax.random.fold_in(rng, StepStream.CUTOUT)
    images = mixing.cut_blocks(cut_rng, images, share=recipe.cutout, block_size=recipe.block_size)

  def loss_of(params):
    logits, updated = model.apply(
      {"params": params, "batch_stats": state.batch_stats},
      images,
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": rng},
    )
    return optax.softmax_cross_entropy(logits, targets).mean(), updated.get("batch_stats", {})

  (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  average = state.average
  if recipe.ema:
    # Young parameters change fast: at first the average forgets them fast.
    decay = jnp.minimum(recipe.ema, (1 + state.step) / (10 + state.step))
    average = optax.incremental_update(params, average, 1 - decay)
  return (
    state._replace(
      step=state.step + 1,
      params=params,
      average=average,
      batch_stats=batch_stats,
      opt_state=opt_state,
    ),
    loss,
  )
