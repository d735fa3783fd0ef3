"""Public data sets as TFDS-readable ``array_record`` directories: ``python -m djax prepare``.

MNIST, Fashion-MNIST, KMNIST, CIFAR-10 and CIFAR-100 are written from their original files, without
TensorFlow: each file is compared with a pinned SHA-256 before a byte of it is parsed. Other names
go through TFDS and the TensorFlow it needs.
"""

import contextlib
import gzip
import hashlib
import http.client
import importlib.util
import io
import json
import math
import os
import pathlib
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from rich.progress import TaskProgressColumn

from djax.errors import ConfigError, DataError, UnsafeError, nearest
from djax.io import progress

__all__ = ["prepare"]

_Splits = dict[str, tuple[Any, dict[str, Any]]]  # images uint8 [N, H, W, C]; key to labels [N]
_TIMEOUT = 20.0  # seconds without a byte, connecting or reading


class _DataSet(NamedTuple):
  """Public facts of a data set, and where its originals are."""

  mirrors: tuple[str, ...]  # in the order tried
  version: str = "3.0.1"  # as in TFDS
  names: str = ""  # IDX: of the classes, if they have any
  folder: str = ""  # CIFAR: inside the archive, before the members
  splits: Mapping[str, tuple[str, ...]] = {}  # CIFAR: the members with the records
  labels: Mapping[str, str] = {}  # CIFAR: key to the member with the names of its classes


def _pins(files: Sequence[str], *pins: tuple[int, str]) -> dict[str, tuple[int, str]]:
  return dict(zip(files, pins, strict=True))


_IDX = [f"{part}-ubyte.gz" for part in ("train-images-idx3", "train-labels-idx1")]
_IDX += [file.replace("train", "t10k") for file in _IDX]
# Sizes and SHA-256: url_checksums/<name>.txt of tensorflow-datasets 4.9.10; a test compares them.
_ORIGINALS = {
  "mnist": _pins(
    _IDX,
    (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
  ),
  "fashion_mnist": _pins(
    _IDX,
    (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
  ),
  "kmnist": _pins(
    _IDX,
    (18165135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
    (29497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
    (3041136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
    (5120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
  ),
  "cifar10": _pins(
    ["cifar-10-binary.tar.gz"],
    (170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
  ),
  "cifar100": _pins(
    ["cifar-100-binary.tar.gz"],
    (168513733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
  ),
}
_SETS = {
  "mnist": _DataSet(
    (
      "https://storage.googleapis.com/cvdf-datasets/mnist/",
      "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
  ),
  "fashion_mnist": _DataSet(
    (
      "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
      "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    names="T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot",
  ),
  "kmnist": _DataSet(
    ("https://codh.rois.ac.jp/kmnist/dataset/kmnist/",), names="o,ki,su,tsu,na,ha,ma,ya,re,wo"
  ),
  "cifar10": _DataSet(
    ("https://www.cs.toronto.edu/~kriz/",),
    "3.0.2",
    folder="cifar-10-batches-bin/",
    splits={"train": tuple(f"data_batch_{n}.bin" for n in "12345"), "test": ("test_batch.bin",)},
    labels={"label": "batches.meta.txt"},
  ),
  "cifar100": _DataSet(
    ("https://www.cs.toronto.edu/~kriz/",),
    "3.0.2",
    folder="cifar-100-binary/",
    splits={"train": ("train.bin",), "test": ("test.bin",)},
    labels={"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
  ),
}


def prepare(name: str, *, data_dir: str = "", from_dir: str = "") -> pathlib.Path:
  """Writes a data set as ``<data_dir>/<name>/<version>``, readable by TFDS; never overwrites one.

  ``mnist``, ``fashion_mnist``, ``kmnist``, ``cifar10`` and ``cifar100`` need no TensorFlow; they
  keep the order of the original files and get their final name once whole. TFDS prepares the rest.

  Args:
    name: as in the TFDS catalogue.
    data_dir: where prepared data sets live; else ``TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
    from_dir: directory that holds the original files; with it, nothing is downloaded.

  Returns:
    The version directory, for ``tfds.builder_from_directory``.

  Raises:
    ConfigError: unknown name, or one that needs TensorFlow and finds none.
    DataError: originals missing, unreachable, damaged or not as pinned; a full or closed disk.
    UnsafeError: the version directory holds something else already.
  """
  root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
  root = root.expanduser().absolute()
  if name not in _SETS:
    return _prepare_with_tfds(name, root, from_dir)
  final = root / name / _SETS[name].version
  try:
    if _is_prepared(final):
      _say(f"already prepared, left as it is: {final}")
      return final
    files = _originals(name, from_dir) if from_dir else {}
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".djax-prepare-", dir=root) as scratch:
      files = files or _originals(name, "")
      contents = (_read_cifar if _SETS[name].labels else _read_idx)(name, files)
      whole = pathlib.Path(scratch) / "whole"
      _write(name, whole, *contents)
      final.parent.mkdir(exist_ok=True)
      whole.rename(final)
  except OSError as error:
    raise DataError(f"prepare: could not prepare {final}: {error}") from error
  return final


def _is_prepared(final: pathlib.Path) -> bool:
  """Whether ``final`` holds a prepared set in array_record form; refuses anything else."""
  if not final.exists():
    return False
  info = final / "dataset_info.json"
  if not info.is_file() or '"array_record"' not in info.read_text(encoding="utf-8"):
    raise UnsafeError(f"prepare: {final} is no array_record data set: move it or set --data-dir.")
  return True


def _say(line: str) -> None:
  print(f"prepare: {line}", file=sys.stderr)


@contextlib.contextmanager
def _progress(label: str, total: int) -> Iterator[Callable[[int], Any]]:
  """Yields a function that advances a bar on a terminal; elsewhere prints one line."""
  with progress.bar(label, TaskProgressColumn(), transient=False, total=total) as update:
    if update is None:
      _say(label)
    yield lambda amount: update and update(advance=amount)


def _prepare_with_tfds(name: str, root: pathlib.Path, from_dir: str) -> pathlib.Path:
  """Lets TFDS prepare a set that it knows and djax does not."""
  base, free = name.replace(":", "/").split("/")[0], ", ".join(_SETS)
  known = {*_SETS, *tfds.list_builders(with_community_datasets=False)}
  if base not in known:
    hint = nearest(base.lower().replace("-", "_"), known)
    raise ConfigError(f"prepare: unknown data set {name!r}, not in the TFDS catalogue.{hint}")
  if from_dir:
    raise ConfigError(f"prepare: --from-dir works for {free}; TFDS itself prepares {name}.")
  if importlib.util.find_spec("tensorflow") is None:
    raise ConfigError(
      f"prepare: {name} needs TensorFlow, which is not installed: pip install 'djax[prepare]'. "
      f"These need none: {free}."
    )
  try:
    builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
    if builder.is_prepared():
      _say(f"already prepared, left as it is: {builder.data_dir}")
    else:
      builder.download_and_prepare()
  except Exception as error:  # TFDS and its many builders raise whatever they like
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    raise DataError(f"prepare: TFDS could not prepare {name}: {line}") from error
  return pathlib.Path(builder.data_dir)


def _originals(name: str, from_dir: str) -> dict[str, bytes]:
  """Returns the original files by name, each with the pinned SHA-256."""
  pins, mirrors = _ORIGINALS[name], _SETS[name].mirrors
  expected = "Expected: " + ", ".join(f"{file} ({mirrors[0]}{file})" for file in pins)
  folder = pathlib.Path(from_dir)
  missing = ", ".join(file for file in pins if not (folder / file).is_file())
  if from_dir and missing:
    raise DataError(f"prepare: {folder} must hold the originals, missing {missing}. {expected}.")
  files = {}
  for file, (size, sha256) in pins.items():
    data = (folder / file).read_bytes() if from_dir else _fetch(file, size, mirrors, expected)
    got = hashlib.sha256(data).hexdigest()
    if got != sha256:
      raise DataError(
        f"prepare: {file} from {from_dir or 'the network'} is not the original of {name}: expected "
        f"SHA-256 {sha256} ({size} bytes), got {got} ({len(data)} bytes). Nothing was written."
      )
    files[file] = data
  return files


def _fetch(file: str, size: int, mirrors: Sequence[str], expected: str) -> bytes:
  """Returns the file from the first mirror that delivers; says which ones did not."""
  failures = []
  for mirror in mirrors:
    try:
      return _download(mirror + file, size)
    except ConnectionError as error:
      failures.append(f"{mirror}{file} ({error})")
      _say(f"could not reach {failures[-1]}")
  raise DataError(
    f"prepare: could not reach {', '.join(failures)}. To go on without a network, get the original "
    f"files another way and give their folder with --from-dir DIR. {expected}."
  )


def _download(url: str, size: int) -> bytes:
  """Returns what the server sends, cut off soon after ``size`` bytes."""
  data = bytearray()
  try:
    with (
      _progress(f"downloading {url} ({size / 1e6:.1f} MB)", size) as advance,
      urllib.request.urlopen(url, timeout=_TIMEOUT) as response,
    ):
      while len(data) <= size and (chunk := response.read(1 << 16)):
        data += chunk
        advance(len(chunk))
      if len(data) <= size and response.length:
        raise ConnectionError(f"broke off after {len(data)} of {size} bytes")
  except (OSError, http.client.HTTPException) as error:
    if isinstance(error, urllib.error.HTTPError):
      error.close()
    late = isinstance(getattr(error, "reason", error), TimeoutError)
    raise ConnectionError(f"no answer for {_TIMEOUT:g} s" if late else str(error)) from error
  return bytes(data)


def _read_idx(name: str, files: dict[str, bytes]) -> tuple[_Splits, dict[str, Any]]:
  """Reads the four IDX files of an MNIST-like set."""
  arrays = [_idx(file, files[file], ndim) for file, ndim in zip(_IDX, (3, 1, 3, 1), strict=True)]
  splits = {
    "train": (arrays[0][..., None], {"label": arrays[1]}),
    "test": (arrays[2][..., None], {"label": arrays[3]}),
  }
  return splits, {"label": _SETS[name].names.split(",") if _SETS[name].names else 10}


def _idx(file: str, data: bytes, ndim: int) -> Any:
  """Returns the uint8 array in a gzipped IDX file."""
  try:
    data = gzip.decompress(data)
  except (OSError, EOFError, zlib.error) as error:
    raise DataError(f"prepare: {file} is not a whole gzip file: {error}") from error
  magic = bytes([0, 0, 8, ndim])  # unsigned bytes, ndim axes
  if data[:4] != magic:
    raise DataError(f"prepare: {file} must start with {magic.hex()}, got {data[:4].hex()}.")
  head = 4 + 4 * ndim
  shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, head, 4)]
  if len(data) - head != math.prod(shape):
    raise DataError(f"prepare: {file} must hold {shape} bytes, got {len(data) - head}.")
  return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _read_cifar(name: str, files: dict[str, bytes]) -> tuple[_Splits, dict[str, Any]]:
  """Reads a CIFAR binary archive in memory, its members by exact name."""
  data_set = _SETS[name]
  ((file, archive),) = files.items()
  members = [*sum(data_set.splits.values(), ()), *data_set.labels.values()]
  data = {}
  try:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
      for member in members:
        stream = tar.extractfile(data_set.folder + member)
        data[member] = stream.read() if stream else b""
  except (KeyError, OSError, EOFError, zlib.error, tarfile.TarError) as error:
    raise DataError(f"prepare: {file} is not a whole CIFAR tar.gz file: {error}") from error
  splits: _Splits = {}
  first = len(data_set.labels)  # a record: a byte for each label, then the pixels
  for split, batches in data_set.splits.items():
    records = b"".join(data[batch] for batch in batches)
    if len(records) % (first + 3072):
      raise DataError(f"prepare: {file} {split} must hold whole records, got {len(records)} bytes.")
    rows = np.frombuffer(records, np.uint8).reshape(-1, first + 3072)
    images = rows[:, first:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    splits[split] = (images, {key: rows[:, column] for column, key in enumerate(data_set.labels)})
  names = {key: data[member].decode("latin-1").split() for key, member in data_set.labels.items()}
  return splits, names


def _write(name: str, folder: pathlib.Path, splits: _Splits, classes: dict[str, Any]) -> None:
  """Writes features, one shard a split, and the description that TFDS reads."""
  data_set = _SETS[name]
  specs: dict[str, Any] = {"id": tfds.features.Text()} if data_set.labels else {}
  specs["image"] = tfds.features.Image(shape=splits["train"][0].shape[1:])
  for key, known in classes.items():
    option = "num_classes" if isinstance(known, int) else "names"
    specs[key] = tfds.features.ClassLabel(**{option: known})
  features = tfds.features.FeaturesDict(specs)
  folder.mkdir()
  features.save_config(str(folder))
  serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
  infos = []
  for split, (images, labels) in splits.items():
    for key, values in labels.items():
      count = specs[key].num_classes
      if len(values) != len(images):
        raise DataError(f"prepare: {name} {split} has {len(images)} images, {len(values)} {key}s.")
      if values.max(initial=0) >= count:
        raise DataError(f"prepare: {name}: {key} must be below {count}, got {values.max()}.")
    columns = dict(labels)
    if "id" in specs:
      columns["id"] = [f"{split}_{index:05d}" for index in range(len(images))]
    path = folder / f"{name}-{split}.array_record-00000-of-00001"
    infos.append(
      {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": split,
        "numBytes": str(_write_shard(path, serializer, images, columns)),
        "shardLengths": [str(len(images))],
      }
    )
  module = "tensorflow_datasets.image_classification." + ("cifar" if data_set.labels else "mnist")
  info = {
    "description": f"{name}, in the order of the original files; written by djax prepare.",
    "downloadSize": str(sum(size for size, _ in _ORIGINALS[name].values())),
    "fileFormat": "array_record",
    "location": {"urls": [data_set.mirrors[0]]},
    "moduleName": module,
    "name": name,
    "splits": infos,
    "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
    "version": data_set.version,
  }
  (folder / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="utf-8")


def _write_shard(path: pathlib.Path, serializer: Any, images: Any, columns: dict[str, Any]) -> int:
  """Writes one array_record file and returns the bytes of its records."""
  total = 0
  try:
    with (
      _progress(f"writing {path.name} ({len(images)} images)", len(images)) as advance,
      contextlib.closing(ArrayRecordWriter(str(path), "group_size:1")) as writer,
    ):
      for index, image in enumerate(images):
        png = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(png, "PNG")
        example = {key: values[index] for key, values in columns.items()}
        record = serializer.serialize_example({**example, "image": png.getvalue()})
        writer.write(record)
        total += len(record)
        advance(1)
  except RuntimeError as error:  # how the writer says that the disk is full
    raise OSError(str(error).partition(";")[0]) from error
  return total
