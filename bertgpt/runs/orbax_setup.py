"""Settings of Orbax: its writer, its patience with buckets, and its messages."""

import functools
import logging
import sys
from collections.abc import Iterable

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint._src.metadata import array_metadata_store
from orbax.checkpoint._src.serialization import tensorstore_utils

from bertgpt.files import gcs


def make_writer(items: Iterable[str]) -> ocp.AsyncCheckpointer:
  """Returns Orbax's writer without its CheckpointManager.

  With the manager, a process whose save failed waits 20 minutes for the others. The manager also
  asks jax.distributed about the step of the save late and from a thread, which sets back the step
  count that processes agree on for preemption. And it defines a step differently.

  Args:
    items: names of the pytrees in a step.
  """
  silence()
  limit_retries()
  # Otherwise, every device may write a part of each array that all devices hold, and JAX compiles
  # one program per shape and device to cut the parts: the first save of a BERT with two layers on
  # eight CPU devices takes three times as long. For several processes, Orbax's choice stands.
  arrays = ocp.type_handlers.ArrayHandler(
      use_replica_parallel=None if jax.process_count() > 1 else False,
      array_metadata_store=array_metadata_store.Store())
  registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
  # Compression hardly shrinks weights, and would take the CPU cores of the training for seconds.
  handlers = {item: ocp.PyTreeCheckpointHandler(use_compression=False,
                                                type_handler_registry=registry) for item in items}
  # If a directory cannot be made in the background, Orbax's writers wait 5 minutes for it. Orbax
  # takes times from the wall clock, which may jump; the watchdog ends a save that hangs.
  options = ocp.options.AsyncOptions(create_directories_asynchronously=False,
                                     timeout_secs=100 * 365 * 86400)
  return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers), async_options=options)


def limit_retries() -> None:
  """Makes TensorStore give up on a bucket that does not answer within the time of `files.gcs`.

  Orbax has no option for it; these are the contexts that it copies for every writer and reader.
  """
  for name in ("_BASE_TS_CONTEXT", "_DEFAULT_OCDBT_TS_CONTEXT"):
    getattr(tensorstore_utils, name, {})["gcs_request_retries"] = gcs.tensorstore_retries()


@functools.cache
def silence() -> None:
  """Suppresses messages of Orbax and TensorStore about errors that they also raise.

  On a full disk, they print up to 300 lines in addition to the exception, which would hide the
  message of this program.
  """
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
