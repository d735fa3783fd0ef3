import base64
import json
import math
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import time

import pytest
from helpers.fresh import ROOT
from helpers.verbs import PACKAGE, environment, failed, run

from djax import keys
from djax.cli.main import _VERBS
from djax.keys import keyfile

SECRET = bytes(range(50, 82))


@pytest.fixture
def clear(tmp_path):
  """A key file without passphrase."""
  keyfile.write(tmp_path / "clear.key", keys.Master(SECRET), passphrase=None)
  return tmp_path / "clear.key"


# keygen.


def test_keygen_without_passphrase_then_show(tmp_path):
  file = tmp_path / "my.key"
  made = run("keygen", file, "--no-passphrase")
  assert made.returncode == 0
  assert re.fullmatch("djx1-[a-z2-7]{16}\n", made.stdout)
  assert f"wrote {file} without a passphrase, mode 0600\n" in made.stderr
  assert "keep a copy: without this file disguised data cannot be restored\n" in made.stderr
  assert os.stat(file).st_mode & 0o777 == 0o600
  shown = run("show", file)
  assert shown.returncode == 0
  assert made.stdout.strip() in shown.stdout
  assert "none: the secret is in the clear" in shown.stdout
  payload = re.search("^payload: (.*)$", file.read_text(), re.M)[1]
  secret = base64.b64decode(payload)
  for output in (made.stdout, made.stderr, shown.stdout, shown.stderr):
    for form in (payload, payload[:12], secret.hex(), secret.hex()[:12]):
      assert form not in output


@pytest.mark.parametrize("way", ["file", "environment"])
def test_keygen_with_passphrase(tmp_path, way):
  (tmp_path / "pass").write_text("hidden words\n")
  (tmp_path / "pass").chmod(0o600)
  if way == "file":
    made = run("keygen", tmp_path / "k", "--passphrase-file", tmp_path / "pass")
  else:
    made = run("keygen", tmp_path / "k", DJAX_PASSPHRASE="hidden words")
  assert made.returncode == 0
  assert "protected by the passphrase" in made.stderr
  assert "hidden" not in made.stdout + made.stderr
  master = keyfile.read(tmp_path / "k", passphrase=lambda: "hidden words")
  assert made.stdout == f"{master.fingerprint}\n"


def test_what_is_started_after_keygen_inherits_no_passphrase(tmp_path):
  code = (
    "import subprocess, sys\n"
    "from djax.cli.main import main\n"
    "show = [sys.executable, '-c', 'import os; print(os.environ.get(\"DJAX_PASSPHRASE\"))']\n"
    "print(subprocess.check_output(show, text=True).strip())\n"
    "assert main(['keygen', sys.argv[1]]) == 0\n"
    "print(subprocess.check_output(show, text=True).strip())\n"
    "assert main(['keygen', sys.argv[2]]) == 0\n"
  )
  keyfiles = (tmp_path / "a", tmp_path / "b")
  done = run(*keyfiles, python=("-c", code), DJAX_PASSPHRASE="hidden words")
  assert done.returncode == 0, done.stderr
  before, first, after, second = done.stdout.splitlines()
  assert (before, after) == ("hidden words", "None")
  # It is remembered for the second key.
  for file, fingerprint in zip(keyfiles, (first, second), strict=True):
    assert keyfile.read(file, passphrase=lambda: "hidden words").fingerprint == fingerprint


def test_names_that_would_drive_a_terminal_are_shown(tmp_path):
  name = "\x1b]0;title\x07\x1b[1A\u202ekey\u2066"
  shown = r"\x1b]0;title\x07\x1b[1A\u202ekey\u2066"
  made = run("keygen", tmp_path / name, "--no-passphrase")
  assert made.returncode == 0
  assert made.stderr.startswith(f"djax: wrote {tmp_path}/{shown} without a passphrase")
  assert not re.search(r"[^ -~\n]", made.stderr + made.stdout)
  again = run("keygen", tmp_path / name, "--no-passphrase")
  failed(again, 5, re.escape(f"{shown}: exists already"))
  failed(run("show", tmp_path / f"{name}2"), 3, re.escape(f"{shown}2: does not exist"))


def test_keygen_makes_another_key_each_time(tmp_path):
  made = [run("keygen", tmp_path / n, "--no-passphrase").stdout for n in "ab"]
  assert made[0] != made[1]


def test_keygen_refusals(tmp_path, clear):
  before = clear.read_bytes()
  failed(run("keygen", clear, "--no-passphrase"), 5, "exists already and is never overwritten")
  assert clear.read_bytes() == before
  new = tmp_path / "new"
  failed(run("keygen", new), 3, "--passphrase-file, or set DJAX_PASSPHRASE, or run on a terminal")
  failed(run("keygen", new, DJAX_PASSPHRASE=""), 3, "must not be empty")
  failed(run("keygen", new, "--passphrase-file", tmp_path / "none"), 3, "none: does not exist")
  (tmp_path / "pass").write_text("abc")
  (tmp_path / "pass").chmod(0o644)
  failed(run("keygen", new, "--passphrase-file", tmp_path / "pass"), 3, "open to others.*chmod 600")
  failed(run("keygen", new, "--passphrase", "abc"), 2, "unrecognized arguments")
  both = run("keygen", new, "--no-passphrase", "--passphrase-file", "x")
  failed(both, 2, "not allowed with argument")
  failed(
    run("keygen", tmp_path / "no" / "key", "--no-passphrase"), 1, "no: no such folder. Make it"
  )
  assert not new.exists()
  (tmp_path / ".new.djax-partial").symlink_to(clear)
  failed(run("keygen", new, "--no-passphrase"), 5, r"new\.djax-partial is in the way")
  assert clear.read_bytes() == before
  assert not new.exists()


def on_terminal(arguments, answers):
  """Answers the prompts of djax on a terminal of its own; returns what it showed and its code."""
  code = (
    "import fcntl, runpy, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "runpy.run_module('djax', run_name='__main__', alter_sys=True)\n"
  )
  ours, theirs = pty.openpty()
  process = subprocess.Popen(
    [sys.executable, "-c", code, *map(str, arguments)],
    env=environment(),
    stdin=theirs,
    stdout=theirs,
    stderr=theirs,
    start_new_session=True,
  )
  os.close(theirs)
  shown = b""
  answers = list(answers)
  deadline = time.monotonic() + 60
  try:
    while time.monotonic() < deadline:
      if not select.select([ours], [], [], 1)[0]:
        continue
      try:
        piece = os.read(ours, 4096)
      except OSError:  # Linux's way to say that the other side has closed
        break
      if not piece:
        break
      shown += piece
      if piece.rstrip(b"\r\n").endswith((b"passphrase: ", b"again: ")) and answers:
        wait_until_silent(ours)
        os.write(ours, answers.pop(0).encode() + b"\n")
    return shown.decode(), process.wait(timeout=60)
  finally:
    process.kill()
    process.wait()
    os.close(ours)


def wait_until_silent(terminal):
  """Waits until the terminal echoes no more, as it does while a passphrase is asked."""
  for _ in range(500):
    if not termios.tcgetattr(terminal)[3] & termios.ECHO:
      return
    time.sleep(0.01)
  raise AssertionError("the terminal echoes a passphrase")


def test_keygen_asks_twice_on_a_terminal_and_does_not_echo(tmp_path):
  shown, code = on_terminal(["keygen", tmp_path / "k"], ["typed words", "typed words"])
  assert code == 0, shown
  assert shown.index("New passphrase: ") < shown.index("The same again: ") < shown.index("djx1-")
  assert "typed" not in shown
  assert keyfile.read(tmp_path / "k", passphrase=lambda: "typed words").fingerprint in shown


def test_keygen_on_a_terminal_with_two_different_answers(tmp_path):
  shown, code = on_terminal(["keygen", tmp_path / "k"], ["typed words", "other words"])
  assert code == 3
  assert "djax: error: passphrase: the two entries differ" in shown
  assert not (tmp_path / "k").exists()


# show.


def test_show_of_a_protected_file_asks_nothing(tmp_path):
  keyfile.write(tmp_path / "k", keys.Master(SECRET), passphrase="abc")
  shown = run("show", tmp_path / "k")
  assert shown.returncode == 0
  info = keyfile.inspect(tmp_path / "k")
  assert shown.stdout.splitlines() == [
    f"fingerprint  {info.fingerprint}",
    "expansion    djx1",
    f"file         version 1, created {info.created}",
    "passphrase   needed",
  ]
  assert "the passphrase was not asked" in shown.stderr


@pytest.mark.parametrize(
  ("shape", "block", "blocks", "bits"),
  [
    ("32x32x3", 4, 64, "296.0"),
    ("28x28x1", 7, 16, "44.3"),
    ("9x9x1", 3, 9, "18.5"),
    ("10x7x1", 3, 12, "28.8"),  # padded: 4 rows of 3
    ("2x2x1", 2, 1, "0.0"),
  ],
)
def test_show_counts_the_orders_of_the_blocks(clear, shape, block, blocks, bits):
  asked = ("show", clear, "--image-shape", shape, "--block-size", block)
  line = (
    f"permutation  {blocks} blocks, log2({blocks}!) = {bits} bits: "
    "a brute-force count, not a security level\n"
  )
  assert run(*asked).stdout.endswith(line)
  facts = json.loads(run(*asked, "--json").stdout)
  assert facts["permutation"]["blocks"] == blocks
  exact = math.log2(math.factorial(blocks))
  assert facts["permutation"]["bits"] == pytest.approx(exact, abs=1e-9)
  assert facts["permutation"]["remark"] == "a brute-force count, not a security level"


def test_show_json(clear):
  shown = run("show", clear, "--json")
  info = keyfile.inspect(clear)
  assert json.loads(shown.stdout) == {
    "fingerprint": info.fingerprint,
    "expansion": "djx1",
    "version": 1,
    "created": info.created,
    "protected": False,
  }
  assert shown.stderr == ""


def test_show_refusals(tmp_path, clear):
  failed(run("show", tmp_path / "none"), 3, "none: does not exist")
  failed(run("show", "two\nlines", cwd=tmp_path), 3, "key file two lines: does not exist")
  clear.chmod(0o644)
  failed(run("show", clear), 3, rf"is open to others \(mode 0644\)\. Run: chmod 600 {clear}")
  clear.chmod(0o600)
  failed(run("show", clear, "--image-shape", "8x8x1"), 2, "given together or not at all")
  failed(run("show", clear, "--block-size", "4"), 2, "given together or not at all")
  for block in (0, -1, 9):
    sized = ("--image-shape", "8x9x1", f"--block-size={block}")
    failed(run("show", clear, *sized), 2, f"between 1 and the shorter side.*got {block} for 8 x 9")
  for shape in ("8x8", "8x8x", "0x8x1", "8x8x1x1", "axbxc", "-8x8x1", "²x8x1"):
    sized = (f"--image-shape={shape}", "--block-size", 4)
    failed(run("show", clear, *sized), 2, "must be HxWxC such as 32x32x3")
  clear.write_bytes(clear.read_bytes().replace(b"kdf: none", b"kdf: nome"))
  failed(run("show", clear), 3, "is damaged, its checksum does not hold")


def modules_after(*arguments):
  """Returns the modules loaded once djax has run these arguments."""
  code = (
    "import sys\n"
    "from djax.cli.main import main\n"
    "assert main(sys.argv[1:]) == 0\n"
    "print('modules', *sys.modules)\n"
  )
  done = run(*arguments, python=("-c", code))
  assert done.returncode == 0, done.stderr
  return set(done.stdout.splitlines()[-1].split())


HEAVY = {"jax", "jaxlib", "numpy", "flax", "tensorflow", "tensorflow_datasets", "sklearn"}


def test_show_and_keygen_import_nothing_heavy(clear, tmp_path):
  sized = ("--image-shape", "32x32x3", "--block-size", 4)
  assert not modules_after("show", clear, *sized) & HEAVY
  assert not modules_after("keygen", tmp_path / "new", "--no-passphrase") & HEAVY


def test_heavy_imports_would_be_seen():
  loaded = modules_after("selftest")
  assert {"jax", "numpy"} <= loaded
  assert not loaded & {"flax", "tensorflow", "tensorflow_datasets"}


def test_show_answers_in_half_a_second(clear):
  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    assert run("show", clear, python=("-m", "djax")).returncode == 0
    seconds.append(time.perf_counter() - start)
  assert min(seconds) < 0.5


# selftest.


def test_selftest_runs_every_group():
  done = run("selftest", python=("-m", "djax"))
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  vectors = (ROOT / "tests" / "vectors").glob("*.json")
  assert [line.split()[0] for line in lines] == sorted(path.stem for path in vectors)
  assert all(re.search(r" [1-9]\d* vectors ok$", line) for line in lines)
  assert done.stderr == ""
  groups = json.loads(run("selftest", "--json", python=("-m", "djax")).stdout)
  assert {group["mismatch"] for group in groups.values()} == {None}
  assert groups["rfc5869"]["vectors"] == 3


@pytest.fixture
def copied(tmp_path):
  """An installed djax with vectors of its own: the folder to put on the path."""
  shutil.copytree(PACKAGE, tmp_path / "site" / "djax", ignore=shutil.ignore_patterns("__pycache__"))
  vectors = tmp_path / "site" / "djax" / "vectors"
  if not vectors.exists():
    shutil.copytree(os.path.join(ROOT, "tests", "vectors"), vectors)
  return tmp_path / "site"


@pytest.mark.parametrize("flag", [(), ("--json",)])
@pytest.mark.slow
def test_selftest_names_the_first_mismatch(copied, flag):
  file = copied / "djax" / "vectors" / "djx1.json"
  content = json.loads(file.read_text())
  number, vector = next(
    (i, v) for i, v in enumerate(content["vectors"]) if v["name"].startswith("Haar 4")
  )
  last = vector["expect"][-1]
  vector["expect"][-1] = math.nextafter(float.fromhex(last), 9.0).hex()
  content["vectors"][number + 1]["expect"] = []
  file.write_text(json.dumps(content))
  python = ("-m", "djax")
  done = run("selftest", *flag, cwd=copied, python=python, PYTHONPATH=str(copied))
  assert done.returncode == 4
  error = f"djax: error: selftest: djx1: vector {vector['name']!r} does not hold on this machine"
  assert done.stderr.startswith(error)
  assert done.stderr.count("\n") == 1
  if flag:
    assert json.loads(done.stdout)["djx1"]["mismatch"] == vector["name"]
  else:
    assert f"FAILED at {vector['name']!r}" in done.stdout
    assert done.stdout.count("vectors ok") == 8


def test_selftest_notices_changed_code(copied):
  file = copied / "djax" / "host" / "samplers.py"
  text = file.read_text()
  assert "limit = _TWO_TO_64 // n * n" in text
  file.write_text(text.replace("return word % n", "return (word >> 1) % n"))
  done = run("selftest", cwd=copied, python=("-m", "djax"), PYTHONPATH=str(copied))
  assert done.returncode == 4
  assert "selftest: djx1: vector 'permutation of 2" in done.stderr


# prepare: the verb alone; what it makes is tested elsewhere.


def test_prepare_hands_its_arguments_on_and_prints_the_folder(copied):
  (copied / "djax" / "sources" / "download.py").write_text(
    "import pathlib\n"
    "from djax import errors\n"
    "def prepare(name, *, data_dir, from_dir):\n"
    "  if name == 'bad':\n"
    "    raise errors.DataError('damaged\\nhere')\n"
    "  if name == 'slow':\n"
    "    raise KeyboardInterrupt\n"
    "  if name == 'full':\n"
    "    raise OSError(28, 'No space left on device', '/d/x')\n"
    "  return pathlib.Path(data_dir or 'D', from_dir or 'F', name)\n"
  )

  def prepare(*arguments):
    return run("prepare", *arguments, cwd=copied, PYTHONPATH=str(copied))

  assert prepare("mnist").stdout == "D/F/mnist\n"
  assert prepare("mnist", "--data-dir", "/a", "--from-dir", "b").stdout == "/a/b/mnist\n"
  failed(prepare("bad"), 4, "error: damaged here$")
  failed(prepare("slow"), 130, "interrupted")
  failed(
    prepare("full"), 1, "error: /d/x: no space left on the disk. Make room and re-run the command.$"
  )


# The program as a whole.


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "are required: VERB"),
    (["shwo"], r"Did you mean 'show'\?"),
    (["key-gen", "x"], r"Did you mean 'keygen'\?"),
    (["xyz"], "invalid choice: 'xyz'"),
    (["show"], "are required: KEY"),
    (["show", "a", "b"], "unrecognized arguments: b"),
    # An abbreviated --passphrase-file would take, and show, a passphrase.
    (["keygen", "a", "--passphrase", "b"], "unrecognized arguments: --passphrase"),
    (["show", "a", "--jso"], r"unrecognized arguments: --jso\. Did you mean '--json'\?"),
    (
      ["verify", "a", "--kye=b"],
      r"--kye=b\. Did you mean '--key'\? See python -m djax verify --help",
    ),
    (["selftest", "a"], "unrecognized arguments: a"),
    (["prepare"], "are required: NAME"),
  ],
)
def test_usage_errors(arguments, message):
  failed(run(*arguments), 2, message)


def test_help_names_the_verbs():
  done = run("--help")
  assert done.returncode == 0
  for verb in _VERBS:
    assert f"\n    {verb} " in done.stdout


def test_a_reader_that_leaves_is_no_error_message(clear):
  reader, writer = os.pipe()
  os.close(reader)
  done = subprocess.run(
    [sys.executable, "-m", "djax", "show", str(clear)],
    env=environment(),
    stdout=writer,
    stderr=subprocess.PIPE,
    timeout=60,
  )
  os.close(writer)
  assert done.stderr == b""
  assert done.returncode == 1
