"""The config of fine-tuning: every field with its default and a comment, and checks.

A recipe under `configs/` calls `base()` and changes some of the fields. Model, tokenizer and the
generator of dropout masks are those of the pretrained run. `run_config` combines the two configs
into an ordinary one, so that the train step, sharding and optimizers are those of pretraining.
"""

import math
from collections.abc import Iterable, Mapping

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict, attention_kernels, checks, families, unread
from bertgpt.errors import refuse

AS_PRETRAINED = -1.0

TRUNCATIONS = ("head", "tail", "head_tail")
SAVES = ("best", "all", "none")
DTYPES = ("", *config_lib.CHOICES["model.dtype"])
POOLINGS = ("", *config_lib.CHOICES["model.pooling"])


def base() -> ConfigDict:
  """Returns a config with every field at its default, locked.

  Comments of fields with a special value name it as `VALUE: meaning`.
  """
  pretraining = config_lib.base()
  config = ConfigDict()
  config.learning_rates = (5e-5,)          # peaks; one run for each, with each of the seeds
  config.seeds = (0,)                      # for order of examples, dropout, initial head weights
  config.batch_size = 32                   # examples per step, over all devices
  config.micro_batches = 1                 # gradient accumulation: parts a batch is split into
  config.epochs = 3                        # passes over the training set
  config.warmup_fraction = 0.1             # share of the steps; then the rate decays linearly to 0
  config.dropout = AS_PRETRAINED           # on hidden states and attention; -1: as in pretraining
  # Features that represent a text, like model.pooling: cls | mean; '': as in pretraining.
  config.pooling = ""
  # Whether a batch holds texts of similar length: less padding, but less randomness.
  config.group_by_length = True
  # Type of activations and matmuls, like model.dtype, without float8; '': as in pretraining
  # (imported models: float32).
  config.dtype = ""
  config.from_scratch = False              # random instead of trained weights, for comparison
  # Runs whose weights are saved: best (on dev) | all | none.
  config.save = "best"

  config.task = task = ConfigDict()
  task.name = "sst2"                       # see tasks.TASKS; --task sets it
  # Folder with the files of the task; for GLUE also tfds:glue/NAME or tfds:FOLDER.
  task.data = ""
  # classes, ner, squad: names of training files in `data`, separated by commas; '': the usual ones.
  task.train = ""
  task.dev = ""                            # classes, ner, squad: the same for the dev set
  task.test = ""                           # classes, ner, squad: the same for the test set
  # classes: all labels, in the order of the model's outputs; (): those of the training set, sorted.
  task.labels = ()
  # Tokens per row, at most. The rows of a batch are only as long as its longest text needs.
  task.max_length = 128
  # Part of longer texts that is kept: head | tail | head_tail (128 and 382 of 510 tokens).
  task.truncation = "head"
  task.max_train_examples = 0              # random choice of N, the same for all seeds; 0: all
  task.max_dev_examples = 0                # only the first N; 0: all
  task.lm_weight = 0.5                     # gpt: weight of the language-model loss; 0: none
  task.stride = 128                        # squad: tokens between the starts of a text's windows
  task.max_question = 64                   # squad: tokens per question, at most
  task.max_answer = 30                     # squad: tokens per answer, at most
  task.n_best = 20                         # squad: best starts and best ends that are combined
  # squad2: "no answer" is predicted if it scores better than the best answer by more than this.
  task.null_threshold = 0.0

  config.optimizer = pretraining.optimizer
  config.mesh = pretraining.mesh
  config.eval = ConfigDict()
  config.eval.batch_size = 64              # rows per step of an evaluation, over all devices
  config.eval.every_epoch = True           # True: after every epoch; False: only at the end
  # A run's state is also saved when a signal stops the run, and is removed when the run is done.
  config.checkpoint = ConfigDict()
  config.checkpoint.every_steps = 0        # steps between saves of a run's state; 0: not by steps
  config.checkpoint.every_minutes = 10.0   # minutes between them; 0: not by time
  config.log = pretraining.log
  config.log.tensorboard = False
  config.system = pretraining.system
  config.lock()
  return config


# Fields that may affect which runs there are, but not the result of a run.
RESUMABLE = ("learning_rates", "seeds", "save", "mesh", "eval", "checkpoint", "log", "system",
             "task.data", "task.test")

AT_LEAST = {
    "batch_size": 1, "micro_batches": 1, "epochs": 1, "task.max_length": 8,
    "task.max_train_examples": 0, "task.max_dev_examples": 0, "task.lm_weight": 0,
    "task.stride": 1, "task.max_question": 1, "task.max_answer": 1, "task.n_best": 1,
    "checkpoint.every_steps": 0, "checkpoint.every_minutes": 0,
}


def find_problems(config: ConfigDict) -> list[str]:
  """Returns the problems of the fields that only fine-tuning configs have, one line each.

  Args:
    config: fine-tuning config.
  """
  values = dict(config_lib.leaves(config))
  problems = [line for field, low in AT_LEAST.items()
              for line in checks.range_problems(field, values[field], low)]
  if not math.isfinite(config.task.null_threshold):
    problems.append(f"task.null_threshold={config.task.null_threshold}: give a finite number")
  # The seed is part of the batch, as int32.
  if not config.seeds or not all(type(seed) is int and 0 <= seed < 2**31 for seed in config.seeds):
    problems.append(f"seeds={config.seeds}: give numbers from 0 to 2**31 - 1, such as 0,1,2")
  rates = config.learning_rates
  if not rates or not all(isinstance(r, (int, float)) and type(r) is not bool
                          and checks.MIN_FLOAT <= r <= checks.MAX_FLOAT for r in rates):
    problems.append(f"learning_rates={config.learning_rates}: give numbers above 0 that float32 "
                    "can hold, such as 2e-5,5e-5")
  labels = config.task.labels
  if not all(type(label) is str and label == label.strip() != "" for label in labels):
    problems.append(f"task.labels={labels}: give names, such as negative,neutral,positive")
  elif len(set(labels)) != len(labels) or len(labels) == 1:
    problems.append(f"task.labels={labels}: give two different names or more")
  for field in ("seeds", "learning_rates"):
    if len(set(map(repr, config[field]))) < len(config[field]):
      problems.append(f"{field}={config[field]} names a run twice")
  if not 0 <= config.warmup_fraction <= 1:
    problems.append(f"warmup_fraction={config.warmup_fraction}: must be between 0 and 1")
  if config.dropout != AS_PRETRAINED and not 0 <= config.dropout < 1:
    problems.append(f"dropout={config.dropout}: must be at least 0 and below 1, or -1")
  for field, choices in (("task.truncation", TRUNCATIONS), ("save", SAVES), ("dtype", DTYPES),
                         ("pooling", POOLINGS)):
    if values[field] not in choices:
      problems.append(f"{field}={values[field]!r}: choose one of "
                      f"{', '.join(choice or repr(choice) for choice in choices)}")
  if not config.task.data:
    problems.append("task.data: give the folder that holds the task's files, such as "
                    "--config.task.data=glue")
  elif problem := config_lib.remote_problem(config.task.data.removeprefix("tfds:")):
    problems.append(f"task.data={problem}")
  return problems


def check_read(config: ConfigDict, readers: Mapping[str, Iterable[str]],
               pretrained: ConfigDict) -> None:
  """Refuses a new fine-tuning config with a field that its choices do not read.

  Args:
    config: whole config of the fine-tuning.
    readers: name of a task -> fields that it reads, but some other task does not.
    pretrained: config of the pretrained run.
  Raises:
    ConfigError: there are such fields; the message has one line per field.
  """
  values, defaults = dict(config_lib.leaves(config)), dict(config_lib.leaves(base()))
  irrelevant = [unread.of_others("task.name", config.task.name, readers),
                *unread.irrelevant_in_all(values)]
  if families.find(pretrained).kind == "encoder":
    irrelevant.append(("model.family of --init", pretrained.model.family, ["task.lm_weight"]))
  refuse([line for _, line in unread.find_set(values, defaults, irrelevant)])


def run_config(pretrained: ConfigDict, config: ConfigDict, *, steps: int, learning_rate: float,
               vocab_size: int) -> ConfigDict:
  """Returns the config of one run, with the model of the pretrained run.

  Its seed is always 0: the batch carries the seed of the run, so that all runs share their compiled
  programs.

  Args:
    pretrained: config of the pretrained run.
    config: fine-tuning config.
    steps: training steps of the run.
    learning_rate: peak of the run.
    vocab_size: ids of the tokenizer, with those that the task adds.
  """
  run = pretrained.copy_and_resolve_references()
  run.seed = 0
  run.profile.steps = run.train.skip_steps = ()  # The pretrained run had other steps.
  run.train.spike_guard = "off"
  run.checkpoint.keep_best = ""
  run.optimizer.decay_rule = "weights"
  run.phases = (config_lib.phase(
      steps=steps, seq_len=config.task.max_length, batch_size=config.batch_size,
      micro_batches=config.micro_batches, learning_rate=learning_rate, schedule="linear",
      # As in google-research/bert, a warm-up of less than one step is none. Otherwise, the first
      # step would have the rate 0, and a run of one step would learn nothing.
      warmup_fraction=config.warmup_fraction if config.warmup_fraction * steps >= 1 else 0.0),)
  for group in ("optimizer", "mesh", "log", "system"):
    run[group].update(config[group])
  run.eval.batch_size = config.eval.batch_size
  run.eval.every_steps = steps // config.epochs if config.eval.every_epoch else 0
  run.model.vocab_size = vocab_size
  if run.model.attention in attention_kernels.FUSED:
    # The pretrained run's kernel may not run with these devices, lengths, dtype and dropout.
    run.model.attention = "auto"
  if config.dtype:
    run.model.update(dtype=config.dtype, matmul="bf16")  # bf16: matmuls in dtype, not in float8.
  run.model.pooling = config.pooling or run.model.pooling
  if config.dropout != AS_PRETRAINED:
    run.model.dropout = run.model.attention_dropout = config.dropout
  return run


def validate_run(run: ConfigDict, num_devices: int, platform: str) -> None:
  """Checks the config of a run; like `config.validate`, but names fields of the fine-tuning config.

  Args:
    run: result of `run_config`.
    num_devices: number of devices in the mesh.
    platform: platform of these devices: 'cpu', 'gpu' or 'tpu'.
  Raises:
    ConfigError: the config has problems; the message has one line per problem.
  """
  checked = run.copy_and_resolve_references()
  # Fine-tuning makes no rows of the pretraining and computes only the first stack of layers, so no
  # value of these fields is wrong.
  checked.objective.update(mask_prob=1e-3, permutation_block=1, memory=1)
  parts = max(1, run.mesh.tensor)
  for stack in families.find(run).stacks[1:]:
    checked.model.update({f"{stack}width": 2 * parts, f"{stack}num_heads": parts,
                          f"{stack}mlp_dim": parts})
  problems = config_lib.find_problems(checked, num_devices, platform)
  names = {"phases[0].seq_len": "task.max_length", "phases[0].": "", "phases[0]": "batch_size"}
  for old, new in names.items():
    problems = [line.replace(old, new) for line in problems]
  refuse(problems)
