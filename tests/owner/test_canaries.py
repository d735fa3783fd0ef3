"""Planted queries: no place gives them away, right answers pass, and invented or exchanged ones are called out."""

import itertools
import json
import random

import numpy as np
import pytest

from djax import keys, sources
from djax.cli import main as owner_cli
from djax.disguised import directory, manifest
from djax.errors import DataError
from djax.keys import keyfile
from djax.owner import canaries, export, query, record_noise, restore, sealed_metadata
from djax.owner.canaries import Canaries
from djax.owner.plan import Request

MASTER = keys.Master(bytes(range(60, 92)))
DIGITS = sources.load("digits", "train[:40]")
OTHERS = sources.load("digits", "test")
NAMES = tuple("0123456789")


@pytest.fixture(autouse=True)
def the_same_in_every_run(monkeypatch):
  """One lie in a hundred passes by chance: ids of requests and what is planted are fixed."""
  ids = (f"{number:032x}" for number in itertools.count())
  monkeypatch.setattr(keys, "new_id", lambda: next(ids))
  draw = random.Random(0)
  monkeypatch.setattr(random, "SystemRandom", lambda: draw)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data") / "set"
  disguise = {"scheme": "rmt", "block_size": 2, "noise_level": 25.0}
  splits = {"train": "train[:80]", "test": "test[:20]"}
  request = Request("digits", disguise, splits, dataset_id="5a" * 16)
  export.disguise(request, folder, MASTER, workers=1)
  return directory.open(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """Images of known classes that are not in the training set."""
  path = tmp_path_factory.mktemp("source") / "known.npz"
  write(path, OTHERS.images, OTHERS.labels)
  return path


def write(path, images, labels, names=NAMES):
  arrays = {"train_images": images, "train_labels": labels}
  arrays |= {"test_images": images[:1], "test_labels": labels[:1]}
  np.savez(path, **arrays, class_names=list(names))


def planted(count=60):
  return Canaries(OTHERS.images[:count], OTHERS.labels[:count])


def asked(data, folder, of=None):
  """Asks about 40 images, with some planted ones; returns the manifest of the request."""
  names = tuple(f"{number}.png" for number in range(40))
  images = query.Query(DIGITS.images, names)
  facts, _ = query.request(images, data.manifest, MASTER, folder, canaries=of or planted())
  return facts


def places(facts):
  """Returns where the planted images stand: the sealed part says which images they are, the key where these are."""
  count = facts.splits["query"].records
  order = record_noise.of(facts, MASTER).order("query", count, 1)
  return np.flatnonzero(order >= 40)


def answered(facts, classes, confidence=0.55):
  """Writes the answer of a network that gives each image of the request, in its order, some class."""
  label_of = record_noise.of(facts, MASTER).labels(10)
  rows = np.full((len(classes), 10), (1 - confidence) / 9)
  rows[np.arange(len(classes)), label_of[classes]] = confidence
  head = {"format": "djax-answers", "version": 1, "request": facts.sha256, "run": {}}
  return json.dumps({**head, "probabilities": rows.tolist()})


def truth(facts, of=None):
  """Returns the class of every image of a request, in its order."""
  order = record_noise.of(facts, MASTER).order("query", facts.splits["query"].records, 1)
  return np.concatenate([DIGITS.labels, (of or planted()).labels])[order]


# Where they stand.


def spread(data, folder):
  """Returns the places of the planted images in forty requests."""
  return np.array([places(asked(data, folder / f"{n}")) for n in range(40)])


def anywhere(found):
  """Whether 60 of 100 places, in 40 requests, pass for drawn at random; falsely not, once in 10^6.

  No two are the same; the mean place and the number in the last ten places lie within five standard deviations.
  """
  if len({row.tobytes() for row in found}) < len(found):
    return False
  mean_off = abs(found.mean() - 49.5) / (np.sqrt(100 * 101 / 12 * 40 / 60 / 100) / np.sqrt(40))
  last = (found >= 90).sum(1).mean()
  last_off = abs(last - 6) / (np.sqrt(10 * 0.6 * 0.4 * 90 / 99) / np.sqrt(40))
  return mean_off < 5 and last_off < 5


def test_they_stand_anywhere_and_elsewhere_in_each_request(data, tmp_path):
  assert anywhere(spread(data, tmp_path))


@pytest.mark.parametrize(
  "wrong",
  [
    lambda self, split, originals, views: np.arange(originals),
    lambda self, split, originals, views: np.random.default_rng(0).permutation(originals),
    lambda self, split, originals, views: np.roll(np.arange(originals), 7),
  ],
  ids=["as they came", "one order for all", "turned"],
)
def test_other_orders_would_be_noticed(data, tmp_path, monkeypatch, wrong):
  monkeypatch.setattr(record_noise.Current, "order", wrong)
  assert not anywhere(spread(data, tmp_path))


def test_nothing_else_in_a_request_tells_them_from_the_others(data, tmp_path):
  facts = asked(data, tmp_path / "request")
  there = places(facts)
  images, labels = directory.open(tmp_path / "request").splits["query"].read(np.arange(100))
  assert not labels.any()
  expected, _ = query.disguised(query.Query(OTHERS.images[:60], ()), data.manifest, MASTER)
  order = record_noise.of(facts, MASTER).order("query", 100, 1)
  np.testing.assert_array_equal(images[there], expected[order[there] - 40])
  words = (tmp_path / "request" / manifest.FILE).read_text()
  assert "canar" not in words and "planted" not in words
  content = sealed_metadata.box_of(facts, MASTER).unseal(facts.sealed)
  assert content["canaries"] == OTHERS.labels[:60].tolist()
  assert content["names"] == [f"{number}.png" for number in range(40)]


# What answers look like.


def outcome(data, tmp_path, change):
  facts = asked(data, tmp_path / "request")
  (tmp_path / "a.json").write_text(answered(facts, change(truth(facts))))
  return query.answers(tmp_path / "request", tmp_path / "a.json", MASTER)


def test_right_answers_pass_and_the_planted_ones_are_left_out(data, tmp_path):
  found = outcome(data, tmp_path, lambda classes: classes)
  assert found.canaries[:2] == (60, 60) and not found.canaries.suspicious
  assert found.canaries.chance < 1e-40
  assert [row.file for row in found.rows] == [f"{number}.png" for number in range(40)]
  assert [row.name for row in found.rows] == [str(label) for label in DIGITS.labels]


def test_a_network_that_is_often_wrong_passes(data, tmp_path):
  wrong = np.random.default_rng(0).random(100) < 0.5
  found = outcome(data, tmp_path, lambda x: np.where(wrong, (x + 1) % 10, x))
  assert 20 < found.canaries.right < 40 and not found.canaries.suspicious


LIES = {
  "in another order": lambda x: np.random.default_rng(1).permutation(x),
  "moved by one": lambda x: np.roll(x, 1),
  "invented": lambda x: np.random.default_rng(2).integers(0, 10, len(x)),
  "one class for all": lambda x: np.full(len(x), np.bincount(x).argmax()),
  "label ids permuted": lambda x: (x + 3) % 10,
}


@pytest.mark.parametrize("lie", LIES)
def test_answers_that_are_not_of_these_images_are_suspicious(data, tmp_path, lie):
  found = outcome(data, tmp_path, LIES[lie])
  assert found.canaries.suspicious and found.canaries.chance > 0.01
  assert found.canaries.right < 20


def test_a_request_without_them_says_nothing_of_them(data, tmp_path):
  images = query.Query(DIGITS.images, tuple(map(str, range(40))))
  facts, _ = query.request(images, data.manifest, MASTER, tmp_path / "request")
  (tmp_path / "a.json").write_text(answered(facts, np.zeros(40, int)))
  found = query.answers(tmp_path / "request", tmp_path / "a.json", MASTER)
  assert found.canaries is None and len(found.rows) == 40


def guesses(kind, expected, draw):
  if kind == "shuffled":
    return draw.permutation(expected)
  if kind == "commonest":
    return np.full(len(expected), np.bincount(expected).argmax())
  return (
    draw.choice(expected, len(expected))
    if kind == "in proportion"
    else draw.integers(0, 10, len(expected))
  )


@pytest.mark.parametrize("kind", ["shuffled", "commonest", "in proportion", "even"])
@pytest.mark.parametrize("count", [20, 200])
def test_who_knows_no_image_passes_about_once_in_a_hundred(kind, count):
  """1000 tries, of classes that are not equally common; 25 would come about by chance once in 10^5 at 1 %."""
  draw = np.random.default_rng(3)
  passed = 0
  for _ in range(1000):
    expected = draw.choice(10, count, p=np.arange(1, 11) / 55)
    given = guesses(kind, expected, draw)
    passed += not canaries.judge(expected.tolist(), given.tolist()).suspicious
  assert passed <= 25


def test_judge_by_hand():
  found = canaries.judge([0, 0, 1, 1], [0, 0, 1, 0])
  # At least three of four right, one half each: (4 + 1) / 16.
  assert found == (4, 3, pytest.approx(5 / 16), True)
  assert canaries.judge([0] * 5, [0] * 5) == (
    5,
    5,
    1.0,
    True,
  )  # of one class, a guess is always right
  assert canaries.judge([0, 1] * 10, [0, 1] * 10).chance == pytest.approx(2**-20)


# Reading them.


def test_known_images_are_read_at_most_200_and_others_each_time(data, source):
  first, second = (canaries.read(str(source), data.manifest, NAMES) for _ in range(2))
  assert first.images.shape == (200, 8, 8, 1) and first.images.dtype == np.uint8
  assert (first.images != second.images).any()
  by_image = {
    image.tobytes(): label for image, label in zip(OTHERS.images, OTHERS.labels, strict=True)
  }
  assert [by_image[image.tobytes()] for image in first.images] == first.labels.tolist()


def test_classes_are_taken_by_name_not_by_number(data, tmp_path):
  """A folder lists its classes from A to Z; the data set may number them otherwise."""
  write(tmp_path / "a.npz", OTHERS.images[:100], OTHERS.labels[:100], names=NAMES[::-1])
  found = canaries.read(str(tmp_path / "a.npz"), data.manifest, NAMES)
  by_image = {
    image.tobytes(): label for image, label in zip(OTHERS.images, OTHERS.labels, strict=True)
  }
  assert [9 - by_image[image.tobytes()] for image in found.images] == found.labels.tolist()


@pytest.mark.parametrize(
  ("images", "labels", "names", "message"),
  [
    (OTHERS.images[:50], OTHERS.labels[:50], (*"012345678", "cat"), "of the data set, got 'cat'"),
    (OTHERS.images[:50, :7], OTHERS.labels[:50], NAMES, r"must be uint8 \[8, 8, 1\]"),
    (OTHERS.images[:50] / np.float32(2), OTHERS.labels[:50], NAMES, r"got float32 \[8, 8, 1\]"),
    (OTHERS.images[:2], [0, 1], NAMES, "too few to tell answers from guesses"),
    (OTHERS.images[:50], np.ones(50, int), NAMES, "too few to tell answers from guesses"),
  ],
  ids=["class", "shape", "dtype", "few", "one class"],
)
def test_what_cannot_be_planted_is_refused(data, tmp_path, images, labels, names, message):
  write(tmp_path / "a.npz", images, np.asarray(labels), names)
  with pytest.raises(DataError, match=message) as caught:
    canaries.read(str(tmp_path / "a.npz"), data.manifest, NAMES)
  assert "\n" not in str(caught.value)


# On the command line.


@pytest.fixture
def cli(data, source, tmp_path, capsys):
  keyfile.write(tmp_path / "k", MASTER, passphrase=None)
  np.save(tmp_path / "x.npy", DIGITS.images)

  def run(*argv):
    code = owner_cli.main(["query", *map(str, argv), "--key", str(tmp_path / "k")])
    captured = capsys.readouterr()
    return code, captured.out, captured.err

  code, out, err = run(
    tmp_path / "x.npy", "--data", data.path, "--request", tmp_path / "r", "--canaries", source
  )
  assert code == 0, err
  assert "40, and 200 planted ones" in out
  facts = restore.authenticated(tmp_path / "r", MASTER, role="request")
  content = sealed_metadata.box_of(facts, MASTER).unseal(facts.sealed)
  order = record_noise.of(facts, MASTER).order("query", 240, 1)
  classes = np.concatenate([DIGITS.labels, content["canaries"]])[order]
  return run, facts, classes


def test_right_answers_on_the_command_line(cli, tmp_path):
  run, facts, classes = cli
  (tmp_path / "a.json").write_text(answered(facts, classes))
  code, out, err = run("--request", tmp_path / "r", "--answers", tmp_path / "a.json")
  assert code == 0 and len(out.splitlines()) == 40
  assert "200 of 200 planted images got their class" in err
  assert "warning" not in err and "do not rely" not in err
  code, out, _ = run("--request", tmp_path / "r", "--answers", tmp_path / "a.json", "--json")
  found = json.loads(out)
  assert [row["class"] for row in found["answers"]] == [str(x) for x in DIGITS.labels]
  assert found["canaries"]["right"] == 200 and found["canaries"]["suspicious"] is False


@pytest.mark.parametrize("lie", LIES)
def test_lies_on_the_command_line(cli, tmp_path, lie):
  run, facts, classes = cli
  (tmp_path / "a.json").write_text(answered(facts, LIES[lie](classes)))
  _, _, err = run("--request", tmp_path / "r", "--answers", tmp_path / "a.json")
  (line,) = [line for line in err.splitlines() if "planted" in line]
  assert line.startswith("djax: warning: ") and line.endswith("do not rely on these answers")
  _, out, _ = run("--request", tmp_path / "r", "--answers", tmp_path / "a.json", "--json")
  assert json.loads(out)["canaries"]["suspicious"] is True
