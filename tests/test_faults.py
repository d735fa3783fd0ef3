"""A sample of the loop of ``tests/faults``: a system call fails, or the process is killed there, and all is recovered.

The whole loop takes an hour and more: ``python -m tests.faults``, see docs/reliability.md.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from faults import loop, process

TESTS = pathlib.Path(__file__).parent


def sample(folder, command, count):
  """Returns exit code and results of some faults of a command."""
  results = folder / "results.jsonl"
  done = subprocess.run(
    [
      *(sys.executable, "-m", "faults", "--only", command, "--sample", str(count)),
      *("--folder", str(folder), "--results", str(results)),
    ],
    cwd=folder,
    env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode == 3:
    pytest.skip(done.stderr.strip().removeprefix("skipped: "))
  assert results.exists(), done.stderr
  return done.returncode, [json.loads(line) for line in results.read_text().splitlines()]


# The commands of one process share what they import and compile.
@pytest.mark.slow
@pytest.mark.parametrize(
  ("commands", "count"),
  [
    (("keygen", "disguise", "restore to .npz", "restore to a folder"), 4),
    (("train: new run", "train: checkpoint"), 3),
  ],
  ids=["owner", "train"],
)
def test_faults_are_recovered(tmp_path, commands, count):
  code, results = sample(tmp_path, ";".join(commands), count)
  wrong = [
    f"{result['key']} at {result['text']}: {'; '.join(result['problems'])}"
    for result in results
    if result["problems"]
  ]
  assert not wrong, "\n".join(wrong)
  assert code == 0
  for command in commands:
    found = [r for r in results if r["command"] == command and r["outcome"] != "missed"]
    assert len(found) > count // 2, command  # else it would show nothing


def test_what_is_not_recovered_is_found(tmp_path):
  code, results = sample(tmp_path, "careless", 0)
  assert code == 1
  wrong = {(result["kind"], result["group"]): result["problems"] for result in results}
  assert wrong["KILL", "write"] == ["out/result is not whole under its final name"]
  assert any("traceback" in problem for problem in wrong["EIO", "write"])
  assert wrong["EACCES", "open for writing"]
  assert not wrong["KILL", "open for writing"]  # nothing is there yet


def test_a_sample_is_spread_over_groups_and_kinds():
  cases = [
    loop.Case("c", process.Fault("write", number, kind), group, "")
    for number in range(40)
    for group, kind in (("write", "EIO"), ("write", "KILL"))
  ] + [loop.Case("c", process.Fault("fsync", 1, "EIO"), "sync", "")]
  chosen = loop.chosen(cases, 6)
  assert len(chosen) == 6 and chosen == loop.chosen(cases, 6)
  assert {(case.group, case.fault.kind) for case in chosen} == {
    ("write", "EIO"),
    ("write", "KILL"),
    ("sync", "EIO"),
  }
  assert loop.chosen(cases, 0) == cases


def test_the_table_counts_what_was_injected():
  rows = [("KILL", "killed", []), ("KILL", "missed", []), ("EIO", "refused", ["it said nothing"])]
  results = [
    loop.Result(str(i), "c", *row[:1], "write", "", *row[1:]) for i, row in enumerate(rows)
  ]
  assert loop.table(results).splitlines()[2:] == [
    "| c | KILL | 1 | 0 | 0 | 1 | 1 | 0 |",
    "| c | EIO | 1 | 1 | 0 | 0 | 0 | 1 |",
    "| all |  | 2 | 1 | 0 | 1 | 1 | 1 |",
  ]
