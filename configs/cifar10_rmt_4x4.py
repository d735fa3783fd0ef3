"""CIFAR-10 under RMT with 4x4 blocks, not permuted, N = 25. For a GPU; not run yet.

python -m djax prepare cifar10 && python -m train --config=cifar10_rmt_4x4
"""

from ml_collections import ConfigDict

from configs import cifar10_rmt


def get_config() -> ConfigDict:
  """Returns ``cifar10_rmt`` with blocks of 4x4."""
  config = cifar10_rmt.get_config()
  config.disguise.block_size = 4
  return config
