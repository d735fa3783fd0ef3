"""The default: scikit-learn's handwritten digits under permuted RMT with noise. No download.

python -m train

Two CPU cores, jax 0.10.2: 5 s of training; 97.8 % on disguised test images (seeds 0, 1, 2: 97.8, 98.3, 97.2).
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
