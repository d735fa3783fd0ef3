"""What the verbs of ``python -m djax`` about disguised data sets do. Data goes to stdout, talk to stderr."""

import argparse
import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from djax import audit, schemes
from djax.cli.common import bits, bits_line, say
from djax.disguised import directory, manifest
from djax.disguised.directory import Disguised
from djax.disguised.manifest import Manifest
from djax.errors import ConfigError, DataError
from djax.io import escape, files, picture
from djax.keys import Master, keyfile
from djax.owner import canaries, export, plan, query, restore, sealed_metadata
from djax.owner import ledger as ledger_lib
from djax.owner.ledger import Ledger

__all__ = ["COMMANDS", "scheme_of"]

_SECONDS_OF_A_LINE = 10
_GRID_IMAGES = 32
_GRID_BYTES = 64 << 20  # of images as stored
_OLD = (
  "format version 1: its matrices and orders are those of every other data set of version 1 under this key, and its "
  "records stand in the order of the source"
)


def _disguise(args: argparse.Namespace) -> None:
  """Writes a disguised data set, or goes on writing it."""
  request = plan.Request(
    source=args.source,
    disguise=scheme_of(args),
    splits={"train": args.train_split, "test": args.test_split},
    dtype=args.dtype,
    views=args.views,
    crop=args.crop,
    flip=args.flip,
    views_together=args.views_together,
    plain_labels=args.plain_labels,
    data_dir=args.data_dir,
    image_size=args.image_size,
    originals_per_shard=args.originals_per_shard,
    dataset_id=args.dataset_id,
  )
  master = _master(args)
  ledger = None if args.no_ledger else Ledger(ledger_lib.beside(args.key))
  out = Path(args.out).expanduser()
  resumed = any((out / name).exists() for name in (manifest.UNFINISHED, manifest.FILE))
  start = time.monotonic()
  try:
    with _progress("disguising") as progress:
      facts = export.disguise(
        request, out, master, ledger=ledger, workers=args.workers, say=say, progress=progress
      )
  except KeyboardInterrupt:
    raise KeyboardInterrupt(
      "interrupted. Re-run the command to resume; it writes the same bytes."
    ) from None
  seconds = time.monotonic() - start
  count = sum(split.records // split.views for split in facts.splits.values())
  # What an earlier run did would make this one seem fast.
  rate = "with what was done before" if resumed else f"{count / seconds:.0f} images/s"
  say(f"disguised {count} images in {seconds:.1f} s, {rate}")
  for warning in facts.warnings:
    say(f"warning: {warning}")
  if known := audit.lookup(facts.spec):
    say(f"warning: {known}")
  if args.json:
    print(json.dumps(_facts(out, facts)))
    return
  _show(
    [
      f"directory    {out}",
      f"fingerprint  {facts.key_fingerprint}",
      f"data set     {facts.id}",
      f"manifest     {facts.sha256}",
    ]
  )


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


def _inspect(args: argparse.Namespace) -> None:
  """Shows a manifest in words."""
  with directory.open(args.data) as data:
    facts = data.manifest
    if args.grid:
      _draw(restore.check_new(args.grid, data.path), data)
  if args.json:
    print(json.dumps({**_facts(data.path, facts), "authenticated": False}))
  else:
    _show(_summary(data.path, facts))
  say(f"nothing was authenticated; for that: python -m djax verify {data.path} --key KEY")


def _summary(folder: Path, facts: Manifest) -> list[str]:
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
    f"restored     {_bounds(facts)}",
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


def _bounds(facts: Manifest) -> str:
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


def _verify(args: argparse.Namespace) -> None:
  """Says what was checked, and what was not."""
  if (args.passphrase_file or args.role) and not args.key:
    raise ConfigError("verify: --passphrase-file and --role are given with --key or not at all.")
  folder = Path(args.data).expanduser()
  facts = manifest.read(folder)
  if args.key:
    role = args.role or facts.role
    restore.authenticate(facts, folder, _master(args), role=role, expect=args.expect or "")
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
  _show(lines)


def _standing(args: argparse.Namespace, facts: Manifest) -> str:
  """Says what the ledger knows of a directory."""
  if facts.role == manifest.REQUEST:
    return "not checked    whether it is known: requests are not entered in the ledger"
  standing = Ledger(ledger_lib.beside(args.key)).standing(facts)
  if standing.known is None:
    return f"not checked    whether it is the newest: {standing.words}"
  known = standing.known and standing.newer is None
  return f"{'known' if known else 'WARNING':14} {standing.words}"


def _warn_of_standing(args: argparse.Namespace, facts: Manifest) -> None:
  """Says it where a directory is authentic, but not known or not the newest."""
  if facts.version == 1:
    say(f"note: {_OLD}")
  if args.expect:
    return
  standing = Ledger(ledger_lib.beside(args.key)).standing(facts)
  if standing.known is False or standing.newer is not None:
    say(f"warning: {standing.words}. Pin one with --expect {facts.sha256}")


def _restore(args: argparse.Namespace) -> None:
  """Writes originals."""
  data = directory.open(args.data)
  master = _master(args)
  restore.authenticate(data.manifest, data.path, master, expect=args.expect or "")
  with _progress("restoring") as progress:
    facts = restore.to_files(data, master, args.out, expect=args.expect or "", progress=progress)
  _warn_of_standing(args, facts)
  say(f"restored pixels: {_bounds(facts)}")
  say("these are originals: keep them on this machine")
  print(args.out)


def _query(args: argparse.Namespace) -> None:
  """Finds out which of its three forms is meant."""
  given = {n for n in ("checkpoint", "data", "request", "answers") if getattr(args, n)}
  forms = {
    frozenset({"checkpoint"}): _ask,
    frozenset({"data", "request"}): _request,
    frozenset({"request", "answers"}): _answers,
  }
  form = forms.get(frozenset(given))
  if form is None:
    raise ConfigError(
      "query: takes --checkpoint, or --data with --request, or --request with --answers; got "
      f"{' and '.join(f'--{name}' for name in sorted(given)) or 'none of them'}. See python -m djax query --help."
    )
  if (form is _answers) == bool(args.images) or (form is _answers and args.image_size):
    raise ConfigError(
      "query: IMAGES are given with --checkpoint or --data, and not with --answers, whose request holds them."
    )
  if args.canaries and form is not _request:
    raise ConfigError("query: --canaries are planted in a request; give --data and --request.")
  form(args, _master(args))


def _ask(args: argparse.Namespace, master: Master) -> None:
  logging.getLogger("absl").setLevel(logging.CRITICAL)  # of the reader of checkpoints
  run = Path(args.checkpoint).expanduser()
  if not (run / manifest.FILE).exists():
    raise DataError(
      f"{run} must be a run on a disguised data set, with a copy of {manifest.FILE}; it has none. "
      "Train with --config.data.disguised_dir."
    )
  facts = restore.authenticated(run, master, expect=args.expect or "")
  images = query.read(args.images, facts, image_size=args.image_size)
  answers = query.ask(images, run, facts, master)
  _warn_of_standing(args, facts)
  _say_cut(answers.cut)
  _print_answers(args, answers)


def _request(args: argparse.Namespace, master: Master) -> None:
  data = Path(args.data).expanduser()
  facts = restore.authenticated(data, master, expect=args.expect or "")
  restore.check_new(args.request, data)
  images = query.read(args.images, facts, image_size=args.image_size)
  planted = None
  if args.canaries:
    names = tuple(sealed_metadata.box_of(facts, master).unseal(facts.sealed)["class_names"])
    planted = canaries.read(args.canaries, facts, names, image_size=args.image_size)
  written, cut = query.request(images, facts, master, args.request, canaries=planted)
  _warn_of_standing(args, facts)
  _say_cut(cut)
  if args.json:
    print(json.dumps(_facts(Path(args.request), written)))
    return
  extra = "" if planted is None else f", and {len(planted.labels)} planted ones"
  _show(
    [
      f"request      {args.request}",
      f"fingerprint  {written.key_fingerprint}",
      f"images       {len(images.names)}{extra}",
      f"there        python -m train.answer RUN {args.request} --out answers.json",
      f"then here    python -m djax query --request {args.request} --answers answers.json --key {args.key}",
    ]
  )


def _answers(args: argparse.Namespace, master: Master) -> None:
  answers = query.answers(args.request, args.answers, master, expect=args.expect or "")
  if answers.canaries is None:
    say("nothing vouches for these numbers but the machine that gave them")
  else:
    found = answers.canaries
    say(
      f"{'warning: ' if found.suspicious else ''}{found.right} of {found.count} planted images got their class; "
      f"who knows no image gets as many with probability {found.chance:.2g}"
      + (": do not rely on these answers" if found.suspicious else "")
    )
  _print_answers(args, answers)


def _print_answers(args: argparse.Namespace, answers: query.Answers) -> None:
  if args.json:
    rows = [
      {
        "file": r.file,
        "class": r.name,
        "probability": r.probability,
        "probabilities": r.probabilities,
      }
      for r in answers.rows
    ]
    planted = None if answers.canaries is None else answers.canaries._asdict()
    print(json.dumps({"classes": answers.classes, "answers": rows, "canaries": planted}))
    return
  _show([f"{row.file}  {row.name}  {row.probability:.4f}" for row in answers.rows])


def _show(lines: list[str]) -> None:
  """Prints lines that may hold names from outside."""
  for line in lines:
    print(escape.for_terminal(line))


def _say_cut(cut: int) -> None:
  if cut:
    say(
      f"{cut} values lay outside the range of the data set's quantiser and were cut: "
      "these images are brighter, darker or sharper than all of it"
    )


def _master(args: argparse.Namespace) -> Master:
  return keyfile.read(args.key, passphrase=keyfile.find_passphrase(args.passphrase_file))


def _facts(folder: Path, facts: Manifest) -> dict[str, Any]:
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


@contextlib.contextmanager
def _progress(doing: str) -> Iterator[Callable[[int, int], None]]:
  """Yields a function that shows how far the work is: a bar on a terminal, else a line now and then."""
  start = time.monotonic()

  def rate(done: int) -> float:
    return done / max(time.monotonic() - start, 1e-3)

  if not sys.stderr.isatty():
    spoken = start

    def line(done: int, total: int) -> None:
      nonlocal spoken
      if time.monotonic() - spoken >= _SECONDS_OF_A_LINE:
        spoken = time.monotonic()
        left = (total - done) / rate(done)
        say(f"{doing}: {done / total:.0%}, {rate(done):.0f} images/s, about {left:.0f} s left")

    yield line
    return
  columns = (
    TextColumn("{task.description}"),
    BarColumn(),
    TaskProgressColumn(),
    TextColumn("{task.fields[rate]}"),
    TimeRemainingColumn(),
  )
  with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
    task = shown.add_task(doing, total=None, rate="")

    def bar(done: int, total: int) -> None:
      shown.update(task, completed=done, total=total, rate=f"{rate(done):.0f} images/s")

    yield bar


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
  "disguise": _disguise,
  "inspect": _inspect,
  "verify": _verify,
  "restore": _restore,
  "query": _query,
}
