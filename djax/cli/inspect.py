"""What ``inspect`` and ``verify`` do: a manifest and the ledger in words. Data goes to stdout, talk to stderr."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from djax import schemes
from djax.cli.common import bits, bits_line, read_master, say, show
from djax.disguised import directory, manifest
from djax.disguised.directory import Disguised
from djax.disguised.manifest import Manifest
from djax.errors import ConfigError
from djax.io import files, picture
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
  """Shows a manifest in words."""
  with directory.open(args.data) as data:
    facts = data.manifest
    if args.grid:
      _draw(restore.check_new(args.grid, data.path), data)
  if args.json:
    print(json.dumps({**to_json(data.path, facts), "authenticated": False}))
  else:
    show(summary(data.path, facts))
  say(f"nothing was authenticated; for that: python -m djax verify {data.path} --key KEY")


def _draw(path: Path, data: Disguised) -> None:
  """Writes a picture of the first images."""
  facts = data.manifest
  split = next(iter(data.splits.values()))
  most = max(1, _GRID_BYTES // max(1, split.nbytes // len(split)))
  images, _ = split.read(np.arange(min(_GRID_IMAGES, len(split), most)))
  title = f"{facts.spec['scheme']}, blocks of {facts.block_size}"
  rows = {f"first images of {split.name}": restore.values(images, facts)}
  with files.new_file(path) as file:
    picture.sheet(rows, title=title).save(file, "PNG")


def summary(folder: Path, facts: Manifest) -> list[str]:
  """Returns a manifest in words."""
  options = ", ".join(
    f"{k} {v}" for k, v in facts.spec.items() if k not in ("scheme", "image_shape")
  )
  shape, given = (
    " x ".join(map(str, s)) for s in (facts.disguised_shape, facts.spec["image_shape"])
  )
  exact = (
    "exact" if not facts.error.stored else f"at most {facts.error.stored:.3g} off the disguise"
  )
  names = {
    "permuted": "ids permuted, names sealed for the owner",
    "plain": f"as in the source: {', '.join(facts.class_names or ())}",
  }[facts.labels]
  lines = [
    f"directory    {folder}",
    f"fingerprint  {facts.key_fingerprint}",
    f"data set     {_identity(facts)}",
    f"manifest     {facts.sha256}",
    f"scheme       {facts.spec['scheme']}: {options}",
    f"images       {shape}, of {given} {facts.source['dtype']} originals from {facts.source['name']}",
    f"stored       {facts.dtype}, {exact}",
    f"restored     {restored_error(facts)}",
    f"labels       {facts.classes} classes, {names}",
  ]
  if permutation := _permutation(facts):
    lines.append(f"permutation  {bits_line(permutation)}")
  for name, split in facts.splits.items():
    views = f", {split.views} views of each original" if split.views > 1 else ""
    files = f"{len(split.shards)} shard{'s' * (len(split.shards) > 1)}"
    lines.append(f"{name:12} {split.records} records in {files}{views}")
  return lines + [f"warning      {warning}" for warning in facts.warnings]


def _identity(facts: Manifest) -> str:
  """Says which data set it is."""
  if facts.version == 1:
    return f"none: {_OLD}"
  own = f", request {facts.request}" if facts.request else ""
  return f"{facts.id}{own}"


def restored_error(facts: Manifest) -> str:
  """Says how far restored originals are from the true ones."""
  error, is_bytes = facts.error, facts.source["dtype"] == "uint8"
  if error.restored is None:
    return "never: this disguise has no way back, not even with the key"
  if words := schemes.kind_of(facts.spec).restored_as(facts.spec):
    return words
  worst = error.restored + error.noise
  worst = math.floor(worst + 0.5) if is_bytes else worst  # a restored byte is rounded
  if not worst:
    return "exact"
  noise = f", of which the noise makes up to {error.noise:.3g}" if error.noise else ""
  return f"at most {worst:.3g} grey levels off{noise}"


def to_json(folder: Path, facts: Manifest) -> dict[str, Any]:
  """Returns a manifest for programs, without what is long or sealed."""
  chosen = facts.to_dict()
  for name in ("quantiser", "files", "sealed"):
    del chosen[name]
  return {
    "directory": str(folder),
    **chosen,
    "manifest_sha256": facts.sha256,
    "permutation": _permutation(facts),
  }


def _permutation(facts: Manifest) -> dict[str, Any] | None:
  if not facts.spec.get("permute", True):
    return None
  height, width, _ = facts.disguised_shape
  return bits(height * width // facts.block_size**2)


def verify(args: argparse.Namespace) -> None:
  """Says what was checked, and what was not."""
  if (args.passphrase_file or args.role) and not args.key:
    raise ConfigError("verify: --passphrase-file and --role are given with --key or not at all.")
  folder = Path(args.data).expanduser()
  facts = manifest.read(folder)
  if args.key:
    role = args.role or facts.role
    restore.authenticate(facts, folder, read_master(args), role=role, expect=args.expect or "")
  elif args.expect:
    restore.check_expected(facts, folder, args.expect)
  directory.verify(folder, manifest=facts)
  count = len(directory.shards(facts)) + len(facts.files)
  lines = [
    f"whole          {manifest.FILE}: its checksum holds",
    f"whole          {count} files: lengths and SHA-256 as it says, and nothing else is there",
  ]
  if args.key:
    lines.append(
      f"authenticated  a {facts.role} written with the key {facts.key_fingerprint}, unchanged since"
    )
    lines.append(_standing(args, facts))
  else:
    lines += [
      "not checked    who wrote it: someone who changes files can mend every checksum; give --key",
      "not checked    whether it is the newest: give --key, whose ledger knows",
    ]
  if args.expect:
    lines.append(f"expected       its manifest is {facts.sha256}")
  if facts.version == 1:
    lines.append(f"note           {_OLD}")
  show(lines)


def _standing(args: argparse.Namespace, facts: Manifest) -> str:
  """Says what the ledger knows of a directory."""
  if facts.role == manifest.REQUEST:
    return "not checked    whether it is known: requests are not entered in the ledger"
  standing = Ledger(ledger_lib.beside(args.key)).standing(facts)
  if standing.known is None:
    return f"not checked    whether it is the newest: {standing.words}"
  known = standing.known and standing.newer is None
  return f"{'known' if known else 'WARNING':14} {standing.words}"


def warn_of_standing(args: argparse.Namespace, facts: Manifest) -> None:
  """Says it where a directory is authentic, but not known or not the newest."""
  if facts.version == 1:
    say(f"note: {_OLD}")
  if args.expect:
    return
  standing = Ledger(ledger_lib.beside(args.key)).standing(facts)
  if standing.known is False or standing.newer is not None:
    say(f"warning: {standing.words}. Pin one with --expect {facts.sha256}")
