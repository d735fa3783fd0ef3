import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers.audits import nearest_mean

import train
from djax import schemes
from djax.audit import evaluator
from djax.errors import ConfigError, KeyMismatchError, NotInvertibleError
from train import config as config_lib
from train import examine, inversion
from train import material as material_lib
from train.data import inputs, owned
from train.data.input_pipeline import Feed

pytestmark = pytest.mark.slow  # they train many small networks

SMALL = {"shadows": 8, "records": 200}
CLASSES = 7  # left out, so that with the model of all there are 8 here as well: one program


@pytest.fixture(autouse=True, scope="module")
def small():
  """Less of everything that costs time."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(examine, "_RECIPE", examine.shadows_lib.Recipe(steps=200))
    patch.setattr(examine, "_CLASSES", CLASSES)
    patch.setattr(
      evaluator, "train_examiner", lambda images, labels, **_: nearest_mean(images, labels)
    )
    yield


def config_of(**disguise):
  config = config_lib.load("digits_rmt")
  config.train.epochs = 8
  config.model.name, config.model.width, config.model.dropout = "mlp", 32, 0.0
  for name, value in disguise.items():
    config.disguise[name] = value
  return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  train.run(config_of(block_size=4, permute=False), folder)
  return folder


@pytest.fixture(scope="module")
def facts(run):
  fractions = []
  result = examine.examine(run, **SMALL, progress=lambda fraction, word: fractions.append(fraction))
  assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
  return result


def test_facts_are_json_and_say_what_they_are_of(facts, run):
  assert json.loads(json.dumps(facts, allow_nan=False)) == facts
  setting = facts["setting"]
  assert (setting["records"], setting["shadows"], setting["classes"]) == (200, 8, 10)
  assert setting["spec"] == json.loads((run / "disguise.json").read_text())["spec"]
  assert setting["plain_queries"] is None


def test_misuse_is_that_of_the_run(facts, run):
  result = json.loads((run / "result.json").read_text())
  assert facts["misuse"] == {
    "chance": 0.1,
    **{name: result[name] for name in ("test_accuracy", "plain_accuracy", "other_key_accuracy")},
  }


def test_membership_is_found_with_the_key_and_not_without(facts):
  found = facts["membership"]
  assert set(found) == {"plain", "disguised", "fresh_queries", "plain_queries"}
  for name in ("plain", "disguised"):
    assert found[name]["accuracy"]["members"] > found[name]["accuracy"]["others"] > 0.7
    assert found[name]["lira"]["auc"] > 0.58
  assert 0.55 < found["fresh_queries"]["lira"]["auc"] < found["disguised"]["lira"]["auc"]
  assert abs(found["plain_queries"]["lira"]["auc"] - 0.5) < 0.06
  assert abs(found["plain_queries"]["loss"]["auc"] - 0.5) < 0.06
  assert "needs 10 shadow models" in found["plain"]["lira"]["refused"]["0.01"]


def test_classes_are_found_with_the_key_and_not_without(facts):
  found = facts["class_membership"]
  assert found["plain"]["auc"] > 0.8 and found["disguised"]["auc"] > 0.8
  assert found["plain_queries"]["auc"] < 0.75
  assert {len(row["with"]) for row in found.values()} == {CLASSES}


def test_inversion_is_undone_by_the_attack_on_the_disguise(facts):
  found = facts["model_inversion"]
  assert found["baseline"]["accuracy"] <= 0.2
  assert found["plain"]["raw"]["accuracy"] > 0.8
  for name in ("disguised", "run"):
    row = found[name]
    assert row["by"] == "moments" and row["reasons"] == {}
    assert row["raw"]["accuracy"] < 0.6 < 0.8 < row["undone"]["accuracy"]
    assert row["key_holder"]["accuracy"] > 0.8
    assert row["undone"]["ssim"] > row["raw"]["ssim"] + 0.3


def test_the_figure_has_a_line_for_each_attack(facts):
  drawn = examine.figure(facts)
  assert drawn.startswith("<svg") and drawn.rstrip().endswith("</svg>")
  assert drawn == examine.figure(json.loads(json.dumps(facts)))
  fewer = {"membership": {"plain": facts["membership"]["plain"]}}
  assert len(examine.figure(fewer)) < len(drawn)


def test_a_plain_config_has_nothing_to_undo():
  found = examine.examine(config_of(scheme="plain"), **SMALL)
  assert found["misuse"] is None
  assert set(found["membership"]) == {"plain"} == set(found["class_membership"])
  assert "run" not in found["model_inversion"]
  assert set(found["model_inversion"]["plain"]) == {"raw"}


def test_a_config_alone_has_no_checkpoint_and_encrypted_images_stay_what_they_are():
  facts = examine.examine(config_of(scheme="aes", block_size=4), **SMALL)
  assert facts["misuse"] is None and "run" not in facts["model_inversion"]
  assert set(facts["membership"]) == {"plain", "disguised", "plain_queries"}  # nothing is drawn
  row = facts["model_inversion"]["disguised"]
  assert row["undone"] is None and "no" in row["reasons"]["undone"] and row["by"] is None
  assert row["key_holder"]["accuracy"] < 0.5 and row["raw"]["accuracy"] < 0.5


def test_a_baseline_of_another_shape_with_mixed_labels(monkeypatch):
  """What a patch encoder gives: tokens, no way back, labels that are no class numbers."""
  config = config_of(scheme="plain")
  given = owned.inputs(config, None)

  def tokens_of(images):
    return images.reshape(*images.shape[:-3], 16, 1, 4).astype(np.float32)

  def disguise(key, images, labels, *, rng):
    return tokens_of(images) + jax.random.uniform(rng), labels

  def feed(images):
    soft = np.full((len(images), 10), 0.1, np.float32)
    tokens = tokens_of(images)[:, ::-1]
    return Feed(inputs.Arrays(tokens, soft), inputs.widened)

  def restore(key, images):
    raise NotInvertibleError("no way back")

  other = dataclasses.replace(
    given,
    train=feed(given.originals[0].images),
    test=feed(given.originals[1].images),
    spec={"scheme": "tokens", "image_shape": [8, 8, 1]},
    disguised_shape=(16, 1, 4),
  )
  monkeypatch.setattr(owned, "inputs", lambda config, master: other)
  scheme = schemes.plain_scheme((8, 8, 1))._replace(disguise=disguise, restore=restore)
  monkeypatch.setattr(schemes, "from_spec", lambda spec: scheme)
  kind = schemes.Kind("tokens", lambda image_shape: scheme)
  monkeypatch.setitem(schemes.SCHEMES, "tokens", kind)
  monkeypatch.setattr(inputs.Inputs, "plain", None)
  facts = examine.examine(config, **SMALL)
  assert set(facts["membership"]) == {"disguised", "fresh_queries", "plain"}
  assert set(facts["class_membership"]) == {"disguised", "plain"}
  assert facts["membership"]["disguised"]["accuracy"]["others"] > 0.7
  assert "another shape" in facts["setting"]["plain_queries"]
  row = facts["model_inversion"]["disguised"]
  assert (row["raw"], row["undone"], row["key_holder"]) == (None, None, None)
  assert set(row["reasons"]) == {"raw", "undone", "key_holder"}


def test_refusals(run, tmp_path):
  with pytest.raises(ConfigError, match="must be a run directory with config"):
    examine.examine(tmp_path)
  with pytest.raises(ConfigError, match="must both be even"):
    examine.examine(run, shadows=7)
  config = config_lib.load("outsourced")
  config.data.disguised_dir = "somewhere"
  with pytest.raises(ConfigError, match="where its originals and key are"):
    examine.examine(config)


def test_a_run_with_a_real_key_is_refused(run, tmp_path):
  for name in ("config.json", "disguise.json"):
    (tmp_path / name).write_text((run / name).read_text())
  used = json.loads((tmp_path / "disguise.json").read_text())
  used["key_fingerprint"] = "djx1-another"
  (tmp_path / "disguise.json").write_text(json.dumps(used))
  with pytest.raises(KeyMismatchError, match="djx1-another"):
    examine.examine(tmp_path)


def test_a_run_without_a_checkpoint_is_refused(run, tmp_path):
  for name in ("config.json", "disguise.json"):
    (tmp_path / name).write_text((run / name).read_text())
  with pytest.raises(ConfigError, match="must hold a checkpoint"):
    inversion._network(tmp_path)


def test_the_networks_of_a_run_are_its_own(run):
  """Its accuracy on disguised test images is that of its result."""
  material = material_lib.load(*material_lib.config_of(run), 100)
  logits = np.asarray(inversion._network(run)(material.asked))
  result = json.loads((run / "result.json").read_text())
  accuracy = np.mean(logits.argmax(-1) == material.asked_labels)
  assert accuracy == pytest.approx(result["test_accuracy"], abs=0.003)


def made_up(auc, rate, seen):
  """The facts of an examination, as far as they are told in words."""
  attack = {"auc": auc, "tpr": {"0.001": None, "0.01": rate}, "refused": {"0.001": "too few"}}
  weaker = {**attack, "auc": 0.4}
  return {
    "setting": {"shadows": 8, "records": 200, "classes": 10},
    "membership": {"fresh_queries": {"lira": attack, "loss": weaker}},
    "class_membership": {"disguised": {"with": [9.0], "without": [3.0], "auc": auc}},
    "misuse": {"chance": 0.1, "plain_accuracy": seen, "other_key_accuracy": None},
    "model_inversion": {
      "examiner": 0.9,
      "run": {
        "raw": {"accuracy": 0.1},
        "undone": {"accuracy": seen},
        "key_holder": None,
        "by": "moments",
      },
      "disguised": {"reasons": {"raw": "no gradient"}},
    },
  }


@pytest.mark.parametrize(
  ("auc", "rate", "seen", "words"),
  [
    (0.9, 0.4, 0.8, ("could", "could", "of use", "show their class after moments")),
    (0.52, 0.05, 0.1, ("could", "could not", "of no use", "do not show their class")),
    (0.52, None, 0.1, ("could not", "could not", "of no use", "do not show their class")),
    (0.5, 0.01, 0.12, ("could not", "could not", "of no use", "do not show their class")),
  ],
)
def test_each_attack_is_told_in_a_sentence(auc, rate, seen, words):
  lines = examine.lines(made_up(auc, rate, seen))
  members, classes, misuse, run, small = lines[: lines.index("")]
  assert members.startswith(
    f"membership: members {words[0]} be told apart by asking with its records"
  )
  assert f"(AUC {auc:.2f}, a guess 0.50" in members
  assert ("at 1% false positives" in members) == (rate is not None)
  assert classes.startswith(f"classes: whether a class was trained on {words[1]} be told by asking")
  assert misuse == f"misuse: the network is {words[2]} on plain images ({seen:.1%}, chance 10.0%)"
  assert f"images made from the run's network {words[3]} (recognised: 10% as they are" in run
  assert small.endswith("of a small network on disguised images there is nothing to look at")
  assert any("too few" in line for line in lines)
