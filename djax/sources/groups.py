"""Who is on which image of a folder, and which images are test where a folder does not say so."""

import csv
import hashlib
import io
import itertools
import pathlib
import re
from collections.abc import Callable, Iterable

from djax.errors import ConfigError, DataError

__all__ = ["GroupOf", "check_apart", "every_fifth", "grouping"]

GroupOf = Callable[[pathlib.Path], str]
_COLUMNS = ["file", "group"]


def grouping(root: pathlib.Path, asked: str) -> GroupOf:
  """Returns the function that says whom an image is of.

  Args:
    root: the folder.
    asked: a regular expression with one group, or the name of a table, ``X.csv``.

  Raises:
    ConfigError: for another expression.
    DataError: for a table that cannot be used.
  """
  if asked.lower().endswith(".csv") and "(" not in asked:
    return _table(root, pathlib.Path(asked).expanduser())
  try:
    compiled = re.compile(asked)
  except re.error as error:
    raise ConfigError(
      f"--group-by must be a regular expression, got {asked!r} ({error})."
    ) from None
  if compiled.groups != 1:
    raise ConfigError(
      f"--group-by must have one group in parentheses, as in '(patient\\d+)', got {asked!r} with {compiled.groups}."
    )

  def group_of(path: pathlib.Path) -> str:
    match = compiled.search(path.relative_to(root).as_posix())
    if match is None or match[1] is None:
      raise DataError(f"{path}: --group-by {asked!r} finds no group in its name.")
    return match[1]

  return group_of


def _table(root: pathlib.Path, table: pathlib.Path) -> GroupOf:
  """Reads a table of file and group; rows of files that are not there do no harm."""
  try:
    text = table.read_text("utf-8-sig")
  except OSError as error:
    raise DataError(f"{table}: cannot be read ({error.strerror})") from None
  except UnicodeDecodeError:
    raise DataError(f"{table}: must be text in UTF-8. Save it so.") from None
  delimiter = ";" if ";" in text.partition("\n")[0] else ","
  try:
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
  except csv.Error as error:
    raise DataError(f"{table}: must be a table of file and group ({error})") from None
  if not rows or [name.strip().lower() for name in rows[0]] != _COLUMNS:
    raise DataError(
      f"{table}: must begin with the line file,group; got {', '.join(rows[0]) if rows else 'nothing'}"
    )
  groups: dict[str, str] = {}
  for row in rows[1:]:
    name, group = (cell.strip() for cell in row) if len(row) == 2 else ("", "")
    if not name or not group:
      raise DataError(f"{table}: every row must be a file and its group, got {', '.join(row)!r}")
    if groups.setdefault(name, group) != group:
      raise DataError(f"{table}: {name} is in two groups, {groups[name]!r} and {group!r}")

  def group_of(path: pathlib.Path) -> str:
    name = path.relative_to(root).as_posix()
    if name not in groups:
      raise DataError(
        f"{path}: {table} has no row for {name}. Names are those below {root}, with their folders."
      )
    return groups[name]

  return group_of


def check_apart(files: dict[str, dict[str, list[pathlib.Path]]], group_of: GroupOf) -> None:
  """Refuses a group with images in two splits.

  Args:
    files: by split and class.
    group_of: says whom an image is of.

  Raises:
    DataError: if there is one.
  """
  home: dict[str, tuple[str, pathlib.Path]] = {}
  for split, classes in files.items():
    for path in itertools.chain(*classes.values()):
      first, other = home.setdefault(group_of(path), (split, path))
      if first != split:
        raise DataError(
          f"{path} and {other} are of one group, {group_of(path)!r}, but in two splits. Move them into one."
        )


def every_fifth(names: Iterable[str], seed: int) -> set[str]:
  """Returns which names are test: the fifth, the tenth and so on.

  Args:
    names: all different.
    seed: 0: in the order of the names; else in an order that it gives, the same on every machine.
  """

  def place(name: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{name}".encode("utf-8", "surrogateescape")).digest()

  return set(sorted(names, key=place if seed else None)[4::5])
