"""MNIST under the paper's AES setting: 4x4 blocks, units of 16 pixels, one key, permuted. Two CPU cores do.

python -m djax prepare mnist && python -m train --config=mnist_aes

Not run yet.
"""

from ml_collections import ConfigDict

from configs import mnist_rmt


def get_config() -> ConfigDict:
  """Returns MNIST, AES 4x4, permuted, one key for all positions."""
  config = mnist_rmt.get_config()
  config.disguise.scheme = "aes"
  config.disguise.block_size = 4
  config.disguise.noise_level = 0.0
  return config
