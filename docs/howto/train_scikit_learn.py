"""Trains a scikit-learn classifier on a disguised directory and answers requests. Needs no djax and no key.

python train_scikit_learn.py train disguised model.joblib
python train_scikit_learn.py answer disguised model.joblib ask answers.json
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import joblib
import numpy as np
import sklearn
import tensorflow_datasets as tfds
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def read_manifest(folder):
  """Returns MANIFEST.json of a data set or a request: shapes, classes, splits."""
  return json.loads((Path(folder) / "MANIFEST.json").read_bytes())


def read(folder, split):
  """Returns the images of a split, float32 ``[N, H * W * C]``, and their label ids.

  Bytes of RMT need no dequantising here: the scaler takes each value's own offset and step away.
  """
  source = tfds.builder_from_directory(folder).as_data_source(split)
  records = source.__getitems__(range(len(source)))
  images = np.stack([record["image"].ravel() for record in records])
  return images.astype(np.float32), np.array([record["label"] for record in records])


def train(args):
  model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
  model.fit(*read(args.data, "train"))
  joblib.dump(model, args.model)
  images, labels = read(args.data, "test")
  print(f"test accuracy {model.score(images, labels):.4f} of {len(labels)} images")


def answer(args):
  manifest, request = read_manifest(args.data), read_manifest(args.request)
  if request["id"] != manifest["id"]:
    sys.exit(f"{args.request} must ask about the data set {manifest['id']}, got {request['id']}.")
  images, _ = read(args.request, "query")
  model = joblib.load(args.model)
  # A label id that no training image has gets no column of scikit-learn.
  probabilities = np.zeros((len(images), manifest["classes"]))
  probabilities[:, model.classes_] = model.predict_proba(images)
  content = {
    "format": "djax-answers",
    "version": 1,
    "request": hashlib.sha256((Path(args.request) / "MANIFEST.json").read_bytes()).hexdigest(),
    "run": {"framework": f"scikit-learn {sklearn.__version__}"},
    "probabilities": probabilities.tolist(),
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
  args = parser.parse_args()
  args.run(args)


if __name__ == "__main__":
  main()
