"""``report.html`` of a run: what it shows, and that a run does not depend on it."""

import json
import re

import numpy as np
import pytest
from helpers.training import tiny

import train
from train import evaluate, page
from train.data.input_pipeline import Feed, Pipeline
from train.data.inputs import Arrays, widened
from train.loop import data_mesh


@pytest.mark.slow
def test_a_run_is_whole_without_its_page_and_makes_it_again(tmp_path, capsys, monkeypatch):
  def fall(workdir, content):
    raise RuntimeError("out of\nink")

  with monkeypatch.context() as patch:
    patch.setattr(page, "write", fall)
    result = train.run(tiny(), tmp_path)
  stored = json.loads((tmp_path / "result.json").read_text())
  assert {**stored, "workdir": str(tmp_path)} == result
  assert capsys.readouterr().err.splitlines()[-1] == (
    "report.html could not be written (RuntimeError: out of ink). The run is complete without it."
  )
  assert not (tmp_path / "report.html").exists()

  # A run that is done is tested once more, and its page made.
  assert train.run(tiny(), tmp_path)["test_loss"] == result["test_loss"]
  text = (tmp_path / "report.html").read_text()
  assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o600
  for name in ("test_accuracy", "other_key_accuracy", "plain_accuracy"):
    assert f'<td class="n">{result[name]:.2%}</td>' in text
  assert re.findall(r'<img alt="(\w+)', text) == ["originals", "disguised"]
  assert "keep it on your machine" in text and text.count("<svg") == 2
  assert "broken from the disguised images alone" in text
  assert '<th scope="row">train.batch_size</th><td>32</td>' in text
  counts = np.array(re.findall(r"--share:\d+%\">(\d+)<", text), int).reshape(10, 10)
  assert counts.sum() == 50 and np.trace(counts) == round(50 * result["test_accuracy"])


class Net:
  """Answers with the label that an image holds, plus one for the odd ones."""

  def __call__(self, state, images):
    label = np.asarray(images)[:, 0, 0, 0].astype(int)
    return np.log(np.eye(5)[(label + label % 2) % 5] + 1e-9)


def test_a_score_knows_every_record_and_none_that_fills_a_batch():
  labels = np.array([0, 1, 2, 3, 4, 1, 0], np.int32)
  feed = Feed(Arrays(labels[:, None, None, None].astype(np.uint8), labels), widened)
  mesh = data_mesh()
  pipeline = Pipeline(feed, mesh=mesh, batch_size=mesh.size)
  score = evaluate.score(Net(), None, pipeline, views=1)
  assert score.labels.tolist() == labels.tolist()
  assert score.answers.tolist() == [0, 2, 2, 4, 4, 2, 0]
  assert score.accuracy == pytest.approx(4 / 7)


def confusions(labels, answers, classes, names=None):
  score = evaluate.Score(0.0, 0.0, np.array(labels, np.int32), np.array(answers, np.int32))
  given = page.Inputs(
    None, None, spec={}, disguised_shape=(2, 2, 1), classes=classes, labels="permuted",
    key_fingerprint="x", source_sha256="", class_names=names,
  )  # fmt: skip
  return page._confusions(page.Content(None, given, {}, score, {}))


def test_a_class_without_images_has_an_empty_row():
  text = confusions([0, 0, 2], [0, 1, 2], 3)
  assert re.findall(r'">(\d+)</span>', text) == list("110000001")
  assert re.findall(r'<td class="n">([\d.%]*)</td></tr>', text) == ["50.00%", "", "100.00%"]
  assert "only the owner knows their names" in text
  named = confusions([0, 0, 2], [0, 1, 2], 3, ("cat", "<dog>", "cow"))
  assert "only the owner" not in named and named.count("&lt;dog&gt;") == 2


def test_of_many_classes_the_most_frequent_mistakes_are_shown():
  labels = [7] * 6 + [100] * 4 + [3]
  text = confusions(labels, [8, 8, 8, 7, 7, 7, 1, 1, 100, 100, 3], 1 << 16)
  rows = re.findall(r'<th scope="row">(\d+)</th><td>(\d+)</td><td class="n">(\d+)', text)
  assert rows == [("7", "8", "3"), ("100", "1", "2")]
  assert "50.0%" in text
