"""What a run held when a checkpoint was finished: length and SHA-256 of its files, in ``checksums/<step>.json``.

The record is written last and removed first, so a checkpoint without one is unfinished and never used. It detects
damage and exchanged files. It is no signature: whoever can write the run can write its records as well.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from djax.errors import DataError
from djax.io import files, foreign, form
from djax.io.foreign import Content

__all__ = [
  "CHECKPOINTS",
  "CONFIG",
  "DISGUISE",
  "FOLDER",
  "LIMITS",
  "METRICS",
  "NETWORK",
  "Record",
  "beginning",
  "checked",
  "exchange_config",
  "forget",
  "limit",
  "newest",
  "recorded",
  "settle_config",
  "unchecked",
  "verify",
  "write",
]

FOLDER, CHECKPOINTS = "checksums", "checkpoints"
CONFIG, DISGUISE, METRICS, NETWORK = (
  "config.json",
  "disguise.json",
  "metrics.jsonl",
  "network.safetensors",
)
_NEXT_CONFIG = "config.json.next"
# Limits in bytes; those of a checkpoint follow from its network.
LIMITS = {CONFIG: 1 << 20, DISGUISE: 1 << 20, "MANIFEST.json": 8 << 20, "MANIFEST.mac": 1 << 10}
_METRICS_BYTES = 64 << 20
# A checkpoint holds the network as such and, for the optimizer, up to four times: with averages and two moments.
_TIMES_NETWORK, _SPARE_CHECKPOINT_BYTES = 8, 16 << 20
_RECORD_BYTES = 4 << 20
_MOST_ENTRIES = 1 << 16
_VERSION = 1
_STEP = re.compile(r"(0|[1-9][0-9]{0,14})")
_CONTENT = {"bytes": 0, "sha256": re.compile(r"[0-9a-f]{64}")}
_FORM = {
  "format": {"djax-checksums"},
  "version": 1,
  "step": 0,
  "files": {re.compile(r"[ -~]{1,1000}"): _CONTENT},
  "metrics": _CONTENT,
}


class Record(NamedTuple):
  """A finished checkpoint.

  Attributes:
    step: of the checkpoint.
    files: what each file must hold, by its name below the run directory.
    metrics: what ``metrics.jsonl`` must begin with.
  """

  step: int
  files: Mapping[str, Content]
  metrics: Content

  @property
  def checkpoint(self) -> dict[str, Content]:
    """The files of the checkpoint itself."""
    return {name: content for name, content in self.files.items() if name not in LIMITS}


def recorded(workdir: Path) -> list[int]:
  """Returns the steps of the finished checkpoints, in order.

  Raises:
    DataError: if the folder of records is something else.
  """
  try:
    names = foreign.names(workdir / FOLDER, most=_MOST_ENTRIES)
  except foreign.MissingFileError:
    return []
  steps = (name.removesuffix(".json") for name in names if name.endswith(".json"))
  return sorted(int(step) for step in steps if _STEP.fullmatch(step))


def newest(workdir: Path) -> Record | None:
  """Returns the record of the newest finished checkpoint, or None where there is none yet.

  Raises:
    DataError: if the record is damaged, or the run was made by a djax that kept none.
  """
  steps = recorded(workdir)
  if not steps:
    _refuse_older(workdir)
    return None
  name = f"{FOLDER}/{steps[-1]}.json"
  data = foreign.read(workdir, name, limit=_RECORD_BYTES)
  try:
    return _parse(data, steps[-1])
  except ValueError as error:
    raise DataError(
      f"{workdir / name} must hold the checksums of a checkpoint: {error}. Take the run from a good copy."
    ) from None


def checked(workdir: Path, record: Record, name: str, *, limit: int | None = None) -> bytes:
  """Returns the bytes of a file, checked against the record.

  Args:
    workdir: the run directory.
    record: of its newest checkpoint.
    name: of the file below it.
    limit: greatest length in bytes; by default, what is usual for this file.

  Raises:
    DataError: if the file is not recorded, is longer, or holds anything else.
  """
  limit = LIMITS[name] if limit is None else limit
  if name not in record.files:
    raise DataError(
      f"{workdir / FOLDER}: the record of step {record.step} must name {name}, it does not."
    )
  content = record.files[name]
  _check_length(workdir / name, content, limit)
  data = foreign.read(workdir, name, limit=content.bytes)
  if _content(data) != content:
    raise _damaged(workdir / name)
  return data


def unchecked(workdir: Path, name: str) -> bytes:
  """Returns the bytes of a file of a run, of at most its usual length, whatever the record says."""
  return foreign.read(workdir, name, limit=LIMITS[name])


def beginning(workdir: Path, metrics: Content) -> bytes:
  """Returns the recorded bytes with which ``metrics.jsonl`` begins.

  Raises:
    DataError: if it begins with anything else.
  """
  data = foreign.read(workdir, METRICS, limit=_METRICS_BYTES)[: metrics.bytes]
  if _content(data) != metrics:
    raise _damaged(workdir / METRICS)
  return data


def verify(
  workdir: Path, record: Record, *, limit: int, apart_from: Collection[str] = frozenset()
) -> None:
  """Compares all files that a record names with their checksums.

  Args:
    workdir: the run directory.
    record: of its newest checkpoint.
    limit: greatest length of the files of the checkpoint together, in bytes.
    apart_from: names of files that are checked where they are used.

  Raises:
    DataError: if a file is missing, is no regular file, or holds anything else, or the checkpoint is larger.
  """
  total = sum(content.bytes for content in record.checkpoint.values())
  if total > limit:
    raise DataError(
      f"{workdir / CHECKPOINTS / str(record.step)} must have at most {limit} bytes for a network of this size, has "
      f"{total}."
    )
  for name, content in record.files.items():
    if name in apart_from:
      continue
    _check_length(workdir / name, content, LIMITS.get(name, limit))
    if foreign.digest(workdir, name, limit=content.bytes) != content:
      raise _damaged(workdir / name)
  beginning(workdir, record.metrics)


def write(workdir: Path, step: int) -> None:
  """Records a complete checkpoint, after its files are synced to disk.

  Raises:
    OSError: if the record cannot be written.
  """
  folder = workdir / CHECKPOINTS / str(step)
  files.sync_tree(folder)
  files.sync_folder(folder.parent)
  names = [name for name in LIMITS if (workdir / name).exists()]
  for place, _, entries in os.walk(folder, onerror=_raise):
    names += [(Path(place) / name).relative_to(workdir).as_posix() for name in entries]
  contents = {name: _digest(workdir, name) for name in sorted(names)}
  record = Record(step, contents, _digest(workdir, METRICS))
  files.replace(workdir / FOLDER / f"{step}.json", _text(record))


def exchange_config(workdir: Path, record: Record, config: bytes) -> None:
  """Gives a run another config. Whenever the process ends, ``settle_config`` makes file and record agree again.

  Args:
    workdir: the run directory.
    record: of its newest checkpoint.
    config: the new content of ``config.json``.

  Raises:
    OSError: if it cannot be written.
  """
  files.replace(workdir / _NEXT_CONFIG, config)
  contents = {**record.files, CONFIG: _content(config)}
  files.replace(workdir / FOLDER / f"{record.step}.json", _text(record._replace(files=contents)))
  settle_config(workdir, newest(workdir))


def settle_config(workdir: Path, record: Record | None) -> None:
  """Ends an exchange of the config that was interrupted: the new one holds once it is recorded.

  Args:
    workdir: the run directory.
    record: of its newest checkpoint.
  """
  path = workdir / _NEXT_CONFIG
  if not os.path.lexists(path):
    return
  data = foreign.read(workdir, _NEXT_CONFIG, limit=LIMITS[CONFIG])
  if record and record.files.get(CONFIG) == _content(data):
    os.replace(path, workdir / CONFIG)
  else:
    path.unlink()
  files.sync_folder(workdir)


def forget(workdir: Path, step: int) -> None:
  """Marks a checkpoint as unfinished, before it is removed."""
  (workdir / FOLDER / f"{step}.json").unlink(missing_ok=True)
  files.sync_folder(workdir / FOLDER)


def limit(network_bytes: int) -> int:
  """Returns how many bytes a checkpoint may have.

  Args:
    network_bytes: size of the plain file of its network.
  """
  return _TIMES_NETWORK * network_bytes + _SPARE_CHECKPOINT_BYTES


def _raise(error: OSError) -> NoReturn:
  raise error


def _refuse_older(workdir: Path) -> None:
  """Refuses a run with checkpoints of a djax that kept no records; one of this djax has at least the folder."""
  if os.path.lexists(workdir / FOLDER) or not os.path.lexists(workdir / CHECKPOINTS):
    return
  if any(_STEP.fullmatch(name) for name in foreign.names(workdir / CHECKPOINTS)):
    raise DataError(
      f"{workdir} was made by a djax that kept no checksums, so nothing in it can be checked. It was not changed. "
      "Train it again, or use it with the version of djax that its environment.json names."
    )


def _parse(data: bytes, step: int) -> Record:
  """Reads a record; raises ValueError for anything else."""
  value = foreign.parse_json(data)
  form.check(value, _FORM, "the record")
  if value["version"] != _VERSION:
    raise ValueError(f"its version must be {_VERSION}, is {value['version']}")
  if value["step"] != step:
    raise ValueError(f"its step must be {step}, is {value['step']}")
  for name in value["files"]:
    if name not in LIMITS and not name.startswith(f"{CHECKPOINTS}/{step}/"):
      raise ValueError(f"it names {name}, which is no file of this checkpoint")
  contents = {name: _as_content(row) for name, row in value["files"].items()}
  record = Record(step, contents, _as_content(value["metrics"]))
  if _text(record) != data:
    raise ValueError("it is not written as djax writes it")  # so that no flipped bit of it goes by
  return record


def _text(record: Record) -> bytes:
  value = {
    "format": "djax-checksums",
    "version": _VERSION,
    "step": record.step,
    "files": {name: content._asdict() for name, content in record.files.items()},
    "metrics": record.metrics._asdict(),
  }
  return (json.dumps(value, indent=1) + "\n").encode()


def _as_content(row: Mapping[str, Any]) -> Content:
  return Content(row["bytes"], row["sha256"])


def _content(data: bytes) -> Content:
  return Content(len(data), hashlib.sha256(data).hexdigest())


def _digest(workdir: Path, name: str) -> Content:
  """Hashes a file that this process wrote."""
  return foreign.digest(workdir, name, limit=(workdir / name).stat().st_size)


def _check_length(path: Path, content: Content, limit: int) -> None:
  if content.bytes > limit:
    raise DataError(f"{path} must have at most {limit} bytes, has {content.bytes}.")


def _damaged(path: Path) -> DataError:
  return DataError(
    f"{path} is damaged: its SHA-256 is not the recorded one. Take the run from a good copy."
  )
