"""Runs `bertgpt` and records its batches; environment variables make it get a signal, or hang.

  WATCH_ROWS    folder that gets the SHA-256 of every row of every training batch
  WATCH_SIGNAL  'STEP NUMBER': this process gets the signal once the step has been started
  WATCH_SLOW    'SECONDS': this process needs this time between two steps
  WATCH_HANG    'STEP': reading the batch of this step, counted from 0, never ends
  WATCH_EVALUATION         file that gets a line per batch of an evaluation, when it is read
  WATCH_EVALUATION_SIGNAL  'BATCH NUMBER SECONDS': this process gets the signal when it reads this
                           batch, and then needs this time for each batch
"""

import contextlib
import json
import os
import pathlib
import signal
import sys
import threading
import time
import uuid

from bertgpt import cli
from bertgpt.commands import train


def append(path: pathlib.Path, line: str) -> None:
  with contextlib.suppress(OSError), path.open("a") as file:  # Tests also fill the disk.
    file.write(line + "\n")


def write_rows(path: pathlib.Path) -> None:
  from bertgpt.data.batches import loader
  read_step = loader.read_step
  path.parent.mkdir(exist_ok=True)

  hangs_at = int(os.environ.get("WATCH_HANG", "-1"))

  def read(rows, batch_size, local_rows, step):
    if step == hangs_at:
      threading.Event().wait()
    batch = read_step(rows, batch_size, local_rows, step)
    count = len(batch["tokens"])
    digests = [loader.batch_sha256({name: array[i] for name, array in batch.items()})
               for i in range(count)]
    first = int(local_rows[0])
    append(path, json.dumps({"step": step, "first": first, "rows": digests}))
    return batch

  loader.read_step = read


def slow_down(seconds: float) -> None:
  from bertgpt.training.metrics import LateMetrics
  push = LateMetrics.push

  def wait_and_push(self, step, step_metrics):
    time.sleep(seconds)
    push(self, step, step_metrics)

  LateMetrics.push = wait_and_push


def send_signal(at_step: int, number: int) -> None:
  from bertgpt.training.metrics import LateMetrics
  push = LateMetrics.push

  def push_and_send(self, step, step_metrics):
    push(self, step, step_metrics)
    if step == at_step:
      signal.raise_signal(number)

  LateMetrics.push = push_and_send


def watch_evaluation(path: pathlib.Path, at_batch: int, number: int, seconds: float) -> None:
  from bertgpt.data.batches import loader
  make_eval_batches = loader.make_eval_batches

  def make_watched(*arguments):
    for i, batch in enumerate(make_eval_batches(*arguments)):
      append(path, str(i))
      if i == at_batch:
        signal.raise_signal(number)
      if i >= at_batch >= 0:
        time.sleep(seconds)
      yield batch

  loader.make_eval_batches = make_watched


def run_watched(arguments, checked) -> None:
  """Sets up the recording, which loads JAX: this must happen after the program forks."""
  write_rows(pathlib.Path(os.environ["WATCH_ROWS"]) / uuid.uuid4().hex)
  if "WATCH_SLOW" in os.environ:
    slow_down(float(os.environ["WATCH_SLOW"]))
  if "WATCH_SIGNAL" in os.environ:
    send_signal(*map(int, os.environ["WATCH_SIGNAL"].split()))
  at_batch, number, seconds = os.environ.get("WATCH_EVALUATION_SIGNAL", "-1 0 0").split()
  watch_evaluation(pathlib.Path(os.environ["WATCH_EVALUATION"]), int(at_batch), int(number),
                   float(seconds))
  run_unwatched(arguments, checked)


if __name__ == "__main__":
  run_unwatched, train.run = train.run, run_watched
  sys.exit(cli.run_program())
