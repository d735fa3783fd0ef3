"""The form of JSON: which fields must stand in it, of which kind, and within which bounds."""

import re
from typing import Any

__all__ = ["check"]

_LARGEST = 2**48


def check(value: Any, form: Any, where: str) -> None:
  """Refuses JSON of another form than the one asked for; an object may have more fields than those.

  Args:
    value: what was parsed.
    form: what it must be. An integer stands for integers from it up to 2^48, ``float`` for numbers of that size, a list
      for a list of its first item, at most as many as its second says, a set for one of its strings, a tuple for null
      or its second item, a pattern for whole strings, also as the names of an object, a type for itself.
    where: the value's place, for the message.

  Raises:
    ValueError: with the place that is out of form.
  """
  match form:
    case dict():
      fits = isinstance(value, dict)
      for name, inner in form.items() if fits else ():
        if isinstance(name, re.Pattern):
          for key, item in value.items():
            check(key, name, f"a name in {where}")
            check(item, inner, f"{where}.{key}")
        elif name not in value:
          raise ValueError(f"{where} has no {name}")
        else:
          check(value[name], inner, f"{where}.{name}")
    case list():
      fits = isinstance(value, list) and (len(form) == 1 or len(value) <= form[1])
      place = f"an item of {where}"
      for item in value if fits else ():
        check(item, form[0], place)
    case tuple():
      return None if value is None else check(value, form[1], where)
    case set():
      fits = isinstance(value, str) and value in form
    case re.Pattern():
      fits = isinstance(value, str) and form.fullmatch(value) is not None
    case int():
      fits = type(value) is int and form <= value < _LARGEST
    case _ if form is float:
      fits = type(value) in (int, float) and abs(value) < _LARGEST
    case _:
      fits = type(value) is form
  if not fits:
    raise ValueError(f"{where} is out of form or range")
