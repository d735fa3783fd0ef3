"""Model inversion: an image of each class, made from the network alone, and what is seen in it."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from djax import models, schemes
from djax.attacks import ATTACKS
from djax.attacks.base import Known
from djax.attacks.generic import examiner as examiner_lib
from djax.attacks.model import model_targeted
from djax.attacks.model import shadows as shadows_lib
from djax.audit import evaluator
from djax.audit.scenario import Progress
from djax.errors import NotInvertibleError
from djax.models import network, predict
from djax.ops import metrics
from djax.schemes import Trait
from train.material import HELD, Material

__all__ = ["invert"]

_COPIES = 3  # inverted images of each class


def _ignored(fraction: float, word: str) -> None:
  """Tells nobody of progress."""


def invert(
  folder: Path | None,
  material: Material,
  sets: Mapping[str, np.ndarray],
  whole: Mapping[str, shadows_lib.Models],
  seed: int,
  progress: Progress,
) -> dict[str, Any]:
  """Inverts small networks, and that of the run.

  Args:
    folder: the run directory, or None where there is no run.
    material: of the attacks.
    sets: the images that small networks were trained on, by name.
    whole: these networks, trained on all classes.
    seed: of all that is drawn.
    progress: told how far the whole examination is.

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
  others = np.concatenate([train.images[count : count + HELD], test.images[:HELD]])
  other_labels = np.concatenate([train.labels[count : count + HELD], test.labels[:HELD]])
  examiner = evaluator.train_examiner(
    others,
    other_labels,
    classes=given.classes,
    seed=seed,
    progress=lambda fraction, word: progress(0.6 + 0.1 * fraction, word),
  )
  originals = train.images[: len(material.labels)].astype(np.float32)
  present = np.unique(material.labels)
  wanted = np.repeat(present, _COPIES)
  means = np.stack([originals[material.labels == label].mean(0) for label in present])
  targets = jnp.asarray(np.repeat(means, _COPIES, 0))

  def score(images: np.ndarray) -> dict[str, float]:
    images = np.clip(images, 0, 255).astype(np.float32)
    alike = metrics.ssim(targets, jnp.asarray(images), filter_size=metrics.window(images.shape))
    return {
      "accuracy": float(np.mean(examiner.labels(images) == wanted)),
      "ssim": float(np.mean(np.asarray(alike))),
    }

  result: dict[str, Any] = {
    "baseline": score(np.repeat(originals.mean(0)[None], len(wanted), 0)),
    "examiner": float(np.mean(examiner.labels(originals[:count]) == material.labels[:count])),
    "images": len(wanted),
  }
  networks: dict[str, tuple[Any, np.ndarray, bool]] = {
    name: (shadows_lib.as_function(whole[name], 0), images, name == "plain")
    for name, images in sets.items()
  }
  if folder is not None:
    plain = Trait.IDENTITY in schemes.traits(given.spec)
    networks["run"] = (_network(folder), material.disguised, plain)
  for place, (name, (logits_of, images, plain)) in enumerate(networks.items()):
    progress(0.7 + 0.3 * place / len(networks), f"inverting the network: {name}")
    if logits_of is None:
      result[name] = {"reasons": {"raw": "the network takes whole units and has no gradient"}}
      continue
    inverted = model_targeted.invert(logits_of, wanted, images, seed=seed)
    result[name] = _scores(material, inverted, others[:HELD], plain, score)
  return result


def _scores(
  material: Material,
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
  reasons: dict[str, str | None] = {}
  scores: dict[str, Any] = dict.fromkeys(("raw", "undone", "key_holder", "by"))
  scores["reasons"] = reasons
  known = Known(spec, material.disguised, inverted, public)
  if not material.alike:
    reasons["raw"] = "disguised images have another shape than originals"
  else:
    scores["raw"] = score(examiner_lib.look(known, seed=0, progress=_ignored).images)
  able = [name for name in ("moments", "ica", "placement") if ATTACKS[name].refuses(spec) is None]
  if able:
    scores["by"] = able[0]
    estimate = ATTACKS[able[0]].attack(known, seed=0, progress=_ignored)
    scores["undone"] = score(estimate.images)
  else:
    reasons["undone"] = ATTACKS["moments"].refuses(spec)
  try:
    stored = inverted
    if not material.scheme.on_device:
      stored = np.clip(np.rint(inverted), 0, 255).astype(np.uint8)
    restored = np.asarray(material.scheme.restore(material.key, stored))
    scores["key_holder"] = score(restored.astype(np.float32))
  except NotInvertibleError as error:
    reasons["key_holder"] = str(error)
  return scores


def _network(folder: Path) -> Callable[[Any], Any] | None:
  """Returns the run's network as a function from images to logits, or None if it has no gradient."""
  predictor = predict.load(folder)
  if not models.standardised(predictor.model):
    return None
  return functools.partial(network.logits, predictor.model, predictor.network)
