"""Suppression of messages of Orbax and TensorStore about errors that they also raise.

On a full disk, they print up to 300 lines in addition to the exception, which would hide the
message of this program.
"""

import functools
import logging
import sys


@functools.cache
def silence() -> None:
  """Suppresses messages of the checkpoint writers about errors that they also raise."""
  logging.getLogger("absl").addFilter(
      lambda r: r.levelno < logging.ERROR or "/orbax/checkpoint/" not in r.pathname)
  # Messages about writes that were in progress when the first one failed.
  logging.getLogger("asyncio").addFilter(
      lambda r: "was never retrieved" not in r.getMessage() and "destroyed" not in r.getMessage())
  show = sys.unraisablehook

  def show_others(args: "sys.UnraisableHookArgs") -> None:
    """Hides the error of TensorStore's threads that report to an event loop that has ended."""
    if args.exc_type is not RuntimeError or str(args.exc_value) != "Event loop is closed":
      show(args)

  sys.unraisablehook = show_others
