"""From names, paths and overrides to a checked config. ``configs/base.py`` is the schema."""

import collections
import dataclasses
import difflib
import importlib
import importlib.util
import math
import pkgutil
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

import configs
from configs import base
from configs.base import fields
from djax import models, schemes
from djax.errors import ConfigError, DataError, nearest
from djax.models import run_files
from djax.schemes import Trait
from djax.sources import Images, Reading

__all__ = [
  "VIEW_OPTIONS",
  "about",
  "check",
  "check_data",
  "check_stored",
  "choices",
  "disguise_of",
  "fields",
  "from_json",
  "leaves",
  "load",
  "make_scheme",
  "nearest_field",
  "override",
  "reading_of",
  "shipped",
  "traits_of",
  "twin",
  "with_network",
]

# Of the group augment: what changes a view of an image.
VIEW_OPTIONS = ("crop", "flip", "rotate", "scale", "shear")
_LOCKED = re.compile(r'Key "(\w+)" does not exist')  # ml_collections on a field that is none
_SEED = 2**63 - 1  # the largest that JAX takes
_ANY = float("-inf")  # where the scheme itself says what is too small
# Of a field, the least and the greatest value: far above what has a use, they keep made-up configs from filling memory.
_BOUNDS: dict[str, tuple[float, float]] = {
  "seed": (0, _SEED),
  "data.image_size": (0, 1 << 14),
  "data.scale": (0, 255),
  "data.split_seed": (0, _SEED),
  "data.memory_gb": (0, 1e6),
  "disguise.experiment_seed": (0, _SEED),
  "augment.views": (1, 1 << 14),
  "augment.test_views": (1, 1 << 14),
  "augment.crop": (0, 1 << 14),
  "augment.rotate": (0, 360),
  "augment.scale": (0, 10),
  "augment.shear": (0, 1 << 10),
  "augment.mixup": (0, 1e6),
  **models.BOUNDS,
  "optimizer.learning_rate": (0, 1e6),
  "optimizer.warmup_epochs": (0, 1e5),
  "optimizer.weight_decay": (0, 1e6),
  "train.epochs": (1, 10**5),
  "train.batch_size": (1, 1 << 20),
  "train.checkpoint_every_steps": (1, 10**9),
}
_SHARES = (
  "model.dropout",
  "optimizer.momentum",
  "optimizer.label_smoothing",
  "optimizer.ema",
  "augment.cutout",
)
AUTO = "auto"  # the name of the network that the disguise asks for
_CHOICES: dict[str, Collection[str]] = {
  "disguise.scheme": schemes.SCHEMES,
  **models.CHOICES,
  "model.name": collections.ChainMap({AUTO: None}, models.MODELS),  # it may grow
  "optimizer.name": ("adamw", "sgd", "muon"),
  "optimizer.schedule": ("cosine", "constant"),
}


def reading_of(config: ConfigDict) -> Reading:
  """Returns how the originals are read.

  Args:
    config: of a run.

  Raises:
    ConfigError: for values that cannot work.
  """
  return Reading(**{field.name: config.data[field.name] for field in dataclasses.fields(Reading)})


def shipped() -> list[str]:
  """Returns the names of the configs that come with the package."""
  return sorted(m.name for m in pkgutil.iter_modules(configs.__path__) if m.name != "base")


def about(name: str) -> str:
  """Returns in a line what a shipped config is.

  Args:
    name: of ``shipped()``.
  """
  words = importlib.import_module(f"configs.{name}").__doc__ or ""
  return words.partition("\n")[0].replace("``", "")


def choices(field: str) -> list[str]:
  """Returns the values that a field can have, where they are names.

  Args:
    field: as ``group.name``.
  """
  group, _, name = field.partition(".")
  options = schemes.options()
  if group == "disguise" and name in options:
    return list(options[name].option.choices)
  return list(_CHOICES.get(field, ()))


def load(name: str) -> ConfigDict:
  """Reads a config.

  Args:
    name: a shipped name such as ``digits_rmt``, or the path of a Python file with ``get_config()``.

  Raises:
    ConfigError: if there is no such config or the file does not give one.
  """
  if name in shipped():
    return importlib.import_module(f"configs.{name}").get_config()
  path = Path(name).expanduser()
  if not path.is_file():
    raise ConfigError(
      f"config must be a shipped name ({', '.join(shipped())}) or a Python file, got {name!r}."
      f"{nearest(name, shipped())}"
    )
  spec = importlib.util.spec_from_file_location("_djax_config", path)
  if spec is None or spec.loader is None:
    raise ConfigError(f"config must be a Python file (.py), got {name!r}.")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config()
  except Exception as error:
    if field := _LOCKED.search(str(error)):
      known = nearest_field(field[1], dict(leaves(base.get_config())))
      raise ConfigError(f"unknown config field {field[1]!r} in {name}.{known}") from error
    detail = f"{type(error).__name__}: {error}".splitlines()[0]
    raise ConfigError(f"config {name} must define get_config(): {detail}.") from error
  if not isinstance(config, ConfigDict):
    raise ConfigError(
      f"config {name}: get_config() must return an ml_collections.ConfigDict, got {type(config).__name__}."
    )
  return config


def leaves(config: ConfigDict) -> Iterator[tuple[str, Any]]:
  """Yields every field as ``("group.name", value)``."""
  yield from traverse_util.flatten_dict(config.to_dict(), sep=".").items()


# Not ml_collections.config_flags: it exits with 1, and answers an unknown field with a stack trace.
def override(config: ConfigDict, assignments: Sequence[str]) -> None:
  """Sets fields in place from ``group.name=value`` texts; a value is read as the type the field has.

  Raises:
    ConfigError: for an unknown field (with the nearest name) or a value of another type.
  """
  known = dict(leaves(config))
  for assignment in assignments:
    name, equals, text = assignment.partition("=")
    if name not in known:
      hint = nearest_field(name, known) or " --help lists the fields."
      raise ConfigError(f"unknown config field 'config.{name}'.{hint}")
    if not equals:
      raise ConfigError(
        f"config.{name} needs a value: --config.{name}={_shown(known[name])} is its default."
      )
    try:
      value = _parse(text, type(known[name]))
    except ValueError:
      raise ConfigError(
        f"config.{name} must be {models.TYPES[type(known[name])]} such as {_shown(known[name])}, got {text!r}."
      ) from None
    config.update_from_flattened_dict({name: value})


def nearest_field(name: str, known: Iterable[str]) -> str:
  """Suggests the field with the nearest name, or with the nearest last part in another group.

  Args:
    name: what was given.
    known: the fields that exist.

  Returns:
    `` Did you mean 'config.x'?``, or an empty string.
  """
  last = {k.rpartition(".")[2]: k for k in known}
  part = name.rpartition(".")[2]
  close = difflib.get_close_matches(part, last, n=1, cutoff=0.6)
  match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7) or [last[c] for c in close]
  return f" Did you mean 'config.{match[0]}'?" if match else ""


def from_json(data: bytes) -> ConfigDict:
  """Reads a config back that a run directory holds; ``check_stored`` is the next step.

  Raises:
    ConfigError: if they are no fields in groups.
  """
  return ConfigDict(run_files.config_from(data))


def check(config: ConfigDict) -> None:
  """Refuses a config that has other fields than ``configs/base.py``, or values that cannot work.

  Raises:
    ConfigError: with the first thing that is wrong.
  """
  check_stored(config)
  if config.data.val_split:
    _check_apart(config.data)
  pattern = config.optimizer.no_decay
  try:
    re.compile(pattern)
  except re.error as error:
    raise ConfigError(
      f"config.optimizer.no_decay must be a regular expression such as (bias|scale)$, got {pattern!r}: {error}."
    ) from None


def check_stored(config: ConfigDict) -> None:
  """Checks a config from elsewhere as ``check`` does, but does not compile its regular expression.

  Raises:
    ConfigError: with the first thing that is wrong.
  """
  schema, given = dict(leaves(base.get_config())), dict(leaves(config))
  for name in given:
    if name not in schema:
      hint = nearest_field(name, schema) or " --help lists the fields."
      raise ConfigError(f"unknown config field 'config.{name}'.{hint}")
  for name, default in schema.items():
    if name not in given:
      raise ConfigError(
        f"config lacks the field 'config.{name}'; {_shown(default)} is its usual value."
      )
    if type(given[name]) is not type(default):
      raise ConfigError(
        f"config.{name} must be {models.TYPES[type(default)]} such as {_shown(default)}, got {given[name]!r}."
      )
  if not given["optimizer.learning_rate"] > 0:
    raise ConfigError(
      f"config.optimizer.learning_rate must be above 0, got {given['optimizer.learning_rate']}."
    )
  most = {f"disguise.{name}": (_ANY, own.option.most) for name, own in schemes.options().items()}
  bounds = {name: most[name] for name in most if isinstance(given[name], int | float)} | _BOUNDS
  models.check_values(given, bounds, _SHARES, _CHOICES)
  if given["data.disguised_dir"] and given["disguise.scheme"] != "plain":
    raise ConfigError(
      "config.disguise.scheme must be plain with config.data.disguised_dir: what lies there is already disguised, got "
      f"{given['disguise.scheme']!r}. Start from --config=outsourced."
    )
  _check_augment(config)


def twin(config: ConfigDict) -> ConfigDict:
  """Returns the plain twin of a config: the same network and budget on the originals themselves.

  What only a disguise can have goes: the stem, the key, and units, whose network becomes the ``mlp`` behind its table.

  Raises:
    ConfigError: for ``config.data.disguised_dir``, whose originals are not here.
  """
  if config.data.disguised_dir:
    raise ConfigError(
      "config.data.disguised_dir must be empty for a plain twin, which needs originals, got "
      f"{config.data.disguised_dir!r}."
    )
  plain = config.copy_and_resolve_references()
  plain.disguise = base.get_config().disguise
  plain.model.update(stem="none", stem_rank=0, stem_mixing=False, stem_frozen=False)
  plain.model.name = "mlp" if config.model.name == "unit_mlp" else config.model.name
  if config.model.name in ("vit", "mixer"):
    tokens = Trait.TOKENS in traits_of(config)
    blocks = config.model.patch or config.disguise.block_size
    plain.model.patch = config.disguise.patch if tokens else blocks
  if Trait.MIXED_IMAGES in traits_of(config):
    plain.augment.views = plain.augment.test_views = 1
  if config.augment.cutout:
    plain.disguise.block_size = config.disguise.block_size
  return plain


def with_network(
  config: ConfigDict, spec: Mapping[str, Any], disguised_shape: Sequence[int]
) -> ConfigDict:
  """Returns a config whose network is named.

  In place of ``auto`` comes what our own runs under such a disguise used: ``configs/mnist_aes.py``,
  ``configs/mnist_rmt.py`` or, for images of more than 1024 values, ``configs/cifar10_small.py``.

  Args:
    config: a complete config.
    spec: of the scheme, ``SchemeSpec.to_dict()``.
    disguised_shape: ``(H', W', C)``.
  """
  if config.model.name != AUTO:
    return config
  named = config.copy_and_resolve_references()
  if Trait.UNITS in schemes.traits(spec):
    named.model.update(name="unit_mlp", width=1024, depth=1)
  elif math.prod(disguised_shape) <= 1024:
    named.model.update(name="mlp", width=1024, depth=2)
  else:
    named.model.update(name="cnn", width=32)
  return named


def check_data(train: Images, test: Images, val: Images | None = None) -> None:
  """Refuses splits that are empty or do not belong together.

  Raises:
    DataError: with what differs.
  """
  splits = {"training": train, "test": test} | ({} if val is None else {"validation": val})
  for name, split in splits.items():
    if not len(split.images):
      raise DataError(f"the {name} split must hold at least one image, got none.")
    if train.images.shape[1:] != split.images.shape[1:] or train.class_names != split.class_names:
      raise DataError(
        f"training and {name} split must have one image shape and the same classes, got "
        f"{train.images.shape[1:]} with {len(train.class_names)} classes and {split.images.shape[1:]} with "
        f"{len(split.class_names)}."
      )


def make_scheme(
  config: ConfigDict, image_shape: tuple[int, ...], classes: int | None = None
) -> schemes.Scheme:
  """Makes the scheme of ``config.disguise`` from the fields it takes.

  Args:
    config: the config.
    image_shape: ``(H, W, C)`` of the source.
    classes: number of labels, for a scheme that mixes them.

  Raises:
    ConfigError: if the options do not fit together or do not fit the images.
  """
  name = config.disguise.scheme
  options = disguise_of(config)
  if schemes.SCHEMES[name].takes_classes:
    options["classes"] = classes
  try:
    return schemes.from_spec({**options, "image_shape": image_shape})
  except ValueError as error:
    raise ConfigError(f"config.disguise: {error}") from error


def disguise_of(config: ConfigDict) -> dict[str, Any]:
  """Returns the scheme of a config and the options that it takes."""
  name = config.disguise.scheme
  return {"scheme": name, **{k: config.disguise[k] for k in schemes.SCHEMES[name].parameters}}


def traits_of(config: ConfigDict) -> frozenset[Trait]:
  """Returns the properties of the disguise of a config."""
  return schemes.traits(disguise_of(config))


def _check_apart(data: ConfigDict) -> None:
  """Refuses a validation split that shares records with another one, or of which nobody can tell."""
  name, start, stop, unit = _part_of(data, "val_split")
  for field in ("train_split", "test_split"):
    other, first, last, others_unit = _part_of(data, field)
    if name != other:
      continue
    if unit and others_unit and unit != others_unit:
      raise ConfigError(
        f"config.data.val_split and {field} must both count records or both percent, got {data.val_split!r} and "
        f"{data[field]!r}."
      )
    if max(start, first) < min(stop, last):
      raise ConfigError(
        f"config.data.val_split must share no record with {field}, got {data.val_split!r} and {data[field]!r}. Give "
        f"parts such as {name}[:1000] and {name}[1000:]."
      )


def _part_of(data: ConfigDict, field: str) -> tuple[str, float, float, str]:
  """Returns name, start, stop and unit of a part of a split; the unit is empty where no number needs one."""
  match = re.fullmatch(r"(\w+)(?:\[(\d*)(%?):(\d*)(%?)\])?", data[field], re.ASCII)
  name, start, percent, stop, percent_too = match.groups("") if match else [""] * 5
  ends = [(int(start or 0), percent), (int(stop) if stop else math.inf, percent_too)]
  units = {unit or "records" for end, unit in ends if 0 < end < math.inf}
  if not match or len(units) > 1:
    raise ConfigError(
      f"config.data.{field} must be a split or a part such as train[:1000] where there is a val_split, got "
      f"{data[field]!r}."
    )
  return name, ends[0][0], ends[1][0], "".join(units)


def _check_augment(config: ConfigDict) -> None:
  """Refuses views that would all be alike, or that this way of training cannot make."""
  augment = config.augment
  many = max(augment.views, augment.test_views) > 1
  changed = [name for name in VIEW_OPTIONS if augment[name]]
  if Trait.MIXED_IMAGES in traits_of(config):
    if changed:
      raise ConfigError(
        "config.augment must not change images with instahide, whose views are encodings of one image; got "
        f"{', '.join(changed)}. Leave it out."
      )
    if config.disguise.public_k and not config.disguise.public_source:
      raise ConfigError(
        "config.disguise.public_source must name a source with public_k above 0, got ''. Give one such as mnist."
      )
  elif many != bool(changed):
    raise ConfigError(
      "config.augment.views or test_views above 1 need crop, flip, rotate, scale or shear, and these need one of them; "
      f"got views={augment.views}, test_views={augment.test_views} and {', '.join(changed) or 'none of these'}."
    )
  if many and config.data.disguised_dir:
    raise ConfigError(
      "config.augment.views and test_views must be 1 with config.data.disguised_dir, got "
      f"{augment.views} and {augment.test_views}: views are made before the disguise. "
      "Its owner makes them with: python -m djax disguise --views"
    )


def _parse(text: str, kind: type) -> Any:
  if kind is bool:
    if text.lower() not in ("true", "false"):
      raise ValueError
    return text.lower() == "true"
  return kind(text)


def _shown(value: Any) -> str:
  """Returns a value as it is written on the command line."""
  return "''" if value == "" else str(value).lower() if isinstance(value, bool) else str(value)
