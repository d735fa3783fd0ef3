"""The network of a run on originals, asked on the owner's machine."""

import json

import numpy as np
import pytest
from helpers.training import tiny
from PIL import Image

import train
from djax import keys, sources
from djax.__main__ import main
from djax.keys import keyfile

pytestmark = pytest.mark.slow  # they train a network each

MASTER = keys.Master(bytes(range(32)))
COUNT = 50
PLAIN = ("disguise.scheme=plain", "disguise.noise_level=0")
AES = (
  "disguise.scheme=aes",
  "disguise.block_size=4",
  "disguise.unit_pixels=2",
  "disguise.noise_level=0",
)
VIEWS = ("augment.views=3", "augment.test_views=3", "augment.crop=1")
MIXED = ("disguise.scheme=instahide", "disguise.noise_level=0", "disguise.permute=false")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Test images as files, and an array of them."""
  folder = tmp_path_factory.mktemp("place")
  images = sources.load("digits", f"test[:{COUNT}]").images
  (folder / "pictures").mkdir()
  for number, image in enumerate(images):
    Image.fromarray(image[..., 0]).save(folder / "pictures" / f"{number:02}.png")
  np.save(folder / "images.npy", images)
  keyfile.write(folder / "key", MASTER, passphrase=None)
  keyfile.write(folder / "other", keys.Master(bytes(32)), passphrase=None)
  return folder


def said(capsys, *words):
  assert main(["query", *map(str, words), "--json"]) == 0, capsys.readouterr().err
  return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
  "overrides",
  [
    ("disguise.noise_level=0",),
    PLAIN,
    (*AES, *VIEWS),
  ],
  ids=["rmt", "plain", "several views of aes"],
)
def test_what_it_says_is_what_the_run_measured(place, tmp_path, capsys, overrides):
  """Without noise an image is disguised as in the test of the run: as many answers are right."""
  result = train.run(tiny("train.epochs=10", "model.width=32", *overrides), tmp_path / "run")
  names = sources.load("digits", "test").class_names
  labels = sources.load("digits", f"test[:{COUNT}]").labels
  for asked in ("pictures", "images.npy"):
    found = said(capsys, place / asked, "--checkpoint", tmp_path / "run")
    assert found["classes"] == list(names)
    right = [names[y] == row["class"] for y, row in zip(labels, found["answers"], strict=True)]
    assert sum(right) == round(result["test_accuracy"] * COUNT)
    assert (
      sum(right) > 0.2 * COUNT or overrides[:3] == AES[:3]
    )  # ten epochs teach it little under AES
    for row in found["answers"]:
      assert abs(sum(row["probabilities"]) - 1) < 1e-5
      assert row["probability"] == max(row["probabilities"])


def test_a_run_with_a_key_needs_that_key(place, tmp_path, capsys):
  train.run(tiny("train.epochs=1"), tmp_path / "run", master=MASTER)
  words = ["query", str(place / "pictures" / "00.png"), "--checkpoint", str(tmp_path / "run")]
  assert main(words) == 2
  assert "was trained with a key of its owner. Give it: --key K" in capsys.readouterr().err
  assert main([*words, "--key", str(place / "other")]) == 3
  assert "Give the key it was trained with" in capsys.readouterr().err
  assert main([*words, "--key", str(place / "key"), "--expect", "0" * 64]) == 2
  assert "--expect names a manifest" in capsys.readouterr().err
  first = said(capsys, *words[1:], "--key", place / "key")
  assert first == said(capsys, *words[1:], "--key", place / "key")  # noise and all


def test_an_experiment_takes_no_key(place, tmp_path, capsys):
  train.run(tiny("train.epochs=1"), tmp_path / "run")
  words = ["query", str(place / "images.npy"), "--checkpoint", str(tmp_path / "run")]
  assert main([*words, "--key", str(place / "key")]) == 3
  assert "was trained with the key experiment" in capsys.readouterr().err
  assert main(words) == 0


def test_a_scheme_that_mixes_images_mixes_the_query_with_training_images(place, tmp_path, capsys):
  config = tiny("train.epochs=1", *MIXED)
  train.run(config, tmp_path / "run")
  found = said(capsys, place / "images.npy", "--checkpoint", tmp_path / "run")
  assert len(found["answers"]) == COUNT


def test_images_are_read_as_the_run_read_them(place, tmp_path, capsys):
  """Resized, on the background of the config, unless the command says otherwise."""
  for name, value in (("cat", 0), ("dog", 200)):
    (tmp_path / "set" / name).mkdir(parents=True)
    for i in range(40):
      pixels = np.full((12, 12, 4), (value, value, value, 255), np.uint8)
      pixels[:3, :, 3] = 0
      pixels[5, 5, :3] = i
      Image.fromarray(pixels, "RGBA").save(tmp_path / "set" / name / f"{i:02}.png")
  folder = ("data.image_size=8", "data.background=white", f"data.source={tmp_path}/set")
  config = tiny(*folder, "data.train_split=train", "data.test_split=test", "train.epochs=2")
  train.run(config, tmp_path / "run")
  words = (tmp_path / "set" / "cat" / "39.png", "--checkpoint", tmp_path / "run")
  as_read = said(capsys, *words)
  assert as_read["classes"] == ["cat", "dog"]
  assert as_read == said(capsys, *words, "--background", "white", "--image-size", 8)
  black = said(capsys, *words, "--background", "black")
  assert as_read["answers"][0]["probabilities"] != black["answers"][0]["probabilities"]
  (tmp_path / "set").rename(tmp_path / "moved")
  assert main(["query", *map(str, words)]) == 4
  assert "no such folder of images" in capsys.readouterr().err


def test_other_forms_need_a_key(place, capsys):
  assert main(["query", str(place / "images.npy"), "--data", "d", "--request", "r"]) == 2
  assert "query: needs --key" in capsys.readouterr().err
