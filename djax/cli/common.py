"""What the verbs of ``python -m djax`` share: talk on stderr, lines on stdout, the key, bits of a permutation."""

import argparse
import math
from collections.abc import Iterable
from typing import Any

from djax.io import escape, talk
from djax.keys import Master, keyfile

__all__ = ["bits", "bits_line", "read_master", "say", "show"]

_REMARK = "a brute-force count, not a security level"


def bits(blocks: int) -> dict[str, int | float | str]:
  """Counts the orders of some blocks.

  Args:
    blocks: how many.

  Returns:
    ``blocks``, ``bits`` and a ``remark``.
  """
  return {"blocks": blocks, "bits": math.lgamma(blocks + 1) / math.log(2), "remark": _REMARK}


def bits_line(count: dict[str, Any]) -> str:
  """Says what ``bits`` found.

  Args:
    count: its result.
  """
  blocks = count["blocks"]
  return f"{blocks} blocks, log2({blocks}!) = {count['bits']:.1f} bits: {count['remark']}"


def say(line: str) -> None:
  """Prints talk to stderr, in one line whose every character is shown; stdout is for data.

  Args:
    line: what to say; names and warnings in it may come from outside.
  """
  talk.line(line, name="djax")


def show(lines: Iterable[str]) -> None:
  """Prints lines to stdout, their every character shown.

  Args:
    lines: names in them may come from outside.
  """
  for line in lines:
    print(escape.for_terminal(line))


def read_master(args: argparse.Namespace) -> Master:
  """Opens the key file that ``--key`` names, with the passphrase of ``--passphrase-file`` if it needs one.

  Args:
    args: of a verb with these flags.

  Raises:
    KeyFileError: as ``keyfile.read``.
  """
  return keyfile.read(args.key, passphrase=keyfile.find_passphrase(args.passphrase_file))
