"""What the tables of this folder are made of: architectures of `transformers`, rule by rule.

A family's table is the module of its name. It holds `ARCHITECTURES`, those that its models may be,
and `choose(config)`, the one that computes just what the model of a config computes.

Letters for the size of an axis: V vocabulary, P positions, S segments, D width, E width of the
embeddings, F width of the MLP, C outputs of a task. Ours are [in, out] matrices with the layers
stacked on a leading axis.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from bertgpt.config import padded_vocab_size

Sizes = dict[str, int]  # By letter; "skip": rows that come before position 0.


class Storage(NamedTuple):
  """How an array of ours is stored there: both directions, and the shape there."""

  write: Callable[[np.ndarray, Sizes], np.ndarray]
  read: Callable[[np.ndarray, Sizes], np.ndarray]
  shape: Callable[[tuple[int, ...], Sizes], tuple[int, ...]]


def _pad_vocabulary(x: np.ndarray, sizes: Sizes) -> np.ndarray:
  rows = padded_vocab_size(sizes["V"]) - sizes["V"]
  return np.pad(x, [(0, rows)] + [(0, 0)] * (x.ndim - 1))


STORAGES = {
    "same": Storage(lambda x, sizes: x, lambda x, sizes: x, lambda shape, sizes: shape),
    "linear": Storage(lambda x, sizes: x.T, lambda x, sizes: x.T, lambda shape, sizes: shape[::-1]),
    # The rows that pad our vocabulary stay here.
    "vocabulary": Storage(lambda x, sizes: x[:sizes["V"]], _pad_vocabulary,
                          lambda shape, sizes: shape),
    # RoBERTa's positions begin after the id of its padding.
    "positions": Storage(lambda x, sizes: np.pad(x, [(sizes["skip"], 0), (0, 0)]),
                         lambda x, sizes: x[sizes["skip"]:],
                         lambda shape, sizes: (shape[0] + sizes["skip"], shape[1])),
}


class Rule(NamedTuple):
  """One line of a table.

  Attributes:
    ours: path of a parameter; one with a slice for each layer has `layers` in it.
    theirs: name of a tensor, `{}` standing for the layer. Rules in a row with the same name
      share the tensor, side by side on its last axis.
    axes: letters of a layer's shape, as it is here.
    storage: a key of `STORAGES`.
  """

  ours: str
  theirs: str
  axes: str
  storage: str = "same"

  @property
  def is_stacked(self) -> bool:
    """Whether there is a tensor per layer there, and one array of all layers here."""
    return "{}" in self.theirs


def linear(ours: str, theirs: str, axes: str, storage: str = "linear") -> list[Rule]:
  """Returns the rules of a dense layer, whose matrix is transposed there."""
  return [Rule(f"{ours}/kernel", f"{theirs}.weight", axes, storage),
          Rule(f"{ours}/bias", f"{theirs}.bias", axes[1:])]


def conv1d(ours: str, theirs: str, axes: str) -> list[Rule]:
  """Returns the rules of GPT's `Conv1D`, a dense layer stored as ours are."""
  return linear(ours, theirs, axes, "same")


def norm(ours: str, theirs: str, axis: str = "D") -> list[Rule]:
  """Returns the rules of a LayerNorm."""
  return [Rule(f"{ours}/scale", f"{theirs}.weight", axis),
          Rule(f"{ours}/bias", f"{theirs}.bias", axis)]


class Architecture(NamedTuple):
  """An architecture of `transformers`.

  Attributes:
    name: its class.
    model_type: as in its config.json.
    ours: fields of our config that are so by its nature.
    fields: (key of config.json, field of `config.model`, value there if the key is absent).
    fixed: keys of its config.json that cannot be otherwise here.
    tied: names of tensors that repeat another -> the other.
    activations: our name -> names there, of which the first is written.
    rules: the parameters.
    pipeline, auto: `transformers`' pipeline for it, and its class that reads any such model.
    marker: a tensor that only this architecture of its `model_type` has.
    prefix: of the names of all tensors but those of `outside`; a folder may leave it out.
    outside: beginnings of the names that have no prefix.
    unused: beginnings of the names of tensors that are read over.
    tuned: kind of a task -> the architecture of a model that was fine-tuned on it.
    find_problem: `config.model` -> what else it cannot compute, or None.
    limits: sentences for the model card.
  """

  name: str
  model_type: str
  ours: Mapping[str, Any]
  fields: tuple[tuple[str, str, Any], ...]
  fixed: Mapping[str, Any]
  tied: Mapping[str, str]
  activations: Mapping[str, tuple[str, ...]]
  rules: list[Rule]
  pipeline: str
  auto: str
  marker: str = ""
  prefix: str = ""
  outside: tuple[str, ...] = ()
  unused: tuple[str, ...] = ()
  tuned: Mapping[str, "Architecture"] = {}
  find_problem: Callable[[Any], str | None] = lambda model: None
  limits: tuple[str, ...] = ()

  @property
  def skips_positions(self) -> bool:
    """Whether positions begin after the id of the padding, as RoBERTa's do."""
    return any(rule.storage == "positions" for rule in self.rules)


TIED = {"tie_word_embeddings": True}
EXACT_GELU = {"gelu_erf": ("gelu", "gelu_python")}
GELU = EXACT_GELU | {"gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")}

# kind of a task -> (end of the class's name, its pipeline, its class that reads any such model).
TASKS = {
    "classes": ("ForSequenceClassification", "text-classification",
                "AutoModelForSequenceClassification"),
    "values": ("ForSequenceClassification", "text-classification",
               "AutoModelForSequenceClassification"),
    "tokens": ("ForTokenClassification", "token-classification",
               "AutoModelForTokenClassification"),
    "spans": ("ForQuestionAnswering", "question-answering", "AutoModelForQuestionAnswering"),
}


def tune(base: Architecture, prefix: str, heads: Mapping[str, list[Rule]],
         body: tuple[str, ...] = ("embeddings", "encoder")) -> Architecture:
  """Returns an architecture with those of its fine-tuned models.

  Args:
    prefix: beginning of their names, as 'Bert'.
    heads: kind of a task -> rules of what lies above the body.
    body: beginnings of the paths of the parameters that they keep.
  """
  kept = [rule for rule in base.rules if rule.ours.startswith(body)]
  tuned = {kind: base._replace(name=prefix + TASKS[kind][0], tied={}, rules=[*kept, *rules],
                               pipeline=TASKS[kind][1], auto=TASKS[kind][2])
           for kind, rules in heads.items()}
  return base._replace(tuned=tuned)
