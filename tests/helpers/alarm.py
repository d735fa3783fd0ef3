"""A test that waits for ever fails instead."""

import contextlib
import signal


class TooLongError(BaseException):
  """No ``Exception``: code under test might take it for a file that cannot be opened."""


@contextlib.contextmanager
def alarm(seconds):
  """Fails what takes longer, also if it waits for a pipe."""

  def late(*args):
    raise TooLongError(f"took more than {seconds} s")

  before = signal.signal(signal.SIGALRM, late)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
