"""Questions to a network that was trained on disguised images: the owner's side, images in, class names out.

Either all at once, with the network at hand, or in two steps: a request for the rented machine, then its answer.
"""

import dataclasses
import hashlib
import hmac
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import djax
from djax import keys
from djax.disguised import containers, directory, quantise
from djax.disguised import manifest as manifest_lib
from djax.disguised.manifest import UNFINISHED, Manifest, Shard, SplitFacts
from djax.errors import ConfigError, DataError, ManifestError
from djax.io import files, foreign
from djax.keys import Master
from djax.owner import canaries as canaries_lib
from djax.owner import disguiser, export, record_noise, restore, sealed_metadata
from djax.owner.disguiser import Disguiser
from djax.owner.pictures import Query, read

__all__ = [
  "Answer",
  "Answers",
  "Query",
  "answered",
  "answers",
  "ask",
  "disguised",
  "named",
  "read",
  "request",
]

SPLIT = manifest_lib.REQUEST_SPLIT
_CHUNK = 256
_SUM_TOLERANCE = 1e-3  # of probabilities, rounded on their way
_MOST_NUMBER = 40  # bytes that a probability takes in an answer
_MOST_REST = 1 << 20  # bytes of all else in it
_ALONE = {"count": 1, "crop": 0, "flip": False, "together": True}


class Answer(NamedTuple):
  """What a network says of one image.

  Attributes:
    file: name of the image.
    name: of the class it finds most likely.
    probability: that it gives this class.
    probabilities: that it gives each class, in the order of the source.
  """

  file: str
  name: str
  probability: float
  probabilities: tuple[float, ...]


class Answers(NamedTuple):
  """What a network says of some images.

  Attributes:
    classes: names of the classes, in the order of the source.
    rows: one an image.
    cut: number of disguised values that the range of the data set's quantiser cut, as far as known here.
    canaries: what became of the planted images, or None.
  """

  classes: tuple[str, ...]
  rows: tuple[Answer, ...]
  cut: int = 0
  canaries: canaries_lib.Outcome | None = None


def disguised(query: Query, manifest: Manifest, master: Master) -> tuple[np.ndarray, int]:
  """Disguises images as those of a data set were, under the noise of the split ``query``, each with index 0.

  So an image always has the same noise, wherever it stands in a question.

  Args:
    query: the images.
    manifest: of the data set.
    master: its key.

  Returns:
    Images as stored, ``[N, H', W', C]``, and the number of values that the range of its quantiser cut.
  """
  tool = Disguiser(manifest.spec, _streams(manifest, master))
  parts, cut = [], 0
  for start in range(0, len(query.images), _CHUNK):
    part = query.images[start : start + _CHUNK]
    exact = tool.images(part, SPLIT, [0] * len(part))
    parts.append(
      disguiser.stored(exact, manifest.dtype, manifest.quantiser, block_size=manifest.block_size)
    )
    if manifest.quantiser is not None:
      cut += _outside(exact, manifest.quantiser, manifest.block_size)
  return np.concatenate(parts), cut


def _streams(manifest: Manifest, master: Master) -> record_noise.RecordStreams:
  """Returns the streams of images that are asked about: the matrices of the data set, noise of their own."""
  if manifest.version == 1:
    return record_noise.of(manifest, master)
  secret = master.data_set(manifest.id, manifest.spec)
  return record_noise.Current(secret, role=manifest_lib.REQUEST, views=_ALONE)


def _outside(exact: np.ndarray, quantiser: quantise.Quantiser, block_size: int) -> int:
  """Counts values that lie more than half a step outside a quantiser's range."""
  ends = np.array([0, 255], np.uint8)[:, None, None, None] * np.ones(exact.shape[1:], np.uint8)
  low, high = quantise.dequantise(ends, quantiser, block_size=block_size)
  half = (high - low) / 510
  return int(((exact < low - half) | (exact > high + half)).sum())


def ask(query: Query, run: str | os.PathLike, manifest: Manifest, master: Master) -> Answers:
  """Has the network of a run directory on this machine classify images.

  Args:
    query: the images.
    run: the run directory.
    manifest: of the run, as ``restore.authenticated`` returns it.
    master: the key of its images.

  Raises:
    ConfigError: if the run holds no network.
    ManifestError: if its network was trained on other images than its manifest says.
  """
  from djax.models import predict  # loads Flax, to answer on this machine alone

  predictor = predict.load(Path(run))
  if predictor.summary["source_sha256"] != manifest.sha256:
    raise ManifestError(
      f"{run} must be trained on the images of its {manifest_lib.FILE}, but its disguise.json names others. "
      "Take the run directory from a good copy."
    )
  stored, cut = disguised(query, manifest, master)
  images = restore.values(stored, manifest).astype(np.float32)
  probabilities = predictor.probabilities(images, _CHUNK)
  return named(probabilities, query.names, manifest, master)._replace(cut=cut)


def request(
  query: Query,
  manifest: Manifest,
  master: Master,
  out: str | os.PathLike,
  *,
  canaries: canaries_lib.Canaries | None = None,
) -> tuple[Manifest, int]:
  """Writes a request for the rented machine: a disguised data set with the single split ``query``, every label 0.

  Its records stand in an order drawn from the key and the request's own id, so no place tells planted images from the
  others; but images that the cloud holds already, disguised, are recognised, see ``owner.canaries``.

  Args:
    query: the images; names of files are sealed.
    manifest: of the data set that the network was trained on.
    master: its key.
    out: the directory; must not exist.
    canaries: images of known classes to be planted among the others.

  Returns:
    The manifest of the request, and the number of values that were cut, see ``disguised``.

  Raises:
    ConfigError: for canaries with a data set of version 1, whose requests keep the order of their images.
    UnsafeError: if ``out`` exists.
    DjaxError: if the disk has too little room.
  """
  target = restore.check_new(out)
  classes: list[int] = []
  if canaries is not None and manifest.version == 1:
    raise ConfigError(
      "canaries need a data set of format version 2: a request to one of version 1 keeps the order of its images, so "
      "the planted ones would be the last. Leave them out."
    )
  if canaries is not None:
    classes = canaries.labels.tolist()
    query = Query(np.concatenate([query.images, canaries.images]), query.names)
  count = len(query.images)
  asked = dataclasses.replace(
    manifest,
    djax=djax.__version__,
    role=manifest_lib.REQUEST,
    request=None if manifest.version == 1 else keys.new_id(),
    views=_ALONE,
    splits={SPLIT: SplitFacts(count, 1, ())},
    files={},
  )
  order = record_noise.of(asked, master).order(SPLIT, count, 1)
  stored, cut = disguised(query, manifest, master)
  with files.new_folder(target) as temporary:
    (temporary / UNFINISHED).mkdir(parents=True)
    container = containers.of(asked, temporary)
    name = container.file(SPLIT, 0, 1)
    container.write(
      temporary / UNFINISHED / name, SPLIT, 0, stored[order], np.zeros(count, np.int32)
    )
    os.rename(temporary / UNFINISHED / name, temporary / name)
    size, digest = (temporary / name).stat().st_size, directory.file_sha256(temporary / name)
    content = {
      "class_names": _opened(manifest, master)["class_names"],
      "names": list(query.names),
      **({"canaries": classes} if classes else {}),
    }
    source = {"name": SPLIT, "dtype": manifest.source["dtype"], "hmac": _hmac(query, asked, master)}
    written = export.finish(
      temporary,
      dataclasses.replace(
        asked,
        source=source,
        splits={SPLIT: SplitFacts(count, 1, (Shard(name, count, size, digest),))},
        sealed=sealed_metadata.box_of(asked, master).seal(content),
      ),
      master,
    )
    shutil.rmtree(temporary / UNFINISHED)
  return written, cut


def _opened(manifest: Manifest, master: Master) -> dict[str, Any]:
  """Returns the sealed part of a manifest."""
  return sealed_metadata.box_of(manifest, master).unseal(manifest.sealed)


def _hmac(query: Query, manifest: Manifest, master: Master) -> str:
  """Returns the keyed hash of a request's images, as docs/format.md has it of a source's files."""
  own = master if manifest.version == 1 else master.data_set(manifest.id, manifest.spec)
  names = [name.encode("utf-8", "surrogateescape") for name in query.names]
  images = [np.ascontiguousarray(image) for image in query.images]
  parts: list[Any] = [*names, *images]
  if manifest.version == 1:
    parts = [part for pair in zip(names, images, strict=True) for part in pair]
  digest = hmac.new(own.subkey("source"), digestmod=hashlib.sha256)
  for part in parts:
    digest.update(hashlib.sha256(part).digest())
  return digest.hexdigest()


def answers(
  folder: str | os.PathLike, file: str | os.PathLike, master: Master, *, expect: str = ""
) -> Answers:
  """Reads the answer of the rented machine to a request.

  Its numbers are not authenticated; planted images show whether they were invented, where the request has them.

  Args:
    folder: the request's directory.
    file: the answer, docs/format.md section 6.
    master: the key of the request.
    expect: SHA-256 of the request's manifest, in hex; empty: any.

  Raises:
    KeyMismatchError: if the request was made with another key.
    ManifestError: if the request is damaged or tampered with.
    DataError: if the answer is damaged, belongs to another request, or holds anything but probabilities.
  """
  place = Path(folder).expanduser()
  manifest = restore.authenticated(place, master, role=manifest_lib.REQUEST, expect=expect)
  count, path = manifest.splits[SPLIT].records, Path(file).expanduser()
  limit = count * manifest.classes * _MOST_NUMBER + _MOST_REST
  data = foreign.read(path.parent, path.name, limit=limit)
  stored = _probabilities(data, path, folder, manifest)
  opened = _opened(manifest, master)
  order = record_noise.of(manifest, master).order(SPLIT, count, 1)
  probabilities = np.empty_like(stored)
  probabilities[order] = stored
  planted = opened.get("canaries", [])
  asked = count - len(planted)
  named_answers = named(probabilities, [*opened["names"], *([""] * len(planted))], manifest, master)
  outcome = None
  if planted:
    given = [int(np.argmax(row.probabilities)) for row in named_answers.rows[asked:]]
    outcome = canaries_lib.judge(planted, given)
  return named_answers._replace(rows=named_answers.rows[:asked], canaries=outcome)


def _probabilities(
  data: bytes, path: Path, folder: str | os.PathLike, manifest: Manifest
) -> np.ndarray:
  """Parses an answer: float64 ``[N, K]``, in the order of the request's records."""
  try:
    content = foreign.parse_json(data)
    form, version = content["format"], content["version"]
    of, rows = content["request"], content["probabilities"]
  except (ValueError, TypeError, KeyError):
    raise DataError(f"{path}: is no answer of python -m train.answer.") from None
  if (form, version) != ("djax-answers", 1):
    raise DataError(f"{path}: must be djax-answers of version 1, got another format.")
  if of != manifest.sha256:
    raise DataError(f"{path}: answers another request than {folder}. Give the one it was made for.")
  shape = (manifest.splits[SPLIT].records, manifest.classes)
  fits = isinstance(rows, list) and len(rows) == shape[0]
  fits = fits and all(isinstance(row, list) and len(row) == shape[1] for row in rows)
  if not fits:
    raise DataError(f"{path}: probabilities must be {shape[0]} lists of {shape[1]} numbers.")
  # Compared as they are: a number of 400 digits is an int that no float holds, and True is 1 to NumPy.
  lies = all(type(x) in (int, float) and 0 <= x <= 1 for row in rows for x in row)
  if not lies or any(abs(math.fsum(row) - 1) > _SUM_TOLERANCE for row in rows):
    raise DataError(f"{path}: probabilities must lie in 0..1 and sum to 1 for each image.")
  return np.asarray(rows, np.float64)


def named(
  probabilities: np.ndarray, names: Sequence[str], manifest: Manifest, master: Master
) -> Answers:
  """Turns probabilities by label id into answers by class name.

  Args:
    probabilities: ``[N, K]``.
    names: of the images.
    manifest: of the data set or the request.
    master: its key.
  """
  classes = tuple(_opened(manifest, master)["class_names"])
  by_class = np.asarray(probabilities)
  if manifest.labels == "permuted":
    by_class = by_class[:, record_noise.of(manifest, master).labels(manifest.classes)]
  return answered(by_class, names, classes)


def answered(probabilities: np.ndarray, names: Sequence[str], classes: tuple[str, ...]) -> Answers:
  """Turns probabilities by class into answers.

  Args:
    probabilities: ``[N, K]``.
    names: of the images.
    classes: names of the ``K`` classes.
  """
  rows = tuple(
    Answer(name, classes[row.argmax()], float(row.max()), tuple(map(float, row)))
    for name, row in zip(names, probabilities, strict=True)
  )
  return Answers(classes, rows)
