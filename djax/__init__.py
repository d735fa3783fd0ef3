"""djax: DisguisedNets in JAX. The core operations, by name; everything else is asked for by module.

Names load on first use, so that ``import djax`` costs next to nothing and the key verbs of ``python -m djax`` never
wait for JAX. Key material, key files, sources and attacks are host rooms: ``from djax import keys, keyfile``.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = ("blocks", "metrics", "noise", "permutation", "rmt", "schemes")
_NAMES = {
  "Scheme": "schemes",
  "SchemeSpec": "schemes",
  "blockify": "blocks",
  "crop": "blocks",
  "from_spec": "schemes",
  "mse": "metrics",
  "pad_to_blocks": "blocks",
  "psnr": "metrics",
  "ssim": "metrics",
  "unblockify": "blocks",
}

__all__ = ["__version__", *_MODULES, *_NAMES]  # noqa: PLE0604

if TYPE_CHECKING:
  from djax import blocks, metrics, noise, permutation, rmt, schemes
  from djax.blocks import blockify, crop, pad_to_blocks, unblockify
  from djax.metrics import mse, psnr, ssim
  from djax.schemes import Scheme, SchemeSpec, from_spec


def __getattr__(name: str) -> Any:
  if name in _MODULES:
    return importlib.import_module(f"djax.{name}")
  if name in _NAMES:
    return getattr(importlib.import_module(f"djax.{_NAMES[name]}"), name)
  raise AttributeError(f"module 'djax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted(__all__)
