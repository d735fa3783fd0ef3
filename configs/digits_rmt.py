"""The default: scikit-learn's handwritten digits under permuted RMT with noise. No download.

python -m train
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns the embedded digits, 2x2 blocks, permuted, N = 25."""
  config = base.get_config()
  config.disguise.scheme = "rmt"
  config.disguise.noise_level = 25.0
  config.model.dropout = 0.3
  return config
