"""The data card of a disguised data set, in plain words, and the warnings that go with a disguise."""

import json
from collections.abc import Mapping
from typing import Any

from djax import schemes
from djax.disguised.manifest import Manifest
from djax.disguised.manifest_form import FOLDER
from djax.io import escape

__all__ = ["text", "warnings"]


def warnings(spec: Mapping[str, Any], *, fingerprint: str) -> tuple[str, ...]:
  """Returns what to know before relying on a disguise.

  Args:
    spec: ``SchemeSpec.to_dict()``.
    fingerprint: of the key.
  """
  lines = []
  if fingerprint.startswith("experiment"):
    lines.append("EXPERIMENT: the key comes from a public seed and protects nothing.")
  lines += schemes.kind_of(spec).warnings(spec)
  return tuple(lines)


def text(manifest: Manifest) -> str:
  """Returns the data card, Markdown; what stands in the manifest is shown as it is and never read as Markdown.

  Args:
    manifest: of the data set.
  """
  shown = escape.for_markdown
  options = shown(
    ", ".join(
      f"{name} {value}"
      for name, value in manifest.spec.items()
      if name not in ("scheme", "image_shape")
    )
  )
  is_folder = manifest.container == FOLDER
  rows = "\n".join(
    f"| {shown(name)} | {split.records} | {split.views} | {split.records if is_folder else len(split.shards)} |"
    for name, split in manifest.splits.items()
  )
  shape = " x ".join(map(str, manifest.disguised_shape))
  dtype, version = shown(manifest.dtype), shown(manifest.djax)
  labels = {
    "permuted": "Label ids were permuted by the key; class names are sealed for its owner.",
    "plain": "Label ids and class names are those of the source.",
  }[manifest.labels]
  cautions = "\n".join(f"- {shown(warning)}" for warning in manifest.warnings)
  is_request = tuple(manifest.splits) == ("query",)
  purpose = "to be classified by a network" if is_request else "to train networks on"
  command = (
    "python -m train.answer RUN DIR --out answers.json"
    if is_request
    else "python -m train --config=outsourced --config.data.disguised_dir=DIR"
  )
  return f"""# Disguised images

These {shape} images ({dtype}) were disguised with a secret key by djax {version}, {purpose}. The originals
are with the owner of the key {escape.for_markdown_code(manifest.key_fingerprint)}.

Scheme: **{shown(manifest.spec["scheme"])}** ({options}). {manifest.classes} classes. {labels}

| split | records | views of each original | files |
|---|---|---|---|
{rows}

## Use

```
{command}
```

{_reading(manifest)}{_scale(manifest)}
Do not flip, crop, rotate, resize or blur these images: that breaks their blocks. Check them with
`python -m djax verify DIR`.

## What the disguise does not do

It is obfuscation with a key, not encryption of the whole.

{cautions}

The number of records, how often each label id occurs, and everything in MANIFEST.json are readable by anyone.
"""


def _reading(manifest: Manifest) -> str:
  """Shows how to read the images without djax."""
  split = next(iter(manifest.splits))
  if manifest.container == FOLDER:
    return f"""or with any reader of PNG files in one folder for each class, such as torchvision's. Folders are named by
label id; `allow_empty` keeps the ids right where a split lacks a class:

```python
from PIL import Image
from torchvision.datasets import ImageFolder

data = ImageFolder("DIR/{split}", loader=Image.open, allow_empty=True)
data[0]  # image and label id
```
"""
  return f"""or, with TFDS alone and without TensorFlow:

```python
import tensorflow_datasets as tfds

source = tfds.builder_from_directory("DIR").as_data_source()[{json.dumps(split)}]
source[0]["image"], source[0]["label"]
```
"""


def _scale(manifest: Manifest) -> str:
  """Says how stored values become disguised ones, where they were quantised."""
  if manifest.quantiser is None:
    return ""
  return (
    "\nValues are quantised: `offset[p] + scale[p] * stored` at block position `p`, both in MANIFEST.json; "
    f"they are then at most {manifest.error.stored:.3g} off.\n"
  )
