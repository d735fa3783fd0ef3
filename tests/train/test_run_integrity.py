"""A run directory that comes back from a machine nobody vouches for: its files replaced, and their content made up.

``DJAX_FUZZ=5000`` gives the fuzz so many inputs; ``-s`` shows the figures.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
from helpers.digits import write
from helpers.training import assert_same_state, config_for, params
from hypothesis import strategies as st

import djax
import train
from djax import keys, models, sources
from djax.errors import ConfigError, DataError, DjaxError, UnsafeError
from djax.io import foreign
from djax.keys import keyfile
from djax.models import checksums, predict, weights
from train import config as config_lib
from train import optimizers, run_dir, terminal
from train import state as state_lib

MASTER = keys.Master(bytes(range(32)))
SMALL = ("model.name=mlp", "model.depth=1", "model.width=4", "train.epochs=2")
SECONDS, BYTES = 5, 500 << 20
NEWEST, OLDER = 8, 4


def small(data, *overrides):
  return config_for(data, *SMALL, "train.checkpoint_every_steps=1000", *overrides)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A run of two checkpoints in ``run``, another one in ``other``, their data in ``data``."""
  path = tmp_path_factory.mktemp("integrity")
  write(path / "data", MASTER)
  train.run(small(path / "data"), path / "run")
  train.run(small(path / "data", "seed=1"), path / "other")
  return path


@pytest.fixture
def run(place, tmp_path):
  return copied(place / "run", tmp_path / "run")


def copied(source, target):
  return Path(shutil.copytree(source, target, symlinks=True))


def read_by_query(run):
  """Returns the names of all files that answering reads, relative to the run."""
  record = checksums.newest(run)
  assert record.step == NEWEST
  return [f"checksums/{NEWEST}.json", "metrics.jsonl", *record.files]


def content(folder):
  """Returns what is seen of a folder without opening anything."""
  seen = {}
  for path in sorted(folder.rglob("*")):
    status = path.lstat()
    seen[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)
  return seen


# Kinds of replacement: each is given a file, and the same file of another run.


def link_to_zero(path, other):
  path.unlink()
  path.symlink_to("/dev/zero")


def link_to_itself(path, other):
  moved = path.with_name("elsewhere")
  path.rename(moved)
  path.symlink_to(moved)


def pipe(path, other):
  path.unlink()
  os.mkfifo(path)


def folder(path, other):
  path.unlink()
  path.mkdir()


def connection(path, other):
  path.unlink()
  there = os.getcwd()
  os.chdir(path.parent)  # names of sockets are short
  try:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as end:
      end.bind(path.name)
  finally:
    os.chdir(there)


def sparse(path, other):
  with path.open("r+b") as file:
    file.truncate(10 << 30)


def of_another_run(path, other):
  if not other.is_file() or other.read_bytes() == path.read_bytes():
    other = path.with_name("none")
    other.write_bytes(path.read_bytes()[::-1] + b" ")
  shutil.copyfile(other, path)


def random_bytes(path, other):
  path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def flipped(path, other):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def shortened(path, other):
  os.truncate(path, path.stat().st_size - 1)


def missing(path, other):
  path.unlink()


KINDS = (
  link_to_zero, link_to_itself, pipe, folder, connection, sparse, of_another_run, random_bytes,
  flipped, shortened, missing,
)  # fmt: skip


def refused(action, run):
  """Runs what must fail: one line, exit code 4, soon, with little memory, and nothing changed."""
  before, start = content(run), time.monotonic()
  with pytest.raises(DataError) as error:
    action()
  assert time.monotonic() - start < SECONDS
  assert content(run) == before
  assert error.value.exit_code == 4
  line = str(error.value)
  assert "\n" not in line and str(run) in line and len(line) < 1000
  return line


def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.slow
def test_no_file_of_a_run_can_be_replaced_before_a_query(place, tmp_path, kind):
  predict.load(place / "run")
  names, before = read_by_query(place / "run"), peak()
  assert len(names) > 20
  for number, name in enumerate(names):
    run = copied(place / "run", tmp_path / str(number))
    kind(run / name, place / "other" / name)
    if kind is missing and name.startswith("checksums/"):
      # As if a kill had come before the record was written: the one before counts.
      assert predict.load(run).summary["step"] == OLDER
    else:
      refused(functools.partial(predict.load, run), run)
    shutil.rmtree(run)
  assert peak() - before < BYTES
  print(f"\n{kind.__name__}: {len(names)} files, none of them used")


@functools.cache
def fresh_state(data):
  """Returns a state of the shapes of the small runs."""
  config = small(data)
  model = models.create(config.model, classes=10, spec={"scheme": "plain"})
  optimizer = optimizers.create(config.optimizer, 4, 8)
  mean, scale = jax.numpy.zeros((8, 8, 1)), jax.numpy.ones(())
  return state_lib.initial(model, optimizer, jax.random.key(0), mean, scale)


def resumed(place, run):
  """Does what ``fit`` does before it writes anything to a run that is there."""
  facts = json.loads((place / "run" / "disguise.json").read_text())
  record = run_dir.open_run(run, small(place / "data"), facts, steps_per_epoch=4)
  return state_lib.restore(run, record, fresh_state(place / "data"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.slow
def test_no_file_of_a_run_can_be_replaced_before_it_is_resumed(place, tmp_path, kind):
  state, seconds, _ = resumed(place, place / "run")
  assert state.step == NEWEST and seconds > 0
  names, before = read_by_query(place / "run"), peak()
  for number, name in enumerate(names):
    run = copied(place / "run", tmp_path / str(number))
    kind(run / name, place / "other" / name)
    if kind is missing and name.startswith("checksums/"):
      assert resumed(place, run)[0].step == OLDER
    else:
      refused(functools.partial(resumed, place, run), run)
    shutil.rmtree(run)
  assert peak() - before < BYTES
  print(f"\n{kind.__name__}: {len(names)} files, none of them used")


@pytest.mark.slow
def test_a_refused_run_is_left_as_it_is_by_the_command_too(place, run, capsys):
  flipped(run / f"checkpoints/{NEWEST}/network.safetensors", None)
  before = content(run)
  config = small(place / "data")
  code = terminal.guarded(lambda words: len(train.run(config, run)), [], place="the run directory")
  lines = capsys.readouterr().err.splitlines()
  assert code == 4 and len(lines) == 1 and lines[0].startswith(f"error: {run}/checkpoints/")
  assert content(run) == before


def bits(count):
  """Returns every so many-th bit of a file as (byte, mask)."""
  for bit in range(0, 8 * count, max(1, 8 * count // 20)):
    yield bit // 8, 1 << bit % 8


def test_every_flip_is_caught(place, run):
  flips = 0
  for name in read_by_query(place / "run"):
    whole = (run / name).read_bytes()
    for byte, mask in bits(len(whole)):
      data = bytearray(whole)
      data[byte] ^= mask
      (run / name).write_bytes(data)
      with pytest.raises(DataError):
        predict.load(run)
      flips += 1
    (run / name).write_bytes(whole)
  predict.load(run)
  assert flips > 400
  print(f"\nflips: {flips}, caught: all")


# What is written, but not read.


@pytest.mark.parametrize("kind", ["pipe", "link", "dangling"])
def test_what_is_only_written_is_no_trap(place, run, tmp_path, kind):
  names = ("result.json", "preview.png", "environment.json", "report.html")
  for name in (*names, ".config.json.tmp", ".metrics.jsonl.tmp", ".preview.png.tmp"):
    (tmp_path / name).write_text("precious")
    (run / name).unlink(missing_ok=True)
    if kind == "pipe":
      os.mkfifo(run / name)
    else:
      (run / name).symlink_to(tmp_path / (name if kind == "link" else f"new-{name}"))
  before = content(place / "run").keys()
  predict.load(run)
  train.run(small(place / "data"), run)
  assert all((run / name).is_file() and not (run / name).is_symlink() for name in names)
  assert json.loads((run / "result.json").read_text())["steps"] == NEWEST
  assert all((tmp_path / name).read_text() == "precious" for name in names)
  assert not list(tmp_path.glob("new-*")) and len(before) > 20


@pytest.mark.parametrize("name", ["events", "checkpoints", "checksums"])
def test_a_folder_that_is_a_link_is_not_written_through(place, run, tmp_path, name):
  (run / name).rename(tmp_path / "moved")
  (run / name).symlink_to(tmp_path / "moved")
  before = content(tmp_path)
  with pytest.raises(DataError):
    train.run(small(place / "data"), run)
  assert content(tmp_path) == before


def test_an_event_file_is_a_new_one(tmp_path, monkeypatch):
  (tmp_path / "events").mkdir()
  monkeypatch.setattr(time, "time", lambda: 7.0)
  trap = tmp_path / "events" / "events.out.tfevents.7.1"
  trap.symlink_to(tmp_path / "precious")
  with pytest.raises(FileExistsError):
    run_dir.Metrics(tmp_path, step=0)
  assert not (tmp_path / "precious").exists()


# Records: what they hold, and what they are for.


def test_a_record_names_every_file_of_its_checkpoint(place):
  run = place / "run"
  assert sorted(p.name for p in (run / "checksums").iterdir()) == ["4.json", "8.json"]
  value = json.loads((run / "checksums" / "8.json").read_text())
  assert (value["format"], value["version"], value["step"]) == ("djax-checksums", 1, 8)
  found = {"config.json", "disguise.json", "MANIFEST.json", "MANIFEST.mac"}
  for path in (run / "checkpoints" / "8").rglob("*"):
    if path.is_file():
      found.add(path.relative_to(run).as_posix())
  assert value["files"].keys() == found
  for name, row in {**value["files"], "metrics.jsonl": value["metrics"]}.items():
    data = (run / name).read_bytes()
    assert row == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
  older = json.loads((run / "checksums" / "4.json").read_text())
  assert older["metrics"]["bytes"] < value["metrics"]["bytes"]


def test_records_go_with_their_checkpoints(place, tmp_path):
  train.run(small(place / "data", "train.epochs=5"), tmp_path)
  kept = ["16", "20"]
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == kept
  assert sorted(p.stem for p in (tmp_path / "checksums").iterdir()) == kept


class Killed(BaseException):
  """Ends a run where a kill would."""


def killed_at(module, name, number):
  """Returns a patch after which a function kills at its call of this number, before it does anything."""
  original, calls = getattr(module, name), iter(range(number + 1))

  def function(*args, **kwargs):
    if next(calls) == number:
      raise Killed
    return original(*args, **kwargs)

  patch = pytest.MonkeyPatch()
  patch.setattr(module, name, function)
  return patch


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
  """A run of four checkpoints that nothing interrupts."""
  path = tmp_path_factory.mktemp("whole")
  train.run(small(place / "data", "train.epochs=4"), path)
  return path


@pytest.mark.parametrize(
  ("module", "name", "call", "resumes"),
  [
    (checksums, "write", 0, 0),  # saved, not recorded: from the start
    (checksums, "write", 2, 8),  # from the one before
    (weights, "dump", 1, 4),
    (checksums, "forget", 0, 12),  # recorded, the oldest not removed yet
  ],
)
@pytest.mark.slow
def test_killed_around_a_record_it_ends_with_the_same_bits(
  place, whole, tmp_path, capsys, module, name, call, resumes
):
  config = small(place / "data", "train.epochs=4")
  patch = killed_at(module, name, call)
  with pytest.raises(Killed):
    train.run(config, tmp_path / "killed")
  patch.undo()
  capsys.readouterr()
  train.run(config, tmp_path / "killed")
  said = f"resumed after step {resumes} of 16"
  assert (said in capsys.readouterr().err) == bool(resumes)
  assert_same_state(params(whole), params(tmp_path / "killed"))
  lines = [(path / "metrics.jsonl").read_bytes() for path in (whole, tmp_path / "killed")]
  assert lines[0] == lines[1] and lines[0].count(b"\n") == 4
  for name in ("checkpoints", "checksums"):
    left = sorted(
      path.name.removesuffix(".json") for path in (tmp_path / "killed" / name).iterdir()
    )
    assert left == ["12", "16"]
  assert predict.load(tmp_path / "killed").summary["step"] == 16


def test_a_checkpoint_without_a_record_is_not_read(place, run):
  (run / "checksums" / "8.json").unlink()
  (run / "checkpoints" / "8" / "network.safetensors").unlink()
  os.mkfifo(run / "checkpoints" / "8" / "network.safetensors")
  assert predict.load(run).summary["step"] == OLDER
  (run / "checksums" / "4.json").unlink()
  line = refused(lambda: predict.load(run), run)
  assert "must hold a checkpoint with its checksums" in line


def test_metrics_must_begin_as_recorded_and_lose_what_follows(place, run):
  config = small(place / "data")
  kept = (run / "metrics.jsonl").read_bytes()
  (run / "metrics.jsonl").write_bytes(kept + b'{"step": 12}\n{"st')
  train.run(config, run)
  assert (run / "metrics.jsonl").read_bytes() == kept
  (run / "metrics.jsonl").write_bytes(kept[:-1])
  refused(lambda: train.run(config, run), run)


def test_a_run_of_an_older_djax_is_refused_and_left_alone(place, run):
  shutil.rmtree(run / "checksums")
  for action in (lambda: predict.load(run), lambda: train.run(small(place / "data"), run)):
    line = refused(action, run)
    assert "made by a djax that kept no checksums" in line and "was not changed" in line


def test_what_is_no_run_or_has_no_checkpoint_yet_says_so(place, tmp_path):
  with pytest.raises(ConfigError, match=r"must be a run directory with config\.json"):
    predict.load(tmp_path)
  patch = killed_at(state_lib, "save", 0)
  with pytest.raises(Killed):
    train.run(small(place / "data"), tmp_path)
  patch.undo()
  with pytest.raises(ConfigError, match="must hold a checkpoint, it has none yet"):
    predict.load(tmp_path)


def test_a_reader_follows_a_run_that_goes_on(place, run, monkeypatch):
  """The checkpoint that is being read goes, and a newer one is there by then."""
  finished = iter([[OLDER], [OLDER, NEWEST]])
  monkeypatch.setattr(checksums, "recorded", lambda workdir: next(finished))
  shutil.rmtree(run / "checkpoints" / str(OLDER))
  assert predict.load(run).summary["step"] == NEWEST


# The lock.


def test_a_second_trainer_is_refused_and_touches_nothing(place, run, capsys):
  config = small(place / "data")
  with run_dir.locked(run):
    before = content(run)
    code = terminal.guarded(
      lambda words: len(train.run(config, run)), [], place="the run directory"
    )
    assert code == UnsafeError.exit_code == 5
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "another process trains in" in lines[0]
    assert content(run) == before
  train.run(config, run)


HOLD = """
import os, sys
from pathlib import Path
from train import run_dir
with run_dir.locked(Path(sys.argv[1])):
  print("held", flush=True)
  sys.stdin.read()
"""


def test_the_lock_is_held_across_processes_and_goes_with_a_kill(run):
  command = [sys.executable, "-c", HOLD, str(run)]
  with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(UnsafeError), run_dir.locked(run):
      pass
    process.kill()
  with run_dir.locked(run):
    pass


def test_the_lock_is_held_while_it_trains(place, tmp_path, monkeypatch):
  def save(workdir, *args):
    with pytest.raises(UnsafeError), run_dir.locked(workdir):
      pass
    raise Killed

  monkeypatch.setattr(state_lib, "save", save)
  with pytest.raises(Killed):
    train.run(small(place / "data"), tmp_path)


# Content that somebody made up, with checksums that fit.


def remade(run):
  """Makes the checksums of a run anew, so that what was changed reaches the parser."""
  path = run / "checksums" / f"{NEWEST}.json"
  value = json.loads(path.read_text())
  for name in value["files"]:
    value["files"][name] = foreign.digest(run, name, limit=1 << 40)._asdict()
  value["metrics"] = foreign.digest(run, "metrics.jsonl", limit=1 << 40)._asdict()
  path.write_text(json.dumps(value, indent=1) + "\n")


def changed(run, name, **fields):
  """Changes fields of a JSON file, named with ``__`` for a dot, and makes the checksums anew."""
  value = json.loads((run / name).read_text())
  for field, new in fields.items():
    *groups, last = field.split("__")
    at = functools.reduce(dict.__getitem__, groups, value)
    if new is ...:
      del at[last]
    else:
      at[last] = new
  (run / name).write_text(json.dumps(value))
  remade(run)


@pytest.mark.parametrize(
  ("name", "fields", "words"),
  [
    ("config.json", {"model__width": 2**40}, "width must be at most 16384"),
    ("config.json", {"model__width": 5}, "must hold the network that|must have at most"),
    ("config.json", {"model__depth": 10**30}, "depth must be at most 64"),
    ("config.json", {"model__depth": 64, "model__width": 16384}, "at most 4294967296 bytes"),
    ("config.json", {"model__name": "vit", "model__patch": 3}, "patch must divide"),
    ("config.json", {"model__stem_rank": 10**6}, "stem_rank must be at most"),
    ("config.json", {"model__width": None}, "width must be a number"),
    ("config.json", {"model__width": "wide"}, "width must be a whole number"),
    ("config.json", {"model__width": True}, "width must be a whole number"),
    ("config.json", {"model__name": "x" * 5000}, "at most 4096 characters"),
    ("config.json", {"model": [1]}, "must be a number, true, false or a text"),
    ("config.json", {"model__deeper": {"deeper": 1}}, "must be a number, true, false or a text"),
    ("config.json", {"x" * 100: 1}, "whose name is none"),
    ("disguise.json", {"classes": 2**31}, "classes must be at most 65536"),
    ("disguise.json", {"classes": "10"}, "classes is out of form"),
    ("disguise.json", {"classes": ...}, "has no classes"),
    ("disguise.json", {"spec": ...}, "has no spec"),
    ("disguise.json", {"spec": "rmt"}, "spec is out of form"),
    ("disguise.json", {"spec__image_shape": [8, 8]}, "does not"),
    ("disguise.json", {"spec__block_size": ...}, "needs block_size"),
    ("disguise.json", {"spec__block_size": [[1]]}, "out of form"),
    ("disguise.json", {"disguised_shape": [2**40] * 3}, "three numbers of at most 16384"),
    ("disguise.json", {"disguised_shape": [8, 8]}, "three numbers"),
    ("disguise.json", {"disguised_shape": [8, 16, 1]}, "must be .8, 8, 1. by its spec"),
    ("disguise.json", {"key_fingerprint": "\x1b]0;x\x07"}, "key_fingerprint is out of form"),
    ("disguise.json", {"labels": "other"}, "labels is out of form"),
    ("disguise.json", {"more": ["x"]}, "more is out of form"),
  ],
)  # fmt: skip
def test_content_that_was_made_up_is_refused(run, name, fields, words):
  changed(run, name, **fields)
  before = peak()
  line = refused(lambda: predict.load(run), run)
  assert re.search(words, line), line
  assert peak() - before < BYTES


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"augment__views": 10**9}, "views must be at most"),
    ({"train__epochs": 10**12}, "epochs must be at most"),
    ({"train__batch_size": 10**12}, "batch_size must be at most"),
    ({"seed": ...}, "lacks the field 'config.seed'"),
  ],
)
def test_what_answering_does_not_use_is_refused_where_it_is_used(run, fields, words):
  images = np.zeros((2, 8, 8, 1), np.float32)
  want = predict.load(run).probabilities(images, 2)
  changed(run, "config.json", **fields)
  assert predict.load(run).probabilities(images, 2).tobytes() == want.tobytes()
  with pytest.raises(ConfigError, match=words):
    config_lib.check_stored(config_lib.from_json((run / "config.json").read_bytes()))


# (a|a)*-like patterns take for ever on a long text that does not match; this one does on the path of a parameter.
BOMB = "(([a-z/A-Z_0-9]+)+)+!$"


def test_answering_compiles_no_regular_expression_and_makes_no_optimizer(place, run, monkeypatch):
  images = np.zeros((2, 8, 8, 1), np.float32)
  want = predict.load(run).probabilities(images, 2)
  for pattern in (BOMB, "(" * 90 + "!", "(bias"):
    changed(run, "config.json", optimizer__no_decay=pattern)
    monkeypatch.setattr(optimizers, "create", None)
    start = time.monotonic()
    assert predict.load(run).probabilities(images, 2).tobytes() == want.tobytes()
    assert time.monotonic() - start < SECONDS


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_are_no_probabilities_is_refused(run, value):
  path = run / f"checkpoints/{NEWEST}/network.safetensors"
  data = bytearray(path.read_bytes())
  length = int.from_bytes(data[:8], "little")
  header = json.loads(data[8 : 8 + length])
  for name, row in header.items():
    if name.startswith("params/"):
      start, stop = (8 + length + end for end in row["data_offsets"])
      data[start:stop] = np.full((stop - start) // 4, value, "<f4").tobytes()
  path.write_bytes(data)
  remade(run)
  predictor = predict.load(run)
  # Far above any mean: the directory's matrices are random, and a hidden layer of zeros would give probabilities.
  images = np.full((3, 8, 8, 1), 1e6, np.float32)
  with pytest.raises(DataError, match="must give probabilities"):
    predictor.probabilities(images, 2)


def test_batches_are_cut_to_the_memory_they_need(place, monkeypatch):
  predictor = predict.load(place / "run")
  images = np.random.default_rng(0).normal(size=(9, 8, 8, 1)).astype(np.float32)
  want = predictor.probabilities(images, 9)
  assert predictor._most_at_once > 10**5
  monkeypatch.setattr(predict, "_LARGEST_ARRAY", 4 * 64 * 4)
  again = predict.load(place / "run")
  assert again._most_at_once == 4
  np.testing.assert_allclose(again.probabilities(images, 9), want, atol=1e-6)
  monkeypatch.setattr(predict, "_LARGEST_ARRAY", 100)
  with pytest.raises(DataError, match="it needs 256"):
    predict.load(place / "run").probabilities(images, 9)


def test_the_plain_file_is_read_by_others_and_holds_what_is_tested(place):
  """The format is that of safetensors, written down here once more."""
  data = (place / "run" / f"checkpoints/{NEWEST}/network.safetensors").read_bytes()
  length = int.from_bytes(data[:8], "little")
  header = json.loads(data[8 : 8 + length])
  step, state = params(place / "run")
  assert step == NEWEST and len(header) > 5
  leaves = {"mean": state["mean"], "scale": state["scale"]}
  for name in ("params", "batch_stats"):
    for path, leaf in jax.tree_util.tree_leaves_with_path({name: state[name]}):
      leaves[jax.tree_util.keystr(path, simple=True, separator="/")] = leaf
  assert header.keys() == leaves.keys()
  ends = []
  for name, row in header.items():
    start, stop = row["data_offsets"]
    found = np.frombuffer(data[8 + length + start : 8 + length + stop], "<f4").reshape(row["shape"])
    assert row["dtype"] == "F32"
    np.testing.assert_array_equal(found, leaves[name])
    ends += [(start, stop)]
  assert ends[0][0] == 0 and ends[-1][1] == len(data) - 8 - length
  assert all(a[1] == b[0] for a, b in itertools.pairwise(ends))


@pytest.mark.slow
def test_averages_are_what_answers(place, tmp_path):
  train.run(small(place / "data", "optimizer.ema=0.5"), tmp_path)
  _, state = params(tmp_path)
  network = predict.load(tmp_path).network
  jax.tree.map(np.testing.assert_array_equal, network.params, state["average"])
  differ = jax.tree.map(lambda a, b: np.abs(a - b).max(), state["average"], state["params"])
  assert max(jax.tree.leaves(differ)) > 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32", "uint32", "uint8", "bool"])
def test_weights_come_back_to_the_bit(dtype):
  rng = np.random.default_rng(0)
  tree = {
    "b": {"x": np.asarray(rng.integers(0, 2, (3, 2, 5))).astype(jax.numpy.dtype(dtype))},
    "a": rng.normal(size=()).astype(np.float32),
  }
  data = weights.dump(tree)
  assert len(data) == weights.size(tree)
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
  back = weights.load(data, like)
  assert jax.tree.structure(back) == jax.tree.structure(tree)
  for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(back), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
  for bad in (data[:-1], data + b"\0", data.replace(b'"a"', b'"c"'), b"", data[8:]):
    with pytest.raises(ValueError, match="it holds others"):
      weights.load(bad, like)


# Fuzz.

_HOSTILE = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-(2**70), 2**70),
  st.sampled_from([0, -1, 1, 2, 3, 7, 64, 65, 2**16, 2**31, 2**63, 10**30, 10**400]),
  st.floats(allow_nan=True, allow_infinity=True),
  st.text(max_size=30),
  st.sampled_from([BOMB, "\x1b[2J", "a" * 10**5, "‮", "\ud800", "\0", "vit", "unit_mlp", "aes"]),
  st.lists(st.integers(-3, 10**6), max_size=4),
  st.just({"a": {"b": []}}),
  st.integers(1, 3000).map(lambda depth: functools.reduce(lambda x, _: [x], range(depth), 0)),
)


def paths_of(value, path=()):
  """Yields the place of every value in JSON."""
  yield path
  items = (
    value.items()
    if isinstance(value, dict)
    else enumerate(value)
    if isinstance(value, list)
    else ()
  )
  for key, inner in items:
    yield from paths_of(inner, (*path, key))


def put(value, path, new):
  if not path:
    return new
  *before, last = path
  at = functools.reduce(lambda x, key: x[key], before, value)
  at[last] = new
  return value


def to_bytes(value):
  """Dumps JSON, also where it is nested more deeply than ``json`` can."""
  depth = 0
  while isinstance(value, list) and len(value) == 1:
    value, depth = value[0], depth + 1
  return b"[" * depth + json.dumps(value).encode("utf-8", "surrogatepass") + b"]" * depth


@st.composite
def mutations(draw):
  """Draws what becomes of one JSON file: values replaced or removed, fields added, or bytes changed."""
  name = draw(st.sampled_from(["config.json", "disguise.json", f"checksums/{NEWEST}.json"]))
  kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "bytes"]))
  return name, kind, draw(st.integers(0, 2**30)), draw(_HOSTILE), draw(st.binary(max_size=8))


def mutated(data, kind, number, new, junk):
  """Applies a mutation to the bytes of a JSON file."""
  if kind == "bytes":
    at = number % (len(data) + 1)
    return data[:at] + junk + data[at + number % 5 :]
  value = json.loads(data)
  paths = list(paths_of(value))
  path = paths[number % len(paths)]
  if kind == "remove" and path:
    at = functools.reduce(lambda x, key: x[key], path[:-1], value)
    del at[path[-1]]
  elif kind == "add":
    groups = [p for p in paths if isinstance(functools.reduce(lambda x, k: x[k], p, value), dict)]
    place = groups[number % len(groups)]
    put(value, (*place, str(junk)), new)
  else:
    value = put(value, path, new)
  return to_bytes(value)


def answers_or_refuses(run):
  """Loads a run and asks it; returns how that ended. Anything but an answer or a ``DjaxError`` is a fault."""
  start = time.monotonic()
  try:
    predictor = predict.load(run)
    shape = predictor.summary["disguised_shape"]
    if np.prod(shape) > 10**6:
      return "loaded"
    found = predictor.probabilities(np.ones((1, *shape), np.float32), 1)
    assert np.isfinite(found).all()
    ended = "answered"
  except DjaxError as error:
    assert "\n" not in str(error) and len(str(error)) < 2000
    ended = f"exit {error.exit_code}"
  assert time.monotonic() - start < 2 * SECONDS
  return ended


EXAMPLES = int(os.environ.get("DJAX_FUZZ", "60"))
FUZZ = functools.partial(
  hypothesis.settings, suppress_health_check=list(hypothesis.HealthCheck), print_blob=True
)


@pytest.fixture(scope="module")
def counted():
  counts = Counter()
  yield counts
  print(f"\nfuzz: {sum(counts.values())} inputs, {dict(counts)}")


@pytest.fixture(scope="module")
def victim(place, tmp_path_factory):
  """A run to be mutated, and its files as they were."""
  run = copied(place / "run", tmp_path_factory.mktemp("victim") / "run")
  return run, {name: (run / name).read_bytes() for name in read_by_query(run)}


def attacked(victim, name, data, counts, *, remake=True):
  """Has one file of the victim hold something else."""
  run, whole = victim
  (run / name).write_bytes(data)
  try:
    if remake and not name.startswith("checksums/"):
      remade(run)
    counts[answers_or_refuses(run)] += 1
  finally:
    for back in (name, f"checksums/{NEWEST}.json"):
      (run / back).write_bytes(whole[back])


@FUZZ(max_examples=EXAMPLES)
@hypothesis.given(mutation=mutations())
def test_fuzzed_json_is_answered_or_refused(victim, counted, mutation):
  name, *rest = mutation
  try:
    data = mutated(victim[1][name], *rest)
  except (TypeError, ValueError, RecursionError, KeyError):
    hypothesis.reject()
  attacked(victim, name, data, counted)


@FUZZ(max_examples=EXAMPLES)
@hypothesis.given(
  number=st.integers(0, 2**30),
  at=st.integers(0, 2**30),
  junk=st.binary(max_size=64),
  cut=st.integers(0, 64),
)
@pytest.mark.slow
def test_fuzzed_files_of_a_checkpoint_are_answered_or_refused(
  victim, counted, number, at, junk, cut
):
  names = [name for name in victim[1] if name.startswith("checkpoints/")]
  # Every other time the one that is parsed.
  network = f"checkpoints/{NEWEST}/network.safetensors"
  name = network if number % 2 else names[number % len(names)]
  data = victim[1][name]
  at %= len(data) + 1
  attacked(victim, name, data[:at] + junk + data[at + cut :], counted)


@FUZZ(max_examples=max(20, EXAMPLES // 6))
@hypothesis.given(
  number=st.integers(0, 2**30),
  at=st.integers(0, 2**30),
  junk=st.binary(max_size=64),
  cut=st.integers(0, 64),
)
def test_fuzzed_files_of_orbax_are_resumed_or_refused(
  place, victim, counted, number, at, junk, cut
):
  run, whole = victim
  names = [name for name in whole if name.startswith("checkpoints/") and "network" not in name]
  name = names[number % len(names)]
  at %= len(whole[name]) + 1
  (run / name).write_bytes(whole[name][:at] + junk + whole[name][at + cut :])
  remade(run)
  start = time.monotonic()
  try:
    resumed(place, run)
    counted["resumed"] += 1
  except DjaxError as error:
    assert "\n" not in str(error)
    counted[f"exit {error.exit_code}"] += 1
  finally:
    for back in (name, f"checksums/{NEWEST}.json"):
      (run / back).write_bytes(whole[back])
  assert time.monotonic() - start < 2 * SECONDS


# Odds and ends.


def test_git_is_not_told_the_passphrase_and_need_not_be_there(monkeypatch, tmp_path):
  tool = tmp_path / "git"
  checkout = Path(djax.__file__).parents[1]
  tool.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\nprintf '%s\\nabc\\n' '{checkout}'\n")
  tool.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  monkeypatch.setenv("DJAX_PASSPHRASE", "secret words")
  assert run_dir._revision() == "abc"
  seen = (tmp_path / "seen").read_text()
  assert "PATH=" in seen and "secret words" not in seen and "DJAX_PASSPHRASE" not in seen
  monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
  assert run_dir._revision() is None


def git(folder, *words):
  identity = (
    "-c",
    "user.name=djax",
    "-c",
    "user.email=djax@localhost",
    "-c",
    "commit.gpgsign=false",
  )
  command = ["git", *identity, *words]
  return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def repository(folder, *, ignored=""):
  """Makes a repository of what lies in a folder and returns its commit."""
  folder.mkdir(exist_ok=True)
  (folder / ".gitignore").write_text(ignored)
  git(folder, "init", "-q")
  git(folder, "add", ".")
  git(folder, "commit", "-q", "-m", "all")
  return git(folder, "rev-parse", "HEAD").strip()


@pytest.mark.parametrize(
  ("inside", "ignored", "own"),
  [
    (".", "", True),
    (".", "djax/\n", False),  # site-packages that are somebody's repository
    ("vendored", "", False),
    ("venv/lib/site-packages", "venv/\n", False),
  ],
)
def test_the_revision_is_that_of_djax_own_checkout_alone(
  monkeypatch, tmp_path, inside, ignored, own
):
  package = tmp_path / "repository" / inside / "djax"
  package.mkdir(parents=True)
  (package / "__init__.py").touch()
  revision = repository(tmp_path / "repository", ignored=ignored)
  monkeypatch.setattr(djax, "__file__", str(package / "__init__.py"))
  assert run_dir._revision() == (revision if own else None)


def test_the_revision_is_not_that_of_the_repository_whose_hook_runs_us(monkeypatch, tmp_path):
  package = tmp_path / "ours" / "djax"
  package.mkdir(parents=True)
  (package / "__init__.py").touch()
  ours, other = repository(tmp_path / "ours"), repository(tmp_path / "other", ignored="other")
  assert ours != other
  monkeypatch.setattr(djax, "__file__", str(package / "__init__.py"))
  monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
  assert run_dir._revision() == ours


def test_without_git_and_without_an_installed_djax_the_environment_is_written(
  monkeypatch, tmp_path
):
  known = importlib.metadata.version

  def version(name):
    if name in ("djax", "grain"):
      raise importlib.metadata.PackageNotFoundError(name)
    return known(name)

  monkeypatch.setattr(importlib.metadata, "version", version)
  monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
  run_dir.note_environment(tmp_path)
  facts = json.loads((tmp_path / "environment.json").read_text())
  assert facts["revision"] is None
  assert facts["versions"]["djax"] == djax.__version__ and facts["versions"]["grain"] is None
  assert facts["versions"]["jax"] == jax.__version__


def test_what_comes_from_files_is_shown_escaped(capsys):
  def work():
    raise DataError("a \x1b[2J name\n of two lines")

  assert terminal.guarded(lambda words: work(), [], place="x") == 4
  assert capsys.readouterr().err == "error: a \\x1b[2J name  of two lines\n"


@pytest.mark.slow
def test_a_whole_query_refuses_in_one_line(place, run, tmp_path):
  keyfile.write(tmp_path / "key", MASTER, passphrase=None)
  np.save(tmp_path / "x.npy", sources.load("digits", "test[:2]").images)
  command = [sys.executable, "-m", "djax", "query", tmp_path / "x.npy", "--checkpoint", run]
  command += ["--key", tmp_path / "key"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0 and len(done.stdout.splitlines()) == 2, done.stderr
  for name, kind in (
    ("disguise.json", pipe),
    (f"checkpoints/{NEWEST}/network.safetensors", sparse),
  ):
    bad = copied(place / "run", tmp_path / f"bad-{kind.__name__}")
    kind(bad / name, None)
    command[command.index("--checkpoint") + 1] = bad
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 4 and done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(errors) == 1 and name in errors[0], done.stderr


UNMADE = """
import os, sys
real = os.mkdir
def mkdir(path, *rest, **more):
  if str(path).endswith("state.orbax-checkpoint-tmp"):
    raise OSError(5, "Input/output error", str(path))
  return real(path, *rest, **more)
os.mkdir = mkdir
from train.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_folder_of_a_checkpoint_that_cannot_be_made_ends_the_run_at_once(tmp_path):
  """Orbax's threads wait minutes for that folder; the process does not wait for them."""
  words = ("data.train_split=train[:64]", "data.test_split=test[:32]", "train.epochs=1", *SMALL)
  given = [f"--config.{word}" for word in (*words, "train.batch_size=32")]
  done = subprocess.run(
    [sys.executable, "-c", UNMADE, *given, "--workdir", str(tmp_path / "run")],
    capture_output=True,
    text=True,
    timeout=150,
  )
  assert done.returncode == 1
  (line,) = [line for line in done.stderr.splitlines() if "must be writable" in line]
  assert "error: the run directory must be writable, got" in line and "Input/output error" in line
  assert "Traceback" not in done.stderr
