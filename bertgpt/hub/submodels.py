"""Several models of one run: one is in a folder, the others in subfolders of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bertgpt import trees
from bertgpt.errors import DataError
from bertgpt.hub import conversion
from bertgpt.hub.conversion import Converted
from bertgpt.hub.family_tables import find_candidates

# Subfolder -> (tensors, content of config.json).
Found = Mapping[str, tuple[Mapping[str, np.ndarray], Mapping[str, Any]]]


def add(converted: Converted, found: Found) -> Converted:
  """Returns a model together with the other models of its run.

  Args:
    converted: result of `conversion.convert`.
    found: the other models; missing ones get random parameters.
  Raises:
    DataError: see `conversion.convert`; or the models differ in a field that must be equal.
  """
  leaves, fields = trees.named_leaves(converted.params), dict(converted.fields)
  fresh, dropped, others = converted.fresh, converted.dropped, converted.others
  for name, part in converted.architecture.parts.items():
    if name not in found:
      continue
    tensors, hf_config = found[name]
    try:
      find_candidates(hf_config)
      if hf_config["model_type"] != part.model_type:
        raise DataError(f"model_type={hf_config['model_type']!r} in config.json: only "
                        f"{part.model_type} is supported there. Take both models from one run")
      more = conversion.convert(tensors, hf_config, candidates=[part])
    except DataError as e:
      raise DataError(f"{name}: {e}") from e
    for field in fields.keys() & more.fields.keys():
      if fields[field] != more.fields[field]:
        raise DataError(f"{name}: {field.removeprefix('model.')} is {more.fields[field]!r}, but "
                        f"{fields[field]!r} in the model next to it. Take both from one run")
    leaves |= trees.named_leaves(more.params)
    fields |= more.fields
    fresh, dropped = (*fresh, *more.fresh), (*dropped, *more.dropped)
    others = (*others, *more.others)
  leaves, fields, drawn = converted.architecture.join(leaves, fields)
  return converted._replace(params=trees.nest(leaves), fields=fields, fresh=(*fresh, *drawn),
                            dropped=dropped, others=others)
