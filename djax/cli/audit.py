"""What ``python -m djax audit`` does. Data goes to stdout, talk to stderr."""

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from djax import schemes
from djax.attacks import ATTACKS
from djax.audit import build_known_breaks, exported, report, runner, scenario, sweep, verdicts
from djax.audit.runner import Outcome
from djax.audit.scenario import Scenario
from djax.cli import check, training
from djax.cli import report as report_verb
from djax.cli.common import say
from djax.cli.owner import scheme_of
from djax.errors import ConfigError
from djax.io import escape, files, progress
from djax.keys import keyfile
from djax.owner import restore

__all__ = ["COMMANDS", "run"]

# The columns of the table.
_WIDE = 76
# The first of these flags that is given selects the mode.
_MODES = {
  "run_dir": "--run",
  "write_table": "--write-table",
  "sweep": "--sweep",
  "source": "--source",
  "config": "--config",
  "data": "--data",
}
_FORMS = (["source"], ["config"], ["data", "originals"])
_SCHEME = ("--source", "--sweep")
_IMAGES = ("--source", "--sweep", "--config", "--data")
# The modes in which each flag is used; in any other it is refused rather than ignored.
_USED: dict[str, tuple[str, ...]] = {
  **{name: (flag,) for name, flag in _MODES.items()},
  "source": _SCHEME,
  "originals": ("--data",),
  "key": ("--data",),
  "passphrase_file": ("--data",),
  "data_dir": (*_IMAGES, "--write-table"),
  "image_size": _IMAGES,
  "scale": _IMAGES,
  "train_split": ("--source", "--sweep", "--data"),
  "val_split": ("--data",),
  "test_split": ("--data",),
  "group_by": ("--data",),
  "split_seed": ("--data",),
  "background": _IMAGES,
  "scheme": _SCHEME,
  "block_size": ("--source",),
  "views": ("--source",),
  "crop": ("--source",),
  "flip": ("--source",),
  "block_sizes": ("--sweep",),
  "noise_levels": ("--sweep",),
  "fast": _IMAGES,
  "full": _IMAGES,
  "attacks": _IMAGES,
  "seed": (*_IMAGES, "--run"),
  "out": (*_IMAGES, "--run"),
  "json": (*_IMAGES, "--run"),
  "quiet": (*_IMAGES, "--run", "--write-table"),
}
_ONE_SIZE = ("block_size", "--sweep")
_DEFAULTS: dict[str, Any] = {
  **dict.fromkeys(("source", "config", "data", "originals", "key", "passphrase_file"), None),
  **dict.fromkeys(("scheme", "data_dir", "attacks", "out", "block_sizes", "noise_levels"), ""),
  **dict.fromkeys(("full", "json", "flip"), False),
  "views": 1,
  "crop": 0,
  "image_size": 0,
  "scale": 0,
  "split_seed": 0,
  "seed": 0,
  "train_split": "train",
  "val_split": "val",
  "test_split": "test",
  "group_by": "",
  "background": "",
}


def run(args: argparse.Namespace) -> None:
  """Audits as the flags say; those that were not given are absent from ``args``.

  Raises:
    DjaxError: for flags, data or places that cannot be used.
  """
  mode = _mode(args)
  args = argparse.Namespace(**{**_DEFAULTS, **vars(args)})
  if mode == "--write-table":
    path = Path(args.write_table).expanduser()
    with progress.staged(say) as tell:
      build_known_breaks.write(path, data_dir=args.data_dir, progress=tell)
    return
  if not args.out:
    raise ConfigError("audit: needs --out, the directory to write.")
  if mode == "--run":
    _model(args)
    return
  attacks = runner.choose([name for name in args.attacks.split(",") if name], ATTACKS)
  if mode == "--sweep":
    _sweep(args, attacks)
    return
  out = restore.check_new(args.out, Path(args.data).expanduser() if args.data else None)
  with progress.staged(say) as tell:
    outcome = runner.audit(_setting(args, tell), attacks, seed=args.seed, progress=tell)
  with files.new_folder(out) as temporary:
    report.write(temporary, outcome)
  _show(args, outcome.facts, _lines(outcome, out))
  say(f"{out / report.PAGE} shows originals: keep it on this machine")


def _mode(args: argparse.Namespace) -> str:
  """Returns the flag that selects the mode, and refuses every flag that is of no use in it."""
  options = schemes.options()
  used = dict.fromkeys(options, _SCHEME) | _USED
  flags = {name: f"--{name.replace('_', '-')}" for name in used} | {"run_dir": "--run"}
  flags |= {name: option.flag for name, option in options.items()}
  given = [name for name in vars(args) if name in flags]
  mode = next((flag for name, flag in _MODES.items() if name in given), None)
  forms = [name for name in ("source", "config", "data", "originals") if name in given]
  if mode in (None, "--source", "--config", "--data") and forms not in _FORMS:
    raise ConfigError(
      "audit: takes --source with a scheme, or --config, or --data with --originals; got "
      f"{' and '.join(f'--{name}' for name in sorted(forms)) or 'none of them'}."
    )
  assert mode is not None
  for name in given:
    if mode not in used[name]:
      where = "" if name in _MODES else f", it goes with {' or '.join(used[name])}"
      advice = "Give --block-sizes." if (name, mode) == _ONE_SIZE else "Leave it out."
      raise ConfigError(f"audit: {flags[name]} has no meaning with {mode}{where}. {advice}")
  return mode


def _show(args: argparse.Namespace, facts: Any, lines: Sequence[str]) -> None:
  """Prints facts for programs, or lines, which may hold names from outside, for people."""
  if args.json:
    print(json.dumps(facts))
    return
  for line in lines:
    print(escape.for_terminal(line))


def _sweep(args: argparse.Namespace, attacks: Sequence[Any]) -> None:
  """Audits a grid of settings, or goes on with it."""
  given = scheme_of(args)
  if not args.source or not given:
    raise ConfigError("audit: --sweep needs --source and --scheme.")
  plan = sweep.Plan(
    source=args.source,
    disguise=given,
    block_sizes=_numbers("block-sizes", args.block_sizes, int),
    noise_levels=_numbers("noise-levels", args.noise_levels, float),
    attacks=tuple(attack.name for attack in attacks),
    seed=args.seed,
    full=args.full,
    reading=check.reading_of(args),
    split=args.train_split,
  )
  out = Path(args.out).expanduser()
  try:
    with progress.staged(say) as tell:
      facts = sweep.run(plan, out, ATTACKS, progress=tell)
  except KeyboardInterrupt:
    raise KeyboardInterrupt("interrupted. Re-run the command to resume.") from None
  _show(args, facts, sweep.lines(facts, out))


def _model(args: argparse.Namespace) -> None:
  """Attacks the model of a run directory: writes ``examination.json`` and ``membership.svg``, prints a summary."""
  out = restore.check_new(args.out, None)
  examine = training.verbs("audit --run")
  with progress.staged(say) as tell:
    facts = examine.examine(args.run_dir, seed=args.seed, progress=tell)
  with files.new_folder(out) as temporary:
    for name, text in (
      ("examination.json", json.dumps(facts) + "\n"),
      ("membership.svg", examine.figure(facts)),
    ):
      with files.private(temporary / name) as file:
        file.write(text.encode())
  _show(args, facts, [*examine.lines(facts), f"wrote {out}"])


def _setting(args: argparse.Namespace, tell: Callable[[float, str], None]) -> Scenario:
  """Makes what is attacked of one of its three forms."""
  options: dict[str, Any] = {
    "seed": args.seed,
    "sizes": scenario.FULL if args.full else scenario.FAST,
    "reading": check.reading_of(args),
    "progress": tell,
  }
  if args.source:
    disguise = scheme_of(args)
    if not disguise or "block_size" not in disguise:
      raise ConfigError("audit: --source needs --scheme and --block-size.")
    if (args.views > 1) != bool(args.crop or args.flip):
      raise ConfigError(
        "audit: --views above 1 needs --crop or --flip, and these need it; got "
        f"--views {args.views}, --crop {args.crop}{', --flip' if args.flip else ''}."
      )
    moved = {"crop": args.crop, "flip": args.flip}
    return scenario.from_source(
      args.source, disguise, split=args.train_split, views=args.views, options=moved, **options
    )
  if args.config:
    return training.verbs("audit --config").scenario_of(args.config, **options)
  if not args.key:
    raise ConfigError(
      "audit: --data needs --key, which knows the order of the records. No attack gets the key."
    )
  master = keyfile.read(args.key, passphrase=keyfile.find_passphrase(args.passphrase_file))
  splits = {"train": args.train_split, "val": args.val_split, "test": args.test_split}
  return exported.from_directory(args.data, args.originals, master, splits=splits, **options)


def _numbers(flag: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
  """Reads ``2,4,8``."""
  try:
    return tuple(kind(word) for word in text.split(",") if word)
  except ValueError:
    raise ConfigError(f"audit: --{flag} must be numbers such as 2,4,8, got {text!r}.") from None


def _lines(outcome: Outcome, out: Path) -> list[str]:
  """Returns verdicts and table for the terminal; each attack takes two lines where it is narrow."""
  facts = outcome.facts
  columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
  wide = not 0 < columns < _WIDE
  lines = []
  if wide:
    lines += [f"{'examiner':>42}", f"{'above':>42}"]
    lines.append(
      f"{'attack':11} {'level':>5} {'pairs':>5} {'SSIM':>5} {'PSNR':>5} {'chance':>6} {'s':>5}  verdict"
    )
  for row in facts["attacks"]:
    for result in row["runs"]:
      scores = result["scores"]
      ssim, psnr = scores["ssim"]["median"], scores["psnr"]["median"]
      above, seconds, verdict = scores["above_chance"], result["seconds"], result["verdict"]
      pairs = "" if result["pairs"] is None else result["pairs"]
      if wide:
        lines.append(
          f"{row['name']:11} {row['level']:5} {pairs:>5} {ssim:5.2f} {psnr:5.1f} {above:6.2f} {seconds:5.1f}  {verdict}"
        )
      else:
        with_pairs = f", {pairs} pairs" if pairs else ""
        lines += [
          f"{row['name']} (level {row['level']}{with_pairs}): {verdict}",
          f"  SSIM {ssim:.2f}, PSNR {psnr:.1f}, examiner above chance {above:.2f}, {seconds:.1f} s",
        ]
    if row["status"] != "ran":
      level = f"{row['level']:5}" if wide else f"(level {row['level']})"
      lines.append(f"{row['name']:{11 * wide}} {level} {row['status']}: {row['reason']}")
  lines.append("")
  words = [
    f"level {number}: {level['verdict'] or verdicts.UNTRIED}. {level['words']}"
    for number, level in facts["levels"].items()
  ]
  words.append(f"with the key: {facts['ceiling']['words']}")
  words.append(f"noise alone: {facts['noise_alone']['words']}")
  words += [f"warning: {warning}" for warning in facts["setting"]["warnings"]]
  for line in words:
    lines += textwrap.wrap(line, columns, subsequent_indent="  ") if columns else [line]
  return [*lines, f"report       {out / report.PAGE}"]


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
  "audit": run,
  "report": report_verb.run,
}
