"""bertgpt.console: a line that cannot be written does not end the work."""

import contextlib
import io
import os
import sys

from bertgpt import console


class Closed(io.StringIO):
  """A stream without a file descriptor, as in notebooks, that cannot be written."""

  lost = ""

  def write(self, text):
    self.lost += text
    raise OSError("closed")


def test_a_replaced_stream_that_cannot_be_written_is_no_error(monkeypatch):
  monkeypatch.setattr(sys, "stderr", closed := Closed())
  monkeypatch.setattr(sys, "stdout", io.StringIO())
  console.say("lost")
  console.say("lost too")
  assert closed.lost == "lost\nlost too\n"


def test_a_full_pipe_that_does_not_block_costs_only_what_is_written_meanwhile(monkeypatch):
  """A program that shares stderr, such as Node, may have made it non-blocking."""
  reader, writer = os.pipe()
  os.set_blocking(reader, False)
  os.set_blocking(writer, False)
  with open(reader, "rb") as file, open(writer, "w") as stream:
    monkeypatch.setattr(sys, "stderr", stream)
    with contextlib.suppress(BlockingIOError):
      while True:
        os.write(writer, bytes(2**16))
    console.say("lost")
    file.read()
    console.say("seen")
    assert b"seen" in file.read()


def test_progress_is_discarded_when_its_reader_has_gone(monkeypatch):
  reader, writer = os.pipe()
  os.close(reader)
  with open(writer, "w") as stream:
    monkeypatch.setattr(sys, "stdout", stream)
    console.print_stdout("lost")
    print("lost, too", flush=True)
