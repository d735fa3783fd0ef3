"""MNIST under AES-128-ECB: 4x4 blocks, permuted, 16-pixel units, one key.

python -m djax prepare mnist && python -m train --config=mnist_aes

Two CPU cores, jax 0.10.2: 129-182 s of training beside other work; 92.52, 92.41 and 92.55 % on disguised test images
over 25 views of each, 86.05, 86.08 and 86.21 % on one (seeds 0, 1, 2, each with its key).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Returns MNIST, AES, 16-pixel units: each image in every shift of up to two pixels, queries too.

  A shift makes other units of the same strokes: some of them are in the vocabulary.
  """
  config = base.get_config()
  config.data.source = "mnist"
  config.disguise.scheme = "aes"
  config.disguise.block_size = 4
  config.augment.views = 25
  config.augment.test_views = 25
  config.augment.crop = 2
  config.model.name = "unit_mlp"
  config.model.width = 1024
  config.model.depth = 1
  config.model.dropout = 0.3
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_epochs = 0.5
  config.optimizer.weight_decay = 1e-2
  config.optimizer.label_smoothing = 0.1
  config.optimizer.ema = 0.999
  config.train.epochs = 16
  config.train.batch_size = 256
  return config
