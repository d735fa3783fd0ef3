"""``python -m train``: flags to config to run. ``--help`` lists every field with its value and its meaning."""

import argparse
import contextlib
import json
import os
import shlex
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import train
from djax.cli import guide, program
from djax.errors import ConfigError, nearest
from djax.io import escape, talk
from train import terminal

_NEAR_CHANCE = 0.05
# What each flag takes, and what it is for.
_FLAGS = {
  "--config": (
    "NAME_OR_FILE",
    "a shipped config or a Python file with get_config() (default digits_rmt)",
  ),
  "--workdir": (
    "DIR",
    "run directory; a run that is there is resumed (default runs/<time>_<config>)",
  ),
  "--key": (
    "FILE",
    "the owner's key file; without it the public key of disguise.experiment_seed; none for data.disguised_dir",
  ),
  "--passphrase-file": (
    "FILE",
    "where the key's passphrase stands; else DJAX_PASSPHRASE, else a prompt",
  ),
  "--coordinator": (
    "HOST:PORT",
    "where process 0 listens, of several that train one run; each is given the same command but for its number",
  ),
  "--num-processes": ("N", "how many there are"),
  "--process-id": ("I", "which of them this one is, 0 to N - 1"),
  "--distributed": ("auto", "the three of above as Slurm, Open MPI, Kubernetes or Cloud TPUs say"),
  "--json": ("", "print result.json instead of a summary"),
  "--quiet": ("", "print errors and the result alone: no progress, no warning"),
  "--debug": ("", "end in a traceback where an error is none that djax knows"),
  "--help": ("", "show this page, with the fields of --config"),
}
_GUIDE = guide.Guide(
  (
    ("the embedded digits", "--workdir=runs/digits"),
    (
      "what disguise wrote, on a rented machine",
      "--config=outsourced --config.data.disguised_dir=disguised --workdir=run",
    ),
    (
      "your images and your key, on your own machine",
      "--config=digits_rmt --key=owner.djaxkey --config.data.source=./photos --config.data.image_size=32",
    ),
  ),
  (3, 4, 5, 143),
)
# Of these groups, fields differ between a run and its plain twin.
_TWIN = ("disguise.scheme", "model.", "augment.")


def main(argv: Sequence[str] | None = None) -> int:
  """Parses flags, trains, prints what came of it.

  Returns:
    Exit code: 0 ok, 1 failed, 2 usage or config, 3 key, 4 data, 5 refused for safety, 143/130 after a signal.
  """
  if argv is None:
    program.own_modules_first()
  given = sys.argv[1:] if argv is None else list(argv)
  escape.never_fail(sys.stdout)
  code = terminal.guarded(_main, given, place="the run directory")
  loaded = sys.modules.get("train.processes")
  if code and loaded and loaded.left_alone():
    # JAX would wait at exit for the others, who wait for this one.
    for stream in (sys.stdout, sys.stderr):
      stream.flush()
    os._exit(code)
  return code


def _main(argv: list[str]) -> int:
  # It loads JAX for seconds; a run that is interrupted meanwhile still ends in one line.
  from train import config, processes

  flags, assignments, strays = _parse(argv)
  asked = config.load(flags.config)
  if strays:
    name = strays[0].partition("=")[0]
    hint = _near(name, config.nearest_field(name.lstrip("-"), dict(config.leaves(asked))))
    raise ConfigError(f"unknown argument {strays[0]!r}.{hint} See --help.")
  config.override(asked, assignments)
  if flags.help:
    print(_help(flags.config, dict(config.leaves(asked)), config))
    return 0
  config.check(asked)
  master = None
  if flags.key:
    if asked.data.disguised_dir:
      raise ConfigError(
        "--key must be left out with config.data.disguised_dir: what lies there is already disguised, and the key "
        "stays with its owner."
      )
    if asked.disguise.scheme == "plain":
      raise ConfigError(
        "--key needs a disguise, got config.disguise.scheme=plain, which would use no key. "
        "Leave --key out, or choose another scheme."
      )
    from djax.keys import keyfile  # a run without a key loads no key code

    master = keyfile.read(flags.key, passphrase=keyfile.find_passphrase(flags.passphrase_file))
  stem = Path(flags.config).stem
  workdir = Path(flags.workdir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}_{stem}")
  with contextlib.ExitStack() as stack:
    speaks = True
    if several := _asked_for_several(flags):
      stack.enter_context(processes.stdout_for_results())
      processes.join(*several)
      speaks = processes.first()
    stack.enter_context(talk.quiet(flags.quiet or not speaks))
    result = train.run(asked, workdir, master=master)
  if not speaks:
    return 0
  if flags.json:
    print(json.dumps(result, indent=2))
    return 0
  twin = None
  if result["plain_accuracy"] is not None and asked.model.name != config.AUTO:
    plain = dict(config.leaves(config.twin(asked)))
    changed = {
      name: plain[name]
      for name, value in config.leaves(asked)
      if name.startswith(_TWIN) and plain[name] != value
    }
    twin = _command(flags.config, assignments, changed)
  print(_summary(result, workdir, twin))
  return 0


def _asked_for_several(
  flags: argparse.Namespace,
) -> tuple[str | None, int | None, int | None] | None:
  """Returns coordinator, number of processes and number of this one; None where one process trains alone."""
  given = {
    "--coordinator": flags.coordinator,
    "--num-processes": flags.num_processes,
    "--process-id": flags.process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  wanted = flags.distributed is not None or len(missing) < len(given)
  if wanted and not flags.workdir:
    raise ConfigError("several processes must share a run directory, got none. Give --workdir.")
  if flags.distributed is not None:
    if flags.distributed != "auto" or len(missing) < len(given):
      raise ConfigError(
        f"--distributed must be auto, and stand alone, got {flags.distributed!r} with "
        f"{', '.join(given.keys() - missing) or 'no other'}. Leave out one or the other."
      )
    return None, None, None
  if not wanted:
    return None
  if missing:
    raise ConfigError(
      f"several processes need {', '.join(given)}; {', '.join(missing)} is missing."
    )
  host, _, port = flags.coordinator.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
    raise ConfigError(
      f"--coordinator must be HOST:PORT, with a port of 1 to 65535, got {flags.coordinator!r}."
    )
  if flags.num_processes < 1:
    raise ConfigError(f"--num-processes must be at least 1, got {flags.num_processes}.")
  if not 0 <= flags.process_id < flags.num_processes:
    raise ConfigError(
      f"--process-id must lie in 0..{flags.num_processes - 1}, as --num-processes says, got {flags.process_id}."
    )
  return flags.coordinator, flags.num_processes, flags.process_id


def _program() -> str:
  return program.name("train", "djax-train")


def _command(name: str, assignments: Sequence[str], changed: Mapping[str, Any]) -> str:
  """Returns the command that trains a config with some fields changed."""
  fields = [*assignments, *(f"{name}={value}" for name, value in changed.items())]
  words = [f"--config={name}", *(f"--config.{field}" for field in fields)]
  return f"{_program()} {shlex.join(words)}"


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
  """Splits the arguments into flags, ``group.name=value`` assignments, and those that are neither."""
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
  parser.add_argument("--coordinator", default=None)
  parser.add_argument("--num-processes", type=int, default=None)
  parser.add_argument("--process-id", type=int, default=None)
  parser.add_argument("--distributed", default=None)
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--quiet", action="store_true")
  parser.add_argument("-h", "--help", action="store_true")
  try:
    flags, stray = parser.parse_known_args(rest)
  except argparse.ArgumentError as error:
    raise ConfigError(f"{error}. See --help.") from None
  return flags, assignments, stray


def _near(name: str, field: str) -> str:
  """Suggests a flag, or a field of the config whose last part was given."""
  given = name.lstrip("-").replace("-", "_")
  if field.endswith(f".{given}'?"):
    return field.replace("'config", "'--config")
  return nearest(name, _FLAGS) or (
    field.replace("'config", "'--config") if name[:2] == "--" else ""
  )


def _help(name: str, values: Mapping[str, Any], config_lib: Any) -> str:
  width = guide.width()

  def described(words: str, indent: int) -> list[str]:
    return textwrap.wrap(words, width, initial_indent=" " * indent, subsequent_indent=" " * indent)

  lines = [
    f"usage: {_program()} [--config=NAME_OR_FILE] [FLAG ...] [--config.FIELD=VALUE ...]",
    "",
    *described("Trains a network on disguised images, and tests it.", 0),
    "",
    "flags:",
  ]
  for flag, (value, words) in _FLAGS.items():
    lines += [f"  {flag}{'=' * bool(value)}{value}", *described(words, 6)]
  lines += ["", "shipped configs:"]
  for shipped in config_lib.shipped():
    lines += [f"  {shipped}", *described(config_lib.about(shipped), 6)]
  lines += ["", guide.text(_program(), _GUIDE), f"fields of {name}:"]
  known = config_lib.fields()
  for field, value in values.items():
    words = known[field].meaning if field in known else "no such field: it is refused"
    if choices := config_lib.choices(field):
      words += f"; one of {', '.join(choices)}"
    lines += [f"  --config.{field}={value!r}", *described(words, 6)]
  return "\n".join(lines)


def _summary(result: dict, workdir: Path, twin: str | None = None) -> str:
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
      lines.append("network on plain images  not measured: it needs originals, and here are none")
    else:
      lines.append(
        f"network on plain images  {result['plain_accuracy']:.2%} (chance {chance:.0%}): misuse, by somebody who takes "
        "the network and has no key"
      )
    if twin:
      lines.append(f"plain twin               the same network on originals, to compare: {twin}")
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
