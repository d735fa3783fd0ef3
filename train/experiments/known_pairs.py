"""Draws docs/known-pairs.svg: examiner success over known pairs beside the published curve.

For s in 0, 1, 2 (other attacks may be left out: --attacks regression,procrustes), then with the three reports:

python -m djax audit --source mnist --scheme rmt --block-size 7 --noise-level 100 --no-permute --full
    --seed $s --out mp$s
python -m train.experiments.known_pairs mp0/audit.json mp1/audit.json mp2/audit.json
"""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from djax.io import pages
from train.experiments import DOCS

PAIRS = (1, 5, 15, 35)
PUBLISHED = (0.17, 0.53, 0.94, 0.96)  # regression, read off a plot of the 2021 paper


def main(paths: list[str]) -> None:
  """Draws medians over some audits.

  Args:
    paths: of their ``audit.json``.
  """
  audits = [json.loads(Path(path).read_text())["attacks"] for path in paths]
  figure = Figure(figsize=(5.5, 3.5), layout="constrained")
  axes = figure.subplots()
  axes.plot(PAIRS, PUBLISHED, "o--", color="grey", label="regression, published")
  for name in ("regression", "procrustes"):
    curves = []
    for rows in audits:
      (row,) = [row for row in rows if row["name"] == name]
      by_pairs = {run["pairs"]: run["scores"]["success"] for run in row["runs"]}
      curves.append([by_pairs[pairs] for pairs in PAIRS])
    middle = np.median(curves, axis=0)
    axes.plot(PAIRS, middle, "o-", label=f"{name}, djax")
    print(name, *(f"{value:.2f}" for value in middle))
  axes.set(xlabel="known pairs", ylabel="examiner success", ylim=(0, 1.05), xscale="log")
  axes.set_xticks(PAIRS, map(str, PAIRS))
  axes.set_title("MNIST, RMT 7x7, N = 100, not permuted")
  axes.legend()
  pages.save_svg(figure, DOCS / "known-pairs.svg")


if __name__ == "__main__":
  main(sys.argv[1:])
