"""Verdicts by thresholds: from scores and their chance levels to *broken*, *leaks*, *too few to say*, *not broken*.

Both measures are read between two marks, chance, 0, and the originals themselves, 1:

- SSIM: chance is what the best constant guess reaches, or the attack's own estimates held against other originals,
  whichever is higher.
- the examiner's accuracy: chance is one guess for all images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from djax.audit import evaluator
from djax.audit.evaluator import Examiner

__all__ = [
  "BROKEN",
  "CLEAR",
  "EXAMINER_LEAKS",
  "EXAMINER_USABLE",
  "SSIM_LEAKS",
  "THRESHOLDS",
  "UNSEEN",
  "UNTRIED",
  "VERDICTS",
  "level",
  "measure",
  "verdict",
  "worst",
]

UNTRIED = "nothing tried"
VERDICTS = ("broken", "leaks", "too few to say", "not broken by these attacks")  # worst first

BROKEN = 0.5
SSIM_LEAKS = 0.05
EXAMINER_LEAKS = 0.1
EXAMINER_USABLE = 0.2
CLEAR = 4.0
UNSEEN = 0.1

THRESHOLDS = {
  "broken": (
    BROKEN,
    "of the way from chance to the originals is reached by the median SSIM or by the examiner's accuracy. "
    "Uniform noise of N = 100 leaves CIFAR-10 photographs about there: grainy, and plain to see what they show",
  ),
  "leaks, by SSIM": (
    SSIM_LEAKS,
    "by so much estimates are on average nearer to their own originals than to others, or further, as negatives are: "
    "the reconstruction belongs to its image",
  ),
  "leaks, by the examiner": (
    EXAMINER_LEAKS,
    "of the way from chance to the originals is reached by its accuracy",
  ),
  "clear": (
    CLEAR,
    "standard errors by which a difference must stand out to count at all: by chance once in 30 000 comparisons",
  ),
  "too few to say": (
    UNSEEN,
    "of SSIM by which estimates are nearer to their own originals would not stand out clearly: there are too few "
    "targets for that, and the verdict is neither broken nor not",
  ),
  "examiner heard": (
    EXAMINER_USABLE,
    "by so much its accuracy on originals must exceed one guess for all, else it has no say",
  ),
}

_LEAST_ROOM = 0.05  # of SSIM between chance and 1, where chance itself is nearly perfect
_PSNR_CAP = 100.0  # dB: estimates that are exact would have infinity, which JSON does not know


def measure(
  originals: np.ndarray,
  labels: np.ndarray,
  estimates: np.ndarray,
  constant: np.ndarray,
  examiner: Examiner,
) -> dict[str, Any]:
  """Scores estimates, and what chance would have scored.

  Args:
    originals: ``[t, H, W, C]``, 0..255, in an order without meaning; ``t`` at least 2.
    labels: int ``[t]``, their classes.
    estimates: float32 ``[t, H, W, C]``.
    constant: ``[H, W, C]``, the best guess that is the same for all: the mean of public images.
    examiner: trained on other originals.

  Returns:
    As JSON types ``mse``, ``psnr`` (at most 100 dB) and ``ssim`` as ``median`` and ``quartiles``; ``ssim_constant`` and
    ``ssim_others``, medians of the two controls; ``ssim_above_chance``; ``lift``, by how much SSIM with the own
    original exceeds that with another on average, ``lift_errors``, the same in standard errors, and ``lift_seen``,
    what would have stood out clearly; ``accuracy``, ``success``, ``above_chance`` of the examiner, its
    ``plain_accuracy``, ``chance`` and ``accuracy_errors``.
  """
  x, y = originals.astype(np.float32), estimates.astype(np.float32)
  scores = evaluator.score(x, labels, y, examiner)
  others = np.roll(x, len(x) // 2, axis=0)
  ssim_others = evaluator.ssim(others, y)
  ssim_constant = evaluator.ssim(x, np.broadcast_to(constant.astype(np.float32), x.shape))
  floor = float(max(np.median(ssim_others), np.median(ssim_constant)))
  lift = scores.ssim - ssim_others
  error = float(np.std(lift)) / np.sqrt(len(x))
  deviation = np.sqrt(max(scores.chance * (1 - scores.chance), 1e-6) / len(x))
  return {
    "mse": _spread(scores.mse),
    "psnr": _spread(np.minimum(scores.psnr, _PSNR_CAP)),
    "ssim": _spread(scores.ssim),
    "ssim_constant": float(np.median(ssim_constant)),
    "ssim_others": float(np.median(ssim_others)),
    "ssim_above_chance": float((np.median(scores.ssim) - floor) / max(1 - floor, _LEAST_ROOM)),
    "lift": float(np.mean(lift)),
    "lift_errors": float(np.mean(lift) / max(error, 1e-6)),
    "lift_seen": float(CLEAR * error),
    "accuracy": scores.accuracy,
    "success": scores.success,
    "above_chance": scores.above_chance,
    "plain_accuracy": scores.plain,
    "chance": scores.chance,
    "accuracy_errors": float((scores.accuracy - scores.chance) / deviation),
  }


def verdict(measured: Mapping[str, Any]) -> str:
  """Judges one run of one attack.

  Args:
    measured: as ``measure`` returns it.

  Returns:
    One of ``VERDICTS``.
  """
  heard = measured["plain_accuracy"] - measured["chance"] >= EXAMINER_USABLE
  recognised = measured["above_chance"] if heard else 0.0
  belongs = abs(measured["lift"]) >= SSIM_LEAKS and abs(measured["lift_errors"]) >= CLEAR
  if not belongs and not (recognised >= EXAMINER_LEAKS and measured["accuracy_errors"] >= CLEAR):
    return VERDICTS[2 if measured["lift_seen"] > UNSEEN else 3]
  return VERDICTS[max(measured["ssim_above_chance"], recognised) < BROKEN]


def worst(verdicts: Sequence[str | None]) -> str | None:
  """Returns the worst of some verdicts; None if there is none, for what was not tried says nothing.

  Args:
    verdicts: of ``VERDICTS``, or None.
  """
  return min((v for v in verdicts if v), key=VERDICTS.index, default=None)


def level(rows: Sequence[Mapping[str, Any]], number: int) -> dict[str, Any]:
  """Judges a threat level by its attacks and those of the levels below it.

  Args:
    rows: of ``audit.json``, under ``attacks``.
    number: 1 or 2.

  Returns:
    ``verdict``, one of ``VERDICTS`` or None where no attack finished; ``by``, the attacks it rests on, and
    ``pairs``, with how many known pairs at least, None if without; ``failed`` and ``refused``, the other attacks;
    ``words``, what it means and what to do.
  """
  within = [row for row in rows if row["level"] <= number]
  # An attack that failed with some pairs may have won with others.
  reached = worst([row["verdict"] for row in within if row["runs"]])
  rests_on = [row for row in within if row["runs"] and row["verdict"] == reached]
  by = [row["name"] for row in rests_on]
  pairs = min((row["pairs"] or 0 for row in rests_on), default=0) or None
  failed, refused = ([r["name"] for r in within if r["status"] == s] for s in ("failed", "refused"))
  if reached == VERDICTS[0]:
    alone = [row["name"] for row in rests_on if row["level"] == 1]
    words = f"{_WHO[number]} gets pictures back{_pairs(pairs)} ({', '.join(by)}). {_BROKEN[number]}"
    if number == 2 and alone:
      words = f"No known original is needed ({', '.join(alone)}): see level 1. {_BROKEN[1]}"
  elif reached == VERDICTS[1]:
    words = (
      f"{_WHO[number]} learns something of the pictures, or of what they show ({', '.join(by)}): more than guessing "
      "gives, less than the line drawn for broken. Look at what comes back, and use it only where that may be seen; "
      "stronger attacks may get further."
    )
  elif reached == VERDICTS[2]:
    words = (
      f"What ran ({', '.join(row['name'] for row in within if row['runs'])}) brought nothing clear back, but there are "
      "too few targets: less than a plain leak would not have stood out. Audit more images of the same kind."
    )
  elif reached:
    words = (
      f"What ran ({', '.join(by)}) told {_WHOM[number]} nothing clear. That is no proof: it says what these attacks "
      "with these numbers of images cannot do."
    )
  else:
    words = f"No attack of {_WHOM[number]} came to an end, so nothing is known."
  if failed:
    words += f" Failed, and so no evidence of anything: {', '.join(failed)}."
  return {
    "verdict": reached,
    "by": by,
    "pairs": pairs,
    "failed": failed,
    "refused": refused,
    "words": words,
  }


_WHO = {
  1: "Whoever has the disguised images alone",
  2: "Whoever has the disguised images and a few of the originals",
}
_WHOM = {
  1: "someone with the disguised images alone",
  2: "someone with the disguised images and a few of the originals",
}
_BROKEN = {
  1: "Treat these disguised images as the originals themselves: do not hand them out.",
  2: "Do not hand them out if any original may become known: a published picture, a public data set in the source, "
  "an employee's photograph.",
}


def _pairs(count: int | None) -> str:
  """Says how many pairs were enough, unless none was needed."""
  return f" with {count} known pair{'s' * (count != 1)}" if count else ""


def _spread(values: np.ndarray) -> dict[str, Any]:
  low, middle, high = (float(value) for value in np.percentile(values, [25, 50, 75]))
  return {"median": middle, "quartiles": [low, high]}
