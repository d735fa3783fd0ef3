"""What ``inspect`` and ``verify`` do: a manifest and the ledger in words. Data goes to stdout, talk to stderr."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from djax import schemes
from djax.cli.common import bits, bits_line, read_master, say, show
from djax.disguised import directory
from djax.disguised import manifest as manifest_lib
from djax.disguised.directory import Disguised
from djax.disguised.manifest import Manifest
from djax.disguised.manifest_form import FOLDER
from djax.errors import ConfigError
from djax.io import files, picture, progress
from djax.owner import ledger as ledger_lib
from djax.owner import restore
from djax.owner.ledger import Ledger

__all__ = ["inspect", "restored_error", "summary", "to_json", "verify", "warn_of_standing"]

_GRID_IMAGES = 32
_GRID_BYTES = 64 << 20  # of images as stored
_OLD = (
  "format version 1: its matrices and orders are those of every other data set of version 1 under this key, and its "
  "records stand in the order of the source"
)


def inspect(args: argparse.Namespace) -> None:
  """Shows a manifest in words.

  Args:
    args: of the verb.

  Raises:
    ManifestError: if the directory is damaged.
    UnsafeError: if the file of ``--grid`` exists, or lies in the directory.
  """
  with directory.open(args.data) as data:
    manifest = data.manifest
    if args.grid:
      _draw(restore.check_new(args.grid, data.path), data)
  if args.json:
    print(json.dumps({**to_json(data.path, manifest), "authenticated": False}))
  else:
    show(summary(data.path, manifest))
  say(f"nothing was authenticated; for that: python -m djax verify {data.path} --key KEY")


def _draw(path: Path, data: Disguised) -> None:
  """Writes a picture of the first images."""
  manifest = data.manifest
  split = next(iter(data.splits.values()))
  most = max(1, _GRID_BYTES // max(1, split.nbytes // len(split)))
  images, _ = split.read(np.arange(min(_GRID_IMAGES, len(split), most)))
  title = f"{manifest.spec['scheme']}, blocks of {manifest.block_size}"
  rows = {f"first images of {split.name}": restore.values(images, manifest)}
  with files.new_file(path) as file:
    picture.sheet(rows, title=title).save(file, "PNG")


def summary(folder: Path, manifest: Manifest) -> list[str]:
  """Returns a manifest in words, one fact a line.

  Args:
    folder: the directory.
    manifest: of it.
  """
  options = ", ".join(
    f"{k} {v}" for k, v in manifest.spec.items() if k not in ("scheme", "image_shape")
  )
  shape, given = (
    " x ".join(map(str, s)) for s in (manifest.disguised_shape, manifest.spec["image_shape"])
  )
  exact = (
    "exact"
    if not manifest.error.stored
    else f"at most {manifest.error.stored:.3g} off the disguise"
  )
  names = {
    "permuted": "ids permuted, names sealed for the owner",
    "plain": f"as in the source: {', '.join(manifest.class_names or ())}",
  }[manifest.labels]
  lines = [
    f"directory    {folder}",
    f"fingerprint  {manifest.key_fingerprint}",
    f"data set     {_identity(manifest)}",
    f"manifest     {manifest.sha256}",
    f"scheme       {manifest.spec['scheme']}: {options}",
    f"images       {shape}, of {given} {manifest.source['dtype']} originals from {manifest.source['name']}",
    f"stored       {manifest.dtype}{' in PNG files' * (manifest.container == FOLDER)}, {exact}",
    f"restored     {restored_error(manifest)}",
    f"labels       {manifest.classes} classes, {names}",
  ]
  if permutation := _permutation(manifest):
    lines.append(f"permutation  {bits_line(permutation)}")
  for name, split in manifest.splits.items():
    views = f", {split.views} views of each original" if split.views > 1 else ""
    files = f"{len(split.shards)} shard{'s' * (len(split.shards) > 1)}"
    files = "as many PNG files" if manifest.container == FOLDER else files
    lines.append(f"{name:12} {split.records} records in {files}{views}")
  return lines + [f"warning      {warning}" for warning in manifest.warnings]


def _identity(manifest: Manifest) -> str:
  """Says which data set it is."""
  if manifest.version == 1:
    return f"none: {_OLD}"
  own = f", request {manifest.request}" if manifest.request else ""
  return f"{manifest.id}{own}"


def restored_error(manifest: Manifest) -> str:
  """Returns how far restored originals are from the true ones, in words.

  Args:
    manifest: of the data set.
  """
  error, is_bytes = manifest.error, manifest.source["dtype"] == "uint8"
  if error.restored is None:
    return "never: this disguise has no way back, not even with the key"
  if words := schemes.kind_of(manifest.spec).restored_as(manifest.spec):
    return words
  worst = error.restored + error.noise
  worst = math.floor(worst + 0.5) if is_bytes else worst  # a restored byte is rounded
  if not worst:
    return "exact"
  noise = f", of which the noise makes up to {error.noise:.3g}" if error.noise else ""
  return f"at most {worst:.3g} grey levels off{noise}"


def to_json(folder: Path, manifest: Manifest) -> dict[str, Any]:
  """Returns a manifest for programs, without what is long or sealed.

  Args:
    folder: the directory.
    manifest: of it.
  """
  chosen = manifest.to_dict()
  for name in ("quantiser", "files", "sealed"):
    del chosen[name]
  return {
    "directory": str(folder),
    **chosen,
    "manifest_sha256": manifest.sha256,
    "permutation": _permutation(manifest),
  }


def _permutation(manifest: Manifest) -> dict[str, Any] | None:
  if not manifest.spec.get("permute", True):
    return None
  height, width, _ = manifest.disguised_shape
  return bits(height * width // manifest.block_size**2)


def verify(args: argparse.Namespace) -> None:
  """Checks a directory; prints what was checked, and what was not.

  Args:
    args: of the verb.

  Raises:
    ConfigError: for flags that need ``--key``.
    KeyMismatchError: if it was made with another key.
    ManifestError: if it is damaged, tampered with or not the one expected.
  """
  if (args.passphrase_file or args.role) and not args.key:
    raise ConfigError("verify: --passphrase-file and --role are given with --key or not at all.")
  folder = Path(args.data).expanduser()
  manifest = manifest_lib.read(folder)
  if args.key:
    role = args.role or manifest.role
    restore.authenticate(manifest, folder, read_master(args), role=role, expect=args.expect or "")
  elif args.expect:
    restore.check_expected(manifest, folder, args.expect)
  with progress.counted("verifying", "MB", say) as tell:
    directory.verify(
      folder, manifest=manifest, progress=lambda done, total: tell(done / 1e6, total / 1e6)
    )
  count = len(directory.shards(manifest)) + len(manifest.files)
  if manifest.container == FOLDER:
    count += sum(split.records for split in manifest.splits.values())
  lines = [
    f"whole          {manifest_lib.FILE}: its checksum holds",
    f"whole          {count} files: lengths and SHA-256 as it says, and nothing else is there",
  ]
  if args.key:
    lines.append(
      f"authenticated  a {manifest.role} written with the key {manifest.key_fingerprint}, unchanged since"
    )
    lines.append(_standing(args, manifest))
  else:
    lines += [
      "not checked    who wrote it: someone who changes files can mend every checksum; give --key",
      "not checked    whether it is the newest: give --key, whose ledger knows",
    ]
  if args.expect:
    lines.append(f"expected       its manifest is {manifest.sha256}")
  if manifest.version == 1:
    lines.append(f"note           {_OLD}")
  show(lines)


def _standing(args: argparse.Namespace, manifest: Manifest) -> str:
  """Says what the ledger knows of a directory."""
  if manifest.role == manifest_lib.REQUEST:
    return "not checked    whether it is known: requests are not entered in the ledger"
  standing = Ledger(ledger_lib.beside(args.key)).standing(manifest)
  if standing.known is None:
    return f"not checked    whether it is the newest: {standing.words}"
  known = standing.known and standing.newer is None
  return f"{'known' if known else 'WARNING':14} {standing.words}"


def warn_of_standing(args: argparse.Namespace, manifest: Manifest) -> None:
  """Warns of a directory that is authentic, but not known or not the newest.

  Args:
    args: of a verb with ``--key`` and ``--expect``.
    manifest: of the directory, authenticated.
  """
  if manifest.version == 1:
    say(f"note: {_OLD}")
  if args.expect:
    return
  standing = Ledger(ledger_lib.beside(args.key)).standing(manifest)
  if standing.known is False or standing.newer is not None:
    say(f"warning: {standing.words}. Pin one with --expect {manifest.sha256}")
