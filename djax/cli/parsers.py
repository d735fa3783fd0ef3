"""The flags of the verbs about disguised data sets. What the verbs do is heavy and stands in modules of its own."""

import argparse
from typing import Any

from djax.cli import flags

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
  flags.add_splits(look)
  look.add_argument(
    "--sheet", metavar="FILE.png", help="draw images of every class; must not exist"
  )
  flags.add_json(look)
  _add_disguise(verbs, schemes=asked == "disguise")

  look = verbs.add_parser(
    "inspect",
    help="show what a disguised data set is; needs no key",
    description="Shows what a disguised data set is, as its manifest says. Needs no key, so nothing is authenticated.",
  )
  look.add_argument("data", metavar="DIR", help="what disguise wrote")
  look.add_argument("--grid", metavar="FILE.png", help="draw the first 32 images; must not exist")
  flags.add_json(look)

  verify = verbs.add_parser(
    "verify",
    help="check every byte of a disguised data set",
    description="Checks every byte of a disguised data set; with the key also who wrote it.",
  )
  verify.add_argument("data", metavar="DIR", help="what disguise wrote")
  flags.add_key(verify, required=False)
  flags.add_expect(verify)
  verify.add_argument(
    "--role", choices=("dataset", "request"), default="", help="what it must be, else either"
  )
  flags.add_quiet(verify)

  restore = verbs.add_parser(
    "restore",
    help="get the originals back",
    description="Gets the originals back, view 0 of each, with their labels. Checks every byte and the key first.",
  )
  restore.add_argument("data", metavar="DIR", help="what disguise wrote")
  flags.add_key(restore)
  flags.add_expect(restore)
  restore.add_argument(
    "--out",
    metavar="FILE.npz|FOLDER",
    required=True,
    help="a name in .npz: arrays; any other: a folder of PNG files; must not exist",
  )
  flags.add_quiet(restore)
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
  flags.add_splits(parser, data)
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
  flags.add_key(parser)
  if schemes:
    flags.add_scheme(parser, required=True)
  views = parser.add_argument_group("views of each training image, made before the disguise")
  views.add_argument(
    "--views",
    metavar="K",
    type=flags.positive,
    default=1,
    help="the original and K - 1 changed ones",
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
    type=flags.positive,
    default=0,
    help="processes; else by the size of the work",
  )
  work.add_argument(
    "--part",
    metavar="I/N",
    type=flags.part,
    help="write the I-th of N parts of the shards, beside other processes or machines that write the others; then "
    "--finish",
  )
  work.add_argument(
    "--finish",
    action="store_true",
    help="end what --part began: refuses while a shard is missing, writes none",
  )
  work.add_argument(
    "--originals-per-shard", metavar="N", type=flags.positive, default=0, help="else 64 MiB of them"
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
  flags.add_cluster(parser)
  flags.add_quiet(parser)
  flags.add_json(parser)


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
    "--image-size", metavar="N", type=flags.positive, default=0, help="resize image files to N x N"
  )
  flags.add_scale(parser)
  flags.add_background(parser)
  parser.set_defaults(scale=0, background="")
  parser.add_argument(
    "--canaries",
    metavar="S",
    help="with --request: a folder or .npz of images of known classes to plant, none of them trained on, so that "
    "invented answers show",
  )
  flags.add_key(
    parser,
    required=False,
    words="the key file; a run on originals under an experiment's key needs none",
  )
  flags.add_expect(parser)
  flags.add_json(parser)


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
  flags.add_source(data, required=False)
  data.add_argument("--val-split", metavar="SPLIT", help="with --originals alone")
  data.add_argument("--test-split", metavar="SPLIT", help="with --originals alone")
  data.add_argument(
    "--group-by", metavar="REGEX|X.csv", help="with --originals alone, as disguise had it"
  )
  data.add_argument(
    "--split-seed", metavar="N", type=flags.whole, help="with --originals alone, as disguise had it"
  )
  data.add_argument("--config", metavar="NAME", help="as python -m train takes it")
  data.add_argument("--data", metavar="DISGUISED", help="what disguise wrote")
  data.add_argument("--run", metavar="DIR", dest="run_dir", help="a --workdir of python -m train")
  data.add_argument("--originals", metavar="S", help="the source it was made from")
  flags.add_key(
    data,
    required=False,
    words="with --data: the key file, which knows the order of the records",
  )
  if schemes:
    flags.add_scheme(parser, required=False)
  views = parser.add_argument_group("views of each target, with --source")
  views.add_argument(
    "--views", metavar="K", type=flags.positive, help="the original and K - 1 others"
  )
  views.add_argument("--crop", metavar="C", type=flags.whole, help="shift by up to C pixels")
  views.add_argument("--flip", action="store_true", help="mirror half of them")
  work = parser.add_argument_group("how")
  extent = work.add_mutually_exclusive_group()
  extent.add_argument("--fast", action="store_true", help="some minutes (default)")
  extent.add_argument("--full", action="store_true", help="more images, several numbers of pairs")
  work.add_argument("--attacks", metavar="A,B", help="else all that apply")
  work.add_argument(
    "--seed", metavar="N", type=flags.whole, help="of key, parts and attacks (default 0)"
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
  flags.add_quiet(parser)
  flags.add_json(parser)


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
  parser.add_argument(
    "--scale",
    metavar="COUNT",
    type=flags.positive,
    help="what disguising so many images takes: bytes, shards, hours, from rates measured here",
  )
  parser.add_argument(
    "--image-shape",
    metavar="HxWxC",
    type=flags.shape,
    help="with --scale: of an image (default 224x224x3)",
  )
  flags.add_json(parser)


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
