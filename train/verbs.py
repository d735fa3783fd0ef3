"""What training adds to the verbs of ``python -m djax``, which finds this module by its entry point ``djax.training``.

So ``djax`` imports nothing from here, and a machine that only disguises needs no training code.
"""

from djax.audit.scenario import Scenario
from train import audited, config
from train.ask import ask
from train.bench_steps import cases as step_cases
from train.bench_steps import measure as measure_step
from train.examine import examine, figure, lines

__all__ = ["ask", "examine", "figure", "lines", "measure_step", "scenario_of", "step_cases"]


def scenario_of(name: str, **options) -> Scenario:
  """Returns what an audit of a training config attacks; the options are those of ``audited.scenario_of``.

  Raises:
    ConfigError: for an unknown or wrong config, or one that cannot be audited.
    DataError: if its source is missing or damaged.
  """
  loaded = config.load(name)
  config.check(loaded)
  return audited.scenario_of(loaded, **options)
