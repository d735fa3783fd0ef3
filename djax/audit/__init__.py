"""The audit: a disguise is attacked before someone else does it, and the outcome judged.

``lookup`` is light: it knows what is known to break a setting, from a table of audits made before.
"""

from djax.audit.known_breaks import lookup

__all__ = ["lookup"]
