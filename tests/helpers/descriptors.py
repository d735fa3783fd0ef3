"""What this process holds open."""

import collections
import contextlib
import os


def opened(under=""):
  """Returns the files that descriptors of this process refer to, as a `collections.Counter`.

  Other tests' objects may be collected, and their files closed, at any time: ask what is there now that was not
  there before (`opened() - before`), or only for files below a folder of the test's own.

  Args:
    under: where a file's path has to begin; everything, pipes and sockets too, if empty.
  """
  found = collections.Counter()
  for number in os.listdir("/proc/self/fd"):
    with contextlib.suppress(OSError):  # the descriptor of the listing itself is gone
      found[os.readlink(f"/proc/self/fd/{number}")] += 1
  return collections.Counter(
    {path: count for path, count in found.items() if path.startswith(str(under))}
  )
