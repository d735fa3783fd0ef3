"""The form of MANIFEST.json: which fields it has, their bounds, and which of them belong together. docs/format.md."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from djax import schemes
from djax.disguised.quantise import DTYPES, Quantiser
from djax.io import escape

__all__ = [
  "BLOCKS",
  "DATASET",
  "FOLDER",
  "FORMS",
  "LEAST_NAME",
  "MOST_CLASSES",
  "MOST_STORED",
  "REQUEST",
  "ROOM",
  "SHARDS",
  "digits",
  "line_bytes",
  "quantiser",
  "shapes",
]

DATASET = "dataset"
REQUEST = "request"
SHARDS, FOLDER = "shards", "folder"  # of ArrayRecord, of PNG files
MOST_CLASSES = 1 << 16
_LONGEST_SIDE = 1 << 16
_MOST_VALUES = 1 << 26  # of a disguised image
LEAST_NAME = 4  # bytes that a class name takes in the sealed part, with its quotes and comma
MOST_STORED = 1 << 52  # bytes of all shards
# What a shard has beside its images at most: bytes for each record, a 64th for the headers of blocks, some blocks.
ROOM, BLOCKS = 512, 1 << 18
_MOST_POSITIONS, _MOST_SHARDS, _MOST_WARNINGS = 1 << 18, 1 << 17, 1 << 8
_MOST_OPTIONS, _LONGEST_OPTION, _LARGEST_OPTION = 32, 64, 1 << 48  # of a spec
_FILE_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_SPLIT_FORM = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,60}")
_HASH_FORM = re.compile(r"[0-9a-f]{64}")
_ID_FORM = re.compile(r"[0-9a-f]{32}")
_KEY_FORM = re.compile(r"djx1-[a-z2-7]{16}|experiment-seed[0-9]{1,20}-[a-z2-7]{16}")
_BASE64_FORM = re.compile(r"[A-Za-z0-9+/]*={0,2}")

_SHARD = {"file": _FILE_FORM, "records": 1, "bytes": 1, "sha256": _HASH_FORM}
# What each field must be, in the words of ``djax.io.form``.
_COMMON: dict[str, Any] = {
  "djax": str,
  "key_fingerprint": _KEY_FORM,
  "spec": {"scheme": str, "image_shape": [1, 3], "block_size": 1},
  "disguised_shape": [1, 3],
  "dtype": set(DTYPES),
  "quantiser": (None, {"offset": [float, _MOST_POSITIONS], "scale": [float, _MOST_POSITIONS]}),
  "error": {"stored": float, "restored": (None, float), "noise": float},
  "source": {"name": str, "dtype": {"uint8", "float32"}, "hmac": _HASH_FORM},
  "classes": 1,
  "class_names": (None, [str, MOST_CLASSES]),
  "labels": {"plain", "permuted"},
  "splits": {
    _SPLIT_FORM: {
      "records": 1,
      "views": 1,
      "shards": [_SHARD, _MOST_SHARDS],
    }
  },
  "files": {_FILE_FORM: _HASH_FORM},
  "warnings": [str, _MOST_WARNINGS],
  "sealed": _BASE64_FORM,
}
_VIEWS = {"count": 1, "crop": 0, "flip": bool}
FORMS: dict[int, dict[str, Any]] = {
  1: {**_COMMON, "expansion": {"djx1"}, "views": _VIEWS},
  2: {
    **_COMMON,
    "expansion": {"djx2"},
    "id": _ID_FORM,
    "role": {DATASET, REQUEST},
    "request": (None, _ID_FORM),
    "views": {**_VIEWS, "together": bool},
  },
}
FORMS[3] = {**FORMS[2], "container": {FOLDER}}


def digits(count: int) -> int:
  """Returns how many digits the numbers below ``count`` have in names of files."""
  return len(str(count - 1))


def line_bytes(split: str, records: int, classes: int) -> int:
  """Returns the length of a line in a shard of a folder: SHA-256, two spaces, ``SPLIT/LABEL/PLACE.png``, line feed.

  Args:
    split: its name.
    records: of the split.
    classes: of the data set.
  """
  return 64 + 2 + len(split) + 1 + digits(classes) + 1 + digits(records) + len(".png\n")


def shapes(content: Mapping[str, Any]) -> tuple[tuple[int, int, int], dict[str, Any]]:
  """Returns the shape of a disguised image and the spec, the scheme made of it once.

  Args:
    content: the manifest, of the right form.

  Raises:
    ValueError: if they are too large or do not belong together.
  """
  shape, given = content["disguised_shape"], content["spec"]["image_shape"]
  if len(shape) != 3 or len(given) != 3 or max(*shape, *given) > _LONGEST_SIDE:
    raise ValueError(f"disguised_shape is not [H', W', C] up to {_LONGEST_SIDE} a side")
  if math.prod(shape) > _MOST_VALUES:
    raise ValueError(f"disguised_shape has more than {_MOST_VALUES} values")
  if not _is_small(content["spec"]):
    raise ValueError("spec has more, longer or larger options than a scheme takes")
  try:
    if content["spec"]["scheme"] not in schemes.written():
      raise ValueError(f"spec.scheme must be one of {', '.join(schemes.written())}")
    scheme = schemes.from_spec(content["spec"])
  except (ValueError, TypeError) as error:
    raise ValueError(f"spec: {escape.for_terminal(str(error)).rstrip('.')}") from None
  spec = scheme.spec.to_dict()
  # Python takes 25 for 25.0 and 1 for True; what is derived from a spec does not.
  if json.dumps(spec, sort_keys=True) != json.dumps(content["spec"], sort_keys=True):
    raise ValueError("spec is not complete, or not as its scheme writes it")
  if list(scheme.spec.disguised_shape) != shape:
    raise ValueError("disguised_shape is not that of the spec")
  return scheme.spec.disguised_shape, spec


def _is_small(spec: Mapping[str, Any]) -> bool:
  """Whether a scheme may look at a spec: names and strings are short, and numbers what floats hold."""
  options = {name: value for name, value in spec.items() if name != "image_shape"}
  numbers = [value for value in options.values() if type(value) in (int, float)]
  others = [value for value in options.values() if type(value) not in (int, float, bool)]
  return (
    len(options) <= _MOST_OPTIONS
    and all(abs(value) < _LARGEST_OPTION for value in numbers)
    and all(type(text) is str and len(text) <= _LONGEST_OPTION for text in [*others, *options])
  )


def quantiser(content: Mapping[str, Any], shape: tuple[int, int, int]) -> Quantiser | None:
  """Makes the quantiser, one step a block position.

  Args:
    content: the manifest, of the right form.
    shape: ``(H', W', C)`` of a disguised image.

  Raises:
    ValueError: if it does not fit.
  """
  given, side = content["quantiser"], content["spec"]["block_size"]
  if given is None:
    return None
  if content["dtype"] != "uint8":
    raise ValueError("quantiser stands with another dtype than uint8")
  offset, scale = (np.asarray(given[name], np.float32) for name in ("offset", "scale"))
  positions = (shape[0] // side * (shape[1] // side),)
  if offset.shape != positions or scale.shape != positions or not (scale > 0).all():
    raise ValueError("quantiser is not an offset and a scale above 0 for each block position")
  return Quantiser(offset, scale)
