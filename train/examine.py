"""Attacks on the model of a run: misuse, class membership, membership of records, inversion. Made by the owner.

It needs the originals and the key, so it is for runs under the public key of an experiment. Attacks that train networks
of their own do so on a part of the records, and on small dense networks: figures of membership are of these, not of the
run's own network. The run's checkpoint is what is inverted.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from djax import keys, models, schemes
from djax.attacks import ATTACKS
from djax.attacks.base import Known
from djax.attacks.generic import examiner as examiner_lib
from djax.attacks.model import membership, model_targeted
from djax.attacks.model import shadows as shadows_lib
from djax.audit import evaluator
from djax.errors import ConfigError, DataError, KeyMismatchError, NotInvertibleError
from djax.io import foreign, form, pages
from djax.models import checksums, run_files
from djax.ops import metrics
from djax.schemes import Trait
from train import config as config_lib
from train import loop, optimizers
from train import state as state_lib
from train.data import inputs as inputs_lib
from train.data.input_pipeline import Feed, Pipeline

__all__ = ["FORMAT", "VERSION", "examine", "figure", "lines"]

FORMAT = "djax-examination"
VERSION = 1

_HELD = 4000  # disguised images that the cloud looks at, and originals for the examiner
_ASKED = 2000  # test records, for the classes
_QUERIES = 100  # of each class
_CLASSES = 20  # at most, of which a model is trained without
_COPIES = 3  # inverted images of each class
_BATCH = 256
_RESULT_BYTES = 1 << 20
_AGAIN = 8  # the run itself draws under smaller numbers
_RECIPE = shadows_lib.Recipe()

Progress = Callable[[float, str], None]


class _Material(NamedTuple):
  """What the attacks are made on.

  Attributes:
    given: inputs of the run.
    labels: int32, of the training records.
    disguised: training records as the network takes them, float32; ``plain``, originals padded to whole
      blocks where there are such.
    fresh: training records disguised once more under the same key, with other draws; None where nothing is drawn.
    asked: test records likewise, disguised and plain, and ``asked_labels``.
    alike: whether plain images have the shape that the network takes.
    scheme: of the run, and ``key``.
  """

  given: inputs_lib.Inputs
  labels: np.ndarray
  disguised: np.ndarray
  fresh: np.ndarray | None
  plain: np.ndarray
  asked_labels: np.ndarray
  asked: np.ndarray
  asked_plain: np.ndarray
  alike: bool
  scheme: Any
  key: Any


def examine(
  run: str | Path | ConfigDict,
  *,
  shadows: int = 32,
  records: int = 1000,
  seed: int = 0,
  progress: Progress = lambda fraction, word: None,
) -> dict[str, Any]:
  """Attacks the model of a run directory, or what a config would train.

  Args:
    run: the run directory, or a config alone: then there is no checkpoint to attack.
    shadows: networks trained for membership inference, even; 10 or more for figures at 1 % false positives, 32 at
      0.1 %.
    records: training records that they are trained on, each on one half.
    seed: of all that is drawn.
    progress: told how far it is.

  Returns:
    JSON types. ``setting``: sizes and networks, and ``plain_queries``, why there are none or None. ``misuse``: the
    accuracies of ``result.json``, None without. ``class_membership`` and ``membership``: by what was trained and asked:
    ``plain`` (both), ``disguised`` (both), ``fresh_queries`` (membership alone: trained on disguised, asked with the
    same records disguised once more, as somebody gets who may ask in disguise; missing where nothing is drawn) and
    ``plain_queries`` (trained on disguised, asked with plain images, by an outsider without the key who yet has shadow
    models of that key); see ``model_targeted.class_membership`` and ``membership.attack``. ``model_inversion``: see
    ``_inversion``. ``seconds`` by part.

  Raises:
    ConfigError: if this is no run of this machine's originals, or the sizes cannot work.
    KeyMismatchError: if the run was made with another key than that of its ``experiment_seed``.
  """
  clock = {}
  start = time.perf_counter()

  def lap(name):
    nonlocal start
    clock[name], start = round(time.perf_counter() - start, 2), time.perf_counter()

  shadows_lib.halves(shadows, records, seed=seed)  # refuses sizes before the data are read
  config, folder = _config(run)
  progress(0.0, "disguising")
  material = _material(config, folder, records)
  count = min(records, len(material.labels)) // 2 * 2
  classes, labels = material.given.classes, material.labels[:count]
  sets = {"disguised": material.disguised[:count], "plain": material.plain[:count]}
  if Trait.IDENTITY in schemes.traits(material.given.spec):
    del sets["disguised"]
  members = shadows_lib.halves(shadows, count, seed=seed)
  tried = min(classes, _CLASSES)
  lap("disguising")

  found: dict[str, dict[str, Any]] = {"membership": {}, "class_membership": {}}
  whole: dict[str, shadows_lib.Models] = {}
  for place, (name, images) in enumerate(sets.items()):
    trained, whole[name] = (
      shadows_lib.train(
        images,
        labels,
        rows,
        classes=classes,
        seed=seed,
        recipe=_RECIPE,
        progress=_part(progress, 2 * place + half, 2 * len(sets), name),
      )
      for half, rows in enumerate((members, shadows_lib.without_a_class(labels, tried)))
    )
    lap(f"networks, {name}")
    ways = [*_ways(material, name, trained, images, material.plain[:count])]
    if name == "disguised" and material.fresh is not None:
      ways.append(("fresh_queries", trained, material.fresh[:count]))
    for query, networks, asked in ways:
      logits = shadows_lib.logits(networks, asked)
      right = logits.argmax(-1) == labels
      attacked = membership.attack(membership.confidence(logits, labels), members)
      accuracy = {"members": float(right[members].mean()), "others": float(right[~members].mean())}
      found["membership"][query] = {**attacked, "accuracy": accuracy}
    found["class_membership"] |= _by_class(material, whole[name], name)
    lap(f"membership, {name}")
  progress(0.6, "inverting")
  inversion = _inversion(config, folder, material, sets, whole, seed, progress)
  lap("inversion")
  progress(1.0, "done")
  return {
    "format": FORMAT,
    "version": VERSION,
    "setting": {
      "source": config.data.source,
      "spec": material.given.spec,
      "key_fingerprint": material.given.key_fingerprint,
      "classes": classes,
      "records": count,
      "shadows": shadows,
      "seed": seed,
      "network": _RECIPE._asdict(),
      "plain_queries": None
      if material.alike
      else "the network takes images of another shape than originals have",
    },
    "misuse": _misuse(folder, classes),
    **found,
    "model_inversion": inversion,
    "seconds": clock,
  }


def figure(facts: Mapping[str, Any]) -> str:
  """Draws the curves of membership inference, both axes logarithmic.

  Args:
    facts: from ``examine``.

  Returns:
    An ``<svg>`` element.
  """
  curves = {
    f"{attack}, {name.replace('_', ' ')}": row[attack]
    for name, row in facts["membership"].items()
    for attack in ("lira", "loss")
  }
  return pages.svg(membership.figure(curves))


def lines(facts: Mapping[str, Any]) -> list[str]:
  """Returns the figures for the terminal.

  Args:
    facts: from ``examine``.
  """
  setting = facts["setting"]
  found = [
    f"{'membership, asked with':26} {'attack':6} {'AUC':>5}  true positives at false positives of"
  ]
  for name, row in facts["membership"].items():
    for attack in ("lira", "loss"):
      rates = ", ".join(f"{float(fpr):.1%}: {tpr:.1%}" for fpr, tpr in row[attack]["tpr"].items())
      found.append(f"{name.replace('_', ' '):26} {attack:6} {row[attack]['auc']:5.2f}  {rates}")
      found += [f"{'':26} {reason}" for reason in row[attack]["refused"].values()]
  found.append("")
  for name, row in facts["class_membership"].items():
    with_it, without = (float(np.mean(row[kind])) for kind in ("with", "without"))
    found.append(
      f"class membership, {name.replace('_', ' ')}: Fano factor {with_it:.1f} with the class, {without:.1f} without; "
      f"AUC {row['auc']:.2f}"
    )
  misuse = facts["misuse"]
  if misuse:
    told = [f"{misuse['test_accuracy']:.1%} on its own test images"]
    for way, words in (
      ("plain_accuracy", "on plain ones"),
      ("other_key_accuracy", "under another key"),
    ):
      if misuse[way] is not None:
        told.append(f"{misuse[way]:.1%} {words}")
    found.append(f"misuse: {', '.join(told)}; a guess {misuse['chance']:.1%}")
  for name, row in facts["model_inversion"].items():
    if name in ("baseline", "examiner", "images"):
      continue
    ways = {"raw": "as they are", "undone": f"after {row.get('by')}", "key_holder": "with the key"}
    seen = [f"{row[way]['accuracy']:.0%} {words}" for way, words in ways.items() if row.get(way)]
    found.append(
      f"inverted images of network {name}, class seen: {', '.join(seen) or 'nothing to look at'}"
    )
  found.append(
    f"membership and classes: {setting['shadows']} small networks on {setting['records']} records, not the run's own"
  )
  return found


def _config(run: str | Path | ConfigDict) -> tuple[ConfigDict, Path | None]:
  """Returns the checked config, and the run directory if there is one."""
  folder = None
  if isinstance(run, ConfigDict):
    config = run
  else:
    folder = Path(run).expanduser().resolve()
    try:
      data = foreign.read(folder, checksums.CONFIG, limit=checksums.LIMITS[checksums.CONFIG])
      config = config_lib.from_json(data)
    except (foreign.MissingFileError, ValueError) as error:
      raise ConfigError(
        f"{run} must be a run directory with config.json, got {type(error).__name__}: {error}. "
        "Give the --workdir of a run of `python -m train`."
      ) from error
  config_lib.check(config)
  if config.data.disguised_dir:
    raise ConfigError(
      "the model can only be examined where its originals and key are, got a run on config.data.disguised_dir="
      f"{config.data.disguised_dir!r}. Train the same config on the source itself."
    )
  return config, folder


def _material(config: ConfigDict, folder: Path | None, records: int) -> _Material:
  """Loads and disguises what is needed."""
  given = inputs_lib.owned(config, None)
  assert given.originals is not None
  if folder is not None:
    data = foreign.read(folder, checksums.FACTS, limit=checksums.LIMITS[checksums.FACTS])
    used = run_files.facts_from(data)["key_fingerprint"]
    if used != given.key_fingerprint:
      raise KeyMismatchError(
        f"{folder} must be a run with the public key of config.disguise.experiment_seed, {given.key_fingerprint}, got "
        f"{used}. Train it without --key."
      )
  scheme = schemes.from_spec(given.spec)
  key = inputs_lib.key_of(config, scheme, keys.experiment(config.disguise.experiment_seed))
  held = max(records, _HELD)
  seen = _images(given.train, held)
  rng = jax.random.fold_in(jax.random.key(config.seed), _AGAIN)
  fresh = _images(inputs_lib.disguised(given.originals[0], scheme, key, rng=rng), held)
  if given.plain is None:
    plain, asked_plain = (
      split.images[:limit].astype(np.float32)
      for split, limit in zip(given.originals, (held, _ASKED), strict=True)
    )
  else:
    plain, asked_plain = _images(given.plain[0], held), _images(given.plain[1], _ASKED)
  return _Material(
    given,
    shadows_lib.hard_labels(given.originals[0].labels[:held]),
    seen,
    None if np.array_equal(fresh, seen) else fresh,
    plain,
    shadows_lib.hard_labels(given.originals[1].labels[:_ASKED]),
    _images(given.test, _ASKED),
    asked_plain,
    tuple(given.disguised_shape) == plain.shape[1:],
    scheme,
    key,
  )


def _images(feed: Feed, limit: int) -> np.ndarray:
  """Returns the first view of the first records, float32, as the network takes them."""
  pipeline = Pipeline(feed, mesh=loop.data_mesh(), batch_size=_BATCH)
  return np.concatenate(
    [np.asarray(batch.images)[np.asarray(batch.mask) > 0] for batch in pipeline.all_records(limit)]
  )


def _part(progress: Progress, number: int, parts: int, name: str) -> Progress:
  """Tells of one of several parts that come before the inversion."""
  return lambda fraction, word: progress(0.6 * (number + fraction) / parts, f"{name}: {word}")


def _ways(
  material: _Material,
  name: str,
  trained: shadows_lib.Models,
  own: np.ndarray,
  plain: np.ndarray,
) -> Iterator[tuple[str, shadows_lib.Models, np.ndarray]]:
  """Yields what networks are asked: their own kind of images, and those on disguised ones also plain images.

  Plain images are standardised by themselves, as the run does it where it measures misuse.
  """
  yield name, trained, own
  if name == "disguised" and material.alike:
    mean, scale = shadows_lib.standards(plain)
    yield "plain_queries", trained._replace(mean=mean, scale=scale), plain


def _by_class(material: _Material, trained: shadows_lib.Models, name: str) -> dict[str, Any]:
  """Asks the model of all classes, and that without each, for test images of that class."""
  labels, classes = material.asked_labels, material.given.classes
  tried = min(classes, _CLASSES)
  queries = min(_QUERIES, int(np.bincount(labels, minlength=classes)[:tried].min()))
  rows = [np.flatnonzero(labels == number)[:queries] for number in range(tried)]
  found: dict[str, Any] = {}
  if not queries:
    return found
  own = material.asked if name == "disguised" else material.asked_plain
  for query, networks, images in _ways(material, name, trained, own, material.asked_plain):
    predicted = shadows_lib.logits(networks, images).argmax(-1)
    seen = [predicted[0, row] for row in rows]
    unseen = [predicted[1 + number, row] for number, row in enumerate(rows)]
    found[query] = model_targeted.class_membership(seen, unseen, classes=classes)
  return found


def _inversion(
  config: ConfigDict,
  folder: Path | None,
  material: _Material,
  sets: Mapping[str, np.ndarray],
  whole: Mapping[str, shadows_lib.Models],
  seed: int,
  progress: Progress,
) -> dict[str, Any]:
  """Inverts small networks, and that of the run.

  Returns:
    ``baseline``: the mean of all originals, scored as an image of each class. By network (``plain``, ``disguised``,
    both small, and ``run``) what is seen: ``raw``, as the network takes it; ``undone``, after the attack ``by`` on its
    disguise; ``key_holder``, restored with the key; None where ``reasons`` say why. Each score has ``accuracy``, of an
    examiner that should see the class, and ``ssim`` to the mean of its originals, mean over all.
  """
  given = material.given
  assert given.originals is not None
  train, test = given.originals
  count = len(next(iter(sets.values())))
  others = np.concatenate([train.images[count : count + _HELD], test.images[:_HELD]])
  other_labels = np.concatenate([train.labels[count : count + _HELD], test.labels[:_HELD]])
  examiner = evaluator.train_examiner(others, other_labels, classes=given.classes, seed=seed)
  originals = train.images[: len(material.labels)].astype(np.float32)
  wanted = np.repeat(np.unique(material.labels), _COPIES)
  means = {c: originals[material.labels == c].mean(0) for c in np.unique(wanted)}
  targets = jnp.asarray(np.stack([means[c] for c in wanted]))

  def score(images: np.ndarray) -> dict[str, float]:
    images = np.clip(images, 0, 255).astype(np.float32)
    alike = metrics.ssim(targets, jnp.asarray(images), filter_size=metrics.window(images.shape))
    return {
      "accuracy": float(np.mean(examiner.labels(images) == wanted)),
      "ssim": float(np.mean(np.asarray(alike))),
    }

  found: dict[str, Any] = {
    "baseline": score(np.repeat(originals.mean(0)[None], len(wanted), 0)),
    "examiner": float(np.mean(examiner.labels(originals[:count]) == material.labels[:count])),
    "images": len(wanted),
  }
  ways: dict[str, tuple[Any, np.ndarray, bool]] = {}
  for name, images in sets.items():
    ways[name] = (shadows_lib.as_function(whole[name], 0), images, name == "plain")
  if folder is not None:
    ways["run"] = (
      _network(config, folder, given),
      material.disguised,
      Trait.IDENTITY in schemes.traits(given.spec),
    )
  for place, (name, (logits_of, images, plain)) in enumerate(ways.items()):
    progress(0.7 + 0.3 * place / len(ways), f"inverting the network: {name}")
    if logits_of is None:
      found[name] = {"reasons": {"raw": "the network takes whole units and has no gradient"}}
      continue
    inverted = model_targeted.invert(logits_of, wanted, images, seed=seed)
    found[name] = _seen(material, inverted, others[:_HELD], plain, score)
  return found


def _seen(
  material: _Material,
  inverted: np.ndarray,
  public: np.ndarray,
  plain: bool,
  score: Callable[[np.ndarray], dict[str, float]],
) -> dict[str, Any]:
  """Scores inverted images as they are, undone by an attack, and restored with the key."""
  spec = material.given.spec
  height, width, _ = spec["image_shape"]
  if plain:
    return {"raw": score(inverted[:, :height, :width])}
  facts: dict[str, Any] = {"raw": None, "undone": None, "key_holder": None, "by": None}
  reasons = facts["reasons"] = {}
  known = Known(spec, material.disguised, inverted, public)
  if not material.alike:
    reasons["raw"] = "disguised images have another shape than originals"
  else:
    facts["raw"] = score(examiner_lib.look(known, seed=0, progress=_silent).images)
  able = [name for name in ("moments", "ica", "placement") if ATTACKS[name].refuses(spec) is None]
  if able:
    facts["by"] = able[0]
    estimate = ATTACKS[able[0]].attack(known, seed=0, progress=_silent)
    facts["undone"] = score(estimate.images)
  else:
    reasons["undone"] = ATTACKS["moments"].refuses(spec)
  try:
    stored = inverted if material.scheme.on_device else _bytes(inverted)
    restored = np.asarray(material.scheme.restore(material.key, stored))
    facts["key_holder"] = score(restored.astype(np.float32))
  except NotInvertibleError as error:
    reasons["key_holder"] = str(error)
  return facts


def _bytes(images: np.ndarray) -> np.ndarray:
  return np.clip(np.rint(images), 0, 255).astype(np.uint8)


def _silent(fraction: float, word: str) -> None:
  """Hears nothing."""


def _network(config: ConfigDict, folder: Path, given: inputs_lib.Inputs) -> Any:
  """Returns the run's network as a function from images to logits, or None if it has no gradient."""
  model = models.create(config.model, classes=given.classes, spec=given.spec)
  if not models.standardised(model):
    return None
  shape = given.disguised_shape
  state = state_lib.initial(
    model,
    optimizers.create(config.optimizer, 1, 1),
    jax.random.key(0),
    jnp.zeros(shape, jnp.float32),
    jnp.ones((), jnp.float32),
    averaged=config.optimizer.ema > 0,
  )
  state = jax.device_put(state, NamedSharding(loop.data_mesh(), PartitionSpec()))
  with state_lib.checkpoints(folder) as checkpoints:
    if checkpoints.latest_step() is None:
      raise ConfigError(f"{folder} must hold a checkpoint, it has none yet. Let the run go on.")
    state, _ = state_lib.restore(checkpoints, state)
  return lambda images: state_lib.forward(model, state, images)


def _misuse(folder: Path | None, classes: int) -> dict[str, Any] | None:
  """Returns what the run found out about its own misuse."""
  if folder is None:
    return None
  names = ("test_accuracy", "plain_accuracy", "other_key_accuracy")
  try:
    result = foreign.parse_json(foreign.read(folder, "result.json", limit=_RESULT_BYTES))
    form.check(result, {name: (None, float) for name in names}, "result.json")
  except foreign.MissingFileError:
    return None
  except ValueError as error:
    raise DataError(f"{folder / 'result.json'} must be the result of a run: {error}.") from None
  return {"chance": 1 / classes, **{name: result[name] for name in names}}
