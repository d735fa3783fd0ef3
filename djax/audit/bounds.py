"""What the noise alone proves, whatever the attacker does and even if the key is known.

With the key, RMT with noise before its matrices leaves ``x + u`` with ``u`` uniform on ``[0, N)^d``; what is stored of
it, quantised or not, tells no more (data processing). So what follows holds for every attack. Where it says that images
can be told apart, the noise proves nothing, and all protection there is rests on the key, which the attacks test.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from djax import schemes
from djax.schemes import Trait

__all__ = ["information", "least_error", "noise_alone", "variation"]

_SURE = 0.99  # total variation from which on two images are as good as told apart
_CHUNK = 1 << 24  # numbers held at a time


def variation(x: np.ndarray, y: np.ndarray, level: float) -> np.ndarray:
  """Returns the total variation between what two images leave: the greatest advantage of any test between them.

  Uniform noise leaves both with density ``N^-d`` on cubes of side N, which overlap in ``prod((1 - |x_i - y_i| / N)+)``
  of the mass; the total variation is 1 less that. It is also the least delta with which the two are (epsilon,
  delta)-indistinguishable, for every epsilon, as both densities are equal where neither is 0.

  Args:
    x: ``[..., d]``, 0..255.
    y: ``[..., d]``.
    level: N, above 0.
  """
  apart = np.abs(x.astype(np.float64) - y)
  with np.errstate(divide="ignore"):
    overlap = np.log(np.maximum(1 - apart / level, 0)).sum(-1)
  return -np.expm1(overlap)


def information(images: np.ndarray, level: float) -> float:
  """Returns a bound on the bits that an image leaves: ``sum_i (log2(2 pi e (v_i + N^2 / 12)) / 2 - log2 N)``.

  ``I(X; X + U) = h(X + U) - h(U)``, where ``h(U) = d log2 N``; the entropy of a sum is at most that of its coordinates
  one by one, and each is at most that of a Gaussian of the same variance (Cover and Thomas, Elements of Information
  Theory, 2nd ed., theorems 8.6.2 and 8.6.5).

  Args:
    images: ``[n, d]``, 0..255, of the kind; of them the variances ``v_i`` are measured.
    level: N, above 0.
  """
  total = images.astype(np.float64).var(0) + level**2 / 12
  return float((0.5 * np.log2(2 * math.pi * math.e * total) - math.log2(level)).sum())


def least_error(bits: float, candidates: int) -> float:
  """Returns the least error of naming one of M equally likely images: ``1 - (I + 1) / log2 M``, at least 0.

  Fano's inequality (Cover and Thomas, theorem 2.10.1). 0 says nothing.

  Args:
    bits: at most what is left of an image.
    candidates: M, above 1.
  """
  return max(0.0, 1 - (bits + 1) / math.log2(candidates))


def noise_alone(
  spec: Mapping[str, Any], targets: np.ndarray, others: np.ndarray, *, views: int = 1
) -> dict[str, Any]:
  """Says what the noise of a disguise proves for some images.

  Args:
    spec: ``SchemeSpec.to_dict()``.
    targets: ``[t, H, W, C]``, 0..255.
    others: ``[n, H, W, C]`` of the same kind; each target is held against the nearest of them.
    views: that leave of an image. The figures are those of the first; more tell more.

  Returns:
    ``words``, a line to print; ``vacuous``, whether it proves nothing; and where there is noise before orthogonal
    matrices ``variation``, the median over targets of the total variation to the nearest other image, ``bits`` and
    ``least_error`` of naming one of as many images as there are others.
  """
  level = spec.get("noise_level", 0.0)
  if Trait.MATRICES not in schemes.traits(spec) or not level:
    words = "no noise before the disguise: with the key nothing is proven to stay hidden"
    return {"vacuous": True, "words": words}
  if spec["noise_place"] != "before" or spec["matrix"] != "orthogonal":
    words = "nothing is claimed of noise other than before orthogonal matrices"
    return {"vacuous": True, "words": words}
  x, y = (images.reshape(len(images), -1).astype(np.float32) for images in (targets, others))
  apart = float(np.median(variation(x, y[_nearest(x, y)], level)))
  bits = information(y, level)
  error = least_error(bits, len(y))
  vacuous = apart > _SURE and not error
  if vacuous:
    end = "that proves nothing"
  elif views > 1:
    end = f"that is of one view, and {views} leave, which prove less"
  else:
    end = f"who names one of them fails in {error:.0%} of cases at least"
  words = (
    f"who has the key tells an image from the most similar of {len(y)} others with an advantage of {apart:.2f} "
    f"(median; 1: always), and at most {bits:.0f} bits of an image are left; {end}"
  )
  return {
    "vacuous": vacuous,
    "variation": apart,
    "bits": bits,
    "least_error": error,
    "words": words,
  }


def _nearest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Returns for each row of ``x`` the nearest other one of ``y``, not one that is the same."""
  squares = np.square(y).sum(1)
  found = []
  step = max(1, _CHUNK // len(y))
  for start in range(0, len(x), step):
    part = x[start : start + step]
    apart = np.square(part).sum(1)[:, None] + squares - 2 * part @ y.T
    found.append(np.where(apart > 0.5, apart, np.inf).argmin(1))
  return np.concatenate(found)
