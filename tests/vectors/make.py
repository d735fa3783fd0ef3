"""Wrote djx1.json, djx2.json, keyfile-v1.json and export-v1.json, once. Refuses to write one again.

  PYTHONPATH=. python tests/vectors/make.py NAME.json

What it wrote is fixed for as long as `djx1`, `djx2`, version 1 of the key file and the data sets made with
them exist: a vector that no longer holds means that keys made before give other matrices now, or the same
images other bytes, so mend the code and leave the vectors alone.
"""

import hashlib
import itertools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from djax import keys, schemes
from djax.cli import selftest
from djax.disguised import directory
from djax.keys import keyfile
from djax.owner import export, plan

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


def data_sets() -> list[dict]:
  """Returns the questions of djx2.json: all that is drawn for a data set and its requests."""
  ids = {"one": "00112233445566778899aabbccddeeff", "another": "f" * 32}
  specs = {
    "rmt": {"scheme": "rmt", "image_shape": [4, 4, 1], "block_size": 2, "noise_level": 25.0},
    "block": {"scheme": "rmt", "image_shape": [4, 6, 1], "block_size": 2, "mix": "block"},
    "projection": {
      "scheme": "rmt",
      "image_shape": [2, 4, 2],
      "block_size": 2,
      "matrix": "projection",
      "per_channel": True,
    },
    "permutation": {"scheme": "permutation", "image_shape": [12, 9, 1], "block_size": 3},
    "aes": {"scheme": "aes", "image_shape": [4, 8, 1], "block_size": 4, "position_keys": True},
  }
  whole = {name: schemes.from_spec(spec).spec.to_dict() for name, spec in specs.items()}
  alone = {"count": 1, "crop": 0, "flip": False, "together": True}
  several = {"count": 3, "crop": 2, "flip": True, "together": False}
  request = {"role": "request", "request": "0123456789abcdef0123456789abcdef", "views": alone}
  masters = {"secret 00..1f": SECRET.hex(), "secret ff..ff": (b"\xff" * 32).hex()}
  found: list[dict] = []

  def add(name, *, spec="rmt", **arguments):
    for master, secret in masters.items():
      named = {"name": f"{name}, {master}", "secret": secret, **arguments}
      found.append({**named, "id": ids["one"], "spec": whole[spec]})
    if not name.startswith("owner"):
      other = {"name": f"{name}, another id", "secret": SECRET.hex(), **arguments}
      found.append({**other, "id": ids["another"], "spec": whole[spec]})

  for label in ("manifest|dataset", "manifest|request", "ledger"):
    add(f"owner's subkey {label}", call="djx2-owner-subkey", label=label)
  for label in ("perm|64", "sealed|dataset", "sealed|dataset|nonce", "source"):
    add(f"subkey {label}", call="djx2-subkey", label=label)
  add("stream perm|64", call="djx2-stream", label="perm|64", length=160)
  for name in specs:
    add(f"scheme {name}", call="djx2-scheme", spec=name)
  for classes in (2, 10, 100):
    views = {"role": "dataset", "views": alone}
    add(f"labels of {classes} classes", call="djx2-labels", classes=classes, **views)
  for originals, views in (
    (1, alone),
    (40, alone),
    (12, several),
    (12, {**several, "together": True}),
  ):
    how = {"role": "dataset", "views": views, "originals": originals, "split": "train"}
    how_many = f"{originals} originals, {views['count']} views"
    together = " side by side" if views["count"] > 1 and views["together"] else ""
    add(f"order of {how_many}{together}", call="djx2-order", **how)
  add("order of a request", call="djx2-order", originals=20, split="query", **request)
  pixels = {
    "uint8": (bytes(range(0, 160, 10)).hex(), bytes(range(250, 90, -10)).hex()),
    "<f4": (bytes(range(64)).hex(), bytes(range(64, 128)).hex()),
  }
  for dtype, (original, image) in pixels.items():
    given = {
      "dtype": dtype,
      "original": original,
      "image": image,
      "split": "train",
      "index": 2**33 + 7,
    }
    how = {"role": "dataset", "views": several, **given}
    add(f"noise of a view of {dtype}", call="djx2-noise", view=2, count=24, **how)
    add(f"view of {dtype}", call="djx2-views", view=2, **how)
  asked = {**given, "split": "query", "index": 0, "view": 0}
  add("noise of a request", call="djx2-noise", count=24, **asked, **request)
  add("view of a request", call="djx2-views", **asked, **request)
  names = {"class_names": [*"0123456789"]}
  add("sealed names", call="djx2-sealed", role="dataset", content=names)
  content = {**names, "names": ["größer.png", "鳥.png"], "canaries": [3, 1]}
  add("sealed names of a request", call="djx2-sealed", content=content, **request)
  files = {"names": ["a/größer.png", "b.png"], "hashes": ["00" * 32, "ab" * 32]}
  splits = {"train": "train[:100]", "test": "test"}
  add("source", call="djx2-source", splits=splits, image_size=32, **files)
  add("source without files", call="djx2-source", splits=splits, image_size=0, names=[], hashes=[])
  return found


def disguises() -> list[dict]:
  """Returns what else is in djx2.json: what disguise makes of some digits, from the key to the records."""
  rmt = {"scheme": "rmt", "block_size": 4}
  several = {"views": 3, "crop": 2, "flip": True}
  asked_of = {
    "rmt, noise, views": ({**rmt, "noise_level": 25.0}, several),
    "rmt, noise after, float16, whole blocks": (
      {**rmt, "block_size": 2, "mix": "block", "noise_level": 50.0, "noise_place": "after"},
      {"dtype": "float16", "originals_per_shard": 10},
    ),
    "rmt, projection, uint8, views": (
      {**rmt, "matrix": "projection"},
      {"dtype": "uint8", **several},
    ),
    "aes, salt and pepper": ({"scheme": "aes", "block_size": 4, "salt_pepper": 0.04}, {}),
    "permutation, plain labels, views side by side": (
      {"scheme": "permutation", "block_size": 2},
      {"plain_labels": True, "views_together": True, **several},
    ),
  }
  splits = {"train": "train[:40]", "test": "test[3:13]"}
  given = {"secret": SECRET.hex(), "splits": splits}
  ids = ("00112233445566778899aabbccddeeff", "f" * 32)
  return [
    {"name": f"{name}, id {one[:4]}", **given, "id": one, "disguise": disguise, "options": options}
    for name, (disguise, options) in asked_of.items()
    for one in ids
  ]


def disguised(vector: dict) -> dict[str, str]:
  """Disguises, and hashes the records of each split in their order: images, then label ids as int32.

  Not in djax.cli.selftest, which does without TFDS.
  """
  found = {}
  with tempfile.TemporaryDirectory() as folder:
    how = {"dataset_id": vector["id"], **vector["options"]}
    request = plan.Request("digits", vector["disguise"], vector["splits"], **how)
    master = keys.Master(bytes.fromhex(vector["secret"]))
    facts = export.disguise(request, Path(folder, "set"), master, workers=1)
    for name, split in directory.open(Path(folder, "set")).splits.items():
      images, labels = split.read(np.arange(len(split)))
      data = images.astype(images.dtype.newbyteorder("<")).tobytes()
      found[name] = hashlib.sha256(data + labels.astype("<i4").tobytes()).hexdigest()
      split.close()
  return {"source": facts.source["hmac"], **found}


def save(name: str, source: str, vectors: list[dict]) -> None:
  """Answers the vectors and writes them, one a line, to a file that must not exist."""
  lines = ",\n".join(json.dumps({**v, "expect": selftest.answer(v)}) for v in vectors)
  more = ""
  if name == "djx2.json":
    records = ",\n".join(json.dumps({**v, "expect": disguised(v)}) for v in disguises())
    more = f',\n"disguises": [\n{records}\n]'
  with open(HERE / name, "x", encoding="utf-8") as file:
    file.write(f'{{"source": {json.dumps(source)},\n"vectors": [\n{lines}\n]{more}}}\n')


FILES = {
  "djx1.json": (
    "djax 0.1.0, docs/key-format.md; checked by the twin in tests/test_keys.py",
    asked,
  ),
  "djx2.json": (
    "djax 0.1.0, docs/key-format.md section 8 and docs/format.md sections 1 to 5; checked by the twins in "
    "tests/test_keys.py, tests/test_streams.py, tests/test_sealed.py and tests/test_export.py",
    data_sets,
  ),
  "keyfile-v1.json": ("djax 0.1.0, docs/key-format.md", key_files),
  "export-v1.json": (
    "djax 0.1.0, docs/format.md, section 3; images by the formula of djax.cli.selftest; "
    "checked by the twins in tests/test_host.py",
    exports,
  ),
}

if __name__ == "__main__":
  for name in sys.argv[1:]:
    source, questions = FILES[name]
    save(name, source, questions())
