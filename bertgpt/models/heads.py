"""A pretrained model, `body`, under the output layer of a task, `head`.

Axes: B batch, L length, D width, C outputs.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict

from bertgpt.models import layers
from bertgpt.models.bert import Bert, gather
from bertgpt.models.cross_entropy import Prediction
from bertgpt.models.dropout import drop, dropout_key
from bertgpt.models.gpt import Gpt


class TaskModel(nn.Module):
  """What all of them have: `body` and `head`.

  Attributes:
    config: `config.model` with `vocab_size` set.
    num_outputs: C.
  """

  config: FrozenConfigDict
  num_outputs: int

  def setup(self):
    self.body = {"bert": Bert, "gpt": Gpt}[self.config.family](self.config)
    # In float32 whatever the body computes in: outputs are compared with each other.
    self.head = nn.Dense(self.num_outputs, dtype=jnp.float32,
                         kernel_init=layers.make_init(self.config, self.config.init_std))


class BertClassifier(TaskModel):
  """Outputs of a text or a pair, from the pooled [CLS] (Devlin et al. 2018, 4.1)."""

  def __call__(self, tokens_BL: jax.Array, segment_ids_BL: jax.Array, sequence_ids_BL: jax.Array,
               positions_BL: jax.Array) -> jax.Array:
    """Float32 [B, C]; the [CLS] is the first token of a row."""
    x_BLD = self.body.encode(tokens_BL, segment_ids_BL, sequence_ids_BL, positions_BL)
    pooled_BD = self.body.pool(x_BLD[:, 0])
    return self.head(drop(pooled_BD, self.config.dropout, dropout_key(self)))


class BertTagger(TaskModel):
  """Outputs of every token: labels of words, or start and end of an answer.

  Attributes:
    use_dropout: on the last layer's features; BERT's code has it for labels, not for answers.
  """

  use_dropout: bool

  def __call__(self, tokens_BL: jax.Array, segment_ids_BL: jax.Array, sequence_ids_BL: jax.Array,
               positions_BL: jax.Array) -> jax.Array:
    """Float32 [B, L, C]."""
    x_BLD = self.body.encode(tokens_BL, segment_ids_BL, sequence_ids_BL, positions_BL)
    if self.use_dropout:
      x_BLD = drop(x_BLD, self.config.dropout, dropout_key(self))
    return self.head(x_BLD)


class GptClassifier(TaskModel):
  """Outputs of a text or a pair, from the last token's features (Radford et al. 2018, 3.2)."""

  def __call__(self, tokens_BL: jax.Array, sequence_ids_BL: jax.Array,
               positions_BL: jax.Array) -> tuple[jax.Array, Prediction]:
    """Float32 [B, C], and the next token at every position, for the auxiliary loss."""
    x_BLD = self.body.decode(tokens_BL, sequence_ids_BL, positions_BL)
    last_B1 = jnp.maximum((sequence_ids_BL > 0).sum(1, keepdims=True) - 1, 0)
    last_BD = gather(x_BLD, last_B1)[:, 0]
    outputs_BC = self.head(drop(last_BD, self.config.dropout, dropout_key(self)))
    return outputs_BC, self.body.embeddings.predict(x_BLD)
