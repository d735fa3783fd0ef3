"""Sources of images, written to be read."""

import io
import json
import pathlib

import numpy as np
from PIL import Image


def arrays(count=6, sides=(4, 5, 3), **changes):
  """Arrays of an archive under the MedMNIST names."""
  rng = np.random.default_rng(0)
  result = {}
  for part, size in (("train", count), ("test", 4)):
    result[f"{part}_images"] = rng.integers(0, 256, (size, *sides), np.uint8)
    result[f"{part}_labels"] = (np.arange(size) % 3).astype(np.uint8)[:, None]
  return {name: x for name, x in {**result, **changes}.items() if x is not None}


def draw(path, seed=0, size=(6, 4), mode="RGB", **options):
  """Saves an image of random pixels and returns them."""
  shape = size[::-1] if mode in ("L", "1") else (*size[::-1], 3)
  pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).convert(mode).save(path, **options)
  return pixels


def write_tfds(root, version="1.0.0", name="tiny", labels=None, **features):
  """Writes a TFDS directory of 7 train and 3 test records; returns it and the images."""
  import tensorflow_datasets as tfds
  from array_record.python import array_record_module

  folder = pathlib.Path(root, name, version)
  folder.mkdir(parents=True)
  kinds = tfds.features
  features = {
    "image": kinds.Tensor(shape=(4, 5, 3), dtype=np.uint8, encoding="bytes"),
    "label": kinds.ClassLabel(names=["ant", "bee", "cow"]),
    **features,
  }
  features = kinds.FeaturesDict(features)
  serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
  image = features["image"]
  sides = [side or 4 for side in image.shape]
  images = np.random.default_rng(0).integers(0, 256, (10, *sides)).astype(image.np_dtype)
  splits = []
  for split, indices in (("train", range(7)), ("test", range(7, 10))):
    path = folder / f"{name}-{split}.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for i in indices:
      values = {"image": images[i], "label": i % 3 if labels is None else labels[i]}
      if isinstance(image, kinds.Image):  # a file, as TFDS would encode an array by TensorFlow
        values["image"] = io.BytesIO()
        Image.fromarray(images[i].squeeze()).save(values["image"], "png")
        values["image"].seek(0)
      example = {key: values.get(key, "x") for key in features}
      writer.write(serializer.serialize_example(features.encode_example(example)))
    writer.close()
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    lengths = {"shardLengths": [str(len(indices))], "numBytes": str(path.stat().st_size)}
    splits.append({"name": split, "filepathTemplate": template, **lengths})
  features.save_config(folder)
  keys = {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}}
  info = {"name": name, "version": version, "fileFormat": "array_record", "splits": splits}
  (folder / "dataset_info.json").write_text(json.dumps({**info, "supervisedKeys": keys}))
  return folder, images


def kinds():
  import tensorflow_datasets as tfds

  return tfds.features


def arrays_in(folder):
  """Writes 24 training and 6 test images of random pixels to ``originals.npz``, and returns its path."""
  rng = np.random.default_rng(0)
  path = folder / "originals.npz"
  images = {
    name: rng.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
    for name, count in (("train_images", 24), ("test_images", 6))
  }
  np.savez(path, **images, train_labels=np.arange(24) % 2, test_labels=np.arange(6) % 2)
  return path
