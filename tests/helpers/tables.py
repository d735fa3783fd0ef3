"""A results table of three tiny rows, and fakes that take no time."""

from pathlib import Path

import train
from train import run_dir
from train.table import command as cli
from train.table import rows, runner
from train.table.rows import Row

TINY = (
  "data.train_split=train[:128]",
  "data.test_split=test[:50]",
  "model.width=2",
  "train.epochs=1",
  "train.batch_size=32",
)
STEMMED = ("model.stem=aligned",)
TABLE = (
  Row("first", "digits_rmt", TINY, seeds=(0, 1), headline=True),
  Row("second", "digits_rmt", (*TINY, *STEMMED), seeds=(0, 1), group="Others", headline=True),
  Row("third", "digits_rmt", (*TINY, "disguise.scheme=aes", "disguise.block_size=4"), seeds=(1,)),
)


def accuracies(config):
  """Returns made-up accuracies that differ by seed, disguise and stem."""
  plain = config.disguise.scheme == "plain"
  own = 0.9 if plain else 0.8 if config.model.stem == "aligned" else 0.7
  return own + config.seed / 100, 0.12, 0.15


def fake_run(config, folder):
  """Leaves what a run leaves, without training."""
  run_dir.open_run(Path(folder), config, {"key_fingerprint": None}, steps_per_epoch=4)
  run_dir.note_environment(Path(folder))
  accuracy, plain, other = accuracies(config)
  result = {
    "test_accuracy": accuracy,
    "single_view_accuracy": accuracy,
    "test_views": 1,
    "plain_accuracy": plain,
    "other_key_accuracy": other,
    "test_images": 50,
    "classes": 10,
    "steps": 4,
    "seconds": 3.0 + config.seed,
    "key_fingerprint": "experiment",
  }
  run_dir.write_json(Path(folder) / "result.json", result)
  return result


def fake_audit(config):
  """Returns the parts of ``audit.json`` that the table reads."""

  def attack(name, level, ssim, pairs=None):
    scores = {"ssim": {"median": ssim}, "psnr": {"median": 40 * ssim}}
    return {"name": name, "level": level, "runs": [{"pairs": pairs, "scores": scores}]}

  refused = {"name": "frequency", "level": 1, "runs": []}
  attacks = [attack("examiner", 1, 0.1), attack("placement", 1, 0.4), refused]
  attacks += [attack("regression", 2, 0.3, 5), attack("procrustes", 2, 0.8, 5)]
  levels = {"1": {"verdict": "leaks"}, "2": {"verdict": "broken"}}
  sizes = {"private": 600, "public": 300, "targets": 60, "pairs": [5]}
  return {"attacks": attacks, "levels": levels, "seconds": 1.0, "setting": {"sizes": sizes}}


def faked(monkeypatch):
  """Puts three tiny rows and fakes that take no time in place; returns the names of what the fakes are given."""
  begun = []

  def run(config, folder):
    begun.append(f"{Path(folder).parent.name}/{config.seed}")
    return fake_run(config, folder)

  def audit(config, progress):
    begun.append(f"audit {config.disguise.scheme}")
    return fake_audit(config)

  monkeypatch.setattr(rows, "ROWS", TABLE)
  monkeypatch.setattr(train, "run", run)
  monkeypatch.setattr(runner, "attack", audit)
  return begun


def caller(capsys, tmp_path):
  """Returns a function that runs the command: code, lines of stdout, and of stderr those that tell no beginning."""

  def call(*words):
    capsys.readouterr()
    code = cli.main([*words, "--runs", str(tmp_path / "runs")])
    out, err = capsys.readouterr()
    call.begun = [line for line in err.splitlines() if ": begins in " in line]
    return code, out.splitlines(), [line for line in err.splitlines() if line not in call.begun]

  return call
