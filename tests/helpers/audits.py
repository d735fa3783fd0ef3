"""Attacks and an examiner that take no time, and what stands around them."""

import re

import numpy as np

from djax import keys, sources
from djax.attacks.base import Attack, Estimate
from djax.audit import evaluator, runner, scenario
from djax.audit.scenario import Sizes
from djax.cli import audit
from djax.owner import record_noise
from djax.owner.disguiser import Disguiser
from helpers import verbs

SIZES = Sizes(private=600, public=300, targets=60, pairs=(1, 5))


def nearest_mean(images, labels):
  """An examiner that needs no training: the class whose mean is nearest."""
  means = np.stack([images[labels == c].mean(0, dtype=np.float64) for c in range(10)])

  def classify(batch):
    batch = np.asarray(batch, np.float64)
    return ((batch[:, None] - means) ** 2).sum((-3, -2, -1)).argmin(1).astype(np.int32)

  return evaluator.Examiner(classify)


def undo(known, *, seed, progress):
  """Cheats: the experiment key is public."""
  progress(0.5, "undoing")
  images = Disguiser(known.spec, record_noise.Old(known.spec, keys.experiment(seed))).restored(
    known.targets
  )
  return Estimate(np.asarray(images, np.float32), {"found": np.float32(1), "warnings": ["mind"]})


def guess(known, *, seed, progress):
  shape = (len(known.targets), *known.spec["image_shape"])
  draw = np.random.default_rng(seed).normal(128, 2, shape)
  return Estimate(draw.astype(np.float32), {"infinite": float("inf")})


def undo_mirrored(known, *, seed, progress):
  images, facts = undo(known, seed=seed, progress=progress)
  return Estimate(images[:, :, ::-1], facts)


def undo_with_pairs(known, *, seed, progress):
  return (undo if len(known.pairs[0]) >= 5 else guess)(known, seed=seed, progress=progress)


def fall(known, *, seed, progress):
  raise RuntimeError("out of\nluck")


def fall_without_pairs(known, *, seed, progress):
  return (undo if len(known.pairs[0]) >= 5 else fall)(known, seed=seed, progress=progress)


def nan(known, *, seed, progress):
  images, facts = guess(known, seed=seed, progress=progress)
  return Estimate(images * np.float32("nan"), facts)


def takes_all(spec):
  return None


PERFECT = Attack("perfect", 1, (), "undoes it", takes_all, undo)
MIRRORED = Attack("mirrored", 1, (), "undoes it, left to right", takes_all, undo_mirrored)
USELESS = Attack("useless", 1, (), "guesses", takes_all, guess)
RAISING = Attack("raising", 1, (), "falls", takes_all, fall)
NAN = Attack("nan", 1, (), "not a number", takes_all, nan)
PAIRED = Attack("paired", 2, ("pairs",), "undoes it", takes_all, undo_with_pairs)
HALF = Attack("half", 2, ("pairs",), "falls at first", takes_all, fall_without_pairs)
REFUSING = Attack("refusing", 1, (), "refuses", lambda spec: f"not {spec['scheme']}", guess)
FAKES = (PERFECT, USELESS, RAISING, REFUSING, PAIRED)


def quick(monkeypatch, attacks):
  """Puts attacks, sizes and an examiner in place that take no time."""
  test = sources.load("digits", "test")
  examiner = nearest_mean(test.images, test.labels)
  monkeypatch.setattr(audit, "ATTACKS", {attack.name: attack for attack in attacks})
  monkeypatch.setattr(scenario, "FAST", SIZES)
  monkeypatch.setattr(runner, "train_examiner", lambda *_, **__: examiner)
  monkeypatch.setattr(runner.ceiling, "estimate", restored)


def restored(opened, *rest, **options):
  """What ``ceiling.estimate`` gives, without taking noise off."""
  return opened.targets[:, 0], {"method": "restored", "views": 1, "validation": {}}


def refused(answer, code, message):
  """Asserts one line of error, after those that say how far it is, nothing on stdout, and the exit code."""
  told = [line for line in answer[2] if not re.match(r"djax: +\d+ s  ", line)]
  verbs.refused((answer[0], answer[1], told), code, message)
