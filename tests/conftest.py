"""Two CPU devices, strict JAX promotion in the core's tests, seeded hypothesis, ``--slow``."""

import atexit
import contextlib
import ctypes
import gc
import importlib.metadata
import os
import pathlib
import shutil
import sys
import tempfile

# Before anything imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
  flags = os.environ.get("XLA_FLAGS", "")
  os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=2".strip()
# XLA ends the process when a device waits 40 s for the other, as on a machine that stands still.
# An older one ends it for a flag that it does not know.
if [int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2]] >= [0, 10]:
  os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=600"

# The tests' programs are many and run for moments: to optimise what LLVM makes of them took a third of the time of all
# tests. XLA's own passes are as ever, and the other stages of .ci/run compile as users do. Networks that slow tests
# train run for longer, and gain from the first level. Workers find what their parent set.
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
  os.environ["XLA_FLAGS"] += f" --xla_backend_optimization_level={int('--slow' in sys.argv)}"

# One thread a worker of pytest-xdist: threads that wait for a core turn round, and took half of the time.
if "PYTEST_XDIST_WORKER" in os.environ:
  for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# Compiling takes most of the time: what one test compiled serves all workers and all processes that tests start.
# With a limit of size, JAX locks the folder, so that no process reads what another is still writing.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="djax-compiled-")
  atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2 << 30)
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
  os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import pytest

pytest.register_assert_rewrite("helpers")

# Training code leans on libraries that do not bear strict promotion; the core does.
STRICT_MODULES = {
  "test_blocks",
  "test_metrics",
  "test_noise",
  "test_permutation",
  "test_rmt",
  "test_schemes",
}

TESTS = pathlib.Path(__file__).parent

hypothesis.settings.register_profile(
  "djax", deadline=None, derandomize=True, max_examples=15, database=None
)
hypothesis.settings.load_profile("djax")


def pytest_addoption(parser):
  parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_configure(config):
  if config.getoption("--slow"):
    # Else xdist begins with the files of most tests, and ends with the longest.
    config.option.loadscopereorder = False


# Files of few tests that take minutes. A worker that got one of them last would keep all others waiting.
LONG_FILES = (
  "notebooks/test_execution.py",
  "test_faults.py",
  "train/test_loop.py",
  "disguised/test_hostile_directory.py",
  "docs/test_howto.py",
  "train/test_compare.py",
  "models/test_models.py",
  "train/test_run_integrity.py",
  "attacks/test_attack_examiner.py",
  "attacks/test_attack_model_targeted.py",
  "attacks/test_attack_inversion.py",
  "attacks/test_attack_clusters.py",
  "owner/test_export.py",
  "test_readme.py",
  "audit/test_audit_picture.py",
  "docs/test_pages.py",
  "train/test_ask.py",
  "train/test_more_epochs.py",
  "keys/test_secrets.py",
  "disguised/test_fuzz_directory.py",
  "train/test_examine.py",
  "train/test_growth.py",
)


def pytest_collection_modifyitems(config, items):
  for item in items:
    if "tfds_dir" in item.fixturenames:
      item.add_marker("prepared")
  if config.getoption("--slow"):
    place = {TESTS / name: number for number, name in enumerate(LONG_FILES)}
    # Stable: the tests of a file stay in their order.
    items.sort(key=lambda item: place.get(item.path, len(place)))
  if config.getoption("--slow"):
    return
  for item in items:
    if "slow" in item.keywords:
      item.add_marker(pytest.mark.skip(reason="takes minutes; give --slow to run it"))


@pytest.fixture(autouse=True, scope="session")
def unlimited_cache():
  """Keeps JAX from reading a file of every program that is kept before it keeps another.

  There were two thousand: a tenth of a second each time, while all others wait for the lock.
  """
  # The limit of above and of .ci/run: a hundred times of what all programs take.
  if os.environ.get("JAX_COMPILATION_CACHE_MAX_SIZE") == str(2 << 30):
    with contextlib.suppress(ImportError):
      from jax._src import lru_cache

      lru_cache.LRUCache._evict_if_needed = lambda self, **size: None


@pytest.fixture(autouse=True, scope="module")
def strict_promotion(request):
  """Raises on mixed dtypes and on implicit rank promotion, in the core's tests."""
  if request.module.__name__.rpartition(".")[2] not in STRICT_MODULES:
    yield
    return
  import jax

  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.numpy_dtype_promotion("strict"))
    stack.enter_context(jax.numpy_rank_promotion("raise"))
    yield


# JAX, Flax and all that tests import take most of it, and a module may add as much: a worker stays below 1.5 GB.
MOST_RESIDENT = 700 << 20


def resident() -> int:
  """Returns the memory that this process has, in bytes; endless where that is not told."""
  try:
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
  except OSError:
    return sys.maxsize
  return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True, scope="module")
def forget_compiled():
  """Drops the programs of tests once they take much: kept for all modules, it would be gigabytes a worker."""
  yield
  if "jax" in sys.modules and resident() > MOST_RESIDENT:
    import jax

    jax.clear_caches()
    gc.collect()
    # What is free goes back to the system: else a worker stays as large as its largest module made it.
    with contextlib.suppress(AttributeError):
      ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def tfds_dir() -> pathlib.Path:
  """The folder of prepared TFDS sets, or a skip."""
  folder = os.environ.get("TFDS_DATA_DIR")
  if not folder or not pathlib.Path(folder).is_dir():
    pytest.skip("needs prepared data sets: set TFDS_DATA_DIR to their folder")
  return pathlib.Path(folder)
