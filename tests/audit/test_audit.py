"""What is attacked, how attacks are run, and how verdicts follow from scores."""

import dataclasses
import importlib.metadata
import json

import jax
import numpy as np
import pytest
from helpers.audits import (
  HALF,
  MIRRORED,
  NAN,
  PAIRED,
  PERFECT,
  RAISING,
  REFUSING,
  SIZES,
  USELESS,
  nearest_mean,
)

from djax import keys, schemes, sources
from djax.attacks import ATTACKS, base
from djax.attacks.common import views
from djax.audit import evaluator, runner, scenario, verdicts
from djax.audit.scenario import Sizes
from djax.errors import ConfigError, DataError, UnsafeError
from djax.ops import metrics
from djax.owner import record_noise
from djax.owner.disguiser import Disguiser

RMT = {"scheme": "rmt", "block_size": 2, "noise_level": 25.0}
SEED = 3


@pytest.fixture(scope="module")
def digits():
  return scenario.from_source("digits", RMT, seed=SEED, sizes=SIZES)


@pytest.fixture(scope="module")
def examiner():
  test = sources.load("digits", "test")
  return nearest_mean(test.images, test.labels)


def audited(made, attacks, examiner):
  return runner.audit(made, attacks, seed=SEED, examiner=examiner, with_key=False)


# The setting.


def rows_of(images, within):
  """The rows of a split that hold some images; digits are all different."""
  index = {image.tobytes(): row for row, image in enumerate(within)}
  assert len(index) == len(within)
  return [index[image.tobytes()] for image in images]


def test_parts_are_disjoint_and_come_from_all_over_the_split(digits):
  train = sources.load("digits", "train")
  private, public = (rows_of(part, train.images) for part in (digits.private, digits.public))
  assert len(private) == 600 and len(public) == 300
  assert len(set(private) | set(public)) == 900
  assert np.array_equal(digits.labels, train.labels[private])
  assert np.array_equal(digits.public_labels, train.labels[public])
  assert min(private + public) < 100 and max(private + public) > 1300
  known = digits.known(5)
  assert np.array_equal(known.targets, digits.disguised[:60])
  assert np.array_equal(known.pairs[0], digits.private[60:65])
  assert np.array_equal(known.pairs[1], digits.disguised[60:65])
  assert digits.known(0).pairs is None


def test_what_is_attacked_is_what_disguise_exports(digits):
  train = sources.load("digits", "train")
  rows = rows_of(digits.private, train.images)
  tool = Disguiser(digits.spec, record_noise.Old(digits.spec, keys.experiment(SEED)))
  for place in (0, 61, 599):
    one = tool.images(train.images[rows[place]][None], "train", [rows[place]])
    assert np.array_equal(one[0], digits.disguised[place])


def test_several_views_of_targets_are_disguised_as_the_first_is():
  options = {"crop": 1, "flip": True}
  quiet = {**RMT, "noise_level": 0.0}
  made = scenario.from_source("digits", quiet, seed=SEED, sizes=SIZES, views=4, options=options)
  shown, given, distinct = made.known(0).views
  assert (shown.shape, given, distinct) == ((60, 3, 8, 8, 1), options, True)
  assert made.facts["views"] == 4
  ways = views.moves((8, 8, 1), options)
  tool = Disguiser(made.spec, record_noise.Old(made.spec, keys.experiment(SEED)))
  for target, further in zip(made.private[:60], shown, strict=True):
    looks = target.reshape(-1, 1)[ways.shown].reshape(-1, 8, 8, 1)
    expected = tool.images(looks, "train", list(range(len(looks))))
    apart = np.abs(further[:, None] - expected).max((2, 3, 4))
    assert (apart.min(1) < 1e-3).all()


def test_each_view_has_noise_of_its_own():
  options = {"crop": 0, "flip": True}
  made = scenario.from_source("digits", RMT, seed=SEED, sizes=SIZES, views=6, options=options)
  apart = np.abs(made.views.disguised[:, :, None] - made.views.disguised[:, None]).max((3, 4, 5))
  assert (apart[:, ~np.eye(5, dtype=bool)] > 1).all()


def test_views_go_with_images_that_are_disguised_one_by_one():
  for disguise in ({"scheme": "instahide"}, {"scheme": "neuracrypt", "patch": 4}):
    with pytest.raises(ConfigError, match="one by one"):
      scenario.from_source("digits", disguise, seed=0, sizes=SIZES, views=2)
  with pytest.raises(ConfigError, match="crop"):
    scenario.from_source("digits", RMT, seed=0, sizes=SIZES, views=2, options={"crop": 8})


@pytest.mark.slow
def test_a_scheme_that_mixes_in_public_images_gets_those_of_the_attacker():
  sizes = dataclasses.replace(SIZES, private=60)
  options = {"scheme": "instahide", "k": 4, "public_k": 2}
  made = scenario.from_source("digits", options, seed=SEED, sizes=sizes, encodings=2)
  scheme = schemes.from_spec(made.spec)
  key = scheme.make_key(keys.experiment(SEED).read)
  key = dataclasses.replace(key, public=made.public)
  order = np.random.default_rng(SEED).permutation(60)
  where = np.flatnonzero(order < 30)
  private = made.private[where[np.argsort(order[where])]]
  first = jax.random.split(jax.random.key(SEED), 2)[0]
  encoded = np.asarray(jax.jit(scheme.disguise)(key, private, None, rng=first)[0])
  np.testing.assert_allclose(made.disguised[where], encoded[order[where]], atol=1e-6)
  assert ((made.seen_labels > 0).sum(1) <= 2).all()


def test_a_mix_of_more_images_than_there_are_is_refused():
  with pytest.raises(ConfigError, match="at least as many, got 30"):
    scenario.from_source(
      "digits",
      {"scheme": "instahide", "k": 31},
      seed=SEED,
      sizes=dataclasses.replace(SIZES, private=60),
      encodings=2,
    )


def test_the_seed_decides_everything(digits):
  again = scenario.from_source("digits", RMT, seed=SEED, sizes=SIZES)
  other = scenario.from_source("digits", RMT, seed=SEED + 1, sizes=SIZES)
  assert np.array_equal(again.disguised, digits.disguised)
  assert np.array_equal(again.public, digits.public)
  assert not np.array_equal(other.private, digits.private)


def test_a_small_source_is_divided_in_proportion(digits):
  made = scenario.from_source("digits", RMT, seed=0, sizes=SIZES, split="train[:240]")
  assert (len(made.private), len(made.public), made.targets) == (160, 80, 30)
  assert made.facts["sizes"] == {"private": 160, "public": 80, "targets": 30, "pairs": [1, 5]}
  assert [w.split(",")[0] for w in made.facts["warnings"]] == [
    "private: 160 images instead of 600",
    "public: 80 images instead of 300",
  ]
  assert digits.facts["warnings"] == []


def test_too_few_images_say_how_many_are_needed():
  with pytest.raises(DataError, match=r"needs at least 160 images.* got 159\."):
    scenario.from_source("digits", RMT, seed=0, sizes=SIZES, split="train[:159]")
  sizes = Sizes(private=600, public=300, targets=60, pairs=(1, 43, 44))
  made = scenario.from_source("digits", RMT, seed=0, sizes=sizes, split="train[:160]")
  assert (len(made.private), len(made.public), made.targets) == (107, 53, 20)
  assert made.pairs == (1, 43)
  assert made.facts["warnings"][-1].startswith("known pairs: up to 43 instead of 44")


def npz(folder, images):
  labels = np.arange(len(images)) % 2
  path = folder / "some.npz"
  np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
  return str(path)


def test_images_that_are_all_the_same_are_refused(tmp_path):
  source = npz(tmp_path, np.full((200, 8, 8, 1), 9, np.uint8))
  with pytest.raises(DataError, match="must differ, all 200 are the same"):
    scenario.from_source(source, RMT, seed=0, sizes=SIZES)


def test_targets_of_one_colour_are_counted(tmp_path):
  images = np.random.default_rng(0).integers(0, 255, (240, 8, 8, 1), np.uint8)
  images[:120] = np.arange(120, dtype=np.uint8)[:, None, None, None]
  made = scenario.from_source(npz(tmp_path, images), RMT, seed=0, sizes=SIZES)
  flat = int((made.private[:30].reshape(30, -1).std(1) == 0).sum())
  assert 0 < flat < 30
  assert made.facts["warnings"][0].startswith(f"{flat} of the 30 targets are of one colour")


def test_targets_that_are_public_too_are_counted(tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 250, (200, 8, 8, 1)).astype(np.uint8)
  images[100:] = images[:100] + rng.integers(0, 4, images[100:].shape, np.uint8)  # twins, nearly
  save = {f"{split}_labels": np.arange(200) % 2 for split in ("train", "test")}
  np.savez(tmp_path / "a.npz", train_images=images, test_images=images, **save)
  made = scenario.from_source(str(tmp_path / "a.npz"), RMT, seed=0, sizes=SIZES)
  apart = np.abs(made.private[: made.targets, None].astype(int) - made.public[None]).max((2, 3, 4))
  count = int((apart.min(1) <= 3).sum())
  assert 0 < count < made.targets
  assert any(
    f"{count} of the {made.targets} targets have nearly" in w for w in made.facts["warnings"]
  )


def test_disguises_that_cannot_work_are_refused(tmp_path):
  with pytest.raises(UnsafeError, match="plain disguises nothing"):
    scenario.from_source("digits", {"scheme": "plain"}, seed=0, sizes=SIZES)
  with pytest.raises(ConfigError, match="Did you mean 'block_size'"):
    scenario.from_source("digits", {"scheme": "rmt", "blocksize": 2}, seed=0, sizes=SIZES)
  with pytest.raises(ConfigError, match="block_size"):
    scenario.from_source("digits", {"scheme": "aes", "block_size": 2}, seed=0, sizes=SIZES)
  floats = np.random.default_rng(0).uniform(0, 255, (200, 8, 8, 1)).astype(np.float32)
  with pytest.raises(ConfigError, match="uint8"):
    scenario.from_source(
      npz(tmp_path, floats), {"scheme": "aes", "block_size": 4}, seed=0, sizes=SIZES
    )


# Running.


def test_every_attack_is_told_of_and_only_a_win_is_one(digits, examiner):
  attacks = [PERFECT, USELESS, RAISING, NAN, REFUSING, PAIRED]
  facts, pictures = audited(digits, attacks, examiner)
  rows = {row["name"]: row for row in facts["attacks"]}
  assert list(rows) == [attack.name for attack in attacks]
  assert {name: row["status"] for name, row in rows.items()} == {
    "perfect": "ran",
    "useless": "ran",
    "raising": "failed",
    "nan": "failed",
    "refusing": "refused",
    "paired": "ran",
  }
  assert {name: row["verdict"] for name, row in rows.items()} == {
    "perfect": "broken",
    "useless": "not broken by these attacks",
    "raising": None,
    "nan": None,
    "refusing": None,
    "paired": "broken",
  }
  assert rows["raising"]["reason"] == "RuntimeError: out of luck"
  assert "not all finite" in rows["nan"]["reason"]
  assert rows["refusing"]["reason"] == "not rmt"
  assert [run["pairs"] for run in rows["paired"]["runs"]] == [1, 5]
  assert [run["verdict"][:3] for run in rows["paired"]["runs"]] == ["not", "bro"]
  assert rows["paired"]["pairs"] == 5
  assert rows["perfect"]["runs"][0]["diagnostics"] == {"found": 1.0, "warnings": ["mind"]}
  assert rows["useless"]["runs"][0]["diagnostics"] == {"infinite": None}
  assert list(pictures) == ["originals", "disguised", "perfect", "useless", "paired"]
  # The best of the runs is shown, not the last or first one.
  assert np.array_equal(pictures["paired"], pictures["perfect"])
  assert len(pictures["perfect"]) == runner.PICTURES
  assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_a_mirror_image_counts_as_the_image(digits, examiner):
  facts, pictures = audited(digits, [PERFECT, MIRRORED], examiner)
  perfect, mirrored = (row["runs"][0] for row in facts["attacks"])
  assert [perfect["mirrored"], mirrored["mirrored"]] == [False, True]
  assert mirrored["scores"] == perfect["scores"] and mirrored["verdict"] == "broken"
  assert np.array_equal(pictures["mirrored"], pictures["perfect"])


def test_levels_take_the_worst_and_name_failures(digits, examiner):
  levels = audited(digits, [USELESS, RAISING, PAIRED], examiner).facts["levels"]
  assert levels["1"]["verdict"] == "not broken by these attacks"
  assert levels["1"]["failed"] == ["raising"] and "raising" in levels["1"]["words"]
  assert levels["2"]["verdict"] == "broken"
  assert (levels["2"]["by"], levels["2"]["pairs"]) == (["paired"], 5)
  assert "5 known pairs (paired)" in levels["2"]["words"]


def test_level_2_includes_level_1(digits, examiner):
  levels = audited(digits, [PERFECT], examiner).facts["levels"]
  assert levels["1"]["verdict"] == levels["2"]["verdict"] == "broken"
  assert levels["2"]["by"] == ["perfect"] and levels["2"]["pairs"] is None


def test_failures_alone_are_no_verdict(digits, examiner):
  levels = audited(digits, [RAISING, REFUSING], examiner).facts["levels"]
  assert [levels[n]["verdict"] for n in "12"] == [None, None]
  assert levels["1"]["failed"] == ["raising"] and levels["1"]["refused"] == ["refusing"]
  assert "nothing is known" in levels["1"]["words"]


def test_a_win_counts_although_the_attack_failed_with_fewer_pairs(digits, examiner):
  facts = audited(digits, [HALF], examiner).facts
  (row,) = facts["attacks"]
  assert row["status"] == "failed" and row["reason"] == "with 1 pairs RuntimeError: out of luck"
  assert (row["verdict"], row["pairs"]) == ("broken", 5)
  assert facts["levels"]["2"]["verdict"] == "broken"


def test_an_examiner_that_has_no_say_is_told_of(digits, examiner):
  blind = evaluator.Examiner(lambda batch: np.zeros(len(batch), np.int32))
  (warning,) = audited(digits, [USELESS], blind).facts["setting"]["warnings"]
  assert warning.startswith("the examiner names") and "verdicts rest on SSIM" in warning
  assert audited(digits, [USELESS], examiner).facts["setting"]["warnings"] == []
  assert audited(digits, [RAISING], blind).facts["setting"]["warnings"] == []


def test_the_examiner_is_not_trained_on_targets(digits, monkeypatch):
  seen = {}
  monkeypatch.setattr(
    evaluator, "train_examiner", lambda images, labels, **more: seen.update(images=images, **more)
  )
  runner.train_examiner(digits, seed=5)
  assert len(seen["images"]) == 840 and seen["classes"] == 10 and seen["seed"] == 5
  targets = {image.tobytes() for image in digits.private[:60]}
  assert not targets & {image.tobytes() for image in seen["images"]}


def test_large_images_are_shown_to_the_examiner_as_small_copies(digits, examiner):
  seen = []
  large = evaluator.Examiner(lambda part: seen.append(part.shape) or np.zeros(len(part)))
  assert large.labels(np.zeros((3, 96, 64, 3), np.uint8)).shape == (3,)
  assert seen == [(3, 32, 21, 3)]
  assert not any("copies of 32" in warning for warning in warnings_of(digits, examiner))
  grown = {
    name: np.kron(getattr(digits, name), np.ones((1, 5, 5, 1))) for name in ("private", "public")
  }
  spec = {**digits.spec, "image_shape": [40, 40, 1]}
  grown = dataclasses.replace(digits, spec=spec, disguised=grown["private"], **grown)
  assert any(
    "copies of 32 pixels a side, the images have 40 x 40" in w for w in warnings_of(grown, large)
  )


def warnings_of(made, examiner):
  return audited(made, [], examiner).facts["setting"]["warnings"]


def test_choosing_attacks():
  table = {attack.name: attack for attack in (PERFECT, USELESS, RAISING)}
  assert runner.choose([], table) == [PERFECT, USELESS, RAISING]
  assert runner.choose(["raising", "perfect"], table) == [PERFECT, RAISING]
  with pytest.raises(ConfigError, match="Did you mean 'perfect'"):
    runner.choose(["perfct"], table)


# Verdicts.


def measured(**more):
  base = {
    "ssim_above_chance": 0.0,
    "lift": 0.0,
    "lift_errors": 0.0,
    "lift_seen": 0.1,
    "above_chance": 0.0,
    "accuracy_errors": 0.0,
    "plain_accuracy": 0.9,
    "chance": 0.1,
  }
  assert not set(more) - set(base)
  return {**base, **more}


SHOWS = {"lift": 0.05, "lift_errors": 4.0}
NAMED = {"above_chance": 0.1, "accuracy_errors": 4.0}
NOTHING = "not broken by these attacks"
FEW = "too few to say"


@pytest.mark.parametrize(
  ("found", "verdict"),
  [
    ({}, NOTHING),
    (SHOWS, "leaks"),
    ({**SHOWS, "lift": 0.049}, NOTHING),
    ({**SHOWS, "lift_errors": 3.9}, NOTHING),
    ({"lift": -0.05, "lift_errors": -4.0}, "leaks"),  # a negative shows as much as a picture
    (NAMED, "leaks"),
    ({**NAMED, "above_chance": 0.099}, NOTHING),
    ({**NAMED, "accuracy_errors": 3.9}, NOTHING),
    ({**NAMED, "plain_accuracy": 0.29}, NOTHING),  # such an examiner is not heard
    ({**SHOWS, "ssim_above_chance": 0.5}, "broken"),
    ({**SHOWS, "ssim_above_chance": 0.49}, "leaks"),
    ({**NAMED, "above_chance": 0.5}, "broken"),
    ({**NAMED, "above_chance": 0.5, "plain_accuracy": 0.29}, NOTHING),
    ({"ssim_above_chance": 0.9}, NOTHING),  # of which nothing belongs to its image
    ({"lift_seen": 0.101}, FEW),
    ({**SHOWS, "lift_seen": 0.101}, "leaks"),
  ],
)
def test_verdicts_at_their_thresholds(found, verdict):
  assert verdicts.verdict(measured(**found)) == verdict


def measure(made, estimates, examiner):
  originals, labels = made.private[: made.targets], made.labels[: made.targets]
  constant = made.public.mean(0)
  return verdicts.measure(originals, labels, estimates.astype(np.float32), constant, examiner)


def test_the_originals_themselves_are_broken_and_score_one(digits, examiner):
  found = measure(digits, digits.private[:60], examiner)
  assert verdicts.verdict(found) == "broken"
  assert found["ssim"] == {"median": 1.0, "quartiles": [1.0, 1.0]}
  assert found["psnr"]["median"] == 100.0 and found["mse"]["median"] == 0.0
  assert found["ssim_above_chance"] == found["above_chance"] == found["success"] == 1.0
  json.dumps(found, allow_nan=False)


def test_guesses_score_zero(digits, examiner):
  """Noise, the mean public image, and the right pictures in the wrong order: nobody has learnt anything."""
  draw = np.random.default_rng(0)
  mean = np.broadcast_to(digits.public.mean(0), (60, 8, 8, 1))
  for estimates in (draw.uniform(0, 255, (60, 8, 8, 1)), mean, digits.public[:60]):
    found = measure(digits, estimates, examiner)
    assert verdicts.verdict(found) in (NOTHING, FEW)
    assert found["ssim_above_chance"] < 0.1 and abs(found["lift_errors"]) < 4
  found = measure(digits, mean, examiner)
  assert found["ssim_above_chance"] == pytest.approx(0, abs=1e-6)
  assert found["ssim"]["median"] == pytest.approx(found["ssim_constant"])


def test_few_targets_say_less_than_many(examiner):
  """What is guessed at 20 targets may be a leak that does not stand out; at 800 it is none."""
  said = {}
  draw = np.random.default_rng(1)
  train = sources.load("digits", "train")
  for count in (20, 800):
    originals, guesses = (train.images[draw.permutation(1437)[:count]] for _ in range(2))
    labels = np.arange(count) % 10
    mean = train.images.mean(0)
    found = verdicts.measure(originals, labels, guesses.astype(np.float32), mean, examiner)
    said[count] = verdicts.verdict(found)
    assert found["lift_seen"] == pytest.approx(4 * abs(found["lift"] / found["lift_errors"]))
  assert said == {20: FEW, 800: NOTHING}
  rows = [
    {"name": n, "level": 1, "status": "ran", "verdict": v, "pairs": None, "runs": [{}]}
    for n, v in (("a", FEW), ("b", NOTHING))
  ]
  judged = verdicts.level(rows, 1)
  assert judged["verdict"] == FEW and "Audit more images" in judged["words"]
  assert verdicts.level([*rows, {**rows[0], "verdict": "leaks"}], 1)["verdict"] == "leaks"


def test_a_quarter_of_the_pictures_in_full_leaks_though_the_median_shows_little(digits, examiner):
  estimates = np.broadcast_to(digits.public.mean(0), (60, 8, 8, 1)).copy()
  estimates[:15] = digits.private[:15]
  found = measure(digits, estimates, examiner)
  assert abs(found["ssim_above_chance"]) < 0.2
  assert verdicts.verdict(found) == "leaks"


def test_an_examiner_no_better_than_a_guess_measures_nothing(digits):
  blind = evaluator.Examiner(lambda batch: np.zeros(len(batch), np.int32))
  found = evaluator.score(
    digits.private[:60], digits.labels[:60], digits.private[:60].astype(np.float32), blind
  )
  assert found.plain == found.accuracy <= found.chance
  assert found.above_chance == 0.0


def test_the_window_of_ssim_is_odd_and_fits():
  assert [metrics.window((5, side, 40, 3)) for side in (3, 8, 10, 11, 12, 28)] == [
    *(3, 7, 9, 11, 11, 11)
  ]


# The table of attacks, and what is seen without any.


def test_the_table_of_attacks_is_in_order():
  assert next(iter(ATTACKS)) == "examiner"
  assert {"regression", "procrustes"} <= set(ATTACKS)
  levels = [attack.level for attack in ATTACKS.values()]
  assert levels == sorted(levels) and set(levels) == {1, 2}
  for name, attack in ATTACKS.items():
    assert attack.name == name and set(attack.needs) <= {"public", "pairs"} and attack.title


def test_looking_stretches_and_crops(digits):
  spec = {**digits.spec, "image_shape": [7, 8, 1]}
  known = base.Known(spec, digits.disguised, digits.disguised[:60])
  found = base.run(ATTACKS["examiner"], known, seed=0)
  low, high = np.percentile(known.targets, [1, 99])
  slow = np.clip((known.targets.astype(np.float64) - low) * 255 / (high - low), 0, 255)
  assert found.images.shape == (60, 7, 8, 1)
  np.testing.assert_allclose(found.images, slow[:, :7], atol=1e-3)
  assert (found.diagnostics["low"], found.diagnostics["high"]) == pytest.approx((low, high))


def test_a_package_without_metadata_has_no_version(monkeypatch):
  known = importlib.metadata.version

  def version(name):
    if name == "scipy":
      raise importlib.metadata.PackageNotFoundError(name)
    return known(name)

  monkeypatch.setattr(importlib.metadata, "version", version)
  versions = runner._versions()
  assert versions["scipy"] is None and versions["numpy"] == np.__version__
