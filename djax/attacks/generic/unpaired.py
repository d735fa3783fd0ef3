"""A learned inverse without any pair: the attacker disguises public images under keys of his own, and learns from that.

After the inverse transformation network of arXiv:1912.04746. Where one key serves everybody, the attacker's key is the
owner's, and what he learns holds for the targets. Where each data set has a key of its own, it need not; so every
report says what the inverse does under the attacker's own key, where it must do well, and what it does under a fresh
one. A second inverse, over many keys, learns what no key hides: which rows of blocks are bright where they stay in
place.

An inverse is a ridge regression from the whole disguised image to the original, and a small network that sees the
disguised pixels and the energy of each row of each block and corrects it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax import schemes
from djax.attacks.base import Attack, Estimate, Known
from djax.host import samplers
from djax.ops import metrics
from djax.schemes import Trait

__all__ = ["ATTACK", "attack", "disguise", "learn", "refuses"]

_KEYS = 64  # of the inverse that is to hold for any
_ROWS = 6000  # public images seen, one key each
_HELD = 200
_TENTH = 10
_RIDGES = 10.0 ** np.arange(-4, 3)
_HIDDEN = 512
_STEPS = 1200
_PIXELS = 1 << 27  # seen in training at most, and so its time
_BATCH = 64
_RATE = 1e-3
_DECAY = 1e-2
_GREY, _SPREAD = 127.5, 64.0
_CHUNK = 512
_MARGIN = 0.5  # dB above the mean image that count as something that carries over
_BEST = 100.0  # dB; exact estimates would be infinite

Progress = Callable[[float, str], None]


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

  return _disguise(schemes.from_spec(spec), read, images, np.random.default_rng(seed))


def learn(
  spec: Mapping[str, Any],
  public: np.ndarray,
  *,
  key_seeds: Sequence[int],
  seed: int,
  progress: Progress = lambda fraction, word: None,
) -> Callable[[np.ndarray], np.ndarray]:
  """Learns an inverse from public images disguised under the attacker's own keys.

  Args:
    spec: ``SchemeSpec.to_dict()`` of a scheme that ``refuses`` takes.
    public: ``[m, H, W, C]`` uint8 or float on the 0..255 scale; m at least 10.
    key_seeds: of the keys, as for ``disguise``. With several, images are seen under one after the other.
    seed: of noise, parts for validation and the network.
    progress: told how far it is.

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
  count = min(len(public), _ROWS) if len(key_seeds) == 1 else _ROWS
  rows = np.concatenate([rng.permutation(len(public)) for _ in range(-(-count // len(public)))])
  parts = np.array_split(rows[:count], min(len(key_seeds), count))
  rows = rows[:count]
  progress(0.0, f"disguising under {len(parts)} own keys")
  y = np.concatenate(
    [
      disguise(spec, public[part], key_seed=key_seed, seed=seed + number)
      for number, (part, key_seed) in enumerate(zip(parts, key_seeds, strict=False))
    ]
  )
  x = public[rows].astype(np.float32).reshape(count, -1)
  # Validation is on other images and, if there are several keys, under others too.
  other = rows % _TENTH == 0
  key = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
  late = key >= len(parts) - max(1, len(parts) // _TENTH) if len(parts) > 1 else other
  rows, out = ~other & (~late | (len(parts) == 1)), other & late
  features = _Features(spec, y)
  linear = _linear(features.flat(y), x, rows, out)
  progress(0.3, "training the network")
  correct = _train(features, y, x, linear, rows, out, seed, progress)

  def inverse(disguised):
    found = [correct(disguised[i : i + _CHUNK]) for i in range(0, len(disguised), _CHUNK)]
    flat = np.concatenate(found) if found else np.zeros((0, x.shape[1]), np.float32)
    return np.clip(flat, 0, 255).reshape(-1, *public.shape[1:]).astype(np.float32)

  return inverse


def attack(known: Known, *, seed: int, progress: Progress) -> Estimate:
  """Applies to the targets what was learnt under the attacker's own keys.

  Two inverses are learnt, under one key and over many. On held-out public images under yet another key it is measured
  which is better, and that one is used.

  Args:
    known: ``public`` and ``targets`` are used.
    seed: of the keys, the noise and the networks.
    progress: told how far it is.

  Returns:
    The estimates. Diagnostics, each ``{"psnr", "ssim"}``, medians on held-out public images: ``own_key``, the
    first inverse under the key that it was learnt with (the positive control); ``fresh_key``, the same under another;
    ``many_keys``, the second under that other key; ``mean``, the mean public image. ``keys``: of the second.
    ``chosen``: ``one`` or ``many``. ``warnings``.
  """
  assert known.public is not None
  spec = known.spec
  images = known.public[np.random.default_rng(seed).permutation(len(known.public))]
  held = images[: min(_HELD, len(images) // 5)]
  images = images[len(held) :][:_ROWS]
  own, fresh, *many = (int(word) for word in np.random.SeedSequence(seed).generate_state(_KEYS + 2))
  first = learn(spec, images, key_seeds=[own], seed=seed, progress=lambda f, w: progress(f / 2, w))
  second = learn(
    spec, images, key_seeds=many, seed=seed, progress=lambda f, w: progress(0.5 + f / 2, w)
  )
  mine, other = (disguise(spec, held, key_seed=key, seed=seed + 1) for key in (own, fresh))
  found = {
    "own_key": _score(held, first(mine)),
    "fresh_key": _score(held, first(other)),
    "many_keys": _score(held, second(other)),
    "mean": _score(held, np.repeat(images.mean(0, dtype=np.float32)[None], len(held), 0)),
  }
  chosen = "one" if found["fresh_key"]["psnr"] > found["many_keys"]["psnr"] else "many"
  warnings = []
  if found["own_key"]["psnr"] < found["mean"]["psnr"] + _MARGIN:
    warnings.append(
      "nothing learnt even under the attacker's own key: what follows says nothing about fresh keys"
    )
  elif (
    max(found[way]["psnr"] for way in ("fresh_key", "many_keys")) < found["mean"]["psnr"] + _MARGIN
  ):
    warnings.append(
      "what was learnt under own keys does not carry over to a fresh one: no better than the mean public image"
    )
  inverse = first if chosen == "one" else second
  diagnostics = {**found, "keys": _KEYS, "chosen": chosen, "warnings": warnings}
  return Estimate(inverse(np.asarray(known.targets)), diagnostics)


def refuses(spec: Mapping[str, Any]) -> str | None:
  """Takes what one key disguises image by image.

  Args:
    spec: ``SchemeSpec.to_dict()``.

  Returns:
    Why not, or None.
  """
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
  refuses,
  attack,
)


class _Network(nn.Module):
  """Corrects estimates by dense layers on the whole image."""

  outputs: int

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    x = nn.gelu(nn.Dense(_HIDDEN)(features))
    x = x + nn.gelu(nn.Dense(_HIDDEN)(nn.LayerNorm()(x)))
    return nn.Dense(self.outputs, kernel_init=nn.initializers.zeros)(x)


class _Features:
  """Turns disguised images into rows of numbers of about unit size: pixels, and with them the energy of rows."""

  def __init__(self, spec: Mapping[str, Any], y: np.ndarray):
    self._block = spec["block_size"]
    self._middle, self._spread = y.mean(0), max(float(y.std()), 1e-3)
    energy = self._energy(y)
    self._low, self._high = energy.mean(0), np.float32(max(float(energy.std()), 1e-3))

  def flat(self, y: np.ndarray) -> np.ndarray:
    """Returns pixels, float32 ``[n, H' * W' * C]``."""
    return ((y - self._middle) / self._spread).reshape(len(y), -1).astype(np.float32)

  def all(self, y: np.ndarray) -> np.ndarray:
    """Returns pixels and energies, float32 ``[n, F]``."""
    return np.concatenate([self.flat(y), (self._energy(y) - self._low) / self._high], 1)

  def _energy(self, y):
    count, height, width, channels = y.shape
    cut = y.astype(np.float32).reshape(count, height, width // self._block, self._block, channels)
    return np.sqrt(np.square(cut).mean(3)).reshape(count, -1)


def _disguise(
  scheme: schemes.Scheme, read: samplers.Reader, images: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Disguises under the key that a reader makes, as the owner exports."""
  images = np.clip(np.round(images), 0, 255).astype(np.uint8)
  shape = (len(images), *scheme.spec.disguised_shape)
  disguised = scheme.export(scheme.make_key(read), images, lambda: rng.random(shape, np.float32))
  return np.asarray(disguised, np.float32)


def _linear(
  seen: np.ndarray, wanted: np.ndarray, rows: np.ndarray, out: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns the ridge regression that does best on held-out rows."""
  middle, mean = seen[rows].mean(0), wanted[rows].mean(0)
  x = (seen[rows] - middle).astype(np.float64)
  wide = x.shape[1] > x.shape[0]
  energy, axes = np.linalg.eigh(x @ x.T if wide else x.T @ x)
  energy = np.maximum(energy, 0)
  onto = axes.T @ (wanted[rows] - mean if wide else x.T @ (wanted[rows] - mean))
  unit = max(float(energy.mean()), 1e-9)
  if wide:
    axes = x.T @ axes
  # On the axes a ridge only scales, so held-out rows are turned once for all ridges.
  turned, target = ((seen[out] - middle) @ axes).astype(np.float32), wanted[out] - mean

  def error(ridge):
    shown = turned @ (onto / (energy + ridge * unit)[:, None]).astype(np.float32)
    return float(np.square(shown - target).mean())

  ridge = min(_RIDGES, key=error)
  matrix = (axes @ (onto / (energy + ridge * unit)[:, None])).astype(np.float32)
  return lambda new: (new - middle) @ matrix + mean


def _train(
  features: _Features,
  y: np.ndarray,
  x: np.ndarray,
  linear: Callable[[np.ndarray], np.ndarray],
  rows: np.ndarray,
  out: np.ndarray,
  seed: int,
  progress: Progress,
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns ``disguised -> flat estimates``: with the network, or without where that does better on held-out rows."""

  def inputs(disguised):
    shown = linear(features.flat(disguised))
    return np.concatenate([features.all(disguised), (shown - _GREY) / _SPREAD], 1), shown

  seen, shown = inputs(y)
  wanted = (x - shown) / _SPREAD
  network = _Network(x.shape[1])
  steps = max(50, min(_STEPS, _PIXELS // (_BATCH * x.shape[1])))
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.cosine_decay_schedule(_RATE, steps), weight_decay=_DECAY),
  )
  variables = network.init(jax.random.key(seed), jnp.asarray(seen[:1]))
  state = optimizer.init(variables)

  @jax.jit
  def step(variables, state, batch, target):
    def loss(variables):
      return jnp.mean((network.apply(variables, batch) - target) ** 2)

    updates, state = optimizer.update(jax.grad(loss)(variables), state, variables)
    return optax.apply_updates(variables, updates), state

  forward = jax.jit(network.apply)
  draw = np.random.default_rng(seed)
  pool = np.flatnonzero(rows)
  for number in range(steps):
    some = draw.choice(pool, min(_BATCH, len(pool)), replace=False)
    variables, state = step(variables, state, seen[some], wanted[some])
    if number % 50 == 0:
      progress(0.3 + 0.7 * number / steps, "training the network")

  def corrected(disguised):
    batch, shown = inputs(disguised)
    return shown + np.asarray(forward(variables, batch)) * _SPREAD

  def error(estimates):
    return float(np.square(np.clip(estimates, 0, 255) - x[out]).mean())

  if error(corrected(y[out])) < error(shown[out]):
    return corrected
  return lambda disguised: linear(features.flat(disguised))


def _score(originals: np.ndarray, estimates: np.ndarray) -> dict[str, float]:
  """Returns the medians of both measures."""
  pair = jnp.asarray(originals, jnp.float32), jnp.asarray(estimates, jnp.float32)
  ssim = metrics.ssim(*pair, filter_size=metrics.window(originals.shape))
  psnr = np.minimum(metrics.psnr(*pair), _BEST)
  return {"psnr": round(float(np.median(psnr)), 3), "ssim": round(float(np.median(ssim)), 4)}
