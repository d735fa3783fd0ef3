"""What ``query`` does, in its three forms. Data goes to stdout, talk to stderr."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from djax.cli import training
from djax.cli.common import read_master, say, show
from djax.cli.inspect import to_json, warn_of_standing
from djax.disguised import manifest as manifest_lib
from djax.errors import ConfigError
from djax.keys import Master
from djax.owner import canaries, query, restore, sealed_metadata

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
  """Asks a network, writes a request or reads the answer, as the flags say.

  Args:
    args: of the verb.

  Raises:
    DjaxError: for flags, images, directories or answers that cannot be used.
  """
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
  if form is _ask and not (Path(args.checkpoint).expanduser() / manifest_lib.FILE).exists():
    _ask_owned(args)
    return
  if not args.key:
    raise ConfigError("query: needs --key, with which the data set was disguised.")
  form(args, read_master(args))


def _ask_owned(args: argparse.Namespace) -> None:
  """Asks the network of a run on originals, under an experiment's key or the owner's."""
  if args.expect:
    raise ConfigError(
      f"query: --expect names a manifest, {args.checkpoint} has none. Leave it out."
    )
  ask = training.verbs("query --checkpoint of a run on originals").ask
  master = read_master(args) if args.key else None
  _print_answers(args, ask(args.checkpoint, args.images, master, **_how(args)))


def _ask(args: argparse.Namespace, master: Master) -> None:
  logging.getLogger("absl").setLevel(logging.CRITICAL)  # of the reader of checkpoints
  run = Path(args.checkpoint).expanduser()
  manifest = restore.authenticated(run, master, expect=args.expect or "")
  images = query.read(args.images, manifest, **_how(args))
  answers = query.ask(images, run, manifest, master)
  warn_of_standing(args, manifest)
  _say_cut(answers.cut)
  _print_answers(args, answers)


def _request(args: argparse.Namespace, master: Master) -> None:
  data = Path(args.data).expanduser()
  manifest = restore.authenticated(data, master, expect=args.expect or "")
  restore.check_new(args.request, data)
  images = query.read(args.images, manifest, **_how(args))
  planted = None
  if args.canaries:
    names = tuple(sealed_metadata.box_of(manifest, master).unseal(manifest.sealed)["class_names"])
    planted = canaries.read(args.canaries, manifest, names, **_how(args))
  written, cut = query.request(images, manifest, master, args.request, canaries=planted)
  warn_of_standing(args, manifest)
  _say_cut(cut)
  if args.json:
    print(json.dumps(to_json(Path(args.request), written)))
    return
  extra = "" if planted is None else f", and {len(planted.labels)} planted ones"
  show(
    [
      f"request      {args.request}",
      f"fingerprint  {written.key_fingerprint}",
      f"images       {len(images.names)}{extra}",
      f"there        python -m train.answer RUN {args.request} --out answers.json",
      f"then here    python -m djax query --request {args.request} --answers answers.json --key {args.key}",
    ]
  )


def _how(args: argparse.Namespace) -> dict[str, Any]:
  """Returns how image files are read."""
  return {name: getattr(args, name) for name in ("image_size", "scale", "background")}


def _answers(args: argparse.Namespace, master: Master) -> None:
  answers = query.answers(args.request, args.answers, master, expect=args.expect or "")
  if answers.canaries is None:
    say("nothing vouches for these numbers but the machine that gave them")
  else:
    outcome = answers.canaries
    say(
      f"{'warning: ' if outcome.suspicious else ''}{outcome.right} of {outcome.count} planted images got their class; "
      f"who knows no image gets as many with probability {outcome.chance:.2g}"
      + (": do not rely on these answers" if outcome.suspicious else "")
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
  show([f"{row.file}  {row.name}  {row.probability:.4f}" for row in answers.rows])


def _say_cut(cut: int) -> None:
  if cut:
    say(
      f"{cut} values lay outside the range of the data set's quantiser and were cut: "
      "these images are brighter, darker or sharper than all of it"
    )
