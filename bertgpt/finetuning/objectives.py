"""What a task minimises and predicts, for the train step of pretraining.

Axes: B rows, L length, C outputs.

A batch holds `tokens`, `segment_ids`, `sequence_ids` (1, and 0 for padding), `positions`, int32
[B, L]; `labels`; `example_weights` float32 [B], 0 for rows that only fill up the batch; `seed`
int32 [B], of the run.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bertgpt.config import ConfigDict
from bertgpt.models import Module, cross_entropy, heads
from bertgpt.training.objectives import Batch, Objective, Sums

NEVER = -1e9  # Logit of a position that cannot be chosen.


class Head(NamedTuple):
  """One kind of task.

  Attributes:
    make_model: (config.model, number of outputs) -> module.
    make_objective: (config of the run, weight of the LM loss) -> objective.
    predict: (module, params, batch) -> what the task's scores are made of.
  """

  make_model: Callable[..., Module]
  make_objective: Callable[[ConfigDict, float], Objective]
  predict: Callable[[Module, dict, Batch], jax.Array]


def _encoder_inputs(batch: Batch) -> tuple:
  return batch["tokens"], batch["segment_ids"], batch["sequence_ids"], batch["positions"]


def _decoder_inputs(batch: Batch) -> tuple:
  return batch["tokens"], batch["sequence_ids"], batch["positions"]


def _apply(model, params, inputs, batch, dropout_key):
  """The seed comes with the batch: one compiled step serves every run."""
  rngs = {}
  if dropout_key is not None:
    rngs = {"dropout": jax.random.fold_in(dropout_key, batch["seed"][0])}
  return model.apply({"params": params}, *inputs(batch), rngs=rngs)


def _make(score: Callable[[jax.Array, Batch], Sums], inputs=_encoder_inputs) -> Objective:
  """The objective with one loss, `task_loss`, over examples."""

  def evaluate(model, params, batch, dropout_key):
    return score(_apply(model, params, inputs, batch, dropout_key), batch)

  def weights(batch):
    return {"task_loss": _task_weight(batch)}

  return Objective(_keep, weights, evaluate, inputs)


def _keep(batch, key, row_ids):
  return batch


def _task_weight(batch: Batch) -> jax.Array:
  """Examples, or labelled tokens."""
  labels = batch["labels"]
  if labels.shape == batch["tokens"].shape:
    return _token_weights(batch).sum()
  return batch["example_weights"].sum()


def _token_weights(batch: Batch) -> jax.Array:
  return (batch["labels"] >= 0) * batch["example_weights"][:, None]


def score_classes(logits_BC: jax.Array, batch: Batch) -> Sums:
  """Cross-entropy of `labels`, int32 [B]."""
  loss, correct = cross_entropy.score_logits(logits_BC, batch["labels"], batch["example_weights"])
  weight = batch["example_weights"].sum()
  return {"task_loss": (loss, weight), "task_accuracy": (correct, weight)}


def score_values(outputs_B1: jax.Array, batch: Batch) -> Sums:
  """Squared error of `labels`, float32 [B]."""
  errors_B = (outputs_B1[:, 0] - batch["labels"]) ** 2
  weights_B = batch["example_weights"]
  return {"task_loss": ((errors_B * weights_B).sum(), weights_B.sum())}


def score_tokens(logits_BLC: jax.Array, batch: Batch) -> Sums:
  """Cross-entropy of `labels`, int32 [B, L], where they are not negative."""
  weights_BL = _token_weights(batch)
  labels_BL = jnp.maximum(batch["labels"], 0)
  loss, correct = cross_entropy.score_logits(logits_BLC, labels_BL, weights_BL)
  weight = weights_BL.sum()
  return {"task_loss": (loss, weight), "task_accuracy": (correct, weight)}


def score_spans(logits_BL2: jax.Array, batch: Batch) -> Sums:
  """Mean of the cross-entropies of start and end; `labels` are positions, int32 [B, 2]."""
  logits_B2L = _possible(logits_BL2, batch)
  weights_B = batch["example_weights"]
  loss, correct = cross_entropy.score_logits(logits_B2L, batch["labels"],
                                             jnp.stack([weights_B, weights_B], 1))
  weight = weights_B.sum()
  return {"task_loss": (loss / 2, weight), "task_accuracy": (correct / 2, weight)}


def _possible(logits_BL2, batch):
  """Starts and ends, [B, 2, L]: no answer lies in the padding, however long it is."""
  return jnp.where(batch["sequence_ids"][:, None] > 0, jnp.swapaxes(logits_BL2, 1, 2), NEVER)


def make_gpt_objective(score: Callable[[jax.Array, Batch], Sums], config: ConfigDict,
                       lm_weight: float) -> Objective:
  """The task's loss + lm_weight * the language model's (Radford et al. 2018, eq. 5).

  The auxiliary loss is a mean over all tokens of the batch but the first of each row.
  """

  def weights(batch):
    both = {"task_loss": _task_weight(batch)}
    if lm_weight:  # The step divides by it, so a loss counts half with twice the weight.
      both["lm_loss"] = _lm_targets(batch)[1].sum() / lm_weight
    return both

  def evaluate(model, params, batch, dropout_key):
    outputs_BC, prediction = _apply(model, params, _decoder_inputs, batch, dropout_key)
    sums = score(outputs_BC, batch)
    if lm_weight:
      targets_BL, weights_BL = _lm_targets(batch)
      loss, _ = cross_entropy.score(prediction, targets_BL, weights_BL,
                                    config.objective.loss_chunk)
      sums["lm_loss"] = loss, weights_BL.sum()
    return sums

  return Objective(_keep, weights, evaluate, _decoder_inputs)


def _lm_targets(batch):
  targets_BL = jnp.roll(batch["tokens"], -1, 1)
  is_next_BL = jnp.roll(batch["sequence_ids"], -1, 1).at[:, -1].set(0) > 0
  return targets_BL, is_next_BL * batch["example_weights"][:, None]


# -------------------------------------------------------------- predictions


def _predict(model, params, batch, *, inputs, finish):
  return finish(_apply(model, params, inputs, batch, None), batch)


def _bert_head(make_model, score, finish) -> Head:
  return Head(make_model, lambda config, lm_weight: _make(score),
              functools.partial(_predict, inputs=_encoder_inputs, finish=finish))


def _gpt_head(score, finish) -> Head:
  return Head(heads.GptClassifier, functools.partial(make_gpt_objective, score),
              functools.partial(_predict, inputs=_decoder_inputs,
                                finish=lambda outputs, batch: finish(outputs[0], batch)))


def _classes(logits, batch):
  return logits.argmax(-1).astype(jnp.int32)


def _values(outputs_B1, batch):
  return outputs_B1[:, 0]


# (family, kind of task) -> head
HEADS = {
    ("bert", "classes"): _bert_head(heads.BertClassifier, score_classes, _classes),
    ("bert", "values"): _bert_head(heads.BertClassifier, score_values, _values),
    ("bert", "tokens"): _bert_head(functools.partial(heads.BertTagger, use_dropout=True),
                                   score_tokens, _classes),
    ("bert", "spans"): _bert_head(functools.partial(heads.BertTagger, use_dropout=False),
                                  score_spans, _possible),
    ("gpt", "classes"): _gpt_head(score_classes, _classes),
    ("gpt", "values"): _gpt_head(score_values, _values),
}
