"""The flags of the verbs about disguised data sets. What the verbs do is heavy and stands in modules of its own."""

import argparse
import re
from typing import Any

from djax.keys import keyfile

__all__ = ["VERBS", "add"]

VERBS = ("check", "disguise", "inspect", "verify", "restore", "query", "audit", "report", "bench")


def add(verbs: Any, asked: str) -> None:
  """Adds the parsers of the verbs.

  Args:
    verbs: what ``add_subparsers`` returned.
    asked: the verb that is going to be parsed. The others get no flags of schemes, which take a second to load.
  """
  look = verbs.add_parser(
    "check",
    help="look at a source before it is disguised; needs no key",
    description="Counts the images and classes of a source, and names what may not be meant.",
  )
  _add_splits(look)
  look.add_argument(
    "--sheet", metavar="FILE.png", help="draw images of every class; must not exist"
  )
  _add_json(look)
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
  _add_quiet(verify)

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
  _add_quiet(restore)
  _add_query(verbs)
  _add_audit(verbs, schemes=asked == "audit")
  compare = verbs.add_parser(
    "report",
    help="lay runs and audits side by side",
    description="Lays runs of python -m train and audits side by side, on one page. Needs no key, shows no image.",
  )
  compare.add_argument(
    "directories",
    metavar="DIR",
    nargs="+",
    help="a --workdir of python -m train, an --out of audit",
  )
  compare.add_argument("--out", metavar="FILE.html", required=True, help="the page; must not exist")
  _add_bench(verbs)
  for verb in VERBS:
    verbs.choices[verb].set_defaults(run=_run)


def _add_disguise(verbs: Any, *, schemes: bool) -> None:
  parser = verbs.add_parser(
    "disguise",
    help="write a disguised data set for a rented machine",
    description="Disguises a source with a key and writes what a rented machine may see. "
    "Re-run the command to resume.",
  )
  data = parser.add_argument_group("data")
  _add_splits(parser, data)
  data.add_argument("--out", metavar="DIR", required=True, help="the directory to write")
  data.add_argument(
    "--dtype",
    choices=("float32", "float16", "uint8"),
    default="",
    help="what is stored; uint8 takes a pass more and the least room (default: as the scheme gives it)",
  )
  data.add_argument(
    "--format",
    choices=("shards", "folder"),
    default="shards",
    help="shards for TFDS (default), or a folder of 8-bit PNG files, one subfolder for each label id, as torchvision's "
    "ImageFolder reads it; rmt is quantised",
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
    "--part",
    metavar="I/N",
    type=_part,
    help="write the I-th of N parts of the shards, beside other processes or machines that write the others; then "
    "--finish",
  )
  work.add_argument(
    "--finish",
    action="store_true",
    help="end what --part began: refuses while a shard is missing, writes none",
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
  _add_quiet(parser)
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
    usage="""%(prog)s IMAGES... --checkpoint RUN [--key K]
       %(prog)s IMAGES... --data DIR --request REQ --key K
       %(prog)s --request REQ --answers FILE --key K""",
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
  _add_background(parser)
  parser.set_defaults(scale=0, background="")
  parser.add_argument(
    "--canaries",
    metavar="S",
    help="with --request: a folder or .npz of images of known classes to plant, none of them trained on, so that "
    "invented answers show",
  )
  _add_key(
    parser,
    required=False,
    words="the key file; a run on originals under an experiment's key needs none",
  )
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
       %(prog)s --config NAME --out DIR
       %(prog)s --data DISGUISED --originals S --key K --out DIR
       %(prog)s --run DIR --out DIR
       %(prog)s --sweep --source S --scheme NAME --out DIR
       %(prog)s --write-table FILE""",
    # Flags that are not given are absent, so that one without a meaning is refused even with its default's value.
    argument_default=argparse.SUPPRESS,
  )
  data = parser.add_argument_group("what is attacked")
  _add_source(data, required=False)
  data.add_argument("--val-split", metavar="SPLIT", help="with --originals alone")
  data.add_argument("--test-split", metavar="SPLIT", help="with --originals alone")
  data.add_argument(
    "--group-by", metavar="REGEX|X.csv", help="with --originals alone, as disguise had it"
  )
  data.add_argument(
    "--split-seed", metavar="N", type=_whole, help="with --originals alone, as disguise had it"
  )
  data.add_argument("--config", metavar="NAME", help="as python -m train takes it")
  data.add_argument("--data", metavar="DISGUISED", help="what disguise wrote")
  data.add_argument("--run", metavar="DIR", dest="run_dir", help="a --workdir of python -m train")
  data.add_argument("--originals", metavar="S", help="the source it was made from")
  _add_key(
    data,
    required=False,
    words="with --data: the key file, which knows the order of the records",
  )
  if schemes:
    _add_scheme(parser, required=False)
  views = parser.add_argument_group("views of each target, with --source")
  views.add_argument("--views", metavar="K", type=_positive, help="the original and K - 1 others")
  views.add_argument("--crop", metavar="C", type=_whole, help="shift by up to C pixels")
  views.add_argument("--flip", action="store_true", help="mirror half of them")
  work = parser.add_argument_group("how")
  extent = work.add_mutually_exclusive_group()
  extent.add_argument("--fast", action="store_true", help="some minutes (default)")
  extent.add_argument("--full", action="store_true", help="more images, several numbers of pairs")
  work.add_argument("--attacks", metavar="A,B", help="else all that apply")
  work.add_argument(
    "--seed", metavar="N", type=_whole, help="of key, parts and attacks (default 0)"
  )
  work.add_argument("--out", metavar="DIR", help="the directory to write; must not exist")
  work.add_argument(
    "--sweep",
    action="store_true",
    help="over block sizes, noise and pairs; the same command goes on",
  )
  work.add_argument("--block-sizes", metavar="B,B", help="of a sweep, else 2, 4 and 8")
  work.add_argument(
    "--noise-levels",
    metavar="N,N",
    help="of a sweep, else rmt: 0, 25, 50, 100, 200, aes: salt and pepper of 0, 0.02, 0.1",
  )
  work.add_argument("--write-table", metavar="FILE", help="audits what is listed in the code")
  _add_quiet(parser)
  _add_json(parser)


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


def _add_source(group: Any, *, required: bool) -> None:
  group.add_argument(
    "--source", metavar="S", required=required, help="digits, TFDS name, ./folder or x.npz"
  )
  group.add_argument("--data-dir", metavar="D", help="where prepared data sets live")
  group.add_argument(
    "--image-size", metavar="N", type=_positive, help="folders: resize images to N x N"
  )
  _add_scale(group)
  _add_background(group)
  group.add_argument("--train-split", metavar="SPLIT", help="such as train[:1000]")


def _add_splits(parser: Any, group: Any = None) -> None:
  """Adds the flags of a source whose splits are read together."""
  group = group or parser
  _add_source(group, required=True)
  group.add_argument(
    "--group-by",
    metavar="REGEX|X.csv",
    help="folders: finds in a file's path whom it is of, as '(patient\\d+)', or a table with columns file and group; "
    "nobody is in two splits then",
  )
  group.add_argument(
    "--split-seed",
    metavar="N",
    type=_whole,
    help="folders without a test folder: draw the fifth that is test (default: every fifth in order of name)",
  )
  group.add_argument("--val-split", metavar="SPLIT", help="such as val; default: none")
  group.add_argument("--test-split", metavar="SPLIT", help="such as test[:1000]")
  parser.set_defaults(
    data_dir="",
    image_size=0,
    scale=0,
    group_by="",
    split_seed=0,
    background="",
    train_split="train",
    val_split="",
    test_split="test",
  )


def _add_scale(group: Any) -> None:
  group.add_argument(
    "--scale",
    type=int,
    choices=(1, 255),
    help="the value of white in the images (default: 255, and asked for where it looks like 1)",
  )


def _add_background(group: Any) -> None:
  group.add_argument(
    "--background",
    metavar="COLOUR",
    help="image files: what lies behind transparency, white or #rrggbb (default: such files are refused)",
  )


def _add_key(group: Any, *, required: bool = True, words: str = "the key file") -> None:
  group.add_argument("--key", metavar="K", required=required, help=words)
  group.add_argument(
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


def _add_quiet(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--quiet",
    action="store_true",
    help="print errors and the result alone: no progress, no warning",
  )


def _add_json(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--json", action="store_true", help="for programs")


def _run(args: argparse.Namespace) -> None:
  if args.verb in ("audit", "report"):
    from djax.cli import audit  # JAX, Flax, SciPy

    audit.COMMANDS[args.verb](args)
  elif args.verb == "bench":
    from djax.cli import bench  # JAX

    bench.run(args)
  else:
    from djax.cli import owner  # JAX

    owner.COMMANDS[args.verb](args)


def _sha256(text: str) -> str:
  """Reads 64 hexadecimal digits."""
  if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
    raise argparse.ArgumentTypeError(f"must be 64 hexadecimal digits, got {text!r}")
  return text.lower()


def _positive(text: str) -> int:
  return _whole(text, least=1)


def _whole(text: str, *, least: int = 0) -> int:
  """Reads a number of at least so much."""
  if not (text.isascii() and text.isdigit() and int(text) >= least):
    raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
  return int(text)


def _part(text: str) -> tuple[int, int]:
  match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
  number, parts = map(int, match.groups()) if match else (0, 0)
  if not 1 <= number <= parts:
    raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, such as 2/4, got {text!r}")
  return number, parts
