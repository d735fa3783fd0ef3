"""The attacks, by name: threat level 1, disguised images alone, then level 2, known pairs.

A new attack is one file with an ``Attack`` and one row below. Another package brings its own by an entry point of the
group ``djax.attacks``, which has the attack's name and points at its ``Attack``.
"""

from djax.attacks.aes import codebook, frequency
from djax.attacks.base import Attack
from djax.attacks.generic import examiner, inversion, known_pairs, unpaired
from djax.attacks.instahide import clusters
from djax.attacks.neuracrypt import matching
from djax.attacks.permutation import jigsaw
from djax.attacks.rmt import ica, moments, placement
from djax.registry import Registry

__all__ = ["ATTACKS"]

_ROWS = (
  examiner.ATTACK,
  moments.ATTACK,
  ica.ATTACK,
  placement.ATTACK,
  jigsaw.ATTACK,
  frequency.ATTACK,
  clusters.ATTACK,
  matching.ATTACK,
  unpaired.ATTACK,
  known_pairs.REGRESSION,
  known_pairs.PROCRUSTES,
  codebook.ATTACK,
  matching.ATTACK_PAIRS,
  inversion.ATTACK,
)

ATTACKS: Registry[Attack] = Registry("djax.attacks", {attack.name: attack for attack in _ROWS})
