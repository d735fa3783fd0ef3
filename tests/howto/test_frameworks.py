"""The scripts of docs/howto: run by their own usage lines where djax cannot be imported, their answers read by djax."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.digits import MASTER, RMT, write
from helpers.fresh import ROOT
from helpers.verbs import environment

from djax import sources
from djax.disguised import directory, manifest
from djax.owner import query, restore

FOLDER = ROOT / "docs" / "howto"
FRAMEWORKS = {
  "train_keras": ["keras"],
  "train_numpy": ["numpy"],
  "train_pytorch": ["torch", "torchvision"],
  "train_scikit_learn": ["sklearn"],
}
SPLITS = {"train": "train[:800]", "test": "test[:50]"}
WITHOUT_DJAX = (
  "import runpy, sys; sys.modules['djax'] = sys.modules['train'] = None; "
  "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A data set in ``disguised`` and a request in ``ask``, in bytes with a quantiser; 40 images are asked about."""
  path = tmp_path_factory.mktemp("howto")
  write(path / "disguised", splits=SPLITS, dtype="uint8")
  ask(path / "disguised", path / "ask")
  return path


def ask(data, folder, master=MASTER):
  images = sources.load("digits", "test[:40]").images
  asked = query.Query(images, tuple(f"{i}.png" for i in range(40)))
  return query.request(asked, manifest.read(data), master, folder)


def right(folder, answers):
  """Returns how many of the images a read answer has right."""
  classes = sources.load("digits", "test[:40]").labels
  rows = query.answers(folder, answers, MASTER).rows
  return sum(row.name == str(label) for row, label in zip(rows, classes, strict=True))


def commands(name):
  """Returns what a script's docstring says to run."""
  return re.findall(rf"^python ({name}\.py .*)$", (FOLDER / f"{name}.py").read_text(), re.MULTILINE)


def run(command, place):
  script, *words = shlex.split(command)
  return subprocess.run(
    [sys.executable, "-c", WITHOUT_DJAX, str(FOLDER / script), *words],
    cwd=place,
    env=environment(PYTHONPATH="", OMP_NUM_THREADS="1"),
    capture_output=True,
    text=True,
  )


def skip_without(name):
  missing = [package for package in FRAMEWORKS[name] if find_spec(package) is None]
  if missing:
    pytest.skip(f"needs {' and '.join(missing)}, which djax does not install")


def test_there_is_a_page_for_each_script_and_it_shows_the_whole():
  assert sorted(FRAMEWORKS) == sorted(path.stem for path in FOLDER.glob("*.py"))
  for name in FRAMEWORKS:
    page = (FOLDER / f"{name.removeprefix('train_')}.md").read_text()
    assert f"```{{literalinclude}} {name}.py\n:language: python\n```" in page
    for command in commands(name):
      assert f"\npython {command}\n" in page


@pytest.mark.parametrize(
  "name",
  [
    "train_numpy",
    *(pytest.param(n, marks=pytest.mark.slow) for n in sorted(FRAMEWORKS) if n != "train_numpy"),
  ],
)
def test_a_script_trains_without_djax_and_its_answers_come_back(place, name):
  skip_without(name)
  train, answer = commands(name)
  done = run(train, place)
  assert done.returncode == 0, done.stderr
  accuracy = float(re.search(r"^test accuracy (\S+) of 50 images$", done.stdout, re.MULTILINE)[1])
  assert accuracy >= 0.8
  done = run(answer, place)
  assert done.returncode == 0, done.stderr
  try:
    assert right(place / "ask", place / "answers.json") >= 32
  finally:
    (place / "answers.json").unlink()


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("name", ["train_numpy", "train_scikit_learn"])
def test_a_script_reads_what_djax_reads(tmp_path, name, dtype):
  write(tmp_path / "data", dtype=dtype)
  images, labels = runpy.run_path(str(FOLDER / f"{name}.py"))["read"](tmp_path / "data", "train")
  with directory.open(tmp_path / "data") as data:
    assert data.splits["train"].shards == 4
    stored, ids = data.splits["train"].read(np.arange(128))
    want = restore.values(stored, data.manifest) if name == "train_numpy" else stored
  assert images.dtype == np.float32
  np.testing.assert_array_equal(images.reshape(want.shape), want.astype(np.float32))
  np.testing.assert_array_equal(labels, ids)


@pytest.mark.parametrize("form", ["shards", "folder"])
def test_the_data_set_of_pytorch_reads_what_djax_reads(tmp_path, form):
  skip_without("train_pytorch")
  write(tmp_path / "data", dtype="uint8", format=form)
  data = runpy.run_path(str(FOLDER / "train_pytorch.py"))["Disguised"](tmp_path / "data", "test")
  places = {n: n for n in range(50)}
  if form == "folder":  # class by class
    places = {n: int(Path(path).stem) for n, (path, _) in enumerate(data.source.samples)}
  assert len(data) == len(places) == 50
  with directory.open(tmp_path / "data") as disguised:
    stored, labels = disguised.splits["test"].read(np.arange(50))
    images = restore.values(stored, disguised.manifest)
  for number, place in places.items():
    image, label = data[number]
    np.testing.assert_array_equal(image.numpy(), images[place].transpose(2, 0, 1))
    assert label == labels[place]


def test_numpy_notices_a_damaged_file(tmp_path):
  write(tmp_path / "data")
  (path,) = (tmp_path / "data").glob("*test*-00000-*")
  data = bytearray(path.read_bytes())
  data[500] ^= 1
  path.write_bytes(data)
  with pytest.raises(SystemExit, match=f"{path.name} is damaged"):
    runpy.run_path(str(FOLDER / "train_numpy.py"))["read"](tmp_path / "data", "test")


def test_scikit_learn_answers_with_a_column_for_a_class_it_never_saw(tmp_path):
  write(tmp_path / "data", splits={"train": "train[:6]", "test": "test[:50]"})
  ask(tmp_path / "data", tmp_path / "ask")
  script = runpy.run_path(str(FOLDER / "train_scikit_learn.py"))
  files = ("data", "model", "request", "answers")
  args = SimpleNamespace(
    **dict(zip(files, (str(tmp_path / n) for n in ("data", "model", "ask", "out")), strict=True))
  )
  script["train"](args)
  script["answer"](args)
  seen = set(sources.load("digits", "train[:6]").labels.tolist())
  assert 1 < len(seen) < 10
  rows = query.answers(tmp_path / "ask", tmp_path / "out", MASTER).rows
  assert {int(row.name) for row in rows} <= seen
  assert np.shape(json.loads((tmp_path / "out").read_text())["probabilities"]) == (40, 10)


def test_a_request_of_another_data_set_is_refused(tmp_path, place):
  write(tmp_path / "other", disguise={**RMT, "noise_level": 20.0})
  ask(tmp_path / "other", tmp_path / "ask")
  done = run(f"train_numpy.py answer disguised model.npz {tmp_path / 'ask'} out.json", place)
  assert done.returncode == 1 and not (place / "out.json").exists()
  ids = [manifest.read(path).id for path in (place / "disguised", tmp_path / "other")]
  assert done.stderr == f"{tmp_path / 'ask'} must ask about the data set {ids[0]}, got {ids[1]}.\n"
