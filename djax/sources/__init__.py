"""Where originals come from: embedded digits, ``.npz`` files, image folders, prepared TFDS sets.

Images are ``[N, H, W, C]`` on the 0..255 scale, labels int32 class numbers. Nothing here uses the
network, TensorFlow or JAX; a source that is missing or unfit is refused with one line naming it.
"""

from pathlib import Path
from typing import Any

from djax.errors import ConfigError
from djax.sources import digits, folder, npz, tfds
from djax.sources.base import AS_IS, Images, Reading, Records, Source

__all__ = ["AS_IS", "SOURCES", "Images", "Reading", "Records", "Source", "load", "open"]

# The first that matches is taken; a TFDS name can be any text, so that kind stands last. A new kind is one file with a
# ``Source``, and its place here.
SOURCES = (digits.SOURCE, npz.SOURCE, folder.SOURCE, tfds.SOURCE)


def load(source: str, split: str, **reading: Any) -> Images:
  """Loads one split of a source into host memory.

  The string alone decides the kind of source:

  - ``digits``: scikit-learn's 1797 handwritten digits, 8x8x1; every fifth is test.
  - ``*.npz``: arrays ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` and
    perhaps ``val_images``, ``val_labels`` and ``class_names``.
  - a path (starting with ``.``, ``/`` or ``~``, or an existing folder with a ``/`` in its name): a
    folder of PNG and JPEG files, one subfolder a class, or the same below ``train`` and ``test`` or
    ``val`` (``training``, ``testing``, ``valid``, ``validation``, ``dev`` and capitals are taken as
    well); without these every fifth file of each class is test. Classes are numbered in the order
    of their numbers where all names are numbers, else by code point. Records go round the classes:
    the first file of each, then the second, so that a slice of a split holds all of them.
  - otherwise a TFDS name: ``name``, ``name:1.2.3``, ``name/config`` or ``name/config:1.2.3``,
    already prepared on this disk, the highest version by default; records in the order of TFDS.

  Args:
    source: what to load, see above.
    split: ``train``, ``test``, ``val`` where there is one, or a part, ``train[:1000]``; with TFDS any of its split
      expressions.
    **reading: how, the fields of ``Reading``: ``data_dir``, ``image_size``, ``scale``, ``group_by``, ``split_seed``,
      ``background``.

  Returns:
    The records of the split, uint8, but float32 where an ``.npz`` holds floats.

  Raises:
    ConfigError: a name, split or image size that cannot work, or a split without records.
    DataError: a source that is missing or damaged, or images or labels that djax does not take.
  """
  with open(source, split, **reading) as records:
    loaded = records.read(0, len(records))
    records.check_scale(loaded.images[:: max(1, len(records) // 64)])
    return loaded


def open(source: str, split: str, **reading: Any) -> Records:
  """Opens one split of a source, to be read in parts that alone are held in memory.

  Reads what describes the images (of a folder: the header of every file, of both splits) and the
  labels of an ``.npz``, but no pixels. The scale of their values is looked at by ``Records.check``, which whoever
  reads in parts should call once.

  Args:
    source: as for ``load``.
    split: as for ``load``.
    **reading: as for ``load``.

  Returns:
    The records of the split; close them, or use them in a ``with`` statement.

  Raises:
    ConfigError: a name, split or image size that cannot work, or a split without records.
    DataError: a source that is missing, or images or labels that djax does not take.
  """
  how = Reading(**reading)
  kind = next(kind for kind in SOURCES if kind.matches(source))
  if not kind.is_folder:
    for name in ("image_size", "group_by", "split_seed", "background"):
      if value := getattr(how, name):
        # A name without a slash is one of TFDS, also where a folder of that name lies beside.
        meant = f", or name the folder as ./{source}" if Path(source).is_dir() else ""
        raise ConfigError(
          f"{name}={value} is for folders of images only: leave it out with {source!r}{meant}"
        )
  records = kind.open(source, split, how)
  records.scale = how.scale
  return records
