"""CIFAR-10 under the paper's gentlest RMT setting: 2x2 blocks, not permuted, N = 25. For a GPU; not run yet.

python -m djax prepare cifar10 && python -m train --config=cifar10_rmt

A ResNet-18 epoch takes hours on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns CIFAR-10, RMT 2x2 without permutation, N = 25, ResNet-18 on 32 fixed views of each image."""
  config = base.get_config()
  config.data.source = "cifar10"
  config.disguise.scheme = "rmt"
  config.disguise.permute = False
  config.disguise.noise_level = 25.0
  config.augment.views = 32
  config.augment.crop = 4
  config.augment.flip = True
  config.model.name = "resnet18"
  config.model.width = 64
  config.model.dtype = "bfloat16"
  config.optimizer.name = "sgd"
  config.optimizer.learning_rate = 0.2
  config.optimizer.warmup_epochs = 4.0
  config.optimizer.weight_decay = 5e-4
  config.optimizer.label_smoothing = 0.1
  config.train.epochs = 40
  config.train.batch_size = 512
  return config
