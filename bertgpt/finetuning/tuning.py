"""Everything that fine-tuning runs share: model, task, mesh, compiled parts, batches."""

import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import FrozenConfigDict

from bertgpt.config import ConfigDict, families
from bertgpt.config import finetuning as finetune_config
from bertgpt.devices import barrier, hardware, sharding, watchdog
from bertgpt.errors import ConfigError
from bertgpt.finetuning import lengths
from bertgpt.finetuning import objectives as task_objectives
from bertgpt.finetuning.tasks import rows as rows_lib
from bertgpt.finetuning.tasks.rows import Rows, Task
from bertgpt.models import precision
from bertgpt.runs.trained import Trained
from bertgpt.training import optimizers, steps


class Outputs:
  """The outputs of the task's model, by one program for the runs of all learning rates and seeds.

  It is compiled once for every shape of a batch.
  """

  def __init__(self, head: task_objectives.Head, config: ConfigDict, mesh: Mesh, num_labels: int):
    """Compiles nothing yet.

    Args:
      head: output layer of the task.
      config: config of any run, from `make_run_config`.
      mesh: mesh over the devices of all processes.
      num_labels: outputs of the layer.
    """
    model = head.make_model(FrozenConfigDict(config.model), num_labels)
    self._config, self._shapes = config, set[tuple[int, ...]]()
    self._program = jax.jit(functools.partial(head.predict, model),
                            out_shardings=NamedSharding(mesh, PartitionSpec()))

  def start(self, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the outputs [B, ...] for a batch, replicated; the devices may not have them yet.

    Args:
      params: parameters of a run, on the devices.
      batch: batch of `put_batch`.
    """
    shape, system = batch["tokens"].shape, self._config.system
    watchdog.arm_for(system, compiles=shape not in self._shapes)
    with precision.matmul_precision(self._config):  # As in `bertgpt predict`.
      if shape not in self._shapes:
        barrier.compile_together("the evaluation", system, self._program, params, batch)
        self._shapes.add(shape)
      return self._program(params, batch)


class Tuning(NamedTuple):
  """Everything that all runs of a fine-tuning workdir share.

  Attributes:
    config: fine-tuning config.
    init: folder of the pretrained run.
    pretrained: the model in that folder.
    task: rows, labels and metrics.
    head: output layer, loss and predictions for the kind of the task.
    outputs: the program that predicts.
    mesh: mesh over the devices of all processes.
    path: fine-tuning workdir.
    stamp: result of `resume.make_stamp`, which identifies weights, rows and config.
    train_lengths: lengths of the rows of training batches, ascending.
    eval_lengths: lengths of the rows of evaluation batches, ascending.
  """

  config: ConfigDict
  init: pathlib.Path
  pretrained: Trained
  task: Task
  head: task_objectives.Head
  outputs: Outputs
  mesh: Mesh
  path: pathlib.Path
  stamp: dict[str, Any]
  train_lengths: tuple[int, ...]
  eval_lengths: tuple[int, ...]


class Program(NamedTuple):
  """The compiled parts of the runs with one learning rate.

  Attributes:
    learning_rate: peak learning rate.
    setup: model, objective and mesh, with an ordinary config from `make_run_config`.
    abstract: TrainState of ShapeDtypeStructs with their shardings.
    step: (state, batch) -> (state, metrics); the old state is donated.
  """

  learning_rate: float
  setup: steps.Setup
  abstract: steps.TrainState
  step: Callable


def check_run(config: ConfigDict, pretrained: Trained) -> None:
  """Checks that a pretrained model can be fine-tuned under a config, before the data is read.

  Args:
    config: fine-tuning config.
    pretrained: model that the runs start from.
  Raises:
    ConfigError: model, config and devices are not compatible; one line per problem.
  """
  run = make_run_config(config, pretrained, 1, config.learning_rates[0])
  if config.pooling and "pooling" not in families.find(pretrained.config).reads:
    raise ConfigError(f"pooling={config.pooling!r}: a model of model.family="
                      f"{pretrained.config.model.family!r} reads the last token of a text. Leave "
                      "it at ''")
  finetune_config.validate_run(run, jax.device_count(), jax.default_backend())
  kind = jax.devices()[0].device_kind
  hardware.check_matmul(run.model.matmul, kind, hardware.find_chip(kind), "dtype='bfloat16'")


def make_run_config(config: ConfigDict, pretrained: Trained, num_steps: int,
                    learning_rate: float) -> ConfigDict:
  """Returns the config of a run, as the train step reads it.

  Args:
    config: fine-tuning config.
    pretrained: model that the run starts from.
    num_steps: steps of the run.
    learning_rate: peak learning rate.
  """
  size = rows_lib.vocab_size(pretrained.tokenizer, pretrained.config.model.family)
  return finetune_config.run_config(pretrained.config, config, steps=num_steps,
                                    learning_rate=learning_rate, vocab_size=size)


def open_tuning(config: ConfigDict, init: pathlib.Path, pretrained: Trained, task: Task,
                path: pathlib.Path, stamp: dict[str, Any]) -> Tuning:
  """Returns the shared parts, including the head of the task and a mesh over all devices.

  Args:
    config, init, pretrained, task, path, stamp: see `Tuning`.
  """
  head = task_objectives.find_task_head(pretrained.config, task.kind)
  run = make_run_config(config, pretrained, 1, config.learning_rates[0])
  mesh, platform = sharding.make_mesh(run), jax.default_backend()
  outputs = Outputs(head, run, mesh, len(task.labels))
  return Tuning(config, init, pretrained, task, head, outputs, mesh, path, stamp,
                lengths.for_training(config, run, task.train, platform),
                lengths.for_evaluation(config, run, task, platform))


def make_program(tuning: Tuning, learning_rate: float) -> Program:
  """Returns the compiled parts of the runs with one learning rate.

  They are the same for all seeds, so a step is compiled once per shape of a batch and rate.

  Args:
    tuning: everything that the runs share.
    learning_rate: peak learning rate.
  """
  config = make_run_config(tuning.config, tuning.pretrained, count_steps(tuning), learning_rate)
  model = tuning.head.make_model(FrozenConfigDict(config.model), len(tuning.task.labels))
  objective = tuning.head.make_objective(config, tuning.config.task.lm_weight)
  training = steps.Setup(config, tuning.mesh, model, objective)
  with sharding.use_mesh(tuning.mesh, config):
    abstract = steps.make_abstract_state(training)
    optimizers.check_frozen(config, abstract.params)
    step = steps.jit_train_step(training, abstract)
  return Program(learning_rate, training, abstract, step)


def count_steps(tuning: Tuning) -> int:
  """Returns the number of steps of a run; the last batch of an epoch may be short."""
  return tuning.config.epochs * math.ceil(len(tuning.task.train) / tuning.config.batch_size)


def is_end_of_epoch(tuning: Tuning, step: int) -> bool:
  """Returns whether a step, counted from 1, is the last one of an epoch."""
  return step % (count_steps(tuning) // tuning.config.epochs) == 0


def iterate_batches(tuning: Tuning, seed: int,
                    first_step: int = 0) -> Iterator[tuple[int, dict[str, jax.Array]]]:
  """Yields the batches of a run, on the devices.

  Args:
    tuning: everything that the runs share.
    seed: seed of the order of the rows.
    first_step: steps that are done.
  Yields:
    (step, counted from 1; batch).
  """
  config, train_rows, step = tuning.config, tuning.task.train, 0
  for epoch in range(config.epochs):
    for index in rows_lib.order_epoch(train_rows.lengths, config.batch_size, seed, epoch,
                                      config.group_by_length):
      step += 1
      if step > first_step:
        yield step, put_batch(tuning, train_rows, index, config.batch_size, tuning.train_lengths,
                              seed)


def put_batch(tuning: Tuning, chosen: Rows, index: np.ndarray, batch_size: int,
              row_lengths: tuple[int, ...], seed: int = 0) -> dict[str, jax.Array]:
  """Returns a global batch of some rows; this process puts its own part on its devices.

  Args:
    tuning: the opened fine-tuning.
    chosen: rows of a set.
    index: indices of the rows of the batch, int [N] with N <= batch_size.
    batch_size: rows of the global batch; empty rows fill it up.
    row_lengths: lengths that its rows may have, ascending.
    seed: seed of the run, for the dropout.
  """
  batch = rows_lib.collate(chosen, index, batch_size, tuning.config.task.max_length, seed,
                           row_lengths)
  layout = sharding.batch_sharding(tuning.mesh, tuning.config)
  local = sharding.local_rows(layout, batch_size)
  return sharding.make_global_batch({name: x[local] for name, x in batch.items()}, layout,
                                    batch_size)
