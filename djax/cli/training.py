"""The way from the verbs to the training code, which stands above djax: ``djax`` imports nothing of it by name."""

import importlib.metadata
from typing import Any

from djax.errors import ConfigError

__all__ = ["verbs"]

_GROUP = "djax.training"


def verbs(wanted: str) -> Any:
  """Returns the module of the entry point ``djax.training``; ``train.verbs`` says what it has.

  Args:
    wanted: what needs it, for the message.

  Raises:
    ConfigError: if djax is not installed as a distribution, so that there is no entry point.
  """
  for entry in importlib.metadata.entry_points(group=_GROUP):
    return entry.load()
  raise ConfigError(
    f"{wanted} needs an installed djax, this one runs from its source folder alone. Run: pip install -e ."
  )
