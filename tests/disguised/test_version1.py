"""Directories of version 1, made by djax 0.1.0 before there was a version 2: readable for ever.

``vectors/disguised-v1.tar.xz`` was made with the master 00..1f from the digits ``train[:24]`` and ``test[:6]``; its
``request`` asks about ``test[:3]``, of a network trained on ``rmt-float32-noise-views``.
"""

import json
import shutil
import tarfile

import numpy as np
import pytest
from helpers.fresh import ROOT

from djax import keys, sources
from djax.audit import exported, scenario
from djax.cli import main as owner_cli
from djax.disguised import directory, manifest
from djax.errors import ConfigError, DataError, KeyMismatchError, ManifestError, UnsafeError
from djax.keys import keyfile
from djax.owner import canaries, export, query, record_noise, restore, sealed_metadata
from djax.owner.ledger import Ledger
from djax.owner.plan import Request

ARCHIVE = ROOT / "tests" / "vectors" / "disguised-v1.tar.xz"
MASTER = keys.Master(bytes(range(32)))
SPLITS = {"train": "train[:24]", "test": "test[:6]"}
# By name: how far restored pixels may be from the originals, rounded.
SETS = {
  "aes": 0,
  "permutation-plain-labels": 0,
  "rmt-float16-block": 0,
  "rmt-float32-noise-views": 13,
  "rmt-uint8-projection": 5,
}
FIELDS = {
  *(
    "format",
    "version",
    "djax",
    "expansion",
    "key_fingerprint",
    "spec",
    "disguised_shape",
    "dtype",
  ),
  *("quantiser", "error", "source", "classes", "class_names", "labels", "views", "splits"),
  *("files", "warnings", "sealed"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("v1")
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(folder, filter="data")
  return folder / "disguised-v1"


def test_the_archive_holds_what_is_tested(place):
  assert sorted(path.name for path in place.iterdir()) == sorted([*SETS, "request"])
  facts = [manifest.read(path) for path in place.iterdir()]
  assert {one.dtype for one in facts} == {"float32", "float16", "uint8"}
  assert {one.spec["scheme"] for one in facts} == {"aes", "permutation", "rmt"}


@pytest.mark.parametrize("name", [*SETS, "request"])
def test_it_verifies_with_its_key_and_no_other(place, name):
  role = "request" if name == "request" else "dataset"
  facts = restore.authenticated(place / name, MASTER, role=role)
  assert (facts.version, facts.expansion, facts.role) == (1, "djx1", role)
  assert facts.id == "" and facts.request is None and facts.views["together"] is True
  assert directory.verify(place / name).sha256 == facts.sha256
  assert set(facts.to_dict()) == FIELDS == set(json.loads(facts.raw))
  assert facts.to_dict() == json.loads(facts.raw) | {
    # Python's own types come back as JSON's.
    n: facts.to_dict()[n]
    for n in ("disguised_shape", "warnings", "class_names", "splits")
  }
  with pytest.raises(KeyMismatchError):
    restore.authenticated(place / name, keys.Master(bytes(32)), role=role)
  other = "dataset" if role == "request" else "request"
  with pytest.raises(ManifestError, match=f"must be a {other}, is a {role}"):
    restore.authenticated(place / name, MASTER, role=other)


def test_a_manifest_of_version_1_is_no_forgery_of_version_2(place, tmp_path):
  """Who knows the MAC key of version 1 alone cannot write version 2: the role would be anyone's to choose."""
  shutil.copytree(place / "aes", tmp_path / "set")
  facts = manifest.read(tmp_path / "set")
  (tmp_path / "set" / manifest.UNFINISHED).mkdir()
  later = json.loads(facts.raw)
  later |= {"version": 2, "expansion": "djx2", "id": "0" * 32, "role": "dataset", "request": None}
  later["views"]["together"] = True
  forged = manifest.Manifest(
    **{
      **{name: getattr(facts, name) for name in manifest.Manifest.__dataclass_fields__},
      **{"version": 2, "expansion": "djx2", "id": "0" * 32},
    }
  )
  manifest.write(tmp_path / "set", forged, mac_key=MASTER.subkey("manifest"))
  assert manifest.read(tmp_path / "set").version == 2
  with pytest.raises(ManifestError, match="was not written with this key"):
    restore.authenticated(tmp_path / "set", MASTER)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.slow
def test_the_right_originals_come_back(place, tmp_path, name):
  data = directory.open(place / name)
  restore.to_files(data, MASTER, tmp_path / "back.npz")
  restore.to_files(data, MASTER, tmp_path / "back")
  for split, part in SPLITS.items():
    was, back = sources.load("digits", part), sources.load(str(tmp_path / "back.npz"), split)
    off = np.abs(back.images.astype(int) - was.images).max()
    assert off <= SETS[name] and (off > 0) == (SETS[name] > 0)
    np.testing.assert_array_equal(back.labels, was.labels)
    assert back.class_names == was.class_names
    pieces = list(restore.originals(data, MASTER, split, chunk=1000))
    np.testing.assert_array_equal(
      np.concatenate([piece.indices for piece in pieces]), np.arange(len(was.labels))
    )
  assert len(list((tmp_path / "back").rglob("*.png"))) == 30


def test_records_hold_what_the_old_derivation_draws(place):
  """Noise of views, block order and label permutation, from the rules of version 1 and the originals."""
  from djax.owner.disguiser import Disguiser

  data = directory.open(place / "rmt-float32-noise-views")
  facts = data.manifest
  of = record_noise.of(facts, MASTER)
  tool = Disguiser(facts.spec, of)
  was = sources.load("digits", "train[:24]")
  images, labels = data.splits["train"].read(np.arange(48))
  for view in (0, 1):
    made = tool.images(was.images, "train", range(24), view=view, crop=1, flip=True)
    np.testing.assert_array_equal(images[view::2], made)
    np.testing.assert_array_equal(labels[view::2], of.labels(10)[was.labels])


# Questions.


def asked(place, name, folder, **options):
  facts = restore.authenticated(place / name, MASTER)
  images = query.Query(sources.load("digits", "test[:3]").images, ("a.png", "b.png", "c.png"))
  return query.request(images, facts, MASTER, folder, **options)


def test_a_request_is_of_version_1_and_the_same_as_then(place, tmp_path):
  """Field by field and byte by byte what djax 0.1.0 wrote, so what reads that reads this."""
  written, cut = asked(place, "rmt-float32-noise-views", tmp_path / "request")
  assert (written.version, written.role, cut) == (1, "request", 0)
  old, new = (
    json.loads((x / manifest.FILE).read_bytes()) for x in (place / "request", tmp_path / "request")
  )
  assert set(new) == FIELDS
  differ = {name for name in FIELDS if old[name] != new[name]}
  assert differ <= {"djax", "files"}  # the data card may be worded otherwise by now
  assert list(new["views"]) == ["count", "crop", "flip"]
  for name in ("disguised-query.array_record-00000-of-00001", "features.json", "dataset_info.json"):
    assert (tmp_path / "request" / name).read_bytes() == (place / "request" / name).read_bytes()


@pytest.mark.parametrize("name", SETS)
def test_every_set_can_be_queried_and_answers_are_read(place, tmp_path, name):
  written, _ = asked(place, name, tmp_path / "request")
  images, _ = directory.open(tmp_path / "request").splits["query"].read(np.arange(3))
  known, ids = directory.open(place / name).splits["test"].read(np.arange(3))
  # Without noise, images that are in the set look as they do there: a network would know them.
  assert np.array_equal(images, known) == (name != "rmt-float32-noise-views")
  rows = np.full((3, 10), 0.05)
  rows[np.arange(3), ids] = 0.55
  content = {"format": "djax-answers", "version": 1, "request": written.sha256, "run": {}}
  (tmp_path / "a.json").write_text(json.dumps({**content, "probabilities": rows.tolist()}))
  found = query.answers(tmp_path / "request", tmp_path / "a.json", MASTER)
  labels = sources.load("digits", "test[:3]").labels
  assert [row.name for row in found.rows] == [str(label) for label in labels]
  assert [row.file for row in found.rows] == ["a.png", "b.png", "c.png"]


def test_answers_to_the_request_of_the_archive_are_read(place, tmp_path):
  facts = manifest.read(place / "request")
  assert set(sealed_metadata.box_of(facts, MASTER).unseal(facts.sealed)) == {"class_names", "names"}
  label_of = record_noise.of(facts, MASTER).labels(10)
  rows = np.eye(10)[label_of[sources.load("digits", "test[:3]").labels]]
  content = {"format": "djax-answers", "version": 1, "request": facts.sha256, "run": {}}
  (tmp_path / "a.json").write_text(json.dumps({**content, "probabilities": rows.tolist()}))
  found = query.answers(place / "request", tmp_path / "a.json", MASTER)
  labels = sources.load("digits", "test[:3]").labels
  assert [(r.file, r.name) for r in found.rows] == [
    (f"{name}.png", str(label)) for name, label in zip("abc", labels, strict=True)
  ]


def test_nothing_is_planted_in_a_request_that_keeps_its_order(place, tmp_path):
  """The planted images would be the last ones, in plain sight."""
  some = sources.load("digits", "test[:40]")
  planted = canaries.Canaries(some.images, some.labels)
  with pytest.raises(ConfigError, match="canaries need a data set of format version 2"):
    asked(place, "aes", tmp_path / "request", canaries=planted)
  assert not (tmp_path / "request").exists()


# Others that read it.


@pytest.mark.parametrize("name", SETS)
@pytest.mark.slow
def test_audit_takes_it(place, monkeypatch, name):
  monkeypatch.setattr(scenario, "_LEAST_TARGETS", 1)
  sizes = scenario.Sizes(private=16, public=8, targets=3, pairs=(2,))
  found = exported.from_directory(
    str(place / name), "digits", MASTER, seed=0, sizes=sizes, splits=SPLITS
  )
  assert len(found.private) == len(found.disguised) == 16
  # Each disguised image is that of its original: undone with the key, it is near.
  data = directory.open(place / name)
  from djax.owner.disguiser import Disguiser

  tool = Disguiser(data.manifest.spec, record_noise.of(data.manifest, MASTER))
  off = np.abs(tool.restored(found.disguised).astype(float) - found.private)
  assert off.max() <= max(SETS[name], 0.5) + 0.5


def test_disguise_does_not_write_over_it(place, tmp_path):
  shutil.copytree(place / "aes", tmp_path / "set")
  request = Request("digits", {"scheme": "aes", "block_size": 4}, SPLITS)
  with pytest.raises(UnsafeError, match=r"made otherwise \(version"):
    export.disguise(request, tmp_path / "set", MASTER)
  directory.verify(tmp_path / "set")


def test_a_ledger_does_not_know_it(place, tmp_path):
  facts = restore.authenticated(place / "aes", MASTER)
  ledger = Ledger(tmp_path / "k.ledger")
  assert ledger.standing(facts).known is None
  request = Request("digits", {"scheme": "aes", "block_size": 4}, SPLITS)
  export.disguise(request, tmp_path / "set", MASTER, ledger=ledger)
  assert ledger.standing(facts).known is False


def test_verify_and_restore_say_what_it_lacks(place, tmp_path, capsys):
  keyfile.write(tmp_path / "k", MASTER, passphrase=None)
  assert owner_cli.main(["verify", str(place / "aes"), "--key", str(tmp_path / "k")]) == 0
  captured = capsys.readouterr()
  assert "authenticated" in captured.out
  assert captured.out.count("format version 1: its matrices and orders") == 1
  where = ["--key", str(tmp_path / "k"), "--out", str(tmp_path / "back.npz")]
  assert owner_cli.main(["restore", str(place / "aes"), *where]) == 0
  assert capsys.readouterr().err.count("format version 1: its matrices and orders") == 1


def test_a_record_changed_in_it_is_refused(place, tmp_path):
  shutil.copytree(place / "aes", tmp_path / "set")
  shard = next((tmp_path / "set").glob("*train*"))
  content = bytearray(shard.read_bytes())
  content[len(content) // 2] ^= 1
  shard.write_bytes(content)
  with pytest.raises(DataError, match="is damaged"):
    restore.to_files(directory.open(tmp_path / "set"), MASTER, tmp_path / "back.npz")
