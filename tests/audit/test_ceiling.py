"""What the key gives back: all where nothing is lost, more than noise leaves, nothing by another key."""

import dataclasses

import numpy as np
import pytest
from helpers.audits import PERFECT, USELESS, nearest_mean
from helpers.digits import MASTER, RMT, SPLITS, write
from helpers.fields import psnr

from djax import keys, sources
from djax.audit import ceiling, exported, runner, scenario
from djax.audit.scenario import Sizes
from djax.owner import record_noise
from djax.owner.disguiser import Disguiser

SEED = 3
SIZES = Sizes(private=600, public=470, targets=60, pairs=(1, 5))
NOISY = {**RMT, "noise_level": 100.0}


def silent(fraction, word):
  assert 0 <= fraction <= 1


def made(disguise, **options):
  return scenario.from_source("digits", disguise, seed=SEED, sizes=SIZES, **options)


def with_key(setting):
  images, how = ceiling.estimate(
    setting.opened, setting.public, setting.spec, seed=SEED, progress=silent
  )
  return psnr(setting.private[: setting.targets], images), how


@pytest.fixture(scope="module")
def noisy():
  return made(NOISY)


@pytest.mark.parametrize(
  "disguise",
  [
    {**RMT, "noise_level": 0.0},
    {**RMT, "noise_level": 0.0, "matrix": "projection"},
    {"scheme": "permutation", "block_size": 2},
    {"scheme": "aes", "block_size": 4},
  ],
)
def test_where_nothing_is_lost_the_images_come_back(disguise):
  found, how = with_key(made(disguise))
  assert found > 90 and how["method"] == "restored"


def test_noise_is_taken_off(noisy):
  found, how = with_key(noisy)
  restored = np.clip(noisy.opened.targets[:, 0], 0, 255)
  assert found > psnr(noisy.private[:60], restored) + 1.5
  assert how["method"] in ("linear", "network")
  assert max(how["validation"].values()) > how["validation"]["restored"] + 1.5


def test_another_key_gives_nothing_back(noisy):
  other = Disguiser(noisy.spec, record_noise.Old(noisy.spec, keys.experiment(SEED + 1)))
  wrong = ceiling.restored(other.restored, noisy.known(0), lambda: noisy.disguised[100:256])
  found, _ = with_key(dataclasses.replace(noisy, opened=wrong))
  mean = np.broadcast_to(noisy.public.mean(0), noisy.private[:60].shape)
  assert found < psnr(noisy.private[:60], mean) + 1 < with_key(noisy)[0] - 2


@pytest.mark.slow
def test_noise_that_is_no_longer_white_is_left_to_the_network():
  options = {"matrix": "projection", "noise_place": "after", "noise_level": 50.0}
  setting = made({**RMT, **options})
  found, how = with_key(setting)
  restored = np.clip(setting.opened.targets[:, 0], 0, 255)
  assert how["method"] == "network" and "linear" not in how["validation"]
  assert found > psnr(setting.private[:60], restored) + 0.5


@pytest.mark.slow
def test_several_views_give_more(noisy):
  several = made(NOISY, views=8, options={"crop": 1})
  assert several.opened.targets.shape == (60, 8, 8, 8, 1)
  found, how = with_key(several)
  assert how["views"] == 8 and found > with_key(noisy)[0] + 2
  # Views of other images do harm.
  mixed = several.opened.targets.copy()
  mixed[:, 1:] = np.roll(mixed[:, 1:], 1, axis=0)
  wrong = several.opened._replace(targets=mixed)
  assert with_key(dataclasses.replace(several, opened=wrong))[0] < found - 2


@pytest.mark.parametrize(
  ("disguise", "reason"),
  [
    ({"scheme": "aes", "block_size": 4, "unit_pixels": 4}, "only units of 16 pixels"),
    ({"scheme": "instahide"}, "encodings cannot be restored"),
    ({"scheme": "neuracrypt", "patch": 4}, "encodings cannot be restored"),
  ],
)
def test_without_a_way_back_the_reason_is_given(disguise, reason):
  few = Sizes(private=200, public=100, targets=20, pairs=())
  found = scenario.from_source("digits", disguise, seed=SEED, sizes=few, encodings=5)
  assert isinstance(found.opened, str) and reason in found.opened


def test_an_exported_directory_is_opened_with_its_key(tmp_path):
  write(tmp_path / "set", splits={**SPLITS, "train": "train[:400]"}, views=2, crop=1)
  found = exported.from_directory(
    str(tmp_path / "set"),
    "digits",
    MASTER,
    seed=SEED,
    sizes=Sizes(200, 100, 40, (5,)),
    splits={"train": "train[:400]", "test": "test[:50]"},
  )
  first, public = found.opened.targets[:, 0], found.opened.public
  level = found.spec["noise_level"]
  assert np.abs(first - found.private[:40]).max() <= level / 2 + 1
  assert np.abs(public - found.public[: len(public)]).max() <= level / 2 + 1
  assert found.opened.targets.shape[1] == 2


def test_an_audit_says_it_beside_the_best_attack(noisy):
  test = sources.load("digits", "test")
  examiner = nearest_mean(test.images, test.labels)
  outcome = runner.audit(noisy, [PERFECT, USELESS], seed=SEED, examiner=examiner)
  found = outcome.facts["ceiling"]
  best = max(r["scores"]["ssim"]["median"] for a in outcome.facts["attacks"] for r in a["runs"])
  assert found["scores"]["ssim"]["median"] > best  # ``perfect`` leaves the noise
  assert f"the best attack without the key reaches {best:.2f}" in found["words"]
  assert outcome.pictures["with the key"].shape == (8, 8, 8, 1)
  quick = runner.audit(noisy, [USELESS], seed=SEED, examiner=examiner, with_key=False)
  assert "ceiling" not in quick.facts and "with the key" not in quick.pictures


@pytest.mark.parametrize(
  ("best", "psnr_", "views", "end"),
  [
    (0.4, 20.0, 1, "network, have a median SSIM of 0.80, 20.0 dB; the best attack without the key reaches 0.40"),
    (0.795, 20.0, 1, "reaches 0.80: by SSIM the key hides no more"),
    (None, 20.0, 1, "a median SSIM of 0.80, 20.0 dB"),
    (0.4, 20.0, 8, "(of the first of 8 views), with their noise taken off by a small network, have a median SSIM of "
     "0.80, 20.0 dB; the best attack without the key reaches 0.40"),
    (None, 100.0, 1, "are the originals"),
  ],
)  # fmt: skip
def test_words(best, psnr_, views, end):
  scores = {"ssim": {"median": 0.8}, "psnr": {"median": psnr_}}
  said = ceiling.words(scores, {"method": "network", "views": 1}, views, best)
  assert said.startswith("restored targets") and said.endswith(end)
