"""Log-probabilities of the tokens of texts: one file per ability of models.

Other modules get the scorer of a model from `find(trained)`, so a new family with one of the
abilities needs no change here.
"""

from bertgpt.inference.scorers import left_to_right, masked
from bertgpt.inference.scorers.scorer import Joined, Row, Scorer
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained

__all__ = ["SCORERS", "Joined", "Row", "Scorer", "find"]

# Ability, one of `families.ABILITIES` -> scorer. A model uses the first one that it has.
SCORERS: dict[str, Scorer] = {
    "score": left_to_right.SCORER,
    "pseudo_score": masked.SCORER,
}


def find(trained: Trained) -> Scorer:
  """Returns the scorer for a model.

  Args:
    trained: the model.
  Raises:
    ConfigError: the family of the model has none of the abilities, or the model came without the
      head for it.
  """
  for ability, scorer in SCORERS.items():
    if trained.can(ability):
      trained_lib.require_head(trained, ability)
      return scorer
  raise trained_lib.unable(trained, SCORERS, "gives no probabilities of the tokens of a text",
                           "Evaluate it without --suite")
