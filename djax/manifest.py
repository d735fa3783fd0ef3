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
_SPLIT_FORM = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_HASH_FORM = re.compile(r"[0-9a-f]{64}")
_LARGEST = 2**48

# What each field must be. An integer stands for integers from it on, a list for a list of that, a set for one of its
# strings, a tuple for null or that, a pattern for strings, also as the names of an object.
_FORM: dict[str, Any] = {
  "djax": str,
  "expansion": str,
  "key_fingerprint": str,
  "spec": {"scheme": str, "image_shape": [1], "block_size": 1},
  "disguised_shape": [1],
  "dtype": set(DTYPES),
  "quantiser": (None, {"offset": [float], "scale": [float]}),
  "error": {"stored": float, "restored": (None, float), "noise": float},
  "source": {"name": str, "dtype": str, "hmac": str},
  "classes": 1,
  "class_names": (None, [str]),
  "labels": {"plain", "permuted"},
  "views": {"count": 1, "crop": 0, "flip": bool},
  "splits": {
    _SPLIT_FORM: {
      "records": 1,
      "views": 1,
      "shards": [{"file": _FILE_FORM, "records": 1, "bytes": 1, "sha256": _HASH_FORM}],
    }
  },
  "files": {_FILE_FORM: _HASH_FORM},
  "warnings": [str],
  "sealed": str,
}


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
  except (ValueError, TypeError, KeyError, RecursionError):
    raise ManifestError(f"{folder / FILE} is no manifest of djax.") from None
  if form != FORMAT or type(version) is not int or version < 1:
    raise ManifestError(f"{folder / FILE} must be a {FORMAT} manifest, got another format.")
  if version > VERSION:
    raise ManifestError(
      f"{folder / FILE} is of format version {version}, this djax reads up to {VERSION}. Install a newer djax."
    )
  try:
    _check(facts, _FORM, "manifest")
    return _parse(facts, hashlib.sha256(data).hexdigest())
  except ValueError as error:
    raise ManifestError(
      f"{folder / FILE} is not as its format asks for: {error}. Take the directory from a good copy."
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


def _check(value: Any, form: Any, where: str) -> None:
  """Refuses JSON of another form than ``_FORM`` asks for; more fields than those may stand in it."""
  match form:
    case dict():
      fits = isinstance(value, dict)
      for name, inner in form.items() if fits else ():
        if isinstance(name, re.Pattern):
          for key, item in value.items():
            _check(key, name, f"a name in {where}")
            _check(item, inner, f"{where}.{key}")
        elif name not in value:
          raise ValueError(f"{where} has no {name}")
        else:
          _check(value[name], inner, f"{where}.{name}")
    case list():
      fits = isinstance(value, list)
      for item in value if fits else ():
        _check(item, form[0], f"an item of {where}")
    case tuple():
      return None if value is None else _check(value, form[1], where)
    case set():
      fits = isinstance(value, str) and value in form
    case re.Pattern():
      fits = isinstance(value, str) and form.fullmatch(value) is not None
    case int():
      fits = type(value) is int and form <= value < _LARGEST
    case _ if form is float:
      fits = type(value) in (int, float) and abs(value) < _LARGEST
    case _:
      fits = type(value) is form
  if not fits:
    raise ValueError(f"{where} is out of form or range")


def _parse(facts: Mapping[str, Any], sha256: str) -> Manifest:
  """Makes a Manifest of JSON of the right form, checking that its parts fit together."""
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
  if not splits:
    raise ValueError("splits has no split")
  for name, split in splits.items():
    count = sum(shard.records for shard in split.shards)
    if split.records != count or count % split.views:
      raise ValueError(f"splits.{name} has other records than its shards, or views of a part only")
  shape, side, names = facts["disguised_shape"], facts["spec"]["block_size"], facts["class_names"]
  if len(shape) != 3 or shape[0] % side or shape[1] % side:
    raise ValueError("disguised_shape is not whole blocks [H', W', C]")
  if names is not None and len(names) != facts["classes"]:
    raise ValueError("class_names are not one a class")
  quantiser = facts["quantiser"]
  if quantiser is not None:
    offset, scale = (np.asarray(quantiser[name], np.float32) for name in ("offset", "scale"))
    positions = (shape[0] // side * (shape[1] // side),)
    if offset.shape != positions or scale.shape != positions or not (scale > 0).all():
      raise ValueError("quantiser is not an offset and a scale above 0 for each block position")
    quantiser = Quantiser(offset, scale)
  return Manifest(
    **{
      **fields,
      "disguised_shape": tuple(shape),
      "quantiser": quantiser,
      "error": Bounds(**{f.name: facts["error"][f.name] for f in dataclasses.fields(Bounds)}),
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
