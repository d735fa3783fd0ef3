"""The attacks, by name: threat level 1, disguised images alone, then level 2, known pairs."""

from djax.attacks.aes import codebook
from djax.attacks.base import Attack
from djax.attacks.generic import examiner, inversion, known_pairs, unpaired
from djax.attacks.instahide import clusters
from djax.attacks.neuracrypt import matching
from djax.attacks.permutation import jigsaw
from djax.attacks.rmt import ica, moments, placement

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
