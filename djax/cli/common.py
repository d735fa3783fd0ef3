"""The verbs of ``python -m djax`` that write, read and question disguised data sets.

Parsers alone: what they lead to is heavy and stands in ``djax.cli.owner``.
"""

import argparse
import math
import re
import sys
from typing import Any

from djax.io import escape
from djax.keys import keyfile

__all__ = ["VERBS", "add", "bits", "bits_line", "say"]

VERBS = ("check", "disguise", "inspect", "verify", "restore", "query", "audit", "bench")
_REMARK = "a brute-force count, not a security level"


def add(verbs: Any, asked: str) -> None:
  """Adds the parsers of the verbs.

  Args:
    verbs: what ``add_subparsers`` returned.
    asked: the verb that is going to be parsed. The others get no flags of schemes, which take a second to load.
  """
  _add_check(verbs)
  _add_disguise(verbs, schemes=asked == "disguise")

  look = verbs.add_parser(
    "inspect",
    help="show what a disguised data set is; needs no key",
    description="Shows what a disguised data set is, as its manifest says. Needs no key, so nothing is authenticated.",
  )
  look.add_argument("data", metavar="DIR", help="what disguise wrote")
  look.add_argument("--grid", metavar="FILE.png", help="draw the first 32 images; must not exist")
  _add_json(look)

  verify = verbs.add_parser(
    "verify",
    help="check every byte of a disguised data set",
    description="Checks every byte of a disguised data set; with the key also who wrote it.",
  )
  verify.add_argument("data", metavar="DIR", help="what disguise wrote")
  _add_key(verify, required=False)
  _add_expect(verify)
  verify.add_argument(
    "--role", choices=("dataset", "request"), default="", help="what it must be, else either"
  )

  restore = verbs.add_parser(
    "restore",
    help="get the originals back",
    description="Gets the originals back, view 0 of each, with their labels. Checks every byte and the key first.",
  )
  restore.add_argument("data", metavar="DIR", help="what disguise wrote")
  _add_key(restore)
  _add_expect(restore)
  restore.add_argument(
    "--out",
    metavar="FILE.npz|FOLDER",
    required=True,
    help="a name in .npz: arrays; any other: a folder of PNG files; must not exist",
  )
  _add_query(verbs)
  _add_audit(verbs, schemes=asked == "audit")
  _add_bench(verbs)
  for verb in VERBS:
    verbs.choices[verb].set_defaults(run=_run)


def _add_check(verbs: Any) -> None:
  parser = verbs.add_parser(
    "check",
    help="look at a source before it is disguised; needs no key",
    description="Counts the images and classes of a source, and names what may not be meant.",
  )
  _add_source(parser)
  parser.add_argument(
    "--sheet", metavar="FILE.png", help="draw images of every class; must not exist"
  )
  _add_json(parser)


def _add_source(parser: Any) -> None:
  """Adds the flags that say which images are read."""
  parser.add_argument(
    "--source", metavar="S", required=True, help="digits, TFDS name, ./folder or x.npz"
  )
  parser.add_argument("--data-dir", metavar="D", default="", help="where prepared data sets live")
  parser.add_argument(
    "--image-size", metavar="N", type=_positive, default=0, help="folders: resize images to N x N"
  )
  _add_scale(parser)
  parser.add_argument(
    "--train-split", metavar="SPLIT", default="train", help="such as train[:1000]"
  )
  parser.add_argument("--val-split", metavar="SPLIT", default="", help="such as val; default: none")
  parser.add_argument("--test-split", metavar="SPLIT", default="test", help="such as test[:1000]")


def _add_disguise(verbs: Any, *, schemes: bool) -> None:
  parser = verbs.add_parser(
    "disguise",
    help="write a disguised data set for a rented machine",
    description="Disguises a source with a key and writes what a rented machine may see. "
    "Re-run the command to resume.",
  )
  data = parser.add_argument_group("data")
  _add_source(data)
  data.add_argument("--out", metavar="DIR", required=True, help="the directory to write")
  data.add_argument(
    "--dtype",
    choices=("float32", "float16", "uint8"),
    default="",
    help="what is stored; uint8 takes a pass more and the least room (default: as the scheme gives it)",
  )
  data.add_argument(
    "--plain-labels", action="store_true", help="leave label ids and class names readable"
  )
  _add_key(parser)
  if schemes:
    _add_scheme(parser, required=True)
  views = parser.add_argument_group("views of each training image, made before the disguise")
  views.add_argument(
    "--views", metavar="K", type=_positive, default=1, help="the original and K - 1 changed ones"
  )
  views.add_argument("--crop", metavar="C", type=int, default=0, help="shift by up to C pixels")
  views.add_argument("--flip", action="store_true", help="mirror half of them")
  views.add_argument(
    "--views-together",
    action="store_true",
    help="leave an image's views side by side; the cloud then knows which belong together",
  )
  work = parser.add_argument_group("work")
  work.add_argument(
    "--workers",
    metavar="W",
    type=_positive,
    default=0,
    help="processes; else by the size of the work",
  )
  work.add_argument(
    "--originals-per-shard", metavar="N", type=_positive, default=0, help="else 64 MiB of them"
  )
  work.add_argument(
    "--dataset-id",
    metavar="HEX",
    default="",
    help="public id of the data set, 32 digits; else a new random one. The same id and command give the same bytes",
  )
  work.add_argument(
    "--no-ledger",
    action="store_true",
    help="enter it in no ledger beside the key file, as where that folder is read-only",
  )
  _add_json(parser)


def _add_scheme(parser: argparse.ArgumentParser, *, required: bool) -> None:
  """Adds the flags of the schemes, from the signatures of their functions; those not given are absent."""
  from djax import schemes  # JAX

  kinds = [kind for kind in schemes.SCHEMES.values() if kind.written]
  shared = parser.add_argument_group("scheme")
  names = [kind.name for kind in kinds]
  shared.add_argument("--scheme", choices=names, required=required, default=argparse.SUPPRESS)
  takers: dict[str, list[schemes.Kind]] = {}
  for kind in kinds:
    for name in kind.parameters:
      takers.setdefault(name, []).append(kind)
  groups: dict[str, Any] = {}
  for name, takes in takers.items():
    own = takes[0].parameters[name]
    group, who = shared, f"{', '.join(kind.name for kind in takes)}: "
    if len(takes) == 1:
      (kind,) = takes
      group = groups.setdefault(kind.name, parser.add_argument_group(f"{kind.name} alone"))
    needed = own.default is None and len(takes) == len(kinds)
    _add_option(group, own, "" if group is not shared or needed else who, required and needed)


def _add_option(group: Any, option: Any, who: str, required: bool) -> None:
  """Adds the flag of one option of a scheme."""
  absent = argparse.SUPPRESS
  words = who + option.option.help
  if option.type is bool:
    action = "store_false" if option.default else "store_true"
    group.add_argument(option.flag, dest=option.name, action=action, default=absent, help=words)
    return
  usual = "" if option.default in (None, "") else f" (default {_number(option.default)})"
  letter = "|".join(option.option.choices) or option.option.letter or None
  group.add_argument(
    option.flag,
    metavar=letter,
    type=option.type,
    required=required,
    default=absent,
    help=words + usual,
  )


def _number(value: Any) -> str:
  return f"{value:g}" if isinstance(value, float) else str(value)


def _add_query(verbs: Any) -> None:
  parser = verbs.add_parser(
    "query",
    help="ask a network that was trained on disguised images",
    description="Classifies images with a network trained on disguised ones: here or, by request and answer, "
    "on a rented machine.",
    usage="""%(prog)s IMAGES... --checkpoint RUN --key K    all at once, on this machine
       %(prog)s IMAGES... --data DIR --request REQ --key K    write a request
       %(prog)s --request REQ --answers FILE --key K    read the answer""",
  )
  parser.add_argument(
    "images", metavar="IMAGES", nargs="*", help="PNG or JPEG files, folders of them, .npy, .npz"
  )
  parser.add_argument("--checkpoint", metavar="RUN", help="run directory of python -m train")
  parser.add_argument("--data", metavar="DIR", help="disguised data set or run directory")
  parser.add_argument("--request", metavar="REQ", help="directory of the request")
  parser.add_argument("--answers", metavar="FILE", help="what python -m train.answer wrote")
  parser.add_argument(
    "--image-size", metavar="N", type=_positive, default=0, help="resize image files to N x N"
  )
  _add_scale(parser)
  parser.add_argument(
    "--canaries",
    metavar="S",
    help="with --request: a folder or .npz of images of known classes to plant, none of them trained on, so that "
    "invented answers show",
  )
  _add_key(parser)
  _add_expect(parser)
  _add_json(parser)


def _add_audit(verbs: Any, *, schemes: bool) -> None:
  parser = verbs.add_parser(
    "audit",
    help="attack a disguise before someone else does",
    description="Attacks a disguise with everything there is and says what came of it. Makes an experiment key of its "
    "own; a key file is needed for --data alone, to know which record shows which original. The report shows "
    "originals: keep it.",
    usage="""%(prog)s --source S --scheme NAME --block-size B ... --out DIR
       %(prog)s --config NAME --out DIR    a training config's source and disguise
       %(prog)s --data DISGUISED --originals S --key K --out DIR    what disguise wrote
       %(prog)s --run DIR --out DIR    the model of a training run under an experiment's key
       %(prog)s --sweep --source S --scheme NAME --out DIR    blocks x noise x known pairs
       %(prog)s --write-table FILE    the table of audited settings""",
  )
  # Flags that are not given are absent, so that one without a meaning is refused even with its default's value.
  absent: Any = argparse.SUPPRESS
  data = parser.add_argument_group("what is attacked")
  data.add_argument(
    "--source", metavar="S", default=absent, help="digits, TFDS name, ./folder or x.npz"
  )
  data.add_argument("--config", metavar="NAME", default=absent, help="as python -m train takes it")
  data.add_argument("--data", metavar="DISGUISED", default=absent, help="what disguise wrote")
  data.add_argument(
    "--run",
    metavar="DIR",
    dest="run_dir",
    default=absent,
    help="a --workdir of python -m train",
  )
  data.add_argument("--originals", metavar="S", default=absent, help="the source it was made from")
  data.add_argument(
    "--key",
    metavar="K",
    default=absent,
    help="with --data: the key file, which knows the order of the records",
  )
  data.add_argument(
    "--passphrase-file",
    metavar="F",
    default=absent,
    help=f"file with its passphrase; else {keyfile.ENVIRONMENT}, else asked on the terminal",
  )
  data.add_argument("--data-dir", metavar="D", default=absent, help="where prepared data sets live")
  data.add_argument(
    "--image-size",
    metavar="N",
    type=_positive,
    default=absent,
    help="folders: resize images to N x N",
  )
  data.add_argument("--train-split", metavar="SPLIT", default=absent, help="such as train[:1000]")
  data.add_argument("--test-split", metavar="SPLIT", default=absent, help="with --originals alone")
  if schemes:
    _add_scheme(parser, required=False)
  work = parser.add_argument_group("how")
  extent = work.add_mutually_exclusive_group()
  extent.add_argument("--fast", action="store_true", default=absent, help="some minutes (default)")
  extent.add_argument(
    "--full", action="store_true", default=absent, help="more images, several numbers of pairs"
  )
  work.add_argument("--attacks", metavar="A,B", default=absent, help="else all that apply")
  work.add_argument(
    "--seed", metavar="N", type=_whole, default=absent, help="of key, parts and attacks (default 0)"
  )
  work.add_argument(
    "--out", metavar="DIR", default=absent, help="the directory to write; must not exist"
  )
  work.add_argument(
    "--sweep",
    action="store_true",
    default=absent,
    help="over block sizes, noise and pairs; the same command goes on",
  )
  work.add_argument(
    "--block-sizes", metavar="B,B", default=absent, help="of a sweep, else 2, 4 and 8"
  )
  work.add_argument(
    "--noise-levels",
    metavar="N,N",
    default=absent,
    help="of a sweep, else rmt: 0, 25, 50, 100, 200, aes: salt and pepper of 0, 0.02, 0.1",
  )
  work.add_argument(
    "--write-table", metavar="FILE", default=absent, help="audits what is listed in the code"
  )
  _add_json(parser, default=absent)


def _add_bench(verbs: Any) -> None:
  parser = verbs.add_parser(
    "bench",
    help="measure how fast disguising is on this machine",
    description="Measures every scheme beside a plain loop, the memory bound and raw AES, and a training step with and "
    "without the disguise. Ratios mean more than seconds.",
  )
  parser.add_argument("--fast", action="store_true", help="32x32x3 and a small network: a minute")
  parser.add_argument(
    "--against", metavar="FILE", help="fail if a ratio fell far below those of an earlier --json"
  )
  parser.add_argument(
    "--page", metavar="FILE", nargs="+", help="print the page of earlier --json; measure nothing"
  )
  _add_json(parser)


def _add_scale(parser: Any, **options: Any) -> None:
  parser.add_argument(
    "--scale",
    type=int,
    choices=(1, 255),
    help="the value of white in the images (default: 255, and asked for where it looks like 1)",
    **{"default": 0, **options},
  )


def _add_key(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
  parser.add_argument("--key", metavar="K", required=required, help="the key file")
  parser.add_argument(
    "--passphrase-file",
    metavar="F",
    help=f"file with its passphrase; else {keyfile.ENVIRONMENT}, else asked on the terminal",
  )


def _add_expect(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--expect",
    metavar="SHA256",
    type=_sha256,
    help="refuse any other manifest, as disguise, inspect and the ledger name it",
  )


def _add_json(parser: argparse.ArgumentParser, *, default: Any = False) -> None:
  parser.add_argument("--json", action="store_true", default=default, help="for programs")


def bits(blocks: int) -> dict[str, int | float | str]:
  """Counts the orders of some blocks.

  Args:
    blocks: how many.

  Returns:
    ``blocks``, ``bits`` and a ``remark``.
  """
  return {"blocks": blocks, "bits": math.lgamma(blocks + 1) / math.log(2), "remark": _REMARK}


def bits_line(found: dict[str, Any]) -> str:
  """Says what ``bits`` found.

  Args:
    found: its result.
  """
  blocks = found["blocks"]
  return f"{blocks} blocks, log2({blocks}!) = {found['bits']:.1f} bits: {found['remark']}"


def say(line: str) -> None:
  """Prints talk to stderr, in one line whose every character is shown; stdout is for data.

  Args:
    line: what to say; names and warnings in it may come from outside.
  """
  print(f"djax: {escape.for_terminal(line)}", file=sys.stderr)


def _run(args: argparse.Namespace) -> None:
  if args.verb == "audit":
    from djax.cli import audit as audit_commands  # JAX, Flax, SciPy

    audit_commands.run(args)
    return
  if args.verb == "check":
    from djax.cli import check  # NumPy, Pillow

    check.run(args)
    return
  if args.verb == "bench":
    from djax.cli import bench as bench_commands  # JAX

    bench_commands.run(args)
    return
  from djax.cli import owner  # JAX

  owner.COMMANDS[args.verb](args)


def _sha256(text: str) -> str:
  """Reads 64 hexadecimal digits."""
  if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
    raise argparse.ArgumentTypeError(f"must be 64 hexadecimal digits, got {text!r}")
  return text.lower()


def _positive(text: str) -> int:
  """Reads a number of at least 1."""
  if not (text.isascii() and text.isdigit() and int(text)):
    raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
  return int(text)


def _whole(text: str) -> int:
  """Reads a number of at least 0."""
  if not (text.isascii() and text.isdigit()):
    raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
  return int(text)
