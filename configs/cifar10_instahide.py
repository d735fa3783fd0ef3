"""CIFAR-10 under InstaHide, k = 4, mixed inside the set. For a GPU; not run yet.

python -m djax prepare cifar10 && python -m train --config=cifar10_instahide
"""

from ml_collections import ConfigDict

from configs import cifar10_rmt


def get_config() -> ConfigDict:
  """Returns CIFAR-10, InstaHide k = 4: ResNet-18 on magnitudes, a fresh encoding of each image an epoch."""
  config = cifar10_rmt.get_config()
  config.disguise.scheme = "instahide"
  config.disguise.noise_level = 0.0
  config.augment.crop = 0
  config.augment.flip = False
  config.augment.views = 100
  config.augment.test_views = 20
  config.model.stem = "magnitude"
  config.optimizer.learning_rate = 0.1
  config.optimizer.label_smoothing = 0.0
  config.train.epochs = 100
  return config
