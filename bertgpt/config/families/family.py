"""The record that describes a family of models."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

# Abilities that a trained model of a family may have; see `Family.can`.
ABILITIES = frozenset({
    "generate",      # continue a text
    "unmask",        # continue a text by filling in masks step by step
    "fill",          # guess masked words
    "embed",         # features of texts
    "score",         # log-probability of each token after those before it
    "pseudo_score",  # log-probability of each token among all the others
    "classes", "values", "tokens", "spans",  # fine-tuning on tasks that predict these
})

WORD_CHARS = 50  # Characters per word, with marks of its start and end, in families that read them.

# Head, as the first part of the paths of its parameters -> its name in messages.
HEADS = {"mlm": "masked-LM head", "lm": "LM head", "pooler": "pooler", "nsp": "next-sentence head",
         "sop": "sentence-order head", "rtd": "replaced-token head", "generator": "generator"}
# Ability -> heads: it needs the one of them that the family has.
HEADS_OF_ABILITY = {"fill": ("mlm", "lm"), "pseudo_score": ("mlm",), "unmask": ("mlm",),
                    "generate": ("lm",), "score": ("lm",)}


class Family(NamedTuple):
  """A family of models. Its other parts are found by its name.

  `bertgpt/models/NAME.py` has the module and the table of its parameters, and
  `bertgpt/hub/NAME.py` the table for conversion to and from `transformers`.

  Attributes:
    title: a model of the family in messages, with its article, such as 'an XLNet'.
    kind: 'encoder', whose tokens see the whole sequence, or 'decoder', whose tokens see only those
      before them. Rows of tasks, tokenizer files and output layers depend on the kind.
    objectives: names of the objectives that train the family, keys of `choices.OBJECTIVES`.
    abilities: those of `ABILITIES` that the family has.
    reads: fields of `config.model` that this family reads, but some other family does not.
    flops_per_token: (config.model, tokens per row, share of the tokens that are predicted) ->
      FLOPs of the forward pass per token: only matmuls, with two FLOPs per multiply-add.
    presets: name of a published size -> fields of `config.model`.
    stacks: prefixes of the fields `width`, `num_heads` and `mlp_dim` of its stacks of transformer
      layers.
    ignores: fields of `config.model` that this family does not read, though all others do.
    reads_words: whether it reads the characters of whole words; its parameters then include a table
      of them, made from the tokenizer.
    only: field of `config.model` -> the values that the family can compute, for fields of which it
      cannot compute all.
    cls_last: whether the [CLS] of a row is its last token, not its first.
    axes_together: pairs of logical axes of one array, besides those of all families, which are in
      `checks.AXES_TOGETHER`.
    at_least: field of `config.model` that only this family reads -> its smallest value. Those of
      fields that several families read are in `checks.AT_LEAST`.
    find_problems: config.model -> one line per problem that no other attribute expresses; each
      names its field.
  """

  title: str
  kind: str
  objectives: tuple[str, ...]
  abilities: frozenset[str]
  reads: frozenset[str]
  flops_per_token: Callable[[ConfigDict, int, float], float]
  presets: Mapping[str, Mapping[str, Any]]
  stacks: tuple[str, ...] = ("",)
  ignores: frozenset[str] = frozenset()
  reads_words: bool = False
  only: Mapping[str, tuple[Any, ...]] = {"position": ("learned", "rope", "none")}
  cls_last: bool = False
  axes_together: tuple[tuple[str, str], ...] = ()
  at_least: Mapping[str, float] = {}
  find_problems: Callable[[ConfigDict], Iterable[str]] = lambda model: ()

  def can(self, ability: str) -> bool:
    """Returns whether models of the family have one of `ABILITIES`.

    Raises:
      ValueError: there is no such ability; a misspelled one would always be False.
    """
    if ability not in ABILITIES:
      raise ValueError(f"no ability {ability!r}; there are {', '.join(sorted(ABILITIES))}")
    return ability in self.abilities


# Fields in which newer layers differ from those of BERT and GPT, with the values of BERT and GPT.
CLASSIC = {
    "skip_first_norm": False, "norm_kind": "layer", "norm_bias": True, "use_bias": True,
    "mlp": "plain", "window": 0, "global_every": 3, "position": "learned", "rope_theta": 10_000.0,
    "rope_theta_local": 10_000.0, "dropout_at": "all",
}


def flops_of_layers(model: ConfigDict, seq_len: int, is_causal: bool = False,
                    stack: str = "") -> float:
  """Forward FLOPs per token of the transformer layers.

  Projections cost 4 d^2 multiply-adds, the MLP 2 d f, or 3 d f if it is gated, attention 2 d L with
  its full square, causal or not (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), and 2 d w in
  a layer whose queries see w < L keys.

  Args:
    model: `config.model`.
    seq_len: tokens per row.
    is_causal: whether a window contains only the keys before a query.
    stack: one of `Family.stacks`.
  """
  d, f, layers = model[f"{stack}width"], model[f"{stack}mlp_dim"], model.num_layers
  num_local = layers - num_global_layers(model)
  seen = min(seq_len, 1 + model.window * (1 if is_causal else 2))
  keys = (layers - num_local) * seq_len + num_local * seen
  matrices = 3 if model.mlp == "gated" else 2
  return 2 * (layers * (4 * d * d + matrices * d * f) + 2 * keys * d)


def num_global_layers(model: ConfigDict) -> int:
  """Returns the number of layers whose queries see all keys.

  Args:
    model: `config.model`.
  """
  if not model.window:
    return model.num_layers
  return -(-model.num_layers // model.global_every) if model.global_every else 0


def four_times(num_layers: int, width: int, num_heads: int) -> dict[str, int]:
  """Returns the fields of a size whose MLP is four times as wide as the model."""
  return {"num_layers": num_layers, "width": width, "num_heads": num_heads, "mlp_dim": 4 * width}
