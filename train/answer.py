"""``python -m train.answer``: the cloud's side of a question: a trained network classifies a request.

A request is a disguised data set with the single split ``query``, see docs/format.md section 6. The answer gives a
probability for each label id; what the ids mean only the owner knows.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from djax.cli import guide, program
from djax.disguised import directory, manifest, quantise
from djax.errors import ConfigError, DataError, KeyMismatchError
from djax.io import files
from djax.models import predict
from train import terminal

__all__ = ["answer", "main"]

_PROGRAM = "python -m train.answer"
_DESCRIPTION = (
  "The cloud's side of a question: a trained network classifies a request that python -m djax query wrote. The answer "
  "gives a probability for each label id; what the ids mean only the owner knows."
)
_GUIDE = guide.Guide((("answer a request", "run ask --out answers.json"),), (3, 4, 5))
_BATCH = 256
_BATCH_BYTES = 64 << 20  # of images as stored


def main(argv: Sequence[str] | None = None) -> int:
  """Parses flags, classifies, writes the answer.

  Returns:
    Exit code, as ``python -m train`` has them.
  """
  if argv is None:
    program.own_modules_first()
  given = sys.argv[1:] if argv is None else list(argv)
  return terminal.guarded(_main, given, place="the answer")


class _Parser(argparse.ArgumentParser):
  """Says what is wrong in one line."""

  def error(self, message: str) -> NoReturn:
    raise ConfigError(f"{message}. See --help.")


def _main(argv: list[str]) -> int:
  parser = _Parser(
    prog=_PROGRAM,
    description=textwrap.fill(_DESCRIPTION, guide.width()),
    epilog=guide.text(_PROGRAM, _GUIDE),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("run", metavar="RUN", help="run directory of python -m train")
  parser.add_argument("request", metavar="REQUEST", help="directory of python -m djax query")
  parser.add_argument("--out", required=True, metavar="FILE", help="JSON file to write")
  if {"-h", "--help"} & set(argv):
    parser.print_help()
    return 0
  flags = parser.parse_args(argv)
  out = Path(flags.out).expanduser()
  files.check_new(out)
  result = answer(flags.run, flags.request)
  with files.new_file(out) as file:
    file.write(json.dumps(result, allow_nan=False).encode() + b"\n")
  terminal.say(f"answered {len(result['probabilities'])} images: {out}")
  return 0


def answer(run: str | Path, request: str | Path) -> dict[str, Any]:
  """Classifies the images of a request.

  Returns:
    The content of an answer, docs/format.md section 6.

  Raises:
    ConfigError: if the run has no network, or the request was disguised otherwise than the run's images.
    DataError: if the request is damaged, or no request.
    KeyMismatchError: if the request was disguised with another key.
  """
  with directory.open(request) as data:
    request_manifest = data.manifest
    if request_manifest.role != manifest.REQUEST:
      raise DataError(
        f"{data.path} must be a request, with the single split query, got {', '.join(data.splits)}. "
        "Make one with: python -m djax query"
      )
    predictor = predict.load(run)
    _check_same(run, predictor.summary, request_manifest)
    split = data.splits["query"]
    probabilities = []
    batch = min(_BATCH, max(1, _BATCH_BYTES // max(1, split.nbytes // len(split))))
    for start in range(0, len(split), batch):
      images, _ = split.read(np.arange(start, min(start + batch, len(split))))
      if request_manifest.quantiser is not None:
        images = quantise.dequantise(
          images, request_manifest.quantiser, block_size=request_manifest.block_size
        )
      probabilities.append(predictor.probabilities(images.astype(np.float32), batch))
    return {
      "format": "djax-answers",
      "version": 1,
      "request": request_manifest.sha256,
      "run": predictor.summary,
      "probabilities": np.concatenate(probabilities).tolist(),
    }


def _check_same(run: str | Path, ours: dict[str, Any], request: Any) -> None:
  """Refuses a request that the network was not trained for."""
  if request.key_fingerprint != ours["key_fingerprint"]:
    raise KeyMismatchError(
      f"the request must be disguised with the key of {run}, {ours['key_fingerprint']}, got "
      f"{request.key_fingerprint}. Ask its owner for a request under that key."
    )
  spec = json.loads(json.dumps(dict(request.spec)))
  if spec != ours["spec"]:
    names = sorted(
      name for name in spec.keys() | ours["spec"].keys() if spec.get(name) != ours["spec"].get(name)
    )
    shown = "; ".join(f"{n} {ours['spec'].get(n)!r}, got {spec.get(n)!r}" for n in names)
    raise ConfigError(
      f"the request must be disguised as the images of {run} were: {shown}. Ask its owner for such a request."
    )
  given = request.id or None
  if given != ours.get("dataset_id"):
    raise ConfigError(
      f"the request must belong to the data set that {run} was trained on, {ours.get('dataset_id')}, got {given}: two "
      "data sets share no matrix. Ask its owner for a request made with --data of that one."
    )


if __name__ == "__main__":
  sys.exit(main())
