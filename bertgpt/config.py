"""The one config: every field, its default, one comment; and every check.

A recipe under `configs/` calls `base()`, sets the fields in which it differs and
returns the result. The config is locked: an unknown field is an error. Code reads
`config.a.b`; no other module holds a default.
"""

import difflib
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from bertgpt.errors import ConfigError

ConfigDict = config_dict.ConfigDict

VOCAB_MULTIPLE = 128  # Lanes of a TPU matrix unit; the embedding table is padded to it.

CHOICES = {
    "data.invalid_text": ("error", "replace", "skip"),
    "tokenizer.kind": ("sentencepiece", "wordpiece", "bpe"),
    "tokenizer.model_type": ("unigram", "bpe"),
    "model.family": ("bert", "gpt"),
    "model.norm": ("post", "pre"),
    "model.activation": ("gelu_tanh", "gelu_erf"),
    "model.dtype": ("bfloat16", "float32"),
    "model.attention": ("xla",),
    "model.remat": ("none", "dots", "full"),
    "model.dropout_rng": ("threefry", "rbg"),
    "objective.name": ("mlm_nsp", "mlm", "causal"),
    "optimizer.name": ("bert_adamw", "adamw", "lamb", "nvlamb", "adafactor", "muon"),
}
PHASE_CHOICES = {
    "schedule": ("linear", "polynomial", "cosine", "constant", "wsd"),
    "learning_rate_rule": ("continuous", "restart"),
}

# Fields that may differ when a run is resumed: they change neither the data, nor the
# model, nor the update, or (steps) only say when to stop.
RESUMABLE = ("checkpoint", "eval", "log", "mesh", "profile", "system",
             "data.cache_dir", "data.corpus", "data.prepare_workers",
             "data.reader_workers", "data.prefetch", "train.max_bad_steps",
             "model.remat", "model.scan_unroll", "model.attention")


def phase(**overrides) -> ConfigDict:
  """One training phase: so many steps at one sequence length and batch size."""
  fields = ConfigDict()
  fields.steps = 1000
  fields.seq_len = 128                     # tokens a row
  fields.batch_size = 256                  # rows a step, over all devices
  fields.micro_batches = 1                 # gradient accumulation: pieces a batch is split into
  fields.max_predictions = 0               # masked positions a row; 0: round(seq_len * objective.mask_prob)
  # 'continuous': go on along the curve of the phase before, which then covers both
  # (BERT). 'restart': a curve of its own, from its own step 0 (NVIDIA's LAMB recipe).
  fields.learning_rate_rule = "restart"
  fields.learning_rate = 1e-4              # peak
  fields.schedule = "linear"               # linear | polynomial | cosine | constant | wsd
  fields.warmup_steps = 0                  # linear warm-up from 0
  fields.warmup_fraction = 0.0             # or as a share of the curve's steps; set one of the two
  fields.end_fraction = 0.0                # rate at the end, as a share of the peak
  fields.power = 1.0                       # polynomial: exponent; wsd: the decay is 1 - t ** power (1: linear, 0.5: 1-sqrt)
  fields.decay_fraction = 0.1              # wsd: share of the steps spent decaying
  fields.lock()
  fields.update(overrides)
  return fields


def base() -> ConfigDict:
  """Every field and its default."""
  config = ConfigDict()
  config.seed = 0
  config.init_from = ""                    # workdir whose newest parameters to start from (the optimizer starts fresh)

  config.data = data = ConfigDict()
  data.source = "pydocs"                   # pydocs | text:GLOB | text+paragraphs:GLOB | jsonl:GLOB#field | tfds:name:split#feature; comma-joined
  data.corpus = ""                         # a prepared corpus; empty: prepare `source` under `cache_dir`
  data.cache_dir = "~/.cache/bertgpt"      # prepared corpora and trained tokenizers
  data.validation_fraction = 0.01          # share of documents held out, chosen by their hash
  data.invalid_text = "error"              # invalid UTF-8 or NUL: error | replace | skip the document
  data.language = "en"                     # of the sentence splitter (ISO 639-1)
  data.prepare_workers = 0                 # processes; 0: one a core
  data.reader_workers = 0                  # processes that assemble batches; 0: threads of the trainer
  data.prefetch = 2                        # batches held ready on the device
  data.packing = True                      # several sequences share a row
  data.max_sequences = 0                   # sequences a packed row may hold; 0: max(2, seq_len // 32)
  data.short_sequence_prob = 0.1           # BERT: share of document passes with a shorter target length
  data.random_next_prob = 0.5              # BERT: share of pairs whose second part comes from another document
  data.isolate_documents = False           # GPT: no attention across the documents of a block

  config.tokenizer = tokenizer = ConfigDict()
  tokenizer.kind = "sentencepiece"         # sentencepiece | wordpiece | bpe (byte-level)
  tokenizer.path = ""                      # file or folder of a trained one; empty: train on `data.source`
  tokenizer.vocab_size = 8192              # to train
  tokenizer.model_type = "unigram"         # sentencepiece: unigram | bpe
  tokenizer.lowercase = True               # sentencepiece, wordpiece
  tokenizer.train_bytes = 50_000_000       # text sampled for training

  config.model = model = ConfigDict()
  model.family = "bert"                    # bert | gpt
  model.num_layers = 12
  model.width = 768
  model.num_heads = 12
  model.mlp_dim = 3072
  model.max_positions = 512
  model.num_segments = 2                   # bert: segment embeddings; 0: none
  model.norm = "post"                      # LayerNorm after the residual (BERT, GPT-1) or before the block (GPT-2): post | pre
  model.layer_norm_epsilon = 1e-12
  model.activation = "gelu_tanh"           # gelu_tanh | gelu_erf
  model.dropout = 0.1                      # embeddings, block outputs
  model.attention_dropout = 0.1
  model.init_std = 0.02
  model.truncated_init = True              # truncated at two deviations (BERT) or plain normal (GPT)
  model.position_init_std = 0.02
  model.scale_residual_init = False        # GPT-2: projections into the residual start 1/sqrt(2 layers) smaller
  model.vocab_size = 0                     # 0: the tokenizer's; the table is padded to a multiple of 128
  model.dtype = "bfloat16"                 # of activations and products; parameters are float32
  model.attention = "xla"
  model.remat = "none"                     # recompute in the backward pass: none | dots (keep matrix products) | full
  model.scan_unroll = 1                    # layers per iteration of the scan; 0: all, no loop
  model.dropout_rng = "rbg"                # generator of dropout masks: rbg (fast) | threefry

  config.objective = objective = ConfigDict()
  objective.name = "mlm_nsp"               # mlm_nsp | mlm | causal
  objective.mask_prob = 0.15               # share of a row's tokens that is predicted
  objective.replace_with_mask = 0.8        # of these: share shown as [MASK] ...
  objective.replace_with_random = 0.1      # ... share shown as a random token; the rest is shown as it is
  objective.whole_words = False            # mask words, not pieces

  config.optimizer = optimizer = ConfigDict()
  optimizer.name = "bert_adamw"            # bert_adamw | adamw | lamb | nvlamb | adafactor | muon
  optimizer.b1 = 0.9
  optimizer.b2 = 0.999
  optimizer.epsilon = 1e-6
  optimizer.weight_decay = 0.01            # not on biases and LayerNorm
  optimizer.clip_norm = 1.0                # of the global gradient; 0: off
  optimizer.momentum = 0.95                # muon

  config.phases = (phase(),)

  config.mesh = mesh = ConfigDict()
  mesh.data = -1                           # batch; -1: all devices that the others leave
  mesh.fsdp = 1                            # batch, and parameters split over it
  mesh.tensor = 1                          # heads, MLP and vocabulary split over it
  mesh.axes = axes = ConfigDict()          # logical axis of an array -> mesh axes it is split over
  axes.batch = ("data", "fsdp")
  axes.vocab = ("tensor", "fsdp")
  axes.embed = ("fsdp",)
  axes.heads = ("tensor",)
  axes.mlp = ("tensor",)

  config.train = train = ConfigDict()
  train.max_bad_steps = 20                 # steps in a row with a non-finite loss or gradient before the run stops

  config.eval = evaluation = ConfigDict()
  evaluation.every_steps = 1000            # 0: only at the end
  evaluation.batch_size = 64
  evaluation.max_rows = 0                  # validation rows; 0: all

  config.checkpoint = checkpoint = ConfigDict()
  checkpoint.every_steps = 1000            # 0: off
  checkpoint.every_minutes = 30.0          # 0: off
  checkpoint.keep = 3                      # newest steps kept

  config.log = log = ConfigDict()
  log.every_steps = 10
  log.tensorboard = True

  config.profile = profile = ConfigDict()
  profile.steps = ()                       # (first, last): trace these steps into workdir/profile

  config.system = system = ConfigDict()
  system.compilation_cache = "~/.cache/bertgpt/xla"  # empty: off
  system.hang_timeout_minutes = 30.0       # a step that takes longer ends the process with a stack; 0: off
  config.lock()
  return config


# ----------------------------------------------------------------- loading


def load(path: str) -> ConfigDict:
  """Runs the recipe `path` (or `path:argument`) and returns its config, locked.

  Raises:
    ConfigError: no such file, no `get_config`, or it raises.
  """
  module, argument = _load_module(path)
  if not hasattr(module, "get_config"):
    raise ConfigError(f"--config {path}: the file defines no get_config()")
  try:
    config = module.get_config(*argument)
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise ConfigError(f"--config {path}: {_one_line(e)}") from e
  config.lock()
  return config


def load_sweep(path: str) -> list[dict[str, Any]]:
  """The overrides of every run of the recipe's `get_sweep()`, as flat dicts."""
  module, _ = _load_module(path)
  if not hasattr(module, "get_sweep"):
    raise ConfigError(f"--config {path}: the file defines no get_sweep()")
  return [dict(overrides) for overrides in module.get_sweep()]


def _load_module(path: str):
  name, *argument = path.split(":", 1)
  if not os.path.isfile(name):
    raise ConfigError(f"--config {name}: no such file")
  spec = importlib.util.spec_from_file_location(pathlib.Path(name).stem, name)
  if spec is None:
    raise ConfigError(f"--config {name}: not a Python file")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except Exception as e:  # A recipe is the user's code: whatever it raises is theirs to mend.
    raise ConfigError(f"--config {name}: {_one_line(e)}") from e
  return module, argument


def override(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
  """Applies `--config.a.b=c` and `--config.phases[0].steps=c` arguments.

  Raises:
    ConfigError: one line for every argument that names no field or has the wrong type.
  """
  config = config.copy_and_resolve_references()
  config.phases = tuple(p.copy_and_resolve_references() for p in config.phases)
  problems = []
  for argument in arguments:
    field = argument.split("=", 1)[0].removeprefix("--config.")
    if "=" not in argument:
      problems.append(f"{argument}: give the value as --config.{field}=VALUE")
      continue
    if field not in (known := dict(_leaves(config))):
      close = difflib.get_close_matches(field, known, n=1)
      hint = f"; did you mean --config.{close[0]}?" if close else ""
      problems.append(f"--config.{field}: no such field{hint}")
      continue
    # A private flag registry: overrides are declared for this one call.
    registry = flags.FlagValues()
    argv = ["bertgpt", argument]
    config_flags.DEFINE_config_dict("config", config, flag_values=registry, sys_argv=argv)
    try:
      registry(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, IndexError):
      value = argument.split("=", 1)[1]
      problems.append(f"--config.{field}: expected {type(known[field]).__name__}, got {value!r}")
  if problems:
    raise ConfigError("\n".join(problems))
  config.lock()
  return config


def _leaves(config, prefix="") -> Iterator[tuple[str, Any]]:
  """('a.b', value) for every field, phases as 'phases[0].steps'."""
  if isinstance(config, ConfigDict):
    for name in config:
      yield from _leaves(config[name], f"{prefix}.{name}" if prefix else name)
  elif isinstance(config, (tuple, list)) and config and isinstance(config[0], ConfigDict):
    for i, item in enumerate(config):
      yield from _leaves(item, f"{prefix}[{i}]")
  else:
    yield prefix, config


def _one_line(e: Exception) -> str:
  return f"{type(e).__name__}: {' '.join(str(e).split())}"


# -------------------------------------------------------------------- JSON


def to_json(config: ConfigDict) -> str:
  """The config as JSON text; `from_json` is its inverse."""
  return json.dumps(_to_plain(config), indent=2)


def from_json(text: str) -> ConfigDict:
  """Rebuilds a config from JSON. Runs no code; lists become tuples again.

  Raises:
    ConfigError: the text is no config of this version, field by field.
  """
  config = base()
  try:
    stored = json.loads(text)
    config.phases = tuple(phase() for _ in stored["phases"])
  except (json.JSONDecodeError, KeyError, TypeError) as e:
    raise ConfigError(f"config.json is not the config of a run: {_one_line(e)}") from e
  problems = []
  fields = dict(_leaves(config))
  values = dict(_plain_leaves(stored))
  for field in fields.keys() - values.keys():
    problems.append(f"config.json lacks the field {field}")
  for field in values.keys() - fields.keys():
    problems.append(f"config.json has the unknown field {field}")
  for field in fields.keys() & values.keys():
    value = tuple(values[field]) if isinstance(values[field], list) else values[field]
    try:
      set_field(config, field, value)
    except TypeError:
      expected = type(fields[field]).__name__
      problems.append(f"config.json: {field}: expected {expected}, got {values[field]!r}")
  if problems:
    raise ConfigError("\n".join(sorted(problems)))
  return config


def set_field(config: ConfigDict, field: str, value) -> None:
  """Sets 'a.b' or 'phases[0].steps'."""
  *path, last = field.replace("[", ".").replace("]", "").split(".")
  for name in path:
    config = config[int(name)] if name.isdigit() else config[name]
  config[last] = value


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


def differences(old: ConfigDict, new: ConfigDict, allowed: Sequence[str] = ()) -> list[str]:
  """Lines 'field: old -> new' for fields that may not change when a run is resumed.

  Args:
    allowed: further fields, or groups of fields, that may change.
  """
  old_leaves, new_leaves = dict(_leaves(old)), dict(_leaves(new))
  lines = []
  for field in sorted(old_leaves.keys() | new_leaves.keys()):
    before, after = old_leaves.get(field, "(absent)"), new_leaves.get(field, "(absent)")
    if before != after and not _may_change(field, (*RESUMABLE, *allowed)):
      lines.append(f"{field}: {before!r} -> {after!r}")
  return lines


def _may_change(field: str, allowed: Sequence[str]) -> bool:
  if field.startswith("phases[") and field.endswith("].steps"):
    return True
  return any(field == name or field.startswith((f"{name}.", f"{name}[")) for name in allowed)


# -------------------------------------------------------------- validation


def total_steps(config: ConfigDict) -> int:
  return sum(p.steps for p in config.phases)


def phase_at(config: ConfigDict, step: int) -> tuple[int, int]:
  """(index of the phase that step `step` belongs to, first step of that phase)."""
  first = 0
  for i, p in enumerate(config.phases):
    if step < first + p.steps:
      return i, first
    first += p.steps
  raise IndexError(f"step {step} is beyond the last phase")


def max_predictions(config: ConfigDict, p: ConfigDict) -> int:
  """Prediction slots of a row in phase `p` (static: it is a shape)."""
  return p.max_predictions or max(1, round(p.seq_len * config.objective.mask_prob))


def max_sequences(config: ConfigDict, seq_len: int) -> int:
  """Sequences a row of `seq_len` tokens may hold (static: it is a shape)."""
  if not config.data.packing:
    return 1
  return config.data.max_sequences or max(2, seq_len // 32)


def padded_vocab_size(size: int) -> int:
  return -(-size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def validate(config: ConfigDict, num_devices: int | None = None) -> None:
  """Cross-checks the whole config before anything compiles.

  Args:
    num_devices: devices the mesh is laid over; None leaves these checks out.
  Raises:
    ConfigError: every problem found, one a line.
  """
  problems = [*_choice_problems(config), *_range_problems(config), *_model_problems(config)]
  problems += [line for i in range(len(config.phases)) for line in _phase_problems(config, i)]
  if num_devices is not None and not problems:
    problems += _mesh_problems(config, num_devices)
  if problems:
    raise ConfigError("\n".join(problems))


def _choice_problems(config):
  for field, choices in CHOICES.items():
    group, name = field.split(".")
    if config[group][name] not in choices:
      yield f"{field}={config[group][name]!r}: choose one of {', '.join(choices)}"
  for i, p in enumerate(config.phases):
    for name, choices in PHASE_CHOICES.items():
      if p[name] not in choices:
        yield f"phases[{i}].{name}={p[name]!r}: choose one of {', '.join(choices)}"


def _range_problems(config):
  at_least = {
      "data.prepare_workers": 0, "data.reader_workers": 0, "data.prefetch": 1,
      "data.max_sequences": 0, "tokenizer.vocab_size": 1, "tokenizer.train_bytes": 1,
      "model.num_layers": 1, "model.width": 1, "model.num_heads": 1, "model.mlp_dim": 1,
      "model.max_positions": 2, "model.num_segments": 0, "model.vocab_size": 0,
      "model.scan_unroll": 0, "optimizer.clip_norm": 0, "optimizer.weight_decay": 0,
      "train.max_bad_steps": 1, "eval.every_steps": 0, "eval.batch_size": 1,
      "eval.max_rows": 0, "checkpoint.every_steps": 0, "checkpoint.every_minutes": 0,
      "checkpoint.keep": 1, "log.every_steps": 1,
  }
  fractions = ("data.validation_fraction", "data.short_sequence_prob", "data.random_next_prob",
               "model.dropout", "model.attention_dropout", "objective.mask_prob",
               "objective.replace_with_mask", "objective.replace_with_random",
               "optimizer.b1", "optimizer.b2", "optimizer.momentum")
  values = dict(_leaves(config))
  for field, low in at_least.items():
    if values[field] < low:
      yield f"{field}={values[field]}: must be at least {low}"
  for field in fractions:
    if not 0 <= values[field] <= 1:
      yield f"{field}={values[field]}: must be between 0 and 1"
  if config.objective.replace_with_mask + config.objective.replace_with_random > 1:
    yield "objective.replace_with_mask + objective.replace_with_random: must not exceed 1"
  if config.profile.steps and len(config.profile.steps) != 2:
    yield f"profile.steps={config.profile.steps}: give (first, last)"


def _model_problems(config):
  model = config.model
  if model.width % model.num_heads:
    yield f"model.num_heads={model.num_heads} does not divide model.width={model.width}"
  if (model.family == "bert") == (config.objective.name == "causal"):
    yield (f"objective.name={config.objective.name!r} does not fit model.family={model.family!r}: "
           "bert takes mlm_nsp or mlm, gpt takes causal")
  if config.objective.name == "mlm_nsp" and model.num_segments < 2:
    yield f"model.num_segments={model.num_segments}: objective mlm_nsp needs 2"
  if not config.phases:
    yield "phases: give at least one phase"


def _phase_problems(config, i):
  p, name = config.phases[i], f"phases[{i}]"
  for field, low in (("steps", 1), ("seq_len", 8), ("batch_size", 1), ("micro_batches", 1),
                     ("max_predictions", 0), ("warmup_steps", 0)):
    if p[field] < low:
      yield f"{name}.{field}={p[field]}: must be at least {low}"
  for field in ("warmup_fraction", "end_fraction", "decay_fraction"):
    if not 0 <= p[field] <= 1:
      yield f"{name}.{field}={p[field]}: must be between 0 and 1"
  if p.seq_len > config.model.max_positions:
    yield f"{name}.seq_len={p.seq_len} is longer than model.max_positions={config.model.max_positions}"
  if p.micro_batches > 0 and p.batch_size % p.micro_batches:
    yield f"{name}.micro_batches={p.micro_batches} does not divide {name}.batch_size={p.batch_size}"
  if p.max_predictions > p.seq_len:
    yield f"{name}.max_predictions={p.max_predictions} exceeds {name}.seq_len={p.seq_len}"
  if p.warmup_steps and p.warmup_fraction:
    yield f"{name}: set warmup_steps or warmup_fraction, not both"
  if i == 0 and p.learning_rate_rule == "continuous":
    yield f"{name}.learning_rate_rule='continuous': the first phase has no curve before it"


def _mesh_problems(config, num_devices):
  mesh = config.mesh
  for axis in ("fsdp", "tensor"):
    if mesh[axis] < 1:
      return [f"mesh.{axis}={mesh[axis]}: must be at least 1"]
  rest = mesh.fsdp * mesh.tensor
  data = mesh.data
  if data == -1:
    if num_devices % rest:
      return [f"mesh.fsdp={mesh.fsdp} x mesh.tensor={mesh.tensor} does not divide the {num_devices} devices"]
    data = num_devices // rest
  if data * rest != num_devices:
    return [f"mesh data={data} x fsdp={mesh.fsdp} x tensor={mesh.tensor} = {data * rest} devices, "
            f"but there are {num_devices}"]
  problems = []
  for i, p in enumerate(config.phases):
    if (p.batch_size // p.micro_batches) % (data * mesh.fsdp):
      problems.append(f"phases[{i}]: a micro-batch of {p.batch_size // p.micro_batches} rows does not divide "
                      f"over data x fsdp = {data * mesh.fsdp} devices")
  if config.eval.batch_size % (data * mesh.fsdp):
    problems.append(f"eval.batch_size={config.eval.batch_size} does not divide over "
                    f"data x fsdp = {data * mesh.fsdp} devices")
  for field in ("num_heads", "mlp_dim"):
    if config.model[field] % mesh.tensor:
      problems.append(f"mesh.tensor={mesh.tensor} does not divide model.{field}={config.model[field]}")
  return problems
