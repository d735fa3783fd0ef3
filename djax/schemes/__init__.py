"""The schemes by name: ``plain``, ``permutation`` and ``rmt`` on the device, ``aes`` on the host, and the baselines.

A scheme is made from public facts alone; its secret is a key pytree, always an argument. A new scheme is one file with
a function that returns a ``Scheme`` and a ``Kind`` that says what djax knows of it, and one name below. Another package
brings its own by an entry point of the group ``djax.schemes``, which has the scheme's name and points at its ``Kind``.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from djax.errors import ConfigError, nearest
from djax.registry import Registry
from djax.schemes import aes, instahide, neuracrypt, permutation, plain, rmt
from djax.schemes.aes import UNITS, aes_scheme
from djax.schemes.base import Key, Kind, Parameter, Scheme, SchemeSpec, Trait
from djax.schemes.instahide import instahide_scheme
from djax.schemes.neuracrypt import neuracrypt_scheme
from djax.schemes.permutation import permutation_scheme
from djax.schemes.plain import plain_scheme
from djax.schemes.rmt import MATRICES, NOISE_PLACES, rmt_scheme

__all__ = [
  "MATRICES",
  "NOISE_PLACES",
  "SCHEMES",
  "UNITS",
  "Key",
  "Kind",
  "Parameter",
  "Scheme",
  "SchemeSpec",
  "Trait",
  "aes_scheme",
  "from_spec",
  "instahide_scheme",
  "kind_of",
  "neuracrypt_scheme",
  "options",
  "permutation_scheme",
  "plain_scheme",
  "rmt_scheme",
  "traits",
  "written",
]


SCHEMES: Registry[Kind] = Registry(
  "djax.schemes",
  {
    module.KIND.name: module.KIND
    for module in (plain, rmt, aes, permutation, instahide, neuracrypt)
  },
)


def kind_of(spec: Mapping[str, Any]) -> Kind:
  """Returns what djax knows of the scheme of a spec.

  Args:
    spec: ``SchemeSpec.to_dict()``.
  """
  return SCHEMES[spec["scheme"]]


def traits(spec: Mapping[str, Any]) -> frozenset[Trait]:
  """Returns the properties of a disguise.

  Args:
    spec: ``SchemeSpec.to_dict()``, complete.
  """
  return kind_of(spec).traits(spec)


def written() -> list[str]:
  """Returns the names of the schemes that ``djax disguise`` writes to disk."""
  return [name for name, kind in SCHEMES.items() if kind.written]


def options() -> dict[str, Parameter]:
  """Returns the options of all schemes by name; of one that several have, the first."""
  parameters: dict[str, Parameter] = {}
  for kind in SCHEMES.values():
    parameters = {**kind.parameters, **parameters}
  return parameters


def from_spec(spec: Mapping[str, Any]) -> Scheme:
  """Makes the scheme that a spec describes.

  Args:
    spec: ``SchemeSpec.to_dict()``, perhaps read back from JSON: ``scheme``, ``image_shape`` and the parameters of that
      scheme's function.

  Returns:
    The scheme; ``from_spec(s).spec.to_dict()`` equals a complete ``s``.

  Raises:
    ConfigError: for an unknown scheme or parameter (with the nearest name), or a missing one.
    ValueError: for a parameter that does not fit, from the scheme itself.
  """
  options = dict(spec)
  name = options.pop("scheme", None)
  if name not in SCHEMES:
    raise ConfigError(
      f"scheme must be one of {', '.join(SCHEMES)}, got {name!r}.{nearest(str(name), SCHEMES)}"
    )
  make = SCHEMES[name].make
  parameters = inspect.signature(make).parameters
  for option in options:
    if option not in parameters:
      raise ConfigError(
        f"scheme {name!r} has no parameter {option!r}.{nearest(option, parameters)} "
        f"It takes {', '.join(parameters)}."
      )
  missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
  if missing:
    raise ConfigError(f"scheme {name!r} needs {', '.join(missing)}.")
  return make(**options)
