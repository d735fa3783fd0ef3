"""Schedulers and workers of Dask on this machine, as processes that a test may kill, and a tap on what they say."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

from helpers.fresh import SOURCE

PATIENCE = 120  # seconds; a process that starts beside others takes some


class Cluster:
  """A scheduler and workers; all output goes to files in a folder.

  Args:
    folder: for scratch files and logs.
    *flags: of scheduler and workers, such as those of TLS.
    scheme: of the addresses.
    host: that the scheduler listens to.
    **environment: of the scheduler.
  """

  def __init__(self, folder, *flags, scheme="tcp", host="127.0.0.1", **environment):
    self.folder = pathlib.Path(folder)
    self.folder.mkdir(parents=True, exist_ok=True)
    self.processes, self._flags, self._scheme = [], flags, scheme
    where = self.folder / "scheduler.json"
    listens = ("--protocol", scheme, "--host", host, "--port", "0")
    # Where the test itself is killed, nobody else ends them.
    options = (*listens, "--no-dashboard", "--scheduler-file", where, "--idle-timeout", "600 s")
    self.scheduler = self._start("scheduler", *options, **environment)
    try:
      # It is seen before it is whole.
      until(lambda: where.exists() and where.read_text().rstrip().endswith("}"), self.scheduler)
      self.address = json.loads(where.read_text())["address"]
    except BaseException:
      self.close()
      raise

  def work(self, *flags, address="", **environment):
    """Starts a worker of one thread, and returns its process.

    Args:
      *flags: of ``dask worker``.
      address: of the scheduler, if not as it says itself.
      **environment: of the worker.
    """
    options = ("--nthreads", "1", "--no-dashboard", "--local-directory", self.folder / "scratch")
    listens = ("--protocol", self._scheme, "--host", "127.0.0.1", "--no-nanny")
    listens += ("--death-timeout", "60 s")
    where = address or self.address
    return self._start("worker", where, *listens, *options, *flags, **environment)

  def logs(self):
    """Returns what all processes have printed."""
    return b"\n".join(path.read_bytes() for path in sorted(self.folder.glob("*.log")))

  def close(self):
    """Ends all processes, those too that wait for a scheduler that is gone."""
    for process in reversed(self.processes):
      process.kill()
      process.wait()

  def _start(self, kind, *options, **environment):
    command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *self._flags, *options]
    log = self.folder / f"{kind}{len(self.processes)}.log"
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    with log.open("wb") as out:
      process = subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
      )
    self.processes.append(process)
    return process


def until(holds, process=None):
  """Waits until something holds; fails if it does not, or the process ends."""
  end = time.monotonic() + PATIENCE
  while not holds():
    assert time.monotonic() < end, "it never came to hold"
    assert process is None or process.poll() is None, "the process has ended"
    time.sleep(0.02)


class Tap:
  """An address that leads to another one, and keeps every byte in both directions.

  Args:
    address: ``tcp://HOST:PORT``.
  """

  def __init__(self, address):
    host, port = address.removeprefix("tcp://").split(":")
    self._target, self.heard, self._open = (host, int(port)), [], []
    self._server = socket.create_server(("127.0.0.1", 0))
    self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
    threading.Thread(target=self._accept, daemon=True).start()

  def close(self):
    """Ends all that goes through it."""
    for one in (self._server, *self._open):
      with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
      one.close()

  def _accept(self):
    with contextlib.suppress(OSError):
      while True:
        near, _ = self._server.accept()
        far = socket.create_connection(self._target)
        self._open += [near, far]
        for source, sink in ((near, far), (far, near)):
          kept = bytearray()
          self.heard.append(kept)
          threading.Thread(target=self._pass, args=(source, sink, kept), daemon=True).start()

  def _pass(self, source, sink, kept):
    with contextlib.suppress(OSError):
      while data := source.recv(1 << 16):
        kept += data
        sink.sendall(data)
    with contextlib.suppress(OSError):
      sink.shutdown(socket.SHUT_WR)
