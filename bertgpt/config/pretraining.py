"""The config of pretraining: every field with its default and a comment.

A recipe under `configs/` calls `base()`, changes some of the fields and returns the result. The
config is locked, so an unknown field is an error. Code reads `config.a.b`, and no other module
has a default.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections.config_dict import ConfigDict

from bertgpt.config import (
    attention_kernels,
    choices,
    compiler_options,
    families,
    rematerialization,
)

MESH_AXES = ("data", "fsdp", "tensor")

CHOICES = {
    "data.invalid_text": ("error", "replace", "skip"),
    "tokenizer.kind": ("sentencepiece", "wordpiece", "bpe", "words", "gpt1_bpe", "unigram"),
    "tokenizer.model_type": ("unigram", "bpe"),
    "model.family": tuple(families.FAMILIES),
    "model.norm": tuple(choices.NORMS),
    "model.norm_kind": tuple(choices.NORM_KINDS),
    "model.position": tuple(choices.POSITIONS),
    "model.embedding_sharing": ("shared", "gdes", "none"),
    "model.position_init": ("normal", "sinusoid"),
    "model.mlp": ("plain", "gated"),
    "model.activation": ("gelu_tanh", "gelu_erf", "silu"),
    "model.dropout_at": ("all", "attention"),
    "model.pooling": ("cls", "mean"),
    "model.dtype": ("bfloat16", "float32"),
    "model.matmul": ("bf16", "fp8"),
    "model.attention": ("auto", "xla", *attention_kernels.FUSED),
    "model.remat": rematerialization.CHOICES,
    "model.dropout_rng": ("hash", "threefry", "rbg"),
    "train.spike_guard": ("off", "skip"),
    "eval.rows_by": ("length", "phase"),
    "objective.name": tuple(choices.OBJECTIVES),
    "objective.mask_rule": tuple(choices.SLOTS_OF_MASK_RULE),
    "objective.bias_init": ("zeros", "frequencies"),
    "optimizer.name": tuple(choices.OPTIMIZERS),
    "optimizer.decay_rule": ("weights", "all"),
    "system.xla_options": ("auto", "none", *compiler_options.SETS),
}
PHASE_CHOICES = {
    "schedule": tuple(choices.SCHEDULES),
    "learning_rate_rule": ("continuous", "restart"),
    "warmup_rule": ("replace", "before", "multiply"),
}


def phase(**overrides: Any) -> ConfigDict:
  """Returns the config of a training phase: steps with one sequence length and batch size.

  Args:
    **overrides: values of fields that differ from the defaults below.
  """
  fields = ConfigDict()
  fields.steps = 1000                      # updates of the parameters
  fields.seq_len = 128                     # tokens per row
  fields.batch_size = 256                  # rows per step, over all devices
  # Corpora and their weights, 'NAME=WEIGHT,NAME=WEIGHT': names of data.corpora, or main (the corpus
  # of the run). The rows continue where earlier phases ended. '': main, from its beginning.
  fields.mixture = ""
  fields.micro_batches = 1                 # gradient accumulation: parts a batch is split into
  # Masked positions per row; 0: as many as mask_prob and objective.mask_rule need.
  fields.max_predictions = 0
  fields.mask_prob = 0.0                   # 0: objective.mask_prob
  fields.rope_theta = 0.0                  # 0: model.rope_theta
  fields.rope_theta_local = 0.0            # 0: model.rope_theta_local
  # continuous: the learning rate follows the curve of the previous phase, which then spans both
  # phases (BERT). restart: the phase has its own curve from step 0 (NVIDIA's LAMB recipe).
  fields.learning_rate_rule = "restart"
  fields.learning_rate = 1e-4              # peak
  fields.schedule = "linear"               # linear | polynomial | cosine | constant | wsd
  fields.warmup_steps = 0                  # steps of linear warm-up from 0; 0: none
  fields.warmup_fraction = 0.0             # warm-up as a share of the curve's steps; 0: none
  # linear, polynomial: warm-up replaces the beginning of the decay (BERT), comes before it
  # (RoBERTa), or multiplies it (ELECTRA): replace | before | multiply.
  fields.warmup_rule = "replace"
  fields.end_fraction = 0.0                # learning rate at the end, as a share of the peak
  # polynomial: exponent. wsd: the decay is 1 - t ** power (1: linear, 0.5: 1-sqrt).
  fields.power = 1.0
  fields.decay_fraction = 0.1              # wsd: share of the steps with a decaying rate
  fields.lock()
  fields.update(overrides)
  return fields


def base() -> ConfigDict:
  """Returns a config with every field at its default, locked.

  Comments of fields with a special value name it as `VALUE: meaning`.
  """
  config = ConfigDict()
  config.seed = 0                          # seed of initial parameters, batches, masks, dropout
  # Workdir whose newest parameters training starts from, with a new optimizer state; '': none.
  config.init_from = ""

  config.data = data = ConfigDict()
  # pydocs | text:GLOB | text+paragraphs:GLOB | jsonl:GLOB#field | parquet:GLOB#column |
  # parquet+sentences:GLOB#column | tfds:name:split#feature, or several, separated by commas.
  # 'validation*' before one makes it the validation split.
  data.source = "pydocs"
  data.corpus = ""                         # prepared corpus; '': prepare `source` under `cache_dir`
  # More prepared corpora, 'NAME=PATH,NAME=PATH', for phases[].mixture or to be scored with
  # eval.corpora, all with the tokenizer of data.corpus.
  data.corpora = ""
  data.cache_dir = "~/.cache/bertgpt"      # folder of prepared corpora and trained tokenizers
  # Share of documents held out, chosen by their hash; 1: all. With 'validation*' in source: 0.
  data.validation_fraction = 0.01
  data.invalid_text = "error"              # for invalid UTF-8 and NUL: error | replace | skip
  data.language = "en"                     # ISO 639-1 code, for splitting text into sentences
  data.prepare_workers = 0                 # processes that prepare the corpus; 0: one per core
  data.reader_workers = 0                  # processes that assemble batches; 0: threads instead
  data.prefetch = 2                        # batches that are kept ready on the device
  data.packing = True                      # whether several sequences share a row
  data.max_sequences = 0                   # sequences per row, at most; 0: max(2, seq_len // 32)
  # Pairs, and halves (rtd): share of passes through a document that aim at a shorter length.
  data.short_sequence_prob = 0.1
  # mlm_nsp, plm, plm_memory: share of pairs whose second part comes from another document.
  data.random_next_prob = 0.5
  # GPT, and mlm and diffusion with packing: whether every document of a row is a sequence of its
  # own, without attention across documents and with positions that restart.
  data.isolate_documents = False
  # mlm and diffusion with packing: a sentence is cut at the end of a row only if more than this
  # share of the row would otherwise stay empty. 1: only sentences longer than a row (RoBERTa).
  data.max_unused = 1 / 16

  config.tokenizer = tokenizer = ConfigDict()
  # Kind of a newly trained tokenizer: sentencepiece | wordpiece | bpe (byte-level) | words (whole
  # words, for elmo). With `path` or `data.corpus`, the kind of that tokenizer, which may also be
  # gpt1_bpe or unigram.
  tokenizer.kind = "sentencepiece"
  # File or folder of a trained tokenizer; '': train one on `data.source`.
  tokenizer.path = ""
  tokenizer.vocab_size = 8192              # ids of a newly trained tokenizer
  tokenizer.model_type = "unigram"         # sentencepiece: unigram | bpe
  # sentencepiece, wordpiece, words: whether a new tokenizer lower-cases text; also for a vocab.txt
  # if the files next to it do not say so.
  tokenizer.lowercase = True
  tokenizer.train_bytes = 50_000_000       # bytes of text sampled to train the tokenizer

  config.model = model = ConfigDict()
  model.family = "bert"                    # architecture, see reference/families.md
  model.num_layers = 12                    # layers; electra: of each of its two models
  model.width = 768                        # features per token
  model.num_heads = 12                     # attention heads; they divide the width
  model.mlp_dim = 3072                     # features in the middle of the MLP (elmo: of an LSTM)
  # albert, electra: width of the embedding tables; 0: model.width.
  model.embedding_width = 0
  model.layer_groups = 0                   # albert: groups of layers that share parameters; 0: none
  # electra: width of the generator, the masked LM that replaces tokens.
  model.generator_width = 64
  model.generator_num_heads = 1            # electra: attention heads of the generator
  model.generator_mlp_dim = 256            # electra: features in the middle of its MLP
  # electra: whether both models have the same embeddings (shared), or the discriminator adds to
  # the generator's tables without training them (gdes), or each has its own (none).
  model.embedding_sharing = "shared"
  model.character_width = 16               # elmo: width of the character embeddings
  # elmo: (width, number) of the filters over the characters.
  model.filters = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))
  model.num_highways = 2                   # elmo: highway layers above the filters
  model.state_clip = 3.0                   # elmo: largest cell and hidden state; 0: no limit
  model.lstm_residual = True               # elmo: whether LSTMs above the first add their input
  # elmo: number of most frequent words that are predicted; others are predicted as [UNK]. 0: all.
  model.target_words = 0
  model.max_positions = 512                # tokens per row, at most
  model.num_segments = 2                   # embeddings of the parts of a pair; 0: none
  # LayerNorm after the residual (post: BERT, GPT-1) or before the block (pre: GPT-2).
  model.norm = "post"
  # pre: whether the first layer skips the norm before attention (ModernBERT: embeddings have one).
  model.skip_first_norm = False
  model.norm_kind = "layer"                # layer (LayerNorm) | rms (RMSNorm)
  model.norm_bias = True                   # layer: whether norms have a bias
  model.layer_norm_epsilon = 1e-12         # added to the variance in norms
  model.use_bias = True                    # whether dense layers have a bias
  # plain: activation(up) | gated: activation(gate) * up, with one more matrix (GeGLU, SwiGLU).
  model.mlp = "plain"
  model.activation = "gelu_tanh"           # gelu_tanh | gelu_erf | silu
  # Keys that the queries of local layers see on each side; 0: every layer sees all keys.
  model.window = 0
  # With a window: layers 0, N, 2 N, ... see all keys; 0: none does.
  model.global_every = 3
  # learned: a table | rope: rotated queries and keys | relative: distances in the scores of
  # attention (xlnet) | none.
  model.position = "learned"
  model.rope_theta = 10_000.0              # rope: base of the wavelengths
  model.rope_theta_local = 10_000.0        # rope: base in local layers
  model.dropout = 0.1                      # share of activations that are set to 0; see dropout_at
  # all: embeddings, outputs of attention and MLP | attention: outputs of attention (ModernBERT).
  model.dropout_at = "all"
  model.attention_dropout = 0.1            # on the weights of attention
  # Features that represent a text in tasks: cls (those of its [CLS]) | mean (over all tokens).
  model.pooling = "cls"
  model.init_std = 0.02                    # standard deviation of initial kernels and embeddings
  # Whether normal initialization is truncated at two standard deviations (BERT) or not (GPT).
  model.truncated_init = True
  # learned: initial embeddings: normal | sinusoid (attention to neighbors is learned sooner).
  model.position_init = "normal"
  model.position_init_std = 0.02           # for sinusoid, the root mean square
  # GPT-2: whether projections into the residual stream are scaled by 1 / sqrt(2 * num_layers).
  model.scale_residual_init = False
  # 0: size of the tokenizer. The embedding table is padded to a multiple of 128.
  model.vocab_size = 0
  model.dtype = "bfloat16"                 # type of activations and matmuls; parameters: float32
  # Matmuls of features and weights. bf16: in dtype; fp8: in float8, for chips that have it, except
  # the output layers. MFU stays relative to bfloat16.
  model.matmul = "bf16"
  # Kernel: auto | xla (any platform) | flash (our own, has attention dropout) | cudnn (GPU) |
  # splash (TPU).
  model.attention = "auto"
  # Values saved for the backward pass, which recomputes all others: none (all that
  # differentiation needs) | products (results of matmuls, sums and softmax) | dots (results of
  # matmuls) | full (only the inputs of layers) | auto (products on TPUs, none elsewhere).
  model.remat = "auto"
  # Layers per iteration of their loop; 0: all, so no loop; -1: at most 24 on GPUs, 1 elsewhere.
  model.scan_unroll = -1
  # Generator of dropout masks. hash: hash of the element's index, nearly free, never in memory.
  # threefry: JAX's default, 20 to 50 times slower. rbg: JAX's fast generator; every device draws
  # the masks of all devices.
  model.dropout_rng = "hash"

  config.objective = objective = ConfigDict()
  objective.name = "mlm_nsp"               # what is predicted, see reference/families.md
  objective.mask_prob = 0.15               # share of a row's tokens that are predicted
  # bert | fairseq (RoBERTa: special tokens are predicted too, the number of predicted tokens is
  # rounded at random, and random tokens are never special) | bernoulli (ModernBERT: an independent
  # draw for every token, special tokens included, decides whether it is predicted).
  objective.mask_rule = "bert"
  objective.replace_with_mask = 0.8        # share of the predicted tokens shown as [MASK] ...
  objective.replace_with_random = 0.1      # ... or as a random token; the rest is shown unchanged
  objective.whole_words = False            # whether whole words are masked, not single pieces
  objective.ngram = 1                      # words masked together, at most (ALBERT: 3, XLNet: 5)
  objective.bias_init = "zeros"            # output bias: zeros | frequencies (log), or init_from's
  objective.rtd_weight = 50.0              # rtd: factor on the discriminator's loss
  # plm: tokens of a row that are permuted together; they do not see the tokens after them. 0: all.
  # plm_memory: a row also advances by this number of tokens per step.
  objective.permutation_block = 256
  objective.memory = 384                   # plm_memory: tokens before a row that it sees
  # Positions per device whose vocabulary logits are in memory at the same time. 0: as many as fit
  # in models.cross_entropy.chunk_bytes; -1: all, differentiated by JAX.
  objective.loss_chunk = 0

  config.optimizer = optimizer = ConfigDict()
  optimizer.name = "bert_adamw"            # update rule, see reference/families.md
  optimizer.b1 = 0.9                       # decay rate of the average of gradients
  optimizer.b2 = 0.999                     # decay rate of the average of squared gradients
  optimizer.epsilon = 1e-6                 # added to the denominator of the update
  optimizer.weight_decay = 0.01            # decay per step, times the learning rate
  # Parameters that decay: weights (all but biases and LayerNorm) | all (RoBERTa).
  optimizer.decay_rule = "weights"
  # Regular expression: parameters whose paths it matches are not trained. In fine-tuning,
  # '^body/(?!mix|pooler|mlm|lm)' leaves the pretrained embeddings and layers as they are.
  optimizer.freeze = ""
  # Learning rate of a layer as a share of that of the layer above it, for fine-tuning; 1: the same.
  optimizer.layer_decay = 1.0
  optimizer.clip_norm = 1.0                # maximum norm of the global gradient; 0: no limit
  optimizer.momentum = 0.95                # muon
  optimizer.initial_accumulator = 0.1      # adagrad: initial sum of squared gradients

  config.phases = (phase(),)

  config.mesh = mesh = ConfigDict()
  # Devices that the batch is split over; -1: all remaining devices.
  mesh.data = -1
  mesh.fsdp = 1                            # devices that batch and parameters are split over
  mesh.tensor = 1                          # devices that heads, MLP and vocabulary are split over
  mesh.axes = axes = ConfigDict()          # logical axis of an array -> mesh axes it is split over
  axes.batch = ("data", "fsdp")            # rows of a batch
  axes.vocab = ("tensor", "fsdp")          # rows of the embedding table
  axes.embed = ("fsdp",)                   # features of the residual stream, in parameters
  axes.heads = ("tensor",)                 # attention heads
  axes.mlp = ("tensor",)                   # features in the middle of the MLP

  config.train = train = ConfigDict()
  # Consecutive steps that are not applied (not finite, or a spike) after which the run stops.
  train.max_bad_steps = 20
  # off | skip: a step is not applied if its loss or the norm of its gradient is a spike: more than
  # `spike_factor` times the median of the last `spike_window` applied steps.
  train.spike_guard = "off"
  train.spike_factor = 3.0                 # smallest spike, in medians
  train.spike_window = 128                 # applied steps of the median
  # ((first, last), ...): steps to skip, counted from 1, for example after `bertgpt rollback`.
  train.skip_steps = ()

  config.eval = evaluation = ConfigDict()
  evaluation.every_steps = 1000            # 0: only at the end
  evaluation.batch_size = 64               # rows per step of an evaluation, over all devices
  evaluation.max_rows = 0                  # validation rows; 0: all
  evaluation.mask_prob = 0.0               # share that is predicted; 0: as in the phase
  # Whether the held-out documents of the corpora in data.corpora are scored too, as eval/NAME/...
  evaluation.corpora = False
  # length: the same rows for all phases of one row length | phase: as drawn by earlier versions.
  evaluation.rows_by = "length"

  config.checkpoint = checkpoint = ConfigDict()
  checkpoint.every_steps = 1000            # 0: not by steps
  checkpoint.every_minutes = 30.0          # 0: not by time
  checkpoint.keep = 3                      # newest checkpoints kept
  checkpoint.keep_every_steps = 0          # one per N steps is kept permanently; 0: none
  # Held-out metric whose best checkpoint is kept, such as mlm_loss or mlm_accuracy; '': none.
  checkpoint.keep_best = ""
  config.log = log = ConfigDict()
  log.every_steps = 10                     # steps per line of the log and of metrics.jsonl
  log.tensorboard = True                   # whether TensorBoard events are written too
  log.trackers = ""                        # wandb, trackio or both, which also show the curves
  log.project = "bertgpt"                  # project in which the trackers show the run
  log.group = ""                           # group of runs, such as a sweep; '': none
  config.profile = profile = ConfigDict()
  # (first, last): steps traced into workdir/profile, for xprof and TensorBoard; (): none.
  profile.steps = ()

  config.system = system = ConfigDict()
  # Folder of compiled programs; JAX_COMPILATION_CACHE_DIR replaces the default; '': none.
  system.compilation_cache = "~/.cache/bertgpt/xla"
  # A step that takes longer ends the process and prints its stacks; 0: no limit.
  system.hang_timeout_minutes = 30.0
  # Extra time for a step that needs programs to be compiled; 0: no limit for such a step.
  system.compile_timeout_minutes = 120.0
  # Compiler options of the train step: auto (on several devices, overlap of communication; on GPUs,
  # matmuls in cuBLAS) | none | a name of compiler_options.SETS.
  system.xla_options = "auto"
  config.lock()
  return config


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields ('a.b', value) for every field; fields of phases are named 'phases[0].steps'.

  Args:
    config: config, or a part of one.
    prefix: path of the part within the whole config.
  """
  if isinstance(config, ConfigDict):
    for name in config:
      yield from leaves(config[name], f"{prefix}.{name}" if prefix else name)
  elif isinstance(config, (tuple, list)) and config and isinstance(config[0], ConfigDict):
    for i, item in enumerate(config):
      yield from leaves(item, f"{prefix}[{i}]")
  else:
    yield prefix, config
