"""Trains a Keras 3 network on JAX on a disguised directory and answers requests. Needs no djax and no key.

python train_keras.py train disguised model.keras --epochs 20
python train_keras.py answer disguised model.keras ask answers.json
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")  # before keras is imported

import keras
import numpy as np
import tensorflow_datasets as tfds


def read_manifest(folder):
  """Returns MANIFEST.json of a data set or a request: shapes, classes, splits."""
  return json.loads((Path(folder) / "MANIFEST.json").read_bytes())


def read(folder, split):
  """Returns the images of a split, float32 ``[N, H, W, C]``, and their label ids."""
  source = tfds.builder_from_directory(folder).as_data_source(split)
  records = source.__getitems__(range(len(source)))
  images = np.stack([record["image"] for record in records])
  return values(images, read_manifest(folder)), np.array([record["label"] for record in records])


def values(images, manifest):
  """Turns stored images into numbers: bytes of RMT have an offset and a step for each block position."""
  images = images.astype(np.float32)
  if manifest["quantiser"]:
    b = manifest["spec"]["block_size"]
    grid = (images.shape[1] // b, images.shape[2] // b)
    offset, scale = (
      np.float32(manifest["quantiser"][name]).reshape(grid).repeat(b, 0).repeat(b, 1)[..., None]
      for name in ("offset", "scale")
    )
    images = offset + scale * images
  return images


def network(manifest, images):
  """Returns a network that reads each block as a whole first, then mixes all of them."""
  layers, b = keras.layers, manifest["spec"]["block_size"]
  return keras.Sequential(
    [
      keras.Input(manifest["disguised_shape"]),
      layers.Normalization(axis=None, mean=images.mean(), variance=images.var()),
      layers.Conv2D(64, b, strides=b, activation="relu"),
      layers.Flatten(),
      layers.Dropout(0.2),
      layers.Dense(256, activation="relu"),
      layers.Dropout(0.2),
      layers.Dense(manifest["classes"], activation="softmax"),
    ]
  )


def train(args):
  keras.utils.set_random_seed(args.seed)
  images, labels = read(args.data, "train")
  model = network(read_manifest(args.data), images)
  model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
  model.fit(images, labels, batch_size=64, epochs=args.epochs, verbose=2)
  model.save(args.model)
  images, labels = read(args.data, "test")
  _, accuracy = model.evaluate(images, labels, verbose=0)
  print(f"test accuracy {accuracy:.4f} of {len(labels)} images")


def answer(args):
  manifest, request = read_manifest(args.data), read_manifest(args.request)
  if request["id"] != manifest["id"]:
    sys.exit(f"{args.request} must ask about the data set {manifest['id']}, got {request['id']}.")
  images, _ = read(args.request, "query")
  content = {
    "format": "djax-answers",
    "version": 1,
    "request": hashlib.sha256((Path(args.request) / "MANIFEST.json").read_bytes()).hexdigest(),
    "run": {"framework": f"keras {keras.__version__} on {keras.backend.backend()}"},
    "probabilities": keras.models.load_model(args.model).predict(images, verbose=0).tolist(),
  }
  Path(args.answers).write_text(json.dumps(content))


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  verbs = parser.add_subparsers(required=True)
  for run, names in ((train, ["data", "model"]), (answer, ["data", "model", "request", "answers"])):
    verb = verbs.add_parser(run.__name__)
    verb.set_defaults(run=run)
    for name in names:
      verb.add_argument(name)
  verbs.choices["train"].add_argument("--epochs", type=int, default=20)
  verbs.choices["train"].add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  args.run(args)


if __name__ == "__main__":
  main()
