"""Images a second of every scheme, on the device and on the host, beside the plain loop and what memory allows."""

import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from djax import keys, schemes
from djax.bench import clock, reference
from djax.bench.clock import Work, repeated
from djax.ops import blocks
from djax.schemes import Scheme, Trait

__all__ = ["Case", "cases", "copy_bandwidth", "errors", "measure", "no_noise"]

_SEED = 0
_COPIED_BYTES = 1 << 28
_CHECKED_IMAGES = 64
_LOOP_BLOCKS = 4096  # the plain loop does so many at a time: some tens of milliseconds


class Case(NamedTuple):
  """One row: a disguise of a batch of some shape.

  Attributes:
    disguise: parameters of the scheme, without the shape.
    image_shape: ``(H, W, C)``.
    batch: images at a time.
    on_device: ``disguise`` jitted over records as in training, or the owner's ``export`` on the host.
  """

  disguise: Mapping[str, Any]
  image_shape: tuple[int, int, int]
  batch: int
  on_device: bool


def cases(*, fast: bool) -> Iterator[Case]:
  """Yields all rows: two batches on the device, as large as a training step's and far beyond any cache.

  Args:
    fast: only 32 x 32 x 3.
  """
  geometry = {
    (32, 32, 3): ((2, 4, 8), (128, 8192), 2048),
    (28, 28, 1): ((2, 4, 7), (512, 32768), 8192),
    (224, 224, 3): ((4, 8, 16), (16, 160), 40),
  }
  for shape, (sizes, batches, host_batch) in geometry.items():
    benched = [one for kind in schemes.SCHEMES.values() for one in kind.benched(sizes)]
    device = [dict(disguise) for disguise, on_device in benched if on_device]
    host = [dict(disguise) for disguise, on_device in benched if not on_device]
    yield from (Case(one, shape, batch, True) for batch in batches for one in device)
    yield from (Case(one, shape, host_batch, False) for one in host)
    if fast:
      return


def measure(case: Case, *, rounds: int) -> dict[str, Any]:
  """Measures one row.

  Args:
    case: the row.
    rounds: of side by side timing.

  Returns:
    ``spec``, ``batch``, ``where``, ``compile_seconds`` (device), ``gigabytes_per_second`` read and written, and under
    ``images_per_second`` and ``times`` what ``clock.spread`` gives for the disguise (``ours``), the plain ``loop``, the
    memory bound (``copy``: the same bytes read and written) and, for AES, ``raw`` ECB over the same bytes in one call
    and ``raw_reused`` into a buffer that lies ready. ``times`` holds how many times as fast as each of them ours is.
  """
  scheme = schemes.from_spec({**case.disguise, "image_shape": case.image_shape})
  key = scheme.make_key(keys.experiment(_SEED).read)
  spec = scheme.spec.to_dict()
  images = _random_images(case.batch, case.image_shape)
  dtype = np.dtype(np.float32 if Trait.FLOATS in schemes.traits(spec) else np.uint8)
  compiled = None
  if case.on_device:
    works, compiled = _device_works(scheme, key, images, dtype)
  else:
    works = _host_works(scheme, key, images, dtype)
  height, width, channels = case.image_shape
  turns = height * width * channels // spec["block_size"] ** 2
  few = images[: max(1, _LOOP_BLOCKS // turns)]
  works["loop"] = repeated(reference.disguise, spec, key, few)
  counts = {name: len(few) if name == "loop" else case.batch for name in works}
  seconds = clock.side_by_side(works, rounds=rounds)
  each = {name: taken / counts[name] for name, taken in seconds.items()}
  moved = images[0].nbytes * (1 + dtype.itemsize)
  return {
    "spec": spec,
    "batch": case.batch,
    "where": "device" if case.on_device else "host",
    "compile_seconds": compiled,
    "gigabytes_per_second": clock.spread(moved / each["ours"] / 1e9),
    "images_per_second": {name: clock.spread(1 / one) for name, one in each.items()},
    "times": {name: clock.ratio(one, each["ours"]) for name, one in each.items() if name != "ours"},
  }


def copy_bandwidth(*, rounds: int) -> list[float]:
  """Returns the device's bandwidth in GB/s, read and written, of adding 1 to 256 MiB of float32: ``clock.spread``.

  Args:
    rounds: of timing.
  """
  values = jnp.zeros(_COPIED_BYTES // 4, jnp.float32)
  work = repeated(jax.jit(lambda x: x + 1), values)
  (seconds,) = clock.side_by_side({"copy": work}, rounds=rounds).values()
  return clock.spread(2 * _COPIED_BYTES / seconds / 1e9)


def errors() -> list[dict[str, Any]]:
  """Returns the largest error of the disguise against float64, relative to the largest value, per mixing.

  ``default`` is the same product at JAX's default precision, which GPUs may round to TF32.
  """
  rows = []
  for mix in ("rows", "block"):
    scheme = schemes.rmt_scheme((32, 32, 3), block_size=4, permute=False, mix=mix)
    key = scheme.make_key(keys.experiment(_SEED).read)
    images = _random_images(_CHECKED_IMAGES, scheme.spec.image_shape)
    cut = _blocks(images, mix)
    subscripts = "bprkc,pkl->bprlc" if mix == "rows" else "bpk,pkl->bpl"
    exact = np.einsum(subscripts, cut.astype(np.float64), np.asarray(key.matrices, np.float64))
    ours, _ = jax.jit(functools.partial(scheme.disguise, rng=None))(key, images, None)
    product = jax.jit(functools.partial(jnp.einsum, subscripts))
    results = {"ours": _blocks(ours, mix), "default": product(cut.astype(np.float32), key.matrices)}
    largest = np.abs(exact).max()
    worst = {name: float(np.abs(y - exact).max() / largest) for name, y in results.items()}
    rows.append({"mix": mix, **worst})
  return rows


def no_noise() -> np.ndarray:
  """Stands for the noise of a disguise that draws none."""
  raise AssertionError("a disguise without noise draws nothing")


def _random_images(count: int, shape: tuple[int, ...]) -> np.ndarray:
  return np.random.default_rng(_SEED).integers(0, 256, (count, *shape), np.uint8)


def _blocks(images: Any, mix: str) -> np.ndarray:
  """Cuts images into 4 x 4 blocks, flat ones where the whole block is mixed."""
  cut = np.asarray(blocks.blockify(images, block_size=4))
  return cut if mix == "rows" else cut.reshape(*cut.shape[:2], -1)


def _device_works(
  scheme: Scheme, key: Any, images: np.ndarray, dtype: np.dtype
) -> tuple[dict[str, Work], float]:
  """Returns the works on the device, and the seconds it took to compile ours."""

  def disguise(key, rng, images, indices):
    def one(image, index):
      return scheme.disguise(key, image, None, rng=jax.random.fold_in(rng, index))[0]

    return jax.vmap(one)(images, indices)

  arguments = jax.device_put((key, jax.random.key(_SEED), images, np.arange(len(images))))
  lowered = jax.jit(disguise).lower(*arguments)
  start = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - start
  copy = jax.jit((lambda x: x ^ 1) if dtype == np.uint8 else (lambda x: x.astype(dtype)))
  works = {"ours": repeated(compiled, *arguments), "copy": repeated(copy, arguments[2])}
  return works, round(seconds, 3)


def _host_works(scheme: Scheme, key: Any, images: np.ndarray, dtype: np.dtype) -> dict[str, Work]:
  """Returns the works on the host."""
  works = {
    "ours": repeated(scheme.export, key, images, no_noise),
    "copy": repeated(images.astype, dtype),
  }
  if Trait.UNITS in schemes.traits(scheme.spec.to_dict()):
    works |= _raw_aes(np.asarray(key.aes_keys)[0].tobytes(), images)
  return works


def _raw_aes(secret: bytes, images: np.ndarray) -> dict[str, Work]:
  """Returns AES-ECB over the bytes as they lie: into new memory at each call, and into a buffer that lies ready."""
  encryptor = Cipher(AES(secret), ECB()).encryptor()
  data = memoryview(images).cast("B")
  ready = bytearray(len(data) + 15)
  return {
    "raw": repeated(encryptor.update, data),
    "raw_reused": repeated(encryptor.update_into, data, ready),
  }
