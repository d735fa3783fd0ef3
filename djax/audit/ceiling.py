"""What the key gives back: targets restored with it, and the noise that this leaves taken off.

No attack without the key need do better: what the best of them lacks, the key still hides. Whoever has the key can
disguise and restore public images too, and on these a small network learns to take off the noise. A larger one may get
more, so the figure is what the key gives at least.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from djax.attacks.base import Known, Progress, Views
from djax.attacks.common import denoise
from djax.attacks.rmt import several_views
from djax.errors import NotInvertibleError

__all__ = ["Opened", "estimate", "restored", "words"]

_CHUNK = 100
_EXACT = 100.0  # dB, the most that is counted
_CLOSE = 0.01  # of SSIM


class Opened(NamedTuple):
  """Restored images, less the mean of their noise.

  Attributes:
    targets: float32 ``[t, K, H, W, C]``, their views; the first lies as the original.
    public: float32 ``[m, H, W, C]``, public images that were disguised with the same key.
    views: how the other views of the targets were made, or None if there are none.
  """

  targets: np.ndarray
  public: np.ndarray
  views: Views | None


def restored(
  restore: Callable[[np.ndarray], np.ndarray],
  known: Known,
  disguised_public: Callable[[], np.ndarray],
) -> Opened | str:
  """Restores what was disguised; where the scheme has no way back, returns the reason.

  Args:
    restore: as ``Disguiser.restored``.
    known: what the attacker has; of it the targets and their views.
    disguised_public: gives public images that were disguised with the same key, ``[m, H', W', C]``; called where there
      is a way back.
  """

  def back(images: np.ndarray) -> np.ndarray:
    parts = [restore(images[s : s + _CHUNK]) for s in range(0, len(images), _CHUNK)]
    return np.concatenate(parts).astype(np.float32)

  try:
    targets = back(known.targets)[:, None]
    if known.views is None:
      return Opened(targets, back(disguised_public()), None)
    seen = known.views.disguised
    further = back(seen.reshape(-1, *seen.shape[2:])).reshape(*seen.shape[:2], *targets.shape[2:])
    targets = np.concatenate([targets, further], 1)
    return Opened(targets, back(disguised_public()), known.views)
  except NotInvertibleError as error:
    return str(error)


def estimate(
  opened: Opened, public: np.ndarray, spec: Mapping[str, Any], *, seed: int, progress: Progress
) -> tuple[np.ndarray, dict[str, Any]]:
  """Estimates the originals of the targets with the key.

  Args:
    opened: what restoring gives.
    public: originals of ``opened.public`` and perhaps more, ``[n, H, W, C]``.
    spec: ``SchemeSpec.to_dict()``.
    seed: of the network.
    progress: called with the fraction done and the current step.

  Returns:
    float32 ``[t, H, W, C]``, 0..255; and ``method``: ``restored``, ``linear`` or ``network``; ``views``, how many of
    each target were used; ``validation``, by method the mean PSNR in dB on public images held out.
  """
  views = opened.targets.shape[1]
  level = spec.get("noise_level", 0.0)
  estimates, rehearsed = {"restored": opened.targets[:, 0]}, {"restored": opened.public}
  if level and several_views.has_white_noise(spec) and public[0].size <= several_views.MOST:
    if opened.views is None:
      # Public images are filtered by the statistics of other ones, as the targets are.
      kind = several_views.prior(public[len(opened.public) :])
      for ways in (estimates, rehearsed):
        ways["linear"] = several_views.smooth(ways["restored"], kind, level**2 / 12)
    else:
      progress(0.1, "combining views")
      combined, again = several_views.rehearsed(
        opened.targets, None, public, opened.views, level, seed
      )
      estimates, rehearsed = {"linear": combined}, {"linear": again}
  else:
    views = 1
  images, how = denoise.improve(estimates, rehearsed, public, seed=seed, progress=progress)
  return images, {**how, "views": views}


def words(scores: Mapping[str, Any], how: Mapping[str, Any], given: int, best: float | None) -> str:
  """Says what the key gives back, and how far the best attack is from it.

  Args:
    scores: with the key, as ``verdicts.measure`` returns them.
    how: as ``estimate`` returns it.
    given: views of each target.
    best: the highest median SSIM of an attack; None if none came to an end.
  """
  ways = {
    "linear": ", with their noise taken off by a linear filter,",
    "network": ", with their noise taken off by a small network,",
  }
  ssim, psnr = scores["ssim"]["median"], scores["psnr"]["median"]
  of = f" (of the first of {given} views)" if how["views"] < given else ""
  by = ways.get(how["method"], "")
  found = f"restored targets{of}{by} have a median SSIM of {ssim:.2f}, {psnr:.1f} dB"
  if psnr >= _EXACT:
    found = f"restored targets{of} are the originals"
  if best is None:
    return found
  if best > ssim - _CLOSE:
    return (
      f"{found}; the best attack without the key reaches {best:.2f}: by SSIM the key hides no more"
    )
  return f"{found}; the best attack without the key reaches {best:.2f}"
