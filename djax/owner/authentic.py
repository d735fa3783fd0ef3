"""Whether a manifest is the owner's: written with the key, for the role it is taken in, and the one expected."""

from pathlib import Path

from djax.disguised import manifest as manifest_lib
from djax.disguised.manifest import Manifest
from djax.errors import KeyMismatchError, ManifestError
from djax.keys import Master

__all__ = ["authenticate", "authenticated", "check_expected", "mac_key"]


def mac_key(manifest: Manifest, master: Master) -> bytes:
  """Returns the subkey of a manifest's MAC.

  Args:
    manifest: as ``manifest.read`` returned it.
    master: the owner's key.
  """
  streams_of_owner = master if manifest.version == 1 else master.owner()
  return streams_of_owner.subkey(manifest_lib.mac_label(manifest))


def authenticate(
  manifest: Manifest,
  where: Path,
  master: Master,
  *,
  role: str = manifest_lib.DATASET,
  expect: str = "",
) -> None:
  """Checks that the owner of a key wrote the manifest that was read, and that it is what it is taken for.

  Args:
    manifest: as ``manifest.read`` returned it.
    where: the directory, for messages.
    master: the owner's key.
    role: ``dataset`` or ``request``.
    expect: SHA-256 of the manifest, in hex; empty: any.

  Raises:
    KeyMismatchError: if it was made with another key.
    ManifestError: if it was tampered with, has another role, or is not the one expected.

  Security: an authentic directory may be an old one, or one of another source. ``expect`` and the ledger tell.
  """
  if manifest.key_fingerprint != master.fingerprint:
    raise KeyMismatchError(
      f"{where} was disguised with the key {manifest.key_fingerprint}, got {master.fingerprint}. "
      "Give the key it was disguised with."
    )
  manifest_lib.authenticate(manifest, mac_key=mac_key(manifest, master), where=where)
  if manifest.role != role:
    raise ManifestError(
      f"{where} must be a {role}, is a {manifest.role}. Give the other directory."
    )
  if expect:
    check_expected(manifest, where, expect)


def check_expected(manifest: Manifest, where: Path, expect: str) -> None:
  """Refuses another manifest than the one expected.

  Args:
    manifest: as ``manifest.read`` returned it.
    where: the directory, for messages.
    expect: SHA-256, in hex.

  Raises:
    ManifestError: if it is another one.
  """
  if manifest.sha256 != expect.lower():
    raise ManifestError(
      f"{where} must have the manifest {expect}, has {manifest.sha256}. It is another data set, or an older one."
    )


def authenticated(
  folder: Path, master: Master, *, role: str = manifest_lib.DATASET, expect: str = ""
) -> Manifest:
  """Reads a manifest, once, that the owner of a key wrote and nobody changed since.

  Args:
    folder: a disguised data set, or a run directory with copies of both files.
    master: the owner's key.
    role: as for ``authenticate``.
    expect: as for ``authenticate``.

  Returns:
    What was read; use it and do not read the file again.

  Raises:
    KeyMismatchError: as ``authenticate``.
    ManifestError: if it is missing or damaged, or as ``authenticate``.
  """
  manifest = manifest_lib.read(folder)
  authenticate(manifest, folder, master, role=role, expect=expect)
  return manifest
