"""The comparison page, Markdown, from the facts of ``facts`` alone."""

from collections.abc import Mapping
from typing import Any

from train.table import page as tables
from train.table.figures import figures

__all__ = ["page"]

_PLAIN = "plain"
_HEAD = """# Comparison

Made by `python -m train.compare`, which runs what is missing; no number is typed by hand, and `docs/comparison.json`
holds the same facts. Every scheme gets the same images and epochs:
{data}. Otherwise its shipped config, one seed, one key. So differences of a point are noise, and the
networks differ: `plain twin` is the same network without a disguise."""
_UTILITY = """## Utility and cost

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


def page(facts: Mapping[str, Any]) -> str:
  """Returns the page.

  Args:
    facts: as ``facts.collected`` returns them.
  """
  pairs = [(row, figures(row, facts)) for row in facts["rows"]]
  costs = facts["cost"]["rows"]
  where = facts["cost"]["machine"]
  utility: tables.Columns = {
    "scheme": lambda row, f: f"**{row['row']}**",
    "disguise": lambda row, f: row["disguise"],
    "network": lambda row, f: row["network"],
    "disguised %": tables.disguised,
    "plain twin %": lambda row, f: tables.percent(f.plain),
    "cost": lambda row, f: tables.points(f.cost),
    "µs an image": lambda row, f: f"{costs[row['row']]['microseconds'][0]:.1f}",
    "copies": lambda row, f: f"{costs[row['row']]['copies'][0]:.0f}",
    "growth": lambda row, f: f"{costs[row['row']]['growth']:g}",
    "as trained": lambda row, f: (
      f"{costs[row['row']]['growth'] * costs[row['row']]['encodings']:g}"
    ),
  }
  back: tables.Columns = {
    "scheme": lambda row, f: f"**{row['row']}**",
    "other key %": lambda row, f: tables.percent(f.other_key) if f.seeds else tables.NOT_RUN,
    "misused %": lambda row, f: tables.percent(f.misused),
    "key matters": lambda row, f: tables.matters(f),
    "best Level 1": lambda row, f: tables.best(f, 1, psnr=True),
    "verdict 1": lambda row, f: f.verdicts.get(1) or "",
    "best Level 2": lambda row, f: tables.best(f, 2, psnr=True),
    "verdict 2": lambda row, f: f.verdicts.get(2) or "",
  }
  models = [(_PLAIN, facts["model"]), *((row["row"], row["model"]) for row in facts["rows"])]
  known = next((model for _, model in models if model), {"shadows": 0, "records": 0})
  parts = [
    _HEAD.format(data=facts["rows"][0]["group"]),
    _UTILITY.format(
      batch=facts["cost"]["batch"], machine=f"{where['device']}, {where['cores']} cores"
    ),
    tables.table(utility, pairs),
    _RECONSTRUCTION,
    tables.table(back, pairs),
    _MODEL.format(shadows=known["shadows"], records=known["records"]),
    "\n".join(_models(models)),
  ]
  return "\n\n".join(parts) + "\n"


def _models(models: list[tuple[str, Mapping[str, Any] | None]]) -> list[str]:
  """Returns the table of attacks on the models."""
  columns = (
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
  lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
  for name, model in models:
    if model is None:
      lines.append(f"| **{name}** | {tables.NOT_RUN} |{' |' * (len(columns) - 2)}")
      continue
    own = _PLAIN if name == _PLAIN else "disguised"
    by_class = model["class_membership"].get(own)
    looked = model["inversion"].get("run") or {}
    cells = (
      _rate(model, own, "lira"),
      _rate(model, own, "loss"),
      _rate(model, "fresh_queries", "lira"),
      _rate(model, "plain_queries", "lira"),
      _area(model, own),
      _area(model, "plain_queries"),
      f"{by_class['with']:.1f} / {by_class['without']:.1f}" if by_class else "–",
      " / ".join("–" if share is None else f"{share:.0%}" for share in looked.values()) or "–",
    )
    lines.append(f"| **{name}** | {' | '.join(cells)} |")
  return lines


def _rate(model: Mapping[str, Any], query: str, attack: str) -> str:
  found = model["membership"].get(query)
  if not found or found[attack]["tpr"].get("0.01") is None:
    return "–"
  return f"{found[attack]['tpr']['0.01']:.1%} (AUC {found[attack]['auc']:.2f})"


def _area(model: Mapping[str, Any], query: str) -> str:
  found = model["class_membership"].get(query)
  return f"{found['auc']:.2f}" if found else "–"
