"""Wrote djx1.json, keyfile-v1.json and export-v1.json, once. Refuses to write one again.

  PYTHONPATH=. python tests/vectors/make.py NAME.json

What it wrote is fixed for as long as `djx1`, version 1 of the key file and version 1 of the data set
exist: a vector that no longer holds means that keys made before give other matrices now, or the same
images other bytes, so mend the code and leave the vectors alone.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path

from djax import keyfile, keys, selftest

HERE = Path(__file__).parent
SECRET = bytes(range(32))
MASTERS = {"secret 00..1f": {"secret": SECRET.hex()}, "experiment 0": {"experiment": 0}}
LABELS = ["fingerprint", "perm|64", "rmt|0|4", "rmt|15|4", "rmt|0|4|projection", "rmt|3|2|channel1"]
SPECS = {
  "rows": {"image_shape": [8, 8, 3], "block_size": 4},
  "rows padded": {"image_shape": [5, 6, 1], "block_size": 2, "permute": False},
  "rows per channel": {"image_shape": [4, 4, 3], "block_size": 2, "per_channel": True},
  "whole block": {"image_shape": [4, 4, 2], "block_size": 2, "mix": "block"},
  "projection": {"image_shape": [4, 6, 1], "block_size": 2, "matrix": "projection"},
  "projection per channel": {
    "image_shape": [2, 4, 2],
    "block_size": 2,
    "matrix": "projection",
    "per_channel": True,
  },
}


def asked() -> list[dict]:
  """Returns the questions of djx1.json."""
  near_powers = [2.0**-53, 2.0**-52, 0.5 - 2.0**-54, 0.5, 0.70710678118654746, 0.70710678118654757]
  xs = [*near_powers, 1.0 - 2.0**-53, 1e-9, 0.1, 0.25, 1 / 3, 0.6, 0.9]
  found = [{"name": "log", "call": "log", "x": [x.hex() for x in xs]}]

  def add(name, **arguments):
    for master, secret in MASTERS.items():
      found.append({"name": f"{name}, {master}", **arguments, **secret})

  add("fingerprint", call="fingerprint")
  for label in LABELS:
    add(f"subkey {label}", call="subkey", label=label)
    add(f"stream {label}", call="stream", label=label, length=160)
  for n in (2, 9, 16, 64):
    add(f"permutation of {n}", call="permutation", label=f"perm|{n}", n=n)
  add("uniform", call="uniform", label="vectors|uniform", count=8)
  add("normal", call="normal", label="vectors|normal", count=65)
  for n in (2, 4, 7):
    add(f"Haar {n}", call="haar", label=f"rmt|0|{n}", n=n)
  add("projection 4", call="invertible", label="rmt|0|4|projection", n=4)
  add(
    "scheme permutation",
    call="scheme",
    spec={"scheme": "permutation", "image_shape": [12, 9, 1], "block_size": 3},
  )
  for name, spec in SPECS.items():
    add(f"scheme rmt, {name}", call="scheme", spec={"scheme": "rmt", **spec})
  return found


def key_files() -> list[dict]:
  """Returns the questions of keyfile-v1.json."""
  found = []
  for name, passphrase in (("protected", "correct horse, größer"), ("in the clear", None)):
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder, "key")
      keyfile.write(path, keys.Master(SECRET), passphrase=passphrase)
      lines = path.read_text(encoding="ascii").splitlines()
    found.append({"name": name, "call": "keyfile", "passphrase": passphrase, "content": lines})
  return found


def exports() -> list[dict]:
  """Returns the questions of export-v1.json: keys of aes, and what every scheme writes to disk."""
  small = {"image_shape": [8, 8, 3], "block_size": 4}
  padded = {"image_shape": [10, 13, 3], "block_size": 4}
  grey = {"image_shape": [7, 9, 1], "block_size": 4}
  schemes = {
    "plain": [("", {"image_shape": [5, 6, 3]})],
    "permutation": [("", {**padded, "block_size": 3})],
    "rmt": [
      ("rows", small),
      ("rows, padded, in place", {**padded, "permute": False}),
      ("rows of grey pixels", grey),
      ("rows per channel", {**padded, "per_channel": True}),
      ("whole block", {**padded, "mix": "block"}),
      ("projection", {**padded, "matrix": "projection"}),
      ("noise before", {**padded, "noise_level": 100.0}),
      ("noise after", {**padded, "noise_level": 25.5, "noise_place": "after"}),
      ("whole block, noise", {**grey, "mix": "block", "matrix": "projection", "noise_level": 50.0}),
    ],
    "aes": [
      ("16-pixel units", padded),
      ("16-pixel units in place", {**small, "permute": False}),
      ("blocks of 8", {"image_shape": [16, 20, 3], "block_size": 8}),
      ("2-pixel units", {**padded, "unit_pixels": 2}),
      ("1-pixel units of a block of 3", {**padded, "block_size": 3, "unit_pixels": 1}),
      ("position keys", {**padded, "position_keys": True}),
      ("salt and pepper", {**padded, "salt_pepper": 0.04}),
      ("all at once", {**grey, "position_keys": True, "unit_pixels": 8, "salt_pepper": 0.5}),
    ],
  }
  found = []
  for scheme, asked_of in schemes.items():
    for (name, options), (master, secret) in itertools.product(asked_of, MASTERS.items()):
      asked = {"spec": {"scheme": scheme, **options}, **secret}
      if scheme == "aes":
        found.append({"name": f"key of aes, {name}, {master}", "call": "scheme", **asked})
      for dtype in ("uint8",) if scheme == "aes" else ("uint8", "float32"):
        title = ", ".join(part for part in (f"export of {scheme}", name, dtype, master) if part)
        found.append({"name": title, "call": "export", "batch": 3, "dtype": dtype, **asked})
  return found


def save(name: str, source: str, vectors: list[dict]) -> None:
  """Answers the vectors and writes them, one a line, to a file that must not exist."""
  lines = ",\n".join(json.dumps({**v, "expect": selftest.answer(v)}) for v in vectors)
  with open(HERE / name, "x", encoding="utf-8") as file:
    file.write(f'{{"source": {json.dumps(source)},\n"vectors": [\n{lines}\n]}}\n')


FILES = {
  "djx1.json": (
    "djax 0.1.0, docs/key-format.md; checked by the twin in tests/test_keys.py",
    asked,
  ),
  "keyfile-v1.json": ("djax 0.1.0, docs/key-format.md", key_files),
  "export-v1.json": (
    "djax 0.1.0, docs/format.md, section 3; images by the formula of djax.selftest; "
    "checked by the twins in tests/test_host.py",
    exports,
  ),
}

if __name__ == "__main__":
  for name in sys.argv[1:]:
    source, questions = FILES[name]
    save(name, source, questions())
