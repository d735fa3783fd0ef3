"""The attacks, by name: threat level 1, disguised images alone, then level 2, known pairs."""

from djax.attacks import (
  clusters,
  codebook,
  examiner,
  ica,
  inversion,
  jigsaw,
  known_pairs,
  matching,
  moments,
  placement,
  unpaired,
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
  matching.ATTACK,
  unpaired.ATTACK,
  known_pairs.REGRESSION,
  known_pairs.PROCRUSTES,
  codebook.CODEBOOK,
  matching.ATTACK_PAIRS,
  inversion.ATTACK,
)

ATTACKS: dict[str, Attack] = {attack.name: attack for attack in _ROWS}
