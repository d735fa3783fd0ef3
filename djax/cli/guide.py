"""What ends each ``--help``: examples, and what the exit codes mean."""

import re
import shutil
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["CODES", "VERBS", "Guide", "text", "width"]

CODES = {
  0: "ok",
  1: "failed",
  2: "usage or config",
  3: "key",
  4: "data",
  5: "refused for safety",
  130: "interrupted",
  143: "terminated",
}
_LEAST_WIDTH = 30


class Guide(NamedTuple):
  """What the help of a command ends with.

  Attributes:
    examples: what each does, and its arguments.
    codes: of ``CODES``, those it can end with besides 0, 1, 2 and 130.
  """

  examples: Sequence[tuple[str, str]]
  codes: Sequence[int] = ()


# The verb "" is the program itself.
VERBS = {
  "": Guide(
    (
      ("what each verb does", "disguise --help"),
      ("look at your images", "check --source ./photos --image-size 32 --sheet sheet.png"),
      ("make a key", "keygen owner.djaxkey"),
    ),
    (3, 4, 5),
  ),
  "keygen": Guide(
    (
      ("ask for a passphrase", "keygen owner.djaxkey"),
      ("take it from a file", "keygen owner.djaxkey --passphrase-file phrase.txt"),
    ),
    (3, 5),
  ),
  "show": Guide(
    (
      ("whose key is this?", "show owner.djaxkey"),
      ("how many orders of blocks?", "show owner.djaxkey --image-shape 32x32x3 --block-size 4"),
    ),
    (3,),
  ),
  "selftest": Guide((("does this machine draw the same keys?", "selftest"),), (4,)),
  "doctor": Guide(
    (
      ("can djax work here?", "doctor"),
      ("look at a key file too", "doctor --key owner.djaxkey"),
    ),
  ),
  "prepare": Guide(
    (
      ("from the network", "prepare mnist"),
      ("from files that are here", "prepare cifar10 --from-dir downloads"),
    ),
    (4, 5),
  ),
  "check": Guide(
    (
      ("a folder of images", "check --source ./photos --image-size 32 --sheet sheet.png"),
      ("nobody in two splits", "check --source ./photos --group-by '(patient[0-9]+)'"),
    ),
    (4, 5),
  ),
  "disguise": Guide(
    (
      (
        "secret matrices and noise",
        "disguise --source mnist --scheme rmt --block-size 7 --noise-level 100 --key owner.djaxkey --out disguised",
      ),
      (
        "AES, which restores bit for bit",
        "disguise --source ./photos --image-size 32 --scheme aes --block-size 4 --key owner.djaxkey --out disguised",
      ),
      (
        "one of four processes or machines; then --finish",
        "disguise --source mnist --scheme aes --block-size 4 --key owner.djaxkey --out disguised --part 1/4",
      ),
      (
        "by the workers of your own Dask cluster",
        "disguise --source mnist --scheme aes --block-size 4 --key owner.djaxkey --out disguised --engine dask "
        "--scheduler tcp://127.0.0.1:8786",
      ),
    ),
    (3, 4, 5),
  ),
  "inspect": Guide((("what it is, and a picture", "inspect disguised --grid grid.png"),), (4, 5)),
  "verify": Guide(
    (
      ("is every byte whole?", "verify disguised"),
      ("and who wrote it?", "verify disguised --key owner.djaxkey"),
    ),
    (3, 4),
  ),
  "restore": Guide(
    (
      ("to arrays", "restore disguised --key owner.djaxkey --out originals.npz"),
      ("to PNG files", "restore disguised --key owner.djaxkey --out originals"),
    ),
    (3, 4, 5),
  ),
  "query": Guide(
    (
      ("all at once, on this machine", "query photos --checkpoint run --key owner.djaxkey"),
      ("write a request", "query photos --data disguised --request ask --key owner.djaxkey"),
      ("read the answer", "query --request ask --answers answers.json --key owner.djaxkey"),
    ),
    (3, 4, 5),
  ),
  "audit": Guide(
    (
      (
        "a source and a disguise",
        "audit --source digits --scheme rmt --block-size 2 --noise-level 25 --out audit",
      ),
      ("a training config's source and disguise", "audit --config mnist_aes --out audit_aes"),
      (
        "what disguise wrote",
        "audit --data disguised --originals mnist --key owner.djaxkey --out audit_data",
      ),
      ("the network of a run under an experiment's key", "audit --run runs/digits --out audit_run"),
      (
        "block sizes x noise x known pairs",
        "audit --sweep --source digits --scheme rmt --out sweep",
      ),
    ),
    (3, 4, 5),
  ),
  "report": Guide(
    (("runs and their audits on one page", "report runs/a runs/b audit --out report.html"),),
    (4, 5),
  ),
  "bench": Guide(
    (
      ("a minute", "bench --fast"),
      ("has it become slower?", "bench --json --against earlier.json"),
      ("what would a million photographs take?", "bench --scale 1000000 --image-shape 224x224x3"),
    ),
    (4,),
  ),
}


def text(program: str, guide: Guide) -> str:
  """Returns the end of a help page, as wide as the terminal; commands that are longer go on after a backslash.

  Args:
    program: as it was called, such as ``python -m djax``.
    guide: of the command.
  """
  # A continued line has two columns less for its backslash.
  wrapper = textwrap.TextWrapper(
    width() - 2,
    initial_indent="    ",
    subsequent_indent="      ",
    break_long_words=False,
    break_on_hyphens=False,
  )
  lines = ["examples:"]
  for words, arguments in guide.examples:
    # A flag and its value stay together.
    joined = re.sub(r"(--[\w-]+) (?!-)", "\\1\xa0", arguments)
    command = " \\\n".join(wrapper.wrap(f"{program} {joined}")).replace("\xa0", " ")
    lines += textwrap.wrap(words, width(), initial_indent="  ", subsequent_indent="  ")
    lines.append(command)
  codes = sorted({0, 1, 2, 130, *guide.codes})
  listed = ", ".join(f"{code} {CODES[code]}" for code in codes)
  return "\n".join([*lines, "", *textwrap.wrap(f"exit codes: {listed}", width()), ""])


def width() -> int:
  """Returns how many columns a help page takes."""
  return max(_LEAST_WIDTH, shutil.get_terminal_size().columns - 2)
