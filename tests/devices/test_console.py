"""bertgpt.devices.console: a line that cannot be written does not end the work."""

import io
import sys

from bertgpt.devices import console


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
