"""Chromium without a window, driven through a pipe: what a page asks for, complains of, and looks like."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = (
  *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
  *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_SECONDS = 60
# The browser reads from descriptor 3 and writes to 4. Copies of copies: the first might be these numbers themselves.
_START = """
import os, sys
inputs, outputs = (os.dup(int(number)) for number in sys.argv[1:3])
inputs, outputs = (os.dup(os.dup(os.dup(one))) for one in (inputs, outputs))
os.dup2(inputs, 3)
os.dup2(outputs, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


@contextlib.contextmanager
def opened(folder):
  """Yields a ``Tab``.

  Args:
    folder: where the browser keeps its profile; new.
  """
  theirs_in, ours_out = os.pipe()
  ours_in, theirs_out = os.pipe()

  # Not by ``preexec_fn``, which forks this process: JAX warns of that.
  words = [PROGRAM, *_FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"]
  process = subprocess.Popen(
    [sys.executable, "-c", _START, str(theirs_in), str(theirs_out), *words],
    pass_fds=(theirs_in, theirs_out),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  for descriptor in (theirs_in, theirs_out):
    os.close(descriptor)
  try:
    yield Tab(ours_in, ours_out)
  finally:
    process.kill()
    process.wait()
    os.close(ours_in)
    os.close(ours_out)


class Tab:
  """One page at a time.

  Attributes:
    requests: addresses that the page asked for, itself excluded.
    complaints: what stood in the console.
  """

  def __init__(self, source, target):
    self._source, self._target, self._rest, self._number, self._session = (
      source,
      target,
      b"",
      0,
      None,
    )
    self.requests, self.complaints = [], []
    found = self("Target.createTarget", url="about:blank")
    self._session = self("Target.attachToTarget", flatten=True, **found)["sessionId"]
    self("Emulation.setScrollbarsHidden", hidden=True)
    for domain in ("Page", "Network", "Log", "Runtime"):
      self(f"{domain}.enable")

  def __call__(self, method, **params):
    """Sends a command of the DevTools protocol and returns its result."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._target, json.dumps(message).encode() + b"\0")
    return self._until(lambda answer: answer.get("id") == self._number)["result"]

  def show(self, path, *, width, dark=False):
    """Opens a file at a width in pixels."""
    self.requests, self.complaints = [], []
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    self("Emulation.setEmulatedMedia", features=[scheme])
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    self("Emulation.setDeviceMetricsOverride", **size)
    self("Page.navigate", url=path.as_uri())
    self._until(lambda answer: answer.get("method") == "Page.loadEventFired")
    self.requests.remove(path.as_uri())

  def value(self, expression):
    """Evaluates JavaScript, which the page itself may not have."""
    options = {"expression": expression, "returnByValue": True, "awaitPromise": True}
    answer = self("Runtime.evaluate", **options)
    assert "exceptionDetails" not in answer, answer
    return answer["result"].get("value")

  def picture(self, path):
    """Writes the whole page as a PNG file."""
    answer = self("Page.captureScreenshot", captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(answer["data"]))

  def _until(self, wanted):
    """Reads answers and events until the one that is wanted."""
    end = time.monotonic() + _SECONDS
    while True:
      while b"\0" not in self._rest:
        ready, _, _ = select.select([self._source], [], [], max(0, end - time.monotonic()))
        assert ready, "the browser does not answer"
        data = os.read(self._source, 1 << 20)
        assert data, "the browser has ended"
        self._rest += data
      line, _, self._rest = self._rest.partition(b"\0")
      answer = json.loads(line)
      assert "error" not in answer, answer
      event, params = answer.get("method"), answer.get("params", {})
      if event == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
        self.requests.append(params["request"]["url"])
      if event in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
        self.complaints.append(params)
      if wanted(answer):
        return answer
