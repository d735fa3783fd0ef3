"""CIFAR-10 on two CPU cores: airbench, 8 epochs, RMT 2x2, not permuted, N = 25: about an hour.

python -m djax prepare cifar10 && python -m train --config=cifar10_airbench
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns CIFAR-10, RMT 2x2 without permutation, N = 25, airbench on 8 fixed views of each image."""
  config = base.get_config()
  config.data.source = "cifar10"
  config.disguise.scheme = "rmt"
  config.disguise.permute = False
  config.disguise.noise_level = 25.0
  config.augment.views = 8
  config.augment.crop = 2
  config.augment.flip = True
  config.model.name = "airbench"
  config.model.width = 64
  config.optimizer.name = "muon"
  config.optimizer.learning_rate = 0.24
  config.optimizer.warmup_epochs = 0.2
  config.optimizer.weight_decay = 0.1
  config.optimizer.momentum = 0.6
  config.optimizer.label_smoothing = 0.1
  config.train.epochs = 8
  config.train.batch_size = 500
  config.train.checkpoint_every_steps = 50
  return config
