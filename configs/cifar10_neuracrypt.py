"""CIFAR-10 under NeuraCrypt: patches of 4 pixels, 256 channels. For a GPU; not run yet.

python -m djax prepare cifar10 && python -m train --config=cifar10_neuracrypt
"""

from ml_collections import ConfigDict

from configs import mnist_neuracrypt


def get_config() -> ConfigDict:
  """Returns CIFAR-10, NeuraCrypt with 64 tokens of 256 channels: a vision transformer, one token a patch."""
  config = mnist_neuracrypt.get_config()
  config.data.source = "cifar10"
  config.disguise.patch = 4
  config.disguise.hidden = 256
  config.model.width = 256
  config.model.depth = 6
  config.model.dtype = "bfloat16"
  config.optimizer.warmup_epochs = 5.0
  config.train.epochs = 60
  return config
