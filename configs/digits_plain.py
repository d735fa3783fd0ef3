"""scikit-learn's handwritten digits as they are: the plain twin of ``digits_rmt``.

python -m train --config=digits_plain

Two CPU cores, jax 0.10.2: 5 s of training; 98.1 % on test images (seeds 0, 1, 2: 97.2, 98.3, 98.1).
"""

from ml_collections import ConfigDict

from configs import digits_rmt


def get_config() -> ConfigDict:
  """Returns ``digits_rmt`` without the disguise."""
  config = digits_rmt.get_config()
  config.disguise.scheme = "plain"
  return config
