"""``python -m djax``: keys, golden vectors, and data sets: prepared, disguised, checked, restored, queried, attacked.

Data goes to stdout, talk to stderr. JAX and NumPy are imported by the verbs that need them, so that
``keygen`` and ``show`` answer at once.
"""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from djax import keys
from djax.cli import boundary, common, doctor, flags, guide, parsers, program
from djax.cli.common import say
from djax.errors import ConfigError, DataError, nearest
from djax.io import escape, talk
from djax.keys import keyfile

__all__ = ["main"]

_DESCRIPTION = "Keys, and data sets: checked, disguised, verified, restored, queried, attacked."
_SHORT = 8
_VERBS = ("keygen", "show", "selftest", "doctor", "prepare", *parsers.VERBS)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb.

  Args:
    argv: arguments without the program's name; those of the process if None.

  Returns:
    The exit code: 0 ok, 1 failed, 2 usage, 3 key, 4 data, 5 refused for safety, 130 interrupted.
  """
  if argv is None:
    program.own_modules_first()
  escape.never_fail(sys.stdout)
  words, debug = boundary.without_debug(sys.argv[1:] if argv is None else argv)
  args = argparse.Namespace()

  def work() -> int:
    parser = _parser(next((word for word in words if word in _VERBS), ""))
    parser.parse_args(words, args)
    with talk.quiet(getattr(args, "quiet", False)):
      return args.run(args) or 0

  def place() -> str:
    return getattr(args, "out", None) or getattr(args, "data", None) or "djax"

  return boundary.guarded(work, say=say, place=place, debug=debug)


class _Parser(argparse.ArgumentParser):
  """An ArgumentParser whose errors are one line, and that guesses no option from its beginning."""

  def __init__(self, **options: Any):
    super().__init__(allow_abbrev=False, **options)
    self._given: list[str] = []

  def format_help(self) -> str:
    """Ends with examples and exit codes."""
    verb = self.prog.removeprefix(_called()).strip()
    return f"{super().format_help()}\n{guide.text(_called(), guide.VERBS[verb])}"

  def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
    """Refuses here what a verb does not know, so that the message can name what is near."""
    self._given = list(args or ())
    found, unknown = super().parse_known_args(args, namespace)
    if unknown:
      self.error(f"unrecognized arguments: {' '.join(unknown)}")
    return found, unknown

  def error(self, message: str) -> NoReturn:
    """Raises instead of printing the usage."""
    choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
    hint = ""
    if choice:
      hint = nearest(choice[1], re.findall(r"[\w-]+", choice[2]))
    elif stranger := self._stranger():
      hint = self._near(*stranger)
      if message.startswith("the following arguments are required"):
        # A name that is misspelt is also missing.
        message = f"unrecognized arguments: {stranger[0]}"
    raise ConfigError(f"{message}.{hint} See {self.prog} --help.")

  def _stranger(self) -> tuple[str, str] | None:
    """Returns the first option that does not exist, and what stands after it."""
    for word, after in zip(self._given, [*self._given[1:], ""], strict=False):
      name, equals, value = word.partition("=")
      if name == "--":
        break
      if name.startswith("--") and name not in self._option_string_actions:
        return name, value if equals else after
    return None

  def _near(self, name: str, value: str) -> str:
    """Suggests an option, first of all one that begins so and can have the value."""
    known = self._option_string_actions
    begun = [one for one in known if one.startswith(name) and _takes(known[one], value)]
    return nearest(name, begun) or nearest(name, known)


def _called() -> str:
  return program.name("djax", "djax")


def _takes(action: argparse.Action, value: str) -> bool:
  """Returns whether an option can have a value: a number goes to options of numbers alone."""
  if not re.fullmatch(r"-?[0-9.]+", value):
    return True
  return action.nargs is None and action.type not in (None, str)


def _parser(asked: str) -> argparse.ArgumentParser:
  parser = _Parser(prog=_called(), description=_DESCRIPTION)
  verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

  keygen = verbs.add_parser("keygen", help="make a key and write it to a new file")
  keygen.add_argument("out", metavar="OUT", help="the key file; must not exist")
  protection = keygen.add_mutually_exclusive_group()
  protection.add_argument(
    "--passphrase-file",
    metavar="F",
    help=f"file with the passphrase; else {keyfile.ENVIRONMENT}, else asked on the terminal",
  )
  protection.add_argument(
    "--no-passphrase", action="store_true", help="keep the secret in the file in the clear"
  )
  keygen.set_defaults(run=_keygen)

  show = verbs.add_parser("show", help="show a key's public facts; asks for no passphrase")
  show.add_argument("key", metavar="KEY", help="the key file")
  show.add_argument(
    "--image-shape",
    metavar="HxWxC",
    type=flags.shape,
    help="with --block-size: bits of the permutation",
  )
  show.add_argument("--block-size", metavar="B", type=int, help="side of a block in pixels")
  show.add_argument("--json", action="store_true", help="for programs")
  show.set_defaults(run=_show)

  selftest = verbs.add_parser("selftest", help="check this machine against the golden vectors")
  selftest.add_argument("--json", action="store_true", help="for programs")
  selftest.set_defaults(run=_selftest)

  prepare = verbs.add_parser("prepare", help="make a data set ready to be read without a network")
  prepare.add_argument("name", metavar="NAME", help="such as mnist or cifar10")
  prepare.add_argument("--data-dir", metavar="D", default="", help="where prepared data sets live")
  prepare.add_argument("--from-dir", metavar="D", default="", help="folder with the original files")
  prepare.set_defaults(run=_prepare)

  doctor = verbs.add_parser(
    "doctor",
    help="look whether djax can work on this machine",
    description="Looks at versions, devices, data sets, free space and threads, and says what to do about what is "
    "wrong. Ends with 0 if djax can work here, with 1 if not. Whether a notebook's kernel must be restarted only that "
    "kernel knows; in it run: from djax.cli.main import main; main(['doctor'])",
  )
  doctor.add_argument("--key", metavar="K", help="a key file to look at as well; not opened")
  doctor.add_argument("--data-dir", metavar="D", default="", help="where prepared data sets live")
  doctor.add_argument("--json", action="store_true", help="for programs")
  doctor.set_defaults(run=_doctor)
  parsers.add(verbs, asked)
  return parser


def _keygen(args: argparse.Namespace) -> None:
  passphrase = None
  if not args.no_passphrase:
    passphrase = keyfile.find_passphrase(args.passphrase_file, new=True)()
    if len(passphrase) < _SHORT:
      say(
        f"warning: the passphrase is shorter than {_SHORT} characters: whoever gets the file can try all of its kind; "
        "better a few words"
      )
  master = keys.generate()
  keyfile.write(args.out, master, passphrase=passphrase)
  how = "without a passphrase" if passphrase is None else "protected by the passphrase"
  say(f"wrote {args.out} {how}, mode 0600")
  say("keep a copy: without this file disguised data cannot be restored")
  print(master.fingerprint)


def _show(args: argparse.Namespace) -> None:
  if (args.image_shape is None) != (args.block_size is None):
    raise ConfigError("show: --image-shape and --block-size are given together or not at all.")
  permutation = None
  if args.image_shape:
    permutation = _permutation(args.image_shape, args.block_size)
  info = keyfile.inspect(args.key)
  if args.json:
    content = dataclasses.asdict(info)
    print(json.dumps(content if permutation is None else {**content, "permutation": permutation}))
    return
  print(f"fingerprint  {info.fingerprint}")
  print(f"expansion    {info.expansion}")
  print(f"file         version {info.version}, created {info.created}")
  print(f"passphrase   {'needed' if info.protected else 'none: the secret is in the clear'}")
  if permutation is not None:
    print(f"permutation  {common.bits_line(permutation)}")
  if info.protected:
    say("read from the file's header; the passphrase was not asked, so nothing vouches for it yet")


def _permutation(shape: tuple[int, int, int], block_size: int) -> dict[str, int | float | str]:
  """Counts the orders of the blocks, those of the padded edge included."""
  height, width, _ = shape
  if not 1 <= block_size <= min(height, width):
    raise ConfigError(
      f"show: --block-size must lie between 1 and the shorter side of the image, "
      f"got {block_size} for {height} x {width} pixels."
    )
  return common.bits(-(-height // block_size) * -(-width // block_size))


def _selftest(args: argparse.Namespace) -> None:
  from djax.cli import selftest  # loads JAX

  groups = selftest.run()
  if args.json:
    print(json.dumps({group.name: group._asdict() for group in groups}))
  else:
    for group in groups:
      outcome = "ok" if group.mismatch is None else f"FAILED at {group.mismatch!r}"
      print(f"{group.name:14} {group.vectors:3} vectors {outcome}")
  for group in groups:
    if group.mismatch is not None:
      raise DataError(
        f"selftest: {group.name}: vector {group.mismatch!r} does not hold on this machine. "
        "Disguise nothing here: it could not be restored elsewhere."
      )


def _prepare(args: argparse.Namespace) -> None:
  from djax.sources import download  # loads TFDS

  print(download.prepare(args.name, data_dir=args.data_dir, from_dir=args.from_dir))


def _doctor(args: argparse.Namespace) -> int:
  return doctor.run(args)
