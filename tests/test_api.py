import doctest
import importlib
import inspect
import re
import subprocess
import sys

import pytest
from helpers.fresh import loaded_by

import djax

CORE = (
  "errors",
  "host.aes",
  "host.augment",
  "host.blockwise",
  "host.samplers",
  "keys.master",
  "ops.augment",
  "ops.blocks",
  "ops.metrics",
  "ops.noise",
  "ops.permutation",
  "ops.rmt",
  "schemes",
)


def module(name):
  return importlib.import_module(f"djax.{name}")


def defined_in(of):
  """Public functions and classes that a module defines itself."""
  return {
    name
    for name, value in vars(of).items()
    if (inspect.isfunction(value) or inspect.isclass(value))
    and value.__module__ == of.__name__
    and not name.startswith("_")
  }


def undocumented(function):
  """What a docstring lacks: itself, a summary in one line, or a parameter under Args."""
  text = inspect.getdoc(function) or ""
  summary, _, rest = text.partition("\n\n")
  missing = [] if summary and "\n" not in summary and summary.endswith((".", ":")) else ["summary"]
  section = re.search(r"^Args:\n((?:  .*\n?|\n)*)", rest, re.MULTILINE)
  described = re.findall(r"^  \**(\w+):", section.group(1), re.MULTILINE) if section else []
  parameters = [p for p in inspect.signature(function).parameters if p != "self"]
  return (
    missing
    + [p for p in parameters if p not in described]
    + [f"no such parameter: {p}" for p in described if p not in parameters]
  )


@pytest.mark.parametrize("name", CORE)
def test_all_is_complete_and_true(name):
  of = module(name)
  assert len(set(of.__all__)) == len(of.__all__)
  assert all(hasattr(of, exported) for exported in of.__all__)
  assert defined_in(of) <= set(of.__all__)
  assert not [exported for exported in of.__all__ if exported.startswith("_")]


def public_functions():
  for name in CORE:
    for exported in sorted(defined_in(module(name))):
      value = getattr(module(name), exported)
      if inspect.isfunction(value):
        yield pytest.param(value, id=f"{name}.{exported}")


@pytest.mark.parametrize("function", list(public_functions()))
def test_public_functions_are_documented(function):
  assert undocumented(function) == []
  signature = inspect.signature(function)
  assert signature.return_annotation is not inspect.Signature.empty
  assert all(p.annotation is not p.empty for p in signature.parameters.values())


def test_the_documentation_check_can_fail():
  def bare(images): ...

  def halfway(images, *, block_size):
    """Does a thing.

    Args:
      images: of any shape.
      side: another name.
    """

  assert undocumented(bare) == ["summary", "images"]
  assert undocumented(halfway) == ["block_size", "no such parameter: side"]


@pytest.mark.parametrize("name", CORE)
def test_modules_and_classes_have_docstrings(name):
  assert (module(name).__doc__ or "").strip()
  for exported in defined_in(module(name)):
    value = getattr(module(name), exported)
    assert (inspect.getdoc(value) or "").strip()
    if not inspect.isclass(value):
      continue
    for method, of in vars(value).items():
      if inspect.isfunction(of) and not method.startswith("_"):
        assert (inspect.getdoc(of) or "").strip(), f"{exported}.{method}"


def test_what_follows_data_is_keyword_only():
  """``f(key, images, *, options, rng)``: secret, data, then keywords."""
  for name, function in (
    ("ops.blocks", "blockify"),
    ("ops.blocks", "pad_to_blocks"),
    ("ops.blocks", "unblockify"),
    ("ops.rmt", "project"),
    ("ops.rmt", "unproject"),
    ("ops.noise", "uniform"),
    ("ops.metrics", "ssim"),
    ("ops.metrics", "block_mse"),
  ):
    parameters = inspect.signature(getattr(module(name), function)).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert set(positional) <= {"images", "blocks", "matrices", "originals", "estimates"} | (
      {"rng", "shape"} if name == "ops.noise" else set()
    )


def test_package_names_are_true_and_listed():
  packages = set(dir(djax)) - set(djax.__all__)
  assert set(djax.__all__) <= set(dir(djax)) and {"keys", "sources", "attacks"} <= packages
  for name in packages:
    assert getattr(djax, name) is module(name)
  assert {"blockify", "from_spec", "ssim", "schemes", "__version__"} <= set(djax.__all__)
  for name in djax.__all__:
    assert getattr(djax, name) is not None
  assert djax.blockify is module("ops.blocks").blockify
  assert djax.from_spec is module("schemes").from_spec
  assert djax.ops.rmt is module("ops.rmt")
  with pytest.raises(AttributeError, match="no attribute 'blockfy'"):
    djax.blockfy  # noqa: B018


def test_doctests_pass():
  results = {name: doctest.testmod(module(name)) for name in CORE}
  ops = {name: results[name].attempted for name in CORE if name.startswith("ops.")}
  assert len(ops) == 6 and all(ops.values()), ops
  assert {name: r.failed for name, r in results.items() if r.failed} == {}


def test_importing_djax_loads_next_to_nothing():
  assert loaded_by("import djax") == set()


def test_importing_the_schemes_loads_neither_key_material_nor_training_libraries():
  assert loaded_by("import djax; djax.from_spec; djax.blockify; djax.ssim") == {"jax"}


def test_the_import_check_can_fail():
  assert loaded_by("import djax.keys") == {"djax.keys", "cryptography"}


BARE = """
import sys
class Missing:
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in {missing!r}:
      raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)
sys.meta_path.insert(0, Missing())
{code}
"""
MISSING = {
  *("tensorflow_datasets", "flax", "orbax", "optax", "sklearn", "scipy", "matplotlib", "grain"),
  *("array_record", "rich", "PIL", "ml_collections", "tensorboardX", "cryptography"),
}


def bare(code):
  """Runs code where nothing but JAX and NumPy can be imported of what djax depends on."""
  return subprocess.run(
    [sys.executable, "-c", BARE.format(missing=MISSING, code=code)],
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_the_operations_and_schemes_need_jax_and_numpy_alone():
  code = """
import djax, jax, numpy as np
from djax.ops import augment, blocks, metrics, noise, permutation, rmt
from djax.host import blockwise, samplers
scheme = djax.from_spec({"scheme": "rmt", "image_shape": (8, 8, 3), "block_size": 4})
key = scheme.make_key(lambda label, count: np.random.default_rng(len(label)).bytes(count))
images = np.zeros((2, 8, 8, 3), np.uint8)
print(jax.jit(scheme.disguise)(key, images, None, rng=jax.random.key(0))[0].shape)
"""
  done = bare(code)
  assert done.stdout == "(2, 8, 8, 3)\n", done.stderr


def test_the_check_of_what_is_missing_can_fail():
  done = bare("import djax.models")
  assert done.returncode == 1 and "is not installed here" in done.stderr
