"""Flax Linen modules, one file per family.

Layouts are named by logical axes (see `devices.sharding`), so no model names an axis of the mesh.

`__call__(inputs)` of a model touches every parameter that pretraining trains; `init` calls it. The
other methods are those that the objectives and abilities of its family need. x: features, [..., D].

| method                | returns                                  | needed by                     |
|-----------------------|------------------------------------------|-------------------------------|
| predict(inputs)       | Prediction at the positions to predict;  | most objectives; fill,        |
|                       | decoders: of every next token            | unmask, pseudo_score          |
| predict_pairs(inputs) | the same, and logits of pairs [B, P, 2]  | `mlm_nsp`, `mlm_sop`          |
| its own names         | see `Electra.detect`, `Elmo.read`,       | `rtd`, `bilm`, `plm_memory`   |
|                       | `Xlnet.predict_and_remember`             |                               |
| features(inputs)      | [B, L, D] in the compute dtype           | embed, score, all tasks       |
| extend(tokens_BL,     | features [B, L, D], and the new cache    | generate                      |
|  positions_BL, cache) |                                          |                               |
| logits(x)             | float32 [..., V]                         | score, generate               |
| pool(x)               | [..., D]; x is that of [CLS] or a mean   | encoders: classes, values     |
| token_features(x)     | [..., D]                                 | tokens, spans                 |
| text_features(x)      | [..., D]; x is that of the last token    | decoders: classes, values     |
| predict_next(x)       | Prediction of the next token             | decoders: classes, values     |
"""

from collections.abc import Callable

from flax.linen import Module
from ml_collections import ConfigDict, FrozenConfigDict

from bertgpt.models import heads
from bertgpt.models.inputs import Inputs
from bertgpt.models.lookup import find_class, find_module
from bertgpt.models.parameters import Param, Table, find

__all__ = ["Inputs", "Module", "Param", "Table", "axes_of", "make_model", "parameter_table"]


def make_model(config: ConfigDict) -> Module:
  """Returns the Flax module of a config's family.

  Args:
    config: a whole config; `config.model` is read, with `vocab_size` set.
  """
  return find_class(config.model)(FrozenConfigDict(config.model))


def axes_of(config: ConfigDict) -> Callable[[str], tuple[str | None, ...]]:
  """Returns the function from the path of a parameter to its logical axes, for `sharding`.

  Args:
    config: a whole config; `config.model.family` is read.
  Returns:
    path -> one logical axis per dimension. It raises ValueError if no line of the family's table
    matches the path.
  """
  table = parameter_table(config)
  return lambda path: find(table, path).axes


def parameter_table(config: ConfigDict) -> Table:
  """Returns the table of parameters of a family, with the output layers of tasks.

  Args:
    config: a whole config; `config.model.family` is read.
  """
  return (*find_module(config.model.family).PARAMETERS, *heads.PARAMETERS)
