"""A key that this machine cannot hold is refused before it is drawn."""

import pytest

from djax.errors import ConfigError
from djax.schemes import base


@pytest.mark.parametrize(
  ("limit", "fits"), [("max\n", True), ("9223372036854771712\n", True), ("1000000\n", False)]
)
def test_the_limit_of_a_container_counts(tmp_path, monkeypatch, limit, fits):
  path = tmp_path / "memory.max"
  path.write_text(limit)
  monkeypatch.setattr(base, "_LIMITS_OF_CONTAINERS", (tmp_path / "gone", path))
  if fits:
    base.check_key_memory(2_000_000)
    return
  base.check_key_memory(1_000_000)
  with pytest.raises(ConfigError, match=r"takes about 0 GB of memory, this machine has 0\. Use"):
    base.check_key_memory(1_000_001)


def test_the_memory_of_the_machine_counts(monkeypatch):
  monkeypatch.setattr(base, "_LIMITS_OF_CONTAINERS", ())
  base.check_key_memory(1 << 20)
  with pytest.raises(ConfigError, match="Use a smaller block_size, or mix=rows"):
    base.check_key_memory(1 << 60)
