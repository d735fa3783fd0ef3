"""``python -m train``: its help, what it suggests, what it says and when."""

import json
import re
import shlex

import pytest
from helpers.training import tiny

from configs import base
from djax import schemes
from djax.cli import guide
from djax.errors import ConfigError
from train import __main__ as cli
from train import answer, api
from train import config as config_lib
from train.compare import command as compare
from train.table import command as table


def page(capsys, *flags):
  assert cli.main([*flags, "--help"]) == 0
  return capsys.readouterr().out


def test_every_field_has_a_meaning_and_every_option_of_a_scheme_too():
  fields = base.fields()
  assert dict(config_lib.leaves(base.get_config())) == {
    name: field.usual for name, field in fields.items()
  }
  assert [name for name, field in fields.items() if len(field.meaning.split()) < 2] == []
  assert {f"disguise.{name}" for name in schemes.options()} <= set(fields)
  assert fields["disguise.block_size"].meaning == (
    "side of a block in pixels (rmt, aes, permutation)"
  )
  assert fields["disguise.permute"].meaning.startswith("false: leave blocks in place (")


@pytest.mark.parametrize("columns", [40, 100])
def test_help_says_what_every_field_means(capsys, monkeypatch, columns):
  monkeypatch.setenv("COLUMNS", str(columns))
  text = page(capsys, "--config=mnist_aes")
  lines = text.splitlines()
  for name, value in config_lib.leaves(config_lib.load("mnist_aes")):
    place = lines.index(f"  --config.{name}={value!r}")
    assert lines[place + 1].startswith("      ")
  whole = " ".join(text.split())
  for words in (
    "one of plain, rmt, aes, permutation, instahide, neuracrypt",
    "one of float32, bfloat16",
    "one of orthogonal, projection",
    "the network; auto: what the disguise asks for; one of ",
    "mnist_rmt MNIST under the paper's RMT setting: 7x7 blocks",
    "exit codes: 0 ok, 1 failed, 2 usage or config, 3 key, 4 data, 5 refused for safety, 130",
  ):
    assert words in whole
  for name in config_lib.shipped():
    assert f"\n  {name}\n" in text
  body = text.partition("flags:")[2]
  long = [line for line in body.splitlines() if len(line) > columns]
  assert [line for line in long if not line.strip().startswith("--config.")] == []


def test_every_example_of_a_help_page_is_one_that_works():
  for _, words in cli._GUIDE.examples:
    flags, assignments, strays = cli._parse(shlex.split(words))
    config = config_lib.load(flags.config)
    config_lib.override(config, assignments)
    config_lib.check(config)
    assert strays == []
  for program, flags in ((table, table._FLAGS), (compare, compare._FLAGS)):
    for _, words in program._GUIDE.examples:
      made = {"prog": "x", "description": "x", "guide": program._GUIDE}
      assert table.parse(shlex.split(words), flags, **made)
  with pytest.raises(ConfigError):
    table.parse(["--lits"], table._FLAGS, **made)


@pytest.mark.parametrize("main", [table.main, compare.main, answer.main])
def test_the_other_programs_end_their_help_with_examples_and_codes(main, capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "60")
  try:
    assert main(["--help"]) == 0
  except SystemExit as done:
    assert done.code == 0
  text = capsys.readouterr().out
  assert "\nexamples:\n" in text and "exit codes: 0 ok" in text
  body = text.partition("\n\n")[2]
  assert max(map(len, body.splitlines())) <= 60
  assert guide.CODES[4] in text


@pytest.mark.parametrize(
  ("flag", "hint"),
  [
    ("--epochs=3", " Did you mean '--config.train.epochs'?"),
    ("--noise-level=3", " Did you mean '--config.disguise.noise_level'?"),
    ("--quite", " Did you mean '--quiet'?"),
    ("--workdri=x", " Did you mean '--workdir'?"),
    ("stray", ""),
  ],
)
def test_an_argument_that_does_not_exist_gets_the_nearest(capsys, flag, hint):
  assert cli.main([flag]) == 2
  assert f"unknown argument {flag!r}.{hint} See --help.\n" in capsys.readouterr().err


RESULT = {
  "key_fingerprint": "djx1-x",
  "classes": 10,
  "test_accuracy": 0.9,
  "test_views": 1,
  "single_view_accuracy": 0.9,
  "other_key_accuracy": 0.1,
  "plain_accuracy": 0.1,
  "val_accuracy": None,
  "labels": "plain",
  "seconds": 1.0,
  "steps_per_second": 1.0,
}


@pytest.fixture
def trained(monkeypatch):
  """Trains nothing; the result is made up."""
  monkeypatch.setattr(api, "run", lambda config, workdir, master: RESULT)


@pytest.mark.parametrize("name", ["digits_rmt", "mnist_aes", "cifar10_small", "mnist_neuracrypt"])
def test_the_summary_calls_misuse_by_its_name_and_gives_the_command_of_the_twin(
  trained, capsys, name
):
  assert cli.main([f"--config={name}", "--config.data.source=./my photos"]) == 0
  out = capsys.readouterr().out
  assert "plain accuracy" not in out
  assert "network on plain images  10.00% (chance 10%): misuse" in out
  (command,) = re.findall(r"^plain twin .*: python -m train (.*)$", out, re.MULTILINE)
  flags, assignments, strays = cli._parse(shlex.split(command))
  config = config_lib.load(flags.config)
  config_lib.override(config, assignments)
  assert config.data.source == "./my photos" and strays == []
  config_lib.check(config)
  ours = config_lib.load(name)
  ours.data.source = "./my photos"
  wanted, got = (dict(config_lib.leaves(one)) for one in (config_lib.twin(ours), config))
  # What a scheme that is not used would take does not matter.
  differ = {field for field in wanted if wanted[field] != got[field]}
  assert (
    all(field.startswith("disguise.") for field in differ) and got["disguise.scheme"] == "plain"
  )


def test_json_is_the_result_as_it_is(trained, capsys):
  assert cli.main(["--json", "--quiet"]) == 0
  captured = capsys.readouterr()
  assert json.loads(captured.out) == RESULT and captured.err == ""


@pytest.mark.slow
def test_the_directory_is_named_once_a_run_in_it_has_begun(tmp_path, capsys, monkeypatch):
  config = tiny("train.epochs=1")
  flags = [f"--config.{name}={value}" for name, value in config_lib.leaves(config)]
  assert cli.main([f"--workdir={tmp_path / 'run'}", *flags]) == 0
  assert f"run directory: {tmp_path / 'run'}" in capsys.readouterr().err.splitlines()
  # Another run in it is refused.
  assert cli.main([f"--workdir={tmp_path / 'run'}", *flags, "--config.seed=1"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ")
  assert cli.main([f"--workdir={tmp_path / 'run'}", *flags, "--quiet"]) == 0
  captured = capsys.readouterr()
  assert captured.err == "" and "disguised test accuracy" in captured.out
