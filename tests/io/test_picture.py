import numpy as np
import pytest

from djax.io import picture


def cell(sheet, line, column, captions=1):
  """Returns the pixels of a cell; the title and each caption take 14 pixels, the margin 4, a cell 64."""
  top = 14 + 4 + 14 * captions + line * 68
  left = 4 + column * 68
  return np.asarray(sheet)[top : top + 64, left : left + 64]


def test_pixels_are_enlarged_and_keep_their_values():
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
  sheet = picture.sheet({"originals": images}, title="t")
  assert sheet.size == (3 * 68 + 4, 14 + 4 + 14 + 68)
  for column, image in enumerate(images):
    np.testing.assert_array_equal(
      cell(sheet, 0, column), np.repeat(np.repeat(image, 8, axis=0), 8, axis=1)
    )


def test_images_fill_lines_and_captions_follow_each_other():
  images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.full((8, 8, 1), 50, np.uint8)
  sheet = picture.sheet({"a": images, "b": images[::-1]}, title="t", columns=2)
  assert sheet.size[1] == 14 + 4 + 2 * (14 + 3 * 68)
  for index in range(5):
    assert (cell(sheet, *divmod(index, 2)) == 50 * index).all()
    line, column = divmod(index, 2)
    assert (cell(sheet, line + 3, column, captions=2) == 50 * (4 - index)).all()
  assert (cell(sheet, 2, 1) == 255).all()  # empty


def test_values_outside_the_scale_are_stretched_over_it_and_others_are_not():
  inside = np.linspace(60, 190, 64).reshape(1, 8, 8, 1).astype(np.float32)
  for values, low, high in ((inside, 60, 190), (inside * 10 - 900, 0, 255)):
    shown = cell(picture.sheet({"x": values}, title="t"), 0, 0)
    assert (shown.min(), shown.max()) == (low, high)
  assert (cell(picture.sheet({"x": np.full((1, 8, 8, 1), 300.0)}, title="t"), 0, 0) == 0).all()


@pytest.mark.parametrize(
  ("shape", "filled"),
  [((4, 8, 1), (32, 64)), ((8, 4, 1), (64, 32)), ((128, 64, 3), (64, 32)), ((1, 200, 1), (1, 64))],
)
def test_the_ratio_of_sides_is_kept(shape, filled):
  shown = cell(picture.sheet({"x": np.zeros((1, *shape), np.uint8)}, title="t"), 0, 0)
  assert (shown[: filled[0], : filled[1]] == 0).all()
  assert (shown[filled[0] :] == 255).all() and (shown[:, filled[1] :] == 255).all()


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (5, [0, 40, 80])])
def test_the_first_channels_are_shown(channels, shown):
  image = np.arange(channels, dtype=np.uint8) * 40 * np.ones((1, 8, 8, 1), np.uint8)
  assert cell(picture.sheet({"x": image}, title="t"), 0, 0)[5, 5].tolist() == shown


def test_a_long_title_widens_the_sheet():
  images = np.zeros((1, 8, 8, 1), np.uint8)
  assert picture.sheet({"x": images}, title="t" * 40).size[0] == 40 * 7 + 8
