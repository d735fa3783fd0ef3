"""Data sets from fake originals: what goes in comes out, and nothing is left when it cannot."""

import contextlib
import gzip
import hashlib
import http.server
import importlib.util
import io
import json
import pathlib
import socket
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
from helpers.fresh import run_code

from djax.errors import ConfigError, DataError, UnsafeError
from djax.sources import download as prepare_module
from djax.sources.download import prepare

IDX_SETS = ["mnist", "fashion_mnist", "kmnist"]
CIFAR_SETS = ["cifar10", "cifar100"]
SIZES = {"train": 7, "test": 3}
FINE = [f"fine_{number}" for number in range(100)]
COARSE = [f"coarse_{number}" for number in range(20)]
TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def idx(array, *, kind=8):
  head = bytes([0, 0, kind, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
  return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


def fake_examples(name):
  """Returns ``{split: {key: array}}`` with the label extremes present."""
  rng = np.random.default_rng(len(name))
  shape = (28, 28, 1) if name in IDX_SETS else (32, 32, 3)
  examples = {}
  for split, count in SIZES.items():
    examples[split] = {"image": rng.integers(0, 256, (count, *shape), dtype=np.uint8)}
    labels = {"label": 100 if name == "cifar100" else 10}
    if name == "cifar100":
      labels["coarse_label"] = 20
    for key, classes in labels.items():
      values = rng.integers(0, classes, count, dtype=np.uint8)
      values[:2] = classes - 1, 0
      examples[split][key] = values
  return examples


def tarball(members):
  data = io.BytesIO()
  with tarfile.open(fileobj=data, mode="w:gz") as archive:
    for name, content in members.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return data.getvalue()


def cifar_members(name, examples):
  def records(split, rows=slice(None)):
    part = examples[split]
    keys = ["coarse_label", "label"] if name == "cifar100" else ["label"]
    labels = np.stack([part[key][rows] for key in keys], axis=1)
    pixels = part["image"][rows].transpose(0, 3, 1, 2).reshape(len(labels), 3072)
    return np.concatenate([labels, pixels], axis=1).tobytes()

  if name == "cifar100":
    return {
      "cifar-100-binary/train.bin": records("train"),
      "cifar-100-binary/test.bin": records("test"),
      "cifar-100-binary/coarse_label_names.txt": "\n".join([*COARSE, ""]).encode(),
      "cifar-100-binary/fine_label_names.txt": "\n".join([*FINE, ""]).encode(),
    }
  cuts = [0, 2, 3, 4, 6, 7]
  folder = "cifar-10-batches-bin"
  batches = {
    f"{folder}/data_batch_{number}.bin": records("train", slice(*cuts[number - 1 :][:2]))
    for number in range(1, 6)
  }
  return {
    # Not in order: the members count by name.
    "cifar-10-batches-bin/test_batch.bin": records("test"),
    **dict(reversed(batches.items())),
    "cifar-10-batches-bin/batches.meta.txt": "\n".join([*TEN, "", ""]).encode(),
  }


def originals(name, examples):
  """Returns the original files of fake examples, by name."""
  if name in CIFAR_SETS:
    archive = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}[name]
    return {archive: tarball(cifar_members(name, examples))}
  files = {}
  for split, prefix in (("train", "train"), ("test", "t10k")):
    files[f"{prefix}-images-idx3-ubyte.gz"] = idx(examples[split]["image"][..., 0])
    files[f"{prefix}-labels-idx1-ubyte.gz"] = idx(examples[split]["label"])
  return files


@pytest.fixture
def pin(monkeypatch):
  """Pins other originals for a set: ``pin(name, files)``."""

  def change(name, files):
    pins = {
      file: (len(data), hashlib.sha256(data).hexdigest()) for file, data in sorted(files.items())
    }
    order = {file: pins[file] for file in prepare_module._ORIGINALS[name]}
    monkeypatch.setitem(prepare_module._ORIGINALS, name, order)

  return change


@pytest.fixture
def folders(tmp_path):
  """Returns (originals, data_dir): a folder, and a path where nothing is yet."""
  (tmp_path / "originals").mkdir()
  return tmp_path / "originals", tmp_path / "data"


@pytest.fixture
def fake(pin, folders):
  """Puts pinned fake originals of a set in the folder: ``fake(name, **replaced files)``."""

  def put(name, files=None):
    files = originals(name, fake_examples(name)) if files is None else files
    pin(name, files)
    for file, data in files.items():
      (folders[0] / file).write_bytes(data)
    return files

  return put


@pytest.fixture
def offline(monkeypatch):
  """Fails the test when anything opens a connection."""

  def refuse(*args, **kwargs):
    raise AssertionError("the network was touched")

  monkeypatch.setattr(socket, "create_connection", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)


def left_in(data_dir):
  return sorted(str(path.relative_to(data_dir)) for path in data_dir.rglob("*"))


def mirror(monkeypatch, name, *urls):
  monkeypatch.setitem(
    prepare_module._SETS, name, prepare_module._SETS[name]._replace(mirrors=tuple(urls))
  )
  monkeypatch.setenv("no_proxy", "127.0.0.1")


@contextlib.contextmanager
def serving(answer):
  """Serves ``answer(handler)`` on 127.0.0.1 and yields the base URL and the paths asked for."""
  asked = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked.append(self.path)
      with contextlib.suppress(OSError):
        answer(self)

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
      yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
      server.shutdown()
      thread.join()


def send(handler, data, *, length=None):
  handler.send_response(200)
  handler.send_header("Content-Length", str(len(data) if length is None else length))
  handler.end_headers()
  handler.wfile.write(data)


@pytest.mark.parametrize("name", IDX_SETS + CIFAR_SETS)
def test_reads_back_through_tfds(name, fake, folders, offline):
  import tensorflow_datasets as tfds

  fake(name)
  path = prepare(name, data_dir=str(folders[1]), from_dir=str(folders[0]))
  version = "3.0.2" if name in CIFAR_SETS else "3.0.1"
  assert path == folders[1] / name / version
  builder = tfds.builder_from_directory(path)
  assert (builder.info.name, str(builder.info.version)) == (name, version)
  assert builder.info.supervised_keys == ("image", "label")
  for split, examples in fake_examples(name).items():
    source = builder.as_data_source(split)
    assert len(source) == SIZES[split] == builder.info.splits[split].num_examples
    for index in range(SIZES[split]):
      record = source[index]
      assert set(record) == set(examples) | ({"id"} if name in CIFAR_SETS else set())
      np.testing.assert_array_equal(record["image"], examples["image"][index])
      for key in set(examples) - {"image"}:
        assert record[key] == examples[key][index]
      if name in CIFAR_SETS:
        assert record["id"] == f"{split}_{index:05d}".encode()
  by_name = tfds.data_source(name, split="test", data_dir=folders[1], download=False)
  np.testing.assert_array_equal(by_name[0]["image"], fake_examples(name)["test"]["image"][0])
  assert left_in(folders[1]) == sorted(
    [name, f"{name}/{version}"] + [f"{name}/{version}/{file.name}" for file in path.iterdir()]
  )


def test_class_names(fake, folders):
  import tensorflow_datasets as tfds

  names = {}
  for name in IDX_SETS + CIFAR_SETS:
    fake(name)
    path = prepare(name, data_dir=str(folders[1]), from_dir=str(folders[0]))
    features = tfds.builder_from_directory(path).info.features
    names[name] = {
      key: feature.names for key, feature in features.items() if hasattr(feature, "names")
    }
  assert names["mnist"]["label"] == [str(digit) for digit in range(10)]
  assert names["fashion_mnist"]["label"][::9] == ["T-shirt/top", "Ankle boot"]
  assert names["kmnist"]["label"] == ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"]
  assert names["cifar10"] == {"label": TEN}
  assert names["cifar100"] == {"label": FINE, "coarse_label": COARSE}


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_same_form_as_tfds_itself(name, fake, folders, tfds_dir):
  fake(name)
  ours = prepare(name, data_dir=str(folders[1]), from_dir=str(folders[0]))
  theirs = tfds_dir / name / ours.name
  if not theirs.is_dir():
    pytest.skip(f"no {theirs}")
  for file in ["features.json", "label.labels.txt"]:
    assert (ours / file).is_file() == (theirs / file).is_file()
    if (ours / file).is_file():
      assert (ours / file).read_text().split() == (theirs / file).read_text().split()
  info, other = (json.loads((path / "dataset_info.json").read_text()) for path in (ours, theirs))
  assert set(other) - set(info) == {"citation"}
  for key in ("fileFormat", "moduleName", "name", "supervisedKeys", "version"):
    assert info[key] == other[key]
  assert set(info["splits"][0]) == set(other["splits"][0])


def test_every_record_is_its_own_group(fake, folders):
  from array_record.python.array_record_module import ArrayRecordReader

  fake("mnist")
  path = prepare("mnist", data_dir=str(folders[1]), from_dir=str(folders[0]))
  for shard in sorted(path.glob("*array_record*")):
    with contextlib.closing(ArrayRecordReader(str(shard))) as reader:
      assert "group_size:1," in reader.writer_options_string()


def test_directory_modes_follow_the_umask(fake, folders):
  fake("mnist")
  path = prepare("mnist", data_dir=str(folders[1]), from_dir=str(folders[0]))
  (folders[1] / "other").mkdir()
  assert path.stat().st_mode == (folders[1] / "other").stat().st_mode


def test_pins_are_those_of_tfds():
  import tensorflow_datasets as tfds

  lists = pathlib.Path(tfds.__file__).parent / "url_checksums"
  if not (lists / "mnist.txt").is_file():
    pytest.skip("this tensorflow-datasets has no checksum lists")
  assert list(prepare_module._ORIGINALS) == list(prepare_module._SETS) == IDX_SETS + CIFAR_SETS
  for name, pins in prepare_module._ORIGINALS.items():
    rows = [line.split("\t") for line in (lists / f"{name}.txt").read_text().splitlines()]
    assert pins == {url.rsplit("/", 1)[1]: (int(size), digest) for url, size, digest, *_ in rows}
    assert prepare_module._SETS[name].version == str(tfds.builder_cls(name).VERSION)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_loads_no_tensorflow(name, fake, folders):
  fake(name)
  code = f"""
import sys
from djax.sources import download
download._ORIGINALS[{name!r}] = {prepare_module._ORIGINALS[name]!r}
print(download.prepare({name!r}, data_dir={str(folders[1])!r}, from_dir={str(folders[0])!r}))
assert "tensorflow_datasets" in sys.modules
assert not {{"jax", "flax", "tensorflow"}} & set(sys.modules)
"""
  done = run_code(code)
  assert done.returncode == 0, done.stderr
  assert pathlib.Path(done.stdout.strip()).is_dir()
  lines = done.stderr.splitlines()
  assert len(lines) == 2 and all(line.startswith("prepare: writing") for line in lines)


# Refusals. Each leaves nothing under the final name, and no temporary file.


def refused(kind, code, name, folders, *, from_dir=True):
  with pytest.raises(kind) as caught:
    prepare(name, data_dir=str(folders[1]), from_dir=str(folders[0]) if from_dir else "")
  assert type(caught.value) is kind
  assert caught.value.exit_code == code
  text = str(caught.value)
  assert text.startswith("prepare: ")
  assert "\n" not in text
  if folders[1].is_dir():
    assert left_in(folders[1]) == []
  return text


@pytest.mark.parametrize("name", IDX_SETS + CIFAR_SETS)
def test_wrong_hash_is_refused_before_parsing(name, fake, folders, monkeypatch):
  file, data = list(fake(name).items())[-1]
  wrong = data[:-1] + bytes([data[-1] ^ 1])
  (folders[0] / file).write_bytes(wrong)
  for parser in ("_read_idx", "_read_cifar"):
    monkeypatch.setattr(prepare_module, parser, lambda *_: pytest.fail("parsed unchecked bytes"))
  text = refused(DataError, 4, name, folders)
  assert file in text
  assert hashlib.sha256(data).hexdigest() in text
  assert hashlib.sha256(wrong).hexdigest() in text
  assert not folders[1].exists()


def test_missing_file_lists_names_and_urls(fake, folders, offline):
  files = fake("mnist")
  (folders[0] / "t10k-labels-idx1-ubyte.gz").unlink()
  text = refused(DataError, 4, "mnist", folders)
  assert f"{folders[0]} must hold the originals, missing t10k-labels-idx1-ubyte.gz." in text
  for file in files:
    assert f"{file} (https://storage.googleapis.com/cvdf-datasets/mnist/{file})" in text
  assert not folders[1].exists()


def test_missing_folder(folders):
  text = refused(DataError, 4, "cifar10", (folders[0] / "none", folders[1]))
  assert "missing cifar-10-binary.tar.gz. Expected: cifar-10-binary.tar.gz (https://" in text


def replaced(file, data):
  return {**originals("mnist", fake_examples("mnist")), file: data}


IMAGES = fake_examples("mnist")["train"]["image"][..., 0]
BAD_IDX = {
  "short array": (
    "train-images-idx3-ubyte.gz",
    gzip.compress(gzip.decompress(idx(IMAGES))[:-1]),
    "train-images-idx3-ubyte.gz must hold [7, 28, 28] bytes, got 5487.",
  ),
  "header only": ("t10k-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x08\x03\0\0"), "must hold ["),
  "cut gzip": ("train-images-idx3-ubyte.gz", idx(IMAGES)[:-9], "is not a whole gzip file"),
  "no gzip": ("train-images-idx3-ubyte.gz", b"<html>", "is not a whole gzip file"),
  "damaged deflate": (
    "train-images-idx3-ubyte.gz",
    idx(IMAGES)[:10] + b"\xff" * 40,
    "is not a whole gzip file",
  ),
  "wrong type": (
    "t10k-images-idx3-ubyte.gz",
    idx(IMAGES, kind=9),
    "t10k-images-idx3-ubyte.gz must start with 00000803, got 00000903.",
  ),
  "images as labels": (
    "t10k-labels-idx1-ubyte.gz",
    idx(IMAGES),
    "t10k-labels-idx1-ubyte.gz must start with 00000801, got 00000803.",
  ),
  "empty": ("t10k-labels-idx1-ubyte.gz", gzip.compress(b""), "must start with 00000801, got ."),
  "label count": (
    "train-labels-idx1-ubyte.gz",
    idx(np.zeros(6)),
    "mnist train has 7 images, 6 labels.",
  ),
  "label range": (
    "train-labels-idx1-ubyte.gz",
    idx(np.full(7, 10)),
    "label must be below 10, got 10.",
  ),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_damaged_idx_with_a_matching_pin(case, fake, folders):
  file, data, message = BAD_IDX[case]
  fake("mnist", replaced(file, data))
  assert message in refused(DataError, 4, "mnist", folders)


def bad_cifar(case):
  name = "cifar100" if "100" in case else "cifar10"
  members = cifar_members(name, fake_examples(name))
  if case == "short batch":
    members["cifar-10-batches-bin/test_batch.bin"] += b"\0"
    return tarball(members), "cifar-10-binary.tar.gz test must hold whole records, got 9220 bytes."
  if case == "missing batch":
    members["data_batch_3.bin"] = members.pop("cifar-10-batches-bin/data_batch_3.bin")
    return tarball(members), "cifar-10-batches-bin/data_batch_3.bin' not found"
  if case == "missing name":
    members["cifar-10-batches-bin/batches.meta.txt"] = "\n".join(TEN[:9]).encode()
    return tarball(members), "label must be below 9, got 9."
  if case == "coarse label of 100":
    members["cifar-100-binary/train.bin"] = b"\x14" + members["cifar-100-binary/train.bin"][1:]
    return tarball(members), "coarse_label must be below 20, got 20."
  if case == "cut archive":
    return tarball(members)[:-2000], "is not a whole CIFAR tar.gz file"
  return b"no archive", "is not a whole CIFAR tar.gz file"


@pytest.mark.parametrize(
  "case",
  ["short batch", "missing batch", "missing name", "coarse label of 100", "cut archive", "text"],
)
def test_damaged_cifar_with_a_matching_pin(case, fake, folders):
  name = "cifar100" if "100" in case else "cifar10"
  data, message = bad_cifar(case)
  fake(name, {next(iter(prepare_module._ORIGINALS[name])): data})
  assert message in refused(DataError, 4, name, folders)


def test_already_prepared_is_left_alone(fake, folders, capsys, offline):
  fake("mnist")
  path = prepare("mnist", data_dir=str(folders[1]), from_dir=str(folders[0]))
  before = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in path.iterdir()}
  capsys.readouterr()
  assert prepare("mnist", data_dir=str(folders[1])) == path
  assert capsys.readouterr() == ("", f"prepare: already prepared, left as it is: {path}\n")
  after = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in path.iterdir()}
  assert before == after


@pytest.mark.parametrize("content", ["", '{"fileFormat": "tfrecord"}'])
def test_never_overwrites_something_else(content, fake, folders):
  fake("mnist")
  final = folders[1] / "mnist" / "3.0.1"
  final.mkdir(parents=True)
  if content:
    (final / "dataset_info.json").write_text(content)
  with pytest.raises(UnsafeError, match=r"3\.0\.1 is no array_record data set") as caught:
    prepare("mnist", data_dir=str(folders[1]), from_dir=str(folders[0]))
  assert caught.value.exit_code == 5
  assert [file.read_text() for file in final.iterdir()] == ([content] if content else [])


def test_loses_a_race_without_overwriting(fake, folders, monkeypatch):
  fake("mnist")
  write = prepare_module._write

  def other_process(name, folder, *contents):
    write(name, folder, *contents)
    (folders[1] / "mnist" / "3.0.1").mkdir(parents=True)
    (folders[1] / "mnist" / "3.0.1" / "theirs").write_text("theirs")

  monkeypatch.setattr(prepare_module, "_write", other_process)
  with pytest.raises(DataError, match=r"could not prepare .*3\.0\.1"):
    prepare("mnist", data_dir=str(folders[1]), from_dir=str(folders[0]))
  assert left_in(folders[1]) == ["mnist", "mnist/3.0.1", "mnist/3.0.1/theirs"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupted_or_full_leaves_nothing(error, fake, folders, monkeypatch):
  fake("mnist")
  write_shard = prepare_module._write_shard

  def stop(path, *args):
    if "test" in path.name:
      raise error
    return write_shard(path, *args)

  monkeypatch.setattr(prepare_module, "_write_shard", stop)
  expected = DataError if isinstance(error, OSError) else error
  with pytest.raises(expected) as caught:
    prepare("mnist", data_dir=str(folders[1]), from_dir=str(folders[0]))
  if isinstance(error, OSError):
    assert "could not prepare" in str(caught.value)
    assert "No space left on device" in str(caught.value)
  assert left_in(folders[1]) == []


def test_killed_leaves_nothing_under_the_final_name(fake, folders):
  fake("mnist")
  code = f"""
import os, signal
from djax.sources import download
download._ORIGINALS["mnist"] = {prepare_module._ORIGINALS["mnist"]!r}
write = download._write_shard
def stop(path, *args):
  write(path, *args)
  if "test" in path.name:
    os.kill(os.getpid(), signal.SIGKILL)
download._write_shard = stop
download.prepare("mnist", data_dir={str(folders[1])!r}, from_dir={str(folders[0])!r})
"""
  done = run_code(code)
  assert done.returncode == -9
  assert not (folders[1] / "mnist").exists()
  assert prepare("mnist", data_dir=str(folders[1]), from_dir=str(folders[0])).is_dir()


def test_disk_that_fills_up_in_the_record_writer(fake, folders):
  """A file-size limit stands in for the full disk: the writer sees its write() fail."""
  examples = fake_examples("mnist")
  noise = np.random.default_rng(0).integers(0, 256, (400, 28, 28, 1), dtype=np.uint8)
  examples["train"] = {"image": noise, "label": np.zeros(400, np.uint8)}
  fake("mnist", originals("mnist", examples))
  code = f"""
import resource
from djax.sources import download
from djax.errors import DataError
download._ORIGINALS["mnist"] = {prepare_module._ORIGINALS["mnist"]!r}
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
  download.prepare("mnist", data_dir={str(folders[1])!r}, from_dir={str(folders[0])!r})
except DataError as error:
  print(error)
"""
  done = run_code(code)
  assert done.returncode == 0, done.stderr
  final = folders[1] / "mnist" / "3.0.1"
  assert done.stdout == f"prepare: could not prepare {final}: write() failed: File too large\n"
  assert left_in(folders[1]) == []


def test_data_dir_below_a_file(fake, folders):
  fake("mnist")
  folders[1].write_text("a file")
  text = refused(DataError, 4, "mnist", folders)
  assert "could not prepare" in text and str(folders[1]) in text
  text = refused(DataError, 4, "mnist", (folders[0], folders[1] / "below"))
  assert "Not a directory" in text


def test_unwritable_data_dir_is_found_before_the_download(folders, monkeypatch):
  monkeypatch.setattr(prepare_module, "_download", lambda *_: pytest.fail("downloaded first"))

  def deny(*args, **kwargs):
    raise PermissionError(13, "Permission denied", str(folders[1]))

  monkeypatch.setattr(prepare_module.tempfile, "mkdtemp", deny)
  text = refused(DataError, 4, "mnist", folders, from_dir=False)
  assert "Permission denied" in text and str(folders[1]) in text


def test_data_dir_defaults(fake, folders, monkeypatch):
  fake("mnist")
  monkeypatch.setenv("TFDS_DATA_DIR", str(folders[1]))
  path = prepare("mnist", from_dir=str(folders[0]))
  assert path == folders[1] / "mnist" / "3.0.1"
  monkeypatch.delenv("TFDS_DATA_DIR")
  monkeypatch.setenv("HOME", str(folders[1]))
  path = prepare("mnist", from_dir=str(folders[0]))
  assert path == folders[1] / "tensorflow_datasets" / "mnist" / "3.0.1"
  assert path.is_dir()


# The network, all of it on 127.0.0.1.


def test_downloads(fake, folders, monkeypatch, capsys):
  import tensorflow_datasets as tfds

  files = fake("kmnist")
  with serving(lambda handler: send(handler, files[handler.path[3:]])) as (url, asked):
    mirror(monkeypatch, "kmnist", f"{url}k/")
    path = prepare("kmnist", data_dir=str(folders[1]))
  assert sorted(asked) == sorted(f"/k/{file}" for file in files)
  source = tfds.builder_from_directory(path).as_data_source("train")
  np.testing.assert_array_equal(source[3]["image"], fake_examples("kmnist")["train"]["image"][3])
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == f"prepare: downloading {url}k/train-images-idx3-ubyte.gz (0.0 MB)"
  assert len(lines) == 6
  assert left_in(folders[1])[:2] == ["kmnist", "kmnist/3.0.1"]


def test_progress_bar_on_a_terminal(fake, folders, monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  screen = Terminal()
  fake("mnist")
  monkeypatch.setattr(sys, "stderr", screen)
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "120")
  prepare("mnist", data_dir=str(folders[1]), from_dir=str(folders[0]))
  assert "100%" in screen.getvalue()
  assert "writing mnist-train.array_record" in screen.getvalue()


def closed_port():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def test_unreachable_host(fake, folders, monkeypatch, capsys):
  fake("mnist")
  url = f"http://127.0.0.1:{closed_port()}/"
  mirror(monkeypatch, "mnist", url)
  text = refused(DataError, 4, "mnist", folders, from_dir=False)
  assert f"could not reach {url}train-images-idx3-ubyte.gz (" in text
  assert "Connection refused" in text
  assert "--from-dir DIR. Expected: train-images-idx3-ubyte.gz" in text
  assert "could not reach" in capsys.readouterr().err


def test_next_mirror_and_it_says_so(fake, folders, monkeypatch, capsys):
  files = fake("mnist")
  dead = f"http://127.0.0.1:{closed_port()}/"
  with serving(lambda handler: send(handler, files[handler.path[1:]])) as (url, asked):
    mirror(monkeypatch, "mnist", dead, url)
    prepare("mnist", data_dir=str(folders[1]))
  assert len(asked) == 4
  assert capsys.readouterr().err.count(f"prepare: could not reach {dead}") == 4


def test_stalled_server_times_out(fake, folders, monkeypatch):
  files = fake("mnist")
  release = threading.Event()

  def stall(handler):
    data = files[handler.path[1:]]
    send(handler, data[:100], length=len(data))
    release.wait(20)

  monkeypatch.setattr(prepare_module, "_TIMEOUT", 0.3)
  started = time.monotonic()
  with serving(stall) as (url, asked):
    mirror(monkeypatch, "mnist", url)
    try:
      text = refused(DataError, 4, "mnist", folders, from_dir=False)
    finally:
      release.set()
  assert time.monotonic() - started < 10
  assert f"{url}train-images-idx3-ubyte.gz (no answer for 0.3 s)" in text
  assert len(asked) == 1  # no silent second try


def test_silent_server_times_out(fake, folders, monkeypatch):
  fake("mnist")
  monkeypatch.setattr(prepare_module, "_TIMEOUT", 0.3)
  with socket.create_server(("127.0.0.1", 0)) as server:
    mirror(monkeypatch, "mnist", f"http://127.0.0.1:{server.getsockname()[1]}/")
    text = refused(DataError, 4, "mnist", folders, from_dir=False)
  assert "(no answer for 0.3 s)" in text


def test_connection_that_breaks_off(fake, folders, monkeypatch):
  files = fake("mnist")
  size = len(files["train-images-idx3-ubyte.gz"])
  with serving(lambda handler: send(handler, b"x" * 100, length=size)) as (url, _):
    mirror(monkeypatch, "mnist", url)
    text = refused(DataError, 4, "mnist", folders, from_dir=False)
  assert "could not reach" in text
  assert f"(broke off after 100 of {size} bytes)" in text or "IncompleteRead" in text


def test_http_error(fake, folders, monkeypatch):
  fake("mnist")
  with serving(lambda handler: handler.send_error(404)) as (url, _):
    mirror(monkeypatch, "mnist", url)
    text = refused(DataError, 4, "mnist", folders, from_dir=False)
  assert f"{url}train-images-idx3-ubyte.gz (HTTP Error 404: Not Found)" in text


@pytest.mark.parametrize("name", ["mnist", "cifar100"])
def test_server_with_wrong_bytes(name, fake, folders, monkeypatch):
  files = fake(name)
  file = next(iter(prepare_module._ORIGINALS[name]))
  wrong = b"x" * len(files[file])
  with serving(lambda handler: send(handler, wrong)) as (url, asked):
    mirror(monkeypatch, name, url)
    text = refused(DataError, 4, name, folders, from_dir=False)
  assert asked == [f"/{file}"]
  assert f"{file} from the network is not the original of {name}" in text
  assert hashlib.sha256(files[file]).hexdigest() in text
  assert hashlib.sha256(wrong).hexdigest() in text


def test_endless_server_is_cut_off(fake, folders, monkeypatch):
  fake("mnist")
  sent = []

  def forever(handler):
    handler.send_response(200)
    handler.end_headers()
    while len(sent) < 10_000:
      handler.wfile.write(b"x" * 65536)
      sent.append(1)

  with serving(forever) as (url, _):
    mirror(monkeypatch, "mnist", url)
    text = refused(DataError, 4, "mnist", folders, from_dir=False)
  assert "is not the original of mnist" in text
  assert 0 < len(sent) < 1_000


# Names that are not among the five.


@pytest.mark.parametrize(
  ("name", "hint"),
  [("mnits", "mnist"), ("CIFAR-10", "cifar10"), ("FashionMNIST", "fashion_mnist")],
)
def test_unknown_name(name, hint, folders, offline):
  text = refused(ConfigError, 2, name, folders)
  assert f"unknown data set {name!r}" in text
  assert f"Did you mean {hint!r}?" in text
  assert not folders[1].exists()


@pytest.mark.parametrize("name", ["../mnist", "", "huggingface:mnist", "zzzzzzzzqqqq"])
def test_unknown_name_without_a_neighbour(name, folders, offline):
  assert f"unknown data set {name!r}" in refused(ConfigError, 2, name, folders)


def test_tensorflow_missing(folders, monkeypatch, offline):
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *rest: None if name == "tensorflow" else find_spec(name, *rest),
  )
  text = refused(ConfigError, 2, "svhn_cropped", folders, from_dir=False)
  assert "svhn_cropped needs TensorFlow, which is not installed" in text
  assert "pip install 'djax[prepare]'" in text
  assert "mnist, fashion_mnist, kmnist, cifar10, cifar100" in text
  text = refused(ConfigError, 2, "svhn_cropped", folders)
  assert "--from-dir works for mnist, fashion_mnist, kmnist, cifar10, cifar100" in text


class FakeBuilder:
  def __init__(self, name, *, data_dir, file_format):
    assert (name, file_format) == ("emnist/balanced", "array_record")
    self.data_dir = f"{data_dir}/emnist/balanced/3.1.0"

  def is_prepared(self):
    return pathlib.Path(self.data_dir).is_dir()

  def download_and_prepare(self):
    pathlib.Path(self.data_dir).mkdir(parents=True)


@pytest.fixture
def with_tensorflow(monkeypatch):
  """Lets the code believe that TensorFlow is there."""
  found = importlib.util.find_spec("json")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: found)


def test_other_sets_go_through_tfds(folders, monkeypatch, capsys, with_tensorflow):
  import tensorflow_datasets as tfds

  monkeypatch.setattr(tfds, "builder", FakeBuilder)
  path = prepare("emnist/balanced", data_dir=str(folders[1]))
  assert path == folders[1] / "emnist" / "balanced" / "3.1.0"
  assert path.is_dir()
  assert capsys.readouterr().err == ""
  assert prepare("emnist/balanced", data_dir=str(folders[1])) == path
  assert capsys.readouterr().err == f"prepare: already prepared, left as it is: {path}\n"


def test_tfds_failure_is_one_line(folders, monkeypatch, with_tensorflow):
  import tensorflow_datasets as tfds

  def fail(*args, **kwargs):
    raise AssertionError("Manual directory\n  must be set")

  monkeypatch.setattr(tfds, "builder", fail)
  text = refused(DataError, 4, "imagenet2012", folders, from_dir=False)
  assert text == (
    "prepare: TFDS could not prepare imagenet2012: AssertionError: Manual directory must be set"
  )
