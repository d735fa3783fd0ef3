"""``python -m djax doctor``: whether djax can work on this machine, one line a finding, with what to do.

Each finding is looked for in a thread that is given up after some time, and JAX in a process of its own: a device or a
disk that does not answer holds nobody up.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import djax
from djax.cli.common import say
from djax.errors import DjaxError
from djax.io import escape, talk
from djax.keys import keyfile

__all__ = ["Finding", "findings", "run"]

OK, WARNING, PROBLEM = "ok", "warning", "problem"

_SECONDS = 10
_JAX_SECONDS = 90
_LEAST_ROOM = 1e9
_SHOWN = 8
_NAMED = ("djax", "jax", "jaxlib", "flax", "numpy")
_LOADED = ("jax", "jaxlib", "flax", "numpy", "optax", "scipy", "djax")
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_INSTALL = "Install djax and what it needs: pip install -e ."
_PROBE = """
import json, jax
kinds = [f"{one.platform} ({one.device_kind})" for one in jax.devices()]
print("\\n" + json.dumps({kind: kinds.count(kind) for kind in kinds}))
"""


class Finding(NamedTuple):
  """What was found.

  Attributes:
    name: of what was looked at.
    status: ``ok``, ``warning`` or ``problem``, with which djax cannot work.
    words: what it is.
    advice: what to do, or empty.
  """

  name: str
  status: str
  words: str
  advice: str = ""


def run(args: argparse.Namespace) -> int:
  """Prints what is found.

  Args:
    args: of the verb.

  Returns:
    0 if djax can work here, else 1.
  """
  found = findings(data_dir=args.data_dir, key=args.key or "")
  wrong = sum(one.status == PROBLEM for one in found)
  if args.json:
    print(json.dumps({"ok": not wrong, "findings": [one._asdict() for one in found]}))
  else:
    for one in found:
      line = f"{one.status:8} {one.name:9} {one.words}" + (f". {one.advice}" if one.advice else "")
      print(talk.painted(escape.for_terminal(line), sys.stdout))
  say(f"problems: {wrong}" if wrong else "djax can work here")
  return 1 if wrong else 0


def findings(*, data_dir: str = "", key: str = "") -> list[Finding]:
  """Looks at this machine; in a notebook also at what its kernel has loaded.

  Args:
    data_dir: of prepared data sets; else ``TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
    key: the path of a key file to look at, or empty. It is not opened.
  """
  looks: list[tuple[str, Callable[[], Iterator[Finding]], float]] = [
    ("versions", _versions, _SECONDS),
    ("loaded", _loaded, _SECONDS),
    ("devices", _devices, 2 * _JAX_SECONDS + _SECONDS),
    ("data", lambda: _data(_root(data_dir)), _SECONDS),
    ("space", lambda: _space(_root(data_dir)), _SECONDS),
    ("threads", _threads, _SECONDS),
  ]
  if key:
    looks.append(("key", lambda: _key(key), _SECONDS))
  return [one for look in looks for one in _within(*look)]


def _within(name: str, look: Callable[[], Iterator[Finding]], seconds: float) -> list[Finding]:
  """Returns what a look finds, or that it did not end."""
  found: list[Finding] = []

  def work() -> None:
    try:
      found.extend(look())
    except Exception as error:  # whatever a strange machine raises is a finding
      found.append(Finding(name, PROBLEM, f"{type(error).__name__}: {_first(str(error))}"))

  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  thread.join(seconds)
  if thread.is_alive():
    return [*found, Finding(name, PROBLEM, f"no answer within {seconds:.0f} s")]
  return found


def _versions() -> Iterator[Finding]:
  there = {name: _installed(name) for name in _NAMED}
  listed = ", ".join(f"{name} {version or 'missing'}" for name, version in there.items())
  lacking = [*_lacking()]
  status = PROBLEM if lacking or None in (there["jax"], there["jaxlib"]) else OK
  words = f"Python {platform.python_version()}, {listed}"
  if lacking:
    yield Finding("versions", status, f"{words}; {', '.join(lacking)}", _INSTALL)
  else:
    yield Finding("versions", status, words)
  if there["djax"] is None:
    yield Finding(
      "versions",
      WARNING,
      f"djax {djax.__version__} runs from {Path(djax.__file__).parents[1]} and is not installed: "
      "audit --config, audit --run and bench do not work",
      "Run there: pip install -e .",
    )
  if there["jax"] != there["jaxlib"]:
    yield Finding(
      "versions",
      WARNING,
      f"jax {there['jax']} and jaxlib {there['jaxlib']} differ",
      "Install them together: pip install --upgrade jax jaxlib",
    )


def _lacking() -> Iterator[str]:
  """Yields what djax needs and does not find, or finds too old."""
  try:
    needs = metadata.requires("djax") or []
  except metadata.PackageNotFoundError:
    return
  for need in needs:
    match = re.match(r"([\w.-]+)(?:>=([\d.]+))?\s*(?:;(.*))?$", need)
    if match is None or match[3]:  # of an extra, or of another system
      continue
    version = _installed(match[1])
    if version is None:
      yield f"{match[1]} is missing"
    elif match[2] and _numbers(version) < _numbers(match[2]):
      yield f"{match[1]} {version} must be at least {match[2]}"


def _loaded() -> Iterator[Finding]:
  """Compares what this Python has loaded with what is installed now."""
  for name in _LOADED:
    loaded = getattr(sys.modules.get(name), "__version__", None)
    installed = _installed(name)
    if loaded and installed and loaded != installed:
      yield Finding(
        "loaded",
        WARNING,
        f"{name} {loaded} is loaded in this Python, {installed} is installed",
        "Restart it (Colab: Runtime, Restart session); if they differ still, install it again",
      )


def _devices() -> Iterator[Finding]:
  asked = os.environ.get("JAX_PLATFORMS", "")
  kinds, error = _probe(dict(os.environ))
  if kinds:
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    yield Finding("devices", OK, listed + (f"; JAX_PLATFORMS={asked}" if asked else ""))
    driver = Path("/proc/driver/nvidia/version").exists()
    if driver and not asked and all(kind.startswith("cpu") for kind in kinds):
      yield Finding(
        "devices",
        WARNING,
        "an NVIDIA driver is here, and JAX finds the CPU alone",
        "To use a GPU: pip install -U 'jax[cuda12]'",
      )
    return
  if asked:
    others, _ = _probe({k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"})
    if others:
      yield Finding(
        "devices",
        PROBLEM,
        f"JAX cannot use what JAX_PLATFORMS={asked} asks for ({error}); without it, it finds {', '.join(others)}",
        "Unset JAX_PLATFORMS, or install what it asks for",
      )
      return
  yield Finding(
    "devices",
    PROBLEM,
    f"JAX does not start: {error}",
    "See it in full: python -c 'import jax; jax.devices()'",
  )


def _probe(environment: dict[str, str]) -> tuple[dict[str, int], str]:
  """Starts JAX in a process of its own; returns its devices by kind, or why there are none."""
  # It takes no memory of a device from the work that may go on there.
  environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
  try:
    done = subprocess.run(
      [sys.executable, "-P", "-c", _PROBE],
      env=environment,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=_JAX_SECONDS,
      check=False,
    )
  except subprocess.TimeoutExpired:
    return {}, f"no answer within {_JAX_SECONDS} s"
  lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
  if done.returncode == 0 and lines:
    return json.loads(lines[-1]), ""
  return {}, _first(lines[-1] if lines else f"exit code {done.returncode}")


def _root(data_dir: str) -> Path:
  return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _data(root: Path) -> Iterator[Finding]:
  """Lists the prepared data sets, and those that are stored otherwise."""
  usable: list[str] = []
  others: list[str] = []
  for depth in ("*/*", "*/*/*"):
    for file in sorted(root.glob(f"{depth}/dataset_info.json")):
      try:
        stored = json.loads(file.read_text("utf-8")).get("fileFormat") or "tfrecord"
      except (OSError, ValueError, AttributeError):
        stored = "damaged"
      folder = file.parent.relative_to(root)
      name = f"{folder.parent.as_posix()}:{folder.name}"
      if stored == "array_record":
        usable.append(name)
      else:
        others.append(f"{name} ({stored})")
  if usable:
    more = f" and {len(usable) - _SHOWN} more" if len(usable) > _SHOWN else ""
    yield Finding("data", OK, f"digits, and in {root}: {', '.join(usable[:_SHOWN])}{more}")
  else:
    there = "" if root.is_dir() else ", which does not exist"
    yield Finding(
      "data", OK, f"digits; nothing prepared in {root}{there}", "More: python -m djax prepare mnist"
    )
  if others:
    yield Finding(
      "data",
      WARNING,
      f"not stored as array_record, so not read: {', '.join(others[:_SHOWN])}",
      "Move them away and prepare them: python -m djax prepare NAME",
    )


def _space(root: Path) -> Iterator[Finding]:
  disks: dict[int, tuple[Path, int]] = {}
  for place in (Path.cwd(), root, Path(tempfile.gettempdir())):
    there = next(
      folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists()
    )
    disks.setdefault(there.stat().st_dev, (there, shutil.disk_usage(there).free))
  listed = ", ".join(f"{free / 1e9:.1f} GB in {folder}" for folder, free in disks.values())
  if min(free for _, free in disks.values()) < _LEAST_ROOM:
    yield Finding("space", WARNING, f"free: {listed}", "Make room: less than 1 GB is little")
  else:
    yield Finding("space", OK, f"free: {listed}")


def _threads() -> Iterator[Finding]:
  affinity = getattr(os, "sched_getaffinity", None)
  processors = len(affinity(0)) if affinity else os.cpu_count() or 1
  values = {name: os.environ.get(name) for name in (*_THREADS, "XLA_FLAGS")}
  listed = ", ".join(f"{name}={value}" for name, value in values.items() if value is not None)
  unset = ", ".join(name for name, value in values.items() if value is None)
  words = [f"{processors} processors", listed, f"not set: {unset}" if unset else ""]
  yield Finding("threads", OK, "; ".join(filter(None, words)))
  for name in _THREADS:
    value = values[name]
    if value and not (value.isascii() and value.isdigit() and 1 <= int(value) <= processors):
      yield Finding(
        "threads", WARNING, f"{name} must lie between 1 and {processors}, is {value}", "Unset it"
      )


def _key(path: str) -> Iterator[Finding]:
  try:
    info = keyfile.inspect(path)
    mode = os.stat(path).st_mode & 0o777
  except DjaxError as error:
    yield Finding("key", PROBLEM, str(error).rstrip("."))
    return
  lock = (
    "needs its passphrase" if info.protected else "has no passphrase: the secret is in the clear"
  )
  yield Finding("key", OK, f"{path}: mode {mode:04o}, {info.fingerprint}, {lock}")


def _installed(name: str) -> str | None:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return None


def _numbers(version: str) -> tuple[int, ...]:
  """Returns the numbers that a version begins with."""
  match = re.match(r"\d+(?:\.\d+)*", version)
  return tuple(map(int, match[0].split("."))) if match else ()


def _first(text: str) -> str:
  return " ".join(text.split())[:200]
