"""Losses and predictions of tasks, for the train step of pretraining.

Axes: B rows, L length, C outputs.

| entry of a batch | shape, dtype   | meaning                                             |
|------------------|----------------|-----------------------------------------------------|
| tokens           | [B, L] int32   | token ids                                           |
| segment_ids      | [B, L] int32   | 1 in the second text of a pair, 0 elsewhere         |
| sequence_ids     | [B, L] int32   | 1 in the text, 0 in the padding                     |
| positions        | [B, L] int32   | 0, 1, ...                                           |
| labels           |                | depend on the kind of the task: see `score_*`       |
| example_weights  | [B] float32    | 0 for empty rows that fill up the batch, 1 for rows |
| seed             | [B] int32      | seed of the run, the same in every row              |
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.config import ConfigDict, families
from bertgpt.data.batches.parts import Specs, sequence_specs
from bertgpt.models import Inputs, Module, cross_entropy, heads
from bertgpt.training.objectives import Batch, BoundModel, Objective, Sums, keep_batch

EXCLUDED_LOGIT = -1e9  # Logit of positions at which an answer cannot start or end.


class Head(NamedTuple):
  """Model, loss and predictions for one kind of task and one kind of family.

  Attributes:
    make_model: (config.model, number of outputs) -> module, which returns outputs [B, C] or
      [B, L, C].
    score: (outputs of the module, batch) -> sums and weights of the loss and the accuracy.
    finish: (outputs of the module, batch) -> result of `outputs`.
    has_classes: whether outputs are logits of classes, of which the likeliest is predicted.
    has_lm: whether the module returns (outputs, `Prediction` of the next tokens).
  """

  make_model: Callable[..., Module]
  score: Callable[[jax.Array, Batch], Sums]
  finish: Callable[[jax.Array, Batch], jax.Array]
  has_classes: bool = False
  has_lm: bool = False

  def outputs(self, model: Module, params: dict, batch: Batch) -> jax.Array:
    """Returns logits float32 [B, C], [B, L, C] or, of starts and ends, [B, 2, L]; or values [B]."""
    outputs, _ = self._apply(BoundModel(model, params), batch)
    return self.finish(outputs, batch)

  def predict(self, model: Module, params: dict, batch: Batch) -> jax.Array:
    """Returns what the task scores: classes int32 [B] or [B, L], otherwise the `outputs`."""
    outputs = self.outputs(model, params, batch)
    return outputs.argmax(-1).astype(jnp.int32) if self.has_classes else outputs

  def make_objective(self, config: ConfigDict, lm_weight: float) -> Objective:
    """Returns the task's loss + lm_weight * the language model's loss (Radford et al. 2018, eq. 5).

    The auxiliary loss is a mean over all tokens of the batch except the first of each row.

    Args:
      config: config of the run.
      lm_weight: weight of the auxiliary loss, which encoders do not have.
    """
    lm_weight = lm_weight if self.has_lm else 0.0

    def weights(batch):
      both = {"task_loss": _task_weight(batch)}
      if lm_weight:  # The step divides by this weight, so doubling it halves the loss.
        both["lm_loss"] = _lm_targets(batch)[1].sum() / lm_weight
      return both

    def compute_sums(model, batch):
      outputs, prediction = self._apply(model, batch)
      sums = self.score(outputs, batch)
      if lm_weight:
        targets_BL, weights_BL = _lm_targets(batch)
        loss, _ = cross_entropy.score(prediction, targets_BL, weights_BL,
                                      config.objective.loss_chunk)
        sums["lm_loss"] = loss, weights_BL.sum()
      return sums, {}

    return Objective(specs=_specs, corrupt=keep_batch, weights=weights, compute_sums=compute_sums,
                     init_inputs=Inputs.of)

  def _apply(self, model, batch):
    """Returns (outputs of the module, `Prediction` of the next tokens or None).

    The seed of the dropout comes with the batch, so that one compiled step serves every run.
    """
    result = model.fold(batch["seed"][0]).call("__call__", Inputs.of(batch))
    return result if self.has_lm else (result, None)


def _specs(phase: ConfigDict) -> Specs:
  """Returns the arrays of a batch that the model reads; labels differ between tasks."""
  return sequence_specs(phase.seq_len) | {"segment_ids": ((phase.seq_len,), np.int32)}


def _task_weight(batch: Batch) -> jax.Array:
  """Returns the number of examples, or of labeled tokens: a scalar."""
  labels = batch["labels"]
  if labels.shape == batch["tokens"].shape:
    return _token_weights(batch).sum()
  return batch["example_weights"].sum()


def _token_weights(batch: Batch) -> jax.Array:
  """Returns 1 for labeled tokens, 0 for others [B, L]."""
  return (batch["labels"] >= 0) * batch["example_weights"][:, None]


def score_classes(logits_BC: jax.Array, batch: Batch) -> Sums:
  """Returns the cross-entropy and the accuracy of classes, as sums and weights.

  Args:
    logits_BC: logits of the classes, float32 [B, C].
    batch: batch whose `labels` are classes, int32 [B].
  """
  loss, correct = cross_entropy.score_logits(logits_BC, batch["labels"], batch["example_weights"])
  weight = batch["example_weights"].sum()
  return {"task_loss": (loss, weight), "task_accuracy": (correct, weight)}


def score_values(outputs_B1: jax.Array, batch: Batch) -> Sums:
  """Returns the squared error of values, as a sum and its weight.

  Args:
    outputs_B1: predicted values, float32 [B, 1].
    batch: batch whose `labels` are values, float32 [B].
  """
  errors_B = (outputs_B1[:, 0] - batch["labels"]) ** 2
  weights_B = batch["example_weights"]
  return {"task_loss": ((errors_B * weights_B).sum(), weights_B.sum())}


def score_tokens(logits_BLC: jax.Array, batch: Batch) -> Sums:
  """Returns the cross-entropy and the accuracy of labeled tokens, as sums and weights.

  Args:
    logits_BLC: logits of the classes of every token, float32 [B, L, C].
    batch: batch whose `labels` are classes, int32 [B, L]; negative for tokens without a label.
  """
  weights_BL = _token_weights(batch)
  labels_BL = jnp.maximum(batch["labels"], 0)
  loss, correct = cross_entropy.score_logits(logits_BLC, labels_BL, weights_BL)
  weight = weights_BL.sum()
  return {"task_loss": (loss, weight), "task_accuracy": (correct, weight)}


def score_spans(logits_BL2: jax.Array, batch: Batch) -> Sums:
  """Returns the mean of the cross-entropies of start and end, and of the accuracies.

  Devlin et al. 2018, 4.2, sum the two; google-research/bert, run_squad.py (2018), takes the mean.

  Args:
    logits_BL2: logits of every token as start and as end, float32 [B, L, 2].
    batch: batch whose `labels` are the positions of start and end, int32 [B, 2].
  Returns:
    Sums and weights.
  """
  logits_B2L = _exclude_padding(logits_BL2, batch)
  weights_B = batch["example_weights"]
  loss, correct = cross_entropy.score_logits(logits_B2L, batch["labels"],
                                             jnp.stack([weights_B, weights_B], 1))
  weight = weights_B.sum()
  return {"task_loss": (loss / 2, weight), "task_accuracy": (correct / 2, weight)}


def _exclude_padding(logits_BL2, batch):
  """Returns the logits of starts and ends [B, 2, L], which exclude the padding."""
  return jnp.where(batch["sequence_ids"][:, None] > 0, jnp.swapaxes(logits_BL2, 1, 2),
                   EXCLUDED_LOGIT)


def _lm_targets(batch):
  """Returns the next token of every token, and 1 if there is one, else 0: two arrays [B, L]."""
  targets_BL = jnp.roll(batch["tokens"], -1, 1)
  is_next_BL = jnp.roll(batch["sequence_ids"], -1, 1).at[:, -1].set(0) > 0
  return targets_BL, is_next_BL * batch["example_weights"][:, None]


def _keep_logits(logits, batch):
  return logits


def _take_value(outputs_B1, batch):
  return outputs_B1[:, 0]


# (kind of family, kind of task) -> head
TASK_HEADS = {
    ("encoder", "classes"): Head(heads.EncoderClassifier, score_classes, _keep_logits,
                                 has_classes=True),
    ("encoder", "values"): Head(heads.EncoderClassifier, score_values, _take_value),
    ("encoder", "tokens"): Head(functools.partial(heads.EncoderTagger, use_dropout=True),
                                score_tokens, _keep_logits, has_classes=True),
    ("encoder", "spans"): Head(functools.partial(heads.EncoderTagger, use_dropout=False),
                               score_spans, _exclude_padding),
    ("decoder", "classes"): Head(heads.DecoderClassifier, score_classes, _keep_logits,
                                 has_classes=True, has_lm=True),
    ("decoder", "values"): Head(heads.DecoderClassifier, score_values, _take_value, has_lm=True),
}


def find_task_head(config: ConfigDict, kind: str) -> Head:
  """Returns the head of a kind of task for the family of a config.

  Args:
    config: config of the pretrained run.
    kind: kind of the task's outputs, as in `tasks.rows.Task`.
  """
  return TASK_HEADS[families.find(config).kind, kind]
