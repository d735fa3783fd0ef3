"""Trains a small network on a disguised directory and answers requests, with NumPy and docs/format.md alone.

python train_numpy.py train disguised model.npz --epochs 30
python train_numpy.py answer disguised model.npz ask answers.json
"""

import argparse
import hashlib
import json
import struct
import sys
from pathlib import Path

import numpy as np


def read_manifest(folder):
  """Returns MANIFEST.json of a data set or a request: shapes, classes, splits."""
  return json.loads((Path(folder) / "MANIFEST.json").read_bytes())


def read(folder, split):
  """Returns the images of a split, float32 ``[N, H, W, C]``, and their label ids."""
  manifest = read_manifest(folder)
  dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
  images, labels = [], []
  for shard in manifest["splits"][split]["shards"]:
    data = (Path(folder) / shard["file"]).read_bytes()
    if hashlib.sha256(data).hexdigest() != shard["sha256"]:
      sys.exit(f"{shard['file']} is damaged. Take it from a good copy.")
    for record in records(data, shard["records"]):
      image, label = example(record)
      images.append(np.frombuffer(image, dtype))
      labels.append(label)
  return values(np.reshape(images, (-1, *manifest["disguised_shape"])), manifest), np.array(labels)


def records(data, count):
  """Yields the records of an ArrayRecord file: format.md, section 1."""
  blocks = range(0, len(data), 65536)
  data = b"".join(data[at + 24 : at + 65536] for at in blocks)
  at = 40  # behind the signature
  for _ in range(count):
    length, record = struct.unpack_from("<8xQ16xQ", data, at)
    at += 40 + length
    yield data[at - record : at]


def example(record):
  """Returns image bytes and label id of a serialised tf.train.Example."""
  found = {}
  features = fields(record)[0]
  for entry in fields(features):
    name, value = fields(entry)
    (values_list,) = fields(value)
    found[name] = fields(values_list)[0]
  return found[b"image"], number(found[b"label"], 0)[0]


def fields(message):
  """Returns the contents of a protobuf message's fields, which all have a length here."""
  parts, at = [], 0
  while at < len(message):
    length, at = number(message, at + 1)
    parts.append(message[at : at + length])
    at += length
  return parts


def number(data, at):
  """Returns a protobuf number, seven bits a byte from the lowest, and where it ends."""
  value, shift = 0, 0
  while True:
    value |= (data[at] & 127) << shift
    at, shift = at + 1, shift + 7
    if data[at - 1] < 128:
      return value, at


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


def forward(net, images):
  """Returns standardised images, the hidden layer and a probability for each label id."""
  x = (images.reshape(len(images), -1) - net["mean"]) / net["std"]
  hidden = np.maximum(x @ net["w1"] + net["b1"], 0)
  logits = hidden @ net["w2"] + net["b2"]
  e = np.exp(logits - logits.max(1, keepdims=True))
  return x, hidden, e / e.sum(1, keepdims=True)


def train(args):
  rng = np.random.default_rng(args.seed)
  images, labels = read(args.data, "train")
  inputs, classes = images[0].size, read_manifest(args.data)["classes"]
  net = {
    "mean": images.mean(),
    "std": images.std(),
    "w1": rng.normal(0, (2 / inputs) ** 0.5, (inputs, 128)).astype(np.float32),
    "b1": np.zeros(128, np.float32),
    "w2": rng.normal(0, (2 / 128) ** 0.5, (128, classes)).astype(np.float32),
    "b2": np.zeros(classes, np.float32),
  }
  speed = {name: np.zeros_like(net[name]) for name in ("w1", "b1", "w2", "b2")}
  for epoch in range(args.epochs):
    loss, order = 0.0, rng.permutation(len(images))
    for start in range(0, len(order), 32):
      rows = order[start : start + 32]
      x, hidden, error = forward(net, images[rows])
      own = (np.arange(len(rows)), labels[rows])
      loss -= np.log(error[own] + 1e-12).sum() / len(images)
      error[own] -= 1
      error /= len(rows)
      back = (error @ net["w2"].T) * (hidden > 0)
      slopes = {"w1": x.T @ back, "b1": back.sum(0), "w2": hidden.T @ error, "b2": error.sum(0)}
      for name, slope in slopes.items():
        speed[name] = 0.9 * speed[name] + slope + 1e-4 * net[name]
        net[name] -= 0.03 * speed[name]
    print(f"epoch {epoch + 1}: loss {loss:.4f}")
  np.savez(args.model, **net)
  images, labels = read(args.data, "test")
  right = forward(net, images)[2].argmax(1) == labels
  print(f"test accuracy {right.mean():.4f} of {len(right)} images")


def answer(args):
  manifest, request = read_manifest(args.data), read_manifest(args.request)
  if request["id"] != manifest["id"]:
    sys.exit(f"{args.request} must ask about the data set {manifest['id']}, got {request['id']}.")
  images, _ = read(args.request, "query")
  content = {
    "format": "djax-answers",
    "version": 1,
    "request": hashlib.sha256((Path(args.request) / "MANIFEST.json").read_bytes()).hexdigest(),
    "run": {"framework": f"numpy {np.__version__}"},
    "probabilities": forward(np.load(args.model), images)[2].tolist(),
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
  verbs.choices["train"].add_argument("--epochs", type=int, default=30)
  verbs.choices["train"].add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  args.run(args)


if __name__ == "__main__":
  main()
