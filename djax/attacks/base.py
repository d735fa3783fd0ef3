"""The contract of an attack: what the attacker has, what comes out, how it is scored. Arrays only, never a key."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from djax.errors import ConfigError

__all__ = [
  "Attack",
  "AttackResult",
  "Estimate",
  "Known",
  "Progress",
  "Views",
  "constant_estimate",
  "run",
]

Progress = Callable[[float, str], None]


class Views(NamedTuple):
  """Further views of each target that the cloud knows to belong together; how each lies is not known.

  Attributes:
    disguised: ``[t, k, H', W', C]``, views 1..k; view 0, the original itself, is the target.
    options: of ``djax.ops.augment.view``: ``crop``, ``flip``, ``rotate``, ``scale``, ``shear``, which are public.
    distinct: whether the views of an image have all shifts before any comes twice, as ``djax.ops.augment.view`` makes
      them; else every shift is drawn by itself, as ``disguise`` does.
  """

  disguised: np.ndarray
  options: Mapping[str, Any]
  distinct: bool = True


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Known:
  """What the attacker has. Images are on the 0..255 scale; disguised ones leave it.

  Attributes:
    spec: ``SchemeSpec.to_dict()``, complete: scheme and parameters are public.
    disguised: ``[n, H', W', C]`` float32 or uint8, all disguised images the cloud holds.
    targets: ``[t, H', W', C]``, those to be recovered; disguised under the same key.
    public: ``[m, H, W, C]`` float32 or uint8, images of the same kind that anybody can have, or None.
    pairs: originals ``[k, H, W, C]`` and the disguised images that belong to them, ``[k, H', W', C]``, or None.
    labels: as the cloud sees those of ``disguised``: int ``[n]``, or mixed ones, float32 ``[n, K]``; or None.
    encodings: how many of ``disguised`` show the same private image, as the cloud can count: a training set that mixes
      its images anew in every epoch has as many of each as epochs; None if unknown.
  """

  spec: Mapping[str, Any]
  disguised: np.ndarray
  targets: np.ndarray
  public: np.ndarray | None = None
  pairs: tuple[np.ndarray, np.ndarray] | None = None
  labels: np.ndarray | None = None
  encodings: int | None = None
  views: Views | None = None


class Estimate(NamedTuple):
  """What an attack returns.

  Attributes:
    images: float32 ``[t, H, W, C]``, its estimates of the targets' originals, 0..255.
    diagnostics: JSON types: intermediate results, and warnings under ``warnings``.
  """

  images: np.ndarray
  diagnostics: dict[str, Any]


class Attack(NamedTuple):
  """One row of the table.

  Attributes:
    name: its id.
    level: 1, ciphertext only, or 2, known pairs.
    needs: of ``public`` and ``pairs``, what it cannot do without.
    title: what it does, in a few words.
    refuses: ``(spec) -> reason`` why it cannot handle a scheme, or None if it can.
    attack: ``(known, *, seed, progress) -> Estimate``; ``progress`` is called with the fraction done and the current
      step. One with options takes them as ``settings``, a frozen dataclass ``Settings`` of its module.
  """

  name: str
  level: int
  needs: tuple[str, ...]
  title: str
  refuses: Callable[[Mapping[str, Any]], str | None]
  attack: Callable[..., Estimate]


class AttackResult(NamedTuple):
  """An estimate and the seconds it took."""

  name: str
  images: np.ndarray
  diagnostics: dict[str, Any]
  seconds: float


def run(
  attack: Attack,
  known: Known,
  *,
  seed: int,
  settings: Any = None,
  progress: Progress = lambda fraction, step: None,
) -> AttackResult:
  """Runs an attack on what it is allowed to know.

  Args:
    attack: a row of ``attacks.ATTACKS``.
    known: what the attacker has; of it the attack sees what its level allows.
    seed: of whatever it draws.
    settings: the attack's own ``Settings``; None for those it ships with.
    progress: called with the fraction done and the current step.

  Raises:
    ConfigError: if it cannot handle the scheme or lacks what it needs.
  """
  if reason := attack.refuses(known.spec):
    raise ConfigError(f"attack {attack.name} cannot handle this disguise: {reason}.")
  for need in attack.needs:
    if getattr(known, need) is None:
      raise ConfigError(f"attack {attack.name} needs {need} images, got none.")
  if attack.level == 1:
    known = dataclasses.replace(known, pairs=None)
  start = time.perf_counter()
  options = {} if settings is None else {"settings": settings}
  images, diagnostics = attack.attack(known, seed=seed, progress=progress, **options)
  seconds = time.perf_counter() - start
  height, width, channels = known.spec["image_shape"]
  expected = (len(known.targets), height, width, channels)
  if images.shape != expected or images.dtype != np.float32:
    raise TypeError(
      f"attack {attack.name} must return float32 {expected}, got {images.dtype} {images.shape}."
    )
  return AttackResult(attack.name, np.clip(images, 0, 255), diagnostics, seconds)


def constant_estimate(known: Known, **diagnostics: Any) -> Estimate:
  """Returns the only known original as the estimate of every target, or grey if there is none.

  Args:
    known: what the attacker has, with too few ``pairs`` to learn from.
    **diagnostics: of the estimate, besides ``pairs`` and ``warnings``.
  """
  assert known.pairs is not None
  originals = known.pairs[0]
  guess, shown = (originals[0], "that original") if len(originals) else (np.array(127.5), "grey")
  images = np.broadcast_to(guess, (len(known.targets), *known.spec["image_shape"]))
  warnings = [f"{len(originals)} pairs: nothing to learn from, the estimates are {shown}"]
  diagnostics = {"pairs": len(originals), **diagnostics, "warnings": warnings}
  return Estimate(images.astype(np.float32), diagnostics)
