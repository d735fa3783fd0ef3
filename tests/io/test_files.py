import errno
import fcntl
import os
import pathlib
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from helpers.alarm import alarm
from helpers.fresh import ROOT, run_code

from djax import keys
from djax.errors import DjaxError, UnsafeError
from djax.io import files, locks
from djax.keys import keyfile
from djax.owner import ledger


@pytest.fixture(autouse=True)
def no_waiting():
  """A pipe must not hold us: what waits ends after a minute."""
  with alarm(300):
    yield


def names(folder):
  return sorted(entry.name for entry in folder.iterdir())


def mode(path):
  return stat.S_IMODE(os.lstat(path).st_mode)


def fail(*args, **kwargs):
  raise OSError(errno.EIO, "failed")


def write_file(target):
  with files.new_file(target) as file:
    file.write(b"new")


def write_folder(target):
  with files.new_folder(target) as place, files.private(place / "inner") as file:
    file.write(b"new")


WRITERS = pytest.mark.parametrize("write", [write_file, write_folder])
MAKER = {write_file: files.new_file, write_folder: files.new_folder}


def written(target):
  return (target / "inner" if target.is_dir() else target).read_bytes()


# What is written.


def test_a_file_is_written_and_can_be_read_back_before_it_has_its_name(tmp_path):
  with files.new_file(tmp_path / "x") as file:
    file.write(b"abc")
    file.seek(0)
    assert file.read() == b"abc"
    assert names(tmp_path) == [".x.djax-partial"]
    assert files.temporary_of(tmp_path / "x") == tmp_path / ".x.djax-partial"
    file.flush()
    assert files.temporary_of(tmp_path / "x").read_bytes() == b"abc"
  assert names(tmp_path) == ["x"]
  assert (tmp_path / "x").read_bytes() == b"abc"
  assert os.stat(tmp_path / "x").st_nlink == 1


def test_a_folder_is_written(tmp_path):
  with files.new_folder(tmp_path / "x") as place:
    (place / "deep" / "er").mkdir(parents=True)
    (place / "deep" / "er" / "file").write_text("abc")
    assert names(tmp_path) == [".x.djax-partial"] and place == files.temporary_of(tmp_path / "x")
  assert names(tmp_path) == ["x"]
  assert (tmp_path / "x" / "deep" / "er" / "file").read_text() == "abc"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_modes_do_not_follow_the_umask(tmp_path, umask):
  before = os.umask(umask)
  try:
    with files.new_file(tmp_path / "file"):
      assert mode(tmp_path / ".file.djax-partial") == 0o600
    with files.new_folder(tmp_path / "folder") as place:
      assert mode(place) == 0o700
      files.private(place / "inner").close()
    files.private(tmp_path / "alone").close()
    files.replace(tmp_path / "public", b"", mode=0o666)
    files.replace(tmp_path / "secret", b"", mode=0o600)
  finally:
    os.umask(before)
  assert mode(tmp_path / "file") == mode(tmp_path / "alone") == 0o600
  assert mode(tmp_path / "folder") == 0o700
  assert mode(tmp_path / "folder" / "inner") == 0o600
  assert mode(tmp_path / "public") == 0o666 & ~umask
  assert mode(tmp_path / "secret") == 0o600 & ~umask


def test_under_a_umask_that_takes_everything_an_ordinary_user_can_still_write(tmp_path):
  if os.geteuid():
    pytest.skip("needs root, to become somebody else")
  tmp_path.chmod(0o777)
  code = """
    import os, pathlib, sys
    from djax.io import files
    os.setuid(65534)
    os.umask(0o777)
    for place in map(pathlib.Path, sys.argv[1:]):
      with files.new_folder(place) as folder, files.private(folder / "inner") as file:
        file.write(b"new")
      with files.new_file(place.with_suffix(".file")) as file:
        file.write(b"new")
  """
  os.makedirs(f"/tmp/djax-test-{os.getpid()}", mode=0o755)
  place = pathlib.Path(f"/tmp/djax-test-{os.getpid()}")
  place.chmod(0o777)
  try:
    done = run_code(code, place / "x")
    assert done.returncode == 0, done.stderr
    assert names(place) == ["x", "x.file"]
  finally:
    files._remove(place)


# Nothing is overwritten.


@WRITERS
@pytest.mark.parametrize("kind", ["file", "folder", "dangling", "pipe"])
def test_what_exists_is_refused_and_stays(tmp_path, write, kind):
  target = tmp_path / "x"
  if kind == "file":
    target.write_text("mine")
  elif kind == "folder":
    target.mkdir()
  elif kind == "dangling":
    target.symlink_to(tmp_path / "nowhere")
  else:
    os.mkfifo(target)
  before = os.lstat(target)
  with pytest.raises(UnsafeError, match="x exists and is not overwritten"):
    write(target)
  assert names(tmp_path) == ["x"]
  assert os.path.samestat(os.lstat(target), before)
  with pytest.raises(UnsafeError, match="x exists and is not overwritten"):
    files.check_new(target)


def test_what_is_free_is_not_refused(tmp_path):
  files.check_new(tmp_path / "x")


@pytest.mark.parametrize("target", [".", "/", ""])
def test_a_target_without_a_name_exists(target):
  for write in (write_file, write_folder):
    with pytest.raises(UnsafeError, match="exists and is not overwritten"):
      write(pathlib.Path(target))


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_stays(tmp_path, monkeypatch, links):
  if not links:
    monkeypatch.setattr(os, "link", no_links)
  with (
    pytest.raises(UnsafeError, match="x exists and is not overwritten"),
    files.new_file(tmp_path / "x") as file,
  ):
    file.write(b"new")
    (tmp_path / "x").write_text("theirs")
  assert names(tmp_path) == ["x"]
  assert (tmp_path / "x").read_text() == "theirs"


@pytest.mark.parametrize("kind", ["file", "full folder", "empty folder"])
def test_a_folder_that_appears_meanwhile_stays(tmp_path, kind):
  target = tmp_path / "x"
  with (
    pytest.raises(UnsafeError, match="x exists and is not overwritten"),
    files.new_folder(target) as place,
  ):
    (place / "a").write_text("new")
    appear(target, kind)
  assert names(tmp_path) == ["x"]
  assert not (target / "a").exists()


def appear(target, kind):
  if kind == "file":
    target.write_text("theirs")
  else:
    target.mkdir()
    if kind == "full folder":
      (target / "theirs").mkdir()


@pytest.mark.parametrize("kind", ["file", "full folder"])
def test_a_folder_that_appears_in_the_last_moment_stays(tmp_path, monkeypatch, kind):
  rename = os.rename

  def late(old, new):
    appear(new, kind)
    rename(old, new)

  monkeypatch.setattr(os, "rename", late)
  with pytest.raises(UnsafeError, match="x exists and is not overwritten"):
    write_folder(tmp_path / "x")
  assert names(tmp_path) == ["x"]
  assert not (tmp_path / "x" / "inner").exists()


def no_links(*args, **kwargs):
  raise OSError(errno.EPERM, "Operation not permitted")


def test_a_disk_without_hard_links(tmp_path, monkeypatch):
  monkeypatch.setattr(os, "link", no_links)
  write_file(tmp_path / "x")
  assert names(tmp_path) == ["x"]
  assert written(tmp_path / "x") == b"new"
  assert mode(tmp_path / "x") == 0o600


def test_private_makes_new_files_only(tmp_path):
  with files.private(tmp_path / "x") as file:
    file.write(b"abc")
  with pytest.raises(FileExistsError):
    files.private(tmp_path / "x")
  (tmp_path / "link").symlink_to(tmp_path / "y")
  with pytest.raises(FileExistsError):
    files.private(tmp_path / "link")
  assert names(tmp_path) == ["link", "x"]
  assert (tmp_path / "x").read_bytes() == b"abc"


# What lies under the temporary name.


@WRITERS
def test_a_link_under_the_temporary_name_is_not_followed(tmp_path, write):
  (tmp_path / "home").mkdir()
  (tmp_path / "home" / "precious").write_text("mine")
  for there in ("precious", "nothing", "."):
    link = tmp_path / ".x.djax-partial"
    link.symlink_to(tmp_path / "home" / there)
    with pytest.raises(UnsafeError, match="is in the way: it is nothing that djax made"):
      write(tmp_path / "x")
    assert names(tmp_path) == [".x.djax-partial", "home"] and link.is_symlink()
    link.unlink()
  assert names(tmp_path / "home") == ["precious"]
  assert (tmp_path / "home" / "precious").read_text() == "mine"


@WRITERS
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "other"])
def test_other_things_under_the_temporary_name_do_not_hold_us(tmp_path, write, kind, monkeypatch):
  place = tmp_path / ".x.djax-partial"
  if kind == "pipe":
    os.mkfifo(place, 0o600)
  elif kind == "socket":
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as bound:
      bound.bind(place.name)
  elif kind == "device":
    try:
      os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
      pytest.skip("needs root, to make a device")
  elif write is write_file:
    place.mkdir()
  else:
    place.write_text("mine")
  before = os.lstat(place)
  with pytest.raises(UnsafeError, match="is in the way"):
    write(tmp_path / "x")
  assert names(tmp_path) == [place.name]
  assert os.path.samestat(os.lstat(place), before)


@WRITERS
def test_what_becomes_a_pipe_between_two_steps_does_not_hold_us(tmp_path, monkeypatch, write):
  place = tmp_path / ".x.djax-partial"
  place.mkdir() if write is write_folder else place.write_text("")
  check = files._could_be_left

  def swap(status, **kwargs):
    files._remove(place)
    os.mkfifo(place)
    monkeypatch.setattr(files, "_could_be_left", check)
    return check(status, **kwargs)

  monkeypatch.setattr(files, "_could_be_left", swap)
  with pytest.raises((UnsafeError, NotADirectoryError)):
    write(tmp_path / "x")
  assert names(tmp_path) == [place.name]


@WRITERS
def test_what_another_user_put_there_is_not_written_into(tmp_path, monkeypatch, write):
  place = tmp_path / ".x.djax-partial"
  place.mkdir() if write is write_folder else place.write_text("theirs")
  if os.geteuid():
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
  else:
    os.chown(place, 12345, 12345)
  with pytest.raises(UnsafeError, match="is in the way"):
    write(tmp_path / "x")
  assert names(tmp_path) == [place.name]


def test_a_second_name_of_a_finished_file_is_not_written_into(tmp_path):
  # A kill between the two steps of publishing leaves two names; then the owner moved the file.
  write_file(tmp_path / "x")
  os.link(tmp_path / "x", tmp_path / ".x.djax-partial")
  (tmp_path / "x").rename(tmp_path / "moved")
  with files.new_file(tmp_path / "x") as file:
    file.write(b"another")
  assert names(tmp_path) == ["moved", "x"]
  assert (tmp_path / "moved").read_bytes() == b"new"
  assert (tmp_path / "x").read_bytes() == b"another"


# Failures, kills, other processes.


class Trouble(BaseException):
  pass


@pytest.mark.parametrize("failure", [Trouble(), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_an_exception_leaves_nothing(tmp_path, failure):
  with pytest.raises(type(failure)), files.new_file(tmp_path / "x") as file:
    file.write(b"half")
    raise failure
  with pytest.raises(type(failure)), files.new_folder(tmp_path / "x") as place:
    (place / "deep").mkdir()
    (place / "deep" / "half").write_text("half")
    raise failure
  assert names(tmp_path) == []
  write_file(tmp_path / "x")


@WRITERS
@pytest.mark.parametrize("step", ["open", "fchmod", "fsync", "link", "rename", "mkdir"])
@pytest.mark.parametrize("failure", [OSError(errno.EIO, "failed"), Trouble()])
def test_a_step_that_fails_leaves_nothing_half(tmp_path, monkeypatch, write, step, failure):
  def fail(*args, **kwargs):
    failed.append(step)
    raise failure

  failed = []
  with monkeypatch.context() as patch:
    patch.setattr(os, step, fail)
    try:
      write(tmp_path / "x")
    except type(failure):
      assert names(tmp_path) == []
    else:  # a step that this writer does without, or that has another way
      assert names(tmp_path) == ["x"]
      assert not failed or step == "link"
      files._remove(tmp_path / "x")
  write(tmp_path / "x")
  assert written(tmp_path / "x") == b"new"


def test_a_second_name_that_stays_is_no_failure(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(os, "unlink", fail)
    write_file(tmp_path / "x")
  assert names(tmp_path) == [".x.djax-partial", "x"]
  with pytest.raises(UnsafeError, match="x exists"):
    write_file(tmp_path / "x")
  assert names(tmp_path) == ["x"]
  assert written(tmp_path / "x") == b"new"


def test_a_file_that_cannot_be_wrapped_leaves_nothing(tmp_path, monkeypatch):
  before = len(os.listdir("/proc/self/fd"))
  with monkeypatch.context() as patch:
    patch.setattr(os, "fdopen", fail)
    with pytest.raises(OSError, match="failed"):
      write_file(tmp_path / "x")
  assert names(tmp_path) == []
  assert len(os.listdir("/proc/self/fd")) == before


@WRITERS
def test_what_fails_after_all_is_written_is_no_failure(tmp_path, monkeypatch, write):
  """Such as closing: the content was synced, the name was given."""
  close = os.close

  def closed(descriptor):
    close(descriptor)
    raise OSError(errno.EIO, "failed")

  before = len(os.listdir("/proc/self/fd"))
  with monkeypatch.context() as patch:
    if write is write_file:
      with files.new_file(tmp_path / "x") as file:
        file.write(b"new")
        patch.setattr(os, "close", closed)
    else:
      with files.new_folder(tmp_path / "x") as place:
        (place / "inner").write_bytes(b"new")
        patch.setattr(files, "sync_tree", lambda folder: None)
        patch.setattr(os, "close", closed)
  assert names(tmp_path) == ["x"]
  assert written(tmp_path / "x") == b"new"
  assert len(os.listdir("/proc/self/fd")) == before


@WRITERS
def test_no_file_stays_open(tmp_path, write):
  before = len(os.listdir("/proc/self/fd"))
  write(tmp_path / "x")
  with pytest.raises(UnsafeError):
    write(tmp_path / "x")
  with pytest.raises(Trouble), files.new_file(tmp_path / "y") as file:
    file.write(b"half")
    raise Trouble
  with pytest.raises(Trouble), files.new_folder(tmp_path / "y"):
    raise Trouble
  assert len(os.listdir("/proc/self/fd")) == before


KILLED = """
  import os, pathlib, sys
  from djax.io import files

  kind, how, target = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])

  def die(*args, **kwargs):
    if how == "exit":
      os._exit(1)
    os.kill(os.getpid(), 9)

  if kind == "file":
    with files.new_file(target) as file:
      file.write(b"half of it, and longer than what comes after it")
      file.flush()
      die()
  if kind == "folder":
    with files.new_folder(target) as place:
      (place / "deep").mkdir()
      (place / "deep" / "original").write_text("half")
      (place / "inner").write_text("half of it, and longer than what comes after it")
      (place / "link").symlink_to(target.parent / "kept")
      die()
  os.unlink = die
  with files.new_file(target) as file:
    file.write(b"new")
"""


@pytest.mark.parametrize("how", ["exit", "kill"])
@WRITERS
def test_what_a_killed_process_left_is_cleared_by_the_next_call(tmp_path, write, how):
  (tmp_path / "kept").mkdir()
  (tmp_path / "kept" / "mine").write_text("mine")
  kind = "file" if write is write_file else "folder"
  assert run_code(KILLED, kind, how, tmp_path / "x").returncode == (1 if how == "exit" else -9)
  assert names(tmp_path) == [".x.djax-partial", "kept"]
  write(tmp_path / "x")
  assert names(tmp_path) == ["kept", "x"]
  assert written(tmp_path / "x") == b"new"
  if write is write_folder:
    assert names(tmp_path / "x") == ["inner"]
  assert names(tmp_path / "kept") == ["mine"]


def test_a_kill_between_link_and_unlink_leaves_a_whole_file(tmp_path):
  assert run_code(KILLED, "published", "kill", tmp_path / "x").returncode == -9
  assert names(tmp_path) == [".x.djax-partial", "x"]
  assert written(tmp_path / "x") == b"new"
  with pytest.raises(UnsafeError, match="x exists"):
    write_file(tmp_path / "x")
  assert names(tmp_path) == ["x"]
  assert written(tmp_path / "x") == b"new"


def test_what_cannot_be_cleared_is_not_published(tmp_path, monkeypatch):
  run_code(KILLED, "folder", "kill", tmp_path / "x")

  monkeypatch.setattr(os, "rmdir", fail)
  with pytest.raises(OSError, match="failed"):
    write_folder(tmp_path / "x")
  assert not (tmp_path / "x").exists()


HOLDS = """
  import pathlib, sys
  from djax.io import files, locks

  target = pathlib.Path(sys.argv[2])
  lock = sys.argv[1] == "working_lock"
  with locks.working_lock(target, busy="no") if lock else getattr(files, sys.argv[1])(target):
    print("holds", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
  """Has another process hold a target until it is let go."""
  held = []

  def hold(function, target):
    process = subprocess.Popen(
      [sys.executable, "-c", textwrap.dedent(HOLDS), function, str(target)],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )
    held.append(process)
    assert process.stdout.readline() == b"holds\n"
    return process

  yield hold
  for process in held:
    process.kill()
    process.communicate()


@WRITERS
@pytest.mark.parametrize("end", ["done", "killed"])
def test_a_target_that_another_process_writes_is_refused(tmp_path, holder, write, end):
  process = holder(MAKER[write].__name__, tmp_path / "x")
  with pytest.raises(UnsafeError, match=r"is being written by another process\. Wait"):
    write(tmp_path / "x")
  assert names(tmp_path) == [".x.djax-partial"]
  if end == "killed":
    process.kill()
    process.wait()
    write(tmp_path / "x")
    return
  process.communicate(timeout=60)
  assert process.returncode == 0
  assert names(tmp_path) == ["x"]


@WRITERS
def test_of_two_in_one_process_one_is_refused(tmp_path, write):
  with MAKER[write](tmp_path / "x") as file:
    if write is write_file:
      file.write(b"first")
    with pytest.raises(UnsafeError, match="is being written"):
      write(tmp_path / "x")
  assert names(tmp_path) == ["x"]


RACES = """
  import os, pathlib, sys, time
  from djax.io import files
  from djax.errors import UnsafeError

  kind, folder, start = sys.argv[1], pathlib.Path(sys.argv[2]), float(sys.argv[3])
  words = f"{os.getpid()}".encode() * 100
  for attempt in range(20):
    target = folder / str(attempt)
    time.sleep(max(0, start + attempt / 20 - time.time()))
    try:
      if kind == "file":
        with files.new_file(target) as file:
          file.write(words[:50])
          file.flush()
          file.write(words[50:])
      else:
        with files.new_folder(target) as place:
          for name in "abc":
            (place / name).write_bytes(words)
      print(attempt)
    except UnsafeError:
      pass
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.slow
def test_of_many_at_a_time_one_writes_all_of_it(tmp_path, kind):
  command = [sys.executable, "-c", textwrap.dedent(RACES), kind, tmp_path, f"{time.time() + 1}"]
  racers = [
    subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(5)
  ]
  said = [racer.communicate(timeout=60)[0] for racer in racers]
  assert [racer.returncode for racer in racers] == [0] * len(racers)
  winners = {
    attempt: racer.pid
    for racer, lines in zip(racers, said, strict=True)
    for attempt in lines.split()
  }
  assert sum(len(lines.split()) for lines in said) == len(winners) == 20
  assert names(tmp_path) == sorted(winners)
  for attempt, winner in winners.items():
    target = tmp_path / attempt
    whole = [target] if kind == "file" else sorted(target.iterdir())
    assert len(whole) == (1 if kind == "file" else 3)
    assert [file.read_bytes() for file in whole] == [f"{winner}".encode() * 100] * len(whole)


def first(monkeypatch, place, name, instead):
  """Has a function do something else when it is called for the first time."""
  real = getattr(place, name)

  def call(*args, **kwargs):
    monkeypatch.setattr(place, name, real)
    return instead(real, *args, **kwargs)

  monkeypatch.setattr(place, name, call)


@WRITERS
@pytest.mark.parametrize("locked", [True, False])
def test_what_another_takes_for_something_left_is_made_again(tmp_path, monkeypatch, write, locked):
  def cleared(real, descriptor):
    files._remove(tmp_path / ".x.djax-partial")
    return real(descriptor) if locked else False

  first(monkeypatch, locks, "try_lock", cleared)
  write(tmp_path / "x")
  assert names(tmp_path) == ["x"]
  assert written(tmp_path / "x") == b"new"


def test_also_before_it_is_opened(tmp_path, monkeypatch):
  def cleared(real, path, mode):
    path.rmdir()
    real(path, mode)

  first(monkeypatch, pathlib.Path, "chmod", cleared)
  write_folder(tmp_path / "x")
  assert names(tmp_path) == ["x"]


@WRITERS
def test_a_target_that_is_finished_while_the_lock_is_waited_for_is_refused_first(
  tmp_path, monkeypatch, write
):
  def finished(real, descriptor):
    (tmp_path / "x").write_text("theirs")
    return real(descriptor)

  first(monkeypatch, locks, "try_lock", finished)
  with pytest.raises(UnsafeError, match="x exists"), MAKER[write](tmp_path / "x"):
    pytest.fail("work was done that is thrown away")
  assert names(tmp_path) == ["x"]


@WRITERS
def test_on_a_disk_without_locks_the_later_one_is_left_alone(tmp_path, monkeypatch, write):
  monkeypatch.setattr(locks, "try_lock", lambda descriptor: True)
  earlier, later = MAKER[write](tmp_path / "x"), MAKER[write](tmp_path / "x")
  earlier.__enter__()
  later.__enter__()
  with pytest.raises(UnsafeError, match="was taken away"):
    earlier.__exit__(None, None, None)
  assert names(tmp_path) == [".x.djax-partial"]
  later.__exit__(None, None, None)
  assert names(tmp_path) == ["x"]


@WRITERS
def test_on_a_disk_without_locks_what_another_put_there_is_not_published(
  tmp_path, monkeypatch, write
):
  monkeypatch.setattr(locks, "try_lock", lambda descriptor: True)
  with (
    pytest.raises(UnsafeError, match="was taken away while it was written"),
    MAKER[write](tmp_path / "x"),
  ):
    write(tmp_path / "x")
    assert names(tmp_path) == ["x"]
    before = os.stat(tmp_path / "x")
  assert os.path.samestat(os.stat(tmp_path / "x"), before)
  assert written(tmp_path / "x") == b"new"


# Durable.


@pytest.fixture
def events(monkeypatch):
  """What is synced and named, in order."""
  noted = []

  def note(name):
    real = getattr(os, name)

    def call(first, *args, **kwargs):
      if name == "fsync":
        noted.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{first}"))))
      else:
        noted.append((name, os.path.basename(args[0])))
      return real(first, *args, **kwargs)

    monkeypatch.setattr(os, name, call)

  for name in ("fsync", "link", "rename", "replace"):
    note(name)
  return noted


def test_a_file_is_synced_before_and_its_folder_after_it_is_named(tmp_path, events):
  write_file(tmp_path / "x")
  assert events == [("sync", ".x.djax-partial"), ("link", "x"), ("sync", tmp_path.name)]


def test_also_on_a_disk_without_hard_links(tmp_path, events, monkeypatch):
  monkeypatch.setattr(os, "link", no_links)
  write_file(tmp_path / "x")
  assert events == [("sync", ".x.djax-partial"), ("rename", "x"), ("sync", tmp_path.name)]


def test_a_tree_is_synced_before_and_its_folder_after_it_is_named(tmp_path, events):
  with files.new_folder(tmp_path / "x") as place:
    (place / "deep").mkdir()
    (place / "deep" / "a").write_text("a")
    (place / "b").write_text("b")
    (place / "link").symlink_to("b")
  assert sorted(events[:2]) == [("sync", "a"), ("sync", "b")]
  assert events[2:] == [
    ("sync", "deep"),
    ("sync", ".x.djax-partial"),
    ("rename", "x"),
    ("sync", tmp_path.name),
  ]


def test_a_replaced_file_is_synced_before_and_its_folder_after(tmp_path, events):
  files.replace(tmp_path / "x", b"abc")
  assert events == [("sync", ".x.tmp"), ("replace", "x"), ("sync", tmp_path.name)]


def test_a_disk_that_cannot_sync_folders_is_no_failure(tmp_path, monkeypatch):
  fsync = os.fsync

  def files_alone(descriptor):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
      raise OSError(errno.EINVAL, "Invalid argument")
    fsync(descriptor)

  monkeypatch.setattr(os, "fsync", files_alone)
  files.sync_folder(tmp_path)
  write_file(tmp_path / "x")
  write_folder(tmp_path / "y")
  assert names(tmp_path) == ["x", "y"]


def test_a_tree_that_cannot_be_read_is_not_called_synced(tmp_path, monkeypatch):
  with pytest.raises(FileNotFoundError):
    files.sync_tree(tmp_path / "missing")

  (tmp_path / "a").write_text("a")
  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(OSError, match="failed"):
    files.sync_tree(tmp_path)


def test_a_tree_with_a_pipe_does_not_hold_us(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  files.sync_tree(tmp_path)


# Replacing.


def test_replace_writes_and_writes_again(tmp_path):
  for data in (b"first, and longer", b"second"):
    files.replace(tmp_path / "x", data)
    assert (tmp_path / "x").read_bytes() == data
  assert names(tmp_path) == ["x"]


def test_replace_replaces_a_link_and_does_not_follow_it(tmp_path):
  (tmp_path / "precious").write_text("mine")
  for name in ("x", ".x.tmp"):
    (tmp_path / name).symlink_to(tmp_path / "precious")
  files.replace(tmp_path / "x", b"new")
  assert not (tmp_path / "x").is_symlink()
  assert names(tmp_path) == ["precious", "x"]
  assert (tmp_path / "precious").read_text() == "mine"


def test_replace_is_not_held_by_a_pipe(tmp_path):
  os.mkfifo(tmp_path / ".x.tmp")
  os.mkfifo(tmp_path / "x")
  files.replace(tmp_path / "x", b"new")
  assert (tmp_path / "x").read_bytes() == b"new"


def test_replace_with_its_temporary_file_elsewhere(tmp_path, monkeypatch):
  (tmp_path / "work").mkdir()
  seen = []
  replace = os.replace
  monkeypatch.setattr(
    os, "replace", lambda old, new: (seen.append(names(tmp_path)), replace(old, new))
  )
  files.replace(tmp_path / "x", b"new", folder=tmp_path / "work")
  assert seen == [["work"]]
  assert names(tmp_path) == ["work", "x"] and names(tmp_path / "work") == []


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_failed_replace_keeps_the_old_file(tmp_path, monkeypatch, step):
  files.replace(tmp_path / "x", b"old")

  with monkeypatch.context() as patch:
    patch.setattr(os, step, fail)
    with pytest.raises(OSError, match="failed"):
      files.replace(tmp_path / "x", b"new")
  assert names(tmp_path) == ["x"]
  assert (tmp_path / "x").read_bytes() == b"old"


def test_a_killed_replace_is_cleared_by_the_next(tmp_path):
  code = """
    import os, pathlib, sys
    from djax.io import files
    os.replace = lambda *args: os.kill(os.getpid(), 9)
    files.replace(pathlib.Path(sys.argv[1]), b"half")
  """
  files.replace(tmp_path / "x", b"old")
  assert run_code(code, tmp_path / "x").returncode == -9
  assert names(tmp_path) == [".x.tmp", "x"]
  assert (tmp_path / "x").read_bytes() == b"old"
  files.replace(tmp_path / "x", b"new")
  assert names(tmp_path) == ["x"]


def test_a_link_that_appears_at_the_temporary_name_of_replace_is_not_followed(
  tmp_path, monkeypatch
):
  (tmp_path / "precious").write_text("mine")
  (tmp_path / ".x.tmp").symlink_to("precious")
  monkeypatch.setattr(pathlib.Path, "unlink", lambda *args, **kwargs: None)
  with pytest.raises(FileExistsError):
    files.replace(tmp_path / "x", b"new")
  assert (tmp_path / "precious").read_text() == "mine"


# Working locks.


def test_a_working_lock_keeps_others_out_until_its_process_ends(tmp_path, holder):
  lock = tmp_path / ".lock"
  process = holder("working_lock", lock)
  with (
    pytest.raises(UnsafeError, match=r"^taken\. Wait\.$"),
    locks.working_lock(lock, busy="taken. Wait."),
  ):
    pytest.fail("two hold it")
  process.kill()
  process.wait()
  with locks.working_lock(lock, busy="taken"):
    assert names(tmp_path) == [".lock"]
    with pytest.raises(UnsafeError, match="taken"), locks.working_lock(lock, busy="taken"):
      pytest.fail("two hold it")
  with locks.working_lock(lock, busy="taken"):
    pass
  assert names(tmp_path) == [".lock"]


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder", "device"])
def test_a_working_lock_is_a_file(tmp_path, kind):
  lock = tmp_path / ".lock"
  (tmp_path / "precious").write_text("mine")
  if kind == "pipe":
    os.mkfifo(lock)
  elif kind == "folder":
    lock.mkdir()
  elif kind == "device":
    try:
      os.mknod(lock, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
      pytest.skip("needs root, to make a device")
  else:
    lock.symlink_to(tmp_path / ("precious" if kind == "link" else "nothing"))
  with (
    pytest.raises(UnsafeError, match="is in the way"),
    locks.working_lock(lock, busy="taken"),
  ):
    pytest.fail("it is held")
  assert names(tmp_path) == [".lock", "precious"]


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_working_lock_follows_no_link_that_appears_meanwhile(tmp_path, monkeypatch, kind):
  lock = tmp_path / ".lock"
  lock.symlink_to("nothing") if kind == "link" else os.mkfifo(lock)
  monkeypatch.setattr(os.path, "lexists", lambda path: False)
  with pytest.raises((UnsafeError, OSError)), locks.working_lock(lock, busy="taken"):
    pytest.fail("it is held")
  assert names(tmp_path) == [".lock"]


def test_a_working_lock_in_a_missing_folder_is_an_oserror(tmp_path):
  with pytest.raises(FileNotFoundError), locks.working_lock(tmp_path / "no" / "x", busy="taken"):
    pytest.fail("it is held")


def test_a_lock_that_is_waited_for_is_given_when_the_other_ends(tmp_path, holder):
  lock = tmp_path / "lock"
  process = holder("working_lock", lock)
  threading.Timer(0.5, process.kill).start()
  start = time.monotonic()
  descriptor = os.open(lock, os.O_RDWR)
  try:
    locks.wait_for_lock(descriptor)
    assert time.monotonic() - start > 0.2
    with pytest.raises(UnsafeError, match="taken"), locks.working_lock(lock, busy="taken"):
      pytest.fail("two hold it")
  finally:
    os.close(descriptor)


def test_disks_without_locks_are_written_without(tmp_path, monkeypatch):
  def unknown(*args):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", unknown)
  write_file(tmp_path / "a")
  write_folder(tmp_path / "b")
  with locks.working_lock(tmp_path / "lock", busy="taken"):
    pass
  locks.wait_for_lock(0)
  assert names(tmp_path) == ["a", "b", "lock"]


NO_FCNTL = """
  import sys
  from pathlib import Path
  sys.modules["fcntl"] = None
  """


@pytest.mark.slow
def test_without_fcntl_everything_is_imported():
  done = run_code(
    NO_FCNTL
    + """
  import djax, djax.__main__, djax.keys.keyfile, djax.ops.blocks, djax.ops.rmt, djax.owner.export, djax.owner.ledger
  import train, train.__main__, train.config, train.loop, train.answer
  print(djax.io.locks.fcntl)
  """
  )
  assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr


@pytest.mark.parametrize(
  "work",
  [
    "djax.__main__.main(['keygen', str(out / 'new'), '--no-passphrase'])",
    "djax.__main__.main(['disguise', '--source', 'digits', '--scheme', 'rmt', '--block-size', '2', '--key', "
    "str(out / 'key'), '--no-ledger', '--out', str(out / 'new')])",
    "train.__main__.main(['--workdir', str(out / 'new')])",
  ],
  ids=["keygen", "disguise", "train"],
)
@pytest.mark.slow
def test_without_fcntl_what_needs_a_lock_ends_in_a_line_and_writes_nothing(
  tmp_path, work, monkeypatch
):
  # Without fcntl JAX waits for lock files of the other tests' cache, ten seconds a program.
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  keyfile.write(tmp_path / "key", keys.Master(bytes(32)), passphrase=None)
  done = run_code(
    NO_FCNTL
    + f"""
  import djax.__main__, train.__main__
  out = Path(sys.argv[1])
  sys.exit({work})
  """,
    tmp_path,
  )
  assert done.returncode == 1
  line = done.stderr.splitlines()[-1]
  assert f"{tmp_path}/new must be locked while it is written" in line
  assert "file locking is not available on this platform" in line
  assert "Traceback" not in done.stderr
  assert names(tmp_path) == ["key"]


def test_without_fcntl_the_ledger_is_not_begun(tmp_path, monkeypatch):
  monkeypatch.setattr(locks, "fcntl", None)
  book = ledger.Ledger(tmp_path / "key.ledger")
  with pytest.raises(DjaxError, match="file locking is not available"), book._opened():
    pytest.fail("it is open")
  assert names(tmp_path) == []


def test_threads_that_write_other_targets_do_not_meet(tmp_path):
  def work(number):
    for attempt in range(20):
      write_file(tmp_path / f"{number}-{attempt}")

  threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(names(tmp_path)) == 80


def test_a_second_name_of_a_finished_file_goes_when_the_command_is_repeated(tmp_path):
  """A kill between link and unlink leaves it; who asks again is refused, and used to leave it for ever."""
  target = tmp_path / "back.npz"
  target.write_bytes(b"whole")
  os.link(target, files.temporary_of(target))
  with pytest.raises(UnsafeError, match="exists and is not overwritten"):
    files.check_new(target)
  assert [path.name for path in tmp_path.iterdir()] == ["back.npz"]
  assert target.read_bytes() == b"whole"
  # Another file under that name is none of ours.
  files.temporary_of(target).write_bytes(b"other")
  with pytest.raises(UnsafeError):
    files.check_new(target)
  assert files.temporary_of(target).read_bytes() == b"other"
