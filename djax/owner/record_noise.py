"""Record streams: what is drawn for a data set and its records as they leave the owner's machine.

``Current`` is the derivation ``djx2``, ``Old`` is ``djx1``, kept for directories written before: docs/key-format.md.
Either way a record's draws depend on the key, the disguise, the split, the record's index and its pixels alone: not on
shards, workers or the order of work. The same record has one noise however often it is written, so nothing can be
averaged away.
"""

import abc
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from djax import keys
from djax.disguised.manifest import Manifest
from djax.host import samplers
from djax.keys import Master

__all__ = ["Current", "Old", "RecordStreams", "label", "of", "uniforms"]


class RecordStreams(abc.ABC):
  """What a data set draws from the key.

  Args:
    read: ``(label, count) -> bytes`` of a labelled stream, which ``make_key`` gets as well.
  """

  # Whether noise depends on the very pixels it is added to, or on those of the original. Two images that differ, in a
  # shift alone perhaps, would otherwise share noise, and their difference would be that of the images.
  _noise_by_view = True

  def __init__(self, read: samplers.Reader):
    self.read = read

  def views(
    self, originals: np.ndarray, split: str, indices: Sequence[int], view: int
  ) -> np.ndarray:
    """Returns float32 ``[B, 3]`` on ``[0, 1)``, see ``host.augment``."""
    return uniforms(self._subkey("views", split), originals, indices, view=view, count=3)

  def noise(
    self,
    originals: np.ndarray,
    images: np.ndarray,
    split: str,
    indices: Sequence[int],
    view: int,
    count: int,
  ) -> np.ndarray:
    """Returns float32 ``[B, count]`` on ``[0, 1)`` for the view ``images`` of some originals."""
    pixels = images if self._noise_by_view else originals
    return uniforms(self._subkey("noise", split), pixels, indices, view=view, count=count)

  def labels(self, classes: int) -> np.ndarray:
    """Returns int32 ``[K]``: class ``c`` of the source is stored as label id ``labels[c]``."""
    return samplers.permutation(samplers.Words(self.read, f"labels|{classes}"), classes)

  @abc.abstractmethod
  def order(self, split: str, originals: int, views: int) -> np.ndarray:
    """Returns int64 ``[originals * views]``: which record of the source stands at each place of a split.

    Record ``r`` is view ``r % views`` of original ``r // views``.
    """

  @abc.abstractmethod
  def _subkey(self, purpose: str, split: str) -> bytes:
    """Returns the secret of the ``noise`` or the ``views`` of a split."""


class Current(RecordStreams):
  """Derivation ``djx2``.

  Args:
    secret: of the data set, ``Master.data_set``.
    role: ``dataset``, or ``request`` for images that are asked about; their noise and order differ, their matrices do
      not.
    views: ``count``, ``crop``, ``flip`` and ``together`` of the manifest.
    own_id: of a request, so that two requests of one data set have two orders.
  """

  def __init__(
    self, secret: keys.Streams, *, role: str, views: Mapping[str, Any], own_id: str | None = None
  ):
    super().__init__(secret.read)
    self._secret = secret
    self._together = views["together"]
    self._role = role
    self._order_of = f"{role}|{own_id}" if own_id else role
    self._options = f"{views['count']}|{views['crop']}|{int(views['flip'])}"

  def order(self, split: str, originals: int, views: int) -> np.ndarray:
    """See ``RecordStreams``. Sources list their classes in turn, so their own order would name each label id."""
    shuffled = originals if self._together else originals * views
    words = np.frombuffer(
      self.read(f"order|{self._order_of}|{split}|{shuffled}", 8 * shuffled), "<u8"
    )
    order = np.argsort(words, kind="stable").astype(np.int64)
    if self._together:
      order = (order[:, None] * views + np.arange(views)).reshape(-1)
    return order

  def _subkey(self, purpose: str, split: str) -> bytes:
    return self._secret.subkey(f"{purpose}|{self._role}|{split}|{self._options}")


class Old(RecordStreams):
  """Derivation ``djx1``.

  Args:
    spec: ``SchemeSpec.to_dict()``, complete.
    master: the owner's key.
  """

  _noise_by_view = False

  def __init__(self, spec: Mapping[str, Any], master: Master):
    super().__init__(master.read)
    self._spec, self._master = spec, master

  def order(self, split: str, originals: int, views: int) -> np.ndarray:
    """See ``RecordStreams``. The order of the source."""
    del split
    return np.arange(originals * views)

  def _subkey(self, purpose: str, split: str) -> bytes:
    return self._master.subkey(label(purpose, self._spec, split))


def of(manifest: Manifest, master: Master) -> RecordStreams:
  """Returns the streams of a data set or request.

  Args:
    manifest: of it.
    master: its key.
  """
  if manifest.version == 1:
    return Old(manifest.spec, master)
  secret = master.data_set(manifest.id, manifest.spec)
  return Current(secret, role=manifest.role, views=manifest.views, own_id=manifest.request)


def label(purpose: str, spec: Mapping[str, Any], split: str) -> str:
  """Returns the label, under ``djx1``, of a purpose's streams for one disguise and split.

  Args:
    purpose: ``noise`` or ``views``.
    spec: ``SchemeSpec.to_dict()``, complete.
    split: the split's name.
  """
  return f"{purpose}|{keys.spec_hash(spec)[:16]}|{split}"


def uniforms(
  subkey: bytes, pixels: np.ndarray, indices: Sequence[int], *, view: int = 0, count: int
) -> np.ndarray:
  """Draws numbers for each of some records.

  Args:
    subkey: 32 secret bytes.
    pixels: ``[B, H, W, C]`` uint8 or float32, whose hash the nonce takes.
    indices: of the originals in their split, ``[B]``.
    view: which view of the originals.
    count: how many numbers a record.

  Returns:
    float32 ``[B, count]``, uniform on ``[0, 1)`` in steps of 2^-24.
  """
  words = np.empty((len(pixels), count), "<u4")
  zeros = bytes(4 * count)
  for row, image, index in zip(words, pixels, indices, strict=True):
    little = np.ascontiguousarray(image, image.dtype.newbyteorder("<"))
    hashed = hashlib.sha256(little).digest()
    place = int(index).to_bytes(8, "little") + view.to_bytes(4, "little")
    nonce = bytes(4) + hashlib.sha256(place + hashed).digest()[:12]
    stream = Cipher(ChaCha20(subkey, nonce), mode=None).encryptor()
    stream.update_into(zeros, memoryview(row).cast("B"))
  return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
