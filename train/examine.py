"""Attacks on the model of a run: misuse, class membership, membership of records, inversion. Made by the owner.

It needs the originals and the key, so it is for runs under the public key of an experiment. Attacks that train networks
of their own do so on a part of the records, and on small dense networks: figures of membership are of these, not of the
run's own network. The run's checkpoint is what is inverted.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from djax import schemes
from djax.attacks.model import membership, model_targeted
from djax.attacks.model import shadows as shadows_lib
from djax.audit.scenario import Progress
from djax.errors import DataError
from djax.io import foreign, form, pages
from djax.schemes import Trait
from train import inversion
from train import material as material_lib
from train.material import Material

__all__ = ["FORMAT", "VERSION", "examine", "figure", "lines"]

FORMAT = "djax-examination"
VERSION = 1

_QUERIES = 100  # of each class
_CLASSES = 20  # at most, of which a model is trained without
_RESULT_BYTES = 1 << 20
_RECIPE = shadows_lib.Recipe()
# From where on a sentence says that an attack came to something, see ``lines``.
_TOLD_APART = 0.55
_TOLD_RATE = 0.03
_CLASS_TOLD = 0.8
_MISUSED = 0.05
_CLASS_SEEN = 0.2
_ASKED = {
  "plain": "a network trained on plain images with these",
  "disguised": "with the very disguised images it was trained on",
  "fresh_queries": "with its records disguised anew",
  "plain_queries": "a network trained on disguised images with plain ones",
}


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
    ``inversion.invert``. ``seconds`` by part.

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
  config, folder = material_lib.config_of(run)
  progress(0.0, "disguising")
  material = material_lib.load(config, folder, records)
  count = min(records, len(material.labels)) // 2 * 2
  classes, labels = material.given.classes, material.labels[:count]
  sets = {"disguised": material.disguised[:count], "plain": material.plain[:count]}
  if Trait.IDENTITY in schemes.traits(material.given.spec):
    del sets["disguised"]
  members = shadows_lib.halves(shadows, count, seed=seed)
  tried = min(classes, _CLASSES)
  lap("disguising")

  results: dict[str, dict[str, Any]] = {"membership": {}, "class_membership": {}}
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
    queries = [*_queries(material, name, trained, images, material.plain[:count])]
    if name == "disguised" and material.fresh is not None:
      queries.append(("fresh_queries", trained, material.fresh[:count]))
    for query, networks, asked in queries:
      logits = shadows_lib.logits(networks, asked)
      right = logits.argmax(-1) == labels
      attacked = membership.attack(membership.confidence(logits, labels), members)
      accuracy = {"members": float(right[members].mean()), "others": float(right[~members].mean())}
      results["membership"][query] = {**attacked, "accuracy": accuracy}
    results["class_membership"] |= _by_class(material, whole[name], name)
    lap(f"membership, {name}")
  progress(0.6, "inverting")
  inverted = inversion.invert(folder, material, sets, whole, seed, progress)
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
    **results,
    "model_inversion": inverted,
    "seconds": clock,
  }


def figure(facts: Mapping[str, Any]) -> str:
  """Draws the curves of membership inference in a result of ``examine``, both axes logarithmic.

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
  """Returns the result of ``examine`` as lines for the terminal: what each attack came to in a sentence, then figures.

  Members count as told apart from an AUC of 0.55 or a true-positive rate of 3 % at 1 % false positives, classes from an
  AUC of 0.8, misuse and inverted images from 5 and 20 points above a guess.
  """
  setting = facts["setting"]
  result = [*_sentences(facts), ""]
  result.append(
    f"{'membership, asked with':26} {'attack':6} {'AUC':>5}  true positives at false positives of"
  )
  for name, row in facts["membership"].items():
    for attack in ("lira", "loss"):
      rates = ", ".join(
        f"{float(fpr):.1%}: {tpr:.1%}" for fpr, tpr in row[attack]["tpr"].items() if tpr is not None
      )
      result.append(f"{name.replace('_', ' '):26} {attack:6} {row[attack]['auc']:5.2f}  {rates}")
      result += [f"{'':26} {reason}" for reason in row[attack]["refused"].values()]
  result.append("")
  for name, row in facts["class_membership"].items():
    with_it, without = (float(np.mean(row[kind])) for kind in ("with", "without"))
    result.append(
      f"class membership, {name.replace('_', ' ')}: Fano factor {with_it:.1f} with the class, {without:.1f} without; "
      f"AUC {row['auc']:.2f}"
    )
  result.append(
    f"membership and classes: {setting['shadows']} small networks on {setting['records']} records, not the run's own"
  )
  return result


def _sentences(facts: Mapping[str, Any]) -> Iterator[str]:
  """Says in a sentence what each attack came to."""
  for name, row in facts["membership"].items():
    best = max(("lira", "loss"), key=lambda attack: row[attack]["auc"])
    auc, found = row[best]["auc"], row[best]["tpr"].get("0.01")
    told = auc >= _TOLD_APART or (found or 0) >= _TOLD_RATE
    rate = "" if found is None else f"; at 1% false positives {found:.1%} of them are found"
    could = "could" if told else "could not"
    yield (
      f"membership: members {could} be told apart by asking {_ASKED[name]} (AUC {auc:.2f}, a guess 0.50{rate})"
    )
  for name, row in facts["class_membership"].items():
    could = "could" if row["auc"] >= _CLASS_TOLD else "could not"
    yield (
      f"classes: whether a class was trained on {could} be told by asking {_ASKED[name]} (AUC {row['auc']:.2f}, a "
      "guess 0.50)"
    )
  if misuse := facts["misuse"]:
    chance = misuse["chance"]
    for name, images in (
      ("plain_accuracy", "plain images"),
      ("other_key_accuracy", "images under another key"),
    ):
      if (seen := misuse[name]) is not None:
        use = "is of use" if seen > chance + _MISUSED else "is of no use"
        yield f"misuse: the network {use} on {images} ({seen:.1%}, chance {chance:.1%})"
  chance = 1 / facts["setting"]["classes"]
  for name, row in facts["model_inversion"].items():
    if name in ("baseline", "examiner", "images"):
      continue
    looks = {"raw": "as they are", "undone": f"after {row.get('by')}", "key_holder": "with the key"}
    seen = {words: row[look]["accuracy"] for look, words in looks.items() if row.get(look)}
    who = "the run's network" if name == "run" else f"a small network on {name} images"
    if not seen:
      yield f"inversion: of {who} there is nothing to look at"
      continue
    shown = [words for words, accuracy in seen.items() if accuracy >= chance + _CLASS_SEEN]
    listed = ", ".join(f"{accuracy:.0%} {words}" for words, accuracy in seen.items())
    what = f"show their class {' and '.join(shown)}" if shown else "do not show their class"
    yield f"inversion: images made from {who} {what} (recognised: {listed}; chance {chance:.0%})"


def _part(progress: Progress, number: int, parts: int, name: str) -> Progress:
  """Tells of one of several parts that come before the inversion."""
  return lambda fraction, word: progress(0.6 * (number + fraction) / parts, f"{name}: {word}")


def _queries(
  material: Material,
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


def _by_class(material: Material, trained: shadows_lib.Models, name: str) -> dict[str, Any]:
  """Asks the model of all classes, and that without each, for test images of that class."""
  labels, classes = material.asked_labels, material.given.classes
  tried = min(classes, _CLASSES)
  queries = min(_QUERIES, int(np.bincount(labels, minlength=classes)[:tried].min()))
  rows = [np.flatnonzero(labels == number)[:queries] for number in range(tried)]
  result: dict[str, Any] = {}
  if not queries:
    return result
  own = material.asked if name == "disguised" else material.asked_plain
  for query, networks, images in _queries(material, name, trained, own, material.asked_plain):
    predicted = shadows_lib.logits(networks, images).argmax(-1)
    seen = [predicted[0, row] for row in rows]
    unseen = [predicted[1 + number, row] for number, row in enumerate(rows)]
    result[query] = model_targeted.class_membership(seen, unseen, classes=classes)
  return result


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
