"""MNIST under the paper's RMT setting: 7x7 blocks, permuted, N = 100.

python -m djax prepare mnist && python -m train --config=mnist_rmt

Two CPU cores, jax 0.10.2: 330-750 s of training beside other work; 99.16, 99.09 and 99.20 % on disguised test images
(seeds 0, 1, 2, each with its key). ``docs/results.md`` has the plain twin.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns MNIST, RMT 7x7, permuted, N = 100: a dense network on eight fixed views of each image."""
  config = base.get_config()
  config.data.source = "mnist"
  config.disguise.scheme = "rmt"
  config.disguise.block_size = 7
  config.disguise.noise_level = 100.0
  config.augment.views = 8
  config.augment.crop = 2
  config.augment.rotate = 10.0
  config.augment.scale = 0.1
  config.augment.shear = 0.1
  config.model.name = "mlp"
  config.model.width = 1024
  config.model.dropout = 0.2
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_epochs = 0.5
  config.optimizer.weight_decay = 1e-2
  config.optimizer.label_smoothing = 0.1
  config.optimizer.ema = 0.999
  config.train.epochs = 30
  config.train.batch_size = 256
  return config
