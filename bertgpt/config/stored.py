"""Configs as JSON, as runs store them, and what a config of an earlier version means."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bertgpt import files
from bertgpt.config import ConfigDict, base, leaves, phase
from bertgpt.config.overrides import set_field
from bertgpt.errors import ConfigError, one_line

# The fields of version 0.1, group -> names, which every config.json has. A field that was added
# later may be missing: it gets its default, with which the model is the same as before, except for
# FORMER_VALUES. This table never grows.
_FIRST_FIELDS = {
    "": ("batch_size dropout epochs from_scratch group_by_length init_from learning_rates "
         "micro_batches save seed seeds warmup_fraction"),
    "checkpoint": "keep",
    "data": ("cache_dir corpus invalid_text isolate_documents language max_sequences packing "
             "prefetch prepare_workers random_next_prob reader_workers short_sequence_prob "
             "source validation_fraction"),
    "eval": "batch_size every_epoch every_steps max_rows",
    "log": "every_steps tensorboard",
    "mesh.axes": "batch embed heads mlp vocab",
    "mesh": "data fsdp tensor",
    "model": ("activation attention attention_dropout dropout dropout_rng dtype family init_std "
              "layer_norm_epsilon max_positions mlp_dim norm num_heads num_layers num_segments "
              "position_init position_init_std remat scale_residual_init scan_unroll "
              "truncated_init vocab_size width"),
    "objective": ("bias_init loss_chunk mask_prob name replace_with_mask replace_with_random "
                  "whole_words"),
    "optimizer": "b1 b2 clip_norm epsilon momentum name weight_decay",
    "phases": ("batch_size decay_fraction end_fraction learning_rate learning_rate_rule "
               "max_predictions micro_batches power schedule seq_len steps warmup_fraction "
               "warmup_steps"),
    "profile": "steps",
    "system": "compilation_cache hang_timeout_minutes xla_options",
    "task": ("data dev lm_weight max_answer max_dev_examples max_length max_question "
             "max_train_examples n_best name null_threshold stride test train truncation"),
    "tokenizer": "kind lowercase model_type path train_bytes vocab_size",
    "train": "max_bad_steps",
}
FIRST_FIELDS = frozenset(f"{group}.{name}" if group else name
                         for group, names in _FIRST_FIELDS.items() for name in names.split())

# What earlier versions did instead of the default of a field that was added later.
FORMER_VALUES = {"eval.rows_by": "phase"}


class FormerlyIgnored(NamedTuple):
  """A field that the configs of earlier versions could set, and that those versions did not read.

  Attributes:
    field: the field; its default has the same effect as not reading it.
    objective: objective of the configs.
    came_with: a field that was added in the version that first reads `field`.
  """

  field: str
  objective: str
  came_with: str


FORMERLY_IGNORED = (FormerlyIgnored("data.isolate_documents", "mlm", "eval.mask_prob"),)


def to_json(config: ConfigDict) -> str:
  """Returns a config as JSON; `from_json` is the inverse."""
  return json.dumps(_to_plain(config), indent=2)


def from_json(text: str | bytes, make_base: Callable[[], ConfigDict] = base) -> ConfigDict:
  """Rebuilds a config from JSON without running code. Lists become tuples again.

  Fields that were not read by the version that wrote the JSON get their defaults, see
  `find_ignored`; missing fields get what that version did, see `FORMER_VALUES`.

  Args:
    text: content of a config.json, as text or UTF-8.
    make_base: makes a config with the same fields; `base` of `pretraining` or `finetuning`.
  Raises:
    ConfigError: the text is not a config of this version; the message has one line per field.
  """
  config = make_base()
  try:
    stored = files.parse_json(text)
    if "phases" in config:
      config.phases = tuple(phase() for _ in stored["phases"])
  except (ValueError, KeyError, TypeError) as e:
    raise ConfigError(f"config.json is not the config of a run: {one_line(e)}") from e
  problems = []
  fields = dict(leaves(config))
  values = dict(_plain_leaves(stored))
  for field in fields.keys() - values.keys():
    if field in FORMER_VALUES:
      set_field(config, field, FORMER_VALUES[field])
    if re.sub(r"\[\d+\]", "", field) in FIRST_FIELDS:
      problems.append(f"config.json lacks the field {field}")
  for field in values.keys() - fields.keys():
    problems.append(f"config.json has the unknown field {field}")
  for field in fields.keys() & values.keys():
    value = _with_tuples(values[field])
    try:
      if value is None:  # A ConfigDict would accept it.
        raise TypeError
      set_field(config, field, value)
    except TypeError:
      expected = type(fields[field]).__name__
      problems.append(f"config.json: {field}: expected {expected}, got {values[field]!r}")
  if problems:
    raise ConfigError("\n".join(sorted(problems)))
  for field in find_ignored(stored):
    set_field(config, field, fields[field])
  return config


def find_former(stored: Any) -> dict[str, Any]:
  """Returns the fields that a stored config lacks, with what earlier versions did instead.

  Args:
    stored: content of its config.json, as JSON values.
  """
  values = dict(_plain_leaves(stored))
  return {field: value for field, value in FORMER_VALUES.items() if field not in values}


def find_ignored(stored: Any) -> list[str]:
  """Returns the fields that a stored config sets, but the version that wrote it did not read.

  Args:
    stored: content of a config.json, as JSON values.
  """
  values, defaults = dict(_plain_leaves(stored)), dict(leaves(base()))
  return [field for field, objective, came_with in FORMERLY_IGNORED
          if values.get("objective.name") == objective and came_with not in values
          and values.get(field, defaults[field]) != defaults[field]]


def _with_tuples(value: Any) -> Any:
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _to_plain(value):
  if isinstance(value, ConfigDict):
    return {name: _to_plain(value[name]) for name in value}
  if isinstance(value, (tuple, list)):
    return [_to_plain(item) for item in value]
  return value


def _plain_leaves(value, prefix="") -> Iterator[tuple[str, Any]]:
  if isinstance(value, dict):
    for name, item in value.items():
      yield from _plain_leaves(item, f"{prefix}.{name}" if prefix else name)
  elif isinstance(value, list) and value and isinstance(value[0], dict):
    for i, item in enumerate(value):
      yield from _plain_leaves(item, f"{prefix}[{i}]")
  else:
    yield prefix, value
