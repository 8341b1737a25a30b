"""The config of a fine-tuning: every field, its default, one comment; every check.

A recipe under `configs/` calls `base()` and sets the fields in which it differs. Model, tokenizer
and the kind of dropout come from the run that is fine-tuned; `run_config` puts both together into
an ordinary config, so that the train step, sharding and optimizers are those of pretraining.
"""

import math

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.errors import ConfigError

AS_PRETRAINED = -1.0

TRUNCATIONS = ("head", "tail", "head_tail")
SAVES = ("best", "all", "none")


def base() -> ConfigDict:
  """Every field and its default."""
  pretraining = config_lib.base()
  config = ConfigDict()
  config.learning_rates = (5e-5,)          # peaks; a run for each, with each of the seeds
  config.seeds = (0,)                      # order of the examples, dropout, first weights of the head
  config.batch_size = 32                   # examples a step, over all devices
  config.micro_batches = 1                 # gradient accumulation: pieces a batch is split into
  config.epochs = 3
  config.warmup_fraction = 0.1             # linear warm-up; then linear decay to 0
  config.dropout = AS_PRETRAINED           # of hidden states and attention; -1: as in pretraining
  config.group_by_length = True            # batches of texts about as long: less padding, less chance
  config.from_scratch = False              # random weights in place of the trained ones, to compare
  config.save = "best"                     # weights that are kept: of the `best` run on dev, of `all`, of `none`

  config.task = task = ConfigDict()
  task.name = "sst2"                       # see tasks.TASKS; --task sets it
  task.data = ""                           # folder with the files; GLUE also tfds:glue/NAME or tfds:FOLDER
  task.train = ""                          # ner, squad: file names in `data`, comma-joined; empty: the official ones
  task.dev = ""
  task.test = ""
  task.max_length = 128                    # tokens a row; batches are as short as their longest row allows
  task.truncation = "head"                 # of longer texts is kept: head | tail | head_tail (128 and 382 of 510)
  task.max_train_examples = 0              # a random choice, the same for all seeds; 0: all
  task.max_dev_examples = 0                # the first so many; 0: all
  task.lm_weight = 0.5                     # gpt: weight of the language-model loss beside the task's
  task.stride = 128                        # squad: tokens from one window of a long text to the next
  task.max_question = 64                   # squad: tokens of a question
  task.max_answer = 30                     # squad: tokens of an answer
  task.n_best = 20                         # squad: starts and ends that are tried together
  task.null_threshold = 0.0                # squad2: no answer where it scores so much better than the best one

  config.optimizer = pretraining.optimizer
  config.mesh = pretraining.mesh
  config.eval = ConfigDict()
  config.eval.batch_size = 64
  config.eval.every_epoch = True           # besides at the end
  config.log = pretraining.log
  config.log.tensorboard = False
  config.system = pretraining.system
  config.lock()
  return config


# Fields that change neither a run nor its result, or only which runs there are.
RESUMABLE = ("learning_rates", "seeds", "save", "mesh", "eval", "log", "system", "task.data")

AT_LEAST = {
    "batch_size": 1, "micro_batches": 1, "epochs": 1, "task.max_length": 8,
    "task.max_train_examples": 0, "task.max_dev_examples": 0, "task.lm_weight": 0,
    "task.stride": 1, "task.max_question": 1, "task.max_answer": 1, "task.n_best": 1,
}


def find_problems(config: ConfigDict) -> list[str]:
  """What is wrong with a fine-tuning's own fields, one line each."""
  values = dict(config_lib.leaves(config))
  problems = [f"{field}={values[field]}: must be at least {low}"
              for field, low in AT_LEAST.items() if not values[field] >= low]
  # Seeds travel in the batch, as int32.
  if not config.seeds or not all(isinstance(seed, int) and 0 <= seed < 2**31
                                 for seed in config.seeds):
    problems.append(f"seeds={config.seeds}: give numbers from 0 on, below 2**31, as 0,1,2")
  rates = config.learning_rates
  if not rates or not all(isinstance(r, (int, float)) and 0 < r < math.inf for r in rates):
    problems.append(f"learning_rates={config.learning_rates}: give numbers above 0, as 2e-5,5e-5")
  for field in ("seeds", "learning_rates"):
    if len(set(config[field])) < len(config[field]):
      problems.append(f"{field}={config[field]} names a run twice")
  if not 0 <= config.warmup_fraction <= 1:
    problems.append(f"warmup_fraction={config.warmup_fraction}: must be between 0 and 1")
  if config.dropout != AS_PRETRAINED and not 0 <= config.dropout < 1:
    problems.append(f"dropout={config.dropout}: must be at least 0 and below 1, or -1")
  for field, choices in (("task.truncation", TRUNCATIONS), ("save", SAVES)):
    if values[field] not in choices:
      problems.append(f"{field}={values[field]!r}: choose one of {', '.join(choices)}")
  if not config.task.data:
    problems.append("task.data: give the folder that holds the task's files, as "
                    "--config.task.data=glue")
  elif problem := config_lib.remote_problem(config.task.data.removeprefix("tfds:")):
    problems.append(f"task.data={problem}")
  return problems


def run_config(pretrained: ConfigDict, config: ConfigDict, *, steps: int, learning_rate: float,
               vocab_size: int) -> ConfigDict:
  """The config of one run: the model of `pretrained`, all else as the fine-tuning says.

  Its seed is 0 for every run: what depends on the seed comes with the batch, so that runs share
  their compiled programs.

  Args:
    vocab_size: with the tokens that the task adds.
  Raises:
    ConfigError: the two do not go together, or not with the devices; one line a problem.
  """
  run = pretrained.copy_and_resolve_references()
  run.seed = 0
  run.profile.steps = ()  # Of a pretraining, which has other steps.
  run.phases = (config_lib.phase(
      steps=steps, seq_len=config.task.max_length, batch_size=config.batch_size,
      micro_batches=config.micro_batches, learning_rate=learning_rate, schedule="linear",
      warmup_fraction=config.warmup_fraction),)
  for group in ("optimizer", "mesh", "log", "system"):
    run[group].update(config[group])
  run.eval.batch_size = config.eval.batch_size
  run.model.vocab_size = vocab_size
  if config.dropout != AS_PRETRAINED:
    run.model.dropout = run.model.attention_dropout = config.dropout
  return run


def validate_run(run: ConfigDict, num_devices: int, platform: str) -> None:
  """As `config.validate`, in the words of a fine-tuning's fields."""
  problems = config_lib.find_problems(run, num_devices, platform)
  if problems:
    names = {"phases[0].seq_len": "task.max_length", "phases[0].": "", "phases[0]": "batch_size"}
    text = "\n".join(problems)
    for old, new in names.items():
      text = text.replace(old, new)
    raise ConfigError(text)
