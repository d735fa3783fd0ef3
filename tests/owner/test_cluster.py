"""A disguise written by a Dask cluster: the bytes of one process, whoever dies, and the key in no message."""

import base64
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import time
import types
from concurrent import futures

import distributed
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from helpers import clusters, source_files, verbs
from helpers.clusters import until
from helpers.fresh import run_code, succeeded
from helpers.leaks import leaks, secrets_of

import djax
from djax import keys, schemes, sources
from djax.cli.boundary import chain
from djax.disguised import directory, quantise
from djax.errors import (
  ConfigError,
  DataError,
  DjaxError,
  KeyFileError,
  KeyMismatchError,
  UnsafeError,
  WrongPassphraseError,
)
from djax.keys import keyfile
from djax.owner import cluster, export, plan, shards, unfinished
from djax.owner.cluster import Cluster
from djax.owner.plan import Request

SECRET = bytes(range(93, 125))  # JSON leaves these as they are
MASTER = keys.Master(SECRET)
PASSPHRASE = "correct horse battery staple"
ID = "00112233445566778899aabbccddeeff"
RMT = {"scheme": "rmt", "block_size": 2}
AES = {"scheme": "aes", "block_size": 4}
SPLITS = {"train": "train[:60]", "test": "test[:20]"}
NOWHERE = "tcp://127.0.0.1:9"


def request(disguise=RMT, **options):
  return Request(
    "digits", disguise, **{"splits": SPLITS, "originals_per_shard": 12, "dataset_id": ID, **options}
  )


def content(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
  }


def alone(asked, out):
  """Writes it in this process, and returns what lies there then."""
  export.disguise(asked, out, MASTER, workers=1)
  return content(out)


def on(where, asked, out, **options):
  """Writes it on a cluster."""
  with cluster.connected(where) as engine:
    return export.disguise(asked, out, MASTER, engine=engine, **options)


@pytest.fixture
def key(tmp_path):
  keyfile.write(tmp_path / "owner.djaxkey", MASTER, passphrase=None)
  return tmp_path / "owner.djaxkey"


@pytest.fixture
def photos(tmp_path):
  """Arrays that a test may change."""
  return source_files.arrays_in(tmp_path)


def of_arrays(path):
  return dataclasses.replace(request(splits={"train": "train", "test": "test"}), source=str(path))


# What is refused before anything is sent.


@pytest.mark.parametrize(
  ("address", "error", "words"),
  [
    (
      "tcp://10.0.0.1:8786",
      UnsafeError,
      "by TLS or on this machine alone, got tcp://10.0.0.1:8786",
    ),
    ("tcp://cluster.example:8786", UnsafeError, "can run programs on the workers and read the key"),
    ("tcp://127.0.0.1.example:8786", UnsafeError, "or give --without-tls"),
    ("tcp://0.0.0.0:8786", UnsafeError, "by TLS or on this machine"),
    ("tcp://127.0.0.1", ConfigError, "must be tls://HOST:PORT or tcp://HOST:PORT, got"),
    ("127.0.0.1:8786", ConfigError, "must be tls://HOST:PORT"),
    ("tcp://127.0.0.1:many", ConfigError, "must be tls://HOST:PORT"),
    ("ws://127.0.0.1:8786", ConfigError, "must be tls://HOST:PORT"),
    ("", ConfigError, "must be tls://HOST:PORT"),
    ("tls://10.0.0.1:8786", ConfigError, "needs --tls-ca-file and --tls-cert.*got none of them"),
  ],
)
def test_addresses_that_are_refused(address, error, words):
  with (
    pytest.raises(error, match=words),
    cluster.connected(Cluster(address, "key")),
  ):
    raise AssertionError


@pytest.mark.parametrize(
  "address", ["tcp://127.0.0.1:8786", "tcp://127.8.0.1:1", "tcp://[::1]:8786", "tcp://localhost:1"]
)
def test_addresses_of_this_machine_are_taken(address):
  cluster._check(Cluster(address, "key"))


def test_other_addresses_are_taken_if_the_owner_says_so(tmp_path):
  cluster._check(Cluster("tcp://10.0.0.1:8786", "key", without_tls=True))
  (tmp_path / "pem").write_text("x")
  pem = str(tmp_path / "pem")
  cluster._check(Cluster("tls://10.0.0.1:8786", "key", tls_ca_file=pem, tls_cert=pem))


def test_files_of_tls_that_cannot_work(tmp_path):
  (tmp_path / "pem").write_text("x")
  pem, missing = str(tmp_path / "pem"), str(tmp_path / "none")
  with pytest.raises(ConfigError, match=r"--tls-cert must be a file .*none is not\. Correct"):
    cluster._check(Cluster("tls://a:1", "key", tls_ca_file=pem, tls_cert=missing))
  with pytest.raises(ConfigError, match=r"needs .* got --tls-ca-file\."):
    cluster._check(Cluster("tls://a:1", "key", tls_ca_file=pem))
  with pytest.raises(ConfigError, match="--tls-cert needs a scheduler at tls://, got tcp://"):
    cluster._check(Cluster(NOWHERE, "key", tls_cert=pem))


def test_a_missing_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "distributed", None)
  with (
    pytest.raises(ConfigError, match=r"Run: pip install 'djax\[cluster\]'$"),
    cluster.connected(Cluster(NOWHERE, "key")),
  ):
    raise AssertionError


@pytest.mark.slow
def test_dask_is_loaded_by_who_asks_for_it_alone():
  loaded = "print('distributed' in sys.modules)"
  code = f"import sys, djax.cli.owner, djax.owner.cluster\n{loaded}\nimport distributed\n{loaded}"
  assert succeeded(run_code(code)).split() == ["False", "True"]


def command(tmp_path, *options):
  source = ("--source", "digits", "--scheme", "aes", "--block-size", "4", "--no-ledger")
  where = ("--key", tmp_path / "owner.djaxkey", "--out", tmp_path / "out")
  return list(map(str, ("disguise", *source, *where, *options)))


@pytest.mark.parametrize(
  ("options", "code", "words"),
  [
    (("--scheduler", NOWHERE), 2, "--scheduler needs --engine dask"),
    (("--without-tls",), 2, "--without-tls needs --engine dask"),
    (("--tls-key", "x"), 2, "--tls-key needs --engine dask"),
    (("--engine", "dask"), 2, "--engine dask needs --scheduler"),
    (("--engine", "dask", "--scheduler", NOWHERE, "--part", "1/2"), 2, "--part is for processes"),
    (("--engine", "dask", "--scheduler", NOWHERE, "--finish"), 2, "--finish is for processes"),
    (("--engine", "dask", "--scheduler", NOWHERE, "--workers", "2"), 2, "--workers is for"),
    (("--engine", "dask", "--scheduler", "tcp://10.0.0.1:1"), 5, "by TLS or on this machine"),
    (("--engine", "slurm"), 2, "invalid choice: 'slurm'"),
  ],
)
def test_flags_that_do_not_go_together(tmp_path, capsys, options, code, words):
  # There is no key file: what is refused is refused before it is opened.
  verbs.refused(verbs.caller(capsys)(*command(tmp_path, *options)), code, words)
  assert not (tmp_path / "out").exists()


def test_a_scheduler_that_does_not_answer(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 0.5)
  options = ("--engine", "dask", "--scheduler", NOWHERE)
  verbs.refused(
    verbs.caller(capsys)(*command(tmp_path, *options)),
    1,
    f"the scheduler {NOWHERE} must answer within 0.5 s, it did not",
  )
  assert not (tmp_path / "out").exists()


# What a worker does, in this process.


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"dtype": "uint8"},
    {"disguise": AES, "views": 2, "crop": 1, "plain_labels": True},
    {"disguise": AES, "format": "folder"},
  ],
)
def test_the_plan_on_the_disk_gives_the_job_that_was_planned(tmp_path, options):
  planned = plan.make(request(**options), tmp_path / "out", MASTER)
  unfinished.claim(planned.job, planned.look)
  # Of what is asked, as the tasks say it.
  facts = json.loads(cluster._facts(planned.job, Cluster(NOWHERE, "key"), "run"))
  reading = sources.Reading(**facts["request"].pop("reading"))
  asked = Request(**facts["request"], reading=reading)
  job = unfinished.job_of(tmp_path / "out", asked, facts["snapshots"])
  assert job.manifest.to_dict() == json.loads(json.dumps(planned.job.manifest.to_dict())) | {
    "disguised_shape": job.manifest.disguised_shape,
    "class_names": job.manifest.class_names,
    "warnings": job.manifest.warnings,
    "splits": job.manifest.to_dict()["splits"],
  }
  assert (job.starts_of, job.snapshots) == (planned.job.starts_of, planned.job.snapshots)
  assert job.manifest.splits == planned.job.manifest.splits
  assert job.request == dataclasses.replace(planned.job.request, disguise=asked.disguise)


def test_a_task_is_text_and_comes_back():
  low = np.random.default_rng(1).normal(size=16).astype(np.float32)
  quantiser = quantise.quantiser_for(low, low + np.float32(1.7))
  for task in (shards.Task("train", 3, True, None), shards.Task("test", 0, False, quantiser)):
    number, back = cluster._task(cluster._text(7, task))
    assert (number, back.split, back.index, back.scan) == (7, task.split, task.index, task.scan)
  assert np.array_equal(back.quantiser.offset, quantiser.offset)
  assert back.quantiser.scale.dtype == np.float32
  assert np.array_equal(back.quantiser.scale, quantiser.scale)


def test_paths_are_whole_and_the_environment_is_of_the_client(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("TFDS_DATA_DIR", "prepared")
  given = {"./photos": "photos", "a.npz": "a.npz", "~/x.npz": pathlib.Path("~/x.npz").expanduser()}
  for source, whole in given.items():
    asked = dataclasses.replace(request(), source=source)
    assert cluster._absolute(asked).source == str(tmp_path / whole)
  reading = sources.Reading(group_by="groups.csv")
  asked = dataclasses.replace(request(), source="mnist", reading=reading)
  back = cluster._absolute(asked)
  assert back.source == "mnist" and back.reading.data_dir == str(tmp_path / "prepared")
  assert back.reading.group_by == str(tmp_path / "groups.csv")
  pattern = dataclasses.replace(asked, reading=sources.Reading(group_by=r"(p\d+)\.csv"))
  assert cluster._absolute(pattern).reading.group_by == r"(p\d+)\.csv"


@pytest.fixture
def planned(tmp_path, key, photos, monkeypatch):
  """A plan on the disk, the facts of its tasks, and a worker that this process plays."""
  made = plan.make(of_arrays(photos), tmp_path / "out", MASTER)
  unfinished.claim(made.job, made.look)
  facts = json.loads(cluster._facts(made.job, Cluster(NOWHERE, key), "run"))
  heard = []
  worker = types.SimpleNamespace(
    address="tcp://127.0.0.1:5", log_event=lambda topic, message: heard.append((topic, message))
  )
  library = types.SimpleNamespace(get_worker=lambda: worker)
  monkeypatch.setattr(cluster, "_distributed", lambda: library)
  monkeypatch.setattr(cluster, "_held", {})
  return types.SimpleNamespace(job=made.job, facts=facts, heard=heard, worker=worker)


def do(planned, **changes):
  task = cluster._text(1, shards.tasks(planned.job)[1])
  return cluster.work(json.dumps({**planned.facts, **changes}), task)


def test_a_worker_does_a_task_and_returns_its_count(planned):
  assert do(planned) == 12
  assert planned.heard == [("run", [1, 12])]
  (name,) = [path.name for path in planned.job.out.glob("disguised*")]
  assert "00001-of-00002" in name


def test_a_worker_opens_the_key_once_for_a_run_and_forgets_it(planned, monkeypatch):
  opened, read = [], keyfile.read
  monkeypatch.setattr(
    keyfile, "read", lambda *args, **more: opened.append(1) or read(*args, **more)
  )
  for _ in range(2):
    do(planned)
  assert len(opened) == 1
  do(planned, run="another")
  assert len(opened) == 2 and len(cluster._held) == 1
  cluster._forget("run")
  assert len(cluster._held) == 1
  cluster._forget("another")
  assert cluster._held == {}
  # Nor is it kept where the next run cannot open its own.
  do(planned)
  with pytest.raises(KeyFileError):
    do(planned, run="third", key="/no/such/key")
  assert cluster._held == {}


@pytest.mark.parametrize(
  ("changes", "error", "words"),
  [
    ({"djax": "0.0.9"}, ConfigError, r"must have one version of djax, got .* here and 0\.0\.9"),
    ({"key": "/no/such/key"}, KeyFileError, "/no/such/key: does not exist"),
    ({"out": "/no/such/folder"}, DataError, f"must hold the plan of the data set {ID}, got none"),
    ({"request": {"dataset_id": "f" * 32}}, DataError, f"plan of .*, got that of {ID}"),
    ({"request": {"source": "/no/such.npz"}}, DataError, r"/no/such\.npz"),
    (
      {"snapshots": {"train": "0", "test": "0"}},
      DataError,
      "are not those that the work was planned",
    ),
  ],
)
def test_a_worker_says_what_it_lacks_and_who_it_is(planned, changes, error, words):
  changes = {
    name: {**planned.facts[name], **value} if isinstance(value, dict) else value
    for name, value in changes.items()
  }
  with pytest.raises(error, match=rf"^worker tcp://127\.0\.0\.1:5: .*{words}") as caught:
    do(planned, **changes)
  assert type(caught.value) is error
  assert not list(planned.job.out.glob("disguised*"))


def test_a_worker_that_others_reach_without_tls_opens_no_key(planned):
  planned.worker.address = "tcp://10.0.0.5:4000"
  with pytest.raises(UnsafeError, match="the worker must be reached by TLS or on this machine"):
    do(planned, key="/no/such/key")
  planned.worker.address = "tls://10.0.0.5:4000"
  assert do(planned) == 12
  planned.worker.address = "tcp://10.0.0.5:4000"
  assert do(planned, without_tls=True) == 12


def test_a_worker_with_another_key_writes_nothing(planned, tmp_path):
  keyfile.write(tmp_path / "other", keys.generate(), passphrase=None)
  with pytest.raises(KeyMismatchError, match=f"must hold the key {MASTER.fingerprint} of the plan"):
    do(planned, key=str(tmp_path / "other"))
  assert not list(planned.job.out.glob("disguised*"))


def test_a_worker_takes_the_passphrase_from_its_own_file_or_environment(
  planned, tmp_path, monkeypatch
):
  keyfile.write(tmp_path / "locked", MASTER, passphrase=PASSPHRASE)
  phrase = tmp_path / "phrase"
  phrase.touch(mode=0o600)
  phrase.write_text(PASSPHRASE)
  locked = str(tmp_path / "locked")
  # Somebody may have started the worker on a terminal; nobody sits before it now.
  monkeypatch.setattr("sys.stdin", types.SimpleNamespace(isatty=lambda: True))
  monkeypatch.setattr("djax.keys.passphrase._from_environment", None)
  with pytest.raises(KeyFileError, match="a passphrase is needed: give --passphrase-file"):
    do(planned, key=locked)
  assert do(planned, key=locked, passphrase_file=str(phrase)) == 12
  monkeypatch.setenv("DJAX_PASSPHRASE", "wrong")
  with pytest.raises(WrongPassphraseError):
    do(planned, key=locked)
  monkeypatch.setenv("DJAX_PASSPHRASE", PASSPHRASE)
  assert do(planned, key=locked) == 12


def test_what_a_worker_does_not_know_comes_in_one_line(planned, monkeypatch):
  def fails(self, task, advance):
    raise RuntimeError("first\nsecond")

  monkeypatch.setattr(shards.Worker, "run", fails)
  with pytest.raises(DjaxError, match=r"^worker tcp://127\.0\.0\.1:5: RuntimeError: first$"):
    do(planned)


class Played:
  """A client whose scheduler tells the second of two tasks' counts in an order that a death brings about."""

  status = "running"

  def subscribe_topic(self, topic, handler):
    self._tell = lambda *message: handler((0.0, message))

  def map(self, function, facts, texts, *, key, pure):
    assert not pure and len(set(key)) == len(texts) == 2
    return [self._future(name) for name in key]

  def _future(self, name):
    def at_once(call):
      for count in (5, 9, 5, 12) if name.endswith("1") else ():
        self._tell(1, count)
      call(future)

    future = types.SimpleNamespace(key=name, status="finished", add_done_callback=at_once)
    return future

  def run(self, *args, **options):
    pass


def test_progress_never_falls_where_a_shard_is_begun_again(planned, monkeypatch):
  monkeypatch.setattr(cluster, "_wait_until_seen", lambda job, tasks: None)
  steps = []
  connection = cluster._Connection(Played(), Cluster(NOWHERE, "key"), steps.append)
  connection.run(planned.job, shards.tasks(planned.job)[:2], steps.append)
  assert steps == [12, 5, 4, 3]


def test_what_workers_wrote_is_waited_for(planned, monkeypatch):
  monkeypatch.setattr(cluster, "_VISIBLE_SECONDS", 0.2)
  with pytest.raises(
    DjaxError, match=r"must be one directory on all machines, but .*00001-of-00002"
  ):
    cluster._wait_until_seen(planned.job, shards.tasks(planned.job)[1:2])
  monkeypatch.setattr(cluster, "_VISIBLE_SECONDS", 60)
  # It is seen at the second look.
  monkeypatch.setattr(cluster.time, "sleep", lambda seconds: do(planned))
  cluster._wait_until_seen(planned.job, shards.tasks(planned.job)[1:2])


def test_a_shard_that_is_spoilt_after_a_worker_wrote_it_is_not_finished(tmp_path, photos):
  """The end reads every shard once more: other machines wrote them."""

  def engine(job, tasks, advance):
    export.pool.run(job, MASTER.data_set(ID, job.manifest.spec), tasks, workers=1, advance=advance)
    if spoil:
      shard = job.out / job.shard_file("train", 1)
      data = bytearray(shard.read_bytes())
      data[100] ^= 1
      shard.write_bytes(data)

  spoil = True
  with pytest.raises(DjaxError, match=r"lost disguised-train.*00001-of-00002 .*Re-run"):
    export.disguise(of_arrays(photos), tmp_path / "out", MASTER, engine=engine)
  spoil = False
  export.disguise(of_arrays(photos), tmp_path / "out", MASTER, engine=engine)
  assert content(tmp_path / "out") == alone(of_arrays(photos), tmp_path / "whole")


# Clusters.


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """A cluster of two workers. Of them, and of the key, it is the owner's own."""
  started = clusters.Cluster(tmp_path_factory.mktemp("two"))
  started.work()
  started.work()
  yield started
  started.close()


@pytest.fixture
def begin(tmp_path):
  """Starts clusters that end with the test."""
  with contextlib.ExitStack() as stack:

    def start(name="cluster", *flags, **options):
      one = clusters.Cluster(tmp_path / name, *flags, **options)
      stack.callback(one.close)
      return one

    yield start


@pytest.mark.slow
@pytest.mark.parametrize(
  "options",
  [
    {},
    {"dtype": "uint8"},
    {"disguise": AES, "views": 2, "crop": 1},
    {"disguise": AES, "format": "folder"},
  ],
)
def test_two_workers_write_the_bytes_of_one_process(two, tmp_path, key, options):
  asked, seen = request(**options), []
  manifest = on(
    Cluster(two.address, key), asked, tmp_path / "out", progress=lambda *now: seen.append(now)
  )
  assert content(tmp_path / "out") == alone(asked, tmp_path / "whole")
  directory.verify(tmp_path / "out")
  # Progress as of one process: it rises, and ends with all records.
  total = sum(split.records for split in manifest.splits.values())
  total *= 2 if options.get("dtype") == "uint8" else 1
  assert seen[-1] == (total, total) and seen == sorted(seen) and len(seen) >= 7
  with distributed.Client(two.address, set_as_default=False) as client:
    assert list(client.run(lambda: len(cluster._held)).values()) == [0, 0]


@pytest.mark.slow
def test_one_worker_does_and_goes_on_with_what_another_run_left(begin, tmp_path, key, capsys):
  alone(request(disguise=AES), tmp_path / "whole")
  one = begin()
  one.work("--nthreads", "2", DJAX_PASSPHRASE=PASSPHRASE)
  locked = tmp_path / "locked"
  keyfile.write(locked, MASTER, passphrase=PASSPHRASE)
  asked, out = request(disguise=AES), tmp_path / "out"
  export.disguise_part(asked, out, MASTER, shards.Share(1, 2), workers=1)
  before = {path.name: path.stat().st_mtime_ns for path in out.glob("disguised*")}
  on(Cluster(one.address, locked), asked, out)
  assert content(out) == content(tmp_path / "whole")
  assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in before.items())


# A worker that stops where a test wants it to: {where} is done, then it waits while {hold} exists.
STOPS = """
import os, pathlib, time
from djax.disguised import directory
from djax.owner.disguiser import Disguiser

def stopping(function):
  def stops(*args, **options):
    result = function(*args, **options)
    pathlib.Path({began!r}).write_text(str(os.getpid()))
    while pathlib.Path({hold!r}).exists():
      time.sleep(0.01)
    return result
  return stops

{where} = stopping({where})
"""
DISGUISED, WRITTEN = "Disguiser.images", "directory.file_sha256"


class Stop:
  """What makes a worker stop in the middle of a shard."""

  def __init__(self, folder, where):
    self.began, self.hold = folder / "began", folder / "hold"
    self.hold.touch()
    script = folder / "stops.py"
    facts = {"began": str(self.began), "hold": str(self.hold), "where": where}
    script.write_text(STOPS.format(**facts))
    self.flags = ("--preload", script)


def beside(work, *args, **options):
  """Starts a call in a thread; its result or error is what the returned function gives."""
  pool = futures.ThreadPoolExecutor(1)
  return pool.submit(work, *args, **options).result


@pytest.mark.slow
@pytest.mark.parametrize("where", [DISGUISED, WRITTEN])
def test_a_worker_that_is_killed_in_the_middle_of_a_shard_is_replaced(begin, tmp_path, key, where):
  asked, out = request(), tmp_path / "out"
  whole = alone(asked, tmp_path / "whole")
  some, stop = begin(), Stop(tmp_path, where)
  victim = some.work(*stop.flags)
  seen = []
  result = beside(
    on, Cluster(some.address, key), asked, out, progress=lambda *now: seen.append(now)
  )
  until(stop.began.exists, victim)
  half = [path for path in (out / ".unfinished").iterdir() if path.suffix[1:].isdigit()]
  assert len(half) == (where == WRITTEN)
  assert not list(out.glob("disguised*"))
  victim.send_signal(signal.SIGKILL)
  some.work()
  result()
  assert victim.wait() == -signal.SIGKILL
  assert content(out) == whole
  assert seen[-1] == (80, 80) and seen == sorted(seen)


@pytest.mark.slow
def test_a_shard_that_ends_every_worker_is_named(begin, tmp_path, key):
  asked, out = request(), tmp_path / "out"
  some = begin(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")
  stop = Stop(tmp_path, DISGUISED)
  victim = some.work(*stop.flags)
  result = beside(on, Cluster(some.address, key), asked, out)
  until(stop.began.exists, victim)
  victim.send_signal(signal.SIGKILL)
  with pytest.raises(DjaxError, match=r"disguised-.*: 1 workers ended, one after the other, while"):
    result()
  assert (out / ".unfinished" / "plan.json").exists()


@pytest.mark.slow
def test_a_scheduler_that_is_killed_ends_the_work_which_another_goes_on_with(
  begin, tmp_path, key, caplog
):
  asked, out = request(), tmp_path / "out"
  some, stop = begin(), Stop(tmp_path, WRITTEN)
  victim = some.work(*stop.flags)
  result = beside(on, Cluster(some.address, key), asked, out)
  until(stop.began.exists, victim)
  start = time.monotonic()
  some.scheduler.kill()
  with pytest.raises(DjaxError, match=rf"connection to the scheduler {some.address} was lost\. Re"):
    result()
  assert time.monotonic() - start < 20
  assert not [record for record in caplog.records if record.name.startswith("distributed")]
  assert (out / ".unfinished" / "plan.json").exists()
  other = begin("other")
  other.work()
  on(Cluster(other.address, key), asked, out)
  assert content(out) == alone(asked, tmp_path / "whole")


@pytest.mark.slow
def test_a_cluster_without_workers_is_waited_for_and_said_once(begin, tmp_path, key, monkeypatch):
  monkeypatch.setattr(cluster, "_LOOK_SECONDS", 0.1)
  some, said = begin(), []

  def run():
    with cluster.connected(Cluster(some.address, key), say=said.append) as engine:
      export.disguise(request(), tmp_path / "out", MASTER, engine=engine)

  result = beside(run)
  until(lambda: len(said) > 1)
  time.sleep(0.5)
  some.work()
  result()
  assert said == [
    f"the workers of {some.address} see originals and key: the cluster must be yours",
    f"the scheduler {some.address} has no workers; waiting for one",
  ]
  directory.verify(tmp_path / "out")


@pytest.mark.slow
def test_errors_of_workers_are_those_of_djax(two, tmp_path, key, photos, monkeypatch):
  where = r"^worker tcp://127\.0\.0\.1:[0-9]+: "
  asked = of_arrays(photos)
  with pytest.raises(KeyFileError, match=where + ".*/none: does not exist"):
    on(Cluster(two.address, tmp_path / "none"), asked, tmp_path / "a")
  with monkeypatch.context() as patch:
    patch.setattr(djax, "__version__", "0.0.9")
    with pytest.raises(ConfigError, match=where + r".*got .* here and 0\.0\.9 where the work"):
      on(Cluster(two.address, key), asked, tmp_path / "a")

  def other_key(*found):
    key.unlink()
    keyfile.write(key, keys.generate(), passphrase=None)

  with pytest.raises(KeyMismatchError, match=where + f".*{MASTER.fingerprint} of the plan"):
    on(Cluster(two.address, key), asked, tmp_path / "a", look=other_key)
  key.unlink()
  keyfile.write(key, MASTER, passphrase=None)

  def other_source(*found):
    np.savez(photos, **{**np.load(photos), "more": np.zeros(1)})

  data = photos.read_bytes()
  with pytest.raises(DataError, match=where + ".*are not those that the work was planned for"):
    on(Cluster(two.address, key), asked, tmp_path / "a", look=other_source)
  photos.write_bytes(data)
  # Nothing of it all stays with the workers.
  shutil.rmtree(tmp_path / "a")
  on(Cluster(two.address, key), asked, tmp_path / "a")
  assert content(tmp_path / "a") == alone(asked, tmp_path / "whole")


@pytest.mark.slow
def test_the_command_says_what_a_worker_said_and_then_does_it(two, tmp_path, key, capsys):
  call = verbs.caller(capsys)
  options = ("--engine", "dask", "--scheduler", two.address, "--originals-per-shard", "200")
  phrase = tmp_path / "phrase"
  phrase.touch(mode=0o600)
  phrase.write_text(PASSPHRASE)
  keyfile.write(tmp_path / "locked", MASTER, passphrase=PASSPHRASE)
  words = command(tmp_path, *options, "--dataset-id", ID)
  words[words.index("--key") + 1] = str(tmp_path / "locked")
  # The client has the passphrase, the workers have none.
  os.environ["DJAX_PASSPHRASE"] = PASSPHRASE
  code, out, err = call(*words)
  assert (code, out) == (3, "")
  assert re.match(r"djax: error: worker tcp://.*: a passphrase is needed", err[-1]), err
  assert sum(line.startswith("djax: error") for line in err) == 1
  code, _, err = call(*words, "--passphrase-file", phrase)
  assert code == 0, err
  words = command(tmp_path, "--originals-per-shard", "200", "--dataset-id", ID, "--workers", "1")
  words[words.index("--out") + 1] = str(tmp_path / "whole")
  assert call(*words)[0] == 0
  assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.slow
def test_a_scheduler_that_listens_to_all_is_refused_at_its_address_of_this_machine(tmp_path, key):
  some = clusters.Cluster(tmp_path / "open", host="0.0.0.0")
  try:
    port = some.address.rpartition(":")[2]
    where = Cluster(f"tcp://127.0.0.1:{port}", key)
    with (
      pytest.raises(UnsafeError, match="the scheduler must be reached by TLS"),
      cluster.connected(where),
    ):
      raise AssertionError
  finally:
    some.close()


# TLS.


def certificate(folder, name, issuer=None):
  """Writes NAME.pem and NAME.key, signed by an issuer's or by itself, and returns the issuer's pair for others."""
  private = ec.generate_private_key(ec.SECP256R1())
  subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
  signer, by = issuer or (private, subject)
  now = datetime.datetime.now(datetime.UTC)
  built = (
    x509.CertificateBuilder()
    .subject_name(subject)
    .issuer_name(by)
    .public_key(private.public_key())
    .serial_number(x509.random_serial_number())
    .not_valid_before(now - datetime.timedelta(hours=1))
    .not_valid_after(now + datetime.timedelta(days=1))
    .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    .sign(signer, hashes.SHA256())
  )
  pem = serialization.Encoding.PEM
  (folder / f"{name}.pem").write_bytes(built.public_bytes(pem))
  (folder / f"{name}.key").write_bytes(
    private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
  )
  return private, subject


@pytest.mark.slow
def test_tls(begin, tmp_path, key, monkeypatch):
  authority = certificate(tmp_path, "ca")
  certificate(tmp_path, "node", authority)
  certificate(tmp_path, "stranger")
  pem = {name: str(tmp_path / name) for name in ("ca.pem", "node.pem", "node.key", "stranger.pem")}
  node = ("--tls-cert", pem["node.pem"], "--tls-key", pem["node.key"])
  some = begin("tls", "--tls-ca-file", pem["ca.pem"], *node, scheme="tls")
  some.work()
  where = Cluster(some.address, key, "", pem["ca.pem"], pem["node.pem"], pem["node.key"])
  assert where.scheduler.startswith("tls://")
  on(where, request(), tmp_path / "out")
  assert content(tmp_path / "out") == alone(request(), tmp_path / "whole")
  monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 3)
  strange = where._replace(tls_cert=pem["stranger.pem"], tls_key=str(tmp_path / "stranger.key"))
  plain = Cluster(some.address.replace("tls:", "tcp:"), key)
  for wrong in (strange, plain, where._replace(tls_ca_file=pem["stranger.pem"])):
    with pytest.raises(DjaxError, match="must answer within 3 s, it did not") as caught:
      on(wrong, request(), tmp_path / "no")
    assert "\n" not in str(caught.value)
  with pytest.raises(ConfigError, match="--tls-key must fit together, and be PEM"):
    on(where._replace(tls_key=str(tmp_path / "stranger.key")), request(), tmp_path / "no")
  assert not (tmp_path / "no").exists()


# The secret.


def said_by(some, tap, address):
  """Returns all that went through a cluster and stayed there, by where it was found."""
  found = {f"wire {i}": bytes(kept) for i, kept in enumerate(tap.heard)}
  with distributed.Client(address, set_as_default=False) as client:
    logs = [client.get_scheduler_logs(), client.get_worker_logs(), client.get_events()]
  found["logs that the scheduler gives"] = repr(logs).encode()
  found["what was printed"] = some.logs()
  for process in some.processes:
    found[f"arguments {process.pid}"] = pathlib.Path(f"/proc/{process.pid}/cmdline").read_bytes()
  for path in some.folder.rglob("*"):
    if path.is_file():
      found[str(path)] = path.read_bytes()
  return found


@pytest.mark.slow
def test_the_secret_is_in_no_message_log_argument_or_file(begin, tmp_path, monkeypatch):
  asked = request()
  spec = schemes.from_spec({**RMT, "image_shape": [8, 8, 1]}).spec.to_dict()
  found, arrays = secrets_of(MASTER.data_set(ID, spec), spec)
  found |= {"owner": SECRET, "passphrase": PASSPHRASE.encode()}
  keyfile.write(tmp_path / "locked", MASTER, passphrase=PASSPHRASE)
  # All that Dask can say is said.
  loud = {"DASK_LOGGING__DISTRIBUTED": "debug"}
  some = begin(**loud)
  tap = clusters.Tap(some.address)
  some.work(address=tap.address, DJAX_PASSPHRASE=PASSPHRASE, **loud)
  some.work(address=tap.address, DJAX_PASSPHRASE=PASSPHRASE, **loud)
  where = Cluster(tap.address, tmp_path / "locked")

  def leaked():
    places = said_by(some, tap, tap.address)
    return {name: hits for name, blob in places.items() if (hits := leaks(blob, found, arrays))}

  on(where, asked, tmp_path / "out")
  with pytest.raises(KeyFileError):  # what is said of an error counts too
    on(where._replace(key=tmp_path / "none"), asked, tmp_path / "none_written")
  everything = b"".join(said_by(some, tap, tap.address).values())
  # It looks where the tasks are: paths stand there.
  assert str(tmp_path / "locked").encode() in everything and b"digits" in everything
  assert leaked() == {}
  # And it finds one that is planted: in a task, in any form, and the passphrase too.
  facts = cluster._facts
  planted = {
    "raw": (SECRET.decode(), "owner"),
    "hex": (SECRET.hex(), "owner"),
    "base64": (base64.b64encode(SECRET).decode(), "owner"),
    "passphrase": (PASSPHRASE, "passphrase"),
  }
  for form, (text, name) in planted.items():
    tap.heard.clear()
    with monkeypatch.context() as patch:
      patch.setattr(
        cluster, "_facts", lambda *of, text=text: json.dumps({**json.loads(facts(*of)), "-": text})
      )
      on(where, asked, tmp_path / form)
    assert {name} in [hits for place, hits in leaked().items() if place.startswith("wire")], form
  # In the names of tasks, which the scheduler's log has.
  with monkeypatch.context() as patch:
    patch.setattr(cluster.secrets, "token_hex", lambda count: SECRET.hex())
    with pytest.raises(KeyFileError):
      on(where._replace(key=tmp_path / "none"), asked, tmp_path / "none_written")
  assert leaked()["logs that the scheduler gives"] == {"owner"}
  assert leaked()["what was printed"] == {"owner"}
  # In an argument.
  named = some.work("--name", SECRET.hex(), address=tap.address)
  assert leaked()[f"arguments {named.pid}"] == {"owner"}
  tap.close()


@pytest.mark.slow
def test_a_secret_cannot_be_sent(two):
  """A task that holds it as an object, or a worker that returns it, is refused by the secret itself."""
  secret = MASTER.data_set(ID, schemes.from_spec({**RMT, "image_shape": [8, 8, 1]}).spec.to_dict())
  with (
    distributed.Client(two.address, set_as_default=False) as client,
    pytest.raises(TypeError) as caught,
  ):
    client.submit(len, secret, pure=False).result()
  assert any("a secret is not pickled" in str(error) for error in chain(caught.value))
