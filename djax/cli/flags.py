"""The flags that several verbs have, and the values that they take."""

import argparse
import re
from typing import Any

from djax.keys import keyfile

__all__ = [
  "add_background",
  "add_cluster",
  "add_expect",
  "add_json",
  "add_key",
  "add_quiet",
  "add_scale",
  "add_scheme",
  "add_source",
  "add_splits",
  "part",
  "positive",
  "shape",
  "whole",
]


def add_scheme(parser: argparse.ArgumentParser, *, required: bool) -> None:
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


def add_source(group: Any, *, required: bool) -> None:
  """Adds the flags that name a source and how it is read."""
  group.add_argument(
    "--source", metavar="S", required=required, help="digits, TFDS name, ./folder or x.npz"
  )
  group.add_argument("--data-dir", metavar="D", help="where prepared data sets live")
  group.add_argument(
    "--image-size", metavar="N", type=positive, help="folders: resize images to N x N"
  )
  add_scale(group)
  add_background(group)
  group.add_argument("--train-split", metavar="SPLIT", help="such as train[:1000]")


def add_splits(parser: Any, group: Any = None) -> None:
  """Adds the flags of a source whose splits are read together."""
  group = group or parser
  add_source(group, required=True)
  group.add_argument(
    "--group-by",
    metavar="REGEX|X.csv",
    help="folders: finds in a file's path whom it is of, as '(patient\\d+)', or a table with columns file and group; "
    "nobody is in two splits then",
  )
  group.add_argument(
    "--split-seed",
    metavar="N",
    type=whole,
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


def add_scale(group: Any) -> None:
  """Adds the flag that says what white is."""
  group.add_argument(
    "--scale",
    type=int,
    choices=(1, 255),
    help="the value of white in the images (default: 255, and asked for where it looks like 1)",
  )


def add_background(group: Any) -> None:
  """Adds the flag that says what lies behind transparency."""
  group.add_argument(
    "--background",
    metavar="COLOUR",
    help="image files: what lies behind transparency, white or #rrggbb (default: such files are refused)",
  )


def add_key(group: Any, *, required: bool = True, words: str = "the key file") -> None:
  """Adds the flags of a key file and its passphrase."""
  group.add_argument("--key", metavar="K", required=required, help=words)
  group.add_argument(
    "--passphrase-file",
    metavar="F",
    help=f"file with its passphrase; else {keyfile.ENVIRONMENT}, else asked on the terminal",
  )


def add_cluster(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of a cluster that does the work."""
  group = parser.add_argument_group(
    "cluster, whose workers see originals and key: it must be yours"
  )
  group.add_argument(
    "--engine",
    choices=("local", "dask"),
    default="local",
    help="who writes the shards: processes of this machine (default), or the workers of a Dask cluster that see "
    "source, key file and directory under the same paths",
  )
  group.add_argument(
    "--scheduler",
    metavar="ADDRESS",
    default="",
    help="of the cluster: tls://HOST:PORT, or on this machine tcp://127.0.0.1:PORT",
  )
  group.add_argument(
    "--tls-ca-file",
    metavar="PEM",
    default="",
    help="certificate of the authority that signed all others of the cluster",
  )
  group.add_argument("--tls-cert", metavar="PEM", default="", help="certificate of this command")
  group.add_argument(
    "--tls-key", metavar="PEM", default="", help="its key, if not in the same file"
  )
  group.add_argument(
    "--without-tls",
    action="store_true",
    help="take a cluster that other machines reach without TLS: whoever reaches it can read the key",
  )


def add_expect(parser: argparse.ArgumentParser) -> None:
  """Adds the flag that names the only manifest to be taken."""
  parser.add_argument(
    "--expect",
    metavar="SHA256",
    type=_sha256,
    help="refuse any other manifest, as disguise, inspect and the ledger name it",
  )


def add_quiet(parser: argparse.ArgumentParser) -> None:
  """Adds ``--quiet``."""
  parser.add_argument(
    "--quiet",
    action="store_true",
    help="print errors and the result alone: no progress, no warning",
  )


def add_json(parser: argparse.ArgumentParser) -> None:
  """Adds ``--json``."""
  parser.add_argument("--json", action="store_true", help="for programs")


def _sha256(text: str) -> str:
  """Reads 64 hexadecimal digits."""
  if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
    raise argparse.ArgumentTypeError(f"must be 64 hexadecimal digits, got {text!r}")
  return text.lower()


def positive(text: str) -> int:
  """Reads a number of at least 1."""
  return whole(text, least=1)


def whole(text: str, *, least: int = 0) -> int:
  """Reads a number of at least so much."""
  if not (text.isascii() and text.isdigit() and int(text) >= least):
    raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
  return int(text)


def part(text: str) -> tuple[int, int]:
  """Reads which part of how many, from 1 on."""
  match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
  number, parts = map(int, match.groups()) if match else (0, 0)
  if not 1 <= number <= parts:
    raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, such as 2/4, got {text!r}")
  return number, parts


def shape(text: str) -> tuple[int, ...]:
  """Reads the shape of an image.

  Args:
    text: such as ``32x32x3``.

  Raises:
    argparse.ArgumentTypeError: for any other text.
  """
  if not re.fullmatch(r"[1-9][0-9]{0,6}x[1-9][0-9]{0,6}x[1-9][0-9]{0,6}", text, re.ASCII):
    raise argparse.ArgumentTypeError(f"must be HxWxC such as 32x32x3, got {text!r}")
  return tuple(int(side) for side in text.split("x"))
