"""The fields that an unknown field may stand for."""

import difflib
import re
from collections.abc import Collection

# Similarity of a field that is misspelled, such as optimiser.name, as difflib measures it.
MISSPELLED = 0.85


def hint(field: str, known: Collection[str]) -> str:
  """Returns the end of an error about an unknown field, such as ". Did you mean --config.seed?".

  Args:
    field: path of a field that does not exist.
    known: paths of the fields that exist.
  Returns:
    '' if no field is similar.
  """
  fields = " or ".join(f"--config.{other}" for other in closest(field, known))
  return f". Did you mean {fields}?" if fields else ""


def closest(field: str, known: Collection[str]) -> list[str]:
  """Returns the fields that an unknown one may stand for, the likeliest first.

  A field of the same name in another group, such as phases[0].steps for train.steps, comes before
  a field that is only spelled similarly. Of several phases, the first stands for all.

  Args:
    field: path of a field that does not exist.
    known: paths of the fields that exist.
  Returns:
    Paths out of `known`; [] if none is similar.
  """
  if misspelled := difflib.get_close_matches(field, known, n=1, cutoff=MISSPELLED):
    return misspelled
  name = "." + field.rpartition(".")[2]
  same = [k for k in known if f".{k}".endswith(name) and not re.match(r"phases\[[1-9]", k)]
  return (sorted(same, key=lambda k: not k.startswith("phases"))[:3]
          or difflib.get_close_matches(field, known, n=1))
