"""The run directory: config, environment, public facts of the disguise, metrics, result. Never a key."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from djax.errors import ConfigError, DjaxError, KeyMismatchError
from train import config as config_lib

__all__ = ["Metrics", "open_run", "write_json"]

_PACKAGES = ("djax", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "grain")
# Where the data lie and are held may change; disguise.json says which they are.
_FREE = ("data.disguised_dir", "data.memory_gb", "disguise.acknowledge")


def open_run(
  workdir: Path, config: ConfigDict, disguise: dict[str, Any], *, copies: Sequence[Path] = ()
) -> None:
  """Makes a run directory, or checks that the one there belongs to the same run.

  Args:
    workdir: the directory.
    config: the run's config.
    disguise: public facts: the scheme's spec, the key's fingerprint, the hash of the source and more.
    copies: files that a new directory gets copies of.

  Raises:
    ConfigError: if the directory holds a run of another config or source.
    KeyMismatchError: if it holds a run with another key.
    DjaxError: if the directory cannot be written.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if (workdir / "config.json").exists():
      _check_same(workdir, config, disguise)
    else:
      for path in copies:
        shutil.copyfile(path, workdir / path.name)
      write_json(workdir / "disguise.json", disguise)
      write_json(workdir / "config.json", config.to_dict())
    write_json(workdir / "environment.json", _environment())
  except OSError as error:
    raise DjaxError(
      f"the run directory must be writable, got {error.strerror} for {workdir}. Give another --workdir."
    ) from error


def write_json(path: Path, value: Any) -> None:
  """Writes JSON under a temporary name, then renames it into place.

  Args:
    path: the file.
    value: JSON types.
  """
  temporary = path.with_name(path.name + ".tmp")
  try:
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)
  except OSError:
    temporary.unlink(missing_ok=True)
    raise


class Metrics:
  """Appends metrics to ``metrics.jsonl`` and to a TensorBoard event file.

  Args:
    workdir: the run directory.
    step: steps already done; later lines of an interrupted run are dropped.
  """

  def __init__(self, workdir: Path, *, step: int):
    # The record writer by itself: tensorboardX's SummaryWriter works in a thread, where a full disk cannot be caught.
    from tensorboardX.record_writer import RecordWriter

    self._path = workdir / "metrics.jsonl"
    kept = [row for row in _rows(self._path) if row["step"] <= step]
    temporary = self._path.with_name("metrics.jsonl.tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
    os.replace(temporary, self._path)
    folder = workdir / "events"
    folder.mkdir(exist_ok=True)
    stamp = f"{time.time():.0f}.{len(list(folder.iterdir()))}"
    self._events = RecordWriter(str(folder / f"events.out.tfevents.{stamp}"))
    self._event(file_version="brain.Event:2")
    self._event(step=step + 1, session_log={"status": "START"})

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds one line.

    Args:
      step: steps done.
      values: metrics by name.
    """
    with self._path.open("a") as file:
      file.write(json.dumps({"step": step, **values}) + "\n")
    tags = [{"tag": name, "simple_value": value} for name, value in values.items()]
    self._event(step=step, summary={"value": tags})

  def close(self) -> None:
    """Closes the event file."""
    self._events.close()

  def _event(self, **fields: Any) -> None:
    from tensorboardX.proto.event_pb2 import Event

    self._events.write(Event(wall_time=time.time(), **fields).SerializeToString())
    self._events.flush()


def _check_same(workdir: Path, config: ConfigDict, disguise: dict[str, Any]) -> None:
  """Refuses to go on with a run of another config, source or key."""
  try:
    old_config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    old = json.loads((workdir / "disguise.json").read_text())
  except (ValueError, FileNotFoundError) as error:
    raise ConfigError(
      f"{workdir} must hold a whole run to go on with, got a damaged config.json or disguise.json. "
      "Give another --workdir."
    ) from error
  before, now = dict(config_lib.leaves(old_config)), dict(config_lib.leaves(config))
  changed = [
    f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
    for name in sorted(before.keys() | now.keys())
    if before.get(name) != now.get(name) and name not in _FREE
  ]
  if changed:
    raise ConfigError(
      f"{workdir} holds a run of another config ({'; '.join(changed)}). Give another --workdir, or the old config."
    )
  if old["key_fingerprint"] != disguise["key_fingerprint"]:
    raise KeyMismatchError(
      f"{workdir} holds a run with the key {old['key_fingerprint']}, got {disguise['key_fingerprint']}. "
      "Go on with that key, or give another --workdir."
    )
  if old != disguise:
    source = config.data.disguised_dir or config.data.source
    raise ConfigError(
      f"{workdir} holds a run on other images than {source} has now. Give another --workdir."
    )


def _rows(path: Path) -> list[dict[str, Any]]:
  """Reads metrics back, up to a line that a killed run left half written."""
  rows: list[dict[str, Any]] = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        rows.append(json.loads(line))
      except ValueError:
        break
  return rows


def _environment() -> dict[str, Any]:
  """Returns versions, devices and the revision of the code."""
  revision = subprocess.run(
    ["git", "rev-parse", "HEAD"],
    cwd=Path(__file__).parent,
    capture_output=True,
    text=True,
    check=False,
  )
  return {
    "python": platform.python_version(),
    "platform": platform.platform(),
    "cpus": os.cpu_count(),
    "devices": [device.device_kind for device in jax.devices()],
    "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    "revision": revision.stdout.strip() or None,
  }
