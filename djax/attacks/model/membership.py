"""Membership inference: was this record among those that a network was trained on?

Two scores, both the larger the likelier: the loss threshold (Yeom et al., arXiv:1709.01604) calls those members that
the network is sure of; LiRA (Carlini et al., arXiv:2112.03570) asks of each record how sure networks are that did and
that did not have it in training, and which of the two the target is like. An attack that errs often is of no use to
anybody, so what counts is how many members it finds at a low rate of false alarms.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import special, stats
from sklearn import metrics

from djax.attacks.model.shadows import hard_labels
from djax.errors import ConfigError

__all__ = [
  "FEW_MODELS",
  "RATES",
  "attack",
  "auc",
  "confidence",
  "figure",
  "leave_out",
  "lira",
  "loss_threshold",
  "roc",
  "summary",
  "tpr_at",
]

RATES = (0.001, 0.01)
FEW_MODELS = 64  # below, one variance serves all records

_LEAST_DEVIATION = 1e-3
_POINTS = 100


def confidence(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns the confidence in the right class on the scale of logits, ``log(p / (1 - p))``: close to Gaussian.

  Args:
    logits: float ``[..., n, K]``; logarithms of probabilities do as well.
    labels: int ``[n]``.

  Returns:
    float64 ``[..., n]``, finite for finite logits.

  Raises:
    ConfigError: for soft labels.
  """
  right = np.arange(logits.shape[-1]) == hard_labels(labels)[:, None]
  values = logits.astype(np.float64)
  # log p - log (1 - p) = z_right - log sum of exp z over the others
  others = special.logsumexp(np.where(right, -np.inf, values), axis=-1)
  return np.where(right, values, 0).sum(-1) - others


def loss_threshold(confidence: np.ndarray) -> np.ndarray:
  """Returns minus the cross entropy, float64 of the same shape: one threshold for all records.

  Args:
    confidence: from ``confidence``.
  """
  return -np.logaddexp(0, -confidence)


def lira(target: np.ndarray, shadows: np.ndarray, members: np.ndarray) -> np.ndarray:
  """Scores records by the online attack: Gaussians of the confidences of models with and without each record.

  Each record has means of its own. From ``FEW_MODELS`` models on it also has variances of its own; below, as the paper
  advises, one variance serves all models with, and one all without.

  Args:
    target: float ``[n]``, confidences of the model under attack.
    shadows: float ``[S, n]``, of the shadow models.
    members: bool ``[S, n]``, which records each of them was trained on.

  Returns:
    float64 ``[n]``, the log likelihood ratio of membership.

  Raises:
    ConfigError: if a record has less than two shadow models with, or without it.
  """
  least = int(min(members.sum(0).min(), (~members).sum(0).min()))
  if least < 2:
    raise ConfigError(
      f"lira needs two shadow models with and two without each record, got {least}. Train more of them."
    )
  ratio = np.zeros(len(target))
  for kind, sign in ((members, 1), (~members, -1)):
    count = kind.sum(0)
    mean = np.where(kind, shadows, 0).sum(0) / count
    squares = (np.where(kind, shadows - mean, 0) ** 2).sum(0)
    if len(shadows) < FEW_MODELS:
      variance = np.full(len(target), squares.sum() / (count - 1).sum())
    else:
      variance = squares / (count - 1)
    deviation = np.maximum(np.sqrt(variance), _LEAST_DEVIATION)
    ratio += sign * stats.norm.logpdf(target, mean, deviation)
  return ratio


def leave_out(shadows: np.ndarray, members: np.ndarray) -> np.ndarray:
  """Makes each model the target in turn, so that the shadow models serve as targets too.

  With the target goes the model that was trained on its complement (see ``shadows.halves``). Then each record is in
  half of those that are left, whether the target had it or not; else their number alone would hint at the answer.

  Args:
    shadows: float ``[S, n]``, confidences of all models.
    members: bool ``[S, n]`` from ``shadows.halves``.

  Returns:
    float64 ``[S, n]``, the scores by ``lira`` of each model.

  Raises:
    ConfigError: for members that are no such couples, or fewer than six models.
  """
  if (members[::2] == members[1::2]).any():
    raise ConfigError(
      "leave_out needs models in couples, the second trained on what the first was not. Draw them with shadows.halves."
    )
  couple = np.arange(len(shadows)) // 2
  return np.stack(
    [
      lira(shadows[s], shadows[couple != couple[s]], members[couple != couple[s]])
      for s in range(len(shadows))
    ]
  )


def attack(confidence: np.ndarray, members: np.ndarray) -> dict[str, Any]:
  """Runs both attacks with each model as the target in turn.

  Args:
    confidence: float ``[S, n]``, of all models for the queries that the attacker has of each record.
    members: bool ``[S, n]`` from ``shadows.halves``.

  Returns:
    ``loss`` and ``lira``, of each what ``summary`` says, and ``by_target``, ``auc`` of each model.
  """
  rows = {}
  for name, scores, models in (
    ("loss", loss_threshold(confidence), None),
    ("lira", leave_out(confidence, members), len(members)),
  ):
    by_target = [auc(*pair) for pair in zip(scores, members, strict=True)]
    rows[name] = {**summary(scores, members, models=models), "by_target": by_target}
  return rows


def roc(scores: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the curve of all thresholds; records of one score are called members together.

  Args:
    scores: float, of any shape.
    member: bool of the same shape, with some of either kind.

  Returns:
    False-positive and true-positive rates, float64 ``[m]`` each, from (0, 0) to (1, 1).

  Raises:
    ConfigError: if there are no members or no others, or a score is not a number.
  """
  scores, member = np.ravel(scores), np.ravel(member).astype(bool)
  if member.all() or not member.any() or np.isnan(scores).any():
    raise ConfigError(
      "a curve needs members, others, and a score for each, got "
      f"{member.sum()} members among {len(member)} and {np.isnan(scores).sum()} scores that are no number."
    )
  wrong, right, _ = metrics.roc_curve(member, scores, drop_intermediate=False)
  return wrong, right


def auc(scores: np.ndarray, member: np.ndarray) -> float:
  """Returns the chance that a member scores above another record, equal scores counted half; 0.5 is guessing.

  Args:
    scores: as for ``roc``.
    member: as for ``roc``.
  """
  return float(metrics.auc(*roc(scores, member)))


def tpr_at(
  scores: np.ndarray, member: np.ndarray, *, fpr: float, models: int | None = None
) -> float:
  """Returns the share of members found while at most ``fpr`` of the others are called members.

  Two rules of ours refuse rates that mean nothing. One false alarm must not already be more than ``fpr``: that takes
  ``1 / fpr`` non-members or more. And as Gaussians fitted to few models say little of their tails, ``S`` of them are
  trusted up to one in ``S^2``: that takes ``1 / sqrt(fpr)`` shadow models or more, 10 for 1 %, 32 for 0.1 %.

  Args:
    scores: as for ``roc``.
    member: as for ``roc``.
    fpr: a rate above 0 and below 1.
    models: how many shadow models the scores rest on, the targets included; None where there are none.

  Raises:
    ConfigError: for a rate that these records or models cannot resolve.
  """
  others = int((~np.asarray(member, bool)).sum())
  if others * fpr < 1 - 1e-9:
    raise ConfigError(
      f"the true-positive rate at {fpr:.2%} false positives needs {int(np.ceil(1 / fpr - 1e-9))} non-members, got "
      f"{others}. Ask for more records, or a higher rate."
    )
  needed = int(np.ceil(fpr**-0.5 - 1e-9))
  if models is not None and models < needed:
    raise ConfigError(
      f"the true-positive rate at {fpr:.2%} false positives needs {needed} shadow models, got {models}. "
      "Train more of them, or ask for a higher rate."
    )
  return _best(*roc(scores, member), fpr)


def summary(scores: np.ndarray, member: np.ndarray, *, models: int | None = None) -> dict[str, Any]:
  """Returns the results of an attack as JSON types.

  Args:
    scores: as for ``roc``; of several targets ``[S, n]``, which share one threshold.
    member: as for ``roc``.
    models: as for ``tpr_at``.

  Returns:
    ``auc``; ``tpr`` by rate, ``"0.001"`` and ``"0.01"``, None where ``refused`` says why; ``fpr`` and ``by_fpr``, up to
    100 points of the curve, close together at low rates.
  """
  tpr: dict[str, float | None] = {}
  refused = {}
  for rate in RATES:
    try:
      tpr[str(rate)] = tpr_at(scores, member, fpr=rate, models=models)
    except ConfigError as error:
      tpr[str(rate)], refused[str(rate)] = None, str(error)
  wrong, right = roc(scores, member)
  shown = np.geomspace(1 / max(1, (~np.asarray(member)).sum()), 1, _POINTS)
  return {
    "auc": auc(scores, member),
    "tpr": tpr,
    "refused": refused,
    "fpr": [float(rate) for rate in shown],
    "by_fpr": [_best(wrong, right, rate) for rate in shown],
  }


def _best(wrong: np.ndarray, right: np.ndarray, rate: float) -> float:
  """Returns the greatest true-positive rate of a curve at no more than a rate of false positives."""
  return float(right[wrong <= rate + 1e-12].max())


def figure(curves: Mapping[str, Mapping[str, Any]]) -> Any:
  """Draws curves, both axes logarithmic: attacks that err often lie at the right, where it does not count.

  Args:
    curves: by label, at least one, what ``summary`` says. Two in a row share a colour.

  Returns:
    A Matplotlib figure.
  """
  drawing = Figure(figsize=(5, 4), layout="constrained")
  axes = drawing.subplots()
  for number, (label, row) in enumerate(curves.items()):
    style = ("-", "--")[number % 2]
    axes.plot(row["fpr"], row["by_fpr"], style, color=f"C{number // 2}", label=label)
  lowest = min(row["fpr"][0] for row in curves.values())
  axes.plot([lowest, 1], [lowest, 1], ":", color="0.6", label="guessing")
  ends = (lowest, 1)
  names = {"xlabel": "false-positive rate", "ylabel": "true-positive rate"}
  axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, **names)
  axes.legend(frameon=False, fontsize="small", loc="lower right")
  return drawing
