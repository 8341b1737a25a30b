"""ModernBERT as a decoder (Weller et al. 2025, arXiv:2507.11412, Ettin).

Its layers are those of the encoder with a causal mask. Its head is that of the encoder too: a dense
layer and a norm before the tied table.

Axes: B batch, L length, D width, V rows of the padded token table.
"""

import jax

from bertgpt.models import gpt, layers
from bertgpt.models.cross_entropy import Prediction
from bertgpt.models.masked_lm import MaskedLmTransform
from bertgpt.models.parameters import Param


class ModernBertDecoder(gpt.Gpt):
  """The decoder and its head.

  Attributes:
    config: `config.model` with `vocab_size` set.
  """

  def setup(self) -> None:
    config = self.config
    self.embeddings = layers.Embeddings(config, use_norm=True, use_segments=False)
    self.decoder = layers.Stack(config)
    self.final_norm = layers.make_norm(config, None)
    self.lm = MaskedLmTransform(config)

  def predict_next(self, x: jax.Array) -> Prediction:
    """Returns the prediction of the token after each one.

    Args:
      x: features [..., D].
    """
    return self.embeddings.predict(*self.lm(x))

  def text_features(self, x: jax.Array) -> jax.Array:
    """Returns the features that the output layer of a task reads, [..., D].

    Args:
      x: features of the last layer, [..., D].
    """
    return self.lm(x)[0]


MODEL = ModernBertDecoder

PARAMETERS = (
    *layers.EMBEDDING_PARAMETERS,
    *layers.STACK_PARAMETERS,
    Param(r"lm/dense/kernel$", ("embed", None), is_matrix=True),
    Param(r"lm/dense/bias$", (None,), decays=False),
    Param(r"lm/norm/(scale|bias)$", (None,), decays=False),
    Param(r"lm/bias$", ("vocab",), decays=False),
)
