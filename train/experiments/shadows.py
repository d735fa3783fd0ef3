"""Measures what training 32 shadow networks together under vmap saves over a loop of jitted steps, side by side.

TFDS_DATA_DIR=../shared/tfds python -m train.experiments.shadows

Prints one line a source: seconds of each and their ratio, median and quartiles of the rounds.
"""

import functools

from djax import sources
from djax.attacks.model import shadows
from djax.bench import clock

MODELS, RECORDS, ROUNDS, SEED = 32, 1000, 5, 0


def main() -> None:
  """Trains both ways in turns, on digits and on MNIST."""
  for source in ("digits", "mnist"):
    data = sources.load(source, f"train[:{RECORDS}]")
    members = shadows.halves(MODELS, RECORDS, seed=SEED)
    classes = len(data.class_names)
    works = {
      name: clock.repeated(
        functools.partial(train, classes=classes, seed=SEED), data.images, data.labels, members
      )
      for name, train in (("together", shadows.train), ("loop", shadows.train_one_by_one))
    }
    seconds = clock.side_by_side(works, rounds=ROUNDS)
    shares = clock.ratio(seconds["together"], seconds["loop"])
    together, loop = (clock.spread(seconds[name]) for name in works)
    print(f"{source}: together {together} s, loop {loop} s, together / loop {shares}", flush=True)


if __name__ == "__main__":
  main()
