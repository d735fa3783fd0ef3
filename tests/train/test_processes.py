"""Several processes train one run: with the numbers of one, in step, and none is left waiting."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers.training import params, tiny
from jax.sharding import Mesh, PartitionSpec

import train
from djax import keys
from djax.keys import keyfile
from train import __main__ as cli
from train import processes
from train import state as state_lib

ENDS_SECONDS = 60
FIELDS = (
  "model.name=mlp",
  "train.epochs=2",
  "train.batch_size=48",
  "train.checkpoint_every_steps=7",
)
LONG = (*FIELDS[:1], "train.epochs=400", *FIELDS[2:])


def command(workdir, fields, *flags):
  given = ("data.train_split=train[:480]", *fields)
  return [
    *(sys.executable, "-m", "train", "--config=digits_rmt", f"--workdir={workdir}", "--json"),
    *(f"--config.{field}" for field in given),
    *flags,
  ]


def start(workdir, count, fields=FIELDS, *flags, own=lambda number: ()):
  """Starts processes that train one run; ``own`` adds arguments to one of them."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    where = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
  return [
    subprocess.Popen(
      command(workdir, fields, where, f"--num-processes={count}", f"--process-id={number}", *flags)
      + list(own(number)),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(count)
  ]


def ends(started, seconds=300):
  """Waits for processes; returns exit code, stdout and stderr of each."""
  end, outcomes = time.monotonic() + seconds, []
  try:
    for process in started:
      out, err = process.communicate(timeout=max(1, end - time.monotonic()))
      outcomes.append((process.returncode, out, err))
  finally:
    for process in started:
      process.kill()
      process.wait()
  return outcomes


def wait_for(started, condition):
  while not condition():
    assert all(process.poll() is None for process in started), ends(started, 30)
    time.sleep(0.1)


def losses(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["train_loss"] for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """The run of one process."""
  workdir = tmp_path_factory.mktemp("alone")
  subprocess.run(command(workdir, FIELDS), check=True, capture_output=True)
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize("count, shared", [(2, False), (4, True)])
def test_they_give_the_losses_of_one(count, shared, alone, tmp_path):
  fields = (*FIELDS, f"train.shard_parameters={shared}".lower())
  outcomes = ends(start(tmp_path, count, fields))
  assert [code for code, _, _ in outcomes] == [0] * count, outcomes
  np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=1e-5)
  first, *others = outcomes
  assert json.loads(first[1])["test_accuracy"] == pytest.approx(
    json.loads((alone / "result.json").read_text())["test_accuracy"], abs=0.01
  )
  assert all(not out and "epoch" not in err for _, out, err in others), "the first speaks for all"
  assert first[2].count("epoch ") == 2


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_another_number_of_them_goes_on(alone, tmp_path):
  started = start(tmp_path, 2, LONG)
  wait_for(started, lambda: list((tmp_path / "checksums").glob("*.json")))
  started[1].send_signal(signal.SIGTERM)
  outcomes = ends(started, ENDS_SECONDS)
  assert [code for code, _, _ in outcomes] == [143, 143], outcomes
  assert all("stopped by SIGTERM" in err for _, _, err in outcomes)

  # A killed one, in a run that goes on with twice as many.
  before = max(int(file.stem) for file in (tmp_path / "checksums").glob("*.json"))
  started = start(tmp_path, 4, LONG)
  wait_for(
    started,
    lambda: max(int(file.stem) for file in (tmp_path / "checksums").glob("*.json")) > before,
  )
  started[2].kill()
  outcomes = ends(started, ENDS_SECONDS)
  for number, (code, _, err) in enumerate(outcomes):
    if number == 2:
      continue
    assert code not in (0, 143), err
    # JAX itself ends those that wait elsewhere, in words of its own.
    assert (
      "what all 4 processes compute together must not fail" in err or "another task died" in err
    )

  # One process finishes it.
  step = max(int(file.stem) for file in (tmp_path / "checksums").glob("*.json"))
  done = subprocess.Popen(
    command(tmp_path, LONG), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  wait_for([done], lambda: (tmp_path / "checksums" / f"{step + 7}.json").exists())
  done.terminate()
  _, err = done.communicate(timeout=ENDS_SECONDS)
  assert done.returncode == 143 and f"resumed after step {step} of" in err


@pytest.mark.slow
def test_what_differs_is_refused_in_all_of_them(tmp_path):
  other = lambda number: (f"--config.seed={number}",)  # noqa: E731
  outcomes = ends(start(tmp_path / "seed", 2, own=other), ENDS_SECONDS)
  assert [code for code, _, _ in outcomes] == [2, 2], outcomes
  assert all(
    "same config; that of process 1 is not that of process 0" in err for *_, err in outcomes
  )

  for name in ("0", "1"):
    keyfile.write(tmp_path / name, keys.generate(), passphrase=None)
  other = lambda number: (f"--key={tmp_path / str(number)}",)  # noqa: E731
  outcomes = ends(start(tmp_path / "key", 2, own=other), ENDS_SECONDS)
  assert [code for code, _, _ in outcomes] == [2, 2], outcomes
  assert all("must have the same key" in err for *_, err in outcomes)
  assert not (tmp_path / "seed").exists() and not (tmp_path / "key").exists()


@pytest.mark.slow
def test_a_key_of_ones_own_gives_all_of_them_one_data_set(tmp_path):
  """Its id is drawn; that they agree on it is checked before they train."""
  keyfile.write(tmp_path / "key", keys.generate(), passphrase=None)
  fields = (*FIELDS[:1], "train.epochs=1", *FIELDS[2:])
  outcomes = ends(start(tmp_path / "run", 2, fields, f"--key={tmp_path / 'key'}"))
  assert [code for code, _, _ in outcomes] == [0, 0], outcomes
  assert len(json.loads((tmp_path / "run" / "disguise.json").read_text())["dataset_id"]) == 32


@pytest.mark.slow
def test_a_run_directory_that_they_do_not_share_is_refused(tmp_path):
  own = lambda number: (f"--workdir={tmp_path / str(number)}",)  # noqa: E731
  (_, _, first), (code, _, second) = ends(start(tmp_path, 2, own=own), ENDS_SECONDS)
  assert code == 2 and "must lie on a disk that all processes share" in second
  assert "process 1 could not open" in first


@pytest.mark.slow
def test_shares_of_parameters_over_eight_devices_give_the_losses_of_one(alone, tmp_path):
  environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
  fields = (*FIELDS, "train.shard_parameters=true")
  subprocess.run(command(tmp_path, fields), check=True, capture_output=True, env=environment)
  np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=1e-5)


def test_parameters_are_spread_along_their_longest_axis():
  mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
  params = {"kernel": np.zeros((3, 4, 8)), "odd": np.zeros((3, 5)), "none": np.zeros((0,))}
  state = state_lib.State(np.zeros(()), params, {}, {"mean": np.zeros(4)}, (), np.zeros(4), 1.0)
  state = jax.tree.map(np.asarray, state)
  placed = state_lib.shardings(state, mesh, parameters=True)
  assert placed.params["kernel"].spec == PartitionSpec(None, None, "data")
  assert placed.params["odd"].spec == placed.params["none"].spec == PartitionSpec()
  assert placed.mean.spec == placed.batch_stats["mean"].spec == PartitionSpec()
  whole = state_lib.shardings(state, mesh, parameters=False)
  assert {leaf.spec for leaf in jax.tree.leaves(whole)} == {PartitionSpec()}


def test_shares_of_parameters_resume_as_whole_ones(tmp_path):
  schedule = ("optimizer.schedule=constant", "optimizer.warmup_epochs=0")
  train.run(tiny("train.epochs=1", "train.shard_parameters=true", *schedule), tmp_path / "run")
  train.run(tiny("train.epochs=2", *schedule), tmp_path / "run")
  train.run(tiny("train.epochs=2", *schedule), tmp_path / "whole")
  (step, resumed), (_, whole) = params(tmp_path / "run"), params(tmp_path / "whole")
  assert step == 8
  for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "flags, words",
  [
    (("--coordinator=a:1", "--workdir=w"), "--num-processes, --process-id is missing"),
    (
      ("--coordinator=a", "--num-processes=2", "--process-id=0", "--workdir=w"),
      "with a port of 1 to 65535, got 'a'",
    ),
    (
      ("--coordinator=a:1", "--num-processes=2", "--process-id=2", "--workdir=w"),
      "must lie in 0..1",
    ),
    (
      ("--coordinator=a:1", "--num-processes=0", "--process-id=0", "--workdir=w"),
      "at least 1, got 0",
    ),
    (("--coordinator=a:1", "--num-processes=two", "--process-id=0"), "invalid int value: 'two'"),
    (("--distributed=slurm", "--workdir=w"), "must be auto"),
    (
      ("--distributed=auto", "--process-id=1", "--workdir=w"),
      "stand alone, got 'auto' with --process-id",
    ),
    (("--process-id=1",), "several processes must share a run directory"),
  ],
)
def test_flags_that_do_not_go_together_are_refused(flags, words, capsys):
  assert cli.main(list(flags)) == 2
  assert words in capsys.readouterr().err


@pytest.mark.slow
def test_processes_that_do_not_meet_end(tmp_path):
  """In processes of their own: JAX joins before it looks for devices, or not at all."""
  done = subprocess.run(
    command(tmp_path, FIELDS, "--distributed=auto"), capture_output=True, text=True
  )
  assert done.returncode == 2, done
  assert "Give --coordinator, --num-processes and --process-id" in done.stderr
  code = (
    "from train import processes\n"
    "try:\n  processes.join('127.0.0.1:9', 2, 1, seconds=1)\n"
    "except Exception as error: print(type(error).__name__, error)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, timeout=ENDS_SECONDS
  )
  assert "ConfigError process 0 must listen at 127.0.0.1:9 within 1 s" in done.stdout, done


def test_where_process_0_cannot_listen_is_refused(tmp_path, capsys):
  """JAX would end in a segmentation fault. The address is one of documentation, which no machine has."""
  flags = ["--coordinator=192.0.2.1:5000", "--num-processes=2", "--process-id=0"]
  assert cli.main([*flags, f"--workdir={tmp_path}"]) == 2
  assert "process 0 must be able to listen at 192.0.2.1:5000, got: " in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused(tmp_path, capsys):
  with socket.create_server(("127.0.0.1", 0)) as taken:
    where = f"127.0.0.1:{taken.getsockname()[1]}"
    flags = [f"--coordinator={where}", "--num-processes=2", "--process-id=0"]
    assert cli.main([*flags, f"--workdir={tmp_path}"]) == 2
  assert f"process 0 must be able to listen at {where}, got: " in capsys.readouterr().err


def test_one_process_asks_nobody():
  processes.agree({"config": {}})
  with pytest.raises(ZeroDivisionError), processes.together("divide"):
    1 / 0  # noqa: B018
  assert processes.greatest(3) == 3 and processes.broadcast("a") == "a"
  assert not processes.several() and not processes.left_alone()
