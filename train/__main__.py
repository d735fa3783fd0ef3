"""``python -m train``: flags to config to run. ``--help`` lists every field with its value."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import train
from djax.cli import program
from djax.errors import ConfigError, nearest
from djax.io import escape
from train import terminal

_NEAR_CHANCE = 0.05
_FLAGS = ("--config", "--workdir", "--key", "--passphrase-file", "--json", "--help")


def main(argv: Sequence[str] | None = None) -> int:
  """Parses flags, trains, prints what came of it.

  Returns:
    Exit code: 0 ok, 1 failed, 2 usage or config, 3 key, 4 data, 5 refused for safety, 143/130 after a signal.
  """
  if argv is None:
    program.own_modules_first()
  given = sys.argv[1:] if argv is None else list(argv)
  escape.never_fail(sys.stdout)
  return terminal.guarded(_main, given, place="the run directory")


def _main(argv: list[str]) -> int:
  # It loads JAX for seconds; a run that is interrupted meanwhile still ends in one line.
  from train import config as config_lib

  flags, assignments = _parse(argv)
  config = config_lib.load(flags.config)
  config_lib.override(config, assignments)
  if flags.help:
    print(_help(flags.config, config_lib.leaves(config)))
    return 0
  config_lib.check(config)
  master = None
  if flags.key:
    if config.data.disguised_dir:
      raise ConfigError(
        "--key must be left out with config.data.disguised_dir: what lies there is already disguised, and the key "
        "stays with its owner."
      )
    if config.disguise.scheme == "plain":
      raise ConfigError(
        "--key needs a disguise, got config.disguise.scheme=plain, which would use no key. "
        "Leave --key out, or choose another scheme."
      )
    from djax.keys import keyfile  # a run without a key loads no key code

    master = keyfile.read(flags.key, passphrase=keyfile.find_passphrase(flags.passphrase_file))
  stem = Path(flags.config).stem
  workdir = Path(flags.workdir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}_{stem}")
  print(f"run directory: {escape.for_terminal(str(workdir))}", file=sys.stderr)

  result = train.run(config, workdir, master=master)
  print(json.dumps(result, indent=2) if flags.json else _summary(result, workdir))
  return 0


def _program() -> str:
  return program.name("train", "djax-train")


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """Splits the arguments into flags and ``group.name=value`` assignments."""
  assignments, rest = [], []
  words = iter(argv)
  for word in words:
    if word.startswith("--config."):
      name = word.removeprefix("--config.")
      assignments.append(name if "=" in name else f"{name}={next(words, '')}")
    else:
      rest.append(word)
  parser = argparse.ArgumentParser(
    prog=_program(), add_help=False, allow_abbrev=False, exit_on_error=False
  )
  parser.add_argument("--config", default="digits_rmt")
  parser.add_argument("--workdir", default="")
  parser.add_argument("--key", default="")
  parser.add_argument("--passphrase-file", default=None)
  parser.add_argument("--json", action="store_true")
  parser.add_argument("-h", "--help", action="store_true")
  try:
    flags, stray = parser.parse_known_args(rest)
  except argparse.ArgumentError as error:
    raise ConfigError(f"{error}. See --help.") from None
  if stray:
    raise ConfigError(
      f"unknown argument {stray[0]!r}.{nearest(stray[0].partition('=')[0], _FLAGS)} See --help."
    )
  return flags, assignments


def _help(name: str, leaves) -> str:
  usage = f"usage: {_program()}"
  lines = [
    f"{usage} [--config=NAME_OR_FILE] [--workdir=DIR] [--config.FIELD=VALUE ...]",
    f"{' ' * len(usage)} [--key=FILE [--passphrase-file=FILE]] [--json]",
    "",
    "  --config           a shipped config or a Python file with get_config()",
    "  --workdir          run directory; a run that is there is resumed (default runs/<time>_<config>)",
    "  --key              the owner's key file; without it the public key of disguise.experiment_seed;",
    "                     none for data.disguised_dir",
    "  --passphrase-file  where the key's passphrase stands; else DJAX_PASSPHRASE, else a prompt",
    "  --json             print result.json instead of a summary",
    "",
    f"fields of {name}:",
  ]
  return "\n".join([*lines, *(f"  --config.{field}={value!r}" for field, value in leaves)])


def _summary(result: dict, workdir: Path) -> str:
  fingerprint = result["key_fingerprint"]
  chance = 1 / result["classes"]
  lines = []
  if fingerprint is None:
    lines.append(
      f"plain test accuracy      {result['test_accuracy']:.2%} (no disguise; chance {chance:.0%})"
    )
  else:
    views = result["test_views"]
    single = f"over {views} views; one alone {result['single_view_accuracy']:.2%}; "
    lines.append(
      f"disguised test accuracy  {result['test_accuracy']:.2%} ({single if views > 1 else ''}chance {chance:.0%})"
    )
    if result["other_key_accuracy"] is not None:
      lines.append(
        f"under another key        {result['other_key_accuracy']:.2%} (chance {chance:.0%})"
      )
    if result["plain_accuracy"] is None:
      lines.append("plain accuracy           not measured: it needs originals, and here are none")
    else:
      lines.append(
        f"plain accuracy           {result['plain_accuracy']:.2%} (the same network misused on plain images; "
        f"chance {chance:.0%})"
      )
    lines.append(f"key                      {fingerprint}")
    if fingerprint.startswith("experiment"):
      lines.append("                         EXPERIMENT: made from a public seed, protects nothing")
  if result["val_accuracy"] is not None:
    lines.append(
      f"validation accuracy      {result['val_accuracy']:.2%} (the best, after step {result['chosen_step']} of "
      f"{result['steps']}: this network was tested)"
    )
  if result["test_accuracy"] <= chance + _NEAR_CHANCE:
    lines.append(
      "                         HARDLY BETTER THAN CHANCE: this network learns little from these images; choose "
      "another --config.model.name (unit_mlp for aes) or train longer"
    )
  if result["labels"] == "permuted":
    lines.append("labels                   permuted: only the owner knows their names")
  lines.append(
    f"training                 {result['seconds']:.1f} s, {result['steps_per_second']:.1f} steps/s"
  )
  picture = workdir / "preview.png"
  if result["plain_accuracy"] is None:
    lines.append(f"disguised images         {picture}  (the run directory holds no original)")
  else:
    lines.append(f"originals and disguises  {picture}  (shows originals: keep it)")
  if (workdir / "report.html").is_file():
    lines.append(f"all on one page          {workdir / 'report.html'}")
  lines.append(f"everything else          {workdir}")
  # The fingerprint is that of the directory's manifest, which nobody authenticates here.
  return "\n".join(map(escape.for_terminal, lines))


if __name__ == "__main__":
  sys.exit(main())
