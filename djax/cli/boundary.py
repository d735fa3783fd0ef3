"""The outer boundary of djax's programs: whatever goes wrong becomes one line and an exit code."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from djax.errors import DjaxError

__all__ = ["chain", "guarded", "without_debug"]

DEBUG = "--debug"


def without_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
  """Takes ``--debug`` out of a program's arguments, wherever it stands.

  Args:
    argv: the arguments.

  Returns:
    The others, and whether it was there.
  """
  return [word for word in argv if word != DEBUG], DEBUG in argv


def guarded(
  work: Callable[[], int],
  *,
  say: Callable[[str], None],
  place: Callable[[], str],
  debug: bool = False,
) -> int:
  """Runs a program.

  Args:
    work: returns the exit code.
    say: prints one line to stderr.
    place: names what the program writes to, for errors of the file system that name no file.
    debug: whether errors that djax does not know end in a traceback instead.

  Returns:
    Exit code: 0 ok, 1 failed, 2 usage or config, 3 key, 4 data, 5 refused for safety, 143/130 after a signal.
  """
  try:
    code = work()
    sys.stdout.flush()
    return code
  except DjaxError as error:
    return _fail(say, str(error), error.exit_code)
  except KeyboardInterrupt as stop:
    return _fail(say, str(stop) or "interrupted", 130)
  except BrokenPipeError:
    # Whoever read our output has gone; nothing is left to say, not even by the flush at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except Exception as error:
    if debug:
      raise
    return _fail(say, _words(error, place), 1)


def chain(error: BaseException | None) -> Iterator[BaseException]:
  """Yields an error and what led to it, the first cause last."""
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def _fail(say: Callable[[str], None], message: str, code: int) -> int:
  say("error: " + " ".join(message.splitlines()))
  return code


def _words(error: Exception, place: Callable[[], str]) -> str:
  """Says what happened, and no cause that is not known."""
  # Orbax and JAX wrap what happened in errors of their own.
  texts = " ".join(map(str, chain(error)))
  if "No space left" in texts:
    files = [str(one.filename) for one in chain(error) if isinstance(one, OSError) and one.filename]
    where = files[0] if files else place()
    return f"{where}: no space left on the disk. Make room and re-run the command."
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in texts:
    return (
      f"out of memory ({_first(error)}). Use fewer --workers, a smaller batch, or a larger machine."
    )
  if isinstance(error, RuntimeError) and "home directory" in str(error):
    return "a path that begins with ~ needs the home directory of a user that exists. Write the path in full."
  platforms = os.environ.get("JAX_PLATFORMS")
  if platforms and not _has_devices():
    return f"JAX cannot use what JAX_PLATFORMS={platforms} asks for ({_first(error)}). Unset it, or install it."
  if isinstance(error, FileNotFoundError) and error.filename:
    folder = Path(os.fsdecode(error.filename)).parent
    if not folder.exists():
      return f"{folder}: no such folder. Make it, or give another name."
  if isinstance(error, OSError):
    return f"{error.filename or place()}: {error.strerror or error}"
  seen = f"unexpected {type(error).__name__} ({_first(error)})"
  return f"{seen}. Re-run the command with {DEBUG} to see where, and report it."


def _has_devices() -> bool:
  """Returns whether JAX, if it is loaded, finds a device: its errors about that have no type of their own."""
  jax = sys.modules.get("jax")
  try:
    return jax is None or bool(jax.devices())
  except Exception:
    return False


def _first(error: Exception) -> str:
  """Returns the first line of an error."""
  return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
