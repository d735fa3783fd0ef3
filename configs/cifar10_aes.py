"""CIFAR-10 under AES: 4x4 blocks, units of 16 pixels, one key, permuted. For a GPU; not run yet.

python -m djax prepare cifar10 && python -m train --config=cifar10_aes
"""

from ml_collections import ConfigDict

from configs import cifar10_rmt


def get_config() -> ConfigDict:
  """Returns CIFAR-10, AES 4x4, permuted, one key for all positions, ResNet-18 on 8 fixed views of each image."""
  config = cifar10_rmt.get_config()
  config.disguise.scheme = "aes"
  config.disguise.block_size = 4
  config.disguise.permute = True
  config.disguise.noise_level = 0.0
  config.augment.views = 8  # disguised on the host, all at once
  return config
