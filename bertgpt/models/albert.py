"""ALBERT (Lan et al. 2019, arXiv:1909.11942): a BERT with fewer parameters.

It differs from BERT in two fields of the config, which `layers` reads: groups of layers share their
parameters (`layer_groups`), and the embedding tables are narrower than the model
(`embedding_width`). The output layer over pairs predicts whether two parts of a text are in order.
"""

from bertgpt.models import bert
from bertgpt.models.parameters import Param


class Albert(bert.Bert):
  """The encoder with its masked-LM head and its sentence-order head."""

  pair_head: str = "sop"


MODEL = Albert

PARAMETERS = (
    Param(r"sop/kernel$", (None, None)),
    Param(r"sop/bias$", (None,), decays=False),
    *bert.PARAMETERS,
)
