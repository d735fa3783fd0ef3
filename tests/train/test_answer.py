"""The cloud's side of a question: what a trained network answers, and which requests it refuses."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers.digits import MASTER, RMT, write
from helpers.training import config_for, params

import train
from djax import keys, models, sources
from djax.disguised import directory, manifest
from djax.errors import ConfigError
from djax.models import predict
from djax.owner import query, record_noise
from train import answer
from train.__main__ import main as train_main

ID = "a5" * 16


def request(data, folder, master=MASTER):
  """Asks about 13 images, of a network trained on a data set."""
  images = sources.load("digits", "test[:13]").images
  asked = query.Query(images, tuple(f"{number}.png" for number in range(13)))
  return query.request(asked, manifest.read(data), master, folder)


def by_image(run, folder):
  """Returns the answer to a request in the order of the images that were asked about."""
  order = record_noise.of(manifest.read(folder), MASTER).order("query", 13, 1)
  return np.asarray(answer.answer(run, folder)["probabilities"])[np.argsort(order)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A trained run in ``run``, a request in ``request``, the data it was trained on in ``data``."""
  path = tmp_path_factory.mktemp("answer")
  write(path / "data", dataset_id=ID)
  request(path / "data", path / "request")
  train.run(config_for(path / "data"), path / "run")
  return path


def ask(capsys, *argv):
  """Returns exit code and the last line on stderr."""
  code = answer.main([str(word) for word in argv])
  captured = capsys.readouterr()
  assert captured.out == ""
  return code, captured.err.splitlines()[-1]


def by_hand(workdir, images):
  """Classifies images one by one from the parameters on disk."""
  config = config_for(workdir)
  spec = json.loads((workdir / "disguise.json").read_text())["spec"]
  model = models.create(config.model, classes=10, spec=spec)
  _, state = params(workdir)
  variables = {"params": state["params"], "batch_stats": state["batch_stats"]}
  rows = []
  for image in images:
    x = (image - state["mean"]) / state["scale"]
    logits = np.asarray(model.apply(variables, x[None], train=False), np.float64)[0]
    rows.append(np.exp(logits) / np.exp(logits).sum())
  return np.array(rows)


@pytest.mark.slow
def test_an_answer_is_what_the_network_says_image_by_image(tmp_path, capsys, monkeypatch, place):
  monkeypatch.setattr(answer, "_BATCH", 5)
  out = tmp_path / "answers.json"
  code, line = ask(capsys, place / "run", place / "request", "--out", out)
  assert code == 0 and line == f"answered 13 images: {out}"
  found = json.loads(out.read_text())
  assert set(found) == {"format", "version", "request", "run", "probabilities"}
  assert found["format"] == "djax-answers" and found["version"] == 1
  assert found["request"] == manifest.read(place / "request").sha256
  assert found["run"]["model"]["name"] == "mlp" and found["run"]["step"] == 8
  assert found["run"]["key_fingerprint"] == MASTER.fingerprint
  images, _ = directory.open(place / "request").splits["query"].read(np.arange(13))
  want = by_hand(place / "run", images)
  assert np.abs(np.asarray(found["probabilities"]) - want).max() < 1e-5
  assert np.ptp(want, axis=0).max() > 0.01  # not one answer for all
  assert list(tmp_path.iterdir()) == [out]
  assert str(place) not in out.read_text()


def test_a_request_in_bytes_is_dequantised_first(tmp_path, place):
  write(tmp_path / "data", dtype="uint8", dataset_id=ID)
  request(tmp_path / "data", tmp_path / "bytes")
  assert manifest.read(tmp_path / "bytes").quantiser is not None
  exact, near = (by_image(place / "run", path) for path in (place / "request", tmp_path / "bytes"))
  assert 0 < np.abs(exact - near).max() < 0.03


def test_the_predictor_scores_the_test_set_as_the_run_did(place):
  predictor = predict.load(place / "run")
  images, labels = directory.open(place / "data").splits["test"].read(np.arange(50))
  found = predictor.probabilities(images, 7)
  assert found.dtype == np.float32 and found.shape == (50, predictor.classes) == (50, 10)
  np.testing.assert_allclose(found, predictor.probabilities(images, 50), atol=1e-5)
  np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
  result = json.loads((place / "run" / "result.json").read_text())
  assert np.mean(found.argmax(axis=1) == labels) == result["test_accuracy"]
  assert predictor.probabilities(images[:0], 7).shape == (0, 10)
  with pytest.raises(ConfigError, match=r"images must be \[n, 8, 8, 1\] as in the run, got"):
    predictor.probabilities(np.zeros((2, 8, 6, 1), np.float32), 2)


def test_loading_a_run_changes_nothing_in_it(place):
  def content():
    return {p: p.stat().st_mtime_ns for p in (place / "run").rglob("*")}

  before = content()
  predict.load(place / "run")
  assert content() == before


@pytest.mark.parametrize(
  ("options", "code", "words"),
  [
    ({"master": keys.experiment(4)}, 3, "must be disguised with the key of"),
    ({"disguise": {**RMT, "noise_level": 20.0}}, 2, "noise_level 25.0, got 20.0"),
    ({"disguise": {"scheme": "permutation", "block_size": 2}}, 2, "scheme 'rmt', got 'permutation'"),
  ],
)  # fmt: skip
def test_other_requests_are_refused(tmp_path, capsys, place, options, code, words):
  write(tmp_path / "data", **options)
  request(tmp_path / "data", tmp_path / "request", options.get("master", MASTER))
  got, line = ask(capsys, place / "run", tmp_path / "request", "--out", tmp_path / "a.json")
  assert got == code and line.startswith("error: ") and words in line
  assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "request"]


def test_a_data_set_is_no_request(tmp_path, capsys, place):
  code, line = ask(capsys, place / "run", place / "data", "--out", tmp_path / "a.json")
  assert code == 4 and "with the single split query, got" in line
  assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, capsys, place):
  out = tmp_path / "answers.json"
  out.write_text("precious")
  code, line = ask(capsys, place / "run", place / "request", "--out", out)
  assert code == 5 and "is not overwritten" in line
  assert out.read_text() == "precious" and list(tmp_path.iterdir()) == [out]


def test_an_answer_that_appears_meanwhile_is_not_overwritten(tmp_path, capsys, monkeypatch, place):
  out, real = tmp_path / "answers.json", answer.answer

  def slow(*args):
    out.write_text("precious")
    return real(*args)

  monkeypatch.setattr(answer, "answer", slow)
  assert ask(capsys, place / "run", place / "request", "--out", out)[0] == 5
  assert out.read_text() == "precious" and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["answers.json", ".answers.json.djax-partial", "answers.json.tmp"])
def test_an_answer_follows_no_link(tmp_path, capsys, place, name):
  (tmp_path / "out").mkdir()
  (tmp_path / "precious").write_text("precious")
  (tmp_path / "out" / name).symlink_to(tmp_path / "precious")
  out = tmp_path / "out" / "answers.json"
  code, _ = ask(capsys, place / "run", place / "request", "--out", out)
  assert (tmp_path / "precious").read_text() == "precious"
  assert (tmp_path / "out" / name).is_symlink()
  assert code == (0 if name.endswith("json.tmp") else 5)


def test_an_answer_is_private(tmp_path, capsys, place):
  assert ask(capsys, place / "run", place / "request", "--out", tmp_path / "a.json")[0] == 0
  assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys, place):
  code, line = ask(capsys, place / "run", place / "request", "--out", tmp_path / "no" / "a.json")
  assert code == 1 and f"{tmp_path / 'no'}: no such folder. Make it" in line


def test_what_is_no_run_is_refused(tmp_path, capsys, place):
  code, line = ask(capsys, tmp_path, place / "request", "--out", tmp_path / "a.json")
  assert code == 2 and "must be a run directory with config.json and disguise.json" in line
  for name in ("config.json", "disguise.json"):
    shutil.copy(place / "run" / name, tmp_path / name)
  code, line = ask(capsys, tmp_path, place / "request", "--out", tmp_path / "a.json")
  assert code == 2 and "must hold a checkpoint, it has none yet" in line
  code, line = ask(capsys, place / "run", tmp_path, "--out", tmp_path / "a.json")
  assert code == 4 and "MANIFEST.json must exist" in line


@pytest.mark.parametrize(
  ("argv", "words"),
  [
    ([], "RUN, REQUEST"),
    (["run", "request"], "--out"),
    (["run", "request", "--out"], "expected one argument"),
    (["run", "request", "more", "--out", "x"], "unrecognized arguments: more"),
    (["run", "request", "--ou", "x"], "--out"),
  ],
)
def test_bad_flags_are_one_line_and_exit_2(capsys, argv, words):
  code, line = ask(capsys, *argv)
  assert code == 2 and line.startswith("error: ") and words in line


def test_help_is_there(capsys):
  assert answer.main(["--help"]) == 0
  assert "RUN REQUEST" in capsys.readouterr().out


@pytest.mark.slow
def test_a_plain_run_answers_nobody(tmp_path, capsys, place):
  flags = [
    "--config=digits_plain",
    "--config.data.train_split=train[:32]",
    "--config.train.epochs=1",
  ]
  flags += [
    "--config.train.batch_size=32",
    "--config.model.width=1",
    f"--workdir={tmp_path / 'run'}",
  ]
  assert train_main(flags) == 0
  capsys.readouterr()
  code, line = ask(capsys, tmp_path / "run", place / "request", "--out", tmp_path / "a.json")
  assert code == 3 and "None" in line


@pytest.mark.slow
def test_a_run_with_the_key_at_hand_answers_too(tmp_path, place):
  owner = keys.Master(bytes(range(32)))
  write(tmp_path / "data", master=owner, dataset_id=ID)
  request(tmp_path / "data", tmp_path / "request", owner)
  config = config_for("", "disguise.scheme=rmt", "disguise.noise_level=25", "train.epochs=1")
  config.data.train_split, config.data.test_split = "train[:128]", "test[:50]"
  config.disguise.dataset_id = ID
  train.run(config, tmp_path / "run", master=owner)
  found = answer.answer(tmp_path / "run", tmp_path / "request")
  assert np.asarray(found["probabilities"]).shape == (13, 10)
  assert jax.device_count() == 2  # saved from two devices, loaded to one
  # With an id of its own it has other matrices, and its answers would mean nothing.
  config.disguise.dataset_id = ""
  train.run(config, tmp_path / "other", master=owner)
  with pytest.raises(ConfigError, match=f"must belong to the data set .*got {ID}"):
    answer.answer(tmp_path / "other", tmp_path / "request")
