"""Where a bar is drawn."""

import io
import sys

import pytest

from djax.io import progress


@pytest.mark.parametrize("kernel", [False, True])
def test_a_command_of_a_notebook_draws_no_bar_on_the_terminal_it_is_given(monkeypatch, kernel):
  screen = io.StringIO()
  screen.isatty = lambda: True
  monkeypatch.setattr(sys, "stderr", screen)
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.delenv("JPY_PARENT_PID", raising=False)
  if kernel:
    monkeypatch.setenv("JPY_PARENT_PID", "1")
  with progress.bar("work", total=2) as update:
    assert (update is None) == kernel
  assert bool(screen.getvalue()) != kernel
