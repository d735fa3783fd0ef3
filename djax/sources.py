"""Where originals come from: embedded digits, ``.npz`` files, image folders, prepared TFDS sets.

Images are ``[N, H, W, C]`` on the 0..255 scale, labels int32 class numbers. Nothing here uses the
network, TensorFlow or JAX; a source that is missing or unfit is refused with one line naming it.
"""

import concurrent.futures
import dataclasses
import io
import json
import os
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from djax.errors import ConfigError, DataError, DjaxError, nearest

__all__ = ["Images", "load"]

_SUFFIXES = (".png", ".jpg", ".jpeg")
_SPLIT_NAMES = {"train", "test", "val", "valid", "validation", "dev"}
_NPZ_NAMES = ("train_images", "train_labels", "test_images", "test_labels")
_KNOWN = ("digits", "mnist", "fashion_mnist", "kmnist", "emnist", "cifar10", "cifar100", "stl10")
_TFDS_FORM = re.compile(r"([a-z]\w*)(?:/([A-Za-z0-9][\w.\-]*))?(?::(\d+\.\d+\.\d+))?", re.ASCII)
_MAX_CLASSES = 65536  # a label beyond this is a record number or a year, not a class
_CHUNK = 1000


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Images:
  """Labelled original images in host memory; ``repr`` shows shapes only.

  Attributes:
    images: ``[N, H, W, C]``, uint8 or float32, 0..255.
    labels: ``[N]``, int32 in ``[0, len(class_names))``.
    class_names: one name a class.
  """

  images: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]

  def __repr__(self) -> str:
    shape = list(self.images.shape)
    return f"Images({self.images.dtype}{shape}, {len(self.class_names)} classes)"


def load(source: str, split: str, *, data_dir: str = "", image_size: int = 0) -> Images:
  """Loads one split of a source into host memory.

  The string alone decides the kind of source:

  - ``digits``: scikit-learn's 1797 handwritten digits, 8x8x1; every fifth is test.
  - ``*.npz``: arrays ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` and
    perhaps ``class_names``.
  - a path (starting with ``.``, ``/`` or ``~``, or an existing folder with a ``/`` in its name): a
    folder of PNG and JPEG files, one subfolder a class, or the same below ``train`` and ``test``;
    without these two every fifth file of each class is test. Records go round the classes: the
    first file of each, then the second, so that a slice of a split holds all of them.
  - otherwise a TFDS name: ``name``, ``name:1.2.3``, ``name/config`` or ``name/config:1.2.3``,
    already prepared on this disk, the highest version by default; records in the order of TFDS.

  Args:
    source: what to load, see above.
    split: ``train``, ``test`` or a part, ``train[:1000]``; with TFDS any of its split expressions.
    data_dir: of prepared TFDS sets; else ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
    image_size: side in pixels to which images of a folder are resized, bilinear with antialiasing,
      without keeping the ratio of the sides; 0 leaves them as they are. For folders only.

  Returns:
    The records of the split: uint8, but float32 where an ``.npz`` holds floats.

  Raises:
    ConfigError: a name, split or image size that cannot work, or a split without records.
    DataError: a source that is missing or damaged, or images or labels that djax does not take.
  """
  if image_size < 0:
    raise ConfigError(f"image_size must be 0 (as is) or a side in pixels, got {image_size}")
  is_npz = source.endswith(".npz")
  is_path = source.startswith((".", "/", "~")) or ("/" in source and os.path.isdir(source))
  if image_size and (is_npz or not is_path):
    raise ConfigError(f"image_size={image_size} resizes image folders only: use 0 with {source!r}")
  if source == "digits":
    return _load_digits(split)
  if is_npz:
    return _load_npz(pathlib.Path(source).expanduser(), split)
  if is_path:
    return _load_folder(pathlib.Path(source).expanduser(), split, image_size)
  return _load_tfds(source, split, data_dir)


def _parse_split(split: str, counts: Mapping[str, int]) -> tuple[str, slice]:
  """Returns which of train and test ``split`` means, and which of its records; at least one."""
  match = re.fullmatch(r"(train|test)(?:\[(\d*):(\d*)\])?", split)
  if not match:
    forms = "train, test or e.g. train[:1000] (percentages with TFDS sources only)"
    raise ConfigError(f"split must be {forms}, got {split!r}")
  name, start, stop = match.groups()
  part = slice(int(start or 0), int(stop or counts[name]))
  if not part.start < part.stop <= counts[name]:
    raise ConfigError(f"split {split!r} must name records that exist: {name} has {counts[name]}")
  return name, part


def _check_shape(what: str, shape: tuple[int, ...]) -> None:
  """Refuses image shapes ``[H, W, C]`` without pixels or with an alpha channel."""
  if 0 in shape:
    raise DataError(f"{what}: images have no pixels, shape {shape}")
  if shape[2] in (2, 4):
    raise DataError(f"{what}: {shape[2]} channels, one is alpha: drop it with images[..., :-1]")


def _check_labels(what: str, labels: np.ndarray) -> None:
  if not len(labels):
    raise DataError(f"{what}: no images")
  if (bad := labels < 0).any():
    raise DataError(f"{what}: {bad.sum()} labels are negative, the first at index {bad.argmax()}")


def _check_classes(what: str, classes: int) -> None:
  if not 2 <= classes <= _MAX_CLASSES:
    raise DataError(f"{what}: needs 2 to {_MAX_CLASSES} classes, labelled from 0; has {classes}")


def _brief(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def _load_digits(split: str) -> Images:
  from sklearn import datasets

  digits = datasets.load_digits()
  every = np.arange(len(digits.target))
  indices = {"train": every[every % 5 != 4], "test": every[4::5]}
  name, part = _parse_split(split, {key: len(x) for key, x in indices.items()})
  chosen = indices[name][part]
  images = np.round(digits.images[chosen, :, :, None] * (255 / 16)).astype(np.uint8)
  return Images(images, digits.target[chosen].astype(np.int32), tuple("0123456789"))


def _load_npz(path: pathlib.Path, split: str) -> Images:
  if not path.is_file():
    raise DataError(f"{path}: no such file")
  try:
    with path.open("rb") as file, np.lib.npyio.NpzFile(file) as npz:
      return _read_npz(path, split, npz)
  except DjaxError:
    raise
  except Exception as error:  # zipfile, zlib and numpy each have their own
    raise DataError(f"{path}: not a whole NumPy .npz archive ({_brief(error)})") from None


def _read_npz(path: pathlib.Path, split: str, npz: Mapping[str, Any]) -> Images:
  for wanted in _NPZ_NAMES:
    if wanted not in npz:
      hint = nearest(wanted, set(npz).difference(_NPZ_NAMES))
      raise DataError(f"{path}: no array {wanted!r}, only {', '.join(npz) or 'nothing'}.{hint}")
  sides, labels = {}, {}
  for half in ("train", "test"):
    shape, dtype = _npy_header(npz, f"{half}_images")
    what = f"{path}: {half}_images"
    if dtype != np.uint8 and dtype.kind != "f":
      advice = "Scale it, e.g. full-range uint16 by (images // 257).astype('uint8')."
      raise DataError(f"{what}: must be uint8, or float from 0 to 255, got {dtype}. {advice}")
    if len(shape) not in (3, 4):
      raise DataError(f"{what}: must be [N, H, W] or [N, H, W, C], got {shape}")
    sides[half] = (*shape[1:], 1)[:3]
    _check_shape(what, sides[half])
    what = f"{path}: {half}_labels"
    form, dtype = _npy_header(npz, f"{half}_labels")
    if dtype.kind not in "iu" or form not in (shape[:1], (shape[0], 1)):
      raise DataError(f"{what}: must be integers [N], N={shape[0]} as images, got {dtype} {form}")
    labels[half] = npz[f"{half}_labels"].reshape(-1)
    _check_labels(what, labels[half])
  if sides["train"] != sides["test"]:
    raise DataError(f"{path}: train images are {sides['train']}, but test images {sides['test']}")
  classes = max(int(numbers.max()) + 1 for numbers in labels.values())
  _check_classes(str(path), classes)
  class_names = tuple(str(number) for number in range(classes))
  if "class_names" in npz:
    shape, dtype = _npy_header(npz, "class_names")
    if dtype.kind != "U" or len(shape) != 1 or shape[0] < classes:
      raise DataError(f"{path}: class_names must be {classes} or more strings, got {dtype} {shape}")
    class_names = tuple(npz["class_names"].tolist())
  name, part = _parse_split(split, {key: len(x) for key, x in labels.items()})
  images = npz[f"{name}_images"][part].reshape(-1, *sides[name])
  if images.dtype != np.uint8:
    _check_float(f"{path}: {name}_images", images, part.start)
    images = images.astype(np.float32)
  return Images(images, labels[name][part].astype(np.int32), class_names)


def _npy_header(npz: Any, name: str) -> tuple[tuple[int, ...], np.dtype]:
  """Returns shape and dtype of an array without reading it."""
  form = np.lib.format
  with npz.zip.open(f"{name}.npy") as file:
    is_first = form.read_magic(file) == (1, 0)
    read = form.read_array_header_1_0 if is_first else form.read_array_header_2_0
    return read(file)[::2]


def _check_float(what: str, images: np.ndarray, start: int) -> None:
  bad, fault = ~np.isfinite(images), "NaN or infinite"
  if not bad.any():
    bad, fault = (images < 0) | (images > 255), "outside 0..255"
  if bad.any():
    first = start + int(bad.reshape(len(images), -1).any(axis=1).argmax())
    raise DataError(f"{what}: {bad.sum()} values are {fault}, the first in image {first}")
  if 0 < images.max() <= 1:
    raise DataError(f"{what}: no value is above 1, but the scale is 0..255. Multiply by 255.")


def _load_folder(root: pathlib.Path, split: str, image_size: int) -> Images:
  from PIL import Image

  if not root.is_dir():
    raise DataError(f"{root}: no such folder of images")
  if (root / "train").is_dir() and (root / "test").is_dir():
    files = {part: _list_classes(root / part) for part in ("train", "test")}
    if differ := sorted(set(files["train"]) ^ set(files["test"])):
      raise DataError(f"{root}: train and test must have the same classes, not so {differ[0]!r}")
  else:
    every = _list_classes(root)
    test = {key: paths[4::5] for key, paths in every.items()}
    train = {key: [x for i, x in enumerate(paths) if i % 5 != 4] for key, paths in every.items()}
    files = {"train": train, "test": test}
  name, part = _parse_split(split, {x: sum(map(len, files[x].values())) for x in files})

  # The headers of both splits are read, so that train and test agree on channels and size.
  paths = [path for part in files.values() for listed in part.values() for path in listed]
  with warnings.catch_warnings():
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    headers = [_read_header(path) for path in paths]
  width, height = (image_size, image_size) if image_size else headers[0][1]
  sizes = {size: path for path, (_, size) in zip(paths, headers, strict=True)}
  if len(sizes) > 1 and not image_size:
    pair = ", but ".join(f"{path} is {x}x{y}" for (x, y), path in [*sizes.items()][:2])
    raise DataError(f"images must have one size: {pair}. Set --config.data.image_size=N")
  shape = (height, width, max(channels for channels, _ in headers))

  listed = enumerate(files[name].values())
  records = sorted((i, label, path) for label, paths in listed for i, path in enumerate(paths))[
    part
  ]
  images = np.empty((len(records), *shape), np.uint8)
  with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    decoded = pool.map(lambda record: _decode(record[2], shape, image_size > 0), records)
    for index, image in enumerate(decoded):
      images[index] = image
  return Images(images, np.array([label for _, label, _ in records], np.int32), tuple(files[name]))


def _list_classes(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """Returns class name -> sorted image files of a folder with one subfolder a class."""
  classes = {entry.name: _entries(entry) for entry in _entries(root) if entry.is_dir()}
  for entry in _entries(root):
    if entry.suffix.lower() in _SUFFIXES and entry.name not in classes:
      raise DataError(f"{entry}: an image must lie in the subfolder of its class below {root}")
  if len(classes) < 2 or _SPLIT_NAMES.issuperset(classes):
    wanted = "a subfolder for each of two or more classes (perhaps below train and test)"
    raise DataError(f"{root}: must hold {wanted}; found {', '.join(classes) or 'none'}")
  for name, paths in classes.items():
    if not paths:
      raise DataError(f"{root / name}: no images in this class")
    for path in paths:
      if path.suffix.lower() not in _SUFFIXES or not path.is_file():
        raise DataError(f"{path}: not a .png, .jpg or .jpeg file. Move it out of the class folder.")
  return classes


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
  try:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
  except OSError as error:
    raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def _read_header(path: pathlib.Path) -> tuple[int, tuple[int, int]]:
  """Returns channel count and upright (width, height), or refuses the kind of image."""
  from PIL import Image

  try:
    with Image.open(path, formats=("PNG", "JPEG")) as image:
      mode, size, info = image.mode, image.size, image.info
      is_deep = any(";16" in str(tile[3]) for tile in image.tile)
      is_turned = "exif" in info and image.getexif().get(0x0112) in (5, 6, 7, 8)
  except Exception as error:  # PIL's parsers raise many types on damaged files
    raise DataError(f"{path}: cannot be read as PNG or JPEG ({_brief(error)})") from None
  if mode in ("LA", "PA", "RGBA") or "transparency" in info:
    raise DataError(f"{path}: has an alpha channel or transparency. Save it without.")
  if is_deep:
    raise DataError(f"{path}: more than 8 bits a channel. Scale it to 0..255, save it as 8 bits.")
  if mode not in ("1", "L", "P", "RGB"):
    raise DataError(f"{path}: colour mode {mode} is not taken. Save it as RGB or grey.")
  return (1 if mode in ("1", "L") else 3), (size[::-1] if is_turned else size)


def _decode(path: pathlib.Path, shape: tuple[int, int, int], resize: bool) -> np.ndarray:
  """Returns one image, upright, uint8 ``[H, W, C]``."""
  from PIL import Image, ImageOps

  try:
    with Image.open(path) as file:
      image = ImageOps.exif_transpose(file).convert("L" if shape[2] == 1 else "RGB")
    if resize:
      image = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    if image.size != (shape[1], shape[0]):
      raise ValueError(f"its header and pixels differ in size, {shape} and {image.size}")
    return np.asarray(image).reshape(shape)
  except Exception as error:
    raise DataError(f"{path}: damaged image ({_brief(error)})") from None


def _load_tfds(source: str, split: str, data_dir: str) -> Images:
  path, what = _find_tfds(source, data_dir)
  import tensorflow_datasets as tfds
  from PIL import Image

  try:
    builder = tfds.builder_from_directory(path)
    features, keys = builder.info.features, builder.info.supervised_keys
    image_key, label_key = keys if keys and len(keys) == 2 else ("image", "label")
    image, label = features[image_key], features[label_key]
    shape, dtype = image.shape, np.dtype(image.np_dtype)
  except Exception as error:
    raise DataError(f"{what}: no whole set of images and labels ({_brief(error)})") from None
  if dtype != np.uint8 or len(shape) != 3 or None in shape:
    wanted = "images must be uint8 of one fixed shape [H, W, C]"
    raise DataError(f"{what}: {wanted}, got {dtype} {shape}. A folder of images can be resized.")
  _check_shape(what, shape)
  if not isinstance(label, tfds.features.ClassLabel) or label.num_classes is None:
    raise DataError(f"{what}: {label_key!r} must be a class label, got {type(label).__name__}")
  _check_classes(what, label.num_classes)

  # Image files are decoded here: faster than by TFDS, and the same with or without OpenCV.
  is_encoded = isinstance(image, tfds.features.Image)
  decoders = {image_key: tfds.decode.SkipDecoding()} if is_encoded else None
  try:
    records = builder.as_data_source(split=split, decoders=decoders)
  except ValueError as error:
    raise ConfigError(f"split {split!r} of {what}: {_brief(error)}") from None
  images = np.empty((len(records), *shape), np.uint8)
  labels = np.empty(len(records), np.int32)
  mode = "L" if shape[2] == 1 else "RGB"
  try:
    for start in range(0, len(records), _CHUNK):
      chunk = range(start, min(start + _CHUNK, len(records)))
      for index, record in zip(chunk, records.__getitems__(chunk), strict=True):
        pixels = record[image_key]
        if is_encoded:
          with Image.open(io.BytesIO(pixels)) as file:
            pixels = np.asarray(file if file.mode == mode else file.convert(mode))
        images[index] = pixels.reshape(shape)
        labels[index] = record[label_key]
  except Exception as error:  # array_record, protobuf and PIL each have their own
    where = f"{what}: {split!r} is damaged in or after record {start}"
    raise DataError(f"{where} ({_brief(error)}). Prepare it again.") from None
  _check_labels(f"{what}, {split!r}", labels)
  return Images(images, labels, tuple(label.names))


def _find_tfds(source: str, data_dir: str) -> tuple[str, str]:
  """Returns the folder of a prepared set and what to call it, by looking at the disk only."""
  match = _TFDS_FORM.fullmatch(source)
  if not match:
    forms = "digits, x.npz, ./folder, or TFDS name, name:1.2.3, name/config, name/config:1.2.3"
    raise ConfigError(f"source must be {forms}; got {source!r}.{nearest(source.lower(), _KNOWN)}")
  name, config, version = match.groups()
  data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  root = pathlib.Path(data_dir).expanduser()
  folder = root / name / (config or "")
  found = [x.parent for x in folder.glob("*/dataset_info.json")]
  found = [x for x in found if re.fullmatch(r"\d+\.\d+\.\d+", x.name)]
  found.sort(key=lambda path: [int(number) for number in path.name.split(".")])
  chosen = [x for x in found if version in (None, x.name)]
  if not chosen:
    configs = {f"{name}/{x.parts[-3]}" for x in folder.glob("*/*/dataset_info.json")}
    hint = "" if name in _KNOWN else nearest(name, _KNOWN)
    if there := [x.name for x in found] or sorted(configs):
      hint = f" There: {', '.join(there)}."
    elif os.path.isdir(source):
      hint = f" For the folder of images write ./{source}."
    where = f"{root} (TFDS_DATA_DIR or --config.data.data_dir says where)"
    advice = f"Prepare it with: python -m djax prepare {source} --data-dir {root}"
    raise DataError(f"data set {source!r} is not prepared in {where}.{hint} {advice}")
  path = chosen[-1]
  what = f"data set {source!r} in {path}"
  try:
    stored_as = json.loads((path / "dataset_info.json").read_text("utf-8")).get("fileFormat")
  except (OSError, ValueError, AttributeError) as error:
    raise DataError(f"{what}: dataset_info.json is damaged ({_brief(error)})") from None
  if stored_as != "array_record":
    advice = f"array_record. Move it away, then: python -m djax prepare {source} --data-dir {root}"
    raise DataError(f"{what} is stored as {stored_as or 'tfrecord'}, not {advice}")
  return str(path), what
