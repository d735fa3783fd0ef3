"""Augmentation after the disguise: what respects the blocks, and therefore needs no key."""

import jax
import jax.numpy as jnp

from djax.ops import blocks

__all__ = ["cut_blocks", "mixup"]


def mixup(
  rng: jax.Array, images: jax.Array, targets: jax.Array, *, alpha: float
) -> tuple[jax.Array, jax.Array]:
  """Mixes every image and its target with another of the batch, by one share for the whole batch.

  Args:
    rng: a JAX PRNG key.
    images: float32 ``[B, H, W, C]``.
    targets: float32 ``[B, K]``, the probabilities of the classes.
    alpha: above 0; the share is drawn from Beta(alpha, alpha).

  Returns:
    Images and targets of the same shapes.

  Raises:
    ValueError: while tracing, if ``alpha`` is not above 0 or there is not one target an image.

  Source: mixup, arXiv:1710.09412.
  """
  if not 0 < alpha < float("inf"):
    raise ValueError(
      f"mixup: alpha must be a finite number above 0, got {alpha}. Leave it out for 0."
    )
  if targets.ndim != 2 or len(targets) != len(images):
    raise ValueError(
      f"mixup: targets must be [B, K] with B = {len(images)} as in images, got {targets.shape}. "
      "Turn labels into probabilities with jax.nn.one_hot."
    )
  for_share, for_order = jax.random.split(rng)
  share = jax.random.beta(for_share, alpha, alpha, dtype=jnp.float32)
  order = jax.random.permutation(for_order, len(images))
  return (
    share * images + (1 - share) * images[order],
    share * targets + (1 - share) * targets[order],
  )


def cut_blocks(rng: jax.Array, images: jax.Array, *, share: float, block_size: int) -> jax.Array:
  """Sets blocks to 0, the mean of standardised images, each with the same probability.

  Args:
    rng: a JAX PRNG key.
    images: float ``[B, H, W, C]``, standardised; sides are multiples of ``block_size``, as in disguised images.
    share: probability of a block, 0..1.
    block_size: side of a block of the disguise, in pixels.

  Returns:
    Images of the same shape and dtype.

  Raises:
    ValueError: while tracing, if ``share`` is not in 0..1 or the blocks do not fill the images.
  """
  if not 0 <= share <= 1:
    raise ValueError(f"cut_blocks: share must lie in 0..1, got {share}. It is a probability.")
  cut = blocks.blockify(images, block_size=block_size)
  mask = jax.random.bernoulli(rng, 1 - share, (*cut.shape[:2], 1, 1, 1))
  cut = jnp.where(mask, cut, jnp.zeros_like(cut))
  return blocks.unblockify(cut, height=images.shape[1], width=images.shape[2])
