"""The embedded digits as a small disguised data set."""

from djax import keys
from djax.owner import export
from djax.owner.plan import Request

MASTER = keys.experiment(3)
RMT = {"scheme": "rmt", "block_size": 2, "noise_level": 25.0}
SPLITS = {"train": "train[:128]", "test": "test[:50]"}


def write(folder, master=MASTER, disguise=RMT, splits=SPLITS, **options):
  request = Request("digits", disguise, splits, originals_per_shard=40, **options)
  return export.disguise(request, folder, master)
