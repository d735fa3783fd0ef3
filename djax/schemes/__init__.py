"""The schemes by name: ``plain``, ``permutation`` and ``rmt`` on the device, ``aes`` on the host, and the baselines.

A scheme is made from public facts alone; its secret is a key pytree, always an argument. A new scheme is one function
that returns a ``Scheme`` and one row of ``SCHEMES``.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from djax.errors import ConfigError, nearest
from djax.schemes.aes import UNITS, aes_scheme
from djax.schemes.base import Key, Scheme, SchemeSpec
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
  "Scheme",
  "SchemeSpec",
  "aes_scheme",
  "from_spec",
  "instahide_scheme",
  "neuracrypt_scheme",
  "permutation_scheme",
  "plain_scheme",
  "rmt_scheme",
]


SCHEMES: dict[str, Callable[..., Scheme]] = {
  "plain": plain_scheme,
  "permutation": permutation_scheme,
  "rmt": rmt_scheme,
  "aes": aes_scheme,
  "instahide": instahide_scheme,
  "neuracrypt": neuracrypt_scheme,
}


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
  parameters = inspect.signature(SCHEMES[name]).parameters
  for option in options:
    if option not in parameters:
      raise ConfigError(
        f"scheme {name!r} has no parameter {option!r}.{nearest(option, parameters)} "
        f"It takes {', '.join(parameters)}."
      )
  missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
  if missing:
    raise ConfigError(f"scheme {name!r} needs {', '.join(missing)}.")
  return SCHEMES[name](**options)
