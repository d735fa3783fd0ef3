"""MANIFEST.json and MANIFEST.mac: what a disguised data set is, checked against damage and, with the key, tampering.

Both files come from a machine that nobody vouches for. They are read once, and what was read is what is authenticated;
every number is bounded, and tied to the bytes that are there, before anything is allocated by it. Holds no key and
loads no key code: who has the MAC's subkey gives it. Specified in docs/format.md.
"""

import dataclasses
import hashlib
import hmac
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from djax import escape, files, foreign, form, schemes
from djax.errors import ManifestError
from djax.quantise import DTYPES, Bounds, Quantiser

__all__ = [
  "DATASET",
  "FILE",
  "FORMAT",
  "MAC_FILE",
  "REQUEST",
  "REQUEST_SPLIT",
  "UNFINISHED",
  "VERSION",
  "Manifest",
  "Shard",
  "SplitFacts",
  "authenticate",
  "check",
  "mac_label",
  "read",
  "replace",
  "write",
]

FORMAT = "djax-disguised"
VERSION = 2
FILE = "MANIFEST.json"
MAC_FILE = "MANIFEST.mac"
DATASET = "dataset"
REQUEST = "request"
REQUEST_SPLIT = "query"
UNFINISHED = ".unfinished"
MOST_BYTES = 8 << 20  # of MANIFEST.json: some 40 000 shards
_MAC_BYTES = 1 << 10
_MOST_CLASSES = 1 << 16
_LONGEST_SIDE = 1 << 16
_MOST_VALUES = 1 << 26  # of a disguised image
_LEAST_NAME = 4  # bytes that a class name takes in the sealed part, with its quotes and comma
_MAC_FORM = re.compile(rb"hmac-sha256 ([0-9a-f]{64})\nsha256 ([0-9a-f]{64})\n")
_FILE_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_SPLIT_FORM = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,60}")
_HASH_FORM = re.compile(r"[0-9a-f]{64}")
_ID_FORM = re.compile(r"[0-9a-f]{32}")
_KEY_FORM = re.compile(r"djx1-[a-z2-7]{16}|experiment-seed[0-9]{1,20}-[a-z2-7]{16}")
_BASE64_FORM = re.compile(r"[A-Za-z0-9+/]*={0,2}")

# What each field must be, in the words of ``djax.form``.
_COMMON: dict[str, Any] = {
  "djax": str,
  "key_fingerprint": _KEY_FORM,
  "spec": {"scheme": {"rmt", "aes", "permutation"}, "image_shape": [1], "block_size": 1},
  "disguised_shape": [1],
  "dtype": set(DTYPES),
  "quantiser": (None, {"offset": [float], "scale": [float]}),
  "error": {"stored": float, "restored": (None, float), "noise": float},
  "source": {"name": str, "dtype": {"uint8", "float32"}, "hmac": _HASH_FORM},
  "classes": 1,
  "class_names": (None, [str]),
  "labels": {"plain", "permuted"},
  "splits": {
    _SPLIT_FORM: {
      "records": 1,
      "views": 1,
      "shards": [{"file": _FILE_FORM, "records": 1, "bytes": 1, "sha256": _HASH_FORM}],
    }
  },
  "files": {_FILE_FORM: _HASH_FORM},
  "warnings": [str],
  "sealed": _BASE64_FORM,
}
_VIEWS = {"count": 1, "crop": 0, "flip": bool}
_FORMS: dict[int, dict[str, Any]] = {
  1: {**_COMMON, "expansion": {"djx1"}, "views": _VIEWS},
  2: {
    **_COMMON,
    "expansion": {"djx2"},
    "id": _ID_FORM,
    "role": {DATASET, REQUEST},
    "request": (None, _ID_FORM),
    "views": {**_VIEWS, "together": bool},
  },
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

  ``sha256`` is that of the bytes of MANIFEST.json, ``raw`` these bytes and ``mac`` what MANIFEST.mac says of them, in
  hex; they are no fields of the file. ``version`` 1 has neither ``id`` nor ``role`` nor ``request``: the id is empty,
  and the role follows from the splits.
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
  id: str = ""
  role: str = DATASET
  request: str | None = None
  version: int = VERSION
  sha256: str = ""
  raw: bytes = dataclasses.field(default=b"", repr=False)
  mac: str = ""

  @property
  def block_size(self) -> int:
    """Side of a block in pixels."""
    return self.spec["block_size"]

  def to_dict(self) -> dict[str, Any]:
    """Returns the content of MANIFEST.json."""
    facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    for name in ("version", "sha256", "raw", "mac"):
      del facts[name]
    facts["error"] = dataclasses.asdict(self.error)
    facts["splits"] = {name: dataclasses.asdict(split) for name, split in self.splits.items()}
    if self.quantiser is not None:
      steps = {"offset": self.quantiser.offset, "scale": self.quantiser.scale}
      facts["quantiser"] = {name: np.asarray(x).tolist() for name, x in steps.items()}
    if self.version == 1:
      for name in ("id", "role", "request"):
        del facts[name]
      facts["views"] = {name: self.views[name] for name in _VIEWS}
    return {"format": FORMAT, "version": self.version, **facts}


def mac_label(facts: Manifest) -> str:
  """Returns the label of the MAC's subkey: with it a request never passes as a data set, nor the other way round.

  Args:
    facts: the manifest.
  """
  return "manifest" if facts.version == 1 else f"manifest|{facts.role}"


def check(facts: Manifest) -> None:
  """Refuses facts that ``read`` would refuse, before the work is done that they describe.

  Args:
    facts: of a data set that is to be written; its splits may have no shards yet.

  Raises:
    ValueError: with what is out of form or range.
  """
  found = json.loads(json.dumps(facts.to_dict()))
  planned = any(not split["shards"] for split in found["splits"].values())
  form.check(found, _FORMS[VERSION], "manifest")
  _parse(found, VERSION, planned=planned)


def write(folder: Path, manifest: Manifest, *, mac_key: bytes) -> None:
  """Writes both files, MANIFEST.json last: with it the directory is whole.

  Args:
    folder: the directory; its ``.unfinished`` exists.
    manifest: its facts.
    mac_key: the subkey ``mac_label`` of the owner.
  """
  data = (json.dumps(manifest.to_dict(), indent=1) + "\n").encode()
  first = f"hmac-sha256 {hmac.new(mac_key, data, hashlib.sha256).hexdigest()}\n".encode()
  second = f"sha256 {hashlib.sha256(data + first).hexdigest()}\n".encode()
  replace(folder / MAC_FILE, first + second)
  replace(folder / FILE, data)


def read(folder: Path) -> Manifest:
  """Reads the manifest of a directory, once, and checks it for damage.

  Args:
    folder: a disguised data set, or a run directory that holds copies of both files.

  Raises:
    ManifestError: if it is missing, damaged, not ours, or of a newer version.
  """
  data, mac = _read_files(folder)
  try:
    facts = foreign.parse_json(data)
    named, version = facts["format"], facts["version"]
  except (ValueError, TypeError, KeyError):
    raise ManifestError(f"{folder / FILE} is no manifest of djax.") from None
  if named != FORMAT or type(version) is not int or version < 1:
    raise ManifestError(f"{folder / FILE} must be a {FORMAT} manifest, got another format.")
  if version > VERSION:
    raise ManifestError(
      f"{folder / FILE} is of format version {version}, this djax reads up to {VERSION}. Install a newer djax."
    )
  try:
    form.check(facts, _FORMS[version], "manifest")
    found = _parse(facts, version)
  except (ValueError, TypeError, OverflowError) as error:
    raise ManifestError(
      f"{folder / FILE} is not as its format asks for: {error}. Take the directory from a good copy."
    ) from None
  return dataclasses.replace(
    found, sha256=hashlib.sha256(data).hexdigest(), raw=data, mac=mac.decode()
  )


def authenticate(facts: Manifest, *, mac_key: bytes, where: Path) -> None:
  """Checks that the owner of a key wrote the bytes that a manifest was parsed from.

  Args:
    facts: as ``read`` returned them.
    mac_key: the subkey ``mac_label`` of the key whose fingerprint the manifest shows.
    where: the directory, for the message.

  Raises:
    ManifestError: if not.
  """
  if not hmac.compare_digest(hmac.new(mac_key, facts.raw, hashlib.sha256).hexdigest(), facts.mac):
    raise ManifestError(
      f"{where / FILE} was not written with this key or was changed since, its checksum along with it. "
      "Do not use it; take the directory from your own copy."
    )


def _read_files(folder: Path) -> tuple[bytes, bytes]:
  """Returns the bytes of the manifest and its MAC, checksum verified."""
  try:
    data = foreign.read(folder, FILE, limit=MOST_BYTES)
    macs = foreign.read(folder, MAC_FILE, limit=_MAC_BYTES)
  except foreign.MissingFileError as error:
    unfinished = (folder / UNFINISHED).is_dir()
    hint = (
      " It is unfinished: re-run the `djax disguise` command."
      if unfinished
      else " Give a directory that `djax disguise` wrote."
    )
    raise ManifestError(f"{error}{hint}") from None
  except foreign.ForeignFileError as error:
    raise ManifestError(str(error)) from None
  lines = _MAC_FORM.fullmatch(macs)
  if not lines:
    raise ManifestError(f"{folder / MAC_FILE} is damaged. Take the directory from a good copy.")
  first = macs[: lines.end(1) + 1]
  if hashlib.sha256(data + first).hexdigest().encode() != lines[2]:
    raise ManifestError(
      f"{folder / FILE} or {MAC_FILE} is damaged: the checksum does not hold. Take both from a good copy."
    )
  return data, lines[1]


def _parse(facts: Mapping[str, Any], version: int, *, planned: bool = False) -> Manifest:
  """Makes a Manifest of JSON of the right form, checking that its parts fit together."""
  fields = {name: facts[name] for name in _FORMS[version]}
  shape, spec = _shapes(facts)
  splits = {name: _split(name, split, planned) for name, split in facts["splits"].items()}
  if not splits:
    raise ValueError("splits has no split")
  _check_files(facts, splits)
  image_bytes = math.prod(shape) * np.dtype(facts["dtype"]).itemsize
  for name, split in splits.items():
    for shard in split.shards:
      if shard.records * image_bytes > shard.bytes:
        raise ValueError(f"splits.{name} has more images than its shards have room for")
  names, classes = facts["class_names"], facts["classes"]
  if names is not None and len(names) != classes:
    raise ValueError("class_names are not one a class")
  if classes > _MOST_CLASSES or _LEAST_NAME * classes > len(facts["sealed"]):
    raise ValueError("classes is more than the sealed names allow")
  role = fields.get("role", REQUEST if set(splits) == {REQUEST_SPLIT} else DATASET)
  if (role == REQUEST) != (set(splits) == {REQUEST_SPLIT}):
    raise ValueError(f"role is not that of the splits {', '.join(splits)}")
  if version > 1 and (fields["request"] is None) != (role == DATASET):
    raise ValueError("request is not the id of a request")
  return Manifest(
    **{
      **fields,
      "spec": spec,
      "disguised_shape": shape,
      "quantiser": _quantiser(facts, shape),
      "error": Bounds(**{f.name: facts["error"][f.name] for f in dataclasses.fields(Bounds)}),
      "class_names": None if names is None else tuple(names),
      "views": {"together": True, **fields["views"]},
      "splits": splits,
      "warnings": tuple(facts["warnings"]),
      "role": role,
      "version": version,
    }
  )


def _shapes(facts: Mapping[str, Any]) -> tuple[tuple[int, int, int], dict[str, Any]]:
  """Returns the shape of a disguised image and the spec, the scheme made of it once."""
  shape, given = facts["disguised_shape"], facts["spec"]["image_shape"]
  if len(shape) != 3 or len(given) != 3 or max(*shape, *given) > _LONGEST_SIDE:
    raise ValueError(f"disguised_shape is not [H', W', C] up to {_LONGEST_SIDE} a side")
  if math.prod(shape) > _MOST_VALUES:
    raise ValueError(f"disguised_shape has more than {_MOST_VALUES} values")
  try:
    scheme = schemes.from_spec(facts["spec"])
  except (ValueError, TypeError) as error:
    raise ValueError(f"spec: {escape.for_terminal(str(error))}") from None
  if scheme.spec.to_dict() != facts["spec"]:
    raise ValueError("spec is not complete")
  if list(scheme.spec.disguised_shape) != shape:
    raise ValueError("disguised_shape is not that of the spec")
  return scheme.spec.disguised_shape, dict(facts["spec"])


def _split(name: str, split: Mapping[str, Any], planned: bool) -> SplitFacts:
  """Makes the facts of a split, its counts checked."""
  shards = tuple(
    Shard(**{f.name: shard[f.name] for f in dataclasses.fields(Shard)}) for shard in split["shards"]
  )
  count = split["records"] if planned else sum(shard.records for shard in shards)
  if split["records"] != count or count % split["views"]:
    raise ValueError(f"splits.{name} has other records than its shards, or views of a part only")
  return SplitFacts(split["records"], split["views"], shards)


def _check_files(facts: Mapping[str, Any], splits: Mapping[str, SplitFacts]) -> None:
  """Refuses one file under two names of the manifest: it would be read again and again."""
  names = [shard.file for split in splits.values() for shard in split.shards]
  names += [*facts["files"], FILE, MAC_FILE]
  if len(set(names)) != len(names):
    raise ValueError("a file is named twice")


def _quantiser(facts: Mapping[str, Any], shape: tuple[int, int, int]) -> Quantiser | None:
  """Makes the quantiser, one step a block position."""
  quantiser, side = facts["quantiser"], facts["spec"]["block_size"]
  if quantiser is None:
    return None
  offset, scale = (np.asarray(quantiser[name], np.float32) for name in ("offset", "scale"))
  positions = (shape[0] // side * (shape[1] // side),)
  if offset.shape != positions or scale.shape != positions or not (scale > 0).all():
    raise ValueError("quantiser is not an offset and a scale above 0 for each block position")
  return Quantiser(offset, scale)


def replace(path: Path, data: bytes) -> None:
  """Writes a file so that it appears under its name only when whole.

  Args:
    path: the file, in the directory or in its ``.unfinished``, which exists.
    data: its content.
  """
  place = path.parent if path.parent.name == UNFINISHED else path.parent / UNFINISHED
  files.replace(path, data, folder=place)
