"""The rows of the results table, most important first, and what each of them runs."""

import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import base
from djax.audit import scenario
from djax.errors import ConfigError, nearest
from train import audited as attacked
from train import config as config_lib

__all__ = [
  "BASELINES",
  "COMPARED",
  "FULL",
  "MNIST",
  "ROWS",
  "SMALL",
  "Row",
  "audited",
  "choose",
  "config_of",
  "fingerprint",
  "ordinary",
]

MNIST = "MNIST and digits"
SMALL = "CIFAR-10, 10 000 images"
FULL = "CIFAR-10, full, GPU"
BASELINES = "MNIST, 10 000 images, 20 epochs"

# Where the data lie and are held, and what is said, changes no result.
_FREE = ("data.data_dir", "data.memory_gb", "disguise.acknowledge")
_DEFAULTS = (
  1  # raise it when a value in configs/base.py changes: what was measured is then of other rows
)
_NO_STEM = ("stem=none", "stem_rank=0", "stem_mixing=false", "stem_frozen=false")


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of the table.

  Attributes:
    name: its name, and that of its folder.
    config: a shipped config.
    overrides: fields that differ, such as ``model.stem=aligned``.
    seeds: one run each, with a key and a plain twin of its own.
    group: the section of the page it stands in.
    headline: whether it stands in the short table at the head, and in the README.
  """

  name: str
  config: str
  overrides: tuple[str, ...] = ()
  seeds: tuple[int, ...] = (0, 1, 2)
  group: str = MNIST
  headline: bool = False


def _study() -> Iterator[Row]:
  """Yields trunks and stems at one budget, each without and with permutation."""
  networks: dict[str, tuple[str, ...]] = {
    "small_cnn": (),
    "small_cnn_aligned": ("model.stem=aligned",),
    "small_cnn_aligned_frozen": ("model.stem=aligned", "model.stem_frozen=true"),
    "small_cnn_position": ("model.stem=position", "model.stem_rank=2"),
    "small_cnn_position_full": ("model.stem=position",),
    "small_cnn_position_mixing": (
      "model.stem=position",
      "model.stem_rank=2",
      "model.stem_mixing=true",
    ),
    "small_vit": ("model.name=vit",),
    "small_vit_aligned": ("model.name=vit", "model.stem=aligned"),
    "small_mixer": ("model.name=mixer",),
  }
  for ending, permute in (("", "false"), ("_permuted", "true")):
    for name, overrides in networks.items():
      headline = name in ("small_cnn", "small_cnn_aligned")
      moved = (*overrides, f"disguise.permute={permute}")
      yield Row(name + ending, "cifar10_small", moved, (0,), SMALL, headline)


_ALIGNED = ("model.stem=aligned",)

ROWS: tuple[Row, ...] = (
  Row("digits_rmt", "digits_rmt", headline=True),
  Row("mnist_rmt", "mnist_rmt", headline=True),
  Row("mnist_aes", "mnist_aes", headline=True),
  Row("mnist_aes_pixel", "mnist_aes_pixel", headline=True),
  *_study(),
  Row("cifar10_rmt", "cifar10_rmt", group=FULL, headline=True),
  Row("cifar10_rmt_4x4", "cifar10_rmt_4x4", group=FULL, headline=True),
  Row("cifar10_rmt_permuted", "cifar10_rmt_permuted", group=FULL, headline=True),
  Row("cifar10_aes", "cifar10_aes", group=FULL, headline=True),
  Row("cifar10_rmt_4x4_aligned", "cifar10_rmt_4x4", _ALIGNED, group=FULL, headline=True),
  Row("cifar10_rmt_permuted_aligned", "cifar10_rmt_permuted", _ALIGNED, group=FULL, headline=True),
  Row("cifar10_rmt_aligned", "cifar10_rmt", _ALIGNED, group=FULL),
)

_SAME = ("data.train_split=train[:10000]", "train.epochs=20", "train.batch_size=256")

COMPARED: tuple[Row, ...] = (
  Row("rmt", "mnist_rmt", _SAME, (0,), BASELINES),
  Row("aes", "mnist_aes", _SAME, (0,), BASELINES),
  Row("instahide", "mnist_instahide", _SAME, (0,), BASELINES),
  Row("neuracrypt", "mnist_neuracrypt", _SAME, (0,), BASELINES),
)


def choose(patterns: Sequence[str], table: Sequence[Row]) -> list[Row]:
  """Returns the rows that some patterns name, in the order of the table; all if there is no pattern.

  Args:
    patterns: names, or globs such as ``small_*``.
    table: the rows there are.

  Raises:
    ConfigError: for a pattern that names no row.
  """
  names = [row.name for row in table]
  for pattern in patterns:
    if not fnmatch.filter(names, pattern):
      raise ConfigError(
        f"row {pattern!r} does not exist.{nearest(pattern, names)} python -m train.table --list names all rows."
      )
  return [
    row for row in table if not patterns or any(fnmatch.fnmatch(row.name, p) for p in patterns)
  ]


def config_of(row: Row, seed: int, overrides: Sequence[str] = ()) -> ConfigDict:
  """Returns the config of one run.

  Args:
    row: the row.
    seed: of the run and of its public experiment key.
    overrides: further fields, to try a row at another size.

  Raises:
    ConfigError: for a config, field or value that does not exist.
  """
  config = config_lib.load(row.config)
  config.seed = config.disguise.experiment_seed = seed
  config_lib.override(config, [*row.overrides, *overrides])
  return config


def fingerprint(config: ConfigDict | Mapping[str, Any]) -> str:
  """Returns a short hash of the fields that decide the result, as far as they differ from ``configs.base``.

  So a field that is new in a later version leaves hashes as they were.

  Args:
    config: a config, perhaps of an earlier version.
  """
  usual = dict(config_lib.leaves(base.get_config()))
  fields = dict(config_lib.leaves(ConfigDict(config)))
  told = {n: value for n, value in fields.items() if n not in _FREE and value != usual.get(n)}
  return _hash({"defaults": _DEFAULTS, **told})


def audited(config: ConfigDict) -> dict[str, Any]:
  """Returns what the audit of a run attacks, see ``train.audited.of``, and the ``hash`` of it and of its sizes.

  Args:
    config: of the run.
  """
  facts = attacked.of(config)
  return {"hash": _hash({**facts, "sizes": dataclasses.asdict(scenario.FAST)}), **facts}


def ordinary(row: Row, table: Sequence[Row]) -> Row | None:
  """Returns the row with the same trunk and disguise but without a stem; None if ``row`` has no stem or no such twin.

  Args:
    row: the row.
    table: to look in.
  """
  config = config_of(row, 0)
  if config.model.stem == "none":
    return None
  config_lib.override(config, [f"model.{field}" for field in _NO_STEM])
  wanted = fingerprint(config)
  return next((other for other in table if fingerprint(config_of(other, 0)) == wanted), None)


def _hash(facts: Mapping[str, Any]) -> str:
  text = json.dumps(facts, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
