"""A pretrained model, `body`, under the output layer of a task, `head`.

Axes: B batch, L length, D width, C outputs.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict

from bertgpt.config import families
from bertgpt.models.cross_entropy import Prediction
from bertgpt.models.dropout import drop, dropout_key
from bertgpt.models.initializers import make_init
from bertgpt.models.inputs import Inputs
from bertgpt.models.layers import gather
from bertgpt.models.lookup import find_class
from bertgpt.models.parameters import Param


class TaskModel(nn.Module):
  """Base of the models of tasks: `body`, a pretrained model, and `head`, a dense layer.

  Attributes:
    config: `config.model` with `vocab_size` set.
    num_outputs: C.
  """

  config: FrozenConfigDict
  num_outputs: int

  def setup(self) -> None:
    self.body = find_class(self.config)(self.config)
    # Always float32, whatever the dtype of the body: outputs are compared with each other.
    self.head = nn.Dense(self.num_outputs, dtype=jnp.float32,
                         kernel_init=make_init(self.config, self.config.init_std))


class EncoderClassifier(TaskModel):
  """Outputs of a text or a pair, from its pooled features.

  With `config.pooling='cls'`, they are those of [CLS] (Devlin et al. 2018, 4.1); with 'mean',
  the mean over all tokens.
  """

  def __call__(self, inputs: Inputs) -> jax.Array:
    """Returns the outputs, float32 [B, C].

    Args:
      inputs: rows with one [CLS].
    """
    x_BLD = self.body.features(inputs)
    if self.config.pooling == "cls":
      x_BD = take_cls(x_BLD, inputs, self.config)
    else:
      x_BD = mean_of_texts(x_BLD, inputs)
    pooled_BD = self.body.pool(x_BD)
    return self.head(drop(pooled_BD, self.config.dropout, dropout_key(self)))


class EncoderTagger(TaskModel):
  """Outputs of every token: labels of words, or start and end of an answer.

  Attributes:
    use_dropout: drop features of the last layer; google-research/bert (2018) does so for labels,
      not for answers.
  """

  use_dropout: bool

  def __call__(self, inputs: Inputs) -> jax.Array:
    """Returns the outputs at every token, float32 [B, L, C].

    Args:
      inputs: rows of one text or two.
    """
    x_BLD = self.body.token_features(self.body.features(inputs))
    if self.use_dropout:
      x_BLD = drop(x_BLD, self.config.dropout, dropout_key(self))
    return self.head(x_BLD)


class DecoderClassifier(TaskModel):
  """Outputs of a text or a pair, from the last token's features (Radford et al. 2018, 3.2)."""

  def __call__(self, inputs: Inputs) -> tuple[jax.Array, Prediction]:
    """Returns the outputs, float32 [B, C], and the prediction of next tokens (auxiliary loss).

    Args:
      inputs: rows whose last token closes the text.
    """
    x_BLD = self.body.features(inputs)
    last_BD = self.body.text_features(gather_last(x_BLD, inputs))
    outputs_BC = self.head(drop(last_BD, self.config.dropout, dropout_key(self)))
    return outputs_BC, self.body.predict_next(x_BLD)


def take_cls(x_BLD: jax.Array, inputs: Inputs, config: FrozenConfigDict) -> jax.Array:
  """Returns the features of the [CLS] of every row, the first token or the last, [B, D].

  Args:
    x_BLD: features.
    inputs: rows of one text or two.
    config: `config.model`.
  """
  if not families.FAMILIES[config.family].cls_last:
    return x_BLD[:, 0]
  return gather_last(x_BLD, inputs)


def gather_last(x_BLD: jax.Array, inputs: Inputs) -> jax.Array:
  """Returns the features of the last token of every row, [B, D].

  Args:
    x_BLD: features.
    inputs: rows whose tokens come before the padding; of an empty row, the first token counts.
  """
  last_B1 = jnp.maximum((inputs.sequence_ids_BL > 0).sum(1, keepdims=True) - 1, 0)
  return gather(x_BLD, last_B1)[:, 0]


def mean_of_texts(x_BLD: jax.Array, inputs: Inputs) -> jax.Array:
  """Returns the mean of the features over the tokens of every row, [B, D].

  Args:
    x_BLD: features.
    inputs: rows of one text or two; an empty row has the mean 0.
  """
  is_text_BL1 = (inputs.sequence_ids_BL > 0)[:, :, None]
  total_BD = jnp.where(is_text_BL1, x_BLD, 0).sum(1, dtype=jnp.float32)
  return (total_BD / jnp.maximum(is_text_BL1.sum(1), 1)).astype(x_BLD.dtype)


PARAMETERS = (
    Param(r"^head/kernel$", (None, None)),
    Param(r"^head/bias$", (None,), decays=False),
)
