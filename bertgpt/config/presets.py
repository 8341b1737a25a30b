"""Sizes of the published models, for `config.model.update(presets.BERT["base"])`.

The records of the families define the sizes; this module has the names that recipes use.
"""

from collections.abc import Mapping
from typing import Any

from bertgpt.config.families import bert, gpt

BERT = {name: fields for name, fields in bert.PRESETS.items() if not name.startswith("roberta_")}
ROBERTA = {name.removeprefix("roberta_"): fields for name, fields in bert.PRESETS.items()
           if name.startswith("roberta_")}
GPT1 = gpt.PRESETS["gpt1"]
GPT2 = {name.removeprefix("gpt2_"): fields for name, fields in gpt.PRESETS.items()
        if name.startswith("gpt2_")}


def size(model: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields that say how large a model is, without those that say how it is built.

  Args:
    model: a preset, or `config.model`.
  """
  return {field: model[field] for field in ("num_layers", "width", "num_heads", "mlp_dim")}
