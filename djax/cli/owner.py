"""What the verbs do that write a disguised data set or its originals. Data goes to stdout, talk to stderr."""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from djax import audit, schemes
from djax.cli import check, query
from djax.cli.common import read_master, say, show
from djax.cli.inspect import inspect, restored_error, to_json, verify, warn_of_standing
from djax.disguised import directory
from djax.disguised import manifest as manifest_lib
from djax.errors import ConfigError
from djax.io import progress
from djax.owner import cluster as cluster_lib
from djax.owner import export, plan, restore
from djax.owner import ledger as ledger_lib
from djax.owner.ledger import Ledger
from djax.owner.shards import Share
from djax.sources.inventory import Inventory

__all__ = ["COMMANDS", "scheme_of"]


def _disguise(args: argparse.Namespace) -> None:
  """Writes a disguised data set, or goes on writing it."""
  request = plan.Request(
    source=args.source,
    disguise=scheme_of(args),
    splits={
      "train": args.train_split,
      **({"val": args.val_split} if args.val_split else {}),
      "test": args.test_split,
    },
    dtype=args.dtype,
    format=args.format,
    views=args.views,
    crop=args.crop,
    flip=args.flip,
    views_together=args.views_together,
    plain_labels=args.plain_labels,
    reading=check.reading_of(args),
    originals_per_shard=args.originals_per_shard,
    dataset_id=args.dataset_id,
  )
  if args.part and args.finish:
    raise ConfigError(
      "disguise: --part and --finish cannot be given together. Finish when all parts are written."
    )
  with _engine(_cluster_of(args)) as engine:  # before a passphrase is asked
    _write(args, request, engine)


def _write(args: argparse.Namespace, request: plan.Request, engine: export.Engine | None) -> None:
  """Does what ``disguise`` is for, once it is known what is asked."""
  master = read_master(args)
  ledger = None if args.no_ledger else Ledger(ledger_lib.beside(args.key))
  out = Path(args.out).expanduser()
  resumed = any((out / name).exists() for name in (manifest_lib.UNFINISHED, manifest_lib.FILE))
  inventories: list[Inventory] = []

  def look(inventory: Inventory, size: int) -> None:
    inventories.append(inventory)
    check.say_inventory(inventory)
    amount = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
    say(f"to be written{' by all parts' * bool(args.part)}: about {amount}")

  start = time.monotonic()
  try:
    with progress.counted("disguising", "images", say) as show_state:
      shared: dict[str, Any] = {
        "workers": args.workers,
        "say": say,
        "look": look,
        "progress": show_state,
      }
      if args.part:
        share = Share(*args.part)
        part = export.disguise_part(request, out, master, share, **shared)
      else:
        manifest = export.disguise(
          request, out, master, ledger=ledger, engine=engine, parts_alone=args.finish, **shared
        )
  except KeyboardInterrupt:
    raise KeyboardInterrupt(
      "interrupted. Re-run the command to resume; it writes the same bytes."
    ) from None
  seconds = time.monotonic() - start
  if args.part:
    _show_part(args, share, part)
    return
  count = sum(split.records // split.views for split in manifest.splits.values())
  # What an earlier run did would make this one seem fast.
  rate = "with what was done before" if resumed else f"{count / seconds:.0f} images/s"
  say(f"disguised {count} images in {seconds:.1f} s, {rate}")
  for warning in manifest.warnings:
    say(f"warning: {warning}")
  if known := audit.lookup(manifest.spec):
    say(f"warning: {known}")
  if args.json:
    print(json.dumps({**to_json(out, manifest), "inventory": inventories[0].to_dict()}))
    return
  show(
    [
      f"directory    {out}",
      f"fingerprint  {manifest.key_fingerprint}",
      f"data set     {manifest.id}",
      f"manifest     {manifest.sha256}",
    ]
  )


def _cluster_of(args: argparse.Namespace) -> cluster_lib.Cluster | None:
  """Returns the cluster that the flags name, None for this machine's own processes."""
  needing = {
    "--scheduler": args.scheduler,
    "--tls-ca-file": args.tls_ca_file,
    "--tls-cert": args.tls_cert,
    "--tls-key": args.tls_key,
    "--without-tls": args.without_tls,
  }
  if args.engine == "local":
    if given := [flag for flag, value in needing.items() if value]:
      raise ConfigError(f"disguise: {given[0]} needs --engine dask. Give both, or neither.")
    return None
  if not args.scheduler:
    raise ConfigError(
      "disguise: --engine dask needs --scheduler, the address of the cluster. Give it, or leave --engine out."
    )
  alien = {"--part": args.part, "--finish": args.finish, "--workers": args.workers}
  if given := [flag for flag, value in alien.items() if value]:
    raise ConfigError(
      f"disguise: {given[0]} is for processes of your own, and --engine dask leaves the work to the cluster. "
      "Leave one of them out."
    )
  return cluster_lib.Cluster(
    args.scheduler,
    key=args.key,
    passphrase_file=args.passphrase_file or "",
    tls_ca_file=args.tls_ca_file,
    tls_cert=args.tls_cert,
    tls_key=args.tls_key,
    without_tls=args.without_tls,
  )


@contextlib.contextmanager
def _engine(cluster: cluster_lib.Cluster | None) -> Iterator[export.Engine | None]:
  """Yields what does the work on a cluster; None without one."""
  if cluster is None:
    yield None
    return
  with cluster_lib.connected(cluster, say=say) as engine:
    yield engine


def _show_part(args: argparse.Namespace, share: Share, part: export.Part) -> None:
  """Says what a part has done, and what comes next."""
  next_step = "when all parts are written, give --finish instead of --part"
  if not part.written:
    next_step = (
      "so far their values were scanned alone, since uint8 needs the range of all shards: when all parts have been "
      "run, run each again to write"
    )
  say(f"part {share}: {part.shards} of {part.of} shards; {next_step}")
  if args.json:
    print(json.dumps({"part": list(share), **part._asdict()}))


def scheme_of(args: argparse.Namespace) -> dict[str, Any]:
  """Returns scheme and parameters as flags give them, none without ``--scheme``.

  Args:
    args: of a verb with the flags of the schemes.

  Raises:
    ConfigError: for flags of another scheme.
  """
  flags = {name: option.flag for name, option in schemes.options().items()}
  given = {name: value for name, value in vars(args).items() if name in flags}
  if not args.scheme:
    return {}
  taken = schemes.SCHEMES[args.scheme].parameters
  if alien := [flags[name] for name in given if name not in taken]:
    known = ", ".join(flags[name] for name in taken)
    raise ConfigError(
      f"{args.verb}: --scheme {args.scheme} takes {known}; got {', '.join(alien)}. "
      "Leave it out, or choose another scheme."
    )
  return {"scheme": args.scheme, **given}


def _restore(args: argparse.Namespace) -> None:
  """Writes originals."""
  data = directory.open(args.data)
  master = read_master(args)
  restore.authenticate(data.manifest, data.path, master, expect=args.expect or "")
  with progress.counted("restoring", "images", say) as show_state:
    manifest = restore.to_files(
      data, master, args.out, expect=args.expect or "", progress=show_state
    )
  warn_of_standing(args, manifest)
  say(f"restored pixels: {restored_error(manifest)}")
  say("these are originals: keep them on this machine")
  print(args.out)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
  "check": check.run,
  "disguise": _disguise,
  "inspect": inspect,
  "verify": verify,
  "restore": _restore,
  "query": query.run,
}
