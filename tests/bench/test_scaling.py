"""What many images take: the estimate of a data set agrees with the data set."""

import json

import numpy as np
import pytest

from djax import keys
from djax.bench import scaling
from djax.bench.scaling import Case, Rate
from djax.cli import main as cli
from djax.owner import export, plan
from djax.owner.plan import Request

SHAPE = (16, 24, 3)
AES = Case({"scheme": "aes", "block_size": 8}, "uint8")


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(plan, "SHARD_BYTES", 10 * 16 * 24 * 3)
  monkeypatch.setattr(scaling, "_MEASURED_BYTES", 50 * 16 * 24 * 3)


@pytest.mark.parametrize("case", [AES, scaling.CASES[1]], ids=["aes", "rmt"])
def test_an_estimate_agrees_with_what_is_written(case, tmp_path):
  rate = scaling.measure(case, SHAPE)
  count = 333
  found = scaling.estimate(case, rate, count=count, image_shape=SHAPE)
  images = np.random.default_rng(1).integers(0, 256, (count, *SHAPE), np.uint8)
  labels = np.arange(count) % 2
  np.savez(
    tmp_path / "a.npz",
    train_images=images,
    train_labels=labels,
    test_images=images[:1],
    test_labels=labels[:1],
  )
  request = Request(str(tmp_path / "a.npz"), case.disguise, dtype=case.dtype)
  written = export.disguise(request, tmp_path / "set", keys.experiment(0), workers=1)
  shards = written.splits["train"].shards
  assert found["shards"] == len(shards) > 10
  assert found["bytes_in"] == images.nbytes
  assert found["bytes_out"] == pytest.approx(sum(shard.bytes for shard in shards), rel=0.05)
  # All but what every manifest has.
  content = json.loads((tmp_path / "set" / "MANIFEST.json").read_bytes())
  whole = len(json.dumps(content, indent=1))
  content["splits"]["train"]["shards"] = []
  assert found["manifest_bytes"] == pytest.approx(
    whole - len(json.dumps(content, indent=1)), rel=0.02
  )


def test_the_arithmetic_written_out():
  rate = Rate(images_per_second=10.0, stored_bytes=2000.0, entry_bytes=200)
  found = scaling.estimate(AES, rate, count=2_000_000, image_shape=SHAPE)
  assert found == {
    "bytes_in": 2_000_000 * 16 * 24 * 3,
    "bytes_out": 4_000_000_000,
    "shards": 200_000,
    "hours": pytest.approx(200_000 / 3600),
    "processes_for_a_day": 3,
    "bytes_per_second": pytest.approx(4e9 / 86_400),
    "manifest_bytes": 40_000_000,
    "most_images": (8 << 20) // 200 * 10,
  }
  lines = scaling.text([(AES, rate, found)], count=2_000_000, image_shape=SHAPE).splitlines()
  assert "2,000,000 images of 16x24x3, 2.3 GB as pixels" in lines[0]
  assert lines[3].startswith("aes 8x8 uint8") and lines[3].endswith("too many")
  few = scaling.estimate(AES, rate, count=100, image_shape=SHAPE)
  assert few["bytes_per_second"] == 20_000
  assert "too many" not in scaling.text([(AES, rate, few)], count=100, image_shape=SHAPE)


def test_the_command_prints_a_row_for_each_case(monkeypatch, capsys):
  monkeypatch.setattr(scaling, "measure", lambda case, shape: Rate(10.0, 2000.0, 200))
  assert cli.main(["bench", "--scale", "1000", "--image-shape", "32x32x3", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert [row["dtype"] for row in found["rows"]] == [case.dtype for case in scaling.CASES]
  assert found["images"] == 1000 and found["rows"][0]["hours"] == pytest.approx(100 / 3600)
  assert cli.main(["bench", "--scale", "1000"]) == 0
  assert "1,000 images of 224x224x3" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (("--scale", "0"), "must be a whole number of at least 1, got '0'"),
    (("--scale", "9", "--image-shape", "32x32"), "must be HxWxC such as 32x32x3, got '32x32'"),
    (("--scale", "9", "--image-shape", "4x32x3"), "sides of 8 pixels at least"),
    (("--image-shape", "32x32x3"), "--image-shape is for --scale"),
    (("--scale", "9", "--fast"), "--scale goes with --image-shape and --json alone"),
  ],
)
def test_what_cannot_be_estimated_is_refused(arguments, words, capsys):
  try:
    code = cli.main(["bench", *arguments])
  except SystemExit as stop:
    code = stop.code
  assert code == 2
  assert words in capsys.readouterr().err
