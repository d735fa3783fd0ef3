"""A scheme, an attack, a network and a source of somebody else: one object each, and everything works with it."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.audits import nearest_mean, restored

from configs import base
from djax import models, schemes, sources
from djax.attacks import ATTACKS
from djax.attacks.base import Attack, Estimate
from djax.audit import runner
from djax.bench import disguises
from djax.cli.main import main
from djax.disguised import directory
from djax.errors import ConfigError
from djax.ops import blocks
from djax.schemes import base as contract
from djax.schemes.base import BLOCK_SIZE, Kind, Option, Scheme, SchemeSpec, Trait
from train.__main__ import main as train_main

SPLITS = ("--train-split", "train[:200]", "--test-split", "test[:40]")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pad:
  """The key of the toy: a byte for each block position."""

  pads: Any
  perm: Any = None


def xor_scheme(
  image_shape,
  *,
  block_size: Annotated[int, BLOCK_SIZE],
  flips: Annotated[int, Option("bits that may change", most=255, letter="F")] = 255,
):
  """Changes the bits of every pixel by the secret byte of its block."""
  shape, disguised_shape, positions = contract.geometry(image_shape, block_size)

  def make_key(read):
    return Pad(np.frombuffer(read("xor", positions), np.uint8) & np.uint8(flips))

  def changed(key, cut):
    return cut ^ jnp.asarray(key.pads).reshape(
      -1, *[1] * (cut.ndim - cut.shape.index(positions) - 1)
    )

  def disguise(key, images, labels, *, rng):
    del rng
    cut = contract.to_blocks(images, shape, block_size)
    return contract.to_images(changed(key, cut), disguised_shape), labels

  def restore(key, images):
    cut = contract.to_blocks(jnp.asarray(images), disguised_shape, block_size)
    whole = contract.to_images(changed(key, cut), disguised_shape)
    return blocks.crop(whole, height=shape[0], width=shape[1])

  def export(key, images, draw):
    del draw
    contract.check_export(images, shape)
    return np.asarray(disguise(key, jnp.asarray(images), None, rng=None)[0])

  spec = SchemeSpec("xor", shape, disguised_shape, block_size, {"flips": int(flips)})
  return Scheme(spec, make_key, disguise, restore, export)


XOR = Kind(
  "xor",
  xor_scheme,
  traits=lambda spec: frozenset({Trait.BLOCKS}),
  written=True,
  takes_floats=False,
  warnings=lambda spec: ["xor: a toy."],
  benched=lambda sizes: [({"scheme": "xor", "block_size": sizes[0]}, True)],
  reference=lambda key: lambda position, block: block ^ key.pads[position],
)


@pytest.fixture
def xor(monkeypatch):
  monkeypatch.setitem(schemes.SCHEMES, "xor", XOR)


@pytest.fixture
def call(capsys):
  def call(*words):
    capsys.readouterr()
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err

  return call


@pytest.fixture
def quick(monkeypatch):
  test = sources.load("digits", "test")
  examiner = nearest_mean(test.images, test.labels)
  monkeypatch.setattr(runner, "train_examiner", lambda *_, **__: examiner)
  monkeypatch.setattr(runner.ceiling, "estimate", restored)


def test_a_scheme_is_on_the_command_line_and_in_configs(xor, call):
  with pytest.raises(SystemExit) as stop:
    call("disguise", "--help")
  assert stop.value.code == 0
  assert base.get_config().disguise.flips == 255


def test_help_names_the_options_of_a_scheme(xor, capsys):
  with pytest.raises(SystemExit):
    main(["disguise", "--help"])
  shown = " ".join(capsys.readouterr().out.split())
  assert "{rmt,aes,permutation,xor}" in shown and "--flips F" in shown
  assert "bits that may change (default 255)" in shown


def test_a_scheme_is_disguised_verified_and_restored(xor, call, tmp_path):
  key, data = tmp_path / "key", tmp_path / "data"
  assert call("keygen", key, "--no-passphrase")[0] == 0
  given = ("--source", "digits", *SPLITS, "--scheme", "xor", "--block-size", 2, "--flips", 63)
  code, _, err = call("disguise", *given, "--key", key, "--out", data)
  assert code == 0 and "warning: xor: a toy." in err
  facts = directory.open(data).manifest
  assert facts.spec["scheme"] == "xor" and facts.spec["flips"] == 63 and facts.dtype == "uint8"
  assert call("verify", data, "--key", key)[0] == 0
  assert call("inspect", data)[0] == 0
  assert call("restore", data, "--key", key, "--out", tmp_path / "back.npz")[0] == 0
  back = sources.load(str(tmp_path / "back.npz"), "train")
  true = sources.load("digits", "train[:200]")
  assert np.array_equal(back.images, true.images) and np.array_equal(back.labels, true.labels)
  read = directory.open(data).splits["train"].read(np.arange(200))[0]
  assert not np.array_equal(np.sort(read, 0), np.sort(true.images, 0))
  # Flags of another scheme are refused as everywhere, and so are its own where another one is asked for.
  for scheme, flag in (("xor", "--no-permute"), ("aes", "--flips=3")):
    words = ("--source", "digits", "--scheme", scheme, "--block-size", 4, flag)
    code, _, err = call("disguise", *words, "--key", key, "--out", tmp_path / "no")
    assert code == 2 and "Leave it out" in err


def test_a_scheme_is_audited(xor, call, quick, tmp_path):
  given = (
    "--source",
    "digits",
    "--scheme",
    "xor",
    "--block-size",
    4,
    "--attacks",
    "examiner,regression,moments",
  )
  code, out, err = call("audit", *given, "--out", tmp_path / "a")
  assert code == 0, err
  facts = json.loads((tmp_path / "a" / "audit.json").read_text())
  status = {row["name"]: row["status"] for row in facts["attacks"]}
  assert status == {"examiner": "ran", "regression": "refused", "moments": "refused"}
  assert facts["setting"]["spec"]["scheme"] == "xor" and "'xor'" in out


def test_a_scheme_is_benched(xor):
  cases = [case for case in disguises.cases(fast=True) if case.disguise["scheme"] == "xor"]
  assert cases and all(case.on_device for case in cases)
  row = disguises.measure(cases[0]._replace(batch=4), rounds=2)
  assert set(row["times"]) == {"loop", "copy"} and row["spec"]["scheme"] == "xor"


@pytest.mark.slow
def test_a_scheme_is_trained_on(xor, tmp_path, capsys):
  words = [
    "data.train_split=train[:64]",
    "data.test_split=test[:32]",
    "train.epochs=1",
    "train.batch_size=32",
  ]
  words += ["model.width=2", "disguise.scheme=xor", "disguise.flips=7"]
  flags = [f"--config.{word}" for word in words]
  assert train_main([*flags, "--workdir", str(tmp_path / "run"), "--json"]) == 0
  result = json.loads(capsys.readouterr().out)
  assert result["scheme"] == {
    "scheme": "xor",
    "image_shape": [8, 8, 1],
    "block_size": 2,
    "flips": 7,
  }
  assert train_main([*flags[:-1], "--config.disguise.flips=999"]) == 2
  assert "config.disguise.flips must be at most 255" in capsys.readouterr().err


def test_an_attack_is_on_the_command_line(call, quick, tmp_path, monkeypatch):
  def grey(known, *, seed, progress):
    return Estimate(np.full((len(known.targets), *known.spec["image_shape"]), 128, np.float32), {})

  toy = Attack("grey", 1, (), "says grey", lambda spec: None, grey)
  monkeypatch.setitem(ATTACKS, "grey", toy)
  given = ("--source", "digits", "--scheme", "rmt", "--block-size", 2, "--attacks", "grey")
  code, out, err = call("audit", *given, "--out", tmp_path / "a")
  assert code == 0, err
  assert any(line.startswith("grey ") for line in out.splitlines())


def test_a_network_is_trained_by_its_name(tmp_path, capsys, monkeypatch):
  class Linear(nn.Module):
    classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, *, train):
      return nn.Dense(self.classes)(images.reshape(len(images), -1))

  monkeypatch.setitem(models.MODELS, "linear", Linear)
  words = [
    "data.train_split=train[:64]",
    "data.test_split=test[:32]",
    "train.epochs=1",
    "train.batch_size=32",
  ]
  flags = [f"--config.{word}" for word in (*words, "model.name=linear")]
  assert train_main([*flags, "--workdir", str(tmp_path / "run"), "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["steps"] == 2


class Ramps(sources.Records):
  """A source of its own: ramps, bright or dark."""

  def __init__(self, split):
    self._count = {"train": 40, "test": 10}[split]
    super().__init__(
      self._count,
      name="ramps",
      image_shape=(4, 4, 1),
      dtype=np.uint8,
      class_names=("a", "b"),
      files={},
    )

  def _read(self, start, stop):
    numbers = np.arange(start, stop)
    images = (numbers[:, None, None, None] + np.arange(16).reshape(4, 4, 1)).astype(np.uint8)
    return sources.Images(images, (numbers % 2).astype(np.int32), ("a", "b"))

  def _take(self, rows):
    whole = self._read(0, self._count)
    return sources.Images(whole.images[rows], whole.labels[rows], whole.class_names)


RAMPS = sources.Source(
  "ramps", lambda source: source == "ramps", lambda source, split, *_: Ramps(split)
)


def test_a_source_is_disguised_by_its_name(call, tmp_path, monkeypatch):
  monkeypatch.setattr(sources, "SOURCES", (RAMPS, *sources.SOURCES))
  assert call("keygen", tmp_path / "key", "--no-passphrase")[0] == 0
  given = ("--source", "ramps", "--scheme", "aes", "--block-size", 4)
  code, _, err = call("disguise", *given, "--key", tmp_path / "key", "--out", tmp_path / "d")
  assert code == 0, err
  assert (
    call("restore", tmp_path / "d", "--key", tmp_path / "key", "--out", tmp_path / "b.npz")[0] == 0
  )
  back = sources.load(str(tmp_path / "b.npz"), "train")
  assert np.array_equal(back.images, Ramps("train").read(0, 40).images)
  with pytest.raises(ConfigError, match="for folders of images only"):
    sources.open("ramps", "train", image_size=8)


def package(folder, points, code):
  """Lays down an installed package that brings entry points."""
  facts = folder / "brought-1.0.dist-info"
  facts.mkdir()
  (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
  (facts / "entry_points.txt").write_text(points)
  (folder / "brought.py").write_text(textwrap.dedent(code))


def outcome(folder, *words):
  path = os.pathsep.join([str(folder), *sys.path])
  return subprocess.run(
    [sys.executable, "-m", "djax", *words],
    capture_output=True,
    text=True,
    timeout=120,
    env={**os.environ, "PYTHONPATH": path},
  )


@pytest.mark.slow
def test_another_package_brings_a_scheme_and_an_attack(tmp_path):
  code = """
    from djax.attacks.base import Attack
    from djax.schemes import SCHEMES
    import dataclasses
    KIND = dataclasses.replace(SCHEMES["permutation"], name="brought")
    ATTACK = Attack("asked", 1, (), "a title", lambda spec: "it takes nothing", None)
  """
  package(
    tmp_path,
    "[djax.schemes]\nbrought = brought:KIND\nrmt = brought:KIND\n[djax.attacks]\nasked = brought:ATTACK\n",
    code,
  )
  shown = outcome(tmp_path, "disguise", "--help")
  assert "{rmt,aes,permutation,brought}" in "".join(shown.stdout.split()), shown.stderr
  script = "from djax import schemes; from djax.attacks import ATTACKS; "
  script += (
    "print(schemes.SCHEMES['rmt'].name, schemes.SCHEMES['brought'].name, ATTACKS['asked'].title)"
  )
  path = os.pathsep.join([str(tmp_path), *sys.path])
  done = subprocess.run(
    [sys.executable, "-c", script],
    capture_output=True,
    text=True,
    timeout=120,
    env={**os.environ, "PYTHONPATH": path},
  )
  # What ships with djax keeps its name.
  assert done.stdout == "rmt brought a title\n", done.stderr


@pytest.mark.parametrize(
  ("code", "message"),
  [
    (
      "raise RuntimeError('no such GPU')",
      "must be importable, it is not: RuntimeError: no such GPU",
    ),
    ("KIND = 3", "must point at a thing of that name"),
  ],
)
def test_a_package_that_cannot_be_loaded_is_one_line(code, message, tmp_path):
  package(tmp_path, "[djax.schemes]\nbrought = brought:KIND\n", code)
  done = outcome(tmp_path, "disguise", "--help")
  assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
