"""Encrypted units: the dictionary of known pairs (level 2) and frequency analysis (level 1).

Units are sliced as the cipher slices them (docs/key-format.md, section 6): block by block, in a block channel by
channel, in a channel row by row, every ``unit_pixels`` bytes one unit. ECB makes equal units equal wherever one key is
used; where each position has a key, every position has a dictionary of its own. Host NumPy.
Source: the codebook attack of DisguisedNets, doi:10.1145/3609506.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import ndimage, optimize
from scipy.spatial import distance

from djax import schemes
from djax.attacks.base import Attack, Estimate, Known, Progress
from djax.attacks.common import statistics
from djax.attacks.common.statistics import Layout
from djax.host import blockwise
from djax.schemes import Trait

__all__ = ["CODEBOOK", "FREQUENCY", "Settings", "codebook", "frequency", "units_of"]

_SAMPLES = 1 << 25  # units compared in all to place the blocks
_ROUNDS = 10  # of placing blocks, and of choosing among candidates
_SIGMA = 0.8  # of the window over neighbours that fills a hole, in pixels
_PRIOR = 0.05  # weight of the mean image beside the neighbours'
_RIDGE = 10.0
_CANDIDATES = 8  # of one cipher, the most frequent ones
_USUAL = (
  0.99  # share of known units that are as near to their neighbours as one must be to be believed
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Options, with the values it ships with."""

  images: int = 2000  # learnt from at most, fewer where they are large
  numbers: int = 1 << 23  # values of such images at most
  pixels: int = 1 << 20  # of targets worked on at a time

  def first(self, images: np.ndarray) -> np.ndarray:
    """Returns those of some images that are learnt from."""
    return images[: min(self.images, max(1, self.numbers // max(1, images[:1].size)))]


_SETTINGS = Settings()


def units_of(images: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
  """Slices images into the units of the cipher, original or disguised alike.

  Args:
    images: ``[n, H, W, C]`` or ``[n, H', W', C]``, whole numbers of 0..255 in any dtype.
    spec: of an ``aes`` scheme.

  Returns:
    uint8 ``[n, P, C, b * b / u, u]``.
  """
  return _slices(np.rint(images).astype(np.uint8), spec)


def codebook(
  known: Known, *, seed: int, progress: Progress, settings: Settings = _SETTINGS
) -> Estimate:
  """Looks the targets' units up in the dictionary that the known pairs fill.

  Units of one or two pixels are averages that collide: of the plain units seen with a cipher the one that goes best
  with its neighbours is taken, or none if all are far from them. What is missing gets the mean of its neighbours, with
  a little of the silhouette that ``frequency`` would draw.

  Of ``known``, ``pairs`` are used, and ``public`` for the silhouette where given. Nothing is drawn.

  Returns:
    Estimates; as diagnostics ``pairs``; ``entries`` of the dictionary; ``found``, the share of the targets' units
    whose cipher is in it, by collision or not; ``positions``, the original position found for each disguised one, or
    None where blocks stay in place.
  """
  del seed
  spec = known.spec
  assert known.pairs is not None
  originals, disguised = known.pairs
  plain, cipher = units_of(originals, spec), units_of(disguised, spec)
  warnings, places = [], None
  if not len(originals):
    warnings.append("0 pairs: the dictionary is empty")
  elif Trait.MOVED in schemes.traits(spec):
    progress(0.1, "placing blocks")
    places = _place(_codes(plain), _codes(cipher), spec)
    cipher = cipher[:, np.argsort(places)]
  progress(0.5, "looking units up")
  book = _dictionary(_names(cipher, spec), plain)
  silhouette, common = _learn(_originals(known, settings), spec)
  few = plain[: len(settings.first(originals))]
  far = _far(few, silhouette(_codes(few) == common), spec) if len(few) else 0.0
  images = np.empty((len(known.targets), *spec["image_shape"]), np.float32)
  covered = 0.0
  step = max(1, settings.pixels // images[:1].size) if images.size else 1
  for start in range(0, len(images), step):
    part = slice(start, start + step)
    targets = units_of(known.targets[part], spec)
    targets = targets if places is None else targets[:, np.argsort(places)]
    units, exists, held = _look_up(_names(targets, spec), book)
    mean = silhouette((_codes(units[..., 0, :]) == common) & held)
    images[part] = _read(units, exists, held, mean, far, spec)
    covered += held.mean((1, 2, 3)).sum() / len(images)
  return Estimate(
    images,
    {
      "pairs": len(originals),
      "entries": len(book[0]),
      "found": float(covered),
      "positions": None if places is None else places.tolist(),
      "warnings": warnings,
    },
  )


def frequency(
  known: Known, *, seed: int, progress: Progress, settings: Settings = _SETTINGS
) -> Estimate:
  """Reads the most frequent unit as the flat one, and what it leaves bare as a silhouette.

  Public images tell which unit is the most frequent one, where it stands how often (which places moved blocks), and
  what an image looks like of which these units are flat and those are not: a ridge regression from that map to pixels.
  Without public images the flat unit is taken as black and the others as grey.

  Of ``known``, ``disguised`` is used, and ``public`` where given. Nothing is drawn.

  Returns:
    Estimates; as diagnostics ``flat``, the share of the targets' units that are the most frequent one; ``distinct``,
    the number of different units over those counted; ``positions`` as for ``codebook``.
  """
  del seed
  spec = known.spec
  progress(0.1, "counting units")
  names = _names(units_of(settings.first(known.disguised), spec), spec)
  common = _commonest(names, spec)
  flat = _names(units_of(known.targets, spec), spec) == common  # [t, P, C, s]
  diagnostics: dict[str, Any] = {
    "flat": float(flat.mean()) if flat.size else 0.0,
    "distinct": len(np.unique(names)),
    "positions": None,
    "warnings": [],
  }
  permuted = Trait.MOVED in schemes.traits(spec)
  if known.public is None or not len(known.public):
    if permuted:
      diagnostics["warnings"].append("no public images: blocks stay where they are")
    values = np.where(flat, 0.0, 127.5)[..., None].repeat(spec["unit_pixels"], -1)
    return Estimate(_image_of(values, spec), diagnostics)
  public = settings.first(known.public)
  silhouette, plain_common = _learn(public.astype(np.float32), spec)
  if permuted:
    progress(0.3, "placing blocks")
    seen = _codes(units_of(public, spec)) == plain_common
    places = _place_shares(seen, names == common)
    diagnostics["positions"] = places.tolist()
    flat = flat[:, np.argsort(places)]
  progress(0.5, "drawing silhouettes")
  return Estimate(silhouette(flat), diagnostics)


def _refuses(spec: Mapping[str, Any]) -> str | None:
  """Takes encrypted units alone."""
  if Trait.UNITS in schemes.traits(spec):
    return None
  return f"{spec['scheme']!r} encrypts no units; this is for 'aes'"


CODEBOOK = Attack("codebook", 2, ("pairs",), "dictionary of encrypted units", _refuses, codebook)
FREQUENCY = Attack("frequency", 1, (), "most frequent encrypted units", _refuses, frequency)


def _codes(units: np.ndarray) -> np.ndarray:
  """Names units by 64 bits: as they are up to 8 bytes, mixed above (two in 2^64 that differ get one name)."""
  size = units.shape[-1]
  words = np.ascontiguousarray(units).view(f"<u{min(size, 8)}").astype(np.uint64)
  return words[..., 0] if size <= 8 else _mix(_mix(words[..., 0]) + words[..., 1])


def _names(units: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
  """Names units ``[n, P, C, s, u]`` by code, and by position where each has its own key: uint64 ``[n, P, C, s]``."""
  codes = _codes(units)
  if not spec["position_keys"]:
    return codes
  positions = np.arange(codes.shape[1], dtype=np.uint64)[:, None, None]
  return _mix(_mix(codes) + positions)


def _mix(words: np.ndarray) -> np.ndarray:
  """Scrambles uint64 one to one (the finaliser of SplitMix64, doi:10.1145/2660193.2660195)."""
  words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return words ^ (words >> np.uint64(31))


def _dictionary(names: np.ndarray, plain: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns sorted distinct names ``[d]`` and the plain units seen with each, most frequent first.

  Units are uint8 ``[d, _CANDIDATES, u]`` with a mask ``[d, _CANDIDATES]`` of those that exist.
  """
  units = plain.reshape(-1, plain.shape[-1])
  names, codes = names.reshape(-1), _codes(units)
  order = np.lexsort((codes, names))  # by name, then by plain unit
  names, codes = names[order], codes[order]
  starts = np.flatnonzero(_changes(names) | _changes(codes))
  counts = np.diff(starts, append=len(names))  # of each pair of name and plain unit
  ranked = starts[np.lexsort((-counts, names[starts]))]
  first = np.flatnonzero(_changes(names[ranked]))
  at = first[:, None] + np.arange(_CANDIDATES)
  exists = at < np.append(first[1:], len(ranked))[:, None]
  at = np.where(exists, at, first[:, None])
  return names[ranked[first]], units[order[ranked[at]]], exists


def _changes(values: np.ndarray) -> np.ndarray:
  """Whether each of sorted values differs from the one before."""
  return np.concatenate([np.ones(min(1, len(values)), bool), values[1:] != values[:-1]])


def _look_up(
  names: np.ndarray, book: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the candidates of named units, ``[..., _CANDIDATES, u]``, which exist, and which names are in the book."""
  entries, units, exists = book
  if not len(entries):
    blank = np.zeros((*names.shape, 1, units.shape[-1]), np.uint8)
    return blank, np.zeros(blank.shape[:-1], bool), np.zeros(names.shape, bool)
  at = np.minimum(np.searchsorted(entries, names), len(entries) - 1)
  return units[at], exists[at], entries[at] == names


def _read(
  units: np.ndarray,
  exists: np.ndarray,
  held: np.ndarray,
  mean: np.ndarray,
  far: float,
  spec: Mapping[str, Any],
) -> np.ndarray:
  """Returns the images that candidates ``[t, P, C, s, _CANDIDATES, u]`` make up, where held, and ``mean`` elsewhere.

  The most frequent candidate comes first; then, where ciphers collide, a few times over the one nearest to what the
  neighbours say. One that is farther from it than units usually are is taken as a unit not in the dictionary.
  """
  chosen, trusted = units[..., 0, :], held
  for _ in range(_ROUNDS if spec["unit_pixels"] <= 2 else 0):
    near = _slices(_neighbours(chosen, trusted, mean, spec), spec)
    apart = np.where(exists, ((units - near[..., None, :]) ** 2).mean(-1), np.inf)
    best = apart.argmin(-1)[..., None]
    chosen = np.take_along_axis(units, best[..., None], -2)[..., 0, :]
    trusted = held & (np.take_along_axis(apart, best, -1)[..., 0] <= far)
  here = _image_of(np.broadcast_to(trusted[..., None], chosen.shape), spec)
  return np.where(here > 0, _image_of(chosen, spec), _neighbours(chosen, trusted, mean, spec))


def _place(plain: np.ndarray, cipher: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
  """Returns for each disguised position the original one, from codes ``[k, P, C, s]``.

  First by mutual information between the units of an original and a disguised position; as the entropies sum to the
  same for every assignment, ``sum n log n`` over their joint counts decides. With one key, then by agreement with the
  dictionary of the blocks as placed, until nothing moves.
  """
  positions = plain.shape[1]
  plain, cipher = (np.moveaxis(a, 1, 0).reshape(positions, -1) for a in (plain, cipher))
  plain, cipher = (np.unique(a, return_inverse=True)[1].reshape(a.shape) for a in (plain, cipher))
  count = max(1, min(plain.shape[1], _SAMPLES // positions**2))
  few = slice(None, None, -(-plain.shape[1] // count))
  kinds = cipher.max() + 1
  score = np.empty((positions, positions))
  for p in range(positions):
    joint = np.sort(plain[p, few] * kinds + cipher[:, few], -1)
    score[p] = _n_log_n(joint)
  places = _assign(score)
  for _ in range(0 if spec["position_keys"] else _ROUNDS):
    moved = cipher[np.argsort(places)]
    joint, counts = np.unique(plain * kinds + moved, return_counts=True)
    best = np.lexsort((-counts, joint // kinds))
    best = joint[best[_changes(joint[best] // kinds)]]
    expected = (best % kinds)[plain]  # every plain unit has an entry, and entries are in its order
    score = np.stack([(row == cipher).mean(-1) for row in expected])
    before, places = places, _assign(score)
    if (places == before).all():
      break
  return places


def _n_log_n(joint: np.ndarray) -> np.ndarray:
  """Sums ``n log n`` over the counts n of equal values in each sorted row."""
  rows, length = joint.shape
  starts = np.flatnonzero(
    np.concatenate([np.ones((rows, 1), bool), joint[:, 1:] != joint[:, :-1]], 1)
  )
  counts = np.diff(starts, append=rows * length)
  return np.bincount(starts // length, counts * np.log(counts), rows)


def _assign(score: np.ndarray) -> np.ndarray:
  """Returns for each column its row in the assignment of the greatest sum."""
  return np.argsort(optimize.linear_sum_assignment(score, maximize=True)[1])


def _commonest(names: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
  """Returns the most frequent name, of all or of each position: broadcasts against ``[n, P, C, s]``."""
  axes = range(names.shape[1]) if spec["position_keys"] else [slice(None)]
  winners = []
  for position in axes:
    values, counts = np.unique(names[:, position], return_counts=True)
    winners.append(values[np.argmax(counts)])
  return np.asarray(winners, np.uint64)[:, None, None]


def _place_shares(seen: np.ndarray, flat: np.ndarray) -> np.ndarray:
  """Returns for each disguised position the original one with the most similar shares of flat units."""
  shares, others = (a.mean(0).reshape(a.shape[1], -1) for a in (seen, flat))
  return _assign(-distance.cdist(shares, others, "sqeuclidean"))


def _originals(known: Known, settings: Settings) -> np.ndarray:
  """Returns all originals at hand, float32 ``[m, H, W, C]``, or a grey one."""
  grey = np.full((1, *known.spec["image_shape"]), 127.5, np.float32)
  mine = [known.public] if known.pairs is None else [known.pairs[0], known.public]
  images = [settings.first(a).astype(np.float32) for a in mine if a is not None and len(a)]
  return np.concatenate(images or [grey])


def _learn(
  originals: np.ndarray, spec: Mapping[str, Any]
) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
  """Learns by ridge regression what an image looks like of which these units are the commonest and those are not.

  Returns:
    A function from maps ``[t, P, C, s]`` to float32 images, and the code of the commonest unit, or of each position's.
  """
  codes = _codes(units_of(originals, spec))
  common = _commonest(codes, spec)
  maps = (codes == common).reshape(len(codes), -1)
  centre, mean = maps.mean(0), originals.mean(0)
  x = maps - centre
  y = (originals - mean).reshape(len(originals), -1)
  # In dual form, as images are fewer than values: X' (X X' + a I)^-1 Y.
  weights = np.linalg.solve(x @ x.T + _RIDGE * np.eye(len(x)), y)

  def silhouette(flat):
    estimates = ((flat.reshape(len(flat), -1) - centre) @ x.T) @ weights
    return (estimates.reshape(-1, *mean.shape) + mean).astype(np.float32)

  return silhouette, common


def _slices(images: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
  """Slices like ``units_of``, dtype unchanged."""
  layout = _layout(spec)
  whole = layout.units(blockwise.pad_to_blocks(images, block_size=layout.block_size))
  u = spec["unit_pixels"]
  slices = layout.block_size**2 // u
  return whole.reshape(len(images), layout.positions, layout.channels, slices, u)


def _image_of(units: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
  """Puts units ``[n, P, C, s, u]`` back into float32 images of the original size."""
  layout = _layout(spec)
  whole = layout.images(units.reshape(len(units), *layout.shape).astype(np.float32))
  return whole[:, : spec["image_shape"][0], : spec["image_shape"][1]]


def _layout(spec: Mapping[str, Any]) -> Layout:
  """Returns the layout of blocks that are cut into channels, and these into rows."""
  return statistics.layout_of(spec)._replace(groups="channel")


def _far(plain: np.ndarray, mean: np.ndarray, spec: Mapping[str, Any]) -> float:
  """Returns the squared distance from their neighbours that nearly all units of the known originals keep."""
  near = _slices(_neighbours(plain, np.ones(plain.shape[:-1], bool), mean, spec), spec)
  return float(np.quantile(((plain - near) ** 2).mean(-1), _USUAL))


def _neighbours(
  units: np.ndarray, trusted: np.ndarray, mean: np.ndarray, spec: Mapping[str, Any]
) -> np.ndarray:
  """Returns for each pixel the weighted mean of the trusted ones around it and of the mean image."""
  mask = np.broadcast_to(trusted[..., None], units.shape)
  sigma = (0, _SIGMA, _SIGMA, 0)
  weight = ndimage.gaussian_filter(_image_of(mask, spec), sigma)
  near = ndimage.gaussian_filter(_image_of(units * mask, spec), sigma)
  return (near + _PRIOR * mean) / (weight + _PRIOR)
