"""`bertgpt`, watched: its batches are written down, and it may be hit by a signal.

  WATCH_ROWS    folder that gets the SHA-256 of every row of every training batch
  WATCH_SIGNAL  'STEP NUMBER': this process gets the signal once the step has been started
"""

import json
import os
import pathlib
import sys
import uuid

from bertgpt import cli
from bertgpt.commands import train


def write_rows(path: pathlib.Path) -> None:
  from bertgpt.data.batches import loader
  read_step = loader.read_step
  path.parent.mkdir(exist_ok=True)

  def read(rows, batch_size, local_rows, step):
    batch = read_step(rows, batch_size, local_rows, step)
    count = len(batch["tokens"])
    digests = [loader.batch_sha256({name: array[i] for name, array in batch.items()})
               for i in range(count)]
    first = int(local_rows[0])
    with path.open("a") as file:
      file.write(json.dumps({"step": step, "first": first, "rows": digests}) + "\n")
    return batch

  loader.read_step = read


def send_signal(at_step: int, number: int) -> None:
  from bertgpt.training.step_log import StepLog
  add = StepLog.add

  def add_and_send(self, step, step_metrics):
    add(self, step, step_metrics)
    if step == at_step:
      os.kill(os.getpid(), number)

  StepLog.add = add_and_send


def run_watched(arguments) -> None:
  """Loads JAX, which must not be there yet when the program forks."""
  write_rows(pathlib.Path(os.environ["WATCH_ROWS"]) / uuid.uuid4().hex)
  if "WATCH_SIGNAL" in os.environ:
    send_signal(*map(int, os.environ["WATCH_SIGNAL"].split()))
  run_unwatched(arguments)


if __name__ == "__main__":
  run_unwatched, train.run = train.run, run_watched
  sys.exit(cli.run_program())
