"""Conversion of models to and from `transformers`, with one table per family for both directions.

This module applies the tables, which are in the modules of this folder that are named after a
family. Fine-tuned models are only written, not read.
"""

import collections
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertgpt import trees
from bertgpt.config import ConfigDict, families
from bertgpt.errors import ConfigError, DataError
from bertgpt.hub.architecture import STORAGES, Architecture, Rule, Sizes

# Kind of a task whose outputs have names -> `problem_type` in config.json, which selects the loss.
PROBLEM_TYPES = {"classes": "single_label_classification", "values": "regression", "tokens": None}


# ------------------------------------------------------------- to transformers


def find_architecture(config: ConfigDict, kind: str = "") -> Architecture:
  """Returns the architecture that computes exactly the model of a config.

  Args:
    config: a whole config.
    kind: kind of the task it was fine-tuned on, as in `tasks.rows.Task`; '': not fine-tuned.
  Raises:
    ConfigError: `transformers` has no such architecture; names the field.
  """
  model = config.model
  architecture = _table(model.family).choose(config)
  for field, value in architecture.ours.items():
    group, field = field.split(".")
    if config[group][field] != value:
      raise ConfigError(f"{group}.{field}={config[group][field]!r}: transformers' "
                        f"{architecture.name} needs {value!r}. This model cannot be exported")
  if model.activation not in architecture.activations:
    raise ConfigError(f"model.activation={model.activation!r}: transformers' {architecture.name} "
                      f"has only {', '.join(architecture.activations)}. This model cannot be "
                      "exported")
  if problem := architecture.find_problem(model):
    raise ConfigError(f"{problem}. This model cannot be exported")
  if not kind:
    return architecture
  if kind not in architecture.tuned:
    raise ConfigError(f"a fine-tuned {architecture.name} reads additional tokens, which "
                      "transformers does not have. This model cannot be exported. Its predictions "
                      "are in its folder")
  return architecture.tuned[kind]


def _table(family: str):
  return importlib.import_module(f"bertgpt.hub.{family}")


def to_hugging_face(params: Mapping[str, Any], config: ConfigDict, pad_id: int = 1,
                    kind: str = "") -> dict[str, np.ndarray]:
  """Returns tensors as `transformers` names and stores them, without padding of the vocabulary.

  Args:
    params: nested dicts of arrays, as in `TrainState.params`.
    config: config of the run, with `model.vocab_size` set.
    pad_id: id of the padding, read only for RoBERTa, whose positions begin at `pad_id` + 1; the
      published models have 1.
    kind: see `find_architecture`.
  Returns:
    Name -> float32 array, contiguous.
  Raises:
    ConfigError: see `find_architecture`; or the model has a parameter that the architecture lacks,
      or lacks one of its parameters.
  """
  architecture = find_architecture(config, kind)
  sizes = _sizes(config.model, pad_id)
  leaves = {name.removeprefix("body/"): np.asarray(x, np.float32)
            for name, x in trees.named_leaves(params).items()}
  has_segments = any(rule.ours == "embeddings/segment/embedding" for rule in architecture.rules)
  if has_segments and config.model.num_segments == 0:
    leaves["embeddings/segment/embedding"] = np.zeros((1, sizes["E"]), np.float32)
  parts = collections.defaultdict(list)
  for rule in architecture.rules:
    if rule.ours not in leaves:
      raise ConfigError(f"the parameter {rule.ours} of {architecture.name} is missing")
    array = leaves.pop(rule.ours)
    for i, x in enumerate(array if rule.is_stacked else [array]):
      parts[rule.theirs.format(i)].append(STORAGES[rule.storage].write(x, sizes))
  if leaves:
    raise ConfigError(f"{architecture.name} has no place for the parameter {min(leaves)}")
  # ascontiguousarray: safetensors writes the memory of an array and ignores its strides.
  return {name: np.ascontiguousarray(np.concatenate(x, axis=-1) if len(x) > 1 else x[0])
          for name, x in parts.items()}


def to_hugging_face_config(config: ConfigDict, pad_id: int = 1, kind: str = "",
                           labels: Sequence[str] = ()) -> dict[str, Any]:
  """Returns the content of config.json that describes the architecture.

  Args:
    config, pad_id, kind: see `to_hugging_face`.
    labels: names of the outputs of a fine-tuned model.
  """
  architecture = find_architecture(config, kind)
  model = config.model
  # Fields whose value 0 means that they follow from others.
  resolved = {"num_segments": max(1, model.num_segments),
              "embedding_width": model.embedding_width or model.width,
              "layer_groups": model.layer_groups or model.num_layers,
              "activation": architecture.activations[model.activation][0]}
  if architecture.skips_positions:
    resolved["max_positions"] = model.max_positions + pad_id + 1
  values = {theirs: resolved.get(ours, model[ours]) for theirs, ours, _ in architecture.fields}
  if kind in PROBLEM_TYPES:
    values |= {"id2label": {str(i): label for i, label in enumerate(labels)},
               "label2id": {label: i for i, label in enumerate(labels)},
               "problem_type": PROBLEM_TYPES[kind]}
  return {"architectures": [architecture.name], "model_type": architecture.model_type,
          "dtype": "float32", **values, **architecture.fixed}


# ----------------------------------------------------------- from transformers


def from_hugging_face(tensors: Mapping[str, np.ndarray], hf_config: Mapping[str, Any]
                      ) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns our parameters and config fields for a model of `transformers`.

  Args:
    tensors: name -> array. Names without the prefix of the base model, old names of LayerNorm, and
      copies of tied tensors are accepted.
    hf_config: content of config.json.
  Returns:
    Nested dicts of float32 arrays, and field -> value, as {"model.width": 768}.
  Raises:
    DataError: a tensor or a key is missing, is unknown, or has another shape or value; the message
      names it.
  """
  candidates = _find_candidates(hf_config)
  tensors = _rename(tensors, candidates[0])
  architecture = next((a for a in candidates if a.marker and a.marker in tensors),
                      next(a for a in candidates if not a.marker))
  fields = _read_fields(architecture, hf_config)
  skip = _read_number(hf_config, "pad_token_id", 1) + 1 if architecture.skips_positions else 0
  fields["model.max_positions"] -= skip
  sizes = _sizes({field.removeprefix("model."): x for field, x in fields.items()}, skip - 1)
  tensors = _drop_repeated(tensors, architecture)
  count = fields.get("model.layer_groups") or fields["model.num_layers"]
  leaves: dict[str, np.ndarray] = {}
  for theirs, rules in _by_tensor(architecture.rules).items():
    layers = [_take(tensors, theirs.format(i), rules, sizes)
              for i in range(count if rules[0].is_stacked else 1)]
    for rule, *parts in zip(rules, *layers, strict=True):
      leaves[rule.ours] = np.stack(parts) if rule.is_stacked else parts[0]
  if tensors:
    raise DataError(f"the tensor {min(tensors)} has no place in a {architecture.name} of "
                    f"{count} layers")
  return trees.nest(leaves), fields


def _find_candidates(hf_config) -> list[Architecture]:
  """Returns the architectures of a model_type; there is at least one."""
  known = [a for family in families.FAMILIES for a in _table(family).ARCHITECTURES]
  kind = str(hf_config.get("model_type"))
  found = [a for a in known if a.model_type == kind]
  if not found:
    raise DataError(f"model_type={kind!r} in config.json: not supported. Choose a model of "
                    f"{', '.join(sorted({a.model_type for a in known}))}")
  return found


def _rename(tensors, architecture):
  """Returns the tensors with their names as in the tables."""
  renamed = {}
  for name, x in tensors.items():
    if not name.startswith((architecture.prefix, *architecture.outside)):
      name = architecture.prefix + name  # As in the published GPT-2.
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):  # As in the published BERT.
      name = name.removesuffix(old) + new if name.endswith(old) else name
    renamed[name] = x
  return renamed


def _read_fields(architecture, hf_config) -> dict[str, Any]:
  for key, value in architecture.fixed.items():
    if hf_config.get(key, value) != value:
      raise DataError(f"{key}={hf_config[key]!r} in config.json: only {value!r} is supported")
  fields = dict(architecture.ours)
  for key, ours, default in architecture.fields:
    value = hf_config.get(key, default)
    if ours == "activation":
      names = {theirs: here for here, all_names in architecture.activations.items()
               for theirs in all_names}
      if str(value) not in names:
        raise DataError(f"{key}={value!r} in config.json: only {', '.join(names)} are supported")
      value = names[value]
    elif isinstance(default, float):
      value = _read_number(hf_config, key, default, float)
    elif value is not None or default is not None:
      value = _read_number(hf_config, key, default, least=1)
    fields[f"model.{ours}"] = value
  if fields.get("model.mlp_dim") is None:
    fields["model.mlp_dim"] = 4 * fields["model.width"]
  return fields


def _read_number(hf_config, key, default, kind=int, least=0):
  value = hf_config.get(key, default)
  if type(value) not in (int, kind) or not value >= least:
    raise DataError(f"{key}={value!r} in config.json: expected "
                    f"{'a whole number' if kind is int else 'a number'} of at least {least}")
  return kind(value)


def _drop_repeated(tensors, architecture):
  """Returns the tensors without copies of tied ones, buffers of old versions, and unused ones."""
  kept = {}
  for name, x in tensors.items():
    if name in architecture.tied:
      original = tensors.get(architecture.tied[name])
      if original is not None and not np.array_equal(original, x):
        raise DataError(f"the tensor {name} differs from {architecture.tied[name]}: only models "
                        "that tie them are supported")
    elif not (name.endswith((".position_ids", ".attn.bias", ".attn.masked_bias"))
              or name.startswith(architecture.unused)):
      kept[name] = x
  return kept


def _take(tensors, name, rules, sizes):
  """Removes a tensor from `tensors` and returns its parts, one per rule."""
  if name not in tensors:
    raise DataError(f"the tensor {name} is missing")
  x, storage = tensors.pop(name), STORAGES[rules[0].storage]
  shape = storage.shape(tuple(sizes[letter] for letter in rules[0].axes), sizes)
  shape = (*shape[:-1], shape[-1] * len(rules))
  if x.shape != shape:
    raise DataError(f"the tensor {name} has the shape {list(x.shape)}; according to config.json "
                    f"it is {list(shape)}")
  if x.dtype.kind not in "fV" or x.dtype.names:  # V: bfloat16.
    raise DataError(f"the tensor {name} is of type {x.dtype}; expected floating-point numbers")
  x = np.asarray(x, np.float32)
  return [np.ascontiguousarray(storage.read(part, sizes))
          for part in np.split(x, len(rules), axis=-1)]


def _by_tensor(rules: list[Rule]) -> dict[str, list[Rule]]:
  groups = collections.defaultdict(list)
  for rule in rules:
    groups[rule.theirs].append(rule)
  return groups


def _sizes(model: Mapping[str, Any], pad_id: int) -> Sizes:
  return {"V": model["vocab_size"], "P": model["max_positions"], "D": model["width"],
          "E": model.get("embedding_width") or model["width"], "F": model["mlp_dim"],
          "S": max(1, model.get("num_segments", 1)), "2": 2, "skip": pad_id + 1}
