import numpy as np
import pytest
from scipy import stats

from djax import keys, schemes, sources
from djax.attacks.model import membership, shadows
from djax.errors import ConfigError

pytestmark = pytest.mark.slow  # they train many small networks

MODELS, RECORDS = 32, 600


@pytest.fixture(scope="module")
def world():
  """An overfitted network on disguised digits, 32 times, and the same digits plain."""
  data = sources.load("digits", f"train[:{RECORDS}]")
  scheme = schemes.rmt_scheme((8, 8, 1), block_size=2, noise_level=25.0)
  key = scheme.make_key(keys.experiment(0).read)
  rng = np.random.default_rng(0)
  disguised = scheme.export(key, data.images, lambda: rng.random(data.images.shape, np.float32))
  members = shadows.halves(MODELS, RECORDS, seed=0)
  models = shadows.train(disguised, data.labels, members, classes=10, seed=0)

  def confidence(images):
    return membership.confidence(shadows.logits(models, images), data.labels)

  return data, disguised, members, confidence(disguised), confidence(data.images)


def test_lira_beats_the_loss_threshold_on_an_overfitted_network(world):
  _, _, members, confidence, _ = world
  found = membership.attack(confidence, members)
  for rate, least in (("0.001", 0.02), ("0.01", 0.06)):
    assert found["lira"]["tpr"][rate] > least > 3 * found["loss"]["tpr"][rate]
  assert found["lira"]["auc"] > found["loss"]["auc"] + 0.05
  assert found["loss"]["auc"] > 0.53
  assert len(found["lira"]["by_target"]) == MODELS and min(found["lira"]["by_target"]) > 0.55


def near_chance(found, records=MODELS * RECORDS):
  """Within what records give that a model never saw: five deviations of the AUC, twice the false alarms."""
  assert abs(found["auc"] - 0.5) < 5 / (3 * records) ** 0.5
  assert found["tpr"]["0.01"] < 0.02


def test_plain_queries_say_nothing_without_the_key(world):
  found = membership.attack(world[4], world[2])
  near_chance(found["loss"]), near_chance(found["lira"])


def test_wrong_members_are_not_found(world):
  found = membership.attack(world[3], shadows.halves(MODELS, RECORDS, seed=7))
  near_chance(found["loss"]), near_chance(found["lira"])


def test_both_fail_on_a_model_that_never_saw_the_records(world):
  """Trained on others; which records are called members is drawn, as for the targets."""
  _, _, members, confidence, _ = world
  others = sources.load("digits", f"train[{RECORDS}:1400]")
  scheme = schemes.rmt_scheme((8, 8, 1), block_size=2, noise_level=25.0)
  key = scheme.make_key(keys.experiment(0).read)
  rng = np.random.default_rng(1)
  images = scheme.export(key, others.images, lambda: rng.random(others.images.shape, np.float32))
  half = shadows.halves(MODELS, len(images), seed=1)
  models = shadows.train(images, others.labels, half, classes=10, seed=1)
  strange = membership.confidence(shadows.logits(models, world[1]), world[0].labels)
  called = shadows.halves(MODELS, RECORDS, seed=9)
  near_chance(membership.summary(membership.loss_threshold(strange), called))
  couple = np.arange(MODELS) // 2
  scores = np.stack(
    [
      membership.lira(strange[s], confidence[couple != couple[s]], members[couple != couple[s]])
      for s in range(MODELS)
    ]
  )
  near_chance(membership.summary(scores, called, models=MODELS))


@pytest.mark.parametrize("models", [8, 64])
def test_leaving_out_is_fair_where_there_is_nothing_to_find(models):
  rng = np.random.default_rng(0)
  members = shadows.halves(models, 2000, seed=0)
  scores = membership.leave_out(rng.normal(size=members.shape), members)
  assert abs(membership.auc(scores, members) - 0.5) < 5 / (3 * members.size) ** 0.5


def test_leaving_out_one_alone_would_not_be_fair():
  """Why the complement goes too: the number of models that are left with a record tells who had it."""
  rng = np.random.default_rng(0)
  members = shadows.halves(8, 20000, seed=0)
  confidence = rng.normal(size=members.shape)
  scores = np.stack(
    [
      membership.lira(confidence[s], np.delete(confidence, s, 0), np.delete(members, s, 0))
      for s in range(8)
    ]
  )
  assert abs(membership.auc(scores, members) - 0.5) > 5 / (3 * members.size) ** 0.5


def test_lira_knows_the_shift_of_each_record():
  """Records of very different difficulty: the loss threshold sees the difficulty, LiRA the shift."""
  rng = np.random.default_rng(0)
  members = shadows.halves(32, 1000, seed=0)
  confidence = 10 * rng.normal(size=1000) + 3 * members + rng.normal(size=members.shape)
  found = membership.attack(confidence, members)
  assert found["lira"]["auc"] > 0.97  # of two unit Gaussians three apart 0.983
  assert found["loss"]["auc"] < 0.62


@pytest.mark.parametrize("models", [8, 64])
def test_lira_is_the_ratio_of_two_gaussians(models):
  rng = np.random.default_rng(0)
  members = shadows.halves(models, 30, seed=0)
  seen = rng.normal(size=(models, 30)) * rng.uniform(1, 2, 30) + 2 * members
  target = rng.normal(size=30)
  with_, without = ([seen[side[:, i], i] for i in range(30)] for side in (members, ~members))
  for i, score in enumerate(membership.lira(target, seen, members)):
    logs = []
    for side in (with_, without):
      deviation = np.std(side[i], ddof=1)
      if models < membership.FEW_MODELS:
        deviation = np.sqrt(np.mean([np.var(values, ddof=1) for values in side]))
      logs.append(stats.norm.logpdf(target[i], side[i].mean(), deviation))
    assert score == pytest.approx(logs[0] - logs[1])


def test_equal_confidences_do_not_divide_by_zero():
  members = shadows.halves(8, 10, seed=0)
  assert np.isfinite(membership.leave_out(np.zeros((8, 10)), members)).all()


def test_confidence_is_the_logit_of_the_probability():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(3, 20, 5)).astype(np.float32), rng.integers(0, 5, 20)
  p = np.exp(logits.astype(np.float64))
  p = (p / p.sum(-1, keepdims=True))[:, np.arange(20), labels]
  found = membership.confidence(logits, labels)
  np.testing.assert_allclose(found, np.log(p / (1 - p)), rtol=1e-6)
  np.testing.assert_allclose(membership.loss_threshold(found), np.log(p), rtol=1e-6)
  sure = membership.confidence(np.array([[1e4, 0, -1e4]]), np.array([0]))
  np.testing.assert_allclose(sure, 1e4)


def test_curve_and_area_by_counting():
  rng = np.random.default_rng(0)
  scores, member = np.round(rng.normal(size=200), 1), rng.random(200) < 0.3
  scores[member] += 0.5
  wrong, right = membership.roc(scores, member)
  cuts = np.unique(scores)[::-1]
  np.testing.assert_allclose(wrong[1:], [np.mean(scores[~member] >= cut) for cut in cuts])
  np.testing.assert_allclose(right[1:], [np.mean(scores[member] >= cut) for cut in cuts])
  assert (wrong[0], right[0]) == (0, 0)
  a, b = scores[member][:, None], scores[~member]
  pairs = np.mean((a > b) + 0.5 * (a == b))
  assert membership.auc(scores, member) == pytest.approx(pairs)
  assert membership.auc(np.zeros(200), member) == 0.5


def test_a_rate_is_not_reached_by_a_tie():
  """One member above all, then 300 of equal score: all or none of these are called members."""
  member = np.arange(301) % 3 == 0
  scores = np.zeros(301)
  scores[0] = 1
  assert membership.tpr_at(scores, member, fpr=0.01) == pytest.approx(1 / member.sum())


@pytest.mark.parametrize(
  ("fpr", "others", "models", "word"),
  [
    (0.01, 99, None, "needs 100 non-members, got 99"),
    (0.001, 999, 64, "needs 1000 non-members, got 999"),
    (0.001, 1000, 31, "needs 32 shadow models, got 31"),
    (0.01, 1000, 9, "needs 10 shadow models, got 9"),
  ],
)
def test_rates_that_cannot_be_resolved_are_refused(fpr, others, models, word):
  member = np.arange(others + 50) >= others
  with pytest.raises(ConfigError, match=word) as error:
    membership.tpr_at(np.zeros(len(member)), member, fpr=fpr, models=models)
  assert "\n" not in str(error.value)


def test_rates_that_just_can_are_not():
  for fpr, others, models in ((0.01, 100, 10), (0.001, 1000, 32)):
    member = np.arange(others + 50) >= others
    assert membership.tpr_at(member * 1.0, member, fpr=fpr, models=models) == 1


def test_a_summary_says_why_a_figure_is_missing():
  member = np.arange(400) % 2 == 0
  rng = np.random.default_rng(0)
  found = membership.summary(rng.normal(size=400) + member, member, models=8)
  assert found["tpr"] == {"0.001": None, "0.01": None}
  assert "non-members" in found["refused"]["0.001"] and "shadow" in found["refused"]["0.01"]
  found = membership.summary(rng.normal(size=400) + member, member)
  assert found["tpr"]["0.01"] is not None and list(found["refused"]) == ["0.001"]
  assert len(found["fpr"]) == 100 and found["fpr"][0] == pytest.approx(1 / 200)
  assert found["by_fpr"][-1] == 1 and (np.diff(found["by_fpr"]) >= 0).all()


def test_other_refusals():
  members = shadows.halves(4, 10, seed=0)
  with pytest.raises(
    ConfigError, match="two shadow models with and two without each record, got 1"
  ):
    membership.leave_out(np.zeros((4, 10)), members)
  with pytest.raises(ConfigError, match="in couples"):
    membership.leave_out(np.zeros((4, 10)), members[[0, 2, 1, 3]])
  with pytest.raises(ConfigError, match="got 10 members among 10"):
    membership.roc(np.zeros(10), np.ones(10, bool))
  with pytest.raises(ConfigError, match="1 scores that are no number"):
    membership.roc(np.append(np.zeros(9), np.nan), np.arange(10) < 5)
  with pytest.raises(ConfigError, match="class numbers"):
    membership.confidence(np.zeros((10, 3)), np.zeros((10, 3), np.float32))
