"""The files of results and settings of a run directory, which may come from a machine that nobody vouches for."""

import re
from typing import Any

from djax import schemes
from djax.errors import ConfigError
from djax.io import foreign, form
from djax.models import checksums
from djax.schemes import Scheme

__all__ = [
  "RESULT",
  "RESULT_BYTES",
  "config_from",
  "disguise_from",
  "metrics_from",
  "result_from",
  "scheme_from",
]

RESULT, RESULT_BYTES = "result.json", 1 << 20

_LONGEST_TEXT, _LONGEST_NAME = 4096, 64  # characters
_MOST_CLASSES, _LONGEST_SIDE = 1 << 16, 1 << 14
_NAME, _TEXT = re.compile(r"[a-z][a-z0-9_]{0,40}"), re.compile(r"[ -~]{1,200}")
_DISGUISE = {
  "spec": dict,
  "disguised_shape": [1],
  "classes": 1,
  "labels": {"plain", "permuted"},
  "key_fingerprint": (None, _TEXT),
  "source_sha256": _TEXT,
}

_MEASURED = ("test_accuracy", "single_view_accuracy")
_PERHAPS = ("plain_accuracy", "other_key_accuracy", "val_accuracy")
_COUNTS = ("test_images", "test_views", "classes", "steps", "chosen_step")
_RESULT = {
  **dict.fromkeys(_MEASURED, float),
  **dict.fromkeys(_PERHAPS, (None, float)),
  **dict.fromkeys(_COUNTS, 1),
  "seconds": float,
  "key_fingerprint": (None, _TEXT),
}
_METRICS = {"step": 0, "epoch": 1, "train_loss": float}
_SPLITS = ("val_accuracy", "test_accuracy")


def config_from(data: bytes) -> dict[str, Any]:
  """Reads the config of a run: fields in groups, whose names and values are not checked yet.

  Raises:
    ConfigError: if they are no fields in groups.
  """
  try:
    value = foreign.parse_json(data)
  except ValueError as error:
    raise ConfigError(f"config.json must be JSON: {error}.") from None
  if not isinstance(value, dict):
    raise ConfigError("config.json must hold fields in groups, it does not.")
  _check_fields(value, groups=True)
  return value


def disguise_from(data: bytes) -> dict[str, Any]:
  """Reads ``disguise.json`` of a run that comes from somewhere else.

  Returns:
    The public description of the disguise, as ``Inputs.summary`` has it.

  Raises:
    ValueError: if it is damaged, or no scheme makes images of that shape.
  """
  disguise = foreign.parse_json(data)
  form.check(disguise, _DISGUISE, checksums.DISGUISE)
  for name, value in disguise.items():
    form.check(name, _NAME, "a name in disguise.json")
    if name not in _DISGUISE:
      _check_value(name, value)
  if disguise["classes"] > _MOST_CLASSES:
    raise ValueError(f"classes must be at most {_MOST_CLASSES}, got {disguise['classes']}")
  scheme = scheme_from(disguise["spec"])
  shape = tuple(disguise["disguised_shape"])
  if len(shape) != 3 or max(shape) > _LONGEST_SIDE:
    raise ValueError(f"disguised_shape must be three numbers of at most {_LONGEST_SIDE}")
  expected = tuple(scheme.spec.disguised_shape)
  if expected != shape:
    raise ValueError(f"disguised_shape must be {list(expected)} by its spec, got {list(shape)}")
  return disguise


def scheme_from(spec: dict[str, Any]) -> Scheme:
  """Makes the scheme of a spec that comes from somewhere else.

  Raises:
    ValueError: if it is damaged, or no scheme is so. A scheme may have its own way to say so.
  """
  for name, value in spec.items():
    form.check(name, _NAME, "a name in spec")
    if isinstance(value, list) and len(value) <= 4:
      form.check(value, [0], f"spec.{name}")
    else:
      _check_value(f"spec.{name}", value)
  return schemes.from_spec(spec)


def result_from(data: bytes) -> dict[str, Any]:
  """Reads ``result.json``, as ``train.run`` returns it; accuracies lie in 0..1.

  Raises:
    ValueError: if it is damaged.
  """
  result = foreign.parse_json(data)
  form.check(result, _RESULT, RESULT)
  for name in (*_MEASURED, *_PERHAPS):
    _check_share(result[name], f"{name} in {RESULT}")
  return result


def metrics_from(data: bytes) -> list[dict[str, Any]]:
  """Reads ``metrics.jsonl``.

  Returns:
    For each epoch its number as ``epoch``, ``train_loss``, and ``test_accuracy`` or ``val_accuracy`` in 0..1.

  Raises:
    ValueError: if it is damaged.
  """
  rows = [foreign.parse_json(line) for line in data.splitlines()]
  for row in rows:
    form.check(row, _METRICS, f"a line of {checksums.METRICS}")
    for name in _SPLITS:
      form.check(row.get(name), (None, float), f"{name} in {checksums.METRICS}")
      _check_share(row.get(name), f"{name} in {checksums.METRICS}")
  return rows


def _check_share(value: float | None, where: str) -> None:
  if value is not None and not 0 <= value <= 1:
    raise ValueError(f"{where} must lie in 0..1, got {value}")


def _check_fields(value: dict[str, Any], *, groups: bool) -> None:
  """Refuses what is no number, truth value or text, nor an object of them."""
  for name, field in value.items():
    if not name.isidentifier() or len(name) > _LONGEST_NAME:
      raise ConfigError("config.json holds a field whose name is none.")
    if groups and isinstance(field, dict):
      _check_fields(field, groups=False)
    elif type(field) not in (bool, int, float, str):
      raise ConfigError(f"config.json: {name} must be a number, true, false or a text.")
    elif isinstance(field, str) and len(field) > _LONGEST_TEXT:
      raise ConfigError(f"config.json: {name} must have at most {_LONGEST_TEXT} characters.")


def _check_value(where: str, value: Any) -> None:
  """Refuses what is no number of usual size, truth value, short text or null."""
  if value is None or isinstance(value, bool):
    return
  form.check(value, _TEXT if isinstance(value, str) else float, where)
