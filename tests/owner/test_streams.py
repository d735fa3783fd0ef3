import itertools
import json

import numpy as np
import pytest
from helpers.fresh import ROOT
from helpers.twins import (
  ID,
  SPEC,
  twin_block,
  twin_data_set,
  twin_how,
  twin_label,
  twin_label_permutation,
  twin_order,
  twin_record,
  twin_stream,
  twin_subkey,
  twin_uniforms,
)
from scipy import stats

from djax import keys
from djax.disguised.manifest import Manifest
from djax.host import samplers
from djax.owner import record_noise

VECTORS = json.loads((ROOT / "tests" / "vectors" / "record-streams.json").read_text())
SECRET = bytes(range(32))
ALONE = {"count": 1, "crop": 0, "flip": False, "together": True}
VIEWS = {"count": 3, "crop": 2, "flip": True, "together": False}


def test_twin_is_chacha20():
  """RFC 8439, section 2.3.2."""
  nonce = bytes.fromhex("000000090000004a00000000")
  block = twin_block(SECRET, 1, nonce)
  assert block[:16].hex() == "10f1e7e4d13b5915500fdd1fa32071c4"
  assert block[-16:].hex() == "b5129cd1de164eb9cbd083e8a2503c4e"


def check_no_two_alike(variants):
  """Of 40 draws of 24 bits even two alike in a place are rare, all alike means one stream."""
  for (name, one), (other, another) in itertools.combinations(variants.items(), 2):
    assert (one == another).sum() <= 2, (name, other)


def drawn(
  originals,
  indices,
  *,
  secret=SECRET,
  purpose="noise",
  spec=SPEC,
  split="train",
  view=0,
  count=40,
):
  subkey = keys.Master(secret).subkey(record_noise.label(purpose, spec, split))
  return record_noise.uniforms(subkey, originals, indices, view=view, count=count)


def originals(batch=3, dtype=np.uint8):
  values = np.random.default_rng(0).integers(0, 256, (batch, 4, 5, 2))
  return values.astype(np.uint8) if dtype == np.uint8 else (values / 3).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("purpose", ["noise", "views"])
@pytest.mark.parametrize("count", [3, 16, 40])
def test_uniforms_equal_the_twin(dtype, purpose, count):
  images, indices = originals(dtype=dtype), [0, 7, 2**40 + 1]
  found = drawn(images, indices, purpose=purpose, view=2, count=count)
  assert found.dtype == np.float32
  for image, index, row in zip(images, indices, found, strict=True):
    pixels = image.astype("<f4" if dtype == np.float32 else "u1").tobytes()
    expected = twin_uniforms(SECRET, purpose, SPEC, "train", pixels, index, 2, count)
    assert row.tolist() == expected


def test_originals_in_another_memory_order_or_endianness_have_the_same_noise():
  images = originals(dtype=np.float32)
  expected = drawn(images, range(3))
  for other in (images.transpose(3, 2, 1, 0).copy().transpose(3, 2, 1, 0), images.astype(">f4")):
    np.testing.assert_array_equal(drawn(other, range(3)), expected)


def test_uniforms_change_with_all_that_makes_a_record():
  images = originals(1)
  one_pixel = images.copy()
  one_pixel[0, 3, 4, 1] ^= 1
  variants = {
    "itself": drawn(images, [5]),
    "index": drawn(images, [6]),
    "high index": drawn(images, [5 + 2**32]),
    "view": drawn(images, [5], view=1),
    "pixel": drawn(one_pixel, [5]),
    "split": drawn(images, [5], split="test"),
    "purpose": drawn(images, [5], purpose="views"),
    "option": drawn(images, [5], spec={**SPEC, "noise_level": 50.0}),
    "shape": drawn(images, [5], spec={**SPEC, "image_shape": [4, 5, 1]}),
    "key": drawn(images, [5], secret=bytes(32)),
    "dtype": drawn(images.astype(np.float32), [5]),
  }
  check_no_two_alike(variants)


def test_uniforms_do_not_change_with_batch_or_order():
  images, indices = originals(5), np.array([3, 9, 4, 0, 8])
  whole = drawn(images, indices)
  order = np.array([4, 2, 0, 3, 1])
  np.testing.assert_array_equal(drawn(images[order], indices[order]), whole[order])
  for row in range(5):
    np.testing.assert_array_equal(
      drawn(images[row : row + 1], indices[row : row + 1]), whole[row : row + 1]
    )
  np.testing.assert_array_equal(drawn(images, indices, count=7), whole[:, :7])


def test_the_same_image_at_the_same_place_has_one_noise_and_elsewhere_another():
  images = np.repeat(originals(1), 3, axis=0)
  found = drawn(images, [4, 4, 5])
  np.testing.assert_array_equal(found[0], found[1])
  assert not np.array_equal(found[0], found[2])


def test_label_knows_a_spec_by_its_content():
  turned = dict(reversed(SPEC.items()))
  assert list(turned) != list(SPEC)
  read_back = json.loads(json.dumps({**SPEC, "image_shape": (4, 5, 2)}))
  assert record_noise.label("noise", SPEC, "train") == twin_label("noise", SPEC, "train")
  assert record_noise.label("noise", turned, "train") == record_noise.label(
    "noise", read_back, "train"
  )
  assert record_noise.label("noise", {**SPEC, "permute": True}, "train") != record_noise.label(
    "noise", SPEC, "train"
  )


def test_images_and_indices_must_be_as_many():
  with pytest.raises(ValueError):
    drawn(originals(3), [0, 1])


# djx2: what a data set draws.


def data_set(*, dataset_id=ID, spec=SPEC, master=SECRET):
  return keys.Master(master).data_set(dataset_id, spec)


def current(*, role="dataset", views=ALONE, own_id=None, **of):
  return record_noise.Current(data_set(**of), role=role, views=views, own_id=own_id)


@pytest.mark.parametrize("label", ["perm|64", "rmt|0|4", "sealed|dataset", ""])
def test_subkeys_and_streams_of_a_data_set_equal_the_twin(label):
  secret = twin_data_set(SECRET)
  assert keys.secret_bytes(data_set()) == secret
  assert data_set().subkey(label) == twin_subkey(secret, label, "djx2")
  stream = twin_stream(twin_subkey(secret, label, "djx2"), 200)
  assert data_set().read(label, 200) == stream
  owner = keys.Master(SECRET).owner()
  assert owner.subkey(label) == twin_subkey(SECRET, f"owner|{label}", "djx2")


@pytest.mark.parametrize("role", ["dataset", "request"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("views", [ALONE, VIEWS])
def test_noise_and_views_equal_the_twin(role, dtype, views):
  given, images = originals(dtype=dtype), originals(dtype=dtype)[::-1].copy()
  indices = [0, 7, 2**40 + 1]
  drawn_from, secret = current(role=role, views=views), twin_data_set(SECRET)
  noise = drawn_from.noise(given, images, "test", indices, 2, 40)
  shifts = drawn_from.views(given, "test", indices, 2)
  how = f"{role}|test|{twin_how(views)}"
  form = "<f4" if dtype == np.float32 else "u1"
  for row in range(3):
    key = twin_subkey(secret, f"noise|{how}", "djx2")
    pixels = images[row].astype(form).tobytes()
    assert noise[row].tolist() == twin_record(key, pixels, indices[row], 2, 40)
    key = twin_subkey(secret, f"views|{how}", "djx2")
    pixels = given[row].astype(form).tobytes()
    assert shifts[row].tolist() == twin_record(key, pixels, indices[row], 2, 3)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_labels_of_a_data_set_equal_the_twin(classes):
  expected = twin_label_permutation(twin_data_set(SECRET), classes, "djx2")
  assert current().labels(classes).tolist() == expected
  # Those of the key would be every data set's.
  old = record_noise.Old(SPEC, keys.Master(SECRET)).labels(100)
  assert current().labels(100).tolist() != old.tolist()


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("originals", "views"), [(1, 1), (7, 1), (50, 1), (20, 3), (1, 5)])
def test_order_equals_the_twin(together, originals, views):
  for role, own_id in (("dataset", None), ("request", "f" * 32)):
    how = {**VIEWS, "count": views, "together": together}
    found = current(role=role, own_id=own_id, views=how).order("train", originals, views)
    secret = twin_data_set(SECRET)
    assert found.dtype == np.int64
    expected = twin_order(secret, role, own_id, "train", originals, views, together)
    assert found.tolist() == expected
    assert sorted(expected) == list(range(originals * views))


def test_order_keeps_equal_words_in_their_own_order(monkeypatch):
  monkeypatch.setattr(keys.Streams, "read", lambda self, label, count: bytes(count))
  assert current().order("train", 6, 1).tolist() == [0, 1, 2, 3, 4, 5]


def test_views_side_by_side_move_as_one():
  order = current(views={**VIEWS, "together": True}).order("train", 40, 3)
  assert (order[::3] % 3 == 0).all()
  assert (order[1::3] == order[::3] + 1).all() and (order[2::3] == order[::3] + 2).all()
  assert (np.diff(order[::3]) != 3).mean() > 0.8
  apart = current(views=VIEWS).order("train", 40, 3) // 3
  assert (apart[1:] == apart[:-1]).mean() < 0.2


def noises(**changes):
  """What a record draws, under changed circumstances."""
  images = changes.pop("images", originals(1))
  where = {"split": "train", "index": 5, "view": 1, **changes.pop("where", {})}
  given = changes.pop("given", originals(1))
  drawn_from = current(**{"views": VIEWS, **changes})
  return drawn_from.noise(given, images, where["split"], [where["index"]], where["view"], 40)


def test_noise_of_a_data_set_changes_with_all_that_makes_a_record():
  one_pixel = originals(1)
  one_pixel[0, 3, 4, 1] ^= 1
  variants = {
    "itself": noises(),
    "id": noises(dataset_id="0" * 32),
    "option": noises(spec={**SPEC, "noise_level": 50.0}),
    "key": noises(master=bytes(32)),
    "role": noises(role="request"),
    "number of views": noises(views={**VIEWS, "count": 2}),
    "crop": noises(views={**VIEWS, "crop": 1}),
    "flip": noises(views={**VIEWS, "flip": False}),
    "split": noises(where={"split": "test"}),
    "index": noises(where={"index": 6}),
    "view": noises(where={"view": 2}),
    "pixel of the view": noises(images=one_pixel),
    "dtype": noises(images=originals(1).astype(np.float32)),
  }
  check_no_two_alike(variants)
  # The original is not what the noise is added to; how views are laid out changes no record.
  np.testing.assert_array_equal(noises(given=one_pixel), variants["itself"])
  np.testing.assert_array_equal(noises(views={**VIEWS, "together": True}), variants["itself"])
  # A request's own id gives it another order, not another noise: an image is not asked about twice with two.
  np.testing.assert_array_equal(noises(role="request", own_id="a" * 32), variants["role"])


def test_of_takes_the_derivation_from_the_manifest():
  master = keys.Master(SECRET)
  fields = {name: None for name in Manifest.__dataclass_fields__}
  fields |= {"spec": SPEC, "views": VIEWS}
  old = record_noise.of(Manifest(**{**fields, "version": 1, "id": ""}), master)
  assert old.read("perm|4", 40) == master.read("perm|4", 40)
  assert old.order("train", 4, 2).tolist() == list(range(8))
  facts = {**fields, "version": 2, "id": ID}
  new = record_noise.of(Manifest(**{**facts, "role": "dataset", "request": None}), master)
  assert new.read("perm|4", 40) == data_set().read("perm|4", 40)
  expected = current(views=VIEWS).order("train", 40, 3)
  assert new.order("train", 40, 3).tolist() == expected.tolist()
  asked = record_noise.of(Manifest(**{**facts, "role": "request", "request": "b" * 32}), master)
  assert asked.read("perm|4", 40) == new.read("perm|4", 40)
  expected = current(role="request", own_id="b" * 32, views=VIEWS).order("query", 40, 3)
  assert asked.order("query", 40, 3).tolist() == expected.tolist()


@pytest.mark.parametrize("images_differ", [False, True])
def test_old_noise_is_of_the_original_whatever_the_view_shows(images_differ):
  """As docs/key-format.md, section 7, has it: directories of version 1 hold such noise."""
  given = originals()
  images = given[::-1].copy() if images_differ else given
  old = record_noise.Old(SPEC, keys.Master(SECRET))
  found = old.noise(given, images, "train", range(3), 1, 40)
  np.testing.assert_array_equal(found, drawn(given, range(3), view=1))


def is_uniform(values):
  """Whether values pass for uniform on [0, 1) in steps of 2^-24; a true sampler fails once in 10^6 seeds.

  A Kolmogorov-Smirnov test, a chi-square test over 512 bins, one over the lowest 8 bits, and the range.
  """
  if not ((values >= 0) & (values < 1)).all():
    return False
  steps = values * 2.0**24
  if (steps != np.floor(steps)).any():
    return False
  low = np.bincount(steps.astype(np.int64) % 256, minlength=256)
  bins = np.histogram(values, 512, (0, 1))[0]
  chances = (
    stats.kstest(values, "uniform").pvalue,
    stats.chisquare(bins).pvalue,
    stats.chisquare(low).pvalue,
  )
  return min(chances) > 1e-6 / len(chances)


@pytest.fixture(scope="module")
def many():
  images = np.random.default_rng(1).integers(0, 256, (400, 4, 5, 2), np.uint8)
  return drawn(images, range(400), count=1000).astype(np.float64)


def test_uniforms_are_uniform_and_records_independent(many):
  assert is_uniform(many.ravel())
  assert is_uniform(many[:, 0])  # the first word of 400 streams
  # Neighbouring records: differences of independent uniforms have a variance of 1/6 (sixfold below: 6 sigma).
  difference = many[1:] - many[:-1]
  assert abs(difference.var() - 1 / 6) < 6 * np.sqrt(7 / 180 / difference.size)


@pytest.mark.parametrize(
  "wrong",
  [
    lambda u: u * 255 / 256,
    lambda u: u**2,
    lambda u: np.floor(u * 256) / 256,
    lambda u: np.floor(u * 2**23) / 2**23,
    lambda u: np.where(u < 2**-7, u + 0.5, u),
  ],
  ids=["255/256", "squared", "8 bits", "even steps", "no small values"],
)
def test_the_statistics_reject_a_wrong_sampler(many, wrong):
  assert not is_uniform(wrong(many.ravel()))


def test_the_statistics_see_shared_noise(many):
  shared = np.repeat(many[::2], 2, axis=0)
  difference = shared[1:] - shared[:-1]
  assert abs(difference.var() - 1 / 6) > 6 * np.sqrt(7 / 180 / difference.size)


# Golden vectors; `vectors` is what djax.cli.selftest runs too.


@pytest.mark.parametrize("vector", VECTORS["uniforms"], ids=lambda v: v["name"])
def test_golden_uniforms_hold_for_the_module_and_the_twin(vector):
  secret, pixels = bytes.fromhex(vector["secret"]), bytes.fromhex(vector["original"])
  image = np.frombuffer(pixels, vector["dtype"]).reshape(vector["spec"]["image_shape"])
  found = drawn(
    image[None],
    [vector["index"]],
    secret=secret,
    **{name: vector[name] for name in ("purpose", "spec", "split", "view", "count")},
  )
  expected = [float.fromhex(x) for x in vector["expect"]]
  assert found[0].tolist() == expected
  arguments = (vector[n] for n in ("purpose", "spec", "split"))
  place = (vector[n] for n in ("index", "view", "count"))
  assert twin_uniforms(secret, *arguments, pixels, *place) == expected


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda v: v["name"])
def test_golden_label_permutations_hold_for_the_module_and_the_twin(vector):
  master = keys.Master(bytes.fromhex(vector["secret"]))
  assert vector["label"] == f"labels|{vector['n']}"
  assert record_noise.Old(SPEC, master).labels(vector["n"]).tolist() == vector["expect"]
  words = samplers.Words(master.read, vector["label"])
  assert samplers.permutation(words, vector["n"]).tolist() == vector["expect"]
  assert twin_label_permutation(bytes.fromhex(vector["secret"]), vector["n"]) == vector["expect"]


# Golden vectors of djx2; the rest of them are in test_keys.py and test_sealed.py.


def djx2(*calls):
  path = ROOT / "tests" / "vectors" / "djx2.json"
  return [v for v in json.loads(path.read_text())["vectors"] if v["call"] in calls]


def twin_secret(vector):
  secret = bytes.fromhex(vector["secret"])
  return twin_data_set(secret, vector["id"], vector["spec"])


@pytest.mark.parametrize("vector", djx2("djx2-noise", "djx2-views"), ids=lambda v: v["name"])
def test_the_twin_gives_the_golden_record_streams(vector):
  purpose = vector["call"].removeprefix("djx2-")
  label = f"{purpose}|{vector['role']}|{vector['split']}|{twin_how(vector['views'])}"
  key = twin_subkey(twin_secret(vector), label, "djx2")
  pixels = bytes.fromhex(vector["image" if purpose == "noise" else "original"])
  found = twin_record(key, pixels, vector["index"], vector["view"], len(vector["expect"]))
  assert [x.hex() for x in found] == vector["expect"]


@pytest.mark.parametrize("vector", djx2("djx2-order"), ids=lambda v: v["name"])
def test_the_twin_gives_the_golden_orders(vector):
  views = vector["views"]
  names = (vector["role"], vector.get("request"), vector["split"])
  found = twin_order(
    twin_secret(vector), *names, vector["originals"], views["count"], views["together"]
  )
  assert found == vector["expect"]


@pytest.mark.parametrize("vector", djx2("djx2-labels"), ids=lambda v: v["name"])
def test_the_twin_gives_the_golden_label_permutations(vector):
  found = twin_label_permutation(twin_secret(vector), vector["classes"], "djx2")
  assert found == vector["expect"]


def test_golden_vectors_cover_both_roles_and_all_that_is_drawn():
  for calls in (("djx2-noise",), ("djx2-views",), ("djx2-order",)):
    assert {v["role"] for v in djx2(*calls)} == {"dataset", "request"}
  assert {v["dtype"] for v in djx2("djx2-noise")} == {"uint8", "<f4"}
  assert {v["views"]["together"] for v in djx2("djx2-order")} == {False, True}
  assert {v["classes"] for v in djx2("djx2-labels")} >= {2, 10, 100}
