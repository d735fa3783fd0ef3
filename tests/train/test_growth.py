"""What grows, and how it is judged, on made-up numbers; the measurement itself is slow."""

import importlib
import json
import sys
import time

import numpy as np
import pytest

from train.experiments import growth

IMAGES = (4000, 8000, 16000, 32000, 64000)


def made_up(verb="", seconds=lambda megapixels: 1 + megapixels / 8, memory=lambda images: 200.0):
  """Returns runs of which all but ``verb`` are linear and flat; ``verb`` takes what is given."""
  rng = np.random.default_rng(0)
  runs = []

  def add(name, side, block, images):
    megapixels = images * side**2 / 1e6
    exact = seconds(megapixels) if name == verb else 1 + megapixels / 8
    peak = memory(images) if name == verb else 200.0
    noisy = [exact + 0.02 * rng.standard_normal() for _ in range(2)] + [9 * exact]
    runs.append(
      {"verb": name, "side": side, "block": block, "images": images}
      | {"seconds": noisy, "peak_mb": [peak, peak + 2, 3 * peak]}
    )

  for name in growth.VERBS:
    for images in reversed(IMAGES):
      add(name, 32, 4, images)
  for name in growth.VERBS[:2]:
    for images in (1000, 4000):
      add(name, 64, 4, images)
      add(name, 32, 8, 4 * images)
  return runs


def test_fit_finds_the_line_it_was_given():
  found = growth.fit(np.array([1, 2, 5]), np.array([5, 7, 13]))
  np.testing.assert_allclose(found, (2, 3, 1), rtol=1e-12)


def test_r2_agrees_with_the_squared_correlation():
  rng = np.random.default_rng(1)
  x = rng.uniform(0, 10, 20)
  y = 3 * x + rng.standard_normal(20)
  assert growth.fit(x, y)[2] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, rel=1e-9)
  assert growth.fit(x, np.full(20, 4.0))[2] == 0


def test_curve_takes_medians_in_order_of_size():
  runs = made_up()
  images, seconds, peak = growth.curve(runs, "verify").T
  assert images.tolist() == list(IMAGES)
  rows = sorted((run for run in runs if run["verb"] == "verify"), key=lambda run: run["images"])
  assert seconds.tolist() == [sorted(run["seconds"])[1] for run in rows]
  assert peak.tolist() == [202.0] * 5


def test_linear_and_flat_passes():
  assert growth.check(made_up()) == []


def test_rates_leave_the_start_out():
  found = growth.rates(made_up(), "disguise aes", "side")
  assert found.keys() == {32, 64}
  assert list(found.values()) == pytest.approx([8, 8], rel=0.1)
  assert growth.rates(made_up(), "disguise aes", "block").keys() == {4, 8}


@pytest.mark.parametrize("verb", growth.VERBS)
def test_a_quadratic_is_rejected(verb):
  (fault,) = growth.check(made_up(verb, seconds=lambda megapixels: 1 + megapixels**2 / 80))[:1]
  assert fault.startswith(f"{verb}: time must be linear")


@pytest.mark.parametrize("slope", [0.0, -1 / 64])
def test_time_that_does_not_grow_is_rejected(slope):
  faults = growth.check(made_up("verify", seconds=lambda megapixels: 2 + slope * megapixels))
  assert [fault.partition(",")[0] for fault in faults] == ["verify: time must be linear"]
  assert "verify" in growth.summary(made_up("verify", seconds=lambda _: 2.0))[2]


@pytest.mark.parametrize("verb", growth.VERBS)
def test_growing_memory_is_rejected(verb):
  def at_the_last(factor):
    return growth.check(made_up(verb, memory=lambda n: 200.0 * (factor if n == 64000 else 1)))

  (fault,) = at_the_last(1.17)
  assert fault.startswith(f"{verb}: memory must be flat")
  assert at_the_last(1.13) == []


def test_a_side_whose_pixels_cost_more_is_rejected():
  runs = made_up()
  for run in runs:
    if run["side"] == 64 and run["verb"] == "disguise aes":
      run["seconds"] = [3 * value for value in run["seconds"]]
  (fault,) = growth.check(runs)
  assert fault.startswith("disguise aes: a pixel must cost the same") and "at 64" in fault


def test_drawing_is_the_same_every_time(tmp_path):
  machine = {"cpu": "made up", "cores": 2, "python": "3", "jax": "0", "numpy": "2"}
  measured = json.loads(json.dumps({"machine": machine, "runs": made_up()}))
  for name in ("a.svg", "b.svg"):
    growth.draw(measured, tmp_path / name)
  drawn = (tmp_path / "a.svg").read_bytes()
  assert drawn == (tmp_path / "b.svg").read_bytes()
  assert drawn.startswith(b"<?xml") and b"dc:date" not in drawn
  measured["runs"][0]["seconds"] = [40.0]
  growth.draw(measured, tmp_path / "b.svg")
  assert drawn != (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(
  ("factor", "code", "last"), [(1, 0, "linear and flat"), (2, 1, "verify: memory must be flat")]
)
def test_the_command_draws_and_judges(factor, code, last, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(growth, "DOCS", tmp_path)
  machine = {"cpu": "made up", "cores": 2, "python": "3", "jax": "0", "numpy": "2"}
  runs = made_up("verify", memory=lambda images: 200.0 * (factor if images == 64000 else 1))
  (tmp_path / "growth.json").write_text(json.dumps({"machine": machine, "runs": runs}))
  assert growth.main([str(tmp_path / "growth.json")]) == code
  lines = capsys.readouterr().out.splitlines()
  assert [line[:13].strip() for line in lines[:4]] == list(growth.VERBS)
  assert lines[-1].startswith(last)
  assert (tmp_path / "growth.svg").exists()


def test_the_peak_is_that_of_the_largest_process():
  """A child of a child counts; this process, far larger than either, does not."""
  large = np.ones(300 << 17)  # 300 MiB
  bare = [sys.executable, "-I", "-S", "-c"]
  seconds, small = growth.peak_of([*bare, "pass"])
  inner = [*bare, "import time; time.sleep(.3); bytearray(b'x') * (100 << 20)"]
  slower, grown = growth.peak_of([*bare, f"import subprocess; subprocess.run({inner!r})"])
  assert 0 < seconds < slower and slower > 0.3
  assert small < 60 and 104 < grown < 160 and large.nbytes > 300e6


def test_a_command_that_fails_says_why():
  with pytest.raises(RuntimeError, match="no such thing"):
    growth.peak_of([sys.executable, "-I", "-S", "-c", "raise SystemExit('no such thing')"])


def test_source_is_seeded_flat_and_of_constant_bytes(tmp_path):
  from djax import sources

  for name, images, side in (("a", 64, 32), ("b", 64, 32), ("c", 4, 128)):
    growth._write_source(tmp_path / f"{name}.npz", images, side)
  assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
  with sources.open(str(tmp_path / "c.npz"), "test") as test:
    assert (len(test), test.image_shape, len(test.class_names)) == (16, (128, 128, 3), 10)
  with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "c.npz") as c:
    assert a["train_images"].nbytes == c["train_images"].nbytes == 64 * 32 * 32 * 3


def in_process(module, *words):
  """Does what ``growth._run`` does, but in this process, with a small network."""
  start = time.perf_counter()
  if module == "train":
    words += ("--config.model.name=mlp", "--config.model.width=4")
  assert importlib.import_module(f"{module}.__main__").main(list(words)) == 0
  return time.perf_counter() - start, 100.0


@pytest.mark.slow
def test_every_command_still_runs(tmp_path, monkeypatch):
  _, peak = growth._run("djax", "keygen", str(tmp_path / "key"), "--no-passphrase")
  assert peak > 20
  monkeypatch.setattr(growth, "_run", in_process)
  target = tmp_path / "growth.json"
  assert growth.main(["--measure", "--small", str(target)]) == 0
  measured = json.loads(target.read_text())
  cases = {(run["verb"], run["side"], run["block"]) for run in measured["runs"]}
  assert {verb for verb, _, _ in cases} == set(growth.VERBS)
  assert {("disguise aes", 64, 4), ("disguise aes", 32, 8)} <= cases
  assert str(tmp_path) not in target.read_text()
  for verb in growth.VERBS:
    assert len(growth.curve(measured["runs"], verb)) == 3
  growth.draw(measured, tmp_path / "growth.svg")
  assert (tmp_path / "growth.svg").stat().st_size > 10_000
  assert len(growth.summary(measured["runs"])) == 8
