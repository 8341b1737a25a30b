"""BERT (Devlin et al. 2018, arXiv:1810.04805): encoder, masked-LM head, next-sentence head.

Axes: B batch, L length, D width, K predicted positions of a row, P sequences of a row,
V rows of the padded token table.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict

from bertgpt.models import layers
from bertgpt.models.attention import Visibility
from bertgpt.models.cross_entropy import Prediction
from bertgpt.models.inputs import Inputs
from bertgpt.models.masked_lm import MaskedLmTransform
from bertgpt.models.parameters import Param


class Bert(nn.Module):
  """The encoder with its two pretraining heads.

  Attributes:
    config: `config.model` with `vocab_size` set.
    pair_head: name of the output layer over pairs.
  """

  config: FrozenConfigDict
  pair_head: str = "nsp"

  def setup(self) -> None:
    config = self.config
    self.embeddings = layers.Embeddings(config, use_norm=True, use_segments=True)
    self.encoder = layers.Stack(config)
    if config.norm == "pre":
      self.final_norm = layers.make_norm(config, None)
    self.pooler = layers.make_dense(config, config.width, None)
    self.mlm = MaskedLmTransform(config)
    self.pairs = layers.make_dense(config, 2, self.pair_head)

  def __call__(self, inputs: Inputs) -> tuple[jax.Array, jax.Array | None]:
    """Returns the logits of both heads; it touches every parameter, for initialization.

    Args:
      inputs: tokens, and the positions to predict.
    Returns:
      Masked-LM logits [B, K, V] and pair logits [B, P, 2], float32; without the positions of pairs,
      None in place of the latter.
    """
    if inputs.pair_positions_BP is None:
      return self.predict(inputs).logits(), None
    mlm, pair_logits_BP2 = self.predict_pairs(inputs)
    return mlm.logits(), pair_logits_BP2

  def predict(self, inputs: Inputs) -> Prediction:
    """Returns the masked-LM prediction without its logits: a loss needs only a few at a time.

    Args:
      inputs: tokens, and the positions to predict.
    """
    return self._predict(self.features(inputs), inputs)

  def predict_pairs(self, inputs: Inputs) -> tuple[Prediction, jax.Array]:
    """Returns the same, and the logits of pairs, float32 [B, P, 2].

    Args:
      inputs: tokens, the positions to predict, and those of the [CLS] of every pair.
    """
    x_BLD = self.features(inputs)
    mlm = self._predict(x_BLD, inputs)
    return mlm, self.pair_logits(layers.gather(x_BLD, inputs.pair_positions_BP))

  def features(self, inputs: Inputs) -> jax.Array:
    """Returns the features of the last layer, [B, L, D] in the compute dtype.

    Args:
      inputs: tokens; the positions to predict are not read.
    """
    x_BLD = self.embeddings(inputs.tokens_BL, inputs.positions_BL, inputs.segment_ids_BL)
    visibility = Visibility(inputs.sequence_ids_BL, inputs.lengths_B)
    x_BLD, _ = self.encoder(x_BLD, layers.SharedInputs(visibility, inputs.positions_BL))
    return self.final_norm(x_BLD) if self.config.norm == "pre" else x_BLD

  def pool(self, x: jax.Array) -> jax.Array:
    """Returns the pooled features of [CLS] tokens, [..., D].

    Args:
      x: features of the last layer at [CLS], [..., D].
    """
    return jnp.tanh(self.pooler(x))

  def token_features(self, x: jax.Array) -> jax.Array:
    """Returns the features that the output layers of tokens read: those of the last layer.

    Args:
      x: features of the last layer, [..., D].
    """
    return x

  def pair_logits(self, x: jax.Array) -> jax.Array:
    """Returns the logits of the two kinds of pairs, float32 [..., 2].

    Class 0 is a pair in its original order.

    Args:
      x: features of the last layer at [CLS], [..., D].
    """
    return self.pairs(self.pool(x)).astype(jnp.float32)

  def _predict(self, x_BLD, inputs):
    if inputs.predict_positions_BK is not None:
      x_BLD = layers.gather(x_BLD, inputs.predict_positions_BK)
    return self.embeddings.predict(*self.mlm(x_BLD))


MODEL = Bert

PARAMETERS = (
    *layers.EMBEDDING_PARAMETERS,
    *layers.STACK_PARAMETERS,
    Param(r"(pooler|mlm/dense)/kernel$", ("embed", None), is_matrix=True),
    Param(r"(pooler|mlm/dense)/bias$", (None,), decays=False),
    Param(r"mlm/norm/(scale|bias)$", (None,), decays=False),
    Param(r"mlm/bias$", ("vocab",), decays=False),
    Param(r"nsp/kernel$", (None, None)),
    Param(r"nsp/bias$", (None,), decays=False),
)
