"""What the comparison shows of each scheme: its row of the table, the cost of encoding, attacks on its model."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax import keys, schemes, sources
from djax.bench import clock, disguises
from djax.bench.machine import machine
from djax.io import pages
from train import config as config_lib
from train import run_dir
from train.examine import examine
from train.table import collect as table_collect
from train.table import rows, runner
from train.table.rows import Row

__all__ = ["COST", "EXAMINATION", "FORMAT", "collect", "cost", "short"]

FORMAT = "djax-comparison"
EXAMINATION = "examination.json"
COST = "cost.json"

_BATCH = 500
_ROUNDS = 15
_ATTACKS = ("lira", "loss")
_OBSERVERS = ("raw", "undone", "key_holder")

Say = Callable[[str], None]


def cost(table: tuple[Row, ...]) -> dict[str, Any]:
  """Times the disguise of one batch under every row's scheme, side by side with a copy of the same images.

  Args:
    table: the rows; they have one source.

  Returns:
    ``machine``, ``batch``, and under ``rows`` by name: ``microseconds`` an image, ``copies``, how many times as long as
    copying the images to float32 takes, each ``clock.spread``; ``growth``, bytes of one encoding over those of its
    original, and ``encodings``, how many of each training image the run uses.
  """
  configs = {row.name: rows.config_of(row, 0) for row in table}
  data = next(iter(configs.values())).data
  images = sources.load(data.source, f"train[:{_BATCH}]", data_dir=data.data_dir)
  on_device = jnp.asarray(images.images)
  labels = jnp.asarray(images.labels, jnp.int32)
  works = {"copy": clock.repeated(jax.jit(lambda x: x.astype(jnp.float32)), on_device)}
  growth = {}
  for name, config in configs.items():
    options = {**rows.audited(config)["disguise"], "image_shape": images.images.shape[1:]}
    if schemes.kind_of(options).takes_classes:
      options["classes"] = len(images.class_names)
    scheme = schemes.from_spec(options)
    key = scheme.make_key(keys.experiment(0).read)
    if scheme.on_device:
      run = jax.jit(lambda key, x, y, rng, scheme=scheme: scheme.disguise(key, x, y, rng=rng)[0])
      arguments = jax.device_put((key, on_device, labels, jax.random.key(0)))
      works[name] = clock.repeated(run, *arguments)
      encoded = jax.eval_shape(run, *arguments)
    else:
      arguments = (key, images.images, disguises.no_noise)
      works[name] = clock.repeated(scheme.export, *arguments)
      encoded = scheme.export(*arguments)
    growth[name] = encoded.size * encoded.dtype.itemsize / images.images.nbytes
  seconds = clock.side_by_side(works, rounds=_ROUNDS)
  costs = {
    name: {
      "microseconds": clock.spread(seconds[name] / len(on_device) * 1e6),
      "copies": clock.ratio(seconds[name], seconds["copy"]),
      "growth": round(growth[name], 3),
      "encodings": configs[name].augment.views,
    }
    for name in configs
  }
  return {"machine": machine(), "batch": _BATCH, "rows": costs}


def collect(
  table: tuple[Row, ...], runs: Path, previous: Mapping[str, Any] | None, *, say: Say
) -> dict[str, Any]:
  """Reads runs and audits, examines the models that are there, and times the schemes once.

  Args:
    table: the rows, each with one seed.
    runs: the folder of all runs; examinations and times are stored in it.
    previous: an earlier result of this function, for what is not in ``runs``.
    say: takes a line.

  Returns:
    The content of ``comparison.json``: ``rows`` as ``train.table.collect`` gives them, each with ``model``, as
    ``short`` gives it; ``model``, that of the first row's plain twin; ``cost``.
  """
  previous = previous or {"rows": [], "cost": None}
  models = [row.get("model") for row in (*previous["rows"], previous)]
  known = {model["of"]: model for model in models if model}
  results = table_collect.collect(table, runs, previous)
  for row, result in zip(table, results["rows"], strict=True):
    config = rows.config_of(row, row.seeds[0])
    result["model"] = _model(runs / row.name / f"seed{row.seeds[0]}", config, known, say)
  twin = config_lib.twin(rows.config_of(table[0], table[0].seeds[0]))
  plain = _model(runs / "plain" / rows.fingerprint(twin), twin, known, say)
  times = pages.read_json(runs / COST) or previous["cost"]
  if times is None or set(times["rows"]) != {row.name for row in table}:
    say("timing the schemes")
    times = cost(table)
    runs.mkdir(parents=True, exist_ok=True)
    run_dir.write_json(runs / COST, times)
  return {**results, "format": FORMAT, "model": plain, "cost": times}


def short(examination: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the numbers of an examination without its curves.

  Args:
    examination: from ``examine``.

  Returns:
    ``records``, ``shadows``; ``membership``: by query and attack ``auc`` and ``tpr`` by false positive rate;
    ``class_membership``: by query ``auc`` and mean Fano factors ``with`` and ``without`` the class; ``inversion``: by
    network the share of images in which the examiner sees the class, by observer.
  """
  setting = examination["setting"]
  return {
    "records": setting["records"],
    "shadows": setting["shadows"],
    "membership": {
      query: {name: {part: row[name][part] for part in ("auc", "tpr")} for name in _ATTACKS}
      for query, row in examination["membership"].items()
    },
    "class_membership": {
      query: {
        "auc": row["auc"],
        **{side: round(float(np.mean(row[side])), 2) for side in ("with", "without")},
      }
      for query, row in examination["class_membership"].items()
    },
    "inversion": {
      name: {who: row[who]["accuracy"] if row.get(who) else None for who in _OBSERVERS}
      for name, row in examination["model_inversion"].items()
      if isinstance(row, Mapping) and name != "baseline"
    },
  }


def _model(folder: Path, config: Any, known: Mapping[str, Any], say: Say) -> dict[str, Any] | None:
  """Examines the model of a run, or returns what is known of it; None where the run is not finished."""
  of = rows.fingerprint(config)
  if runner.run_of(folder, config) is None:
    return known.get(of)
  examination = pages.read_json(folder / EXAMINATION)
  if examination is None:
    say(f"{folder}: attacking the model")
    examination = json.loads(json.dumps(examine(folder)))  # keys as they are read back
    run_dir.write_json(folder / EXAMINATION, examination)
  return {"of": of, **short(examination)}
