"""A data set that was disguised elsewhere, without its key: the recipe of ``mnist_rmt``. For any machine.

The network is the one that the disguise asks for; ``--config.model.name`` chooses another.

Views are made before the disguise, so by its owner: python -m djax disguise --views 8 --crop 2

On the owner's machine: python -m djax disguise, see its --help. On the rented one:
python -m train --config=outsourced --config.data.disguised_dir=DIR
"""

from ml_collections import ConfigDict

from configs import base, mnist_rmt


def get_config() -> ConfigDict:
  """Returns ``mnist_rmt`` on a disguised directory; its manifest says what the disguise is."""
  config = mnist_rmt.get_config()
  config.data.disguised_dir = "./disguised"
  config.disguise = base.get_config().disguise
  config.model.name = "auto"
  config.augment = base.get_config().augment
  return config
