"""The owner's secrets: the master key, and the file that keeps it. docs/key-format.md."""

from djax.keys.master import (
  DATA_SETS,
  EXPANSION,
  MASTER_BYTES,
  Master,
  Streams,
  experiment,
  generate,
  new_id,
  secret_bytes,
  spec_hash,
)

__all__ = [
  "DATA_SETS",
  "EXPANSION",
  "MASTER_BYTES",
  "Master",
  "Streams",
  "experiment",
  "generate",
  "new_id",
  "secret_bytes",
  "spec_hash",
]
