"""Odd inputs that people really have, small and made by code: add the next report as a line of ``ODD``.

Each is made in an empty folder and named with what must come of it: a pattern of the one line that refuses it, or None
where it is taken.
"""

import io
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from helpers.source_files import arrays, draw
from PIL import Image, PngImagePlugin

__all__ = ["ODD", "Odd"]


class Odd(NamedTuple):
  """An odd input.

  Attributes:
    name: of the case.
    make: ``(folder) -> source``.
    refusal: a pattern of the message; None if it is taken.
    says: a pattern of a line that the inventory must have.
  """

  name: str
  make: object
  refusal: str | None = None
  says: str | None = None


def npz(**changes):
  def make(root):
    np.savez(root / "set.npz", **arrays(**changes))
    return f"{root}/set.npz"

  return make


def images(dtype, values, count=6, sides=(4, 5, 3)):
  """Arrays of an archive whose images repeat some values."""
  some = np.resize(np.array(values, dtype), (count, *sides))
  return {"train_images": some, "test_images": some[:4]}


def folder(*changes, classes=("cat", "dog"), count=6):
  def make(root):
    for number, name in enumerate(classes):
      for i in range(count):
        draw(root / "set" / name / f"{i}.png", seed=10 * number + i, mode="L")
    for change in changes:
      change(root / "set")
    return f"{root}/set"

  return make


def write(name, data=b"x"):
  def change(root):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

  return change


def picture(name, mode="L", size=(6, 4), **options):
  def change(root):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path, **options)

  return change


def move(old, new):
  def change(root):
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    (root / old).rename(root / new)

  return change


def splits(*names, classes=("cat", "dog"), extra=()):
  """A folder with a split below each name."""

  def make(root):
    for number, split in enumerate(names):
      folder(classes=classes, count=3 + number)(root / "set" / split)
      for entry in (root / "set" / split / "set").iterdir():
        entry.rename(root / "set" / split / entry.name)
      (root / "set" / split / "set").rmdir()
    for change in extra:
      change(root / "set")
    return f"{root}/set"

  return make


def jpeg(name, change, **options):
  buffer = io.BytesIO()
  Image.effect_noise((64, 48), 99).save(buffer, "JPEG", **options)
  return write(name, change(buffer.getvalue()))


def glued(data):
  """Cuts a JPEG in the middle and puts an end marker there, as some tools do that mend a download."""
  return data[: len(data) // 2] + b"\xff\xd9"


def turned(kind):
  """Images that lie on their side, as a note in the file says."""
  xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
  exif = Image.Exif()
  exif[0x0112] = 6

  def change(root):
    for path in root.rglob("*.png"):
      image, notes = Image.open(path), PngImagePlugin.PngInfo()
      if kind == "xmp":
        notes.add_itxt("XML:com.adobe.xmp", xmp.decode())
      elif kind == "zTXt":
        data = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
        notes.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=True)
      more = {"exif": exif} if kind == "exif" else {}
      image.load()
      image.save(path, pnginfo=notes, **more)

  return change


def write_picture(name):
  def change(root):
    path = root / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (6, 4)).save(path)

  return change


def class_order(names):
  return write("djax-classes.json", json.dumps(names).encode())


def deep_png(name):
  buffer = io.BytesIO()
  Image.new("I;16", (6, 4)).save(buffer, "PNG")
  return write(name, buffer.getvalue())


def names(*given):
  return npz(class_names=np.array(given))


ONE_TO_THREE = {
  f"{split}_labels": 1 + np.arange(count) % 3 for split, count in (("train", 6), ("test", 4))
}

ODD = [
  # Scale.
  Odd("floats to 1", npz(**images(np.float32, [0, 0.5, 1])), "no value is above 1.*--scale 1 or"),
  Odd("floats to 1.0000002", npz(**images(np.float32, [0.2, 1.0000002])), "no value is above 1"),
  Odd("floats to 1, one 255", npz(**images(np.float32, [0.5] * 300 + [255])), "only 1 of"),
  Odd("bytes of 0 and 1", npz(**images(np.uint8, [0, 1])), "no value is above 1.*--scale 1 or"),
  Odd("black", npz(**images(np.uint8, [0]))),
  Odd("dark", npz(**images(np.uint8, [0, 1, 2]))),
  Odd("floats to 255", npz(**images(np.float32, [0, 0.5, 255]))),
  Odd("floats above 255", npz(**images(np.float32, [0, 300])), "outside 0..255"),
  # Types: what came, and what is taken.
  Odd("bool", npz(**images(bool, [0, 1])), "uint8, or float .*got bool. If True is white: images"),
  Odd("int64", npz(**images(np.int64, [0, 9])), r"got int64. If all values lie in 0\.\.255: im"),
  Odd("int8", npz(**images(np.int8, [0, 9])), r"got int8. If the values lie in 0\.\.127"),
  Odd("uint16", npz(**images(np.uint16, [0, 9])), "got uint16. If white is 65535: .*// 257"),
  Odd("complex", npz(**images(np.complex64, [0, 9])), "must be uint8, or float.*got complex64.$"),
  # Axes and channels.
  Odd("channels first", npz(sides=(3, 32, 32)), r"must be \[N, H, W, C\].*3 pixels high with 32"),
  Odd("one channel first", npz(sides=(1, 28, 28)), r"must be \[N, H, W, C\].*moveaxis"),
  Odd("flat and wide", npz(sides=(3, 40, 5))),
  Odd("four channels", npz(sides=(4, 5, 4)), "4 channels are not taken, as the last may be alpha"),
  Odd("two channels", npz(sides=(4, 5, 2)), "2 channels are not taken, as the last may be alpha"),
  Odd("seven channels", npz(sides=(4, 5, 7))),
  # Labels and names.
  Odd("labels from 1", npz(**ONE_TO_THREE), says="train has no image of 1 classes: '0'"),
  Odd("equal names", names("a", "b", "a"), "2 classes are called 'a'"),
  Odd("an empty name", names("a", "", "c"), "every class needs a name"),
  Odd("a name of two lines", names("a", "b\nc", "d"), r"one line of text .* got 'b\\nc'"),
  Odd("a name with a blank", names("a", "b ", "c"), "without blanks at its ends, got 'b '"),
  Odd("a name with a control character", names("a", "b\x1b[1m", "c"), "one line of text"),
  Odd("a name with a slash", names("T-shirt/top", "Trouser", "Pullover")),
  Odd("a name in another script", names("猫", "собака", "köpek")),
  Odd("an archive in upper case", lambda root: npz()(root) and _upper(root)),
  # A third split.
  Odd(
    "val arrays",
    npz(val_images=np.zeros((4, 4, 5, 3), np.uint8), val_labels=np.arange(4) % 3),
    says="val_images",
  ),
  Odd(
    "val arrays without labels", npz(val_images=np.zeros((4, 4, 5, 3), np.uint8)), "no array 'val_l"
  ),
  Odd("a val folder", splits("train", "test", "val"), says="the folder val is the split val"),
  Odd("splits with capitals", splits("Train", "Test"), says="images: train 6, test 8"),
  Odd("training and testing", splits("training", "testing"), says="images: train 6, test 8"),
  Odd("two names of a split", splits("train", "Train", "test"), "are both the split train"),
  Odd("a split alone", splits("Training"), "perhaps below train and test.; found Training"),
  Odd(
    "a class of one split",
    splits("train", "test", extra=[picture("test/owl/0.png")]),
    "not so 'owl'",
  ),
  Odd(
    "an empty class of test",
    splits(
      "train",
      "test",
      extra=[
        move("test/cat", "test/x"),
        write("test/cat/a.txt"),
        lambda root: _empty(root / "test/x"),
      ],
    ),
  ),
  # Folders as they are.
  Odd("no test", folder(), says="every fifth file of each class"),
  Odd("numbered classes", folder(classes=("1", "10", "2")), says=r"classes: 3 \(1, 2, 10\)"),
  Odd("an order of its own", folder(class_order(["dog", "cat"])), says=r"\(dog, cat\)"),
  Odd(
    "an order of numbers",
    folder(class_order([1, 2]), classes=("1", "2")),
    "must list the class folders",
  ),
  Odd("an order of others", folder(class_order(["dog", "owl"])), "must list the class folders"),
  Odd(
    "what file managers leave",
    folder(
      write("cat/Thumbs.db"),
      write("dog/desktop.ini"),
      write("cat/.DS_Store"),
      write("dog/notes.txt"),
    ),
    says=r"skipped: 3 \(cat/Thumbs.db",
  ),
  Odd(
    "pictures of other kinds",
    folder(picture("cat/a.tif"), picture("dog/b.webp"), write("dog/c.dcm")),
    r"3 files cannot be taken\. .*a\.tif: not a .*b\.webp.*c\.dcm",
  ),
  Odd(
    "a link to nothing",
    folder(lambda root: (root / "cat/a.png").symlink_to("none")),
    "link to a file that does not exist",
  ),
  Odd(
    "a folder in a class",
    folder(picture("cat/more/a.png")),
    "cat/more: is a folder among image files. Move it out of cat",
  ),
  Odd(
    "alpha",
    folder(picture("cat/a.png", "RGBA"), picture("cat/b.png", "LA")),
    "2 files cannot be taken.*alpha",
  ),
  Odd("16 bits", folder(deep_png("cat/a.png")), "more than 8 bits a channel"),
  *(
    Odd(name, folder(jpeg("cat/a.jpg", change), lambda root: _jpegs(root)), refusal)
    for name, change, refusal in [
      ("half a JPEG", lambda data: data[: len(data) // 2], "a.jpg: damaged image"),
      ("half a JPEG with an end", glued, "a.jpg: damaged image .*premature end of data"),
      ("a JPEG with bytes after its end", lambda data: data + b"more", None),
      ("a JPEG with bytes before its end", lambda data: data[:-2] + bytes(4) + data[-2:], None),
    ]
  ),
  Odd(
    "half a progressive JPEG with an end",
    folder(jpeg("cat/a.jpg", glued, progressive=True), lambda root: _jpegs(root)),
    "a.jpg: damaged image .*premature end of data",
  ),
  Odd(
    "another size",
    folder(picture("cat/a.png", size=(9, 9))),
    "one size: 12 are 6x4, 1 of another size, such as .*a.png with 9x9",
  ),
  Odd("turned by XMP", folder(turned("xmp")), says="turned upright, as their files ask for: 12"),
  Odd("turned by zTXt", folder(turned("zTXt")), says="turned upright, as their files ask for: 12"),
  Odd("turned by EXIF", folder(turned("exif")), says="turned upright, as their files ask for: 12"),
  Odd("a file name that is not UTF-8", folder(write_picture(b"cat/\xff.png"))),
  Odd(
    "a class that is not UTF-8", folder(write_picture(b"\xff/a.png")), "must be one line of text"
  ),
  Odd("no images", folder(write("owl/a.txt")), "owl: no images in this class"),
]


def _upper(root: Path) -> str:
  (root / "set.npz").rename(root / "SET.NPZ")
  return f"{root}/SET.NPZ"


def _empty(place: Path) -> None:
  for path in place.iterdir():
    path.unlink()
  place.rmdir()


def _jpegs(root: Path) -> None:
  """Leaves JPEG files of one size in a folder of PNG files."""
  for path in sorted(root.rglob("*.png")):
    Image.effect_noise((64, 48), 9).save(path.with_suffix(".jpg"))
    path.unlink()
