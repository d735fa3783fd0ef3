"""What ``train.run`` does; its docstring is there."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from djax.errors import ConfigError
from djax.io import foreign
from djax.models import checksums
from train import config as config_lib
from train import loop
from train.data import outsourced, owned

if TYPE_CHECKING:
  from djax.keys import Master

__all__ = ["run"]


def run(config: ConfigDict, workdir: str | Path, master: "Master | None") -> dict[str, Any]:
  """Trains and evaluates as the config says, see ``train.run``."""
  config_lib.check(config)
  if not config.data.disguised_dir:
    given = owned.inputs(config, master, dataset_id=_begun_id(Path(workdir).expanduser()))
  elif master is not None:
    raise ConfigError(
      "run: master must be None with config.data.disguised_dir: what lies there is already disguised. Leave it out."
    )
  else:
    given = outsourced.inputs(config)
  try:
    return loop.fit(config, workdir, given)
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
