"""From what is asked to what is to be done: a request is checked against its source before anything is written."""

import contextlib
import dataclasses
import hashlib
import hmac
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import djax
from djax import keys, schemes, sources
from djax.disguised import containers, datacard, directory, png, quantise
from djax.disguised import manifest as manifest_lib
from djax.disguised import manifest_form as forms
from djax.disguised.manifest import Manifest, SplitFacts
from djax.errors import ConfigError, DataError, UnsafeError
from djax.keys import Master
from djax.owner import sealed_metadata
from djax.schemes import Trait
from djax.schemes.base import check_key_memory
from djax.sources import inventory
from djax.sources.inventory import Inventory

__all__ = ["SHARD_BYTES", "Hashed", "Job", "Plan", "Request", "make", "source_hmac"]

SHARD_BYTES = 64 << 20  # of a shard, if nothing else is asked
# How a source is read, of which the first version of the format knew nothing.
_LATER = ("scale", "group_by", "split_seed", "background")


@dataclasses.dataclass(frozen=True)
class Request:
  """A disguised data set, as an owner asks for it.

  Attributes:
    source: as ``sources.open`` takes it.
    disguise: ``scheme`` and its parameters, without ``image_shape``.
    splits: by name, the split of the source: ``{"train": "train[:1000]", "test": "test"}``.
    dtype: what is stored, ``float32``, ``float16`` or ``uint8``; empty: as the scheme gives it.
    format: ``shards`` of ArrayRecord or a ``folder`` of PNG files, which holds uint8 alone.
    views: of each original in the split ``train``, the original itself included.
    crop: greatest shift of a further view in pixels.
    flip: whether further views are mirrored, half of them.
    views_together: whether the views of an image lie side by side, as someone must know who averages them; else every
      record lies anywhere in its split.
    plain_labels: whether label ids and class names are those of the source.
    reading: how the source is read.
    originals_per_shard: how many originals' views make a shard, which each worker holds in memory; 0: what makes
      64 MiB.
    dataset_id: public id, 32 hexadecimal digits; empty: a new random one. The same id, source and parameters give the
      same bytes; two data sets with one id and one spec share matrices.
  """

  source: str
  disguise: Mapping[str, Any]
  splits: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {"train": "train", "test": "test"}
  )
  dtype: str = ""
  format: str = forms.SHARDS
  views: int = 1
  crop: int = 0
  flip: bool = False
  views_together: bool = False
  plain_labels: bool = False
  reading: sources.Reading = sources.AS_IS
  originals_per_shard: int = 0
  dataset_id: str = ""

  def open(self, split: str) -> sources.Records:
    """Opens the source's part of one of the splits."""
    return sources.open(self.source, self.splits[split], **vars(self.reading))


@dataclasses.dataclass(frozen=True)
class Job:
  """What workers need besides the key: public facts, and where originals and shards lie. Can be pickled.

  Attributes:
    request: what was asked.
    manifest: as far as it is known before the work.
    out: the directory.
    starts_of: by split name, the first record of each shard, and at the end the number of records.
    snapshots: by split name, ``Records.snapshot`` of the source that was planned; workers refuse another one.
  """

  request: Request
  manifest: Manifest
  out: Path
  starts_of: Mapping[str, tuple[int, ...]]
  snapshots: Mapping[str, str]

  def rows(self, split: str, index: int) -> range:
    """Returns which records of a split a shard holds."""
    return range(*self.starts_of[split][index : index + 2])

  def shard_file(self, split: str, index: int) -> str:
    """Returns the name of a shard in the directory."""
    count = len(self.starts_of[split]) - 1
    return containers.of(self.manifest, self.out).file(split, index, count)


class Plan(NamedTuple):
  """What is to be done.

  Attributes:
    job: for the workers.
    roots: files and folders that hold originals.
    hashes: SHA-256 of each file that the records come from, in hex; None where an earlier plan's hash was taken.
    look: keyed hash of what the source looked like: names, sizes and times of its files.
    inventory: what is in the source.
  """

  job: Job
  roots: set[Path]
  hashes: tuple[str, ...] | None
  look: str
  inventory: Inventory


class Hashed(NamedTuple):
  """The hash of a source in an earlier plan.

  Attributes:
    look: as of ``Plan``.
    hmac: of ``source_hmac``.
  """

  look: str
  hmac: str


def make(request: Request, out: Path, master: Master, *, hashed: Hashed | None = None) -> Plan:
  """Checks a request and plans its work. Writes nothing.

  Args:
    request: what is asked, its ``dataset_id`` filled in.
    out: the directory to be written.
    master: the owner's key.
    hashed: an earlier plan's hash of the source, taken if the source still looks as it did; else every file is read.

  Raises:
    ConfigError: for parameters that cannot work.
    DataError: if the source cannot be used.
    UnsafeError: for a scheme that disguises nothing.
  """
  with contextlib.ExitStack() as stack:
    opened = {name: stack.enter_context(request.open(name)) for name in request.splits}
    first = next(iter(opened.values()))
    _check_splits(opened)
    counts = {name: len(records) for name, records in opened.items()}
    files = sorted({item for records in opened.values() for item in records.files})
    for records in opened.values():
      records.check()
    snapshots = {name: records.snapshot() for name, records in opened.items()}
    found = inventory.take(opened)
  shape, names, given = first.image_shape, first.class_names, np.dtype(first.dtype)
  scheme = _scheme(request.disguise, shape)
  spec, disguised_shape = scheme.spec.to_dict(), scheme.spec.disguised_shape
  if request.format == forms.FOLDER:
    request = _for_png(request, disguised_shape)
  stored = _dtype(spec, request.dtype, given)
  _check_views(request, shape)
  views_of = {name: request.views if name == "train" else 1 for name in counts}
  secret = _secret(request, spec, master)
  look = hmac.new(
    secret.subkey("source"), f"look {sorted(snapshots.items())}".encode(), hashlib.sha256
  ).hexdigest()
  hashes = None
  if hashed is not None and hashed.look == look:
    source_hash = hashed.hmac
  else:
    hashes = tuple(directory.file_sha256(path) for _, path in files)
    source_hash = source_hmac([name for name, _ in files], hashes, request, secret)
  manifest = Manifest(
    djax=djax.__version__,
    expansion=keys.DATA_SETS,
    key_fingerprint=master.fingerprint,
    spec=spec,
    disguised_shape=disguised_shape,
    dtype=stored.name,
    quantiser=None,
    error=quantise.bounds(spec, stored.name, None),
    source={
      "name": first.name,
      "dtype": given.name,
      "hmac": source_hash,
    },
    classes=len(names),
    class_names=names if request.plain_labels else None,
    labels="plain" if request.plain_labels else "permuted",
    views={
      "count": request.views,
      "crop": request.crop,
      "flip": request.flip,
      "together": request.views_together,
    },
    splits={
      name: SplitFacts(count * views_of[name], views_of[name], ()) for name, count in counts.items()
    },
    files={},
    warnings=datacard.warnings(spec, fingerprint=master.fingerprint),
    sealed="",
    id=request.dataset_id,
    version=manifest_lib.FOLDER_VERSION if request.format == forms.FOLDER else manifest_lib.VERSION,
    container=request.format,
  )
  box = sealed_metadata.box_of(manifest, master)
  manifest = dataclasses.replace(manifest, sealed=box.seal({"class_names": list(names)}))
  try:
    manifest_lib.check(manifest)
  except ValueError as error:
    raise ConfigError(f"disguise: what is asked cannot be written down: {error}.") from None
  record_bytes = math.prod(disguised_shape) * stored.itemsize
  step = request.originals_per_shard or max(1, SHARD_BYTES // (record_bytes * request.views))
  starts_of = {
    name: (*range(0, split.records, step * split.views), split.records)
    for name, split in manifest.splits.items()
  }
  job = Job(request, manifest, out, starts_of, snapshots)
  return Plan(job, _roots(request, first.name, files), hashes, look, found)


def _secret(request: Request, spec: Mapping[str, Any], master: Master) -> keys.Streams:
  """Returns the secret of the data set."""
  try:
    return master.data_set(request.dataset_id, spec)
  except ValueError:
    raise ConfigError(
      f"dataset_id must be 32 hexadecimal digits in lower case, got {request.dataset_id!r}. "
      "Leave it out for a new random one."
    ) from None


def _check_splits(opened: Mapping[str, Any]) -> None:
  """Refuses splits that are empty or do not belong together."""
  first = next(iter(opened.values()))
  for name, records in opened.items():
    if not len(records):
      raise DataError(f"the split {name} must hold at least one image, got none.")
    if (records.image_shape, records.class_names) != (first.image_shape, first.class_names):
      raise DataError(
        f"all splits must have one image shape and the same classes, got {first.image_shape} with "
        f"{len(first.class_names)} and, in {name}, {records.image_shape} with {len(records.class_names)}."
      )


def _scheme(disguise: Mapping[str, Any], shape: tuple[int, int, int]) -> schemes.Scheme:
  if disguise.get("scheme") == "plain":
    raise UnsafeError(
      f"scheme plain disguises nothing. Choose one of {', '.join(schemes.written())}."
    )
  try:
    scheme = schemes.from_spec({**disguise, "image_shape": shape})
    check_key_memory(scheme.key_bytes)  # before anything is written
    return scheme
  except ConfigError:
    raise
  except (ValueError, TypeError) as error:
    raise ConfigError(str(error)) from error


def _dtype(spec: Mapping[str, Any], dtype: str, given: np.dtype) -> np.dtype:
  """Returns what is stored."""
  kind = schemes.kind_of(spec)
  if not kind.takes_floats and given != np.uint8:
    raise ConfigError(
      f"{kind.name} must have 8-bit originals, got {given}. Round them to uint8, or choose rmt."
    )
  floats = Trait.FLOATS in kind.traits(spec) or given != np.uint8
  natural = "float32" if floats else "uint8"
  if natural == "uint8" and dtype not in ("", "uint8"):
    raise ConfigError(
      f"{spec['scheme']} of 8-bit originals is stored as uint8, exactly; got dtype {dtype!r}. Leave it out."
    )
  if (dtype or natural) not in quantise.DTYPES:
    raise ConfigError(f"dtype must be one of {', '.join(quantise.DTYPES)}, got {dtype!r}.")
  return np.dtype(dtype or natural)


def _for_png(request: Request, shape: tuple[int, int, int]) -> Request:
  """Returns a request for a folder of PNG files with its dtype; refuses what they cannot hold."""
  if shape[2] not in png.CHANNELS:
    raise ConfigError(
      f"PNG files must have 1 or 3 channels, the disguised images have {shape[2]}. Leave out --format folder."
    )
  if request.dtype not in ("", "uint8"):
    raise ConfigError(
      f"PNG files hold uint8, got dtype {request.dtype!r}. Leave it out, or leave out --format folder."
    )
  return dataclasses.replace(request, dtype="uint8")


def _check_views(request: Request, shape: tuple[int, int, int]) -> None:
  if request.views < 1:
    raise ConfigError(f"views must be at least 1, got {request.views}.")
  if not 0 <= request.crop < min(shape[:2]):
    raise ConfigError(f"crop must lie in 0..{min(shape[:2]) - 1} pixels, got {request.crop}.")
  if (request.views > 1) != (request.crop > 0 or request.flip):
    raise ConfigError(
      "views above 1 need crop or flip, and these need views above 1; "
      f"got views={request.views}, crop={request.crop}, flip={request.flip}."
    )


def source_hmac(
  names: Sequence[str], hashes: Sequence[str], request: Request, secret: keys.Streams
) -> str:
  """Returns the keyed hash of a source; digits, embedded in a package, have no files.

  Args:
    names: of the files below the source, sorted.
    hashes: SHA-256 of each, in hex.
    request: its splits, image size and, where they are given, the rest of how it is read.
    secret: of the data set.
  """
  digest = hmac.new(secret.subkey("source"), digestmod=hashlib.sha256)
  asked: list[Any] = [*request.splits.items(), request.reading.image_size]
  later = {name: getattr(request.reading, name) for name in _LATER}
  if later["scale"] == 255:  # the same pixels
    later["scale"] = 0
  asked += [[name, value] for name, value in later.items() if value]
  digest.update(json.dumps(asked).encode())
  for name, sha256 in zip(names, hashes, strict=True):
    digest.update(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())
    digest.update(bytes.fromhex(sha256))
  return digest.hexdigest()


def _roots(request: Request, name: str, files: Sequence[tuple[str, Path]]) -> set[Path]:
  if name == "folder":
    return {Path(request.source).expanduser().resolve()}
  paths = {path.resolve() for _, path in files}
  return paths if name == "npz" else {path.parent for path in paths}
