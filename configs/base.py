"""Every field there is, with its usual value and its meaning.

The other configs change what differs; a run has exactly these fields. The options of a disguise are described where
each scheme is, in ``djax/schemes``.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from djax import schemes

__all__ = ["Field", "fields", "get_config"]


class Field(NamedTuple):
  """A field of a config.

  Attributes:
    usual: its value where a config sets none: that of the embedded digits.
    meaning: in a few words, for ``python -m train --help``.
  """

  usual: Any
  meaning: str


_FIELDS = {
  "seed": Field(0, "of initial parameters, order of the records, dropout and owned noise"),
  "data.source": Field(
    "digits", "digits, a prepared TFDS name, a folder of images (./dir) or x.npz"
  ),
  "data.data_dir": Field(
    "", "where TFDS sets lie; empty: TFDS_DATA_DIR, then ~/tensorflow_datasets"
  ),
  "data.image_size": Field(0, "folders: resize to this side; 0 refuses mixed sizes"),
  "data.scale": Field(
    0, "the value of white, 1 or 255; 0: 255, and asked for where it looks like 1"
  ),
  "data.group_by": Field(
    "",
    "folders: a regular expression whose one group finds whom a file is of, or a table X.csv of file and group",
  ),
  "data.split_seed": Field(
    0, "folders without a test folder: draws the fifth that is test; 0 takes every fifth"
  ),
  "data.background": Field("", "image files: the colour behind transparency, white or #rrggbb"),
  "data.disguised_dir": Field(
    "", "what djax disguise wrote; then no data field above and no key is used"
  ),
  "data.memory_gb": Field(
    4.0, "a disguised set whose images take more is read from disk as needed"
  ),
  "data.train_split": Field("train", "slices such as train[:1000] work for every source"),
  "data.test_split": Field("test", "as train_split"),
  "data.val_split": Field(
    "",
    "a part of neither: the network of the epoch that does best on it is kept; empty: that of the last epoch",
  ),
  "disguise.scheme": Field("plain", "how images are disguised; each scheme takes other fields"),
  "disguise.public_source": Field("", "instahide: where public images come from, as data.source"),
  "disguise.experiment_seed": Field(0, "of the public key of an experiment, without --key"),
  "disguise.dataset_id": Field(
    "",
    "with --key: 32 hex digits, public; runs with the same id share matrices; empty: one for this run",
  ),
  "disguise.acknowledge": Field(False, "true: no warning of what is known to break the disguise"),
  "augment.views": Field(
    1, "of a training record, fixed: the original and changed ones; of instahide, encodings"
  ),
  "augment.test_views": Field(1, "of a test record, over which log-probabilities are averaged"),
  "augment.crop": Field(0, "views are shifted by up to so many pixels"),
  "augment.flip": Field(False, "half of the views are mirrored left to right"),
  "augment.rotate": Field(0.0, "views are turned by up to so many degrees"),
  "augment.scale": Field(0.0, "each axis of a view is scaled by up to exp(+-this)"),
  "augment.shear": Field(0.0, "views are sheared by up to so many pixels a row"),
  "augment.mixup": Field(
    0.0, "after the disguise: Beta(this, this) mixes images of a batch; 0: off"
  ),
  "augment.cutout": Field(
    0.0, "after the disguise: the share of blocks that are blanked in a step"
  ),
  "model.name": Field("cnn", "the network; auto: what the disguise asks for"),
  "model.width": Field(16, "channels of the first layer, or of the hidden ones"),
  "model.depth": Field(2, "hidden layers of mlp and unit_mlp, blocks of vit and mixer"),
  "model.patch": Field(0, "side of a token of vit and mixer; 0: the disguise's block size"),
  "model.stem": Field("none", "what comes before the network: see djax/models/stems.py"),
  "model.stem_rank": Field(
    0, "stem position: of each position's own part; 0: a whole map of its own"
  ),
  "model.stem_mixing": Field(False, "stem position: then a learned mixing of positions"),
  "model.stem_frozen": Field(False, "stem aligned: what was estimated is not trained further"),
  "model.dropout": Field(0.0, "the share of activations dropped in training"),
  "model.dtype": Field("float32", "of the layers; parameters and loss stay float32"),
  "optimizer.name": Field(
    "adamw", "sgd has Nesterov momentum; muon is for convolutions, Adam for the rest"
  ),
  "optimizer.learning_rate": Field(2e-3, "at its peak"),
  "optimizer.schedule": Field("cosine", "of the learning rate, after the warm-up"),
  "optimizer.warmup_epochs": Field(1.0, "in which the learning rate rises to its peak"),
  "optimizer.weight_decay": Field(
    1e-4, "of all parameters but those of no_decay; of muon, the kernels"
  ),
  "optimizer.no_decay": Field(
    "(bias|scale|positions)$", "a regular expression: parameters it finds get no weight decay"
  ),
  "optimizer.momentum": Field(0.9, "of sgd and muon"),
  "optimizer.label_smoothing": Field(0.0, "the share of the target spread over all classes"),
  "optimizer.ema": Field(0.0, "greatest decay of the averaged parameters that are tested; 0: none"),
  "train.epochs": Field(15, "how often the training records are gone through"),
  "train.batch_size": Field(64, "records of a step"),
  "train.checkpoint_every_steps": Field(500, "and at the end of every epoch"),
  "train.shard_parameters": Field(
    False, "true: each device holds a share of the parameters; for networks larger than a device"
  ),
}


def fields() -> dict[str, Field]:
  """Returns every field as ``group.name``, those of the schemes that are installed among them."""
  found: dict[str, Field] = {}
  for name, field in _FIELDS.items():
    found[name] = field
    if name == "disguise.scheme":
      found |= {f"disguise.{option}": _described(own) for option, own in schemes.options().items()}
  return found


def get_config() -> ConfigDict:
  """Returns the fields of every run, at their usual values; a name that is no field is refused."""
  config = ConfigDict()
  for name, field in fields().items():
    group, _, last = name.rpartition(".")
    if group and group not in config:
      config[group] = ConfigDict()
    (config[group] if group else config)[last] = field.usual
  return config.lock()


def _described(own: schemes.Parameter) -> Field:
  """Returns the field of an option of a scheme; the help of one that is on by default says what happens without."""
  takers = [name for name, kind in schemes.SCHEMES.items() if own.name in kind.parameters]
  before = "false: " if own.default is True else ""
  usual = own.option.config if own.default is None else own.default
  return Field(usual, f"{before}{own.option.help} ({', '.join(takers)})")
