"""Records that describe architectures of `transformers`: rules, fields and limits.

The module with a family's name holds them, and its `TABLE` lists them (`hub.family_tables`).

Letters for the size of an axis: V vocabulary, P positions, S segments, D width, N heads, E width of
the embeddings, F width of the MLP, C outputs of a task; others are an architecture's own. Our
matrices are [in, out], with the layers stacked on a leading axis. "Theirs": of `transformers`.
"""

import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from bertgpt.config import ConfigDict, choices, padded_vocab_size
from bertgpt.config.families.family import CLASSIC
from bertgpt.errors import ConfigError

Sizes = dict[str, int]  # Letter -> size; "skip" -> rows before the one of position 0.

# First parts of the paths of the parameters that compute features; all others belong to heads and
# are in `families.HEADS`.
BODY = ("embeddings", "encoder", "decoder", "final_norm", "generator_embeddings",
        "generator_project", "generator")

Leaves = dict[str, np.ndarray]  # Path of a parameter -> array.


class Storage(NamedTuple):
  """How an array of ours is stored in `transformers`.

  Attributes:
    write: (our array, sizes) -> their array.
    read: (their array, sizes) -> our array.
    shape: (our shape, sizes) -> their shape.
    joint: axis of the outputs in their arrays, on which parts of one tensor are joined.
  """

  write: Callable[[np.ndarray, Sizes], np.ndarray]
  read: Callable[[np.ndarray, Sizes], np.ndarray]
  shape: Callable[[tuple[int, ...], Sizes], tuple[int, ...]]
  joint: int = -1


def _pad_vocabulary(x: np.ndarray, sizes: Sizes) -> np.ndarray:
  rows = padded_vocab_size(sizes["V"]) - sizes["V"]
  return np.pad(x, [(0, rows)] + [(0, 0)] * (x.ndim - 1))


def _heads(width: int, sizes: Sizes) -> tuple[int, int]:
  return sizes["N"], width // sizes["N"]


def _split_heads(x: np.ndarray, sizes: Sizes) -> np.ndarray:
  return x.reshape(*x.shape[:-1], *_heads(x.shape[-1], sizes))


def _join_heads(x: np.ndarray) -> np.ndarray:
  return x.reshape(*x.shape[:-2], -1)


STORAGES = {
    "same": Storage(lambda x, sizes: x, lambda x, sizes: x, lambda shape, sizes: shape),
    "linear": Storage(lambda x, sizes: x.T, lambda x, sizes: x.T, lambda shape, sizes: shape[::-1],
                      joint=0),
    # The padding rows of our vocabulary are not written.
    "vocabulary": Storage(lambda x, sizes: x[:sizes["V"]], _pad_vocabulary,
                          lambda shape, sizes: shape),
    # RoBERTa's positions begin after the id of its padding.
    "positions": Storage(lambda x, sizes: np.pad(x, [(sizes["skip"], 0), (0, 0)]),
                         lambda x, sizes: x[sizes["skip"]:],
                         lambda shape, sizes: (shape[0] + sizes["skip"], shape[1])),
    # XLNet has an axis of heads: [..., N, D / N] for [..., D]. For the projection after attention,
    # whose inputs are the heads, it has [D, N, D / N] for [D in, D out].
    "heads": Storage(lambda x, sizes: _split_heads(x, sizes), lambda x, sizes: _join_heads(x),
                     lambda shape, sizes: (*shape[:-1], *_heads(shape[-1], sizes))),
    "heads_first": Storage(lambda x, sizes: _split_heads(x.T, sizes),
                           lambda x, sizes: _join_heads(x).T,
                           lambda shape, sizes: (shape[1], *_heads(shape[0], sizes))),
}


class Rule(NamedTuple):
  """One line of a table.

  Attributes:
    ours: path of a parameter; it contains `layers` if the parameter has a slice per layer.
    theirs: name of a tensor, with `{}` for the index of the layer. Consecutive rules with the same
      name share the tensor, concatenated on the axis of the outputs.
    axes: letters of our shape, without the axis of the layers.
    storage: a key of `STORAGES`.
    first: first layer that has the tensor. In earlier layers, our parameter is 1 and not used.
    unless_equal: letters of two sizes; the parameter exists only if they differ. '': always.
  """

  ours: str
  theirs: str
  axes: str
  storage: str = "same"
  first: int = 0
  unless_equal: str = ""

  @property
  def group(self) -> str:
    """First part of our path: a part of `BODY`, or the name of a head."""
    return self.ours.split("/")[0]

  @property
  def is_stacked(self) -> bool:
    """True if `transformers` has one tensor per layer, and we have one array of all layers."""
    return "{}" in self.theirs

  def applies(self, sizes: Sizes) -> bool:
    """Returns whether a model of these sizes has the parameter.

    Args:
      sizes: letter -> size.
    """
    return not self.unless_equal or len({sizes[letter] for letter in self.unless_equal}) > 1


def linear(ours: str, theirs: str, axes: str, storage: str = "linear") -> list[Rule]:
  """Returns the rules of a dense layer, whose matrix is transposed in `transformers`.

  Args:
    ours: path of the layer.
    theirs: name of the layer, with `{}` for the index of a stacked layer.
    axes: letters of the matrix, [in, out].
    storage: storage of the matrix, a key of `STORAGES`.
  """
  return [Rule(f"{ours}/kernel", f"{theirs}.weight", axes, storage),
          Rule(f"{ours}/bias", f"{theirs}.bias", axes[1:])]


def conv1d(ours: str, theirs: str, axes: str) -> list[Rule]:
  """Returns the rules of GPT's `Conv1D`, a dense layer stored like ours.

  Args:
    ours, theirs, axes: see `linear`.
  """
  return linear(ours, theirs, axes, "same")


def norm(ours: str, theirs: str, axis: str = "D") -> list[Rule]:
  """Returns the rules of a LayerNorm.

  Args:
    ours: path of the layer.
    theirs: name of the layer.
    axis: letter of its width.
  """
  return [Rule(f"{ours}/scale", f"{theirs}.weight", axis),
          Rule(f"{ours}/bias", f"{theirs}.bias", axis)]


def find_modern_field(model: Any) -> str | None:
  """Returns the first field in which a model's layers differ from BERT's and GPT's, or None.

  Args:
    model: `config.model`.
  """
  return next((f"model.{name}={model[name]!r}: transformers' classes for model.family="
               f"{model.family!r} have only {value!r}" for name, value in CLASSIC.items()
               if model[name] != value), None)


class Architecture(NamedTuple):
  """An architecture of `transformers`.

  Attributes:
    name: name of its class.
    model_type: value of that key in its config.json.
    ours: field of our config -> the only value that the architecture can compute.
    fields: (key of config.json, field of `config.model`, value of an absent key). If that value
      depends on fields before this one, it is a function of them, `config.model` -> value, which
      also replaces null on import, and our 0 on export.
    fixed: key of config.json -> the only value that our models can compute.
    tied: name of a tensor that repeats another -> the other.
    activations: our name -> their names; the first is written.
    rules: one per parameter.
    pipeline: pipeline of `transformers` for the architecture.
    auto: class of `transformers` that reads any model for that pipeline.
    prefix: prefix of the names of feature tensors in models with heads; without heads, there is
      none.
    other_heads: beginnings of the names, including the prefix if they have it, of tensors of heads
      that no rule reads; they are dropped when a model is read.
    of_unread_heads: keys of `fixed` that only heads have that no rule reads; written, not checked.
    tokenizer_class: class of the tokenizer of a folder that names none, if it numbers no segments.
    tuned: kind of a task -> the architecture of a model that was fine-tuned on it.
    find_problem: `config.model` -> another field that the architecture cannot compute, with the
      reason, or None.
    limits: sentences for the model card.
    parts: name of a subfolder -> architecture of another model there, which was trained in the same
      run and may share parameters.
    split: (our leaves, `config.model`) -> leaves by the paths in the rules of all parts.
    join: the inverse: (leaves, fields) -> (our leaves, fields, heads with random weights), as in
      `conversion.Converted`. Parts that are missing get random weights.
    bias_target: path of the last bias before the output layer, if that layer has no bias in
      `transformers`: our output bias, multiplied by the inverse of the layer, is added to it. '':
      the output layer has a bias.
    read: config.json -> further fields of `config.model`; it raises DataError.
    write: `config.model` -> the keys of config.json that `read` reads.
    signs: head -> the tensor that shows that a file has the head. If it is missing, other tensors
      with names of this head belong to a task. A head that is not listed exists if any of its
      tensors does.
    pools_by_config: whether config.json says which features represent a text.
    copied_ids: key of config.json for a special token -> the key with the same id.
    aliases: another name of a key of config.json, which has precedence -> the key.
    zeros: tensor that is written with zeros -> letters of its shape.
    left_out: paths of parameters that a fine-tuned model has but does not use.
    find_own_sizes: `config.model` -> letter -> size, for letters that only these rules have.
    without_skips: if positions begin after the id of the padding, the architecture that computes
      the same with positions from 0.
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
  prefix: str = ""
  other_heads: tuple[str, ...] = ()
  of_unread_heads: frozenset[str] = frozenset()
  tokenizer_class: str = ""
  tuned: Mapping[str, "Architecture"] = {}
  find_problem: Callable[[Any], str | None] = find_modern_field
  limits: tuple[str, ...] = ()
  parts: Mapping[str, "Architecture"] = {}
  split: Callable[[Leaves, Any], Leaves] = lambda leaves, model: leaves
  join: Callable[[Leaves, dict[str, Any]], tuple[Leaves, dict[str, Any], tuple[str, ...]]] = (
      lambda leaves, fields: (leaves, fields, ()))
  bias_target: str = ""
  read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda hf_config: {}
  write: Callable[[Any], dict[str, Any]] = lambda model: {}
  signs: Mapping[str, str] = {}
  pools_by_config: bool = False
  copied_ids: Mapping[str, str] = {}
  aliases: Mapping[str, str] = {}
  zeros: Mapping[str, str] = {}
  left_out: tuple[str, ...] = ()
  find_own_sizes: Callable[[Mapping[str, Any]], Sizes] = lambda model: {}
  without_skips: "Architecture | None" = None

  @property
  def skips_positions(self) -> bool:
    """True if positions begin after the id of the padding, as in RoBERTa."""
    return any(rule.storage == "positions" for rule in self.rules)

  def ignores(self, key: str, fresh: Collection[str], names: Collection[str]) -> bool:
    """Returns whether a model computes the same for any value of a setting.

    Args:
      key: key of `fixed`.
      fresh: heads that the folder lacks, or that are left out.
      names: names of the tensors in the folder.
    """
    if key in TIED and not self.fixed[key]:  # The output layer is no copy, so it must be there.
      return False
    if key in TIED and not self.tied:
      return True
    own = {rule.theirs: rule.group for rule in self.rules}
    of_tasks = {rule.theirs for task in self.tuned.values() for rule in task.rules} - own.keys()
    # Without tensors of a task, those of a fresh head are a pretraining head that lacks its sign.
    is_cut = of_tasks.isdisjoint(names) and any(own.get(name) in fresh for name in names)
    return key in OF_HEADS and bool(fresh) and not is_cut

  def can_train(self, hf_config: Mapping[str, Any]) -> bool:
    """Returns whether a model has the segments that the objective of the architecture needs.

    Args:
      hf_config: content of config.json.
    """
    has_pairs = choices.OBJECTIVES[self.ours["objective.name"]].has_pairs
    return not (has_pairs and any(hf_config.get(theirs, default) in (0, 1)
                                  for theirs, ours, default in self.fields
                                  if ours == "num_segments"))


def check_own_fields(architecture: Architecture, config: ConfigDict) -> None:
  """Checks that the fields in `Architecture.ours` have the values that it can compute.

  Args:
    architecture: an architecture.
    config: a whole config.
  Raises:
    ConfigError: one has another value; names it.
  """
  for field, value in architecture.ours.items():
    group, name = field.split(".")
    found = config[group][name]
    if value != (find_objective(config) if field == "objective.name" else found):
      raise ConfigError(f"{field}={found!r}: transformers' {architecture.name} needs {value!r}. "
                        "This model cannot be exported")


def find_objective(config: ConfigDict) -> str:
  """Returns the objective under which `transformers` has the model of a config.

  Args:
    config: a whole config.
  """
  name = config.objective.name
  return choices.OBJECTIVES[name].exported_as or name


def find_pooling_problem(architecture: Architecture, model: Any, kind: str) -> str | None:
  """Returns why a fine-tuned model pools its features in a way that its class does not, or None.

  Args:
    architecture: the architecture of the pretrained model.
    model: `config.model`.
    kind: kind of the task, '' if there is none.
  """
  if kind not in ("classes", "values") or model.pooling == "cls" or architecture.pools_by_config:
    return None
  tuned = architecture.tuned.get(kind, architecture)
  return f"model.pooling={model.pooling!r}: transformers' {tuned.name} reads one token of a text"


TIED = {"tie_word_embeddings": True}
# With False, most decoders of transformers have no causal mask. They write the key only then.
CAUSAL = {"is_causal": True}
OF_HEADS = (*TIED, "classifier_bias", "decoder_bias")  # Settings that only heads read.
EXACT_GELU = {"gelu_erf": ("gelu", "gelu_python")}
GELU = EXACT_GELU | {"gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")}

# Kind of a task -> (end of the class's name, its pipeline, the class that reads any such model).
TASKS = {
    "classes": ("ForSequenceClassification", "text-classification",
                "AutoModelForSequenceClassification"),
    "values": ("ForSequenceClassification", "text-classification",
               "AutoModelForSequenceClassification"),
    "tokens": ("ForTokenClassification", "token-classification",
               "AutoModelForTokenClassification"),
    "spans": ("ForQuestionAnswering", "question-answering", "AutoModelForQuestionAnswering"),
}


def find_sizes(architecture: Architecture, model: Mapping[str, Any], pad_id: int) -> Sizes:
  """Returns the sizes of the axes, by their letters in the rules.

  Args:
    architecture: the architecture that has the rules.
    model: field of `config.model` -> value.
    pad_id: see `to_hugging_face`.
  """
  width = model.get("width", 0)  # A second model may have only fields of its own.
  return {"V": model["vocab_size"], "P": model["max_positions"], "D": width,
          "N": model.get("num_heads", 1), "E": model.get("embedding_width") or width,
          "F": model.get("mlp_dim", 0),
          "S": max(1, model.get("num_segments", 1)), "1": 1, "2": 2, "skip": pad_id + 1,
          **architecture.find_own_sizes(model)}


def draw(rule: Rule, sizes: Sizes, std: float, layers: int = 0) -> np.ndarray:
  """Returns random values of a parameter; its name says whether it is a kernel, a scale or a bias.

  Args:
    rule: rule of the parameter.
    sizes: letter -> size.
    std: standard deviation of kernels.
    layers: layers of a stacked parameter.
  """
  name = rule.ours.split("/")[-1]
  shape = (*[layers] * rule.is_stacked, *(sizes[letter] for letter in rule.axes))
  x = np.ones(shape) if name == "scale" else np.zeros(shape)
  if name == "kernel":  # With a fixed generator, the draw is always the same.
    x = np.random.Generator(np.random.PCG64(zlib.crc32(rule.ours.encode()))).normal(0, std, shape)
  x = np.asarray(x, np.float32)
  return STORAGES[rule.storage].read(x, sizes) if rule.storage == "vocabulary" else x


def tune(base: Architecture, prefix: str, heads: Mapping[str, list[Rule]],
         bias_target: str = "", left_out: tuple[str, ...] = (),
         suffixes: Mapping[str, str] = {}) -> Architecture:
  """Returns an architecture whose `tuned` holds the architectures of its fine-tuned models.

  Args:
    base: the architecture of the pretrained model.
    prefix: beginning of the names of the fine-tuned models, such as 'Bert'.
    heads: kind of a task -> rules of the layers above the body.
    bias_target, left_out: see `Architecture`.
    suffixes: kind of a task -> end of the class's name, where it differs from that in `TASKS`.
  """
  kept = [rule for rule in base.rules if rule.group in BODY]
  tuned = {}
  for kind, rules in heads.items():
    suffix, pipeline, auto = TASKS[kind]
    tuned[kind] = base._replace(
        name=prefix + suffixes.get(kind, suffix), tied={}, rules=[*kept, *rules], parts={},
        pipeline=pipeline, auto=auto, bias_target=bias_target, left_out=left_out)
  return base._replace(tuned=tuned)
