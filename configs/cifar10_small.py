"""10 000 images of CIFAR-10 and a small network: what stems do, on two CPU cores. 4x4 blocks, N = 25, not permuted.

python -m djax prepare cifar10 && python -m train --config=cifar10_small

Two CPU cores, jax 0.10.2: 238 s of training beside other work; 53.93 % (seed 0). ``docs/results.md`` has the stems.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns 10 000 images of CIFAR-10, RMT 4x4 without permutation, N = 25, a small convolutional network."""
  config = base.get_config()
  config.data.source = "cifar10"
  config.data.train_split = "train[:10000]"
  config.disguise.scheme = "rmt"
  config.disguise.block_size = 4
  config.disguise.permute = False
  config.disguise.noise_level = 25.0
  config.model.width = 32
  config.model.dropout = 0.3
  config.optimizer.weight_decay = 1e-2
  config.train.epochs = 12
  config.train.batch_size = 128
  return config
