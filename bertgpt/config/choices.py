"""Choices that a config makes by name, and the fields that each choice reads.

A field that only other choices read must keep its default: `unread` refuses a config that sets the
field to another value, because that value would have no effect.

The two halves of an objective are in `bertgpt/data/batches/ROWS.py` and
`bertgpt/training/objectives/NAME.py`; an optimizer is in `bertgpt/training/optimizers/NAME.py`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple


class ObjectiveRecord(NamedTuple):
  """What a config and the data need to know about a pretraining objective.

  Attributes:
    rows: row format of its batches, a module of `data.batches`.
    needs: special tokens that the tokenizer must have.
    loss: metric of its language-model loss, for which a perplexity is shown.
    predicts_all: whether every token of a row is predicted, not only a share of `mask_prob`.
    has_pairs: whether a sequence has two parts, which the model distinguishes by their segments.
    reads: fields of the config that this objective reads, but some other objective does not.
    other_metrics: held-out metrics besides the loss, accuracy and perplexity of the language model.
    counts_bytes: whether the loss covers whole texts with their ends, so that bits per byte can be
      computed from it.
    continues_rows: whether a row continues the same row of the previous step.
    has_target_stream: whether the predicted tokens are queries of their own, after those of the
      tokens of the row.
    abilities: those of `families.ABILITIES` that this objective gives a model, besides those of
      its family.
    exported_as: objective under which `transformers` has the same model; '': this one.
  """

  rows: str
  needs: tuple[str, ...]
  loss: str
  predicts_all: bool
  has_pairs: bool
  reads: frozenset[str]
  other_metrics: tuple[str, ...] = ()
  counts_bytes: bool = False
  continues_rows: bool = False
  has_target_stream: bool = False
  abilities: frozenset[str] = frozenset()
  exported_as: str = ""


_MASKS = frozenset({
    "eval.mask_prob", "objective.mask_prob", "objective.mask_rule", "objective.replace_with_mask",
    "objective.replace_with_random", "objective.whole_words", "objective.ngram",
    "objective.bias_init"})
_PACKED = frozenset({"data.packing"})
_PAIRS = _PACKED | {"data.short_sequence_prob", "data.max_sequences"}

_PERMUTED = frozenset({
    "data.random_next_prob", "eval.mask_prob", "objective.mask_prob", "objective.whole_words",
    "objective.ngram", "objective.bias_init", "objective.permutation_block"})

OBJECTIVES = {
    "mlm_nsp": ObjectiveRecord(
        rows="pairs", needs=("cls", "sep", "mask"), loss="mlm_loss",
        predicts_all=False, has_pairs=True, reads=_MASKS | _PAIRS | {"data.random_next_prob"},
        other_metrics=("nsp_loss", "nsp_accuracy")),
    "mlm": ObjectiveRecord(
        rows="sentences", needs=("cls", "sep", "mask"), loss="mlm_loss",
        predicts_all=False, has_pairs=False,
        reads=_MASKS | _PACKED | {"data.max_unused", "data.isolate_documents"}),
    "mlm_sop": ObjectiveRecord(
        rows="ordered_pairs", needs=("cls", "sep", "mask"), loss="mlm_loss",
        predicts_all=False, has_pairs=True, reads=_MASKS | _PAIRS,
        other_metrics=("sop_loss", "sop_accuracy")),
    "rtd": ObjectiveRecord(
        rows="halves", needs=("cls", "sep", "mask"), loss="mlm_loss",
        predicts_all=False, has_pairs=True, reads=_MASKS | _PAIRS | {"objective.rtd_weight"},
        other_metrics=("rtd_loss", "rtd_accuracy", "rtd_precision", "rtd_recall")),
    "diffusion": ObjectiveRecord(
        rows="sentences", needs=("cls", "sep", "mask"), loss="diffusion_loss",
        predicts_all=True, has_pairs=False,
        reads=_PACKED | {"objective.bias_init", "data.max_unused", "data.isolate_documents"},
        abilities=frozenset({"unmask"}), exported_as="mlm"),
    "plm": ObjectiveRecord(
        rows="pairs_then_cls", needs=("cls", "sep"), loss="plm_loss",
        predicts_all=False, has_pairs=True, reads=_PERMUTED | _PAIRS,
        has_target_stream=True),
    "plm_memory": ObjectiveRecord(
        rows="reused_pairs", needs=("cls", "sep"), loss="plm_loss",
        predicts_all=False, has_pairs=True, reads=_PERMUTED | {"objective.memory"},
        continues_rows=True, has_target_stream=True, exported_as="plm"),
    "causal": ObjectiveRecord(
        rows="blocks", needs=("eod",), loss="lm_loss",
        predicts_all=True, has_pairs=False, reads=_PACKED | {"data.isolate_documents"},
        counts_bytes=True),
    "bilm": ObjectiveRecord(
        rows="streams", needs=("cls", "sep", "unk"), loss="bilm_loss",
        predicts_all=True, has_pairs=False, reads=frozenset(),
        other_metrics=("forward_loss", "backward_loss"), continues_rows=True),
}

# Rule for choosing the predicted tokens -> (expected number in a full row -> slots that it needs).
SLOTS_OF_MASK_RULE: dict[str, Callable[[float], int]] = {
    "bert": round, "fairseq": math.ceil,
    # Four standard deviations above the mean: one row in 30,000 draws more, and loses the rest.
    "bernoulli": lambda count: math.ceil(count + 4 * math.sqrt(count)),
}

_ADAM = frozenset({"optimizer.b1", "optimizer.b2", "optimizer.epsilon"})

_CLIP = frozenset({"optimizer.clip_norm"})

# Name -> fields that this optimizer reads, but some other optimizer does not.
OPTIMIZERS = {
    "bert_adamw": _ADAM | _CLIP,
    "adamw": _ADAM | _CLIP,
    "fairseq_adamw": _ADAM | _CLIP,
    "lamb": _ADAM | _CLIP,
    "nvlamb": _ADAM,  # Divides every gradient by its norm.
    "albert_lamb": _ADAM | _CLIP,
    "stable_adamw": _ADAM | _CLIP,
    "adafactor": _CLIP,
    "adagrad": _CLIP | {"optimizer.initial_accumulator"},
    "muon": _ADAM | _CLIP | {"optimizer.momentum"},
}

# Choice -> fields that it reads, but some other choice does not.
PACKING = {
    True: frozenset({"data.max_sequences", "data.max_unused", "data.isolate_documents"}),
    False: frozenset(),
}
SPIKE_GUARDS = {
    "off": frozenset(),
    "skip": frozenset({"train.spike_factor", "train.spike_window"}),
}
NORMS = {"post": frozenset(), "pre": frozenset({"model.skip_first_norm"})}
NORM_KINDS = {"layer": frozenset({"model.norm_bias"}), "rms": frozenset()}
POSITIONS = {
    "learned": frozenset({"model.position_init", "model.position_init_std"}),
    "rope": frozenset({"model.rope_theta", "model.rope_theta_local"}),
    "relative": frozenset(),
    "none": frozenset(),
}

# Kind of a tokenizer that is trained -> fields that it reads, but some other kind does not.
_CASE = frozenset({"tokenizer.lowercase"})
TOKENIZERS = {
    "sentencepiece": _CASE | {"tokenizer.model_type"},
    "wordpiece": _CASE,
    "bpe": frozenset(),
    "words": _CASE,
}

# Name -> fields of a phase that this schedule reads, but some other schedule does not.
SCHEDULES = {
    "linear": frozenset({"end_fraction", "warmup_rule"}),
    "polynomial": frozenset({"end_fraction", "power", "warmup_rule"}),
    "cosine": frozenset({"end_fraction"}),
    "constant": frozenset(),
    "wsd": frozenset({"end_fraction", "power", "decay_fraction"}),
}

# Fields of a phase that are read only if it has a warm-up.
WARMUP_FIELDS = ("warmup_rule",)

# Fields that determine the learning-rate curve of a phase. A phase that continues the curve of the
# previous phase does not read them.
CURVE = ("learning_rate", "schedule", "warmup_steps", "warmup_fraction", "warmup_rule",
         "end_fraction", "power", "decay_fraction")

# Name of a tracker -> the package that it needs.
TRACKERS = {"trackio": "trackio", "wandb": "wandb"}


def names_of_trackers(text: str) -> list[str]:
  """Returns the names in `log.trackers`, without spaces, each once.

  Args:
    text: value of the field, such as 'wandb,trackio'.
  """
  return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


# Values that, like the default, are accepted for a field that is not read.
UNUSED = {"model.num_heads": 2, "model.num_segments": 0, "data.random_next_prob": 0.0,
          "data.short_sequence_prob": 0.0, "optimizer.momentum": 0.0,
          "tokenizer.lowercase": False, "task.lm_weight": 0.0}
