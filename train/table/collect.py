"""From run directories to ``results.json``: what each row is, and what its runs, plain twins and audit gave.

Every fact carries the hash of the config, or of the disguise, that it is a fact ``of``. Facts whose run directories are
not at hand are taken over from an earlier ``results.json`` as long as that hash is still the row's: so the figures of
another machine stay.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from djax import schemes
from djax.errors import DataError
from train import config as config_lib
from train.table import rows, runner
from train.table.rows import Row

__all__ = ["FORMAT", "VERSION", "collect", "earlier"]

FORMAT = "djax-results"
VERSION = 1

_KEPT = (
  "test_accuracy",
  "single_view_accuracy",
  "test_views",
  "plain_accuracy",
  "other_key_accuracy",
  "test_images",
  "classes",
  "steps",
  "seconds",
  "key_fingerprint",
)


def collect(
  table: Sequence[Row], runs: Path, kept: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Reads what was run of a table.

  Args:
    table: the rows.
    runs: the folder of all runs.
    kept: an earlier result of this function.

  Returns:
    The content of ``results.json``: ``rows``, in the order of the table. A run, twin or audit that is not there is
    None. Runs of another config than the row's are left out.

  Raises:
    ConfigError: if a row names a config or field that does not exist.
  """
  before = _by_hash(kept or {"rows": []})
  return {
    "format": FORMAT,
    "version": VERSION,
    "rows": [_row(row, table, runs, before) for row in table],
  }


def earlier(
  path: Path, *, form: tuple[str, int] = (FORMAT, VERSION), what: str = "results"
) -> dict[str, Any] | None:
  """Reads facts that were written earlier, such as ``results.json``; None if there are none.

  Args:
    path: of the file.
    form: format and version that it must have.
    what: it holds, for the line that refuses.

  Raises:
    DataError: if the file is anything else: it would be overwritten.
  """
  if not path.exists():
    return None
  facts = runner.read(path)
  if not isinstance(facts, dict) or (facts.get("format"), facts.get("version")) != form:
    raise DataError(
      f"{path} must hold {what} of this version or not exist, got something else. Move it away."
    )
  return facts


def _row(row: Row, table: Sequence[Row], runs: Path, before: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the facts of a row."""
  config = rows.config_of(row, row.seeds[0])
  plain = rows.ordinary(row, table)
  found = []
  for seed in row.seeds:
    own = rows.config_of(row, seed)
    twin = config_lib.twin(own)
    folder = runs / "plain" / rows.fingerprint(twin)
    found.append(
      {
        "seed": seed,
        "disguised": _run(runs / row.name / f"seed{seed}", own, before),
        "plain": _run(folder, twin, before),
      }
    )
  return {
    "row": row.name,
    "group": row.group,
    "headline": row.headline,
    "config": row.config,
    "overrides": list(row.overrides),
    "data": _data(config.data),
    "disguise": _disguise(config.disguise),
    "network": f"{config.model.name}, width {config.model.width}",
    "stem": _stem(config.model),
    "ordinary": plain.name if plain else None,
    "runs": found,
    "audit": _audit(runs, config, before),
  }


def _run(folder: Path, config: ConfigDict, before: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns what is kept of a run."""
  of = rows.fingerprint(config)
  result = runner.run_of(folder, config)
  if result is None:
    return before.get(of)
  environment = runner.read(folder / "environment.json") or {}
  kept = {name: result[name] for name in _KEPT}
  return {"of": of, **kept, "hardware": _hardware(environment)}


def _audit(runs: Path, config: ConfigDict, before: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns what is kept of an audit: the best of each attack, the best attack and the verdict of each level."""
  of = rows.audited(config)["hash"]
  facts = runner.read(runner.audit_dir(runs, config) / runner.AUDIT)
  if facts is None:
    return before.get(of)
  attacks = []
  for row in facts["attacks"]:
    if row["runs"]:
      best = max(row["runs"], key=lambda run: run["scores"]["ssim"]["median"])
      scores = {name: best["scores"][name]["median"] for name in ("ssim", "psnr")}
      attacks.append({"name": row["name"], "level": row["level"], "pairs": best["pairs"], **scores})
  levels = {}
  for number, found in facts["levels"].items():
    own = [attack for attack in attacks if attack["level"] == int(number)]
    best = max(own, key=lambda attack: attack["ssim"], default=None)
    levels[number] = {"verdict": found["verdict"], "best": best and best["name"]}
  sizes = facts["setting"]["sizes"]
  return {"of": of, "levels": levels, "attacks": attacks, "sizes": sizes}


def _by_hash(kept: Mapping[str, Any]) -> dict[str, Any]:
  """Returns earlier facts by what they are facts of."""
  facts = [row["audit"] for row in kept["rows"]]
  for row in kept["rows"]:
    facts += [run[kind] for run in row["runs"] for kind in ("disguised", "plain")]
  return {fact["of"]: fact for fact in facts if fact}


def _hardware(environment: Mapping[str, Any]) -> str:
  """Names what a run ran on."""
  devices = environment.get("devices") or ["unknown"]
  if devices[0] == "cpu":
    return f"CPU, {environment['cpus']} cores"
  return devices[0] if len(devices) == 1 else f"{len(devices)} x {devices[0]}"


def _data(data: ConfigDict) -> str:
  """Names source and part of the training images."""
  split = data.train_split.removeprefix("train")
  return f"{data.source} {split}".rstrip()


def _disguise(options: ConfigDict) -> str:
  """Says what a disguise is."""
  words = schemes.SCHEMES[options.scheme].words
  return ", ".join(words(options)) if words else options.scheme


def _stem(model: ConfigDict) -> str:
  """Says what stands before the network; empty if nothing does."""
  if model.stem == "none":
    return ""
  words = [model.stem]
  if model.stem == "position":
    words.append(f"rank {model.stem_rank}" if model.stem_rank else "full")
    words += ["mixing"] * model.stem_mixing
  words += ["frozen"] * (model.stem == "aligned" and model.stem_frozen)
  return ", ".join(words)
