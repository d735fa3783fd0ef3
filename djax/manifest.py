"""MANIFEST.json and MANIFEST.mac: what a disguised data set is, checked against damage and, with the key, tampering.

Holds no key and loads no key code: who has the MAC's subkey gives it. Specified in docs/format.md.
"""

import dataclasses
import hashlib
import hmac
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from djax.errors import ManifestError
from djax.quantise import DTYPES, Bounds, Quantiser

__all__ = [
  "FILE",
  "FORMAT",
  "MAC_FILE",
  "MAC_LABEL",
  "UNFINISHED",
  "VERSION",
  "Manifest",
  "Shard",
  "SplitFacts",
  "authenticate",
  "read",
  "replace",
  "write",
]

FORMAT = "djax-disguised"
VERSION = 1
FILE = "MANIFEST.json"
MAC_FILE = "MANIFEST.mac"
MAC_LABEL = "manifest"
UNFINISHED = ".unfinished"
_MAC_FORM = re.compile(rb"hmac-sha256 ([0-9a-f]{64})\nsha256 ([0-9a-f]{64})\n")
_FILE_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of records: its name in the directory, how many records, its length in bytes, its SHA-256 in hex."""

  file: str
  records: int
  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class SplitFacts:
  """One split: its records, views of each original, and shards in order."""

  records: int
  views: int
  shards: tuple[Shard, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The facts of docs/format.md section 2, all public.

  ``sha256`` is that of the bytes of MANIFEST.json; it is no field of the file.
  """

  djax: str
  expansion: str
  key_fingerprint: str
  spec: Mapping[str, Any]
  disguised_shape: tuple[int, int, int]
  dtype: str
  quantiser: Quantiser | None
  error: Bounds
  source: Mapping[str, str]
  classes: int
  class_names: tuple[str, ...] | None
  labels: str
  views: Mapping[str, Any]
  splits: Mapping[str, SplitFacts]
  files: Mapping[str, str]
  warnings: tuple[str, ...]
  sealed: str
  sha256: str = ""

  @property
  def block_size(self) -> int:
    """Side of a block in pixels."""
    return self.spec["block_size"]

  def to_dict(self) -> dict[str, Any]:
    """Returns the content of MANIFEST.json."""
    facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    del facts["sha256"]
    facts["error"] = dataclasses.asdict(self.error)
    facts["splits"] = {name: dataclasses.asdict(split) for name, split in self.splits.items()}
    if self.quantiser is not None:
      steps = {"offset": self.quantiser.offset, "scale": self.quantiser.scale}
      facts["quantiser"] = {name: np.asarray(x).tolist() for name, x in steps.items()}
    return {"format": FORMAT, "version": VERSION, **facts}


def write(folder: Path, manifest: Manifest, *, mac_key: bytes) -> None:
  """Writes both files, MANIFEST.json last: with it the directory is whole.

  Args:
    folder: the directory; its ``.unfinished`` exists.
    manifest: its facts.
    mac_key: the subkey ``MAC_LABEL``.
  """
  data = (json.dumps(manifest.to_dict(), indent=1) + "\n").encode()
  first = f"hmac-sha256 {hmac.new(mac_key, data, hashlib.sha256).hexdigest()}\n".encode()
  second = f"sha256 {hashlib.sha256(data + first).hexdigest()}\n".encode()
  replace(folder / MAC_FILE, first + second)
  replace(folder / FILE, data)


def read(folder: Path) -> Manifest:
  """Reads the manifest of a directory and checks it for damage.

  Args:
    folder: a disguised data set, or a run directory that holds copies of both files.

  Raises:
    ManifestError: if it is missing, damaged, not ours, or of a newer version.
  """
  data, _ = _read_files(folder)
  try:
    facts = json.loads(data)
    form, version = facts["format"], facts["version"]
  except (ValueError, TypeError, KeyError):
    raise ManifestError(f"{folder / FILE} is no manifest of djax.") from None
  if form != FORMAT or type(version) is not int:
    raise ManifestError(f"{folder / FILE} must be a {FORMAT} manifest, got {form!r}.")
  if version > VERSION:
    raise ManifestError(
      f"{folder / FILE} is of format version {version}, this djax reads up to {VERSION}. Install a newer djax."
    )
  try:
    return _parse(facts, hashlib.sha256(data).hexdigest())
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise ManifestError(
      f"{folder / FILE} lacks what the format asks for ({type(error).__name__}: {error}); see docs/format.md."
    ) from None


def authenticate(folder: Path, *, mac_key: bytes) -> None:
  """Checks that the owner of a key wrote the manifest, and nobody changed it since.

  Args:
    folder: as for ``read``.
    mac_key: the subkey ``MAC_LABEL`` of the key whose fingerprint the manifest shows.

  Raises:
    ManifestError: if it was tampered with, or is damaged.
  """
  data, mac = _read_files(folder)
  if not hmac.compare_digest(hmac.new(mac_key, data, hashlib.sha256).hexdigest().encode(), mac):
    raise ManifestError(
      f"{folder / FILE} was not written with this key or was changed since, its checksum along with it. "
      "Do not use it; take the directory from your own copy."
    )


def _read_files(folder: Path) -> tuple[bytes, bytes]:
  """Returns the bytes of the manifest and its MAC, checksum verified."""
  try:
    data, macs = (folder / FILE).read_bytes(), (folder / MAC_FILE).read_bytes()
  except FileNotFoundError as error:
    unfinished = (folder / UNFINISHED).is_dir()
    hint = (
      " It is unfinished: give the same `djax disguise` command again."
      if unfinished
      else " Give a directory that `djax disguise` wrote."
    )
    raise ManifestError(f"{error.filename} must exist, it does not.{hint}") from None
  except OSError as error:
    raise ManifestError(f"{error.filename} must be readable: {error.strerror}.") from None
  lines = _MAC_FORM.fullmatch(macs)
  if not lines:
    raise ManifestError(f"{folder / MAC_FILE} is damaged. Take the directory from a good copy.")
  first = macs[: lines.end(1) + 1]
  if hashlib.sha256(data + first).hexdigest().encode() != lines[2]:
    raise ManifestError(
      f"{folder / FILE} or {MAC_FILE} is damaged: the checksum does not hold. Take both from a good copy."
    )
  return data, lines[1]


def _parse(facts: Mapping[str, Any], sha256: str) -> Manifest:
  """Makes a Manifest of JSON, checking what a reader relies on."""
  fields = {f.name: facts[f.name] for f in dataclasses.fields(Manifest) if f.name != "sha256"}
  splits = {
    name: SplitFacts(
      split["records"],
      split["views"],
      tuple(
        Shard(**{f.name: s[f.name] for f in dataclasses.fields(Shard)}) for s in split["shards"]
      ),
    )
    for name, split in facts["splits"].items()
  }
  for name in (*facts["files"], *(s.file for split in splits.values() for s in split.shards)):
    if not _FILE_FORM.fullmatch(name):
      raise ValueError(f"file name {name!r}")
  if facts["dtype"] not in DTYPES or facts["labels"] not in ("plain", "permuted"):
    raise ValueError(f"dtype {facts['dtype']!r}, labels {facts['labels']!r}")
  quantiser = facts["quantiser"]
  if quantiser is not None:
    offset, scale = (np.asarray(quantiser[name], np.float32) for name in ("offset", "scale"))
    quantiser = Quantiser(offset, scale)
  height, width, channels = facts["disguised_shape"]
  names = facts["class_names"]
  return Manifest(
    **{
      **fields,
      "disguised_shape": (height, width, channels),
      "quantiser": quantiser,
      "error": Bounds(**facts["error"]),
      "class_names": None if names is None else tuple(names),
      "splits": splits,
      "warnings": tuple(facts["warnings"]),
      "sha256": sha256,
    }
  )


def replace(path: Path, data: bytes) -> None:
  """Writes a file so that it appears under its name only when whole.

  Args:
    path: the file, in the directory or in its ``.unfinished``, which exists.
    data: its content.
  """
  folder = path.parent if path.parent.name == UNFINISHED else path.parent / UNFINISHED
  temporary = folder / f"{path.name}.{os.getpid()}"
  try:
    with temporary.open("wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError:
    temporary.unlink(missing_ok=True)
    raise
