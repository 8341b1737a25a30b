"""Which runs one program may train: the fields in which they differ, and how many there are."""

import re
from collections.abc import Sequence
from typing import Any

from bertgpt import config as config_lib
from bertgpt import files
from bertgpt.config import ConfigDict
from bertgpt.errors import ConfigError

# Fields that may differ between runs which one program trains. The initial state, the step and the
# order of the rows depend on them; no shape and no evaluation does.
FIELDS = re.compile(
    r"seed|model\.(attention_)?dropout"
    r"|optimizer\.(b1|b2|epsilon|weight_decay|layer_decay|clip_norm|momentum|initial_accumulator)"
    r"|phases\[\d+\]\.(learning_rate|end_fraction|warmup_steps|warmup_fraction|decay_fraction"
    r"|power)")

# A run has its lock, logs, curves, memory maps of the corpus and files of a save: up to 15 were
# seen open. The rest is for libraries, and for shards of the corpus.
FILES_PER_RUN, OTHER_FILES, WANTED_FILES = 16, 512, 2**16


def check_number(num_runs: int) -> None:
  """Raises the limit of open files of this process, as every run keeps some of them open.

  Args:
    num_runs: runs that one program shall train.
  Raises:
    ConfigError: the system does not allow so many open files.
  """
  needed = FILES_PER_RUN * num_runs + OTHER_FILES
  if (limit := files.raise_open_limit(max(needed, WANTED_FILES))) < needed:
    raise ConfigError(f"--mapped: {num_runs} runs need {needed} open files, and this process may "
                      f"have {limit}. Raise the limit (ulimit -n), or map a share of the runs at a "
                      "time (--run I/N)")


def find(configs: Sequence[ConfigDict]) -> dict[str, tuple[Any, ...]]:
  """Returns the fields that differ between runs which one program can train.

  Args:
    configs: configs of the runs, at least one.
  Returns:
    field -> its values, one per run.
  Raises:
    ConfigError: a field differs that the program depends on, or one program cannot draw the
      random numbers of several runs.
  """
  model = configs[0].model
  if len(configs) > 1 and model.dropout_rng == "rbg" and (model.dropout or model.attention_dropout):
    raise ConfigError("model.dropout_rng='rbg': JAX would draw the dropout of all runs from the "
                      "key of the first. Leave out --mapped, or set "
                      "--config.model.dropout_rng=hash")
  found = {}
  leaves = [dict(config_lib.leaves(config)) for config in configs]
  for field in dict.fromkeys(name for fields in leaves for name in fields):
    values = tuple(fields.get(field) for fields in leaves)
    if len(set(map(repr, values))) == 1:
      continue
    if not FIELDS.fullmatch(field):
      other = next(value for value in values if repr(value) != repr(values[0]))
      raise ConfigError(f"{field}: {values[0]!r} and {other!r} need different programs, so the "
                        "runs cannot be mapped into one. Leave out --mapped")
    if field == "model.attention_dropout" and configs[0].model.attention != "xla":
      raise ConfigError(f"{field}: no kernel but 'xla' has a rate per run. Leave "
                        "out --mapped, or set --config.model.attention=xla")
    found[field] = values
  return found
