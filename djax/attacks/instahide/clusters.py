"""Attack on InstaHide: many encodings of few images give the images back (after Carlini et al., arXiv:2011.05315).

Signs that are drawn anew say nothing, so the attack looks at magnitudes. Mixed labels tell the classes of an encoding
and, where these differ, the shares of its private images. (1) A network learnt on the attacker's own encodings of
public images guesses the image with the largest weight from an encoding, and what all private images weigh together.
(2) Within each class these guesses are clustered; one cluster is one private image. (3) Each part of an encoding is the
image of its class that fits best. (4) The images are the solution of one system of equations over all encodings, by
gradient descent; (3) and (4), both in ``djax.attacks.instahide.mixtures``, repeat until the residual stops falling.

Differences from the published attack: guesses of the image are clustered, where it learns the similarity of pairs; and
encodings with two images of one class only vote where their parts are known. The public images that the published
challenge mixes in, too, are noise to this attack, with mean and spread of the public images it was given.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax import schemes
from djax.attacks.base import Attack, Estimate, Known
from djax.attacks.instahide import mixtures
from djax.errors import ConfigError
from djax.schemes import Trait, instahide

__all__ = ["ATTACK", "Found", "attack", "recover", "refuses"]

_HIDDEN = 512
_STEPS = 3000
_BATCH = 256
_RATE = 1e-3
_ROUNDS = 60
_PATIENCE = 6
_LEAST_GAIN = 0.02
_STARTS = 4
_TURNS = 30
_LEAST_SHARE = 1e-4

Progress = Callable[[float, str], None]


class Found(NamedTuple):
  """What the attack finds.

  Attributes:
    images: float32 ``[m, H, W, C]``, the private images, 0..255.
    classes: int ``[m]``, theirs.
    own: int ``[n]``, the image to which each encoding is taken to belong.
    residual: root mean square of what the images leave unexplained of the encodings, on the scale of pixels in [-1, 1].
  """

  images: np.ndarray
  classes: np.ndarray
  own: np.ndarray
  residual: float


def recover(
  encodings: np.ndarray,
  shares: np.ndarray,
  public: np.ndarray,
  *,
  images: int,
  k: int,
  cap: float,
  seed: int,
  public_k: int = 0,
  progress: Progress = lambda fraction, word: None,
) -> Found:
  """Recovers private images from their encodings, as many of each.

  Args:
    encodings: float32 ``[n, H, W, C]`` in [-1, 1], in any order.
    shares: float32 ``[n, K]``, their mixed labels.
    public: ``[p, H, W, C]`` on the 0..255 scale, images of the same kind.
    images: how many private images there are.
    k: images of an encoding.
    cap: greatest weight.
    seed: of the network, its training and the clusters.
    public_k: how many of the images of an encoding are public ones, which the mixed labels leave out.
    progress: told how far it is.
  """
  shape = encodings.shape[1:]
  seen = np.abs(encodings.reshape(len(encodings), -1))
  x = public.reshape(len(public), -1).astype(np.float32) / 127.5 - 1
  crowd = mixtures.crowd(x, public_k)
  progress(0.0, "training on encodings of public images")
  guess = _learn(x, k, public_k, cap, seed)
  largest = shares.argmax(1)
  guesses, totals = guess(seen, shares.max(1))
  progress(0.5, "clustering")
  counts = _divide(images, np.bincount(largest, minlength=shares.shape[1]))
  draw = np.random.default_rng(seed)
  own = np.zeros(len(seen), int)
  centres: list[np.ndarray] = []
  for label, count in enumerate(counts):
    rows = np.flatnonzero(largest == label)
    if count and len(rows):
      middles, of = _cluster(guesses[rows], min(count, len(rows)), draw)
      own[rows] = of + sum(len(some) for some in centres)
      centres.append(middles)
  found = np.concatenate(centres)
  classes = np.repeat(
    np.arange(len(counts)), [min(c, (largest == i).sum()) for i, c in enumerate(counts)]
  )
  clear = (shares > _LEAST_SHARE).sum(1) == k - public_k
  mixed = _mixtures(seen[clear], shares[clear], totals[clear], k - public_k)
  residuals = [float("nan")]
  for number in range(_ROUNDS if clear.any() else 0):
    progress(0.6 + 0.4 * number / _ROUNDS, "solving for the images")
    parts, totals = mixtures.assign(mixed, found, classes, crowd)
    mixed = mixed._replace(totals=totals)
    found, residual = mixtures.solve(mixed, parts, found, crowd, draw)
    residuals.append(residual)
    if number >= _PATIENCE and residual > (1 - _LEAST_GAIN) * residuals[-1 - _PATIENCE]:
      break
  if clear.any():
    own[clear] = mixtures.assign(mixed, found, classes, crowd)[0][:, 0]
  rest = np.flatnonzero(~clear)
  for label in np.unique(largest[rest]):
    rows, some = rest[largest[rest] == label], np.flatnonzero(classes == label)
    own[rows] = some[_distances(guesses[rows], found[some]).argmin(1)]
  pictures = np.clip((found + 1) * 127.5, 0, 255).astype(np.float32)
  return Found(pictures.reshape(-1, *shape), classes, own, residuals[-1])


def refuses(spec: Mapping[str, Any]) -> str | None:
  """Returns why the attack cannot handle a scheme, or None if it can.

  Args:
    spec: ``SchemeSpec.to_dict()``.
  """
  if Trait.MIXED_IMAGES not in schemes.traits(spec):
    return f"it takes mixed images apart, and scheme {spec['scheme']!r} mixes none"
  return None


def attack(known: Known, *, seed: int, progress: Progress) -> Estimate:
  """Recovers the private images, and gives for each target the one to which it belongs.

  Args:
    known: ``disguised`` with their mixed ``labels``, ``targets`` among them, ``public``, ``encodings``.
    seed: of whatever is drawn.
    progress: told how far it is.

  Returns:
    The estimates. Diagnostics: ``images``, how many were looked for, by the number of encodings of each that is
    known; ``residual``; ``warnings``.

  Raises:
    ConfigError: without mixed labels or the number of encodings, or for a target that is not among the encodings.
  """
  if known.labels is None or known.labels.ndim != 2:
    raise ConfigError(
      "attack clusters needs the mixed labels of the encodings, float [n, K], got none. Give Known.labels."
    )
  if known.encodings is None or known.encodings < 1:
    raise ConfigError(
      "attack clusters needs the number of encodings of each private image, at least 1, got "
      f"{known.encodings}. Give Known.encodings."
    )
  assert known.public is not None
  held = {image.tobytes(): row for row, image in enumerate(known.disguised)}
  rows = [held.get(image.tobytes(), -1) for image in known.targets]
  if min(rows) < 0:
    raise ConfigError(
      f"attack clusters needs its targets among the encodings, {rows.count(-1)} of {len(rows)} are not. "
      "Give Known.disguised with them."
    )
  count = max(1, len(known.disguised) // known.encodings)
  found = recover(
    known.disguised,
    known.labels,
    known.public,
    images=count,
    k=known.spec["k"],
    cap=known.spec["cap"],
    seed=seed,
    public_k=known.spec["public_k"],
    progress=progress,
  )
  estimates = found.images[found.own[rows]]
  return Estimate(
    estimates, {"images": len(found.images), "residual": found.residual, "warnings": []}
  )


def _learn(
  public: np.ndarray, k: int, public_k: int, cap: float, seed: int
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
  """Returns ``(magnitudes, largest share) -> (guesses, sums)``.

  Guesses are of the image with the largest weight, in [-1, 1]; sums of the weights of all private images, which labels
  do not tell.
  """
  pixels = public.shape[1]
  init = jax.nn.initializers.he_normal()
  rng = jax.random.key(seed)
  sides = [pixels + 1, _HIDDEN, _HIDDEN, pixels + 1]
  params = [
    (init(jax.random.fold_in(rng, i), (a, b)), jnp.zeros(b))
    for i, (a, b) in enumerate(itertools.pairwise(sides))
  ]

  def forward(params, seen, share):
    h = jnp.concatenate([2 * seen - 1, 4 * share[:, None] - 2], 1)
    for kernel, bias in params[:-1]:
      h = jax.nn.relu(h @ kernel + bias)
    kernel, bias = params[-1]
    out = jnp.tanh(h @ kernel + bias)
    return out[:, :-1], (1 + out[:, -1]) / 2

  optimizer = optax.adam(optax.cosine_decay_schedule(_RATE, _STEPS))

  @jax.jit
  def trained(params, x, rngs):
    def step(carry, rng):
      params, state = carry
      rows_rng, weights_rng = jax.random.split(rng)
      rows = jax.random.randint(rows_rng, (_BATCH, k), 0, len(x))
      weights = jax.vmap(lambda r: instahide.coefficients(r, k=k, cap=cap))(
        jax.random.split(weights_rng, _BATCH)
      )
      mixed = x[rows]
      seen = jnp.abs(jnp.einsum("bk,bkp->bp", weights, mixed))
      sums = weights[:, : k - public_k].sum(1)

      def loss(params):
        images, guessed = forward(params, seen, weights[:, 0] / sums)
        return jnp.mean((images - mixed[:, 0]) ** 2) + jnp.mean((guessed - sums) ** 2)

      updates, state = optimizer.update(jax.grad(loss)(params), state, params)
      return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), rngs)[0][0]

  rngs = jax.random.split(jax.random.fold_in(rng, len(params)), _STEPS)
  params = trained(params, jnp.asarray(public), rngs)

  def guess(seen, share):
    images, sums = map(np.asarray, jax.jit(forward)(params, seen, share))
    return images, sums if public_k else np.ones_like(sums)

  return guess


def _divide(images: int, counts: np.ndarray) -> np.ndarray:
  """Shares out a number of images in proportion, by largest remainders."""
  exact = images * counts / counts.sum()
  whole = np.floor(exact).astype(int)
  whole[np.argsort(whole - exact, kind="stable")[: images - whole.sum()]] += 1
  return whole


def _cluster(x: np.ndarray, count: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Returns centres and members of the best of some k-means, whose first centres are far apart."""
  best, least = None, np.inf
  for _ in range(_STARTS):
    centres = x[draw.integers(len(x))][None]
    while len(centres) < count:
      far = _distances(x, centres).min(1)
      centres = np.concatenate([centres, x[draw.choice(len(x), p=far / far.sum())][None]])
    for _ in range(_TURNS):
      of = _distances(x, centres).argmin(1)
      centres = np.stack(
        [x[of == c].mean(0) if (of == c).any() else centres[c] for c in range(count)]
      )
    distances = _distances(x, centres)
    if distances.min(1).sum() < least:
      best, least = (centres, distances.argmin(1)), distances.min(1).sum()
  assert best is not None
  return best


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Returns squared distances, ``[n, m]``."""
  return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 1e-9)


def _mixtures(
  seen: np.ndarray, shares: np.ndarray, totals: np.ndarray, parts: int
) -> mixtures.Mixtures:
  """Takes shares and classes of encodings whose classes differ from their mixed labels."""
  labels = np.argsort(-shares, axis=1)[:, :parts]
  largest = np.take_along_axis(shares, labels, 1).astype(np.float32)
  return mixtures.Mixtures(seen, largest, labels, totals)


ATTACK = Attack(
  name="clusters",
  level=1,
  needs=("public",),
  title="mixed images taken apart: clusters of encodings, then one system of equations",
  refuses=refuses,
  attack=attack,
)
