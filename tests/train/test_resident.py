"""Training on records that lie on the devices: what single steps compute, however it is cut. Forced here, on CPU."""

import functools
import json
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest
from helpers.leaks import leaks, secrets_of
from helpers.training import Logged, assert_same_bits, assert_same_state, interrupt, params, tiny

import train
from djax import keys, models
from train import device_loop, evaluate, loop, optimizers, steps
from train import state as state_lib
from train.data import inputs, owned
from train.data.input_pipeline import Feed, Pipeline

PER_EPOCH = 4  # steps of tiny()
DROPOUT = "model.dropout=0.3"


class Setting(NamedTuple):
  """All that a way of training is given."""

  pipeline: Pipeline
  step: functools.partial
  state: state_lib.State

  def run(self, way, start=None, **options):
    """Returns the losses and the last state of a way of training; with ``start``, from a state given."""
    state, losses = self.state if start is None else start, []
    state = jax.device_put(state, self.pipeline.replicated)
    options = {"rng": jax.random.key(5), "seed": 3, "stop": 2 * PER_EPOCH, "every": 100} | options
    for chunk in way(self.pipeline, self.step, state, **options):
      losses.append(np.atleast_1d(np.asarray(chunk[1])))
    return losses, jax.device_get(chunk[0])


def setting(*overrides):
  config = tiny(*overrides)
  given = owned.inputs(config, None)
  pipeline = Pipeline(given.train, mesh=loop.data_mesh(), batch_size=config.train.batch_size)
  assert pipeline.steps_per_epoch == PER_EPOCH
  model = models.create(config.model, classes=10, spec=given.spec)
  optimizer = optimizers.create(config.optimizer, PER_EPOCH, 2 * PER_EPOCH)
  mean, scale = evaluate.statistics(model, pipeline, given.disguised_shape)
  # On the host: what is donated is gone.
  state = jax.device_get(state_lib.initial(model, optimizer, jax.random.key(0), mean, scale))
  return Setting(
    pipeline, functools.partial(steps.update, model, optimizer, steps.Recipe(10)), state
  )


@pytest.fixture(scope="module")
def noisy():
  """A setting, and one compilation of its program for all tests."""
  made = functools.lru_cache(device_loop.program)
  with pytest.MonkeyPatch.context() as patch:
    # States of these tests lie on every device, as is usual: a tree of shardings has no hash.
    patch.setattr(
      device_loop, "program", lambda pipeline, step, shardings=None: made(pipeline, step)
    )
    yield setting(DROPOUT)


@pytest.fixture(scope="module")
def uncut(noisy):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(device_loop, "_SECONDS", 1e9)
    return noisy.run(device_loop.chunks)


@pytest.mark.parametrize("scheme", ["rmt", "aes"])
@pytest.mark.slow
def test_it_computes_what_single_steps_compute(noisy, scheme):
  given = noisy
  if scheme == "aes":
    given = setting("disguise.scheme=aes", "disguise.unit_pixels=4", "optimizer.name=sgd")
  want_losses, want = given.run(steps.single_steps)
  got_losses, got = given.run(device_loop.chunks)
  assert np.ptp(np.concatenate(want_losses)) > 0.1
  np.testing.assert_allclose(
    np.concatenate(got_losses), np.concatenate(want_losses), rtol=1e-5, atol=0
  )
  assert got.step == want.step == 2 * PER_EPOCH
  for a, b, before in zip(*map(jax.tree.leaves, (got, want, given.state)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
    assert a.shape == before.shape and a.dtype == before.dtype
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), got.params, given.state.params)
  assert min(jax.tree.leaves(moved)) > 1e-4


@pytest.mark.parametrize("other", [{"rng": jax.random.key(6)}, {"seed": 4}])
def test_order_and_dropout_follow_their_arguments(noisy, uncut, other):
  losses, _ = noisy.run(device_loop.chunks, **other)
  assert np.abs(np.concatenate(losses) - np.concatenate(uncut[0])).max() > 1e-3


@pytest.mark.parametrize("every", [1, 3, 100])
def test_the_bits_do_not_depend_on_the_cut(noisy, uncut, every):
  losses, state = noisy.run(device_loop.chunks, every=every)
  assert_same_bits(state, uncut[1])
  assert np.concatenate(losses).tobytes() == np.concatenate(uncut[0]).tobytes()


@pytest.mark.parametrize("cut", [3, 4, 6])
def test_resumed_anywhere_it_ends_with_the_same_bits(noisy, uncut, cut):
  first, state = noisy.run(device_loop.chunks, stop=cut)
  assert state.step == cut
  rest, state = noisy.run(device_loop.chunks, start=state)
  assert_same_bits(state, uncut[1])
  assert np.concatenate(first + rest).tobytes() == np.concatenate(uncut[0]).tobytes()


@pytest.mark.parametrize(
  ("seconds", "longest", "every", "lengths"),
  [
    (1e9, 1024, 100, [1, 3, 4]),  # the first is for measuring
    (1e9, 1024, 3, [1, 2, 1, 2, 2]),
    (1e9, 2, 100, [1, 2, 1, 2, 2]),
    (0, 1024, 3, [1] * 8),
  ],
)
def test_chunks_end_with_epochs_and_checkpoints(
  noisy, monkeypatch, seconds, longest, every, lengths
):
  monkeypatch.setattr(device_loop, "_SECONDS", seconds)
  monkeypatch.setattr(device_loop, "_LONGEST", longest)
  losses, _ = noisy.run(device_loop.chunks, every=every)
  assert [len(chunk) for chunk in losses] == lengths


def test_a_chunk_takes_half_a_second(noisy, monkeypatch):
  clock, program = [0.0], device_loop.program

  def slow(*args):
    def run(*given):
      clock[0] += 0.24 * given[-2]
      return program(*args)(*given)

    return run

  monkeypatch.setattr(device_loop, "program", slow)
  monkeypatch.setattr(device_loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
  losses, _ = noisy.run(device_loop.chunks)
  assert [len(chunk) for chunk in losses] == [1, 2, 1, 2, 2]


def test_one_program_serves_chunks_of_any_length(noisy, uncut):
  noisy.run(device_loop.chunks, every=3)
  assert len({len(chunk) for chunk in uncut[0]}) == 3
  assert device_loop.program(noisy.pipeline, noisy.step)._cache_size() == 1


def lowered(given, pipeline=None):
  records, argument = given.pipeline.feed.records, given.pipeline.feed.argument
  order = np.zeros((PER_EPOCH, given.pipeline.batch_size), np.int32)
  run = device_loop.program(pipeline or given.pipeline, given.step)
  data = jax.device_put(
    (given.state, records.images, records.labels, argument, order),
    given.pipeline.replicated,
  )
  return run.lower(*data, 0, 1, jax.random.key(0))


def test_each_device_gathers_its_own_rows(noisy):
  seen = []

  def step(state, batch, rng):
    jax.debug.inspect_array_sharding(batch.images, callback=seen.append)
    return noisy.step(state, batch, rng)

  text = lowered(noisy._replace(step=step)).compile().as_text()
  (found,) = seen
  # 32 rows on two devices; the records are on both, so that no image travels, and gradients alone are added up.
  assert found.shard_shape((32, 8, 8, 1)) == (16, 8, 8, 1)
  assert "all-reduce" in text and "all-gather" not in text and "all-to-all" not in text


def test_the_program_holds_no_key(noisy):
  found, key = secrets_of(keys.experiment(0), owned.inputs(tiny(), None).spec)
  assert not leaks(lowered(noisy).as_text().encode(), found, key)
  feed = noisy.pipeline.feed

  def closed_over(argument, *rest):
    return feed.transform((jax.tree.map(jax.numpy.asarray, key), *argument[1:]), *rest)

  planted = Pipeline(feed._replace(transform=closed_over), mesh=noisy.pipeline.mesh, batch_size=32)
  assert leaks(lowered(noisy, planted).as_text().encode(), found, key)


def on_gpus(*stats):
  return SimpleNamespace(
    local_devices=[SimpleNamespace(memory_stats=lambda found=found: found) for found in stats]
  )


def test_a_split_lies_there_if_it_takes_half_of_what_is_free(monkeypatch):
  images = np.zeros((10, 10, 10, 1), np.uint8)
  arrays = inputs.Arrays(images, np.zeros(10, np.int32))

  def fits(*stats, records=arrays, streamed=False):
    feed = Feed(records, inputs.widened, (), streamed)
    return device_loop.fits(SimpleNamespace(feed=feed, mesh=on_gpus(*stats)))

  roomy, tight = ({"bytes_limit": n, "bytes_in_use": 500} for n in (2500, 2499))
  assert not fits(roomy)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert fits(roomy) and fits(roomy, roomy)
  assert not fits(tight) and not fits(roomy, tight)
  assert not fits(None) and not fits({})
  assert not fits(roomy, records=Logged(10)) and not fits(roomy, streamed=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The same run in both ways: directories and results."""
  place, found = tmp_path_factory.mktemp("runs"), {}
  for name in ("resident", "single"):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(device_loop, "fits", lambda pipeline, name=name: name == "resident")
      found[name] = place / name, train.run(tiny(DROPOUT), place / name)
  return found


@pytest.mark.slow
def test_a_run_leaves_the_metrics_of_single_steps(whole):
  (workdir, result), (want_workdir, want) = whole["resident"], whole["single"]
  assert result["steps"] == 8 and result["test_accuracy"] == want["test_accuracy"]
  rows, want_rows = (
    [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for path in (workdir, want_workdir)
  )
  assert [row["step"] for row in rows] == [4, 8]
  for row, want_row in zip(rows, want_rows, strict=True):
    assert row["train_loss"] == pytest.approx(want_row["train_loss"], rel=1e-5)


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, monkeypatch, whole):
  monkeypatch.setattr(device_loop, "fits", lambda pipeline: True)
  with monkeypatch.context() as patch, pytest.raises(loop.Stopped, match="after step 6"):
    patch.setattr(device_loop, "_SECONDS", 0)
    interrupt(patch, device_loop, "chunks")
    train.run(tiny(DROPOUT), tmp_path)
  monkeypatch.setattr(device_loop, "_SECONDS", 1e9)
  train.run(tiny(DROPOUT), tmp_path)
  assert_same_state(params(whole["resident"][0]), params(tmp_path))
