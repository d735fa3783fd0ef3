"""From run directories to ``results.json``: what each row is, and what its runs, plain twins and audit gave.

Every result carries, under ``of``, the hash of the config or of the disguise that it belongs to. Results whose run
directories are missing are taken over from an earlier ``results.json`` as long as that hash is still the row's, so that
results of another machine stay.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from djax import schemes
from djax.errors import DataError
from djax.io import pages
from train import config as config_lib
from train.table import rows, runner
from train.table.rows import Row

__all__ = ["FORMAT", "VERSION", "collect", "earlier"]

FORMAT = "djax-results"
VERSION = 1

_RESULT_FIELDS = (
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
  table: Sequence[Row], runs: Path, previous: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Reads what was run of a table.

  Args:
    table: the rows.
    runs: the folder of all runs.
    previous: an earlier result of this function.

  Returns:
    The content of ``results.json``: ``rows``, in the order of the table. A run, twin or audit that is missing is None.
    Runs of another config than the row's are left out.

  Raises:
    ConfigError: if a row names a config or field that does not exist.
  """
  known = _by_hash(previous or {"rows": []})
  return {
    "format": FORMAT,
    "version": VERSION,
    "rows": [_row(row, table, runs, known) for row in table],
  }


def earlier(path: Path, *, form: str = FORMAT) -> dict[str, Any] | None:
  """Reads results that were written earlier, such as ``results.json``; None if there are none.

  Args:
    path: of the file.
    form: the format that it must have.

  Raises:
    DataError: if the file is anything else, which would be overwritten.
  """
  if not path.exists():
    return None
  results = pages.read_json(path)
  if not isinstance(results, dict) or (results.get("format"), results.get("version")) != (
    form,
    VERSION,
  ):
    raise DataError(
      f"{path} must be a {form} file of version {VERSION} or not exist, got something else. Move it away."
    )
  return results


def _row(row: Row, table: Sequence[Row], runs: Path, known: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the results of a row."""
  config = rows.config_of(row, row.seeds[0])
  ordinary = rows.ordinary(row, table)
  results = []
  for seed in row.seeds:
    own = rows.config_of(row, seed)
    plain = config_lib.twin(own)
    results.append(
      {
        "seed": seed,
        "disguised": _run(runs / row.name / f"seed{seed}", own, known),
        "plain": _run(runs / "plain" / rows.fingerprint(plain), plain, known),
      }
    )
  return {
    "row": row.name,
    "group": row.group,
    "headline": row.headline,
    "config": row.config,
    "overrides": list(row.overrides),
    "data": f"{config.data.source} {config.data.train_split.removeprefix('train')}".rstrip(),
    "disguise": _disguise(config.disguise),
    "network": f"{config.model.name}, width {config.model.width}",
    "stem": _stem(config.model),
    "ordinary": ordinary.name if ordinary else None,
    "runs": results,
    "audit": _audit(runs, config, known),
  }


def _run(folder: Path, config: ConfigDict, known: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns the results of a run, as far as the page needs them."""
  of = rows.fingerprint(config)
  result = runner.run_of(folder, config)
  if result is None:
    return known.get(of)
  environment = pages.read_json(folder / "environment.json") or {}
  fields = {name: result[name] for name in _RESULT_FIELDS}
  return {"of": of, **fields, "hardware": _hardware(environment)}


def _audit(runs: Path, config: ConfigDict, known: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns the best run of each attack, and the best attack and the verdict of each level."""
  of = rows.audited(config)["hash"]
  audit = pages.read_json(runner.audit_dir(runs, config) / runner.AUDIT)
  if audit is None:
    return known.get(of)
  attacks = []
  for row in audit["attacks"]:
    if row["runs"]:
      best = max(row["runs"], key=lambda run: run["scores"]["ssim"]["median"])
      scores = {name: best["scores"][name]["median"] for name in ("ssim", "psnr")}
      attacks.append({"name": row["name"], "level": row["level"], "pairs": best["pairs"], **scores})
  levels = {}
  for number, level in audit["levels"].items():
    own = [attack for attack in attacks if attack["level"] == int(number)]
    best = max(own, key=lambda attack: attack["ssim"], default=None)
    levels[number] = {"verdict": level["verdict"], "best": best and best["name"]}
  return {"of": of, "levels": levels, "attacks": attacks, "sizes": audit["setting"]["sizes"]}


def _by_hash(results: Mapping[str, Any]) -> dict[str, Any]:
  """Returns earlier results of runs and audits by what they belong to."""
  known = [row["audit"] for row in results["rows"]]
  for row in results["rows"]:
    known += [run[kind] for run in row["runs"] for kind in ("disguised", "plain")]
  return {result["of"]: result for result in known if result}


def _hardware(environment: Mapping[str, Any]) -> str:
  """Names what a run ran on."""
  devices = environment.get("devices") or ["unknown"]
  if devices[0] == "cpu":
    return f"CPU, {environment['cpus']} cores"
  return devices[0] if len(devices) == 1 else f"{len(devices)} x {devices[0]}"


def _disguise(options: ConfigDict) -> str:
  """Describes a disguise in a few words."""
  words = schemes.SCHEMES[options.scheme].words
  return ", ".join(words(options)) if words else options.scheme


def _stem(model: ConfigDict) -> str:
  """Describes what stands before the network; empty if nothing does."""
  if model.stem == "none":
    return ""
  words = [model.stem]
  if model.stem == "position":
    words.append(f"rank {model.stem_rank}" if model.stem_rank else "full")
    words += ["mixing"] * model.stem_mixing
  words += ["frozen"] * (model.stem == "aligned" and model.stem_frozen)
  return ", ".join(words)
