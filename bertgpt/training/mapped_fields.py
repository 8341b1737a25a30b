"""The fields in which runs may differ that one program trains."""

import re
from collections.abc import Sequence
from typing import Any

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.errors import ConfigError

# Fields that may differ between runs which one program trains. The initial state, the step and the
# order of the rows depend on them; no shape and no evaluation does.
FIELDS = re.compile(
    r"seed|model\.(attention_)?dropout"
    r"|optimizer\.(b1|b2|epsilon|weight_decay|layer_decay|clip_norm|momentum|initial_accumulator)"
    r"|phases\[\d+\]\.(learning_rate|end_fraction|warmup_steps|warmup_fraction|decay_fraction"
    r"|power)")


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
