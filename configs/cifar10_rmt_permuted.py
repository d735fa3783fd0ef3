"""CIFAR-10 under RMT with 4x4 blocks, permuted, without noise. For a GPU; not run yet.

python -m djax prepare cifar10 && python -m train --config=cifar10_rmt_permuted
"""

from ml_collections import ConfigDict

from configs import cifar10_rmt


def get_config() -> ConfigDict:
  """Returns ``cifar10_rmt`` with blocks of 4x4, permuted, N = 0."""
  config = cifar10_rmt.get_config()
  config.disguise.block_size = 4
  config.disguise.permute = True
  config.disguise.noise_level = 0.0
  return config
