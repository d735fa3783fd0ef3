"""The attacks, by name: threat level 1, disguised images alone, then level 2, known pairs."""

from djax.attacks import (
  clusters,
  codebook,
  examiner,
  ica,
  inversion,
  jigsaw,
  known_pairs,
  moments,
  placement,
)
from djax.attacks.contract import Attack

__all__ = ["ATTACKS"]

_ROWS = (
  examiner.ATTACK,
  moments.ATTACK,
  ica.ATTACK,
  placement.ATTACK,
  jigsaw.ATTACK,
  codebook.FREQUENCY,
  clusters.ATTACK,
  known_pairs.REGRESSION,
  known_pairs.PROCRUSTES,
  codebook.CODEBOOK,
  inversion.ATTACK,
)

ATTACKS: dict[str, Attack] = {attack.name: attack for attack in _ROWS}
