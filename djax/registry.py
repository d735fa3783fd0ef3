"""Things by name: those that ship with djax, and those that installed packages bring by an entry point."""

import importlib.metadata
from collections.abc import Iterator, MutableMapping
from typing import Any, Generic, TypeVar

from djax.errors import ConfigError

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(MutableMapping[str, T], Generic[T]):
  """A mapping by name, in the order of registration. What another package brings is imported when it is asked for.

  Args:
    group: of the entry points; each has the name of a thing and points at it.
    shipped: what djax has itself. No package can replace it.
  """

  def __init__(self, group: str, shipped: dict[str, T]):
    self._group = group
    self._found: dict[str, T] = dict(shipped)
    self._points: dict[str, Any] = {
      point.name: point
      for point in importlib.metadata.entry_points(group=group)
      if point.name not in shipped
    }

  def __getitem__(self, name: str) -> T:
    if name not in self._found and name in self._points:
      self._found[name] = self._loaded(self._points[name])
    return self._found[name]

  def __setitem__(self, name: str, thing: T) -> None:
    self._found[name] = thing

  def __delitem__(self, name: str) -> None:
    del self._found[name]

  def __iter__(self) -> Iterator[str]:
    yield from self._found
    yield from (name for name in self._points if name not in self._found)

  def __len__(self) -> int:
    return len(self._found.keys() | self._points.keys())

  def _loaded(self, point: Any) -> T:
    try:
      thing = point.load()
    except Exception as error:  # whatever another package raises
      raise ConfigError(
        f"{point.name!r} of the entry points {self._group} must be importable, it is not: "
        f"{type(error).__name__}: {error}. Mend or uninstall the package that brings {point.value}."
      ) from error
    if getattr(thing, "name", None) != point.name:
      raise ConfigError(
        f"{point.name!r} of the entry points {self._group} must point at a thing of that name, {point.value} is none."
      )
    return thing
