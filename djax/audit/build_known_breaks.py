"""Makes the table of audited settings that ``lookup`` reads: ``python -m djax audit --write-table FILE``."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import djax
from djax import schemes
from djax.attacks import ATTACKS, Attack
from djax.audit import known_breaks, runner, scenario
from djax.audit.scenario import Sizes
from djax.errors import ConfigError, DataError

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
  """Audits a list of settings and writes the table; goes on with one that this version began with these attacks.

  Args:
    path: the file.
    sources: by default ``SOURCES``; those that are not prepared are left out.
    disguises: by default ``settings()``.
    sizes: of the audits, by default those of ``--fast``.
    data_dir: of prepared TFDS sets.
    progress: told how far it is.
  """
  listed = list(settings()) if disguises is None else list(disguises)
  head = {
    "format": known_breaks.FORMAT,
    "djax": djax.__version__,
    "seed": _SEED,
    "attacks": [name for name, attack in ATTACKS.items() if _tried(attack, listed)],
  }
  rows = _begun(path, head)
  sources = SOURCES if sources is None else sources
  for place, source in enumerate(sources):
    examiner = None
    for step, disguise in enumerate(listed):
      done = (place + step / len(listed)) / len(sources)
      if any(row["source"] == source and row["disguise"] == dict(disguise) for row in rows):
        continue
      progress(done, f"{source} {' '.join(map(str, disguise.values()))}")
      try:
        made = scenario.from_source(
          source, disguise, seed=_SEED, sizes=sizes or scenario.FAST, data_dir=data_dir
        )
      except DataError as error:
        progress(done, f"{source} left out: {error}")
        break
      except ConfigError as error:
        progress(done, f"{source} {' '.join(map(str, disguise.values()))} left out: {error}")
        continue
      examiner = examiner or runner.train_examiner(made, seed=_SEED)
      facts = runner.audit(made, list(ATTACKS.values()), seed=_SEED, examiner=examiner).facts
      levels = {
        number: {name: found[name] for name in ("verdict", "by", "pairs", "failed")}
        for number, found in facts["levels"].items()
      }
      rows.append(
        {
          "class": known_breaks.classify(made.spec),
          "source": source,
          "disguise": dict(disguise),
          "sizes": facts["setting"]["sizes"],
          "levels": levels,
        }
      )
      _replace(path, {**head, "rows": rows})


def _tried(attack: Attack, disguises: Iterable[Mapping[str, Any]]) -> bool:
  """Tells whether an attack takes any of some disguises; one that takes none is no part of the table."""
  for one in disguises:
    try:
      spec = schemes.from_spec({**one, "image_shape": _SHAPE}).spec.to_dict()
    except ValueError:  # it fits no image, and is left out
      continue
    if attack.refuses(spec) is None:
      return True
  return False


def _begun(path: Path, head: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the rows of a table that this version began."""
  if not path.exists():
    return []
  try:
    found = json.loads(path.read_text())
  except ValueError:
    found = {}
  if found.get("format") != known_breaks.FORMAT:
    raise ConfigError(f"{path} exists and is no table of audits. Give another name.")
  return found["rows"] if {name: found.get(name) for name in head} == dict(head) else []


def _replace(path: Path, facts: Mapping[str, Any]) -> None:
  """Writes the table, one row a line."""
  body = ",\n".join(json.dumps(row) for row in facts["rows"])
  start = ", ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in facts.items() if k != "rows")
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  temporary.write_text(f'{{{start}, "rows": [\n{body}\n]}}\n')
  os.replace(temporary, path)
