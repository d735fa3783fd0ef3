"""The owner's ledger: which data sets were disguised with a key, in a file beside it. Never secret, optional to lose.

An authentic directory may be an old one, or one of another source: a MAC does not tell. The ledger does. It is a text
file of one JSON object a line; whole lines are only ever added. The source is noted as a sketch: of the keyed hashes of
its files the 256 smallest, so that the share of files that two sources have in common can be estimated, and a guess of
a file cannot be confirmed without the key (Broder 1997, doi:10.1109/SEQUEN.1997.666900: the bottom-k sketch). A share
below one in a hundred may go unseen, and a file that was changed in a byte is another one.
"""

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import hmac
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from djax.disguised.manifest import Manifest
from djax.errors import DataError, DjaxError, UnsafeError
from djax.io import files, foreign, form, locks
from djax.keys import Master

__all__ = ["Entry", "Ledger", "Standing", "beside"]

_MOST_BYTES = 64 << 20
_SKETCH = 256
_HASH_DIGITS = 16
_MOVE = "Move it away to start a new one, or give disguise --no-ledger: nothing is lost but what it knows."


@dataclasses.dataclass(frozen=True)
class Entry:
  """One data set.

  Attributes:
    date: UTC, in ISO 8601.
    fingerprint: of the key.
    id: of the data set.
    manifest_sha256: of its MANIFEST.json; empty before it is written.
    source: its public name.
    sketch: of its files.
    spec: of the scheme.
    asked: SHA-256, in hex, of all that was asked for: two data sets of one id must not differ in it.
  """

  date: str
  fingerprint: str
  id: str
  manifest_sha256: str
  source: str
  sketch: tuple[str, ...]
  spec: dict[str, Any]
  asked: str


# What a line must hold, in the words of ``djax.io.form``.
_FORM = {field.name: str for field in dataclasses.fields(Entry)} | {"sketch": [str], "spec": dict}


@dataclasses.dataclass(frozen=True)
class Standing:
  """What the ledger says of a directory.

  Attributes:
    known: whether it is entered; None where there is no ledger to ask, or an empty one.
    date: when it was entered.
    newer: a later data set of the same source, or None.
  """

  known: bool | None
  date: str = ""
  newer: Entry | None = None

  @property
  def words(self) -> str:
    """One line for a person."""
    if self.known is None:
      return "there is no ledger beside the key file"
    if not self.known:
      return "NOT KNOWN: no data set of this manifest is in the ledger beside the key file"
    if self.newer is not None:
      return (
        f"OLDER: written {self.date}; the same source was disguised again {self.newer.date} "
        f"(manifest {self.newer.manifest_sha256[:16]})"
      )
    return f"written {self.date}, the newest of its source"


def beside(key_file: str | os.PathLike) -> Path:
  """Returns where the ledger of a key file lies.

  Args:
    key_file: the key file.
  """
  path = Path(key_file).expanduser()
  return path.with_name(f"{path.name}.ledger")


class Ledger:
  """The ledger in a file.

  Args:
    path: the file; made when the first data set is entered.
  """

  def __init__(self, path: Path):
    self.path = path

  def entries(self) -> list[Entry]:
    """Reads all entries, from the oldest to the newest. What a killed process left of a last line is skipped.

    Raises:
      DataError: if the file is no regular file, too large, not readable, or damaged.
    """
    try:
      data = foreign.read(self.path.parent, self.path.name, limit=_MOST_BYTES)
    except foreign.MissingFileError:
      return []
    except foreign.ForeignFileError as error:
      raise DataError(f"the ledger cannot be read: {error} {_MOVE}") from None
    *lines, last = data.split(b"\n")
    entries = []
    for number, line in enumerate(lines, 1):
      try:
        entries.append(_parsed(line))
      except ValueError as error:
        raise DataError(
          f"{self.path} must hold one data set a line, line {number} is damaged ({error}). {_MOVE}"
        ) from None
    with contextlib.suppress(ValueError):
      entries.append(_parsed(last))
    return entries

  def planned(self, manifest: Manifest, hashes: Sequence[str], master: Master) -> Entry:
    """Returns the entry of a data set that is to be written, and makes sure that it can be entered.

    Args:
      manifest: as far as it is known.
      hashes: SHA-256 of each file of the source, in hex; none for a source without files.
      master: the owner's key.

    Raises:
      DataError: as ``entries``.
      UnsafeError: if the id was given to a data set of another source or other parameters.
      DjaxError: if the ledger cannot be written.
    """
    entry = Entry(
      date="",
      fingerprint=manifest.key_fingerprint,
      id=manifest.id,
      manifest_sha256="",
      source=manifest.source["name"],
      sketch=_sketch(hashes or [f"name:{manifest.source['name']}"], master),
      spec=dict(manifest.spec),
      asked=_asked(manifest),
    )
    for other in self.entries():
      same = (other.fingerprint, other.id) == (entry.fingerprint, entry.id)
      if same and other.asked != entry.asked:
        raise UnsafeError(
          f"the id {entry.id} was given to a data set on {other.date}, of another source or other parameters. Leave "
          "--dataset-id out for a new one."
        )
    with self._opened():
      return entry

  def warnings(self, planned: Entry) -> Iterator[str]:
    """Yields what the owner should know before a data set goes out.

    Args:
      planned: its entry.

    Raises:
      DataError: as ``entries``.
    """
    for other in self.entries():
      share = _overlap(other, planned)
      if share and other.id != planned.id:
        yield (
          f"warning: {max(share, 0.01):.0%} of the files of this source and of one disguised {other.date} (id "
          f"{other.id[:8]}, {other.spec.get('scheme')}) are the same: each disguise of an image more is one more to "
          "average and to compare"
        )

  def enter(self, planned: Entry, manifest: Manifest) -> None:
    """Enters a data set that is written, unless it stands there already.

    Args:
      planned: its entry, as ``planned`` returned it.
      manifest: of the data set.

    Raises:
      DataError: as ``entries``.
      DjaxError: if the ledger cannot be written; the data set is whole, and doing the same again enters it.
    """
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    entry = dataclasses.replace(planned, date=now, manifest_sha256=manifest.sha256)
    with self._opened() as descriptor:
      if any(other.manifest_sha256 == manifest.sha256 for other in self.entries()):
        return
      try:
        _append(descriptor, json.dumps(dataclasses.asdict(entry)).encode())
      except OSError as error:
        self._refuse(error)
    files.sync_folder(self.path.parent)

  def standing(self, manifest: Manifest) -> Standing:
    """Says whether a directory is known, and the newest of its source.

    Args:
      manifest: of the directory, authenticated.

    Raises:
      DataError: as ``entries``.
    """
    every = self.entries()
    if not every:
      return Standing(None)
    entries = [entry for entry in every if entry.fingerprint == manifest.key_fingerprint]
    place = next(
      (i for i, entry in enumerate(entries) if entry.manifest_sha256 == manifest.sha256), None
    )
    if place is None:
      return Standing(False)
    newer = [entry for entry in entries[place + 1 :] if _overlap(entry, entries[place])]
    return Standing(True, entries[place].date, newer[-1] if newer else None)

  @contextlib.contextmanager
  def _opened(self) -> Iterator[int]:
    """Opens the file for adding to it, locked."""
    locks.require_locks(self.path)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    try:
      descriptor = os.open(self.path, flags, 0o600)
    except OSError as error:
      self._refuse(error)
    try:
      locks.wait_for_lock(descriptor)
      yield descriptor
    finally:
      os.close(descriptor)

  def _refuse(self, error: OSError) -> NoReturn:
    raise DjaxError(
      f"the ledger {self.path} must be writable, got: {error.strerror}. Make it so and re-run the command, or give "
      "--no-ledger."
    ) from None


def _append(descriptor: int, line: bytes) -> None:
  """Adds a whole line, or nothing: what is half written would be damage once another line follows it."""
  size = os.fstat(descriptor).st_size
  data = os.pread(descriptor, size, 0)
  start = data.rfind(b"\n") + 1
  try:
    _parsed(data[start:])
    line = b"\n" + line  # whole, but for its end
  except ValueError:
    os.ftruncate(descriptor, start)
    size = start
  line += b"\n"
  try:
    if os.write(descriptor, line) != len(line):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(descriptor)
  except OSError:
    os.ftruncate(descriptor, size)
    raise


def _parsed(line: bytes) -> Entry:
  """Reads a line."""
  value = foreign.parse_json(line)
  form.check(value, _FORM, "it")
  fields = {name: value[name] for name in _FORM}
  return Entry(**{**fields, "sketch": tuple(fields["sketch"])})


def _asked(manifest: Manifest) -> str:
  """Returns the hash of what was asked for; the source's own hash covers its files, the splits and the spec."""
  asked = [manifest.spec, manifest.dtype, manifest.labels, manifest.views, manifest.source["hmac"]]
  return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _sketch(hashes: Sequence[str], master: Master) -> tuple[str, ...]:
  """Returns the smallest keyed hashes of some files, in hex."""
  subkey = master.owner().subkey("ledger")
  keyed = (hmac.new(subkey, name.encode(), hashlib.sha256).hexdigest() for name in set(hashes))
  return tuple(sorted(name[:_HASH_DIGITS] for name in keyed)[:_SKETCH])


def _overlap(first: Entry, second: Entry) -> float:
  """Estimates which share of all files of two sources both have; above 0 wherever one is seen in both."""
  if first.fingerprint != second.fingerprint:
    return 0.0
  a, b = set(first.sketch), set(second.sketch)
  if not a & b:
    return 0.0
  smallest = sorted(a | b)[:_SKETCH]
  return max(len(a & b & set(smallest)), 1) / len(smallest)
