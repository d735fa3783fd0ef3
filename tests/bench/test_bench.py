import copy
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from djax import keys, schemes
from djax.bench import clock, disguises, guard, page, reference
from djax.cli import main as cli
from djax.errors import DataError
from djax.ops import rmt
from train import bench_steps

SHAPE = (8, 12, 2)
DISGUISES = [
  {"scheme": "permutation", "block_size": 2},
  {"scheme": "rmt", "block_size": 4},
  {"scheme": "rmt", "block_size": 2, "permute": False},
  {"scheme": "aes", "block_size": 4},
  {"scheme": "aes", "block_size": 4, "permute": False},
]
SPREAD = [2.0, 1.5, 2.5]
ROW = {
  "spec": {"scheme": "rmt", "block_size": 4, "image_shape": [32, 32, 3], "noise_level": 25.0},
  "batch": 128,
  "where": "device",
  "compile_seconds": 0.25,
  "gigabytes_per_second": SPREAD,
  "images_per_second": {"ours": [123456.0, 120000.0, 130000.0], "loop": SPREAD, "copy": SPREAD},
  "times": {"loop": [90.0, 80.0, 99.0], "copy": [0.5, 0.4, 0.6]},
}
STEP = {
  "model": "cnn",
  "batch": 128,
  "spec": ROW["spec"],
  "seconds": {"plain": [0.010, 0.009, 0.011], "disguised": [0.0101, 0.009, 0.011]},
  "times": [1.01, 0.99, 1.02],
}
RESULTS = {
  "machine": {
    **{"platform": "cpu", "device": "a processor", "devices": 1, "cores": 2, "python": "3.11"},
    **{"jax": "0.10", "flax": "0.12", "numpy": "2.4", "djax": "0"},
  },
  "rounds": 5,
  "copy_gigabytes_per_second": SPREAD,
  "errors": [{"mix": "rows", "ours": 1e-7, "default": 1e-3}],
  "disguises": [ROW],
  "steps": [STEP],
}


@pytest.mark.parametrize("disguise", DISGUISES, ids=str)
def test_the_plain_loop_gives_what_the_scheme_gives(disguise):
  scheme = schemes.from_spec({**disguise, "image_shape": SHAPE})
  key = scheme.make_key(keys.experiment(3).read)
  images = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)
  slow = reference.disguise(scheme.spec.to_dict(), key, images)
  fast, _ = scheme.disguise(key, images, None, rng=jax.random.key(0))
  assert slow.dtype == fast.dtype
  np.testing.assert_allclose(slow, fast, rtol=1e-6, atol=1e-4)
  assert np.abs(slow.astype(np.float32) - images).mean() > 1


@pytest.fixture
def now(monkeypatch):
  """A clock that stands still until a work moves it: nothing here depends on how busy the machine is."""
  seconds = [0.0]
  monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: seconds[0]))
  return seconds


def test_works_take_turns_and_report_what_one_time_takes(now):
  order = []

  def worker(name, seconds):
    def work(times):
      order.append((name, times))
      now[0] += seconds * times
      return times

    return work

  works = {"a": worker("a", 0.002), "b": worker("b", 0.03)}
  seconds = clock.side_by_side(works, rounds=3)
  warm = [("a", 1), ("a", 1), ("b", 1), ("b", 1)]
  assert order == [*warm, *3 * [("a", 10), ("b", 1)]]
  np.testing.assert_allclose(seconds["a"], 3 * [0.002])
  np.testing.assert_allclose(seconds["b"], 3 * [0.03])
  assert clock.ratio(seconds["b"], seconds["a"]) == [15.0, 15.0, 15.0]


def test_a_work_that_does_more_than_asked_is_divided_by_what_it_did(now):
  def work(times):
    now[0] += 0.03
    return 10 * times

  (seconds,) = clock.side_by_side({"a": work}, rounds=2).values()
  np.testing.assert_allclose(seconds, 0.03 / (10 * 7))


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("disguise", [DISGUISES[1], DISGUISES[3]], ids=str)
def test_a_row_says_what_was_measured(monkeypatch, disguise, on_device):
  if disguise["scheme"] == "aes" and on_device:
    pytest.skip("AES runs on the host alone")

  def fixed(works, *, rounds):
    assert all(work(2) == 2 for work in works.values()) and rounds == 3
    seconds = {"ours": 0.003, "loop": 0.1, "copy": 0.001, "raw": 0.0015, "raw_reused": 0.0005}
    return {name: seconds[name] * np.array([1.0, 1.1, 0.9]) for name in works}

  monkeypatch.setattr(clock, "side_by_side", fixed)
  row = disguises.measure(disguises.Case(disguise, SHAPE, 60, on_device), rounds=3)
  wanted = {"copy": 1 / 3, "loop": 0.1 / 0.003}
  if disguise["scheme"] == "aes":
    wanted |= {"raw": 0.5, "raw_reused": 1 / 6}
  assert set(row["times"]) == set(wanted)
  for name, (median, lower, upper) in row["times"].items():
    assert lower == median == upper == pytest.approx(wanted[name], rel=1e-3)
  assert row["images_per_second"]["ours"][0] == pytest.approx(60 / 0.003)
  assert row["images_per_second"]["loop"][0] == pytest.approx(60 / 0.1)
  moved = np.prod(SHAPE) * (5 if disguise["scheme"] == "rmt" else 2) * 60
  assert row["gigabytes_per_second"][0] == pytest.approx(moved / 0.003 / 1e9, rel=1e-3)
  assert row["spec"]["image_shape"] == list(SHAPE) and row["batch"] == 60
  assert (row["compile_seconds"] is not None) == on_device
  json.dumps(row)


def test_errors_are_those_of_float32_and_show_a_coarser_product(monkeypatch):
  def found():
    return {row["mix"]: row["ours"] for row in disguises.errors()}

  assert set(found()) == {"rows", "block"}
  assert all(0 < error < 1e-6 for error in found().values())
  exact = rmt.project

  def coarse(matrices, blocks, *, mix):
    return exact(matrices.astype(jax.numpy.bfloat16).astype(matrices.dtype), blocks, mix=mix)

  monkeypatch.setattr(rmt, "project", coarse)
  assert all(1e-4 < error < 1e-1 for error in found().values())


@pytest.mark.slow
def test_a_step_is_measured_with_and_without_the_disguise(monkeypatch):
  def fixed(works, *, rounds):
    assert all(work(2) >= 2 for work in works.values()) and rounds == 2
    seconds = {"plain": 0.002, "disguised": 0.003}
    return {name: seconds[name] * np.array([1.0, 1.1, 0.9]) for name in works}

  monkeypatch.setattr(clock, "side_by_side", fixed)
  row = bench_steps.measure(bench_steps.Case("digits_rmt", (8, 8, 1), 16), rounds=2)
  assert {name: taken[0] for name, taken in row["seconds"].items()} == pytest.approx(
    {"plain": 0.002, "disguised": 0.003}
  )
  assert row["times"] == pytest.approx([1.5, 1.5, 1.5])
  assert row["spec"]["scheme"] == "rmt" and row["batch"] == 16
  json.dumps(row)


def test_every_row_of_the_bench_can_be_made():
  every = list(disguises.cases(fast=False))
  for case in every:
    scheme = schemes.from_spec({**case.disguise, "image_shape": case.image_shape})
    assert scheme.spec.disguised_shape == case.image_shape, "the plain loop wants whole blocks"
    assert scheme.on_device or not case.on_device
  assert all(case in every for case in disguises.cases(fast=True))


def test_the_guard_passes_a_little_and_stops_a_lot():
  assert guard.compare(RESULTS, RESULTS) == 3
  for factor, fails in ((0.99, False), (1.01, True)):
    slow = copy.deepcopy(RESULTS)
    slow["disguises"][0]["times"]["copy"] = [0.01, 0.01, 0.5 / guard.MARGIN / factor]
    slow_step = copy.deepcopy(RESULTS)
    slow_step["steps"][0]["times"] = [99, 1.01 * guard.MARGIN * factor, 99]
    if not fails:
      guard.compare(slow, RESULTS)
      guard.compare(slow_step, RESULTS)
      continue
    with pytest.raises(guard.SlowerError, match=r"rmt.*batch=128 against copy is 0\.124, was 0\.5"):
      guard.compare(slow, RESULTS)
    with pytest.raises(guard.SlowerError, match="step of cnn"):
      guard.compare(slow_step, RESULTS)


def test_seconds_alone_do_not_alarm_the_guard():
  now = copy.deepcopy(RESULTS)
  now["disguises"][0]["images_per_second"]["ours"][0] /= 100
  now["steps"][0]["seconds"]["plain"][0] *= 100
  assert guard.compare(now, RESULTS) == 3


@pytest.mark.parametrize(
  "stored", [{}, [], {"disguises": [{}], "steps": []}, {**RESULTS, "steps": [1]}]
)
def test_other_files_are_refused_in_a_line(stored):
  with pytest.raises(DataError, match="bench --json"):
    guard.compare(RESULTS, stored)


def test_the_page_holds_the_numbers_and_says_what_was_not_run():
  text = page.text([RESULTS])
  assert "| device | rmt 4x4 N=25 | 32x32x3 | 128 | 123,456 (120,000-130,000) |" in text
  assert "| 90 x | 0.50 (0.40-0.60) |" in text
  assert "| cnn | rmt 4x4 N=25 | 128 | 10.00 | 10.10 | 1.010 (0.990-1.020) |" in text
  assert "**Not run.**" in text and "1.0e-07" in text
  on_gpu = {**RESULTS, "machine": {**RESULTS["machine"], "platform": "gpu", "device": "H200"}}
  text = page.text([RESULTS, on_gpu])
  assert "**Not run.**" not in text and "## GPU" in text and "H200" in text


def test_the_command_writes_the_page_of_files_and_refuses_bad_ones(tmp_path, capsys):
  good, bad = tmp_path / "good.json", tmp_path / "bad.json"
  good.write_text(json.dumps(RESULTS))
  bad.write_text("{")
  assert cli.main(["bench", "--page", str(good)]) == 0
  assert capsys.readouterr().out == page.text([RESULTS])
  for arguments, code, words in (
    (["--page", str(bad)], 4, "must be what `python -m djax bench --json` wrote"),
    (["--page", str(tmp_path / "none.json")], 4, "cannot read"),
    (["--page", str(good), "--fast"], 2, "takes files of speeds and no other flag"),
    (["--against", str(tmp_path / "none.json")], 4, "cannot read"),
  ):
    assert cli.main(["bench", *arguments]) == code
    out, err = capsys.readouterr()
    assert not out and words in err and len(err.splitlines()) == 1
