"""What encrypted units show without a pair: which are the most frequent one, and how often the others come (level 1).

No key changes whether two units are equal. So the attacker encrypts public images under a key of their own, and learns
from two facts of each unit what an image looks like: whether it is the most frequent unit of all, and the logarithm of
how often it comes. Moved blocks are put back first, by the means and covariances of these facts between positions.

Several views of an image are encrypted on grids that lie differently on it. Each view is estimated by itself; the
estimates tell how the views lie on the first one; then the facts of all of them are laid on each other, and what public
images look like under the same treatment is learnt. Where all views of a pixel lie in the most frequent unit, it is
flat: with every shift that a block allows, the outline comes out at pixel resolution.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial import distance

from djax import schemes
from djax.attacks.aes.units import commonest, image_of, names_of, units_of
from djax.attacks.base import Attack, Estimate, Known, Progress
from djax.attacks.common import assignment, learned
from djax.attacks.common import views as registered
from djax.attacks.generic import unpaired
from djax.schemes import Trait

__all__ = ["ATTACK", "Settings", "frequency"]

_TENTH = 10  # of the public images are held out
_SAME = 1e-6  # of the greatest score that an order can have: no gain
_OFTEN = 1e6  # units; frequencies are counts in so many
_MIDDLE, _WIDTH = 8.0, 4.0  # of the logarithm of a frequency, about
_CHUNK = 500


@dataclasses.dataclass(frozen=True)
class Settings:
  """Options, with the values it ships with."""

  images: int = 6000  # public ones learnt from at most, fewer where they are large
  numbers: int = 1 << 24  # values of such images at most
  views: int = 1 << 27  # values of all views that are made of them at most
  network: learned.Settings = learned.USUAL

  def first(self, images: np.ndarray) -> np.ndarray:
    """Returns those of some images that are learnt from."""
    return images[: min(self.images, max(1, self.numbers // max(1, images[:1].size)))]


_SETTINGS = Settings()


class _Counts(NamedTuple):
  """Of the units of a data set: the most frequent one, all of them, sorted, and the logarithms of their counts."""

  common: np.ndarray
  names: np.ndarray
  logarithms: np.ndarray


def frequency(
  known: Known, *, seed: int, progress: Progress, settings: Settings = _SETTINGS
) -> Estimate:
  """Draws each target from what units show: the most frequent ones, and how often others come, in all its views.

  Without public images the most frequent unit is taken as black and the others as grey, and view 0 alone is used.

  Args:
    known: what the attacker has; used: ``disguised``, and ``public`` and ``views`` where given.
    seed: of the attacker's key, of the views of public images and of the networks.
    progress: called with the fraction done and the current step.
    settings: the attack's constants.

  Returns:
    Estimates; as diagnostics ``flat``, the share of the targets' units that are the most frequent one; ``repeated``,
    the share of the others whose unit comes more than once in all that is counted; ``distinct``, the number of
    different units over those counted; ``positions``, the original position found for each disguised one, or None
    where blocks stay in place; ``views`` of a target that were used.
  """
  spec = known.spec
  progress(0.0, "counting units")
  names = names_of(units_of(settings.first(known.disguised), spec), spec)
  counts = _count(names, spec)
  targets = names_of(units_of(known.targets, spec), spec)
  flat = targets == counts.common
  repeated = np.isin(targets[~flat], counts.names[counts.logarithms > counts.logarithms.min()])
  diagnostics: dict[str, Any] = {
    "flat": float(flat.mean()) if flat.size else 0.0,
    "repeated": float(repeated.mean()) if repeated.size else 0.0,
    "distinct": len(counts.names),
    "positions": None,
    "views": 1,
    "warnings": [],
  }
  moved = Trait.MOVED in schemes.traits(spec)
  if known.public is None or len(known.public) < _TENTH:
    if moved:
      diagnostics["warnings"].append("no public images: blocks stay where they are")
    values = np.where(flat, 0.0, 127.5)[..., None].repeat(spec["unit_pixels"], -1)
    return Estimate(image_of(values, spec), diagnostics)
  public = settings.first(known.public)
  own = functools.partial(_own, spec, seed=seed)
  theirs = own(public)
  their_counts = _count(theirs, spec)
  back = np.arange(names.shape[1])
  if moved:
    progress(0.05, "placing blocks")
    places = _place(_facts(names, counts), _facts(theirs, their_counts))
    diagnostics["positions"] = places.tolist()
    back = np.argsort(places)

  def seen(disguised):
    return _facts(names_of(units_of(disguised, spec), spec), counts)[:, back]

  def shown(images):
    return _facts(own(images), their_counts)

  facts = seen(known.targets)
  rest = functools.partial(_learn, seed=seed, settings=settings)
  if known.views is None:
    inverse = rest(shown(public), public, progress=_part(progress, 0.1, 1.0))
    return Estimate(inverse(facts), diagnostics)
  # Of each public image as many views are made, so that what is learnt from is what will be given.
  further, options, distinct = known.views
  count = 1 + further.shape[1]
  diagnostics["views"] = count
  few = public[: max(_TENTH, settings.views // (count * public[0].size))]
  make = functools.partial(registered.draw, count=count, views=known.views, seed=seed)
  one = np.arange(len(few)) % count  # of each image a view, for the map from one of them
  progress(0.1, "making views of public images")
  picked = np.concatenate([made[np.arange(len(made)), one[part]] for part, made in make(few)])
  single = rest(shown(picked), picked, progress=_part(progress, 0.2, 0.5))
  ways = registered.moves(spec["image_shape"], options)
  lay = functools.partial(_laid, inverse=single, ways=ways, distinct=distinct, spec=spec)
  progress(0.5, "laying views on each other")
  own_layers = []
  for _, made in make(few):
    theirs = shown(made.reshape(-1, *made.shape[2:]))
    own_layers.append(lay(theirs.reshape(*made.shape[:2], *theirs.shape[1:])))
  inverse = rest(np.concatenate(own_layers), few, progress=_part(progress, 0.6, 1.0))
  others = seen(further.reshape(-1, *known.targets.shape[1:]))
  every = np.concatenate([facts[:, None], others.reshape(len(facts), -1, *facts.shape[1:])], 1)
  return Estimate(inverse(lay(every)), diagnostics)


def _refuses(spec: Mapping[str, Any]) -> str | None:
  """Takes encrypted units alone."""
  if Trait.UNITS in schemes.traits(spec):
    return None
  return f"{spec['scheme']!r} encrypts no units; this is for 'aes'"


ATTACK = Attack(
  "frequency", 1, (), "what the frequencies of encrypted units draw", _refuses, frequency
)


def _part(progress: Progress, low: float, high: float) -> Progress:
  """Reports the progress of a part."""
  return lambda fraction, step: progress(low + (high - low) * fraction, step)


def _own(spec: Mapping[str, Any], images: np.ndarray, *, seed: int) -> np.ndarray:
  """Returns the names of units of images under the attacker's own key, blocks in place: uint64 ``[n, P, C, s]``."""
  still = {**spec, "permute": False}
  return names_of(units_of(unpaired.disguise(still, images, key_seed=seed, seed=seed), spec), spec)


def _count(names: np.ndarray, spec: Mapping[str, Any]) -> _Counts:
  """Counts units."""
  every, counts = np.unique(names, return_counts=True)
  return _Counts(commonest(names, spec), every, np.log(counts * (_OFTEN / names.size)))


def _facts(names: np.ndarray, counts: _Counts) -> np.ndarray:
  """Returns what no key changes of each unit: whether it is the commonest, and how frequent: float32 ``[..., 2]``."""
  at = np.minimum(np.searchsorted(counts.names, names), len(counts.names) - 1)
  known = counts.names[at] == names
  often = np.where(known, counts.logarithms[at], counts.logarithms.min())
  flat = np.where(names == counts.common, 1.0, -1.0)
  return np.stack([flat, (often - _MIDDLE) / _WIDTH], -1).astype(np.float32)


def _place(disguised: np.ndarray, public: np.ndarray) -> np.ndarray:
  """Returns for each disguised position the original one with the most similar facts ``[n, P, C, s, 2]``.

  First by their means alone; then, as positions with similar means are many, by quadratic assignment of the products
  of means and of the covariances between positions.
  """
  shares = [facts[..., 0].mean(0).reshape(facts.shape[1], -1) for facts in (disguised, public)]
  start = assignment.best_match(-distance.cdist(*shares, "sqeuclidean"))
  a, b = _layers(disguised), _layers(public)
  perm = assignment.climb(a, b, start, symmetric=True)
  least = _SAME * float(np.linalg.norm(a) * np.linalg.norm(b))
  return assignment.exchange(a, b, perm, least)


def _layers(facts: np.ndarray) -> np.ndarray:
  """Returns products of means and covariances between positions, float32 ``[L, P, P]``."""
  flat = facts.reshape(*facts.shape[:2], -1)
  layers = []
  for number in range(flat.shape[-1]):
    x = flat[..., number]
    mean = x.mean(0)
    layers += [np.outer(mean, mean), (x - mean).T @ (x - mean) / len(x)]
  return np.stack(layers).astype(np.float32)


def _learn(
  facts: np.ndarray,
  images: np.ndarray,
  *,
  seed: int,
  settings: Settings,
  progress: Progress,
) -> Callable[[np.ndarray], np.ndarray]:
  """Learns ``facts -> images`` from public images."""
  out = np.arange(len(images)) % _TENTH == 0
  predict = learned.learn(
    facts.reshape(len(facts), -1),
    None,
    images.astype(np.float32).reshape(len(images), -1),
    ~out,
    out,
    seed=seed,
    progress=progress,
    settings=settings.network,
  )
  size = facts[0].size
  return lambda facts: predict(facts.reshape(-1, size)).reshape(-1, *images.shape[1:])


def _laid(
  facts: np.ndarray,
  *,
  inverse: Callable[[np.ndarray], np.ndarray],
  ways: registered.Moves,
  distinct: bool,
  spec: Mapping[str, Any],
) -> np.ndarray:
  """Lays what all views show on the first one: float32 ``[n, H * W, C, 4]``.

  The means of single estimates and of both facts, and whether any view shows a pixel in the most frequent unit.
  """
  count = facts.shape[1]
  estimates = inverse(facts.reshape(-1, *facts.shape[2:]))
  height, width, channels = estimates.shape[1:]
  estimates = estimates.reshape(-1, count, height, width, channels)
  chosen = registered.register(estimates, ways, distinct=distinct)
  scaled = (estimates - learned.GREY) / learned.SPREAD
  pixels = [_pixels(facts[..., number], spec) for number in range(facts.shape[-1])]
  layers = [
    registered.bring_back(layer.reshape(-1, count, height * width, channels), chosen, ways)
    for layer in (scaled, *pixels)
  ]
  layers.append((layers[1] > -1).astype(np.float32))
  return np.stack(layers, -1)


def _pixels(fact: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
  """Gives each pixel the fact of its unit: ``[n, K, P, C, s]`` to float32 ``[n * K, H, W, C]``."""
  units = fact.reshape(-1, *fact.shape[2:])[..., None]
  return image_of(np.broadcast_to(units, (*units.shape[:-1], spec["unit_pixels"])), spec)
