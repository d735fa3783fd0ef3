"""The commands that are made to fail: what there is before, what they must leave, and how that is checked.

Each works in a folder that is made anew, a copy of ``before``, for every fault. ``before`` holds what must survive.
"""

import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import process

__all__ = ["COMMANDS", "TWINS", "Command", "Snapshot", "is_temporary", "snapshot"]

# Path below the folder: mode and bytes; None for a folder's bytes.
Snapshot = dict[str, tuple[int, bytes | None]]

_DATA = ("--source", "digits", "--train-split", "train[:14]", "--test-split", "test[:6]")
_RMT = ("--scheme", "rmt", "--block-size", "2", "--noise-level", "25", "--dtype", "uint8")
_ID = "0123456789abcdef0123456789abcdef"
_LEDGER = "keys/owner.key.ledger"
_TEMPORARY = re.compile(r"\.djax-partial|\.tmp$|(^|/)\.unfinished(/|$)|orbax-checkpoint-tmp|^tmp/.")


class Command(NamedTuple):
  """A command.

  Attributes:
    name: in the table.
    prepare: makes what is there before in a folder, by running commands.
    main: runs the command in a folder; returns its exit code.
    problems: after a fault: what must not be, given the folder, what was there before and the result of a clean run.
    same: makes results comparable; takes a snapshot and the folder.
    once: whether it refuses to run again once the result is there.
    modules: what to import before processes are forked.
    late: whether calls count only from the ``process.begin`` in it on.
    threads: whether calls of other threads than the first one are made to fail as well.
    sample: how many faults are drawn; 0: all.
  """

  name: str
  prepare: Callable[[Path], None]
  main: Callable[[Path], int | None]
  problems: Callable[[Path, Snapshot, Snapshot], list[str]]
  same: Callable[[Snapshot, Path], Snapshot]
  once: bool
  modules: tuple[str, ...] = ()
  late: bool = False
  threads: bool = True
  sample: int = 0


def snapshot(folder: Path) -> Snapshot:
  """Returns modes and bytes of all that is in a folder.

  Args:
    folder: the folder.
  """
  found: Snapshot = {}
  for path in sorted(folder.rglob("*")):
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    name = str(path.relative_to(folder))
    found[name] = (mode, path.read_bytes() if stat.S_ISREG(status.st_mode) else None)
  return found


def is_temporary(name: str) -> bool:
  """Whether a path below the work folder is one that only unfinished work may have.

  Args:
    name: the path.
  """
  return _TEMPORARY.search(name) is not None


def _djax(*words: str) -> int:
  from djax import __main__ as djax

  return djax.main(words)


def _must(code: int | None) -> None:
  if code:
    raise RuntimeError(f"a command of the preparation ended with {code}")


def _bystanders(work: Path) -> None:
  """Makes what no command may touch."""
  for name in ("tmp", "keys", "out"):
    (work / name).mkdir(mode=0o700)
  for name in ("keys/other.txt", "out/other.txt"):
    (work / name).write_text("was there before\n")
  (work / "out" / "folder").mkdir()


def _in_child(check: Callable[[], list[str]]) -> list[str]:
  """Returns what a check finds in a process of its own: it may start threads."""

  def command() -> int:
    print(json.dumps(check()))
    return 0

  outcome = process.run(command)
  if outcome.code != 0:
    return [f"a check failed: {outcome.stderr.strip().splitlines()[-1:]}"]
  return list(json.loads(outcome.stdout.splitlines()[-1]))


def _unchanged(snapshot: Snapshot, work: Path) -> Snapshot:
  del work
  return snapshot


def _open_to_others(work: Path, before: Snapshot, folder: str) -> list[str]:
  """Names new files that others may read, and that no folder hides."""
  found = []
  for name, (mode, data) in snapshot(work).items():
    if name in before or not name.startswith(f"{folder}/") or data is None or not mode & 0o077:
      continue
    parents = [p for p in (work / name).parents if work in p.parents and p != work / folder]
    if not any(stat.S_IMODE(parent.stat().st_mode) & 0o077 == 0 for parent in parents):
      found.append(f"{name} has mode {mode:04o}")
  return found


# keygen


def _prepare_keygen(work: Path) -> None:
  _bystanders(work)
  (work / "passphrase").write_text("correct horse\n")
  (work / "passphrase").chmod(0o600)


def _keygen(work: Path) -> int:
  return _djax("keygen", f"{work}/out/new.key", "--passphrase-file", f"{work}/passphrase")


def _keygen_problems(work: Path, before: Snapshot, clean: Snapshot) -> list[str]:
  path = work / "out" / "new.key"

  def check() -> list[str]:
    from djax.keys import keyfile

    try:
      keyfile.read(path, passphrase=keyfile.find_passphrase(work / "passphrase"))
    except Exception as error:
      return [f"the key file cannot be opened: {error}"]
    return []

  found = _open_to_others(work, before, "out")
  if path.exists():
    found += _in_child(check)
  return found


def _same_keygen(snapshot: Snapshot, work: Path) -> Snapshot:
  """A key is another one each time; that it can be opened was checked."""
  del work
  return {
    name: (mode, b"" if name == "out/new.key" else data) for name, (mode, data) in snapshot.items()
  }


# disguise


def _prepare_owner(work: Path) -> None:
  """A key, and one data set in its ledger."""
  _bystanders(work)
  key = f"{work}/keys/owner.key"
  _must(_djax("keygen", key, "--no-passphrase"))
  words = (
    "--train-split",
    "train[20:24]",
    "--test-split",
    "test[20:24]",
    "--scheme",
    "permutation",
  )
  out = f"{work}/first"
  _must(
    _djax("disguise", "--source", "digits", *words, "--block-size", "2", "--key", key, "--out", out)
  )
  shutil.rmtree(out)


def _disguise(work: Path) -> int:
  words = ("--dataset-id", _ID, "--workers", "1", "--originals-per-shard", "8")
  key = ("--key", f"{work}/keys/owner.key")
  return _djax("disguise", *_DATA, *_RMT, *words, *key, "--out", f"{work}/out/set")


def _disguise_problems(work: Path, before: Snapshot, clean: Snapshot) -> list[str]:
  now = snapshot(work)
  found = [
    f"{name} is not whole under its final name"
    for name, content in now.items()
    if name.startswith("out/set/") and not is_temporary(name) and content != clean.get(name)
  ]
  if not now[_LEDGER][1].startswith(before[_LEDGER][1]):  # type: ignore[union-attr,arg-type]
    found.append("the ledger lost what was in it")
  if "out/set/MANIFEST.json" in now:
    found += _in_child(lambda: _verified(work))
  return found


def _verified(work: Path) -> list[str]:
  """What verify finds; that a directory was stopped at the very end is no fault of it."""
  from djax.disguised import directory
  from djax.keys import keyfile
  from djax.owner import restore

  folder = work / "out" / "set"
  try:
    facts = restore.authenticated(folder, keyfile.read(work / "keys/owner.key", passphrase=None))
    directory.verify(folder, manifest=facts, unfinished=True)
  except Exception as error:
    return [f"verify: {error}"]
  return []


def _same_ledger(snapshot: Snapshot, work: Path) -> Snapshot:
  """Leaves the date and what a kill left half written out of the ledger."""
  del work
  found = dict(snapshot)
  mode, data = found[_LEDGER]
  lines = []
  for line in (data or b"").splitlines():
    try:
      lines.append({**json.loads(line), "date": ""})
    except ValueError:
      continue
  found[_LEDGER] = (mode, json.dumps(lines).encode())
  return found


# restore


def _prepare_restore(work: Path) -> None:
  _prepare_owner(work)
  _must(_disguise(work))
  (work / "out" / "set").rename(work / "data")


def _restore_npz(work: Path) -> int:
  return _restore(work, "back.npz")


def _restore_folder(work: Path) -> int:
  return _restore(work, "back")


def _restore(work: Path, name: str) -> int:
  key = ("--key", f"{work}/keys/owner.key")
  return _djax("restore", f"{work}/data", *key, "--out", f"{work}/out/{name}")


def _restore_problems(work: Path, before: Snapshot, clean: Snapshot) -> list[str]:
  now = snapshot(work)
  found = _open_to_others(work, before, "out") + _open_to_others(work, before, "tmp")
  for root in ("out/back", "out/back.npz"):
    if root in now:
      part = {n: c for n, c in now.items() if n == root or n.startswith(f"{root}/")}
      whole = {n: c for n, c in clean.items() if n == root or n.startswith(f"{root}/")}
      if part != whole:
        found.append(f"{root} is not whole under its final name")
  return found


# train

_STEPS = 2  # of an epoch
_TRAIN = {
  "config": "digits_rmt",
  "config.data.train_split": "train[:64]",
  "config.data.test_split": "test[:20]",
  "config.train.batch_size": 64 // _STEPS,
  "config.model.name": "mlp",
  "config.model.width": 1,
  "config.optimizer.warmup_epochs": 0.0,
}


def _train(work: Path, epochs: int) -> int:
  from train import __main__ as train

  words = [f"--{name}={value}" for name, value in _TRAIN.items()]
  return train.main([*words, f"--config.train.epochs={epochs}", f"--workdir={work}/out/run"])


def _train_new(work: Path) -> int:
  return _train(work, 1)


def _after(saves: int, what: Callable[[], None]) -> None:
  """Has something done before a checkpoint is saved, once so many were."""
  from train import state

  save, done = state.save, 0

  def counted(*args):  # type: ignore[no-untyped-def]
    nonlocal done
    if done == saves:
      what()
    done += 1
    save(*args)

  state.save = counted


def _prepare_checkpoint(work: Path) -> None:
  """A run of three epochs that was killed after the second: there is one more to come, and the oldest is to go."""
  _bystanders(work)

  def end() -> None:
    sys.stdout.flush()
    os._exit(0)

  _after(2, end)
  _train(work, 3)


def _train_checkpoint(work: Path) -> int:
  _after(0, process.begin)
  return _train(work, 3)


def _train_problems(work: Path, before: Snapshot, clean: Snapshot) -> list[str]:
  found = _open_to_others(work, before, "tmp")
  run = work / "out" / "run"
  records = sorted(int(path.stem) for path in run.glob("checksums/*.json"))
  had = {name for name in before if re.fullmatch(r"out/run/checksums/[0-9]+\.json", name)}
  if len(records) < len(had):
    found.append(f"of {len(had)} finished checkpoints {len(records)} are left")
  return found + _in_child(lambda: _loads(run, records)) if records else found


def _loads(run: Path, steps: list[int]) -> list[str]:
  """What is wrong with the checkpoints that are recorded; the newest is loaded as answering loads it."""
  from djax.models import checksums, predict

  try:
    for step in steps:
      data = (run / "checksums" / f"{step}.json").read_bytes()
      checksums.verify(run, checksums._parse(data, step), limit=1 << 30)
    if predict.load(run).summary["step"] != steps[-1]:
      return ["the newest checkpoint is not the one that is loaded"]
  except Exception as error:
    return [f"a recorded checkpoint: {error}"]
  return []


def _same_run(snapshot: Snapshot, work: Path) -> Snapshot:
  """Leaves out times, names and bytes that Orbax draws, and the page, which names seconds and may be missing."""
  del work
  found: Snapshot = {}
  for name, (mode, data) in snapshot.items():
    if re.search(
      r"/events/|/checkpoints/[0-9]+/(state|meta)/|_CHECKPOINT_METADATA$|/report.html$", name
    ):
      continue
    if data is not None and re.search(r"environment\.json|checksums/", name):
      data = b""
    if data is not None and name.endswith("result.json"):
      kept = {n: v for n, v in json.loads(data).items() if "second" not in n}
      data = json.dumps(kept).encode()
    found[name] = (mode, data)
  return found


_OWNER = ("djax.__main__", "djax.cli.owner")

_TRAINER = ("train.__main__", "train.loop", "train.page", "djax.models.predict")

COMMANDS = {
  command.name: command
  for command in (
    Command(
      "keygen", _prepare_keygen, _keygen, _keygen_problems, _same_keygen, True, ("djax.__main__",)
    ),
    Command("disguise", _prepare_owner, _disguise, _disguise_problems, _same_ledger, False, _OWNER),
    Command(
      "restore to .npz", _prepare_restore, _restore_npz, _restore_problems, _unchanged, True, _OWNER
    ),
    Command(
      "restore to a folder",
      _prepare_restore,
      _restore_folder,
      _restore_problems,
      _unchanged,
      True,
      _OWNER,
    ),
    Command(
      "train: new run",
      _bystanders,
      _train_new,
      _train_problems,
      _same_run,
      False,
      _TRAINER,
      threads=False,
      sample=400,
    ),
    Command(
      "train: checkpoint",
      _prepare_checkpoint,
      _train_checkpoint,
      _train_problems,
      _same_run,
      False,
      _TRAINER,
      late=True,
      sample=400,
    ),
  )
}


# What is wrong on purpose: the loop must find it.


def _careless(work: Path) -> int:
  """Writes under the final name, in two steps, and says in a traceback what goes wrong."""
  with open(work / "out" / "result", "wb", buffering=0) as file:
    file.write(b"first half, ")
    file.write(b"second half")
  return 0


def _careless_problems(work: Path, before: Snapshot, clean: Snapshot) -> list[str]:
  now = snapshot(work)
  half = "out/result" in now and now["out/result"] != clean["out/result"]
  return ["out/result is not whole under its final name"] if half else []


TWINS = {
  "careless": Command(
    "careless", _bystanders, _careless, _careless_problems, _unchanged, False, threads=False
  )
}
