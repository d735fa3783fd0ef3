"""Disguised directories made by hand, as docs/format.md has them."""

import dataclasses
import hashlib
import json
import os
import shutil

import numpy as np

from djax.disguised import datacard, manifest, records
from djax.disguised.manifest import Manifest, SplitFacts
from djax.disguised.quantise import Bounds

KEY = bytes(range(32))
SPEC = {"scheme": "permutation", "image_shape": [4, 6, 3], "block_size": 2}
SHAPE = (4, 6, 3)
CLASSES = 5


def images_of(split, dtype="float32", count=11):
  """Records that differ by split, index and pixel; exact in every dtype."""
  first = 1 if split == "train" else 2
  values = np.random.default_rng(first).integers(0, 256, (count, *SHAPE))
  return values.astype(dtype), (np.arange(count) * 3 + first) % CLASSES


def build(
  folder,
  *,
  dtype="float32",
  shards=(5, 2, 4),
  splits=("train", "test"),
  spec=SPEC,
  change=lambda images, labels: (images, labels),
  fingerprint="djx1-cjrs2kzflglpn4ve",
  **facts,
):
  """Writes a disguised data set as docs/format.md has it: each split with shards of so many records.

  ``change`` is done to what is written; ``facts`` are what the manifest says instead of the truth.
  """
  unfinished = folder / ".unfinished"
  unfinished.mkdir(parents=True)
  names = facts.get("class_names")
  features = records.features(SHAPE, facts.pop("written_dtype", dtype), CLASSES, names)
  found = {}
  for split in splits:
    images, labels = change(*images_of(split, dtype, sum(shards)))
    entries, start = [], 0
    for index, count in enumerate(shards):
      name = f"disguised-{split}.array_record-{index:05d}-of-{len(shards):05d}"
      part = slice(start, start + count)
      with records.writer(unfinished / name, features) as write:
        write(images[part].astype(images.dtype.newbyteorder("<")), labels[part])
      os.replace(unfinished / name, folder / name)
      data = (folder / name).read_bytes()
      entries.append(manifest.Shard(name, count, len(data), hashlib.sha256(data).hexdigest()))
      start += count
    found[split] = SplitFacts(start, 1, tuple(entries))
  known = {
    "djax": "0.1.0",
    "expansion": "djx2",
    "key_fingerprint": fingerprint,
    "spec": spec,
    "disguised_shape": SHAPE,
    "dtype": dtype,
    "quantiser": None,
    "error": Bounds(0.0, 0.0, 0.0),
    "source": {"name": "digits", "dtype": "uint8", "hmac": hashlib.sha256(b"").hexdigest()},
    "classes": CLASSES,
    "class_names": None,
    "labels": "permuted",
    "views": {"count": 1, "crop": 0, "flip": False, "together": False},
    "splits": found,
    "files": {},
    "warnings": datacard.warnings(spec, fingerprint=fingerprint),
    "sealed": "AAAA" * CLASSES,
    "id": "0123456789abcdef" * 2,
  }
  whole = Manifest(**{**known, **facts})
  features.save_config(str(unfinished))
  texts = {
    "features.json": (unfinished / "features.json").read_bytes(),
    "dataset_info.json": json.dumps(records.tfds_info(found)).encode(),
    "README.md": datacard.text(whole).encode(),
  }
  hashes = {}
  for name, data in texts.items():
    (folder / name).write_bytes(data)
    hashes[name] = hashlib.sha256(data).hexdigest()
  manifest.write(folder, dataclasses.replace(whole, files=hashes), mac_key=KEY)
  shutil.rmtree(unfinished)
  return folder


def mend(folder):
  """Renews the checksum, as anyone can; the MAC stays."""
  first = (folder / manifest.MAC_FILE).read_bytes().partition(b"\n")[0] + b"\n"
  digest = hashlib.sha256((folder / manifest.FILE).read_bytes() + first).hexdigest()
  (folder / manifest.MAC_FILE).write_bytes(first + f"sha256 {digest}\n".encode())


def paths(content, at=()):
  """Yields the path of every value in a JSON content."""
  items = content.items() if isinstance(content, dict) else enumerate(content)
  for name, value in items:
    yield (*at, name)
    if isinstance(value, (dict, list)):
      yield from paths(value, (*at, name))
