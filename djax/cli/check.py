"""``python -m djax check``: looks at a source before any key is used."""

import argparse
import contextlib
import dataclasses
import json

import numpy as np

from djax import sources
from djax.cli.common import say, show
from djax.io import files, picture
from djax.owner import restore
from djax.sources import Reading, inventory
from djax.sources.base import Records
from djax.sources.inventory import Inventory

__all__ = ["reading_of", "run", "say_inventory"]

_COLUMNS = 8
_CLASSES = 20


def reading_of(args: argparse.Namespace) -> Reading:
  """Returns how the source is read, as the flags say.

  Args:
    args: of a verb with the flags of a source.
  """
  names = [field.name for field in dataclasses.fields(Reading)]
  return Reading(**{name: getattr(args, name) for name in names})


def run(args: argparse.Namespace) -> None:
  """Counts what is in a source, warns of what is probably not meant, and draws images of every class.

  Args:
    args: of the verb.
  """
  target = restore.check_new(args.sheet) if args.sheet else None
  splits = {"train": args.train_split, "val": args.val_split, "test": args.test_split}
  with contextlib.ExitStack() as stack:
    opened = {
      name: stack.enter_context(sources.open(args.source, split, **vars(reading_of(args))))
      for name, split in splits.items()
      if split
    }
    for records in opened.values():
      records.check()
    found = inventory.take(opened)
    if target is not None:
      sheet = picture.sheet(_rows(opened["train"]), title=found.source, columns=_COLUMNS)
      with files.new_file(target) as file:
        sheet.save(file, "PNG")
  if args.json:
    print(json.dumps(found.to_dict()))
  else:
    show(found.lines())
  _warn(found)
  if target is not None:
    say(f"{target} shows originals: keep it on this machine")


def say_inventory(inventory: Inventory) -> None:
  """Says what is in a source, and warns of what is probably not meant.

  Args:
    inventory: of the source.
  """
  for line in inventory.lines():
    say(line)
  _warn(inventory)


def _warn(inventory: Inventory) -> None:
  for line in inventory.warnings():
    say(f"warning: {line}")


def _rows(records: Records) -> dict[str, np.ndarray]:
  """Returns some images of each class, spread over the split, by caption."""
  labels = records.labels()
  rows = {}
  for label, name in enumerate(records.class_names[:_CLASSES]):
    places = np.flatnonzero(labels == label)
    if len(places):
      some = places[np.unique(np.linspace(0, len(places) - 1, _COLUMNS).astype(int))]
      rows[f"{label}: {name}, {len(places)} images"] = records.take(some).images
  return rows
