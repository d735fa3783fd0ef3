"""Runs the attacks that apply to a setting and records the result of each, refused and failed ones included."""

import contextlib
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

import djax
from djax.attacks import base
from djax.attacks.base import Attack
from djax.attacks.common import copies
from djax.audit import bounds, ceiling, evaluator, verdicts
from djax.audit.scenario import Progress, Scenario
from djax.errors import ConfigError, nearest

__all__ = ["FORMAT", "PICTURES", "VERSION", "Outcome", "audit", "choose", "train_examiner"]

FORMAT = "djax-audit"
VERSION = 1
PICTURES = 8

_EXAMINER_IMAGES = 8000
_PACKAGES = ("jax", "numpy", "scipy")


class Outcome(NamedTuple):
  """The result of an audit.

  Attributes:
    facts: the content of ``audit.json``.
    pictures: by caption, the first 8 originals, disguised images and best estimates of each attack; show originals.
  """

  facts: dict[str, Any]
  pictures: dict[str, np.ndarray]


def choose(names: Sequence[str], table: Mapping[str, Attack]) -> list[Attack]:
  """Returns the attacks of some names, all if none is given.

  Raises:
    ConfigError: for a name that does not exist.
  """
  for name in names:
    if name not in table:
      raise ConfigError(
        f"audit: attacks are {', '.join(table)}; got {name!r}.{nearest(name, table)}"
      )
  return [attack for name, attack in table.items() if name in names or not names]


def audit(
  setting: Scenario,
  attacks: Sequence[Attack],
  *,
  seed: int,
  examiner: evaluator.Examiner | None = None,
  with_key: bool = True,
  progress: Progress = lambda fraction, word: None,
) -> Outcome:
  """Attacks a setting and judges the results.

  Args:
    setting: the experiment.
    attacks: rows of ``attacks.ATTACKS``.
    seed: of the attacks and of the examiner.
    examiner: trained on originals that are no targets; trained here by default.
    with_key: whether to measure what the key gives back.
    progress: told how far it is.
  """
  start = time.perf_counter()
  if examiner is None:
    examiner = train_examiner(setting, seed=seed, progress=progress)
  constant = setting.public.mean(0, dtype=np.float64).astype(np.float32)
  first = slice(min(PICTURES, setting.targets))
  pictures = {
    "originals": setting.private[first],
    "disguised": setting.disguised[first],
  }
  rows = []
  for place, attack in enumerate(attacks):

    def part(fraction, word, place=place, name=attack.name):
      progress((place + fraction) / len(attacks), f"{name}: {word}")

    row, images = _attack(setting, attack, seed, examiner, constant, part)
    rows.append(row)
    if images is not None and attack.name != "examiner":  # what it says is what is seen already
      pictures[attack.name] = images[first]
  ceiling_facts = {}
  if with_key:
    found, images = _ceiling(setting, rows, seed, examiner, constant, progress)
    ceiling_facts = {"ceiling": found}
    if images is not None:
      pictures["with the key"] = images[first]
  warnings = [*setting.facts["warnings"], *_warnings(rows)]
  height, width = setting.private.shape[1:3]
  if max(height, width) > copies.SIDE:
    warnings.append(
      f"the examiner sees copies of {copies.SIDE} pixels a side, the images have {height} x {width}; SSIM and PSNR are "
      "those at full size"
    )
  facts = {
    "format": FORMAT,
    "version": VERSION,
    "djax": djax.__version__,
    "versions": {"python": platform.python_version(), **_versions()},
    "setting": {
      **setting.facts,
      "spec": dict(setting.spec),
      "classes": setting.classes,
      "warnings": warnings,
    },
    "seed": seed,
    "seconds": time.perf_counter() - start,
    "noise_alone": bounds.noise_alone(
      setting.spec,
      setting.private[: setting.targets],
      np.concatenate([setting.private[setting.targets :], setting.public]),
      views=setting.facts.get("views", 1),
    ),
    **ceiling_facts,
    "levels": {str(number): verdicts.level(rows, number) for number in (1, 2)},
    "attacks": rows,
    "thresholds": {name: value for name, (value, _) in verdicts.THRESHOLDS.items()},
  }
  return Outcome(facts, pictures)


def train_examiner(
  setting: Scenario, *, seed: int, progress: Progress = lambda fraction, word: None
) -> evaluator.Examiner:
  """Trains the examiner of a setting: on public images, and on private ones that are no targets."""
  images = np.concatenate([setting.public, setting.private[setting.targets :]])
  labels = np.concatenate([setting.public_labels, setting.labels[setting.targets :]])
  some = slice(_EXAMINER_IMAGES)
  return evaluator.train_examiner(
    images[some], labels[some], classes=setting.classes, seed=seed, progress=progress
  )


def _attack(
  setting: Scenario,
  attack: Attack,
  seed: int,
  examiner: evaluator.Examiner,
  constant: np.ndarray,
  progress: Progress,
) -> tuple[dict[str, Any], np.ndarray | None]:
  """Returns an attack's row and its best estimates, None if it made none."""
  row: dict[str, Any] = {"name": attack.name, "level": attack.level, "title": attack.title}
  if reason := attack.refuses(setting.spec):
    return {**row, "status": "refused", "reason": reason, "verdict": None, "runs": []}, None
  runs: list[dict[str, Any]] = []
  shown: list[np.ndarray] = []
  failures = []
  for pairs in setting.pairs if attack.level == 2 else (None,):
    progress(
      len(runs) / max(1, len(setting.pairs)), "starts" if pairs is None else f"{pairs} pairs"
    )
    try:
      result = base.run(attack, setting.known(pairs or 0), seed=seed, progress=progress)
      if not np.isfinite(result.images).all():
        raise ValueError("its estimates are not all finite")
    except Exception as error:  # a failed attack must not look like one that recovered nothing
      line = " ".join(str(error).split())[:300]
      place = f"with {pairs} pairs " if pairs else ""
      failures.append(f"{place}{type(error).__name__}: {line}")
      continue
    originals, labels = setting.private[: setting.targets], setting.labels[: setting.targets]
    # A picture and its mirror image show the same, and some attacks cannot tell which of them is the original.
    sides = (result.images, result.images[:, :, ::-1])
    scores = [verdicts.measure(originals, labels, images, constant, examiner) for images in sides]
    side = int(scores[1]["ssim"]["median"] > scores[0]["ssim"]["median"])
    runs.append(
      {
        "pairs": pairs,
        "mirrored": bool(side),
        "verdict": verdicts.verdict(scores[side]),
        "seconds": result.seconds,
        "scores": scores[side],
        "diagnostics": _plain(result.diagnostics),
      }
    )
    shown.append(sides[side])
  row |= {"status": "failed" if failures else "ran", "runs": runs}
  if failures:
    row["reason"] = "; ".join(failures)
  row["verdict"] = verdicts.worst([run["verdict"] for run in runs])
  if not runs:
    return row, None
  row["pairs"] = next(run["pairs"] for run in runs if run["verdict"] == row["verdict"])
  best = max(range(len(runs)), key=lambda i: runs[i]["scores"]["ssim"]["median"])
  row["shown"] = runs[best]["pairs"]
  return row, shown[best]


def _ceiling(
  setting: Scenario,
  rows: Sequence[Mapping[str, Any]],
  seed: int,
  examiner: evaluator.Examiner,
  constant: np.ndarray,
  progress: Progress,
) -> tuple[dict[str, Any], np.ndarray | None]:
  """Returns what the key gives back, beside the best attack, and the images; None where it gives nothing back."""
  if isinstance(setting.opened, str):
    return {"words": f"not measured: {setting.opened}"}, None
  start = time.perf_counter()
  images, how = ceiling.estimate(
    setting.opened,
    setting.public,
    setting.spec,
    seed=seed,
    progress=lambda done, word: progress(1.0, word),
  )
  targets = slice(setting.targets)
  scores = verdicts.measure(
    setting.private[targets], setting.labels[targets], images, constant, examiner
  )
  best = max((run["scores"]["ssim"]["median"] for row in rows for run in row["runs"]), default=None)
  found = {
    **how,
    "scores": scores,
    "seconds": time.perf_counter() - start,
    "words": ceiling.words(scores, how, setting.facts.get("views", 1), best),
  }
  return found, images


def _warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Warns of an examiner that is not good enough to have a say."""
  scores = next((run["scores"] for row in rows for run in row["runs"]), None)
  if not scores or scores["plain_accuracy"] - scores["chance"] >= verdicts.EXAMINER_USABLE:
    return []
  return [
    f"the examiner names {scores['plain_accuracy']:.0%} of the originals, one guess for all {scores['chance']:.0%}: it "
    "has no say, verdicts rest on SSIM"
  ]


def _plain(value: Any) -> Any:
  """Returns diagnostics as JSON types."""
  match value:
    case Mapping():
      return {str(name): _plain(item) for name, item in value.items()}
    case list() | tuple():
      return [_plain(item) for item in value]
    case np.ndarray():
      return _plain(value.tolist())
    case np.generic():
      return _plain(value.item())
    case float() if not np.isfinite(value):
      return None
    case None | bool() | int() | float() | str():
      return value
  return str(value)


def _versions() -> dict[str, str | None]:
  """Returns the versions of what the audit computes with; None for what was installed without its metadata."""
  versions: dict[str, str | None] = dict.fromkeys(_PACKAGES)
  for name in _PACKAGES:
    with contextlib.suppress(metadata.PackageNotFoundError):
      versions[name] = metadata.version(name)
  return versions
