"""CIFAR-10 as it is: the plain twin of ``cifar10_rmt``, same model and budget. For a GPU; not run yet.

python -m djax prepare cifar10 && python -m train --config=cifar10_plain
"""

from ml_collections import ConfigDict

from configs import cifar10_rmt


def get_config() -> ConfigDict:
  """Returns ``cifar10_rmt`` without the disguise."""
  config = cifar10_rmt.get_config()
  config.disguise.scheme = "plain"
  return config
