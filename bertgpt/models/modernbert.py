"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): a pre-norm encoder with rotary positions.

It differs from BERT in fields of the config, which `layers` reads: no biases, gated MLPs, rotary
positions, local layers between global ones, and a first layer without `attention_norm`, because the
embeddings have a norm. There are no segments and no pooler: the output layers of tasks read the
features through the dense layer and the norm of the masked-LM head.

Axes: B batch, L length, D width, K predicted positions of a row.
"""

import jax
from flax import linen as nn
from ml_collections import FrozenConfigDict

from bertgpt.models import layers
from bertgpt.models.attention import Visibility
from bertgpt.models.cross_entropy import Prediction
from bertgpt.models.inputs import Inputs
from bertgpt.models.masked_lm import MaskedLmTransform
from bertgpt.models.parameters import Param


class ModernBert(nn.Module):
  """The encoder with its masked-LM head.

  Attributes:
    config: `config.model` with `vocab_size` set.
  """

  config: FrozenConfigDict

  def setup(self) -> None:
    config = self.config
    self.embeddings = layers.Embeddings(config, use_norm=True, use_segments=False)
    self.encoder = layers.Stack(config)
    self.final_norm = layers.make_norm(config, None)
    self.mlm = MaskedLmTransform(config)

  def __call__(self, inputs: Inputs) -> jax.Array:
    """Returns the logits of `predict`, float32 [B, K, V]; it touches every parameter.

    Args:
      inputs: tokens, and the positions to predict.
    """
    return self.predict(inputs).logits()

  def predict(self, inputs: Inputs) -> Prediction:
    """Returns the prediction without its logits: a loss needs only a few at a time.

    Args:
      inputs: tokens, and the positions to predict.
    """
    x_BLD = self.features(inputs)
    if inputs.predict_positions_BK is not None:
      x_BLD = layers.gather(x_BLD, inputs.predict_positions_BK)
    return self.embeddings.predict(*self.mlm(x_BLD))

  def features(self, inputs: Inputs) -> jax.Array:
    """Returns the features of the last layer, [B, L, D] in the compute dtype.

    Args:
      inputs: tokens; the positions to predict are not read.
    """
    x_BLD = self.embeddings(inputs.tokens_BL, inputs.positions_BL)
    visibility = Visibility(inputs.sequence_ids_BL, inputs.lengths_B)
    x_BLD, _ = self.encoder(x_BLD, layers.SharedInputs(visibility, inputs.positions_BL))
    return self.final_norm(x_BLD)

  def pool(self, x: jax.Array) -> jax.Array:
    """Returns pooled features for the output layer of a task, [..., D].

    Args:
      x: features of the last layer, [..., D].
    """
    return self.mlm(x)[0]

  token_features = pool  # The output layers of tokens read the same features.


MODEL = ModernBert

PARAMETERS = (
    *layers.EMBEDDING_PARAMETERS,
    *layers.STACK_PARAMETERS,
    Param(r"mlm/dense/kernel$", ("embed", None), is_matrix=True),
    Param(r"mlm/dense/bias$", (None,), decays=False),
    Param(r"mlm/norm/(scale|bias)$", (None,), decays=False),
    Param(r"mlm/bias$", ("vocab",), decays=False),
)
