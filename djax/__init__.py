"""djax: DisguisedNets in JAX. The core operations, by name; everything else is asked for by module.

Names load on first use, so that ``import djax`` costs next to nothing and the key verbs of ``python -m djax`` never
wait for JAX. docs/architecture.md says what stands where.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

__all__ = [
  "Scheme",
  "SchemeSpec",
  "__version__",
  "blockify",
  "blocks",
  "crop",
  "from_spec",
  "metrics",
  "mse",
  "noise",
  "pad_to_blocks",
  "permutation",
  "psnr",
  "rmt",
  "schemes",
  "ssim",
  "unblockify",
]

# Listed by ``dir``; not in ``__all__``, so that ``from djax import *`` loads no key code.
_PACKAGES = (
  "attacks",
  "audit",
  "disguised",
  "errors",
  "keys",
  "models",
  "ops",
  "owner",
  "schemes",
  "sources",
)
_OPS = ("blocks", "metrics", "noise", "permutation", "rmt")
_HOMES = {
  "ops.blocks": ("blockify", "crop", "pad_to_blocks", "unblockify"),
  "ops.metrics": ("mse", "psnr", "ssim"),
  "schemes": ("Scheme", "SchemeSpec", "from_spec"),
}

if TYPE_CHECKING:
  from djax import schemes
  from djax.ops import blocks, metrics, noise, permutation, rmt
  from djax.ops.blocks import blockify, crop, pad_to_blocks, unblockify
  from djax.ops.metrics import mse, psnr, ssim
  from djax.schemes import Scheme, SchemeSpec, from_spec


def __getattr__(name: str) -> Any:
  if name in _OPS:
    return importlib.import_module(f"djax.ops.{name}")
  if name in _PACKAGES:
    return importlib.import_module(f"djax.{name}")
  for module, names in _HOMES.items():
    if name in names:
      return getattr(importlib.import_module(f"djax.{module}"), name)
  raise AttributeError(f"module 'djax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*__all__, *_PACKAGES})
