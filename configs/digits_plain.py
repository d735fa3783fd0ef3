"""scikit-learn's handwritten digits as they are: the plain twin of ``digits_rmt``.

python -m train --config=digits_plain
"""

from ml_collections import ConfigDict

from configs import digits_rmt


def get_config() -> ConfigDict:
  """Returns ``digits_rmt`` without the disguise."""
  config = digits_rmt.get_config()
  config.disguise.scheme = "plain"
  return config
