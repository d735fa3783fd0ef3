"""MANIFEST.json and MANIFEST.mac: what a disguised data set is, checked against damage and, with the key, tampering.

Both files come from an untrusted machine. They are read once, and what was read is what is authenticated;
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

from djax import schemes
from djax.disguised import manifest_form as forms
from djax.disguised import png
from djax.disguised.manifest_form import DATASET, REQUEST
from djax.disguised.quantise import Bounds, Quantiser
from djax.errors import ManifestError
from djax.io import files, foreign, form
from djax.schemes import Trait

__all__ = [
  "DATASET",
  "FILE",
  "FOLDER_VERSION",
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
  "encoded",
  "mac_label",
  "planned",
  "read",
  "replace",
  "write",
]

FORMAT = "djax-disguised"
VERSION, FOLDER_VERSION = 2, 3  # of shards, of a folder of PNG files
FILE = "MANIFEST.json"
MAC_FILE = "MANIFEST.mac"
REQUEST_SPLIT = "query"
UNFINISHED = ".unfinished"
MOST_BYTES = 8 << 20  # of MANIFEST.json: some 40 000 shards
_MAC_BYTES = 1 << 10
_MOST_BRACKETS = 1 << 17  # of its objects and lists: Python needs some 90 bytes for an empty one
_NUMBER_BYTES = 28  # that a number of the quantiser takes at most
_MAC_FORM = re.compile(rb"hmac-sha256 ([0-9a-f]{64})\nsha256 ([0-9a-f]{64})\n")


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
  hex; they are no fields of the file. ``container`` is ``shards`` or, in version 3, ``folder``: a field of the file in
  that version alone. ``version`` 1 has neither ``id`` nor ``role`` nor ``request``: the id is empty,
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
  container: str = forms.SHARDS
  sha256: str = ""
  raw: bytes = dataclasses.field(default=b"", repr=False)
  mac: str = ""

  @property
  def block_size(self) -> int:
    """Side of a block in pixels."""
    return self.spec["block_size"]

  @property
  def has_floats(self) -> bool:
    """Whether the exact disguise is float32, so that uint8 needs a quantiser."""
    return Trait.FLOATS in schemes.traits(self.spec) or self.source["dtype"] != "uint8"

  def to_dict(self) -> dict[str, Any]:
    """Returns the content of MANIFEST.json."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    hidden = ["version", "sha256", "raw", "mac"]
    for name in hidden if self.version == FOLDER_VERSION else [*hidden, "container"]:
      del fields[name]
    fields["error"] = dataclasses.asdict(self.error)
    fields["splits"] = {name: dataclasses.asdict(split) for name, split in self.splits.items()}
    if self.quantiser is not None:
      steps = {"offset": self.quantiser.offset, "scale": self.quantiser.scale}
      fields["quantiser"] = {name: np.asarray(x).tolist() for name, x in steps.items()}
    if self.version == 1:
      for name in ("id", "role", "request"):
        del fields[name]
      fields["views"] = {name: self.views[name] for name in forms.FORMS[1]["views"]}
    return {"format": FORMAT, "version": self.version, **fields}


def mac_label(manifest: Manifest) -> str:
  """Returns the label of the MAC's subkey: with it a request never passes as a data set, nor the other way round.

  Args:
    manifest: of a data set or a request.
  """
  return "manifest" if manifest.version == 1 else f"manifest|{manifest.role}"


def planned(content: Mapping[str, Any]) -> Manifest:
  """Makes a Manifest of facts that were kept before the work; its splits have no shards yet.

  Args:
    content: as ``Manifest.to_dict`` gives it.

  Raises:
    ValueError: with what is out of form or range.
  """
  form.check(content, forms.FORMS[content["version"]], "plan")
  return _parse(content, content["version"], planned=True)


def check(manifest: Manifest) -> None:
  """Refuses facts that ``read`` would refuse, before the work is done that they describe.

  Args:
    manifest: of a data set that is to be written; its splits may have no shards yet.

  Raises:
    ValueError: with what is out of form or range, or too large.
  """
  data = encoded(manifest)
  content = json.loads(data)
  planned = any(not split["shards"] for split in content["splits"].values())
  form.check(content, forms.FORMS[manifest.version], "manifest")
  _parse(content, manifest.version, planned=planned)
  positions = math.prod(manifest.disguised_shape[:2]) // manifest.block_size**2
  awaited = manifest.has_floats and manifest.dtype == "uint8" and manifest.quantiser is None
  _check_size(len(data) + 2 * positions * _NUMBER_BYTES * awaited)


def write(folder: Path, manifest: Manifest, *, mac_key: bytes) -> None:
  """Writes both files, MANIFEST.json last: with it the directory is whole.

  Args:
    folder: the directory; its ``.unfinished`` exists.
    manifest: its facts.
    mac_key: the subkey ``mac_label`` of the owner.

  Raises:
    ManifestError: if it is larger than ``read`` takes.
  """
  data = encoded(manifest)
  try:
    _check_size(len(data))
  except ValueError as error:
    raise ManifestError(f"{folder / FILE} cannot be written: {error}.") from None
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
    if data.count(b"[") + data.count(b"{") > _MOST_BRACKETS:
      raise ValueError
    content = foreign.parse_json(data)
    named, version = content["format"], content["version"]
  except (ValueError, TypeError, KeyError):
    raise ManifestError(f"{folder / FILE} is no manifest of djax.") from None
  if named != FORMAT or type(version) is not int or version < 1:
    raise ManifestError(f"{folder / FILE} must be a {FORMAT} manifest, got another format.")
  if version > max(forms.FORMS):
    raise ManifestError(
      f"{folder / FILE} is of format version {version}, this djax reads up to {max(forms.FORMS)}. Install a newer djax."
    )
  try:
    form.check(content, forms.FORMS[version], "manifest")
    manifest = _parse(content, version)
  except (ValueError, TypeError, OverflowError) as error:
    raise ManifestError(
      f"{folder / FILE} is not as its format asks for: {error}. Take the directory from a good copy."
    ) from None
  return dataclasses.replace(
    manifest, sha256=hashlib.sha256(data).hexdigest(), raw=data, mac=mac.decode()
  )


def authenticate(manifest: Manifest, *, mac_key: bytes, where: Path) -> None:
  """Checks that the owner of a key wrote the bytes that a manifest was parsed from.

  Args:
    manifest: as ``read`` returned them.
    mac_key: the subkey ``mac_label`` of the key whose fingerprint the manifest shows.
    where: the directory, for the message.

  Raises:
    ManifestError: if not.
  """
  if not hmac.compare_digest(
    hmac.new(mac_key, manifest.raw, hashlib.sha256).hexdigest(), manifest.mac
  ):
    raise ManifestError(
      f"{where / FILE} was not written with this key or was changed since, its checksum along with it. "
      "Do not use it; take the directory from your own copy."
    )


def encoded(manifest: Manifest) -> bytes:
  """Returns the bytes of MANIFEST.json.

  Args:
    manifest: its facts.
  """
  return (json.dumps(manifest.to_dict(), indent=1) + "\n").encode()


def _check_size(size: int) -> None:
  """Refuses a manifest that nobody could read."""
  if size > MOST_BYTES:
    raise ValueError(
      f"{FILE} must have at most {MOST_BYTES} bytes, it takes {size}: use larger blocks or shards, another dtype, or "
      "shorter names"
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


def _parse(content: Mapping[str, Any], version: int, *, planned: bool = False) -> Manifest:
  """Makes a Manifest of JSON of the right form, checking that its parts fit together."""
  fields = {name: content[name] for name in forms.FORMS[version]}
  for name in ("source", "views"):  # fields that are not known are not kept
    known = forms.FORMS[version][name]
    fields[name] = {part: value for part, value in content[name].items() if part in known}
  shape, spec = forms.shapes(content)
  splits = {name: _split(name, split, planned) for name, split in content["splits"].items()}
  if not splits:
    raise ValueError("splits has no split")
  _check_files(content, splits)
  image_bytes = math.prod(shape) * np.dtype(content["dtype"]).itemsize
  is_folder = version == FOLDER_VERSION
  if is_folder and (content["dtype"] != "uint8" or shape[2] not in png.CHANNELS):
    raise ValueError("a folder of PNG files holds uint8 in 1 or 3 channels")
  for name, split in splits.items():
    for shard in split.shards:
      if is_folder:
        line = forms.line_bytes(name, split.records, content["classes"])
        if shard.bytes != shard.records * line:
          raise ValueError(f"splits.{name} has shards that are not a line of {line} bytes a record")
        continue
      if shard.records * image_bytes > shard.bytes:
        raise ValueError(f"splits.{name} has more images than its shards have room for")
      if (
        shard.bytes > shard.records * (image_bytes + image_bytes // 64 + forms.ROOM) + forms.BLOCKS
      ):
        raise ValueError(f"splits.{name} has shards that are larger than their images")
  if sum(shard.bytes for split in splits.values() for shard in split.shards) > forms.MOST_STORED:
    raise ValueError(f"splits has more than {forms.MOST_STORED} bytes")
  names, classes = content["class_names"], content["classes"]
  if names is not None and len(names) != classes:
    raise ValueError("class_names are not one a class")
  if classes > forms.MOST_CLASSES or forms.LEAST_NAME * classes > len(content["sealed"]):
    raise ValueError("classes is more than the sealed names allow")
  role = fields.get("role", REQUEST if set(splits) == {REQUEST_SPLIT} else DATASET)
  if (role == REQUEST) != (set(splits) == {REQUEST_SPLIT}):
    raise ValueError(f"role is not that of the splits: a request has {REQUEST_SPLIT} alone")
  if version > 1 and (fields["request"] is None) != (role == DATASET):
    raise ValueError("request is not the id of a request")
  return Manifest(
    **{
      **fields,
      "spec": spec,
      "disguised_shape": shape,
      "quantiser": forms.quantiser(content, shape),
      "error": Bounds(**{f.name: content["error"][f.name] for f in dataclasses.fields(Bounds)}),
      "class_names": None if names is None else tuple(names),
      "views": {**fields["views"], "together": fields["views"].get("together", True)},
      "splits": splits,
      "warnings": tuple(content["warnings"]),
      "role": role,
      "version": version,
    }
  )


def _split(name: str, split: Mapping[str, Any], planned: bool) -> SplitFacts:
  """Makes the facts of a split, its counts checked."""
  shards = tuple(
    Shard(**{f.name: shard[f.name] for f in dataclasses.fields(Shard)}) for shard in split["shards"]
  )
  count = split["records"] if planned else sum(shard.records for shard in shards)
  if split["records"] != count or count % split["views"]:
    raise ValueError(f"splits.{name} has other records than its shards, or views of a part only")
  return SplitFacts(split["records"], split["views"], shards)


def _check_files(content: Mapping[str, Any], splits: Mapping[str, SplitFacts]) -> None:
  """Refuses one file under two names of the manifest: it would be read again and again."""
  names = [shard.file for split in splits.values() for shard in split.shards]
  names += [*content["files"], FILE, MAC_FILE]
  if len(set(names)) != len(names):
    raise ValueError("a file is named twice")


def replace(path: Path, data: bytes, *, writer: str = "") -> None:
  """Writes a file so that it appears under its name only when whole.

  Args:
    path: the file, in the directory or in its ``.unfinished``, which exists.
    data: its content.
    writer: as of ``files.replace``.
  """
  place = path.parent if path.parent.name == UNFINISHED else path.parent / UNFINISHED
  files.replace(path, data, folder=place, writer=writer)
