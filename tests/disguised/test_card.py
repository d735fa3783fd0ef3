import re

import numpy as np
import pytest
from helpers.directories import SPEC, build, images_of

from djax.disguised import datacard, manifest
from djax.disguised.quantise import Bounds, Quantiser

FINGERPRINT = "djx1-cjrs2kzflglpn4ve"
AES = {
  "scheme": "aes",
  "image_shape": [4, 6, 3],
  "block_size": 2,
  "permute": True,
  "position_keys": False,
  "unit_pixels": 4,
  "salt_pepper": 0.0,
}


def words(spec, fingerprint=FINGERPRINT):
  found = datacard.warnings(spec, fingerprint=fingerprint)
  assert all("\n" not in line and line.endswith(".") for line in found)
  return found


@pytest.mark.parametrize(
  ("spec", "said"),
  [
    (SPEC, ["permutation: every block stays readable"]),
    ({"scheme": "rmt"}, ["rmt: linear; a few known pairs reveal the matrices"]),
    (
      {**AES, "block_size": 4, "unit_pixels": 16},
      ["aes: encrypted unit by unit (ECB), so equal units stay equal"],
    ),
    (
      {**AES, "unit_pixels": 2},
      ["aes: encrypted unit by unit", "aes: a unit covers 2 pixels only"],
    ),
  ],
)
def test_each_scheme_has_its_warnings_and_no_others(spec, said):
  found = words(spec)
  assert len(found) == len(said)
  for line, start in zip(found, said, strict=True):
    assert line.startswith(start)


def test_small_units_are_said_to_have_no_way_back():
  assert "cannot be restored, not even with the key" in words({**AES, "unit_pixels": 1})[1]


def test_an_experiment_key_is_the_first_warning():
  found = words(SPEC, "experiment-seed7-cjrs2kzflglpn4ve")
  assert found[0].startswith("EXPERIMENT: ")
  assert "protects nothing" in found[0]
  assert found[1:] == words(SPEC)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  return build(
    tmp_path_factory.mktemp("card") / "set", fingerprint="experiment-seed7-cjrs2kzflglpn4ve"
  )


def test_the_card_says_what_the_images_are(whole):
  facts = manifest.read(whole)
  text = datacard.text(facts)
  assert (whole / "README.md").read_text() == text
  assert "These 4 x 6 x 3 images (float32) were disguised" in text
  assert "**permutation** (block_size 2). 5 classes." in text
  assert "`experiment-seed7-cjrs2kzflglpn4ve`" in text
  assert "| train | 11 | 1 | 3 |" in text
  assert "| test | 11 | 1 | 3 |" in text
  assert "Label ids were permuted by the key" in text
  for warning in facts.warnings:
    assert f"\n- {warning}\n" in text
  assert len(facts.warnings) == 2
  assert "quantised" not in text


def test_the_card_follows_the_facts(tmp_path):
  quantiser = Quantiser(np.zeros(6, np.float32), np.ones(6, np.float32))
  folder = build(
    tmp_path / "set",
    dtype="uint8",
    spec=AES,
    quantiser=quantiser,
    error=Bounds(0.512345, 1.0, 0.0),
    labels="plain",
    class_names=tuple("abcde"),
  )
  text = datacard.text(manifest.read(folder))
  assert "(uint8)" in text
  assert "**aes** (block_size 2, permute True, position_keys False, unit_pixels 4" in text
  assert "Label ids and class names are those of the source." in text
  assert "`offset[p] + scale[p] * stored`" in text
  assert "at most 0.512 off" in text
  assert "permuted by the key" not in text


def block_of(text):
  (found,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  return found


def test_the_code_of_the_card_runs(whole):
  code = block_of((whole / "README.md").read_text())
  assert code.count('"DIR"') == 1
  names = {}
  exec(code.replace("DIR", str(whole)), names)
  images, labels = images_of("train")
  np.testing.assert_array_equal(names["source"][0]["image"], images[0])
  assert names["source"][0]["label"] == labels[0]
  last = code.strip().splitlines()[-1]
  image, label = eval(last, names)
  np.testing.assert_array_equal(image, images[0])
  assert label == labels[0]


def test_the_code_of_a_request_runs_too(tmp_path):
  folder = build(tmp_path / "set", splits=("query",), shards=(3,))
  names = {}
  exec(block_of((folder / "README.md").read_text()).replace("DIR", str(folder)), names)
  assert len(names["source"]) == 3


def test_the_card_is_markdown_without_gaps(whole):
  text = (whole / "README.md").read_text()
  assert text.startswith("# Disguised images\n")
  assert text.endswith("\n") and not text.endswith("\n\n")
  assert text.count("```") == 4
  assert "None" not in text and "{" not in text
