"""Trains a torchvision ResNet on a disguised directory and answers requests. Needs no djax and no key.

python train_pytorch.py train disguised model.pt --epochs 10 --workers 2
python train_pytorch.py answer disguised model.pt ask answers.json
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
import torch
import torchvision
from PIL import Image


def read_manifest(folder):
  """Returns MANIFEST.json of a data set or a request: shapes, classes, splits."""
  return json.loads((Path(folder) / "MANIFEST.json").read_bytes())


class Disguised(torch.utils.data.Dataset):
  """One split: pairs of a float32 image ``[C, H, W]`` and a label id, read one by one."""

  def __init__(self, folder, split):
    self.folder, self.split, self.manifest = folder, split, read_manifest(folder)
    self.source = None
    if self.manifest.get("container") == "folder":
      self.source = torchvision.datasets.ImageFolder(
        Path(folder) / split, loader=Image.open, allow_empty=True
      )

  def __len__(self):
    return self.manifest["splits"][self.split]["records"]

  def __getitem__(self, index):
    # Opened in the worker: an open file does not survive the fork.
    if self.source is None:
      self.source = tfds.builder_from_directory(self.folder).as_data_source(self.split)
    record = self.source[index]
    image, label = record if isinstance(record, tuple) else (record["image"], record["label"])
    image = values(np.reshape(image, self.manifest["disguised_shape"]), self.manifest)
    return torch.from_numpy(image.transpose(2, 0, 1).copy()), int(label)


def values(image, manifest):
  """Turns a stored image into numbers: bytes of RMT have an offset and a step for each block position."""
  image = image.astype(np.float32)
  if manifest["quantiser"]:
    b = manifest["spec"]["block_size"]
    grid = (image.shape[0] // b, image.shape[1] // b)
    offset, scale = (
      np.float32(manifest["quantiser"][name]).reshape(grid).repeat(b, 0).repeat(b, 1)[..., None]
      for name in ("offset", "scale")
    )
    image = offset + scale * image
  return image


class Network(torch.nn.Module):
  """ResNet-18 for the manifest's shape and classes; it standardises images by numbers that are saved with it."""

  def __init__(self, manifest):
    super().__init__()
    height, width, channels = manifest["disguised_shape"]
    self.register_buffer("mean", torch.zeros(()))
    self.register_buffer("std", torch.ones(()))
    self.net = torchvision.models.resnet18(num_classes=manifest["classes"])
    small = min(height, width) < 64
    # The usual stem shrinks an image to a quarter: too much for small ones.
    self.net.conv1 = torch.nn.Conv2d(
      channels,
      64,
      3 if small else 7,
      stride=1 if small else 2,
      padding=1 if small else 3,
      bias=False,
    )
    if small:
      self.net.maxpool = torch.nn.Identity()

  def forward(self, images):
    return self.net((images - self.mean) / self.std)


def loader(data, workers, *, train=False, batch=128):
  return torch.utils.data.DataLoader(
    data,
    batch,
    shuffle=train,
    num_workers=workers,
    persistent_workers=workers > 0,
    drop_last=train and len(data) > batch,  # batch normalisation fails on a batch of one
  )


def train(args):
  torch.manual_seed(args.seed)
  data = Disguised(args.data, "train")
  network, batches = Network(data.manifest), loader(data, args.workers, train=True)
  first, _ = next(iter(batches))
  network.mean, network.std = first.mean(), first.std()
  network.to(DEVICE)
  optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
  schedule = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, max_lr=2e-3, epochs=args.epochs, steps_per_epoch=len(batches)
  )
  for epoch in range(args.epochs):
    network.train()
    total = 0.0
    for images, labels in batches:
      optimizer.zero_grad()
      loss = torch.nn.functional.cross_entropy(network(images.to(DEVICE)), labels.to(DEVICE))
      loss.backward()
      optimizer.step()
      schedule.step()
      total += loss.item()
    print(f"epoch {epoch + 1}: loss {total / len(batches):.4f}", flush=True)
  torch.save(network.state_dict(), args.model)
  scores, labels = predict(network, Disguised(args.data, "test"), args.workers)
  print(f"test accuracy {(scores.argmax(1) == labels).mean():.4f} of {len(labels)} images")


@torch.inference_mode()
def predict(network, data, workers):
  """Returns a probability for each label id, ``[N, K]``, and the label ids, in the order of the records."""
  network.eval()
  parts = [(network(x.to(DEVICE)).softmax(1).cpu(), labels) for x, labels in loader(data, workers)]
  scores, labels = zip(*parts, strict=True)
  return torch.cat(scores).numpy(), torch.cat(labels).numpy()


def answer(args):
  manifest, request = read_manifest(args.data), Disguised(args.request, "query")
  if request.manifest["id"] != manifest["id"]:
    sys.exit(
      f"{args.request} must ask about the data set {manifest['id']}, got {request.manifest['id']}."
    )
  network = Network(manifest)
  network.load_state_dict(torch.load(args.model, weights_only=True))
  network.to(DEVICE)
  scores, _ = predict(network, request, args.workers)
  content = {
    "format": "djax-answers",
    "version": 1,
    "request": hashlib.sha256((Path(args.request) / "MANIFEST.json").read_bytes()).hexdigest(),
    "run": {"framework": f"torch {torch.__version__}"},
    "probabilities": scores.tolist(),
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
    verb.add_argument("--workers", type=int, default=2)
  verbs.choices["train"].add_argument("--epochs", type=int, default=10)
  verbs.choices["train"].add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  args.run(args)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if __name__ == "__main__":
  main()
