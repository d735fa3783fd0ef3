"""Where originals come from: embedded digits, ``.npz`` files, image folders, prepared TFDS sets.

Images are ``[N, H, W, C]`` on the 0..255 scale, labels int32 class numbers. Nothing here uses the
network, TensorFlow or JAX; a source that is missing or unfit is refused with one line naming it.
"""

from djax.errors import ConfigError
from djax.sources import digits, folder, npz, tfds
from djax.sources.base import Images, Records, Source

__all__ = ["SOURCES", "Images", "Records", "Source", "load", "open"]

# The first that matches is taken; a TFDS name can be any text, so that kind stands last. A new kind is one file with a
# ``Source``, and its place here.
SOURCES = (digits.SOURCE, npz.SOURCE, folder.SOURCE, tfds.SOURCE)


def load(
  source: str,
  split: str,
  *,
  data_dir: str = "",
  image_size: int = 0,
  scale: int = 0,
  group_by: str = "",
) -> Images:
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
    data_dir: of prepared TFDS sets; else ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
    image_size: side in pixels to which images of a folder are resized, bilinear with antialiasing,
      without keeping the ratio of the sides; 0 leaves them as they are. For folders only.
    scale: the value of white, 1 or 255; 0: 255, and images whose values are nearly all at most 1 are refused.
    group_by: for folders, a regular expression with one group, which finds in a file's path below the folder whom an
      image is of: nobody is in two splits then. Where djax makes the split, every fifth of them is test.

  Returns:
    The records of the split, uint8, but float32 where an ``.npz`` holds floats.

  Raises:
    ConfigError: a name, split or image size that cannot work, or a split without records.
    DataError: a source that is missing or damaged, or images or labels that djax does not take.
  """
  with open(
    source, split, data_dir=data_dir, image_size=image_size, scale=scale, group_by=group_by
  ) as records:
    loaded = records.read(0, len(records))
    records.check_scale(loaded.images[:: max(1, len(records) // 64)])
    return loaded


def open(
  source: str,
  split: str,
  *,
  data_dir: str = "",
  image_size: int = 0,
  scale: int = 0,
  group_by: str = "",
) -> Records:
  """Opens one split of a source, to be read in parts that alone are held in memory.

  Reads what describes the images (of a folder: the header of every file, of both splits) and the
  labels of an ``.npz``, but no pixels. The scale of their values is looked at by ``Records.check``, which whoever
  reads in parts should call once.

  Args:
    source: as for ``load``.
    split: as for ``load``.
    data_dir: as for ``load``.
    image_size: as for ``load``.
    scale: as for ``load``.
    group_by: as for ``load``.

  Returns:
    The records of the split; close them, or use them in a ``with`` statement.

  Raises:
    ConfigError: a name, split or image size that cannot work, or a split without records.
    DataError: a source that is missing, or images or labels that djax does not take.
  """
  if image_size < 0:
    raise ConfigError(f"image_size must be 0 (as is) or a side in pixels, got {image_size}")
  if scale not in (0, 1, 255):
    raise ConfigError(f"scale must be 1 or 255, the value of white, got {scale}")
  kind = next(kind for kind in SOURCES if kind.matches(source))
  if image_size and not kind.resizes:
    raise ConfigError(f"image_size={image_size} resizes image folders only: use 0 with {source!r}")
  if group_by and not kind.groups:
    raise ConfigError(f"group_by is for folders of images only: leave it out with {source!r}")
  grouped = {"group_by": group_by} if group_by else {}
  records = kind.open(source, split, data_dir, image_size, **grouped)
  records.scale = scale
  return records
