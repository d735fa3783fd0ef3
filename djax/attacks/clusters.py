"""Attack on InstaHide: many encodings of few images give the images back (after Carlini et al., arXiv:2011.05315).

Signs that are drawn anew say nothing, so the attack looks at magnitudes. Mixed labels tell the classes of an encoding
and, where these differ, all its weights. (1) A network learnt on the attacker's own encodings of public images guesses
the image with the largest weight from an encoding. (2) Within each class these guesses are clustered; one cluster is
one private image. (3) Each part of an encoding is the image of its class that fits best. (4) The images are the
solution of ``|w_1 x_1 + ... + w_k x_k| = |encoding|`` over all encodings, by gradient descent; (3) and (4) repeat until
the residual stops falling.

Differences from the published attack: guesses of the image are clustered, where it learns the similarity of pairs; and
encodings with two images of one class only vote where their parts are known. Only sets mixed inside themselves are
taken; the published challenge mixed four public images into each encoding, which these labels leave without weights.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax.attacks.contract import Attack, Estimate, Known
from djax.baselines import instahide
from djax.errors import ConfigError

__all__ = ["ATTACK", "Found", "attack", "recover", "refuses"]

_HIDDEN = 512
_STEPS = 1500
_BATCH = 256
_RATE = 1e-3
_ROUNDS = 60
_PATIENCE = 6
_LEAST_GAIN = 0.02
_SOLVER_STEPS = 150
_SOLVER_BATCH = 512
_SOLVER_RATE = 0.03
_STARTS = 4
_TURNS = 30
_LEAST_SHARE = 1e-4
_CHUNK = 500
ENCODINGS = 50  # of each private image, which the attacker is told

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
    progress: told how far it is.
  """
  shape = encodings.shape[1:]
  seen = np.abs(encodings.reshape(len(encodings), -1))
  progress(0.0, "training on encodings of public images")
  guess = _learn(public.reshape(len(public), -1), k, cap, seed)
  largest = shares.argmax(1)
  guesses = guess(seen, shares.max(1))
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
  clear = (shares > _LEAST_SHARE).sum(1) == k
  weights, labels = _parts(shares[clear], k)
  residuals = [float("nan")]
  for number in range(_ROUNDS if clear.any() else 0):
    progress(0.6 + 0.4 * number / _ROUNDS, "solving for the images")
    parts = _assign(seen[clear], weights, labels, found, classes)
    found, residual = _solve(seen[clear], weights, parts, found, draw)
    residuals.append(residual)
    if number >= _PATIENCE and residual > (1 - _LEAST_GAIN) * residuals[-1 - _PATIENCE]:
      break
  if clear.any():
    own[clear] = _assign(seen[clear], weights, labels, found, classes)[:, 0]
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
  if spec["scheme"] != "instahide":
    return f"it takes mixed images apart, and scheme {spec['scheme']!r} mixes none"
  return "images mixed with public ones are not taken apart here" if spec["public_k"] else None


def attack(known: Known, *, seed: int, progress: Progress) -> Estimate:
  """Recovers the private images, and gives for each target the one to which it belongs.

  Args:
    known: ``disguised`` with their mixed ``labels``, ``targets`` among them, ``public``.
    seed: of whatever is drawn.
    progress: told how far it is.

  Returns:
    The estimates. Diagnostics: ``images``, how many were looked for, by the number of encodings of each that the owner
    states; ``residual``; ``warnings``.

  Raises:
    ConfigError: without mixed labels, or for a target that is not among the encodings.
  """
  if known.labels is None or known.labels.ndim != 2:
    raise ConfigError(
      "attack clusters needs the mixed labels of the encodings, float [n, K], got none. Give Known.labels."
    )
  assert known.public is not None
  held = {image.tobytes(): row for row, image in enumerate(known.disguised)}
  rows = [held.get(image.tobytes(), -1) for image in known.targets]
  if min(rows) < 0:
    raise ConfigError(
      f"attack clusters needs its targets among the encodings, {rows.count(-1)} of {len(rows)} are not. "
      "Give Known.disguised with them."
    )
  count = max(1, len(known.disguised) // ENCODINGS)
  found = recover(
    known.disguised,
    known.labels,
    known.public,
    images=count,
    k=known.spec["k"],
    cap=known.spec["cap"],
    seed=seed,
    progress=progress,
  )
  estimates = found.images[found.own[rows]]
  return Estimate(
    estimates, {"images": len(found.images), "residual": found.residual, "warnings": []}
  )


def _learn(public: np.ndarray, k: int, cap: float, seed: int) -> Callable[..., np.ndarray]:
  """Returns ``(magnitudes, largest share) -> guesses`` of the image with the largest weight, [-1, 1]."""
  pixels = public.shape[1]
  x = public.astype(np.float32) / 127.5 - 1
  init = jax.nn.initializers.he_normal()
  rng = jax.random.key(seed)
  sides = [pixels + 1, _HIDDEN, _HIDDEN, pixels]
  params = [
    (init(jax.random.fold_in(rng, i), (a, b)), jnp.zeros(b))
    for i, (a, b) in enumerate(itertools.pairwise(sides))
  ]

  def forward(params, seen, share):
    h = jnp.concatenate([2 * seen - 1, 4 * share[:, None] - 2], 1)
    for kernel, bias in params[:-1]:
      h = jax.nn.relu(h @ kernel + bias)
    kernel, bias = params[-1]
    return jnp.tanh(h @ kernel + bias)

  optimizer = optax.adam(optax.cosine_decay_schedule(_RATE, _STEPS))

  @jax.jit
  def step(params, state, x, rng):
    rows_rng, weights_rng = jax.random.split(rng)
    rows = jax.random.randint(rows_rng, (_BATCH, k), 0, len(x))
    weights = jax.vmap(lambda r: instahide.coefficients(r, k=k, cap=cap))(
      jax.random.split(weights_rng, _BATCH)
    )
    mixed = x[rows]
    seen = jnp.abs(jnp.einsum("bk,bkp->bp", weights, mixed))

    def loss(params):
      return jnp.mean((forward(params, seen, weights[:, 0]) - mixed[:, 0]) ** 2)

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  held = jnp.asarray(x)
  for number in range(_STEPS):
    params, state = step(params, state, held, jax.random.fold_in(rng, 100 + number))
  return lambda seen, share: np.asarray(jax.jit(forward)(params, seen, share))


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


def _parts(shares: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns weights and classes of encodings whose classes differ, ``[n, k]`` each, the largest first."""
  labels = np.argsort(-shares, axis=1)[:, :k]
  return np.take_along_axis(shares, labels, 1).astype(np.float32), labels


def _assign(
  seen: np.ndarray, weights: np.ndarray, labels: np.ndarray, found: np.ndarray, classes: np.ndarray
) -> np.ndarray:
  """Returns for each part of each encoding the image of its class that fits best, int ``[n, k]``, part after part."""
  most = np.bincount(classes).max()
  table = np.full((labels.max() + 1, most), -1)
  for label in np.unique(labels):
    some = np.flatnonzero(classes == label)
    table[label, : len(some)] = some
  table[table < 0] = np.broadcast_to(table[:, :1], table.shape)[table < 0]
  table = np.maximum(table, 0)
  chosen = [
    np.asarray(
      _choose(*(jnp.asarray(a[s : s + _CHUNK]) for a in (seen, weights, table[labels])), found)
    )
    for s in range(0, len(seen), _CHUNK)
  ]
  return np.concatenate(chosen)


@jax.jit
def _choose(
  seen: jax.Array, weights: jax.Array, candidates: jax.Array, found: jax.Array
) -> jax.Array:
  """Goes twice through the parts of each encoding; parts not yet chosen are the mean of their candidates."""

  def one(seen, weights, candidates):
    images = found[candidates]  # [k, most, pixels]
    current = images.mean(1)
    chosen = jnp.zeros(len(weights), jnp.int32)
    for part in [*range(len(weights))] * 3:
      rest = weights @ current - weights[part] * current[part]
      errors = ((jnp.abs(rest + weights[part] * images[part]) - seen) ** 2).sum(1)
      best = jnp.argmin(errors)
      chosen = chosen.at[part].set(candidates[part, best])
      current = current.at[part].set(images[part, best])
    return chosen

  return jax.lax.map(lambda a: one(*a), (seen, weights, candidates), batch_size=50)


def _solve(
  seen: np.ndarray,
  weights: np.ndarray,
  parts: np.ndarray,
  found: np.ndarray,
  draw: np.random.Generator,
) -> tuple[np.ndarray, float]:
  """Fits the images to all encodings; returns them and the root mean square of what they leave."""
  optimizer = optax.adam(optax.cosine_decay_schedule(_SOLVER_RATE, _SOLVER_STEPS))

  def errors(x, seen, weights, parts):
    return jnp.abs(jnp.einsum("nk,nkp->np", weights, x[parts])) - seen

  @jax.jit
  def step(x, state, *batch):
    # Absolute values: encodings whose parts are wrong shall not pull.
    slope = jax.grad(lambda x: jnp.abs(errors(x, *batch)).mean() * len(x))(x)
    updates, state = optimizer.update(slope, state, x)
    return jnp.clip(optax.apply_updates(x, updates), -1, 1), state

  x = jnp.asarray(found)
  state = optimizer.init(x)
  for _ in range(_SOLVER_STEPS):
    rows = draw.integers(len(seen), size=_SOLVER_BATCH)
    x, state = step(x, state, seen[rows], weights[rows], parts[rows])
  some = slice(2000)
  return np.asarray(x), float(
    np.sqrt(np.mean(errors(x, seen[some], weights[some], parts[some]) ** 2))
  )


ATTACK = Attack(
  name="clusters",
  level=1,
  needs=("public",),
  title="mixed images taken apart: clusters of encodings, then one system of equations",
  refuses=refuses,
  attack=attack,
)
