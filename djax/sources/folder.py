"""Folders of image files, one subfolder a class."""

import concurrent.futures
import json
import math
import os
import pathlib
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from djax.errors import ConfigError, DataError
from djax.sources import groups, image_files
from djax.sources.base import Images, Reading, Records, Source, parse_split, refusal
from djax.sources.image_files import Colour, Header

__all__ = ["ORDER_FILE", "FolderRecords", "pictures"]

_SUFFIXES = (".png", ".jpg", ".jpeg")
_SPLIT_OF = {
  **dict.fromkeys(("train", "training"), "train"),
  **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
  **dict.fromkeys(("test", "testing"), "test"),
}
# What file managers leave behind, and notes: nobody means them as pictures.
_NO_PICTURES = ("thumbs.db", "desktop.ini")
_NOTES = (".txt", ".md", ".csv", ".json", ".xml", ".html")
_SHOWN = 3

# Where restored originals keep the order of their classes: a JSON list of the folders.
ORDER_FILE = "djax-classes.json"


class FolderRecords(Records):
  """One split of a folder: every header is read when it is opened, pixels when asked for."""

  def __init__(self, root: pathlib.Path, split: str, reading: Reading):
    image_size = reading.image_size
    self._background = image_files.colour(reading.background)
    listing = _list_splits(root, re.split(r"\W", split)[0], reading)
    files = listing.files
    name, part = parse_split(split, {x: sum(map(len, files[x].values())) for x in files})

    # The headers of all splits are read, so that they agree on channels and size.
    paths = [path for half in files.values() for listed in half.values() for path in listed]
    headers = _read_headers(paths, self._background)
    width, height = (image_size, image_size) if image_size else headers[0].size
    ((usual, count), *others) = Counter(header.size for header in headers).most_common()
    if others and not image_size:
      path, header = next(x for x in zip(paths, headers, strict=True) if x[1].size != usual)
      raise DataError(
        "images must have one size: {} are {}x{}, {} of another size, such as {} with {}x{}. ".format(
          count, *usual, len(headers) - count, path, *header.size
        )
        + "Set --config.data.image_size=N (djax: --image-size N)"
      )

    self._resize = image_size > 0
    listed = enumerate(files[name].values())
    order = sorted((i, label, path) for label, paths in listed for i, path in enumerate(paths))
    self._records = [(path, label) for _, label, path in order[part]]
    super().__init__(
      len(self._records),
      name="folder",
      image_shape=(height, width, max(header.channels for header in headers)),
      dtype=np.uint8,
      class_names=tuple(files[name]),
      files={path.relative_to(root).as_posix(): path for path, _ in self._records},
      what=str(root),
      notes=_notes(listing, paths, headers, root, reading),
    )

  def _read(self, start: int, stop: int) -> Images:
    return self._take(np.arange(start, stop))

  def _take(self, rows: np.ndarray) -> Images:
    records, shape = [self._records[row] for row in rows], self.image_shape
    images = np.empty((len(records), *shape), np.uint8)
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
      decoded = pool.map(
        lambda record: image_files.decode(record[0], shape, self._resize, self._background), records
      )
      for index, image in enumerate(decoded):
        images[index] = image
    return Images(images, np.array([label for _, label in records], np.int32), self.class_names)

  def labels(self) -> np.ndarray:
    return np.array([label for _, label in self._records], np.int32)

  def _paths(self, rows: np.ndarray) -> Iterable[pathlib.Path]:
    return (self._records[row][0] for row in rows)


class _Listing(NamedTuple):
  """Image files by split and class name, both in order; files skipped; splits not asked for; whether djax cut them."""

  files: dict[str, dict[str, list[pathlib.Path]]]
  skipped: list[pathlib.Path]
  unused: list[pathlib.Path]
  is_cut: bool


def _order(root: pathlib.Path, names: Iterable[str]) -> list[str]:
  """Returns the classes of a folder in the order of their numbers."""
  path = root / ORDER_FILE
  if path.exists():
    try:
      order = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
      raise refusal(f"{path}", "must be a JSON list of class folders", error) from None
    is_list = isinstance(order, list) and all(isinstance(name, str) for name in order)
    if not is_list or sorted(order) != sorted(names):
      raise DataError(
        f"{path}: must list the class folders, {', '.join(sorted(names)[:5])}..., in the order of their numbers. "
        "Correct it, or remove it if the order does not matter."
      )
    return order
  if all(name.isascii() and name.isdigit() for name in names):
    return sorted(names, key=lambda name: (int(name), name))
  return sorted(names)


def _list_splits(root: pathlib.Path, asked: str, reading: Reading) -> _Listing:
  """Finds the image files of train, test and the split that is asked for."""
  if not root.is_dir():
    if root.exists():
      raise DataError(f"{root}: must be a folder of images, is a file. Correct the path.")
    raise DataError(f"{root}: no such folder of images. Correct the path.")
  group_of = groups.grouping(root, reading.group_by) if reading.group_by else None
  folders = [entry for entry in _entries(root) if entry.is_dir()]
  halves: dict[str, pathlib.Path] = {}
  for entry in folders:
    if split := _SPLIT_OF.get(entry.name.lower()):
      if split in halves:
        raise DataError(
          f"{root}: {halves[split].name} and {entry.name} are both the split {split}. Leave one."
        )
      halves[split] = entry
  skipped: list[pathlib.Path] = []
  if "train" in halves and len(halves) > 1:
    if reading.split_seed:
      raise ConfigError(
        f"split_seed must be 0 where a folder has its own train and test, as {root} has; got {reading.split_seed}. "
        "Leave it out."
      )
    unused = [halves["val"]] if "val" in halves and asked != "val" else []
    skipped += [x for x in _entries(root) if x not in halves.values() and x.name != ORDER_FILE]
    used = [
      split for split in ("train", "val", "test") if halves.get(split, root) not in [root, *unused]
    ]
    files = {split: _list_classes(halves[split], skipped) for split in used}
    for name, classes in files.items():
      if differ := sorted(set(files["train"]) ^ set(classes)):
        raise DataError(
          f"{root}: {halves['train'].name} and {halves[name].name} must have the same classes, not so {differ[0]!r}. "
          "If a class has no images in one of them, make it an empty folder there."
        )
    for name in files["train"]:
      if not any(classes[name] for classes in files.values()):
        raise DataError(f"{halves['train'] / name}: no images in this class")
    if group_of is not None:
      groups.check_apart(files, group_of)
    order = _order(root, files["train"])
    files = {split: {name: classes[name] for name in order} for split, classes in files.items()}
    return _Listing(files, skipped, unused, is_cut=False)
  listed = _list_classes(root, skipped)
  every = {name: listed[name] for name in _order(root, listed)}
  for name, paths in every.items():
    if not paths:
      raise DataError(f"{root / name}: no images in this class")
  seed = reading.split_seed
  if group_of is None:
    name_of = {
      path: path.relative_to(root).as_posix() for paths in every.values() for path in paths
    }
    chosen = set()
    for paths in every.values():
      chosen |= groups.every_fifth([name_of[path] for path in paths], seed)
    if asked == "test" and not chosen:
      raise DataError(
        f"{root}: without a test folder every fifth image of a class is test, so one class must have 5; the largest "
        f"has {max(map(len, every.values()))}. Add images, or make folders train and test."
      )
  else:
    name_of = {path: group_of(path) for paths in every.values() for path in paths}
    found = set(name_of.values())
    chosen = groups.every_fifth(found, seed)
    if not chosen:
      raise DataError(
        f"{root}: --group-by must find at least 5 groups, of which every fifth is test; found {len(found)}. "
        "Make folders train and test."
      )
  is_test = {path: name in chosen for path, name in name_of.items()}
  test = {key: [x for x in paths if is_test[x]] for key, paths in every.items()}
  train = {key: [x for x in paths if not is_test[x]] for key, paths in every.items()}
  return _Listing({"train": train, "test": test}, skipped, [], is_cut=group_of is None)


def _list_classes(root: pathlib.Path, skipped: list[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
  """Returns class name -> sorted image files of a folder with one subfolder a class; adds what it skips."""
  folders = [entry for entry in _entries(root) if entry.is_dir()]
  for entry in _entries(root):
    if entry.suffix.lower() in _SUFFIXES and entry not in folders:
      raise DataError(f"{entry}: an image must lie in the subfolder of its class below {root}")
  skipped += [x for x in _entries(root) if x not in folders and x.name != ORDER_FILE]
  names = [entry.name for entry in folders]
  if len(names) < 2 or all(name.lower() in _SPLIT_OF for name in names):
    wanted = "a subfolder for each of two or more classes (perhaps below train and test)"
    raise DataError(f"{root}: must hold {wanted}; found {', '.join(names) or 'none'}")
  classes: dict[str, list[pathlib.Path]] = {}
  problems = []
  for folder in folders:
    classes[folder.name], notes, found = _sorted_out(folder)
    skipped += notes
    problems += found
  _refuse(problems)
  return classes


def pictures(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
  """Lists a folder of image files.

  Args:
    folder: with nothing else but notes and what file managers leave.

  Returns:
    Image files, and the files that are skipped, sorted by name; hidden ones are in neither.

  Raises:
    DataError: if it holds anything else.
  """
  files, skipped, problems = _sorted_out(folder)
  _refuse(problems)
  return files, skipped


def _sorted_out(
  folder: pathlib.Path,
) -> tuple[list[pathlib.Path], list[pathlib.Path], list[str]]:
  """Returns the image files of a folder, what is skipped in it, and what is wrong with the rest."""
  files, skipped, problems = [], [], []
  for path in _entries(folder):
    if path.name.lower() in _NO_PICTURES or path.suffix.lower() in _NOTES:
      skipped.append(path)
    elif path.is_symlink() and not path.exists():
      problems.append(f"{path}: is a link to a file that does not exist.")
    elif path.is_dir():
      problems.append(
        f"{path}: is a folder among image files. Move it out of {folder.name}, or give a folder of images alone."
      )
    elif path.suffix.lower() not in _SUFFIXES or not path.is_file():
      problems.append(f"{path}: not a .png, .jpg or .jpeg file. Move it out of {folder.name}.")
    else:
      files.append(path)
  return files, skipped, problems


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
  try:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
  except OSError as error:
    raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def _refuse(problems: list[str]) -> None:
  """Refuses files, all of them at once."""
  if not problems:
    return
  if len(problems) == 1:
    raise DataError(problems[0])
  more = f" And {len(problems) - _SHOWN} more." if len(problems) > _SHOWN else ""
  raise DataError(f"{len(problems)} files cannot be taken. {' '.join(problems[:_SHOWN])}{more}")


def _read_headers(paths: list[pathlib.Path], background: Colour | None) -> list[Header]:
  """Reads the heads of image files, or refuses all that cannot be taken."""
  headers, problems = [], []
  with warnings.catch_warnings():
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    for path in paths:
      try:
        headers.append(image_files.read_header(path, background))
      except DataError as error:
        problems.append(str(error))
  _refuse(problems)
  return headers


def _notes(
  listing: _Listing,
  paths: list[pathlib.Path],
  headers: list[Header],
  root: pathlib.Path,
  reading: Reading,
) -> list[str]:
  """Says how a folder was read, where that may surprise its owner."""
  notes = []
  kinds = Counter(path.suffix.lower() for path in paths)
  notes.append(f"files: {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}")
  if listing.is_cut:
    how = f"drawn with seed {reading.split_seed}" if reading.split_seed else "in order of its name"
    notes.append(
      f"there is no test folder: every fifth file of each class, {how}, is test, so images of one "
      "person may be in both: see --group-by"
    )
  for folder in listing.unused:
    notes.append(
      f"the folder {folder.name} is the split val, which is used only where val is asked for"
    )
  if listing.skipped:
    names = [path.relative_to(root).as_posix() for path in listing.skipped]
    more = ", ..." if len(names) > _SHOWN else ""
    notes.append(f"skipped: {len(names)} ({', '.join(names[:_SHOWN])}{more})")
  if turned := sum(header.is_turned for header in headers):
    notes.append(f"turned upright, as their files ask for: {turned}")
  if clear := sum(header.is_transparent for header in headers):
    notes.append(f"transparency replaced by {reading.background}: {clear}")
  channels = Counter(header.channels for header in headers)
  if len(channels) > 1:
    notes.append(f"grey images taken as colour: {channels[1]}")
  sizes = Counter(header.size for header in headers)
  if len(sizes) > 1:
    (least, most) = (min(sizes, key=math.prod), max(sizes, key=math.prod))
    notes.append(
      f"{len(sizes)} sizes are resized, from {least[0]}x{least[1]} to {most[0]}x{most[1]}"
    )
  return notes


SOURCE = Source(
  "folder",
  lambda source: source.startswith((".", "/", "~")) or ("/" in source and os.path.isdir(source)),
  lambda source, split, reading: FolderRecords(pathlib.Path(source).expanduser(), split, reading),
  is_folder=True,
)
