"""Runs and audits side by side, on one page.

A run may come back from a machine that nobody vouches for, and so may what calls itself an audit. So their files are
read with limits and checked, and what is shown is drawn here: the page takes no picture from a directory and links to
none of the pages in it, which could be anybody's. It names them.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from djax import schemes
from djax.audit import known_breaks, report, run_parts, verdicts
from djax.errors import ConfigError, DataError
from djax.io import foreign, form, html
from djax.io.html import text
from djax.models import checksums, run_files
from djax.schemes import Trait

__all__ = ["Audited", "Run", "page", "read"]

_AUDIT_BYTES = 8 << 20
_LONGEST_REASON = 300
_COLUMNS = ("directory", "setting", "data", "accuracy", "guessing", "cost", "level 1", "level 2")
_WORDS = (0, 1, 2, 6, 7)  # columns that are no numbers
_VERDICT = (None, set(verdicts.VERDICTS))
_SCORES = {
  "ssim": {"median": float},
  "psnr": {"median": float},
  "ssim_above_chance": float,
  "above_chance": float,
}
_AUDIT = {
  "format": {"djax-audit"},
  "version": 1,
  "setting": {"spec": dict, "source": str, "key": str},
  "levels": {
    number: {"verdict": _VERDICT, "by": [str], "pairs": (None, 1), "words": str}
    for number in ("1", "2")
  },
  "attacks": [dict],
}
_ATTACK = {"name": str, "title": str, "level": 1, "status": {"ran", "failed", "refused"}}
_ATTACK_RUN = {
  "pairs": (None, 1),
  "verdict": set(verdicts.VERDICTS),
  "seconds": float,
  "scores": _SCORES,
  "diagnostics": dict,
}


class Run(NamedTuple):
  """A training run.

  Attributes:
    folder: the run directory, as it was named.
    spec: of its disguise, complete.
    disguise: what else ``disguise.json`` holds.
    config: fields in groups, of any name and value.
    result: of ``result.json``; None for a run that is not done.
    metrics: by epoch.
  """

  folder: Path
  spec: dict[str, Any]
  disguise: dict[str, Any]
  config: dict[str, Any]
  result: dict[str, Any] | None
  metrics: list[dict[str, Any]]

  @property
  def source(self) -> str:
    """What it was trained on."""
    data = _group(self.config, "data")
    return str(data.get("disguised_dir") or data.get("source", ""))


class Audited(NamedTuple):
  """An audit of a disguise.

  Attributes:
    folder: its directory, as it was named.
    spec: of the disguise, complete.
    facts: of ``audit.json``.
  """

  folder: Path
  spec: dict[str, Any]
  facts: dict[str, Any]

  @property
  def source(self) -> str:
    """Whose images were attacked."""
    return self.facts["setting"]["source"]


def read(folder: Path) -> Run | Audited:
  """Reads a run directory or the directory of an audit, whoever wrote it.

  Raises:
    ConfigError: if it is neither.
    DataError: if it is damaged.
  """
  if os.path.lexists(folder / checksums.CONFIG):
    return _run(folder)
  if os.path.lexists(folder / report.FACTS):
    return _audited(folder)
  raise ConfigError(
    f"report: each directory must be a run of python -m train or an audit of python -m djax audit, {folder} has "
    f"neither {checksums.CONFIG} nor {report.FACTS}."
  )


def page(entries: Sequence[Run | Audited]) -> str:
  """Returns the page.

  Args:
    entries: at least one, in the order in which they are shown.
  """
  rows = [_row(number, entry, entries) for number, entry in enumerate(entries, 1)]
  runs = {
    str(number): entry.metrics
    for number, entry in enumerate(entries, 1)
    if isinstance(entry, Run) and entry.metrics
  }
  curves = run_parts.curves(runs)
  if curves:
    curves = f'<h2>Curves</h2><p class="soft">Numbers are those of the table.</p>{curves}'
  parts = "".join(_part(number, entry) for number, entry in enumerate(entries, 1))
  return html.page(
    "Runs and audits",
    f"""{html.table("Runs and audits", _COLUMNS, rows, words=_WORDS)}
<p class="soft">Levels: what an attacker gets from the disguised images alone (1), and with a few known originals (2),
by the audit here of the same setting and data, else by the table of audits that comes with djax. Cost: the accuracy of
a run here on the same images without a disguise, trained as long, less that of the run.</p>
{curves}
{parts}""",
  )


def _run(folder: Path) -> Run:
  """Reads a run directory; nothing of a run without a finished checkpoint has a checksum yet."""
  record = checksums.newest(folder)

  def content(name: str) -> bytes:
    if record is None:
      return checksums.unchecked(folder, name)
    return checksums.checked(folder, record, name)

  try:
    config = run_files.config_from(content(checksums.CONFIG))
    disguise = run_files.disguise_from(content(checksums.DISGUISE))
    spec = run_files.scheme_from(disguise["spec"]).spec.to_dict()
    metrics = run_files.metrics_from(checksums.beginning(folder, record.metrics)) if record else []
    try:
      data = foreign.read(folder, run_files.RESULT, limit=run_files.RESULT_BYTES)
      result = run_files.result_from(data)
    except foreign.MissingFileError:
      result = None
  except DataError:
    raise
  except Exception as error:  # a scheme says in its own way what it cannot take
    raise _damaged(folder, "a run of python -m train", error) from error
  return Run(folder, spec, disguise, config, result, metrics)


def _audited(folder: Path) -> Audited:
  """Reads the directory of an audit."""
  try:
    facts = foreign.parse_json(foreign.read(folder, report.FACTS, limit=_AUDIT_BYTES))
    form.check(facts, _AUDIT, report.FACTS)
    for row in facts["attacks"]:
      _check_attack(row)
    spec = run_files.scheme_from(facts["setting"]["spec"]).spec.to_dict()
  except DataError:
    raise
  except Exception as error:  # a scheme says in its own way what it cannot take
    raise _damaged(folder, "an audit of a disguise", error) from error
  return Audited(folder, spec, facts)


def _check_attack(row: Mapping[str, Any]) -> None:
  """Refuses a row of ``attacks`` that cannot be shown."""
  form.check(row, {**_ATTACK, "runs": [_ATTACK_RUN]}, "attacks")
  if row["status"] != "ran":
    form.check(row, {"reason": str}, "attacks")
  for run in row["runs"]:
    form.check(run["diagnostics"].get("warnings", []), [str], "warnings")


def _damaged(folder: Path, what: str, error: Exception) -> DataError:
  reason = f"{error}"[:_LONGEST_REASON]
  return DataError(f"{folder} must hold {what}, it does not: {reason}")


def _row(number: int, entry: Run | Audited, entries: Sequence[Run | Audited]) -> tuple[str, ...]:
  """Returns the cells of one directory."""
  levels = _levels(entry, entries)
  accuracy = guessing = cost = ""
  if isinstance(entry, Run):
    accuracy = "not finished"
    if entry.result:
      accuracy = run_parts.percent(entry.result["test_accuracy"])
      guessing = f"{1 / entry.result['classes']:.0%}"
      cost = _cost(entry, entries)
  return (
    f'<a href="#part{number}">{number}: {text(entry.folder)}</a>',
    text(_words(entry.spec)),
    text(entry.source),
    accuracy,
    guessing,
    cost,
    *levels,
  )


def _words(spec: Mapping[str, Any]) -> str:
  """Names a disguise in a few words."""
  words = schemes.kind_of(spec).words
  return ", ".join(words(spec)) if words else spec["scheme"]


def _levels(entry: Run | Audited, entries: Sequence[Run | Audited]) -> tuple[str, str]:
  """Returns verdict and best attacks of both levels: of an audit here, else of the table that comes with djax."""
  if Trait.IDENTITY in schemes.traits(entry.spec):
    return "no disguise", "no disguise"
  number, own = _audit_of(entry, entries)
  known = known_breaks.levels(entry.spec)
  cells = []
  for level in known:
    row, place = known[level], ""
    if own:
      row = own.facts["levels"][level]
      place = "" if own is entry else f"audited in {number}"
    elif row:
      place = f"known from {row['source']}"
    cell = "nothing known"
    if row:
      pairs = f"{row['pairs']} pairs" if row["pairs"] else ""
      words = "; ".join(word for word in (", ".join(row["by"]), pairs, place) if word)
      cell = f'{report.chip(row["verdict"] or verdicts.UNTRIED)}<br><span class="soft">{text(words)}</span>'
    cells.append(cell)
  return cells[0], cells[1]


def _audit_of(entry: Run | Audited, entries: Sequence[Run | Audited]) -> tuple[int, Audited | None]:
  """Returns the audit of a run's setting and data, or of its very key; an audit is its own."""
  for number, other in enumerate(entries, 1):
    if not isinstance(other, Audited) or other.spec != entry.spec:
      continue
    if isinstance(entry, Audited):
      if other is entry:
        return number, other
    elif (
      other.source == entry.source
      or other.facts["setting"]["key"] == entry.disguise["key_fingerprint"]
    ):
      return number, other
  return 0, None


def _cost(run: Run, entries: Sequence[Run | Audited]) -> str:
  """Returns the points that a disguise costs beside a plain run on the same images, trained as long; else nothing."""
  if run.result is None or Trait.IDENTITY in schemes.traits(run.spec):
    return ""
  for number, other in enumerate(entries, 1):
    if (
      isinstance(other, Run)
      and other.result
      and Trait.IDENTITY in schemes.traits(other.spec)
      and other.disguise["source_sha256"] == run.disguise["source_sha256"]
      and _group(other.config, "train") == _group(run.config, "train")
    ):
      points = 100 * (other.result["test_accuracy"] - run.result["test_accuracy"])
      return f'{points:.2f} points<br><span class="soft">beside {number}</span>'
  return "no plain run"


def _part(number: int, entry: Run | Audited) -> str:
  """Returns what is shown of one directory below the table."""
  heading = f'<h2 id="part{number}">{number}: {text(entry.folder)}</h2>'
  if isinstance(entry, Audited):
    levels = "".join(report.level(n, entry.facts["levels"][n]) for n in ("1", "2"))
    table = report.attacks(entry.facts["attacks"], f"Attacks of {number}")
    where = f"Pictures of what comes back: {entry.folder / report.PAGE}"
    return f'{heading}<div class="levels">{levels}</div>{table}<p class="soft">{text(where)}</p>'
  model, key = _group(entry.config, "model"), entry.disguise["key_fingerprint"]
  lead = f"{model.get('name')}, width {model.get('width')}. " + (
    f"Key: {key}." if key else "No key."
  )
  accuracy = f"<p>The run is not finished: {len(entry.metrics)} epochs are.</p>"
  if entry.result:
    accuracy = run_parts.accuracies(entry.result, f"Accuracy of {number}")
  where = f"Pictures and confusion matrix, as the machine that trained made them: {entry.folder / 'report.html'}"
  fields: list[tuple[str, Any]] = []
  for name, value in entry.config.items():
    if isinstance(value, dict):
      fields += [(f"{name}.{field}", inner) for field, inner in value.items()]
    else:
      fields.append((name, value))
  return (
    f'{heading}<p class="soft">{text(lead)}</p>{accuracy}{run_parts.known(entry.spec)}'
    f'{run_parts.config(fields, f"Config of {number}")}<p class="soft">{text(where)}</p>'
  )


def _group(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  """Returns a group of a config, empty where it has none of this name."""
  group = config.get(name)
  return group if isinstance(group, dict) else {}
