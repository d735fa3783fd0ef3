"""The way from originals to batches: one noise a record, an order that can be resumed, every record counted."""

import itertools

import jax
import numpy as np
import pytest

from djax import keys, schemes
from djax.ops import augment
from djax.sources import Images
from train import loop
from train.data import owned
from train.data.input_pipeline import Pipeline, epoch_order

N, SHAPE = 37, (6, 8, 1)
OPTIONS = {"crop": 2, "flip": True}


@pytest.fixture(scope="module")
def mesh():
  return loop.data_mesh()


@pytest.fixture(scope="module")
def data():
  pixels = np.random.default_rng(0).integers(0, 256, (N, *SHAPE)).astype(np.uint8)
  return Images(pixels, np.arange(N, dtype=np.int32) % 5, tuple("abcde"))


@pytest.fixture(scope="module")
def scheme():
  return schemes.rmt_scheme(SHAPE, block_size=2, noise_level=50.0)


def make(data, scheme, mesh, *, rng=0, seed=0, batch_size=8):
  key = scheme.make_key(keys.experiment(seed).read)
  feed = owned.disguised(data, scheme, key, rng=jax.random.key(rng))
  return Pipeline(feed, mesh=mesh, batch_size=batch_size)


def make_views(data, scheme, mesh, count):
  key = scheme.make_key(keys.experiment(0).read)
  seen = owned.Views(count, jax.random.key(7), OPTIONS)
  feed = owned.disguised(data, scheme, key, rng=jax.random.key(0), views=seen)
  assert feed.views == count and len(feed.records) == N
  return Pipeline(feed, mesh=mesh, batch_size=8)


def test_batches_equal_a_loop_over_records(data, scheme, mesh):
  key = scheme.make_key(keys.experiment(0).read)
  batches = list(make(data, scheme, mesh).all_records())
  got = np.concatenate([np.asarray(b.images)[np.asarray(b.mask) > 0] for b in batches])
  for i in range(N):
    rng = jax.random.fold_in(jax.random.key(0), i)
    want, _ = scheme.disguise(key, data.images[i], data.labels[i], rng=rng)
    np.testing.assert_allclose(got[i], np.asarray(want), atol=1e-3)


def test_evaluation_counts_every_record_once(data, scheme, mesh):
  batches = list(make(data, scheme, mesh).all_records())
  assert sum(float(b.mask.sum()) for b in batches) == N
  labels = np.concatenate([np.asarray(b.labels)[np.asarray(b.mask) > 0] for b in batches])
  np.testing.assert_array_equal(labels, data.labels)


def test_a_record_has_one_noise_however_often_it_is_read(data, scheme, mesh):
  pipeline = make(data, scheme, mesh)
  per_epoch = pipeline.steps_per_epoch
  seen = {}
  batches = list(pipeline.training(seed=3, start=0, stop=3 * per_epoch))
  repeats = 0
  for step, batch in enumerate(batches):
    order = epoch_order(N, seed=3, epoch=step // per_epoch)
    first = step % per_epoch * 8
    for record, image in zip(order[first : first + 8], np.asarray(batch.images), strict=True):
      if record in seen:
        repeats += 1
        np.testing.assert_array_equal(seen[record], image)
      seen[record] = image
  assert repeats > N


def test_other_rng_gives_other_noise(data, scheme, mesh):
  one, two = (next(make(data, scheme, mesh, rng=r).all_records()).images for r in (0, 1))
  assert np.abs(np.asarray(one) - np.asarray(two)).mean() > 1


def test_the_order_resumes_anywhere(data, scheme, mesh):
  pipeline = make(data, scheme, mesh)
  whole = [np.asarray(b.images) for b in pipeline.training(seed=0, start=0, stop=11)]
  for start in (1, 4, 5, 10):
    rest = [np.asarray(b.images) for b in pipeline.training(seed=0, start=start, stop=11)]
    assert len(rest) == 11 - start
    np.testing.assert_array_equal(np.stack(rest), np.stack(whole[start:]))


def test_order_folds_seed_and_epoch_instead_of_adding():
  orders = {
    tuple(epoch_order(50, seed=s, epoch=e)) for s, e in itertools.product(range(3), range(3))
  }
  assert len(orders) == 9
  assert all(sorted(order) == list(range(50)) for order in orders)


def test_batches_lie_on_every_device(data, scheme, mesh):
  batch = next(make(data, scheme, mesh).all_records())
  assert len(batch.images.sharding.device_set) == jax.device_count() == 2
  assert batch.images.dtype == np.float32


def test_an_epoch_shows_every_record_and_several_show_every_view(data, scheme, mesh):
  pipeline = make_views(data, scheme, mesh, 3)
  epochs = [pipeline.epoch(seed=0, number=e) for e in range(3)]
  for epoch in epochs:
    assert sorted(epoch % N) == list(range(N))
  assert sorted(np.concatenate(epochs)) == list(range(3 * N))
  assert len(set(epochs[0] // N)) == 3
  # One view: the order alone.
  np.testing.assert_array_equal(
    make(data, scheme, mesh).epoch(seed=4, number=1), epoch_order(N, seed=4, epoch=1)
  )


@pytest.mark.slow
def test_views_equal_a_loop_over_records(data, scheme, mesh):
  key = scheme.make_key(keys.experiment(0).read)
  for number in range(3):
    batches = list(make_views(data, scheme, mesh, 3).all_records(view=number))
    got = np.concatenate([np.asarray(b.images)[np.asarray(b.mask) > 0] for b in batches])
    labels = np.concatenate([np.asarray(b.labels)[np.asarray(b.mask) > 0] for b in batches])
    np.testing.assert_array_equal(labels, data.labels)
    for i in range(N):
      image = augment.view(
        data.images[i], jax.random.fold_in(jax.random.key(7), i), number, **OPTIONS
      )
      assert (number == 0) == bool((np.asarray(image) == data.images[i]).all())
      noise = jax.random.fold_in(jax.random.key(0), number * N + i)
      want, _ = scheme.disguise(key, image, data.labels[i], rng=noise)
      np.testing.assert_allclose(got[i], np.asarray(want), atol=1e-3)


def test_host_disguises_have_the_same_views(data, mesh):
  scheme = schemes.aes_scheme((8, 8, 1), block_size=4)
  data = Images(np.tile(data.images, (1, 2, 1, 1))[:, :8], data.labels, data.class_names)
  key = scheme.make_key(keys.experiment(0).read)
  pipeline = make_views(data, scheme, mesh, 2)
  for number in range(2):
    batches = list(pipeline.all_records(view=number))
    got = np.concatenate([np.asarray(b.images)[np.asarray(b.mask) > 0] for b in batches])
    seen = np.stack(
      [
        augment.view(image, jax.random.fold_in(jax.random.key(7), i), number, **OPTIONS)
        for i, image in enumerate(data.images)
      ]
    )
    np.testing.assert_array_equal(got, scheme.export(key, seen, lambda: None))


def test_originals_travel_as_uint8(data, scheme, mesh, monkeypatch):
  sent = []
  put = jax.device_put

  def spy(value, *args, **kwargs):
    sent.append(value)
    return put(value, *args, **kwargs)

  pipeline = make(data, scheme, mesh)
  monkeypatch.setattr(jax, "device_put", spy)
  next(pipeline.all_records())
  assert sent and all(value[0].dtype == np.uint8 for value in sent)
