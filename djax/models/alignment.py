"""The order of the blocks and the inverse matrices of a disguise, estimated from disguised images alone.

These are the attacks ``placement`` and ``moments`` without public images: neighbours in any image are alike, and that
is enough to tell order and matrices, up to a mirror image of them all. It runs once, on the host.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from djax import schemes
from djax.attacks.base import Known
from djax.attacks.rmt import moments, placement
from djax.host import blockwise
from djax.schemes import Trait

__all__ = ["IMAGES", "estimate", "refuses"]

IMAGES = 20_000
_VALUES = 4096  # of an image: a covariance of all takes 67 MB, and a dozen such are made


def refuses(spec: Mapping[str, Any]) -> str | None:
  """Returns why nothing can be estimated for a disguise, or None if it can."""
  traits = schemes.traits(spec)
  if Trait.LINEAR not in traits:
    return f"scheme {spec['scheme']!r} has neither matrices nor an order of blocks"
  if Trait.ORTHOGONAL not in traits:
    return "projection matrices need public images"
  if np.prod(spec["image_shape"]) > _VALUES:
    return f"images of more than {_VALUES} values are too large for it"
  return None


def estimate(
  spec: Mapping[str, Any], batches: Iterator[np.ndarray]
) -> tuple[np.ndarray | None, np.ndarray | None]:
  """Estimates the permutation and the inverse matrices; doubts are logged as warnings.

  Args:
    spec: ``SchemeSpec.to_dict()`` of a disguise that is not refused.
    batches: of disguised images, float32 ``[B, H', W', C]``; ``IMAGES`` of them are read at most.

  Returns:
    The inverse matrices, float32 of ``rmt.matrix_shape``, or None for ``permutation``; and ``perm``, int32 ``[P]``:
    disguised position ``p`` belongs to position ``perm[p]``; None where blocks were not moved. Together they give the
    originals, all mirrored left to right or none; where whole blocks are mixed, all turned alike.
  """
  taken, count = [], 0
  for batch in batches:
    taken.append(np.asarray(batch, np.float32)[: IMAGES - count])
    count += len(taken[-1])
    if count >= IMAGES:
      break
  images = np.concatenate(taken)
  inverse = perm = None
  doubts: list[str] = []
  traits = schemes.traits(spec)
  if Trait.MOVED in traits:
    perm, diagnostics = placement.estimate_permutation(Known(spec, images, images[:0]), 0)
    doubts += diagnostics["warnings"]
    images = blockwise.permute(np.argsort(perm), images, block_size=spec["block_size"])
    perm = perm.astype(np.int32)
  if Trait.MATRICES in traits:
    known = Known({**spec, "permute": False}, images, images[:0])
    inverse = moments.estimate_matrices(known)[0].swapaxes(-1, -2).astype(np.float32)
    doubts += moments.warnings_of(known)
  for doubt in doubts:
    logging.getLogger(__name__).warning("stem aligned: %s", doubt)
  return inverse, perm
