"""Every field there is, with its meaning. The other configs change what differs; a run has exactly these fields."""

from ml_collections import ConfigDict

from djax import schemes


def get_config() -> ConfigDict:
  """Returns the fields of every run, at the values of the embedded digits; a name that is no field is refused."""
  config = ConfigDict()
  config.seed = 0  # initial parameters, order of the records, dropout and owned noise

  config.data = ConfigDict()
  config.data.source = "digits"  # or a prepared TFDS name, a folder of images (./dir), a .npz file
  config.data.data_dir = ""  # of TFDS sets; empty: TFDS_DATA_DIR, then ~/tensorflow_datasets
  config.data.image_size = 0  # folders: resize to this side; 0 refuses mixed sizes
  config.data.scale = 0  # the value of white, 1 or 255; 0: 255, and asked for where it looks like 1
  config.data.group_by = ""  # folders: a regular expression whose one group finds whom a file is of
  config.data.disguised_dir = ""  # of `djax disguise`; then no field above and no key is used
  config.data.memory_gb = 4.0  # a disguised set whose images take more is read from disk as needed
  config.data.train_split = "train"  # slices such as train[:1000] work for every source
  config.data.test_split = "test"
  # Not of the other two: the network of the epoch that does best on it is kept. Empty: that of the last epoch.
  config.data.val_split = ""

  config.disguise = ConfigDict()
  config.disguise.scheme = "plain"  # a name in djax.schemes.SCHEMES, which take different fields
  for name, own in schemes.options().items():  # documented where each scheme is: djax/schemes
    config.disguise[name] = own.option.config if own.default is None else own.default
  config.disguise.public_source = ""  # instahide: where these come from, as data.source
  config.disguise.experiment_seed = 0  # of the public key of an experiment, without --key
  # With --key: 32 hex digits, public; runs with the same id share matrices. Empty: one for this run.
  config.disguise.dataset_id = ""
  config.disguise.acknowledge = False  # true: no warning of what is known to break the disguise

  config.augment = ConfigDict()
  # Of instahide, views are encodings. Otherwise the first view is the original; the others are changed as follows.
  config.augment.views = 1  # of a training record, fixed
  config.augment.test_views = 1  # of a test record, over which log-probabilities are averaged
  config.augment.crop = 0  # shifted by up to so many pixels
  config.augment.flip = False  # mirrored left to right, half of them
  config.augment.rotate = 0.0  # by up to so many degrees
  config.augment.scale = 0.0  # each axis by up to exp(+-this)
  config.augment.shear = 0.0  # by up to so many pixels a row
  config.augment.mixup = 0.0  # after the disguise: Beta(this, this) mixes images of a batch; 0: off
  config.augment.cutout = 0.0  # after the disguise: the share of blocks that are blanked in a step

  config.model = ConfigDict()
  config.model.name = "cnn"  # a name in djax.models.MODELS, or auto: what the disguise asks for
  config.model.width = 16  # channels of the first layer, or of the hidden ones
  config.model.depth = 2  # hidden layers of mlp and unit_mlp, blocks of vit and mixer
  config.model.patch = 0  # side of a token of vit and mixer; 0: the disguise's block size
  config.model.stem = "none"  # or position, aligned, magnitude, see djax/models/stems.py
  config.model.stem_rank = 0  # position: of each position's own part; 0: a whole map of its own
  config.model.stem_mixing = False  # position: then a learned mixing of positions
  config.model.stem_frozen = False  # aligned: what was estimated is not trained further
  config.model.dropout = 0.0
  config.model.dtype = "float32"  # or bfloat16, for the layers; parameters and loss stay float32

  config.optimizer = ConfigDict()
  config.optimizer.name = "adamw"  # or sgd, with Nesterov momentum
  config.optimizer.learning_rate = 2e-3  # at its peak
  config.optimizer.schedule = "cosine"  # or constant, both after the warm-up
  config.optimizer.warmup_epochs = 1.0
  config.optimizer.weight_decay = 1e-4
  config.optimizer.no_decay = "(bias|scale|positions)$"  # whose paths match get no weight decay
  config.optimizer.momentum = 0.9  # sgd only
  config.optimizer.label_smoothing = 0.0
  config.optimizer.ema = 0.0  # greatest decay of the averaged parameters that are tested; 0: none

  config.train = ConfigDict()
  config.train.epochs = 15
  config.train.batch_size = 64
  config.train.checkpoint_every_steps = 500  # and at the end of every epoch
  return config.lock()
