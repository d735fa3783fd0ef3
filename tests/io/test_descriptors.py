"""No file stays open when a verb is done, though whoever opened a data set still refers to it."""

import contextlib
import json

import numpy as np
import pytest
from helpers import audits
from helpers.descriptors import opened

import train
from configs import outsourced
from djax import keys, sources
from djax.__main__ import main
from djax.attacks.generic.known_pairs import PROCRUSTES
from djax.audit import scenario
from djax.disguised import directory
from djax.keys import keyfile
from djax.owner import shards
from train import answer
from train.data import outsourced as outsourced_lib


@contextlib.contextmanager
def nothing_stays_open():
  before = opened()
  yield
  assert not opened() - before


DISGUISE = (
  "disguise --source x.npz --scheme rmt --block-size 2 --originals-per-shard 90 --workers 1 "
  "--key key --out"
)


@pytest.fixture(autouse=True)
def kept(monkeypatch):
  """Keeps every data set and source that is opened, so that none is closed just because it was forgotten."""
  kept = []

  def keeps(module, name):
    true = getattr(module, name)

    def open(*given, **named):
      kept.append(true(*given, **named))
      return kept[-1]

    monkeypatch.setattr(module, name, open)

  keeps(directory, "open")
  keeps(sources, "open")
  keeps(outsourced_lib, "inputs")
  keeps(shards, "Worker")
  return kept


@pytest.fixture
def owner(tmp_path, monkeypatch, kept):
  """A place with a source, a key and a disguised data set."""
  monkeypatch.chdir(tmp_path)
  keyfile.write("key", keys.Master(bytes(range(32))), passphrase=None)
  parts = {name: sources.load("digits", f"{name}[:200]") for name in ("train", "test")}
  np.savez(
    "x.npz",
    **{f"{name}_images": part.images for name, part in parts.items()},
    **{f"{name}_labels": part.labels for name, part in parts.items()},
  )
  np.save("q.npy", parts["test"].images[:3])
  audits.quick(monkeypatch, [PROCRUSTES])
  monkeypatch.setattr(scenario, "FAST", scenario.Sizes(100, 60, 20, (1,)))
  assert main(f"{DISGUISE} d".split()) == 0
  kept.clear()


def test_the_count_sees_what_stays_open(owner):
  before = opened()
  data = directory.open("d")
  data.splits["train"].read(np.arange(3))
  more = opened()
  assert len(more) == len(before) + 1
  assert any("disguised-train.array_record-00000" in name for name in more)
  data.close()
  assert not opened() - before


@pytest.mark.parametrize(
  "words",
  [
    f"{DISGUISE} d2",
    "inspect d --grid g.png",
    "verify d --key key",
    "restore d --key key --out r.npz",
    "restore d --key key --out r",
    "audit --source x.npz --scheme rmt --block-size 2 --attacks procrustes --out o",
    "audit --data d --originals x.npz --key key --attacks procrustes --out o",
    "audit --data d --originals q.npz --key key --attacks procrustes --out o",
  ],
)
@pytest.mark.slow
def test_a_verb_leaves_no_file_open(owner, kept, words):
  if "q.npz" in words:  # originals of another order, which are refused once both were read from
    with np.load("x.npz") as held:
      np.savez("q.npz", **{name: held[name][::-1] for name in held.files})
  with nothing_stays_open():
    assert main(words.split()) == (4 if "q.npz" in words else 0)
  assert kept or words.startswith("verify")


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
@pytest.mark.slow
def test_training_and_answering_leave_no_file_open(owner, kept, memory_gb):
  config = outsourced.get_config()
  config.data.disguised_dir = "d"
  config.data.memory_gb = memory_gb
  config.train.epochs = 1
  config.train.batch_size = 50
  with nothing_stays_open():
    train.run(config, "run")
  if not memory_gb:
    return
  words = ["query", "q.npy", "--data", "d", "--request", "req", "--key", "key"]
  with nothing_stays_open():
    assert main(words) == 0
  with nothing_stays_open():
    answers = answer.answer("run", "req")
  with open("a.json", "w") as file:
    json.dump(answers, file)
  with nothing_stays_open():
    assert main(["query", "--request", "req", "--answers", "a.json", "--key", "key"]) == 0
  with nothing_stays_open():
    assert main(["query", "q.npy", "--checkpoint", "run", "--key", "key"]) == 0
