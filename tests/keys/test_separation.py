"""Data sets under one key share nothing: no matrix, order, label permutation or noise; the old derivation did.

Every test that says so is also run against ``streams.Old``, the derivation of version 1, and must fail there.
"""

import dataclasses
import hashlib
import inspect

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from djax import keys, schemes, sources
from djax.disguised import directory
from djax.ops import metrics
from djax.owner import disguiser, export, record_noise, restore
from djax.owner.plan import Request

MASTER = keys.Master(bytes(range(7, 39)))
ID = "00112233445566778899aabbccddeeff"
EXPORTED = ("rmt", "aes", "permutation")
ALONE = {"count": 1, "crop": 0, "flip": False, "together": True}
CLASSES, RECORDS, DRAWS = 60, 60, 16

# What each parameter of a scheme may be. Shapes of 16 blocks and more: two orders of so many are never the same.
VALUES = {
  "image_shape": st.sampled_from([(16, 16, 1), (16, 20, 1), (20, 16, 3), (24, 24, 3)]),
  "block_size": st.sampled_from([2, 4]),
  "permute": st.booleans(),
  "matrix": st.sampled_from(["orthogonal", "projection"]),
  "mix": st.sampled_from(["rows", "block"]),
  "per_channel": st.booleans(),
  "noise_level": st.sampled_from([0.0, 25.0, 100.0, 100.001]),
  "noise_place": st.sampled_from(["before", "after"]),
  "unit_pixels": st.sampled_from([16, 8, 4]),
  "position_keys": st.booleans(),
  "salt_pepper": st.sampled_from([0.0, 0.04, 0.5]),
}
FIELDS = {
  name: [p for p in inspect.signature(schemes.SCHEMES[name].make).parameters if p != "classes"]
  for name in EXPORTED
}


@dataclasses.dataclass(frozen=True)
class Export:
  """What makes an export what it is, as far as something is drawn for it."""

  spec: dict
  id: str = ID
  role: str = "dataset"
  request: str | None = None
  split: str = "train"
  views: dict = dataclasses.field(default_factory=lambda: ALONE)
  pixels: int = 0


def new(one):
  secret = MASTER.data_set(one.id, one.spec)
  return record_noise.Current(secret, role=one.role, views=one.views, own_id=one.request)


def old(one):
  return record_noise.Old(one.spec, MASTER)


def drawn(one, derivation):
  """Returns all that an export draws, by kind, as sets of bytes."""
  of = derivation(one)
  key = schemes.from_spec(one.spec).make_key(of.read)
  matrices = [] if key.matrices is None else np.asarray(key.matrices)
  side = matrices.shape[-1] if len(matrices) else 1
  images = np.full((1, 4, 4, 1), one.pixels, np.uint8)  # a view; its original is black
  where = (one.split, [3], 1)
  return {
    "matrix": {m.tobytes() for m in np.reshape(matrices, (-1, side, side)) if len(matrices)},
    "aes key": set() if key.aes_keys is None else {bytes(k) for k in key.aes_keys},
    "block order": set() if key.perm is None else {np.asarray(key.perm).tobytes()},
    "label permutation": {of.labels(CLASSES).tobytes()},
    "order": {of.order(one.split, RECORDS // one.views["count"], one.views["count"]).tobytes()},
    "noise": {of.noise(np.zeros_like(images), images, *where, DRAWS).tobytes()},
    "views": {np.asarray(of.views(images, *where)).tobytes()},
  }


def shared(first, second, derivation):
  """Returns the kinds of which two exports share at least one."""
  a, b = drawn(first, derivation), drawn(second, derivation)
  assert all(a[kind] for kind in ("label permutation", "order", "noise", "views"))
  return {kind for kind in a if a[kind] & b[kind]}


def complete(scheme, options):
  """Returns a spec as the manifest has it; rejects options that do not go together."""
  try:
    return schemes.from_spec({"scheme": scheme, **options}).spec.to_dict()
  except ValueError:
    hypothesis.reject()


@st.composite
def specs(draw):
  scheme = draw(st.sampled_from(EXPORTED))
  return complete(scheme, {name: draw(VALUES[name]) for name in FIELDS[scheme]})


@st.composite
def pairs_of_specs(draw):
  """Two specs: of two schemes with all they have in common the same, or of one with a field changed, each in turn."""
  scheme = draw(st.sampled_from(EXPORTED))
  options = {name: draw(VALUES[name]) for name in FIELDS[scheme]}
  first = complete(scheme, options)
  if draw(st.booleans()):
    field = draw(st.sampled_from(FIELDS[scheme]))
    second = complete(scheme, {**options, field: draw(VALUES[field])})
  else:
    other = draw(st.sampled_from(EXPORTED))
    given_too = {name: options.get(name) for name in FIELDS[other]}
    filled = {n: draw(VALUES[n]) if v is None else v for n, v in given_too.items()}
    second = complete(other, filled)
  hypothesis.assume(first != second)
  return first, second


ids = st.binary(min_size=16, max_size=16).map(bytes.hex)


def test_every_field_of_every_scheme_that_is_exported_is_drawn():
  assert set().union(*FIELDS.values()) == set(VALUES)


@hypothesis.settings(max_examples=60, phases=[hypothesis.Phase.generate])
@hypothesis.given(pair=pairs_of_specs(), dataset_id=ids)
def test_two_specs_share_nothing_even_under_one_id(pair, dataset_id):
  first, second = (Export(spec, dataset_id) for spec in pair)
  assert shared(first, second, new) == set()


@hypothesis.settings(max_examples=30, phases=[hypothesis.Phase.generate])
@hypothesis.given(spec=specs(), ids_of_two=st.lists(ids, min_size=2, max_size=2, unique=True))
def test_two_ids_share_nothing_whatever_else_is_the_same(spec, ids_of_two):
  """Each export has a random id, so dtype and source need not be in any label: nor is anything else."""
  first, second = (Export(spec, one) for one in ids_of_two)
  assert shared(first, second, new) == set()


WITHIN = {
  "role": {"role": "request", "request": "a" * 32},
  "split": {"split": "test"},
  "number of views": {"views": {**ALONE, "count": 2, "together": False}},
  "crop": {"views": {**ALONE, "crop": 1}},
  "flip": {"views": {**ALONE, "flip": True}},
  "pixels": {"pixels": 1},
}


@pytest.mark.parametrize("change", WITHIN)
@hypothesis.settings(max_examples=5)
@hypothesis.given(spec=specs())
def test_within_a_data_set_roles_splits_views_and_pixels_share_no_noise(change, spec):
  first = Export(spec)
  second = dataclasses.replace(first, **WITHIN[change])
  common = shared(first, second, new)
  assert not common & {"noise", "views"}
  assert ("order" in common) == (change in ("number of views", "crop", "flip", "pixels"))
  # A network answers under the matrices that it was trained on.
  with_key = {"matrix", "aes key", "block order", "label permutation"}
  assert common & with_key == {kind for kind in with_key if drawn(first, new)[kind]}


@pytest.mark.parametrize(
  "test",
  [
    test_two_specs_share_nothing_even_under_one_id,
    test_two_ids_share_nothing_whatever_else_is_the_same,
  ],
)
def test_the_old_derivation_fails_the_same_tests(test, monkeypatch):
  monkeypatch.setitem(globals(), "new", old)
  with pytest.raises(AssertionError):
    test()


@pytest.mark.parametrize("change", ["role", "number of views", "crop", "flip"])
def test_the_old_derivation_shared_noise_within_a_data_set(change):
  first = Export(schemes.from_spec({**RMT, "image_shape": (16, 16, 1)}).spec.to_dict())
  second = dataclasses.replace(first, **WITHIN[change])
  assert {"noise", "matrix", "order"} <= shared(first, second, old)


RMT = {"scheme": "rmt", "block_size": 4, "noise_level": 100.0}


@pytest.mark.parametrize(
  ("first", "second", "kind"),
  [
    ({"mix": "block", "block_size": 2}, {"mix": "rows", "block_size": 4}, "matrix"),
    ({"noise_level": 100.0}, {"noise_level": 0.0}, "matrix"),
    ({}, {"scheme": "permutation"}, "block order"),
    ({}, {"noise_place": "after"}, "label permutation"),
  ],
)
def test_what_was_found_to_be_shared_is_shared_no_more(first, second, kind):
  both = []
  for change in (first, second):
    spec = {**RMT, "image_shape": (16, 16, 1), **change}
    spec = {n: v for n, v in spec.items() if n in FIELDS[spec["scheme"]] or n == "scheme"}
    both.append(Export(schemes.from_spec(spec).spec.to_dict()))
  assert kind in shared(*both, old)
  assert shared(*both, new) == set()


# Exports themselves.


def exported(folder, disguise, part, **options):
  """Writes an export and returns its manifest, its images in the order of the source, and the tool that made them."""
  splits = {"train": part, "test": "test[:1]"}
  # Random ids are the rule; here they are the same in every run of a test.
  options.setdefault("dataset_id", hashlib.sha256(folder.name.encode()).hexdigest()[:32])
  facts = export.disguise(Request("digits", disguise, splits, **options), folder, MASTER, workers=1)
  split = directory.open(folder).splits["train"]
  views = facts.splits["train"].views
  order = record_noise.of(facts, MASTER).order("train", len(split) // views, views)
  images, _ = split.read(np.argsort(order))
  return facts, images, disguiser.Disguiser(facts.spec, record_noise.of(facts, MASTER))


def db(estimate, original):
  found = metrics.psnr(original.astype(np.float32), np.clip(estimate, 0, 255), max_value=255.0)
  return float(np.mean(found))


@pytest.mark.parametrize("varied", ["shifted by a record", "another level of noise"])
@pytest.mark.slow
def test_sixteen_exports_of_one_set_average_to_no_more_than_one(tmp_path, varied):
  """One image, in sixteen exports: what it averages to, undone with the key of one of them, the best there is."""
  original = sources.load("digits", "train[20:21]").images
  alone, average, before, tools = [], [], [], []
  for number in range(16):
    level = 100.0 + (0.001 * number if varied == "another level of noise" else 0.0)
    start = number if varied == "shifted by a record" else 0
    disguise = {**RMT, "noise_level": level}
    how = {"dataset_id": f"{number:032x}"}  # random ones; the same in every run of this test
    facts, images, tool = exported(tmp_path / f"{number}", disguise, f"train[{start}:40]", **how)
    average.append(images[20 - start])
    alone.append(db(tool.restored(images[20 - start][None]), original))
    was = disguiser.Disguiser(facts.spec, record_noise.Old(facts.spec, MASTER))
    before.append(was.images(original, "train", [20 - start])[0])
    tools.append((tool, was))
  tool, was = tools[0]
  one = max(alone)
  together = db(tool.restored(np.mean(average, 0)[None]), original)
  assert together < one + 1.0
  # The old derivation: sixteen draws of noise under one set of matrices, and 12 dB less of it.
  old_one = db(was.restored(before[0][None]), original)
  old_together = db(was.restored(np.mean(before, 0)[None]), original)
  assert old_together > old_one + 8.0
  assert abs(np.mean(alone) - old_one) < 2.0


def test_two_exports_with_other_crops_and_one_id_do_not_cancel(tmp_path):
  """The finding: the difference of two records was that of the two views, times the matrices, in all of 300."""
  disguise = {**RMT, "noise_level": 25.0}
  originals = sources.load("digits", "train[:100]").images
  new_sets, old_sets, shown = [], [], []
  for crop in (1, 2):
    options = {"views": 2, "crop": crop, "dataset_id": ID}
    facts, images, tool = exported(tmp_path / f"{crop}", disguise, "train[:100]", **options)
    new_sets.append((images[1::2], tool))
    shown.append(view_of(facts, originals, record_noise.of(facts, MASTER), crop))
    of_old = record_noise.Old(facts.spec, MASTER)
    was = disguiser.Disguiser(facts.spec, of_old)
    old_sets.append(was.images(originals, "train", range(100), view=1, crop=crop))
    shown.append(view_of(facts, originals, of_old, crop))
  # The matrices are those of one data set: the same id was forced. So records can be subtracted.
  off = distance(new_sets[0][0] - new_sets[1][0], shown[0] - shown[2], new_sets[0][1])
  assert (off > 5).all()
  off = distance(old_sets[0] - old_sets[1], shown[1] - shown[3], was)
  assert (off < 1e-2).all() and (shown[1] != shown[3]).any((1, 2, 3)).mean() > 0.5


def view_of(facts, originals, of, crop):
  """View 1 of some originals, before it is disguised."""
  from djax.host import augment

  drawn_of_view = of.views(originals, "train", range(len(originals)), 1)
  shown = augment.augment(originals, drawn_of_view, crop=crop, flip=False)
  return shown.astype(np.float32)


def distance(records, wanted, tool):
  """How far, at most, the difference of records lies from that of images, once the matrices are undone."""
  zero = tool.restored(np.zeros_like(records[:1]))  # less the mean of the noise
  return np.abs(tool.restored(records) - zero - wanted).max((1, 2, 3))


def test_originals_in_two_exports_with_one_id_have_noise_of_their_own(tmp_path):
  """View 0 is the original itself in both; one noise would be fine, a known other one would not."""
  disguise = {**RMT, "noise_level": 25.0}
  how = {"dataset_id": ID}
  _, plain, _ = exported(tmp_path / "a", disguise, "train[:50]", **how)
  _, views, _ = exported(tmp_path / "b", disguise, "train[:50]", views=2, crop=1, **how)
  assert (plain != views[::2]).any((1, 2, 3)).all()
  assert np.abs(plain - views[::2]).mean() > 5


def test_a_disclosed_export_says_nothing_of_another(tmp_path):
  """Matrices that a noise-free export gave away, by known pairs say, do not undo a noisy one of the same images."""
  original = sources.load("digits", "train[:40]").images
  _, _, known = exported(tmp_path / "a", {**RMT, "noise_level": 0.0}, "train[:40]")
  facts, images, own = exported(tmp_path / "b", {**RMT, "noise_level": 10.0}, "train[:40]")
  assert db(own.restored(images), original) > 30
  assert db(known.restored(images), original) < 12
  was = disguiser.Disguiser(facts.spec, record_noise.Old(facts.spec, MASTER))
  free = {**facts.spec, "noise_level": 0.0}
  before = disguiser.Disguiser(free, record_noise.Old(free, MASTER))
  assert db(before.restored(was.images(original, "train", range(40))), original) > 25


# The order of records.


def orders(sampler, records, count):
  return np.array([sampler(index, records) for index in range(count)])


def true_order(index, records):
  secret = MASTER.data_set(f"{index:032x}", {"scheme": "none"})
  of = record_noise.Current(secret, role="dataset", views=ALONE)
  return of.order("train", records, 1)


def is_uniform(sampler):
  """Whether a sampler of orders passes for uniform; a true one fails once in 10^6 seeds.

  Three tests of 10^-6 / 3 each: all orders of four records, chi-square; the places of each of 16 records, chi-square;
  and the share of ascents of 200 orders of 1000 records, whose number has the variance 1001 / 12 an order.
  """
  limit = 1e-6 / 3
  few = orders(sampler, 4, 4800)
  if not (np.sort(few, 1) == np.arange(4)).all():
    return False
  counts = np.bincount(few @ [64, 16, 4, 1], minlength=256)
  possible = [w for w in range(256) if len({w >> 6, w >> 4 & 3, w >> 2 & 3, w & 3}) == 4]
  if stats.chisquare(counts[possible]).pvalue < limit:
    return False
  some = orders(sampler, 16, 1600)
  table = np.zeros((16, 16))
  np.add.at(table, (np.tile(np.arange(16), len(some)), some.ravel()), 1)
  expected = len(some) / 16
  statistic = ((table - expected) ** 2 / expected).sum() * 15 / 16  # rows and columns each sum up
  if stats.chi2.sf(statistic, 15 * 15) < limit:
    return False
  many = orders(sampler, 1000, 200)
  ascents = (np.diff(many, axis=1) > 0).sum()
  score = (ascents - 200 * 999 / 2) / np.sqrt(200 * 1001 / 12)
  return 2 * stats.norm.sf(abs(score)) >= limit


def words(index, records, bits):
  return np.random.default_rng([index, records]).integers(0, 2**bits, records)


WRONG = {
  "the source's own": lambda index, n: np.arange(n),
  "one order for all ids": lambda index, n: true_order(0, n),
  "a rotation": lambda index, n: np.roll(np.arange(n), words(index, n, 60)[0] % n),
  "sorted by 8 bits": lambda index, n: np.argsort(words(index, n, 8), kind="stable"),
  "sorted by 12 bits": lambda index, n: np.argsort(words(index, n, 12), kind="stable"),
  "sorted along the other axis": lambda index, n: np.argsort(words(index, n, 60)[:, None])[:, 0],
  "words and not places": lambda index, n: np.sort(words(index, n, 60)) % n,
  "shuffled in blocks of 100": lambda index, n: (
    np.lexsort((words(index, n, 60), np.arange(n) // 100)) if n > 100 else true_order(index, n)
  ),
  "biased towards its own place": lambda index, n: np.argsort(
    words(index, n, 20) + (np.arange(n) << 17), kind="stable"
  ),
}


def test_the_order_is_uniform():
  assert is_uniform(true_order)


@pytest.mark.parametrize("name", WRONG)
def test_the_statistics_reject_a_wrong_order(name):
  assert not is_uniform(WRONG[name])


# What the order of a source gives away.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Ten classes of 75 images: listed in turn, the first of each, then the second."""
  root = tmp_path_factory.mktemp("folder")
  for label in range(10):
    (root / f"class{label}").mkdir()
    for index in range(75):
      Image.new("L", (4, 4), 20 * label + index % 20).save(
        root / f"class{label}" / f"{index:02d}.png"
      )
  return root


def named(stored, classes):
  """The attack: the commonest label id at every tenth place is taken for the class of that place."""
  return [
    np.bincount(stored[place::classes], minlength=classes).argmax() for place in range(classes)
  ]


def test_stored_labels_show_no_period_and_name_no_class(folder, tmp_path):
  request = Request(str(folder), {"scheme": "permutation", "block_size": 2}, dataset_id=ID)
  facts = export.disguise(request, tmp_path / "set", MASTER, workers=1)
  split = directory.open(tmp_path / "set").splits["train"]
  stored = split.read(np.arange(600))[1]
  source = sources.load(str(folder), "train").labels
  np.testing.assert_array_equal(source, np.arange(600) % 10)
  of = record_noise.of(facts, MASTER)
  np.testing.assert_array_equal(stored, of.labels(10)[source[of.order("train", 600, 1)]])
  assert len(set(stored[:10])) < 10  # once in 2755 they would be all different
  assert not shows_a_period(stored)
  assert (np.array(named(stored, 10)) == of.labels(10)).sum() <= 4  # 1 by chance; more, once in 270
  # The old format: each run of ten is the label permutation itself.
  before = record_noise.Old(facts.spec, MASTER).labels(10)
  old_stored = before[source]
  assert shows_a_period(old_stored)
  assert named(old_stored, 10) == before.tolist() == old_stored[:10].tolist()


def shows_a_period(labels):
  """Whether labels repeat at some distance up to 50 more or less often than one in ten; falsely, once in 10^7."""
  for lag in range(1, 51):
    same = labels[lag:] == labels[:-lag]
    if abs(same.mean() - 0.1) > 6 * np.sqrt(0.09 / len(same)):
      return True
  return False


def test_restoring_needs_the_order(folder, tmp_path):
  request = Request(str(folder), {"scheme": "permutation", "block_size": 2}, dataset_id=ID)
  export.disguise(request, tmp_path / "set", MASTER, workers=1)
  data = directory.open(tmp_path / "set")
  restore.to_files(data, MASTER, tmp_path / "back.npz")
  for split in ("train", "test"):
    was, back = (sources.load(str(x), split) for x in (folder, tmp_path / "back.npz"))
    np.testing.assert_array_equal(back.images, was.images)
    np.testing.assert_array_equal(back.labels, was.labels)
