import base64
import errno
import getpass
import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import types
import unicodedata

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from helpers.alarm import alarm
from helpers.fresh import ROOT, run_code

from djax import keys, schemes
from djax.errors import ConfigError, DjaxError, KeyFileError, UnsafeError, WrongPassphraseError
from djax.io import files
from djax.keys import keyfile, passphrase

SECRET = bytes(range(100, 132))
PASSPHRASE = "correct horse"
ENCODED = base64.b64encode(SECRET).decode()


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
  """Argon2id in a millisecond, and no passphrase from outside."""
  monkeypatch.setattr(keyfile, "_COST", keyfile._Cost(t=1, m=32, p=4))
  monkeypatch.delenv(keyfile.ENVIRONMENT, raising=False)
  monkeypatch.setattr(passphrase, "_from_environment", None)


@pytest.fixture(autouse=True)
def no_waiting():
  """A pipe must not hold us: what waits ends after a minute."""
  with alarm(60):
    yield


@pytest.fixture(params=[PASSPHRASE, None], ids=["protected", "clear"])
def words(request):
  return request.param


@pytest.fixture
def path(tmp_path):
  """A protected key file."""
  keyfile.write(tmp_path / "key", keys.Master(SECRET), passphrase=PASSPHRASE)
  return tmp_path / "key"


@pytest.fixture
def clear(tmp_path):
  """A key file without passphrase."""
  keyfile.write(tmp_path / "clear", keys.Master(SECRET), passphrase=None)
  return tmp_path / "clear"


def ask():
  return PASSPHRASE


def no_passphrase():
  raise AssertionError("a passphrase was asked for")


def mode(path):
  return stat.S_IMODE(os.stat(path).st_mode)


def seal(body):
  """Gives a body its checksum line."""
  return body + b"checksum: %s\n" % hashlib.sha256(body).hexdigest().encode()


def change(path, pattern, replacement):
  """Replaces something in a key file and renews its checksum."""
  body = path.read_bytes()[: -len(b"checksum: \n") - 64]
  changed, count = re.subn(pattern, replacement, body, flags=re.MULTILINE)
  assert count == 1
  path.write_bytes(seal(changed))


def refused(path, message, *, error=KeyFileError, inspected=True):
  """Asserts that read and inspect refuse a file with this one line, and give nothing away."""
  takers = [lambda: keyfile.read(path, passphrase=ask)]
  if inspected:
    takers.append(lambda: keyfile.inspect(path))
  for take in takers:
    with pytest.raises(DjaxError, match=message) as caught:
      take()
    assert type(caught.value) is error
    assert caught.value.exit_code == 3
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    for hidden in (PASSPHRASE, ENCODED, SECRET.hex(), str(SECRET)):
      assert hidden not in text


# Round trips.


def test_what_is_written_is_read(tmp_path, words):
  master = keys.generate()
  keyfile.write(str(tmp_path / "key"), master, passphrase=words)
  back = keyfile.read(tmp_path / "key", passphrase=ask)
  assert back.read("perm|9", 32) == master.read("perm|9", 32)
  assert back.fingerprint == master.fingerprint


def test_load_opens_a_file_in_one_line(tmp_path, words):
  master = keys.generate()
  keyfile.write(tmp_path / "key", master, passphrase=words)
  back = keys.load(tmp_path / "key", words)
  scheme = schemes.rmt_scheme((8, 8, 1), block_size=2)
  assert np.array_equal(scheme.make_key(back).matrices, scheme.make_key(master.read).matrices)


def test_load_says_that_a_passphrase_is_missing_or_wrong(path):
  with pytest.raises(
    KeyFileError, match=r"no passphrase was given\. In code: keys\.load\(path, get"
  ):
    keys.load(path)
  with pytest.raises(WrongPassphraseError):
    keys.load(path, "wrong")


def test_two_files_of_one_key_share_no_salt_nonce_or_payload(tmp_path):
  for name in ("a", "b"):
    keyfile.write(tmp_path / name, keys.Master(SECRET), passphrase=PASSPHRASE)
  a, b = (dict(re.findall("^(\\w+): (.*)$", (tmp_path / n).read_text(), re.M)) for n in "ab")
  assert a["fingerprint"] == b["fingerprint"]
  for field in ("kdf", "nonce", "payload", "checksum"):
    assert a[field] != b[field]


def test_protected_file_holds_the_secret_in_no_form(path, clear):
  assert ENCODED in clear.read_text()
  for form in (ENCODED.encode(), SECRET, SECRET.hex().encode(), PASSPHRASE.encode()):
    assert form not in path.read_bytes()
  assert "the secret below is in the clear" in clear.read_text()
  assert "clear" not in path.read_text()


def test_a_clear_file_asks_for_no_passphrase(clear):
  assert keyfile.read(clear, passphrase=no_passphrase).read("x", 8) == keys.Master(SECRET).read(
    "x", 8
  )
  assert keyfile.read(clear, passphrase=None).fingerprint == keys.Master(SECRET).fingerprint


def test_inspect_asks_for_no_passphrase_and_hides_the_secret(path, clear):
  for file, protected in ((path, True), (clear, False)):
    info = keyfile.inspect(file)
    assert info.fingerprint == keys.Master(SECRET).fingerprint
    assert (info.version, info.expansion, info.protected) == (1, "djx1", protected)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", info.created)
    assert ENCODED not in repr(info) + repr(keyfile._parse(str(file), file))


ODD_PASSPHRASES = {
  " spaces": "must not begin or end with a blank",
  "spaces ": "must not begin or end with a blank",
  "a\tb": "must be one line without control characters",
  "a\nb": "must be one line without control characters",
  "a\0b\0": "control characters, such as those of UTF-16",
  "\ufeffab": "must hold no byte order mark",
  "\udcff\udcfea": "must be UTF-8 text",
}


@pytest.mark.parametrize("text", ODD_PASSPHRASES)
def test_a_passphrase_that_cannot_be_typed_closes_nothing_but_opens_what_it_once_closed(
  tmp_path, monkeypatch, text
):
  with pytest.raises(KeyFileError, match=ODD_PASSPHRASES[text]) as caught:
    keyfile.write(tmp_path / "key", keys.Master(SECRET), passphrase=text)
  assert "\n" not in str(caught.value)
  assert not list(tmp_path.iterdir())
  monkeypatch.setattr(keyfile, "new_passphrase", lambda text: text)  # an older djax
  keyfile.write(tmp_path / "key", keys.Master(SECRET), passphrase=text)
  assert keyfile.read(tmp_path / "key", passphrase=lambda: text).read("x", 8)


@pytest.mark.parametrize("old", ["gro\u0308sser", "gr\u00f6sser", "plain\n", "plain\r\n", "plain"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_form_in_which_a_keyboard_gives_a_letter_does_not_matter(
  tmp_path, monkeypatch, old, form
):
  for name, patched in (("new", keyfile.new_passphrase), ("old", lambda text: text)):
    monkeypatch.setattr(keyfile, "new_passphrase", patched)
    keyfile.write(tmp_path / name, keys.Master(SECRET), passphrase=old)
    typed = unicodedata.normalize(form, old)
    assert keyfile.read(tmp_path / name, passphrase=lambda typed=typed: typed).read("x", 8)
  assert keyfile.read(tmp_path / "new", passphrase=lambda: old.strip()).read("x", 8)


def test_a_new_passphrase_loses_the_end_of_its_line_wherever_it_comes_from(monkeypatch, tmp_path):
  (tmp_path / "pass").write_bytes(b"words\r\n")
  (tmp_path / "pass").chmod(0o600)
  monkeypatch.setenv("DJAX_PASSPHRASE", "words\n")
  for place in (None, tmp_path / "pass"):
    assert keyfile.find_passphrase(place, new=True)() == "words"
  (tmp_path / "pass").write_bytes("words\n".encode("utf-16"))
  with pytest.raises(KeyFileError, match=r"passphrase file .*pass: a new passphrase must be"):
    keyfile.find_passphrase(tmp_path / "pass", new=True)()


def test_no_key_is_written_where_files_have_no_rights_of_their_own(tmp_path, monkeypatch):
  real = os.fstat

  def shared(descriptor):
    status = real(descriptor)
    return os.stat_result((status.st_mode | 0o077, *status[1:]))

  monkeypatch.setattr(keyfile.os, "fstat", shared)
  with pytest.raises(KeyFileError, match=r"on this disk its mode is 0677.*choose another disk"):
    keyfile.write(tmp_path / "key", keys.Master(SECRET), passphrase=None)
  assert not list(tmp_path.iterdir())


def test_a_key_file_that_went_through_other_line_ends_still_opens(path):
  path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
  assert keyfile.read(path, passphrase=ask).read("x", 8)
  path.write_bytes(path.read_bytes().replace(b"version", b"versiom"))
  with pytest.raises(KeyFileError, match="checksum does not hold"):
    keyfile.inspect(path)


@pytest.mark.parametrize("text", ["größer 鍵", "x" * 5000])
def test_any_passphrase_opens_what_it_closed(tmp_path, text):
  keyfile.write(tmp_path / "key", keys.Master(SECRET), passphrase=text)
  assert keyfile.read(tmp_path / "key", passphrase=lambda: text).read("x", 8)
  with pytest.raises(WrongPassphraseError):
    keyfile.read(tmp_path / "key", passphrase=lambda: text + "x")


def test_a_symbolic_link_is_followed(path, tmp_path):
  (tmp_path / "link").symlink_to(path)
  assert keyfile.read(tmp_path / "link", passphrase=ask)


def test_cost_of_a_new_file_is_as_specified(tmp_path, monkeypatch):
  monkeypatch.undo()
  keyfile.write(tmp_path / "key", keys.Master(SECRET), passphrase=PASSPHRASE)
  text = (tmp_path / "key").read_text()
  assert re.search("^kdf: argon2id t=3 m=65536 p=4 salt=[A-Za-z0-9+/]{22}==$", text, re.M)


def test_file_opens_by_the_document_alone():
  vectors = ROOT / "tests" / "vectors" / "keyfile-v1.json"
  vector = next(v for v in json.loads(vectors.read_text())["vectors"] if v["passphrase"])
  text = "".join(f"{line}\n" for line in vector["content"])
  fields = dict(re.findall(r"^(\w+): (.*)$", text, re.M))
  t, m, p, salt = re.fullmatch("argon2id t=(.*) m=(.*) p=(.*) salt=(.*)", fields["kdf"]).groups()
  kdf = Argon2id(
    salt=base64.b64decode(salt), length=32, iterations=int(t), lanes=int(p), memory_cost=int(m)
  )
  opened = ChaCha20Poly1305(kdf.derive(vector["passphrase"].encode())).decrypt(
    base64.b64decode(fields["nonce"]),
    base64.b64decode(fields["payload"]),
    text[: text.index("payload:")].encode(),
  )
  assert opened == bytes(range(32))
  body = text[: text.index("checksum:")].encode()
  assert fields["checksum"] == hashlib.sha256(body).hexdigest()


# Writing.


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_mode_is_0600_under_any_umask(tmp_path, umask, words):
  before = os.umask(umask)
  try:
    keyfile.write(tmp_path / "key", keys.Master(SECRET), passphrase=words)
  finally:
    os.umask(before)
  assert mode(tmp_path / "key") == 0o600


@pytest.mark.parametrize("kind", ["file", "empty", "folder", "dangling"])
def test_nothing_is_ever_overwritten(tmp_path, kind):
  target = tmp_path / "key"
  if kind == "folder":
    target.mkdir()
  elif kind == "dangling":
    target.symlink_to(tmp_path / "elsewhere")
  else:
    target.write_text("kept" if kind == "file" else "")
  with pytest.raises(UnsafeError, match="exists already and is never overwritten") as caught:
    keyfile.write(target, keys.Master(SECRET), passphrase=None)
  assert caught.value.exit_code == 5
  assert [entry.name for entry in tmp_path.iterdir()] == ["key"]
  if kind == "file":
    assert target.read_text() == "kept"


def test_an_experiment_is_not_written(tmp_path):
  with pytest.raises(UnsafeError, match="an experiment's key comes from a public seed"):
    keyfile.write(tmp_path / "key", keys.experiment(1), passphrase=PASSPHRASE)
  assert not list(tmp_path.iterdir())


def test_an_empty_passphrase_is_not_set(tmp_path):
  with pytest.raises(ConfigError, match="must not be empty"):
    keyfile.write(tmp_path / "key", keys.Master(SECRET), passphrase="")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fchmod", "fsync"])
def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, failure, step):
  def fail(*args):
    reached.append(sorted(entry.name for entry in tmp_path.iterdir()))
    raise failure

  reached = []

  monkeypatch.setattr(os, step, fail)
  with pytest.raises(type(failure)):
    keyfile.write(tmp_path / "key", keys.Master(SECRET), passphrase=None)
  # Written, and under no other name than the temporary one.
  assert reached == [[".key.djax-partial"]]
  assert not list(tmp_path.iterdir())


# One line per step of a write: what the folder held when the step was about to be made.
STEPS = """
import os, sys
from djax.io import files
from djax.keys import keyfile
from djax import keys

die_at, names = int(sys.argv[2]), []

def before(function):
  def step(*args, **kwargs):
    names.append(function.__name__)
    if len(names) == die_at:
      os.kill(os.getpid(), 9)
    return function(*args, **kwargs)
  return step

folder = os.path.dirname(sys.argv[1])
for name in ("fchmod", "fsync", "link", "unlink", "fstat"):
  setattr(os, name, before(getattr(os, name)))
keyfile._COST = keyfile._Cost(t=1, m=32, p=4)
keyfile.write(sys.argv[1], keys.Master(bytes(range(100, 132))), passphrase="correct horse")
print(*names)
"""


def test_a_write_killed_at_any_step_leaves_a_whole_key_or_none(tmp_path):
  whole = run_code(STEPS, tmp_path / "whole", 0)
  assert whole.returncode == 0, whole.stderr
  steps = whole.stdout.split()
  assert {"fchmod", "fsync", "link", "unlink"} <= set(steps)
  published = []
  for die_at in range(1, len(steps) + 1):
    key = tmp_path / str(die_at) / "key"
    key.parent.mkdir()
    killed = run_code(STEPS, key, die_at)
    assert killed.returncode == -signal.SIGKILL
    published.append(key.exists())
    if key.exists():
      assert mode(key) == 0o600
      assert keyfile.read(key, passphrase=ask).fingerprint == keys.Master(SECRET).fingerprint
    # The same command again clears up and either writes, or keeps what is whole.
    before = key.read_bytes() if key.exists() else None
    again = run_code(STEPS, key, 0)
    assert [entry.name for entry in key.parent.iterdir()] == ["key"], steps[die_at - 1]
    assert (again.returncode == 0) == (before is None)
    assert keyfile.read(key, passphrase=ask)
    assert before is None or key.read_bytes() == before
  # The name appears with the link, and neither before nor after.
  assert published == [number > steps.index("link") + 1 for number in range(1, len(steps) + 1)]


def test_a_name_that_appears_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
  render = keyfile._render

  def late(*args):
    (tmp_path / "key").write_text("theirs")
    return render(*args)

  monkeypatch.setattr(keyfile, "_render", late)
  with pytest.raises(UnsafeError, match="exists already and is never overwritten"):
    keyfile.write(tmp_path / "key", keys.Master(SECRET), passphrase=None)
  assert [entry.name for entry in tmp_path.iterdir()] == ["key"]
  assert (tmp_path / "key").read_text() == "theirs"


def test_two_that_write_one_key_file_do_not_mix(tmp_path):
  with (
    files.new_file(tmp_path / "key"),
    pytest.raises(UnsafeError, match=r"key file .* is being written by another process"),
  ):
    keyfile.write(tmp_path / "key", keys.Master(SECRET), passphrase=None)


def test_a_key_is_named_when_it_is_on_the_disk_and_the_folder_is_synced_after(
  tmp_path, monkeypatch
):
  events = []

  def note(name, function):
    def noted(first, *args, **kwargs):
      kind = name
      if name == "fsync":
        kind = "folder" if stat.S_ISDIR(os.fstat(first).st_mode) else "file"
      events.append(kind)
      return function(first, *args, **kwargs)

    return noted

  monkeypatch.setattr(keyfile, "_read", note("read", keyfile._read))
  for name in ("fsync", "link"):
    monkeypatch.setattr(os, name, note(name, getattr(os, name)))
  keyfile.write(tmp_path / "key", keys.Master(SECRET), passphrase=None)
  assert events[:2] == ["file", "read"]
  assert events[-2:] == ["link", "folder"]
  assert events.count("link") == 1


def test_a_disk_that_changes_a_byte_is_noticed_and_leaves_nothing(tmp_path, monkeypatch):
  def spoil(descriptor):
    assert not (tmp_path / "key").exists()
    (byte,) = os.pread(descriptor, 1, 300)
    os.pwrite(descriptor, bytes([byte ^ 1]), 300)  # whatever the random key has there

  monkeypatch.setattr(os, "fsync", spoil)
  with pytest.raises(KeyFileError, match="is damaged"):
    keyfile.write(tmp_path / "key", keys.Master(SECRET), passphrase=PASSPHRASE)
  assert not list(tmp_path.iterdir())


def test_another_key_read_back_is_noticed_and_leaves_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(keyfile, "_read", lambda *args, **kwargs: keys.generate())
  with pytest.raises(KeyFileError, match="read back as another key"):
    keyfile.write(tmp_path / "key", keys.Master(SECRET), passphrase=None)
  assert not list(tmp_path.iterdir())


def test_an_unwritable_place_is_an_oserror(tmp_path):
  with pytest.raises(FileNotFoundError):
    keyfile.write(tmp_path / "missing" / "key", keys.Master(SECRET), passphrase=None)


# Bad files.


def test_wrong_passphrase(path):
  with pytest.raises(WrongPassphraseError, match=r"wrong passphrase\. The file itself is whole"):
    keyfile.read(path, passphrase=lambda: "wrong")
  assert WrongPassphraseError.exit_code == 3


def test_protected_file_without_a_passphrase(path):
  with pytest.raises(KeyFileError, match="is protected, and no passphrase was given"):
    keyfile.read(path, passphrase=None)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o601, 0o644, 0o777])
def test_file_open_to_others(path, bits):
  path.chmod(bits)
  refused(path, rf"is open to others \(mode {bits:04o}\)\. Run: chmod 600 {path}")
  path.chmod(0o400)
  assert keyfile.read(path, passphrase=ask)


def test_missing_file(tmp_path):
  refused(tmp_path / "none", "does not exist")


def test_folder_and_pipe_are_no_key_files(tmp_path):
  refused(tmp_path, "is not a regular file")
  os.mkfifo(tmp_path / "pipe", 0o600)
  refused(tmp_path / "pipe", "is not a regular file")


def test_unreadable_file(path, monkeypatch):
  def deny(*args):
    raise PermissionError(errno.EACCES, "Permission denied")

  monkeypatch.setattr(os, "open", deny)
  refused(path, "cannot be read: Permission denied")


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "is empty"),
    (b"x" * 65537, "is larger than 65536 bytes"),
    (b"# djax key file\n" + b"#" * 10**6, "is larger than 65536 bytes"),
    (b"\x89PNG\r\n\x1a\n\xff", "is not a djax key file, it is not text"),
    (b"hello\n", "is not a djax key file, it does not begin with '# djax key file'"),
    (b"# djax key file\rversion: 1\r", "is not a djax key file, it does not begin"),
    (b"# djax key file\n", "is damaged, it does not end with its checksum line"),
    (seal(b"# djax key file\n"), "it is not of the form of version 1"),
    (seal(b"# djax key file\n\xff\n"), "it is not of the form of version 1"),
  ],
)
def test_what_is_no_key_file(path, content, message):
  path.write_bytes(content)
  refused(path, message)


@pytest.mark.parametrize("kept", [1, 16, 17, 200, -1, -2, -74, -75, -76])
def test_truncated_file(path, kept):
  path.write_bytes(path.read_bytes()[:kept])
  refused(path, "is damaged, it does not end with|is not a djax key file")


def test_file_with_something_after_its_end(path):
  path.write_bytes(path.read_bytes() + b"\n")
  refused(path, "is damaged, it does not end with its checksum line")


def test_every_flipped_byte_is_refused(tmp_path, words):
  file = tmp_path / "key"
  keyfile.write(file, keys.Master(SECRET), passphrase=words)
  whole = file.read_bytes()
  for i in range(len(whole)):
    file.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :])
    refused(file, "is damaged|is not a djax key file")
  file.write_bytes(whole)
  assert keyfile.read(file, passphrase=ask)


def test_every_byte_of_a_protected_header_is_bound_to_the_payload(path):
  whole = path.read_bytes()
  body = whole[: whole.index(b"checksum:")]
  outcomes = set()
  for i in range(len(body)):
    path.write_bytes(seal(body[:i] + bytes([body[i] ^ 1]) + body[i + 1 :]))
    with pytest.raises(KeyFileError) as caught:
      keyfile.read(path, passphrase=ask)
    outcomes.add(type(caught.value))
  assert outcomes == {KeyFileError, WrongPassphraseError}
  path.write_bytes(seal(body))
  assert keyfile.read(path, passphrase=ask)


@pytest.mark.parametrize(
  ("pattern", "replacement", "message"),
  [
    (rb"^version: 1$", b"version: 2", "has format version 2, this djax reads up to 1. Update"),
    (rb"^version: 1$", b"version: 0", "is not of the form of version 1"),
    (rb"^version: 1$", b"version: one", "is not of the form of version 1"),
    (rb"^expansion: djx1$", b"expansion: djx2", "has expansion djx2, this djax knows up to djx1"),
    (rb"^expansion: djx1$", b"expansion: djx0", "is not of the form of version 1"),
    (rb"^expansion: djx1$", b"expansion: other", "is not of the form of version 1"),
    (rb"t=1 ", b"t=17 ", "asks for Argon2id t=17 m=32 p=4, more than this djax spends"),
    (rb"m=32 ", b"m=1048577 ", "asks for Argon2id t=1 m=1048577 p=4, more than"),
    (rb"p=4 ", b"p=17 ", "asks for Argon2id t=1 m=32 p=17, more than"),
    (rb"m=32 ", b"m=99999999999999 ", "is not of the form of version 1"),
    (rb"m=32 ", b"m=31 ", "is not of the form of version 1"),
    (rb"t=1 ", b"t=0 ", "is not of the form of version 1"),
    (rb"p=4 ", b"p=0 ", "is not of the form of version 1"),
    (rb"argon2id", b"argon2d", "is not of the form of version 1"),
    (rb"salt=....", b"salt=", "is not of the form of version 1"),
    (rb"^nonce: .*\n", b"", "is not of the form of version 1"),
    (rb"^nonce: .", b"nonce: =", "is not of the form of version 1"),
    (rb"^payload: ....", b"payload: ", "is not of the form of version 1"),
    (rb"^payload: ", b"surprise: 1\npayload: ", "is not of the form of version 1"),
    (rb"^# created: .*\n", b"", "is not of the form of version 1"),
    (rb"^fingerprint: djx1-", b"fingerprint: experiment-seed1-", "is not of the form"),
  ],
)
def test_whole_file_of_another_kind(path, pattern, replacement, message):
  change(path, pattern, replacement)
  refused(path, message)


def test_fingerprint_of_another_key(path, clear):
  other = keys.generate().fingerprint
  change(clear, rb"^fingerprint: .*$", f"fingerprint: {other}".encode())
  holds = keys.Master(SECRET).fingerprint
  refused(clear, f"names {other}, but holds the key {holds}")
  # A protected file like that takes someone who has the passphrase.
  text = path.read_text()
  fields = dict(re.findall(r"^(\w+): (.*)$", text, re.M))
  header = re.sub("^fingerprint: .*$", f"fingerprint: {other}", text, flags=re.M)
  header = header[: header.index("payload:")].encode()
  salt = base64.b64decode(fields["kdf"].split("salt=")[1])
  key = Argon2id(salt=salt, length=32, iterations=1, lanes=4, memory_cost=32).derive(
    PASSPHRASE.encode()
  )
  payload = ChaCha20Poly1305(key).encrypt(base64.b64decode(fields["nonce"]), SECRET, header)
  path.write_bytes(seal(header + b"payload: " + base64.b64encode(payload) + b"\n"))
  refused(path, f"names {other}, but holds the key {holds}", inspected=False)


# Passphrases.


@pytest.fixture
def terminal(monkeypatch):
  """A terminal on which the given lines are typed; returns what was asked."""

  def type_lines(*lines):
    asked = []
    typed = iter(lines)

    def answer(prompt):
      asked.append(prompt)
      line = next(typed)
      if line is None:
        raise EOFError
      return line

    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(getpass, "getpass", answer)
    return asked

  return type_lines


@pytest.mark.parametrize(
  ("content", "expect"),
  [
    (b"abc", "abc"),
    (b"abc\n", "abc"),
    (b"abc\r\n", "abc"),
    (b" a b \n\n", " a b \n"),
    ("größer\n".encode(), "größer"),
  ],
)
def test_passphrase_from_a_file(tmp_path, monkeypatch, content, expect):
  monkeypatch.setenv("DJAX_PASSPHRASE", "not this")
  file = tmp_path / "pass"
  file.write_bytes(content)
  file.chmod(0o600)
  assert keyfile.find_passphrase(file)() == expect


@pytest.mark.parametrize(
  ("content", "bits", "message"),
  [
    (b"", 0o600, "must not be empty"),
    (b"\n", 0o600, "must not be empty"),
    (b"abc\n", 0o640, r"is open to others \(mode 0640\). Run: chmod 600"),
    (b"x" * 70000, 0o600, "is larger than"),
    (None, None, "does not exist"),
  ],
)
def test_bad_passphrase_files(tmp_path, monkeypatch, content, bits, message):
  monkeypatch.setenv("DJAX_PASSPHRASE", "not this")
  file = tmp_path / "pass"
  if content is not None:
    file.write_bytes(content)
    file.chmod(bits)
  with pytest.raises(KeyFileError, match=f"passphrase file {file}: {message}"):
    keyfile.find_passphrase(file)()


def test_passphrase_from_the_environment(monkeypatch, terminal):
  asked = terminal("not this")
  monkeypatch.setenv("DJAX_PASSPHRASE", "from there")
  assert keyfile.find_passphrase(None)() == "from there"
  assert not asked
  monkeypatch.setenv("DJAX_PASSPHRASE", "")
  with pytest.raises(KeyFileError, match="environment variable DJAX_PASSPHRASE: must not be empty"):
    keyfile.find_passphrase(None)()


def test_the_environment_keeps_no_passphrase(tmp_path, clear, monkeypatch):
  show = [sys.executable, "-c", "import os; print(os.environ.get('DJAX_PASSPHRASE'))"]
  monkeypatch.setenv("DJAX_PASSPHRASE", "from there")
  assert subprocess.check_output(show, text=True) == "from there\n"
  find = keyfile.find_passphrase(None)
  assert "DJAX_PASSPHRASE" not in os.environ
  assert subprocess.check_output(show, text=True) == "None\n"
  # It is remembered, by this function and by the next one.
  assert find() == find() == keyfile.find_passphrase(None)() == "from there"
  monkeypatch.setenv("DJAX_PASSPHRASE", "another")
  assert find() == "another"
  assert "DJAX_PASSPHRASE" not in os.environ
  # Also where it is not what opens the key.
  monkeypatch.setenv("DJAX_PASSPHRASE", "not needed")
  keyfile.read(clear, passphrase=keyfile.find_passphrase(None))
  assert "DJAX_PASSPHRASE" not in os.environ
  monkeypatch.setenv("DJAX_PASSPHRASE", "not needed")
  (tmp_path / "pass").write_text("in a file")
  (tmp_path / "pass").chmod(0o600)
  assert keyfile.find_passphrase(tmp_path / "pass")() == "in a file"
  assert "DJAX_PASSPHRASE" not in os.environ


def test_passphrase_from_a_terminal(terminal):
  asked = terminal("typed")
  find = keyfile.find_passphrase(None)
  assert not asked  # only when it is needed
  assert find() == "typed"
  assert asked == ["Passphrase: "]


def test_new_passphrase_is_asked_twice(terminal):
  asked = terminal("typed", "typed")
  assert keyfile.find_passphrase(None, new=True)() == "typed"
  assert asked == ["New passphrase: ", "The same again: "]
  terminal("typed", "tiped")
  with pytest.raises(KeyFileError, match=r"the two entries differ\. Nothing was written"):
    keyfile.find_passphrase(None, new=True)()


@pytest.mark.parametrize(("typed", "message"), [("", "must not be empty"), (None, "none was")])
@pytest.mark.parametrize("new", [False, True])
def test_no_passphrase_typed(terminal, typed, message, new):
  terminal(typed)
  with pytest.raises(KeyFileError, match=f"passphrase: {message}"):
    keyfile.find_passphrase(None, new=new)()


def test_no_way_to_a_passphrase_names_all_three():
  with pytest.raises(KeyFileError) as caught:
    keyfile.find_passphrase(None)()
  for way in ("--passphrase-file", "DJAX_PASSPHRASE", "terminal"):
    assert way in str(caught.value)
