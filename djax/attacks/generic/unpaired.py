"""A learned inverse without any pair: the attacker disguises public images under keys of his own, and learns from that.

After the inverse transformation network of arXiv:1912.04746. Where one key serves everybody, the attacker's key is the
owner's, and what he learns holds for the targets. Where each data set has a key of its own, it need not; so every
report says what the inverse does under the attacker's own key, where it must do well, and what it does under a fresh
one. A second inverse, over many keys, learns what no key hides: which rows of blocks are bright where they stay in
place.

An inverse is a ridge regression from the whole disguised image to the original, and a small network that sees the
disguised pixels and the energy of each row of each block and corrects it. Of large images it sees the mean row of each
block, which holds the block's mean whatever the matrix, and estimates small copies.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from djax import schemes
from djax.attacks.base import Attack, Estimate, Known, Progress
from djax.attacks.common import copies, learned
from djax.ops import metrics
from djax.schemes import Trait

__all__ = ["ATTACK", "Settings", "attack", "disguise", "learn"]

_HELD = 200
_TENTH = 10
_MARGIN = 0.5  # dB above the mean image that count as something that carries over
_BEST = 100.0  # dB; exact estimates would be infinite
_MOST = 4096  # values of an image that is seen and estimated in full
_SEEN = 1 << 26  # values of all images disguised for one inverse, at most


@dataclasses.dataclass(frozen=True)
class Settings:
  """Options, with the values it ships with."""

  keys: int = 64  # of the inverse that is to hold for any key
  images: int = 6000  # public ones seen, with several keys each under one of them
  network: learned.Settings = learned.USUAL


_SETTINGS = Settings()


def disguise(
  spec: Mapping[str, Any], images: np.ndarray, *, key_seed: int, seed: int
) -> np.ndarray:
  """Disguises images under a key of the attacker's own.

  Args:
    spec: ``SchemeSpec.to_dict()``.
    images: ``[n, H, W, C]`` uint8 or float on the 0..255 scale.
    key_seed: of the key; the same seed gives the same key.
    seed: of the noise.

  Returns:
    ``[n, H', W', C]`` float32.

  Security: for attacks alone. The key is made from a small number and protects nothing.
  """

  def read(label, n):
    return hashlib.shake_256(f"unpaired|{key_seed}|{label}".encode()).digest(n)

  scheme, rng = schemes.from_spec(spec), np.random.default_rng(seed)
  whole = np.clip(np.round(images), 0, 255).astype(np.uint8)
  shape = (len(images), *scheme.spec.disguised_shape)
  # As the owner exports.
  disguised = scheme.export(scheme.make_key(read), whole, lambda: rng.random(shape, np.float32))
  return np.asarray(disguised, np.float32)


def learn(
  spec: Mapping[str, Any],
  public: np.ndarray,
  *,
  key_seeds: Sequence[int],
  seed: int,
  progress: Progress = lambda fraction, step: None,
  settings: Settings = _SETTINGS,
) -> Callable[[np.ndarray], np.ndarray]:
  """Learns an inverse from public images disguised under the attacker's own keys.

  Args:
    spec: ``SchemeSpec.to_dict()`` of a scheme that the attack does not refuse.
    public: ``[m, H, W, C]`` uint8 or float on the 0..255 scale; m at least 10.
    key_seeds: of the keys, as for ``disguise``. With several, images are seen under one after the other.
    seed: of noise, parts for validation and the network.
    progress: called with the fraction done and the current step.
    settings: of images and training.

  Returns:
    ``inverse(disguised) -> estimates``: ``[t, H', W', C]`` to float32 ``[t, H, W, C]``.

  Raises:
    ValueError: for fewer than 10 images or no key.
  """
  if len(public) < 10 or not len(key_seeds):
    raise ValueError(
      f"learn: needs 10 public images and one key at least, got {len(public)} images and {len(key_seeds)} keys. "
      "Give more images of the same kind."
    )
  rng = np.random.default_rng(seed)
  many = len(key_seeds) > 1
  most = max(_TENTH, min(settings.images, _SEEN // public[0].size))
  count = most if many else min(len(public), most)
  drawn = np.concatenate([rng.permutation(len(public)) for _ in range(-(-count // len(public)))])
  drawn = drawn[:count]
  parts = np.array_split(drawn, min(len(key_seeds), count))
  progress(0.0, f"disguising under {len(parts)} own keys")
  seen = [
    _numbers(spec, disguise(spec, public[part], key_seed=key_seed, seed=seed + number))
    for number, (part, key_seed) in enumerate(zip(parts, key_seeds, strict=False))
  ]
  pixels, energy = (np.concatenate(both) for both in zip(*seen, strict=True))
  x = public if public[0].size <= _MOST else copies.small(public)
  shape = x.shape[1:]
  x = x[drawn].astype(np.float32).reshape(count, -1)
  # Validation is on other images and, if there are several keys, under other keys too.
  rows, out = drawn % _TENTH != 0, drawn % _TENTH == 0
  if many:
    key = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    late = key >= len(parts) - max(1, len(parts) // _TENTH)
    rows, out = rows & ~late, out & late
  flat, lengths = _Scaled(pixels), _Scaled(energy)
  predict = learned.learn(
    flat(pixels),
    lengths(energy),
    x,
    rows,
    out,
    seed=seed,
    progress=lambda fraction, step: progress(0.3 + 0.7 * fraction, step),
    settings=settings.network,
  )

  def inverse(disguised):
    if not len(disguised):
      return np.zeros((0, *public.shape[1:]), np.float32)
    pixels, energy = _numbers(spec, disguised)
    images = predict(flat(pixels), lengths(energy)).reshape(-1, *shape)
    return images if shape == public.shape[1:] else copies.resized(images, public.shape[1:3])

  return inverse


def attack(
  known: Known, *, seed: int, progress: Progress, settings: Settings = _SETTINGS
) -> Estimate:
  """Applies to the targets what was learnt under the attacker's own keys.

  Two inverses are learnt, under one key and over many. On held-out public images under yet another key it is measured
  which is better, and that one is used.

  Args:
    known: what the attacker has; used: ``public`` and ``targets``.
    seed: of keys, noise and networks.
    progress: called with the fraction done and the current step.
    settings: the attack's constants.

  Returns:
    Estimates; as diagnostics, each ``{"psnr", "ssim"}``, medians on held-out public images: ``own_key``, the
    first inverse under the key that it was learnt with (the positive control); ``fresh_key``, the same under another;
    ``many_keys``, the second under that other key; ``mean``, the mean public image. ``keys``: of the second.
    ``chosen``: ``one`` or ``many``. ``warnings``.
  """
  assert known.public is not None
  spec = known.spec
  images = known.public[np.random.default_rng(seed).permutation(len(known.public))]
  held = images[: min(_HELD, len(images) // 5)]
  images = images[len(held) :][: settings.images]
  words = np.random.SeedSequence(seed).generate_state(settings.keys + 2)
  own, fresh, *many = (int(word) for word in words)

  def learnt(key_seeds, done):
    report = lambda fraction, step: progress(done + fraction / 2, step)  # noqa: E731
    return learn(spec, images, key_seeds=key_seeds, seed=seed, progress=report, settings=settings)

  first, second = learnt([own], 0), learnt(many, 0.5)
  mine, other = (disguise(spec, held, key_seed=key, seed=seed + 1) for key in (own, fresh))
  scores = {
    "own_key": _score(held, first(mine)),
    "fresh_key": _score(held, first(other)),
    "many_keys": _score(held, second(other)),
    "mean": _score(held, np.repeat(images.mean(0, dtype=np.float32)[None], len(held), 0)),
  }
  psnr = {name: score["psnr"] for name, score in scores.items()}
  chosen, inverse = ("one", first) if psnr["fresh_key"] > psnr["many_keys"] else ("many", second)
  warnings = []
  if psnr["own_key"] < psnr["mean"] + _MARGIN:
    warnings.append(
      "nothing learnt even under the attacker's own key: what follows says nothing about fresh keys"
    )
  elif max(psnr["fresh_key"], psnr["many_keys"]) < psnr["mean"] + _MARGIN:
    warnings.append(
      "what was learnt under own keys does not carry over to a fresh one: no better than the mean public image"
    )
  if images[0].size > _MOST:
    warnings.append(
      f"learnt from the mean rows of blocks and in copies of {copies.SIDE} pixels a side, which are enlarged: no finer "
      "detail is looked for"
    )
  diagnostics = {**scores, "keys": settings.keys, "chosen": chosen, "warnings": warnings}
  return Estimate(inverse(np.asarray(known.targets)), diagnostics)


def _refuses(spec: Mapping[str, Any]) -> str | None:
  """Takes what one key disguises image by image."""
  traits = schemes.traits(spec)
  if Trait.IDENTITY in traits:
    return "there is nothing to invert; 'examiner' looks at the images as they are"
  if Trait.MIXED_IMAGES in traits:
    return "an encoding mixes several images under a mask drawn once; use 'clusters'"
  if Trait.TOKENS in traits:
    return "tokens are in another order in each image; use 'matching'"
  if Trait.BLOCKS in traits:
    return None
  return f"it disguises under own keys block by block, which {spec['scheme']!r} does not"


ATTACK = Attack(
  "unpaired",
  1,
  ("public",),
  "an inverse learnt under the attacker's own keys",
  _refuses,
  attack,
)


class _Scaled:
  """Brings numbers to about unit size, as those it is made with: float32 ``[n, F]``."""

  def __init__(self, numbers: np.ndarray):
    self._middle, self._spread = numbers.mean(0), np.float32(max(float(numbers.std()), 1e-3))

  def __call__(self, numbers: np.ndarray) -> np.ndarray:
    scaled = (numbers - self._middle) / self._spread
    return scaled.reshape(len(numbers), -1).astype(np.float32)


def _numbers(spec: Mapping[str, Any], y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns what is seen of disguised images: pixels, and the energy of rows of blocks, float32 ``[n, ...]`` each.

  An orthogonal matrix keeps the norm of each row of a block, and any matrix takes the mean row to a mean row.
  """
  count, height, width, channels = y.shape
  b = spec["block_size"]
  cut = y.astype(np.float32).reshape(count, height // b, b, width // b, b, channels)
  energy = np.sqrt(np.square(cut).mean(4)).reshape(count, -1)
  if int(np.prod(spec["image_shape"])) <= _MOST:
    return y, energy
  return cut.mean(2).reshape(count, -1), energy.reshape(count, height // b, b, -1).mean(2).reshape(
    count, -1
  )


def _score(originals: np.ndarray, estimates: np.ndarray) -> dict[str, float]:
  """Returns the medians of both measures."""
  pair = jnp.asarray(originals, jnp.float32), jnp.asarray(estimates, jnp.float32)
  ssim = metrics.ssim(*pair, filter_size=metrics.window(originals.shape))
  psnr = np.minimum(metrics.psnr(*pair), _BEST)
  return {"psnr": round(float(np.median(psnr)), 3), "ssim": round(float(np.median(ssim)), 4)}
