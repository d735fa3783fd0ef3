"""Odd inputs come to the same end at every door, and no original is lost, doubled or renamed on the way."""

import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.fresh import ROOT, run_code, succeeded
from helpers.source_files import arrays, draw
from odd import ODD, folder, npz
from PIL import Image

from djax import keys, sources
from djax.__main__ import main
from djax.audit import exported, scenario
from djax.disguised import directory
from djax.errors import ConfigError, DataError, DjaxError
from djax.owner import export, plan, query, restore, shards
from djax.owner.plan import Request
from djax.sources import inventory

MASTER = keys.Master(bytes(range(32)))
SCHEME = {"scheme": "permutation", "block_size": 2}


def load(source):
  return [sources.load(source, split) for split in ("train", "test")]


def check(source):
  opened = {split: sources.open(source, split) for split in ("train", "test")}
  for records in opened.values():
    records.check()
  found = inventory.take(opened)
  for records in opened.values():
    records.read(0, len(records))
    records.close()
  return [*found.lines(), *found.warnings()]


def disguise(source, out):
  return export.disguise(Request(source, SCHEME), out, MASTER, workers=1)


def audit(source):
  for split in ("train", "test"):
    scenario.from_source(source, SCHEME, seed=0, sizes=scenario.FAST, split=split)


@pytest.mark.parametrize("odd", ODD, ids=[odd.name for odd in ODD])
def test_every_door_says_the_same(odd, tmp_path):
  source = odd.make(tmp_path)
  doors = {
    "load": lambda: load(source),
    "check": lambda: check(source),
    "disguise": lambda: disguise(source, tmp_path / "out"),
    "audit": lambda: audit(source),
  }
  for name, door in doors.items():
    if odd.refusal is None and name == "audit":
      with pytest.raises(DataError, match="needs at least 160 images"):
        door()
      continue
    if odd.refusal is None:
      if name == "disguise" and load(source)[0].images.dtype != np.uint8:
        continue  # the scheme takes bytes
      result = door()
      if name == "check" and odd.says:
        assert any(re.search(odd.says, line) for line in result), result
      continue
    with pytest.raises(DjaxError) as caught:
      door()
    if name == "audit" and odd.name == "floats above 255":
      continue  # so few images are refused before one is read
    assert re.search(odd.refusal, str(caught.value)), name
    assert "\n" not in str(caught.value) and caught.value.exit_code in (2, 4)
  if odd.refusal:
    assert not list(tmp_path.glob("out/*array_record*"))


def digits_folder(root, count=12):
  for number, name in enumerate(("cat", "dog")):
    for i in range(count):
      draw(root / name / f"{i:02}.png", seed=100 * number + i, mode="L", size=(8, 8))
  return str(root)


def add(root):
  draw(root / "cat" / "new.png", seed=7, mode="L", size=(8, 8))


def remove(root):
  (root / "cat" / "03.png").unlink()


def replace(root):
  for i in (0, 1, 2, 3, 5, 6, 7, 8, 10):  # more than one shard holds
    draw(root / "dog" / f"{i:02}.png", seed=8, mode="L", size=(8, 8))


def replace_in_test(root):
  draw(root / "dog" / "04.png", seed=9, mode="L", size=(8, 8))  # the fifth


@pytest.mark.parametrize("change", [add, remove, replace, replace_in_test])
@pytest.mark.parametrize("moment", ["before", "between"])
def test_a_source_that_changes_meanwhile_is_refused(tmp_path, monkeypatch, change, moment):
  source = digits_folder(tmp_path / "set")
  asked = Request(source, SCHEME, originals_per_shard=5)
  real, changed = shards.Worker.run, []

  def run(worker, task, advance):
    if moment == "between":
      real(worker, task, advance)
    if not changed:
      changed.append(change(tmp_path / "set"))
    if moment == "before":
      real(worker, task, advance)

  with monkeypatch.context() as patch:
    patch.setattr(shards.Worker, "run", run)
    if (moment, change) == (
      "between",
      add,
    ):  # the worker that holds the plan's listing does all of it
      facts = export.disguise(asked, tmp_path / "out", MASTER, workers=1)
      assert [split.records for split in facts.splits.values()] == [20, 4]
      return
    with pytest.raises(
      DataError, match=r"not those that the work was planned for|was changed while|No such file"
    ) as caught:
      export.disguise(asked, tmp_path / "out", MASTER, workers=1)
  assert "\n" not in str(caught.value)
  with pytest.raises(DataError, match="its files have changed"):
    export.disguise(asked, tmp_path / "out", MASTER, workers=1)


def test_the_work_goes_on_when_the_files_are_brought_back(tmp_path, monkeypatch):
  source = digits_folder(tmp_path / "set")
  copy = shutil.copytree(source, tmp_path / "copy")
  asked = Request(source, SCHEME, originals_per_shard=5, dataset_id="5" * 32)
  real = shards.Worker.run

  def run(worker, task, advance):
    real(worker, task, advance)
    replace(tmp_path / "set")

  with monkeypatch.context() as patch:
    patch.setattr(shards.Worker, "run", run)
    with pytest.raises(DataError):
      export.disguise(asked, tmp_path / "out", MASTER, workers=1)
  shutil.copytree(copy, source, dirs_exist_ok=True)
  export.disguise(asked, tmp_path / "out", MASTER, workers=1)
  restore.to_files(directory.open(tmp_path / "out"), MASTER, tmp_path / "back.npz")
  for split in ("train", "test"):
    back, true = sources.load(f"{tmp_path}/back.npz", split), sources.load(str(copy), split)
    np.testing.assert_array_equal(back.images, true.images)
    np.testing.assert_array_equal(back.labels, true.labels)


def test_a_worker_takes_the_listing_of_the_plan_alone(tmp_path):
  source = digits_folder(tmp_path / "set")
  asked = Request(source, SCHEME, dataset_id="5" * 32)
  job, *_ = plan.make(asked, tmp_path / "out", MASTER)
  secret = MASTER.data_set("5" * 32, job.manifest.spec)
  assert len(shards.Worker(job, secret)._source("train")) == 20
  add(tmp_path / "set")
  with pytest.raises(DataError, match="files of the split train are not those"):
    shards.Worker(job, secret)._source("train")


NAMES = ["b", "a", "10", "9", "T-shirt/top", "ä", "猫 1", "a.b", "A", "x" * 70]


def test_names_and_numbers_come_back_from_a_restored_folder_and_from_tfds(tmp_path):
  count = len(NAMES)
  images = np.resize(np.arange(7 * count, dtype=np.uint8) * 3, (count, 4, 4, 1))
  labels = np.arange(count)
  half = {"test_images": images[:3], "test_labels": labels[:3]}  # most classes are in train alone
  np.savez(
    tmp_path / "set.npz", train_images=images, train_labels=labels, **half, class_names=NAMES
  )
  asked = Request(f"{tmp_path}/set.npz", SCHEME, plain_labels=True)
  facts = export.disguise(asked, tmp_path / "out", MASTER, workers=1)
  features = tfds.builder_from_directory(tmp_path / "out").info.features
  assert list(features["label"].names) == list(facts.class_names) == NAMES
  restore.to_files(directory.open(tmp_path / "out"), MASTER, tmp_path / "back")
  for split, wanted in (("train", images), ("test", images[:3])):
    back = sources.load(f"{tmp_path}/back", split)
    order = np.argsort(back.labels)
    np.testing.assert_array_equal(back.labels[order], labels[: len(wanted)])
    np.testing.assert_array_equal(back.images[order], wanted)


def test_val_is_a_third_split_all_the_way(tmp_path):
  saved = arrays(val_images=np.full((5, 4, 5, 3), 9, np.uint8), val_labels=np.arange(5) % 3)
  np.savez(tmp_path / "set.npz", **saved)
  splits = {"train": "train", "val": "val[:4]", "test": "test"}
  asked = Request(f"{tmp_path}/set.npz", SCHEME, splits=splits)
  facts = export.disguise(asked, tmp_path / "out", MASTER, workers=1)
  counts = {name: split.records for name, split in facts.splits.items()}
  assert counts == {"train": 6, "val": 4, "test": 4}
  restore.to_files(directory.open(tmp_path / "out"), MASTER, tmp_path / "back.npz")
  restore.to_files(directory.open(tmp_path / "out"), MASTER, tmp_path / "folder")
  for source in ("back.npz", "folder"):
    back = sources.load(f"{tmp_path}/{source}", "val")
    assert (back.images == 9).all() and sorted(back.labels) == [0, 0, 1, 2]


def test_check_prints_what_is_there_and_draws_it(tmp_path, capsys):
  source = digits_folder(tmp_path / "set")
  (tmp_path / "set" / "cat" / "Thumbs.db").write_bytes(b"x")
  assert main(["check", "--source", source, "--sheet", f"{tmp_path}/sheet.png"]) == 0
  out, err = capsys.readouterr()
  assert out.splitlines()[:2] == ["images: train 20, test 4; 8x8x1 uint8", "classes: 2 (cat, dog)"]
  assert "skipped: 1 (cat/Thumbs.db)" in out
  assert "shows originals: keep it on this machine" in err
  assert (tmp_path / "sheet.png").stat().st_mode & 0o777 == 0o600
  assert main(["check", "--source", source, "--json"]) == 0
  assert '"counts": {"train": [10, 10], "test": [2, 2]}' in capsys.readouterr().out
  assert main(["check", "--source", source, "--sheet", f"{tmp_path}/sheet.png"]) == 5
  assert main(["check", "--source", f"{tmp_path}/none", "--sheet", f"{tmp_path}/other.png"]) == 4
  assert not (tmp_path / "other.png").exists()


@pytest.mark.parametrize("odd", [x for x in ODD if x.refusal], ids=lambda odd: odd.name)
def test_what_disguise_refuses_in_pixels_query_refuses(odd, tmp_path):
  source = odd.make(tmp_path)
  if not source.endswith(".npz"):
    pytest.skip("a folder")
  with np.load(source) as arrays:
    images = arrays["train_images"]
  if re.search("name|val", odd.name):
    pytest.skip("not of the pixels")
  np.save(tmp_path / "asked.npy", images)
  dtype = "float32" if images.dtype.kind == "f" else "uint8"
  facts = SimpleNamespace(spec={"image_shape": [4, 5, 3]}, source={"dtype": dtype})
  with pytest.raises(DataError) as caught:
    query.read([tmp_path / "asked.npy"], facts)
  if images.shape[1:] == (4, 5, 3):
    assert re.search(odd.refusal, str(caught.value))


def test_a_query_says_what_white_is(tmp_path):
  np.save(tmp_path / "asked.npy", np.full((2, 4, 5, 3), 0.5, np.float32))
  facts = SimpleNamespace(spec={"image_shape": [4, 5, 3]}, source={"dtype": "float32"})
  images = query.read([tmp_path / "asked.npy"], facts, scale=1).images
  assert (images == 127.5).all()
  assert (query.read([tmp_path / "asked.npy"], facts, scale=255).images == 0.5).all()


def test_a_folder_of_questions_is_listed_as_a_source_is(tmp_path):
  for name in ("a.png", "b.png"):
    draw(tmp_path / name, mode="L", size=(5, 4))
  (tmp_path / "Thumbs.db").write_bytes(b"x")
  facts = SimpleNamespace(spec={"image_shape": [4, 5, 1]}, source={"dtype": "uint8"})
  assert len(query.read([tmp_path], facts).names) == 2
  Image.new("L", (5, 4)).save(tmp_path / "c.webp")
  (tmp_path / "more").mkdir()
  with pytest.raises(DataError, match=r"2 files cannot be taken.*c\.webp.*more: is a folder"):
    query.read([tmp_path], facts)


@pytest.mark.parametrize("make", [npz(), folder()], ids=["npz", "folder"])
def test_a_system_that_runs_out_of_files_is_no_damage(tmp_path, make):
  source = make(tmp_path)
  code = f"""
    import os, resource
    from djax import errors, sources
    records = sources.open({source!r}, "train")
    records.read(0, 2)
    records.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    try:
      records.read(0, 2)
    except errors.DataError as error:
      print(error)
  """
  line = succeeded(run_code(code)).strip()
  assert line.endswith("cannot be read (Too many open files)")


def test_more_shards_are_read_than_files_may_be_open_at_first(tmp_path):
  source = digits_folder(tmp_path / "set", count=60)
  export.disguise(
    Request(source, SCHEME, originals_per_shard=1), tmp_path / "out", MASTER, workers=1
  )
  code = f"""
    import resource
    from djax.disguised import directory
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
    with directory.open({str(tmp_path / "out")!r}) as data:
      data.splits["train"].check()
      print(data.splits["train"].shards)
  """
  assert int(succeeded(run_code(code))) == 96


@pytest.mark.slow
def test_python_without_docstrings_runs_the_verbs(tmp_path):
  done = subprocess.run(
    [sys.executable, "-OO", "-m", "djax", "check", "--source", "digits"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("guard", ["", "if __name__ == '__main__':\n  "])
@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_what_it_lacks(tmp_path, guard):
  source = digits_folder(tmp_path / "set")
  script = tmp_path / "script.py"
  script.write_text(
    "import sys\n"
    "from djax import errors, keys\n"
    "from djax.owner import export, plan\n"
    f"request = plan.Request({source!r}, {SCHEME!r}, originals_per_shard=5)\n"
    "def work():\n"
    "  try:\n"
    f"    export.disguise(request, {str(tmp_path / 'out')!r}, keys.Master(bytes(32)), workers=2)\n"
    "  except errors.DjaxError as error:\n"
    "    sys.exit(str(error))\n"
    f"{guard}work()\n"
  )
  done = subprocess.run(
    [sys.executable, str(script)],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  if guard:
    assert done.returncode == 0, done.stderr
    return
  assert done.returncode == 1
  assert done.stderr.startswith("disguise: a script that calls it must do so below `if __name__")
  assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def patients(root, count=10):
  """Two classes; every patient has two images in each."""
  for number, name in enumerate(("cat", "dog")):
    for i in range(2 * count):
      path = root / name / f"scan{i:03}_patient{i // 2:02}.png"
      draw(path, seed=100 * number + i, mode="L", size=(8, 8))
  return str(root)


PATTERN = r"(patient\d+)"


def test_nobody_is_in_two_splits(tmp_path):
  source = patients(tmp_path / "set")
  who = {}
  for split in ("train", "test"):
    with sources.open(source, split, group_by=PATTERN) as records:
      who[split] = {re.search(PATTERN, name)[1] for name, _ in records.files}
      assert not any("one person" in note for note in records.notes)
  assert who["test"] == {"patient04", "patient09"} and not who["train"] & who["test"]
  assert len(who["train"]) == 8
  with sources.open(source, "test") as records:  # without it they are
    apart = {re.search(PATTERN, name)[1] for name, _ in records.files}
    assert any("one person may be in both: see --group-by" in note for note in records.notes)
  with sources.open(source, "train") as records:
    assert apart & {re.search(PATTERN, name)[1] for name, _ in records.files}


def test_a_disguised_set_is_split_by_groups(tmp_path):
  asked = Request(
    patients(tmp_path / "set"),
    SCHEME,
    reading=sources.Reading(group_by=PATTERN),
    originals_per_shard=5,
  )
  facts = export.disguise(asked, tmp_path / "out", MASTER, workers=2)
  assert {name: split.records for name, split in facts.splits.items()} == {"train": 32, "test": 8}
  restore.to_files(directory.open(tmp_path / "out"), MASTER, tmp_path / "back.npz")
  back = sources.load(f"{tmp_path}/back.npz", "test")
  true = sources.load(asked.source, "test", group_by=PATTERN)
  np.testing.assert_array_equal(back.images, true.images)
  other = Request(asked.source, SCHEME, originals_per_shard=5)
  with pytest.raises(DjaxError, match="made otherwise"):
    export.disguise(other, tmp_path / "out", MASTER, workers=1)


@pytest.mark.parametrize(
  ("pattern", "error", "message"),
  [
    ("(", ConfigError, "must be a regular expression, got '[(]'"),
    (r"patient\d+", ConfigError, "one group in parentheses.* with 0"),
    (r"(pat)(ient)", ConfigError, "one group in parentheses.* with 2"),
    (r"(person\d+)", DataError, r"\.png: --group-by .* finds no group in its name"),
    (r"(cat|dog)", DataError, "at least 5 groups, .* found 2"),
  ],
)
def test_patterns_that_cannot_be(tmp_path, pattern, error, message):
  source = patients(tmp_path / "set")
  with pytest.raises(error, match=message) as caught:
    sources.open(source, "train", group_by=pattern)
  assert "\n" not in str(caught.value)
  assert main(["check", "--source", source, "--group-by", pattern]) == caught.value.exit_code
  with pytest.raises(ConfigError, match=r"group_by=.* is for folders of images only"):
    sources.open("digits", "train", group_by=PATTERN)


def test_splits_that_share_a_patient_are_refused(tmp_path):
  for split in ("train", "test"):
    patients(tmp_path / "set" / split, count=2)
  assert len(sources.load(f"{tmp_path}/set", "train").labels) == 8
  with pytest.raises(DataError, match="are of one group, 'patient00', but in two splits"):
    sources.open(f"{tmp_path}/set", "train", group_by=PATTERN)


def test_an_audit_pairs_each_original_with_its_own_disguise(tmp_path):
  source = patients(tmp_path / "set", count=60)
  export.disguise(
    Request(source, SCHEME, reading=sources.Reading(group_by=PATTERN)),
    tmp_path / "out",
    MASTER,
    workers=1,
  )

  def paired(**options):
    return exported.from_directory(
      str(tmp_path / "out"), source, MASTER, seed=0, sizes=scenario.FAST, **options
    )

  paired(reading=sources.Reading(group_by=PATTERN))
  # Split otherwise, the counts and the labels are the same, and each original would be held against another's disguise.
  with pytest.raises(DataError, match="disguised again the first ones of train differ"):
    paired()
