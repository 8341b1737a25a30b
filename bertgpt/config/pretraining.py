"""The one config: every field, its default, one comment; what follows from it; every check.

A recipe under `configs/` calls `base()`, sets the fields in which it differs and
returns the result. The config is locked: an unknown field is an error. Code reads
`config.a.b`; no other module holds a default.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import config_dict

from bertgpt.config import attention_kernels, choices, compiler_options, families

ConfigDict = config_dict.ConfigDict

MESH_AXES = ("data", "fsdp", "tensor")

VOCAB_MULTIPLE = 128  # Lanes of a TPU matrix unit; the embedding table is padded to it.

CHOICES = {
    "data.invalid_text": ("error", "replace", "skip"),
    "tokenizer.kind": ("sentencepiece", "wordpiece", "bpe"),
    "tokenizer.model_type": ("unigram", "bpe"),
    "model.family": tuple(families.FAMILIES),
    "model.norm": ("post", "pre"),
    "model.position_init": ("normal", "sinusoid"),
    "model.activation": ("gelu_tanh", "gelu_erf"),
    "model.dtype": ("bfloat16", "float32"),
    "model.attention": ("auto", "xla", *attention_kernels.LIMITED),
    "model.remat": ("none", "dots", "full"),
    "model.dropout_rng": ("hash", "threefry", "rbg"),
    "objective.name": tuple(choices.OBJECTIVES),
    "objective.bias_init": ("zeros", "frequencies"),
    "optimizer.name": tuple(choices.OPTIMIZERS),
    "system.xla_options": ("auto", "none", *compiler_options.SETS),
}
PHASE_CHOICES = {
    "schedule": tuple(choices.SCHEDULES),
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
  model.embedding_width = 0                # albert: width of the embedding tables; 0: model.width
  model.layer_groups = 0                   # albert: groups of layers that share their parameters; 0: none share
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


def predicted_share(config: ConfigDict, p: ConfigDict) -> float:
  """Returns the share of a row's tokens that the output layer is computed for in phase `p`."""
  if choices.OBJECTIVES[config.objective.name].predicts_all:
    return 1.0
  return max_predictions(config, p) / p.seq_len


def max_sequences(config: ConfigDict, seq_len: int) -> int:
  """Sequences a row of `seq_len` tokens may hold (static: it is a shape)."""
  if not config.data.packing:
    return 1
  return config.data.max_sequences or max(2, seq_len // 32)


def padded_vocab_size(size: int) -> int:
  return -(-size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
