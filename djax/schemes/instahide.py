"""InstaHide (Huang et al., arXiv:2010.02772): every image is mixed with others, then each pixel's sign is drawn anew.

An *encoding* of an image is ``mask * (w_1 x_1 + ... + w_k x_k)``: pixels in [-1, 1], the image itself and ``k - 1``
others, weights uniform among those that sum to 1 with none above the cap, a mask of fresh random signs. Its label is
mixed with the same weights. Here the image to which an encoding belongs has the largest weight, which only names the
images of an encoding; so a query is mixed as the training images are.

Security: broken by Carlini et al. (arXiv:2011.05315), see ``djax.attacks.instahide.clusters``.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from djax.errors import NotInvertibleError
from djax.schemes import secret
from djax.schemes.base import (
  Kind,
  Option,
  Scheme,
  SchemeSpec,
  Secret,
  Trait,
  check_images,
  checked_shape,
)

__all__ = ["KIND", "InstaHideKey", "coefficients", "instahide_scheme", "partners"]

_LEAST_CAP = 0.6
_TRIES = 64  # with k = 2 and the least cap all fail once in a million draws


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class InstaHideKey(Secret):
  """The key of InstaHide.

  Attributes:
    seed: uint32 ``[2]``, of weights, partners and masks.
    public: ``[m, H, W, C]`` on the 0..255 scale, the public images that are mixed in, no secret; None for none.
  """

  seed: jax.Array | np.ndarray
  public: jax.Array | np.ndarray | None = None


def instahide_scheme(
  image_shape: Sequence[int],
  *,
  classes: int,
  k: Annotated[int, Option("images of an encoding", most=1 << 10)] = 4,
  public_k: Annotated[int, Option("how many of them are public", most=1 << 10)] = 0,
  cap: float = 0.65,
) -> Scheme:
  """Mixes each image with ``k - 1`` others under a fresh mask of signs; encodings are float32 in [-1, 1].

  ``disguise`` mixes the images of a batch among themselves; ``encode`` makes one encoding from a pool. Labels become
  float32 ``[..., K]``. With ``public_k`` the key must hold public images: ``dataclasses.replace(key, public=images)``.

  Args:
    image_shape: ``(H, W, C)``.
    classes: number of labels ``K``.
    k: images of an encoding, the image itself included.
    public_k: how many of them are public; these have no label.
    cap: greatest weight, the paper's c1.

  Raises:
    ValueError: for a number that does not fit.

  Security: broken from the encodings alone, see the module.
  """
  shape = checked_shape(image_shape)
  if k < 2:
    raise ValueError(f"instahide: k must be at least 2, the image and one other, got {k}.")
  if not 0 <= public_k < k:
    raise ValueError(
      f"instahide: public_k must be at least 0 and below k={k}: the image itself is one of them, got {public_k}."
    )
  if not _LEAST_CAP <= cap <= 1:
    raise ValueError(
      f"instahide: cap must lie in [{_LEAST_CAP}, 1], got {cap}. The paper has 0.65."
    )
  private_k = k - public_k

  def make_key(read):
    return InstaHideKey(secret.seed_of(read, "instahide|seed"))

  def encode(key, image, label, pool_images, pool_labels, own, *, rng):
    _check_pool(len(pool_images), private_k)
    weights_rng, partners_rng, public_rng, mask_rng = jax.random.split(
      secret.rng_of(key.seed, rng), 4
    )
    weights = coefficients(weights_rng, k=k, cap=cap)
    rows = partners(partners_rng, len(pool_images), own, count=private_k - 1)
    mixed = [image[None], jnp.asarray(pool_images)[rows]]
    if public_k:
      mixed.append(_public(key, public_rng, public_k, shape))
    scaled = jnp.concatenate([_scaled(images) for images in mixed])
    encoding = jnp.tensordot(weights, scaled, axes=1, precision="highest")
    signs = jnp.where(jax.random.bernoulli(mask_rng, shape=shape), 1.0, -1.0)
    if label is None:
      return encoding * signs, None
    labels = jnp.concatenate([jnp.asarray(label)[None], jnp.asarray(pool_labels)[rows]])
    soft = weights[:private_k] @ jax.nn.one_hot(labels, classes)
    return encoding * signs, soft / weights[:private_k].sum()

  def disguise(key, images, labels, *, rng):
    check_images(images, shape)
    pool = images.reshape(-1, *shape)
    given = None if labels is None else labels.reshape(-1)
    _check_hard(given)
    _check_pool(len(pool), private_k)

    def one(image, label, own, rng):
      return encode(key, image, label, pool, given, own, rng=rng)

    rngs = jax.random.split(rng, len(pool))
    encodings, soft = jax.vmap(one)(pool, given, jnp.arange(len(pool)), rngs)
    leading = images.shape[:-3]
    return (
      encodings.reshape(*leading, *shape),
      None if soft is None else soft.reshape(*leading, classes),
    )

  def restore(key, images):
    raise NotInvertibleError(
      "instahide: encodings cannot be restored, the other images and the signs are gone. Keep the originals."
    )

  options = {"classes": int(classes), "k": int(k), "public_k": int(public_k), "cap": float(cap)}
  spec = SchemeSpec("instahide", shape, shape, None, options)
  return Scheme(spec, make_key, disguise, restore, secret.not_exported("instahide"), encode=encode)


def coefficients(rng: jax.Array, *, k: int, cap: float) -> jax.Array:
  """Draws the weights of an encoding, float32 ``[k]``: uniform among those with sum 1 and none above ``cap``.

  The largest comes first, the others in random order. Where none of 64 draws fits, which with k = 4 and the paper's cap
  happens never, all are equal.

  Args:
    rng: JAX key.
    k: how many.
    cap: at least 0.6.
  """
  drawn = jax.random.exponential(rng, (_TRIES, k))
  drawn /= drawn.sum(axis=1, keepdims=True)
  fits = drawn.max(axis=1) <= cap
  weights = jnp.where(fits.any(), drawn[jnp.argmax(fits)], 1 / k)
  largest = jnp.argmax(weights)
  return weights.at[0].set(weights[largest]).at[largest].set(weights[0])


def partners(rng: jax.Array, pool: int, own: jax.Array | int, *, count: int) -> jax.Array:
  """Draws rows of a pool, int32 ``[count]``: each set of different rows other than ``own`` alike.

  Args:
    rng: JAX key.
    pool: number of rows, at least ``count + 1``.
    own: the row that is left out, or -1 for none.
    count: how many.
  """
  own = jnp.asarray(own, jnp.int32)
  taken = jnp.full(count + 1, pool, jnp.int32).at[0].set(jnp.where(own < 0, pool, own))
  rows = []
  for place in range(count):
    free = pool - place - (own >= 0)
    row = jax.random.randint(jax.random.fold_in(rng, place), (), 0, free)
    for other in jnp.sort(taken):  # counts over the rows that are gone
      row += row >= other
    taken = taken.at[place + 1].set(row)
    rows.append(row)
  return jnp.stack(rows) if rows else jnp.zeros(0, jnp.int32)


def _public(key: InstaHideKey, rng: jax.Array, count: int, shape: tuple[int, ...]) -> jax.Array:
  if key.public is None or not len(key.public):
    raise ValueError(
      f"instahide: public_k={count} needs public images in the key, got none. "
      "Give dataclasses.replace(key, public=images)."
    )
  if key.public.shape[1:] != shape:
    raise ValueError(
      f"instahide: public images must be {list(shape)} as the private ones, got {list(key.public.shape[1:])}. "
      "Resize them, or leave them out with public_k=0."
    )
  return jnp.asarray(key.public)[jax.random.randint(rng, (count,), 0, len(key.public))]


def _check_pool(pool: int, private_k: int) -> None:
  if pool < private_k:
    raise ValueError(
      f"instahide: the {private_k} private images of an encoding must come from a batch or pool of at least as many, "
      f"got {pool}. Give more images, or a smaller k."
    )


def _check_hard(labels: jax.Array | np.ndarray | None) -> None:
  if labels is not None and not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"instahide: labels must be class numbers, integers, got {labels.dtype}: mixed labels are what comes out."
    )


def _scaled(images: jax.Array) -> jax.Array:
  return images.astype(jnp.float32) / 127.5 - 1


KIND = Kind(
  "instahide",
  instahide_scheme,
  traits=lambda spec: frozenset({Trait.MIXED_IMAGES, Trait.FLOATS}),
  words=lambda options: [
    f"InstaHide, k = {options['k']}",
    *[f"{options['public_k']} of them public"] * bool(options["public_k"]),
  ],
)
