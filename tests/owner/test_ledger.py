"""The owner's ledger: what it knows, what it says, and that no accident in it costs more than what it knows."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.fresh import ROOT
from helpers.leaks import leaks, secrets_of
from helpers.ledgers import MASTER, entered
from PIL import Image

from djax import keys
from djax.disguised import directory, manifest
from djax.errors import DataError, DjaxError, UnsafeError
from djax.owner import export
from djax.owner import ledger as ledger_lib
from djax.owner.ledger import Entry, Ledger
from djax.owner.plan import Request

ID = "00112233445566778899aabbccddeeff"
RMT = {"scheme": "rmt", "block_size": 2, "noise_level": 25.0}
PERMUTATION = {"scheme": "permutation", "block_size": 4}


@pytest.fixture
def ledger(tmp_path):
  return Ledger(ledger_lib.beside(tmp_path / "owner.djaxkey"))


def photos(folder, numbers):
  """A folder of images, each of its own content, told by its number."""
  for number in numbers:
    place = folder / f"class{number % 2}"
    place.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(image).save(place / f"{number:04d}.png")
  return folder


def disguise(ledger, out, source="digits", disguise=PERMUTATION, **options):
  """Disguises and returns the manifest and what was said."""
  said = []
  splits = {"splits": {"train": "train[:40]", "test": "test[:10]"}} if source == "digits" else {}
  request = Request(str(source), disguise, **{**splits, **options})
  facts = export.disguise(request, out, MASTER, ledger=ledger, workers=1, say=said.append)
  return facts, said


# What is entered and what is said.


def test_a_data_set_is_entered_once_it_is_whole(ledger, tmp_path):
  assert ledger.path == tmp_path / "owner.djaxkey.ledger"
  facts, said = disguise(ledger, tmp_path / "set", disguise=RMT)
  assert said == []
  (entry,) = ledger.entries()
  assert (entry.id, entry.fingerprint) == (facts.id, MASTER.fingerprint)
  assert (entry.manifest_sha256, entry.source) == (facts.sha256, "digits")
  assert entry.spec == facts.spec
  assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", entry.date)
  assert ledger.path.stat().st_mode & 0o777 == 0o600
  (line,) = ledger.path.read_text().splitlines()
  assert set(json.loads(line)) == {field.name for field in dataclasses.fields(Entry)}


def test_standing_tells_known_and_newest_older_and_not_known(ledger, tmp_path):
  old, _ = disguise(ledger, tmp_path / "a")
  assert ledger.standing(old).known and ledger.standing(old).newer is None
  assert "the newest of its source" in ledger.standing(old).words
  source = photos(tmp_path / "photos", range(30))
  other, _ = disguise(ledger, tmp_path / "other", source)
  new, _ = disguise(ledger, tmp_path / "b", disguise=RMT)
  assert "newest" in ledger.standing(new).words
  assert "newest" in ledger.standing(other).words  # of another source
  found = ledger.standing(old)
  assert found.known and found.newer.manifest_sha256 == new.sha256
  assert found.words.startswith(f"OLDER: written {found.date}")
  assert new.sha256[:16] in found.words
  stranger, _ = disguise(None, tmp_path / "c")
  found = ledger.standing(stranger)
  assert found.known is False and found.words.startswith("NOT KNOWN")
  # Of another key, an entry means nothing.
  alien = dataclasses.replace(old, key_fingerprint=keys.Master(bytes(32)).fingerprint)
  assert ledger.standing(alien).known is False


def test_an_old_permutation_export_in_place_of_the_one_with_noise_is_told(ledger, tmp_path):
  """The finding: authentic, of the same key and id-less then, it decided how queries were disguised."""
  disguise(ledger, tmp_path / "old")
  disguise(ledger, tmp_path / "new", disguise=RMT)
  shutil.rmtree(tmp_path / "new")
  shutil.copytree(tmp_path / "old", tmp_path / "new")
  facts = directory.verify(tmp_path / "new")
  found = ledger.standing(facts)
  assert found.known and found.newer.spec["scheme"] == "rmt"
  assert found.words.startswith("OLDER")


def test_without_a_ledger_nothing_is_claimed(ledger, tmp_path):
  facts, said = disguise(None, tmp_path / "set")
  assert said == [] and not ledger.path.exists()
  found = ledger.standing(facts)
  assert found.known is None and "there is no ledger" in found.words
  ledger.path.touch()  # made, and nothing entered yet
  assert ledger.standing(facts).known is None


def test_the_same_source_is_warned_of_and_another_one_is_not(ledger, tmp_path):
  source = photos(tmp_path / "photos", range(40))
  first, said = disguise(ledger, tmp_path / "a", source)
  assert said == []
  _, (warning,) = disguise(ledger, tmp_path / "b", source, RMT)
  assert warning.startswith("warning: 100% of the files of this source")
  assert first.id[:8] in warning and "permutation" in warning
  # Half of its files among others; the same files elsewhere under other names.
  half = photos(tmp_path / "half", [*range(20), *range(100, 120)])
  _, said = disguise(ledger, tmp_path / "c", half)
  assert len(said) == 2 and all("33% of" in line for line in said)
  for path in source.rglob("*.png"):
    path.rename(path.with_name(f"x{path.name}"))
  _, said = disguise(ledger, tmp_path / "d", source)
  assert "100% of" in said[0]
  _, said = disguise(ledger, tmp_path / "e", photos(tmp_path / "foreign", range(200, 240)))
  assert said == []
  _, said = disguise(ledger, tmp_path / "f")
  assert said == []
  _, said = disguise(ledger, tmp_path / "g")  # digits have no files, but a name
  assert len(said) == 1 and "100% of" in said[0]


@pytest.mark.parametrize("common", [1.0, 0.5, 0.1, 0.0])
def test_the_share_of_common_files_is_estimated(common):
  """Of 5000 files each; the estimate from 256 hashes has a standard deviation of at most 0.03."""
  both = int(5000 * common)
  first = [f"{number:064x}" for number in range(5000)]
  second = [f"{number:064x}" for number in [*range(both), *range(10_000, 15_000 - both)]]
  blank = Entry("", MASTER.fingerprint, ID, "", "folder", (), {}, "")
  a, b = (dataclasses.replace(blank, sketch=ledger_lib._sketch(x, MASTER)) for x in (first, second))
  assert len(a.sketch) == len(b.sketch) == 256
  truth = both / (10_000 - both)
  assert abs(ledger_lib._overlap(a, b) - truth) < 0.1
  assert (ledger_lib._overlap(a, b) > 0) == (common > 0)
  assert ledger_lib._overlap(a, dataclasses.replace(b, fingerprint="another")) == 0


@pytest.mark.parametrize(("first", "second", "share"), [(3, 3, 1.0), (2, 4, 0.5), (1, 200, 0.005)])
def test_the_share_of_few_files_is_exact(first, second, share):
  blank = Entry("", MASTER.fingerprint, ID, "", "folder", (), {}, "")
  a, b = (
    dataclasses.replace(blank, sketch=ledger_lib._sketch([f"{n:064x}" for n in range(x)], MASTER))
    for x in (first, second)
  )
  assert ledger_lib._overlap(a, b) == ledger_lib._overlap(b, a) == share


# Ids.


@pytest.mark.parametrize(
  "change",
  [
    {"disguise": RMT},
    {"source": "photos"},
    {"splits": {"train": "train[:41]", "test": "test[:10]"}},
    {"splits": {"train": "train[1:41]", "test": "test[:10]"}},
    {"views": 2, "crop": 1},
    {"plain_labels": True},
  ],
  ids=["spec", "source", "number of records", "other records", "views", "labels"],
)
def test_an_id_is_not_given_to_another_data_set(ledger, tmp_path, change):
  disguise(ledger, tmp_path / "a", dataset_id=ID)
  if "source" in change:
    change = {"source": photos(tmp_path / "photos", range(30))}
  with pytest.raises(UnsafeError, match=f"the id {ID} was given to"):
    disguise(ledger, tmp_path / "b", dataset_id=ID, **change)
  assert not (tmp_path / "b").exists()
  assert len(ledger.entries()) == 1


def test_the_same_data_set_written_again_is_the_same_entry(ledger, tmp_path):
  """The same id and command give the same bytes, in another place too: nothing new goes out."""
  first, _ = disguise(ledger, tmp_path / "a", dataset_id=ID)
  second, said = disguise(ledger, tmp_path / "b", dataset_id=ID)
  assert second.sha256 == first.sha256 and said == []
  assert len(ledger.entries()) == 1


def test_doing_a_finished_one_again_enters_nothing_twice(ledger, tmp_path):
  first, _ = disguise(ledger, tmp_path / "a")
  before = ledger.path.read_bytes()
  for _ in range(2):
    again, said = disguise(ledger, tmp_path / "a")
    assert again.sha256 == first.sha256 and said == []
  assert ledger.path.read_bytes() == before


@pytest.mark.parametrize("where", ["shards", "manifest", "ledger"])
def test_a_crash_is_healed_by_doing_it_again(ledger, tmp_path, monkeypatch, where):
  class Cut(BaseException):
    pass

  def cut(*args, **options):
    raise Cut

  owner = {"shards": export, "manifest": manifest, "ledger": Ledger}[where]
  name = {"shards": "finish", "manifest": "write", "ledger": "enter"}[where]
  with monkeypatch.context() as patch:
    patch.setattr(owner, name, cut)
    with pytest.raises(Cut):
      disguise(ledger, tmp_path / "a")
  assert (tmp_path / "a" / manifest.FILE).exists() == (where == "ledger")
  assert ledger.entries() == []
  facts, said = disguise(ledger, tmp_path / "a")
  assert [entry.manifest_sha256 for entry in ledger.entries()] == [facts.sha256]
  assert ledger.standing(facts).known and said == []


# Accidents.


def known(ledger):
  return [int(entry.id, 16) for entry in ledger.entries()]


def test_a_torn_last_line_is_skipped_and_mended_at_every_byte(ledger):
  entered(ledger, 1)
  one = len(ledger.path.read_bytes())
  entered(ledger, 2)
  whole = ledger.path.read_bytes()
  for length in range(one, len(whole) + 1):
    ledger.path.write_bytes(whole[:length])
    complete = length >= len(whole) - 1  # the line's end alone is missing, or nothing
    assert known(ledger) == ([1, 2] if complete else [1])
    entered(ledger, 3)
    assert known(ledger) == ([1, 2, 3] if complete else [1, 3])
    assert ledger.path.read_bytes().endswith(b"\n")
    assert not [line for line in ledger.path.read_bytes().split(b"\n")[:-1] if not line]


@pytest.mark.parametrize("tail", [b"\0" * 500, b"\xff\xfe", b"{}", b'{"date": 1}', b"[" * 5000])
def test_what_a_power_cut_leaves_at_the_end_is_mended(ledger, tail):
  entered(ledger, 1)
  with ledger.path.open("ab") as file:
    file.write(tail)
  assert known(ledger) == [1]
  entered(ledger, 2)
  assert known(ledger) == [1, 2]


@pytest.mark.parametrize("damage", [b"}", b"{}", b"", b"\0", b'{"date": 1}', b"\xff"])
def test_damage_elsewhere_is_refused_with_its_line_and_a_way_out(ledger, tmp_path, damage):
  entered(ledger, 1, 2, 3)
  lines = ledger.path.read_bytes().split(b"\n")
  lines[1] = damage
  ledger.path.write_bytes(b"\n".join(lines))
  facts, _ = disguise(None, tmp_path / "set")
  for call in (ledger.entries, lambda: ledger.standing(facts), lambda: entered(ledger, 4)):
    with pytest.raises(
      DataError, match=r"line 2 is damaged .*Move it away .*--no-ledger"
    ) as caught:
      call()
    assert "\n" not in str(caught.value)
  with pytest.raises(DataError, match="--no-ledger"):
    disguise(ledger, tmp_path / "new")
  assert not (tmp_path / "new").exists()
  disguise(None, tmp_path / "new")


def huge(path):
  with path.open("wb") as file:
    file.truncate(65 << 20)


def link(path):
  path.with_name("elsewhere").write_bytes(b"")
  path.symlink_to(path.with_name("elsewhere"))


KINDS = {
  "65 MB": (huge, "must have at most 67108864 bytes"),
  "a link": (link, "is a symbolic link"),
  "a dangling link": (lambda path: path.symlink_to("nowhere"), "is a symbolic link"),
  "a pipe": (os.mkfifo, "is a pipe"),
  "a folder": (os.mkdir, "is a folder"),
  "zeros": (lambda path: path.symlink_to("/dev/zero"), "is a symbolic link"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_file_is_refused_before_any_work(ledger, tmp_path, kind):
  make, message = KINDS[kind]
  make(ledger.path)
  with pytest.raises(DjaxError, match=f"{message}.*--no-ledger") as caught:
    disguise(ledger, tmp_path / "set")
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "set").exists()
  facts, _ = disguise(None, tmp_path / "set")
  with pytest.raises(DjaxError, match=message):
    ledger.standing(facts)
  if kind == "a link":
    assert (tmp_path / "elsewhere").read_bytes() == b""
  assert not (tmp_path / "nowhere").exists()


def test_a_link_put_there_after_it_was_read_is_not_followed(ledger, tmp_path, monkeypatch):
  real = Ledger.entries

  def read_then_swap(self):
    found = real(self)
    if not ledger.path.is_symlink():
      ledger.path.symlink_to(tmp_path / "elsewhere")
    return found

  monkeypatch.setattr(Ledger, "entries", read_then_swap)
  with pytest.raises(DjaxError, match=r"must be writable, got: .*--no-ledger"):
    disguise(ledger, tmp_path / "set")
  assert not (tmp_path / "elsewhere").exists() and not (tmp_path / "set").exists()


@contextlib.contextmanager
def read_only(folder):
  """A folder that nobody can write to, root included."""
  folder.mkdir()
  if os.geteuid():
    folder.chmod(0o500)
    yield
    return
  command = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)]
  if subprocess.run(command, capture_output=True, check=False).returncode:
    pytest.skip("root needs the right to mount a tmpfs for a folder that it cannot write to")
  try:
    yield
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_folder_is_refused_before_any_work(tmp_path):
  with read_only(tmp_path / "keys"):
    with pytest.raises(DjaxError, match=r"must be writable, got: .*--no-ledger"):
      disguise(Ledger(tmp_path / "keys" / "k.ledger"), tmp_path / "set")
    assert not (tmp_path / "set").exists()
    disguise(None, tmp_path / "set")


@pytest.mark.parametrize("fault", ["open", "write", "short write", "fsync"])
def test_what_the_system_refuses_is_said_in_one_line_and_leaves_no_half_entry(
  ledger, tmp_path, monkeypatch, fault
):
  entered(ledger, 1)
  before = ledger.path.read_bytes()
  real = {name: getattr(os, name) for name in ("open", "write", "fsync")}

  def fail(*args, **options):
    raise OSError(28, "No space left on device")

  def of_ledger(name, instead):
    def call(first, *args, **options):
      path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
      ours = path == str(ledger.path) and (name != "open" or args[0] & os.O_APPEND)
      return (instead if ours else real[name])(first, *args, **options)

    return call

  with monkeypatch.context() as patch:
    if fault == "short write":
      patch.setattr(os, "write", of_ledger("write", lambda fd, data: real["write"](fd, data[:50])))
    else:
      patch.setattr(os, fault, of_ledger(fault, fail))
    with pytest.raises(
      DjaxError, match=r"must be writable, got: No space left.*--no-ledger"
    ) as caught:
      entered(ledger, 2)
    assert "\n" not in str(caught.value)
    assert ledger.path.read_bytes() == before
  entered(ledger, 2)
  assert known(ledger) == [1, 2]


WRITER = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from djax.owner.ledger import Ledger
from helpers.ledgers import entered
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3]), int(sys.argv[4])):
  entered(Ledger(pathlib.Path(sys.argv[2])), number)
  print(number, flush=True)
"""


@contextlib.contextmanager
def writers(path, *ranges):
  """Starts processes that enter data sets as soon as all of them are there."""
  command = [sys.executable, "-c", WRITER, str(ROOT / "tests"), str(path)]
  with contextlib.ExitStack() as stack:
    processes = [
      stack.enter_context(
        subprocess.Popen(
          [*command, *map(str, ends)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
      )
      for ends in ranges
    ]
    for process in processes:
      assert process.stdout.readline() == "ready\n"
    for process in processes:
      process.stdin.write("go\n")
      process.stdin.flush()
    yield processes


def test_writers_at_once_lose_nothing_and_enter_nothing_twice(ledger):
  with writers(ledger.path, (100, 160), (200, 260), (100, 160)) as processes:
    for process in processes:
      process.communicate(timeout=120)
      assert process.returncode == 0
  assert sorted(known(ledger)) == [*range(100, 160), *range(200, 260)]


def test_a_killed_writer_loses_at_most_its_last_line(ledger):
  with writers(ledger.path, (1, 100_000)) as (process,):
    for _ in range(25):
      last = int(process.stdout.readline())
    process.kill()
  found = known(ledger)
  assert found == list(range(1, len(found) + 1)) and len(found) >= last
  entered(ledger, 999_999)
  assert known(ledger)[-1] == 999_999


# Secrets.


def test_nothing_secret_is_in_it(ledger, tmp_path):
  source = photos(tmp_path / "very private people", range(30))
  facts, _ = disguise(ledger, tmp_path / "set", source, RMT)
  secret = MASTER.data_set(facts.id, facts.spec)
  found, key = secrets_of(secret, facts.spec)
  found["data set"] = found.pop("master")
  found["master"] = keys.secret_bytes(MASTER)
  for label in ("ledger", "manifest|dataset"):
    found[label] = MASTER.owner().subkey(label)
  blob = ledger.path.read_bytes()
  assert not leaks(blob, found, key)
  assert leaks(blob + found["ledger"].hex().encode(), found, key) == {"ledger"}
  for word in (b"private", b"class0", b"0001.png", str(tmp_path).encode()):
    assert word not in blob
  # Who guesses a file cannot confirm it: its plain hash is not there, nor its hash under another key.
  (entry,) = ledger.entries()
  hashes = {directory.file_sha256(path) for path in source.rglob("*.png")}
  assert not any(digest[:16] in blob.decode() for digest in hashes)
  other = ledger_lib._sketch(sorted(hashes), keys.Master(bytes(32)))
  assert not set(other) & set(entry.sketch)
  assert set(ledger_lib._sketch(sorted(hashes), MASTER)) == set(entry.sketch)
