import json
import os
import shutil
import types

import numpy as np
import pytest
from PIL import Image

from djax import keys, sources
from djax.disguised import directory, manifest, quantise
from djax.errors import ConfigError, DataError, KeyMismatchError, ManifestError, UnsafeError
from djax.models import predict
from djax.owner import disguiser, export, query, record_noise, restore, sealed_metadata
from djax.owner.plan import Request

MASTER = keys.Master(bytes(range(60, 92)))
SPLITS = {"train": "train[:80]", "test": "test[:20]"}
RMT = {"scheme": "rmt", "block_size": 2}
DIGITS = sources.load("digits", "train[:80]")


def disguised(folder, disguise=RMT, source="digits", splits=SPLITS, **options):
  request = Request(str(source), disguise, splits=splits, dataset_id="5a" * 16, **options)
  export.disguise(request, folder, MASTER, workers=1)
  return directory.open(folder)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
  """Without noise: an original is disguised as it was for the data set."""
  return disguised(tmp_path_factory.mktemp("exact") / "data")


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
  """Quantised, with noise."""
  folder = tmp_path_factory.mktemp("stepped") / "data"
  return disguised(folder, {**RMT, "noise_level": 40.0}, dtype="uint8")


@pytest.fixture
def run(exact, tmp_path, monkeypatch):
  """A run directory whose network knows the disguised training images by heart."""
  folder = tmp_path / "run"
  folder.mkdir()
  for name in (manifest.FILE, manifest.MAC_FILE):
    shutil.copyfile(exact.path / name, folder / name)
  images, labels = exact.splits["train"].read(np.arange(80))

  def probabilities(given, batch):
    assert given.dtype == np.float32
    distance = np.abs(given[:, None] - images).max((2, 3, 4))
    assert distance.min(1).max() < 1e-3
    found = np.full((len(given), 10), 0.02)
    found[np.arange(len(given)), labels[distance.argmin(1)]] = 0.82
    return found

  facts = {"source_sha256": exact.manifest.sha256}
  network = types.SimpleNamespace(classes=10, summary=facts, probabilities=probabilities)
  monkeypatch.setattr(predict, "load", lambda workdir: network)
  return folder


def in_turn(data, split="train"):
  """Returns images and labels as stored, in the order of the source."""
  records = data.splits[split]
  order = record_noise.of(data.manifest, MASTER).order(split, len(records), 1)
  return records.read(np.argsort(order))


def order_of(facts):
  """Returns which image stands at each place of a request."""
  return record_noise.of(facts, MASTER).order("query", facts.splits["query"].records, 1)


def noisy(images, facts):
  """Returns images disguised as those of a request, before they are stored."""
  secret = MASTER.data_set(facts.id, facts.spec)
  alone = {"count": 1, "crop": 0, "flip": False, "together": True}
  of_request = record_noise.Current(secret, role="request", views=alone)
  return disguiser.Disguiser(facts.spec, of_request).images(images, "query", [0] * len(images))


def of(images, names=None):
  return query.Query(images, tuple(names or (f"{i}.png" for i in range(len(images)))))


def save(path, pixels):
  path.parent.mkdir(exist_ok=True)
  Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
  return path


# Reading.


def test_files_folders_and_arrays_are_read_in_order(exact, tmp_path):
  pixels = DIGITS.images[..., 0]
  one = save(tmp_path / "one.png", pixels[0])
  save(tmp_path / "many" / "b.PNG", pixels[2])
  save(tmp_path / "many" / "a.png", pixels[1])
  save(tmp_path / "many" / ".hidden.png", pixels[9])
  (tmp_path / "many" / "notes.txt").write_text("no image")
  np.save(tmp_path / "flat.npy", pixels[3:5])
  np.save(tmp_path / "deep.npy", pixels[5:6, ..., None])
  np.savez(tmp_path / "only.npz", x=pixels[6:7])
  np.savez(tmp_path / "named.npz", images=pixels[7:8], labels=np.zeros(1))
  paths = ["one.png", "many", "flat.npy", "deep.npy", "only.npz", "named.npz"]
  found = query.read([tmp_path / name for name in paths], exact.manifest)
  np.testing.assert_array_equal(found.images, DIGITS.images[:8])
  assert found.images.dtype == np.uint8
  shown = ["one.png", "many/a.png", "many/b.PNG", "flat.npy[0]", "flat.npy[1]"]
  shown += ["deep.npy[0]", "only.npz[0]", "named.npz[0]"]
  assert found.names == tuple(str(tmp_path / name) for name in shown)
  assert query.read([str(one)], exact.manifest).names == (str(one),)
  assert repr(found) == "Query(8 images)"


def test_image_files_are_resized_when_asked_as_those_of_a_source(exact, tmp_path):
  pixels = np.random.default_rng(1).integers(0, 256, (11, 17))
  for name in ("a", "b"):
    save(tmp_path / name / "x.png", pixels)
    save(tmp_path / name / "y.png", pixels.T)
  source = sources.load(str(tmp_path / "a" / ".."), "train", image_size=8)
  found = query.read([tmp_path / "a"], exact.manifest, image_size=8)
  np.testing.assert_array_equal(found.images, source.images[[0, 2]])
  with pytest.raises(ConfigError, match=r"must give images of 8x8 pixels.*got 9"):
    query.read([tmp_path / "a"], exact.manifest, image_size=9)


def colours(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (8, 4, 6, 3), np.uint8)
  labels = np.arange(8) % 2
  arrays = {"train_images": images, "train_labels": labels}
  np.savez(tmp_path / "c.npz", **arrays, test_images=images, test_labels=labels)
  splits = {"train": "train", "test": "test"}
  return disguised(tmp_path / "data", RMT, tmp_path / "c.npz", splits)


def test_grey_files_are_taken_among_colours(tmp_path):
  data = colours(tmp_path)
  grey = np.arange(24).reshape(4, 6) * 10
  found = query.read([save(tmp_path / "g.png", grey)], data.manifest)
  np.testing.assert_array_equal(found.images[0], np.repeat(grey[..., None], 3, axis=2))


def test_floats_are_taken_where_the_source_had_floats(tmp_path):
  arrays = {"train_images": DIGITS.images * np.float32(0.5), "train_labels": DIGITS.labels}
  np.savez(tmp_path / "f.npz", **arrays, test_images=DIGITS.images, test_labels=DIGITS.labels)
  splits = {"train": "train", "test": "train[:5]"}
  data = disguised(tmp_path / "data", RMT, tmp_path / "f.npz", splits)
  np.save(tmp_path / "x.npy", DIGITS.images.astype(np.float64) / 2)
  found = query.read([tmp_path / "x.npy"], data.manifest)
  assert found.images.dtype == np.float32
  stored, _ = query.disguised(found, data.manifest, MASTER)
  np.testing.assert_array_equal(stored, in_turn(data)[0])
  np.save(tmp_path / "bad.npy", np.full((1, 8, 8), 256.0))
  with pytest.raises(DataError, match=r"64 values are outside 0\.\.255"):
    query.read([tmp_path / "bad.npy"], data.manifest)
  assert query.read([save(tmp_path / "x.png", np.eye(8))], data.manifest).images.dtype == np.float32


REFUSED = [
  ("missing.png", None, "missing.png: no such file or folder"),
  ("missing.npy", None, "missing.npy: no such file"),
  ("empty", "folder", "at least one image, got none in .*empty"),
  ("none.npy", np.zeros((0, 8, 8), np.uint8), "at least one image, got none"),
  ("big.png", np.zeros((9, 8)), r"big.png: is 9x8 pixels, but the data set 8x8.*--image-size 8"),
  ("colour.png", np.zeros((8, 8, 3)), "colour.png: is in colour, but the data set is grey"),
  ("alpha.png", np.zeros((8, 8, 4)), "alpha.png: has an alpha channel"),
  ("text.png", b"no image", "text.png: cannot be read as PNG or JPEG"),
  ("text.npy", b"no array", "text.npy: not a whole NumPy file"),
  ("text.npz", b"PK\x03\x04", "text.npz: not a whole NumPy file"),
  ("sides.npy", np.zeros((2, 8, 9), np.uint8), r"must be \[N, 8, 8, 1\].*got \(2, 8, 9, 1\)"),
  ("channels.npy", np.zeros((2, 8, 8, 3), np.uint8), r"must be \[N, 8, 8, 1\]"),
  ("one.npy", np.zeros((8, 8), np.uint8), r"must be \[N, 8, 8, 1\].*got \(8, 8\)"),
  ("scalar.npy", np.zeros((), np.uint8), r"got \(\)"),
  ("float.npy", np.zeros((1, 8, 8)), "must be uint8 as in the data set, got float64"),
  ("objects.npy", np.array([None]), "not a whole NumPy file"),
  ("two.npz", {"a": np.zeros(1), "b": np.zeros(1)}, "one named images; has a, b"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_does_not_fit_is_refused_by_name(exact, tmp_path, name, content, message):
  path = tmp_path / name
  if isinstance(content, bytes):
    path.write_bytes(content)
  elif isinstance(content, dict):
    np.savez(path, **content)
  elif isinstance(content, str):
    path.mkdir()
  elif name.endswith(".npy") and content is not None:
    np.save(path, content)
  elif content is not None:
    save(path, content)
  with pytest.raises(DataError, match=message) as caught:
    query.read([path], exact.manifest)
  assert caught.value.exit_code == 4
  assert "\n" not in str(caught.value)


# Disguising.


def test_images_are_disguised_as_those_of_the_data_set(exact):
  stored, cut = query.disguised(of(DIGITS.images), exact.manifest, MASTER)
  np.testing.assert_array_equal(stored, in_turn(exact)[0])
  assert cut == 0


def test_an_image_has_one_noise_wherever_it_stands(stepped, monkeypatch):
  facts = stepped.manifest
  stored, _ = query.disguised(of(DIGITS.images), facts, MASTER)
  alone, _ = query.disguised(of(DIGITS.images[7:8]), facts, MASTER)
  np.testing.assert_array_equal(stored[7:8], alone)
  monkeypatch.setattr(query, "_CHUNK", 9)
  np.testing.assert_array_equal(query.disguised(of(DIGITS.images), facts, MASTER)[0], stored)
  # Another noise than in the training set, and one of its own for each image.
  assert (stored != in_turn(stepped)[0]).mean() > 0.9
  black = np.zeros((2, 8, 8, 1), np.uint8)
  black[1, 0, 0] = 1
  a, b = query.disguised(of(black), facts, MASTER)[0]
  assert (a != b).mean() > 0.5


def test_values_outside_the_quantisers_range_are_counted(stepped):
  facts = stepped.manifest
  assert facts.dtype == "uint8" and facts.quantiser is not None
  bright = np.full((3, 8, 8, 1), 255, np.uint8)
  stored, cut = query.disguised(of(bright), facts, MASTER)
  values = noisy(bright, facts)
  expected = 0
  for image in values:
    for row in range(8):
      for column in range(8):
        place = row // 2 * 4 + column // 2
        low, step = facts.quantiser.offset[place], facts.quantiser.scale[place]
        expected += not low - step / 2 <= image[row, column, 0] <= low + 255.5 * step
  assert cut == expected > 0
  dequantised = quantise.dequantise(stored, facts.quantiser, block_size=2)
  off = np.abs(dequantised - values) > facts.error.stored
  assert 0 < off.sum() <= cut


# Asking a network at hand.


def test_answers_carry_the_names_of_classes(run, exact):
  images = of(DIGITS.images[5:25])
  found = query.ask(images, run, restore.authenticated(run, MASTER), MASTER)
  assert found.classes == tuple("0123456789")
  assert found.cut == 0
  for row, label, name in zip(found.rows, DIGITS.labels[5:25], images.names, strict=True):
    assert (row.file, row.name, row.probability) == (name, str(label), 0.82)
    assert row.probabilities[label] == 0.82
    assert sum(row.probabilities) == pytest.approx(1)
  ids = in_turn(exact)[1][5:25]
  assert (ids != DIGITS.labels[5:25]).any()  # or the mapping back would not show


def test_labels_that_are_plain_stay_as_they_are(tmp_path):
  data = disguised(tmp_path / "data", plain_labels=True)
  found = query.named(np.eye(10), [str(i) for i in range(10)], data.manifest, MASTER)
  assert [row.name for row in found.rows] == list("0123456789")


def test_quantised_images_reach_the_network_dequantised(stepped, monkeypatch):
  given = []

  def probabilities(images, batch):
    given.append(images)
    return np.full((len(images), 10), 0.1)

  facts = {"source_sha256": stepped.manifest.sha256}
  network = types.SimpleNamespace(summary=facts, probabilities=probabilities)
  monkeypatch.setattr(predict, "load", lambda workdir: network)
  query.ask(of(DIGITS.images), "run", stepped.manifest, MASTER)
  values = noisy(DIGITS.images, stepped.manifest)
  assert given[0].dtype == np.float32
  inside = np.sort(np.abs(given[0] - values).ravel())[:-20]  # but for the few that were cut
  assert inside.max() <= stepped.manifest.error.stored


def test_a_network_of_other_images_is_refused(run, stepped):
  with pytest.raises(ManifestError, match=r"disguise\.json names others"):
    query.ask(of(DIGITS.images), run, stepped.manifest, MASTER)


# Requests and answers.


@pytest.fixture(scope="module")
def asked(stepped, tmp_path_factory):
  folder = tmp_path_factory.mktemp("asked") / "request"
  images = of(DIGITS.images[:6], [f"patients/Jane Doe {i}.png" for i in range(6)])
  written, cut = query.request(images, stepped.manifest, MASTER, folder)
  return folder, written, cut


def test_a_request_is_a_disguised_set_of_its_own(asked, stepped):
  folder, written, cut = asked
  directory.verify(folder)
  data = directory.open(folder)
  assert data.manifest.sha256 == written.sha256
  assert restore.authenticated(folder, MASTER, role="request").sha256 == written.sha256
  assert (written.role, written.id) == ("request", stepped.manifest.id)
  assert written.request not in (None, written.id)
  assert list(data.splits) == ["query"]
  images, labels = data.splits["query"].read(np.arange(6))
  expected, expected_cut = query.disguised(of(DIGITS.images[:6]), stepped.manifest, MASTER)
  np.testing.assert_array_equal(images, expected[order_of(written)])
  assert cut == expected_cut
  assert labels.tolist() == [0] * 6
  same = ("spec", "dtype", "disguised_shape", "key_fingerprint", "classes", "labels", "warnings")
  for name in same:
    assert getattr(written, name) == getattr(stepped.manifest, name), name
  np.testing.assert_array_equal(written.quantiser.offset, stepped.manifest.quantiser.offset)
  assert written.source["name"] == "query"
  assert written.source["hmac"] != stepped.manifest.source["hmac"]


def test_a_request_hides_the_names_of_files(asked):
  folder, written, _ = asked
  assert len(list(folder.iterdir())) == 6
  for path in folder.iterdir():
    assert b"Jane" not in path.read_bytes(), path
  content = sealed_metadata.box_of(written, MASTER).unseal(written.sealed)
  assert "canaries" not in content
  assert content["names"][5] == "patients/Jane Doe 5.png"
  assert content["class_names"] == list("0123456789")


def test_a_request_overwrites_nothing_and_leaves_no_half(stepped, tmp_path, monkeypatch):
  (tmp_path / "there").mkdir()
  with pytest.raises(UnsafeError, match="exists and is not overwritten"):
    query.request(of(DIGITS.images), stepped.manifest, MASTER, tmp_path / "there")
  assert not list((tmp_path / "there").iterdir())

  def fail(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(export, "finish", fail)
  with pytest.raises(KeyboardInterrupt):
    query.request(of(DIGITS.images), stepped.manifest, MASTER, tmp_path / "new")
  assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_two_requests_share_noise_and_not_their_order(stepped, tmp_path):
  """An image that is asked about twice is disguised alike; where it stands says nothing."""
  images = of(DIGITS.images[:40])
  first, _ = query.request(images, stepped.manifest, MASTER, tmp_path / "a")
  second, _ = query.request(images, stepped.manifest, MASTER, tmp_path / "b")
  assert first.request != second.request and first.id == second.id
  assert (order_of(first) != order_of(second)).any()
  assert (order_of(first) != np.arange(40)).any()
  stored = [
    directory.open(tmp_path / name).splits["query"].read(np.argsort(order_of(facts)))[0]
    for name, facts in (("a", first), ("b", second))
  ]
  np.testing.assert_array_equal(*stored)


def answer(asked, **changes):
  ids = record_noise.of(asked[1], MASTER).labels(10)
  rows = np.full((6, 10), 0.05)
  rows[np.arange(6), ids[DIGITS.labels[:6]]] = 0.55
  rows = rows[order_of(asked[1])]
  content = {"format": "djax-answers", "version": 1, "request": asked[1].sha256, "run": {}}
  return {**content, "probabilities": rows.tolist(), **changes}


def test_an_answer_gets_its_names_back(asked, tmp_path):
  (tmp_path / "a.json").write_text(json.dumps(answer(asked)))
  found = query.answers(asked[0], tmp_path / "a.json", MASTER)
  assert [row.file for row in found.rows] == [f"patients/Jane Doe {i}.png" for i in range(6)]
  assert [row.name for row in found.rows] == [str(label) for label in DIGITS.labels[:6]]
  assert {row.probability for row in found.rows} == {0.55}


def rows(change):
  """Returns probabilities with one row changed."""
  return [[0.1] * 10] * 5 + [change]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"request": "0" * 64}, "answers another request than"),
    ({"request": None}, "answers another request than"),
    ({"format": "other"}, "must be djax-answers of version 1, got another format"),
    ({"version": 2}, "must be djax-answers of version 1, got another format"),
    ({"probabilities": [[0.1] * 10] * 5}, "must be 6 lists of 10 numbers"),
    ({"probabilities": [[0.5] * 2] * 6}, "must be 6 lists of 10 numbers"),
    ({"probabilities": rows([0.5, 0.5])}, "must be 6 lists of 10 numbers"),
    ({"probabilities": rows("0123456789")}, "must be 6 lists of 10 numbers"),
    ({"probabilities": {"a": 1}}, "must be 6 lists of 10 numbers"),
    ({"probabilities": rows(["x"] * 10)}, r"must lie in 0\.\.1 and sum to 1"),
    ({"probabilities": rows([None] + [0.0] * 8 + [1.0])}, r"must lie in 0\.\.1 and sum to 1"),
    ({"probabilities": rows([[1.0]] + [0.0] * 9)}, r"must lie in 0\.\.1 and sum to 1"),
    ({"probabilities": rows([True] + [False] * 9)}, r"must lie in 0\.\.1 and sum to 1"),
    ({"probabilities": rows([10**39] + [0.0] * 9)}, r"must lie in 0\.\.1 and sum to 1"),
    ({"probabilities": rows([0.2] * 10)}, r"must lie in 0\.\.1 and sum to 1"),
    ({"probabilities": rows([-0.1, 1.1] + [0.0] * 8)}, r"must lie in 0\.\.1 and sum to 1"),
    ({"probabilities": rows([0.1002] * 10)}, r"must lie in 0\.\.1 and sum to 1"),
  ],
)
def test_answers_that_do_not_fit_are_refused(asked, tmp_path, changes, message):
  (tmp_path / "a.json").write_text(json.dumps(answer(asked, **changes)))
  with pytest.raises(DataError, match=message):
    query.answers(asked[0], tmp_path / "a.json", MASTER)


def test_probabilities_rounded_on_their_way_are_taken(asked, tmp_path):
  rounded = [[0.333, 0.333, 0.333] + [0] * 7, [1] + [0] * 9, *([[0.1] * 10] * 4)]
  (tmp_path / "a.json").write_text(json.dumps(answer(asked, probabilities=rounded)))
  found = query.answers(asked[0], tmp_path / "a.json", MASTER)
  given = sorted(tuple(sorted(row.probabilities)) for row in found.rows)
  assert given == sorted(tuple(sorted(map(float, row))) for row in rounded)


@pytest.mark.parametrize(
  "content",
  [
    "",
    "[]",
    "{}",
    "null",
    "[" * 100_000,
    "\xff",
    '{"format": "djax-answers", "version": 1, "request": "", "probabilities": [[NaN]]}',
    '{"format": "djax-answers", "version": 1, "request": "", "probabilities": [[1e999]]}',
    '{"format": "djax-answers", "version": 1, "request": "", "probabilities": [[1'
    + "0" * 400
    + "]]}",
    '{"format": "djax-answers", "format": "djax-answers", "version": 1, "request": "", "probabilities": []}',
  ],
  ids=range(10),
)
def test_files_that_are_no_answers_are_refused(asked, tmp_path, content):
  (tmp_path / "a.json").write_text(content, "latin-1")
  with pytest.raises(DataError, match=r"a\.json: is no answer of python -m train\.answer"):
    query.answers(asked[0], tmp_path / "a.json", MASTER)


def test_answers_need_their_request_and_key(asked, exact, tmp_path):
  (tmp_path / "a.json").write_text(json.dumps(answer(asked)))
  with pytest.raises(KeyMismatchError):
    query.answers(asked[0], tmp_path / "a.json", keys.Master(bytes(32)))
  with pytest.raises(DataError, match=r"b\.json must exist"):
    query.answers(asked[0], tmp_path / "b.json", MASTER)
  with pytest.raises(DataError, match="must be a request, is a dataset"):
    query.answers(exact.path, tmp_path / "a.json", MASTER)


def test_answers_pin_their_request_where_one_is_expected(asked, tmp_path):
  (tmp_path / "a.json").write_text(json.dumps(answer(asked)))
  query.answers(asked[0], tmp_path / "a.json", MASTER, expect=asked[1].sha256)
  with pytest.raises(ManifestError, match="must have the manifest 000"):
    query.answers(asked[0], tmp_path / "a.json", MASTER, expect="0" * 64)


def test_answers_are_read_through_the_door(asked, tmp_path):
  (tmp_path / "a.json").write_text(json.dumps(answer(asked)))
  (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
  os.mkfifo(tmp_path / "pipe.json")
  with (tmp_path / "huge.json").open("wb") as file:
    file.truncate(10 << 30)
  for name, message in (
    ("link.json", "is a symbolic link"),
    ("pipe.json", "is a pipe"),
    ("huge.json", "must have at most"),
  ):
    with pytest.raises(DataError, match=message):
      query.answers(asked[0], tmp_path / name, MASTER)
