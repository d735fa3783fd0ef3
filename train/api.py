"""What ``train.run`` does; its docstring is there."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax import experimental
from ml_collections import ConfigDict

from djax.errors import ConfigError
from djax.io import foreign
from djax.models import checksums
from train import config as config_lib
from train import loop, processes
from train.data import outsourced, owned

if TYPE_CHECKING:
  from djax.keys import Master

__all__ = ["run"]

_PATH = "data.disguised_dir"  # each host may have it elsewhere

# JAX before 0.8 has it there.
enable_x64: Any = jax.enable_x64 if hasattr(jax, "enable_x64") else vars(experimental)["enable_x64"]


def run(config: ConfigDict, workdir: str | Path | None, master: "Master | None") -> dict[str, Any]:
  """Trains and evaluates as the config says, see ``train.run``."""
  config_lib.check(config)
  if config.data.disguised_dir and master is not None:
    raise ConfigError(
      "run: master must be None with config.data.disguised_dir: what lies there is already disguised. Leave it out."
    )
  if processes.several() and not workdir:
    raise ConfigError("several processes must share a run directory, got none. Give --workdir.")
  workdir = Path(workdir or tempfile.mkdtemp(prefix="djax-run-")).expanduser()
  # In float32 whatever JAX_ENABLE_X64 says: a run gives the same numbers wherever it is resumed.
  with enable_x64(False), processes.watched("Re-run the command in all of them."):
    processes.agree(
      {
        "config": {name: value for name, value in config_lib.leaves(config) if name != _PATH},
        "versions": processes.versions(),
        "key": master and master.fingerprint,
      }
    )
    dataset_id = _begun_id(workdir)
    if master and processes.several():
      dataset_id = processes.broadcast(dataset_id or owned.new_id())
    with processes.together("read the images"):
      if config.data.disguised_dir:
        given = outsourced.inputs(config)
      else:
        given = owned.inputs(config, master, dataset_id=dataset_id)
    try:
      return {**loop.fit(config, workdir, given), "workdir": str(workdir)}
    finally:
      given.close()


def _begun_id(workdir: Path) -> str | None:
  """Returns the data-set id of the run that a directory holds, if it holds one that has an id."""
  try:
    public = foreign.parse_json(checksums.unchecked(workdir, checksums.DISGUISE))
    dataset_id = public.get("dataset_id")
  except (foreign.ForeignFileError, ValueError, AttributeError):
    return None  # a new run, or a damaged one, which is refused where it is opened
  return dataset_id if isinstance(dataset_id, str) and len(dataset_id) == 32 else None
