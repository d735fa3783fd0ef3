"""Sweeps that go on where they were stopped, and the table of what is known to break a setting."""

import dataclasses
import json
import shutil

import pytest
from helpers import audits, verbs
from helpers.audits import PAIRED, PERFECT, SIZES, USELESS, fall, nearest_mean, refused, takes_all
from helpers.fresh import loaded_by
from PIL import Image

from djax import schemes, sources
from djax.attacks.base import Attack
from djax.audit import build_known_breaks, known_breaks, lookup, runner, scenario, sweep, verdicts
from djax.errors import ConfigError, UnsafeError

PLAN = sweep.Plan(
  source="digits",
  disguise={"scheme": "rmt", "permute": False},
  block_sizes=(2, 4),
  noise_levels=(0.0, 200.0),
  attacks=("perfect", "paired"),
  seed=3,
)
TABLE = {attack.name: attack for attack in (PERFECT, USELESS, PAIRED)}


@pytest.fixture
def call(capsys):
  return verbs.caller(capsys)


@pytest.fixture
def fakes(monkeypatch):
  audits.quick(monkeypatch, audits.FAKES)


@pytest.fixture
def quick(monkeypatch):
  test = sources.load("digits", "test")
  examiner = nearest_mean(test.images, test.labels)
  monkeypatch.setattr(scenario, "FAST", SIZES)
  monkeypatch.setattr(runner, "train_examiner", lambda *_, **__: examiner)
  monkeypatch.setattr(
    sweep.evaluator, "train_examiner", lambda images, labels, **_: nearest_mean(images, labels)
  )


def cells(out):
  return {path.name: path.read_bytes() for path in (out / sweep.CELLS).iterdir()}


@pytest.mark.slow
def test_a_sweep_has_a_cell_for_each_setting_and_a_plot(tmp_path, quick):
  out = tmp_path / "s"
  facts = sweep.run(PLAN, out, TABLE)
  assert facts == json.loads((out / "sweep.json").read_text())
  assert [(c["block_size"], c["noise"]) for c in facts["cells"]] == [
    *((2, 0.0), (2, 200.0), (4, 0.0), (4, 200.0))
  ]
  assert set(cells(out)) == {f"block{b}-noise{n}.json" for b in (2, 4) for n in (0, 200)}
  clean, noisy = facts["cells"][:2]
  assert [run["pairs"] for run in clean["attacks"][1]["runs"]] == [1, 5, 15, 35]
  assert sweep.leakage(clean, None) == pytest.approx(1, abs=1e-3)
  assert sweep.leakage(clean, 1) < 0.5 < sweep.leakage(clean, 5)
  assert sweep.leakage(noisy, None) < sweep.leakage(clean, None)
  assert sweep.leakage(clean, 7) is None
  assert clean["levels"]["1"]["verdict"] == "broken"
  assert noisy["utility"]["accuracy"] <= clean["utility"]["accuracy"]
  assert clean["utility"]["accuracy"] > clean["utility"]["chance"] + verdicts.EXAMINER_USABLE
  with Image.open(out / "sweep.png") as drawn:
    assert drawn.size[0] > 400
  assert (out / "sweep.svg").read_text().startswith("<?xml")
  told = "\n".join(sweep.lines(facts, out))
  assert "15 pairs" in told and "sweep.png" in told


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_and_ends_the_same(tmp_path, quick):
  whole = sweep.run(PLAN, tmp_path / "whole", TABLE)
  calls = []

  def stop(known, *, seed, progress):
    calls.append(known.spec["block_size"])
    if len(calls) == 3:
      raise KeyboardInterrupt
    return PERFECT.attack(known, seed=seed, progress=progress)

  counted = TABLE | {"perfect": Attack("perfect", 1, (), "undoes it", takes_all, stop)}
  out = tmp_path / "stopped"
  with pytest.raises(KeyboardInterrupt):
    sweep.run(PLAN, out, counted)
  done = cells(out)
  assert len(done) == 2 and not (out / "sweep.json").exists()
  broken = out / sweep.CELLS / "block2-noise0.json"
  broken.write_text('{"half')  # as no kill leaves it, but a full disk may
  again = sweep.run(PLAN, out, counted)
  assert calls == [2, 2, 4, 2, 4, 4]

  def timeless(value):
    if isinstance(value, dict):
      return {k: timeless(v) for k, v in value.items() if k != "seconds"}
    return [timeless(v) for v in value] if isinstance(value, list) else value

  assert timeless(again) == timeless(whole)
  before = cells(out)
  sweep.run(PLAN, out, TABLE | {"perfect": Attack("perfect", 1, (), "", takes_all, fall)})
  assert cells(out) == before


def test_a_sweep_does_not_mix_with_anything_else(tmp_path, quick):
  out = tmp_path / "s"
  sweep.run(PLAN, out, TABLE)
  for other in ({"seed": 4}, {"block_sizes": (2,)}, {"attacks": ("perfect",)}, {"full": True}):
    with pytest.raises(UnsafeError, match="is not this sweep"):
      sweep.run(dataclasses.replace(PLAN, **other), out, TABLE)
  (tmp_path / "full").mkdir()
  with pytest.raises(UnsafeError, match="is not this sweep"):
    sweep.run(PLAN, tmp_path / "full", TABLE)
  assert list((tmp_path / "full").iterdir()) == []


def test_blocks_that_do_not_fit_are_a_cell_of_their_own(tmp_path, quick):
  plan = dataclasses.replace(
    PLAN, disguise={"scheme": "aes"}, attacks=("useless",), noise_levels=(0.0, 0.1)
  )
  facts = sweep.run(plan, tmp_path / "s", TABLE)
  assert [bool(cell["refused"]) for cell in facts["cells"]] == [True, True, False, False]
  assert "block_size" in facts["cells"][0]["refused"]
  plan = dataclasses.replace(plan, block_sizes=(2,))
  with pytest.raises(ConfigError, match="nothing of the sweep fits"):
    sweep.run(plan, tmp_path / "none", TABLE)


def test_the_verb_sweeps(tmp_path, call, fakes, quick):
  given = ("audit", "--sweep", "--source", "digits", "--scheme", "rmt", "--out", tmp_path / "s")
  grid = ("--block-sizes", "2", "--noise-levels", "0,50", "--attacks", "useless,paired")
  code, out, err = call(*given, *grid)
  assert code == 0, err
  lines = out.splitlines()
  assert lines[0].split()[:2] == ["block", "noise"] and len(lines) == 4
  assert call(*given, *grid, "--json")[0] == 0
  refused(
    call(*given, "--block-size", "2"),
    2,
    "--block-size has no meaning with --sweep.* Give --block-sizes",
  )
  refused(call(*given, "--noise-level", "2"), 2, "takes its noise from --noise-levels")
  refused(call(*given, "--block-sizes", "2,x"), 2, "--block-sizes must be numbers")
  refused(call(*given, "--block-sizes", "4"), 5, "is not this sweep")


# The table.


def spec(**more):
  shape = {"image_shape": [28, 28, 1], "block_size": 4}
  return schemes.from_spec({**shape, **more}).spec.to_dict()


def test_classes_of_settings():
  classes = {
    "rmt with blocks of 4-7 pixels, no noise, orthogonal matrices that mix rows, permuted "
    "among 17-64 places": spec(scheme="rmt"),
    "rmt with blocks of 2-3 pixels, 25-50 noise after the projection, projection matrices that mix block, "
    "not permuted": spec(
      scheme="rmt",
      block_size=2,
      noise_level=26.0,
      noise_place="after",
      matrix="projection",
      mix="block",
      permute=False,
    ),
    "aes with blocks of 8 and more pixels, units of 2 pixels, a key for each position, salt and pepper, "
    "permuted among up to 16 places": spec(
      scheme="aes", block_size=8, unit_pixels=2, position_keys=True, salt_pepper=0.01
    ),
    "permutation with blocks of 2-3 pixels, permuted among 65-256 places": spec(
      scheme="permutation", block_size=2
    ),
    "permutation with blocks of 8 and more pixels, not permuted": spec(
      scheme="permutation", block_size=28
    ),
  }
  for words, given in classes.items():
    assert known_breaks.classify(given) == words
  assert known_breaks.classify(spec(scheme="rmt", noise_level=25.0)) == known_breaks.classify(
    spec(scheme="rmt", noise_level=3.0, block_size=5)
  )


def test_looking_up_loads_no_training_library_and_no_key_code():
  assert loaded_by("from djax.audit import lookup; lookup({'scheme': 'plain'})") == {"jax"}


def shelf(path, *rows):
  found = []
  for source, given, one, two in rows:
    levels = {
      str(n): {"verdict": verdict, "by": by, "pairs": pairs, "failed": []}
      for n, (verdict, by, pairs) in enumerate((one, two), 1)
    }
    names = {name: value for name, value in given.items() if name != "image_shape"}
    row = {"class": known_breaks.classify(given), "source": source, "disguise": names}
    found.append({**row, "levels": levels})
  path.write_text(json.dumps({"format": known_breaks.FORMAT, "rows": found}))
  return path


def test_lookup_says_the_worst_that_is_known(tmp_path):
  fine, broken = ("not broken by these attacks", ["x"], None), ("broken", ["procrustes"], 5)
  given = spec(scheme="rmt")

  def said(name, *rows):
    return lookup(given, path=shelf(tmp_path / name, *rows))

  assert said("none") is None
  assert said("other", ("mnist", spec(scheme="aes"), broken, broken)) is None
  assert said("2", ("mnist", given, fine, broken)) == (
    "RMT 4x4, permuted, N = 0: broken with a few known originals (5 pairs) by procrustes, as audited on mnist. "
    "On your images: python -m djax audit"
  )
  alone = ("broken", ["moments", "ica"], None)
  leaks = ("leaks", ["placement"], None)
  assert ": broken from the disguised images alone by moments, ica, as audited on cifar10." in said(
    "worst", ("mnist", given, leaks, broken), ("cifar10", given, alone, alone)
  )
  assert ": broken with a few" in said("order", ("mnist", given, leaks, broken))
  assert ": leaks from the disguised images alone by placement" in said(
    "leaks", ("mnist", given, leaks, leaks)
  )
  assert said("fine", ("mnist", given, fine, fine), ("digits", given, fine, fine)) is None
  near, far = ({**given, "block_size": size} for size in (5, 7))
  assert said("near", ("mnist", far, fine, broken), ("digits", near, fine, broken)) == (
    "RMT 5x5, permuted, N = 0 (the nearest setting audited to RMT 4x4, permuted, N = 0): broken with a few known "
    "originals (5 pairs) by procrustes, as audited on digits. On your images: python -m djax audit"
  )
  assert said("small", ("digits", {**given, "image_shape": [8, 8, 1]}, alone, alone)) is None
  assert lookup(schemes.plain_scheme((8, 8, 1)).spec.to_dict()) is None


def test_the_shipped_table_is_one_that_the_command_makes():
  shipped = known_breaks.read()
  assert shipped["format"] == known_breaks.FORMAT and shipped["rows"]
  listed = list(build_known_breaks.settings())
  assert len({json.dumps(given, sort_keys=True) for given in listed}) == len(listed)
  for row in shipped["rows"]:
    assert row["source"] in build_known_breaks.SOURCES and row["disguise"] in listed
    shape = {"digits": [8, 8, 1], "mnist": [28, 28, 1], "cifar10": [32, 32, 3]}[row["source"]]
    given = schemes.from_spec({**row["disguise"], "image_shape": shape}).spec.to_dict()
    assert row["class"] == known_breaks.classify(given)
    for found in row["levels"].values():
      assert found["verdict"] in (*verdicts.VERDICTS, None)
  weak = spec(scheme="rmt", block_size=2, permute=False)
  assert "broken" in lookup(weak)


def test_a_new_attack_keeps_the_rows_and_is_tried_alone(tmp_path, quick, monkeypatch):
  path, disguises = tmp_path / "table.json", [{"scheme": "rmt", "block_size": 2}]
  tried = []

  def counted(attack):
    def run(*given, **more):
      tried.append(attack.name)
      return attack.attack(*given, **more)

    return attack._replace(attack=run)

  def made(*attacks):
    tried.clear()
    table = {attack.name: counted(attack) for attack in attacks}
    monkeypatch.setattr(build_known_breaks, "ATTACKS", table)
    build_known_breaks.write(path, sources=("digits",), disguises=disguises, sizes=SIZES)
    (row,) = json.loads(path.read_text())["rows"]
    return row

  weak = made(USELESS)
  assert weak["attacks"] == ["useless"] and weak["levels"]["1"]["by"] == ["useless"]
  both = made(USELESS, PERFECT)
  assert both["attacks"] == ["useless", "perfect"] and set(tried) == {"perfect"}
  assert both["levels"]["1"] == {
    "verdict": "broken",
    "by": ["perfect"],
    "pairs": None,
    "failed": [],
  }
  again = made(PERFECT, USELESS, PAIRED)
  assert again["levels"]["1"] == both["levels"]["1"] and set(tried) == {"paired"}
  assert again["levels"]["2"]["by"][0] == "perfect" and set(again["attacks"]) == {
    "perfect",
    "useless",
    "paired",
  }
  # A row of a table that an older djax wrote names no attacks: the head does, for all rows.
  old = json.loads(path.read_text())
  del old["rows"][0]["attacks"]
  path.write_text(json.dumps(old))
  assert made(PERFECT, USELESS, PAIRED)["levels"] == again["levels"] and not tried


def test_the_table_is_made_and_gone_on_with(tmp_path, quick, monkeypatch):
  monkeypatch.setattr(build_known_breaks, "ATTACKS", {"perfect": PERFECT, "useless": USELESS})
  monkeypatch.setattr(build_known_breaks, "_SEED", 0)
  disguises = [
    {"scheme": "rmt", "block_size": 2},
    {"scheme": "aes", "block_size": 2},  # fits nothing, is left out
    {"scheme": "rmt", "block_size": 4},
  ]
  path = tmp_path / "table.json"
  said = []
  build_known_breaks.write(
    path,
    sources=("digits", "not_prepared"),
    disguises=disguises[:2],
    sizes=SIZES,
    data_dir=str(tmp_path),
    progress=lambda fraction, word: said.append(word),
  )
  (row,) = json.loads(path.read_text())["rows"]
  assert row["levels"]["1"] == {"verdict": "broken", "by": ["perfect"], "pairs": None, "failed": []}
  assert row["sizes"]["private"] == 600
  assert any("not_prepared left out" in word for word in said)
  assert any("aes 2 left out" in word for word in said)
  shutil.copyfile(path, tmp_path / "copy")
  monkeypatch.setattr(
    build_known_breaks, "ATTACKS", {"perfect": USELESS._replace(name="perfect"), "useless": USELESS}
  )
  build_known_breaks.write(path, sources=("digits",), disguises=disguises, sizes=SIZES)
  first, second = json.loads(path.read_text())["rows"]
  assert first == row and second["levels"]["1"]["verdict"].startswith("not broken")
  small = spec(scheme="rmt", block_size=2, image_shape=[8, 8, 1])
  assert "broken from" in lookup(small, path=tmp_path / "copy")
  # An attack is gone: what it found is found anew.
  monkeypatch.setattr(build_known_breaks, "ATTACKS", {"useless": USELESS})
  build_known_breaks.write(path, sources=("digits",), disguises=disguises[:1], sizes=SIZES)
  (row,) = json.loads(path.read_text())["rows"]
  assert row["levels"]["1"]["by"] == ["useless"] and row["attacks"] == ["useless"]
  (tmp_path / "other").write_text("{}")
  with pytest.raises(ConfigError, match="is no table of audits"):
    build_known_breaks.write(tmp_path / "other", sources=())
