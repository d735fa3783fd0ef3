"""The bytes that leave the owner do not depend on the processor: on its instructions, nor on BLAS and XLA."""

import os
import subprocess
import sys

import pytest
from helpers.fresh import ROOT
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

# Photographs in blocks that BLAS would multiply in its own way, stored and disguised in all ways there are.
CODE = """
import hashlib, pathlib, sys, tempfile
import numpy as np
from djax import keys
from djax.owner import export
from djax.owner.plan import Request

place = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))
images = np.random.default_rng(0).integers(0, 256, (24, 32, 48, 3), np.uint8)
labels = np.arange(24) % 3
parts = {"train_images": images[:18], "train_labels": labels[:18]}
parts |= {"test_images": images[18:], "test_labels": labels[18:]}
np.savez(place / "photos.npz", **parts)
rmt = {"scheme": "rmt", "block_size": 8, "noise_level": 25.0}
views = {"views": 2, "crop": 4, "flip": True}
made = {
  "rows": (rmt, {"dtype": "float32"}),
  "blocks": ({**rmt, "mix": "block", "noise_place": "after"}, {"dtype": "float16", **views}),
  "projected": ({**rmt, "matrix": "projection", "per_channel": True}, {"dtype": "uint8"}),
  "pictures": ({**rmt, "block_size": 5}, {"format": "folder", **views}),
  "aes": ({"scheme": "aes", "block_size": 4}, {}),
}
for name, (disguise, options) in made.items():
  asked = Request(str(place / "photos.npz"), disguise, dataset_id="0" * 32, **options)
  export.disguise(asked, place / name, keys.experiment(3), workers=1)
  digest = hashlib.sha256()
  for path in sorted(p for p in (place / name).rglob("*") if p.is_file()):
    digest.update(str(path.relative_to(place)).encode() + path.read_bytes())
  print(name, digest.hexdigest())
"""
HERE = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
VARIANTS = {
  "as it is": {},
  "Haswell": {
    "OPENBLAS_CORETYPE": "Haswell",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
  },
  "Zen": {"OPENBLAS_CORETYPE": "Zen"},
  "SkylakeX": {"OPENBLAS_CORETYPE": "SkylakeX"},
  "old": {
    "OPENBLAS_CORETYPE": "Prescott",
    "NPY_DISABLE_CPU_FEATURES": " ".join(HERE),
    "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2",
  },
}


@pytest.mark.slow
def test_other_processors_disguise_to_the_same_bytes(tmp_path):
  """As far as one processor can play others: OpenBLAS and NumPy choose their code by these variables."""
  wide = any(name.startswith(("AVX512", "X86_V4")) for name in HERE)
  running = {
    name: subprocess.Popen(
      [sys.executable, "-c", CODE, str(tmp_path)],
      cwd=ROOT,
      env={**os.environ, **variables},
      stdout=subprocess.PIPE,
      text=True,
    )
    for name, variables in VARIANTS.items()
    if wide or name != "SkylakeX"  # whose instructions would end the process
  }
  printed = {name: process.communicate(timeout=300)[0] for name, process in running.items()}
  assert {process.returncode for process in running.values()} == {0}
  assert printed["as it is"].count("\n") == 5
  assert {name: lines for name, lines in printed.items() if lines != printed["as it is"]} == {}
