"""The owner's secrets: the master key, and the file that keeps it. docs/key-format.md."""

from djax.keys.master import *  # noqa: F403
from djax.keys.master import __all__ as __all__
