"""What measured speeds depend on: processor, devices and versions; no name of a host or person."""

import os
import platform
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

import djax

__all__ = ["machine", "processor"]


def machine() -> dict[str, Any]:
  """Returns platform, device, numbers of devices and cores, and versions."""
  device = jax.devices()[0]
  return {
    "platform": device.platform,
    "device": processor() if device.platform == "cpu" else device.device_kind,
    "devices": jax.device_count(),
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "flax": flax.__version__,
    "numpy": np.__version__,
    "djax": djax.__version__,
  }


def processor() -> str:
  """Returns the model of the processor, or at least its kind."""
  info = Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return models[0] if models else platform.processor() or platform.machine()
