"""What an owner may say of a folder: who is on an image, which fifth is test, what lies behind transparency."""

import hashlib
import re

import numpy as np
import pytest
from helpers.source_files import draw
from PIL import Image

from djax import keys, sources
from djax.__main__ import main
from djax.audit import scenario
from djax.disguised import directory
from djax.errors import ConfigError, DataError, DjaxError
from djax.owner import export, query, restore
from djax.owner.plan import Request
from djax.sources import Reading, image_files
from train import config as config_lib
from train.data import owned

MASTER = keys.Master(bytes(range(32)))
SCHEME = {"scheme": "permutation", "block_size": 2}


def patients(root, count=10):
  """Two classes; every patient has two images in each, and the names say nothing of it."""
  rows = []
  for number, name in enumerate(("cat", "dog")):
    for i in range(2 * count):
      draw(root / name / f"{i:03}.png", seed=100 * number + i, mode="L", size=(8, 8))
      rows.append((f"{name}/{i:03}.png", f"P{i // 2}"))
  return rows


def table(path, rows, *, head="file,group", join=",", encoding="utf-8"):
  lines = [head, *(join.join(row) for row in rows)]
  path.write_text("\n".join(lines) + "\n", encoding=encoding)
  return str(path)


def names(source, split, **reading):
  with sources.open(str(source), split, **reading) as records:
    return {name for name, _ in records.files}


@pytest.mark.parametrize(
  "form",
  [
    {},
    {"head": "file;group", "join": ";"},
    {"encoding": "utf-8-sig"},
    {"head": " File , Group ", "join": " , "},
  ],
  ids=["plain", "semicolons", "byte order mark", "blanks and capitals"],
)
def test_a_table_keeps_groups_apart(tmp_path, form):
  rows = patients(tmp_path / "set")
  gone = [("cat/gone.png", "P77")]
  path = table(tmp_path / "groups.csv", [*rows, *gone], **form)
  train, test = (names(tmp_path / "set", split, group_by=path) for split in ("train", "test"))
  group = dict(rows)
  # Sorted as text: P0 .. P9, of which the fifth and the tenth are test.
  assert {group[name] for name in test} == {"P4", "P9"}
  assert train | test == set(group) and not {group[name] for name in train} & {"P4", "P9"}


@pytest.mark.parametrize(
  ("rows", "head", "message"),
  [
    ([], "name,patient", "must begin with the line file,group; got name, patient"),
    (None, "", "must begin with the line file,group; got nothing"),
    ([("cat/000.png", "a", "b")], "file,group", "every row must be a file and its group, got"),
    ([("cat/000.png", "")], "file,group", "every row must be a file and its group, got"),
    ([("cat/000.png", "a"), ("cat/000.png", "b")], "file,group", "is in two groups, 'a' and 'b'"),
    ([("cat/000.png", "a")], "file,group", "has no row for cat/001.png. Names are those below"),
  ],
)
def test_a_table_that_says_too_little_is_refused(tmp_path, capsys, rows, head, message):
  patients(tmp_path / "set", count=1)
  path = tmp_path / "groups.csv"
  if rows is None:
    path.write_text("")
  else:
    table(path, rows, head=head)
  with pytest.raises(DataError) as caught:
    sources.open(f"{tmp_path}/set", "train", group_by=str(path))
  assert message in str(caught.value) and "\n" not in str(caught.value)
  assert main(["check", "--source", f"{tmp_path}/set", "--group-by", str(path)]) == 4
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  ("content", "message"),
  [(None, "cannot be read"), ("file,group\ncat/ä.png,1".encode("latin-1"), "text in UTF-8")],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path, content, message):
  patients(tmp_path / "set", count=1)
  if content:
    (tmp_path / "groups.csv").write_bytes(content)
  with pytest.raises(DataError, match=message):
    sources.open(f"{tmp_path}/set", "train", group_by=f"{tmp_path}/groups.csv")


def test_a_name_may_hold_what_ends_a_line_elsewhere(tmp_path):
  """A table's lines end as CSV has it: names with other separators, and quoted ones, are whole."""
  rows = patients(tmp_path / "set")
  odd = {"cat/000.png": "cat/a\u2028b.png", "dog/000.png": "dog/a,b.png"}
  for old, new in odd.items():
    (tmp_path / "set" / old).rename(tmp_path / "set" / new)
  renamed = [(odd.get(name, name), group) for name, group in rows]
  path = table(tmp_path / "groups.csv", [(f'"{name}"', group) for name, group in renamed])
  found = {x for s in ("train", "test") for x in names(tmp_path / "set", s, group_by=path)}
  assert found == {name for name, _ in renamed}


def test_a_table_with_a_field_without_end_is_refused(tmp_path):
  patients(tmp_path / "set", count=1)
  (tmp_path / "groups.csv").write_text('file,group\n"' + "x" * 200_000)
  with pytest.raises(DataError, match="must be a table of file and group"):
    sources.open(f"{tmp_path}/set", "train", group_by=f"{tmp_path}/groups.csv")


def test_a_pattern_may_end_as_a_table_does(tmp_path):
  for name in ("cat", "dog"):
    for i in range(5):
      draw(tmp_path / "set" / name / f"{i}.csv.png", seed=i, mode="L", size=(8, 8))
  assert names(tmp_path / "set", "test", group_by=r"(\d).csv") == {"cat/4.csv.png", "dog/4.csv.png"}


def test_a_seed_draws_the_fifth(tmp_path):
  """The slow twin sorts by the hash of seed and name; so the drawing is the same on every machine."""
  patients(tmp_path / "set")
  drawn = {}
  for seed in (1, 2):
    drawn[seed] = names(tmp_path / "set", "test", split_seed=seed)
    wanted = set()
    for name in ("cat", "dog"):
      hashed = sorted(
        (hashlib.sha256(b"%d\n%s/%03d.png" % (seed, name.encode(), i)).digest(), i)
        for i in range(20)
      )
      wanted |= {f"{name}/{i:03}.png" for _, i in hashed[4::5]}
    assert drawn[seed] == wanted
    train = names(tmp_path / "set", "train", split_seed=seed)
    assert not train & drawn[seed] and len(train | drawn[seed]) == 40
  usual = names(tmp_path / "set", "test")
  assert usual != drawn[1] != drawn[2] and len(usual) == len(drawn[1]) == 8


def test_a_seed_draws_groups(tmp_path):
  rows = patients(tmp_path / "set")
  path = table(tmp_path / "groups.csv", rows)
  group = dict(rows)
  seen = set()
  for seed in range(1, 6):
    how = {"group_by": path, "split_seed": seed}
    test = {group[name] for name in names(tmp_path / "set", "test", **how)}
    assert len(test) == 2 and not test & {
      group[name] for name in names(tmp_path / "set", "train", **how)
    }
    seen |= {frozenset(test)}
  assert len(seen) > 1


def test_a_seed_is_refused_where_the_folder_is_divided(tmp_path):
  for split in ("train", "test"):
    patients(tmp_path / "set" / split, count=1)
  with pytest.raises(ConfigError, match="split_seed must be 0 where a folder has its own train"):
    sources.open(f"{tmp_path}/set", "train", split_seed=3)
  with pytest.raises(ConfigError, match="split_seed=3 is for folders of images only"):
    sources.open("digits", "train", split_seed=3)


def test_a_folder_without_a_slash_is_named_as_it_must_be_written(tmp_path, monkeypatch):
  """Such a name is one of TFDS."""
  monkeypatch.chdir(tmp_path)
  draw(tmp_path / "pets" / "cat" / "a.png")
  with pytest.raises(
    ConfigError, match=r"leave it out with 'pets', or name the folder as \./pets$"
  ):
    sources.open("pets", "train", image_size=8)
  with pytest.raises(ConfigError, match=r"leave it out with 'digits'$"):
    sources.open("digits", "train", image_size=8)


def test_seed_and_table_belong_to_the_data_set(tmp_path):
  """Resumed with others, or restored, a directory is that of its own seed and table."""
  path = table(tmp_path / "groups.csv", patients(tmp_path / "set"))
  source = f"{tmp_path}/set"
  asked = Request(source, SCHEME, reading=Reading(group_by=path, split_seed=3))
  export.disguise(asked, tmp_path / "out", MASTER, workers=2)
  restore.to_files(directory.open(tmp_path / "out"), MASTER, tmp_path / "back.npz")
  back = sources.load(f"{tmp_path}/back.npz", "test")
  true = sources.load(source, "test", group_by=path, split_seed=3)
  np.testing.assert_array_equal(back.images, true.images)
  for other in (Reading(group_by=path), Reading(split_seed=3)):
    with pytest.raises(DjaxError, match="made otherwise"):
      export.disguise(Request(source, SCHEME, reading=other), tmp_path / "out", MASTER, workers=1)


RED = (200, 100, 50)
SEEN = {
  # A pixel's colour and opacity, and what is seen of it before white: (opacity x colour + (255 - opacity) x 255) / 255.
  "clear": ((0, 0, 0, 0), (255, 255, 255)),
  "half": ((*RED, 128), (227, 177, 152)),
  "opaque": ((*RED, 255), RED),
}


def write(path, image, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path, **options)
  return path


def transparent(root, count=10):
  """Two classes of images with an alpha channel, half of it clear."""
  for name in ("cat", "dog"):
    for i in range(count):
      values = np.full((8, 8, 4), (*RED, 255), np.uint8)
      values[:4] = (0, 0, 0, 0)
      values[i % 8, 0, :3] = i
      write(root / name / f"{i:02}.png", Image.fromarray(values, "RGBA"))
  return str(root)


@pytest.mark.parametrize("pixel", SEEN)
def test_transparency_is_laid_on_the_background(tmp_path, pixel):
  values, wanted = SEEN[pixel]
  path = write(tmp_path / "a.png", Image.new("RGBA", (4, 4), values))
  white = image_files.colour("white")
  assert image_files.read_header(path, white) == (3, (4, 4), False, True)
  found = image_files.decode(path, (4, 4, 3), False, white)
  assert np.abs(found.astype(int) - wanted).max() <= 1  # Pillow rounds once more
  found = image_files.decode(path, (2, 2, 3), True, white)
  assert np.abs(found.astype(int) - wanted).max() <= 1


def grey_alpha():
  return Image.new("LA", (4, 4), (10, 0))


def palette():
  image = Image.new("P", (4, 4), 1)
  image.putpalette([*RED, 1, 2, 3])
  image.info["transparency"] = 1
  return image


def one_colour():
  image = Image.new("RGB", (4, 4), RED)
  image.info["transparency"] = RED
  return image


@pytest.mark.parametrize("make", [grey_alpha, palette, one_colour])
def test_every_kind_of_transparency_is_laid_on_the_background(tmp_path, make):
  image = make()
  options = {name: image.info[name] for name in ("transparency",) if name in image.info}
  path = write(tmp_path / "a.png", image, **options)
  with pytest.raises(DataError, match=r"alpha channel or transparency\. Save it without, or give"):
    image_files.read_header(path)
  for text, value in (("#102030", (16, 32, 48)), ("#404040", (64, 64, 64))):
    back = image_files.colour(text)
    channels = image_files.read_header(path, back).channels
    # A grey image on a grey ground stays grey.
    assert channels == (1 if make is grey_alpha and text == "#404040" else 3)
    found = image_files.decode(path, (4, 4, channels), False, back)
    assert (found == np.array(value)[:channels]).all()


def test_images_without_transparency_stay_as_they_are(tmp_path):
  path = tmp_path / "set" / "a.png"
  draw(path, seed=1, mode="RGB", size=(8, 8))
  plain = image_files.decode(path, (8, 8, 3), False)
  assert (image_files.decode(path, (8, 8, 3), False, (1, 2, 3)) == plain).all()


@pytest.mark.parametrize("text", ["nocolour", "#12", "#11223344", "255", "rgb(1,2)"])
def test_a_background_must_be_a_colour(tmp_path, text):
  with pytest.raises(ConfigError, match="background must be a colour such as white or #rrggbb"):
    sources.open(transparent(tmp_path / "set"), "train", background=text)


def test_every_door_takes_the_background(tmp_path, capsys):
  source = transparent(tmp_path / "set", count=100)
  asked = Request(source, SCHEME, reading=Reading(background="white"))
  config = config_lib.load("digits_rmt")
  config.data.source = source
  with pytest.raises(DataError, match="or give the colour behind it: --background white"):
    owned.inputs(config, None)
  config.data.background = "white"

  facts = export.disguise(asked, tmp_path / "out", MASTER, workers=1)
  restore.to_files(directory.open(tmp_path / "out"), MASTER, tmp_path / "back.npz")
  stored = sources.load(f"{tmp_path}/back.npz", "train").images
  trained = owned.inputs(config, None).originals[0].images
  queried = query.read([f"{source}/cat/09.png"], facts, background="white").images
  attacked = scenario.from_source(
    source, SCHEME, seed=0, sizes=scenario.FAST, reading=Reading(background="white")
  )
  sheets = {
    "disguise": stored,
    "train": trained,
    "query": queried,
    "audit": attacked.private,
  }
  for door, images in sheets.items():
    assert (images[:, :4, 1:] == 255).all(), door
    assert (images[:, 5:7, 2:] == RED).all(), door
  assert main(["check", "--source", source, "--background", "white"]) == 0
  assert "transparency replaced by white: 200" in capsys.readouterr().out
  with pytest.raises(DataError, match="Save it without, or give the colour behind it"):
    query.read([f"{source}/cat/09.png"], facts)
  for other in ("", "black"):
    reading = Reading(background=other)
    with pytest.raises(DjaxError, match=r"made otherwise|Save it without"):
      export.disguise(Request(source, SCHEME, reading=reading), tmp_path / "out", MASTER, workers=1)


def test_options_of_folders_are_for_folders():
  for name, value in (("background", "white"), ("group_by", "(a)"), ("image_size", 8)):
    with pytest.raises(ConfigError, match=re.escape(f"{name}={value} is for folders of images")):
      sources.open("digits", "train", **{name: value})
