"""The steps of a run, with their programs and batches, on their way to the devices."""

import collections
import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

import jax

from bertgpt.config import ConfigDict
from bertgpt.config.derived import ranges_to_train
from bertgpt.data.batches import loader
from bertgpt.devices import sharding
from bertgpt.training import steps
from bertgpt.training.open_run import Run

T = TypeVar("T")


def make_steps(config: ConfigDict, first_step: int, jit: Callable[[int], Callable],
               read: Callable[[int, int], Generator[Any, None, None]]
               ) -> Generator[tuple[int, Callable, Any], None, None]:
  """Yields (index of the step counted from 1, jitted step, batch on the devices).

  Phases with the same `steps.program_key` share one program. The steps of
  `config.train.skip_steps` are left out.

  Args:
    config: config of the run.
    first_step: steps done before.
    jit: index of a phase -> its jitted step.
    read: (index of a phase, first batch counted from the start of the phase) -> its batches.
  """
  phase_start, programs = 0, {}
  for i, phase in enumerate(config.phases):
    phase_end = phase_start + phase.steps
    if first_step < phase_end:
      start = max(first_step, phase_start)
      key = steps.program_key(config, i)
      if key not in programs:
        programs[key] = jit(i)
      train_step = programs[key]
      for begin, end in ranges_to_train(config.train.skip_steps, start, phase_end):
        with contextlib.closing(read(i, begin - phase_start)) as batches:
          for step, batch in zip(range(begin + 1, end + 1), batches, strict=False):
            yield step, train_step, batch
    phase_start = phase_end


def device_batches(run: Run, phase_index: int,
                   first_step: int) -> Generator[dict[str, jax.Array], None, None]:
  """Yields the batches of a phase; `data.prefetch` of them are on their way to the devices.

  Args:
    run: the opened run.
    phase_index: index of the phase.
    first_step: first batch, counted from the start of the phase.
  Yields:
    Name -> global array [batch size, ...].
  """
  batch_size = run.config.phases[phase_index].batch_size
  layout = sharding.batch_sharding(run.setup.mesh, run.config)
  rows = sharding.local_rows(layout, batch_size)
  with contextlib.closing(loader.make_train_batches(run.corpus, run.config, phase_index, first_step,
                                                    rows, run.others)) as batches:
    yield from prefetch((sharding.make_global_batch(batch, layout, batch_size)
                         for batch in batches), run.config.data.prefetch)


def prefetch(batches: Iterable[T], ahead: int) -> Iterator[T]:
  """Yields batches; when one is yielded, the next ones are on their way to the devices.

  Args:
    batches: begins to transfer a batch when it is asked for the batch.
    ahead: number of batches on their way.
  """
  queue: collections.deque = collections.deque()
  for batch in batches:
    queue.append(batch)
    if len(queue) > ahead:
      yield queue.popleft()
  yield from queue
