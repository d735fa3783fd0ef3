"""The attacks, by name: threat level 1, disguised images alone, then level 2, known pairs."""

import importlib
import importlib.util

from djax.attacks.contract import Attack

__all__ = ["ATTACKS"]

_ROWS = (
  ("examiner", "ATTACK"),
  ("moments", "ATTACK"),
  ("ica", "ATTACK"),
  ("placement", "ATTACK"),
  ("jigsaw", "ATTACK"),
  ("codebook", "FREQUENCY"),
  ("known_pairs", "REGRESSION"),
  ("known_pairs", "PROCRUSTES"),
  ("codebook", "CODEBOOK"),
  ("inversion", "ATTACK"),
)


def _table() -> dict[str, Attack]:
  found = {}
  for module, name in _ROWS:
    if importlib.util.find_spec(f"djax.attacks.{module}"):
      try:
        row = getattr(importlib.import_module(f"djax.attacks.{module}"), name)
      except Exception as e:  # TEMP
        import sys
        print("skipping", module, e, file=sys.stderr)
        continue
      found[row.name] = row
  return found


ATTACKS = _table()
