"""Conversion of models to and from `transformers`, with one table per family for both directions.

This module applies the tables, which are in the modules of this folder that are named after a
family. Heads of fine-tuned models are only written; when such a model is read, they are dropped.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt import trees
from bertgpt.config import ConfigDict
from bertgpt.errors import ConfigError, DataError
from bertgpt.hub import architecture as architecture_lib
from bertgpt.hub import tensor_names
from bertgpt.hub.architecture import BODY, STORAGES, Architecture, Rule, draw, find_sizes
from bertgpt.hub.family_tables import choose_for_export, find_candidates

# What remains of a fine-tuned model without a class in `transformers`.
_REMAINDER = ("This model cannot be exported. Its folder has the predictions of its test set, and "
              "`bertgpt predict` makes those of other texts")
# Rows of zeros in front of RoBERTa's positions, at most: one more than the id of the padding, which
# is 1 in the published models and 0 in tokenizers that are trained here.
_MOST_SKIPPED = 8
# Kind of a task whose outputs have names -> `problem_type` in config.json, which selects the loss.
PROBLEM_TYPES = {"classes": "single_label_classification", "values": "regression", "tokens": None}


# ------------------------------------------------------------- to transformers


def find_architecture(config: ConfigDict, kind: str = "", part: str = "", pad_id: int = 1
                      ) -> Architecture:
  """Returns the architecture that computes exactly the model of a config.

  Args:
    config: a whole config.
    kind: kind of the task it was fine-tuned on, as in `tasks.rows.Task`; '': not fine-tuned.
    part: a key of `Architecture.parts`, for a second model of the run; '': the model itself.
    pad_id: id of the padding, -1 if there is none. It is read only for RoBERTa, whose positions
      begin at `pad_id` + 1; with another id than one of the first, the model is a BERT.
  Raises:
    ConfigError: `transformers` has no such architecture; names the field.
  """
  model = config.model
  architecture = choose_for_export(config)
  if architecture.without_skips and not 0 <= pad_id < _MOST_SKIPPED:
    architecture = architecture.without_skips
  architecture_lib.check_own_fields(architecture, config)
  for one in (architecture, *(() if kind else architecture.parts.values())):
    if model.activation not in one.activations:
      raise ConfigError(f"model.activation={model.activation!r}: transformers' {one.name} has only "
                        f"{', '.join(one.activations)}. This model cannot be exported")
  if problem := architecture.find_problem(model) or (
      architecture_lib.find_pooling_problem(architecture, model, kind)):
    raise ConfigError(f"{problem}. This model cannot be exported")
  if not kind:
    return architecture.parts[part] if part else architecture
  if kind not in architecture.tuned:
    raise ConfigError(f"transformers has no class for a {architecture.name} that is fine-tuned on "
                      f"a task with {kind}. {_REMAINDER}")
  return architecture.tuned[kind]


def to_hugging_face(params: Mapping[str, Any], config: ConfigDict, pad_id: int = 1,
                    kind: str = "", part: str = "") -> dict[str, np.ndarray]:
  """Returns tensors with the names and layout of `transformers`, without vocabulary padding.

  Args:
    params: nested dicts of arrays, as in `TrainState.params`.
    config: config of the run, with `model.vocab_size` set.
    pad_id, kind, part: see `find_architecture`.
  Returns:
    Name -> float32 array. Most are views of the parameters, with any strides.
  Raises:
    ConfigError: see `find_architecture`; or the model has a parameter that the architecture lacks,
      or lacks one of its parameters.
  """
  architecture, main = (find_architecture(config, kind, name, pad_id) for name in (part, ""))
  sizes = find_sizes(architecture, config.model, pad_id)
  leaves = {name.removeprefix("body/"): np.asarray(x, np.float32)
            for name, x in trees.named_leaves(params).items()}
  whole = choose_for_export(config)
  known = {rule.ours for one in (whole, *whole.parts.values()) for rule in one.rules}
  if config.model.num_segments == 0:
    leaves |= {name: np.zeros((1, sizes["E"]), np.float32)
               for name in known if name.endswith("segment/embedding")}
  if architecture.bias_target:
    leaves = _move_bias(leaves, architecture)
  leaves = main.split(leaves, config.model)
  parts = collections.defaultdict(list)
  for rule in architecture.rules:
    if not rule.applies(sizes):
      continue
    if rule.ours not in leaves:
      raise ConfigError(f"the parameter {rule.ours} of {architecture.name} is missing")
    array = leaves.pop(rule.ours)
    for i, x in enumerate(array if rule.is_stacked else [array]):
      if i >= rule.first:
        parts[rule.theirs.format(i), rule.storage].append(STORAGES[rule.storage].write(x, sizes))
  leaves = leaves.keys() - architecture.left_out - known
  if "head/bias" in leaves:
    raise ConfigError(f"transformers' {architecture.name} has no output bias, so that of this "
                      f"model would be lost. {_REMAINDER}")
  if leaves:
    raise ConfigError(f"{architecture.name} has no counterpart of the parameter {min(leaves)}")
  tensors = {name: np.zeros([sizes[letter] for letter in axes], np.float32)
             for name, axes in architecture.zeros.items()}
  for (name, storage), arrays in parts.items():
    tensors[name] = (np.concatenate(arrays, STORAGES[storage].joint) if len(arrays) > 1
                     else arrays[0])
  return tensors


def _move_bias(leaves: Mapping[str, np.ndarray], architecture: Architecture
               ) -> dict[str, np.ndarray]:
  """Returns the leaves without the bias of the outputs, which moves into an earlier bias.

  Adding a vector s to the bias of the layer before changes the outputs x W by s W. So the output
  bias b can move there if s W = b has a solution.
  """
  moved = dict(leaves)
  kernel_DC = moved["head/kernel"].astype(np.float64)
  bias_C = moved.pop("head/bias").astype(np.float64)
  shift_D = np.linalg.lstsq(kernel_DC.T, bias_C, rcond=None)[0].astype(np.float32)
  if not np.allclose(shift_D @ kernel_DC, bias_C, atol=1e-5):
    raise ConfigError(f"transformers' {architecture.name} has no output bias, and the output bias "
                      "of this model cannot be moved, because its outputs are linearly dependent. "
                      f"{_REMAINDER}")
  target = moved[architecture.bias_target].copy()  # [D], or [layers, D] with the last layer last.
  target.reshape(-1, len(shift_D))[-1] += shift_D
  return moved | {architecture.bias_target: target}


def to_hugging_face_config(config: ConfigDict, pad_id: int = 1, kind: str = "",
                           labels: Sequence[str] = (), part: str = "") -> dict[str, Any]:
  """Returns the content of config.json that describes the architecture.

  Args:
    config, pad_id, kind, part: see `to_hugging_face`.
    labels: names of the outputs of a fine-tuned model.
  """
  architecture = find_architecture(config, kind, part, pad_id)
  model = config.model
  # Fields whose value 0 means that they are computed from others.
  resolved = {"num_segments": max(1, model.num_segments),
              "embedding_width": model.embedding_width or model.width,
              "layer_groups": model.layer_groups or model.num_layers,
              "activation": architecture.activations[model.activation][0]}
  if architecture.skips_positions:
    resolved["max_positions"] = model.max_positions + pad_id + 1
  resolved |= {ours: model[ours] or default(model) for _, ours, default in architecture.fields
               if callable(default)}
  values = {theirs: resolved.get(ours, model[ours]) for theirs, ours, _ in architecture.fields}
  if kind in PROBLEM_TYPES:
    values |= {"id2label": {str(i): label for i, label in enumerate(labels)},
               "label2id": {label: i for i, label in enumerate(labels)},
               "problem_type": PROBLEM_TYPES[kind]}
  fixed = {key: value for key, value in architecture.fixed.items()
           if key not in architecture_lib.CAUSAL}
  return {"architectures": [architecture.name], "model_type": architecture.model_type,
          "dtype": "float32", **values, **architecture.write(model), **fixed}


# ----------------------------------------------------------- from transformers


class Converted(NamedTuple):
  """A model of `transformers` as ours.

  Attributes:
    params: nested dicts of float32 arrays, for every parameter of the architecture.
    fields: field of our config -> value, such as {"model.width": 768}.
    architecture: the architecture whose table was used.
    fresh: heads that the tensors lack, keys of `families.HEADS`; their parameters are random.
    dropped: names of tensors of heads that the architecture lacks, in order.
    zero: heads that the tensors lack, and that have only biases, which are 0.
    others: beginnings of the names of other models in the same file, which are left out.
  """

  params: dict[str, Any]
  fields: dict[str, Any]
  architecture: Architecture
  fresh: tuple[str, ...]
  dropped: tuple[str, ...]
  zero: tuple[str, ...] = ()
  others: tuple[str, ...] = ()


def convert(tensors: Mapping[str, np.ndarray], hf_config: Mapping[str, Any],
            candidates: Sequence[Architecture] = ()) -> Converted:
  """Returns our parameters and config fields for a model of `transformers`.

  The tensors of the features must be complete, and so must those of every head that has at least
  one tensor. Other heads are drawn at random, always the same for the same sizes.

  Args:
    tensors: name -> array; each array is read once or twice. Names without the prefix of the base
      model, with another one or with those of PyTorch's wrappers of layers, old names of LayerNorm,
      and copies of tied tensors are accepted.
    hf_config: content of config.json.
    candidates: architectures that it may be; (): those of its model_type.
  Raises:
    DataError: a tensor or a key is missing, is unknown, has an unexpected shape or value, or is not
      finite (rows of the token table are not checked); the message names it.
  """
  candidates = candidates or find_candidates(hf_config)
  heads = set().union(*map(_head_names, candidates))
  names, others = tensor_names.rename(tensors, candidates, heads)
  architecture, dropped = _choose_architecture(names, candidates, hf_config)
  fields = _read_fields(architecture, hf_config, names)
  skip = _read_number(hf_config, "pad_token_id", 1) + 1 if architecture.skips_positions else 0
  fields["model.max_positions"] -= skip
  sizes = find_sizes(architecture, _of_model(fields), skip - 1)
  _take_tied(tensors, names, architecture)
  dropped = tuple(names.pop(name) for name in dropped if name in names)
  fresh = _missing_heads(architecture, names)
  count = fields.get("model.layer_groups") or fields["model.num_layers"]
  leaves: dict[str, np.ndarray] = {}
  for theirs, rules in _by_tensor(architecture.rules).items():
    if not rules[0].applies(sizes):
      continue
    if rules[0].group in fresh:
      leaves |= {rule.ours: draw(rule, sizes, fields["model.init_std"]) for rule in rules}
      continue
    layers = [_take(tensors, names, theirs.format(i), rules, sizes) if i >= rules[0].first
              else [np.ones([sizes[letter] for letter in rule.axes], np.float32) for rule in rules]
              for i in range(count if rules[0].is_stacked else 1)]
    for rule, *parts in zip(rules, *layers, strict=True):
      leaves[rule.ours] = np.stack(parts) if rule.is_stacked else parts[0]
  if names:
    raise DataError(f"the tensor {min(names.values())} has no place in a {architecture.name} of "
                    f"{count} layers. If the model works without it, load it with AutoModel of "
                    "transformers and save it again with save_pretrained()")
  random = {rule.group for rule in architecture.rules if rule.ours.endswith("/kernel")
            or not hf_config.get("tie_word_embeddings", True)}
  return Converted(trees.nest(leaves), fields, architecture,
                   tuple(head for head in fresh if head in random), dropped,
                   tuple(head for head in fresh if head not in random), others)


def cut_vocabulary(converted: Converted, num_tokens: int) -> Converted:
  """Returns the model with only the first tokens of its vocabulary.

  Args:
    converted: result of `convert`.
    num_tokens: tokens to keep, at most those of the model.
  Raises:
    DataError: a row of one of these tokens is not finite; the message names the tensor.
  """
  leaves = trees.named_leaves(converted.params)
  whole = converted.architecture
  for rule in (rule for a in (whole, *whole.parts.values()) for rule in a.rules):
    if rule.storage == "vocabulary" and rule.ours in leaves:
      storage = STORAGES[rule.storage]
      kept = leaves[rule.ours][:num_tokens]
      _check_finite(rule.theirs, kept)
      leaves[rule.ours] = storage.read(kept, {"V": num_tokens})
  return converted._replace(params=trees.nest(leaves),
                            fields=converted.fields | {"model.vocab_size": num_tokens})


def _head_names(architecture) -> set[str]:
  """Returns the names of the tensors of all heads, of pretraining and of tasks."""
  return {name for a in (architecture, *architecture.tuned.values()) for name in (
      *a.zeros, *(rule.theirs for rule in a.rules if rule.group not in BODY))}


def _choose_architecture(names, candidates, hf_config) -> tuple[Architecture, list[str]]:
  """Returns an architecture for the tensors, and the tensors of heads that it does not have.

  It is one whose heads are all in the file or, if there is none, the one that drops the fewest
  tensors. A model with one segment has no heads that compare two texts.
  """
  heads = set().union(*map(_head_names, candidates))
  others = tuple(start for a in candidates for start in a.other_heads)

  def dropped(a):
    fresh = _missing_heads(a, names)
    own = {rule.theirs for rule in a.rules if rule.group not in fresh} | a.tied.keys()
    return sorted(name for name in names if name not in own
                  and (name in heads or name.startswith(others)))

  def rank(a):
    fresh = _missing_heads(a, names)
    return bool(fresh), len(dropped(a)), len(fresh)

  best = min([a for a in candidates if a.can_train(hf_config)] or candidates, key=rank)
  return best, dropped(best)


def _missing_heads(architecture, names) -> tuple[str, ...]:
  """Returns the heads of an architecture that have no tensor in the file."""
  groups = dict.fromkeys(rule.group for rule in architecture.rules if rule.group not in BODY)
  found = {rule.group for rule in architecture.rules
           if architecture.signs.get(rule.group, rule.theirs) in names}
  return tuple(group for group in groups if group not in found)


def _take_tied(tensors, names, architecture):
  """Removes the copies of tied tensors; a copy whose original is missing takes its place."""
  for name, original in architecture.tied.items():
    if name not in names:
      continue
    first = names.setdefault(original, copy := names.pop(name))
    if not np.array_equal(tensors[copy], tensors[first], equal_nan=True):  # NaN: spare rows.
      raise DataError(f"the tensor {copy} differs from {first}: only models that tie "
                      "them are supported. Choose a model with tie_word_embeddings=true")


def _read_fields(architecture, hf_config, names) -> dict[str, Any]:
  hf_config = {**hf_config, **{key: hf_config[alias] for alias, key in architecture.aliases.items()
                               if alias in hf_config}}
  fresh = _missing_heads(architecture, names)
  for key, value in architecture.fixed.items():
    if hf_config.get(key, value) != value and not architecture.ignores(key, fresh, names) and (
        key not in architecture.of_unread_heads):
      raise DataError(f"{key}={hf_config[key]!r} in config.json: only {value!r} is supported. "
                      "Choose another model")
  fields = dict(architecture.ours)
  for key, ours, default in architecture.fields:
    value = hf_config.get(key, default)
    if callable(default) and hf_config.get(key) is None:
      value = default(_of_model(fields))
    elif ours == "activation":
      names = {theirs: here for here, all_names in architecture.activations.items()
               for theirs in all_names}
      if str(value) not in names:
        raise DataError(f"{key}={value!r} in config.json: only {', '.join(names)} are supported. "
                        "Choose another model")
      value = names[value]
    elif isinstance(default, float):
      value = _read_number(hf_config, key, default, float)
    else:
      value = _read_number(hf_config, key, default, least=1)
    if fields.setdefault(f"model.{ours}", value) != value:
      other = next(name for name, field, _ in architecture.fields if field == ours)
      raise DataError(f"{key}={value!r} and {other}={hf_config.get(other, default)!r} in "
                      "config.json: only equal values are supported. They matter only in training. "
                      "Set both to the same value, or choose another model")
  return fields | {f"model.{ours}": value for ours, value in architecture.read(hf_config).items()}


def _of_model(fields) -> dict[str, Any]:
  return {field.removeprefix("model."): value for field, value in fields.items()}


def _read_number(hf_config, key, default, kind=int, least=0):
  value = hf_config.get(key, default)
  if type(value) not in (int, kind) or not value >= least:
    raise DataError(f"{key}={value!r} in config.json: expected "
                    f"{'a whole number' if kind is int else 'a number'} of at least {least}. "
                    "Restore the file")
  return kind(value)


def _take(tensors, names, name, rules, sizes):
  """Removes a tensor from `names` and returns its parts, one per rule."""
  if name not in names:
    raise DataError(f"the tensor {name} is missing. Copy the model again, or choose another")
  name = names.pop(name)
  x, storage = tensors[name], STORAGES[rules[0].storage]
  shape = storage.shape(tuple(sizes[letter] for letter in rules[0].axes), sizes)
  shape = tuple(size * len(rules) if axis == storage.joint % len(shape) else size
                for axis, size in enumerate(shape))
  if x.shape != shape:
    raise DataError(f"the tensor {name} has the shape {list(x.shape)}; according to config.json "
                    f"it is {list(shape)}. Take both files from one model")
  if x.dtype.kind not in "fV" or x.dtype.names:  # V: bfloat16.
    raise DataError(f"the tensor {name} is of type {x.dtype}; expected floating-point numbers. "
                    "Choose the model that was not quantized")
  x = np.asarray(x, np.float32)
  if rules[0].storage != "vocabulary":  # Rows without a token may hold anything.
    _check_finite(name, x)
  return [np.ascontiguousarray(storage.read(part, sizes))
          for part in np.split(x, len(rules), axis=storage.joint)]


def _check_finite(name, x):
  if not np.isfinite(x).all():
    raise DataError(f"the tensor {name} is not finite: it holds NaN or infinity. Copy the model "
                    "again, or choose another")


def _by_tensor(rules: list[Rule]) -> dict[str, list[Rule]]:
  groups = collections.defaultdict(list)
  for rule in rules:
    groups[rule.theirs].append(rule)
  return groups
