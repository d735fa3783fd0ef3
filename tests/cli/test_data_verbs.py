import json
import math
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import verbs
from helpers.directories import mend
from helpers.verbs import environment, failed, refused, run
from PIL import Image

from djax import audit, keys, sources
from djax.cli.main import _VERBS, main
from djax.disguised import directory, manifest
from djax.io import progress
from djax.keys import keyfile
from djax.owner import export, restore, sealed_metadata
from train.__main__ import main as train_main
from train.answer import main as answer_main

SECRET = bytes(range(50, 82))
MASTER = keys.Master(SECRET)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with the key, another key, and three data sets: noisy, exact, and stepped with views."""
  folder = tmp_path_factory.mktemp("place")
  keyfile.write(folder / "key", MASTER, passphrase=None)
  keyfile.write(folder / "other", keys.Master(bytes(32)), passphrase=None)
  for name, options in (
    ("noisy", ["--scheme", "rmt", "--block-size", "2", "--noise-level", "25"]),
    ("exact", ["--scheme", "aes", "--block-size", "4"]),
    (
      "stepped",
      [
        *("--scheme", "rmt", "--block-size", "3", "--dtype", "uint8", "--plain-labels"),
        *("--views", "2", "--crop", "1", "--flip"),
      ],
    ),
  ):
    assert main(disguise(folder, name, *options)) == 0
  return folder


def disguise(folder, name, *options, ledger=False):
  options = options if ledger else ("--no-ledger", *options)
  splits = ("--train-split", "train[:60]", "--test-split", "test[:30]")
  where = ("--key", folder / "key", "--out", folder / name)
  return list(map(str, ("disguise", "--source", "digits", *splits, *where, *options)))


@pytest.fixture
def call(capsys):
  return verbs.caller(capsys)


# disguise.


def test_parts_say_what_they_did_and_what_comes_next(place, call):
  options = ("parts", "--scheme", "aes", "--block-size", "4", "--originals-per-shard", "20")
  code, out, err = call(*disguise(place, *options, "--part", "2/2", "--json"))
  assert code == 0
  assert json.loads(out) == {"part": [2, 2], "shards": 2, "of": 5, "written": True}
  assert any(line.startswith("djax: to be written by all parts: about") for line in err)
  assert err[-1] == (
    "djax: part 2/2: 2 of 5 shards; when all parts are written, give --finish instead of --part"
  )
  code, out, err = call(*disguise(place, *options, "--finish"))
  assert (code, out) == (4, "")
  assert "lacks disguised-train.array_record-00000" in err[-1]
  assert call(*disguise(place, *options, "--part", "1/2"))[0] == 0
  assert call(*disguise(place, *options, "--finish"))[0] == 0
  assert call("verify", str(place / "parts"), "--key", str(place / "key"))[0] == 0


def test_parts_that_only_scanned_say_so(place, call):
  options = ("scanned", "--scheme", "rmt", "--block-size", "4", "--dtype", "uint8")
  options += ("--originals-per-shard", "40", "--part", "1/2")
  code, _, err = call(*disguise(place, *options))
  assert code == 0 and "run each again to write" in err[-1]


@pytest.mark.parametrize("part", ["5/4", "0/2", "2", "1/0", "a/b", "-1/2", "1/2/3"])
def test_a_part_that_is_none_is_refused(place, call, part):
  options = ("no_part", "--scheme", "aes", "--block-size", "4", f"--part={part}")
  refused(
    call(*disguise(place, *options)),
    2,
    f"must be I/N with I from 1 to N, such as 2/4, got {part!r}",
  )
  assert not (place / "no_part").exists()


def test_a_part_does_not_finish(place, call):
  options = ("both", "--scheme", "aes", "--block-size", "4", "--part", "1/2", "--finish")
  refused(call(*disguise(place, *options)), 2, "--part and --finish cannot be given together")
  assert not (place / "both").exists()


def test_disguise_says_where_and_with_which_key_and_warns_once(place, call):
  code, out, err = call(*disguise(place, "said", "--scheme", "rmt", "--block-size", "2"))
  assert code == 0
  facts = directory.open(place / "said").manifest
  assert out.splitlines() == [
    f"directory    {place / 'said'}",
    f"fingerprint  {MASTER.fingerprint}",
    f"data set     {facts.id}",
    f"manifest     {facts.sha256}",
  ]
  assert err[:5] == [
    "djax: images: train 60, test 30; 8x8x1 uint8",
    "djax: classes: 10 (0, 1, 2, 3, 4, ...)",
    "djax: train: 2 images of '4' to 8 of '0'",
    "djax: test: 1 images of '1' to 8 of '9'",
    "djax: to be written: about 46 kB",
  ]
  assert re.fullmatch(r"djax: disguised 90 images in \d+\.\d s, [1-9]\d* images/s", err[5])
  (warning,) = facts.warnings
  assert err[6:] == [f"djax: warning: {warning}", f"djax: warning: {audit.lookup(facts.spec)}"]


def test_disguise_again_goes_on_and_changes_nothing(place, call):
  before = {path.name: path.read_bytes() for path in (place / "exact").iterdir()}
  code, out, err = call(*disguise(place, "exact", "--scheme", "aes", "--block-size", "4"))
  assert code == 0 and MASTER.fingerprint in out
  assert re.fullmatch(r"djax: disguised 90 images in .* s, with what was done before", err[5])
  assert {path.name: path.read_bytes() for path in (place / "exact").iterdir()} == before


OPTIONS = {
  "--scheme rmt --block-size 4 --no-permute --matrix projection --mix block --noise-level 5 --noise-place after": {
    "scheme": "rmt",
    "block_size": 4,
    "permute": False,
    "matrix": "projection",
    "mix": "block",
    "per_channel": False,
    "noise_level": 5.0,
    "noise_place": "after",
  },
  "--scheme rmt --block-size 2 --per-channel": {
    "scheme": "rmt",
    "block_size": 2,
    "permute": True,
    "matrix": "orthogonal",
    "mix": "rows",
    "per_channel": True,
    "noise_level": 0.0,
    "noise_place": "before",
  },
  "--scheme aes --block-size 4 --unit-pixels 8 --position-keys --salt-pepper 0.1 --no-permute": {
    "scheme": "aes",
    "block_size": 4,
    "permute": False,
    "position_keys": True,
    "unit_pixels": 8,
    "salt_pepper": 0.1,
  },
  "--scheme permutation --block-size 3": {"scheme": "permutation", "block_size": 3},
}


@pytest.mark.parametrize("given", OPTIONS)
def test_options_of_a_scheme_reach_the_manifest(place, tmp_path, call, given):
  shutil.copyfile(place / "key", tmp_path / "key")
  (tmp_path / "key").chmod(0o600)
  code, out, _ = call(*disguise(tmp_path, "new", *given.split(), "--json"))
  assert code == 0
  facts = json.loads(out)
  assert facts["spec"] == {"image_shape": [8, 8, 1], **OPTIONS[given]}
  assert facts["directory"] == str(tmp_path / "new")
  assert facts["key_fingerprint"] == MASTER.fingerprint
  assert "sealed" not in facts
  assert (facts["permutation"] is None) == ("--no-permute" in given)
  assert facts["manifest_sha256"] == manifest.read(tmp_path / "new").sha256


def test_options_of_the_data_reach_the_manifest(place, call):
  code, out, _ = call("inspect", place / "stepped", "--json")
  facts = json.loads(out)
  assert code == 0
  assert facts["views"] == {"count": 2, "crop": 1, "flip": True, "together": False}
  assert facts["labels"] == "plain" and facts["class_names"] == list("0123456789")
  assert facts["dtype"] == "uint8" and facts["disguised_shape"] == [9, 9, 1]
  assert {name: split["records"] for name, split in facts["splits"].items()} == {
    "train": 120,
    "test": 30,
  }
  assert facts["authenticated"] is False


def test_shards_and_workers(place, call):
  options = ("--scheme", "aes", "--block-size", "4", "--originals-per-shard", "25")
  code, out, _ = call(*disguise(place, "shards", *options, "--workers", "1", "--json"))
  assert code == 0
  shards = json.loads(out)["splits"]["train"]["shards"]
  assert [shard["records"] for shard in shards] == [25, 25, 10]
  assert "train        60 records in 3 shards\n" in call("inspect", place / "shards")[1]


ALIEN = [
  ("aes", ["--noise-level", "5"], "--noise-level"),
  ("aes", ["--per-channel"], "--per-channel"),
  ("aes", ["--matrix", "projection"], "--matrix"),
  ("aes", ["--mix", "rows", "--noise-place", "before"], "--mix, --noise-place"),
  ("rmt", ["--unit-pixels", "16"], "--unit-pixels"),
  ("rmt", ["--position-keys"], "--position-keys"),
  ("rmt", ["--salt-pepper", "0"], "--salt-pepper"),
  ("permutation", ["--no-permute"], "--no-permute"),
  ("permutation", ["--noise-level", "0"], "--noise-level"),
]


@pytest.mark.parametrize(("scheme", "options", "named"), ALIEN)
def test_options_of_another_scheme_are_refused_by_name(place, call, scheme, options, named):
  answer = call(*disguise(place, "no", "--scheme", scheme, "--block-size", "4", *options))
  refused(answer, 2, f"--scheme {scheme} takes --block-size.*; got {named}\\. Leave it out")
  assert not (place / "no").exists()


@pytest.mark.parametrize(
  ("options", "code", "message"),
  [
    (["--block-size", "4"], 2, "are required: --scheme"),
    (["--scheme", "rmt"], 2, "are required: --block-size"),
    (["--scheme", "plain", "--block-size", "4"], 2, "invalid choice: 'plain'"),
    (["--scheme", "permutaton", "--block-size", "4"], 2, "Did you mean 'permutation'"),
    (["--scheme", "aes", "--block-size", "3"], 2, "multiple of unit_pixels"),
    (["--scheme", "rmt", "--block-size", "9"], 2, "block_size"),
    (["--scheme", "rmt", "--block-size", "2", "--mix", "all"], 2, "mix must be one of"),
    (["--scheme", "aes", "--block-size", "4", "--dtype", "float16"], 2, "stored as uint8"),
    (["--scheme", "aes", "--block-size", "4", "--dtype", "float23"], 2, "Did you mean 'float32'"),
    (["--scheme", "aes", "--block-size", "4", "--views", "2"], 2, "need crop or flip"),
    (["--scheme", "aes", "--block-size", "4", "--workers", "0"], 2, "whole number of at least 1"),
    (
      ["--scheme", "aes", "--block-size", "4", "--image-size", "8"],
      2,
      "is for folders of images only",
    ),
    (["--scheme", "aes", "--block-size", "4", "--source", "./nowhere"], 4, "no such folder"),
    (
      ["--scheme", "aes", "--block-size", "4", "--key", "/nowhere/key"],
      3,
      "does not exist.*keygen",
    ),
  ],
)
def test_disguise_refusals(place, call, options, code, message):
  refused(call(*disguise(place, "no", *options)), code, message)
  assert not (place / "no").exists()


def test_padding_is_said_before_the_work(place, tmp_path, call):
  shutil.copy2(place / "key", tmp_path / "key")
  told = "djax: images are padded from 8x8 to 9x9, as blocks of 3x3 do not divide them"
  for size, padded in ((3, True), (4, False)):
    code, _, err = call(
      *disguise(tmp_path, f"by{size}", "--scheme", "permutation", "--block-size", size)
    )
    assert code == 0 and (told in err) is padded


def test_disguise_does_not_write_over_anything(place, call):
  before = {path: path.read_bytes() for path in (place / "exact").iterdir()}
  refused(
    call(*disguise(place, "exact", "--scheme", "permutation", "--block-size", "4")),
    5,
    r"made otherwise \(.*spec.*Nothing is overwritten",
  )
  assert {path: path.read_bytes() for path in (place / "exact").iterdir()} == before


def test_a_passphrase_is_asked_for(place, tmp_path, call, monkeypatch):
  keyfile.write(tmp_path / "key", MASTER, passphrase="secret words")
  words = disguise(tmp_path, "new", "--scheme", "aes", "--block-size", "4")
  monkeypatch.setenv("DJAX_PASSPHRASE", "other words")
  refused(call(*words), 3, "passphrase")
  (tmp_path / "pass").write_text("secret words\n")
  (tmp_path / "pass").chmod(0o600)
  code, out, err = call(*words, "--passphrase-file", tmp_path / "pass")
  assert code == 0
  assert "secret" not in out + "".join(err)


def test_an_interrupt_says_how_to_go_on(place, call, monkeypatch):
  def stop(*args, **kwargs):
    raise KeyboardInterrupt

  monkeypatch.setattr(export, "disguise", stop)
  answer = call(*disguise(place, "no", "--scheme", "aes", "--block-size", "4"))
  line = refused(answer, 130, "interrupted. Re-run the command to resume")
  assert line.endswith("it writes the same bytes.")


@pytest.mark.slow
def test_ctrl_c_stops_a_process_that_then_goes_on(place, tmp_path):
  """A real signal, with worker processes, as a terminal sends it: to all of them, amid many files."""
  shutil.copy2(place / "key", tmp_path / "key")
  options = ("--scheme", "rmt", "--block-size", "2", "--workers", "2", "--originals-per-shard", "1")
  words = disguise(tmp_path, "new", *options)
  words[words.index("train[:60]")] = "train[:1000]"
  # What starts the tests in the background may have the signal ignored, and children inherit that.
  code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
  code += "from djax.cli.main import main; sys.exit(main(sys.argv[1:]))"
  process = subprocess.Popen(
    [sys.executable, "-c", code, *words],
    env=environment(),
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  deadline = time.monotonic() + 60
  while not list(tmp_path.glob("new/disguised-*")) and time.monotonic() < deadline:
    time.sleep(0.01)
  os.killpg(process.pid, signal.SIGINT)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 130, err
  assert re.search(r"^djax: error: interrupted\. Re-run the command to resume.*\n\Z", err, re.M)
  assert all(line.startswith("djax: ") for line in err.splitlines())  # none from a worker
  done = len(list(tmp_path.glob("new/disguised-*")))
  assert not (tmp_path / "new" / manifest.FILE).exists()
  words[words.index("--workers") + 1] = "1"
  assert main(words) == 0
  assert 0 < done < len(list(tmp_path.glob("new/disguised-*"))) == 1030
  restore.authenticated(tmp_path / "new", MASTER)
  directory.verify(tmp_path / "new")


# Progress.


def test_lines_now_and_then_where_there_is_no_terminal(place, call, monkeypatch):
  monkeypatch.setattr(progress, "_SECONDS_OF_A_LINE", 0)
  options = ("--scheme", "aes", "--block-size", "4", "--originals-per-shard", "30")
  _, _, err = call(*disguise(place, "lines", *options, "--workers", "1"))
  assert len(err) >= 5  # three shards, the end, the warning
  form = r"djax: disguising: \d+%, \d+ images/s, about \d+ s left"
  shown = [line for line in err if re.fullmatch(form, line)]
  assert [re.search(r"\d+%", line)[0] for line in shown] == ["33%", "67%", "100%"]
  assert "about 0 s left" in shown[-1]


def test_no_lines_while_the_work_is_short(place, call):
  _, _, err = call(*disguise(place, "short", "--scheme", "aes", "--block-size", "4"))
  assert not [line for line in err if "left" in line]


def test_a_bar_on_a_terminal(place, call, monkeypatch):
  ours, theirs = pty.openpty()
  with os.fdopen(theirs, "w") as terminal:
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    code = main(disguise(place, "bar", "--scheme", "aes", "--block-size", "4"))
    terminal.flush()
    shown = b""
    while select.select([ours], [], [], 0.2)[0]:
      shown += os.read(ours, 1 << 16)
  os.close(ours)
  assert code == 0
  assert re.search(r"disguising .*100%.* images/s", shown.decode())
  assert b"disguised 90 images" in shown


# inspect.


def test_inspect_in_words(place, call):
  code, out, err = call("inspect", place / "noisy")
  assert code == 0
  facts = directory.open(place / "noisy").manifest
  (warning,) = facts.warnings
  bits = math.log2(math.factorial(16))
  assert out.splitlines() == [
    f"directory    {place / 'noisy'}",
    f"fingerprint  {MASTER.fingerprint}",
    f"data set     {facts.id}",
    f"manifest     {facts.sha256}",
    "scheme       rmt: block_size 2, permute True, matrix orthogonal, mix rows, per_channel False, "
    "noise_level 25.0, noise_place before",
    "images       8 x 8 x 1, of 8 x 8 x 1 uint8 originals from digits",
    "stored       float32, at most 0.000189 off the disguise",
    "restored     at most 13 grey levels off, of which the noise makes up to 12.5",
    "labels       10 classes, ids permuted, names sealed for the owner",
    f"permutation  16 blocks, log2(16!) = {bits:.1f} bits: a brute-force count, not a security level",
    "train        60 records in 1 shard",
    "test         30 records in 1 shard",
    f"warning      {warning}",
  ]
  assert err == [
    f"djax: nothing was authenticated; for that: python -m djax verify {place / 'noisy'} --key KEY"
  ]


@pytest.mark.parametrize(
  ("name", "lines"),
  [
    ("exact", ["stored       uint8, exact", "restored     exact"]),
    (
      "stepped",
      [
        "labels       10 classes, as in the source: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        "train        120 records in 1 shard, 2 views of each original",
        "images       9 x 9 x 1, of 8 x 8 x 1 uint8 originals from digits",
      ],
    ),
  ],
)
def test_inspect_of_other_sets(place, call, name, lines):
  assert set(lines) <= set(call("inspect", place / name)[1].splitlines())


def test_restored_bounds_in_words(place, call):
  for options, words in (
    ("--scheme aes --block-size 4 --salt-pepper 0.05", "exact, but for the share 0.05 that salt"),
    ("--scheme aes --block-size 4 --unit-pixels 4", "never: this disguise has no way back"),
    ("--scheme rmt --block-size 2 --noise-level 0.5", "exact"),
    ("--scheme rmt --block-size 2 --dtype uint8", "at most 2 grey levels off"),
  ):
    name = f"words{abs(hash(options))}"
    # The matrices, and with them the levels, follow from the id.
    assert call(*disguise(place, name, *options.split(), "--dataset-id", f"{1:032x}"))[0] == 0
    out = call("inspect", place / name)[1]
    assert re.search(f"^restored     {re.escape(words)}", out, re.M), out


def test_inspect_needs_no_key_code_of_the_owner_to_draw(place, tmp_path, call):
  for name in ("noisy", "stepped", "exact"):
    file = tmp_path / f"{name}.png"
    assert call("inspect", place / name, "--grid", file)[0] == 0
    with Image.open(file) as picture:
      assert picture.size == (8 * 68 + 4, 14 + 4 + 14 + 4 * 68)  # 32 images
      pixels = np.asarray(picture)
    assert pixels[40:, 10:].std() > 10


def test_the_grid_shows_what_is_stored(place, tmp_path, call):
  call("inspect", place / "exact", "--grid", tmp_path / "grid.png")
  images, _ = directory.open(place / "exact").splits["train"].read(np.arange(32))
  with Image.open(tmp_path / "grid.png") as picture:
    pixels = np.asarray(picture.convert("L"))
  for index in (0, 7, 8, 31):
    top, left = 32 + index // 8 * 68, 4 + index % 8 * 68
    shown = pixels[top : top + 64 : 8, left : left + 64 : 8]
    np.testing.assert_array_equal(shown, images[index, ..., 0])


def test_the_grid_overwrites_nothing(place, tmp_path, call):
  (tmp_path / "grid.png").write_text("mine")
  answer = call("inspect", place / "noisy", "--grid", tmp_path / "grid.png")
  refused(answer, 5, "grid.png exists and is not overwritten")
  assert (tmp_path / "grid.png").read_text() == "mine"
  refused(call("inspect", place / "noisy", "--grid", place / "noisy" / "x.png"), 5, "lies in")
  assert directory.verify(place / "noisy")


def test_inspect_of_what_is_no_data_set(place, tmp_path, call):
  line = refused(call("inspect", tmp_path), 4, r"MANIFEST\.json must exist, it does not")
  assert "unfinished" not in line
  (tmp_path / manifest.UNFINISHED).mkdir()
  refused(call("inspect", tmp_path), 4, "It is unfinished: re-run the `djax disguise` command")


# verify.


def test_verify_says_what_was_checked_and_what_was_not(place, call):
  code, out, err = call("verify", place / "noisy")
  assert (code, err) == (0, [])
  assert "5 files: lengths and SHA-256 as it says, and nothing else is there" in out
  assert re.search("^not checked +who wrote it: ", out, re.M)
  code, out, err = call("verify", place / "noisy", "--key", place / "key")
  assert (code, err) == (0, [])
  assert re.search(
    f"^authenticated +a dataset written with the key {MASTER.fingerprint}, unchanged", out, re.M
  )
  assert re.search("^not checked +whether it is the newest: there is no ledger", out, re.M)


@pytest.fixture(scope="module")
def entered(place, tmp_path_factory):
  """A folder with a key, its ledger, and two data sets of one source, ``new`` after ``old``."""
  folder = tmp_path_factory.mktemp("entered")
  shutil.copy2(place / "key", folder / "key")
  scheme = ("--scheme", "permutation", "--block-size", "4")
  assert main(disguise(folder, "old", *scheme, ledger=True)) == 0
  scheme = ("--scheme", "rmt", "--block-size", "4")
  assert main(disguise(folder, "new", *scheme, ledger=True)) == 0
  return folder


def test_the_second_disguise_of_a_source_is_warned_of(place, tmp_path, call):
  shutil.copy2(place / "key", tmp_path / "key")
  scheme = ("--scheme", "aes", "--block-size", "4")
  assert not [
    line for line in call(*disguise(tmp_path, "a", *scheme, ledger=True))[2] if "same" in line
  ]
  err = call(*disguise(tmp_path, "b", *scheme, ledger=True))[2]
  assert re.match("djax: warning: 100% of the files of this source and of one disguised", err[0])
  # The same again is not another one.
  again = call(*disguise(tmp_path, "b", *scheme, ledger=True))[2]
  assert not [line for line in again if "% of the files" in line]
  id_ = directory.open(tmp_path / "a").manifest.id
  other = ("--scheme", "permutation", "--block-size", "4", "--dataset-id", id_)
  answer = call(*disguise(tmp_path, "c", *other, ledger=True))
  refused(answer, 5, f"the id {id_} was given to a data set on")
  assert not (tmp_path / "c").exists()
  # The same once more, elsewhere: the same bytes.
  assert call(*disguise(tmp_path, "c", *scheme, "--dataset-id", id_, ledger=True))[0] == 0
  assert (
    directory.open(tmp_path / "c").manifest.sha256 == directory.open(tmp_path / "a").manifest.sha256
  )
  refused(call(*disguise(tmp_path, "d", *scheme, "--dataset-id", "12")), 2, "32 hexadecimal digits")


def test_verify_tells_the_newest_from_an_older_and_an_unknown_one(place, entered, call):
  key = ("--key", entered / "key")
  code, out, _ = call("verify", entered / "new", *key)
  assert code == 0 and re.search("^known +written .*Z, the newest of its source", out, re.M)
  code, out, _ = call("verify", entered / "old", *key)
  assert code == 0 and re.search("^WARNING +OLDER: written .*was disguised again", out, re.M)
  code, out, _ = call("verify", place / "exact", *key)
  assert code == 0 and re.search("^WARNING +NOT KNOWN: no data set of this manifest", out, re.M)
  assert "known  " not in out


def test_an_older_or_unknown_set_is_said_wherever_the_key_is_used(place, entered, tmp_path, call):
  key = ("--key", entered / "key")
  for folder, word in ((entered / "old", "OLDER"), (place / "exact", "NOT KNOWN")):
    sha256 = directory.open(folder).manifest.sha256
    out = ("--out", tmp_path / f"{word[0]}.npz")
    code, _, err = call("restore", folder, *key, *out)
    warning = f"djax: warning: {word}.*Pin one with --expect {sha256}"
    assert code == 0 and any(re.match(warning, line) for line in err)
    out = ("--out", tmp_path / f"{word[0]}-pinned.npz")
    assert "warning" not in "".join(call("restore", folder, *key, *out, "--expect", sha256)[2])
  Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
  words = ("query", tmp_path / "a.png", "--data", entered / "old", *key)
  code, _, err = call(*words, "--request", tmp_path / "r")
  assert code == 0 and "OLDER" in "".join(err)
  new = directory.open(entered / "new").manifest.sha256
  answer = call(*words, "--request", tmp_path / "r2", "--expect", new)
  refused(answer, 4, f"must have the manifest {new}, has")
  assert not (tmp_path / "r2").exists()


@pytest.mark.parametrize("verb", ["verify", "restore"])
def test_another_manifest_than_expected_is_refused(place, tmp_path, call, verb):
  out = ("--out", tmp_path / "x.npz", "--key", place / "key") if verb == "restore" else ()
  folder = place / "exact"
  assert (
    call(verb, folder, *out, "--expect", directory.open(folder).manifest.sha256.upper())[0] == 0
  )
  (tmp_path / "x.npz").unlink(missing_ok=True)
  refused(call(verb, folder, *out, "--expect", "0" * 64), 4, "must have the manifest 0000")
  refused(call(verb, folder, *out, "--expect", "12"), 2, "must be 64 hexadecimal digits")
  assert not (tmp_path / "x.npz").exists()


def test_a_request_is_no_data_set_and_the_other_way_round(place, tmp_path, call):
  key = ("--key", place / "key")
  Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
  words = ("query", tmp_path / "a.png", *key, "--data")
  assert call(*words, place / "exact", "--request", tmp_path / "r")[0] == 0
  refused(call(*words, tmp_path / "r", "--request", tmp_path / "s"), 4, "must be a dataset, is a")
  refused(call("restore", tmp_path / "r", *key, "--out", tmp_path / "x"), 4, "must be a dataset")
  refused(call("verify", tmp_path / "r", *key, "--role", "dataset"), 4, "must be a dataset")
  assert "a request written with" in call("verify", tmp_path / "r", *key)[1]
  answers = ("--answers", tmp_path / "answers.json")
  refused(call("query", "--request", place / "exact", *answers, *key), 4, "must be a request")
  # Nor does the MAC of one serve the other, whatever the manifest says.
  folder = shutil.copytree(tmp_path / "r", tmp_path / "forged")
  text = (folder / manifest.FILE).read_text()
  text = text.replace('"query": {', '"train": {').replace('"role": "request"', '"role": "dataset"')
  text = re.sub(r'"request": "[0-9a-f]{32}"', '"request": null', text)
  (folder / manifest.FILE).write_text(text)
  mend(folder)
  refused(call("restore", folder, *key, "--out", tmp_path / "x"), 4, "was not written with this")


def test_nothing_from_outside_reaches_the_terminal_raw(place, tmp_path, call):
  folder = shutil.copytree(place / "stepped", tmp_path / "set")
  text = (folder / manifest.FILE).read_text()
  line = "\\u001b[2K\\rauthenticated  written with the key\\u001b]0;x\\u0007\\u202e"
  text = re.sub(r'"warnings": \[\n\s*"', lambda m: m[0] + line, text)
  text = text.replace('"name": "digits"', f'"name": "{line}"')
  (folder / manifest.FILE).write_text(text)
  mend(folder)
  (folder / "stray\x1b[2K\r\u202e").touch()
  for words in (("inspect", folder), ("inspect", folder, "--json"), ("verify", folder)):
    _, out, err = call(*words)
    shown = out + "".join(err)
    assert shown and not set(shown) & set("\x1b\r\x07\u202e"), words
  assert r"\x1b[2K\rauthenticated" in call("inspect", folder)[1]


def test_verify_refusals(place, tmp_path, call):
  folder = tmp_path / "copy"
  shutil.copytree(place / "exact", folder)
  key = ("--key", place / "key")
  refused(call("verify", folder, "--key", place / "other"), 3, f"with the key {MASTER.fingerprint}")
  refused(call("verify", folder, "--passphrase-file", "x"), 2, "given with --key or not at all")
  (folder / "stray").touch()
  refused(call("verify", folder), 4, "stray is not in the manifest")
  (folder / "stray").unlink()
  card = (folder / "README.md").read_bytes()
  (folder / "README.md").write_bytes(card.replace(b"not encryption", b"an encryption"))
  refused(call("verify", folder), 4, r"README\.md is damaged")
  (folder / "README.md").write_bytes(card)
  facts = (folder / manifest.FILE).read_text()
  (folder / manifest.FILE).write_text(facts.replace('"exact"', "").replace("0.0", "0.5", 1))
  refused(call("verify", folder), 4, "checksum does not hold")
  mend(folder)
  assert call("verify", folder)[0] == 0
  refused(call("verify", folder, *key), 4, "was not written with this key or was changed since")


# restore.


@pytest.mark.parametrize("out", ["back.npz", "back"])
def test_restore(place, tmp_path, call, out):
  code, shown, err = call(
    "restore", place / "exact", "--key", place / "key", "--out", tmp_path / out
  )
  assert code == 0
  assert shown == f"{tmp_path / out}\n"
  assert err == [
    "djax: restored pixels: exact",
    "djax: these are originals: keep them on this machine",
  ]
  was, back = sources.load("digits", "train[:60]"), sources.load(str(tmp_path / out), "train")
  for label in range(10):
    mine, theirs = (x.images[x.labels == label] for x in (was, back))
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_the_words_about_restored_pixels_hold(place, tmp_path, call):
  for name in ("noisy", "stepped"):
    _, _, err = call(
      "restore", place / name, "--key", place / "key", "--out", tmp_path / f"{name}.npz"
    )
    said = "\n".join(err)  # a slow machine is told how far it is first
    worst = int(re.search("restored pixels: at most ([0-9]+) grey levels off", said)[1])
    back = sources.load(str(tmp_path / f"{name}.npz"), "train").images.astype(int)
    error = np.abs(back - sources.load("digits", "train[:60]").images).max()
    assert worst / 2 <= error <= worst


def test_restore_refusals(place, tmp_path, call):
  out = ("--out", tmp_path / "back.npz")
  key = ("--key", place / "key")
  refused(call("restore", place / "exact", "--key", place / "other", *out), 3, "Give the key it")
  refused(call("restore", place / "exact", *out), 2, "are required: --key")
  refused(call("restore", tmp_path, *key, *out), 4, "must exist, it does not")
  assert not list(tmp_path.iterdir())
  (tmp_path / "back.npz").write_text("mine")
  refused(call("restore", place / "exact", *key, *out), 5, "exists and is not overwritten")
  refused(call("restore", place / "exact", *key, "--out", tmp_path / "no" / "x.npz"), 1, "No such")


# query: what lies behind it has tests of its own.


@pytest.fixture(scope="module")
def trained(place):
  """A run directory of a small network on the set ``stepped``."""
  words = (f"--workdir={place / 'run'}", f"--config.data.disguised_dir={place / 'stepped'}")
  small = (
    "--config.model.name=mlp",
    "--config.model.width=2",
    "--config.train.epochs=1",
    "--config.train.batch_size=20",
  )
  assert train_main(["--config=outsourced", *words, *small]) == 0
  return place / "run"


@pytest.fixture(scope="module")
def pictures(place):
  """Two image files."""
  folder = place / "pictures"
  folder.mkdir()
  for index, image in enumerate(sources.load("digits", "test[:2]").images):
    Image.fromarray(image[..., 0]).save(folder / f"{index}.png")
  return folder


@pytest.mark.slow
def test_query_here_and_there_give_the_same(place, trained, pictures, tmp_path, call):
  key = ("--key", place / "key")
  code, out, err = call("query", pictures, "--checkpoint", trained, *key)
  assert code == 0
  rows = [line.split("  ") for line in out.splitlines()]
  assert [row[0] for row in rows] == [str(pictures / "0.png"), str(pictures / "1.png")]
  assert all(row[1] in "0123456789" and 0.1 < float(row[2]) <= 1 for row in rows)
  here = json.loads(call("query", pictures, "--checkpoint", trained, *key, "--json")[1])
  assert here["classes"] == list("0123456789")
  for row, answer in zip(rows, here["answers"], strict=True):
    assert row == [answer["file"], answer["class"], f"{answer['probability']:.4f}"]
    assert answer["probability"] == max(answer["probabilities"])

  for data in (place / "stepped", trained):
    request, answers = tmp_path / f"request-{data.name}", tmp_path / f"{data.name}.json"
    code, out, err = call("query", pictures, "--data", data, "--request", request, *key)
    assert code == 0
    assert out.startswith(f"request      {request}\nfingerprint  {MASTER.fingerprint}\n")
    assert f"python -m train.answer RUN {request} --out answers.json" in out
    assert f"python -m djax query --request {request} --answers answers.json" in out
    assert answer_main([str(trained), str(request), "--out", str(answers)]) == 0
    code, out, err = call("query", "--request", request, "--answers", answers, *key, "--json")
    assert code == 0
    assert err == ["djax: nothing vouches for these numbers but the machine that gave them"]
    found = json.loads(out)
    assert found["classes"] == here["classes"]
    for mine, other in zip(found["answers"], here["answers"], strict=True):
      assert (mine["file"], mine["class"]) == (other["file"], other["class"])
      np.testing.assert_allclose(mine["probabilities"], other["probabilities"], atol=1e-6)


def test_query_says_how_many_values_were_cut(place, tmp_path, call):
  Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "white.png")
  words = ("--data", place / "stepped", "--request", tmp_path / "r", "--key", place / "key")
  code, out, err = call("query", tmp_path / "white.png", *words, "--json")
  assert code == 0
  assert re.match(
    r"djax: [1-9]\d* values lay outside the range of the data set's quantiser", err[0]
  )
  facts = json.loads(out)
  assert facts["splits"]["query"]["records"] == 1
  facts = manifest.read(tmp_path / "r")
  names = sealed_metadata.box_of(facts, MASTER).unseal(facts.sealed)["names"]
  assert names == [str(tmp_path / "white.png")]


def test_a_request_for_another_data_set_is_not_answered(place, trained, pictures, tmp_path, capsys):
  options = ("--scheme", "rmt", "--block-size", "3", "--dtype", "uint8", "--plain-labels")
  assert main(disguise(place, "sibling", *options)) == 0
  words = ("query", pictures, "--data", place / "sibling", "--request", tmp_path / "r")
  assert main([str(word) for word in (*words, "--key", place / "key")]) == 0
  capsys.readouterr()
  code = answer_main([str(trained), str(tmp_path / "r"), "--out", str(tmp_path / "a.json")])
  err = capsys.readouterr().err
  assert code == 2 and "must belong to the data set that" in err and len(err.splitlines()) == 1
  assert not (tmp_path / "a.json").exists()


def test_planted_images_are_judged_and_taken_out(place, trained, pictures, tmp_path, call):
  key = ("--key", place / "key")
  digits = sources.load("digits", "test[:40]")
  np.savez(
    tmp_path / "known.npz",
    **{f"{half}_images": digits.images for half in ("train", "test")},
    **{f"{half}_labels": digits.labels for half in ("train", "test")},
  )
  request = tmp_path / "request"
  words = ("--data", place / "stepped", "--request", request, "--canaries", tmp_path / "known.npz")
  code, out, _ = call("query", pictures, *words, *key)
  assert code == 0 and "images       2, and 80 planted ones" in out
  count = directory.open(request).manifest.splits["query"].records
  assert count == 82
  facts = manifest.read(request)
  secret = sealed_metadata.box_of(facts, MASTER).unseal(facts.sealed)
  assert len(secret["names"]) == 2 and len(secret["canaries"]) == 80
  # An answer invented without looking: the same class for every image.
  answer = {"format": "djax-answers", "version": 1, "request": facts.sha256, "run": {}}
  answer["probabilities"] = [[1.0] + [0.0] * 9] * count
  (tmp_path / "lie.json").write_text(json.dumps(answer))
  code, out, err = call("query", "--request", request, "--answers", tmp_path / "lie.json", *key)
  assert code == 0 and len(out.splitlines()) == 2
  assert re.match(r"djax: warning: \d+ of 80 planted images.*do not rely on these answers", err[0])
  bad = call("query", pictures, "--checkpoint", trained, "--canaries", "x", *key)
  refused(bad, 2, "--canaries are planted in a request")


def test_query_refusals(place, pictures, tmp_path, call):
  key = ("--key", place / "key")
  data = ("--data", place / "stepped")
  usage = "takes --checkpoint, or --data with --request, or --request with --answers; got "
  refused(call("query", pictures, *key), 2, f"{usage}none of them")
  refused(call("query", pictures, *data, *key), 2, f"{usage}--data")
  both = call("query", pictures, *data, "--checkpoint", "x", *key)
  refused(both, 2, f"{usage}--checkpoint and --data")
  refused(call("query", *data, "--request", "r", *key), 2, "IMAGES are given with")
  words = ("--request", "r", "--answers", "a", *key)
  refused(call("query", pictures, *words), 2, "not with --answers")
  refused(call("query", *words, "--image-size", "8"), 2, "not with --answers")
  refused(call("query", *words), 4, "must exist")
  new = ("--request", tmp_path / "r")
  refused(call("query", tmp_path / "x.png", *data, *new, *key), 4, r"x\.png: no such file")
  refused(call("query", pictures, *data, *new, "--key", place / "other"), 3, "Give the key it")
  inside = ("--request", place / "stepped" / "r")
  refused(call("query", pictures, *data, *inside, *key), 5, "lies in")
  refused(call("query", pictures, *data, "--request", pictures, *key), 5, "exists and is not")
  refused(
    call("query", pictures, "--checkpoint", tmp_path, *key),
    2,
    r"must be a run directory with config\.json",
  )
  assert not list(tmp_path.iterdir())


# Help.


@pytest.mark.parametrize("verb", _VERBS)
def test_every_verb_has_help(verb, capsys):
  with pytest.raises(SystemExit) as left:
    main([verb, "--help"])
  assert left.value.code == 0
  out = capsys.readouterr().out
  assert out.startswith(f"usage: python -m djax {verb}") and len(out.splitlines()) >= 5


def test_a_mistyped_verb_finds_its_name():
  for typed, meant in (("disguse", "disguise"), ("restor", "restore")):
    line = failed(run(typed, "x"), 2, "invalid choice")
    assert f"Did you mean '{meant}'?" in line
