"""What the comparison knows of each scheme: its row of the table, what encoding costs, what its model gives away."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax import keys, schemes, sources
from djax.bench import clock, disguises
from djax.cli.bench import machine
from train import config as config_lib
from train import run_dir
from train.examine import examine
from train.table import collect, rows, runner
from train.table.rows import Row

__all__ = ["COST", "EXAMINATION", "FORMAT", "VERSION", "collected", "cost", "earlier", "short"]

FORMAT = "djax-comparison"
VERSION = 1
EXAMINATION = "examination.json"
COST = "cost.json"

_BATCH = 500
_ROUNDS = 15
_ATTACKS = ("lira", "loss")
_SEEN = ("raw", "undone", "key_holder")

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
  held = jnp.asarray(images.images)
  works = {"copy": disguises.on_device(jax.jit(lambda x: x.astype(jnp.float32)), held)}
  growth = {}
  for name, config in configs.items():
    options = {**rows.audited(config)["disguise"], "image_shape": images.images.shape[1:]}
    if schemes.kind_of(options).takes_classes:
      options["classes"] = len(images.class_names)
    scheme = schemes.from_spec(options)
    key = scheme.make_key(keys.experiment(0).read)
    if scheme.on_device:
      labels = jnp.asarray(images.labels, jnp.int32)
      run = jax.jit(lambda key, x, y, rng, scheme=scheme: scheme.disguise(key, x, y, rng=rng)[0])
      arguments = jax.device_put((key, held, labels, jax.random.key(0)))
      works[name] = disguises.on_device(run, *arguments)
      encoded = jax.eval_shape(run, *arguments)
    else:
      export = functools.partial(scheme.export, key, images.images, _undrawn)
      works[name] = disguises.repeated(export)
      encoded = export()
    growth[name] = encoded.size * encoded.dtype.itemsize / images.images.nbytes
  seconds = clock.side_by_side(works, rounds=_ROUNDS)
  found = {
    name: {
      "microseconds": clock.spread(seconds[name] / len(held) * 1e6),
      "copies": clock.ratio(seconds[name], seconds["copy"]),
      "growth": round(growth[name], 3),
      "encodings": configs[name].augment.views,
    }
    for name in configs
  }
  return {"machine": machine(), "batch": _BATCH, "rows": found}


def collected(
  table: tuple[Row, ...], runs: Path, kept: Mapping[str, Any] | None, *, say: Say
) -> dict[str, Any]:
  """Reads runs and audits, examines the models that are there, and times the schemes once.

  Args:
    table: the rows, each with one seed.
    runs: the folder of all runs; examinations and times are kept in it.
    kept: an earlier result of this function, for what is not in ``runs``.
    say: takes a line.

  Returns:
    The content of ``comparison.json``: ``rows`` as ``collect`` gives them, each with ``model``, as ``short``
    gives it; ``model``, that of the first row's plain twin; ``cost``.
  """
  kept = kept or {"rows": [], "cost": None}
  before = {row["model"]["of"]: row["model"] for row in [*kept["rows"], kept] if row.get("model")}
  facts = collect.collect(table, runs, kept)
  for row, found in zip(table, facts["rows"], strict=True):
    config = rows.config_of(row, row.seeds[0])
    found["model"] = _model(runs / row.name / f"seed{row.seeds[0]}", config, before, say)
  twin = config_lib.twin(rows.config_of(table[0], table[0].seeds[0]))
  plain = _model(runs / "plain" / rows.fingerprint(twin), twin, before, say)
  times = runner.read(runs / COST) or kept["cost"]
  if times is None or set(times["rows"]) != {row.name for row in table}:
    say("timing the schemes")
    times = cost(table)
    runs.mkdir(parents=True, exist_ok=True)
    run_dir.write_json(runs / COST, times)
  return {**facts, "format": FORMAT, "version": VERSION, "model": plain, "cost": times}


def short(facts: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the figures of an examination without its curves.

  Args:
    facts: from ``examine``.

  Returns:
    ``records``, ``shadows``; ``membership``: by query and attack ``auc`` and ``tpr`` by false positive rate;
    ``class_membership``: by query ``auc`` and mean Fano factors ``with`` and ``without`` the class; ``inversion``: by
    network the share of images in which the examiner sees the class, by who looks.
  """
  membership = {
    query: {name: {part: found[name][part] for part in ("auc", "tpr")} for name in _ATTACKS}
    for query, found in facts["membership"].items()
  }
  by_class = {
    query: {
      "auc": found["auc"],
      "with": round(float(np.mean(found["with"])), 2),
      "without": round(float(np.mean(found["without"])), 2),
    }
    for query, found in facts["class_membership"].items()
  }
  inversion = {
    name: {way: found[way]["accuracy"] if found.get(way) else None for way in _SEEN}
    for name, found in facts["model_inversion"].items()
    if isinstance(found, Mapping) and name != "baseline"
  }
  setting = facts["setting"]
  return {
    "records": setting["records"],
    "shadows": setting["shadows"],
    "membership": membership,
    "class_membership": by_class,
    "inversion": inversion,
  }


def earlier(path: Path) -> dict[str, Any] | None:
  """Reads an earlier ``comparison.json``; None if there is none.

  Args:
    path: of the file.

  Raises:
    DataError: if the file is anything else: it would be overwritten.
  """
  return collect.earlier(path, form=(FORMAT, VERSION), what="a comparison")


def _model(folder: Path, config: Any, before: Mapping[str, Any], say: Say) -> dict[str, Any] | None:
  """Examines the model of a run, or returns what is known of it; None where the run is not finished."""
  of = rows.fingerprint(config)
  if runner.run_of(folder, config) is None:
    return before.get(of)
  found = runner.read(folder / EXAMINATION)
  if found is None:
    say(f"{folder}: attacking the model")
    found = json.loads(json.dumps(examine(folder)))
    run_dir.write_json(folder / EXAMINATION, found)
  return {"of": of, **short(found)}


def _undrawn() -> np.ndarray:
  raise AssertionError("a disguise without noise draws nothing")
