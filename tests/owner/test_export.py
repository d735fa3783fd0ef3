"""Writing a disguised data set: what it holds, the same bytes whatever happens on the way, and what is refused."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from helpers import twins
from helpers.disks import tiny_disk
from helpers.fresh import ROOT, run_code, succeeded
from helpers.leaks import leaks, secrets_of

from djax import keys, schemes, sources
from djax.disguised import directory, manifest, quantise
from djax.errors import (
  ConfigError,
  DataError,
  DjaxError,
  KeyMismatchError,
  UnsafeError,
)
from djax.io import files
from djax.owner import disguiser, export, plan, pool, record_noise, shards, unfinished
from djax.owner.ledger import Ledger
from djax.owner.plan import Request
from djax.sources import npz

MASTER = keys.experiment(3)
RMT = {"scheme": "rmt", "block_size": 2}
PERMUTATION = {"scheme": "permutation", "block_size": 4}
AES = {"scheme": "aes", "block_size": 4}
SPLITS = {"train": "train[:96]", "test": "test[:30]"}
ID = "00112233445566778899aabbccddeeff"


def request(disguise=RMT, **options):
  return Request("digits", disguise, **{"splits": SPLITS, **options})


def tool_of(facts):
  """Returns what disguises as a data set was, with the noise of its records."""
  return disguiser.Disguiser(facts.spec, record_noise.of(facts, MASTER))


def content(folder):
  """Returns every file of a directory by its relative name."""
  return {
    str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
  }


def everything(data, split):
  """Returns dequantised float32 images and label ids of a split."""
  images, labels = data.splits[split].read(np.arange(len(data.splits[split])))
  if data.manifest.quantiser is not None:
    images = quantise.dequantise(
      images, data.manifest.quantiser, block_size=data.manifest.block_size
    )
  return images.astype(np.float32), labels


def in_turn(data, split):
  """Returns the same in the order of the source, the views of each original in turn."""
  images, labels = everything(data, split)
  facts = data.manifest.splits[split]
  order = record_noise.of(data.manifest, MASTER).order(
    split, len(images) // facts.views, facts.views
  )
  back = np.argsort(order)
  return images[back], labels[back]


@pytest.fixture(scope="module")
def originals():
  return {name: sources.load("digits", part) for name, part in SPLITS.items()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
  """A directory that was written in one go: noise, several shards."""
  folder = tmp_path_factory.mktemp("reference") / "set"
  export.disguise(noisy_request(), folder, MASTER)
  return content(folder)


def noisy_request(**options):
  return request({**RMT, "noise_level": 25.0}, originals_per_shard=20, dataset_id=ID, **options)


# What it holds.


@pytest.mark.parametrize(
  "disguise", [RMT, {**RMT, "matrix": "projection", "mix": "block"}, PERMUTATION, AES]
)
def test_holds_what_the_scheme_makes_of_the_originals(tmp_path, originals, disguise):
  facts = export.disguise(request(disguise), tmp_path / "set", MASTER)
  data = directory.open(tmp_path / "set")
  scheme = schemes.from_spec(facts.spec)
  key = scheme.make_key(MASTER.data_set(facts.id, facts.spec).read)
  label_of = record_noise.of(facts, MASTER).labels(10)
  assert facts.spec == {**facts.spec, **disguise, "image_shape": [8, 8, 1]}
  for name, original in originals.items():
    images, labels = in_turn(data, name)
    expected, _ = scheme.disguise(key, original.images, None, rng=jax.random.key(0))
    expected = np.asarray(expected, np.float32)
    assert np.abs(images - expected).max() <= 1e-5 * np.abs(expected).max()
    assert len(images) == facts.splits[name].records
    np.testing.assert_array_equal(labels, label_of[original.labels])
    assert (labels != original.labels).any()
    assert (everything(data, name)[0] != images).any()  # they stand in another order


def test_plain_labels_keep_ids_and_names(tmp_path):
  folder = tmp_path / "npz"
  folder.mkdir()
  images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
  labels = np.arange(12) % 3
  names = np.array(["cat", "dog", "über"])
  both = {
    f"{s}_{k}": v for s in ("train", "test") for k, v in (("images", images), ("labels", labels))
  }
  np.savez(folder / "a.npz", class_names=names, **both)
  asked = Request(str(folder / "a.npz"), RMT, plain_labels=True)
  facts = export.disguise(asked, tmp_path / "set", MASTER)
  assert facts.class_names == tuple(names) and facts.labels == "plain"
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(str(tmp_path / "set"))
  assert tuple(builder.info.features["label"].names) == facts.class_names
  directory.verify(tmp_path / "set")
  _, stored = in_turn(directory.open(tmp_path / "set"), "train")
  np.testing.assert_array_equal(stored, labels)


def test_names_are_nowhere_unless_asked_for(tmp_path):
  folder = tmp_path / "very private people"
  for split, shade in (("train", 40), ("test", 200)):
    for name in ("Alice Liddell", "Bob Cratchit"):
      (folder / split / name).mkdir(parents=True)
      from PIL import Image

      for i in range(3):
        Image.new("L", (8, 8), shade + i).save(folder / split / name / f"patient{i}.png")
  out = tmp_path / "set"
  asked = Request(str(folder), PERMUTATION)
  facts = export.disguise(asked, out, MASTER)
  blobs = content(out).items()
  for word in (b"Alice", b"Cratchit", b"patient", b"private", str(tmp_path).encode()):
    assert not [name for name, blob in blobs if word.lower() in blob.lower()], word
  assert facts.source["name"] == "folder" and facts.class_names is None
  shown = export.disguise(dataclasses.replace(asked, plain_labels=True), tmp_path / "shown", MASTER)
  assert shown.class_names == ("Alice Liddell", "Bob Cratchit")


@pytest.mark.parametrize("place", ["before", "after"])
def test_noise_is_what_its_distribution_says_and_differs_from_the_owned_one(tmp_path, place):
  level = 100.0
  disguise = {**RMT, "noise_level": level, "noise_place": place}
  facts = export.disguise(request(disguise, dataset_id=ID), tmp_path / "noisy", MASTER)
  noisy, _ = in_turn(directory.open(tmp_path / "noisy"), "train")
  images = sources.load("digits", SPLITS["train"]).images
  scheme = schemes.from_spec({"image_shape": [8, 8, 1], **RMT})
  key = scheme.make_key(MASTER.data_set(facts.id, facts.spec).read)
  quiet = scheme.export(key, images, lambda: None)
  drawn = noisy - quiet
  if place == "before":
    drawn = np.asarray(scheme.restore(key, drawn))
  rank = np.sort(drawn.ravel()) / level
  size = len(rank)
  # Kolmogorov-Smirnov against the uniform; 2.0 / sqrt(n) is passed with probability 0.9993.
  distance = np.abs(rank - (np.arange(size) + 0.5) / size).max()
  assert size == 96 * 64 and distance < 2.0 / np.sqrt(size)
  assert np.abs(np.sort(rank**1.1) - (np.arange(size) + 0.5) / size).max() > 2.0 / np.sqrt(size)
  owned_scheme = schemes.from_spec({"image_shape": [8, 8, 1], **disguise})
  owned = owned_scheme.disguise(key, images, None, rng=jax.random.key(0))[0] - quiet
  if place == "before":
    owned = scheme.restore(key, owned)
  both = np.sort(np.asarray(owned).ravel()) / level
  assert np.abs(both - rank).max() < 4.0 / np.sqrt(size)
  assert np.abs(np.asarray(owned).ravel() - drawn.ravel()).mean() > level / 10


def test_views_stand_anywhere_unless_they_are_wanted_side_by_side(tmp_path, originals):
  how = {"views": 3, "crop": 2, "flip": True, "dataset_id": ID}
  facts = export.disguise(request(PERMUTATION, **how), tmp_path / "set", MASTER)
  together = {**how, "views_together": True}
  export.disguise(request(PERMUTATION, **together), tmp_path / "together", MASTER)
  assert facts.splits["train"].records == 3 * 96 and facts.splits["test"].records == 30
  assert facts.views == {"count": 3, "crop": 2, "flip": True, "together": False}
  tool = tool_of(facts)
  images, labels = everything(directory.open(tmp_path / "together"), "train")
  beside = tool.restored(images).reshape(96, 3, 8, 8, 1).astype(np.uint8)
  wanted = originals["train"].images
  assert sorted(map(bytes, beside[:, 0])) == sorted(map(bytes, wanted))
  assert (beside[:, 0] != wanted).any((1, 2, 3)).mean() > 0.8  # originals too stand anywhere
  np.testing.assert_array_equal(labels[::3], labels[1::3])
  np.testing.assert_array_equal(labels[::3], labels[2::3])
  # Without it: the same records, but neighbours are views of one original as seldom as chance has it.
  data = directory.open(tmp_path / "set")
  apart, ids = everything(data, "train")
  pairs = sorted(zip(map(bytes, apart), ids, strict=True))
  assert pairs == sorted(zip(map(bytes, images), labels, strict=True))
  order = record_noise.of(facts, MASTER).order("train", 96, 3)
  assert (np.diff(order // 3) == 0).sum() <= 10  # 2 of 287 expected
  back = tool.restored(in_turn(data, "train")[0]).reshape(96, 3, 8, 8, 1)
  np.testing.assert_array_equal(back[:, 0], wanted)
  assert (back[:, 1] != back[:, 0]).any((1, 2, 3)).mean() > 0.8
  assert (back[:, 1] != back[:, 2]).any((1, 2, 3)).mean() > 0.8
  # A view is a shift of its original, perhaps mirrored: the middle 4 x 4 pixels lie somewhere in it.
  for original, view in zip(back[:20, 0, ..., 0], back[:20, 1, ..., 0], strict=True):
    found = [
      (turned[dy : dy + 4, dx : dx + 4] == view[2:6, 2:6]).all()
      for turned in (original, original[:, ::-1])
      for dy in range(5)
      for dx in range(5)
    ]
    assert any(found)


def test_bounds_hold_for_each_dtype(tmp_path, originals):
  for dtype, least in (("float32", 0.0), ("float16", 1e-3), ("uint8", 0.05)):
    facts = export.disguise(request(dtype=dtype, dataset_id=ID), tmp_path / dtype, MASTER)
    images, _ = in_turn(directory.open(tmp_path / dtype), "train")
    made = tool_of(facts)
    exact = made.images(originals["train"].images, "train", range(96))
    stored = np.abs(images.astype(np.float64) - exact).max()
    restored = np.abs(made.restored(images) - originals["train"].images.astype(np.float64)).max()
    assert least <= stored <= facts.error.stored
    assert least <= restored <= facts.error.restored


STRANGER = """
import sys
import numpy as np
import tensorflow_datasets as tfds
from sklearn.neighbors import KNeighborsClassifier

source = tfds.builder_from_directory(sys.argv[1]).as_data_source()
arrays = {}
for split in ("train", "test"):
  records = list(source[split])
  images = np.stack([record["image"] for record in records]).reshape(len(records), -1)
  arrays[split] = images, np.array([record["label"] for record in records])
print(KNeighborsClassifier(5).fit(*arrays["train"]).score(*arrays["test"]))
print("djax" in sys.modules, "tensorflow" in sys.modules)
"""


@pytest.mark.parametrize(
  ("disguise", "least"), [({**RMT, "noise_level": 25.0}, 0.9), (PERMUTATION, 0.9)]
)
@pytest.mark.slow
def test_code_that_knows_nothing_of_djax_learns_from_it(tmp_path, disguise, least):
  export.disguise(Request("digits", disguise), tmp_path / "set", MASTER)
  printed = succeeded(run_code(STRANGER, tmp_path / "set", cwd=tmp_path))
  accuracy, loaded = printed.split("\n")[:2]
  assert float(accuracy) > least and loaded == "False False"


# Golden vectors: what a data set of version 2 holds.

VECTORS = ROOT / "tests" / "vectors"
GOLDEN = json.loads((VECTORS / "djx2.json").read_text())["disguises"]


def twin_records(vector, split):
  """Returns what the records of a split hold, one after the other: docs/format.md, sections 1 to 4, by hand."""
  views = {"count": 1, "crop": 0, "flip": False, "views_together": False, **vector["options"]}
  views["count"] = views.get("views", 1)
  master = bytes.fromhex(vector["secret"])
  scheme = schemes.from_spec({**vector["disguise"], "image_shape": [8, 8, 1]})
  secret = twins.twin_data_set(master, vector["id"], scheme.spec.to_dict())
  key = scheme.make_key(
    lambda label, n: twins.twin_stream(twins.twin_subkey(secret, label, "djx2"), n)
  )
  given = sources.load("digits", vector["splits"][split])
  count = views["count"] if split == "train" else 1
  order = twins.twin_order(
    secret, "dataset", None, split, len(given.images), count, views["views_together"]
  )
  how = f"dataset|{split}|{twins.twin_how(views)}"
  noise_key, view_key = (
    twins.twin_subkey(secret, f"{purpose}|{how}", "djx2") for purpose in ("noise", "views")
  )
  found = []
  for record in order:
    index, view = divmod(record, count)
    image = given.images[index]
    if view:
      drawn = twins.twin_record(view_key, image.tobytes(), index, view, 3)
      image = twins.twin(image, drawn, views["crop"], views["flip"])
    drawn = twins.twin_record(noise_key, image.tobytes(), index, view, 64)
    noise = np.array(drawn, np.float32).reshape(1, 8, 8, 1)
    found.append(scheme.export(key, image[None], lambda noise=noise: noise)[0])
  classes = list(range(10))
  if not vector["options"].get("plain_labels"):
    classes = twins.twin_label_permutation(secret, 10, "djx2")
  return np.array(found), [classes[given.labels[record // count]] for record in order]


@pytest.mark.parametrize("vector", GOLDEN, ids=lambda v: v["name"])
def test_golden_records_hold(vector):
  """Data sets that are written now are written so for ever."""
  make = runpy.run_path(str(VECTORS / "make.py"))
  assert make["disguised"](vector) == vector["expect"]


@pytest.mark.parametrize("vector", GOLDEN, ids=lambda v: v["name"])
def test_the_twin_gives_the_golden_records(vector):
  splits = {name: twin_records(vector, name) for name in ("train", "test")}
  dtype = np.dtype(vector["options"].get("dtype", splits["train"][0].dtype.name))
  if dtype == np.uint8 and splits["train"][0].dtype != np.uint8:
    grid = np.concatenate([images for images, _ in splits.values()]).reshape(-1, 2, 4, 2, 4)
    low, high = (f(grid, axis=(0, 2, 4)).ravel() for f in (np.min, np.max))
    quantiser = quantise.quantiser_for(low, high)
  for name, (images, labels) in splits.items():
    if images.dtype != dtype and dtype == np.uint8:
      images = quantise.quantise(images, quantiser, block_size=4)
    data = images.astype(dtype).tobytes() + np.array(labels, "<i4").tobytes()
    assert hashlib.sha256(data).hexdigest() == vector["expect"][name]


def test_golden_records_cover_every_dtype_scheme_and_layout_of_views():
  assert {v["options"].get("dtype") for v in GOLDEN} == {None, "float16", "uint8"}
  assert {v["disguise"]["scheme"] for v in GOLDEN} == {"rmt", "aes", "permutation"}
  assert {v["options"].get("views_together") for v in GOLDEN} == {None, True}
  found = [json.dumps(v["expect"][name]) for v in GOLDEN for name in ("source", "train", "test")]
  assert len(set(found)) == len(found)


# The same bytes whatever happens on the way.


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_shards_and_workers_change_no_record(tmp_path, reference, workers):
  export.disguise(noisy_request(), tmp_path / "again", MASTER, workers=workers)
  assert content(tmp_path / "again") == reference
  for step in (7, 96, 1000) if workers == 1 else (7,):
    other = dataclasses.replace(noisy_request(), originals_per_shard=step)
    export.disguise(other, tmp_path / f"{step}", MASTER, workers=workers)
    data = directory.open(tmp_path / f"{step}")
    assert len(data.manifest.splits["train"].shards) == -(-96 // step)
    for split in SPLITS:
      found, wanted = everything(data, split), everything(directory.open(tmp_path / "again"), split)
      np.testing.assert_array_equal(found[0], wanted[0])
      np.testing.assert_array_equal(found[1], wanted[1])


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.slow
def test_shards_and_chunks_change_no_record_of_several_views(tmp_path, monkeypatch, dtype):
  how = {"views": 3, "crop": 1, "flip": True, "dataset_id": ID, "dtype": dtype}
  asked = request({**RMT, "noise_level": 25.0}, **how)
  export.disguise(asked, tmp_path / "whole", MASTER)
  wanted = everything(directory.open(tmp_path / "whole"), "train")
  for step, chunk in ((96, 5), (10, 7), (1, 1)):
    monkeypatch.setattr(shards, "_CHUNK_BYTES", chunk * 4 * 64)
    folder = tmp_path / f"{step}"
    export.disguise(dataclasses.replace(asked, originals_per_shard=step), folder, MASTER)
    found = everything(directory.open(folder), "train")
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


def test_a_new_id_is_drawn_each_time_and_kept_by_what_goes_on(tmp_path):
  first = export.disguise(request(), tmp_path / "a", MASTER)
  second = export.disguise(request(), tmp_path / "b", MASTER)
  assert first.id != second.id
  images = [everything(directory.open(tmp_path / name), "train")[0] for name in "ab"]
  assert (images[0] != images[1]).mean() > 0.5
  assert first.source["hmac"] != second.source["hmac"]  # nothing shows that the source is the same
  with pytest.raises(Cut):
    export.disguise(request(), tmp_path / "c", MASTER, progress=cut_after(0))
  begun = json.loads((tmp_path / "c" / manifest.UNFINISHED / "plan.json").read_bytes())
  whole = export.disguise(request(), tmp_path / "c", MASTER)
  assert whole.id == begun["asked"]["id"] != first.id
  given = export.disguise(request(dataset_id=first.id), tmp_path / "d", MASTER)
  assert given.sha256 == first.sha256 and content(tmp_path / "d") == content(tmp_path / "a")
  with pytest.raises(ConfigError, match="dataset_id must be 32 hexadecimal digits"):
    export.disguise(request(dataset_id="0" * 31), tmp_path / "e", MASTER)
  assert not (tmp_path / "e").exists()


class Cut(BaseException):
  """Stands for whatever ends a process."""


def cut_after(calls):
  def progress(done, total):
    nonlocal calls
    calls -= 1
    if calls < 0:
      raise Cut

  return progress


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_cut_off_after_each_step_it_goes_on_to_the_same_bytes(tmp_path, dtype):
  asked = request({**RMT, "noise_level": 25.0}, dtype=dtype, originals_per_shard=20)
  cuts = 0
  folder = tmp_path / "cut"
  while True:
    try:
      facts = export.disguise(asked, folder, MASTER, progress=cut_after(cuts))
      break
    except Cut:
      assert not (folder / manifest.FILE).exists() and (folder / manifest.UNFINISHED).is_dir()
      with pytest.raises(DataError, match="unfinished: re-run"):
        directory.open(folder)
    cuts += 1
  assert cuts >= 7
  # The id that the first of these calls drew is that of the last.
  again = dataclasses.replace(asked, dataset_id=facts.id)
  export.disguise(again, tmp_path / "whole", MASTER)
  assert content(folder) == content(tmp_path / "whole")


def test_a_shard_damaged_between_two_runs_is_written_again(tmp_path, reference):
  asked = noisy_request()
  folder = tmp_path / "set"
  with pytest.raises(Cut):
    export.disguise(asked, folder, MASTER, progress=cut_after(3))
  first = sorted(folder.glob("*array_record*"))[0]
  damaged = bytearray(first.read_bytes())
  damaged[len(damaged) // 2] ^= 1
  first.write_bytes(damaged)
  export.disguise(asked, folder, MASTER)
  assert content(folder) == reference


def test_given_again_when_whole_it_changes_nothing(tmp_path, reference):
  asked = noisy_request()
  folder = tmp_path / "set"
  first = export.disguise(asked, folder, MASTER)
  (folder / manifest.UNFINISHED).mkdir()  # a kill between the manifest and the last clean-up
  with pytest.raises(DataError, match="left from a run that was stopped"):
    directory.verify(folder)
  times = {path: path.stat().st_mtime_ns for path in folder.glob("*")}
  again = export.disguise(dataclasses.replace(asked, dataset_id=""), folder, MASTER)
  assert again.sha256 == first.sha256
  assert content(folder) == reference and not (folder / manifest.UNFINISHED).exists()
  assert all(path.stat().st_mtime_ns == times[path] for path in folder.glob("*"))


RUN = """
import sys
from djax import keys
from djax.owner import export
from djax.owner.plan import Request
if __name__ == "__main__":
  asked = Request("digits", {"scheme": "rmt", "block_size": 2, "noise_level": 25.0}, originals_per_shard=40,
                  dtype=sys.argv[3], dataset_id="00112233445566778899aabbccddeeff")
  export.disguise(asked, sys.argv[1], keys.experiment(3), workers=int(sys.argv[2]))
"""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_one_killed_run_goes_on(tmp_path, workers):
  script = tmp_path / "run.py"
  script.write_text(RUN)
  folder = tmp_path / "set"
  process = subprocess.Popen([sys.executable, str(script), str(folder), str(workers), "float32"])
  deadline = time.monotonic() + 120
  while not list(folder.glob("*array_record*")) and time.monotonic() < deadline:
    time.sleep(0.002)
  process.kill()
  process.wait()
  assert not (folder / manifest.FILE).exists()
  there = {path.name: path.stat().st_mtime_ns for path in folder.glob("*array_record*")}
  assert there
  asked = Request("digits", {**RMT, "noise_level": 25.0}, originals_per_shard=40, dataset_id=ID)
  export.disguise(asked, folder, MASTER)
  export.disguise(asked, tmp_path / "whole", MASTER)
  assert content(folder) == content(tmp_path / "whole")
  kept = [name for name, when in there.items() if (folder / name).stat().st_mtime_ns == when]
  assert kept


# What is refused.


def test_another_key_spec_or_source_does_not_go_on(tmp_path):
  npz = tmp_path / "images.npz"
  rng = np.random.default_rng(0)

  def write(seed):
    images = np.random.default_rng(seed).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    labels = rng.permutation(np.arange(40) % 4)
    np.savez(npz, train_images=images, train_labels=labels, test_images=images, test_labels=labels)

  write(0)
  asked = Request(str(npz), RMT, originals_per_shard=10)
  folder = tmp_path / "set"
  with pytest.raises(Cut):
    export.disguise(asked, folder, MASTER, progress=cut_after(2))
  before = content(folder)
  with pytest.raises(KeyMismatchError, match="begun with the key experiment-seed3-"):
    export.disguise(asked, folder, keys.experiment(4))
  for other in (
    {"disguise": {**RMT, "block_size": 4}},
    {"dtype": "float16"},
    {"plain_labels": True},
  ):
    with pytest.raises(UnsafeError, match="begun with other parameters"):
      export.disguise(dataclasses.replace(asked, **other), folder, MASTER)
  with pytest.raises(UnsafeError, match="originals_per_shard"):
    export.disguise(dataclasses.replace(asked, originals_per_shard=20), folder, MASTER)
  with pytest.raises(UnsafeError, match=r"other parameters \(.*id"):
    export.disguise(dataclasses.replace(asked, dataset_id=ID), folder, MASTER)
  write(1)
  with pytest.raises(DataError, match="its files have changed"):
    export.disguise(asked, folder, MASTER)
  changed = {name for name, blob in content(folder).items() if before.get(name) != blob}
  assert changed <= {".unfinished/lock"}


def test_a_key_that_does_not_fit_into_memory_is_refused_before_anything_is_written(tmp_path):
  rng = np.random.default_rng(0)
  np.savez(
    tmp_path / "x.npz",
    train_images=rng.integers(0, 256, (2, 1024, 1024, 1), np.uint8),
    train_labels=np.arange(2),
    test_images=rng.integers(0, 256, (2, 1024, 1024, 1), np.uint8),
    test_labels=np.arange(2),
  )
  asked = Request(str(tmp_path / "x.npz"), {"scheme": "rmt", "block_size": 256, "mix": "block"})
  with pytest.raises(ConfigError, match="GB of memory, this machine has"):
    export.disguise(asked, tmp_path / "set", MASTER)
  assert not (tmp_path / "set").exists()


def test_an_option_that_says_what_is_usual_makes_no_other_data_set(tmp_path):
  folder = tmp_path / "set"
  whole = export.disguise(request(), folder, MASTER)
  before = content(folder)
  usual = {"matrix": "orthogonal", "mix": "rows", "permute": True, "noise_level": 0}
  for asked in (
    request(reading=sources.Reading(scale=255)),
    request({**RMT, **usual}),
    request(dtype="float32"),
    request(originals_per_shard=0, crop=0, flip=False, views=1),
  ):
    assert export.disguise(asked, folder, MASTER) == whole
  assert content(folder) == before


def test_a_whole_directory_is_not_overwritten(tmp_path):
  folder = tmp_path / "set"
  export.disguise(request(), folder, MASTER)
  before = content(folder)
  for asked, master in (
    (request(PERMUTATION), MASTER),
    (request(), keys.experiment(4)),
    (request(splits={"train": "train[:50]", "test": "test[:30]"}), MASTER),
    (request(dataset_id=ID), MASTER),
    (request(views=2, crop=1), MASTER),
    (request(views=2, crop=1, views_together=True), MASTER),
  ):
    with pytest.raises(UnsafeError, match="made otherwise"):
      export.disguise(asked, folder, master)
  assert content(folder) == before


def test_a_whole_directory_that_was_damaged_or_forged_is_not_taken_for_done(tmp_path):
  folder = tmp_path / "set"
  export.disguise(request(), folder, MASTER)
  shard = sorted(folder.glob("*array_record*"))[0]
  whole = shard.read_bytes()
  shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  with pytest.raises(DataError, match="is damaged"):
    export.disguise(request(), folder, MASTER)
  shard.write_bytes(whole)
  (folder / "more").write_text("x")
  with pytest.raises(DataError, match="more is not in the manifest"):
    export.disguise(request(), folder, MASTER)
  (folder / "more").unlink()
  facts = manifest.read(folder)
  (folder / manifest.UNFINISHED).mkdir()
  manifest.write(folder, facts, mac_key=bytes(32))
  with pytest.raises(DataError, match="was not written with this key"):
    export.disguise(request(), folder, MASTER)


def test_a_directory_begun_by_an_older_djax_is_not_gone_on_with(tmp_path):
  """Its records stand in the order of the source: half of them would be lost, half doubled."""
  folder = tmp_path / "set"
  with pytest.raises(Cut):
    export.disguise(request(), folder, MASTER, progress=cut_after(1))
  path = folder / manifest.UNFINISHED / "plan.json"
  plan_of = json.loads(path.read_bytes())
  plan_of["asked"]["version"] = 1
  del plan_of["asked"]["id"], plan_of["asked"]["role"], plan_of["asked"]["request"]
  path.write_text(json.dumps(plan_of))
  with pytest.raises(UnsafeError, match="begun by an older djax"):
    export.disguise(request(), folder, MASTER)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"asked": {}, "starts": {}}', "[" * 100_000])
def test_a_plan_that_is_none_is_refused_in_one_line(tmp_path, content):
  place = tmp_path / "set" / manifest.UNFINISHED
  place.mkdir(parents=True)
  (place / "plan.json").write_text(content)
  with pytest.raises(DataError, match="must be the plan of an unfinished run") as caught:
    export.disguise(request(), tmp_path / "set", MASTER)
  assert "\n" not in str(caught.value)


def test_nothing_is_written_among_other_files_or_into_the_source(tmp_path):
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "diary.txt").write_text("mine")
  with pytest.raises(UnsafeError, match=r"not empty \(holds diary.txt\)"):
    export.disguise(request(), tmp_path / "full", MASTER)
  with pytest.raises(UnsafeError, match="no directory"):
    export.disguise(request(), tmp_path / "full" / "diary.txt", MASTER)
  images = np.zeros((4, 8, 8), np.uint8)
  images[1] = 9
  labels = np.arange(4) % 2
  npz = tmp_path / "a.npz"
  np.savez(npz, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
  with pytest.raises(UnsafeError):
    export.disguise(Request(str(npz), RMT), npz, MASTER)
  from PIL import Image

  for name in "ab":
    (tmp_path / "photos" / name).mkdir(parents=True)
    for i in range(5):
      Image.new("L", (8, 8), 20 * i).save(tmp_path / "photos" / name / f"{i}.png")
  for out in ("photos", "photos/new", "photos/a/../out"):
    with pytest.raises(UnsafeError, match="lies in the source"):
      export.disguise(Request(str(tmp_path / "photos"), RMT), tmp_path / out, MASTER)
  assert sorted(p.name for p in (tmp_path / "photos").iterdir()) == ["a", "b"]


def test_a_folder_named_like_the_source_is_no_source(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "digits").mkdir()
  export.disguise(request(), "digits/set", MASTER)
  directory.verify(tmp_path / "digits" / "set")


def test_a_directory_that_another_process_finished_meanwhile_is_not_written_over(
  tmp_path, monkeypatch
):
  """Both found nothing there and drew an id; the other one has the lock first, and is done."""
  folder = tmp_path / "set"
  real = unfinished.hold
  first = []

  def late(*args):
    if not first:
      first.append(None)
      first.append(export.disguise(request(), folder, MASTER))
    return real(*args)

  monkeypatch.setattr(unfinished, "hold", late)
  with pytest.raises(UnsafeError, match="finished by another process meanwhile"):
    export.disguise(request(), folder, MASTER)
  assert directory.verify(folder).id == first[1].id
  assert export.disguise(request(), folder, MASTER).id == first[1].id


def test_two_processes_do_not_write_one_directory(tmp_path):
  folder = tmp_path / "set"
  met = []

  def second(done, total):
    with pytest.raises(UnsafeError, match="being written by another process"):
      export.disguise(request(), folder, MASTER)
    met.append(done)

  export.disguise(request(), folder, MASTER, progress=second)
  assert met
  directory.verify(folder)


@pytest.mark.parametrize(
  ("change", "error", "says"),
  [
    ({"disguise": {"scheme": "plain"}}, UnsafeError, "disguises nothing"),
    ({"disguise": {"scheme": "rnt", "block_size": 2}}, ConfigError, "Did you mean 'rmt'"),
    ({"disguise": {**RMT, "block_size": 9}}, ConfigError, "block_size must lie"),
    ({"disguise": {**RMT, "blocksize": 2}}, ConfigError, "Did you mean 'block_size'"),
    ({"disguise": PERMUTATION, "dtype": "float32"}, ConfigError, "stored as uint8, exactly"),
    ({"dtype": "float64"}, ConfigError, "must be one of float32, float16, uint8"),
    ({"disguise": {**RMT, "noise_level": 1e6}, "dtype": "float16"}, ConfigError, "Choose float32"),
    ({"views": 0}, ConfigError, "at least 1"),
    ({"views": 2}, ConfigError, "need crop or flip"),
    ({"flip": True}, ConfigError, "need views above 1"),
    ({"views": 2, "crop": 8}, ConfigError, r"0\.\.7 pixels"),
    ({"splits": {"train": "train[:0]", "test": "test"}}, ConfigError, "records"),
    ({"source": "./nowhere"}, DataError, "no such folder"),
  ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, change, error, says):
  with pytest.raises(error, match=says):
    export.disguise(dataclasses.replace(request(), **change), tmp_path / "set", MASTER)
  assert not (tmp_path / "set").exists()


def test_float_originals_are_not_encrypted(tmp_path):
  images = np.linspace(0, 255, 4 * 64, dtype=np.float32).reshape(4, 8, 8)
  labels = np.arange(4) % 2
  np.savez(
    tmp_path / "a.npz",
    train_images=images,
    train_labels=labels,
    test_images=images,
    test_labels=labels,
  )
  with pytest.raises(ConfigError, match="8-bit originals, got float32"):
    export.disguise(Request(str(tmp_path / "a.npz"), AES), tmp_path / "set", MASTER)
  facts = export.disguise(Request(str(tmp_path / "a.npz"), PERMUTATION), tmp_path / "set", MASTER)
  assert facts.dtype == "float32" and facts.source["dtype"] == "float32"


def test_a_label_outside_the_classes_stops_the_work(tmp_path, monkeypatch):
  real = sources.open

  class Wrong:
    def __init__(self, records):
      self._records = records

    def snapshot(self):
      return self._records.snapshot()

    def take(self, rows):
      found = self._records.take(rows)
      return dataclasses.replace(found, labels=np.full_like(found.labels, 10))

  job, *_ = plan.make(request(dataset_id=ID), tmp_path / "set", MASTER)
  monkeypatch.setattr(shards.sources, "open", lambda *a, **k: Wrong(real(*a, **k)))
  (tmp_path / "set" / manifest.UNFINISHED).mkdir(parents=True)
  with pytest.raises(DataError, match="below the 10 classes, got 10 among the records 0"):
    secret = MASTER.data_set(ID, job.manifest.spec)
    shards.Worker(job, secret).run(shards.tasks(job)[0], lambda count: None)
  assert not list((tmp_path / "set").glob("*array_record*"))


def test_too_little_room_is_seen_first(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
  with pytest.raises(DjaxError, match=r"MB free, got 0\.0 MB") as caught:
    export.disguise(request(), tmp_path / "set", MASTER)
  assert caught.value.exit_code == 1
  monkeypatch.undo()
  export.disguise(request(), tmp_path / "set", MASTER)
  directory.verify(tmp_path / "set")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_a_disk_that_fills_up_loses_nothing(tmp_path, monkeypatch, workers):
  asked = Request("digits", RMT, originals_per_shard=100, dataset_id=ID)
  export.disguise(asked, tmp_path / "whole", MASTER)
  with tiny_disk(tmp_path / "disk", 4):
    folder = tmp_path / "disk" / "set"
    ballast = tmp_path / "disk" / "ballast"
    ballast.write_bytes(bytes(3_200_000))
    monkeypatch.setattr(files, "check_room", lambda *_, **__: None)
    with pytest.raises((DjaxError, OSError)) as caught:
      export.disguise(asked, folder, MASTER, workers=workers)
    assert "space" in str(caught.value).lower() and "\n" not in str(caught.value)
    kept = list(folder.glob("*array_record*"))
    assert kept and not (folder / manifest.FILE).exists()
    ballast.unlink()
    export.disguise(asked, folder, MASTER, workers=workers)
    assert content(folder) == content(tmp_path / "whole")


# Worker processes.


@pytest.mark.slow
def test_a_worker_that_dies_is_reported_and_nothing_is_lost(tmp_path):
  asked = Request("digits", {**RMT, "noise_level": 25.0}, originals_per_shard=20, dataset_id=ID)
  folder = tmp_path / "set"
  killed = []

  def kill_one(done, total):
    if not killed:
      child = next(iter(children()))
      os.kill(child, signal.SIGKILL)
      killed.append(child)

  with pytest.raises(DjaxError, match="worker process ended early"):
    export.disguise(asked, folder, MASTER, workers=2, progress=kill_one)
  assert killed and not children()
  export.disguise(asked, folder, MASTER)
  export.disguise(asked, tmp_path / "whole", MASTER)
  assert content(folder) == content(tmp_path / "whole")


def children():
  """Returns the processes whose parent is this one and that run djax's workers."""
  found = []
  for entry in pathlib.Path("/proc").iterdir():
    with contextlib.suppress(OSError, ValueError):
      fields = (entry / "stat").read_text().rpartition(")")[2].split()
      command = (entry / "cmdline").read_bytes()
      if int(fields[1]) == os.getpid() and b"spawn_main" in command:
        found.append(int(entry.name))
  return found


def test_an_error_in_a_worker_arrives_as_it_is(tmp_path):
  images = np.zeros((40, 8, 8), np.uint8)
  images[1] = 7
  labels = np.arange(40) % 4
  path = tmp_path / "a.npz"
  np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
  asked = Request(str(path), RMT, originals_per_shard=10, dataset_id=ID)
  job, *_ = plan.make(asked, tmp_path / "set", MASTER)
  (tmp_path / "set" / manifest.UNFINISHED).mkdir(parents=True)
  path.unlink()
  with pytest.raises(DataError, match="no such file"):
    secret = MASTER.data_set(ID, job.manifest.spec)
    pool.run(job, secret, shards.tasks(job), workers=2, advance=lambda count: None)
  assert not children()


def test_the_key_is_in_no_argument_variable_or_file(tmp_path):
  spec = {"scheme": "rmt", "image_shape": [8, 8, 1], "block_size": 2, "noise_level": 25.0}
  full = schemes.from_spec(spec).spec.to_dict()
  secret = MASTER.data_set(ID, full)
  found, key = secrets_of(secret, spec)
  found["data set"] = found.pop("master")
  found["master"] = keys.secret_bytes(MASTER)
  for label in ("labels|10", "sealed|dataset", "sealed|dataset|nonce", "source"):
    found[label] = secret.subkey(label)
  for label in (
    "noise|dataset|train|1|0|0",
    "noise|dataset|test|1|0|0",
    "order|dataset|train|1438",
  ):
    found[label] = secret.subkey(label)
  found["manifest"] = MASTER.owner().subkey("manifest|dataset")
  found["ledger"] = MASTER.owner().subkey("ledger")
  seen = []

  def look(done, total):
    for child in children():
      for name in ("cmdline", "environ"):
        with contextlib.suppress(OSError):
          blob = pathlib.Path(f"/proc/{child}/{name}").read_bytes()
          seen.append(name)
          assert not leaks(blob, found, key), name
    for name, blob in content(folder).items():
      assert not leaks(blob, found, key), name

  folder = tmp_path / "set"
  disguise = {name: spec[name] for name in ("scheme", "block_size", "noise_level")}
  asked = Request("digits", disguise, originals_per_shard=400, dataset_id=ID)
  export.disguise(asked, folder, MASTER, workers=2, progress=look)
  assert {"cmdline", "environ"} <= set(seen)
  for name, blob in content(folder).items():
    assert not leaks(blob, found, key), name
  planted = found["manifest"].hex().encode()
  assert leaks(b"MAC " + planted, found, key)
  with_ledger = Ledger(tmp_path / "k.ledger")
  export.disguise(asked, folder, MASTER, ledger=with_ledger)
  assert len(with_ledger.entries()) == 1
  assert not leaks(with_ledger.path.read_bytes(), found, key)
  jobs = json.dumps(dataclasses.asdict(asked), default=str).encode()
  assert not leaks(jobs, found, key)


MEMORY = """
import pathlib, re, sys
from djax import keys
from djax.owner import export
from djax.owner.plan import Request
asked = Request(sys.argv[1], {"scheme": "rmt", "block_size": 7}, originals_per_shard=8000, dtype=sys.argv[3])
export.disguise(asked, sys.argv[2], keys.experiment(0), workers=1)
# Not getrusage: its peak counts what the parent held when it forked.
print(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data_set(tmp_path):
  rng = np.random.default_rng(0)
  base = rng.integers(0, 256, (24_000, 28, 28), dtype=np.uint8)
  labels = np.arange(24_000) % 10
  peaks = {}
  for copies in (1, 4):
    path = tmp_path / f"{copies}.npz"
    np.savez(
      path,
      train_images=np.concatenate([base] * copies),
      train_labels=np.concatenate([labels] * copies),
      test_images=base[:4_000],
      test_labels=labels[:4_000],
    )
    out = tmp_path / str(copies)
    peaks[copies] = int(succeeded(run_code(MEMORY, path, out, "float16")))
    shutil.rmtree(out)
    path.unlink()
  assert peaks[4] <= 1.1 * peaks[1], peaks


@pytest.mark.parametrize("views", [{}, {"views": 3, "crop": 1}])
def test_a_compressed_source_is_read_once_a_shard_and_not_once_a_chunk(
  tmp_path, monkeypatch, views
):
  images = np.random.default_rng(0).integers(0, 256, (400, 8, 8), dtype=np.uint8)
  labels = np.arange(400) % 4
  path = tmp_path / "a.npz"
  given = {"train_images": images, "train_labels": labels}
  np.savez_compressed(path, **given, test_images=images[:8], test_labels=labels[:8])
  monkeypatch.setattr(shards, "_CHUNK_BYTES", 20 * 4 * 64)  # 20 records
  asked = Request(str(path), RMT, originals_per_shard=200, dataset_id=ID, **views)
  job, *_ = plan.make(asked, tmp_path / "set", MASTER)
  (tmp_path / "set" / manifest.UNFINISHED).mkdir(parents=True)
  worker = shards.Worker(job, MASTER.data_set(ID, job.manifest.spec))
  opened, real = [], npz._Array._open
  monkeypatch.setattr(npz._Array, "_open", lambda array: (opened.append(array), real(array)))
  chunks = []
  for task in shards.tasks(job):
    worker.run(task, chunks.append)
  assert len(chunks) >= 20 * (3 if views else 1)
  assert len(opened) == len(shards.tasks(job)) == 3


def test_threads_may_read_at_once(tmp_path):
  export.disguise(request(originals_per_shard=10), tmp_path / "set", MASTER)
  split = directory.open(tmp_path / "set").splits["train"]
  wanted, _ = split.read(np.arange(96))
  faults = []

  def read(seed):
    rows = np.random.default_rng(seed).permutation(96)
    if not np.array_equal(split.read(rows)[0], wanted[rows]):
      faults.append(seed)

  threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not faults
