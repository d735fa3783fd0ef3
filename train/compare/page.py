"""The comparison page, Markdown, from the results of ``collect`` alone."""

from collections.abc import Mapping
from typing import Any

from djax.io import pages
from train.table.page import COLUMNS, NOT_RUN, PRIVACY, table
from train.table.summary import Summary

__all__ = ["page"]

_PLAIN = "plain"
_HEAD = """# Comparison

Made by `python -m train.compare`, which runs what is missing; no number is typed by hand, and `docs/comparison.json`
holds the same facts. Every scheme gets the same images and epochs:
{data}. Otherwise its shipped config, one seed, one key. So differences of a point are noise, and the
networks differ: `plain twin` is the same network without a disguise."""
_UTILITY_TEXT = """## Utility and cost

Time is that of encoding {batch} images at once on {machine}, median, and as a multiple of copying the same images to
float32 in the same run. Growth is bytes of one encoding over those of the original; *as trained* counts every fixed
view or encoding that the run uses of a training image (they are made anew in training, so nobody has to store them)."""
_RECONSTRUCTION = """## What comes back of the images

As in [results](results.md): the best attack of each level by median SSIM, sizes of `python -m djax audit --fast`.
InstaHide is audited with 50 encodings of each of 100 private images, its attack having been told how many there are.
**none ran** is no strength: no attack of djax takes that scheme at that level. `threat-model.md` has what else is
known, such as encodings of NeuraCrypt matched with their originals."""
_MODEL = """## What the model gives away

Membership: LiRA with {shadows} shadow networks on {records} training records, beside the loss threshold; small dense
networks, not those of the rows. *Own queries* are exactly the encodings trained on; *fresh queries* are the same
records disguised once more under the same key, as somebody gets them who may ask in disguise (AES draws nothing: own
queries again); *plain queries* are originals, asked by an outsider without the key. True positives at 1 % false
positives: 1 % is chance. Class membership: the area under the curve of the authors' Fano factor between networks
trained with and without the class; 0.5 is chance. Inversion: the share of images, inverted from the run's own network,
in which an examiner sees the class, as they are / after the best attack on the disguise / restored with the key. A dash
is what cannot be asked: plain images do not fit the network, or nothing applies. Dense networks learn single encodings
of InstaHide and NeuraCrypt by heart and are at a loss on others: there, membership by own queries is certain, and the
columns on fresh queries and on classes say nothing."""
_UTILITY = (
  *("scheme", "disguise", "network", "disguised %", "plain twin %", "cost"),
  *("µs an image", "copies", "growth", "as trained"),
)
_MODELS = (
  "scheme",
  "LiRA, own queries",
  "loss, own queries",
  "LiRA, fresh queries",
  "LiRA, plain queries",
  "class, own queries",
  "class, plain queries",
  "Fano with / without",
  "inversion",
)


def page(results: Mapping[str, Any]) -> str:
  """Returns the page.

  Args:
    results: as ``collect.collect`` returns them.
  """
  rows = [Summary(row, results) for row in results["rows"]]
  costs = results["cost"]["rows"]
  machine = results["cost"]["machine"]

  def cost(summary: Summary) -> Mapping[str, Any]:
    return costs[summary.row["row"]]

  columns = {
    **COLUMNS,
    "scheme": lambda summary: f"**{summary.row['row']}**",
    "network": lambda summary: summary.row["network"],
    "µs an image": lambda summary: f"{cost(summary)['microseconds'][0]:.1f}",
    "copies": lambda summary: f"{cost(summary)['copies'][0]:.0f}",
    "growth": lambda summary: f"{cost(summary)['growth']:g}",
    "as trained": lambda summary: f"{cost(summary)['growth'] * cost(summary)['encodings']:g}",
  }
  models = {_PLAIN: results["model"], **{row["row"]: row["model"] for row in results["rows"]}}
  known = next((model for model in models.values() if model), {"shadows": 0, "records": 0})
  parts = [
    _HEAD.format(data=results["rows"][0]["group"]),
    _UTILITY_TEXT.format(
      batch=results["cost"]["batch"], machine=f"{machine['device']}, {machine['cores']} cores"
    ),
    table(_UTILITY, rows, columns),
    _RECONSTRUCTION,
    table(["scheme", *PRIVACY], rows, columns),
    _MODEL.format(shadows=known["shadows"], records=known["records"]),
    pages.table(_MODELS, [[f"**{name}**", *_attacked(name, models[name])] for name in models]),
  ]
  return "\n\n".join(parts) + "\n"


def _attacked(name: str, model: Mapping[str, Any] | None) -> list[str]:
  """Returns what attacks on a model gave."""
  if model is None:
    return [NOT_RUN, *[""] * (len(_MODELS) - 2)]
  own = _PLAIN if name == _PLAIN else "disguised"
  fano = model["class_membership"].get(own)
  shares = (model["inversion"].get("run") or {}).values()
  return [
    _rate(model, own, "lira"),
    _rate(model, own, "loss"),
    _rate(model, "fresh_queries", "lira"),
    _rate(model, "plain_queries", "lira"),
    _area(model, own),
    _area(model, "plain_queries"),
    f"{fano['with']:.1f} / {fano['without']:.1f}" if fano else "–",
    " / ".join("–" if share is None else f"{share:.0%}" for share in shares) or "–",
  ]


def _rate(model: Mapping[str, Any], query: str, attack: str) -> str:
  row = model["membership"].get(query)
  if not row or row[attack]["tpr"].get("0.01") is None:
    return "–"
  return f"{row[attack]['tpr']['0.01']:.1%} (AUC {row[attack]['auc']:.2f})"


def _area(model: Mapping[str, Any], query: str) -> str:
  row = model["class_membership"].get(query)
  return f"{row['auc']:.2f}" if row else "–"
