import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import tracemalloc

import pytest
from helpers.alarm import alarm
from helpers.descriptors import opened

from djax.errors import DataError
from djax.io import files, foreign
from djax.io.foreign import Content, ForeignFileError, MissingFileError

LIMIT = 1 << 16


@pytest.fixture(autouse=True)
def no_waiting():
  """A pipe must not hold us: what waits ends after a minute."""
  with alarm(60):
    yield


def content(data):
  return Content(len(data), hashlib.sha256(data).hexdigest())


def copy(folder, name):
  """Copies a file that should hold ``abc``; the place is told apart from what is read."""
  with foreign.private_copies(folder, {name: content(b"abc")}) as copies:
    return (copies / name).read_bytes()


def unbuffered(folder, name):
  with foreign.opened(folder, name, limit=LIMIT) as file:
    return file.read()


# Every way to a file's content, and what each makes of a file with ``abc``.
WAYS = {
  "opened": (unbuffered, b"abc"),
  "read": (lambda folder, name: foreign.read(folder, name, limit=LIMIT), b"abc"),
  "digest": (lambda folder, name: foreign.digest(folder, name, limit=LIMIT), content(b"abc")),
  "copy": (copy, b"abc"),
  "size_of": (foreign.size_of, 3),
}
CONTENTS = {name: way for name, way in WAYS.items() if name != "size_of"}


@pytest.fixture(params=list(WAYS))
def way(request):
  return WAYS[request.param][0]


def refused(way, folder, name, message, *, error=ForeignFileError):
  """Asserts a refusal in one line that names the file, gives nothing of it, and leaves no file open."""
  before = opened()
  with pytest.raises(DataError, match=message) as caught:
    way(folder, name)
  assert type(caught.value) is error
  assert caught.value.exit_code == 4
  assert "\n" not in str(caught.value)
  assert str(folder) in str(caught.value)
  # What the parser or the file system said is not shown in a traceback either.
  assert caught.value.__context__ is None or caught.value.__suppress_context__
  assert not opened() - before


# What is a file is read, whole.


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("place", ["x", "a/x", "a/b.c/x-1_2.npz", "größe/鍵", "..x", "a b"])
def test_files_are_read(tmp_path, name, place):
  (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / place).write_bytes(b"abc")
  take, expect = WAYS[name]
  assert take(tmp_path, place) == expect


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_pieces_make_the_whole(tmp_path, size):
  data = os.urandom(size)
  (tmp_path / "x").write_bytes(data)
  assert foreign.read(tmp_path, "x", limit=size) == data
  assert foreign.digest(tmp_path, "x", limit=size) == content(data)
  assert foreign.size_of(tmp_path, "x") == size
  with foreign.private_copies(tmp_path, {"x": content(data)}) as copies:
    assert (copies / "x").read_bytes() == data


def test_the_folder_itself_may_be_a_link(tmp_path, way):
  (tmp_path / "real").mkdir()
  (tmp_path / "real" / "x").write_bytes(b"abc")
  (tmp_path / "link").symlink_to("real")
  assert way(tmp_path / "link", "x") == way(tmp_path / "real", "x")
  assert foreign.names(tmp_path / "link") == ["x"]


def test_a_folder_given_relative_to_here(tmp_path, monkeypatch, way):
  (tmp_path / "x").write_bytes(b"abc")
  monkeypatch.chdir(tmp_path)
  assert way(pathlib.Path(), "x") == way(tmp_path, "x")


# What is no file is refused.


@pytest.mark.parametrize("target", ["x", "/dev/zero", "/etc/passwd", "nothing", "folder", "link"])
def test_links_are_refused(tmp_path, way, target):
  (tmp_path / "x").write_bytes(b"abc")
  (tmp_path / "folder").mkdir()
  (tmp_path / "link").symlink_to(target)
  refused(way, tmp_path, "link", "link must be a regular file, is a symbolic link. It was not read")


def test_a_link_on_the_way_is_refused(tmp_path, way):
  (tmp_path / "real" / "deep").mkdir(parents=True)
  (tmp_path / "real" / "deep" / "x").write_bytes(b"abc")
  (tmp_path / "link").symlink_to("real")
  (tmp_path / "real" / "self").symlink_to(".")
  assert way(tmp_path, "real/deep/x")
  for name in ("link/deep/x", "real/self/deep/x"):
    refused(way, tmp_path, name, "must be reached through folders; a part of it is a link or no")


def test_a_file_on_the_way_is_refused(tmp_path, way):
  (tmp_path / "x").write_bytes(b"abc")
  os.mkfifo(tmp_path / "pipe")
  for name in ("x/x", "pipe/x"):
    refused(way, tmp_path, name, "must be reached through folders")
  refused(way, tmp_path / "x", "x", "must be reached through folders")


def test_a_pipe_is_refused_at_once(tmp_path, way):
  os.mkfifo(tmp_path / "x")
  refused(way, tmp_path, "x", "x must be a regular file, is a pipe. It was not read")
  # With a writer at its other end it would give data.
  with open(tmp_path / "x", "r+b", buffering=0) as writer:
    writer.write(b"abc")
    refused(way, tmp_path, "x", "is a pipe")
    assert writer.read(3) == b"abc"


def test_folders_and_sockets_are_refused(tmp_path, way, monkeypatch):
  (tmp_path / "folder").mkdir()
  monkeypatch.chdir(tmp_path)  # names of sockets are short
  with socket.socket(socket.AF_UNIX) as bound:
    bound.bind("socket")
    refused(way, tmp_path, "folder", "folder must be a regular file, is a folder")
    refused(way, tmp_path, "socket", "socket must be a regular file, is a socket")


@pytest.mark.parametrize(("kind", "minor"), [(stat.S_IFCHR, 5), (stat.S_IFBLK, 0)])
def test_devices_are_refused_and_never_opened(tmp_path, way, monkeypatch, kind, minor):
  try:
    os.mknod(tmp_path / "x", kind | 0o600, os.makedev(1, minor))  # /dev/zero, /dev/ram0
  except PermissionError:
    pytest.skip("needs root, to make a device")
  real, taken = os.open, []
  monkeypatch.setattr(
    os, "open", lambda path, *args, **kwargs: (taken.append(path), real(path, *args, **kwargs))[1]
  )
  refused(way, tmp_path, "x", "x must be a regular file, is a device. It was not read")
  assert "x" not in [os.path.basename(path) for path in taken]


def test_real_devices_are_refused(way):
  refused(way, pathlib.Path("/dev"), "zero", "/dev/zero must be a regular file, is a device")


def test_missing_files(tmp_path, way):
  refused(way, tmp_path, "x", "x must exist, it does not", error=MissingFileError)
  refused(way, tmp_path, "a/x", "a/x must exist, it does not", error=MissingFileError)
  refused(way, tmp_path / "no", "x", "no/x must exist, it does not", error=MissingFileError)
  assert issubclass(MissingFileError, ForeignFileError) and issubclass(ForeignFileError, DataError)


@pytest.mark.parametrize("name", CONTENTS)
def test_unreadable_files(tmp_path, name):
  if not os.geteuid():
    pytest.skip("root reads everything")
  (tmp_path / "x").write_bytes(b"abc")
  (tmp_path / "x").chmod(0)
  refused(CONTENTS[name][0], tmp_path, "x", "x must be readable: Permission denied")


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_that_cannot_be_opened_or_read(tmp_path, monkeypatch, name):
  (tmp_path / "x").write_bytes(b"abc")
  real = os.open

  def deny(path, *args, **kwargs):
    if path == "x":
      raise PermissionError(errno.EACCES, "Permission denied")
    return real(path, *args, **kwargs)

  monkeypatch.setattr(os, "open", deny)
  refused(CONTENTS[name][0], tmp_path, "x", "x must be readable: Permission denied")


@pytest.mark.parametrize("name", ["read", "digest"])
def test_a_disk_that_fails_while_it_is_read(name):
  # The memory of this process, where nothing lies: reading gives EIO.
  assert stat.S_ISREG(os.stat("/proc/self/mem").st_mode)
  way = CONTENTS[name][0]
  refused(
    way, pathlib.Path("/proc") / str(os.getpid()), "mem", "mem must be readable: Input/output"
  )


@pytest.mark.parametrize(
  "name",
  [
    "",
    ".",
    "..",
    "../x",
    "a/../x",
    "a/../../x",
    "/etc/passwd",
    "a//x",
    "a/",
    "./x",
    "x\0",
    "\ud800",
    "x\udfff",
  ],
)
def test_names_that_lead_elsewhere_or_cannot_be(tmp_path, way, name):
  (tmp_path / "set" / "a").mkdir(parents=True)
  for place in (tmp_path, tmp_path / "set", tmp_path / "set" / "a"):
    (place / "x").write_bytes(b"abc")
  before = sorted(tmp_path.rglob("*"))
  refused(way, tmp_path / "set", name, "must be the name of a file below it, it is not")
  assert sorted(tmp_path.rglob("*")) == before


def test_where_backslashes_part_names_they_lead_nowhere(tmp_path, way, monkeypatch):
  (tmp_path / "..\\x").write_bytes(b"abc")
  (tmp_path / "c:x").write_bytes(b"abc")
  assert way(tmp_path, "..\\x") and way(tmp_path, "c:x")
  monkeypatch.setattr(os, "sep", "\\")
  for name in ("..\\x", "c:x"):
    refused(way, tmp_path, name, "must be the name of a file below it")


def test_a_name_with_bytes_that_are_no_text(tmp_path, way):
  name = os.fsdecode(b"\xff\xfe")
  (tmp_path / name).write_bytes(b"abc")
  assert way(tmp_path, name)


def test_where_folders_cannot_be_held_open(tmp_path, way, monkeypatch):
  """As on Windows: the same is read, and links are refused if they are there when it is looked."""
  monkeypatch.setattr(foreign, "_HOLDS_FOLDERS", False)
  (tmp_path / "real").mkdir()
  (tmp_path / "real" / "x").write_bytes(b"abc")
  (tmp_path / "link").symlink_to("real")
  (tmp_path / "real" / "link").symlink_to("x")
  os.mkfifo(tmp_path / "pipe")
  assert way(tmp_path, "real/x")
  for name in ("link/x", "real/link"):
    refused(way, tmp_path, name, "a link")
  refused(way, tmp_path, "pipe", "is a pipe")
  refused(way, tmp_path, "y", "must exist", error=MissingFileError)


def test_the_door_loads_nothing_heavy():
  code = "import sys; from djax.io import escape, files, foreign; print(*sys.modules)"
  root = pathlib.Path(foreign.__file__).parents[2]
  loaded = subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True).split()
  assert "djax.io.foreign" in loaded
  assert not {"jax", "numpy", "cryptography", "tensorflow_datasets", "djax.keys"} & set(loaded)


# Limits.


@pytest.mark.parametrize("name", ["opened", "read", "digest"])
def test_the_limit_is_the_greatest_length(tmp_path, name):
  (tmp_path / "x").write_bytes(b"a" * LIMIT)
  CONTENTS[name][0](tmp_path, "x")
  (tmp_path / "x").write_bytes(b"a" * (LIMIT + 1))
  message = f"x must have at most {LIMIT} bytes, has {LIMIT + 1}. It was not read"
  refused(CONTENTS[name][0], tmp_path, "x", message)


@pytest.mark.parametrize("name", CONTENTS)
def test_ten_gigabytes_of_nothing_are_refused_without_reading(tmp_path, name):
  (tmp_path / "x").touch()
  os.truncate(tmp_path / "x", 10 << 30)
  tracemalloc.start()
  start = time.monotonic()
  try:
    refused(CONTENTS[name][0], tmp_path, "x", "bytes, has 10737418240. It was not read")
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
  finally:
    tracemalloc.stop()
  assert time.monotonic() - start < 5
  assert foreign.size_of(tmp_path, "x") == 10 << 30


class Growing:
  """A file to which something is added whenever it is read, as by somebody else."""

  def __init__(self, file, path):
    self._file, self._path = file, path

  def __enter__(self):
    return self

  def __exit__(self, *reason):
    self._file.close()

  def fileno(self):
    return self._file.fileno()

  def read(self, size):
    piece = self._file.read(size)
    with self._path.open("ab") as more:
      more.write(b"x" * 100)
    return piece


@pytest.mark.parametrize("name", ["read", "digest", "copy"])
def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch, name):
  path, real = tmp_path / "x", os.fdopen
  path.write_bytes(b"abc")

  def growing(descriptor, mode="r", *args, **kwargs):
    file = real(descriptor, mode, *args, **kwargs)
    return Growing(file, path) if mode == "rb" else file

  monkeypatch.setattr(os, "fdopen", growing)
  most = 3 if name == "copy" else LIMIT
  message = f"x must have at most {most} bytes, it grows while it is read"
  refused(CONTENTS[name][0], tmp_path, "x", message)
  assert path.stat().st_size < 2 * LIMIT + 1000


# Copies.


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"abd", "x is damaged: its SHA-256 is not the recorded one"),
    (b"ab", "x must have 3 bytes, has 2"),
    (b"", "x must have 3 bytes, has 0"),
    (b"abcd", "x must have at most 3 bytes, has 4"),
  ],
)
def test_other_content_is_not_handed_out(tmp_path, data, message):
  (tmp_path / "x").write_bytes(data)
  refused(copy, tmp_path, "x", message)
  (tmp_path / "private").mkdir()
  for target in (tmp_path / "private" / "y", tmp_path / "private" / "deep" / "y"):
    with pytest.raises(ForeignFileError, match=message):
      foreign.copy_file(tmp_path, "x", content(b"abc"), target)
    assert not target.exists()


def test_copies_are_private_and_go_away(tmp_path, monkeypatch):
  (tmp_path / "tmp").mkdir()
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
  (tmp_path / "set" / "a" / "b").mkdir(parents=True)
  (tmp_path / "set" / "x").write_bytes(b"abc")
  (tmp_path / "set" / "a" / "b" / "y").write_bytes(b"d")
  wanted = {"x": content(b"abc"), "a/b/y": content(b"d")}
  before = os.umask(0)
  try:
    with foreign.private_copies(tmp_path / "set", wanted) as copies:
      assert (copies / "x").read_bytes() == b"abc"
      assert (copies / "a" / "b" / "y").read_bytes() == b"d"
      assert [stat.S_IMODE(path.stat().st_mode) for path in (copies, copies / "x")] == [
        0o700,
        0o600,
      ]
      # Whatever becomes of the file, the copy stays.
      (tmp_path / "set" / "x").write_bytes(b"other")
      assert (copies / "x").read_bytes() == b"abc"
  finally:
    os.umask(before)
  assert not copies.exists()
  with pytest.raises(RuntimeError), foreign.private_copies(tmp_path / "set", {}) as copies:
    raise RuntimeError
  with pytest.raises(ForeignFileError), foreign.private_copies(tmp_path / "set", wanted):
    raise AssertionError("the first has changed")
  assert not list((tmp_path / "tmp").iterdir())


def test_a_copy_overwrites_nothing_and_follows_no_link(tmp_path):
  (tmp_path / "x").write_bytes(b"abc")
  (tmp_path / "mine").write_bytes(b"mine")
  (tmp_path / "link").symlink_to(tmp_path / "mine")
  for target in ("mine", "link"):
    with pytest.raises(FileExistsError):
      foreign.copy_file(tmp_path, "x", content(b"abc"), tmp_path / target)
  assert (tmp_path / "mine").read_bytes() == b"mine"


def test_a_full_disk_leaves_no_copy(tmp_path, monkeypatch):
  (tmp_path / "x").write_bytes(b"abc")

  class Full:
    def __enter__(self):
      return self

    def __exit__(self, *reason):
      pass

    def write(self, data):
      raise OSError(errno.ENOSPC, "No space left on device")

  def full(path):
    path.touch()
    return Full()

  monkeypatch.setattr(files, "private", full)
  with pytest.raises(OSError, match="No space left"):
    foreign.copy_file(tmp_path, "x", content(b"abc"), tmp_path / "y")
  assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("what", ["link", "pipe", "folder", "socket"])
def test_what_is_exchanged_between_look_and_opening_is_refused(tmp_path, monkeypatch, name, what):
  (tmp_path / "x").write_bytes(b"abc")
  (tmp_path / "y").write_bytes(b"abc")
  real = foreign._regular
  monkeypatch.chdir(tmp_path)

  def exchange(path, status):
    monkeypatch.setattr(foreign, "_regular", real)
    real(path, status)
    os.unlink("x")
    if what == "link":
      os.symlink("y", "x")
    elif what == "pipe":
      os.mkfifo("x")
    elif what == "folder":
      os.mkdir("x")
    else:
      with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("x")
    return status

  monkeypatch.setattr(foreign, "_regular", exchange)
  refused(CONTENTS[name][0], tmp_path, "x", "x must be")


GOOD, BAD = b"good" * 1000, b"evil" * 1000


def swapped(path, ways):
  """Exchanges a file again and again, as fast as can be, until told to stop."""
  stop = threading.Event()

  def work():
    while not stop.is_set():
      for way in ways:
        way()

  thread = threading.Thread(target=work)
  thread.start()
  return thread, stop


@pytest.mark.parametrize("what", ["link", "file", "pipe", "folder", "parent"])
@pytest.mark.slow
def test_what_is_exchanged_meanwhile_is_refused_or_not_seen(tmp_path, what):
  """500 copies beside a thread that exchanges the file: each copy holds what was asked for, or none is made."""
  home = tmp_path / "set"
  (home / "a").mkdir(parents=True)
  path, spare = home / "a" / "x", tmp_path / "spare"
  (tmp_path / "evil").mkdir()
  (tmp_path / "evil" / "x").write_bytes(BAD)
  (tmp_path / "good").write_bytes(GOOD)
  path.write_bytes(GOOD)

  def put(make):
    def place():
      make(spare)
      if path.is_dir():
        path.rmdir()
      if spare.is_dir() and path.exists():
        path.unlink()
      os.replace(spare, path)

    return place

  def parent():
    os.rename(home / "a", tmp_path / "aside")
    os.symlink(tmp_path / "evil", home / "a")
    os.unlink(home / "a")
    os.rename(tmp_path / "aside", home / "a")

  good = put(lambda spare: shutil.copyfile(tmp_path / "good", spare))
  bad = {
    "link": put(lambda spare: os.symlink(tmp_path / "evil" / "x", spare)),
    "file": put(lambda spare: shutil.copyfile(tmp_path / "evil" / "x", spare)),
    "pipe": put(lambda spare: os.mkfifo(spare)),
    "folder": put(lambda spare: os.mkdir(spare)),
  }
  thread, stop = swapped(path, [parent] if what == "parent" else [bad[what], good])
  ends = {"copied": 0, "refused": 0}
  deadline = time.monotonic() + 30
  try:
    # More than 500 where the thread was not let in.
    while sum(ends.values()) < 500 or (not ends["refused"] and time.monotonic() < deadline):
      try:
        with foreign.private_copies(home, {"a/x": content(GOOD)}) as copies:
          assert (copies / "a" / "x").read_bytes() == GOOD
        ends["copied"] += 1
      except ForeignFileError:
        ends["refused"] += 1
      # Without a hash, what is read is a file of the folder, never what a link shows.
      if what != "file":
        with contextlib.suppress(ForeignFileError):
          assert foreign.read(home, "a/x", limit=LIMIT) == GOOD
  finally:
    stop.set()
    thread.join()
  assert ends["refused"], "nothing was exchanged in time: this shows nothing"


def test_a_copy_that_looked_first_and_opened_then_would_be_fooled(tmp_path):
  """The twin of the test before: checking a name and opening it are two steps, and the exchange gets between."""
  path = tmp_path / "x"
  path.write_bytes(GOOD)
  (tmp_path / "evil").write_bytes(BAD)
  (tmp_path / "good").write_bytes(GOOD)

  def link():
    os.symlink(tmp_path / "evil", tmp_path / "spare")
    os.replace(tmp_path / "spare", path)

  def file():
    shutil.copyfile(tmp_path / "good", tmp_path / "spare")
    os.replace(tmp_path / "spare", path)

  thread, stop = swapped(path, [link, file])
  fooled, deadline = False, time.monotonic() + 30
  try:
    while not fooled and time.monotonic() < deadline:
      if hashlib.sha256(path.read_bytes()).hexdigest() == content(GOOD).sha256:
        fooled = path.read_bytes() == BAD
  finally:
    stop.set()
    thread.join()
  assert fooled


# Names.


def test_names_are_sorted(tmp_path):
  for name in ("b", "a", ".hidden", "größe"):
    (tmp_path / name).touch()
  (tmp_path / "c").mkdir()
  (tmp_path / "link").symlink_to("nothing")
  assert foreign.names(tmp_path) == sorted([".hidden", "a", "b", "c", "größe", "link"])
  assert foreign.names(tmp_path, most=6)
  with pytest.raises(ForeignFileError, match="must hold at most 5 entries, has more"):
    foreign.names(tmp_path, most=5)


def test_names_of_what_is_no_folder(tmp_path):
  (tmp_path / "x").touch()
  os.mkfifo(tmp_path / "pipe")
  for name in ("x", "pipe"):
    with pytest.raises(ForeignFileError, match=f"{name} must be reached through folders"):
      foreign.names(tmp_path / name)
  with pytest.raises(MissingFileError, match="no must exist"):
    foreign.names(tmp_path / "no")


# JSON.


@pytest.mark.parametrize(
  "value",
  [
    None,
    True,
    0,
    -(2**127),
    2**128 - 1,
    1.5,
    -0.0,
    1e308,
    5e-324,
    "größer 鍵",
    [],
    {},
    {"a": [1, {"b": None}], "": ""},
    [{"a": 1}, {"a": 2}],
  ],
)
def test_json_is_parsed(value):
  for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
    parsed = foreign.parse_json(text.encode())
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"NaN", "NaN is no number of JSON"),
    (b"[1, Infinity]", "Infinity is no number of JSON"),
    (b'{"a": -Infinity}', "-Infinity is no number of JSON"),
    (b"1e999", "1e999 is too large"),
    (b"[-1e999]", "-1e999 is too large"),
    (b"1" * 400 + b".5", "is too large"),
    (b'{"a": 1, "a": 1}', "a field stands twice"),
    (b'[{"b": {"a": 1, "c": 2, "a": 3}}]', "a field stands twice"),
    (b'{"a": 1, "\\u0061": 2}', "a field stands twice"),
    (b"[" * 100_000, "nested too deeply"),
    (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    (b'"\xff"', "codec can't decode"),
    (b'"\xed\xa0\x80"', "codec can't decode"),  # half a surrogate pair
    (b'"\xc0\x80"', "codec can't decode"),  # NUL, too long
    ('{"a": 1}'.encode("utf-16"), "codec can't decode"),
    (b"\xef\xbb\xbf{}", "BOM"),
    (b"9" * 5000, r"99999999999999999999\.\.\. has too many digits"),
    (b"1" + b"0" * 400, "has too many digits"),
    (b'{"a": -1%s}' % (b"0" * 39), "has too many digits"),
    (b"", "Expecting value"),
    (b"{} {}", "Extra data"),
    (b"{'a': 1}", "property name"),
    (b"[1,]", "Expecting value"),
    (b'"\n"', "Invalid control character"),
    (b"\x00", "Expecting value"),
    (b"01", "Extra data"),
    (b'{"a": 1', "delimiter"),
  ],
)
def test_what_is_no_json_is_a_value_error(data, message):
  start = time.monotonic()
  with pytest.raises(ValueError, match=message) as caught:
    foreign.parse_json(data)
  assert time.monotonic() - start < 5
  assert len(str(caught.value)) < 300


def test_every_number_that_is_parsed_can_be_a_float():
  for text in ("9" * 39, "-" + "9" * 39, "1e308"):
    float(foreign.parse_json(text.encode()))


def test_memory_of_parsed_json_is_as_said():
  for data in (b"[" + b"{}," * 300_000 + b"{}]", b"[" + b"[]," * 300_000 + b"[]]"):
    tracemalloc.start()
    try:
      foreign.parse_json(data)
      assert tracemalloc.get_traced_memory()[1] < 30 * len(data)
    finally:
      tracemalloc.stop()
