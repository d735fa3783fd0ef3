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

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.spatial import distance

from djax import schemes
from djax.attacks.base import Attack, Estimate, Known, Progress
from djax.attacks.common import fitting
from djax.attacks.instahide import mixtures
from djax.errors import ConfigError
from djax.schemes import Trait, instahide

__all__ = ["ATTACK", "Recovered", "Settings", "attack", "recover"]

_LEAST_SHARE = 1e-4


@dataclasses.dataclass(frozen=True)
class Settings:
  """Options, with the values it ships with."""

  hidden: int = 512  # width of the network
  steps: int = 3000  # of its training
  batch: int = 256  # encodings of a step
  rate: float = 1e-3  # of learning, at the start
  starts: int = 4  # of the clustering, of which the best counts
  turns: int = 30  # of the clustering, at most
  rounds: int = 60  # of assigning parts and solving for the images, at most
  patience: int = 6  # rounds after which the residual must have fallen
  least_gain: float = 0.02  # by what share


_SETTINGS = Settings()


class Recovered(NamedTuple):
  """What the attack recovers.

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
  progress: Progress = lambda fraction, step: None,
  settings: Settings = _SETTINGS,
) -> Recovered:
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
    progress: called with the fraction done and the current step.
    settings: of training, clustering and solving.
  """
  shape = encodings.shape[1:]
  seen = np.abs(
    encodings.reshape(len(encodings), -1)
  )  # signs are random: magnitudes alone tell something
  x = public.reshape(len(public), -1).astype(np.float32) / 127.5 - 1
  crowd = mixtures.crowd(x, public_k)
  progress(0.0, "training on encodings of public images")
  guess = _learn(x, k, public_k, cap, seed, settings)
  largest = shares.argmax(1)
  guesses, totals = guess(seen, shares.max(1))
  progress(0.5, "clustering")
  counts = _divide(images, np.bincount(largest, minlength=shares.shape[1]))
  own = np.zeros(len(seen), int)
  centres: list[np.ndarray] = []
  for label, count in enumerate(counts):
    rows = np.flatnonzero(largest == label)
    if count and len(rows):
      means, members = _cluster(guesses[rows], min(count, len(rows)), seed, settings)
      own[rows] = members + sum(map(len, centres))
      centres.append(means)
  recovered = np.concatenate(centres)
  classes = np.repeat(
    np.arange(len(counts)), [min(c, (largest == i).sum()) for i, c in enumerate(counts)]
  )
  clear = (shares > _LEAST_SHARE).sum(1) == k - public_k
  mixed = _mixtures(seen[clear], shares[clear], totals[clear], k - public_k)
  residuals = [float("nan")]
  draw = np.random.default_rng(seed)
  for number in range(settings.rounds if clear.any() else 0):
    progress(0.6 + 0.4 * number / settings.rounds, "solving for the images")
    parts, totals = mixtures.assign(mixed, recovered, classes, crowd)
    mixed = mixed._replace(totals=totals)
    recovered, residual = mixtures.solve(mixed, parts, recovered, crowd, draw)
    residuals.append(residual)
    before = residuals[-1 - settings.patience] if number >= settings.patience else np.inf
    if residual > (1 - settings.least_gain) * before:
      break
  if clear.any():
    own[clear] = mixtures.assign(mixed, recovered, classes, crowd)[0][:, 0]
  rest = np.flatnonzero(~clear)
  for label in np.unique(largest[rest]):
    rows, candidates = rest[largest[rest] == label], np.flatnonzero(classes == label)
    far = distance.cdist(guesses[rows], recovered[candidates])
    own[rows] = candidates[far.argmin(1)]
  pictures = np.clip((recovered + 1) * 127.5, 0, 255).astype(np.float32)
  return Recovered(pictures.reshape(-1, *shape), classes, own, residuals[-1])


def _refuses(spec: Mapping[str, Any]) -> str | None:
  """Returns why the attack cannot handle a scheme, or None if it can."""
  if Trait.MIXED_IMAGES not in schemes.traits(spec):
    return f"it takes mixed images apart, and scheme {spec['scheme']!r} mixes none"
  return None


def attack(
  known: Known, *, seed: int, progress: Progress, settings: Settings = _SETTINGS
) -> Estimate:
  """Recovers the private images, and gives for each target the one to which it belongs.

  Args:
    known: what the attacker has; used: ``disguised`` with the mixed ``labels``, ``targets`` among them, ``public``
      and ``encodings``.
    seed: of the network, its training and the clusters.
    progress: called with the fraction done and the current step.
    settings: the attack's constants.

  Returns:
    Estimates; as diagnostics ``images``, how many were looked for, by the number of encodings of each that is
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
  row_of = {image.tobytes(): row for row, image in enumerate(known.disguised)}
  rows = [row_of.get(image.tobytes(), -1) for image in known.targets]
  if min(rows) < 0:
    raise ConfigError(
      f"attack clusters needs its targets among the encodings, {rows.count(-1)} of {len(rows)} are not. "
      "Give Known.disguised with them."
    )
  count = max(1, len(known.disguised) // known.encodings)
  recovered = recover(
    known.disguised,
    known.labels,
    known.public,
    images=count,
    k=known.spec["k"],
    cap=known.spec["cap"],
    seed=seed,
    public_k=known.spec["public_k"],
    progress=progress,
    settings=settings,
  )
  diagnostics = {"images": len(recovered.images), "residual": recovered.residual, "warnings": []}
  return Estimate(recovered.images[recovered.own[rows]], diagnostics)


def _learn(
  public: np.ndarray, k: int, public_k: int, cap: float, seed: int, settings: Settings
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
  """Returns ``(magnitudes, largest share) -> (guesses, sums)``.

  Guesses are of the image with the largest weight, in [-1, 1]; sums of the weights of all private images, which labels
  do not tell.
  """
  pixels = public.shape[1]
  init = jax.nn.initializers.he_normal()
  rng = jax.random.key(seed)
  sides = [pixels + 1, settings.hidden, settings.hidden, pixels + 1]
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

  optimizer = optax.adam(optax.cosine_decay_schedule(settings.rate, settings.steps))

  @jax.jit
  def trained(params, x, rngs):
    def loss(params, rng):
      rows_rng, weights_rng = jax.random.split(rng)
      rows = jax.random.randint(rows_rng, (settings.batch, k), 0, len(x))
      weights = jax.vmap(lambda r: instahide.coefficients(r, k=k, cap=cap))(
        jax.random.split(weights_rng, settings.batch)
      )
      mixed = x[rows]  # [B, k, pixels]
      seen = jnp.abs(jnp.einsum("bk,bkp->bp", weights, mixed))
      sums = weights[:, : k - public_k].sum(1)  # the private images come first
      images, guessed = forward(params, seen, weights[:, 0] / sums)
      return jnp.mean((images - mixed[:, 0]) ** 2) + jnp.mean((guessed - sums) ** 2)

    return fitting.descend(loss, optimizer, params, optimizer.init(params), rngs)[0]

  rngs = jax.random.split(jax.random.fold_in(rng, len(params)), settings.steps)
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


def _cluster(
  x: np.ndarray, count: int, seed: int, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
  """Returns centres and members of clusters."""
  from sklearn.cluster import KMeans  # takes a second, for this attack alone

  means = KMeans(count, n_init=settings.starts, max_iter=settings.turns, random_state=seed).fit(x)
  return means.cluster_centers_, means.labels_


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
  refuses=_refuses,
  attack=attack,
)
