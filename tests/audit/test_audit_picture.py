"""The picture of the README is what its command makes, and its caption is measured."""

import re

import numpy as np
import pytest
from helpers.fresh import ROOT
from PIL import Image

from djax.audit import picture

SHIPPED = ROOT / "docs" / "picture.png"


def test_drawings_are_all_different_and_the_same_for_a_seed():
  drawn = picture.drawings(8, seed=3)
  assert drawn.shape == (8, 32, 32, 3) and drawn.dtype == np.uint8
  assert len({image.tobytes() for image in drawn}) == 8
  assert np.array_equal(drawn, picture.drawings(8, seed=3))
  assert not np.array_equal(drawn, picture.drawings(8, seed=4))


@pytest.mark.parametrize("out", ["missing/picture.png", "picture.jpg"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(out, tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    picture.main(["--out", str(tmp_path / out)])
  assert stop.value.code == 2
  assert "--out must be a .png file in a folder that exists" in capsys.readouterr().err


@pytest.mark.slow
def test_the_picture_is_what_its_command_makes(tmp_path, monkeypatch):
  made = picture.columns()
  monkeypatch.setattr(picture, "columns", lambda: made)
  assert picture.main(["--out", str(tmp_path / "picture.png")]) == 0
  shipped, new = (
    np.asarray(Image.open(path).convert("RGB"), np.int16)
    for path in (SHIPPED, tmp_path / "picture.png")
  )
  assert new.shape == shipped.shape
  # Attacks round differently on other machines, and letters differ between versions of matplotlib.
  assert np.abs(new - shipped).mean() < 3
  originals, moved, _, _, attacked = (column.images.astype(np.float32) for column in made)
  # The test can fail: columns differ by far more than that.
  assert np.abs(originals - moved).mean() > 20
  assert np.abs(originals - attacked).mean() < 15
  (ssim,) = re.findall(r"SSIM (0\.\d\d)", made[-1].words)
  assert float(ssim) > 0.9
