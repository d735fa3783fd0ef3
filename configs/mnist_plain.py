"""MNIST as it is: the plain twin of ``mnist_rmt``, same model and budget.

python -m djax prepare mnist && python -m train --config=mnist_plain

``docs/results.md`` has what was measured.
"""

from ml_collections import ConfigDict

from configs import mnist_rmt


def get_config() -> ConfigDict:
  """Returns ``mnist_rmt`` without the disguise."""
  config = mnist_rmt.get_config()
  config.disguise.scheme = "plain"
  return config
