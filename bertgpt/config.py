"""The one config: every field, its default, one comment; what follows from it; every check.

A recipe under `configs/` calls `base()`, sets the fields in which it differs and
returns the result. The config is locked: an unknown field is an error. Code reads
`config.a.b`; no other module holds a default.
"""

import math
from collections.abc import Iterator
from typing import Any

from ml_collections import config_dict

from bertgpt import compiler_options, kernels
from bertgpt.errors import ConfigError

ConfigDict = config_dict.ConfigDict

MESH_AXES = ("data", "fsdp", "tensor")

VOCAB_MULTIPLE = 128  # Lanes of a TPU matrix unit; the embedding table is padded to it.

CHOICES = {
    "data.invalid_text": ("error", "replace", "skip"),
    "tokenizer.kind": ("sentencepiece", "wordpiece", "bpe"),
    "tokenizer.model_type": ("unigram", "bpe"),
    "model.family": ("bert", "gpt"),
    "model.norm": ("post", "pre"),
    "model.position_init": ("normal", "sinusoid"),
    "model.activation": ("gelu_tanh", "gelu_erf"),
    "model.dtype": ("bfloat16", "float32"),
    "model.attention": ("auto", "xla", *kernels.LIMITED),
    "model.remat": ("none", "dots", "full"),
    "model.dropout_rng": ("hash", "threefry", "rbg"),
    "objective.name": ("mlm_nsp", "mlm", "causal"),
    "objective.bias_init": ("zeros", "frequencies"),
    "optimizer.name": ("bert_adamw", "adamw", "lamb", "nvlamb", "adafactor", "muon"),
    "system.xla_options": ("auto", "none", *compiler_options.SETS),
}
PHASE_CHOICES = {
    "schedule": ("linear", "polynomial", "cosine", "constant", "wsd"),
    "learning_rate_rule": ("continuous", "restart"),
}


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
  model.position_init = "normal"           # of the learned table: normal | sinusoid (neighbours are found sooner)
  model.position_init_std = 0.02           # sinusoid: its root mean square
  model.scale_residual_init = False        # GPT-2: projections into the residual start 1/sqrt(2 layers) smaller
  model.vocab_size = 0                     # 0: the tokenizer's; the table is padded to a multiple of 128
  model.dtype = "bfloat16"                 # of activations and products; parameters are float32
  model.attention = "auto"                 # kernel: auto | xla (the only one with attention dropout) | cudnn (GPU) | splash (TPU)
  model.remat = "none"                     # recompute in the backward pass: none | dots (keep matrix products) | full
  model.scan_unroll = 1                    # layers per iteration of the scan; 0: all, no loop
  # Generator of dropout masks. hash: of an element's place, nearly free, never in memory. threefry:
  # JAX's, 20 to 50 times dearer. rbg: JAX's fast one; every device draws the masks of all.
  model.dropout_rng = "hash"

  config.objective = objective = ConfigDict()
  objective.name = "mlm_nsp"               # mlm_nsp | mlm | causal
  objective.mask_prob = 0.15               # share of a row's tokens that is predicted
  objective.replace_with_mask = 0.8        # of these: share shown as [MASK] ...
  objective.replace_with_random = 0.1      # ... share shown as a random token; the rest is shown as it is
  objective.whole_words = False            # mask words, not pieces
  objective.bias_init = "zeros"            # masked LM's output bias starts as: zeros | frequencies (log of the tokens')
  # Positions of a device whose vocabulary logits are held at once. 0: as many as fit in
  # models.cross_entropy.CHUNK_BYTES; -1: all, with their gradient by plain differentiation.
  objective.loss_chunk = 0

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
  profile.steps = ()                       # first,last: trace these steps into workdir/profile, for xprof and TensorBoard

  config.system = system = ConfigDict()
  system.compilation_cache = "~/.cache/bertgpt/xla"  # empty: off
  system.hang_timeout_minutes = 30.0       # a step that takes longer ends the process with a stack; 0: off
  system.xla_options = "auto"              # for the compiler of the train step: auto (what overlaps communication, on several devices) | none | a set of compiler_options.SETS
  config.lock()
  return config


# ------------------------------------------------------- what follows from it


def leaves(config, prefix="") -> Iterator[tuple[str, Any]]:
  """('a.b', value) for every field, phases as 'phases[0].steps'."""
  if isinstance(config, ConfigDict):
    for name in config:
      yield from leaves(config[name], f"{prefix}.{name}" if prefix else name)
  elif isinstance(config, (tuple, list)) and config and isinstance(config[0], ConfigDict):
    for i, item in enumerate(config):
      yield from leaves(item, f"{prefix}[{i}]")
  else:
    yield prefix, config


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


# -------------------------------------------------------------- validation


AT_LEAST = {
    "seed": 0,
    "data.prepare_workers": 0, "data.reader_workers": 0, "data.prefetch": 1,
    "data.max_sequences": 0, "tokenizer.vocab_size": 1, "tokenizer.train_bytes": 1,
    "model.num_layers": 1, "model.width": 1, "model.num_heads": 1, "model.mlp_dim": 1,
    "model.max_positions": 2, "model.num_segments": 0, "model.vocab_size": 0,
    "model.layer_norm_epsilon": 0, "model.init_std": 0, "model.position_init_std": 0,
    "model.scan_unroll": 0, "objective.loss_chunk": -1, "optimizer.clip_norm": 0,
    "optimizer.epsilon": 0, "optimizer.weight_decay": 0, "train.max_bad_steps": 1, "eval.every_steps": 0,
    "eval.batch_size": 1, "eval.max_rows": 0, "checkpoint.every_steps": 0,
    "checkpoint.every_minutes": 0, "checkpoint.keep": 1, "log.every_steps": 1,
    "system.hang_timeout_minutes": 0, "mesh.fsdp": 1, "mesh.tensor": 1,
}
FRACTIONS = ("data.validation_fraction", "data.short_sequence_prob", "data.random_next_prob",
             "objective.mask_prob", "objective.replace_with_mask", "objective.replace_with_random")
BELOW_ONE = ("model.dropout", "model.attention_dropout", "optimizer.b1", "optimizer.b2",
             "optimizer.momentum")
PHASE_AT_LEAST = {"steps": 1, "seq_len": 8, "batch_size": 1, "micro_batches": 1,
                  "max_predictions": 0, "learning_rate": 0, "warmup_steps": 0, "power": 0}
PHASE_FRACTIONS = ("warmup_fraction", "end_fraction", "decay_fraction")

LOCAL_PATHS = ("init_from", "data.corpus", "data.cache_dir", "tokenizer.path",
               "system.compilation_cache")

# Logical axes of which one parameter has both: they must not be split over the same mesh axis.
AXES_TOGETHER = (("embed", "heads"), ("embed", "mlp"))


def validate(config: ConfigDict, num_devices: int | None = None, platform: str = "") -> None:
  """Cross-checks the whole config before anything compiles.

  Args:
    num_devices: devices the mesh is laid over; None leaves these checks out.
    platform: theirs, 'cpu', 'gpu' or 'tpu'; empty leaves these checks out.
  Raises:
    ConfigError: every problem found, one a line.
  """
  if problems := find_problems(config, num_devices, platform):
    raise ConfigError("\n".join(problems))


def find_problems(config: ConfigDict, num_devices: int | None = None,
                  platform: str = "") -> list[str]:
  """What `validate` objects to, one line each."""
  problems = [*_choice_problems(config), *_range_problems(config), *_model_problems(config),
              *_axes_problems(config), *_path_problems(config)]
  if any(not isinstance(p, ConfigDict) for p in config.phases) or not config.phases:
    return [*problems, "phases: give a tuple of at least one phase(...)"]
  for i, p in enumerate(config.phases):
    problems += _phase_problems(config, p, f"phases[{i}]")
  problems += [*_attention_problems(config, platform), *_slot_problems(config),
               *_profile_problems(config), *_option_problems(config, platform)]
  if num_devices is not None and min(config.mesh.fsdp, config.mesh.tensor) >= 1:
    problems += _mesh_problems(config, num_devices)
  return problems


def _choice_problems(config):
  for field, choices in CHOICES.items():
    group, name = field.split(".")
    yield from _outside(field, config[group][name], choices)


def _outside(field, value, choices):
  if value not in choices:
    yield f"{field}={value!r}: choose one of {', '.join(choices)}"


def _below(field, value, low):
  if not low <= value < math.inf:  # NaN is not either.
    yield f"{field}={value}: must be at least {low}" + (" and finite" if value >= low else "")


def _no_fraction(field, value):
  if not 0 <= value <= 1:
    yield f"{field}={value}: must be between 0 and 1"


def _range_problems(config):
  values = dict(leaves(config))
  for field, low in AT_LEAST.items():
    yield from _below(field, values[field], low)
  for field in FRACTIONS:
    yield from _no_fraction(field, values[field])
  for field in BELOW_ONE:
    if not 0 <= values[field] < 1:
      yield f"{field}={values[field]}: must be at least 0 and below 1"
  if config.objective.replace_with_mask + config.objective.replace_with_random > 1 + 1e-9:
    yield "objective.replace_with_mask + objective.replace_with_random: must not exceed 1"


def _path_problems(config):
  values = dict(leaves(config))
  for field in LOCAL_PATHS:
    if problem := remote_problem(values[field]):
      yield f"{field}={problem}"


def remote_problem(path: str) -> str | None:
  """What is wrong with a path on storage that is not mounted, as gs://bucket/file."""
  if "://" not in path:
    return None
  return (f"{path}: only local paths are read and written; mount the storage (for gs://: "
          "gcsfuse), or use a local or NFS path")


def _model_problems(config):
  model = config.model
  if model.num_heads > 0 and model.width % model.num_heads:
    yield f"model.num_heads={model.num_heads} does not divide model.width={model.width}"
  if (model.family == "bert") == (config.objective.name == "causal"):
    yield (f"objective.name={config.objective.name!r} does not fit model.family={model.family!r}: "
           "bert takes mlm_nsp or mlm, gpt takes causal")
  if config.objective.name == "mlm_nsp" and model.num_segments < 2:
    yield f"model.num_segments={model.num_segments}: objective mlm_nsp needs 2"
  if config.objective.name == "causal" and config.objective.bias_init != "zeros":
    yield "objective.bias_init: a GPT has no output bias; leave it at zeros"
  if config.objective.name != "causal" and config.objective.mask_prob == 0:
    yield "objective.mask_prob=0.0: nothing would be predicted; 0.15 is BERT's"


def _axes_problems(config):
  axes = config.mesh.axes
  for name in axes:
    for axis in axes[name]:
      if axis not in MESH_AXES:
        yield f"mesh.axes.{name} names {axis!r}: choose among {', '.join(MESH_AXES)}"
    if len(set(axes[name])) < len(axes[name]):
      yield f"mesh.axes.{name}={tuple(axes[name])} names an axis twice"
  for one, other in AXES_TOGETHER:
    if shared := set(axes[one]) & set(axes[other]):
      yield (f"mesh.axes.{one} and mesh.axes.{other} both name {', '.join(sorted(shared))}: "
             "a parameter has both, and can be split over it once")


def _phase_problems(config, p, name):
  for field, choices in PHASE_CHOICES.items():
    yield from _outside(f"{name}.{field}", p[field], choices)
  for field, low in PHASE_AT_LEAST.items():
    yield from _below(f"{name}.{field}", p[field], low)
  for field in PHASE_FRACTIONS:
    yield from _no_fraction(f"{name}.{field}", p[field])
  if p.seq_len > config.model.max_positions:
    yield (f"{name}.seq_len={p.seq_len} is longer than "
           f"model.max_positions={config.model.max_positions}")
  if p.micro_batches > 0 and p.batch_size % p.micro_batches:
    yield f"{name}.micro_batches={p.micro_batches} does not divide {name}.batch_size={p.batch_size}"
  if p.max_predictions > p.seq_len:
    yield f"{name}.max_predictions={p.max_predictions} exceeds {name}.seq_len={p.seq_len}"
  if p.warmup_steps and p.warmup_fraction:
    yield f"{name}: set warmup_steps or warmup_fraction, not both"
  if name == "phases[0]" and p.learning_rate_rule == "continuous":
    yield f"{name}.learning_rate_rule='continuous': the first phase has no curve before it"


def _attention_problems(config, platform):
  model = config.model
  if model.attention not in kernels.LIMITED or model.num_heads < 1:
    return
  found = {}  # A set in order: most obstacles are the same in every phase.
  for p in config.phases:
    found |= dict.fromkeys(kernels.obstacles(
        model.attention, platform, model.dtype, p.seq_len, model.width // model.num_heads,
        model.attention_dropout))
  for obstacle in found:
    yield f"model.attention={model.attention!r} needs {obstacle}; 'auto' chooses what can run"


def _slot_problems(config):
  slots = {}
  for i, p in enumerate(config.phases):
    first = slots.setdefault(p.seq_len, max_predictions(config, p))
    if first != max_predictions(config, p):
      yield (f"phases[{i}].max_predictions={p.max_predictions}: an earlier phase of the same "
             f"seq_len={p.seq_len} has {first}; give both the same")


def _profile_problems(config):
  steps = config.profile.steps
  if steps and not (len(steps) == 2 and all(isinstance(step, int) for step in steps)
                    and 1 <= steps[0] <= steps[1] <= total_steps(config)):
    yield f"profile.steps={steps}: give (first, last), counted from 1, within the run's steps"


def _option_problems(config, platform):
  name = config.system.xla_options
  if name in compiler_options.SETS and platform not in ("", compiler_options.SETS[name].platform):
    yield f"system.xla_options={name!r} is not for platform {platform!r}; 'auto' takes what fits"


def _mesh_problems(config, num_devices):
  mesh, data = config.mesh, config.mesh.data
  rest = mesh.fsdp * mesh.tensor
  if data == -1:
    if num_devices % rest:
      return [f"mesh.fsdp={mesh.fsdp} x mesh.tensor={mesh.tensor} does not divide the "
              f"{num_devices} devices"]
    data = num_devices // rest
  if data * rest != num_devices:
    return [f"mesh data={data} x fsdp={mesh.fsdp} x tensor={mesh.tensor} = {data * rest} devices, "
            f"but there are {num_devices}; mesh.data=-1 takes all that the others leave"]
  problems = []
  for i, p in enumerate(config.phases):
    rows = p.batch_size // max(1, p.micro_batches)
    if rows % (data * mesh.fsdp):
      problems.append(f"phases[{i}]: a micro-batch of {rows} rows does not divide "
                      f"over data x fsdp = {data * mesh.fsdp} devices")
  if config.eval.batch_size % (data * mesh.fsdp):
    problems.append(f"eval.batch_size={config.eval.batch_size} does not divide over "
                    f"data x fsdp = {data * mesh.fsdp} devices")
  for field in ("num_heads", "mlp_dim"):
    if config.model[field] % mesh.tensor:
      problems.append(f"mesh.tensor={mesh.tensor} does not divide "
                      f"model.{field}={config.model[field]}")
  return problems
