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
  "GPU",
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
FULL = "CIFAR-10, two CPU cores"
GPU = "CIFAR-10, ResNet-18, for a GPU"
BASELINES = "MNIST, 10 000 images, 20 epochs"

# Where data lie, where they are held and which warnings are printed changes no result.
_FREE = ("data.data_dir", "data.memory_gb", "disguise.acknowledge")
_DEFAULTS = (
  1  # raise it when a value in configs/base.py changes: earlier results are then of other rows
)
_ALIGNED = ("model.stem=aligned",)
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
  position = ("model.stem=position",)
  networks: dict[str, tuple[str, ...]] = {
    "small_cnn": (),
    "small_cnn_aligned": _ALIGNED,
    "small_cnn_aligned_frozen": (*_ALIGNED, "model.stem_frozen=true"),
    "small_cnn_position": (*position, "model.stem_rank=2"),
    "small_cnn_position_full": position,
    "small_cnn_position_mixing": (*position, "model.stem_rank=2", "model.stem_mixing=true"),
    "small_vit": ("model.name=vit",),
    "small_vit_aligned": ("model.name=vit", *_ALIGNED),
    "small_mixer": ("model.name=mixer",),
  }
  for ending, permute in (("", "false"), ("_permuted", "true")):
    for name, overrides in networks.items():
      headline = name in ("small_cnn", "small_cnn_aligned")
      permuted = (*overrides, f"disguise.permute={permute}")
      yield Row(name + ending, "cifar10_small", permuted, (0,), SMALL, headline)


def _full() -> Iterator[Row]:
  """Yields the settings of the paper's own data set, the whole of it."""
  blocks, permuted = (
    ("disguise.block_size=4",),
    ("disguise.permute=true", "disguise.noise_level=0.0"),
  )
  settings: dict[str, tuple[str, ...]] = {
    "rmt": (),
    "rmt_aligned": _ALIGNED,
    "rmt_4x4": blocks,
    "rmt_permuted": (*blocks, *permuted),
    "aes": (*blocks, "disguise.permute=true", "disguise.scheme=aes"),
    "rmt_4x4_aligned": (*blocks, *_ALIGNED),
    "rmt_permuted_aligned": (*blocks, *permuted, *_ALIGNED),
  }
  for name, overrides in settings.items():
    # Those that are run take the place of the GPU's in the short table.
    row = f"cifar10_airbench_{name}"
    yield Row(row, "cifar10_airbench", overrides, (0,), FULL, headline=name == "rmt")


ROWS: tuple[Row, ...] = (
  *(
    Row(name, name, headline=True)
    for name in ("digits_rmt", "mnist_rmt", "mnist_aes", "mnist_aes_pixel")
  ),
  *_study(),
  *(
    Row(name, name, group=GPU, headline=name != "cifar10_rmt")
    for name in ("cifar10_rmt", "cifar10_rmt_4x4", "cifar10_rmt_permuted", "cifar10_aes")
  ),
  Row("cifar10_rmt_4x4_aligned", "cifar10_rmt_4x4", _ALIGNED, group=GPU, headline=True),
  Row("cifar10_rmt_permuted_aligned", "cifar10_rmt_permuted", _ALIGNED, group=GPU, headline=True),
  Row("cifar10_rmt_aligned", "cifar10_rmt", _ALIGNED, group=GPU),
  *_full(),
)

_SAME = ("data.train_split=train[:10000]", "train.epochs=20", "train.batch_size=256")

COMPARED: tuple[Row, ...] = tuple(
  Row(name, f"mnist_{name}", _SAME, (0,), BASELINES)
  for name in ("rmt", "aes", "instahide", "neuracrypt")
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
  changed = {n: value for n, value in fields.items() if n not in _FREE and value != usual.get(n)}
  return _hash({"defaults": _DEFAULTS, **changed})


def audited(config: ConfigDict) -> dict[str, Any]:
  """Returns what the audit of a run attacks, see ``train.audited.of``, and a ``hash`` of that and the audit's sizes.

  Args:
    config: of the run.
  """
  parts = attacked.of(config)
  return {"hash": _hash({**parts, "sizes": dataclasses.asdict(scenario.FAST)}), **parts}


def ordinary(row: Row, table: Sequence[Row]) -> Row | None:
  """Returns the row with the same trunk and disguise but without a stem; None if there is none, or no stem.

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


def _hash(fields: Mapping[str, Any]) -> str:
  text = json.dumps(fields, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
