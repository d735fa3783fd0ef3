"""Configs, overrides and the flags of ``python -m train``: what is refused, in which words, with which exit code."""

import importlib
import json

import pytest

from djax import models, schemes
from djax.errors import ConfigError
from djax.models import MODELS
from djax.schemes import SCHEMES
from train import __main__ as cli
from train import config as config_lib


def _refused(capsys, *argv):
  code = cli.main(argv)
  captured = capsys.readouterr()
  # Where a run would have been is not said of one that is refused.
  lines = captured.err.splitlines()
  assert len(lines) == 1, captured.err
  assert captured.out == ""
  return code, lines[0]


@pytest.mark.parametrize("name", config_lib.shipped())
def test_shipped_configs_fit_the_schema_and_say_their_command(name):
  config = config_lib.load(name)
  config_lib.check(config)
  doc = importlib.import_module(f"configs.{name}").__doc__
  assert "python -m train" in doc and (name in doc or name == "digits_rmt")


def test_the_issue_s_configs_are_shipped():
  assert set(config_lib.shipped()) >= {
    "digits_rmt", "digits_plain", "mnist_plain", "mnist_rmt", "cifar10_plain", "cifar10_rmt",
    "outsourced", "mnist_aes", "cifar10_aes",
  }  # fmt: skip


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_twins_differ_in_the_scheme_alone(name):
  ours, plain = (dict(config_lib.leaves(config_lib.load(f"{name}_{k}"))) for k in ("rmt", "plain"))
  assert {k for k in ours if ours[k] != plain[k]} == {"disguise.scheme"}


@pytest.mark.parametrize("name", config_lib.shipped())
def test_a_field_that_does_not_exist_is_refused_where_it_is_assigned(name):
  config = config_lib.load(name)
  with pytest.raises(AttributeError, match='Did you mean "epochs" instead of "epohcs"'):
    config.train.epohcs = 3


def test_a_config_file_that_sets_such_a_field_is_refused_in_one_line(tmp_path, capsys):
  file = tmp_path / "mine.py"
  file.write_text(
    "from configs import base\ndef get_config():\n  c = base.get_config()\n  c.train.epohcs = 3\n  return c\n"
  )
  code, line = _refused(capsys, f"--config={file}")
  assert code == 2
  assert line.endswith(
    f"unknown config field 'epohcs' in {file}. Did you mean 'config.train.epochs'?"
  )


def test_overrides_keep_the_type_of_the_field():
  config = config_lib.load("digits_rmt")
  config_lib.override(
    config,
    ["train.epochs=3", "disguise.noise_level=5", "disguise.permute=false", "data.source=a=b"],
  )
  assert config.train.epochs == 3
  assert config.disguise.noise_level == 5.0 and isinstance(config.disguise.noise_level, float)
  assert config.disguise.permute is False
  assert config.data.source == "a=b"


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--config.disguise.nois_level=3", "unknown config field 'config.disguise.nois_level'. Did you mean "
     "'config.disguise.noise_level'?"),
    ("--config.noise_level=3", "Did you mean 'config.disguise.noise_level'?"),
    ("--config.train=3", "unknown config field 'config.train'"),
    ("--config.train.epochs=many", "config.train.epochs must be a whole number such as 15, got 'many'"),
    ("--config.train.epochs=2.5", "must be a whole number"),
    ("--config.disguise.permute=perhaps", "config.disguise.permute must be true or false such as true"),
    ("--config.train.epochs=0", "config.train.epochs must be at least 1, got 0"),
    ("--config.optimizer.learning_rate=nan", "config.optimizer.learning_rate must be above 0, got nan"),
    ("--config.model.dropout=1.5", r"config.model.dropout must lie in [0, 1), got 1.5"),
    ("--config.model.name=resnet", f"config.model.name must be one of {', '.join(MODELS)}, auto, got 'resnet'. Did you "
     "mean 'resnet18'?"),
    ("--config.disguise.scheme=rtm", f"config.disguise.scheme must be one of {', '.join(SCHEMES)}, got 'rtm'. "
     "Did you mean 'rmt'?"),
    ("--config.model.name=unit_mlp", "config.model.name=unit_mlp needs unit_pixels of the disguise, which rmt has not"),
    ("--config.model.stem=algined", "config.model.stem must be one of none, position, aligned, magnitude, got "
     "'algined'. Did you mean 'aligned'?"),
    ("--config.model.depth=0", "config.model.depth must be at least 1, got 0"),
    ("--config.optimizer.ema=1", "config.optimizer.ema must lie in [0, 1), got 1.0"),
    ("--config.optimizer.label_smoothing=-0.1", "config.optimizer.label_smoothing must lie in [0, 1), got -0.1"),
    ("--config.optimizer.no_decay=(bias", "config.optimizer.no_decay must be a regular expression"),
    ("--config.augment.views=4", "config.augment.views or test_views above 1 need crop, flip, rotate, scale or shear"),
    ("--config.augment.flip=true", "and these need one of them; got views=1, test_views=1 and flip"),
    ("--config.augment.rotate=-1", "config.augment.rotate must be at least 0, got -1.0"),
    ("--config.augment.mixup=-1", "config.augment.mixup must be at least 0, got -1.0"),
    ("--config.augment.cutout=1", "config.augment.cutout must lie in [0, 1), got 1.0"),
    ("--config.data.memory_gb=-1", "config.data.memory_gb must be at least 0, got -1.0"),
    ("--config.data.disguised_dir=x", "config.disguise.scheme must be plain with config.data.disguised_dir: what lies "
     "there is already disguised, got 'rmt'. Start from --config=outsourced."),
    ("--config.disguise.noise_level=-1", "noise_level must be a finite number of at least 0"),
    ("--config.disguise.block_size=0", "block_size must lie between 1 and the shorter side"),
    ("--config.disguise.block_size=9", "block_size must lie between 1 and the shorter side"),
    ("--config.disguise.block_size=1", "a matrix must be larger than 1 x 1"),
    ("--config.disguise.matrix=haar", "matrix must be one of ('orthogonal', 'projection'), got 'haar'"),
    ("--config.train.batch_size=4000", "config.train.batch_size must be at most the 1438 training images, got 4000"),
    ("--config.train.batch_size=63", "config.train.batch_size must be a multiple of the 2 devices, got 63"),
    ("--config=digits_rtm", "got 'digits_rtm'. Did you mean 'digits_rmt'?"),
    ("--config=./no/such.py", "got './no/such.py'"),
    ("--workdri=x", "unknown argument '--workdri=x'. Did you mean '--workdir'?"),
    ("stray", "unknown argument 'stray'."),
    ("--workdir", "expected one argument"),
  ],
)  # fmt: skip
def test_bad_flags_are_one_line_and_exit_2(capsys, tmp_path, monkeypatch, flag, words):
  monkeypatch.chdir(tmp_path)
  code, line = _refused(capsys, flag)
  assert code == 2
  assert words in line
  assert not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (("model.name=vit", "disguise.scheme=plain"), "config.model.patch must be given for vit on plain images, which "
     "have no blocks, got 0. Networks without tokens need none: cnn, resnet18, airbench, vgg16, mlp."),
    (("model.name=vit", "model.patch=3"), "config.model: patch must divide both sides of the image, got patch=3"),
    (("model.name=airbench",), "config.model: airbench needs images of at least 9x9 pixels, got 8x8"),
    (("model.name=vit", "model.width=40"), "config.model: Vit: width must be a multiple of 32"),
    (("model.name=unit_mlp", "disguise.scheme=plain"), "needs unit_pixels of the disguise, which plain has not. These "
     "take any disguise: cnn, resnet18, airbench, vgg16, vit, mixer, mlp."),
    (("augment.views=2", "augment.crop=8"), "config.augment: view: crop must be a whole number from 0 to 7"),
    (("model.name=unit_mlp", "disguise.scheme=aes", "disguise.block_size=4", "model.stem=position"),
     "config.model.stem must be none with unit_mlp, which takes units as they are, got 'position'"),
    (("model.name=unit_mlp", "disguise.scheme=aes", "disguise.block_size=4", "augment.mixup=1"),
     "config.augment.mixup must be 0 with unit_mlp, which takes units as they are, got 1.0"),
  ],
)  # fmt: skip
def test_networks_that_do_not_fit_are_one_line_and_exit_2(capsys, tmp_path, flags, words):
  code, line = _refused(
    capsys, *(f"--config.{flag}" for flag in flags), f"--workdir={tmp_path / 'run'}"
  )
  assert code == 2
  assert words in line
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("x = 1\n", "must define get_config()"),
    ("def get_config():\n  return {}\n", "must return an ml_collections.ConfigDict, got dict"),
    ("def get_config(:\n", "SyntaxError"),
    ("import ml_collections\ndef get_config():\n  return ml_collections.ConfigDict({'sed': 1})\n",
     "unknown config field 'config.sed'. Did you mean 'config.seed'?"),
    ("import ml_collections\ndef get_config():\n  return ml_collections.ConfigDict({'seed': 1})\n",
     "config lacks the field"),
  ],
)  # fmt: skip
def test_bad_config_files_are_one_line_and_exit_2(capsys, tmp_path, text, words):
  path = tmp_path / "mine.py"
  path.write_text(text)
  code, line = _refused(capsys, f"--config={path}")
  assert code == 2
  assert words in line


def test_a_config_of_one_s_own_is_taken_by_path(capsys, tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "from configs import digits_rmt\ndef get_config():\n  c = digits_rmt.get_config()\n  c.seed = 41\n  return c\n"
  )
  assert cli.main([f"--config={path}", "--config.train.epochs", "9", "--help"]) == 0
  out = capsys.readouterr().out
  assert "--config.seed=41" in out and "--config.train.epochs=9" in out


def test_help_lists_every_field(capsys):
  assert cli.main(["--help"]) == 0
  out = capsys.readouterr().out
  for name, value in config_lib.leaves(config_lib.load("digits_rmt")):
    assert f"--config.{name}={value!r}" in out


def test_values_of_another_type_are_refused_in_notebooks_too():
  config = config_lib.load("digits_rmt")
  config.disguise.noise_level = 25.0
  with config.ignore_type():
    config.disguise.noise_level = "25"
  with pytest.raises(
    ConfigError, match=r"config.disguise.noise_level must be a number .* got '25'"
  ):
    config_lib.check(config)


def test_fields_survive_json():
  config = config_lib.load("mnist_rmt")
  assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


def test_a_source_that_is_not_there_exits_4(capsys, tmp_path):
  code, line = _refused(
    capsys,
    "--config=mnist_rmt",
    f"--config.data.data_dir={tmp_path}",
    f"--workdir={tmp_path / 'run'}",
  )
  assert code == 4
  assert "python -m djax prepare mnist" in line


def test_a_key_that_is_not_there_exits_3(capsys, tmp_path):
  code, line = _refused(capsys, f"--key={tmp_path / 'no.key'}", f"--workdir={tmp_path / 'run'}")
  assert code == 3
  assert "no.key" in line


def test_a_key_for_plain_images_is_refused(capsys, tmp_path):
  code, line = _refused(capsys, "--config=digits_plain", f"--key={tmp_path / 'any.key'}")
  assert code == 2
  assert "--key needs a disguise, got config.disguise.scheme=plain" in line


def test_a_key_for_an_outsourced_set_is_refused(capsys, tmp_path):
  code, line = _refused(capsys, "--config=outsourced", f"--key={tmp_path / 'any.key'}")
  assert code == 2
  assert "--key must be left out with config.data.disguised_dir" in line


def test_outsourced_differs_from_mnist_rmt_in_where_images_come_from_and_the_network():
  ours, theirs = (dict(config_lib.leaves(config_lib.load(k))) for k in ("outsourced", "mnist_rmt"))
  changed = {k for k in ours if ours[k] != theirs[k]}
  assert changed >= {"data.disguised_dir", "disguise.scheme"}
  assert {k.partition(".")[0] for k in changed - {"model.name"}} == {"data", "disguise", "augment"}
  assert ours["augment.views"] == 1  # views are made by the owner


def test_a_twin_differs_in_the_disguise_and_what_needs_one():
  config = config_lib.load("digits_rmt")
  config.model.update(name="vit", stem="position", stem_rank=2, stem_mixing=True)
  config.disguise.update(block_size=4, experiment_seed=3)
  config.augment.cutout = 0.1
  plain = config_lib.twin(config)
  config_lib.check(plain)
  assert plain.disguise.scheme == "plain" and plain.disguise.experiment_seed == 0
  assert plain.model.stem == "none" and plain.model.patch == 4 and plain.disguise.block_size == 4
  assert config.disguise.scheme == "rmt" and config.model.stem == "position"
  ours, theirs = dict(config_lib.leaves(config)), dict(config_lib.leaves(plain))
  changed = {k for k in ours if ours[k] != theirs[k]}
  assert {k.partition(".")[0] for k in changed} == {"disguise", "model"}
  assert {k for k in changed if k.startswith("model")} == {
    "model.stem", "model.stem_rank", "model.stem_mixing", "model.patch"
  }  # fmt: skip
  config.model.update(name="unit_mlp", stem="none")
  assert config_lib.twin(config).model.name == "mlp"
  config.data.disguised_dir = "somewhere"
  with pytest.raises(ConfigError, match=r"disguised_dir must be empty for a plain twin"):
    config_lib.twin(config)


@pytest.mark.parametrize(
  ("disguise", "shape", "name"),
  [
    ({"scheme": "rmt", "block_size": 2}, (8, 8, 1), "mlp"),
    ({"scheme": "permutation", "block_size": 4}, (32, 32, 1), "mlp"),
    ({"scheme": "rmt", "block_size": 4}, (32, 32, 3), "cnn"),
    ({"scheme": "aes", "block_size": 4}, (8, 8, 1), "unit_mlp"),
    ({"scheme": "aes", "block_size": 4}, (32, 32, 3), "unit_mlp"),
    ({"scheme": "aes", "block_size": 4, "unit_pixels": 1}, (32, 32, 3), "unit_mlp"),
  ],
)
def test_the_disguise_chooses_a_network_only_where_it_is_asked_to(disguise, shape, name):
  spec = schemes.from_spec({**disguise, "image_shape": list(shape)}).spec.to_dict()
  config = config_lib.load("outsourced")
  assert config.model.name == config_lib.AUTO
  named = config_lib.with_network(config, spec, shape)
  assert (named.model.name, config.model.name) == (name, config_lib.AUTO)
  models.create(named.model, classes=10, spec=spec)
  assert config_lib.with_network(named, spec, shape) is named
