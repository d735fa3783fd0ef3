"""A disguised directory that comes back hostile: every file in turn replaced by what it must not be, for every verb.

The outcome is always one line and exit code 4 (3 for another key), at once, with little memory, and nothing is written.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import random
import shutil
import sys
import threading
import time

import numpy as np
import pytest
from helpers import hostile
from helpers.alarm import alarm
from helpers.training import tiny

import train
from djax import keys, sources
from djax.cli.main import main
from djax.disguised import directory, manifest
from djax.errors import DataError, DjaxError
from djax.io import foreign
from djax.keys import keyfile
from djax.owner import export, query, restore
from djax.owner.plan import Request
from train import config as config_lib
from train.__main__ import main as train_main
from train.answer import main as answer_main

MASTER = keys.Master(bytes(range(70, 102)))
SPLITS = {"train": "train[:200]", "test": "test[:40]"}
RMT = {"scheme": "rmt", "block_size": 2, "noise_level": 25.0}
MOST_SECONDS, MOST_MEGABYTES = 5, 500
SHARDS = (
  *(f"disguised-train.array_record-{i:05d}-of-00003" for i in range(3)),
  "disguised-test.array_record-00000-of-00001",
)
HEADS = ("MANIFEST.json", "MANIFEST.mac")
SMALL = ("README.md", "features.json", "dataset_info.json", "label.labels.txt")
FILES = (*HEADS, *SMALL, *SHARDS)
REQUEST = (*HEADS, *SMALL[:3], "disguised-query.array_record-00000-of-00001")


def disguise(folder, master=MASTER, **options):
  given = {"disguise": RMT, "splits": SPLITS, "plain_labels": True, **options}
  request = Request("digits", originals_per_shard=80, **given)
  return export.disguise(request, folder, master, workers=1)


def ask(data, folder, seed):
  """Writes a request of five images."""
  images = sources.load("digits", f"test[{seed}:{seed + 5}]").images
  asked = query.Query(images, tuple("abcde"))
  return query.request(asked, manifest.read(data), MASTER, folder)[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Key, data set, request, a run on the data, its answer; and others of the same key and of another one."""
  folder = tmp_path_factory.mktemp("place")
  keyfile.write(folder / "key", MASTER, passphrase=None)
  disguise(folder / "data")
  disguise(folder / "other", splits={**SPLITS, "test": "test[40:80]"})
  disguise(folder / "foreign", keys.Master(bytes(32)))
  ask(folder / "data", folder / "request", 0)
  ask(folder / "data", folder / "other_request", 5)
  train.run(config(folder / "data", "train.epochs=1"), folder / "run")
  assert answer_main([f"{folder / 'run'}", f"{folder / 'request'}", f"--out={folder / 'a'}"]) == 0
  np.save(folder / "images.npy", sources.load("digits", "test[:3]").images)
  return folder


def config(folder, *overrides):
  splits = ["data.train_split=train", "data.test_split=test", "disguise.scheme=plain"]
  return tiny(f"data.disguised_dir={folder}", *splits, "disguise.noise_level=0", *overrides)


@pytest.fixture
def sandbox(place, tmp_path):
  """Copies that a test may damage, and a folder for what verbs write."""
  for name in ("data", "request"):
    shutil.copytree(place / name, tmp_path / name)
  (tmp_path / "out").mkdir()
  return tmp_path


# The verbs, as command lines. ``reads`` are the files that a verb uses: what it does not use cannot deceive it.


@dataclasses.dataclass(frozen=True)
class Verb:
  """A verb: its entry point and module, its arguments, and the files that it uses."""

  main: object
  module: str
  arguments: tuple
  reads: tuple = FILES
  folder: str = "data"

  def argv(self, place, sandbox):
    words = {"{data}": sandbox / "data", "{request}": sandbox / "request", "{out}": sandbox / "out"}
    words |= {"{place}": place}
    found = []
    for argument in self.arguments:
      for word, path in words.items():
        argument = argument.replace(word, str(path))
      found.append(argument)
    return found


KEY = ("--key", "{place}/key")
FLAGS = [
  f"--config.{name}={value}"
  for name, value in config_lib.leaves(config("{data}", "train.epochs=1"))
]
VERBS = {
  "inspect": Verb(main, "djax", ("inspect", "{data}"), (*HEADS, *SMALL)),
  "inspect --grid": Verb(
    main,
    "djax",
    ("inspect", "{data}", "--grid", "{out}/grid.png"),
    (*HEADS, *SMALL, SHARDS[0]),
  ),
  "verify": Verb(main, "djax", ("verify", "{data}")),
  "verify --key": Verb(main, "djax", ("verify", "{data}", *KEY)),
  "restore npz": Verb(main, "djax", ("restore", "{data}", *KEY, "--out", "{out}/back.npz")),
  "restore folder": Verb(main, "djax", ("restore", "{data}", *KEY, "--out", "{out}/back")),
  "audit": Verb(
    main,
    "djax",
    (
      *("audit", "--data", "{data}", "--originals", "digits", *KEY, "--out", "{out}/audit"),
      *("--train-split", "train[:200]", "--test-split", "test[:40]", "--attacks", "examiner"),
    ),
  ),
  "query --data": Verb(
    main,
    "djax",
    ("query", "{place}/images.npy", "--data", "{data}", "--request", "{out}/request", *KEY),
    HEADS,
  ),
  "query --answers": Verb(
    main,
    "djax",
    ("query", "--request", "{request}", "--answers", "{place}/a", *KEY),
    HEADS,
    "request",
  ),
  "verify request": Verb(main, "djax", ("verify", "{request}", *KEY), REQUEST, "request"),
  "train": Verb(train_main, "train", ("--workdir={out}/run", *FLAGS)),
  "answer": Verb(
    answer_main,
    "train.answer",
    ("{place}/run", "{request}", "--out", "{out}/answers.json"),
    REQUEST,
    "request",
  ),
}


# What a file is replaced by. Each is given the file, the one of that name in another directory, and a place elsewhere.


def _linked(path, other, elsewhere):
  path.replace(elsewhere / path.name)
  path.symlink_to(elsewhere / path.name)


def _written(make):
  def act(path, other, elsewhere):
    path.write_bytes(make(path.read_bytes(), other))

  return act


def _anew(make):
  def act(path, other, elsewhere):
    path.unlink()
    make(path)

  return act


def _sparse(path):
  with path.open("wb") as file:
    file.truncate(10 << 30)


def _flipped(data, other):
  place = random.Random(len(data)).randrange(8 * len(data))
  found = bytearray(data)
  found[place >> 3] ^= 1 << (place & 7)
  return bytes(found)


KINDS = {
  "a link to /dev/zero": _anew(lambda path: path.symlink_to("/dev/zero")),
  "a link to its own content": _linked,
  "a pipe": _anew(os.mkfifo),
  "10 GB of holes": _anew(_sparse),
  "a folder": _anew(lambda path: path.mkdir()),
  "that of another directory": _written(lambda data, other: other.read_bytes()),
  "random bytes": _written(lambda data, other: random.Random(7).randbytes(len(data))),
  "a flipped bit": _written(_flipped),
  "nothing in it": _written(lambda data, other: b""),
  "no file": _anew(lambda path: None),
}


def replaced(folder, name, kind, others):
  """Replaces a file; returns whether that changed anything, and a function that puts it back."""
  path, kept, elsewhere = folder / name, (folder / name).read_bytes(), folder.parent / "elsewhere"
  elsewhere.mkdir(exist_ok=True)
  KINDS[kind](path, others / name, elsewhere)

  def back():
    if path.is_dir() and not path.is_symlink():
      path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(kept)
    shutil.rmtree(elsewhere)

  changed = path.is_symlink() or not path.is_file() or path.stat().st_size != len(kept)
  return changed or path.read_bytes() != kept, back


def call(verb, place, sandbox, capfd):
  """Runs a verb in this process, and says what it left."""
  before = hostile.tree(sandbox)
  capfd.readouterr()
  start = time.monotonic()
  with alarm(60):
    code = verb.main(verb.argv(place, sandbox))
  seconds = time.monotonic() - start
  out, err = capfd.readouterr()
  return code, out, err.splitlines(), seconds, hostile.tree(sandbox) == before


def check_refused(code, out, lines, *, expected=4):
  """One error in one line, perhaps after lines that say how far the work was."""
  assert code == expected, (code, lines)
  errors = [line for line in lines if "error: " in line]
  assert lines and errors == lines[-1:], lines
  for line in lines:
    assert line.isprintable()
    assert "Traceback" not in line and "Warning" not in line
  assert out == ""


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.slow
def test_every_file_replaced_by_everything_is_refused_in_one_line(place, sandbox, capfd, name):
  verb, tried = VERBS[name], 0
  folder = sandbox / verb.folder
  others = place / ("other" if verb.folder == "data" else "other_request")
  slowest = 0.0
  for file in verb.reads:
    for kind in KINDS:
      changed, back = replaced(folder, file, kind, others)
      if changed:
        code, out, lines, seconds, untouched = call(verb, place, sandbox, capfd)
        check_refused(code, out, lines)
        assert untouched, (file, kind)
        assert str(folder) in lines[-1], (file, kind, lines)
        assert not name.startswith(("inspect", "verify", "query", "answer")) or len(lines) == 1
        slowest, tried = max(slowest, seconds), tried + 1
      back()
  assert slowest < MOST_SECONDS
  # Only files for TFDS are the same in two data sets of the same shape.
  assert tried >= len(KINDS) * len(verb.reads) - 4, tried


@pytest.mark.parametrize("name", [n for n in VERBS if n != "audit"])
@pytest.mark.slow
def test_the_whole_directory_is_taken(place, sandbox, capfd, name):
  """What refuses everything would pass the test above."""
  code, _, lines, _, _ = call(VERBS[name], place, sandbox, capfd)
  assert code == 0, lines


@pytest.mark.slow
def test_an_audit_takes_the_whole_directory(place, sandbox):
  from djax.audit import exported, scenario

  splits = {"train": "train[:200]", "test": "test[:40]"}
  found = exported.from_directory(
    str(sandbox / "data"), "digits", MASTER, seed=0, sizes=scenario.FAST, splits=splits
  )
  assert len(found.private) > 100


@pytest.mark.parametrize("name", VERBS)
def test_the_manifest_of_another_directory_with_its_mac_is_refused(place, sandbox, capfd, name):
  """Both are authentic; what they vouch for is not there. Of another key: exit code 3."""
  verb = VERBS[name]
  for source in ("other", "foreign"):
    others = place / (source if verb.folder == "data" else "other_request")
    for head in HEADS:
      shutil.copyfile(others / head, sandbox / verb.folder / head)
    if source == "other" and name in ("inspect", "query --data"):
      continue  # the one vouches for nothing, the other reads nothing else: the ledger and --expect tell
    code, out, lines, _, untouched = call(verb, place, sandbox, capfd)
    expected = 3 if source == "foreign" and name in ("verify --key", "query --data") else 4
    check_refused(code, out, lines, expected=expected)
    assert untouched


@pytest.mark.parametrize("name", [n for n in VERBS if "{place}/key" in VERBS[n].arguments])
def test_whoever_mends_the_checksum_lacks_the_key(place, sandbox, capfd, name):
  verb = VERBS[name]
  folder = sandbox / verb.folder
  facts = hostile.facts_of(folder)
  for change in (
    {"warnings": []},
    {"classes": facts["classes"] - 1, "class_names": None},
    {"error": {**facts["error"], "noise": 0.0}},
    {"id": "0" * 32},
    {
      "sealed": "A" + facts["sealed"][1:]
      if facts["sealed"][0] != "A"
      else "B" + facts["sealed"][1:]
    },
  ):
    hostile.forge(folder, **change)
    code, out, lines, _, untouched = call(verb, place, sandbox, capfd)
    check_refused(code, out, lines)
    assert "was not written with this key or was changed since" in lines[-1]
    assert untouched
    hostile.forge(folder, **facts)


# Real processes.


def argv(verb, place, sandbox):
  return ["-m", verb.module, *verb.argv(place, sandbox)]


def check_process(done):
  lines = done.err.splitlines()
  check_refused(done.code, done.out, lines)
  assert done.cpu < MOST_SECONDS, done
  assert done.megabytes < MOST_MEGABYTES, done


PROCESSES = [
  ("inspect --grid", "features.json", "a link to /dev/zero"),
  ("restore npz", "MANIFEST.mac", "a pipe"),
  pytest.param("verify", "MANIFEST.json", "a link to /dev/zero", marks=pytest.mark.slow),
  pytest.param("train", SHARDS[1], "10 GB of holes", marks=pytest.mark.slow),
  pytest.param("answer", "README.md", "a pipe", marks=pytest.mark.slow),
]
TRAPS = ("a link to /dev/zero", "a pipe", "10 GB of holes")


@pytest.mark.parametrize(("name", "file", "kind"), PROCESSES)
def test_a_process_ends_at_once_with_little_memory(place, sandbox, name, file, kind):
  verb = VERBS[name]
  others = place / ("other" if verb.folder == "data" else "other_request")
  replaced(sandbox / verb.folder, file, kind, others)
  before = hostile.tree(sandbox)
  check_process(hostile.run(argv(verb, place, sandbox)))
  assert hostile.tree(sandbox) == before


# Runs commands one after the other; a line for each that ended: its code, and seconds of the CPUs.
IN_TURN = """
import importlib, json, os, sys, time
with open(sys.argv[1]) as file:
  commands = json.load(file)
for module, words, out, err in commands:
  for number, name in ((1, out), (2, err)):
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
  main = importlib.import_module(module).main
  start = time.process_time()
  code = main(words)
  sys.stdout.flush(), sys.stderr.flush()
  with open(sys.argv[1] + ".ended", "a") as file:
    print(json.dumps([code, time.process_time() - start]), file=file)
"""
MODULES = {"djax": "djax.cli.main", "train": "train.__main__", "train.answer": "train.answer"}


@pytest.mark.slow
@pytest.mark.parametrize("group", ["djax", "audit", "train", "train.answer"])
def test_processes_end_at_once_with_little_memory(place, tmp_path, group):
  """Each verb with each trap, at another file each time; verbs that load as much share a process.

  Above, all files are tried in this process; here the memory that a process has had at most is known.
  """
  commands, cases = [], []
  for number, (name, verb) in enumerate(VERBS.items()):
    if group != ("audit" if name == "audit" else verb.module):
      continue
    files = [f for f in (*HEADS, "features.json", verb.reads[-1]) if f in verb.reads]
    files = list(dict.fromkeys(files))
    for turn, kind in enumerate(TRAPS):
      sandbox = tmp_path / f"{number}-{turn}"
      (sandbox / "out").mkdir(parents=True)
      shutil.copytree(place / verb.folder, sandbox / verb.folder)
      others = place / ("other" if verb.folder == "data" else "other_request")
      file = files[(number + turn) % len(files)]
      replaced(sandbox / verb.folder, file, kind, others)
      cases.append((name, file, kind, sandbox, hostile.tree(sandbox)))
      said = [f"{sandbox}.{stream}" for stream in ("out", "err")]
      commands.append((MODULES[verb.module], verb.argv(place, sandbox), *said))
  todo, ended = tmp_path / "commands", tmp_path / "commands.ended"
  todo.write_text(json.dumps(commands))
  done = hostile.run(["-c", IN_TURN, todo], seconds=240)
  found = [json.loads(line) for line in ended.read_text().splitlines()] if ended.exists() else []
  assert len(found) == len(cases) >= len(TRAPS), (cases[len(found)][:3], done)
  assert done.code == 0 and done.megabytes < MOST_MEGABYTES, done
  for (*case, sandbox, before), (code, cpu) in zip(cases, found, strict=True):
    out, err = (pathlib.Path(f"{sandbox}.{stream}").read_text() for stream in ("out", "err"))
    check_refused(code, out, err.splitlines())
    assert cpu < MOST_SECONDS, case
    assert hostile.tree(sandbox) == before, case


LARGE = {
  "empty lists": lambda n: "[" + "[]," * (n // 3) + "[]]",
  "deep lists": lambda n: "[" + ("[" * 400 + "]" * 400 + ",") * (n // 801) + "[]]",
  "numbers": lambda n: "[" + "1," * (n // 2) + "1]",
  "strings": lambda n: "[" + ",".join(f'"{i:05x}"' for i in range(n // 8 - 1)) + "]",
  "fields": lambda n: "{" + ",".join(f'"{i:05x}":1' for i in range(n // 10 - 1)) + "}",
  "one string": lambda n: '"' + "a" * n + '"',
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.slow
def test_a_manifest_as_large_as_it_may_be_takes_little_memory(place, sandbox, kind):
  facts = hostile.facts_of(sandbox / "data")
  text = json.dumps({**facts, "later": "@"}).replace(
    '"@"', LARGE[kind](manifest.MOST_BYTES - 30_000)
  )
  text = text.replace('"version": 2', '"version": 2, "role": 7') if kind == "one string" else text
  assert manifest.MOST_BYTES - 60_000 < len(text) <= manifest.MOST_BYTES
  hostile.put(sandbox / "data", text.encode())
  done = hostile.run(argv(VERBS["verify --key"], place, sandbox))
  check_process(done)


# Code that stands in the directory, or in its name.

PAYLOAD = "import pathlib\npathlib.Path({!r}).write_text('ran')\n\n\nclass FeaturesDict:\n  pass\n"


def plant(sandbox, *, mended):
  """Has features.json name a module of the working directory; returns what the module writes."""
  marker, package = sandbox / "marker", sandbox / "cwd" / "payload"
  package.mkdir(parents=True)
  (package / "__init__.py").write_text("")
  (package / "sub.py").write_text(PAYLOAD.format(str(marker)))
  for folder in (sandbox / "data", sandbox / "request"):
    text = (folder / "features.json").read_text()
    named = text.replace("tensorflow_datasets.core.features.features_dict", "payload.sub")
    assert named != text
    if mended:
      hostile.replace(folder, "features.json", named.encode())
    else:
      (folder / "features.json").write_text(named)
  return marker


def in_cwd(arguments, sandbox):
  """Runs Python where the payload lies, as ``python -m djax`` finds modules there too."""
  return hostile.run(
    arguments,
    cwd=sandbox / "cwd",
    environment={"PYTHONPATH": f"{sandbox / 'cwd'}{os.pathsep}{hostile.ROOT}"},
  )


@pytest.mark.parametrize(
  ("how", "name"),
  [("mended", "restore npz"), ("mended", "train"), ("as it is", "inspect --grid")],
)
def test_a_module_that_the_features_name_is_never_imported(place, sandbox, how, name):
  marker = plant(sandbox, mended=how == "mended")
  done = in_cwd(argv(VERBS[name], place, sandbox), sandbox)
  assert not marker.exists()
  check_refused(done.code, done.out, done.err.splitlines())
  assert list((sandbox / "out").iterdir()) == []


@pytest.mark.parametrize("how", ["mended", pytest.param("as it is", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name for name in VERBS if name != "query --answers"])
def test_it_is_not_imported_here_either(place, sandbox, capfd, monkeypatch, how, name):
  marker = plant(sandbox, mended=how == "mended")
  monkeypatch.chdir(sandbox / "cwd")
  monkeypatch.syspath_prepend(sandbox / "cwd")
  code, out, lines, _, _ = call(VERBS[name], place, sandbox, capfd)
  assert not marker.exists() and "payload" not in sys.modules
  if (how, name) == ("as it is", "query --data"):  # it does not look at this file
    assert code == 0
    return
  check_refused(code, out, lines)
  assert list((sandbox / "out").iterdir()) == []


def test_the_payload_would_run(sandbox):
  """The twin: TFDS itself, as the data card shows it."""
  marker = plant(sandbox, mended=True)
  script = "import sys, tensorflow_datasets as tfds; tfds.builder_from_directory(sys.argv[1])"
  in_cwd(["-c", script, sandbox / "data"], sandbox)
  assert marker.read_text() == "ran"


# Files that change hands while they are read.


@pytest.fixture
def counted(sandbox, monkeypatch):
  """Counts how often each file of the directories is opened; those that verbs write are not meant."""
  found, real = {}, foreign._open

  def spy(folder, name, limit):
    if folder in (sandbox / "data", sandbox / "request"):
      found[name] = found.get(name, 0) + 1
    return real(folder, name, limit)

  monkeypatch.setattr(foreign, "_open", spy)
  return found


@pytest.mark.parametrize("name", [n for n in VERBS if n not in ("train", "audit")])
def test_a_manifest_is_opened_once(place, sandbox, capfd, counted, name):
  """What is checked is what is used: there is no second look."""
  assert call(VERBS[name], place, sandbox, capfd)[0] == 0
  assert (counted["MANIFEST.json"], counted["MANIFEST.mac"]) == (1, 1)


class Swapping:
  """Exchanges the files of a directory with those of two others, over and over, each in one step."""

  def __init__(self, live, *sources, names=FILES):
    self._live, self._sources, self._names = live, sources, names
    self._stop, self.rounds = threading.Event(), 0
    self._thread = threading.Thread(target=self._work)

  def _work(self):
    draw = random.Random(0)
    while not self._stop.is_set():
      source = self._sources[self.rounds % len(self._sources)]
      for name in draw.sample(self._names, len(self._names)):
        os.link(source / name, self._live.parent / "swapped")
        os.replace(self._live.parent / "swapped", self._live / name)
      self.rounds += 1

  def __enter__(self):
    self._interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    self._thread.start()
    return self

  def __exit__(self, *args):
    self._stop.set()
    self._thread.join()
    sys.setswitchinterval(self._interval)


def outcome(action):
  """Returns the result of an action, or the class of its refusal."""
  try:
    return action()
  except DataError as error:
    assert str(error).isprintable()
    return DataError


@pytest.mark.slow
def test_of_two_authentic_directories_one_is_restored_whole_or_none(place, tmp_path):
  whole = {}
  for name in ("data", "other"):
    restore.to_files(directory.open(place / name), MASTER, tmp_path / f"{name}.npz")
    whole[(tmp_path / f"{name}.npz").read_bytes()] = name
  assert len(whole) == 2
  live, found = tmp_path / "live", []
  shutil.copytree(place / "data", live)

  def restored():
    out = tmp_path / "out.npz"
    try:
      restore.to_files(directory.open(live), MASTER, out)
      return whole[out.read_bytes()]
    finally:
      out.unlink(missing_ok=True)

  with Swapping(live, place / "other", place / "data") as swapping:
    stop = time.monotonic() + 4
    while time.monotonic() < stop:
      found.append(outcome(restored))
      found.append(outcome(lambda: directory.verify(live).sha256))
  hashes = {manifest.read(place / name).sha256 for name in ("data", "other")}
  assert {"data", "other", DataError, *hashes} >= set(found)
  assert len(found) > 10 and swapping.rounds > 10
  assert sorted(entry.name for entry in live.iterdir()) == sorted(FILES)


def test_a_forged_manifest_never_passes_beside_the_authentic_one(place, tmp_path):
  """Before, it was parsed from one read and authenticated by another."""
  live, forged = tmp_path / "live", tmp_path / "forged"
  shutil.copytree(place / "data", live)
  shutil.copytree(place / "data", forged)
  hostile.forge(forged, warnings=["forged"])
  expected, found = manifest.read(place / "data").warnings, []
  assert manifest.read(forged).warnings == ("forged",)
  with Swapping(live, forged, place / "data", names=HEADS) as swapping:
    stop = time.monotonic() + 3
    while time.monotonic() < stop:
      found.append(outcome(lambda: restore.authenticated(live, MASTER).warnings))
  assert set(found) <= {expected, DataError}
  assert DataError in found and len(found) > 100 and swapping.rounds > 20


def test_a_shard_that_is_exchanged_after_it_was_verified_is_not_restored(
  place, sandbox, monkeypatch
):
  """The one that is restored is a private copy, hashed as it was copied."""
  data, real = directory.open(sandbox / "data"), directory.verify
  name = SHARDS[1]

  def verified(*args, **options):
    facts = real(*args, **options)
    shutil.copyfile(place / "other" / name, sandbox / "data" / name)
    return facts

  monkeypatch.setattr(directory, "verify", verified)
  with pytest.raises(DataError, match=f"{name} is damaged"):
    restore.to_files(data, MASTER, sandbox / "out" / "back.npz")
  assert list((sandbox / "out").iterdir()) == []


# Names and numbers, through the verbs: more in test_fuzz_directory.py.

ESCAPES = "\x1b[2K\rauthenticated\x1b]0;owned\x07\x9b1m\u202e\u2028\u200b\x00"


def test_escape_sequences_never_reach_the_terminal(place, sandbox, capfd):
  folder = sandbox / "data"
  facts = hostile.facts_of(folder)
  hostile.forge(
    folder,
    djax=ESCAPES,
    warnings=[ESCAPES, *facts["warnings"]],
    class_names=[ESCAPES] * facts["classes"],
    source={**facts["source"], "name": ESCAPES},
  )
  for arguments in (["inspect", folder], ["verify", folder], ["inspect", folder, "--json"]):
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capfd.readouterr()
    for line in (out + err).split("\n"):
      assert line.isprintable(), line
  assert main(["inspect", str(folder)]) == 0
  assert "\\x1b[2K\\rauthenticated" in capfd.readouterr().out
  (folder / f"stray{ESCAPES[:-1]}").write_text("")
  assert main(["verify", str(folder)]) == 4
  (line,) = capfd.readouterr().err.splitlines()
  assert line.isprintable() and "is not in the manifest" in line


def test_a_request_passes_as_no_data_set_and_the_other_way_round(place, sandbox, capfd):
  data, request, out = sandbox / "data", sandbox / "request", sandbox / "out"
  for arguments in (
    ["restore", request, "--key", place / "key", "--out", out / "back.npz"],
    ["query", place / "images.npy", "--data", request, "--request", out / "r"],
    ["query", "--request", data, "--answers", place / "a"],
    ["verify", request, "--role", "dataset"],
    ["verify", data, "--role", "request"],
  ):
    capfd.readouterr()
    keyed = arguments if "--key" in arguments else [*arguments, "--key", place / "key"]
    assert main([str(argument) for argument in keyed]) == 4
    (line,) = capfd.readouterr().err.splitlines()
    assert "must be a" in line
  assert list(out.iterdir()) == []


def test_every_refusal_is_of_the_family(place):
  assert issubclass(foreign.ForeignFileError, DataError) and issubclass(DataError, DjaxError)
  digest = hashlib.sha256((place / "data" / "MANIFEST.json").read_bytes()).hexdigest()
  assert directory.verify(place / "data").sha256 == digest
  assert pathlib.Path(place / "data" / "label.labels.txt").is_file()
