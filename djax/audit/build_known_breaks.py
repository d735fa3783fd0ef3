"""Makes the table of audited settings that ``lookup`` reads: ``python -m djax audit --write-table FILE``."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import djax
from djax import schemes
from djax.attacks import ATTACKS, Attack
from djax.audit import known_breaks, runner, scenario, verdicts
from djax.audit.scenario import Sizes
from djax.errors import ConfigError, DataError
from djax.io import files
from djax.sources import Reading

__all__ = ["SOURCES", "settings", "write"]

SOURCES = ("digits", "mnist", "cifar10")
_SEED = 0
_SHAPE = (8, 8, 1)


def settings() -> Iterator[dict[str, Any]]:
  """Yields the disguises that are audited, without the shape of images."""
  for kind in schemes.SCHEMES.values():
    yield from map(dict, kind.audited())


def write(
  path: Path,
  *,
  sources: Sequence[str] | None = None,
  disguises: Sequence[Mapping[str, Any]] | None = None,
  sizes: Sizes | None = None,
  data_dir: str = "",
  progress: Callable[[float, str], None] = lambda fraction, word: None,
) -> None:
  """Audits a list of settings and writes the table; continues one that this version began.

  An existing row is attacked only by attacks that have not tried it yet.

  Args:
    path: the file.
    sources: by default ``SOURCES``; those that are not prepared are left out.
    disguises: by default ``settings()``.
    sizes: of the audits, by default those of ``--fast``.
    data_dir: of prepared TFDS sets.
    progress: called with the fraction done and the current step.
  """
  listed = list(settings()) if disguises is None else list(disguises)
  head = {
    "format": known_breaks.FORMAT,
    "djax": djax.__version__,
    "seed": _SEED,
    "attacks": [name for name, attack in ATTACKS.items() if any(_takes(attack, d) for d in listed)],
  }
  rows = _begun(path, head)
  sources = SOURCES if sources is None else sources
  for place, source in enumerate(sources):
    examiner = shape = None
    for step, disguise in enumerate(listed):
      done = (place + step / len(listed)) / len(sources)
      row = next(
        (row for row in rows if row["source"] == source and row["disguise"] == dict(disguise)), None
      )
      tried = row["attacks"] if row else []
      left = [attack for name, attack in ATTACKS.items() if name not in tried]
      if row and shape and not any(_takes(attack, disguise, shape) for attack in left):
        continue
      progress(done, f"{source} {' '.join(map(str, disguise.values()))}")
      try:
        setting = scenario.from_source(
          source,
          disguise,
          seed=_SEED,
          sizes=sizes or scenario.FAST,
          reading=Reading(data_dir=data_dir),
        )
      except DataError as error:
        progress(done, f"{source} left out: {error}")
        break
      except ConfigError as error:
        progress(done, f"{source} {' '.join(map(str, disguise.values()))} left out: {error}")
        continue
      shape = tuple(setting.spec["image_shape"])
      left = [attack for attack in left if attack.refuses(setting.spec) is None or not row]
      if not left:
        continue
      examiner = examiner or runner.train_examiner(setting, seed=_SEED)
      report = runner.audit(setting, left, seed=_SEED, examiner=examiner, with_key=False).facts
      levels = {
        number: {name: judged[name] for name in ("verdict", "by", "pairs", "failed")}
        for number, judged in report["levels"].items()
      }
      took = [attack["name"] for attack in report["attacks"] if attack["status"] != "refused"]
      if row:
        row["attacks"] = [name for name in ATTACKS if name in (*tried, *took)]
        row["levels"] = {number: _worse(row["levels"][number], levels[number]) for number in levels}
      else:
        rows.append(
          {
            "class": known_breaks.classify(setting.spec),
            "source": source,
            "disguise": dict(disguise),
            "sizes": report["setting"]["sizes"],
            "attacks": took,
            "levels": levels,
          }
        )
      _replace(path, {**head, "rows": rows})


def _worse(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
  """Merges the results of some attacks and of some others at a threat level."""
  failed = [*before["failed"], *now["failed"]]
  verdict = verdicts.worst([before["verdict"], now["verdict"]])
  rests_on = [one for one in (before, now) if one["verdict"] == verdict]
  return {
    "verdict": verdict,
    "by": [name for one in rests_on for name in one["by"]],
    "pairs": min((one["pairs"] or 0 for one in rests_on), default=0) or None,
    "failed": failed,
  }


def _takes(attack: Attack, disguise: Mapping[str, Any], shape: tuple[int, ...] = _SHAPE) -> bool:
  """Returns whether an attack accepts a disguise of images of a shape."""
  try:
    spec = schemes.from_spec({**disguise, "image_shape": shape}).spec.to_dict()
  except ValueError:  # it fits no such image, and is left out
    return False
  return attack.refuses(spec) is None


def _begun(path: Path, head: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the rows of a table that this version began."""
  if not path.exists():
    return []
  try:
    table = json.loads(path.read_text())
  except ValueError:
    table = {}
  if table.get("format") != known_breaks.FORMAT:
    raise ConfigError(f"{path} exists and is no table of audits. Give another name.")
  if any(table.get(name) != head[name] for name in head if name != "attacks"):
    return []
  for row in table["rows"]:
    # A table of an older djax says once for all rows who was tried.
    row.setdefault("attacks", [name for name in table["attacks"] if name in ATTACKS])
  return [row for row in table["rows"] if all(name in ATTACKS for name in row["attacks"])]


def _replace(path: Path, table: Mapping[str, Any]) -> None:
  """Writes the table, one row a line."""
  body = ",\n".join(json.dumps(row) for row in table["rows"])
  start = ", ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in table.items() if k != "rows")
  files.replace(path, f'{{{start}, "rows": [\n{body}\n]}}\n'.encode())
