"""What a config can choose by name, and which fields each choice reads.

A field that another choice reads, and the chosen one does not, must keep its default: `unread`
refuses a config in which it says something else, since nothing would come of it.

An objective named here has its two halves in `bertgpt/data/batches/ROWS.py` and
`bertgpt/training/objectives/NAME.py`; an optimizer is in `bertgpt/training/optimizers/NAME.py`.
"""

from typing import NamedTuple


class Objective(NamedTuple):
  """A pretraining objective.

  Attributes:
    rows: the row format that feeds it, a module of `data.batches`.
    needs: special tokens that the tokenizer must have.
    loss: metric of its language-model loss, of which a perplexity is shown.
    predicts_all: every token of a row is predicted; else `mask_prob` of them.
    has_pairs: a sequence is two parts, which the model tells apart by their segments.
    reads: fields of the config that it reads and some other objective does not.
  """

  rows: str
  needs: tuple[str, ...]
  loss: str
  predicts_all: bool
  has_pairs: bool
  reads: frozenset[str]


_MASKS = frozenset({
    "objective.mask_prob", "objective.replace_with_mask", "objective.replace_with_random",
    "objective.whole_words", "objective.bias_init"})
_PAIRS = frozenset({"data.short_sequence_prob", "data.max_sequences"})

OBJECTIVES = {
    "mlm_nsp": Objective("pairs", ("cls", "sep", "mask"), "mlm_loss", False, True,
                         _MASKS | _PAIRS | {"data.random_next_prob"}),
    "mlm": Objective("sentences", ("cls", "sep", "mask"), "mlm_loss", False, False, _MASKS),
    "causal": Objective("blocks", ("eod",), "lm_loss", True, False,
                        frozenset({"data.isolate_documents"})),
}

_ADAM = frozenset({"optimizer.b1", "optimizer.b2", "optimizer.epsilon"})

# name -> fields that it reads and some other optimizer does not.
OPTIMIZERS = {
    "bert_adamw": _ADAM,
    "adamw": _ADAM,
    "lamb": _ADAM,
    "nvlamb": _ADAM,
    "adafactor": frozenset(),
    "muon": _ADAM | {"optimizer.momentum"},
}

# name -> fields of a phase that it reads and some other schedule does not.
SCHEDULES = {
    "linear": frozenset({"end_fraction"}),
    "polynomial": frozenset({"end_fraction", "power"}),
    "cosine": frozenset({"end_fraction"}),
    "constant": frozenset(),
    "wsd": frozenset({"end_fraction", "power", "decay_fraction"}),
}

# What the curve of a phase is made of. A phase that continues the curve before it has none.
CURVE = ("learning_rate", "schedule", "warmup_steps", "warmup_fraction", "end_fraction", "power",
         "decay_fraction")

# Values other than the default that say as clearly as it that a field is not used.
UNUSED = {"model.num_segments": 0, "data.random_next_prob": 0.0, "data.short_sequence_prob": 0.0,
          "optimizer.momentum": 0.0}
