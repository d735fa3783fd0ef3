"""A disguise written in parts: the same bytes as by one process, whoever writes what, in any order and twice."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import source_files
from helpers.fresh import ROOT
from helpers.leaks import leaks, secrets_of

from djax import keys, schemes
from djax.disguised import directory
from djax.errors import DataError, KeyMismatchError, UnsafeError
from djax.owner import export, restore, unfinished
from djax.owner.ledger import Ledger
from djax.owner.plan import Request
from djax.owner.shards import Share

MASTER = keys.experiment(3)
ID = "00112233445566778899aabbccddeeff"
RMT = {"scheme": "rmt", "block_size": 2}
AES = {"scheme": "aes", "block_size": 4}
SPLITS = {"train": "train[:60]", "test": "test[:20]"}


def request(disguise=RMT, **options):
  return Request(
    "digits", disguise, **{"splits": SPLITS, "originals_per_shard": 12, "dataset_id": ID, **options}
  )


def part(asked, out, text, **options):
  return export.disguise_part(
    asked, out, MASTER, Share(*map(int, text.split("/"))), workers=1, **options
  )


def finish(asked, out, **options):
  return export.disguise(asked, out, MASTER, parts_alone=True, workers=1, **options)


def content(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
  }


@pytest.fixture
def photos(tmp_path):
  """Arrays that a test may change."""
  return source_files.arrays_in(tmp_path)


def of_arrays(path):
  return dataclasses.replace(request(splits={"train": "train", "test": "test"}), source=str(path))


def test_every_shard_is_in_one_part():
  for count, parts in ((7, 1), (7, 3), (2, 5)):
    cut = [Share(number, parts).of(list(range(count))) for number in range(1, parts + 1)]
    assert sorted(itertools.chain(*cut)) == list(range(count))
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"disguise": AES, "views": 2, "crop": 1},
    {"disguise": AES, "format": "folder"},
  ],
)
def test_bytes_are_those_of_one_process(tmp_path, options):
  asked = request(**options)
  export.disguise(asked, tmp_path / "whole", MASTER, workers=1)
  out = tmp_path / "parts"
  counts = [part(asked, out, text) for text in ("3/4", "1/4", "4/4", "1/4", "2/4")]
  assert [done.shards for done in counts] == [2, 2, 1, 2, 2]
  assert {done.of for done in counts} == {7} and all(done.written for done in counts)
  finish(asked, out)
  assert content(out) == content(tmp_path / "whole")
  assert part(asked, out, "1/4").written  # of what is whole, nothing is done again
  assert content(out) == content(tmp_path / "whole")


def test_parts_may_be_cut_otherwise_and_one_process_may_do_the_rest(tmp_path):
  asked = request()
  part(asked, tmp_path / "a", "1/3")
  part(asked, tmp_path / "a", "2/2")
  before = content(tmp_path / "a")
  export.disguise(asked, tmp_path / "a", MASTER, workers=1)
  after = content(tmp_path / "a")
  kept = [name for name in before if name.startswith("disguised")]
  assert len(kept) == 5 and all(after[name] == before[name] for name in kept)
  export.disguise(asked, tmp_path / "b", MASTER, workers=1)
  assert after == content(tmp_path / "b")


def test_quantised_parts_are_run_twice_since_the_range_is_of_all(tmp_path):
  asked = request(dtype="uint8")
  export.disguise(asked, tmp_path / "whole", MASTER, workers=1)
  out = tmp_path / "parts"
  assert [part(asked, out, text).written for text in ("1/2", "1/2", "2/2")] == [False, False, True]
  with pytest.raises(DataError, match="every shard must be written"):
    finish(asked, out)
  assert part(asked, out, "1/2").written
  finish(asked, out)
  assert content(out) == content(tmp_path / "whole")


def test_parts_share_the_id_that_the_first_drew(tmp_path):
  asked = request(dataset_id="")
  for text in ("2/2", "1/2"):
    part(asked, tmp_path / "out", text)
  manifest = finish(asked, tmp_path / "out")
  restore.authenticate(manifest, tmp_path / "out", MASTER)
  directory.verify(tmp_path / "out")


def test_a_part_that_began_in_the_same_moment_takes_the_others_id(tmp_path, monkeypatch):
  asked, out = request(dataset_id=""), tmp_path / "out"
  link = os.link

  def second(source, target):
    """Another part leaves its plan between our look and our link."""
    monkeypatch.setattr(os, "link", link)
    part(asked, out, "2/2")
    return link(source, target)

  monkeypatch.setattr(os, "link", second)
  part(asked, out, "1/2")
  whole = finish(asked, out)
  again = dataclasses.replace(asked, dataset_id=whole.id)
  export.disguise(again, tmp_path / "whole", MASTER, workers=1)
  assert content(out) == content(tmp_path / "whole")


def test_where_plans_cannot_be_linked_no_shard_of_another_id_is_finished(tmp_path, monkeypatch):
  asked, out = request(dataset_id=""), tmp_path / "out"

  def second(source, target):
    """A disk without links: the later plan takes the place of the one that another part works by."""
    monkeypatch.setattr(os, "link", none)
    part(asked, out, "2/2")
    none(source, target)

  def none(source, target):
    raise PermissionError(1, "Operation not permitted")

  monkeypatch.setattr(os, "link", second)
  part(asked, out, "1/2")
  with pytest.raises(DataError, match=r"lacks disguised-train.*00001-of-00005"):
    finish(asked, out)
  part(asked, out, "2/2")
  whole = finish(asked, out)
  again = dataclasses.replace(asked, dataset_id=whole.id)
  export.disguise(again, tmp_path / "whole", MASTER, workers=1)
  assert content(out) == content(tmp_path / "whole")


def test_missing_shards_are_named_and_nothing_is_written(tmp_path):
  asked = request()
  with pytest.raises(DataError, match=r"nothing was begun there\. Run every --part first"):
    finish(asked, tmp_path / "out")
  assert not (tmp_path / "out").exists()
  part(asked, tmp_path / "out", "1/2")
  before = content(tmp_path / "out")
  with pytest.raises(
    DataError, match=r"lacks disguised-train.*00001-of-00005, .*00003-of-00005.*test"
  ):
    finish(asked, tmp_path / "out")
  assert content(tmp_path / "out") == before


def test_a_damaged_shard_is_not_finished(tmp_path):
  asked, out = request(), tmp_path / "out"
  part(asked, out, "1/1")
  shard = next(out.glob("disguised-train*00002-of*"))
  data = bytearray(shard.read_bytes())
  data[100] ^= 1
  shard.write_bytes(data)
  with pytest.raises(DataError, match=r"lacks .*00002-of-00005"):
    finish(asked, out)
  part(asked, out, "1/1")
  finish(asked, out)
  directory.verify(out)


def test_parts_of_another_plan_are_refused(tmp_path):
  out = tmp_path / "out"
  part(request(), out, "1/2")
  before = content(out)
  with pytest.raises(UnsafeError, match=r"begun with other parameters \(spec"):
    part(request(AES), out, "2/2")
  with pytest.raises(UnsafeError, match="originals_per_shard"):
    part(request(originals_per_shard=5), out, "2/2")
  with pytest.raises(KeyMismatchError, match="begun with the key"):
    export.disguise_part(request(), out, keys.experiment(4), Share(2, 2), workers=1)
  assert content(out) == before


def test_a_source_that_changes_between_parts_is_refused(tmp_path, photos):
  asked, out = of_arrays(photos), tmp_path / "out"
  part(asked, out, "1/2")
  stamp = photos.stat().st_mtime_ns
  data = bytearray(photos.read_bytes())
  arrays = dict(np.load(photos))
  arrays["train_images"][3] ^= 1
  np.savez(photos, **arrays)
  with pytest.raises(DataError, match="its files have changed"):
    part(asked, out, "2/2")
  # Of the same size and time it looks as before to a part, which does not read it all again; the end does.
  assert photos.stat().st_size == len(data)
  os.utime(photos, ns=(stamp, stamp))
  part(asked, out, "2/2")
  with pytest.raises(DataError, match="its files have changed"):
    finish(asked, out)
  photos.write_bytes(data)
  export.disguise(asked, tmp_path / "whole", MASTER, workers=1)
  part(asked, tmp_path / "good", "1/1")
  finish(asked, tmp_path / "good")
  assert content(tmp_path / "good") == content(tmp_path / "whole")


def test_later_parts_do_not_hash_the_source_again(tmp_path, photos, monkeypatch):
  asked = of_arrays(photos)
  hashed = []
  sha256 = directory.file_sha256
  monkeypatch.setattr(directory, "file_sha256", lambda path: hashed.append(path) or sha256(path))
  for text, times in (("1/2", 1), ("2/2", 1)):
    part(asked, tmp_path / "out", text)
    assert [path for path in hashed if path == photos] == [photos] * times
  photos.touch()
  part(asked, tmp_path / "out", "2/2")
  assert [path for path in hashed if path == photos] == [photos] * 2


def test_parts_work_side_by_side_and_the_whole_waits_for_none(tmp_path):
  asked, out = request(), tmp_path / "out"
  part(asked, out, "1/2")
  planned = unfinished.hashed(out)
  job = export.plan.make(asked, out, MASTER).job
  with unfinished.hold(job, planned.look, shared=True):
    assert part(asked, out, "2/2").written
    with pytest.raises(UnsafeError, match="written by another process"):
      finish(asked, out)
  with unfinished.hold(job, planned.look), pytest.raises(UnsafeError, match="by another process"):
    part(asked, out, "2/2")


def test_a_part_that_comes_when_all_was_finished_meanwhile_leaves_it_whole(tmp_path, monkeypatch):
  asked, out, real = request(), tmp_path / "out", unfinished.hold
  part(asked, out, "1/1")

  def late(*args, **options):
    monkeypatch.setattr(unfinished, "hold", real)
    finish(asked, out)
    return real(*args, **options)

  monkeypatch.setattr(unfinished, "hold", late)
  with pytest.raises(UnsafeError, match="finished by another process meanwhile"):
    part(asked, out, "1/1")
  directory.verify(out)
  assert part(asked, out, "1/1").written


def test_the_ledger_is_asked_and_has_it_once_it_is_whole(tmp_path):
  ledger, said = Ledger(tmp_path / "ledger"), []
  for name, id_ in (("out", ID), ("again", ID[::-1])):
    asked = request(dataset_id=id_)
    before = ledger.entries()
    part(asked, tmp_path / name, "1/1")
    assert ledger.entries() == before
    finish(asked, tmp_path / name, ledger=ledger, say=said.append)
  assert [entry.id for entry in ledger.entries()] == [ID, ID[::-1]]
  (line,) = said
  assert "each disguise of an image more" in line


def test_what_an_unfinished_directory_holds_says_no_secret(tmp_path):
  spec = {**RMT, "image_shape": [8, 8, 1]}
  secret = MASTER.data_set(ID, schemes.from_spec(spec).spec.to_dict())
  found, key = secrets_of(secret, spec)
  found |= {"source": secret.subkey("source"), "owner": keys.secret_bytes(MASTER)}
  part(request(), tmp_path / "out", "1/2")
  held = content(tmp_path / "out")
  assert ".unfinished/plan.json" in held
  for name, blob in held.items():
    assert not leaks(blob, found, key), name
  assert leaks(b"plan " + found["source"].hex().encode(), found, key)


BEGIN = """
import pathlib, sys
from djax import keys
from djax.owner import export
from djax.owner.plan import Request
from djax.owner.shards import Share

asked = Request("digits", {"scheme": "rmt", "block_size": 2}, originals_per_shard=20)
number, out = int(sys.argv[1]), pathlib.Path(sys.argv[2])
export.disguise_part(asked, out, keys.experiment(3), Share(number, 3), workers=1)
"""


@pytest.mark.slow
def test_processes_begin_at_once_and_one_is_killed(tmp_path):
  (tmp_path / "begin.py").write_text(BEGIN)
  out = tmp_path / "out"

  def start(number):
    command = [sys.executable, str(tmp_path / "begin.py"), str(number), str(out)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})

  started = [start(number) for number in (1, 2, 3, 3)]
  end = time.monotonic() + 300
  while not list(out.glob("disguised-train*")) and time.monotonic() < end:
    time.sleep(0.01)
  started[0].send_signal(signal.SIGKILL)
  assert [process.wait() for process in started[1:]] == [0, 0, 0]
  asked = Request("digits", RMT, originals_per_shard=20)
  if started[0].wait() == -signal.SIGKILL:
    with pytest.raises(DataError, match="lacks"):
      finish(asked, out)
  assert start(1).wait() == 0
  whole = finish(asked, out)
  directory.verify(out)
  assert not (out / ".unfinished").exists()
  again = dataclasses.replace(asked, dataset_id=whole.id)
  export.disguise(again, tmp_path / "whole", MASTER, workers=1)
  assert content(out) == content(tmp_path / "whole")
